"""What a thread repeats, event by event, while nobody else does anything: told, but not kept.

Judges drop the third time and all that follow anyway, since there is no telling them apart. To
recognise an event as the one that was expected costs less than to write it down and to drop it.
"""

from __future__ import annotations

from operator import length_hint
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

_HEARD: Final = ("hear", "enter", "leave")

_OF_LOCKS: Final = frozenset({"acquire", "release"})


class Repetition:
    """Expects the events of a round again and again.

    Args:
        task: the thread that runs, and calls this.
        block: the events of a round that it has just gone round twice.
        owners: by the number of an object in it, what returns the object.
        differs: called with the arguments of `hear` where they are not what was expected, or where
            another thread asks.

    Attributes:
        hear: in place of the sink's `access`: returns the object, if this is what was expected,
            else what `differs` returns.
        enter, leave: in place of taking and releasing a `with` statement's lock; whether it was
            what was expected. Who has the lock is not written down: see `end`.
    """

    __slots__ = ("_block", "_expected", "_owners", "_task", "_total", "_unexpected", *_HEARD)

    def __init__(
        self,
        task: Task,
        block: Sequence[Event],
        owners: Mapping[int, Callable[[], Any]],
        differs: Callable[[Any, Any, Any, int], Any],
    ) -> None:
        self._task = task
        self._block = block
        self._owners = owners
        events = [(owners[number], key, op, site) for _, number, key, op, site in block]
        events *= _MOST // len(block)
        self._total = len(events)
        expected = iter(events)
        self._expected: Any = expected  # that it can be moved on is not in its type
        self._unexpected = unexpected = list[int]()
        ident_of_caller, route, lock_type = get_ident, ROUTE, Lock
        thread = get_ident()

        # Closures over an iterator: half the time of methods that count, a third without a GIL,
        # where each look into the module's globals counts as well.
        # What looks different ends it, no more: nobody's `__eq__` is run.
        #
        # Threads that are not controlled come to `hear` as well; to tell them apart would cost as
        # much as all else. They are ignored where they do something else. What they do just as it
        # is expected is taken for the thread's own: that may tell of one access more than there
        # was, to the same object, at the same place and under the same locks as rounds before.

        def hear(obj: Any, key: Any, op: int | str, site: int, /) -> Any:
            if op == route and type(obj) is lock_type:
                if ident_of_caller() == thread:
                    task.at = site  # it says where the lock is asked for, no more
                return obj
            for owner, its_key, its_op, its_site in expected:
                if site == its_site and op is its_op and key is its_key and owner() is obj:
                    return obj
                unexpected.append(site)
                break
            return differs(obj, key, op, site)

        def enter(lock: Lock, /) -> bool:
            if ident_of_caller() != thread or not lock.real.acquire(False):
                return False
            site = task.at
            for owner, _, op, its_site in expected:
                if site == its_site and op == "acquire" and owner() is lock:
                    task.at = -1
                    return True
                unexpected.append(site)
                break
            lock.real.release()
            differs(lock, True, "acquire", site)
            return False

        def leave(lock: Lock, /) -> bool:
            if ident_of_caller() != thread:
                return False
            for owner, _, op, _ in expected:
                if op == "release" and owner() is lock:
                    lock.real.release()
                    return True
                unexpected.append(-1)
                break
            differs(lock, True, "release", -1)
            return False

        self.hear, self.enter, self.leave = hear, enter, leave

    def is_about(self, number: int) -> bool:
        """Whether the object that has a number is concerned."""
        return number in self._owners

    def end(self) -> tuple[Event, Sequence[Event]]:
        """Expect nothing more, and write down who has which lock.

        Returns:
            An event that stands for all rounds that were gone round, and those of the last one.
        """
        position = self._total - length_hint(self._expected) - len(self._unexpected)
        self._expected.__setstate__(self._total)
        rest = position % len(self._block)
        # A round leaves the locks as it found them: what counts is how far the last one came.
        for _, number, _, op, site in self._block[:rest]:
            if op in _OF_LOCKS:
                self._task.site = site
                self._owners[number]().belong_to(self._task if op == "acquire" else None)
        again: Event = self._block[0][0], position - rest, None, "again", -1
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
