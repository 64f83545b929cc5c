"""The loop: plan → execution → judges → result; the only place where all parts meet."""

from __future__ import annotations

import itertools
import linecache
import re
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytest_freethread import interpreter, settings
from pytest_freethread.detectors import deadlocks, leaks, outcomes, suppression
from pytest_freethread.errors import SettingError
from pytest_freethread.execution import free
from pytest_freethread.execution.leaks import ThreadWatch, is_ours
from pytest_freethread.records import Execution, Result, Scaling, Verdict
from pytest_freethread.report import text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_freethread import exploring
    from pytest_freethread.execution.noise import Noise
    from pytest_freethread.recorded import RecordedRounds
    from pytest_freethread.records import (
        ExplorationPlan,
        Fit,
        Measurement,
        ParallelPlan,
        Phase,
        Plan,
    )
    from pytest_freethread.scheduling import Replay, Scheduler, Turns


def stress(
    *bodies: Callable[..., object],
    setup: Callable[[], object] | None = None,
    invariant: Callable[[Any], object] | None = None,
    threads: int | None = None,
    rounds: int = 100,
    seconds: float | None = None,
    noise: bool = True,
    seed: int | None = None,
    races: str = "off",
    benign: Sequence[str] = (),
    deadline: float = 30.0,
) -> Result:
    """Run bodies at once in real threads, over and over, each time on fresh state.

    Args:
        bodies: run in one thread each; one body alone runs in every thread, several are dealt out
            in turn where there are more threads. Each gets the state that `setup` made, or no
            argument where there is no `setup`. An exception that escapes from one is a finding.
        setup: makes the state of a round, on the calling thread.
        invariant: given the state when all bodies of a round have ended; False or an
            AssertionError is a finding.
        threads: how many; by default one for each body, and for a single body `auto`: one for
            each core, at least 8.
        rounds: how often; fewer if `seconds` are over before.
        seconds: a budget for all rounds.
        noise: stagger the threads' starts at random, so that each round aligns them differently;
            and in some of the rounds have them pause now and then where they share something.
        seed: for the noise. A free run is not replayable all the same.
        races: what accesses are which nothing puts in order, as some of the rounds are recorded to
            tell. `error`: they fail, once both threads were seen before them at the same moment;
            `note`: they are shown; `off`: nobody looks.
        benign: patterns of what judges find and nobody wants to hear of; see `explore`.
        deadline: seconds after which threads that do not come back are a finding.

    Raises:
        SettingError: an argument means nothing.
    """
    if not bodies:
        raise SettingError("stress(): there is nothing to run (give at least one body)")
    if threads is None:
        wanted: object = settings.AUTO if len(bodies) == 1 else len(bodies)
    else:
        wanted = threads
    given = {
        "threads": wanted,
        "rounds": rounds,
        "seconds": seconds,
        "noise": noise,
        "seed": seed,
        "races": races,
        "benign": benign,
        "deadline": deadline,
    }
    plan = settings.plan({k: (v, f"stress({k}={v!r})") for k, v in given.items()})
    if plan.threads < len(bodies):
        raise SettingError(
            f"stress(threads={threads!r}): there are {len(bodies)} bodies; each needs a thread"
        )
    state: Any = None

    def begin(_round: int) -> Sequence[Callable[[], object]]:
        nonlocal state
        dealt = itertools.islice(itertools.cycle(bodies), plan.threads)
        if setup is None:
            return list(dealt)
        state = setup()
        return [_bound(body, state) for body in dealt]

    def end(
        _round: int, _failed: frozenset[int]
    ) -> Iterator[tuple[Phase, int | None, BaseException]]:
        if invariant is None:
            return
        try:
            holds = invariant(state) if setup is not None else invariant()  # type: ignore[call-arg]
            if holds is False:
                raise AssertionError("it returned False")
        except Exception as error:
            yield "invariant", None, error

    watch = ThreadWatch()
    try:
        given_functions = (*bodies, *(each for each in (setup, invariant) if each is not None))
        workload = free.Workload(begin=begin, end=end, subjects=given_functions)
        _, result = run(plan, workload, watch, exact=True)
    finally:
        watch.stop()
    return result


