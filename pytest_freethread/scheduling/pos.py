"""POS: partial order sampling."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pytest_freethread.scheduling.protocol import dependent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class POS:
    """A random priority for every pending operation; new ones for those that lost a race.

    Yuan, Yang & Gu, "Partial Order Aware Concurrency Sampling" (CAV 2018). The operation of highest
    priority runs. Those that race with it are drawn anew, so that each order of two racing
    operations is as likely as the other however the other threads run.

    Args:
        seed: where the randomness starts.
    """

    exhausted = False

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - repeatable, not secret
        self._priorities: list[float] = []

    def begin(self) -> bool:
        """There is always another one."""
        self._priorities = []
        return True

    def choose(
        self, enabled: Sequence[int], _current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """The thread whose operation has the highest priority."""
        draw = self._random
        priorities = self._priorities
        while len(priorities) < len(pending):
            priorities.append(draw())
        thread = enabled[0]
        if len(enabled) > 1:
            highest = priorities[thread]
            for other in enabled:
                if priorities[other] > highest:
                    thread = other
                    highest = priorities[other]
            operation = pending[thread]
            if operation is not None:
                obj = operation.obj
                for other in enabled:
                    loser = pending[other]
                    if loser is not None and loser.obj is obj and dependent(loser, operation):
                        priorities[other] = draw()
        priorities[thread] = draw()
        return thread

    def end(self) -> None:
        """Nothing is learned."""
