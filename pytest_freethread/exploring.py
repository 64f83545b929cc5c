"""The search for a schedule that fails: explore, shrink, confirm, replay.

One exploration runs the same bodies under one schedule after another until one fails, the strategy
has nothing left, or the budget is spent. A failing schedule is shrunk to the fewest switches that
still show the failure, run again and again to see that it is reproducible, and recorded.
"""

from __future__ import annotations

import itertools
import linecache
import math
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_freethread import interpreter
from pytest_freethread.detectors import interleavings, suppression
from pytest_freethread.detectors.interleavings import Schedule, Symptom, naming
from pytest_freethread.execution import scope, stacks
from pytest_freethread.execution.controlled import Controlled
from pytest_freethread.instrument import swap
from pytest_freethread.instrument.probes import SITES
from pytest_freethread.records import Failure, Interleaving
from pytest_freethread.scheduling import DFS, Diverged, Replay, decode, encode
from pytest_freethread.scheduling.course import Course
from pytest_freethread.suspecting import CONFIRMATIONS, REPEATABLE, Suspicions

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import CodeType, ModuleType
    from typing import Self

    from pytest_freethread.execution.kernel import Chooser, Hear
    from pytest_freethread.records import ControlledExecution, Event, Finding, Phase
    from pytest_freethread.scheduling import Pending, Scheduler, Turns
    from pytest_freethread.suspecting import Attempt, Choices, Run

    Cleanup = Callable[[frozenset[int]], Iterable[tuple[Phase, int | None, BaseException]]]
    Judge = Callable[[ControlledExecution, Sequence[Failure]], Symptom | None]
    Watch = Callable[[Sequence[int], Sequence[Pending | None]], None]

_SHRINKING = (1.0, 1_000)
"""Seconds and runs that each part of shrinking may take, whichever is over first."""

_OUTLIVES = (
    "But so does the schedule that passed at first: something outlives an execution, such as a "
    "global that is not made anew"
)

_STEPS = 20_000
"""Steps after which an execution counts as a livelock, if the bodies alone take fewer."""

_MOST_STEPS = REPEATABLE
"""Steps that bodies which are run one after the other may take, to be run in other orders too.

Whether they are in a livelock, or just long, is looked at from here on.
"""

_ROUNDS = 61
"""Steps of each thread in a livelock that are shown: those of a turn, while all spin."""

_DEADLINE = 30.0
"""Seconds of real time after which a thread that does not come back is given up, where unsaid."""

_PASSED = "How the threads took turns"

