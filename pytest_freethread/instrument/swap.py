"""Putting the probes into live functions, and taking them out again.

The module's source is compiled twice, as it is and with probes. The first gives what the live code
must be equal to: so the source is known to be the one that was imported, and two lambdas on a line
are told apart. Each live function whose code is found there gets the code of the same place of the
second, if its closure fits. Everything that runs afterwards has the probes in: functions made
meanwhile get them from the code of the function around them. A generator, a coroutine or a frame
that had begun before goes on with the code that it began with.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib.util
import inspect
import marshal
import os
import sys
import sysconfig
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_freethread.instrument import heap, kept, probes
from pytest_freethread.instrument.rewrite import CONSTANTS, PREFIX, SITE, Rewritten, locate, rewrite
from pytest_freethread.interpreter import Lock, namespace_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from types import TracebackType


@dataclass(frozen=True, kw_only=True)
class Instrumentation:
    """What an installation covers.

    Attributes:
        functions: how many live functions have probes in.
        left_out: the qualified name of each function (or module) without, and the reason.
    """

    functions: int
    left_out: tuple[tuple[str, str], ...]


class instrumented:  # noqa: N801 - a context manager, used like a verb
    """Have probes in all functions of some modules for the length of a `with` block.

    Blocks nest and overlap: a module keeps its probes until the last block that wants it ends.
    However the block ends, each function gets back the code object that it had.
    """

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self._modules = tuple(modules)
        self._files: list[str] = []

    def __enter__(self) -> Instrumentation:
        return self.install()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def install(self) -> Instrumentation:
        """Put the probes in; a second call picks up functions that were made since."""
        with _lock:
            try:
                return self._install()
            except BaseException:
                self._restore()
                raise

    def restore(self) -> None:
        """Take the probes out, unless somebody else still wants them; may be called twice."""
        with _lock:
            self._restore()

    def _install(self) -> Instrumentation:
        left_out: list[tuple[str, str]] = []
        wanted: dict[str, _Installed] = {}
        with _no_collection():
            compiled = [_compiled(module) for module in self._modules]
        for module, found in zip(self._modules, compiled, strict=True):
            if isinstance(found, str):
                left_out.append((module.__name__, found))
                continue
            installed = _installed.setdefault(found.file, _Installed(found))
            if found.file not in self._files:
                self._files.append(found.file)
                installed.users += 1
            wanted[found.file] = installed
            probes.stored_names.update(found.stored)
        functions = 0
        without = {name for name, reason in left_out if reason != _HARNESS}
        for function in _live_functions(self._modules, without):
            installed_ = wanted.get(_absolute(function.__code__.co_filename))
            if installed_ is None:
                made = function.__code__.co_filename[:1] in _NO_FILE
                unseen = "its module has no probes" if function.__module__ in without else ""
                reason = "made by exec: no source" if made else unseen
            else:
                reason = installed_.swap(function)
                functions += not reason
            if reason:
                left_out.append((f"{function.__module__}.{function.__qualname__}", reason))
        return Instrumentation(functions=functions, left_out=tuple(sorted(left_out)))

    def _restore(self) -> None:
        done = []
        while self._files:
            installed = _installed[self._files.pop()]
            installed.users -= 1
            if installed.users == 0:
                done.append(installed)
                del _installed[installed.compiled.file]
        if done:
            _put_back(done)
            probes.forget()
            for installed in _installed.values():
                probes.stored_names.update(installed.compiled.stored)


def has_probes(code: CodeType) -> bool:
    """Whether it is the code of a function with probes in."""
    return any(id(code) in each.compiled.original for each in list(_installed.values()))


# --- compiling ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compiled:
    """A file's code objects, by what the code of a live function is like."""

    file: str
    stamp: tuple[int, int]
    probed: dict[tuple[Any, ...], CodeType]
    original: dict[int, CodeType]
    stored: frozenset[str]
    known: dict[int, tuple[weakref.ref[CodeType], CodeType | None]] = field(default_factory=dict)

    def counterpart(self, code: CodeType) -> CodeType | None:
        """The probed code for the code of a live function; remembered, since likeness is dear."""
        known = self.known.get(id(code))
        if known is None:
            probed = self.probed.get(_likeness(code))
            if probed is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE:
                probed = probed.replace(co_flags=probed.co_flags | inspect.CO_ITERABLE_COROUTINE)
                self.original[id(probed)] = code
            forget = functools.partial(self.known.pop, id(code))
            known = self.known[id(code)] = weakref.ref(code, forget), probed
        return known[1]


_HARNESS: Final = "it is the harness itself"
_RACY: Final = 2 * 10**9
_lock = Lock()
_Rewrite = Callable[[ast.Module, bytes, str], Rewritten]
_cache: Final[dict[tuple[str, bool, _Rewrite], _Compiled]] = {}


