"""The hooks of one session: decide how each test runs, watch it, collect what is to be said."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread.errors import SettingError
from pytest_freethread.plugin import demotion, leaving, options, terminal
from pytest_freethread.plugin.kept import KeptSchedules

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_freethread.plugin.comparison import Comparison
    from pytest_freethread.plugin.gil import GilWatch
    from pytest_freethread.plugin.items import RerunTest
    from pytest_freethread.records import ExplorationPlan, ParallelPlan, Plan

_note_key = pytest.StashKey[dict[str, Any]]()
_test_key: pytest.StashKey[RerunTest] = pytest.StashKey()
outcomes_key = pytest.StashKey[list[dict[str, Any]]]()
"""What measurements of parallelism in a test came to, as plain values."""


class Session:
    """A plugin object, registered for the length of a session."""

    def __init__(self, config: pytest.Config, gil_watch: GilWatch) -> None:
        self._config = config
        self._gil = gil_watch
        self._require_nogil = options.flag(config, "freethread-require-nogil")
        self._strict = options.flag(config, "freethread-strict")
        self._summary = terminal.Summary()
        self._progress = terminal.Progress(config)
        self._kept = KeptSchedules(config)
        self._comparison = _comparison(config)
        self._outcomes: list[dict[str, Any]] = []
        self._status = 0
        self._stuck = False

    def pytest_unconfigure(self) -> None:
        """Let go of the terminal, and of what was frozen."""
        self._progress.close()
        heap: Any = sys.modules.get("pytest_freethread.instrument.heap")
        if heap is not None and _is_outermost():
            heap.unsettle()

    def pytest_report_header(self, config: pytest.Config) -> str | None:
        """Say what is to be done, where it is done to every test."""
        mode = options.session_mode(config)
        if mode == "stress":
            return terminal.stress_header(options.session_plan(config))
        if mode == "explore":
            return terminal.explore_header(options.session_exploration(config))
        return None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give xdist's workers the session's seed."""
        node.workerinput["freethread_seed"] = options.session_plan(node.config).seed

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Know what is being collected when an import switches the GIL on."""
        self._gil.during = f"collecting {collector.nodeid or 'the session'}"
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Decide for each test how it is run."""
        for item in items:
            try:
                self._insist_on_one(items)
                self._prepare(item)
            except SettingError as error:
                if not hasattr(self._config, "workerinput"):
                    raise pytest.UsageError(str(error)) from None
                # What a worker raises here reaches nobody; its controller says why it stopped.
                item.session.shouldstop = str(error)
                _fail_in_setup(item, str(error))
                return

    def _prepare(self, item: pytest.Item) -> None:
        planned = options.parallel_plan(item) or options.item_plan(item)
        if planned is None:
            return
        plan, shared = planned
        alone = demotion.left_alone(item)
        if alone is not None:
            self._cannot_replay(item, f"left alone: {alone}")
            item.stash[_note_key] = {"how": "left alone", "why": alone}
            return
        from pytest_freethread.records import ExplorationPlan, ParallelPlan  # once one is needed

        assert isinstance(item, pytest.Function)
        why = options.unsafe_reason(item)
        if why is None:
            why = demotion.reason(item, shared)
            if why is None and isinstance(plan, ExplorationPlan):
                why = demotion.unexplorable(item)
            if why is not None and self._strict:
                _fail_in_setup(item, f"--freethread-strict: it cannot run in parallel: it {why}")
        if why is not None:
            self._cannot_replay(item, f"run on one thread: {why}")
            item.stash[_note_key] = {"how": "one thread", "why": why}
            return
        if isinstance(plan, ParallelPlan):
            self._measure(item, plan, shared)
        elif isinstance(plan, ExplorationPlan):
            self._explore(item, plan, shared)
        else:
            self._stress(item, plan, shared)

    def _stress(self, item: pytest.Function, plan: Plan, shared: frozenset[str]) -> None:
        if demotion.is_given(item):
            from pytest_freethread.plugin.given import GivenStress

            item.stash[_test_key] = GivenStress(item, plan)
            return
        from pytest_freethread.plugin.items import ParallelTest

        test = item.stash[_test_key] = ParallelTest(item, plan, shared)
        test.progress = partial(self._progress.rounds, item.nodeid, plan)

    def _explore(
        self, item: pytest.Function, plan: ExplorationPlan, shared: frozenset[str]
    ) -> None:
        token, kept = options.replayed(self._config), self._kept.of(item.nodeid)
        if demotion.is_given(item):
            from pytest_freethread.plugin.given import GivenExplored

            item.stash[_test_key] = GivenExplored(
                item, plan, token=token, kept=kept, strict=self._strict
            )
            return
        from pytest_freethread.plugin.explored import ExploredTest

        test = item.stash[_test_key] = ExploredTest(
            item,
            plan,
            shared,
            token=token,
            kept=kept,
            strict=self._strict,
        )
        if self._progress.watched:
            test.progress = partial(self._progress.schedules, item.nodeid, plan)

    def _measure(self, item: pytest.Function, plan: ParallelPlan, shared: frozenset[str]) -> None:
        from pytest_freethread.plugin.measured import MeasuredTest

        self._cannot_replay(item, "measured, not explored")
        item.stash[_test_key] = MeasuredTest(item, plan, shared, strict=self._strict)

    def _insist_on_one(self, items: list[pytest.Item]) -> None:
        if options.replayed(self._config) is not None and len(items) > 1:
            raise SettingError(
                f"--freethread-replay: {len(items)} tests are selected, and a schedule is of one; "
                "name it, as in pytest 'test_file.py::test_name' --freethread-replay=..."
            )

    def _cannot_replay(self, item: pytest.Item, why: str) -> None:
        if options.replayed(self._config) is not None:
            raise SettingError(f"--freethread-replay: {item.nodeid} is {why}")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Know which test runs when an import switches the GIL on; keep explorations fast."""
        self._gil.during = nodeid
        heap: Any = sys.modules.get("pytest_freethread.instrument.heap")  # of those who explore
        if heap is not None and _is_outermost():
            heap.settle()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Take the progress line away, and notice of threads that are stuck or left behind."""
        test = item.stash.get(_test_key, None)
        drawing: Any = sys.modules.get("pytest_freethread.drawing")  # of those who use it
        try:
            with contextlib.nullcontext() if drawing is None else drawing.keeping_the_stage():
                return (yield)
        finally:
            self._progress.clear()
            if test is not None and test.left_threads and not self._stuck:
                self._stuck = True
                leaving.never_wait_at_exit(lambda: self._status)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """Do not let a tear-down wait for threads that never come back; then let go of the test."""
        guard: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._stuck:
            guard = leaving.interruptible(options.session_plan(item.config).deadline)
        try:
            with guard:
                return (yield)
        finally:
            if _test_key in item.stash:
                item.stash[_test_key].forget()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put on the report how the test was run, as plain values that cross xdist."""
        report: Any = yield
        note = item.stash.get(_note_key, None)
        test = item.stash.get(_test_key, None)
        if test is not None and call.when == "call":
            note = test.note()
        if note is not None and (call.when == "call" or not report.passed):
            report.freethread = note
        if call.when == "call" and outcomes_key in item.stash:
            report.freethread_scaling = item.stash[outcomes_key]
        if self._gil.culprit is not None:
            report.freethread_gil = [self._gil.culprit, self._gil.culprit_during]
        return report  # type: ignore[no-any-return]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Hand what a report carries to the summary; on a controller, from all workers."""
        if hasattr(report, "freethread"):
            self._kept.take(report.nodeid, report.freethread)
            expected = hasattr(report, "wasxfail")
            self._summary.add(report.nodeid, report.freethread, failure_expected=expected)
        self._outcomes += getattr(report, "freethread_scaling", [])
        if hasattr(report, "freethread_gil"):
            self._summary.add_gil(*report.freethread_gil)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: Any, config: pytest.Config
    ) -> tuple[str, str, str] | None:
        """A letter and a word of its own for a test that passed in parallel."""
        note = getattr(report, "freethread", None)
        if not note or not terminal.tried(note) or not report.passed or hasattr(report, "wasxfail"):
            return None
        return "passed", _letter(config), f"PASSED [{terminal.amount(note)}]"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the session over the GIL if asked to; remember the status for a forced exit."""
        if self._gil.culprit is not None:
            self._summary.add_gil(self._gil.culprit, self._gil.culprit_during)
        if self._require_nogil and self._summary.gil and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._save_outcomes()
        self._kept.save()
        self._status = int(session.exitstatus)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what ran in parallel, what did not and why, and what was found."""
        self._summary.write(terminalreporter, gil_is_error=self._require_nogil)
        if self._outcomes:
            terminal.write_parallelism(terminalreporter, self._outcomes)
            if self._comparison is not None:
                terminalreporter.section("freethread: two interpreters")
                for line in self._comparison.lines(self._outcomes):
                    terminalreporter.line(line)

    def _save_outcomes(self) -> None:
        folder = options.place(self._config, "freethread-scaling")
        if folder is not None and self._outcomes and not hasattr(self._config, "workerinput"):
            from pytest_freethread.plugin.comparison import OUTCOMES

            file = Path(folder) / OUTCOMES
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self._outcomes, indent=1), encoding="utf-8")


def _comparison(config: pytest.Config) -> Comparison | None:
    """With the interpreter that an option names; a worker leaves that to its controller."""
    python = options.place(config, "freethread-compare")
    if python is None or hasattr(config, "workerinput"):
        return None
    from pytest_freethread.plugin.comparison import Comparison, is_inside  # for those who compare

    if is_inside():
        return None
    try:
        return Comparison(config, python, options.said_where(config, "freethread-compare"))
    except SettingError as error:
        raise pytest.UsageError(str(error)) from None


def _fail_in_setup(item: pytest.Item, message: str) -> None:
    def setup() -> None:
        pytest.fail(message, pytrace=False)

    item.setup = setup  # type: ignore[method-assign]


def _letter(config: pytest.Config) -> str:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    stream = getattr(getattr(reporter, "_tw", None), "_file", sys.stdout)
    encoding = getattr(stream, "encoding", None) or "ascii"
    return "⁝" if "utf" in encoding.lower() else ":"


def _is_outermost() -> bool:
    """Whether no test runs, so that this session is not run by one."""
    return "PYTEST_CURRENT_TEST" not in os.environ