Runs = tuple[tuple[int, int], ...]
"""A schedule: (thread, steps) in turn."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is explored: bodies on fresh state, and what must hold in the end.

    Attributes:
        bodies: one for each thread; they get what `setup` returned, if there is a `setup`.
        setup: makes the state of an execution.
        invariant: asked when all bodies have ended.
        cleanup: called in the end, whatever happened, with the threads that failed; what it
            yields are failures too.
        include: modules and packages that get probes besides those of the functions here.
        signals: exceptions that end an execution and are no failures, such as a test's skip.
        interrupts: exceptions of bodies that end everything.
        root: of the project, below which all modules get probes; None: the working directory.
        ends: whether the bodies are known to end when they run one after the other, so that they
            are long, and not a livelock, if they do not even then.
        judge: says what went wrong in an execution that has just ended, if anything did.
        watch: told before each choice who can go on, and what each thread will do next; in the
            thread that announced something, under control.
    """

    bodies: tuple[Callable[..., object], ...]
    setup: Callable[[], object] | None
    invariant: Callable[..., object] | None
    cleanup: Cleanup | None = None
    include: tuple[str, ...] = ()
    signals: tuple[type[BaseException], ...] = ()
    interrupts: tuple[type[BaseException], ...] = ()
    root: Path | None = None
    ends: bool = False
    judge: Judge = interleavings.symptom
    watch: Watch | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """How the bodies are called."""
        return tuple(getattr(scope.unwrapped(b), "__qualname__", repr(b)) for b in self.bodies)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search came to.

    Attributes:
        failure: the first one, if there was one.
        suspected: what judges found in the executions, errors first.
        suppressed: by what said so, how many of these were called benign and are left out.
        schedules: how many executions there were; of an exhaustive search, those that it needed
            once it was known what is shared.
        steps: how many steps they had together.
        exhaustive: whether every interleaving was tried, up to equivalence.
        late: whether that is so but for short timeouts, which might have been over earlier.
        signals: the executions' signals, one for each thread that raised one.
        left_out: functions without probes, as (name, reason).
        outside: whether a thread was out of control for a while, in real blocking.
        finalized: whether finalizers ran where the interpreter came to them, beyond control.
        diverged: how many schedules could not be followed: the program goes another way each time.
        too_long: why it ended with the execution in which whoever ran went on, if that had more
            steps than are allowed.
        guarantee: what the strategy promises of the schedules that it tried, if it does.
        preparing: how many seconds it took to put the probes in; no part of the budget.
    """

    failure: Finding | None
    suspected: tuple[Finding, ...]
    suppressed: Mapping[str, int]
    schedules: int
    steps: int
    exhaustive: bool
    late: bool
    signals: tuple[BaseException, ...]
    left_out: tuple[tuple[str, str], ...]
    outside: bool
    finalized: bool
    diverged: int
    too_long: str | None
    guarantee: str | None
    preparing: float


def search(
    program: Program,
    strategy: str | Scheduler,
    *,
    schedules: int,
    seconds: float | None,
    preemptions: int | None,
    seed: int,
    races: str,
    benign: Sequence[str],
    deadline: float,
    first: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    on: Stage | Controlled | None = None,
    thorough: bool = True,
) -> Search:
    """Run schedules until one fails, none is left, or the budget is spent.

    Args:
        program: what to run.
        strategy: the name of one, or a scheduler.
        schedules: how many to try at most.
        seconds: for how long, at most, from when the probes are in.
        preemptions: how many a schedule may have; None for any number.
        seed: where randomness starts.
        races: whether a race is an `error`, a `note`, or not looked for (`off`).
        benign: patterns of what judges find and nobody wants to hear of.
        deadline: seconds after which a thread that does not come back is given up.
        first: tokens of schedules to try before all others; what cannot be followed is passed over.
        progress: called now and then with the number of schedules.
        on: where to run it, for who searches many programs; by itself the program's modules get
            their probes now, and lose them in the end.
        thorough: whether what fails is shrunk, and run so often that there is no doubt; otherwise
            it is as it was found, for who does that later.

    Raises:
        SettingError: there is no such strategy, or a module to include is not to be had.
    """
    course = Course(strategy, seed=seed, preemptions=preemptions)
    called = interpreter.monotonic()
    with _explorer(
        program, learn=course.learns, deadline=deadline, on=on, seconds=seconds
    ) as explorer:
        explorer.thorough = thorough
        began = interpreter.monotonic()
        steps = steered = 0
        timed = finalized = False
        suspicions = _suspicions(program, races)

        def over() -> bool:
            return seconds is not None and interpreter.monotonic() - began >= seconds

        def report(symptom: Symptom, execution: ControlledExecution, by: str) -> Finding:
            found = course.tried + steered, by, interpreter.monotonic() - began
            return explorer.report(symptom, execution, found)

        finding = next(filter(None, (explorer.retry(decode(token)) for token in first)), None)
        if finding is not None:
            course.count = 1
        while finding is None and course.tried < schedules and not (course.count and over()):
            if explorer.only_alone or not course.begin(timed=timed):
                break
            choose, stays = course.scheduler.choose, course.stays
            try:
                execution = explorer.run(
                    choose if course.learns else explorer.controlled.apart(choose),
                    max_steps=_MOST_STEPS if stays and explorer.alone is None else None,
                    until=explorer.until if stays and explorer.alone is None else None,
                    early_timeouts=course.early_timeouts,
                    stays=stays,
                    hear=None if suspicions is None else suspicions.hear,
                )
                course.scheduler.end()
            except Diverged:
                if course.diverge():
                    continue
                break
            course.count += 1
            steps += execution.steps
            timed = timed or execution.timed
            finalized = finalized or execution.finalized
            if progress is not None:
                progress(course.tried)
            if explorer.alone is None and (stays or execution.outcome == "livelock"):
                explorer.measure(execution if stays else None)
                if explorer.only_alone and (not stays or execution.outcome == "livelock"):
                    break
                if not stays and explorer.max_steps > _STEPS:
                    course.count -= 1  # it was cut short, and tells nothing
                    course.start_over()
                    continue
            if suspicions is not None:
                suspicions.consider(execution)
            symptom = explorer.symptom(execution)
            if symptom is not None:
                finding = report(symptom, execution, course.by)
                continue
            if explorer.passed is None:
                explorer.passed = _runs(execution)
            if execution.widened and course.learns and not course.late:
                course.start_over()  # more is shared than was known: there is more to choose
                finalized = False
        beyond = explorer.outside or finalized or course.diverged
        complete = course.exhausted and preemptions is None and not beyond
        if finding is None and suspicions is not None and not complete:
            for execution in suspicions.steered(explorer):
                steered += 1
                symptom = explorer.symptom(execution)
                if symptom is not None:
                    finding = report(symptom, execution, "steering")
                    break
        suspected = [] if suspicions is None else suspicions.findings(explorer, _lines(finding))
        wanted, suppressed = suppression.without_benign(
            suspected,
            benign if suspicions is not None else (),
            linecache.getline,
            reached=explorer.reached() if suspicions is not None and finding is None else (),
        )
    unprobed = {name for name, _ in explorer.left_out}
    blind = any(scope.path(body) in unprobed for body in program.bodies)
    complete = complete and bool(steps) and not blind
    return Search(
        failure=finding,
        suspected=tuple(wanted),
        suppressed=suppressed,
        schedules=course.count if course.exhausted else course.tried + steered,
        steps=steps,
        exhaustive=complete and not timed,
        late=complete and timed,
        signals=tuple(explorer.signals),
        left_out=explorer.left_out,
        outside=explorer.outside,
        finalized=finalized,
        diverged=course.diverged,
        too_long=explorer.too_long(course.tried < schedules),
        guarantee=getattr(course.scheduler, "guarantee", None),
        preparing=began - called,
    )


@dataclass(frozen=True, kw_only=True)
class Performance:
    """One execution on its own.

    Attributes:
        raised: what escaped from a body; None where nothing did.
        standstill: whether the threads came to no end.
        finding: what went wrong or, where nothing did, how the threads took turns; None if neither
            that was to be recorded nor they came to a standstill.
        switches: from which places in the code threads were switched to which others, as the number
            of distinct pairs.
    """

    raised: BaseException | None
    standstill: bool
    finding: Finding | None
    switches: int


def perform(
    program: Program, scheduler: Turns | Replay, *, record: bool, stage: Stage | None
) -> Performance:
    """Run one execution, whatever comes of it.

    Args:
        program: what to run.
        scheduler: who goes on; it has one execution.
        record: whether to keep the steps.
        stage: where to; None: on one of its own.
    """
    replayed = isinstance(scheduler, Replay)
    with _explorer(program, learn=False, deadline=_DEADLINE, on=stage) as explorer:
        explorer.max_steps = _MOST_STEPS  # its state cannot be made again, to see it alone
        execution = explorer.run(
            scheduler.choose,
            early_timeouts=sys.maxsize if replayed else 0,
            record=record,
            followed=sys.maxsize if replayed else 0,
        )
        symptom = explorer.symptom(execution)
        failure = None if symptom is None else symptom.failure
        standstill = symptom is not None and failure is None
        finding = None
        if record or standstill:
            seen = symptom or Symptom(kind="invariant", message=_PASSED, failure=None)
            finding = _of_a_drawn_schedule(
                explorer.finding(seen, execution, (1, "drawn", 0.0), (1, 1)), standstill=standstill
            )
    rejected = next(iter(explorer.signals), None)
    return Performance(
        raised=rejected if failure is None else failure.exception,
        standstill=standstill,
        finding=finding,
        switches=len(set(_switches(execution))),
    )


def _of_a_drawn_schedule(finding: Finding, *, standstill: bool) -> Finding:
    """Without what its test says itself: what failed, if anything did, and how surely."""
    assert isinstance(finding.evidence, Interleaving)
    call = f'@example(schedule=Schedule.from_token("{finding.token}"), ...)'
    return replace(
        finding,
        severity="error" if standstill else "note",
        reproduced=None,
        evidence=replace(finding.evidence, failure=None, broken=None, call=call),
    )


def _switches(execution: ControlledExecution) -> Iterator[tuple[int, int]]:
    """The site that one thread stopped at, and the one that the next went on from, in turn."""
    stopped: dict[int, int] = {}
    last: int | None = None
    for thread, _, site in execution.schedule:
        if last is not None:
            yield last, stopped.get(thread, -1)
        stopped[thread] = last = site


def follow(
    program: Program, token: str, *, races: str, deadline: float, stage: Stage | None = None
) -> tuple[tuple[Finding, ...], str | None]:
    """Run the schedule of a token.

    Args:
        program: what to run.
        token: of the schedule.
        races: whether a race is an `error`, a `note`, or not looked for (`off`).
        deadline: seconds after which a thread that does not come back is given up.
        stage: where to run it; None: on one of its own.

    Returns:
        What it shows, and how it diverged from what the token says, if it did.
    """
    choices = decode(token)
    suspected: list[Finding] = []
    with _explorer(program, learn=False, deadline=deadline, on=stage) as explorer:
        try:
            # What is shared by way of a computed name is known only once it was stored.
            with suppress(Diverged):
                explorer.replay(choices)
            execution = explorer.replay(choices, record=True)
        except Diverged as drift:
            return (), str(drift)
        symptom = explorer.symptom(execution)
        failure = None
        if symptom is not None:
            failure = explorer.finding(symptom, execution, (1, "replay", 0.0), (1, 1))
        suspicions = _suspicions(program, races)
        if suspicions is not None:
            suspected = suspicions.shown_by(choices, explorer, _lines(failure))
    return (*([] if failure is None else [failure]), *suspected), None


@dataclass(kw_only=True)
class _Explorer:
    """Runs a program's schedules; whatever passes by on the way is counted here.

    Attributes:
        alone: how many steps the bodies take where whoever runs goes on for as long as it can; None
            as long as nobody has tried.
        max_steps: of an execution; with more it is a livelock.
        until: how long the bodies may go on one after the other, by the clock.
        unended: where threads were then, or by then, if they were not at their end.
        only_alone: whether that takes so many steps that nothing else is tried.
        passed: the first schedule that went well.
    """

    program: Program
    controlled: Controlled
    learn: bool
    left_out: tuple[tuple[str, str], ...]
    until: float
    alone: int | None = None
    max_steps: int = _STEPS
    unended: str | None = None
    only_alone: bool = False
    thorough: bool = True
    outside: bool = False
    passed: Runs | None = None
    signals: list[BaseException] = field(default_factory=list)

    def run(
        self,
        choose: Callable[..., int],
        *,
        max_steps: int | None = None,
        until: float | None = None,
        early_timeouts: int = sys.maxsize,
        record: bool = False,
        followed: int = 0,
        stays: bool = False,
        hear: Hear | None = None,
        watched: Container[int] = (),
    ) -> ControlledExecution:
        program = self.program
        execution = self.controlled.run(
            program.bodies,
            choose if program.watch is None else _watched(choose, program.watch),
            setup=program.setup,
            invariant=program.invariant,
            cleanup=program.cleanup,
            max_steps=max_steps or self.max_steps,
            until=until,
            early_timeouts=early_timeouts,
            record=record,
            followed=followed,
            stays=stays and program.watch is None,
            hear=hear,
            watched=watched,
        )
        self.outside = self.outside or bool(execution.outside)
        return execution

    def measure(self, alone: ControlledExecution | None) -> None:
        """Learn how long the bodies are: a livelock is what takes a multiple of that.

        Args:
            alone: an execution in which whoever ran went on; None: there was none.
        """
        execution = alone or self.replay([], max_steps=_MOST_STEPS, until=self.until)
        self.alone = execution.steps
        livelock = execution.outcome == "livelock"
        if execution.outcome == "too-long" or (livelock and self.program.ends):
            self.unended = ", ".join(
                f"thread {each.thread} was at {naming.short(each.stack[-1])}"
                for each in execution.waiting
                if each.stack
            )
        self.only_alone = self.alone >= _MOST_STEPS and (self.unended is not None or not livelock)
        if self.only_alone:
            self.max_steps = _MOST_STEPS
        elif not livelock:
            self.max_steps = max(_STEPS, 4 * self.alone)

    def too_long(self, more: bool) -> str | None:
        """Why there is no more than the execution in which whoever ran went on, if so.

        Args:
            more: whether more was wanted.
        """
        if self.unended is not None:
            came = f"the threads, one after the other, came to no end in {self.alone:,} steps"
            return f"{came}: {self.unended}"
        if self.only_alone and more:
            return f"one execution has {self.alone:,} steps, too many for others to be tried"
        return None

    def reached(self) -> set[tuple[str, int]]:
        """The files and lines that threads came to."""
        return {(SITES[site].file, SITES[site].line) for site in self.controlled.reached}

    def symptom(self, execution: ControlledExecution) -> Symptom | None:
        failures = []
        for phase, thread, error in execution.thrown:
            if isinstance(error, self.program.interrupts):
                raise error
            if isinstance(error, self.program.signals):
                self.signals.append(error)
            else:
                error.__traceback__ = stacks.without_our_frames(error.__traceback__)
                text = stacks.text_of(error)
                failures.append(
                    Failure(exception=error, phase=phase, thread=thread, round=0, text=text)
                )
        return self.program.judge(execution, failures)

    def replay(
        self,
        choices: Sequence[int],
        *,
        strict: bool = True,
        max_steps: int | None = None,
        until: float | None = None,
        record: bool = False,
        hear: Hear | None = None,
        watched: Container[int] = (),
    ) -> ControlledExecution:
        replay = Replay(choices, strict=strict)
        replay.begin()
        execution = self.run(
            replay.choose,
            # A schedule that was made here is all of an execution, however long.
            max_steps=max_steps or max(self.max_steps, len(choices) + 1),
            until=until,
            record=record,
            followed=len(choices),
            stays=replay.stays(),
            hear=hear,
            watched=watched,
        )
        replay.end()
        return execution

    def follow(
        self,
        choices: Sequence[int],
        *,
        record: bool = False,
        hear: Hear | None = None,
        watched: Container[int] = (),
    ) -> ControlledExecution | None:
        """See `suspecting.Follower`."""
        self.controlled.choose_everywhere(True)
        try:
            return self.replay(choices, record=record, hear=hear, watched=watched)
        except Diverged:
            return None
        finally:
            self.controlled.choose_everywhere(not self.learn)

    def in_order(self, order: Sequence[int]) -> ControlledExecution:
        """See `suspecting.Follower`; whoever was started by them comes last."""

        def choose(
            enabled: Sequence[int], current: int | None, _pending: Sequence[Pending | None]
        ) -> int:
            if current is not None and current in enabled:
                return current
            return next((each for each in order if each in enabled), enabled[0])

        self.controlled.choose_everywhere(True)
        try:
            return self.run(choose, early_timeouts=0, record=True)
        finally:
            self.controlled.choose_everywhere(not self.learn)

    def again(
        self,
        choices: Sequence[int],
        symptom: Symptom,
        *,
        record: bool,
        max_steps: int | None = None,
    ) -> ControlledExecution | None:
        """The schedule's execution, if it can be followed and shows the same symptom."""
        try:
            execution = self.replay(choices, record=record, max_steps=max_steps)
        except Diverged:
            return None
        seen = self.symptom(execution)
        return execution if seen is not None and seen.key == symptom.key else None

    def retry(self, choices: Sequence[int]) -> Finding | None:
        """What a schedule of a former exploration shows, if it still does."""
        self.controlled.choose_everywhere(True)
        execution = self.replay(choices, strict=False)
        symptom = self.symptom(execution)
        if symptom is None:
            self.controlled.choose_everywhere(False)
            return None
        return self.report(symptom, execution, (1, "a kept schedule", 0.0))

    def report(
        self, symptom: Symptom, execution: ControlledExecution, found: tuple[int, str, float]
    ) -> Finding:
        """Shrink a failing schedule, confirm it, and record it."""
        if not self.thorough:
            return self.finding(symptom, execution, found, (1, 1))
        if self.only_alone:
            # Heard, it does not depend on what was known to be shared, as the first one may have.
            one, other = (
                self.replay([], max_steps=_MOST_STEPS, until=math.inf, hear=_ignore)
                for _ in range(2)
            )
            keys = [seen.key for seen in map(self.symptom, (one, other)) if seen is not None]
            same = keys == [symptom.key] * 2 and one.schedule == other.schedule
            return self.finding(symptom, one if same else execution, found, (int(same), 1))
        # Under the same probes as any replay: others would count the steps in another way.
        self.controlled.choose_everywhere(True)
        if self.passed is not None and self.again(_expanded(self.passed), symptom, record=False):
            # A schedule that passed fails now: it is not the order of the steps that decides.
            said = f"{symptom.message}. {_OUTLIVES}"
            return self.finding(replace(symptom, message=said), execution, found, (0, 1))
        choices = self.shrunk(execution, self._same(symptom))
        self.controlled.choose_everywhere(True)
        most = None
        if symptom.kind == "livelock":
            most = len(choices) + _ROUNDS * (len(self.program.bodies) + 1)
        # What the last try of the shrinking left in caches is not what the schedule finds there.
        recorded = self.again(choices, symptom, record=True, max_steps=most)
        confirmed = sum(
            self.again(choices, symptom, record=False) is not None for _ in range(CONFIRMATIONS)
        )
        again = recorded or self.again(choices, symptom, record=True, max_steps=most)
        recorded = again or execution
        symptom = self.symptom(recorded) or symptom
        return self.finding(symptom, recorded, found, (confirmed, CONFIRMATIONS))

    def finding(
        self,
        symptom: Symptom,
        execution: ControlledExecution,
        found: tuple[int, str, float],
        reproduced: tuple[int, int],
    ) -> Finding:
        schedule = Schedule(
            token=encode(execution.decisive),
            names=self.program.names,
            found=found,
            reproduced=reproduced,
        )
        return interleavings.finding(symptom, execution, schedule)

    def _same(self, symptom: Symptom) -> Attempt:
        def attempt(run: Run) -> bool:
            seen = self.symptom(run())
            return seen is not None and seen.key == symptom.key

        return attempt

    def shrunk(self, execution: ControlledExecution, attempt: Attempt) -> Choices:
        """A schedule with few switches that shows the same.

        The fewest preemptions are found by trying all schedules without any, then all with one, …
        (iterative context bounding, Musuvathi & Qadeer 2007), as long as that does not take long.

        Args:
            execution: one that shows it.
            attempt: is given what runs a schedule, with judges who hear it; says whether the
                execution shows it.
        """
        fewest = self._fewest_preemptions(attempt)
        runs = _runs(execution) if fewest is None else fewest
        self.controlled.choose_everywhere(True)
        try:
            return tuple(_expanded(self._with_fewer_switches(attempt, runs)))
        finally:
            self.controlled.choose_everywhere(not self.learn)

    def _fewest_preemptions(self, attempt: Attempt) -> Runs | None:
        seconds, tries = _SHRINKING
        allowance = interpreter.Allowance(seconds)
        search = DFS()
        self.controlled.choose_everywhere(False)
        last: list[ControlledExecution] = []

        def run(*, hear: Hear | None = None, record: bool = False) -> ControlledExecution:
            self.controlled.choose_everywhere(record)  # else quiet steps are not kept
            last[:] = [self.run(search.choose, early_timeouts=0, hear=hear, record=record)]
            search.end()
            return last[0]

        with suppress(Diverged):
            while tries and not allowance.spent() and search.begin():
                tries -= 1
                if attempt(run):
                    return _runs(last[0])
        return None

    def _with_fewer_switches(self, attempt: Attempt, runs: Runs) -> Runs:
        """The same with one switch less, again and again, as long as it shows the same.

        A thread goes on with its next turn at once, or the schedule ends earlier. Whatever cannot
        be followed is passed over, so each try is a schedule.
        """
        seconds, tries = _SHRINKING
        allowance = interpreter.Allowance(seconds)

        def shows(candidate: Runs) -> Runs | None:
            last: list[ControlledExecution] = []

            def run(*, hear: Hear | None = None, record: bool = False) -> ControlledExecution:
                choices = _expanded(candidate)
                last[:] = [self.replay(choices, strict=False, hear=hear, record=record)]
                return last[0]

            return _runs(last[0]) if attempt(run) else None

        best = shows(runs) or runs
        improved = True
        while improved:
            improved = False
            for candidate in _smaller(best):
                tries -= 1
                if tries < 0 or allowance.spent():
                    return best
                actual = shows(candidate)
                if actual is not None and _size(actual) < _size(best):
                    best, improved = actual, True
                    break
        return best


