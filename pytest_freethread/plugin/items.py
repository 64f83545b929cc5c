"""A test that runs in parallel: its fixtures for each thread and round, its bodies, its report.

Fixtures wider than a function are set up once, by pytest, on the item itself. Each thread has a
*context*: a copy of the item with instances of its own of every function-scoped fixture. In each
round the contexts are set up one after the other on the main thread, nested on pytest's own stack
of active nodes so that pytest tears them down in the opposite order, and their bodies run at once.
Fixtures that are named as shared live in a context that comes before those of the threads.
"""

from __future__ import annotations

import copy
import shutil
import sys
import unittest
import unittest.case
import warnings
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import (
    ExceptionChainRepr,
    ExceptionInfo,
    ReprEntryNative,
    ReprFileLocation,
    ReprTraceback,
)
from _pytest.fixtures import TopRequest
from _pytest.unittest import TestCaseFunction

from pytest_freethread.errors import ThreadSafetyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_freethread.execution.leaks import ThreadWatch
    from pytest_freethread.records import Execution, Failure, Finding, Phase, Plan, Result

thread_index_key = pytest.StashKey[int]()
round_index_key = pytest.StashKey[int]()

try:
    from _pytest.tmpdir import tmppath_result_key
except ImportError:  # pragma: no cover - a pytest that keeps this elsewhere
    tmppath_result_key = pytest.StashKey[dict[str, bool]]()

_SIGNALS = (pytest.skip.Exception, pytest.xfail.Exception, unittest.SkipTest)
_INTERRUPTS = (KeyboardInterrupt, pytest.exit.Exception)


class ParallelTest:
    """Takes the place of an item's `setup`, `runtest` and `repr_failure`."""

    def __init__(self, item: pytest.Function, plan: Plan, shared: frozenset[str]) -> None:
        self.item = item
        self.plan = plan
        self.execution: Execution | None = None
        self.result: Result | None = None
        self.progress: Callable[[int, int], None] | None = None
        self._own_names = [name for name in item.fixturenames if not _is_wide(item, name)]
        self._shared_names = [name for name in self._own_names if name in shared]
        self._contexts: list[_Context] = []
        self._watch: ThreadWatch | None = None
        self._prepared: list[Callable[[], object]] | None = None
        self._errors: list[Finding] = []
        self._tracebacks: dict[int, Any] = {}
        item.setup = self.setup  # type: ignore[method-assign]
        item.runtest = self.runtest  # type: ignore[method-assign]
        item.repr_failure = self.repr_failure  # type: ignore[assignment, method-assign]

    def setup(self) -> None:
        """Set up the wide fixtures, and all of the first round."""
        from pytest_freethread.execution.leaks import ThreadWatch

        item = self.item
        with _only(item, set(item.fixturenames).difference(self._own_names)):
            type(item).setup(item)
        self._watch = ThreadWatch()
        item.addfinalizer(self._watch.stop)
        self._contexts = self._make_contexts()
        self._prepared = self._begin(0)

    def runtest(self) -> None:
        """Run all rounds; raise the first failure, or skip where every execution did."""
        from pytest_freethread import harness
        from pytest_freethread.execution.free import Workload

        assert self._watch is not None
        workload = Workload(
            begin=self._begin_or_prepared,
            end=self._end,
            signals=_SIGNALS,
            interrupts=_INTERRUPTS,
            progress=self.progress,
        )
        with _hypothesis_without_deadline(self.item):
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

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], **kwargs: Any) -> Any:
        """Each distinct failure once, under a line that says where and how often."""
        represent = type(self.item).repr_failure
        if not self._errors:
            return represent(self.item, excinfo, **kwargs)
        parts = [self._represent(finding, represent) for finding in self._errors]
        entries = [entry for part in parts for entry in part[0]]
        trace = ReprTraceback(entries, None, style="long")
        return ExceptionChainRepr([(trace, parts[0][1], None)])

    def _begin_or_prepared(self, round_: int) -> Sequence[Callable[[], object]]:
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            return prepared
        return self._begin(round_)

    def _make_contexts(self) -> list[_Context]:
        contexts: list[_Context] = []
        if not self._own_names and self.item.cls is None:
            return contexts  # nothing is a thread's own
        if self._shared_names:
            contexts.append(_Context(self.item, None, self._shared_names, contexts[:]))
        own = [name for name in self._own_names if name not in self._shared_names]
        for index in range(self.plan.threads):
            contexts.append(_Context(self.item, index, own, contexts[:]))
        return contexts

    def _begin(self, round_: int) -> list[Callable[[], object]]:
        if not self._contexts:
            return [_body_of(self.item, [])] * self.plan.threads
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
        self, contexts: Sequence[_Context], failed: frozenset[int]
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
            return [ReprEntryNative(lines)], ReprFileLocation(path, (line or 0) + 1, finding.message)
        assert self.execution is not None
        failure = finding.evidence
        often = how_often(failure, self.execution)
        phase = "" if failure.phase == "body" else f"{failure.phase}, "
        title = ReprEntryNative([f"{phase}{often}\n"])
        shown = represent(self.item, self._excinfo(failure))
        others = [f"{line}\n" for line in text.other_messages(failure)]
        crash = getattr(shown, "reprcrash", None)
        if isinstance(shown, ExceptionChainRepr) and crash is not None:
            entries: list[Any] = [e for trace, _, _ in shown.chain for e in trace.reprentries]
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
        return ExceptionInfo.from_exc_info(
            (type(error), error, self._tracebacks.get(id(error), error.__traceback__))
        )