def _compiled(module: ModuleType, rewrite: _Rewrite = rewrite) -> _Compiled | str:
    """The code of a module with and without probes, or the reason why there is none."""
    file = getattr(module, "__file__", None)
    if _is_harness(module.__name__):
        return _HARNESS
    if file is None or not file.endswith((".py", ".pyw")):
        return "no Python source"
    path = os.path.abspath(file)  # noqa: PTH100 - a string, compared with those in code objects
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    asserts = sys.modules.get("_pytest.assertion.rewrite")
    rewriting = asserts is not None and isinstance(loader, asserts.AssertionRewritingHook)
    try:
        status = os.stat(path)  # noqa: PTH116
        stamp = status.st_mtime_ns, status.st_size
        known = _cache.get((path, rewriting, rewrite))
        if known is not None and known.stamp == stamp:
            return known
        with open(path, "rb") as stream:  # noqa: PTH123
            raw = stream.read()
        named = _frozen_name(module) or file
        pytest_s = (asserts, loader) if rewriting else None
        found = _compile(_Source(path, named, stamp, raw, pytest_s), rewrite)
    except (OSError, SyntaxError, ValueError) as error:
        return f"its source cannot be used: {error}"
    _cache[path, rewriting, rewrite] = found
    return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Syntax trees are many objects and no cycles: the collector takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_harness(name: str) -> bool:
    """Whether the probes, or whoever listens to them, may be running code of this module."""
    package, _, rest = name.partition(".")
    return package == probes.__name__.partition(".")[0] and not rest.startswith("reference")


def _frozen_name(module: ModuleType) -> str | None:
    """What the code objects of a module name as their file, if the interpreter contains it."""
    spec = getattr(module, "__spec__", None)
    frozen = getattr(spec, "origin", None) == "frozen"
    return f"<frozen {getattr(spec, 'name', '')}>" if frozen else None


def _code_file(module: ModuleType) -> str | None:
    """The absolute path that the code objects of a module name, or `<frozen …>`."""
    file = _frozen_name(module) or getattr(module, "__file__", None)
    return _absolute(file) if file else None


class _Source(NamedTuple):
    """What is known of a module's file.

    Attributes:
        path: where it is.
        file: what the module's code objects name.
        stamp: when it was changed last, in nanoseconds, and its size.
        raw: what it contains.
        asserts: pytest's module that rewrites its assertions, and the loader; None if none does.
    """

    path: str
    file: str
    stamp: tuple[int, int]
    raw: bytes
    asserts: tuple[Any, Any] | None


def _compile(source: _Source, rewrite: _Rewrite) -> _Compiled:
    path, file, stamp, raw, asserts = source
    if asserts is not None:  # it depends on how pytest is configured now
        code = _rewritten(source, rewrite)
    else:
        key = kept.key(rewrite.__name__, file, raw)
        found = kept.load(path, rewrite.__name__, key)
        code = found or _rewritten(source, rewrite)
        if found is None:
            kept.save(path, rewrite.__name__, key, code)
    probed = _with_constants(code.probed, len(probes.SITES))
    probes.SITES.extend(code.sites)
    pairs = dict(_pairs(code.plain, probed))
    return _Compiled(
        file=_absolute(file),
        stamp=stamp,
        probed={_likeness(old): new for old, new in pairs.items()},
        original={id(new): old for old, new in pairs.items()},
        stored=code.stored,
    )


def _rewritten(source: _Source, rewrite: _Rewrite) -> kept.Code:
    path, file, stamp, raw, asserts = source
    text = importlib.util.decode_source(raw).encode()
    with warnings.catch_warnings():
        # The source's own warnings came when it was imported; ours are strings in a call's place.
        warnings.simplefilter("ignore")
        tree = ast.parse(raw, filename=file)
        plain = None
        if asserts is None:
            plain = _from_bytecode(path, raw, stamp)
        else:
            rewriting, loader = asserts
            rewriting.rewrite_asserts(tree, raw, file, loader.config)
        if plain is None:
            plain = compile(tree, file, "exec", dont_inherit=True)
        if asserts is not None:
            locate(tree)
        rewritten = rewrite(tree, text, file)
        probed = compile(rewritten.tree, file, "exec", dont_inherit=True)
    return kept.Code(plain, probed, rewritten.sites, rewritten.stored)