_exploring = interpreter.Lock()
"""Held by the one exploration that is under way."""

_set_stage: Stage | None = None
"""The stage that was set last; there is room for one in a process."""


class Stage:
    """What executions need in place, set up for the first of them and left there for the next.

    To put the probes in and take them out again takes tens of milliseconds, an execution often less
    than one: whoever explores many small programs in a row does so on one stage. In between,
    everybody else goes on undisturbed, but for the garbage collector, which is off.
    """

    def __init__(self) -> None:
        self._exits = ExitStack()
        self._controlled: Controlled | None = None
        self._about: object = None
        self._modules: dict[ModuleType, None] = {}
        self._bare: set[CodeType] = set()  # code that cannot have probes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Put everything back as it was."""
        self._controlled = None
        self._modules = {}
        self._bare = set()
        self._exits.close()

    def set_for(self, program: Program, *, deadline: float) -> Controlled:
        """Have everything in place for a program.

        Args:
            program: what will be run.
            deadline: of a stage that is not set yet; see `Controlled`.
        """
        controlled = self._controlled
        about = interpreter.get_ident(), len(sys.modules), program.root, program.include
        global _set_stage  # noqa: PLW0603 - see there
        if (
            controlled is None
            or self._about != about
            # Made by code that began before the stage was set.
            or not _without_probes(program) <= self._bare
        ):
            known = _modules(_functions(program), program.include, program.root)
            modules = {**dict.fromkeys(known), **self._modules}
            self.clear()
            if _set_stage is not None:
                _set_stage.clear()  # it is idle, and its test can set it again
            _set_stage = self
            controlled = self._exits.enter_context(_over(modules, deadline))
            self._controlled = controlled
            self._about = about
            self._modules = modules
            self._bare = _without_probes(program)
        return controlled


