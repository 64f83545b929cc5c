"""The probes: what the rewritten code calls before each access, and who listens.

A probe announces what is about to happen and hands back one of its arguments, so that the access
itself stays the native one: `self.value` becomes `read(self, "value", 17).value`. The compiled code
refers to the probes as *constants* (`swap.py` puts them there): no name is added to a module, to
`builtins` or to a class, private-name mangling has nothing to act on, and loading one costs no
dictionary lookup (measured: as fast as a builtin with the GIL, 6-8 ns faster without).

An attribute is announced only if code that is instrumented stores an attribute of that name: one
that nobody stores cannot conflict, and nearly all methods, classes and module functions fall away
for the price of one set lookup. Properties and other descriptors written in Python are left to run
as code, with their own probes inside: the access by name alone says nothing about what is touched.
"""

from __future__ import annotations

import _thread
import bisect
import builtins
import contextlib
import functools
import gc
import heapq
import importlib
import sys
import weakref
from collections import defaultdict
from types import (
    BuiltinMethodType,
    GeneratorType,
    MappingProxyType,
    MethodWrapperType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from pytest_freethread.instrument.effects import (
    ATTRIBUTE_READ,
    ATTRIBUTE_WRITE,
    CELL_READ,
    CELL_WRITE,
    DEFAULT_READ,
    FRAGILE,
    INDEX_READ,
    INDEX_WRITE,
    ITEM_ADD,
    ITEM_READ,
    ITEM_WRITE,
    ITERATORS,
    NOTHING,
    RESUME,
    ROUTE,
    SHOWN_ITEM_READ,
    SHOWN_READ,
    SHOWN_WRITE,
    STEP,
    SYNCHRONISERS,
    VIEWS,
    WHOLE_READ,
    WHOLE_WRITE,
    effect,
    reads_at_once,
)
from pytest_freethread.interpreter import namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

Kind = Literal["read", "write", "update", "delete", "call", "iterate", "lock"]


class Site(NamedTuple):
    """A place in the source that announces an access.

    Attributes:
        file: the path that the code object names.
        line: counted from 1.
        function: the qualified name of the function around it.
        ordinal: how many sites of that function come before it; with file and function it names
            the same place on every interpreter and after edits elsewhere in the file.
        kind: what the expression does; what it does to which object says the operation.
        text: the source of the expression, such as `self.value`.
        name: the attribute, variable, method or built-in function; None for subscripts and loops.
    """

    file: str
    line: int
    function: str
    ordinal: int
    kind: Kind
    text: str
    name: str | None


SITES: Final[list[Site]] = []
"""All sites of this process; probes carry indices into it, which stay valid."""


def is_call(site: int) -> bool:
    """Whether what happens at a site is one call of a method: `d.get(k)`, `k in d`; not `d[k]`."""
    where = SITES[site]
    return where.kind == "call" or where.name == "__contains__"


class Sink(Protocol):
    """Who listens to the probes. It runs within the thread that is about to access."""

    def access(self, obj: Any, key: Any, op: int, site: int, /) -> Any:
        """Take note of an access before it happens; a scheduler waits here for its turn.

        Args:
            obj: the owner: an object for attributes, the container for items and whole accesses,
                the module's dict for globals (and for a module's attributes), the cell object.
            key: the attribute's or variable's name, the item's key, None for a whole container,
                and for all attributes at once (`vars(obj)`). It may be unhashable.
            op: one of the operations of `effects.py`; `op & 1` writes.
            site: an index into `SITES`.

        Returns:
            The object to go on with: `obj`, or a stand-in. It counts for attribute accesses and
            for `ROUTE` (a lock to be entered or called), and is ignored for the others.
        """
        ...


_Access: TypeAlias = "Callable[[Any, Any, int, int], Any]"

_OF_AN_ITEM: Final = frozenset({ITEM_READ, ITEM_WRITE, ITEM_ADD})

_sink: Sink | None = None
_access: _Access | None = None
_sink_access: _Access | None = None


def listen(sink: Sink | None) -> None:
    """Let `sink` hear every probe of every thread from now on; None: nobody.

    What was learned about classes is dropped: it keeps them alive, for as long as nobody calls.
    """
    global _sink, _access, _sink_access  # noqa: PLW0603 - the one sink of the process
    for learned in _effects.values():
        learned.clear()
    _special_reads.clear()
    _special_writes.clear()
    _namespaces.clear()
    _sink = sink
    _access = _sink_access = None if sink is None else sink.access


def divert(access: Callable[[Any, Any, int, int], Any] | None) -> None:
    """Let `access` hear the probes in place of the sink's own; None: the sink's again."""
    global _access, _sink_access  # noqa: PLW0603 - see above
    if _sink is not None:
        direct = _access is _sink_access
        _sink_access = access or _sink.access
        if direct:  # else whoever hears them hands them on
            _access = _sink_access


def announce(obj: Any, key: Any, op: int, site: int) -> None:
    """Announce what no source says: a step of its own, such as that an operation is called."""
    access = _access
    if access is not None:
        access(obj, key, op, site)


# --- what is worth announcing ---------------------------------------------------------------------

stored_names: Final[set[str]] = set()
"""Attribute names that instrumented code stores; `swap.py` fills it, `setattr` adds to it."""

_class_names: Final[set[str]] = set()
_routed: Final[set[type]] = {_thread.LockType, _thread.RLock}
_effects: Final[defaultdict[str, dict[type, int]]] = defaultdict(dict)
_item_reads: Final = _effects["__getitem__"]
_item_writes: Final = _effects["__setitem__"]
_memberships: Final = _effects["__contains__"]
_truths: Final = _effects["__bool__"]
_special_reads: Final[dict[type, Container[str]]] = {}
_special_writes: Final[dict[type, Container[str]]] = {}

# Read past a metaclass that has views of its own on attributes: no user code runs within a probe.
_mro_of: Final = type.__dict__["__mro__"].__get__
_names_of: Final = type.__dict__["__dict__"].__get__


class _Everything:
    """Contains every name."""

    def __contains__(self, name: object) -> bool:
        return True


def route(*types: type) -> None:
    """Ask the sink for a stand-in whenever an object of exactly these types is synchronised on."""
    _routed.update(types)
    for learned in _effects.values():
        learned.clear()


def forget() -> None:
    """Drop all that was learned about names; `swap.py` calls it when probes are taken out."""
    stored_names.clear()
    _class_names.clear()
    _special_reads.clear()


def _learn_effect(name: str, owner: type) -> int:
    found = ROUTE if owner in _routed and name in SYNCHRONISERS else effect(name, owner)
    _effects[name][owner] = found
    return found


def _effect(name: str, obj: object) -> int:
    try:
        return _effects[name][type(obj)]
    except KeyError:
        return _learn_effect(name, type(obj))


def _learn_attributes(owner: type) -> None:
    """Find the attributes of `owner`'s instances that are more than a place in the instance."""
    reads, writes = set(_class_names), set[str]()
    if issubclass(owner, (type, ModuleType)):
        _special_reads[owner] = _special_writes[owner] = _Everything()
        return
    for base in _mro_of(owner) or ():
        for name, value in list(_names_of(base).items()):
            if _runs_code(value, "__get__", "__set__"):
                reads.add(name)
            if _runs_code(value, "__set__", "__set__"):
                writes.add(name)
    _special_reads[owner] = _Everything() if _overrides(owner, "__getattribute__") else reads
    _special_writes[owner] = _Everything() if _overrides(owner, "__setattr__") else writes


def _runs_code(descriptor: object, method: str, needed: str) -> bool:
    """Whether a data descriptor's `method` is, or calls, Python code."""
    kind = type(descriptor)
    return hasattr(kind, needed) and (
        issubclass(kind, property) or hasattr(getattr(kind, method, None), "__code__")
    )


def _overrides(owner: type, method: str) -> bool:
    definer = _definer(owner, method)
    return definer is not None and hasattr(_names_of(definer)[method], "__code__")


def _definer(owner: type, key: str) -> type | None:
    # A class that is just being made has no order of resolution yet.
    return next((base for base in _mro_of(owner) or () if key in _names_of(base)), None)


def _owner(container: Any) -> Any:
    """The container that a view shows or an iterator walks over; None for an exhausted one."""
    kind = type(container)
    if kind is memoryview:
        return container.obj
    if kind in VIEWS or kind in ITERATORS or kind is MappingProxyType:
        referents = gc.get_referents(container)
        return referents[0] if referents else None
    return container


# Every probe takes the sink once: it may go away at any moment, in another thread.

# --- namespaces -----------------------------------------------------------------------------------
# `obj.__dict__["x"]` is the attribute `obj.x`. Code that asks for an object's dict is seen doing
# so; from then on what happens to that very dict is announced on the object.

_namespaces: Final[dict[int, weakref.ref[Any]]] = {}
"""By the identity of a dict: the object whose attributes it holds."""


def namespace(obj: Any) -> Any:
    """Before `obj.__dict__` and `vars(obj)`; returns the object."""
    global _access  # noqa: PLW0603 - the one sink of the process
    if _access is not None and not issubclass(type(obj), ModuleType):
        held = _held_by(obj)
        if type(held) is dict and id(held) not in _namespaces:
            with contextlib.suppress(TypeError):  # it cannot be referred to weakly
                reference = weakref.ref(obj, functools.partial(_namespaces.pop, id(held)))
                _namespaces[id(held)] = reference
                _access = _access_namespace
    return obj


def _held_by(obj: Any) -> object:
    """The dict that holds the attributes of an object; of a class, the one behind the proxy."""
    if issubclass(type(obj), type):
        return gc.get_referents(_names_of(obj))[0]
    try:
        return object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return None


def _access_namespace(obj: Any, key: Any, op: int, site: int) -> Any:
    """In place of the sink: an access to a dict that is a namespace is one to an attribute."""
    access = _sink_access
    if access is None:
        return obj
    reference = _namespaces.get(id(obj)) if type(obj) is dict else None
    owner = None if reference is None else reference()
    if owner is None or _held_by(owner) is not obj:
        return access(obj, key, op, site)
    attribute = key if op in _OF_AN_ITEM and type(key) is str else None
    if op & 1 and attribute is not None:
        stored_names.add(attribute)
    access(owner, attribute, ATTRIBUTE_WRITE if op & 1 else ATTRIBUTE_READ, site)
    return obj


# --- attributes -----------------------------------------------------------------------------------


def read(obj: Any, key: str, site: int) -> Any:
    """Before `obj.key`; returns what to read it from."""
    access = _access
    if access is None or key not in stored_names:
        return obj
    try:
        if key in _special_reads[type(obj)]:
            return _read_special(access, obj, key, site)
    except KeyError:
        _learn_attributes(type(obj))
        return read(obj, key, site)
    return access(obj, key, ATTRIBUTE_READ, site)


def write(obj: Any, key: str, site: int) -> Any:
    """Before `obj.key = …` and `del obj.key`; returns what to store it in."""
    access = _access
    if access is None:
        return obj
    try:
        if key in _special_writes[type(obj)]:
            return _write_special(access, obj, key, site)
    except KeyError:
        _learn_attributes(type(obj))
        return write(obj, key, site)
    return access(obj, key, ATTRIBUTE_WRITE, site)


def _read_special(access: _Access, obj: Any, key: str, site: int) -> Any:
    """Announce where the attribute really is: a module's dict, a class; nothing for code."""
    owner = type(obj)
    if issubclass(owner, ModuleType):
        access(namespace_of(obj), key, ITEM_READ, site)
    elif issubclass(owner, type):
        definer = _definer(obj, key)
        access(obj if definer is None else definer, key, ATTRIBUTE_READ, site)
    elif key in _class_names and not _overrides(owner, "__getattribute__"):
        definer = _definer(owner, key)
        value = None if definer is None else _names_of(definer)[key]
        if _runs_code(value, "__get__", "__set__"):
            return obj
        if definer is None or hasattr(type(value), "__set__") or _has_own(obj, key):
            return access(obj, key, ATTRIBUTE_READ, site)
        access(definer, key, ATTRIBUTE_READ, site)
    return obj


def _has_own(obj: Any, key: str) -> bool:
    try:
        return key in object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return False


def _write_special(access: _Access, obj: Any, key: str, site: int) -> Any:
    if issubclass(type(obj), ModuleType):
        access(namespace_of(obj), key, ITEM_WRITE, site)
    elif issubclass(type(obj), type):
        if key not in _class_names:
            # From now on a read through an instance may have to be announced on the class.
            _class_names.add(key)
            _special_reads.clear()
        access(obj, key, ATTRIBUTE_WRITE, site)
    return obj


# --- items ----------------------------------------------------------------------------------------


def item_read(obj: Any, site: int, key: Any, _: object = None) -> Any:
    """Before `obj[key]`; returns the key."""
    access = _access
    if access is None:
        return key
    try:
        op = _item_reads[type(obj)]
    except KeyError:
        op = _learn_effect("__getitem__", type(obj))
    if op == ITEM_READ:
        access(obj, key, ITEM_READ, site)
    elif op >= 0:
        _item(access, obj, key, op, site)
    return key


def item_write(obj: Any, site: int, key: Any, _: object = None) -> Any:
    """Before `obj[key] = …`; returns the key."""
    access = _access
    if access is None:
        return key
    try:
        op = _item_writes[type(obj)]
    except KeyError:
        op = _learn_effect("__setitem__", type(obj))
    if op == ITEM_WRITE:
        access(obj, key, ITEM_WRITE, site)
    elif op >= 0:
        _item(access, obj, key, op, site)
    return key


def item_delete(obj: Any, site: int, key: Any) -> Any:
    """Before `del obj[key]`; returns the key."""
    access = _access
    if access is not None:
        op = _effect("__delitem__", obj)
        if op >= 0:
            _item(access, obj, key, op, site)
    return key


def item_pair(obj: Any, key: Any, site: int) -> tuple[Any, Any]:
    """Before `getitem(obj, key)`; returns both."""
    return obj, item_read(obj, site, key)


def _item(access: _Access, obj: Any, key: Any, op: int, site: int) -> None:
    """Announce an operation on one item, or on the whole where the key does not name one item."""
    if op == SHOWN_READ:
        _read_whole(access, obj, site)
        return
    if op == SHOWN_WRITE:
        access(_owner(obj), None, WHOLE_WRITE, site)
        return
    if op == SHOWN_ITEM_READ:
        shown = _owner(obj)
        plain = _effect("__getitem__", shown) == ITEM_READ
        access(shown, key if plain else None, ITEM_READ if plain else WHOLE_READ, site)
        return
    if op == DEFAULT_READ:
        # Looking a key up may run its own code; only what surely does not is looked up.
        present = type(key) in {str, int, bytes, float, bool} and key in obj
        op = ITEM_READ if present else ITEM_ADD
    elif op in {INDEX_READ, INDEX_WRITE}:
        op = ITEM_READ if op == INDEX_READ else ITEM_WRITE
        if type(key) is not int:
            op += WHOLE_READ - ITEM_READ
        elif key < 0:
            key += len(obj)
    access(obj, key if op in _OF_AN_ITEM else None, op, site)


# --- variables ------------------------------------------------------------------------------------


def global_read(namespace: dict[str, Any], key: str, site: int) -> Literal[True]:
    """Before a global that some function rebinds is loaded."""
    access = _access
    if access is not None:
        access(namespace, key, ITEM_READ, site)
    return True


def global_write(value: Any, namespace: dict[str, Any], key: str, site: int) -> Any:
    """Before `key = value` in the module's namespace, and before `del key`; returns the value."""
    access = _access
    if access is not None:
        access(namespace, key, ITEM_WRITE, site)
    return value


def cell_read(holder: Any, key: str, site: int) -> Literal[True]:
    """Before a captured variable is loaded; `holder` is a function that closes over it alone."""
    access = _access
    if access is not None:
        access(holder.__closure__[0], key, CELL_READ, site)
    return True


def cell_write(value: Any, holder: Any, key: str, site: int) -> Any:
    """Before a captured variable is bound to `value`, or deleted; returns the value."""
    access = _access
    if access is not None:
        access(holder.__closure__[0], key, CELL_WRITE, site)
    return value


def imports(spaces: dict[str, Any], name: str, level: int, site: int) -> None:
    """Before `import name` and `from name import …`; `level` counts the dots before the name."""
    access = _access
    if access is None:
        return
    if level:
        package = spaces.get("__package__") or str(spaces.get("__name__")).rpartition(".")[0]
        base = package.rsplit(".", level - 1)[0]
        name = f"{base}.{name}" if name else base
    access(sys.modules, name, ITEM_READ if name in sys.modules else ITEM_WRITE, site)


# --- iteration, membership, truth -----------------------------------------------------------------


def iterate(obj: Any, site: int) -> Any:
    """Around what a loop walks over: each step of a built-in container or iterator is announced."""
    access = _access
    if access is None:
        return obj
    if _effect("__next__", obj) == WHOLE_WRITE:
        return obj if _runs_probed(obj) else _after(functools.partial(_pace, obj, site), obj)
    return walk(obj, site)


def _after(announce: Callable[[], None], steps: Any) -> Iterator[Any]:
    """The same steps, each after a call of `announce`, which returns None.

    All else happens in C: an iterator's own frames see who called them, nothing holds on to what
    it yields, and the result can be copied if that can be.
    """
    return map(_second, iter(announce, False), steps)


_second: Final[Callable[[Any, Any], Any]] = {}.get  # what is not there has the default


def _pace(iterator: Any, site: int) -> None:
    __tracebackhide__ = True
    if (access := _access) is not None:
        _step(access, iterator, site)


def delegate(obj: Any, site: int) -> Any:
    """Around what `yield from` hands over to; what can be sent to is left as it is."""
    return obj if hasattr(type(obj), "send") else iterate(obj, site)


def walk(obj: Any, site: int) -> Any:
    """Around what a loop walks over if an iterator there can only be a new one."""
    if _access is None or _effect("__iter__", obj) != STEP:
        return obj
    owner = _owner(obj)
    return obj if owner is None else _steps(iter(obj), owner, site)


def _steps(steps: Iterator[Any], owner: Any, site: int) -> Iterator[Any]:
    __tracebackhide__ = True
    if (access := _access) is not None:
        access(owner, None, STEP, site)
    for step in steps:
        yield step
        if (access := _access) is not None:
            access(owner, None, STEP, site)


def spread(obj: Any, how: str, site: int) -> Any:
    """Around what `*`, `**` or an assignment to several targets takes apart.

    Also around an argument of a method that reads containers; `how` is then its name.
    """
    access = _access
    if access is None:
        return obj
    if _effect("__next__", obj) == WHOLE_WRITE:
        if how in _TEXTS:
            return obj
        if not reads_at_once(how, type(obj)):
            return iterate(obj, site)
        if not _runs_probed(obj):
            _step(access, obj, site)
        return obj
    if _effect("__iter__", obj) != STEP:
        return obj
    if reads_at_once(how, type(obj)):
        return _read_whole(access, obj, site)
    return walk(obj, site)


_TEXTS: Final = frozenset({"len", "repr", "str"})


class generator:  # noqa: N801 - named after what it stands for, in reports
    """Stands for one generator within its own body, which cannot see it."""

    __slots__ = ("__weakref__",)


def resumed(token: generator, site: int, sent: Any) -> Any:
    """In the body of a generator, each time it was resumed; returns what was sent to it.

    So there is a moment at which it is running, and at which another thread may try to resume it.
    """
    access = _access
    if access is not None:
        access(token, None, RESUME, site)
    return sent


def resumed_at_steps(steps: Any, site: int) -> Any:
    """Around what a generator expression walks over first: its steps are its resumptions."""
    if _access is None:
        return steps
    return _after(functools.partial(resumed, generator(), site, None), steps)


def _runs_probed(obj: Any) -> bool:
    """Whether it is a generator with probes in its body, which announces itself."""
    return type(obj) is GeneratorType and resumed in obj.gi_code.co_consts


def _read_whole(access: _Access, obj: Any, site: int) -> Any:
    owner = _owner(obj)
    if owner is not None:
        access(owner, None, WHOLE_READ, site)
    return obj


def contains(obj: Any, key: Any, site: int) -> Any:
    """Before `key in obj`; returns the container. `UNKNOWN` stands for a key that is no name."""
    access = _access
    if access is None:
        return obj
    try:
        op = _memberships[type(obj)]
    except KeyError:
        op = _learn_effect("__contains__", type(obj))
    if op in {ITEM_READ, SHOWN_ITEM_READ} and key is not UNKNOWN:
        _item(access, obj, key, op, site)
    elif op >= 0:
        _read_whole(access, obj, site)
    return obj


def truth(obj: Any, site: int) -> Any:
    """Around what a condition tests: the truth of a container is a read of its size."""
    access = _access
    if access is None:
        return obj
    try:
        op = _truths[type(obj)]
    except KeyError:
        op = _learn_effect("__bool__", type(obj))
    if op == WHOLE_READ:
        access(obj, None, WHOLE_READ, site)
    elif op >= 0:
        _read_whole(access, obj, site)
    return obj


def compared(obj: Any, other: Any, site: int) -> Any:
    """Before `other == obj`, which reads containers; returns `obj`."""
    access = _access
    if access is not None:
        for each in (other, obj):
            if _effect("__eq__", each) == WHOLE_READ:
                access(each, None, WHOLE_READ, site)
    return obj


def inplace(obj: Any, operation: str, site: int, value: Any) -> Any:
    """Before `obj += value` and the like, which changes a mutable container; returns the value."""
    access = _access
    if access is None:
        return value
    try:
        op = _effects[operation][type(obj)]
    except KeyError:
        op = _learn_effect(operation, type(obj))
    if op == WHOLE_WRITE:
        access(obj, None, WHOLE_WRITE, site)
    return value


# --- calls ----------------------------------------------------------------------------------------


class _Mark:
    """A constant with an identity."""


UNKNOWN: Final = _Mark()
LAST: Final = _Mark()


def receiver(obj: Any, name: str, site: int) -> Any:
    """Before a method that synchronises is looked up; returns the object or its shadow."""
    access = _access
    if access is not None and type(obj) in _routed:
        return access(obj, name, ROUTE, site)
    return read(obj, name, site)


def enter(obj: Any, site: int) -> Any:
    """Around what `with` enters; returns the object or its shadow."""
    access = _access
    if access is not None and type(obj) in _routed:
        return access(obj, None, ROUTE, site)
    return obj


def method(obj: Any, name: str, site: int, key: Any = None) -> Any:
    """Before `obj.name(key, …)` where nothing is announced between here and the call."""
    access = _access
    if access is None:
        return obj
    try:
        op = _effects[name][type(obj)]
    except KeyError:
        op = _learn_effect(name, type(obj))
    if op == NOTHING:
        return read(obj, name, site)
    if op <= ITEM_WRITE:
        access(obj, key, op, site)
    elif op <= WHOLE_WRITE:
        access(obj, None, op, site)
    elif op == ROUTE:
        return access(obj, name, ROUTE, site)
    else:
        _item(access, obj, key, op, site)
    return obj


def late_method(obj: Any, key: Any, name: str, site: int, last: Any) -> Any:
    """Before `obj.name(key, …, last)`, once all arguments are there; returns the last of them."""
    access = _access
    if access is not None:
        op = _effect(name, obj)
        if op not in {NOTHING, ROUTE}:
            _item(access, obj, last if key is LAST else key, op, site)
    return last


_BUILTINS: Final = {
    name: getattr(builtins, name)
    for name in (
        *("len", "sum", "min", "max", "sorted", "list", "tuple", "set", "frozenset", "dict"),
        *("any", "all", "bytes", "bytearray", "repr", "str", "next", "vars", "locals", "dir"),
        *("enumerate", "zip", "map", "filter", "getattr", "hasattr", "setattr", "delattr"),
    )
}

_FIRST_ARGUMENT: Final[dict[str, tuple[Any, int]]] = {
    **{
        name: (getattr(heapq, name), WHOLE_WRITE)
        for name in ("heappush", "heappop", "heapify", "heapreplace", "heappushpop")
    },
    **{
        name: (getattr(bisect, name), WHOLE_WRITE)
        for name in ("insort", "insort_left", "insort_right")
    },
    **{
        name: (getattr(bisect, name), WHOLE_READ)
        for name in ("bisect", "bisect_left", "bisect_right")
    },
    "import_module": (importlib.import_module, NOTHING),
    "__import__": (builtins.__import__, NOTHING),
}
"""Functions that read or write the container which is their first argument, or import it."""

FIRST_ARGUMENT_FUNCTIONS: Final = frozenset(_FIRST_ARGUMENT)
BY_NAME: Final = {
    "getattr": ATTRIBUTE_READ,
    "hasattr": ATTRIBUTE_READ,
    "setattr": ATTRIBUTE_WRITE,
    "delattr": ATTRIBUTE_WRITE,
}
"""Built-in functions that access the attribute of their first argument named by their second."""

RAW: Final = {
    "__getattribute__": ATTRIBUTE_READ,
    "__setattr__": ATTRIBUTE_WRITE,
    "__delattr__": ATTRIBUTE_WRITE,
}
"""The same as methods, called past the class's own."""


def argument(function: Any, name: str, site: int, obj: Any) -> Any:
    """Around an argument of a built-in function that reads containers."""
    access = _access
    if access is None or function is not _BUILTINS[name]:
        return obj
    if name == "len":
        op = _effect("__len__", obj)
        if op == WHOLE_READ:
            access(obj, None, WHOLE_READ, site)
        return obj if op != SHOWN_READ else _read_whole(access, obj, site)
    if name == "vars":
        return access(namespace(obj), None, ATTRIBUTE_READ, site)
    if name == "next":
        return _step(access, obj, site)
    return spread(obj, name, site)


def _step(access: _Access, obj: Any, site: int) -> Any:
    """A step of an iterator in C moves it on, and reads the container that it walks over."""
    if _effect("__next__", obj) == WHOLE_WRITE and not _runs_probed(obj):
        access(obj, None, RESUME if type(obj) in FRAGILE else WHOLE_WRITE, site)
        owner = _owner(obj)
        if owner is not None and owner is not obj:
            access(owner, None, STEP, site)
    return obj


def late_function(  # noqa: PLR0917 - by position, for speed
    obj: Any, key: Any, name: str, site: int, function: Any, last: Any
) -> Any:
    """Before `function(obj, key, …, last)`, once all arguments are there; returns the last."""
    access = _access
    if access is None:
        return last
    if name in BY_NAME:
        attribute = last if key is LAST else key
        if function is _BUILTINS[name] and type(attribute) is str:
            if BY_NAME[name] == ATTRIBUTE_READ:
                read(obj, attribute, site)
            else:
                stored_names.add(attribute)
                write(obj, attribute, site)
    else:
        known, op = _FIRST_ARGUMENT[name]
        container = last if obj is LAST else obj
        if function is known and op == NOTHING:
            if type(container) is str and container[:1] != ".":
                imports({}, container, 0, site)
        elif function is known and _effect("__iter__", container) == STEP:
            access(container, None, op, site)
    return last


def late_raw(obj: Any, key: Any, name: str, site: int, last: Any) -> Any:
    """Before `object.__setattr__(obj, key, last)` and `super().__setattr__(key, last)`."""
    access = _access
    attribute = last if key is LAST else key
    if access is not None and type(attribute) is str:
        if type(obj) is super:
            obj = vars(super)["__self__"].__get__(obj)  # its own attribute, not one it proxies
        if RAW[name] == ATTRIBUTE_WRITE:
            stored_names.add(attribute)
        if attribute in stored_names:
            access(obj, attribute, RAW[name], site)
    return last


def through(function: Any, name: str, site: int) -> Any:
    """Around a callee where a comprehension or a class body leaves no room for a late probe."""
    if _access is None:
        return function
    return functools.partial(_call, function, name, site)


def _call(function: Any, name: str, site: int, /, *args: Any, **keywords: Any) -> Any:
    __tracebackhide__ = True
    if name in BY_NAME or name in _FIRST_ARGUMENT:
        late_function(args[0], args[-1 if len(args) < 2 else 1], name, site, function, None)
    elif type(function) in _BOUND:
        late_method(function.__self__, args[0] if args else None, name, site, None)
    return function(*args, **keywords)


_BOUND: Final = frozenset({BuiltinMethodType, MethodWrapperType})


class _Bound:
    # A method of a built-in container that was looked up now, to be called later on.

    __slots__ = ("__weakref__", "_function", "_name", "_site")

    __doc__ = property(lambda self: self._function.__doc__)

    def __init__(self, function: Any, name: str, site: int) -> None:
        self._function = function
        self._name = name
        self._site = site

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True
        return _call(self._function, self._name, self._site, *args, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._function == (other._function if isinstance(other, _Bound) else other))

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return repr(self._function)

    def __reduce__(self) -> Any:
        return self._function.__reduce__()


_Bound.__name__ = "builtin_function_or_method"  # which messages name


def bound(function: Any, name: str, site: int) -> Any:
    """Around `obj.name` that is not called right there; returns what announces each call."""
    if _access is None or type(function) not in _BOUND:
        return function
    known = _effect(name, function.__self__) not in {NOTHING, ROUTE}
    return _Bound(function, name, site) if known else function


def visible(function: Any, name: str, result: Any) -> Any:
    """Around `locals()`, `vars()` and `dir()`: without the names that the probes work with."""
    if function is not _BUILTINS[name]:
        return result
    if name == "dir":
        return [entry for entry in result if not entry.startswith("@freethread")]
    for entry in [entry for entry in result if entry.startswith("@freethread")]:
        del result[entry]
    return result