def explore(
    *bodies: Callable[..., object],
    setup: Callable[[], object] | None = None,
    invariant: Callable[..., object] | None = None,
    threads: int | None = None,
    strategy: str | Scheduler = "auto",
    schedules: int = 1000,
    seconds: float | None = 10.0,
    preemptions: int | None = None,
    seed: int | None = None,
    races: str = "note",
    benign: Sequence[str] = (),
    include: Sequence[str] = (),
    deadline: float = 30.0,
) -> Result:
    """Run bodies under one schedule after another, one thread at a time, until one fails.

    Every step at which threads can meet is decided by the strategy, so a failure is shrunk to its
    fewest switches, run again and again, and comes with a token that replays it.

    Args:
        bodies: run in one thread each, as for `stress`; a single one alone in two threads.
        setup: makes the state of an execution.
        invariant: given the state in the end; False or an AssertionError is a finding.
        threads: how many; by default one for each body, and two for a single one.
        strategy: `auto` (a portfolio), `random`, `pct`, `pos`, `surw`, `dfs`, `dpor`, or a
            `Scheduler` of your own.
        schedules: how many to try at most.
        seconds: a budget for the search, from when the probes are in.
        preemptions: how many switches away from a thread that could go on a schedule may have;
            None: any number. A search with a bound is never exhaustive.
        seed: where randomness starts; the same seed gives the same schedules. 0 unless told.
        races: what the judges of all executions find, without anything having failed: data races
            and torn updates. `error`: they fail; `note`: they are shown; `off`: nobody looks.
        benign: patterns of what judges find and nobody wants to hear of, `[KIND:]GLOB`: such as
            `race:Stats.total` or `legacy/*.py`. `# freethread: benign` on a line says the same.
        include: names of modules and packages that get probes besides the bodies' own modules and
            those below the working directory.
        deadline: seconds of real time after which a thread that does not come back from something
            that is not modelled is left to itself, and the search goes on without it.

    Raises:
        SettingError: an argument means nothing.
    """
    wanted: object = len(bodies) if len(bodies) > 1 else 2
    given = {
        "threads": wanted if threads is None else threads,
        "strategy": strategy,
        "schedules": schedules,
        "seconds": seconds,
        "preemptions": preemptions,
        "seed": 0 if seed is None else seed,
        "races": races,
        "benign": benign,
        "include": include,
        "deadline": deadline,
    }
    plan = settings.exploration({k: (v, f"explore({k}={v!r})") for k, v in given.items()})
    return search(plan, _program("explore", bodies, setup, invariant, threads, include))[1]


def replay(
    token: str,
    *bodies: Callable[..., object],
    setup: Callable[[], object] | None = None,
    invariant: Callable[..., object] | None = None,
    threads: int | None = None,
    races: str = "note",
    include: Sequence[str] = (),
) -> Result:
    """Run the one schedule that a token stands for, with the arguments that `explore` had.

    The verdict is FAILED if it shows a failure, PASSED if it does not, and INCONCLUSIVE if the
    program no longer goes that way; the scope then says at which step it diverged.

    Raises:
        SettingError: an argument means nothing, or the token is none.
    """
    settings.races(races, f"replay(races={races!r})")
    program = _program("replay", bodies, setup, invariant, threads, include)
    return follow(token, program, races=races)