@contextmanager
def _explorer(
    program: Program,
    *,
    learn: bool,
    deadline: float,
    on: Stage | Controlled | None,
    seconds: float | None = None,
) -> Iterator[_Explorer]:
    if not _exploring.acquire(blocking=False):
        raise RuntimeError("a controlled run is under way already, and there can be one only")
    with ExitStack() as exits:
        exits.callback(_exploring.release)
        if on is None:
            on = exits.enter_context(Stage())
        place = on.set_for(program, deadline=deadline) if isinstance(on, Stage) else on
        place.choose_everywhere(not learn)
        yield _Explorer(
            program=program,
            controlled=place,
            learn=learn,
            left_out=place.coverage.left_out,
            until=interpreter.monotonic() + (deadline if seconds is None else seconds),
        )


def _watched(choose: Chooser, watch: Watch) -> Chooser:
    def choose_watched(
        ready: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        watch(ready, pending)
        return choose(ready, current, pending)

    return choose_watched


def _suspicions(program: Program, races: str) -> Suspicions | None:
    return None if races == "off" else Suspicions(program.names, strict=races == "error")


def _lines(finding: Finding | None) -> set[tuple[str, int]]:
    """The lines that a failure comes from, where that can be said."""
    evidence = None if finding is None else finding.evidence
    if not isinstance(evidence, Interleaving) or evidence.violation is None:
        return set()
    broken = evidence.violation
    places = (evidence.moves[index].place for index in (broken.look, broken.change, broken.act))
    return {(place.file, place.line) for place in places if place is not None}


def _smaller(runs: Runs) -> Iterator[Runs]:
    for length in range(len(runs)):
        yield runs[:length]
    for index, (thread, steps) in enumerate(runs):
        for later in range(index + 1, len(runs)):
            if runs[later][0] == thread:
                merged = (thread, steps + runs[later][1])
                yield (*runs[:index], merged, *runs[index + 1 : later], *runs[later + 1 :])
                break
        if index:
            yield (*runs[:index], *runs[index + 1 :])


def _size(runs: Runs) -> tuple[int, int]:
    return len(runs), sum(steps for _, steps in runs)


def _ignore(_: list[Event]) -> None:
    pass


def _runs(execution: ControlledExecution) -> Runs:
    turns = [(thread, steps) for thread, steps, _ in execution.schedule]
    if execution.outcome == "livelock":
        turns = [(thread, 1) for thread in execution.decisive]
    return tuple(
        (thread, sum(steps for _, steps in group))
        for thread, group in itertools.groupby(turns, key=lambda turn: turn[0])
    )


def _expanded(runs: Runs) -> list[int]:
    return [thread for thread, steps in runs for _ in range(steps)]


# --- what gets probes -----------------------------------------------------------------------------


def controlled(
    functions: Iterable[object],
    *,
    include: Sequence[str] = (),
    root: Path | None = None,
    deadline: float,
) -> Controlled:
    """Where programs run: a context in which the modules that concern them have probes.

    Args:
        functions: their modules get probes, as do all below the project's root.
        include: modules and packages that get some besides.
        root: of the project; None: the working directory.
        deadline: seconds after which a thread that does not come back is given up.

    Raises:
        SettingError: a module to include is not to be had.
    """
    return _over(_modules(functions, include, root), deadline)


def _functions(program: Program) -> list[object]:
    return [each for each in (*program.bodies, program.setup, program.invariant) if each]


def _modules(
    functions: Iterable[object], include: Sequence[str], root: Path | None
) -> Iterable[ModuleType]:
    """The functions' modules, those below the project's root, and what is to be included."""
    chosen = scope.own(functions, root)
    chosen |= scope.loaded(scope.STATEFUL_LIBRARY)
    chosen |= scope.included(include)
    return chosen.values()


def _over(modules: Iterable[ModuleType], deadline: float) -> Controlled:
    return Controlled(
        modules, core=interpreter.own_core(), patience=min(1.0, deadline), deadline=deadline
    )


def _without_probes(program: Program) -> set[CodeType]:
    """The code of those bodies that have no probes in."""
    codes = (getattr(scope.unwrapped(body), "__code__", None) for body in program.bodies)
    return {code for code in codes if code is not None and not swap.has_probes(code)}
