"""A test that is measured: copies of it one after another and at once, in pairs of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread.errors import ThreadSafetyError
from pytest_freethread.plugin import options
from pytest_freethread.plugin.contexts import body_of
from pytest_freethread.plugin.items import RerunTest, lines_of, told
from pytest_freethread.plugin.session import outcomes_key
from pytest_freethread.records import Scaling, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _pytest._code.code import ExceptionInfo

    from pytest_freethread.plugin.contexts import Context
    from pytest_freethread.records import ParallelPlan


class MeasuredTest(RerunTest):
    """A test of which copies are run serially and in parallel, on fresh fixtures in each run.

    Args:
        item: the test.
        plan: how to measure, and what is asked.
        shared: its fixtures of which all copies use one instance.
        strict: whether a measurement that cannot tell fails the test.
    """

    def __init__(
        self,
        item: pytest.Function,
        plan: ParallelPlan,
        shared: frozenset[str],
        *,
        strict: bool = False,
    ) -> None:
        super().__init__(item, shared)
        self._plan = plan
        self._strict = strict
        self._scaling: Scaling | None = None
        self._by_threads: dict[int, list[Context]] = {}
        self._begun: list[Context] = []
        self._runs = 0

    def runtest(self) -> None:
        """Measure; fail where what is asked does not hold."""
        from pytest_freethread import harness

        name = self.item.name
        scaling = harness.scale(
            self._plan, (name,), self._begin, end=self._end, subjects=(self.item.function,)
        )
        self._scaling = keep(self.item, scaling)
        if scaling.verdict is Verdict.INCONCLUSIVE and self._strict:
            doubts = [claim.reason for claim in scaling.claims if claim.verdict is scaling.verdict]
            pytest.fail(f"--freethread-strict: inconclusive: {'; '.join(doubts)}", pytrace=False)
        self._scaling.raise_for_verdict()

    @property
    def left_threads(self) -> bool:
        """Whether threads of the test may still run."""
        return self._scaling is None or bool(self._scaling.measurement.stuck)

    def note(self) -> dict[str, Any] | None:
        """See `RerunTest.note`."""
        if self._scaling is None:
            return None
        return {"how": "measured", "verdict": self._scaling.verdict.value, "findings": []}

    def forget(self) -> None:
        """See `RerunTest.forget`."""
        super().forget()
        self._scaling = None
        self._by_threads = {}

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], **kwargs: Any) -> Any:
        """The report of the measurement, where that is what failed."""
        error = excinfo.value
        if isinstance(error, ThreadSafetyError) and isinstance(error.result, Scaling):
            lines = str(error).splitlines()
            return told([lines_of(lines)], self.location(failed_claim(error.result)))
        return super().repr_failure(excinfo, **kwargs)

    def _begin(self, threads: int) -> Sequence[Callable[[], object]]:
        if threads not in self._by_threads:
            self.contexts = []
            self.make_contexts(threads)
            self._by_threads[threads] = self.contexts
        contexts = self._by_threads[threads]
        if not contexts:
            return [body_of(self.item, [])] * threads
        bodies = []
        for context in contexts:
            self._begun.append(context)
            context.set_up(self._runs)
            if context.index is not None:
                bodies.append(context.body)
        self._runs += 1
        return bodies

    def _end(self) -> None:
        begun, self._begun = self._begun, []
        errors = [error for _, _, error in self.tear_down(begun, frozenset())]
        if errors:
            raise errors[0]


def failed_claim(scaling: Scaling) -> str:
    """The claim that does not hold, in a line."""
    from pytest_freethread.report.scaling import asked, interval

    for claim in scaling.claims:
        if claim.verdict is Verdict.FAILED:
            return f"{asked(claim)}: speed-up {interval(scaling.speedup)}"
    return "the tasks did not come back"


def keep(item: pytest.Item, scaling: Scaling) -> Scaling:
    """Have a measurement shown in the session's summary, and saved where that is wanted."""
    from pytest_freethread import harness
    from pytest_freethread.report.scaling import outcome

    outcomes = item.stash.setdefault(outcomes_key, [])
    outcomes.append({"test": item.nodeid, **outcome(scaling)})
    folder = options.place(item.config, "freethread-scaling")
    if folder is not None:
        suffix = f"-{len(outcomes)}" if len(outcomes) > 1 else ""
        scaling = harness.saved(scaling, Path(folder), item.nodeid + suffix)
    return scaling
