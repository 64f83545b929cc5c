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
import inspect
import itertools
import linecache
import os
import re
import sys
import threading
from types import ModuleType
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
    return tuple(
        _state(frames[ident], index, name)
        for ident, (index, name) in threads.items()
        if ident in frames
    )


def _line(frame: FrameType) -> int:
    """The line that a frame is at; at some instructions it is at none."""
    return frame.f_lineno or frame.f_code.co_firstlineno


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _state(innermost: FrameType, index: int | None, name: str) -> ThreadState:
    frames = list(_outward(innermost))
    waits_for = _awaited_lock(frames)
    holds = [
        use
        for frame in reversed(frames)
        if not is_foreign(frame.f_code.co_filename) and not is_ours(frame.f_code.co_filename)
        for use in _held_in(frame)
        # A Condition lets go of its lock for as long as it waits.
        if waits_for is not None or not _waits_on_condition(frames, use.identity)
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
    frame = frames[frames[0].f_code.co_qualname == "Condition.__enter__"]
    if frame.f_code.co_filename == threading.__file__:
        return None  # its locks are parts of something that the user knows by another name
    here = _position(frame)
    tree = _tree(frame.f_code.co_filename)
    if here is None or tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            entering = _entered_item(node, frame, here)
            if entering is not None:
                item = node.items[entering].context_expr
                return _use(item, frame, item.lineno)
        elif isinstance(node, ast.Call) and _span(node) == here:
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr == "acquire":
                forever = not node.args and not node.keywords
                return _use(function.value, frame, node.lineno, forever=forever)
    return None


def _held_in(frame: FrameType) -> Iterator[LockUse]:
    """The locks that a frame took and has not let go of at its current line."""
    tree = _tree(frame.f_code.co_filename)
    if tree is None:
        return
    line = _line(frame)
    here = _position(frame)
    body = _function_around(tree, frame.f_code)
    manual: dict[str, LockUse] = {}
    for node in ast.walk(body) if body is not None else ():
        if isinstance(node, ast.With):
            inside = node.body[0].lineno <= line <= (node.end_lineno or line)
            entering = _entered_item(node, frame, here)
            for item in node.items[:entering] if inside or entering is not None else ():
                use = _use(item.context_expr, frame, item.context_expr.lineno)
                if use is not None:
                    yield use
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if node.lineno < line and isinstance(function, ast.Attribute):
                text = ast.unparse(function.value)
                use = _use(function.value, frame, node.lineno)
                if function.attr == "acquire" and use is not None:
                    manual[text] = use
                elif function.attr == "release":
                    manual.pop(text, None)
    yield from manual.values()


def _entered_item(
    node: ast.With, frame: FrameType, here: tuple[int | None, ...] | None
) -> int | None:
    """The index of the item of a `with` that a frame is entering; None if it is not."""
    spans = [_span(item.context_expr) for item in node.items]
    if here in spans:
        return spans.index(here)
    if here != _span(node):
        return None
    # Up to 3.12 the position is that of the whole statement, once for each item.
    entries = [
        instruction.offset
        for instruction in dis.get_instructions(frame.f_code)
        if instruction.opname == "BEFORE_WITH"
        and instruction.positions is not None
        and _ordered(instruction.positions) == here
    ]
    return entries.index(frame.f_lasti) if frame.f_lasti in entries else None


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
    expression: ast.expr, frame: FrameType, line: int, *, forever: bool = True
) -> LockUse | None:
    try:
        lock = _evaluate(expression, frame)
    except _Unknown:
        return None
    if not isinstance(lock, _LOCK_LIKE):
        return None
    if isinstance(lock, threading.Condition):
        lock = _lock_of(lock)
    return LockUse(
        name=name_of(expression, frame),
        identity=id(lock),
        place=place_of(frame.f_code, line),
        # Whoever waits for a semaphore may be let in by any other thread.
        forever=forever and not isinstance(lock, threading.Semaphore),
    )


def name_of(expression: ast.expr, frame: FrameType) -> str:
    """What an expression of a frame is called: `Class.lock` for an attribute, or as written."""
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        try:
            owner = _evaluate(expression.value, frame)
        except _Unknown:
            owner = None
        if owner is not None and not isinstance(owner, type | ModuleType):
            return f"{type(owner).__name__}.{expression.attr}"
    return ast.unparse(expression)


def _evaluate(node: ast.expr, frame: FrameType) -> Any:
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


def _position(frame: FrameType) -> tuple[int | None, ...] | None:
    """Line, end line, column and end column of the expression that the frame is in."""
    positions = frame.f_code.co_positions()
    return next(itertools.islice(positions, frame.f_lasti // 2, None), None)


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