class _Context:
    """A copy of an item, for one thread (or, with no index, for the shared fixtures)."""

    def __init__(
        self,
        item: pytest.Function,
        index: int | None,
        names: Sequence[str],
        before: Sequence[_Context],
    ) -> None:
        self.index = index
        self._item = item
        self._before = before
        self._chain = [*item.listchain(), *(context._copy for context in before)]
        self._wide: dict[str, Any] = dict(item._request._fixture_defs)
        self._copy = clone = copy.copy(item)
        for attribute in ("setup", "runtest", "repr_failure"):
            vars(clone).pop(attribute, None)
        clone.stash = pytest.Stash()
        if index is not None:
            clone.stash[thread_index_key] = index
        clone.fixturenames = list(names)
        definitions = {
            name: [_fresh(definition) for definition in definitions]
            for name, definitions in item._fixtureinfo.name2fixturedefs.items()
        }
        clone._fixtureinfo = replace(item._fixtureinfo, name2fixturedefs=definitions)
        self._fresh_instance = item.cls is not None and not hasattr(item.obj, "hypothesis")
        self._needs_set_up = bool(names) or isinstance(item, TestCaseFunction)
        self._tmp: Path | None = None
        self._unittest: _UnittestCase | None = None
        self._subtest_errors: list[BaseException] = []
        self.body: Callable[[], object] = lambda: None

    def set_up(self, round_: int) -> None:
        """Set up the fixtures of a round, and make its body."""
        clone = self._copy
        clone.stash[round_index_key] = round_
        clone._initrequest()
        clone._request.getfixturevalue = self._getfixturevalue  # type: ignore[method-assign]
        if self._fresh_instance:
            clone._obj = None
            vars(clone).pop("_instance", None)
        known = clone._request._fixture_defs
        known.update(self._wide)
        for context in self._before:
            if context.index is None:
                known.update(context._copy._request._fixture_defs)
        known.update(self._temporary_paths(known))
        if "subtests" in clone.fixturenames:
            definition = clone._fixtureinfo.name2fixturedefs["subtests"][-1]
            known["subtests"] = _constant(definition, _Subtests(self._subtest_errors))
        if self._needs_set_up:
            self._marks = {id(d): (d, len(d._finalizers)) for d in self._wide.values()}
            clone.session._setupstate.setup(self._node(inclusive=True))
        if self.index is None:
            return
        if isinstance(clone, TestCaseFunction):
            self._unittest = _UnittestCase(clone)
            self._unittest.set_up()
            self.body = self._unittest.run
        else:
            self.body = _body_of(clone, self._subtest_errors)

    def tear_down(self, *, failed: bool) -> None:
        """Tear down the fixtures of a round.

        Raises:
            Exception: what a fixture's tear-down raised.
        """
        self.body = lambda: None
        self._copy.stash[tmppath_result_key] = {"setup": True, "call": not failed}
        try:
            if self._unittest is not None:
                case, self._unittest = self._unittest, None
                case.tear_down()
        finally:
            if self._needs_set_up:
                self._copy.session._setupstate.teardown_exact(self._node(inclusive=False))
                for definition, length in self._marks.values():
                    # They refer to fixtures that are no more, and would pile up until the end.
                    del definition._finalizers[length:]
            if self._tmp is not None and not failed:
                shutil.rmtree(self._tmp, ignore_errors=True)

    def _node(self, *, inclusive: bool) -> Any:
        """What pytest takes for an item below all contexts that come before this one."""
        chain = [*self._chain, self._copy] if inclusive else self._chain
        return SimpleNamespace(listchain=lambda: chain)

    def _getfixturevalue(self, name: str) -> Any:
        """`request.getfixturevalue` of the test: done on the main thread, whoever asks."""
        from pytest_freethread.execution.free import on_calling_thread

        def get() -> Any:
            if name not in self._copy._request._fixture_defs and _is_wide(self._item, name):
                return self._item._request.getfixturevalue(name)
            return TopRequest.getfixturevalue(self._copy._request, name)

        return on_calling_thread(get)

    def _temporary_paths(self, known: dict[str, Any]) -> dict[str, Any]:
        """Factories of temporary paths that are a thread's and round's own."""
        definition = known.get("tmp_path_factory")
        if definition is None:
            return {}
        shared = definition.cached_result[0]
        who = "shared" if self.index is None else f"thread-{self.index}"
        round_ = self._copy.stash[round_index_key]
        self._tmp = shared.mktemp(f"{_short(self._item.name)}-round-{round_}-{who}-")
        factory = copy.copy(shared)
        factory._basetemp = self._tmp
        if hasattr(factory, "_next_number"):
            factory._next_number = {}
        private = {"tmp_path_factory": _constant(definition, factory)}
        legacy = known.get("tmpdir_factory")
        if legacy is not None:
            paths = copy.copy(legacy.cached_result[0])
            paths._tmppath_factory = factory
            private["tmpdir_factory"] = _constant(legacy, paths)
        return private