def measure_parallelism(
    *tasks: Callable[..., object],
    setup: Callable[[], object] | None = None,
    threads: int | Sequence[int] | None = None,
    pairs: int = 100,
    seconds: float | None = 3.0,
    locks: bool | None = False,
    pin: bool = False,
    deadline: float = 30.0,
    save: str | os.PathLike[str] | None = None,
) -> Scaling:
    """Measure how much faster tasks are at once than one after another, and why not more.

    Serial and parallel runs alternate in random order, beside a probe that shows what is possible
    here; the speed-up is the median of the pairs, with its bootstrap interval (99 %). The verdict
    is about the plain claim that the total is less than the sum of the parts.

    Args:
        tasks: several, each on a thread of its own; or one, of which every thread runs a copy.
        setup: makes the state of a run, which each task gets; not timed.
        threads: for a single task: how many, or several numbers for a curve; by default one for
            each core, and at least 2.
        pairs: of a serial and a parallel run, at most; fewer once the interval is tight.
        seconds: a budget for all of it; None: no limit but the pairs.
        locks: time the waits for locks too, in parallel runs of their own (True), never (False),
            or only where a claim does not hold (None). Their probes make code slower that calls
            much; the report says by how much.
        pin: tie each thread to a core of its own.
        deadline: seconds after which tasks that do not come back are given up.
        save: a folder for JSON with all samples, and for pictures where matplotlib is installed.

    Raises:
        SettingError: an argument means nothing.
        BaseException: what a task raised.
    """
    given = {
        "threads": threads,
        "pairs": pairs,
        "seconds": seconds,
        "locks": locks,
        "pin": pin,
        "deadline": deadline,
    }
    return _measured("measure_parallelism", given, tasks, setup, save)


def assert_parallel(
    *tasks: Callable[..., object],
    setup: Callable[[], object] | None = None,
    min_speedup: float | None = None,
    min_efficiency: float | None = None,
    max_total: float | None = None,
    threads: int | Sequence[int] | None = None,
    pairs: int = 100,
    seconds: float | None = 3.0,
    locks: bool | None = None,
    pin: bool = False,
    deadline: float = 30.0,
    save: str | os.PathLike[str] | None = None,
) -> Scaling:
    """Assert that tasks run in parallel; see `measure_parallelism` for how that is measured.

    It fails only where the claim is refuted on a machine that could have shown it. Where nothing
    can be told (too noisy, too short, too few cores, the GIL) it returns, and the verdict is
    INCONCLUSIVE. Where nothing is asked, the claim is that the total is less than the sum of the
    parts, by 5 % at least.

    Args:
        tasks: several, each on a thread of its own; or one, of which every thread runs a copy.
        setup: makes the state of a run, which each task gets; not timed.
        min_speedup: the least speed-up.
        min_efficiency: the least share of the speed-up that is possible here, up to 1.
        max_total: the most time that all tasks take at once, in lengths of the longest one alone:
            1.2 is "as long as the longest part, and no more than a fifth longer".
        threads: for a single task: how many; of several numbers the claim is about the largest.
        pairs: see `measure_parallelism`, and for all that follows.
        seconds: a budget.
        locks: by default the waits for locks are timed where a claim does not hold.
        pin: tie each thread to a core of its own.
        deadline: seconds after which tasks that do not come back are given up; that is FAILED.
        save: a folder.

    Raises:
        ThreadSafetyError: the claim does not hold.
        SettingError: an argument means nothing.
        BaseException: what a task raised.
    """
    __tracebackhide__ = True
    given = {
        "threads": threads,
        "pairs": pairs,
        "seconds": seconds,
        "locks": locks,
        "pin": pin,
        "deadline": deadline,
        "min_speedup": min_speedup,
        "min_efficiency": min_efficiency,
        "max_total": max_total,
    }
    scaling = _measured("assert_parallel", given, tasks, setup, save)
    scaling.raise_for_verdict()
    return scaling


def _measured(
    verb: str,
    given: Mapping[str, object],
    tasks: tuple[Callable[..., object], ...],
    setup: Callable[[], object] | None,
    save: str | os.PathLike[str] | None,
) -> Scaling:
    if not tasks:
        raise SettingError(f"{verb}(): there is nothing to run (give at least one task)")
    values = {
        name: (value, f"{verb}({name}={value!r})")
        for name, value in given.items()
        if (name, value) != ("threads", None)
    }
    if len(tasks) > 1:
        if "threads" in values:
            raise SettingError(
                f"{values['threads'][1]}: there are {len(tasks)} tasks, each with its own thread"
            )
        values["threads"] = len(tasks), verb
    plan = settings.parallel(values)

    def begin(threads: int) -> Sequence[Callable[[], object]]:
        dealt = tasks if len(tasks) > 1 else tasks * threads
        if setup is None:
            return dealt
        state = setup()
        return [_bound(task, state) for task in dealt]

    subjects = (*tasks, *([setup] if setup is not None else []))
    names = tuple(getattr(task, "__qualname__", repr(task)) for task in tasks)
    scaling = scale(plan, names, begin, subjects=subjects)
    return scaling if save is None else saved(scaling, Path(save), names[0])


