"""SURW: selectively uniform random walk."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class _Family(NamedTuple):
    """The places in the source that touch one shared object."""

    sites: frozenset[int]
    writes: frozenset[int]


class SURW:
    """Uniform over the interleavings of a few interesting operations, random in between.

    Zhao, Wolff, Mathur & Roychoudhury, "Selectively Uniform Concurrency Testing" (ASPLOS 2025). A
    thread is drawn, weighted by how many interesting operations it has left, to make the next one;
    who comes to an interesting operation out of turn waits. Among all others the highest priority
    runs, and each operation has a random one.

    What is interesting is chosen anew for each execution: one place in the source, or all places
    that write one shared object, or all that touch it. Each of the three finds bugs that are rare
    with the others. Which places touch the same object, and how many operations a thread makes at
    each, is learned from earlier executions (places are stable, objects are not); in the first
    execution there are only priorities.

    Args:
        seed: where the randomness starts.
    """

    exhausted = False

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - repeatable, not secret
        self._execution = 0
        self._trace: list[tuple[int, Pending]] = []
        self._counts: dict[int, dict[int, int]] = {}  # place → thread → operations, the most seen
        self._families: list[_Family] = []
        self._interesting: frozenset[int] = frozenset()
        self._left: dict[int, int] = {}  # thread → interesting operations that it still has
        self._intended = -1
        self._priorities: list[float] = []

    def begin(self) -> bool:
        """Choose what is interesting; there is always another execution."""
        self._execution += 1
        self._trace = []
        self._priorities = []
        self._left = {}
        if self._families:
            family = self._families[int(self._random() * len(self._families))]
            dice = self._random()
            if dice < 0.5:
                site = sorted(family.sites)[int(dice * 2 * len(family.sites))]
                self._interesting = frozenset((site,))
            else:
                self._interesting = family.writes if dice < 0.75 else family.sites
        for site in self._interesting:
            for thread, count in self._counts[site].items():
                self._left[thread] = self._left.get(thread, 0) + count
        # A thread that is not there yet may be intended: until it comes, the others wait.
        self._intended = self._draw(sorted(self._left), least=0)
        return True

    def choose(
        self, enabled: Sequence[int], _current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """The highest priority among those who need not wait for their turn."""
        priorities = self._priorities
        while len(priorities) < len(pending):
            priorities.append(self._random())
        interesting = self._interesting
        thread = enabled[0]
        if len(enabled) > 1:
            intended = self._intended
            thread = -1
            highest = -1.0
            for other in enabled:
                if priorities[other] > highest:
                    operation = pending[other]
                    if operation is None or other == intended or operation.site not in interesting:
                        thread = other
                        highest = priorities[other]
            if thread < 0:  # whose turn it is cannot run
                thread = self._draw(enabled, least=1)
        priorities[thread] = self._random()
        operation = pending[thread]
        if operation is not None:
            self._trace.append((thread, operation))
            if operation.site in interesting:
                left = self._left
                left[thread] = max(0, left.get(thread, 0) - 1)
                self._intended = self._draw(sorted(left), least=0)
        return thread

    def _draw(self, threads: Sequence[int], least: int) -> int:
        """One of the threads, weighted by what they have left but at least by `least`; -1: none."""
        weights = [max(self._left.get(thread, 0), least) for thread in threads]
        rest = self._random() * sum(weights)
        for thread, weight in zip(threads, weights, strict=True):
            rest -= weight
            if rest < 0:
                return thread
        return -1

    def end(self) -> None:
        """Learn from the execution; from every one at first, then more and more rarely."""
        if self._execution > 8 and self._execution & (self._execution - 1):
            return
        seen: dict[tuple[int, int], int] = {}
        users: dict[int, list[tuple[int, Pending]]] = {}
        for thread, operation in self._trace:
            place = operation.site, thread
            seen[place] = seen.get(place, 0) + 1
            users.setdefault(id(operation.obj), []).append((thread, operation))
        for (site, thread), count in seen.items():
            counts = self._counts.setdefault(site, {})
            counts[thread] = max(counts.get(thread, 0), count)
        for uses in users.values():
            family = _Family(
                sites=frozenset(operation.site for _, operation in uses),
                writes=frozenset(operation.site for _, operation in uses if operation.write),
            )
            shared = len({thread for thread, _ in uses}) > 1
            if shared and family.writes and family not in self._families:
                self._families.append(family)
