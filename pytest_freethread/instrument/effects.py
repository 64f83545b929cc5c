"""Leaf: what an operation of a built-in container or stream does to it, as data.

The operations of C types cannot be probed from the inside, so a table says what each one reads or
writes. A class of the user's that overrides an operation in Python has probes inside it instead.
"""

from __future__ import annotations

import io
from array import array
from collections import OrderedDict, defaultdict, deque
from itertools import tee
from types import GeneratorType, MappingProxyType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# What an access does; an odd one writes. Plain integers: they cross the hottest call of all.
ATTRIBUTE_READ: Final = 0
ATTRIBUTE_WRITE: Final = 1
ITEM_READ: Final = 2
ITEM_WRITE: Final = 3
WHOLE_READ: Final = 4
WHOLE_WRITE: Final = 5
CELL_READ: Final = 6
CELL_WRITE: Final = 7
STEP: Final = 8
RESUME: Final = 9
ROUTE: Final = 10
ITEM_ADD: Final = 11  # a write where nothing is; of those that were made, one in vain

OP_NAMES: Final = {
    ATTRIBUTE_READ: "attribute read",
    ATTRIBUTE_WRITE: "attribute write",
    ITEM_READ: "item read",
    ITEM_WRITE: "item write",
    WHOLE_READ: "container read",
    WHOLE_WRITE: "container write",
    CELL_READ: "cell read",
    CELL_WRITE: "cell write",
    STEP: "iteration step",
    RESUME: "iterator write",
    ROUTE: "synchronisation",
    ITEM_ADD: "item addition",
}

# Seen by the probes only: they look at the key, its presence, or what a view shows, and decide.
NOTHING: Final = -1
INDEX_READ: Final = 16
INDEX_WRITE: Final = 17
DEFAULT_READ: Final = 18
SHOWN_READ: Final = 19
SHOWN_WRITE: Final = 20
SHOWN_ITEM_READ: Final = 21


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SIZE_AND_STEPS = {"__len__": WHOLE_READ, "__iter__": STEP, "__eq__": WHOLE_READ}
_SEQUENCE = {
    **_SIZE_AND_STEPS,
    "__contains__": WHOLE_READ,
    "__getitem__": INDEX_READ,
    "__setitem__": INDEX_WRITE,
    "__delitem__": WHOLE_WRITE,
    **dict.fromkeys(_words("__iadd__ __imul__ append extend insert remove pop"), WHOLE_WRITE),
    **dict.fromkeys(_words("clear reverse"), WHOLE_WRITE),
    **dict.fromkeys(_words("index count copy __copy__"), WHOLE_READ),
}
_DICT = {
    **_SIZE_AND_STEPS,
    **dict.fromkeys(_words("__contains__ __getitem__ get"), ITEM_READ),
    **dict.fromkeys(_words("__setitem__ __delitem__ pop"), ITEM_WRITE),
    "setdefault": ITEM_ADD,
    **dict.fromkeys(_words("popitem update clear __ior__"), WHOLE_WRITE),
    "copy": WHOLE_READ,
}

_STREAM = {
    **dict.fromkeys(
        _words("read readline readlines readall readinto read1 readinto1"), WHOLE_WRITE
    ),
    **dict.fromkeys(_words("write writelines seek tell truncate flush close"), WHOLE_WRITE),
    **dict.fromkeys(_words("getvalue"), WHOLE_READ),
}
_STREAMS = (
    *(io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper),
    *(io.BytesIO, io.StringIO),
)

EFFECTS: Final[Mapping[type, Mapping[str, int]]] = {
    **dict.fromkeys(_STREAMS, _STREAM),  # where it stands in its file is what threads share
    list: {**_SEQUENCE, "sort": WHOLE_WRITE},
    array: {
        **_SEQUENCE,
        **dict.fromkeys(_words("byteswap fromlist frombytes fromfile fromunicode"), WHOLE_WRITE),
        **dict.fromkeys(_words("tolist tobytes tofile tounicode buffer_info"), WHOLE_READ),
    },
    deque: {
        **_SEQUENCE,
        **dict.fromkeys(_words("appendleft popleft extendleft rotate"), WHOLE_WRITE),
    },
    bytearray: {
        **_SEQUENCE,
        "decode": WHOLE_READ,  # the other text-like reads would slow down every call on a str
    },
    set: {
        **_SIZE_AND_STEPS,
        "__contains__": ITEM_READ,
        **dict.fromkeys(_words("discard remove"), ITEM_WRITE),
        "add": ITEM_ADD,
        **dict.fromkeys(_words("pop clear update __ior__ __iand__ __isub__ __ixor__"), WHOLE_WRITE),
        **dict.fromkeys(
            _words("difference_update intersection_update symmetric_difference_update"), WHOLE_WRITE
        ),
        **dict.fromkeys(
            _words(
                "copy union intersection difference symmetric_difference isdisjoint issubset "
                "issuperset"
            ),
            WHOLE_READ,
        ),
    },
    dict: _DICT,
    defaultdict: {"__getitem__": DEFAULT_READ, "copy": WHOLE_READ, "__ior__": WHOLE_WRITE},
    OrderedDict: {**_DICT, "move_to_end": WHOLE_WRITE},
}


_EMPTY: tuple[Any, ...] = ([], {}, {}.values(), {}.items(), deque())

_SHOWN: tuple[dict[Any, Any], ...] = ({}, OrderedDict())

VIEWS: Final = frozenset(
    type(view) for shown in _SHOWN for view in (shown.keys(), shown.values(), shown.items())
)
"""Types whose instances show a dict; `gc.get_referents` names it."""

