"""What a reader of the code calls the things that steps touch, judged by the source text.

Nothing but text is looked at, so this knows no values: `self.items.pop()` is about `self.items`,
which is `Stack.items` where a step shows that `self` is a `Stack`.
"""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Place, Step

_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_SEVERAL = frozenset({"def", "class", ";"})
_CODE = ("acquire", "release", "wait", "wake up")


def short(place: Place) -> str:
    """A place by the name of its file alone."""
    return f"{PurePath(place.file).name}:{place.line}"


def flat(text: str) -> str:
    """An expression of several lines in one."""
    return " ".join(text.split())


def shown(step: Step, *, alone: bool) -> str:
    """What stands in the source where a step happens: the line if that says it, or the expression.

    A line that reads several locations does not say which one was read, a line that goes on in the
    next one is no line to read, and of what is done to a lock the line shows only the beginning.

    Args:
        step: what happened.
        alone: whether the steps on its line are about one location.
    """
    expression = flat(step.place.source)
    if step.op in _CODE:
        text = synchroniser(step.place.source)
        return {
            "acquire": f"acquires {text}",
            "release": f"releases {text}",
            "wait": expression,
            "wake up": f"wakes up in {expression}",
        }[step.op]
    line = whole(step.line) or ""
    says_it = alone or (step.write and line.startswith(expression))
    return line if says_it and expression in line else expression


@functools.lru_cache(maxsize=1024)
def whole(line: str) -> str | None:
    """A line without its comment; None if it is part of a statement, or several."""
    depth, end = 0, len(line)
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.type == tokenize.COMMENT:
                end = token.start[1]
                break
            if token.string in _SEVERAL:
                return None
            if token.type == tokenize.ERRORTOKEN and not token.string.isspace():
                return None
            depth += (token.string in _OPENING) - (token.string in _CLOSING)
            if depth < 0:
                return None
    except (tokenize.TokenError, SyntaxError):
        return None
    return line[:end].strip() if depth == 0 else None


@functools.lru_cache(maxsize=4096)
def container(source: str) -> str:
    """The expression of the object that an expression is about: `d` of `k in d` and `d.pop(k)`."""
    text, node = _expression(source)
    match node:
        case ast.Subscript(value=found):
            return ast.unparse(found)
        case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[found]):
            return ast.unparse(found)
        case ast.Call(func=ast.Attribute(value=found)):
            return ast.unparse(found)
        case ast.Call(func=ast.Name(), args=[found, *_]):
            return ast.unparse(found)
    return text if node is None else ast.unparse(node)


@functools.lru_cache(maxsize=4096)
def synchroniser(source: str) -> str:
    """The expression of what threads meet at: `self.lock` of `self.lock.acquire()`."""
    text, node = _expression(source)
    match node:
        case ast.Call(func=ast.Attribute(value=found)):
            return ast.unparse(found)
    return text if node is None else ast.unparse(node)


def _expression(source: str) -> tuple[str, ast.AST | None]:
    """A source as one line, and its expression, which may be the target of an assignment."""
    text = flat(source).removesuffix(":").removeprefix("with ")
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return text, None
    match body[0] if body else None:
        case ast.AugAssign(target=found) | ast.AnnAssign(target=found):
            return text, found
        case ast.Assign(targets=[found, *_]) | ast.Delete(targets=[found, *_]):
            return text, found
        case ast.Expr(value=found) | ast.Return(value=found):
            return text, found
    return text, None


@functools.lru_cache(maxsize=4096)
def is_assignment(source: str) -> bool:
    """Whether a write's expression names the place that is written, and is no call."""
    try:
        body = ast.parse(flat(source)).body
    except SyntaxError:
        return False
    return len(body) == 1 and not (
        isinstance(body[0], ast.Delete)
        or (isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Call))
    )


def kind_of(step: Step) -> str:
    """Whether a step is about an `attribute`, `item`, `global`, `cell`, `container`, or nothing."""
    first, _, rest = step.op.partition(" ")
    if first in {"iteration", "iterator"}:
        return "container"
    known = {"attribute", "item", "global", "cell", "container"}
    return first if rest and first in known else ""


def targets(trace: Sequence[Step]) -> list[str]:
    """What each step of a trace is about: `Counter.value`, `cache['k']`, `app.total`."""
    names: dict[int, dict[str, str]] = {}
    objects: dict[int, tuple[bool, str]] = {}
    for step in trace:
        mine = names.setdefault(step.thread, {})
        kind = kind_of(step)
        if kind == "attribute" and step.key is not None:
            mine[flat(step.place.source)] = f"{step.label}.{step.key}"
        elif kind not in {"attribute", "global", "cell"}:
            text = container(step.place.source) if kind else synchroniser(step.place.source)
            if step.op == "iterator write" and step.label == "generator":
                text = f"the generator {step.place.function}"  # within its own body
            known = mine.get(text)
            if not objects.get(step.location, (False, ""))[0]:
                objects[step.location] = known is not None, known or text or step.label
            if kind == "item" and step.key is not None:
                base = objects[step.location][1]
                mine[flat(step.place.source)] = f"{base}[{step.key}]"
    return [_target(step, objects) for step in trace]


def names_of(trace: Sequence[Step], targets: Sequence[str], thread: int) -> dict[str, str]:
    """What the expressions in a thread's steps stand for, as far as steps read them."""
    return {
        flat(step.place.source): target
        for step, target in zip(trace, targets, strict=True)
        if step.thread == thread and kind_of(step) in {"attribute", "item"}
    }


def _target(step: Step, objects: dict[int, tuple[bool, str]]) -> str:
    match kind_of(step):
        case "attribute":
            return step.label if step.key is None else f"{step.label}.{step.key}"
        case "global":
            return f"{step.label.rpartition('.')[2]}.{step.key}"
        case "cell":
            return step.key or "a variable"
        case "item" if step.key is not None and step.label != "set":
            return f"{objects[step.location][1]}[{step.key}]"
    return objects[step.location][1]
