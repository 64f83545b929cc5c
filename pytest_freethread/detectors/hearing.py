"""Where the judges of orders hear an execution: its events, in their terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pytest_freethread.detectors.order import ACQUIRE, EFFECTS, LOCK_EFFECTS
from pytest_freethread.detectors.races import ATOMIC, HOW, ITEM

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from pytest_freethread.records import Event

_SYNCHRONISATIONS: Final[Mapping[tuple[bool, str], int]] = {
    **{(True, name): effect for name, effect in LOCK_EFFECTS.items()},
    **{(False, name): effect for name, effect in EFFECTS.items()},
    **{(lock, "fail"): ACQUIRE for lock in (False, True)},
}


_NO_STEPS: Final = frozenset({"fork", "joined", "gone", "again"})
_NOT_COUNTED: Final = frozenset({"gone", "again"})
"""Events of which judges make none."""
_LONGEST: Final = 64
"""Events of a repetition that is recognised."""


def _condensed(events: Sequence[Event]) -> Iterator[int]:
    """The indices of the events without what a thread repeats for the third time and more.

    Nobody else does anything meanwhile, so there is no telling the times apart: whoever comes after
    one of them comes after all, or was there before the first. Two are kept, since two writes are
    more than one.
    """
    last: dict[Event, int] = {}
    index, count = 0, len(events)
    while index < count:
        event = events[index]
        before = last.get(event)
        if before is not None and index - before <= _LONGEST:
            period = index - before
            block = events[before:index]
            alone = all(each[0] == event[0] for each in block)
            end = index
            while alone and events[end : end + period] == block:
                end += period
            if end > index + period:
                yield from range(index, index + period)
                for offset, each in enumerate(block):
                    last[each] = end - period + offset
                index = end
                continue
        last[event] = index
        yield index
        index += 1


class Judge(Protocol):
    """Hears one execution, step by step; see `order.Order`."""

    def synchronise(self, thread: int, obj: int, effect: int, site: int = -1) -> None:
        """A step that is no access."""

    def access(self, thread: int, obj: int, key: Hashable, how: int, site: int) -> object:
        """A step that is one."""

    def fork(self, parent: int, child: int) -> None:
        """A thread starts."""

    def join(self, waiting: int, ended: int) -> None:
        """A thread goes on after the end of another one."""

    def forget(self, obj: int) -> None:
        """An object is gone."""


class Hearing:
    """Tells judges what happens in one execution.

    Args:
        judges: who hear all of it.
        operations: by number, the names of the operations of accesses (`effects.OP_NAMES`).
        atomic: whether an item's operation at a site is one call of a method in C.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        operations: Mapping[int, str],
        atomic: Callable[[int], bool],
    ) -> None:
        self._judges = judges
        self._how = [HOW.get(operations.get(op, ""), 0) for op in range(max(operations) + 1)]
        self._atomic = atomic

    def hear(self, events: Sequence[Event]) -> None:
        """The next part of the execution."""
        self._hear(events)

    def _hear(self, events: Sequence[Event]) -> list[int]:
        """The same; returns the indices of the events that the judges were told."""
        kept = list(_condensed(events))
        told = [events[index] for index in kept]
        for judge in self._judges:
            self._tell(judge, told)
        return kept

    def _tell(self, judge: Judge, events: Sequence[Event]) -> None:
        how_of, atomic = self._how, self._atomic
        access, synchronise = judge.access, judge.synchronise
        for thread, obj, key, op, site in events:
            if obj < 0:
                continue
            if isinstance(op, int):
                how = how_of[op]
                if how & ITEM and atomic(site):
                    how |= ATOMIC
                access(thread, obj, key, how, site)
            elif op == "fork":
                judge.fork(thread, obj)
            elif op == "joined":
                judge.join(thread, obj)
            elif op == "gone":
                judge.forget(obj)
            elif op != "again":
                synchronise(thread, obj, _SYNCHRONISATIONS[key, op], site)


class StepwiseHearing(Hearing):
    """The same where each event is to be found again among the steps of the execution.

    Attributes:
        steps: by the number of an event, as the judges count them, the index of the step among
            those of the execution's threads; -1 for what is none.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        operations: Mapping[int, str],
        atomic: Callable[[int], bool],
    ) -> None:
        super().__init__(judges, operations, atomic)
        self.steps = [-1]
        self._made = 0

    def hear(self, events: Sequence[Event]) -> None:
        """The next part of the execution."""
        kept = self._hear(events)
        made = self._made
        numbers = []
        for _, count, _, op, _ in events:
            numbers.append(-1 if op in _NO_STEPS else made)
            made += count if op == "again" else op not in _NO_STEPS
        self.steps += [
            numbers[index]
            for index in kept
            if events[index][1] >= 0 and events[index][3] not in _NOT_COUNTED
        ]
        self._made = made