ITERATORS: Final = frozenset(
    {type(iter(empty)) for empty in (*_EMPTY, set(), bytearray(), array("b"), OrderedDict())}
    | {type(reversed(empty)) for empty in _EMPTY}
)
"""Types whose instances walk over a container; `gc.get_referents` names it."""

FRAGILE: Final = frozenset({GeneratorType, type(tee(())[0])})
"""Types of iterators that break where two threads are in them at once; the steps of others in C
are atomic."""

_INDIRECT = {"__len__": SHOWN_READ, "__iter__": STEP, "__contains__": SHOWN_READ}
_SHOWING: Final[Mapping[type, Mapping[str, int]]] = {
    **dict.fromkeys(VIEWS | ITERATORS, _INDIRECT),
    MappingProxyType: {
        **dict.fromkeys(_words("__getitem__ __contains__ get"), SHOWN_ITEM_READ),
        **dict.fromkeys(_words("__len__ copy"), SHOWN_READ),
        "__iter__": STEP,
    },
    memoryview: {
        **dict.fromkeys(_words("__getitem__ __contains__ tobytes tolist hex"), SHOWN_READ),
        "__setitem__": SHOWN_WRITE,
        "__iter__": STEP,
    },
}
"""Types that have nothing of their own: what they do is done to what they show."""

METHODS: Final = frozenset(
    name
    for effects in EFFECTS.values()
    for name in effects
    if not name.startswith("__") or name in {"__getitem__", "__setitem__", "__delitem__"}
) | {"__contains__", "__len__", "__next__", "tobytes", "tolist"}
"""Names under which a method may read or write a container that it is called on."""

SYNCHRONISERS: Final = frozenset(
    _words("acquire release locked acquire_lock release_lock wait wait_for notify notify_all")
    + _words("set clear is_set abort reset put get put_nowait get_nowait task_done join qsize")
    + _words("empty full submit shutdown result exception done cancel add_done_callback start")
    + _words("is_alive")
)
"""Names of methods on which an object that threads meet at may be replaced by its shadow."""

ARGUMENT_READING_METHODS: Final = frozenset(
    _words("extend extendleft update join union intersection difference symmetric_difference")
    + _words("difference_update intersection_update symmetric_difference_update")
    + _words("issubset issuperset isdisjoint writelines")
)
"""Names of methods that read the containers which they are given."""

READERS: Final = frozenset(
    _words("len sum min max sorted list tuple set frozenset dict any all bytes bytearray repr str")
)
"""Built-in functions that read a container, given as the only or the first argument, at once."""

LAZY_READERS: Final = frozenset(_words("enumerate zip map filter"))
"""Built-in functions whose results read the containers that they are given, step by step."""

_UNDIVIDED: Final[Mapping[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("len", "repr", "str"), object),
    **dict.fromkeys(("set", "frozenset"), (set, dict)),  # they take over the hashes
    **dict.fromkeys(("dict", "**"), (dict, MappingProxyType)),
    **dict.fromkeys(ARGUMENT_READING_METHODS - {"join"}, object),  # `d.extend(d)` is well-defined
    **dict.fromkeys(("bytes", "bytearray"), (bytearray, array, memoryview)),
}
"""Which readers would see something else if they were given the elements one by one."""

ATOMIC_READERS: Mapping[str, frozenset[type]] = {
    "list": frozenset({list, dict, set, *VIEWS}),
    "sorted": frozenset({list, dict, set, *VIEWS}),
    "tuple": frozenset({list}),
    "set": frozenset({set, dict}),
    "frozenset": frozenset({set, dict}),
    "dict": frozenset({dict, OrderedDict, defaultdict}),
    "bytes": frozenset({bytearray, array}),
    "bytearray": frozenset({bytearray, array}),
    "*": frozenset({list, dict, set, *VIEWS}),
    "**": frozenset({dict, OrderedDict, defaultdict}),
    "unpack": frozenset({list}),
    "join": frozenset({list}),
}
"""Which readers see a container of which type at one moment, on every interpreter.

Measured, not assumed: what is missing here is read element by element (`tuple(d)` on a
free-threaded build raises "dictionary changed size during iteration"), and the probes step it so
everywhere. `*` and `**` are the displays and calls, `unpack` is `a, b = x`.
"""


def reads_at_once(reader: str, container: type) -> bool:
    """Whether `reader` sees a `container` at one moment, or cannot be stepped from outside."""
    return container in ATOMIC_READERS.get(reader, ()) or issubclass(
        container, _UNDIVIDED.get(reader, ())
    )


def effect(name: str, owner: type) -> int:
    """What the operation `name` does to an instance of `owner`.

    Returns:
        One of the operations above; `NOTHING` for what is no container or runs Python code.
    """
    mro = type.__dict__["__mro__"].__get__(owner) or ()
    if name == "__bool__":
        if any("__bool__" in vars(base) for base in mro):
            return NOTHING
        name = "__len__"
    if name == "__next__":
        step = next((vars(base)[name] for base in mro if name in vars(base)), None)
        return WHOLE_WRITE if type(step) is WrapperDescriptorType else NOTHING
    if owner in _SHOWING:
        return _SHOWING[owner].get(name, NOTHING)
    for base in mro:
        if base in EFFECTS and name in EFFECTS[base]:
            return EFFECTS[base][name]
        if name in vars(base):
            if name in {"__getitem__", "__setitem__", "__delitem__"}:
                return _unknown_item(name, base, vars(base)[name])
            return NOTHING
    return NOTHING


def _unknown_item(name: str, base: type, descriptor: object) -> int:
    """An extension type's item access: a whole access, where the type lets items be set at all."""
    if type(descriptor) is WrapperDescriptorType and hasattr(base, "__setitem__"):
        return WHOLE_READ if name == "__getitem__" else WHOLE_WRITE
    return NOTHING
