"""Random walk."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class RandomWalk:
    """At every step any thread that can run, all equally likely.

    The baseline of Thomson, Donaldson & Betts, "Concurrency Testing Using Controlled Schedulers:
    An Empirical Study" (TOPC 2016), which finds it hard to beat on small programs.

    Args:
        seed: the same seed gives the same choices, on every version of Python: all strategies draw
            from `random.Random(seed).random()` alone.
    """

    exhausted = False

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - repeatable, not secret

    def begin(self) -> bool:
        """There is always another one."""
        return True

    def choose(
        self, enabled: Sequence[int], _current: int | None, _pending: Sequence[Pending | None]
    ) -> int:
        """Throw dice."""
        count = len(enabled)
        return enabled[0] if count == 1 else enabled[int(self._random() * count)]

    def end(self) -> None:
        """Nothing is learned."""
