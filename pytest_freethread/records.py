"""Leaf: the frozen records that cross the layers.

One way: `Plan` (what to do) → `Execution` (what happened) → `Finding` (what is wrong) →
`Result` (what it means). Judges read executions and make findings; reports read results.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pytest_freethread.errors import ThreadSafetyError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        noise: whether the threads' starts are staggered at random by up to some microseconds, and
            threads pause, in some of the rounds, at what they share.
        deadline: seconds after which threads that do not come back are given up as stuck.
        races: whether a race is an `error`, a `note`, or not looked for (`off`).
        benign: patterns of what judges find and nobody wants to hear of.
    """

    threads: int
    rounds: int
    seconds: float | None
    seed: int
    noise: bool
    deadline: float
    races: str = "off"
    benign: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExplorationPlan:
    """How to explore one test or one call.

    Attributes:
        threads: how many bodies run, at least 1.
        strategy: the name of one, or a scheduler.
        schedules: how many to try at most.
        seconds: a budget for the search; None: no limit but the schedules.
        preemptions: how many switches away from a thread that could go on a schedule may have;
            None: any number.
        seed: where randomness starts; the same one gives the same schedules.
        races: whether a race is an `error`, a `note`, or not looked for (`off`).
        benign: patterns of what judges find and nobody wants to hear of.
        include: modules and packages that get probes besides the project's own.
        deadline: seconds of real time after which a thread that does not come back is given up.
    """

    threads: int
    strategy: object
    schedules: int
    seconds: float | None
    preemptions: int | None
    seed: int
    races: str
    benign: tuple[str, ...]
    include: tuple[str, ...]
    deadline: float


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """How to measure whether tasks run in parallel, and what is asked of them.

    Attributes:
        threads: numbers of threads to measure with, each at least 1, ascending.
        pairs: how many pairs of a serial and a parallel run there are at most, for each number.
        seconds: a budget for all of it; None: no limit but the pairs.
        locks: whether to time the waits for locks, in runs of their own: always, never, or (None)
            only where what is asked does not hold.
        pin: whether each thread is tied to a core of its own.
        deadline: seconds after which tasks that do not come back are given up as stuck.
        min_speedup: the least speed-up that is asked for; None: nothing is asked.
        min_efficiency: likewise, as a share of what is possible here.
        max_total: how long all tasks may take together at most, in lengths of the longest one.
    """

    threads: tuple[int, ...]
    pairs: int
    seconds: float | None
    locks: bool | None
    pin: bool
    deadline: float
    min_speedup: float | None
    min_efficiency: float | None
    max_total: float | None


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
        place: where the thread took it, or waits for it; its `file` is empty if that is not known.
        forever: False where the wait has a timeout.
        owner: the ident of the thread that holds it, where the lock itself says so.
    """

    name: str
    identity: int
    place: Place
    forever: bool = True
    owner: int | None = None


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


Outcome = Literal[
    "ended",
    "deadlock",
    "lost-wakeup",
    "livelock",
    "too-long",
    "diverged",
    "partial-control",
    "stopped",
]


class Pending(NamedTuple):
    """What a thread will do next, announced before it happens.

    Attributes:
        obj: the object, compared by identity within one execution.
        key: attribute name, item key, …; None: the whole object, which conflicts with every key.
        write: whether it changes the object. Every synchronisation operation counts as a write on
            its object; starting, ending and joining a thread are writes on the thread's object.
            What touches two objects (to wait on a condition also releases its lock) is announced
            as two steps.
        site: the static place in the source, stable across the executions of one process.
    """

    obj: Any
    key: Any
    write: bool
    site: int


Event: TypeAlias = tuple[int, int, Any, int | str, int]
"""A step as the judges of orders hear it: (thread, object, key, operation, site).

A plain tuple, since there are as many as there are accesses.

- thread: index of the logical thread that made the step.
- object: its number in this execution, from 1 on; no two objects ever have the same one. Of `fork`
  and `joined`, the index of the thread that is started, or has ended; of `again`, how many steps.
- key: of an access, the attribute's name or the item's key, None for the whole object; of a
  synchronisation, whether the object is a lock.
- operation: of an access, a number of `effects.OP_NAMES`; of a synchronisation its name, such as
  `release`; `try` where a lock is taken without waiting for ever, `fail` where that was in vain;
  `fork`, `joined`; `gone` where the object's life ended; `again` in place of steps in which the
  thread repeated what it had just done twice, while nobody else did anything.
