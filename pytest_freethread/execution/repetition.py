"""What a thread repeats, event by event, while nobody else does anything: told, but not kept.

Judges drop the third time and all that follow anyway, since there is no telling them apart. To
recognise an event as the one that was expected costs less than to write it down and to drop it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.instrument.effects import ROUTE
from pytest_freethread.instrument.shadows import Lock
from pytest_freethread.interpreter import get_ident

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_freethread.instrument.shadows import Task
    from pytest_freethread.records import Event

_LONGEST: Final = 32
"""Events of a round that is recognised."""

_MOST: Final = 4_096
"""Events that are expected at one go; then somebody may look where it leads to."""

_OF_LOCKS: Final = frozenset({"acquire", "release"})


class Repetition:
    """Expects the events of a round again and again.

    Args:
        task: the thread that runs.
        block: the events of a round that it has just gone round twice.
        identities: of the objects that have the numbers in it.
        differs: called with the arguments of `hear` where they are not what was expected, or where
            another thread asks.
    """

    __slots__ = ("_block", "_differs", "_expected", "_position", "_task", "_thread")

    def __init__(
        self,
        task: Task,
        block: Sequence[Event],
        identities: Mapping[int, int],
        differs: Callable[[Any, Any, Any, int], Any],
    ) -> None:
        self._task = task
        self._block = block
        self._differs = differs
        expected = [(identities[number], key, op, site) for _, number, key, op, site in block]
        self._expected = expected * (_MOST // len(block))
        self._position = 0
        self._thread = get_ident()

    def hear(self, obj: Any, key: Any, op: int | str, site: int, /) -> Any:
        """In place of the sink's `access`: the object, if this is what was expected.

        Also of a lock, as in `records.Event`. Else what `differs` returns.
        """
        if get_ident() == self._thread:
            position = self._position
            try:
                identity, its_key, its_op, its_site = self._expected[position]
            except IndexError:
                return self._differs(obj, key, op, site)
            # By identity: nobody's `__eq__` is run, and what looks different ends it, no more.
            if site == its_site and op is its_op and key is its_key and id(obj) == identity:
                self._position = position + 1
                return obj
            if op == ROUTE and type(obj) is Lock:  # it says where the lock is asked for, no more
                self._task.at = site
                return obj
        return self._differs(obj, key, op, site)

    def is_about(self, identity: int) -> bool:
        """Whether an object is concerned."""
        return any(identity == expected[0] for expected in self._expected[: len(self._block)])

    def heard(self) -> tuple[Event, Sequence[Event]]:
        """An event that stands for all rounds that were gone round, and those of the last one."""
        period = len(self._block)
        rest = self._position % period
        again: Event = self._block[0][0], self._position - rest, None, "again", -1
        return again, self._block[:rest]


def repeated(events: Sequence[Event]) -> Sequence[Event] | None:
    """The last round, if the latest events are two of the same, and not of mere looking."""
    last = events[-1]
    for period in range(1, min(_LONGEST, len(events) // 2) + 1):
        if events[-1 - period] == last and events[-2 * period : -period] == events[-period:]:
            block = events[-period:]
            changes = False
            for thread, number, _, op, _ in block:
                plain = isinstance(op, int) or op in _OF_LOCKS
                if thread != last[0] or number < 0 or not plain:
                    return None
                changes = changes or not isinstance(op, int) or bool(op & 1)
            return block if changes else None
    return None
