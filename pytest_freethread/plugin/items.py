"""A test that runs more than once at a time; in parallel: its rounds, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import (
    ExceptionChainRepr,
    ExceptionInfo,
    ReprEntryNative,
    ReprFileLocation,
    ReprTraceback,
)

from pytest_freethread.errors import ThreadSafetyError
from pytest_freethread.plugin.contexts import Context, body_of, is_wide, only
from pytest_freethread.plugin.parts import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from pytest_freethread.execution.leaks import ThreadWatch
    from pytest_freethread.records import Execution, Failure, Finding, Phase, Plan, Result

_MOST_SHOWN = 10
"""Distinct failures of one test that are shown with their tracebacks; others by their sentence."""

INTERRUPTS = (KeyboardInterrupt, pytest.exit.Exception)
"""Exceptions that end the session."""


class RerunTest:
    """Takes the place of an item's `setup`, `runtest` and `repr_failure`."""

    def __init__(self, item: pytest.Function, shared: frozenset[str]) -> None:
        self.item = item
        self.result: Result | None = None
        self.contexts: list[Context] = []
        self._own_names = [name for name in item.fixturenames if not is_wide(item, name)]
        self._shared_names = [name for name in self._own_names if name in shared]
        self._errors: list[Finding] = []
        self._tracebacks: dict[int, TracebackType | None] = {}
        item.setup = self.setup  # type: ignore[method-assign]
        item.runtest = self.runtest  # type: ignore[method-assign]
        item.repr_failure = self.repr_failure  # type: ignore[method-assign]

    @property
    def left_threads(self) -> bool:
        """Whether threads of the test may still run."""
        return False

    def setup(self) -> None:
        """Set up the wide fixtures."""
        item = self.item
        with only(item, set(item.fixturenames).difference(self._own_names)):
            type(item).setup(item)

    def runtest(self) -> None:
        """Run it; raise the first failure, or skip where every execution did."""
        raise NotImplementedError

    def note(self) -> dict[str, Any] | None:
        """What was done, as plain values; None if it was broken off."""
        raise NotImplementedError

    def forget(self) -> None:
        """Let go of what the test held: pytest keeps all items until the session's end."""
        self.contexts = []
        self._errors = []
        self._tracebacks = {}
        self.result = None

    def make_contexts(self, threads: int) -> None:
        """A context for each thread, and one for the shared fixtures; none if none is needed."""
        if not self._own_names and self.item.cls is None:
            return  # nothing is a thread's own
        if self._shared_names:
            self.contexts.append(Context(self.item, None, self._shared_names, []))
        own = [name for name in self._own_names if name not in self._shared_names]
        for index in range(threads):
            self.contexts.append(Context(self.item, index, own, self.contexts[:]))

    def tear_down(
        self, contexts: Sequence[Context], failed: frozenset[int]
    ) -> Iterator[tuple[Phase, int | None, BaseException]]:
        """Tear contexts down, the last one first; what went wrong, and in whose."""
        for context in reversed(contexts):
            try:
                context.tear_down(failed=context.index in failed if failed else False)
            except (Exception, pytest.fail.Exception) as error:
                yield "teardown", context.index, error

    def judge(self, result: Result) -> None:
        """Keep a result; raise what a plain run would have raised, if there are errors.

        Raises:
            BaseException: the exception of a finding, or `ThreadSafetyError` where one has none.
        """
        self.result = result
        _make_unique(self.item.user_properties)
        self._errors = [finding for finding in result.findings if finding.severity == "error"]
        if not self._errors:
            return
        failures = [failure_of(finding) for finding in self._errors]
        raised = [failure.exception for failure in failures if failure is not None]
        # Raising one of the exceptions will add our own frames to its traceback.
        self._tracebacks = {id(error): error.__traceback__ for error in raised}
        if len(raised) < len(self._errors):
            raise ThreadSafetyError(result)
        # A test that is expected to fail in one way must not hide that it fails in another.
        mark = self.item.get_closest_marker("xfail")
        expected = mark.kwargs.get("raises") if mark is not None else None
        others = [e for e in raised if expected and not isinstance(e, expected)]
        raise (others or raised)[0]

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], **kwargs: Any) -> Any:
        """Each distinct failure once."""
        if not self._errors:
            if getattr(excinfo.value, "pytrace", True) and _in_our_code(excinfo.tb):
                # Broken off while we ran it, as by a timeout: our lines say nothing to anybody.
                return told([lines_of([excinfo.exconly()])], self.location(excinfo.exconly()))
            return type(self.item).repr_failure(self.item, excinfo, **kwargs)
        parts = [self.represent(finding) for finding in self._errors[:_MOST_SHOWN]]
        entries = [entry for part in parts for entry in part[0]]
        more = [finding.message.splitlines()[0] for finding in self._errors[_MOST_SHOWN:]]
        if more:
            entries.append(lines_of([f"and {len(more)} more distinct failures:", *indented(more)]))
        return told(entries, parts[0][1])

    def represent(self, finding: Finding) -> tuple[list[Any], ReprFileLocation]:
        """A finding's entries in the report, and what the short summary says."""
        raise NotImplementedError

    def represent_exception(
        self, failure: Failure, message: str, remark: str
    ) -> tuple[list[Any], ReprFileLocation]:
        """As pytest would; the short summary has a remark, or the message where there is none."""
        error = failure.exception
        trace: Any = self._tracebacks.get(id(error), error.__traceback__)
        excinfo = ExceptionInfo.from_exc_info((type(error), error, trace))
        shown = type(self.item).repr_failure(self.item, excinfo)
        crash = getattr(shown, "reprcrash", None)
        if not isinstance(shown, ExceptionChainRepr) or crash is None:
            return [lines_of([str(shown)])], self.location(message)
        entries: list[Any] = []
        for each, _, link in shown.chain:
            entries += [*each.reprentries, *([lines_of([link])] if link else [])]
        first, newline, rest = crash.message.partition("\n")
        said = f"{first} ({remark}){newline}{rest}"
        return entries, ReprFileLocation(crash.path, crash.lineno, said)

    def location(self, message: str) -> ReprFileLocation:
        """A message at the test's first line."""
        path, line, _ = self.item.location
        return ReprFileLocation(path, (line or 0) + 1, message)


