"""Calls of an object's operations under control: what they gave, and which came before which.

That an operation is called and that it returns are steps of the execution, at which the scheduler
decides. A call depends on the returns of other threads, and on nothing else: so a systematic search
tries both orders wherever one operation may end before another one begins, and no more.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import operator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.instrument import probes
from pytest_freethread.instrument.effects import ITEM_WRITE, WHOLE_READ
from pytest_freethread.instrument.probes import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

MARK: Final = "an operation's beginning or end"
"""As the function of a place: it is the step in which an operation is called, or returns."""

_PLAIN: Final = frozenset({type(None), bool, int, str, bytes, complex})


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operation with its arguments. Equal ones have arguments that are equal and look the same.

    Attributes:
        name: of the operation, a method.
        function: what that is in the class of the contract; a model's class has another one.
        arguments: by the names of the parameters, in the order of the signature.
        blocking: whether it may wait for ever.
        text: as a reader of the code would write it.
    """

    name: str
    function: Callable[..., object]
    arguments: tuple[tuple[str, Any], ...]
    blocking: bool
    text: str = field(init=False)

    def __post_init__(self) -> None:
        values = ", ".join(repr(value) for _, value in self.arguments)
        object.__setattr__(self, "text", f"{self.name}({values})")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Call):
            return NotImplemented
        return other.text == self.text and other.arguments == self.arguments

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def on(self, subject: object) -> object:
        """Call it, with arguments that nobody else has."""
        return getattr(subject, self.name)(
            **{
                name: value if type(value) in _PLAIN else copy.deepcopy(value)
                for name, value in self.arguments
            },
        )


@dataclass(frozen=True, slots=True)
class Escaped:
    """An exception as the result of a call. What it says may differ from run to run."""

    error: type[Exception]
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Escaped) and other.error is self.error

    def __hash__(self) -> int:
        return hash(self.error)

    def __repr__(self) -> str:
        return f"raised {self.error.__name__}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What stands for a result that may change later, or that equals only itself."""

    value: Any
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return self.text


def seen(result: object) -> object:
    """A result as it is now, to be compared with those of other executions.

    What has no equality of its own (a plain object, an iterator) counts as equal to any other of
    its type: each execution makes another one.
    """
    value = _value(result)
    if value is result:
        return result
    kind = type(result)
    return Seen(value, f"<{kind.__name__}>" if value is kind else repr(result))


def _value(result: Any) -> Any:
    """What stands for a result when it is compared: the result itself if it cannot change."""
    kind = type(result)
    if kind in _PLAIN or isinstance(result, Enum | Escaped):
        return result
    if kind is float:
        return "nan" if math.isnan(result) else result
    if kind in {tuple, list}:
        values = tuple(map(_value, result))
        same = kind is tuple and all(map(operator.is_, values, result))
        return result if same else (kind, values)
    if kind in {set, frozenset}:
        return kind, frozenset(map(_value, result))
    if kind is dict:
        return kind, {_value(key): _value(value) for key, value in result.items()}
    equality: object = kind.__eq__
    if equality is object.__eq__:
        return kind
    try:
        return copy.deepcopy(result)
    except Exception:  # it is compared as it is in the end
        return result


class Calls:
    """What happens to an object in one execution.

    Attributes:
        subject: the object.
        events: indices of calls in the order of time, `~index` where the call returned.
        results: by the index of the call, of those that returned.
        current: by client, the index of the call that it is in.
        lock: held during each call, if there is one.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        subject: object,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.calls = calls
        self.subject = subject
        self.lock = lock
        self.events: list[int] = []
        self.results: dict[int, object] = {}
        self.current: dict[object, int] = {}

    def perform(self, client: object, indices: Sequence[int]) -> None:
        """Call one after the other; an exception is a result like any other."""
        for index in indices:
            call = self.calls[index]
            begins, ends = _sites(call)
            probes.announce(self, None, WHOLE_READ, begins)
            self.events.append(index)
            self.current[client] = index
            try:
                with self.lock or contextlib.nullcontext():
                    result = seen(call.on(self.subject))
            except Exception as error:
                result = Escaped(type(error), str(error))
            self.results[index] = result
            del self.current[client]
            probes.announce(self, client, ITEM_WRITE, ends)
            self.events.append(~index)


@functools.lru_cache(maxsize=1024)
def _site(file: str, line: int, name: str) -> int:
    probes.SITES.append(
        Site(file=file, line=line, function=MARK, ordinal=0, kind="call", text=name, name=name)
    )
    return len(probes.SITES) - 1


def _sites(call: Call) -> tuple[int, int]:
    """The sites of a call's beginning and of its end, at the head of its function."""
    code = getattr(call.function, "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code is not None else ("", 0)
    return _site(file, line, f"{call.name}(…)"), _site(file, line, f"{call.name}(…) returns")
