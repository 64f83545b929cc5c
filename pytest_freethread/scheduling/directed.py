"""Towards a state that is suspected: threads wait for each other before certain operations."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from pytest_freethread.records import Pending


class Directed:
    """A random walk in which a thread that comes to one of the sites lets all others go first.

    Race-directed random testing (Sen, "Race Directed Random Testing of Concurrent Programs", PLDI
    2008), and the same for deadlocks (Joshi, Park, Sen, Naik, "A Randomized Dynamic Program
    Analysis Technique for Detecting Real Deadlocks", PLDI 2009). Those who wait go on, one of them
    at random, when two stand before operations on one object, or when nobody else can.

    Args:
        sites: of the operations that are suspected.
        seed: where the randomness starts.
    """

    exhausted = False

    def __init__(self, sites: AbstractSet[int], seed: int) -> None:
        self._sites = sites
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def begin(self) -> bool:
        """There is always another execution."""
        return True

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """Whoever does not wait; else one of those who do."""
        del current
        arrived: dict[int, Pending] = {}
        for thread in enabled:
            operation = pending[thread]
            if operation is not None and operation.site in self._sites:
                arrived[thread] = operation
        others = [thread for thread in enabled if thread not in arrived]
        met = len({id(each.obj) for each in arrived.values()}) < len(arrived)
        return self._random.choice([*arrived] if met or not others else others)

    def end(self) -> None:
        """Nothing is learned."""
