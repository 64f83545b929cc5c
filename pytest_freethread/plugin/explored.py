"""A test that is explored: its body in several controlled threads, one schedule after another."""

from __future__ import annotations

import functools
import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread import interpreter
from pytest_freethread.errors import SettingError
from pytest_freethread.plugin.contexts import body_of
from pytest_freethread.plugin.items import (
    INTERRUPTS,
    RerunTest,
    failure_of,
    findings_of,
    lines_of,
    shortened,
)
from pytest_freethread.plugin.parts import SIGNALS
from pytest_freethread.records import Interleaving, Race, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from _pytest._code.code import ReprFileLocation

    from pytest_freethread.exploring import Program, Search
    from pytest_freethread.records import ExplorationPlan, Finding, Phase

_PAUSE = 0.1
"""Seconds between two reports of progress."""


class ExploredTest(RerunTest):
    """A test whose schedules are searched for one that fails, or that follows one of them.

    Args:
        item: the test.
        plan: how to search.
        shared: its fixtures of which all threads use one instance.
        token: the schedule to follow instead of a search.
        kept: tokens of schedules that failed last time.
        strict: whether a search that cannot tell fails the test.
    """

    def __init__(
        self,
        item: pytest.Function,
        plan: ExplorationPlan,
        shared: frozenset[str],
        *,
        token: str | None = None,
        kept: Sequence[str] = (),
        strict: bool = False,
    ) -> None:
        super().__init__(item, shared)
        self.plan = plan
        self.progress: Callable[[int], None] | None = None
        self._token = token
        self._kept = kept
        self._strict = strict
        self._search: Search | None = None
        self._doubt: str | None = None
        self._begun = 0
        self._signal: BaseException | None = None
        self._completed = False

    def runtest(self) -> None:
        """Search, or replay; raise the failure, or skip where every execution did."""
        from pytest_freethread import harness

        self.make_contexts(self.plan.threads)
        program = self._program()
        try:
            if self._token is not None:
                result = harness.follow(self._token, program, races=self.plan.races)
            else:
                self._search, result = harness.search(
                    self.plan, program, first=self._kept, progress=self._now_and_then()
                )
                self._doubt = harness.doubt(self._search)
        except SettingError as error:
            pytest.fail(f"{self.item.nodeid}: marker freethread({error})", pytrace=False)
        findings = tuple(
            with_the_way_back(self.item, self.plan, finding) for finding in result.findings
        )
        self.judge(replace(result, findings=findings))
        if result.verdict is Verdict.INCONCLUSIVE and self._token is not None:
            pytest.fail(result.scope, pytrace=False)
        if result.verdict is Verdict.INCONCLUSIVE and self._strict:
            pytest.fail(f"--freethread-strict: inconclusive: {self._doubt}", pytrace=False)
        if self._signal is not None and not self._completed:
            raise self._signal

    def note(self) -> dict[str, Any] | None:
        """See `RerunTest.note`."""
        result = self.result
        if result is None:
            return None
        tokens = [finding.token for finding in result.findings if finding.severity == "error"]
        return {
            "how": "explored",
            "schedules": result.executions,
            "exhaustive": result.exhaustive,
            "seconds": result.seconds,
            "verdict": result.verdict.value,
            "replayed": self._token,
            "doubt": self._doubt if result.verdict is Verdict.INCONCLUSIVE else None,
            "skip": str(self._signal) if self._signal is not None and self._completed else None,
            "token": tokens[0] if tokens else None,
            "suppressed": shortened(result.suppressed),
            "findings": findings_of(result),
        }

    def forget(self) -> None:
        """See `RerunTest.forget`."""
        super().forget()
        self._search = self._signal = None

    def represent(self, finding: Finding) -> tuple[list[Any], ReprFileLocation]:
        """The interleaving, and what pytest says of the exception."""
        from pytest_freethread.report import text

        title = ["replayed: failed as before", ""] if self._token is not None else []
        failure = failure_of(finding)
        if failure is None:
            return [lines_of([*title, *text.block(finding)])], self.location(finding.message)
        assert isinstance(finding.evidence, Interleaving)
        # pytest shows the exception better, with the source around it and its values.
        plain = replace(finding, evidence=replace(finding.evidence, failure=None))
        who = "" if failure.thread is None else f"thread {failure.thread}"
        who = who if failure.phase == "body" else f"{failure.phase}, {who}".rstrip(", ")
        entries, crash = self.represent_exception(failure, finding.message, finding.token or who)
        return [lines_of([*title, *text.block(plain), "", f"{who}:"]), *entries], crash

    # ----- the program -----

    def _program(self) -> Program:
        from pytest_freethread.exploring import Program

        if self.contexts:
            bodies = [self._body(index) for index in range(self.plan.threads)]
        else:
            plain = body_of(self.item, [])
            bodies = [self._named(lambda: self._perform(plain))] * self.plan.threads
        return Program(
            bodies=tuple(bodies),
            setup=self._begin if self.contexts else None,
            invariant=None,
            cleanup=self._end if self.contexts else None,
            include=self.plan.include,
            signals=SIGNALS,
            interrupts=INTERRUPTS,
            root=self.item.config.rootpath,
            ends=True,
        )

    def _body(self, index: int) -> Callable[..., object]:
        return self._named(lambda prepared: self._perform(prepared[index]))

    def _named(self, body: Callable[..., object]) -> Callable[..., object]:
        """Known by the name of the test function."""
        return functools.wraps(self.item.function)(body)

    def _perform(self, body: Callable[[], object]) -> None:
        from pytest_freethread.execution.free import SeveralFailures

        try:
            body()
        except SIGNALS as signal:
            self._signal = signal
            raise
        except SeveralFailures as several:
            raise BaseExceptionGroup("several failures", several.exceptions) from None
        self._completed = True

    def _begin(self) -> list[Callable[[], object]]:
        """Set up the fixtures of an execution, on the main thread and under control."""
        self._begun = 0
        bodies = []
        for context in self.contexts:
            self._begun += 1
            context.set_up(0)
            if context.index is not None:
                bodies.append(context.body)
        return bodies

    def _end(self, failed: frozenset[int]) -> Iterator[tuple[Phase, int | None, BaseException]]:
        # Only a replay is the last execution, whose temporary files somebody may want to see.
        kept = failed if self._token is not None else frozenset()
        yield from self.tear_down(self.contexts[: self._begun], kept)

    def _now_and_then(self) -> Callable[[int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        told = interpreter.monotonic()

        def report(schedules: int) -> None:
            nonlocal told
            now = interpreter.monotonic()
            if now - told >= _PAUSE:
                told = now
                progress(schedules)

        return report


# ----- the way back -----


def with_the_way_back(item: pytest.Function, plan: ExplorationPlan, finding: Finding) -> Finding:
    """A finding of a test with the command that replays it."""
    evidence = finding.evidence
    if not isinstance(evidence, (Interleaving, Race)) or finding.token is None:
        return finding
    command = _command(item, finding.token, plan)
    return replace(finding, evidence=replace(evidence, command=command))


def _command(item: pytest.Function, token: str, plan: ExplorationPlan) -> str:
    """What to type where this session was started, to run a test under a schedule."""
    config = item.config
    _, _, within = item.nodeid.partition("::")
    try:
        file = os.path.relpath(item.path, config.invocation_params.dir)
    except ValueError:  # another drive
        file = str(item.path)
    words = ["pytest", f"{file}::{within}", f"--freethread-replay={token}"]
    # What was said on the command line has to be said again; markers and ini files stay.
    if config.getoption("--freethread-threads") is not None:
        words.append(f"--freethread-threads={plan.threads}")
    if config.getoption("--freethread-races") is not None:
        words.append(f"--freethread-races={plan.races}")
    words += [f"--rootdir={config.option.rootdir}"] if config.option.rootdir else []
    words += ["-c", str(config.option.inifilename)] if config.option.inifilename else []
    command, selected, *options = words
    quoted = shlex.quote(selected) if shlex.quote(selected) != selected else f"'{selected}'"
    return " ".join([command, quoted, *map(shlex.quote, options)])
