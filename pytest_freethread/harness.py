"""The loop: plan → execution → judges → result; the only place where all parts meet."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pytest_freethread import interpreter, settings
from pytest_freethread.detectors import deadlocks, leaks, outcomes
from pytest_freethread.errors import SettingError
from pytest_freethread.execution import free
from pytest_freethread.execution.leaks import ThreadWatch
from pytest_freethread.records import Execution, Result, Verdict
from pytest_freethread.report import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_freethread.records import Phase, Plan


def stress(
    *bodies: Callable[..., object],
    setup: Callable[[], object] | None = None,
    invariant: Callable[[Any], object] | None = None,
    threads: int | None = None,
    rounds: int = 100,
    seconds: float | None = None,
    noise: bool = True,
    seed: int | None = None,
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
        noise: stagger the threads' starts at random, so that each round aligns them differently.
        seed: for the noise. A free run is not replayable all the same.
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
        _, result = run(plan, free.Workload(begin=begin, end=end), watch)
    finally:
        watch.stop()
    return result


def run(plan: Plan, workload: free.Workload, watch: ThreadWatch) -> tuple[Execution, Result]:
    """Run a plan and judge what happened.

    Raises:
        BaseException: see `free.run`.
    """
    execution = free.run(plan, workload, watch, hopeless=deadlocks.hopeless)
    judges = (deadlocks.judge, outcomes.judge, leaks.judge)
    findings = sorted(
        (finding for judge in judges for finding in judge(execution)),
        key=lambda finding: finding.severity != "error",
    )
    if any(finding.severity == "error" for finding in findings):
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.PASSED if execution.executions else Verdict.INCONCLUSIVE
    scope = _scope(execution)
    return execution, Result(
        verdict=verdict,
        findings=tuple(findings),
        executions=execution.executions,
        exhaustive=False,
        seconds=execution.seconds,
        scope=scope,
        text=text.render(verdict, findings, scope),
    )


def _scope(execution: Execution) -> str:
    plan = execution.plan
    rounds = (
        f"{execution.rounds} of {plan.rounds} rounds" if execution.cut else f"{plan.rounds} rounds"
    )
    cut = f" ({execution.cut})" if execution.cut else ""
    return (
        f"stress, {plan.threads} threads × {rounds}{cut}, {execution.executions} executions in "
        f"{execution.seconds:.2f} s, seed {plan.seed}; {interpreter.facts()}; not replayable"
    )


def _bound(body: Callable[..., object], state: object) -> Callable[[], object]:
    return lambda: body(state)