def scale(
    plan: ParallelPlan,
    names: tuple[str, ...],
    begin: Callable[[int], Sequence[Callable[[], object]]],
    *,
    end: Callable[[], object] = lambda: None,
    subjects: tuple[Callable[..., object], ...] = (),
) -> Scaling:
    """Measure by a plan and judge what came of it.

    Args:
        plan: how to, and what is asked.
        names: of the tasks.
        begin: makes fresh state and as many bodies as there are to be threads; not timed.
        end: takes the state down.
        subjects: functions whose modules are looked into for locks.

    Raises:
        BaseException: what a task raised.
    """
    from pytest_freethread.detectors import parallelism, scalability  # noqa: PLC0415 - see above
    from pytest_freethread.execution import parallel  # noqa: PLC0415
    from pytest_freethread.report import scaling as report  # noqa: PLC0415

    def explain(measured: Measurement) -> bool:
        if plan.locks is None:
            judged = parallelism.claims(measured, parallelism.points(measured))
            return parallelism.verdict(measured, judged) is Verdict.FAILED
        return plan.locks

    measured = parallel.measure(
        plan,
        parallel.Workload(names=names, begin=begin, end=end, subjects=subjects),
        tight=parallelism.tight,
        explain=explain,
    )
    points = parallelism.points(measured)
    claims = parallelism.claims(measured, points)
    remarks = parallelism.remarks(measured, points)
    fits: tuple[Fit, ...] = ()
    if len(points) > 1:
        try:
            fits = scalability.fits(points, measured)
        except ImportError:
            remarks = (*remarks, scalability.LACKING)
    scaling = Scaling(
        verdict=parallelism.verdict(measured, claims),
        claims=claims,
        points=points,
        remarks=remarks,
        fits=fits,
        measurement=measured,
        text="",
    )
    return replace(scaling, text=report.render(scaling))


def saved(scaling: Scaling, folder: Path, name: str) -> Scaling:
    """Write JSON and pictures to files of this name, and say so at the end of the report."""
    from pytest_freethread.report import scaling as report  # noqa: PLC0415 - see above

    safe = re.sub(r"[^\w.-]+", "-", name).strip("-")
    files, lacking = report.save(scaling, folder, safe)
    said = [f"  saved: {', '.join(map(str, files))}", *([f"  {lacking}"] if lacking else [])]
    return replace(scaling, text="\n".join([scaling.text, "", *said]))


