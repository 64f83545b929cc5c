"""A test that runs in parallel: its rounds, and its report."""

from __future__ import annotations

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
from pytest_freethread.plugin.parts import SIGNALS, hypothesis_without_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from pytest_freethread.execution.leaks import ThreadWatch
    from pytest_freethread.records import Execution, Failure, Finding, Phase, Plan, Result

_MOST_SHOWN = 10
"""Distinct failures of one test that are shown with their tracebacks; others by their sentence."""

_INTERRUPTS = (KeyboardInterrupt, pytest.exit.Exception)


class ParallelTest:
    """Takes the place of an item's `setup`, `runtest` and `repr_failure`."""

    def __init__(self, item: pytest.Function, plan: Plan, shared: frozenset[str]) -> None:
        self.item = item
        self.plan = plan
        self.execution: Execution | None = None
        self.result: Result | None = None
        self.progress: Callable[[int, int], None] | None = None
        self._own_names = [name for name in item.fixturenames if not is_wide(item, name)]
        self._shared_names = [name for name in self._own_names if name in shared]
        self._contexts: list[Context] = []
        self._watch: ThreadWatch | None = None
        self._prepared: list[Callable[[], object]] | None = None
        self._errors: list[Finding] = []
        self._tracebacks: dict[int, TracebackType | None] = {}
        item.setup = self.setup  # type: ignore[method-assign]
        item.runtest = self.runtest  # type: ignore[method-assign]
        item.repr_failure = self.repr_failure  # type: ignore[method-assign]

    def setup(self) -> None:
        """Set up the wide fixtures, and all of the first round."""
        from pytest_freethread.execution.leaks import ThreadWatch

        item = self.item
        with only(item, set(item.fixturenames).difference(self._own_names)):
            type(item).setup(item)
        self._watch = ThreadWatch(self._outlives)
        item.addfinalizer(self._watch.stop)
        self._contexts = self._make_contexts()
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
            signals=SIGNALS,
            interrupts=_INTERRUPTS,
            progress=self.progress,
        )
        with hypothesis_without_deadline(self.item):
            self.execution, self.result = harness.run(self.plan, workload, self._watch)
        _make_unique(self.item.user_properties)
        self._errors = [finding for finding in self.result.findings if finding.severity == "error"]
        if self._errors:
            self._remember_tracebacks()
            raise self._primary()
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
            "findings": [[f.severity, f.kind, f.message] for f in result.findings],
        }

    def forget(self) -> None:
        """Let go of what the test held: pytest keeps all items until the session's end."""
        self._contexts = []
        self._prepared = None
        self._errors = []
        self._tracebacks = {}
        self.execution = self.result = None

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], **kwargs: Any) -> Any:
        """Each distinct failure once, under a line that says where and how often."""
        represent = type(self.item).repr_failure
        if not self._errors:
            return represent(self.item, excinfo, **kwargs)
        parts = [self._represent(finding, represent) for finding in self._errors[:_MOST_SHOWN]]
        entries = [entry for part in parts for entry in part[0]]
        more = [finding.message.splitlines()[0] for finding in self._errors[_MOST_SHOWN:]]
        if more:
            lines = [f"and {len(more)} more distinct failures:", *(f"  {line}" for line in more)]
            entries.append(ReprEntryNative([f"{line}\n" for line in lines]))
        trace = ReprTraceback(entries, None, style="long")
        return ExceptionChainRepr([(trace, parts[0][1], None)])

    def _begin_or_prepared(self, round_: int) -> Sequence[Callable[[], object]]:
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            return prepared
        return self._begin(round_)

    def _make_contexts(self) -> list[Context]:
        contexts: list[Context] = []
        if not self._own_names and self.item.cls is None:
            return contexts  # nothing is a thread's own
        if self._shared_names:
            contexts.append(Context(self.item, None, self._shared_names, contexts[:]))
        own = [name for name in self._own_names if name not in self._shared_names]
        for index in range(self.plan.threads):
            contexts.append(Context(self.item, index, own, contexts[:]))
        return contexts

    def _begin(self, round_: int) -> list[Callable[[], object]]:
        if not self._contexts:
            return [body_of(self.item, [])] * self.plan.threads
        bodies = []
        for position, context in enumerate(self._contexts):
            try:
                context.set_up(round_)
            except BaseException:
                # pytest does not come by here before the next round.
                if round_:
                    for _ in self._tear_down(self._contexts[: position + 1], frozenset()):
                        pass
                raise
            if context.index is not None:
                bodies.append(context.body)
        return bodies

    def _end(
        self, _round: int, failed: frozenset[int]
    ) -> Iterator[tuple[Phase, int | None, BaseException]]:
        yield from self._tear_down(self._contexts, failed)

    def _tear_down(
        self, contexts: Sequence[Context], failed: frozenset[int]
    ) -> Iterator[tuple[Phase, int | None, BaseException]]:
        for context in reversed(contexts):
            try:
                context.tear_down(failed=context.index in failed if failed else False)
            except Exception as error:
                yield "teardown", context.index, error

    def _primary(self) -> BaseException:
        """The exception to raise: what a plain run would have raised, if it would."""
        from pytest_freethread.records import Failure

        assert self.result is not None
        raised = [f.evidence.exception for f in self._errors if isinstance(f.evidence, Failure)]
        if len(raised) < len(self._errors):
            return ThreadSafetyError(self.result)
        # A test that is expected to fail in one way must not hide that it fails in another.
        mark = self.item.get_closest_marker("xfail")
        expected = mark.kwargs.get("raises") if mark is not None else None
        others = [e for e in raised if expected and not isinstance(e, expected)]
        return (others or raised)[0]

    def _remember_tracebacks(self) -> None:
        """Raising one of the exceptions here will add our own frames to its traceback."""
        from pytest_freethread.records import Failure

        for finding in self._errors:
            if isinstance(finding.evidence, Failure):
                error = finding.evidence.exception
                self._tracebacks[id(error)] = error.__traceback__

    def _represent(
        self, finding: Finding, represent: Callable[..., Any]
    ) -> tuple[list[Any], ReprFileLocation]:
        from pytest_freethread.detectors.outcomes import how_often
        from pytest_freethread.records import Failure
        from pytest_freethread.report import text

        if not isinstance(finding.evidence, Failure):
            lines = [f"{line}\n" for line in text.block(finding)]
            path, line, _ = self.item.location
            return [ReprEntryNative(lines)], ReprFileLocation(
                path, (line or 0) + 1, finding.message
            )
        assert self.execution is not None
        failure = finding.evidence
        often = how_often(failure, self.execution)
        phase = "" if failure.phase == "body" else f"{failure.phase}, "
        title = ReprEntryNative([f"{phase}{often}\n"])
        shown = represent(self.item, self._excinfo(failure))
        others = [f"{line}\n" for line in text.other_messages(failure)]
        crash = getattr(shown, "reprcrash", None)
        if isinstance(shown, ExceptionChainRepr) and crash is not None:
            entries: list[Any] = []
            for trace, _, link in shown.chain:
                entries += [*trace.reprentries, *([ReprEntryNative([f"{link}\n"])] if link else [])]
            first, newline, rest = crash.message.partition("\n")
            message = f"{first} ({often}){newline}{rest}"
            crash = ReprFileLocation(crash.path, crash.lineno, message)
        else:
            entries = [ReprEntryNative([f"{shown}\n"])]
            path, line, _ = self.item.location
            crash = ReprFileLocation(path, (line or 0) + 1, f"{finding.message}")
        return [title, *entries, *([ReprEntryNative(others)] if others else [])], crash

    def _excinfo(self, failure: Failure) -> ExceptionInfo[BaseException]:
        error = failure.exception
        trace: Any = self._tracebacks.get(id(error), error.__traceback__)
        return ExceptionInfo.from_exc_info((type(error), error, trace))


def _make_unique(properties: list[tuple[str, object]]) -> None:
    """Every execution records its properties; one of each kind says as much."""
    unique: list[tuple[str, object]] = []
    for each in properties:
        if each not in unique:
            unique.append(each)
    properties[:] = unique