class ParallelTest(RerunTest):
    """A test that runs in parallel threads, round after round."""

    def __init__(self, item: pytest.Function, plan: Plan, shared: frozenset[str]) -> None:
        super().__init__(item, shared)
        self.plan = plan
        self.execution: Execution | None = None
        self.progress: Callable[[int, int], None] | None = None
        self._watch: ThreadWatch | None = None
        self._prepared: list[Callable[[], object]] | None = None

    def setup(self) -> None:
        """Set up the wide fixtures, and all of the first round."""
        from pytest_freethread.execution.leaks import ThreadWatch

        super().setup()
        self._watch = ThreadWatch(self._outlives)
        self.item.addfinalizer(self._watch.stop)
        self.make_contexts(self.plan.threads)
        self._prepared = self._begin(0)

    def _outlives(self) -> Iterator[object]:
        """What is older than the test and stays: wide fixtures and what its module holds."""
        known: dict[str, Any] = self.item._request._fixture_defs  # noqa: SLF001 - no other look-up
        yield from (definition.cached_result[0] for definition in known.values())
        yield from vars(self.item.module).values()

    def runtest(self) -> None:
        """Run all rounds; raise the first failure, or skip where every execution did."""
        from pytest_freethread import harness
        from pytest_freethread.execution.free import Workload

        assert self._watch is not None
        workload = Workload(
            begin=self._begin_or_prepared,
            end=self._end,
            subjects=(self.item.obj,),
            signals=SIGNALS,
            interrupts=INTERRUPTS,
            progress=self.progress,
        )
        self.execution, result = harness.run(self.plan, workload, self._watch)
        self.judge(result)
        skipped = self.execution.signals
        if skipped and sum(signal.count for signal in skipped) == self.execution.executions:
            raise skipped[0].exception

    @property
    def left_threads(self) -> bool:
        """Whether threads of the test may still run: stuck, leaked, or broken off."""
        execution = self.execution
        return execution is None or bool(execution.stuck or execution.leaks)

    def note(self) -> dict[str, Any] | None:
        """What was done, as plain values; None if it was broken off."""
        execution, result = self.execution, self.result
        if execution is None or result is None:
            return None
        signals = execution.signals
        return {
            "how": "parallel",
            "threads": self.plan.threads,
            "rounds": execution.rounds,
            "planned": self.plan.rounds,
            "executions": execution.executions,
            "seconds": execution.seconds,
            "cut": execution.cut,
            "skipped": sum(signal.count for signal in signals),
            "skip": str(signals[0].exception) if signals else "",
            "suppressed": shortened(result.suppressed),
            "findings": findings_of(result),
        }

    def forget(self) -> None:
        """See `RerunTest.forget`."""
        super().forget()
        self._prepared = None
        self.execution = None

    def represent(self, finding: Finding) -> tuple[list[Any], ReprFileLocation]:
        """A line that says where and how often, and what pytest says of the exception."""
        from pytest_freethread.detectors.outcomes import how_often
        from pytest_freethread.report import text

        failure = failure_of(finding)
        if failure is None:
            return [lines_of(text.block(finding))], self.location(finding.message)
        assert self.execution is not None
        often = how_often(failure, self.execution)
        phase = "" if failure.phase == "body" else f"{failure.phase}, "
        entries, crash = self.represent_exception(failure, finding.message, often)
        others = text.other_messages(failure)
        return [
            lines_of([f"{phase}{often}"]),
            *entries,
            *([lines_of(others)] if others else []),
        ], crash

    def _begin_or_prepared(self, round_: int) -> Sequence[Callable[[], object]]:
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            return prepared
        return self._begin(round_)

    def _begin(self, round_: int) -> list[Callable[[], object]]:
        if not self.contexts:
            return [body_of(self.item, [])] * self.plan.threads
        bodies = []
        for position, context in enumerate(self.contexts):
            try:
                context.set_up(round_)
            except BaseException:
                # pytest does not come by here before the next round.
                if round_:
                    for _ in self.tear_down(self.contexts[: position + 1], frozenset()):
                        pass
                raise
            if context.index is not None:
                bodies.append(context.body)
        return bodies

    def _end(
        self, _round: int, failed: frozenset[int]
    ) -> Iterator[tuple[Phase, int | None, BaseException]]:
        yield from self.tear_down(self.contexts, failed)