def search(
    plan: ExplorationPlan,
    program: exploring.Program,
    *,
    first: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    stage: exploring.Stage | None = None,
    thorough: bool = True,
) -> tuple[exploring.Search, Result]:
    """Explore a program and say what that came to.

    Args:
        plan: how to.
        program: what. It has as many bodies as the plan has threads.
        first: tokens of schedules to try before all others.
        progress: called now and then with the number of schedules.
        stage: where to explore; None: on one of its own.
        thorough: whether what fails is shrunk, and confirmed ten times.

    Raises:
        SettingError: a module to include is not to be had.
        BaseException: one of the program's interrupts.
    """
    from pytest_freethread import exploring  # noqa: PLC0415 - a stress run does without all of it

    began = interpreter.monotonic()
    found = exploring.search(
        program,
        cast("str | Scheduler", plan.strategy),
        schedules=plan.schedules,
        seconds=plan.seconds,
        preemptions=plan.preemptions,
        seed=plan.seed,
        races=plan.races,
        benign=plan.benign,
        deadline=plan.deadline,
        first=[token for token in first if is_token(token)],
        progress=progress,
        on=stage,
        thorough=thorough,
    )
    elapsed = interpreter.monotonic() - began
    findings = tuple(each for each in (found.failure, *found.suspected) if each is not None)
    reason = doubt(found)
    if any(finding.severity == "error" for finding in findings):
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.PASSED if reason is None else Verdict.INCONCLUSIVE
    strategy = plan.strategy
    scope = text.exploration_scope(
        strategy=strategy if isinstance(strategy, str) else type(strategy).__name__,
        schedules=found.schedules,
        steps=found.steps,
        seconds=elapsed,
        exhaustive=found.exhaustive,
        late=found.late,
        preemptions=plan.preemptions,
        seed=plan.seed,
        left_out=found.left_out,
        outside=found.outside,
        finalized=found.finalized,
        suppressed=sum(found.suppressed.values()),
        guarantee=found.guarantee,
        preparing=found.preparing,
    )
    if verdict is Verdict.INCONCLUSIVE:
        scope = f"{reason}; {scope}"
    return found, Result(
        verdict=verdict,
        findings=findings,
        executions=found.schedules,
        exhaustive=found.exhaustive,
        seconds=elapsed,
        suppressed=found.suppressed,
        scope=scope,
        text=text.render(verdict, findings, scope),
    )


def perform(
    program: exploring.Program,
    scheduler: Turns | Replay,
    *,
    record: bool,
    stage: exploring.Stage | None,
) -> tuple[exploring.Performance, Result | None]:
    """Run one execution, and say what it shows; see `exploring.perform`.

    Returns:
        What came of it, and its report: None if it is neither recorded nor a standstill.
    """
    from pytest_freethread import exploring  # noqa: PLC0415 - see above

    began = interpreter.monotonic()
    performance = exploring.perform(program, scheduler, record=record, stage=stage)
    finding = performance.finding
    if finding is None:
        return performance, None
    verdict = Verdict.FAILED if performance.standstill else Verdict.PASSED
    return performance, Result(
        verdict=verdict,
        findings=(finding,),
        executions=1,
        exhaustive=False,
        seconds=interpreter.monotonic() - began,
        scope="one drawn schedule",
        text="\n".join(text.block(finding)),
    )


def doubt(found: exploring.Search) -> str | None:
    """Why a search that shows no error does not say that there is none; None if nothing does."""
    if found.failure is not None and found.failure.kind != "partial-control":
        return "what failed did not fail again each time that its schedule was replayed"
    if found.failure is not None or found.outside:
        return "a thread was in real blocking, out of control"
    if found.too_long is not None:
        return found.too_long
    if not found.schedules:
        return "no schedule could be followed"
    return None if found.steps else "no step was seen: nothing that ran has probes"


def follow(
    token: str, program: exploring.Program, *, races: str, stage: exploring.Stage | None = None
) -> Result:
    """Run the one schedule of a token, and say what it shows; see `replay` and `search`.

    Raises:
        SettingError: the token is none, or a module to include is not to be had.
        BaseException: one of the program's interrupts.
    """
    from pytest_freethread import exploring  # noqa: PLC0415 - see above

    began = interpreter.monotonic()
    findings, drift = exploring.follow(program, token, races=races, deadline=30.0, stage=stage)
    scope = f"replay of {token}"
    if drift is not None:
        verdict, scope = Verdict.INCONCLUSIVE, f"{scope} diverged at {drift}"
    else:
        failed = any(finding.severity == "error" for finding in findings)
        verdict = Verdict.FAILED if failed else Verdict.PASSED
    return Result(
        verdict=verdict,
        findings=findings,
        executions=1,
        exhaustive=False,
        seconds=interpreter.monotonic() - began,
        scope=scope,
        text=text.render(verdict, findings, scope),
    )


def is_token(value: str) -> bool:
    """Whether a text is the token of a schedule."""
    from pytest_freethread.scheduling import decode  # noqa: PLC0415 - see above

    try:
        decode(value)
    except SettingError:
        return False
    return True


