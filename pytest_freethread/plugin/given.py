"""A test of Hypothesis: Hypothesis chooses the arguments, and for each example we the threads.

The test itself runs as ever, on the main thread, with its fixtures and whatever else pytest,
`unittest` and Hypothesis do around it. Only the function that `@given` was put on is replaced, as
Hypothesis offers, by one that runs it in several threads with the same arguments.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import pytest

from pytest_freethread import interpreter
from pytest_freethread.errors import SettingError, ThreadSafetyError
from pytest_freethread.plugin.explored import with_the_way_back
from pytest_freethread.plugin.items import (
    INTERRUPTS,
    RerunTest,
    failure_of,
    findings_of,
    lines_of,
    shortened,
)
from pytest_freethread.plugin.parts import SIGNALS
from pytest_freethread.records import ExplorationPlan, Interleaving, Plan, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from _pytest._code.code import ReprFileLocation

    from pytest_freethread.execution.leaks import ThreadWatch
    from pytest_freethread.exploring import Stage
    from pytest_freethread.records import Execution, Failure, Finding
    from pytest_freethread.scheduling.drawn import Example

P = TypeVar("P", Plan, ExplorationPlan)

_REPORTED = 1.0
"""Seconds for an example that has failed and is to be reported, whether or not there is time."""

_SHARE = 10
"""An example gets one in so many of the rounds or schedules that a test of another kind gets."""

_FEWEST_ROUNDS, _FEWEST_SCHEDULES = 5, 20
"""But so many at least, where such a test gets them."""


class _Left(BaseException):  # it ends Hypothesis's search, which no `Exception` does
    """Threads are stuck, or were left behind: there is no use in trying that again and again."""


class _Known(NamedTuple):
    """What an example that failed raised, and what was noted meanwhile."""

    error: BaseException
    trace: TracebackType | None
    notes: list[object]


def _tell(notes: list[object]) -> None:
    """Note what threads have noted, each thing once."""
    from pytest_freethread.scheduling import drawn

    for each in dict.fromkeys(map(str, notes)):
        drawn.tell(each)


class GivenTest(RerunTest, Generic[P]):
    """A test of Hypothesis each of whose examples runs more than once at a time."""

    def __init__(self, item: pytest.Function, plan: P) -> None:
        super().__init__(item, frozenset())
        self.plan: P = plan
        self._function: Any = item.function
        self._inner: Callable[..., object] = self._function.hypothesis.inner_test
        self._failed: dict[object, _Known] = {}
        self._findings: list[list[str | None]] = []
        self._examples = 0
        self._alone = 0  # examples that came when the time was over
        self._began = self._until = self._seconds = 0.0

    def setup(self) -> None:
        """As ever: Hypothesis has one fixture for all examples."""
        type(self.item).setup(self.item)

    def runtest(self) -> None:
        """As ever, but for what an example is."""
        self._began = interpreter.monotonic()
        self._allot_time()
        try:
            with self._replaced():
                type(self.item).runtest(self.item)
        finally:
            self._seconds = interpreter.monotonic() - self._began

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """With an example in the function's place, and as slow as contention makes it."""
        hypothesis, function, inner = sys.modules["hypothesis"], self._function, self._inner
        chosen: Any = function._hypothesis_internal_use_settings
        healthy = [*chosen.suppress_health_check, hypothesis.HealthCheck.too_slow]

        @functools.wraps(inner)
        def example(*args: Any, **kwargs: Any) -> object:
            __tracebackhide__ = True
            return self._example(functools.partial(inner, *args), kwargs)

        function.hypothesis.inner_test = example
        function._hypothesis_internal_use_settings = hypothesis.settings(
            chosen, deadline=None, suppress_health_check=healthy
        )
        try:
            yield
        finally:
            function._hypothesis_internal_use_settings = chosen
            function.hypothesis.inner_test = inner

    def _example(self, call: Callable[..., object], arguments: dict[str, Any]) -> object:
        """Run an example; raise what the search for a smaller one is to go by."""
        __tracebackhide__ = True
        from pytest_freethread.scheduling import drawn

        example = drawn.Example(self._function.hypothesis._given_kwargs, arguments)
        known = self._failed.get(example.key)
        if known is not None and not self._wants_again(example):
            _tell(known.notes)
            raise known.error.with_traceback(known.trace)
        if known is None and interpreter.monotonic() >= self._until:
            self._alone += 1
            return call(**arguments)
        self._examples += 1
        returned: list[object] = []
        notes: list[object] = []
        within = drawn.elsewhere(notes)

        @functools.wraps(self._inner)
        def body(values: dict[str, Any]) -> None:
            with within():
                value = call(**values)
            if value is not None:
                returned.append(value)

        try:
            self._try(example, body)
        except (Exception, pytest.fail.Exception) as error:
            if not self._failed:
                self._allot_time()  # to find a smaller one
            self._failed[example.key] = _Known(error, error.__traceback__, notes)
            raise
        finally:
            _tell(notes)
        return returned[0] if returned else None

    def _allot_time(self) -> None:
        """The test's budget from now on, up to the deadline."""
        budget = self.plan.seconds or self.plan.deadline
        last = self._began + self.plan.deadline
        self._until = min(interpreter.monotonic() + budget, last)

    def _wants_again(self, example: Example) -> bool:
        """Whether an example that has failed runs again; if not, it fails as it did."""
        raise NotImplementedError

    def _try(self, example: Example, body: Callable[[dict[str, Any]], None]) -> None:
        """Run the body in threads; raise what is wrong with that."""
        raise NotImplementedError

    @property
    def _cut(self) -> str | None:
        alone = "1 example" if self._alone == 1 else f"{self._alone} examples"
        return f"its time was over: {alone} ran on one thread" if self._alone else None

    def forget(self) -> None:
        """See `RerunTest.forget`."""
        super().forget()
        self._failed = {}


