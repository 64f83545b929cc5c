"""What threads are doing now: their stacks, the locks that they wait for and hold.

CPython keeps no record of who holds a `threading.Lock`, so both are read off the source: the exact
expression that a frame is evaluating (PEP 657 positions) names the lock that it waits for, and the
`with` blocks that a frame is inside of name the locks that it holds. An expression is evaluated
only as far as that runs no code of the user's: names, instance attributes, items of built-in
containers, arithmetic on ints.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import gc
import inspect
import itertools
import linecache
import os
import re
import sys
import threading
from dataclasses import dataclass, replace
from types import FunctionType, GeneratorType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_freethread.records import LockUse, Place, ThreadState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import CodeType, FrameType, TracebackType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_REFERENCE = os.path.join(_PACKAGE, "reference") + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_THIRD_PARTY = ("site-packages", "dist-packages")

_LOCK_TYPES = (type(threading.Lock()), type(threading.RLock()))
_LOCK_LIKE = (*_LOCK_TYPES, threading.Condition, threading.Semaphore)
_OWNER = re.compile(r"owner=(\d+)")
"""A reentrant lock says in its `repr` which thread holds it; a plain one has no owner."""

_SOMEWHERE = Place(file="", line=0, function="", source="")
"""Where a lock was taken whose holder is known, but not from its source."""

_ENTERING = frozenset({"Condition.__enter__", "_BaseExitStack.enter_context"})
"""The library's functions that take a lock for whoever calls them."""

_DEEPEST = 3
"""How many calls deep a lock may have been taken that is held after they returned."""

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: int.__add__,
    ast.Sub: int.__sub__,
    ast.Mult: int.__mul__,
    ast.Mod: int.__mod__,
}


class _Unknown(Exception):  # noqa: N818 - a signal within this module, not an error
    """The expression cannot be evaluated without running code."""


def is_ours(filename: str) -> bool:
    """Whether a file belongs to the harness. The reference components are subjects like any."""
    return filename.startswith(_PACKAGE) and not filename.startswith(_REFERENCE)


def is_foreign(filename: str) -> bool:
    """Whether a file is neither the user's project nor the harness: a library's, or frozen."""
    if filename.startswith("<frozen"):
        return True
    parts = filename.split(os.sep)
    return filename.startswith(_STDLIB) or any(part in parts for part in _THIRD_PARTY)


def place_of(code: CodeType, line: int) -> Place:
    """The place of a line of a code object; the source is empty where it is not to be had."""
    return Place(
        file=code.co_filename,
        line=line,
        function=code.co_qualname,
        source=linecache.getline(code.co_filename, line).strip(),
    )


def callers(frame: FrameType | None, limit: int = 12) -> tuple[Place, ...]:
    """The places of a frame and its callers, outermost first, without the harness's own."""
    kept = [f for f in _outward(frame) if not is_ours(f.f_code.co_filename)]
    while kept and kept[-1].f_code.co_filename == threading.__file__:
        kept.pop()  # how threads begin says nothing
    del kept[limit:]
    return tuple(place_of(f.f_code, _line(f)) for f in reversed(kept))


Chain: TypeAlias = "list[tuple[CodeType, int]]"
"""Frames as they were: (code, line), innermost first."""


def chain(frame: FrameType | None, limit: int = 60) -> Chain:
    """A frame and its callers, quickly; `unchained` makes places of them, at leisure."""
    found: Chain = []
    while frame is not None and len(found) < limit:
        found.append((frame.f_code, _line(frame)))
        frame = frame.f_back
    return found


def unchained(found: Chain) -> tuple[Place, ...]:
    """The places of a chain, outermost first, without the harness's own."""
    return tuple(
        place_of(code, line)
        for code, line in reversed(found)
        if not is_ours(code.co_filename) and code.co_filename != threading.__file__
    )


_MAKING = ("__init__", "__post_init__", "__new__")


