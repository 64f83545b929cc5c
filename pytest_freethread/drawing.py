"""Schedules that Hypothesis draws, as its users see them."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_freethread import exploring, harness, settings
from pytest_freethread.errors import SettingError, ThreadSafetyError
from pytest_freethread.execution import scope
from pytest_freethread.scheduling import Replay, Turns, decode, drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pytest_freethread.records import Result

_stage: exploring.Stage | None = None
"""Of the test that is under way; None: each run has one of its own."""


@contextmanager
def keeping_the_stage() -> Iterator[None]:
    """Within, what a run has put in place stays there for the next one."""
    global _stage  # noqa: PLW0603 - probes are of the whole process, and so is this
    before = _stage
    with exploring.Stage() as _stage:
        try:
            yield
        finally:
            _stage = before


def schedules() -> drawn.Strategy[Schedule]:
    """A strategy for schedules: who goes on when, drawn and shrunk by Hypothesis.

        @given(schedule=schedules(), amounts=st.lists(st.integers(1, 9), max_size=4))
        def test_deposits(schedule, amounts):
            account = Account()
            schedule.run(*[partial(account.deposit, n) for n in amounts])
            assert account.balance == sum(amounts)

    The simplest schedule lets each thread run for as long as it can, the first one first. From
    there on, fewer turns are simpler, so a failing example is shrunk to the fewest preemptions.
    """
    return drawn.strategy(Schedule)


class Schedule:
    """Who goes on when, for one run of some bodies.

    Hypothesis draws schedules (see `schedules`); that of a report's token is for `@example`.

    Args:
        turns: (steps, who) each: after so many steps (accesses to what threads may share), whoever
            runs is preempted, and `who` of the others goes on; 0 is the next one. No steps: it goes
            on for as long as it can, and so does everybody when the turns are over.
        first: who goes on in the beginning.

    Raises:
        SettingError: these are no turns.
    """

    def __init__(self, turns: Sequence[tuple[int, int]] = (), first: int = 0) -> None:
        self._turns = settings.turns(turns, f"Schedule({turns!r})")
        self._first = settings.index(first, f"Schedule(first={first!r})")
        self._token: str | None = None

    @classmethod
    def from_token(cls, token: str) -> Schedule:
        """The schedule of a token that a report names, such as `ft1:0x1.1x2.0x1`.

        What cannot be followed is passed over, so that an example goes on to mean something when
        the code has been repaired.

        Raises:
            SettingError: it is no token.
        """
        decode(token)
        schedule = cls()
        schedule._token = token
        return schedule

    def __repr__(self) -> str:
        if self._token is not None:
            return f"Schedule.from_token({self._token!r})"
        turns = repr(list(self._turns)) if self._turns else ""
        first = f"first={self._first}" if self._first else ""
        return f"Schedule({', '.join(filter(None, [turns, first]))})"

    def run(self, *bodies: Callable[[], object]) -> None:
        """Run bodies in controlled threads, one each, from the beginning of the schedule.

        In an example of Hypothesis that fails, the steps of the threads are shown with it. The
        number of distinct switches (from which place in the code to which place of another thread)
        is fed to `target`; where an example runs more than once, that of the first run.

        Raises:
            ThreadSafetyError: a deadlock, a lost wake-up or a livelock; its message is the report.
            BaseException: what escaped from a body; from the first of them, if from several.
            SettingError: there are no bodies, or one cannot be called.
            RuntimeError: another controlled run is under way.
        """
        __tracebackhide__ = True
        if not bodies:
            raise SettingError("schedule.run(): there is nothing to run (give at least one body)")
        for body in bodies:
            if not callable(body):
                raise SettingError(f"schedule.run({body!r}): it cannot be called")
        performance, result = self._perform(bodies)
        drawn.lift_the_deadline()
        drawn.score(performance.switches)
        if performance.standstill:
            assert result is not None
            raise ThreadSafetyError(result)
        if result is not None:
            drawn.tell(str(result))
        if performance.raised is not None:
            raise performance.raised

    def _perform(
        self, bodies: Sequence[Callable[[], object]]
    ) -> tuple[exploring.Performance, Result | None]:
        within = drawn.elsewhere()
        program = exploring.Program(
            bodies=tuple(_part(body, within) for body in bodies),
            setup=None,
            invariant=None,
            signals=drawn.SIGNALS,
        )
        scheduler = (
            Turns(self._turns, self._first)
            if self._token is None
            else Replay(decode(self._token), strict=False)
        )
        return harness.perform(program, scheduler, record=drawn.is_shown(), stage=_stage)


def _part(
    body: Callable[[], object], within: Callable[[], AbstractContextManager[None]]
) -> Callable[[], object]:
    """The body as a part of the example that is under way; it goes by the body's name."""

    @functools.wraps(scope.unwrapped(body))
    def part() -> None:
        with within():
            body()

    return part
