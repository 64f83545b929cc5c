"""PCT: probabilistic concurrency testing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class PCT:
    """Random priorities, lowered at a few random steps; with a guarantee.

    Burckhardt, Kothari, Musuvathi & Nagarakatte, "A Randomized Scheduler with Probabilistic
    Guarantees of Finding Bugs" (ASPLOS 2010). The thread of highest priority runs; `depth - 1`
    times, at steps drawn beforehand, the priority of the thread that ran last falls below all
    others. The number of steps to draw from is the largest one seen so far, so the first execution
    has priorities only.

    Args:
        seed: where the randomness starts.
        depth: how many ordering constraints a bug may need. An order violation has depth 1, an
            atomicity violation 2, at most 3.
    """

    exhausted = False

    def __init__(self, seed: int, depth: int = 3) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - repeatable, not secret
        self._depth = depth
        self._executions = 0
        self._threads = 1
        self._steps = 1  # the longest execution so far
        self._step = 0
        self._priorities: list[float] = []
        self._falls: dict[int, int] = {}

    def begin(self) -> bool:
        """Draw the steps at which priorities fall; there is always another execution."""
        self._step = 0
        self._priorities = []
        self._falls = {}
        if self._steps > 1:
            for rank in range(1, self._depth):
                self._falls[1 + int(self._random() * (self._steps - 1))] = -rank
        return True

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """The thread of highest priority, after a fall that is due."""
        priorities = self._priorities
        while len(priorities) < len(pending):
            priorities.append(self._random())
        step = self._step
        self._step = step + 1
        if step in self._falls and current is not None:
            priorities[current] = self._falls[step]
        thread = enabled[0]
        highest = priorities[thread]
        for other in enabled:
            if priorities[other] > highest:
                thread = other
                highest = priorities[other]
        return thread

    def end(self) -> None:
        """Learn how long executions are."""
        self._executions += 1
        self._steps = max(self._steps, self._step)
        self._threads = max(self._threads, len(self._priorities))

    @property
    def guarantee(self) -> str:
        """What the paper proves about the executions so far, in one line."""
        n, k, d, m = self._threads, self._steps, self._depth, self._executions
        chance = 1 / (n * k ** (d - 1))
        return (
            f"PCT: with {n} threads and {k} steps, one execution finds a bug of depth {d} or less "
            f"with p ≥ {chance:.2g}; all {m} miss it with p ≤ {(1 - chance) ** m:.2g}"
        )
