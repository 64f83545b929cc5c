"""What the session's header, letters and summary say."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from pytest_freethread import interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from pytest_freethread.records import ExplorationPlan, Plan

_MOST_PLACES = 3

_REPLAYED = {
    "failed": "failed as before",
    "passed": "the token's schedule shows no failure",
    "inconclusive": "the test no longer goes that way",
}
"""What a replay came to, by its verdict."""


def stress_header(plan: Plan) -> str:
    """One line: the interpreter, and what each test will go through."""
    return (
        f"freethread: {interpreter.facts()}; stress, {_plural(plan.threads, 'thread')} × "
        f"{_plural(plan.rounds, 'round')}{_budget(plan.seconds)}, seed {plan.seed}"
    )


def explore_header(plan: ExplorationPlan) -> str:
    """The same where tests are explored."""
    return (
        f"freethread: {interpreter.facts()}; explore, {_plural(plan.threads, 'thread')}, up to "
        f"{_plural(plan.schedules, 'schedule')}{_budget(plan.seconds)} per test, seed {plan.seed}"
    )


def amount(note: dict[str, Any]) -> str:
    """How much a test was tried, such as `8 threads x 50`, or `explored 252 schedules, all`."""
    if note["how"] == "measured":
        return "in parallel" if note["verdict"] == "passed" else "parallelism inconclusive"
    if note["how"] == "explored":
        if note["replayed"]:
            return f"replayed: {_REPLAYED[note['verdict']]}"
        doubt = "inconclusive, " if note["doubt"] else ""
        every = ", all" if note["exhaustive"] else ""
        return f"{doubt}explored {_plural(note['schedules'], 'schedule')}{every}{_of(note)}"
    done, planned = note["rounds"], note["planned"]
    rounds = f"{done:,}" + (f" of {planned:,}" if done < planned else "")
    return f"{_plural(note['threads'], 'thread')} x {rounds}{_of(note)}"


def tried(note: dict[str, Any]) -> bool:
    """Whether a note is of a test that ran more than once at a time."""
    return note["how"] in {"parallel", "explored", "measured"}


class Summary:
    """Collects what the reports say of each test; on a controller, of all workers' tests.

    Reports carry a dict of plain values as their attribute `freethread`, so that it crosses xdist:
    `how` (`parallel`, `explored`, `one thread`, `left alone`), and `why`, or what was done.
    """

    def __init__(self) -> None:
        self._notes: dict[str, dict[str, Any]] = {}
        self.gil: set[tuple[str, str]] = set()

    def add(self, nodeid: str, note: dict[str, Any], *, failure_expected: bool) -> None:
        """Take a report's note; what a test is expected to fail with is no finding."""
        self._notes[nodeid] = {**note, "findings": []} if failure_expected else note

    def add_gil(self, module: str, during: str) -> None:
        """Take note that importing a module switched the GIL on."""
        self.gil.add((module, during))

    def write(self, terminal: pytest.TerminalReporter, *, gil_is_error: bool) -> None:
        """Write the section, if there is anything to say."""
        if not self._notes and not (self.gil and gil_is_error):
            return
        terminal.section("freethread")
        if self._notes:
            self._write_counts(terminal)
            self._write_reasons(terminal)
            self._write_remarks(terminal)
        self._write_findings(terminal, "error" if gil_is_error else "note")
        self._write_worth(terminal)

    def _by(self, how: str) -> dict[str, dict[str, Any]]:
        return {nodeid: note for nodeid, note in self._notes.items() if note["how"] == how}

    def _write_counts(self, terminal: pytest.TerminalReporter) -> None:
        parallel, explored = len(self._by("parallel")), self._by("explored")
        one, alone = len(self._by("one thread")), len(self._by("left alone"))
        how = "replayed" if any(note["replayed"] for note in explored.values()) else "explored"
        measured = len(self._by("measured"))
        nothing_else = not explored and not measured
        counts = (
            [f"{_plural(parallel, 'test')} ran in parallel"] if parallel or nothing_else else []
        )
        if explored:
            counts.append(
                f"{len(explored)} {how}" if counts else f"{_plural(len(explored), 'test')} {how}"
            )
        if measured:
            counts.append(
                f"{measured} measured" if counts else f"{_plural(measured, 'test')} measured"
            )
        terminal.line(", ".join([*counts, f"{one} on one thread", f"{alone} left alone"]))

    def _write_reasons(self, terminal: pytest.TerminalReporter) -> None:
        places: dict[str, list[str]] = defaultdict(list)
        for nodeid, note in self._notes.items():
            if not tried(note):
                places[note["why"]].append(nodeid)
        width = max(map(len, places), default=0)
        for why, nodeids in sorted(places.items(), key=lambda each: -len(each[1])):
            verbose = terminal.verbosity > 0
            names = nodeids if verbose else _files(nodeids)
            shown = names if verbose else names[:_MOST_PLACES]
            more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
            terminal.line(f"{len(nodeids):>4}  {why:<{width}}  {', '.join(shown)}{more}")

    def _write_remarks(self, terminal: pytest.TerminalReporter) -> None:
        for nodeid, note in self._notes.items():
            if note.get("cut"):
                terminal.line(f"   cut short after {amount(note)}: {note['cut']}  {nodeid}")
        for nodeid, note in self._by("parallel").items():
            if note["skipped"] and note["skipped"] < note["executions"]:
                skipped = f"{note['skipped']} of {note['executions']} executions"
                terminal.line(f"   skipped in {skipped}: {note['skip']}  {nodeid}")
        explored = self._by("explored")
        for nodeid, note in explored.items():
            if note["skip"] is not None:
                terminal.line(f"   skipped in some executions: {note['skip']}  {nodeid}")
        doubtful: dict[str, list[str]] = defaultdict(list)
        for nodeid, note in explored.items():
            if note["doubt"] is not None:
                doubtful[note["doubt"]].append(nodeid)
        self._write_benign(terminal)
        for doubt, nodeids in doubtful.items():
            names = ", ".join(nodeids if terminal.verbosity > 0 else _files(nodeids))
            terminal.line(f"{_plural(len(nodeids), 'test')} inconclusive: {doubt}  {names}")

    def _write_benign(self, terminal: pytest.TerminalReporter) -> None:
        """What was suppressed, by which comment or pattern, and which of them matched nothing."""
        suppressed = Counter[str]()
        for note in (*self._by("parallel").values(), *self._by("explored").values()):
            suppressed.update(note["suppressed"])
        if suppressed.total():
            by = ", ".join(f"{reason} ({count})" for reason, count in (+suppressed).items())
            terminal.line(f"{suppressed.total()} suppressed as benign: {by}")
        stale = [reason for reason, count in suppressed.items() if not count]
        if stale:
            terminal.line(f"benign matched nothing in this run: {', '.join(stale)}")

    def _write_findings(self, terminal: pytest.TerminalReporter, gil: str) -> None:
        rows = [
            (gil, f"gil: importing {module} switched the GIL on", during, None)
            for module, during in sorted(self.gil)
        ]
        rows += [
            (severity, _said(note, kind, message), nodeid, token)
            for nodeid, note in self._notes.items()
            if tried(note)
            for severity, kind, message, token in note["findings"]
        ]
        if not rows:
            return
        count = Counter(severity for severity, *_ in rows)
        terminal.line(f"{_plural(count['error'], 'finding')}, {_plural(count['note'], 'note')}")
        for severity, message, nodeid, token in sorted(rows, key=lambda row: row[0]):
            terminal.write(
                f"   {severity:<5}  ", red=severity == "error", yellow=severity == "note"
            )
            terminal.line("  ".join([message, nodeid, *([token] if token else [])]))

    def _write_worth(self, terminal: pytest.TerminalReporter) -> None:
        for note in self._by("explored").values():
            if note["replayed"]:
                terminal.line(f"replayed {note['replayed']}: {_REPLAYED[note['verdict']]}")
        explored = [note for note in self._by("explored").values() if not note["replayed"]]
        if explored:
            schedules = sum(note["schedules"] for note in explored)
            seconds = sum(note["seconds"] for note in explored)
            passed = [note for note in explored if note["verdict"] == "passed"]
            every = sum(note["exhaustive"] for note in passed)
            counts = [(every, "exhaustively"), (len(passed) - every, "up to their budget")]
            parts = [f"{count} {how}" for count, how in counts if count]
            what = f" (tests: {', '.join(parts)})" if parts else ""
            terminal.line(f"explored {_plural(schedules, 'schedule')} in {seconds:.1f} s{what}")
        parallel = self._by("parallel").values()
        if parallel:
            executions = sum(note["executions"] for note in parallel)
            seconds = sum(note["seconds"] for note in parallel)
            terminal.line(
                f"ran {_plural(executions, 'execution')} in {seconds:.1f} s, as the threads "
                "happened to meet: no proof, and not replayable"
            )
            if interpreter.gil_enabled():
                terminal.line(
                    "the GIL is on, so threads took turns: races in code without probes show on a "
                    "free-threaded Python only"
                )