def _body_of(item: pytest.Function, subtest_errors: list[BaseException]) -> Callable[[], object]:
    """A call of the test function with the fixtures that are set up now."""
    function = item.obj
    request = item._request
    values = {
        name: request if name == "request" else request._fixture_defs[name].cached_result[0]
        for name in item._fixtureinfo.argnames
    }
    nodeid = item.nodeid

    def body() -> None:
        try:
            returned = function(**values)
        except Exception as error:
            if not subtest_errors:
                raise
            subtest_errors.append(error)
            returned = None
        _raise_all(subtest_errors)
        if returned is not None:
            warnings.warn(
                pytest.PytestReturnNotNoneWarning(
                    f"Test functions should return None, but {nodeid} returned a value of type "
                    f"{type(returned)!r}."
                ),
                stacklevel=1,
            )

    return body


class _Subtests:
    """pytest's `subtests` for one thread: failures are kept for the report of the whole test."""

    def __init__(self, errors: list[BaseException]) -> None:
        self._errors = errors

    @contextmanager
    def test(self, msg: str | None = None, **kwargs: Any) -> Iterator[None]:
        """A part of the test after whose failure the test goes on."""
        try:
            yield
        except _SIGNALS:
            pass
        except Exception as error:
            said = [f"[{msg}]"] if msg is not None else []
            if kwargs:
                said.append(f"({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})")
            error.add_note(f"in subtest {' '.join(said) or '(<subtest>)'}")
            self._errors.append(error)