def made_at(first: Chain) -> Place | None:
    """Where an object was made, told from where it was accessed first: within its `__init__`.

    Args:
        first: the frames of its first access.
    """
    theirs = [each for each in first if not is_ours(each[0].co_filename)]
    for index, (code, line) in enumerate(theirs):
        if code.co_name not in _MAKING:
            return place_of(code, line) if index else None
    return None


def without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the harness's frames, wherever they are; at least its last frame."""
    kept = []
    while trace is not None:
        kept.append(trace)
        trace = trace.tb_next
    kept = [each for each in kept if not is_ours(each.tb_frame.f_code.co_filename)] or kept[-1:]
    for outer, inner in zip(kept, [*kept[1:], None], strict=True):
        outer.tb_next = inner
    return kept[0] if kept else None


def examine(threads: Mapping[int, tuple[int | None, str]]) -> tuple[ThreadState, ...]:
    """Look at live threads.

    Args:
        threads: by their ident, each thread's index in the plan (None if it has none) and name.

    Returns:
        A state for each thread that is still alive, in the order given.
    """
    frames = sys._current_frames()  # noqa: SLF001 - documented; there is no other way to see them
    states = {
        ident: _state(frames[ident], ident, index, name)
        for ident, (index, name) in threads.items()
        if ident in frames
    }
    for state in list(states.values()):
        use = state.waits_for
        if use is None or use.owner not in states:
            continue
        holder = states[use.owner]
        if all(each.identity != use.identity for each in holder.holds):
            taken = replace(use, place=_SOMEWHERE)
            states[use.owner] = replace(holder, holds=(*holder.holds, taken))
    return tuple(states.values())


