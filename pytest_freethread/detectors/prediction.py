"""What other schedules surely reach, told from the trace of a single one.

Sync-preserving prediction: Mathur, Pavlogiannis, Viswanathan, "Optimal Prediction of
Synchronization-Preserving Races" (POPL 2021); for deadlocks Tunç, Mathur, Pavlogiannis,
Viswanathan, "Sound Dynamic Deadlock Prediction in Linear Time" (PLDI 2023). A part of a trace, in
its own order, is a schedule of the same program if for each step it has those before it in its
thread, the steps whose effects it sees, and the end of every critical section but the last one of
its lock. The smallest such part that brings threads to certain steps either holds one of these
steps, and nothing is said, or the threads can stand there at the same moment: no guess, and no
need to know what the program would do in the branches that it did not take.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import TYPE_CHECKING, Final

from pytest_freethread.detectors.order import ACQUIRE, DROP, NOTIFY, RELEASE, TAKE

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

_WRITE: Final = 1  # as in `races`
_ATOMIC: Final = 2
_ITEM: Final = 4
_WHOLE: Final = 8

_NONE: Final = 0  # no step
_Group = tuple[int, int, int]
"""Accesses of one thread at one site, of one kind."""


@dataclass(slots=True)
class _Location:
    """The last write, and who accessed it, by step."""

    written: int = _NONE
    accesses: dict[_Group, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Object:
    """By key its locations; the last write to the whole, and by key those that came after it."""

    locations: dict[Hashable, _Location] = field(default_factory=dict)
    written: int = _NONE
    since: dict[Hashable, int] = field(default_factory=dict)
    loose: dict[_Group, list[int]] = field(default_factory=dict)
    changes: dict[_Group, list[int]] = field(default_factory=dict)


class Trace:
    """Remembers the steps of one execution; it hears what `races.Races` hears.

    Steps are numbered from 1 on, as the events of every `Order` that hears all the same: those of a
    clash, or of a cycle of locks, are steps of the trace. Memory grows with the trace.

    Args:
        threads: how many there are from the beginning.
    """

    def __init__(self, threads: int) -> None:
        # By thread its steps, and the step that started it; by step the thread, its place among
        # the thread's steps, and the steps whose effects it sees.
        self._steps: list[list[int]] = [[] for _ in range(threads)]
        self._started: list[int] = [_NONE] * threads
        self._thread = [-1]
        self._place = [-1]
        self._site = [-1]
        self._sees: list[tuple[int, ...]] = [()]
        # By step that takes a lock: the lock, and the step that let go of it.
        self._takes: dict[int, int] = {}
        self._drops: dict[int, int] = {}
        # By synchronising object, the last step that changed it, took it, notified there.
        self._changed: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._notified: dict[int, int] = {}
        self._objects: dict[int, _Object] = {}

    # ----- what happened ---

    def _add(self, thread: int, site: int, *sees: int) -> int:
        step = len(self._thread)
        self._site.append(site)
        self._thread.append(thread)
        self._place.append(len(self._steps[thread]))
        self._sees.append(sees)
        self._steps[thread].append(step)
        return step

    def synchronise(self, thread: int, obj: int, effect: int, site: int = -1) -> None:
        """See `order.Order.synchronise`."""
        sees = self._notified.get(obj, _NONE) if effect & NOTIFY else _NONE
        if effect & TAKE:
            # It sees no section before its own: none of them needs to be there.
            step = self._taken[obj] = self._add(thread, site, sees)
            self._takes[step] = obj
        elif effect & DROP:
            taken = self._taken.pop(obj, _NONE)
            step = self._drops[taken] = self._add(thread, site, taken)
        elif effect & ACQUIRE:
            step = self._add(thread, site, self._changed.get(obj, _NONE))
        else:
            step = self._add(thread, site, sees)
            if effect & NOTIFY:
                self._notified[obj] = step
        if effect & RELEASE:
            self._changed[obj] = step

    def fork(self, parent: int, child: int) -> None:
        """See `order.Order.fork`."""
        more = child + 1 - len(self._steps)
        self._steps += [[] for _ in range(more)]
        self._started += [_NONE] * more
        self._started[child] = self._add(parent, -1)

    def join(self, waiting: int, ended: int) -> None:
        """See `order.Order.join`."""
        self._add(waiting, -1, *self._steps[ended][-1:])

    def forget(self, obj: int) -> None:
        """See `order.Order.forget`; what is gone may be accessed in another order all the same."""

    def access(self, thread: int, obj: int, key: Hashable, how: int, site: int) -> None:
        """See `races.Races.access`."""
        owner = self._objects.get(obj)
        if owner is None:
            owner = self._objects[obj] = _Object()
        write, group = how & _WRITE, (thread, site, how)
        if how >= _ITEM and (how & _WHOLE or key is None):
            step = self._add(thread, site, owner.written, *owner.since.values())
            if write:
                owner.written = step
                owner.since.clear()
                owner.changes.setdefault(group, []).append(step)
            if how & _WHOLE and not how & _ATOMIC:
                owner.loose.setdefault(group, []).append(step)
            return
        location = owner.locations.get(key)
        if location is None:
            location = owner.locations[key] = _Location()
        blind = write and not how & _ATOMIC
        step = self._add(thread, site, *(() if blind else (location.written, owner.written)))
        location.accesses.setdefault(group, []).append(step)
        if write:
            location.written = step
            if how >= _ITEM:
                owner.since[key] = step
                owner.changes.setdefault(group, []).append(step)

    def site(self, step: int) -> int:
        """Where a step was made."""
        return self._site[step]

    # ----- what may happen ---

    def may_meet(self, *steps: int) -> bool:
        """Whether a schedule is known in which threads stand before these steps at one moment."""
        return self.leading_to(*steps) is not None

    def leading_to(self, *steps: int) -> list[tuple[int, int]] | None:
        """The schedule that brings threads before these steps at one moment.

        Args:
            steps: of different threads.

        Returns:
            Steps with their threads, in order; None if the trace does not tell of any.
        """
        ends = {self._thread[step]: self._place[step] for step in steps}
        reached = [0] * len(self._steps)
        last: dict[int, int] = {}
        needed = [self._steps[thread][place - 1] for thread, place in ends.items() if place]
        needed += [self._started[thread] for thread in ends]
        while needed:
            step = needed.pop()
            if step == _NONE:
                continue
            thread, place = self._thread[step], self._place[step]
            if place >= ends.get(thread, place + 1):
                return None
            since, reached[thread] = reached[thread], max(reached[thread], place + 1)
            needed.append(self._started[thread] if not since else _NONE)
            for each in self._steps[thread][since : place + 1]:
                needed += self._sees[each]
                lock = self._takes.get(each)
                if lock is not None:
                    other = last.get(lock, _NONE)
                    last[lock] = max(each, other)
                    if other:
                        drop = self._drops.get(min(each, other))
                        if drop is None:  # let go of where nobody heard it
                            return None
                        needed.append(drop)
        return sorted(
            (step, thread)
            for thread, count in enumerate(reached)
            for step in self._steps[thread][:count]
        )

    def races(self, attempts: int = 8) -> Iterator[tuple[int, int]]:
        """Accesses that clash and may meet, in the order of the trace; one pair for two sites.

        Args:
            attempts: how many pairs of accesses are tried for two sites at one location.
        """
        said = set()
        for owner in self._objects.values():
            candidates = [
                pair
                for location in owner.locations.values()
                for pair in combinations(location.accesses.items(), 2)
            ]
            candidates += [
                (loose, change) for loose in owner.loose.items() for change in owner.changes.items()
            ]
            for (one, steps), (other, others) in candidates:
                sites = tuple(sorted((one[1], other[1])))
                clashes = (one[2] | other[2]) & _WRITE and not one[2] & other[2] & _ATOMIC
                if one[0] == other[0] or not clashes or sites in said:
                    continue
                for pair in islice(_neighbours(steps, others), attempts):
                    if self.may_meet(*pair):
                        said.add(sites)
                        yield pair
                        break


def _neighbours(steps: Sequence[int], others: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of steps of both, the closest first: each step with those before and after it."""
    pairs = set()
    for step in steps:
        index = bisect(others, step)
        pairs |= {(min(step, o), max(step, o)) for o in others[max(0, index - 1) : index + 1]}
    return iter(sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair)))
