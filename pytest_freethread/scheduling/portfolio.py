"""The portfolio behind `auto`: sample and search in turns."""

from __future__ import annotations

from itertools import chain, cycle, islice, repeat
from typing import TYPE_CHECKING

from pytest_freethread.scheduling.dfs import DFS
from pytest_freethread.scheduling.dpor import DPOR
from pytest_freethread.scheduling.pct import PCT
from pytest_freethread.scheduling.plain import Plain
from pytest_freethread.scheduling.pos import POS
from pytest_freethread.scheduling.surw import SURW
from pytest_freethread.scheduling.walk import RandomWalk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_freethread.records import Pending
    from pytest_freethread.scheduling.protocol import Scheduler

PLAIN = 3
FIRST_SAMPLES = 16  # most bugs that sampling finds at all fall to the first few
FIRST_SEARCH = 64  # enough to exhaust a small program at once


class PreemptionBound:
    """Another scheduler, held to a number of preemptions.

    Once they are spent, whoever runs goes on for as long as it can.

    Args:
        scheduler: who chooses until then.
        preemptions: how many each execution has.
    """

    def __init__(self, scheduler: Scheduler, preemptions: int) -> None:
        self.scheduler = scheduler
        self._preemptions = preemptions
        self._left = 0
        self.exhausted = False  # what the bound forbids was not tried

    def begin(self) -> bool:
        """As the scheduler says."""
        self._left = self._preemptions
        return self.scheduler.begin()

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """As the scheduler says, among those who may."""
        if current is None or current not in enabled:
            return self.scheduler.choose(enabled, current, pending)
        thread = self.scheduler.choose(enabled if self._left else (current,), current, pending)
        self._left -= thread != current
        return thread

    def end(self) -> None:
        """Pass it on."""
        self.scheduler.end()


class Portfolio:
    """A few plain schedules, then samplers and a systematic search in turns.

    The samplers start, half of the time SURW, else POS, PCT or a random walk: none wins everywhere,
    SURW most often (see the tables of its paper). Then the search gets enough executions to exhaust
    a small program; from there on it gets every other one. So a program of n classes of
    interleavings is exhausted after about 2 n executions, and a big one is sampled half of the
    time. The portfolio ends with its search, unless that had to leave something out.

    Args:
        seed: where the randomness starts.
        preemptions: a bound for every execution, which makes DFS the search; None: no bound, and
            DPOR is the search.
    """

    def __init__(self, seed: int, preemptions: int | None = None) -> None:
        plain: Scheduler = Plain()
        samplers: list[Scheduler] = [SURW(seed), POS(seed + 1), PCT(seed + 2), RandomWalk(seed + 3)]
        search: Scheduler = DPOR()
        if preemptions is not None:
            plain = PreemptionBound(plain, preemptions)
            samplers = [PreemptionBound(sampler, preemptions) for sampler in samplers]
            search = DFS(preemptions)
        surw, *others = samplers
        self.exhausted = False
        self._bounded = preemptions is not None
        self._samples = chain.from_iterable(zip(repeat(surw), cycle(others)))
        self._turns = self._order(plain, search)
        self._active = plain

    def _order(self, plain: Scheduler, search: Scheduler) -> Iterator[Scheduler]:
        yield from repeat(plain, PLAIN)
        yield from islice(self._samples, FIRST_SAMPLES)
        yield from repeat(search, FIRST_SEARCH)
        while True:
            yield next(self._samples)
            yield search

    def begin(self) -> bool:
        """Give the next strategy its turn."""
        self._active = next(self._turns)
        if self._active.begin():
            return True
        self.exhausted = self._active.exhausted
        if self.exhausted or self._bounded:
            return False
        self._turns = self._samples
        return self.begin()

    @property
    def strategy(self) -> str:
        """Which strategy the current execution belongs to, such as `POS`."""
        active = self._active
        if isinstance(active, PreemptionBound):
            active = active.scheduler
        return type(active).__name__

    def stays(self) -> bool:
        """As the strategy whose turn it is says, if it does."""
        return isinstance(self._active, Plain) and self._active.stays()

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """As the strategy whose turn it is says."""
        return self._active.choose(enabled, current, pending)

    def end(self) -> None:
        """Tell the strategy whose turn it was."""
        self._active.end()