- site: the static place in the source.
"""


class Step(NamedTuple):
    """An operation that was executed.

    Attributes:
        thread: index of the logical thread.
        place: the line; its `source` is the expression, such as `self.value`.
        op: what it did: a name in `effects.OP_NAMES`, `global …`, or the synchronisation's.
        location: numbers the objects touched, in the order of their first appearance.
        label: the type of the object; the name of a class or of a module where it is one.
        key: the attribute or variable, or the item's key as it is written; None for all of it.
        write: whether it changed the location.
        before: what was there, shortly; None where that cannot be told.
        after: what a write left there.
        held: the locations of the locks that the thread held.
        line: the whole line of source; empty where it is not known.
    """

    thread: int
    place: Place
    op: str
    location: int
    label: str
    key: str | None
    write: bool
    before: str | None
    after: str | None
    held: tuple[int, ...]
    line: str = ""


class Pause(NamedTuple):
    """The end of a thread's turn.

    Attributes:
        steps: how many steps of the trace came before.
        thread: index of the thread.
        ready: whether it could have gone on.
        ended: whether it had nothing more to do.
        operation: what it waits in, such as `acquire`; empty if it does not wait.
        source: the expression of that.
        by: the thread that would have to act, where only one can.
    """

    steps: int
    thread: int
    ready: bool
    ended: bool
    operation: str
    source: str
    by: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """A lock that a thread holds: its identity, its type, and where it was taken."""

    lock: int
    kind: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A thread that had not ended.

    Attributes:
        thread: its index.
        name: of its `threading.Thread`.
        daemon: whether that was a daemon.
        operation: what it waits in, such as `acquire`; empty if it could have gone on.
        kind: the type of the object that it waits for.
        through: the library's function around it, such as `Queue.get`.
        place: where it waits.
        lock: the identity of the lock that it waits for; None if it is no lock.
        by: the thread that would have to act: the lock's holder, or the thread to be joined.
        taken: where the holder took the lock.
        holds: the locks that it holds.
        stack: where it is, outermost first.
    """

    thread: int
    name: str
    daemon: bool
    operation: str
    kind: str
    through: str | None
    place: Place
    lock: int | None
    by: int | None
    taken: Place | None
    holds: tuple[Holding, ...]
    stack: tuple[Place, ...]


class Thrown(NamedTuple):
    """An exception that nobody caught; `thread` is None where the phase concerns all threads."""

    phase: Phase
    thread: int | None
    exception: BaseException