class GivenStress(GivenTest[Plan]):
    """Each example in parallel threads, for some rounds."""

    def __init__(self, item: pytest.Function, plan: Plan) -> None:
        super().__init__(item, plan)
        self._rounds = self._executions = 0
        self._suppressed = Counter[str]()
        self._watch: ThreadWatch | None = None

    @property
    def left_threads(self) -> bool:
        """See `RerunTest.left_threads`."""
        return self.result is not None

    def runtest(self) -> None:
        """See `GivenTest.runtest`."""
        from pytest_freethread.execution.leaks import ThreadWatch

        self._watch = ThreadWatch(lambda: vars(self.item.module).values())
        try:
            super().runtest()
        except _Left:
            assert self.result is not None
            self.judge(self.result)
        finally:
            self._watch.stop()

    def _wants_again(self, _example: Example) -> bool:
        return False  # by chance it would pass

    def _try(self, example: Example, body: Callable[[dict[str, Any]], None]) -> None:
        __tracebackhide__ = True
        from pytest_freethread import harness
        from pytest_freethread.execution.free import Workload
        from pytest_freethread.scheduling import drawn

        assert self._watch is not None
        rounds = min(self.plan.rounds, max(_FEWEST_ROUNDS, self.plan.rounds // _SHARE))
        plan = replace(
            self.plan,
            rounds=rounds,
            seconds=max(self._until - interpreter.monotonic(), 0.0),
            seed=self.plan.seed + self._examples,
        )

        def begin(_round: int) -> Sequence[Callable[[], object]]:
            return [functools.partial(body, example.again())] * plan.threads

        workload = Workload(
            begin=begin,
            end=lambda _round, _failed: (),
            subjects=(self._inner,),
            signals=(*SIGNALS, *drawn.SIGNALS),
            interrupts=INTERRUPTS,
        )
        execution, result = harness.run(plan, workload, self._watch)
        self._rounds += execution.rounds
        self._executions += execution.executions
        self._suppressed.update(result.suppressed)
        errors = [finding for finding in result.findings if finding.severity == "error"]
        if errors:
            self._findings = findings_of(result)
        failures = [failure for finding in errors if (failure := failure_of(finding)) is not None]
        if len(failures) < len(errors):
            self.result = result
            raise _Left
        if failures:
            raise _told(failures, execution)
        if execution.signals:
            raise execution.signals[0].exception

    def note(self) -> dict[str, Any] | None:
        """See `RerunTest.note`."""
        return {
            "how": "parallel",
            "threads": self.plan.threads,
            "rounds": self._rounds,
            "planned": self._rounds,
            "examples": self._examples,
            "executions": self._executions,
            "seconds": self._seconds,
            "cut": self._cut,
            "skipped": 0,
            "skip": "",
            "suppressed": shortened(self._suppressed),
            "findings": self._findings,
        }

    def represent(self, finding: Finding) -> tuple[list[Any], ReprFileLocation]:
        """Threads that are stuck or were left behind."""
        from pytest_freethread.report import text

        return [lines_of(text.block(finding))], self.location(finding.message)


def _told(failures: Sequence[Failure], execution: Execution) -> BaseException:
    """The exception of the most frequent failure, which tells of itself and of the others."""
    from pytest_freethread.detectors.outcomes import how_often

    error = failures[0].exception
    error.add_note(how_often(failures[0], execution))
    for other in failures[1:]:
        said = f"{type(other.exception).__name__}: {other.text}".splitlines()[0]
        error.add_note(f"also {said} ({how_often(other, execution)})")
    return error


class GivenExplored(GivenTest[ExplorationPlan]):
    """Each example under some schedules, one after another.

    Args:
        item: the test.
        plan: how to search.
        token: the schedule to follow instead.
        kept: tokens of schedules that failed last time.
        strict: whether examples of which none could tell anything fail the test.
    """

    def __init__(
        self,
        item: pytest.Function,
        plan: ExplorationPlan,
        *,
        token: str | None = None,
        kept: Sequence[str] = (),
        strict: bool = False,
    ) -> None:
        super().__init__(item, plan)
        self._token = token
        self._first = list(kept)
        self._strict = strict
        self._schedules = 0
        self._stage: Stage | None = None
        self._verdicts: set[Verdict] = set()
        self._suppressed = Counter[str]()
        # What is only a note is not worth being looked for in every example.
        self._races = plan.races if plan.races == "error" else "off"
        self._doubt: str | None = None

    def runtest(self) -> None:
        """See `GivenTest.runtest`."""
        from pytest_freethread.exploring import Stage

        with Stage() as self._stage:
            super().runtest()
        if self._verdict is Verdict.INCONCLUSIVE and self._token is not None:
            pytest.fail(self._doubt or "no example was run", pytrace=False)
        if self._verdict is Verdict.INCONCLUSIVE and self._strict:
            pytest.fail(f"--freethread-strict: inconclusive: {self._doubt}", pytrace=False)

    @property
    def _verdict(self) -> Verdict:
        """That some examples passed is worth something, though others could not tell."""
        order = (Verdict.FAILED, Verdict.PASSED, Verdict.INCONCLUSIVE)
        return next((each for each in order if each in self._verdicts), Verdict.INCONCLUSIVE)

    def _wants_again(self, example: Example) -> bool:
        return example.is_final  # for the report

    def _try(self, example: Example, body: Callable[[dict[str, Any]], None]) -> None:
        __tracebackhide__ = True
        from pytest_freethread import harness
        from pytest_freethread.exploring import Program
        from pytest_freethread.report import text
        from pytest_freethread.scheduling import drawn

        program = Program(
            bodies=(body,) * self.plan.threads,
            setup=example.again,
            invariant=None,
            include=self.plan.include,
            signals=(*SIGNALS, *drawn.SIGNALS),
            interrupts=INTERRUPTS,
            root=self.item.config.rootpath,
            ends=True,
        )
        assert self._stage is not None
        signals: Sequence[BaseException] = ()
        try:
            if self._examples == 1:
                # What that takes is nobody's budget.
                self._stage.set_for(program, deadline=self.plan.deadline)
                self._allot_time()
            if self._token is not None:
                result = harness.follow(self._token, program, races=self._races, stage=self._stage)
                self._doubt = result.scope
            else:
                schedules = self.plan.schedules
                plan = replace(
                    self.plan,
                    races=self._races,
                    schedules=min(schedules, max(_FEWEST_SCHEDULES, schedules // _SHARE)),
                    seconds=max(self._until - interpreter.monotonic(), _REPORTED),
                )
                search, result = harness.search(
                    plan,
                    program,
                    first=self._first,
                    stage=self._stage,
                    thorough=example.is_final,
                )
                self._doubt = harness.doubt(search) or self._doubt
                self._suppressed.update(search.suppressed)
                signals = search.signals
        except SettingError as error:
            pytest.fail(f"{self.item.nodeid}: marker freethread({error})", pytrace=False)
        self._schedules += result.executions
        self._verdicts.add(result.verdict)
        if result.verdict is not Verdict.FAILED:
            if signals:
                raise signals[0]
            return
        findings = [with_the_way_back(self.item, self.plan, each) for each in result.findings]
        self._findings = findings_of(result)
        self._first = [finding.token for finding in findings if finding.token is not None]
        worst, failure = findings[0], failure_of(findings[0])
        if isinstance(worst.evidence, Interleaving):  # the exception is shown by pytest
            worst = replace(worst, evidence=replace(worst.evidence, failure=None))
        report = "\n".join(text.block(worst))
        if failure is None:
            raise ThreadSafetyError(replace(result, text=report))
        if example.is_final:
            drawn.tell(report)
        raise failure.exception

    def note(self) -> dict[str, Any] | None:
        """See `RerunTest.note`."""
        return {
            "how": "explored",
            "schedules": self._schedules,
            "examples": self._examples,
            "exhaustive": False,
            "seconds": self._seconds,
            "verdict": self._verdict.value,
            "replayed": self._token,
            "doubt": self._doubt if self._verdict is Verdict.INCONCLUSIVE else None,
            "skip": None,
            "token": self._first[0] if self._findings else None,
            "suppressed": shortened(self._suppressed),
            "findings": self._findings,
            "cut": self._cut,
        }