class _UnittestCase:
    """A `unittest.TestCase` whose parts run where they belong.

    `unittest.TestCase.run` does all in one go. Here `setUp`, `tearDown` and the cleanups run on
    the main thread and the test method in its own, with the bookkeeping of the standard library.
    """

    def __init__(self, item: TestCaseFunction) -> None:
        self._case: Any = item.instance
        self._method: Any = item.obj
        self._result = _Outcomes()
        self._outcome: Any = unittest.case._Outcome(self._result)  # type: ignore[attr-defined]
        self._case._outcome = self._outcome

    def set_up(self) -> None:
        for holder in (self._case, self._method):
            if getattr(holder, "__unittest_skip__", False):
                raise unittest.SkipTest(getattr(holder, "__unittest_skip_why__", ""))
        with self._outcome.testPartExecutor(self._case):
            self._case.setUp()
        self._raise()

    def run(self) -> None:
        expecting = any(
            getattr(holder, "__unittest_expecting_failure__", False)
            for holder in (self._case, self._method)
        )
        self._outcome.expecting_failure = expecting
        with self._outcome.testPartExecutor(self._case, subTest=False):
            self._method()
        self._outcome.expecting_failure = False
        if expecting:
            if self._outcome.expectedFailure:
                pytest.xfail("unittest.expectedFailure")
            pytest.fail("Unexpected success", pytrace=False)
        _raise_all(self._result.take())

    def tear_down(self) -> None:
        with self._outcome.testPartExecutor(self._case):
            self._case.tearDown()
        self._case.doCleanups()
        self._case._outcome = None
        self._raise()

    def _raise(self) -> None:
        errors = self._result.take()
        if len(errors) > 1:
            raise BaseExceptionGroup("several errors", errors)
        if errors:
            raise errors[0]


class _Outcomes(unittest.TestResult):
    """Keeps the exceptions themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[BaseException] = []

    def take(self) -> list[BaseException]:
        errors, self._errors = self._errors, []
        return errors

    def addError(self, test: object, err: Any) -> None:  # noqa: ARG002, N802 - unittest's name
        self._errors.append(err[1])

    addFailure = addError  # noqa: N815 - unittest's name

    def addSubTest(self, test: object, subtest: Any, err: Any) -> None:  # noqa: ARG002, N802
        if err is not None:
            err[1].add_note(f"in subtest {subtest._subDescription()}")
            self._errors.append(err[1])

    def addSkip(self, test: object, reason: str) -> None:  # noqa: ARG002, N802 - unittest's name
        self._errors.append(unittest.SkipTest(reason))


def _raise_all(errors: list[BaseException]) -> None:
    """Raise what a body collected, if anything, and forget it."""
    from pytest_freethread.execution.free import SeveralFailures

    collected = errors[:]
    errors.clear()
    if len(collected) == 1:
        raise collected[0]
    if collected:
        raise SeveralFailures(collected)


def _is_wide(item: pytest.Function, name: str) -> bool:
    """Whether a fixture lives longer than a test."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and name in callspec.params:
        return bool(callspec._arg2scope[name].value != "function")
    definitions = item._fixtureinfo.name2fixturedefs.get(name)
    if definitions is None:
        definitions = item.session._fixturemanager.getfixturedefs(name, item)
    return bool(definitions) and definitions[-1].scope != "function"


def _fresh(definition: Any) -> Any:
    """A fixture definition that has not been executed; wide ones are one for all."""
    if definition.scope != "function":
        return definition
    definition = copy.copy(definition)
    definition.cached_result = None
    definition._finalizers = []
    return definition


def _constant(definition: Any, value: object) -> Any:
    definition = copy.copy(definition)
    definition.cached_result = (value, None, None)
    definition._finalizers = []
    return definition


@contextmanager
def _only(item: pytest.Function, names: set[str]) -> Iterator[None]:
    before = item.fixturenames
    item.fixturenames = [name for name in before if name in names]
    try:
        yield
    finally:
        item.fixturenames = before


@contextmanager
def _hypothesis_without_deadline(item: pytest.Function) -> Iterator[None]:
    """Contention makes examples slow, which says nothing about the code under test."""
    function = item.function
    if not hasattr(function, "hypothesis"):
        yield
        return
    hypothesis = sys.modules["hypothesis"]
    before = function._hypothesis_internal_use_settings  # type: ignore[attr-defined]
    function._hypothesis_internal_use_settings = hypothesis.settings(  # type: ignore[attr-defined]
        before,
        deadline=None,
        suppress_health_check=[
            *before.suppress_health_check,
            hypothesis.HealthCheck.too_slow,
        ],
    )
    try:
        yield
    finally:
        function._hypothesis_internal_use_settings = before  # type: ignore[attr-defined]


def _make_unique(properties: list[tuple[str, object]]) -> None:
    """Every execution records its properties; one of each kind says as much."""
    unique: list[tuple[str, object]] = []
    for each in properties:
        if each not in unique:
            unique.append(each)
    properties[:] = unique


def _short(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)[:30]