def _from_bytecode(file: str, raw: bytes, stamp: tuple[int, int]) -> CodeType | None:
    """What the import system has kept of the source's compilation, if it is surely of this source.

    It goes by the second and the size, which two versions of a source may have in common; a file
    that was written more than two seconds after its source is of the last version in that second.
    """
    try:
        bytecode = importlib.util.cache_from_source(file)
        with open(bytecode, "rb") as stream:  # noqa: PTH123
            if os.fstat(stream.fileno()).st_mtime_ns - stamp[0] < _RACY:
                return None
            header, body = stream.read(16), stream.read()
        seconds = (stamp[0] // 10**9) & 0xFFFFFFFF
        numbers = 0, seconds, len(raw) & 0xFFFFFFFF
        expected = importlib.util.MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in numbers)
        code = marshal.loads(body) if header == expected else None  # noqa: S302 - as imports do
    except (OSError, NotImplementedError, EOFError, ValueError, TypeError):
        return None
    return code if isinstance(code, CodeType) else None


def _with_constants(code: CodeType, first: int) -> CodeType:
    """With what the rewriting's strings stand for in their place; its sites begin at `first`."""
    constants: list[object] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_with_constants(constant, first))
        elif isinstance(constant, str) and constant.startswith(SITE):
            constants.append(first + int(constant.removeprefix(SITE)))
        elif isinstance(constant, str) and constant.startswith(PREFIX):
            constants.append(CONSTANTS.get(constant, constant))
        else:
            constants.append(constant)
    return code.replace(co_consts=tuple(constants))


