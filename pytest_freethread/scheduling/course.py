"""The schedules of one search: those of its strategy, and of what takes the strategy's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_freethread.scheduling import Stays, make

if TYPE_CHECKING:
    from pytest_freethread.scheduling import Scheduler

_EARLY_TIMEOUTS: Final = 3
"""How many short timeouts fire before their time, at most, in a schedule that chance decides."""

_LATE: Final = 100
"""Schedules in which timeouts fire early that are tried when there are no others any more."""

_MOST_DIVERGED: Final = 10
"""Schedules that a program may leave of itself before it counts as beyond control."""


class Course:
    """Goes through schedules until there is none left.

    Args:
        strategy: the name of one, or a scheduler.
        seed: where randomness starts.
        preemptions: how many a schedule may have; None for any number.

    Attributes:
        scheduler: decides the schedule that is under way.
        learns: whether the scheduler can be told to start over, when more comes to be shared: not
            one of the user's own.
        count: how many schedules were tried since it started over.
        tried: how many were tried in all.
        diverged: how many the program left of itself.
        exhausted: whether there was no schedule left, timeouts that fire early aside.
        late: whether what is tried now are those.
    """

    def __init__(self, strategy: str | Scheduler, *, seed: int, preemptions: int | None) -> None:
        self.scheduler = make(strategy, seed=seed, preemptions=preemptions)
        self.learns = isinstance(strategy, str)
        self.count = self.diverged = 0
        self.exhausted = False
        self._strategy = strategy
        self._seed = seed
        self._preemptions = preemptions
        self._before = self._late = 0

    @property
    def tried(self) -> int:
        """See the class."""
        return self._before + self.count

    @property
    def late(self) -> bool:
        """See the class."""
        return self._late > 0

    @property
    def by(self) -> str:
        """Who decides, as a report says it."""
        return getattr(self.scheduler, "strategy", type(self.scheduler).__name__)

    @property
    def stays(self) -> bool:
        """Whether in this schedule whoever runs goes on for as long as it can."""
        return isinstance(self.scheduler, Stays) and self.scheduler.stays()

    @property
    def early_timeouts(self) -> int:
        """How many timeouts may fire early; where chance decides, in half of the schedules."""
        if self.late:
            return _EARLY_TIMEOUTS
        return 0 if self.by in {"DFS", "DPOR", "Plain"} else self.count % 2 * _EARLY_TIMEOUTS

    def begin(self, *, timed: bool) -> bool:
        """Go on to the next schedule, if there is one.

        Args:
            timed: whether timeouts could have fired early so far: chance may try some of these,
                once all else was tried.
        """
        if self._late == _LATE:
            return False
        if self.late or not self.scheduler.begin():
            self.exhausted = self.exhausted or self.scheduler.exhausted
            if not (self.exhausted and timed and self.learns):
                return False
            self._sample(self._seed + self._late)
            self.scheduler.begin()
            self._late += 1
        return True

    def diverge(self) -> bool:
        """The program is not the same from run to run; sampling may go on regardless."""
        self.diverged += 1
        if self.diverged > _MOST_DIVERGED or not self.learns:
            return False
        self._sample(self._seed + self.diverged)
        return True

    def start_over(self) -> None:
        """There is more to choose than was known."""
        self.scheduler = make(self._strategy, seed=self._seed, preemptions=self._preemptions)
        self._before, self.count = self.tried, 0

    def _sample(self, seed: int) -> None:
        self.scheduler = make("random", seed=seed, preemptions=self._preemptions)
