"""All functions and thread-locals there are, found without looking through all objects each time.

Before and after each exploration one has to know every live function. The garbage collector lists
all objects, but a session of some thousand tests has hundreds of thousands, and a look takes longer
than many explorations. So a session may `settle()` now and then, between tests: what exists then
is looked through once and frozen, and later looks go through what is new.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_T = TypeVar("_T")

_WORTH_IT: Final = 200_000
"""Objects looked through for which settling pays: it takes about two looks of its own."""


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """What was found when the objects were frozen.

    Attributes:
        functions: by the file that their code named then.
        objects: how many there were.
        before: one of them; as long as it is not listed, nobody has thawed them.
        after: one that came later; as long as it is listed, nobody else has frozen any. (To count
            what is frozen takes as long as to look through it.)
    """

    functions: Mapping[str, list[weakref.ref[FunctionType]]]
    thread_locals: tuple[weakref.ref[threading.local], ...]
    objects: int
    before: list[None]
    after: list[None]


_settled: _Settled | None = None
_looked_through = 0
_held: list[tuple[list[Any], _Settled | None]] | None = None
"""Where a look is kept for the next, within `one_look`."""


def functions(
    worth: Callable[[str], bool] | None = None, *, since: object = None
) -> list[FunctionType]:
    """Every live function that the garbage collector knows of.

    Args:
        worth: whether functions of a file (as code objects name it) are of interest. It saves time:
            some others may be among the result.
        since: what `now()` has returned; functions that were there then may be left out.
    """
    things, settled = _look()
    found = _functions_in(things)
    if settled is not None and settled is not since:
        for file, references in settled.functions.items():
            if worth is None or worth(file):
                found += _alive(references)
    return found


def now() -> object:
    """A moment, for `functions(since=...)`."""
    return _settled


def thread_locals() -> list[threading.local]:
    """Every live `threading.local`."""
    things, settled = _look()
    found = _thread_locals_in(things)
    if settled is not None:
        found += _alive(settled.thread_locals)
    return found


@contextmanager
def one_look() -> Iterator[None]:
    """Within, look once only: what comes up meanwhile may not be found."""
    global _held  # noqa: PLW0603 - the heap is one for the whole process
    _held = []
    try:
        yield
    finally:
        _held = None


def settle() -> None:
    """Freeze what exists, if looks have come to cost more than that; call it between tests.

    Garbage is collected before. What is frozen and becomes garbage in a cycle is kept until the
    next time, or until `unsettle()`.
    """
    global _settled, _looked_through  # noqa: PLW0603 - the heap is one for the whole process
    if _looked_through < max(_WORTH_IT, _settled.objects if _settled else 0):
        return
    unsettle()
    if gc.get_freeze_count():
        return  # what somebody else has frozen is not ours to thaw
    gc.collect()
    before: list[None] = []
    things = gc.get_objects()
    objects = len(things)
    functions = defaultdict(list)
    for function in _functions_in(things):
        functions[function.__code__.co_filename].append(weakref.ref(function))
    thread_locals = tuple(map(weakref.ref, _thread_locals_in(things)))
    del things
    gc.freeze()
    _settled = _Settled(
        functions=functions, thread_locals=thread_locals, objects=objects, before=before, after=[]
    )
    _looked_through = 0


def unsettle() -> None:
    """Give the garbage collector back what `settle()` has frozen."""
    global _settled  # noqa: PLW0603 - see above
    if _settled is not None:
        _settled = None
        gc.unfreeze()


def is_frozen() -> bool:
    """Whether anything is frozen, by whomever."""
    return _settled is not None or gc.get_freeze_count() > 0


def _look() -> tuple[list[Any], _Settled | None]:
    """The objects to look through, and what is known of the others."""
    global _looked_through  # noqa: PLW0603 - see above
    if _held:
        return _held[0]
    settled = _settled
    things = gc.get_objects()
    if settled is not None:
        listed = set(map(id, things))
        if id(settled.before) in listed or id(settled.after) not in listed:
            settled = None
    if settled is None and gc.get_freeze_count():  # what is frozen is not listed
        gc.unfreeze()
        things = gc.get_objects()
        gc.freeze()
    _looked_through += len(things)
    if _held is not None:
        _held.append((things, settled))
    return things, settled


def _functions_in(things: list[Any]) -> list[FunctionType]:
    return [thing for thing in things if type(thing) is FunctionType]


def _thread_locals_in(things: list[Any]) -> list[threading.local]:
    local = threading.local
    return [thing for thing in things if issubclass(type(thing), local)]


def _alive(references: Iterable[weakref.ref[_T]]) -> list[_T]:
    return [thing for reference in references if (thing := reference()) is not None]