def _program(
    verb: str,
    bodies: tuple[Callable[..., object], ...],
    setup: Callable[[], object] | None,
    invariant: Callable[..., object] | None,
    threads: int | None,
    include: Sequence[str],
) -> exploring.Program:
    from pytest_freethread import exploring  # noqa: PLC0415 - see above

    if not bodies:
        raise SettingError(f"{verb}(): there is nothing to run (give at least one body)")
    count = len(bodies) if len(bodies) > 1 else 2
    if threads is not None:
        count = settings.threads(threads, f"{verb}(threads={threads!r})")
    if count < len(bodies):
        raise SettingError(
            f"{verb}(threads={threads!r}): there are {len(bodies)} bodies; each needs a thread"
        )
    return exploring.Program(
        bodies=tuple(itertools.islice(itertools.cycle(bodies), count)),
        setup=setup,
        invariant=invariant,
        include=settings.include(include, f"{verb}(include={include!r})"),
    )


def run(
    plan: Plan, workload: free.Workload, watch: ThreadWatch, *, exact: bool = False
) -> tuple[Execution, Result]:
    """Run a plan and judge what happened.

    Args:
        plan: what to do.
        workload: what the threads do.
        watch: knows the threads that they start.
        exact: have the noise look for functions that were made since the last run, at some
            milliseconds; a session of many tests goes without.

    Raises:
        BaseException: see `free.run`.
    """
    noise: Noise | None = None
    recorded: RecordedRounds | None = None
    # Who looks through all objects while other threads run can break them in the middle of a
    # `tuple(...)`; so a run within a run goes without probes.
    if not is_ours(threading.current_thread()) and (plan.noise or plan.races != "off"):
        from pytest_freethread.execution.noise import Noise  # noqa: PLC0415 - see above
        from pytest_freethread.execution.probing import Probing  # noqa: PLC0415 - see above

        probing = Probing(workload.subjects, exact=exact, library=plan.races != "off")
        if plan.noise and plan.rounds > 1:  # the first round is without in any case
            noise = Noise(probing, plan.seed)
        if plan.races != "off":
            from pytest_freethread.recorded import RecordedRounds  # noqa: PLC0415 - see above

            recorded = RecordedRounds(plan.threads, probing, noise)
    companion = recorded or noise
    execution = free.run(
        plan, workload, watch, hopeless=deadlocks.cycle_of_waiting, companion=companion
    )
    found = [each for judge in (deadlocks, outcomes, leaks) for each in judge.judge(execution)]
    suppressed = Counter[str]()
    if recorded is not None:
        judged = recorded.findings(strict=plan.races == "error")
        wanted, suppressed = suppression.without_benign(
            judged, plan.benign, linecache.getline, reached=()
        )
        found += wanted
    findings = sorted(found, key=lambda finding: finding.severity != "error")
    if any(finding.severity == "error" for finding in findings):
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.PASSED if execution.executions else Verdict.INCONCLUSIVE
    scope = _scope(execution, companion, sum(suppressed.values()))
    return execution, Result(
        verdict=verdict,
        findings=tuple(findings),
        executions=execution.executions,
        exhaustive=False,
        seconds=execution.seconds,
        suppressed=suppressed,
        scope=scope,
        text=text.render(verdict, findings, scope),
    )


def _scope(execution: Execution, companion: free.Companion | None, suppressed: int) -> str:
    plan = execution.plan
    rounds = (
        f"{execution.rounds} of {plan.rounds} rounds" if execution.cut else f"{plan.rounds} rounds"
    )
    cut = f" ({execution.cut})" if execution.cut else ""
    within = "; races not looked for within another run"
    probed = companion or (within if plan.races != "off" else "")
    benign = f"; {suppressed} suppressed as benign" if suppressed else ""
    return (
        f"stress, {plan.threads} threads × {rounds}{cut}, {execution.executions} executions in "
        f"{execution.seconds:.2f} s, seed {plan.seed}{probed}{benign}; "
        f"{interpreter.facts()}; not replayable"
    )


def _bound(body: Callable[..., object], state: object) -> Callable[[], object]:
    return lambda: body(state)