def _in_our_code(trace: TracebackType | None) -> bool:
    """Whether an exception came up in the harness, or in what others do there."""
    from pytest_freethread.execution.stacks import is_foreign, is_ours

    inside = False
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_ours(file) or not is_foreign(file):
            inside = is_ours(file)
        trace = trace.tb_next
    return inside


def told(entries: list[Any], crash: ReprFileLocation) -> ExceptionChainRepr:
    """A report of these entries, with this line in the short summary."""
    return ExceptionChainRepr([(ReprTraceback(entries, None, style="long"), crash, None)])


def failure_of(finding: Finding) -> Failure | None:
    """The failure that a finding is about, if it is about one."""
    from pytest_freethread.records import Failure, Interleaving

    evidence = finding.evidence
    if isinstance(evidence, Interleaving):
        return evidence.failure
    return evidence if isinstance(evidence, Failure) else None


def findings_of(result: Result) -> list[list[str | None]]:
    """The findings as plain values: severity, kind, message, token."""
    return [[f.severity, f.kind, f.message, f.token] for f in result.findings]


def shortened(suppressed: Mapping[str, int]) -> dict[str, int]:
    """By what said so; the place of a comment as seen from the working directory."""
    from pytest_freethread.report import layout

    return {
        layout.relative(reason) if Path(reason).is_absolute() else reason: count
        for reason, count in suppressed.items()
    }


def lines_of(lines: Iterable[str]) -> ReprEntryNative:
    """An entry of a report with these lines."""
    return ReprEntryNative([f"{line}\n" for line in lines])


def indented(lines: Iterable[str]) -> list[str]:
    """Further to the right."""
    return [f"  {line}" for line in lines]


def _make_unique(properties: list[tuple[str, object]]) -> None:
    """Every execution records its properties; one of each kind says as much."""
    unique: list[tuple[str, object]] = []
    for each in properties:
        if each not in unique:
            unique.append(each)
    properties[:] = unique