def write_parallelism(
    terminal: pytest.TerminalReporter, outcomes: Sequence[dict[str, Any]]
) -> None:
    """A section with what each measurement of parallelism came to."""
    counts = Counter(outcome["verdict"] for outcome in outcomes)
    terminal.section("freethread: parallelism")
    terminal.line(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    for outcome in outcomes:
        terminal.line(outcome["test"])
        for line in outcome["lines"]:
            terminal.line(f"    {line}")


class Progress:
    """Tells how far a long test is, behind what the line says already, where a person watches."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stream: int | None = None
        self._written = False
        watched = sys.stdout.isatty() and config.getoption("verbose") >= 0
        if watched and not hasattr(config, "workerinput"):
            # Duplicated while nothing is captured yet; while a test runs, 1 leads elsewhere.
            self._stream = os.dup(sys.stdout.fileno())

    @property
    def watched(self) -> bool:
        """Whether anybody sees it."""
        return self._stream is not None

    def rounds(self, nodeid: str, plan: Plan, rounds: int, failures: int) -> None:
        """Say how far a stress run is."""
        failed = f", {_plural(failures, 'failure')}" if failures else ""
        self._show(f" round {rounds:,} of {plan.rounds:,}{failed}: {nodeid}")

    def schedules(self, nodeid: str, plan: ExplorationPlan, schedules: int) -> None:
        """Say how far an exploration is."""
        self._show(f" schedule {schedules:,} of {plan.schedules:,}: {nodeid}")

    def _show(self, text: str) -> None:
        """Write or overwrite it."""
        if self._stream is not None:
            writer: Any = self._config.pluginmanager.get_plugin("terminalreporter")
            room = writer._tw.fullwidth - writer._tw.width_of_current_line - 1  # noqa: SLF001
            # Save the cursor, write, clear the rest of the line, go back.
            os.write(self._stream, f"\x1b7{text[: max(0, room)]}\x1b[K\x1b8".encode())
            self._written = True

    def clear(self) -> None:
        """Take it away."""
        if self._stream is not None and self._written:
            os.write(self._stream, b"\x1b[K")
            self._written = False

    def close(self) -> None:
        """Let go of the terminal."""
        if self._stream is not None:
            os.close(self._stream)
            self._stream = None


def _of(note: dict[str, Any]) -> str:
    """How many examples of Hypothesis it was."""
    return f" in {_plural(note['examples'], 'example')}" if "examples" in note else ""


def _said(note: dict[str, Any], kind: str, message: str) -> str:
    first = message.splitlines()[0]
    return first if note["how"] == "explored" else f"{kind}: {first}"


def _files(nodeids: list[str]) -> list[str]:
    return list(dict.fromkeys(nodeid.partition("::")[0] for nodeid in nodeids))


def _budget(seconds: float | None) -> str:
    return "" if seconds is None else f" or {seconds:g} s"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