def at_locks() -> frozenset[tuple[int, int, int]]:
    """The threads of this process that are taking locks, each with its frame and its instruction.

    It costs little, and says little of one moment; who is found twice may be waiting.
    """
    found = []
    for ident, innermost in sys._current_frames().items():  # noqa: SLF001 - as above
        frame: FrameType | None = innermost
        while frame is not None and is_ours(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None and frame.f_code.co_qualname in _ENTERING:
            frame = frame.f_back
        if frame is not None and _acquisition(frame.f_code, frame.f_lasti) is not None:
            found.append((ident, id(frame), frame.f_lasti))
    return frozenset(found)


def _line(frame: FrameType) -> int:
    """The line that a frame is at; at some instructions it is at none."""
    return frame.f_lineno or frame.f_code.co_firstlineno


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _state(innermost: FrameType, ident: int, index: int | None, name: str) -> ThreadState:
    # A lock that is recorded waits within our own code for whoever called that.
    frames = list(itertools.dropwhile(lambda f: is_ours(f.f_code.co_filename), _outward(innermost)))
    waits_for = _awaited_lock(frames) if frames else None
    holds = [
        use
        for frame in reversed(frames)
        if not is_foreign(frame.f_code.co_filename) and not is_ours(frame.f_code.co_filename)
        for use in _held_in(frame, managers=waits_for is not None)
        if use.owner in {None, ident}
        # A Condition lets go of its lock for as long as it waits.
        and (waits_for is not None or not _waits_on_condition(frames, use.identity))
    ]
    return ThreadState(
        thread=index,
        name=name,
        stack=callers(innermost, limit=60),
        waits_for=waits_for,
        waits_in=None if waits_for else _blocking_call(frames),
        holds=tuple(_taken(holds, waits_for)),
    )


def _taken(holds: list[LockUse], waits_for: LockUse | None) -> Iterator[LockUse]:
    """The locks held, each at its outermost place; never the very `with` that still waits."""
    seen: set[int] = set()
    for use in holds:
        waiting_here = (
            waits_for is not None
            and use.identity == waits_for.identity
            and use.place == waits_for.place
        )
        if use.identity not in seen and not waiting_here:
            seen.add(use.identity)
            yield use


def _awaited_lock(frames: list[FrameType]) -> LockUse | None:
    """The lock that the innermost frame is evaluating `with lock` or `lock.acquire()` on."""
    frame = frames[frames[0].f_code.co_qualname in _ENTERING]
    found = _acquisition(frame.f_code, frame.f_lasti)
    if found is None:
        return None
    lock, line, forever = found
    return _use(lock, frame, line, forever=forever)


@functools.lru_cache(maxsize=4096)
def _acquisition(code: CodeType, at: int) -> tuple[ast.expr, int, bool] | None:
    """The lock that an instruction takes, the line, and whether it would wait for ever."""
    if code.co_filename == threading.__file__:
        return None  # its locks are parts of something that the user knows by another name
    here = _position(code, at)
    tree = _tree(code.co_filename)
    if here is None or tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            entering = _entered_item(node, code, at)
            if entering is not None:
                item = node.items[entering].context_expr
                return item, item.lineno, True
        elif isinstance(node, ast.Call) and _span(node) == here:
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr == "acquire":
                return function.value, node.lineno, not node.args and not node.keywords
            entered = _entered_by_call(node)
            if entered is not None:
                return entered, node.lineno, True
    return None


def _held_in(frame: FrameType, *, managers: bool) -> Iterator[LockUse]:
    """The locks that a frame took and has not let go of at its current line.

    Args:
        frame: of a thread, or of a generator that is suspended.
        managers: whether to look for generators that are context managers, at some milliseconds.
    """
    line = _line(frame)
    manual: dict[int, LockUse] = {}
    for node in _statements(frame.f_code):
        if isinstance(node, ast.With):
            inside = node.body[0].lineno <= line <= (node.end_lineno or line)
            entering = _entered_item(node, frame.f_code, frame.f_lasti)
            for item in node.items[:entering] if inside or entering is not None else ():
                use = _use(item.context_expr, frame, item.context_expr.lineno)
                if use is not None:
                    yield use
                elif not isinstance(item.context_expr, ast.Call):
                    entered = ast.Attribute(item.context_expr, "__enter__", ast.Load())
                    _follow(_called(entered, item.context_expr), frame, manual, depth=0)
                elif managers:
                    yield from _held_by_manager(item.context_expr, frame)
            for call in ast.walk(node) if inside else ():
                argument = _entered_by_call(call)
                if argument is not None and argument.lineno < line:
                    use = _use(argument, frame, argument.lineno)
                    if use is not None:
                        yield use
        elif isinstance(node, ast.Expr) and node.lineno < line:
            _follow(node.value, frame, manual, depth=0)
    yield from manual.values()


@dataclass(frozen=True, kw_only=True)
class _Returned:
    """What is known of the frame of a call that has returned."""

    f_code: CodeType
    f_globals: dict[str, Any]
    f_locals: dict[str, Any]


def _follow(
    call: ast.expr, frame: FrameType | _Returned, manual: dict[int, LockUse], *, depth: int
) -> None:
    """Note what a call has acquired or released, itself or in what it called.

    Args:
        call: any expression.
        frame: where it is.
        manual: by identity, the locks that are held.
        depth: how many calls it is within.
    """
    if not isinstance(call, ast.Call):
        return
    if isinstance(call.func, ast.Attribute) and call.func.attr in {"acquire", "release"}:
        use = _use(call.func.value, frame, call.lineno)
        if use is not None and call.func.attr == "acquire":
            manual[use.identity] = use
        elif use is not None:
            manual.pop(use.identity, None)
        return
    made = _made_by(call, frame) if depth < _DEEPEST else None
    for node in () if made is None else _statements(made.f_code):
        if made is not None and isinstance(node, ast.Expr):
            _follow(node.value, made, manual, depth=depth + 1)


@functools.lru_cache(maxsize=1024)
def _statements(code: CodeType) -> tuple[ast.stmt, ...]:
    """The statements of a function, line by line; none where its source is not to be had."""
    tree = _tree(code.co_filename)
    body = None if tree is None else _function_around(tree, code)
    found = [node for node in ast.walk(body) if isinstance(node, ast.stmt)] if body else []
    return tuple(sorted(found, key=lambda node: (node.lineno, node.col_offset)))


def _made_by(call: ast.Call, frame: FrameType | _Returned) -> _Returned | None:
    """The frame that the call of a function, or of a method, has had."""
    given: list[ast.expr] = list(call.args)
    try:
        if isinstance(call.func, ast.Attribute):
            owner = _evaluate(call.func.value, frame)
            function = inspect.getattr_static(type(owner), call.func.attr, None)
            arguments = [owner]
        else:
            function, arguments = _evaluate(call.func, frame), []
    except _Unknown:
        return None
    if not isinstance(function, FunctionType) or is_foreign(function.__code__.co_filename):
        return None
    code = function.__code__
    known = dict(zip(code.co_varnames, arguments, strict=False))
    for parameter, expression in zip(code.co_varnames[len(arguments) :], given, strict=False):
        with contextlib.suppress(_Unknown):
            known[parameter] = _evaluate(expression, frame)
    return _Returned(f_code=code, f_globals=function.__globals__, f_locals=known)


def _called(function: ast.expr, where: ast.expr) -> ast.Call:
    return ast.copy_location(ast.Call(function, [], []), where)


def _entered_by_call(node: ast.AST) -> ast.expr | None:
    """What `stack.enter_context(…)` enters, if a node is that."""
    match node:
        case ast.Call(func=ast.Attribute(attr="enter_context"), args=[entered]):
            return entered
    return None


def _held_by_manager(call: ast.Call, frame: FrameType) -> Iterator[LockUse]:
    """The locks that a generator holds which is the context manager that a call has made.

    It is the one of that name that is suspended and was given the same arguments.
    """
    found = [
        generator.gi_frame
        for generator in gc.get_objects()
        if type(generator) is GeneratorType
        and generator.gi_frame is not None
        and not generator.gi_running
        and _may_have_made(call, frame, generator.gi_frame)
    ]
    if len(found) == 1:
        yield from _held_in(found[0], managers=True)


def _may_have_made(call: ast.Call, frame: FrameType, made: FrameType) -> bool:
    """Whether a generator's frame has the name and the arguments of a call, as far as is known."""
    code = made.f_code
    given: list[ast.expr] = list(call.args)
    match call.func:
        case ast.Attribute(value=owner, attr=name):
            given = [owner, *given] if code.co_varnames[:1] in {("self",), ("cls",)} else given
        case ast.Name(id=name):
            pass
        case _:
            return False
    if code.co_name != name or len(given) > code.co_argcount:
        return False
    for parameter, expression in zip(code.co_varnames, given, strict=False):
        try:
            value = _evaluate(expression, frame)
        except _Unknown:
            continue
        if parameter in made.f_locals and not _same(made.f_locals[parameter], value):
            return False
    return True


def _same(one: Any, other: Any) -> bool:
    plain = type(one) is type(other) and type(one) in (str, int)
    return one is other or (plain and bool(one == other))


def _entered_item(node: ast.With, code: CodeType, at: int) -> int | None:
    """The index of the item of a `with` that an instruction enters; None if it does not."""
    here = _position(code, at)
    spans = [_span(item.context_expr) for item in node.items]
    if here in spans:
        return spans.index(here)
    if here != _span(node):
        return None
    # Up to 3.12 the position is that of the whole statement, once for each item.
    entries = [
        instruction.offset
        for instruction in dis.get_instructions(code)
        if instruction.opname == "BEFORE_WITH"
        and instruction.positions is not None
        and _ordered(instruction.positions) == here
    ]
    return entries.index(at) if at in entries else None


def _waits_on_condition(frames: list[FrameType], identity: int) -> bool:
    return any(
        frame.f_code.co_qualname == "Condition.wait"
        and identity in (id(frame.f_locals.get("self")), id(_lock_of(frame.f_locals.get("self"))))
        for frame in frames[:4]
    )


def _lock_of(condition: Any) -> Any:
    return getattr(condition, "_lock", None)


def _blocking_call(frames: list[FrameType]) -> str | None:
    """The library call that the user's code is inside of, such as `Queue.get`."""
    foreign = list(itertools.takewhile(lambda f: is_foreign(f.f_code.co_filename), frames))
    return foreign[-1].f_code.co_qualname if foreign and foreign != frames else None


def _use(
    expression: ast.expr, frame: FrameType | _Returned, line: int, *, forever: bool = True
) -> LockUse | None:
    try:
        lock = _evaluate(expression, frame)
    except _Unknown:
        return None
    if not isinstance(lock, _LOCK_LIKE):
        return None
    if isinstance(lock, threading.Condition):
        lock = _lock_of(lock)
    owner = _OWNER.search(repr(lock)) if isinstance(lock, _LOCK_TYPES[1]) else None
    return LockUse(
        name=name_of(expression, frame),
        identity=id(lock),
        place=place_of(frame.f_code, line),
        owner=None if owner is None else int(owner[1]),
        # Whoever waits for a semaphore may be let in by any other thread.
        forever=forever and not isinstance(lock, threading.Semaphore),
    )


def name_of(expression: ast.expr, frame: FrameType | _Returned) -> str:
    """What an expression of a frame is called: `Class.lock` for an attribute, or as written."""
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        try:
            owner = _evaluate(expression.value, frame)
        except _Unknown:
            owner = None
        if owner is not None and not isinstance(owner, type | ModuleType):
            return f"{type(owner).__name__}.{expression.attr}"
    return ast.unparse(expression)


def _evaluate(node: ast.expr, frame: FrameType | _Returned) -> Any:
    """Evaluate an expression of a frame without running any of the user's code."""
    match node:
        case ast.Name():
            for scope in (frame.f_locals, frame.f_globals):
                if node.id in scope:
                    return scope[node.id]
        case ast.Constant():
            return node.value
        case ast.Attribute():
            owner = _evaluate(node.value, frame)
            name = node.attr
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{type(owner).__name__.lstrip('_')}{name}"
            found = inspect.getattr_static(owner, name, _Unknown)
            if inspect.ismemberdescriptor(found):  # a slot
                return getattr(owner, name, None)
            if found is not _Unknown and not hasattr(type(found), "__get__"):
                return found
        case ast.Subscript():
            owner, key = _evaluate(node.value, frame), _evaluate(node.slice, frame)
            if type(owner) in (list, tuple, dict) and type(key) in (int, str):
                try:
                    return owner[key]
                except LookupError:
                    raise _Unknown from None
        case ast.BinOp():
            left, right = _evaluate(node.left, frame), _evaluate(node.right, frame)
            operate = _ARITHMETIC.get(type(node.op))
            if operate is not None and type(left) is int and type(right) is int:
                with contextlib.suppress(ZeroDivisionError):
                    return operate(left, right)
    raise _Unknown


def _ordered(positions: dis.Positions) -> tuple[int | None, ...]:
    return (
        positions.lineno,
        positions.end_lineno,
        positions.col_offset,
        positions.end_col_offset,
    )


def _position(code: CodeType, at: int) -> tuple[int | None, ...] | None:
    """Line, end line, column and end column of the expression that an instruction belongs to."""
    return next(itertools.islice(code.co_positions(), at // 2, None), None)


def _span(node: ast.expr | ast.stmt) -> tuple[int | None, ...]:
    return (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)


@functools.lru_cache(maxsize=256)
def _tree(filename: str) -> ast.Module | None:
    try:
        return ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return None


def _function_around(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """The definition that a code object was compiled from; the module itself for `<module>`."""
    if code.co_name == "<module>":
        return tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
        elif (
            isinstance(node, ast.Lambda)
            and code.co_name == "<lambda>"
            and node.lineno == code.co_firstlineno
        ):
            return node
    return None


def text_of(error: BaseException) -> str:
    """What an exception says, without addresses, at most 1,000 characters; never raises."""
    try:
        text = str(error)
    except Exception:
        text = "<its text cannot be made>"
    return re.sub(r"0x[0-9a-fA-F]+", "0x...", text[:1000])
