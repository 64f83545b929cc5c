"""Depth-first search, fewest preemptions first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_freethread.scheduling.protocol import Diverged, name_threads, name_turn
from pytest_freethread.scheduling.replay import stay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class _Turn(NamedTuple):
    """A choice not made yet: follow the trace up to a step, then let another thread run."""

    trace: list[tuple[int, int | None]]  # thread and site of each step of an earlier execution
    step: int
    thread: int


class DFS:
    """All schedules without a preemption, then all with one, with two, …, each of them once.

    Musuvathi & Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded
    Programs" (PLDI 2007), the search of CHESS. A preemption is a switch away from a thread that
    could go on. Every execution follows a known beginning, then stays on whoever runs; the choices
    that it does not make there are kept for later, those that cost a preemption for the next bound.
    There is no reduction: orders of independent operations count as different.

    Args:
        preemptions: how many to try at most; None: any number, which tries every interleaving.
    """

    def __init__(self, preemptions: int | None = None) -> None:
        self.exhausted = False
        self._most = preemptions
        self._bound = 0
        self._cut = False
        self._now: list[_Turn] = []  # all of them cost as many preemptions as the bound
        self._later: list[_Turn] = []  # one more
        self._turn: _Turn | None = None
        self._trace: list[tuple[int, int | None]] | None = None

    def begin(self) -> bool:
        """Take the choice that was kept last, of those that cost the fewest preemptions."""
        if self._trace is not None:
            if not self._now:
                self._bound += 1
                self._now, self._later = self._later[::-1], []
            if not self._now:
                self.exhausted = not self._cut
                return False
            self._turn = self._now.pop()
        self._trace = []
        return True

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """As before up to the turn, then whoever costs no preemption.

        Raises:
            Diverged: the execution does not go as it went before.
        """
        trace = self._trace
        assert trace is not None, "choose() before begin()"
        step = len(trace)
        turn = self._turn
        if turn is not None and step <= turn.step:
            thread = turn.thread if step == turn.step else turn.trace[step][0]
            if thread not in enabled:
                raise Diverged(step, f"thread {thread} to run", f"only {name_threads(enabled)} can")
            operation = pending[thread]
            made = (thread, None if operation is None else operation.site)
            if step < turn.step and made != turn.trace[step]:
                raise Diverged(step, name_turn(*turn.trace[step]), f"it is {name_turn(*made)}")
        else:
            thread = stay(enabled, current)
            for other in enabled:
                if other != thread:
                    if thread != current:
                        self._now.append(_Turn(trace, step, other))
                    elif self._bound == self._most:
                        self._cut = True
                    else:
                        self._later.append(_Turn(trace, step, other))
            operation = pending[thread]
            made = (thread, None if operation is None else operation.site)
        trace.append(made)
        return thread

    def end(self) -> None:
        """What was learned is kept while choosing."""