@dataclass(frozen=True, kw_only=True)
class Account:
    """The steps of an execution, or those of them that a finding is about.

    Attributes:
        trace: the steps, if they were asked for.
        names: of the threads, by their index.
        stacks: by the index of a step of the trace at a watched site: where its thread was,
            outermost first.
        made: by location, where the object was made, as far as that is known.
        births: by index of a thread that the code under test started: who did, and where.
    """

    trace: tuple[Step, ...]
    names: tuple[str, ...]
    stacks: Mapping[int, tuple[Place, ...]] = field(default_factory=dict)
    made: Mapping[int, Place] = field(default_factory=dict)
    births: Mapping[int, tuple[int, Place]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ControlledExecution(Account):
    """What happened in one execution.

    Attributes:
        outcome: `ended`; `deadlock`: threads wait for each other, or for a lock whose holder has
            ended; `lost-wakeup`: one waits for a signal that nobody can give; `livelock`: the
            limit of steps was reached; `too-long`: so was that of time, while the threads still
            changed something; `partial-control`: a thread did not come back from real
            blocking; `diverged`: the chooser named a thread that could not go on; `stopped`:
            it said so.
        choices: the answers of the chooser.
        schedule: (thread, steps, site) in turn: that thread made so many steps (of all that were
            announced, also where nothing was to choose), and stood before `site` when another
            one went on. The same at every granularity.
        steps: how many steps there were.
        changed: how many of them there were when something was changed last, or soon after.
        counts: how many of them each thread made, by its index.
        thrown: exceptions that nobody caught.
        holds: whether the invariant holds; None if it was not asked.
        waiting: the threads that had not ended: the stuck ones, or those that were left behind.
        outside: the threads that were out of control for a while, in real blocking.
        widened: whether locations turned out to be shared that were believed not to be: the
            execution had fewer points to choose at than the next one will have.
        spins: how often a thread that made no progress was made to let others go first.
        timed: whether a thread waited with a short timeout, which might have been over earlier.
        finalized: whether a finalizer ran where the interpreter came to it, and not where a choice
            had led to.
        diverged: where the outcome is `diverged`: index of the choice, the thread named, and
            those that could go on.
        pauses: why threads did not go on, in order, where the trace was asked for.
        abandoned: the locks that threads held when they ended, and nobody has released since.
    """

    outcome: Outcome
    choices: list[int]
    schedule: list[tuple[int, int, int]]
    steps: int
    changed: int
    counts: dict[int, int]
    thrown: tuple[Thrown, ...]
    holds: bool | None
    waiting: tuple[Waiting, ...]
    outside: tuple[int, ...]
    widened: bool
    spins: int
    timed: bool
    finalized: bool
    diverged: tuple[int, int, tuple[int, ...]] | None
    pauses: tuple[Pause, ...] = ()
    abandoned: tuple[tuple[int, Holding], ...] = ()

    @property
    def threads(self) -> tuple[int, ...]:
        """The thread of every step: what a replay follows."""
        return self.beginning(self.steps)

    @property
    def decisive(self) -> tuple[int, ...]:
        """The same without the steps of a livelock in which nothing changes any more.

        They come again by themselves, if whoever spins lets others go first.
        """
        return self.beginning(self.changed if self.outcome == "livelock" else self.steps)

    def beginning(self, most: int) -> tuple[int, ...]:
        """The same for the first steps, so many at most."""
        each = (itertools.repeat(thread, steps) for thread, steps, _ in self.schedule)
        return tuple(itertools.islice(itertools.chain.from_iterable(each), most))


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step of an interleaving: what a thread did to something that threads may share.

    Attributes:
        thread: index of the thread.
        place: the line; its `source` is the expression, such as `self.value`.
        line: the whole line, where it is a line by itself; otherwise the expression again.
        operation: what it did: `read`, `write`, `acquire`, `release`, `wait`, `start` …
        target: what it did it to, such as `Counter.value`.
        before: what was there, shortly; None where that cannot be told.
        after: what a write left there.
        contested: whether several threads touch the location, and not all of them only read.
        holding: the names of the locks that the thread held.
        pause: why this thread did not go on: `preempted`, `done`, `waits for …`, `raises …`;
            None where it did.
        state: what the object's `state()` gave after it, where it has one and that has changed.
    """

    thread: int
    place: Place | None
    line: str
    operation: str
    target: str
    before: str | None
    after: str | None
    contested: bool
    holding: tuple[str, ...] = ()
    pause: str | None = None
    state: str | None = None


@dataclass(frozen=True, kw_only=True)
class Violation:
    """Three steps that break what their author took for one: a look, a change by another, an act.

    Attributes:
        kind: `lost-update`, `check-then-act` or `iteration`.
        look: index of the move in which a thread read the location.
        change: index of the move in which another thread changed it after that.
        act: index of the move in which the first thread wrote it or used it all the same.
        released: the lock that was held at each of the three, and let go of in between.
        late: the lock that was held at the change and at the act, but not at the look.
        overwrites: whether what the change left there is lost.
    """

    kind: Literal["lost-update", "check-then-act", "iteration"]
    look: int
    change: int
    act: int
    released: str | None
    late: str | None
    overwrites: bool


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What threads called on an object of a contract, and what is wrong with what that gave.

    Attributes:
        rows: who, and the calls with their results, in order.
        order: calls that can be explained in this order, as many as possible; empty where it is
            not the results that are wrong.
        next: what is wrong with each call that could come next, in a sentence.
    """

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    order: tuple[str, ...] = ()
    next: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Interleaving:
    """A schedule that shows a finding, step by step.

    Attributes:
        moves: the steps, in the order in which they happened.
        names: of the bodies and of the threads that were started, by their index.
        preemptions: switches away from a thread that could have gone on; the fewest that were
            found to show the finding.
        found: which schedule it was first, from 1 on, by which strategy, after how many seconds.
        blocked: the threads that could not go on any more, where that is what is wrong.
        failure: the exception, where there is one.
        broken: what failed where it is no exception, as a sentence, if the message is another one.
        call: what replays it.
        violation: the steps that the finding comes from, where that can be said.
        repair: what usually repairs it, where that is known.
        command: what replays it at a shell's prompt, where the bodies are those of a test.
        scenario: what the bodies call, where they were made for a contract.
    """

    moves: tuple[Move, ...]
    names: tuple[str, ...]
    preemptions: int
    found: tuple[int, str, float]
    blocked: tuple[ThreadState, ...]
    failure: Failure | None
    call: str
    broken: str | None = None
    violation: Violation | None = None
    repair: str | None = None
    command: str | None = None
    scenario: Scenario | None = None


@dataclass(frozen=True, kw_only=True)
class RacingAccess:
    """One of the two accesses of a race.

    Attributes:
        thread: index of the thread.
        name: what the thread is called.
        action: what it did: `read`, `wrote`, or `walked over` a container.
        place: where; its `source` is the expression or the line.
        holds: the locks that the thread held, in the order in which it took them.
        stack: the lines that it was in, outermost first, `place` last; empty if not known.
        started_by: what the thread is called that started it; None for a body.
        started_at: where that was.
    """

    thread: int
    name: str
    action: Literal["read", "wrote", "walked over"]
    place: Place
    holds: tuple[LockUse, ...] = ()
    stack: tuple[Place, ...] = ()
    started_by: str | None = None
    started_at: Place | None = None


@dataclass(frozen=True, kw_only=True)
class Race:
    """Two accesses to one location, at least one of them a write, that nothing puts in order.

    Attributes:
        target: what was accessed, as a reader of the code would say it, such as `Stats.total`.
        made: where the object was made, if that is known.
        accesses: both, in the order in which they happened.
        together: whether both threads stood before their accesses at the same moment.
        published: whether the location was written just once and the reader saw what was written:
            a flag that is polled, or double-checked initialisation.
        call: what replays it; empty if nothing does.
        command: likewise at a shell's prompt, where the bodies are those of a test.
    """

    target: str
    made: Place | None
    accesses: tuple[RacingAccess, RacingAccess]
    together: bool
    published: bool
    call: str = ""
    command: str | None = None


Evidence = Failure | tuple[ThreadState, ...] | Leak | Interleaving | Race


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
        suppressed: by what said so, how many findings were called benign and are left out; 0 for a
            pattern that matched none, and for a comment on a line that was run.
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
    suppressed: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def raise_for_verdict(self) -> None:
        """Raise `ThreadSafetyError`, whose message is the report, unless the verdict is PASSED."""
        if self.verdict is not Verdict.PASSED:
            raise ThreadSafetyError(self)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What measured, and on what.

    Attributes:
        python: such as `CPython 3.13.5`.
        free_threaded: whether the build can run without the GIL.
        gil: whether the GIL was on.
        gil_by: what switched it on, where that is known: a module, an option.
        cores: how many cores the process may use, by its affinity and its cgroup's quota.
        system: the operating system and the processor's architecture.
    """

    python: str
    free_threaded: bool
    gil: bool
    gil_by: str | None
    cores: float
    system: str


class PartRun(NamedTuple):
    """One run of one task.

    Attributes:
        task: its index.
        thread: index of the thread that ran it.
        start: seconds since the first task of the run began.
        end: likewise.
        cpu: seconds that the thread computed meanwhile; where no other task ran, all threads.
    """

    task: int
    thread: int
    start: float
    end: float
    cpu: float


class Pair(NamedTuple):
    """The same tasks one after another on one thread, and at once on a thread each."""

    serial: tuple[PartRun, ...]
    parallel: tuple[PartRun, ...]


class MeasuredRound(NamedTuple):
    """Pairs that were run close to each other, in random order.

    Attributes:
        tasks: the tasks that are measured.
        probe: as many loops of pure Python, as long as the tasks compute: what can be had here.
        native: as many hashes, for which the GIL is let go of: what could be had without it. None
            where the GIL is off.
        coreless: seconds for which threads of the process were ready to run and had no core, in
            sum, while the tasks ran at once; 0 where that is not known.
    """

    tasks: Pair
    probe: Pair
    native: Pair | None
    coreless: float


class Wait(NamedTuple):
    """A wait for a lock or another meeting place.

    Attributes:
        thread: index of the thread; negative for those that a task started.
        name: what it waited for, as a reader of the code would say it.
        place: where.
        start: seconds since the first task of the run began.
        end: likewise.
    """

    thread: int
    name: str
    place: Place
    start: float
    end: float


class TimedRun(NamedTuple):
    """A parallel run in which the waits for locks were timed: its tasks, and their waits."""

    parts: tuple[PartRun, ...]
    waits: tuple[Wait, ...]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All that was measured with one number of threads; times in seconds.

    Attributes:
        threads: how many.
        rounds: what was measured, in the order in which it was.
        timed: runs in which the waits for locks were timed; empty if they were not.
        untimed: why they were not, where it was tried.
    """

    threads: int
    rounds: tuple[MeasuredRound, ...]
    timed: tuple[TimedRun, ...] = ()
    untimed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured.

    Attributes:
        machine: on what.
        plan: how.
        names: of the tasks; a single one runs as often as there are threads.
        samples: for each number of threads.
        stuck: the states of the threads of a run that did not end.
        seconds: how long all of it took.
    """

    machine: Machine
    plan: ParallelPlan
    names: tuple[str, ...]
    samples: tuple[Samples, ...]
    stuck: tuple[ThreadState, ...] = ()
    seconds: float = 0.0


class Estimate(NamedTuple):
    """A median with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is asked of a measurement, and whether it holds.

    Attributes:
        what: `speed-up`, `efficiency` or `total`.
        asked: the least, or for `total` the most.
        measured: what there is.
        possible: the best that there could be here.
        verdict: whether it holds; judged on the intervals.
        reason: why it is said to, in a sentence.
    """

    what: Literal["speed-up", "efficiency", "total"]
    asked: float
    measured: Estimate
    possible: Estimate
    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A task's own duration, alone and while the others run: medians, in seconds."""

    name: str
    alone: float
    together: float


@dataclass(frozen=True, kw_only=True)
class LockShare:
    """What part of the parallel time went into waiting for one lock.

    Attributes:
        name: of the lock.
        place: where most of the waiting was.
        share: of the time that the tasks took, and the threads that they started; from 0 to 1.
        waits: how often a thread had to wait, per run.
    """

    name: str
    place: Place
    share: float
    waits: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one number of threads came to.

    Attributes:
        threads: how many.
        pairs: how many pairs of runs it is judged on.
        serial: seconds that the tasks take one after another.
        total: seconds that they take together.
        speedup: how many times faster they are together, from the pairs.
        possible: how many times faster they could be here: as the probes are, as far as the
            tasks compute; as many times as there are tasks, as far as they wait.
        headroom: how many times faster they could be than they are, pair by pair.
        ceiling: how many times faster the probes are.
        native: likewise those for which the GIL is let go of; None where it is off.
        parts: the tasks; a single one as often as it ran.
        computing: the share of their time in which the tasks compute, alone; above 1 where they
            keep more than one core busy.
        core_share: the share of a core that the probe gets, alone; neighbours have the rest.
        held_up: for how much of the total other processes kept threads from running, beyond what
            the tasks take from each other, summed over the threads.
        at_once: how long exactly 0, 1, 2 … tasks were under way, as shares of the total.
        locks: what they waited for most, where that was timed.
        timing_cost: how many times longer the runs took in which it was.
        example: the parallel run in the middle; the timeline is drawn from it.
        waits: of the timed run that stands for them, where there is one.
    """

    threads: int
    pairs: int
    serial: Estimate
    total: Estimate
    speedup: Estimate
    possible: Estimate
    headroom: Estimate
    ceiling: Estimate
    native: Estimate | None
    parts: tuple[Part, ...]
    computing: float
    core_share: float
    held_up: float
    at_once: tuple[float, ...]
    example: Pair
    locks: tuple[LockShare, ...] = ()
    timing_cost: float | None = None
    waits: TimedRun | None = None

    @property
    def longest(self) -> Part:
        """The task that takes longest, alone."""
        return max(self.parts, key=lambda part: part.alone)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law of scalability, fitted to the points that the machine did not limit.

    Attributes:
        law: `Amdahl` (1967): N/(1+s(N-1)), s the serial share; `USL` (Gunther 1993):
            N/(1+a(N-1)+bN(N-1)), a contention, b coherency.
        parameters: the names and estimates of s, or of a and b.
        threads: the numbers of threads that it was fitted to, besides 1.
        speedups: what it says, by number of threads; beyond those it is extrapolated.
    """

    law: Literal["Amdahl", "USL"]
    parameters: tuple[tuple[str, Estimate], ...]
    threads: tuple[int, ...]
    speedups: tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How well tasks run in parallel, and what holds them back. `str(scaling)` is the report.

    Attributes:
        verdict: FAILED if a claim does not hold, INCONCLUSIVE if that cannot be told here and now.
        claims: what was asked, at the largest number of threads.
        points: by number of threads, ascending.
        remarks: what holds them back, in sentences, the most important first.
        fits: the laws that could be fitted.
        measurement: the raw samples.
        text: the report.
    """

    verdict: Verdict
    claims: tuple[Claim, ...]
    points: tuple[Point, ...]
    remarks: tuple[str, ...]
    fits: tuple[Fit, ...]
    measurement: Measurement
    text: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    @property
    def speedup(self) -> Estimate:
        """At the largest number of threads."""
        return self.points[-1].speedup

    def raise_for_verdict(self) -> None:
        """Raise `ThreadSafetyError`, whose message is the report, if the verdict is FAILED.

        Not if it is INCONCLUSIVE: a busy machine says nothing about the code.
        """
        __tracebackhide__ = True
        if self.verdict is Verdict.FAILED:
            raise ThreadSafetyError(self)
