"""Leaf: the frozen records that cross the layers.

One way: `Plan` (what to do) → `Execution` (what happened) → `Finding` (what is wrong) →
`Result` (what it means). Judges read executions and make findings; reports read results.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from pytest_freethread.errors import ThreadSafetyError

Severity = Literal["error", "note"]
Phase = Literal["setup", "body", "invariant", "teardown"]


class Verdict(enum.Enum):
    """What a run says about the code under test."""

    PASSED = "passed"
    """Nothing was found within the scope; the scope says how much was tried."""
    FAILED = "failed"
    """At least one finding of severity `error`."""
    INCONCLUSIVE = "inconclusive"
    """Nothing was really tried, so nothing can be said."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with one test or one call.

    Attributes:
        threads: how many threads run at once, at least 1.
        rounds: how often they are released together, each time on fresh state.
        seconds: a budget for all rounds; None: no limit but the rounds.
        seed: where the noise's randomness starts.
        noise: whether the threads' starts are staggered at random by up to some microseconds.
        deadline: seconds after which threads that do not come back are given up as stuck.
    """

    threads: int
    rounds: int
    seconds: float | None
    seed: int
    noise: bool
    deadline: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """A line of code that a thread was at. `line` counts from 1; `source` is stripped."""

    file: str
    line: int
    function: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class LockUse:
    """A lock and the place where a thread took it or waits for it.

    Attributes:
        name: as a reader of the code would say it, such as `Bank.lock_a`.
        identity: equal for the same lock object, within one process.
        place: where the thread took it, or waits for it.
        forever: False where the wait has a timeout.
    """

    name: str
    identity: int
    place: Place
    forever: bool = True


@dataclass(frozen=True, kw_only=True)
class ThreadState:
    """What a thread was doing when it was looked at.

    Attributes:
        thread: its index among the threads of the plan; None for any other thread.
        name: the name of the `threading.Thread`.
        stack: the lines it is in, outermost first, without the harness's own.
        waits_for: the lock that it waits for, where that can be known.
        waits_in: the blocking call that it is in, such as `Queue.get`, where it is no lock.
        holds: the locks that it is known to hold, in the order in which it took them.
    """

    thread: int | None
    name: str
    stack: tuple[Place, ...]
    waits_for: LockUse | None = None
    waits_in: str | None = None
    holds: tuple[LockUse, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One distinct way in which executions failed.

    Attributes:
        exception: the first one of its kind, with its traceback, our own frames removed.
        phase: where it came up; only a `body` runs in a thread of its own.
        thread: index of the thread; None where the phase concerns all threads.
        round: index of the round.
        text: what the exception says, with addresses of objects left out.
        count: how many executions (bodies, or rounds for the other phases) failed in this way.
        other_texts: what else they said and how often, the most frequent first.
    """

    exception: BaseException
    phase: Phase
    thread: int | None
    round: int
    text: str
    count: int = 1
    other_texts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Threads that still ran after the test, all started at one place.

    Attributes:
        names: the names of the threads.
        started_at: the lines that led to their start, outermost first; empty if unknown.
        state: what the first of them was doing.
        daemon: whether they are daemon threads.
        background: whether they belong to somebody else: a thread pool that is still in use, an
            object that is older than the code under test, or a daemon of a library.
    """

    names: tuple[str, ...]
    started_at: tuple[Place, ...]
    state: ThreadState
    daemon: bool
    background: bool


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What happened in a stress run: all its rounds.

    Attributes:
        plan: what was to be done.
        rounds: how many rounds ran to their end.
        executions: how many bodies ran to their end or failed.
        seconds: how long all of it took.
        failures: each distinct failure once, the most frequent first.
        signals: likewise the exceptions that the caller named as no failures (such as skips).
        stuck: the state of every thread of a round that did not end.
        leaks: threads that were started by the code under test and still run.
        cut: why fewer rounds ran than planned; None if all of them did.
    """

    plan: Plan
    rounds: int
    executions: int
    seconds: float
    failures: tuple[Failure, ...] = ()
    signals: tuple[Failure, ...] = ()
    stuck: tuple[ThreadState, ...] = ()
    leaks: tuple[Leak, ...] = ()
    cut: str | None = None


Evidence = Failure | tuple[ThreadState, ...] | Leak


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, with its evidence.

    Attributes:
        kind: `exception invariant deadlock stuck leak gil …`.
        severity: an `error` fails the test, a `note` does not.
        message: one sentence.
        evidence: what the message stands on.
        token: replays the finding; None for free runs, which cannot be replayed.
        reproduced: (k, n): k of n replays showed it again; None where there is no replay.
    """

    kind: str
    severity: Severity
    message: str
    evidence: Evidence | None = None
    token: str | None = None
    reproduced: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found, and what that is worth. `str(result)` is the report.

    Attributes:
        verdict: see `Verdict`.
        findings: all of them, errors first.
        executions: how many bodies ran.
        exhaustive: whether every interleaving was tried; never so for a stress run.
        seconds: how long it took.
        scope: one line: what was tried, and how.
        text: the report.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    executions: int
    exhaustive: bool
    seconds: float
    scope: str
    text: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def raise_for_verdict(self) -> None:
        """Raise `ThreadSafetyError`, whose message is the report, unless the verdict is PASSED."""
        if self.verdict is not Verdict.PASSED:
            raise ThreadSafetyError(self)