def _pairs(plain: CodeType, probed: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The code objects of functions at the same places; the rewriting adds cell holders only."""
    inner = [code for code in plain.co_consts if isinstance(code, CodeType)]
    others = [
        code
        for code in probed.co_consts
        if isinstance(code, CodeType) and code.co_varnames[:1] != (PREFIX,)
    ]
    if len(inner) != len(others):
        return
    for old, new in zip(inner, others, strict=True):
        if _shape(old) == _shape(new):
            yield old, new
            yield from _pairs(old, new)


def _shape(code: CodeType) -> tuple[object, ...]:
    """What one code object must have in common with another to stand in for it."""
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    variables = code.co_varnames[: sum(arguments) - code.co_posonlyargcount]
    flags = code.co_flags & ~inspect.CO_ITERABLE_COROUTINE  # set later, by types.coroutine
    return code.co_qualname, code.co_firstlineno, flags, code.co_freevars, variables


def _likeness(code: CodeType) -> tuple[object, ...]:
    """Equal for two code objects that do the same at the same places of the source."""
    constants = tuple(map(_comparable, code.co_consts))
    return (*_shape(code), code.co_code, code.co_linetable, code.co_names, constants)


def _comparable(constant: object) -> object:
    """Equal for equal constants: 1 is not 1.0, nor True, nor -0.0 0.0; a set has no order."""
    if isinstance(constant, CodeType):
        return _likeness(constant)
    if isinstance(constant, tuple):
        return tuple(map(_comparable, constant))
    if isinstance(constant, frozenset):
        return frozenset(map(_comparable, constant))
    return type(constant), repr(constant)


# --- swapping -------------------------------------------------------------------------------------


class _Installed:
    """A file whose functions have probes in, and what takes them out."""

    def __init__(self, compiled: _Compiled) -> None:
        self.compiled = compiled
        self.since = heap.now()
        self.users = 0
        self.swapped: list[tuple[weakref.ref[FunctionType], CodeType]] = []

    def swap(self, function: FunctionType) -> str:
        """Give the function its probes; returns the reason if that cannot be."""
        before = function.__code__
        if id(before) in self.compiled.original:
            return ""
        after = self.compiled.counterpart(before)
        if after is None:
            return "its code is not what its source compiles to: changed on disk, or made otherwise"
        self.swapped.append((weakref.ref(function), before))
        give(function, after)
        return ""

    def put_back(self) -> None:
        while self.swapped:
            reference, before = self.swapped[-1]
            function = reference()
            if function is not None and id(function.__code__) in self.compiled.original:
                give(function, before)
            self.swapped.pop()


def give(function: FunctionType, code: CodeType) -> None:
    """Give a function a code of the same shape, unless the garbage collector has cleared it.

    That takes its closure away. Who still holds on to it, as weak references may while that goes
    on, finds a function that takes no code and that nobody can call.
    """
    if len(function.__closure__ or ()) == len(code.co_freevars):
        function.__code__ = code


_NO_FILE: Final = ("", "<")
"""How the names begin that code has whose source is no file."""

_installed: Final[dict[str, _Installed]] = {}

_TRIES: Final = 100
"""Times that taking probes out is begun again; what goes wrong more often is no interruption."""


def _put_back(done: list[_Installed]) -> None:
    """Take the probes out, whatever interrupts it, and then let the interruption go on."""
    interruption: BaseException | None = None
    originals: dict[int, CodeType] = {}
    first = done[0].since
    since = first if all(installed.since is first for installed in done) else None
    for installed in done:
        originals.update(installed.compiled.original)
        for _ in range(_TRIES):
            try:
                installed.put_back()
                break
            except BaseException as error:
                interruption = error
    for _ in range(_TRIES):
        try:
            for function in heap.functions(since=since):
                before = originals.get(id(function.__code__))
                if before is not None:  # made while the probes were in
                    give(function, before)
            break
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


_FORGETS: Final = bool(sysconfig.get_config_var("Py_GIL_DISABLED")) and sys.version_info < (3, 14)
"""Whether the garbage collector does not list all functions.

Once the first thread was started, a free-threaded 3.13 makes the functions and classes of modules
immortal, and forgets about them. They are all to be reached from their modules' names.
"""
_LEAVES: Final = frozenset(map(id, (CodeType, str, bytes, int, float, bool, type(None))))
"""Types of objects that lead to no function."""
_OF_THE_IMPORT: Final = ("__loader__", "__spec__")
"""Names of a module that lead to whatever has loaded it."""
_DEEPEST: Final = 8
"""References between a module and a function of it: a class, its dict, a wrapper, its dict, ..."""


_reached: Final[weakref.WeakKeyDictionary[ModuleType, tuple[list[int], list[FunctionType]]]] = (
    weakref.WeakKeyDictionary()
)
"""By module: what its names were bound to when it was walked, as identities; what was found."""


def _functions_reached(modules: Iterable[ModuleType]) -> Iterator[FunctionType]:
    """Functions that are reached from the names of modules, whoever made them.

    What the code of a module made once stays there, so a module is walked again only if a name of
    it was bound anew.
    """
    for module in modules:
        bound = list(map(id, namespace_of(module).values()))
        known = _reached.get(module)
        if known is None or known[0] != bound:
            known = _reached[module] = bound, _walked(module)
        yield from known[1]


def _walked(module: ModuleType) -> list[FunctionType]:
    # What the functions of a module have in common leads out of it: whatever it imports.
    loaded = [each for each in list(sys.modules.values()) if issubclass(type(each), ModuleType)]
    seen = {id(namespace_of(each)) for each in loaded}
    # Pytest's loader knows its session, and that knows everything.
    seen |= {id(vars(module).get(name)) for name in _OF_THE_IMPORT}
    found = []
    wave: list[Any] = [vars(module)]
    for _ in range(_DEEPEST):
        things, wave = gc.get_referents(*wave), []
        for thing in things:
            kind = type(thing)
            if id(kind) in _LEAVES or id(thing) in seen:
                continue
            seen.add(id(thing))
            if kind is FunctionType:
                found.append(thing)
            foreign = issubclass(kind, type) and thing.__module__ != module.__name__
            if not foreign and not issubclass(kind, ModuleType):
                wave.append(thing)
    return found


_paths: Final[dict[str, str]] = {}


def _absolute(file: str) -> str:
    """A path that two code objects of one source have in common; `<…>` is none."""
    found = _paths.get(file)
    if found is None:
        found = file if file[:1] == "<" else os.path.abspath(file)  # noqa: PTH100
        _paths[file] = found
    return found


def _live_functions(
    modules: tuple[ModuleType, ...], without: Container[str] = ()
) -> list[FunctionType]:
    """All functions whose code is in the files of the modules, and what `exec` put into them.

    Of the modules that are named in `without`, all that say they are in them.
    """
    names = {module.__name__ for module in modules}
    files = set(map(_code_file, modules))
    blind = [module for module in modules if module.__name__ in without]
    unseen = {
        function.__code__.co_filename
        for function in _functions_reached(blind)
        if function.__module__ in without
    }

    def is_own(file: str) -> bool:
        return _absolute(file) in files

    def is_of_no_file(file: str) -> bool:
        return file[:1] in _NO_FILE or file in unseen

    functions = heap.functions(lambda file: is_own(file) or is_of_no_file(file))
    if _FORGETS:
        every = {id(function): function for function in functions}
        every.update((id(function), function) for function in _functions_reached(modules))
        functions = list(every.values())
    all_files = {function.__code__.co_filename for function in functions}
    own, others = set(filter(is_own, all_files)), set(filter(is_of_no_file, all_files))
    found = []
    for function in functions:
        code = function.__code__
        if code.co_filename in own:
            # Without that flag it is the body of a class, which never runs again.
            if code.co_flags & inspect.CO_OPTIMIZED and code.co_name != "__annotate__":
                found.append(function)
        elif code.co_filename in others and function.__module__ in names:
            found.append(function)
    return found
