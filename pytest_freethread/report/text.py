"""A Result as text for a terminal: what broke, where, how it came about, what repairs it."""

from __future__ import annotations

import textwrap
import traceback
from typing import TYPE_CHECKING

from pytest_freethread.records import Failure, Finding, Interleaving, Leak, Race, Verdict
from pytest_freethread.report import interleaving, layout, races

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_freethread.records import LockUse, ThreadState

_MOST_MESSAGES = 4
_MOST_NAMES = 3
_WIDTH = 100
_LONG = 1.0
"""Seconds from which on it is said how long putting the probes in took."""

_ASCII = str.maketrans(
    {"→": "->", "·": "|", "…": "...", "×": "x", "−": "-", "≈": "~", "µ": "u", "█": "#", "░": "."}
)


def render(verdict: Verdict, findings: Sequence[Finding], scope: str) -> str:
    """The whole report."""
    lines = [f"{verdict.name}: {scope}"]
    for finding in findings:
        lines += ["", *block(finding)]
    return "\n".join(lines)


def block(finding: Finding, *, full: bool = False) -> list[str]:
    """A finding's lines: the sentence, then its evidence, indented.

    Args:
        finding: what to tell.
        full: all of it, however long; a screen otherwise.
    """
    head = f"{finding.severity}: {finding.message}"
    lines = [head, ""]
    match finding.evidence:
        case Failure() as failure:
            lines += layout.indented(_traceback(failure))
            lines += layout.indented(other_messages(failure))
        case Leak() as leak:
            lines += layout.indented(_leak(leak))
        case Interleaving() as shown:
            lines[:1] = textwrap.wrap(head, _WIDTH, subsequent_indent="  ", break_long_words=False)
            lines += layout.indented(interleaving.lines(finding, shown, full=full))
        case Race() as race:
            lines += layout.indented(races.lines(finding, race))
        case tuple() as states:
            cycle = finding.kind in {"deadlock", "lock-order"}
            lines += layout.indented(_threads(states, cycle=cycle))
    return lines


def plain(text: str) -> str:
    """A report for where there is nothing but ASCII."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def other_messages(failure: Failure) -> list[str]:
    """The other texts that a failure came with, the most frequent first."""
    lines = [f"also, {_times(count)}: {_first_line(text)}" for text, count in failure.other_texts]
    if len(lines) > _MOST_MESSAGES:
        more = len(lines) - _MOST_MESSAGES
        lines[_MOST_MESSAGES:] = [f"... and {more} other texts"]
    return lines


def exploration_scope(
    *,
    strategy: str,
    schedules: int,
    steps: int,
    seconds: float,
    exhaustive: bool,
    late: bool,
    preemptions: int | None,
    seed: int,
    left_out: Sequence[tuple[str, str]],
    outside: bool,
    finalized: bool,
    suppressed: int = 0,
    guarantee: str | None = None,
    preparing: float = 0.0,
) -> str:
    """One line: what an exploration tried, and what it left out."""
    much = "every interleaving, up to equivalence" if exhaustive else "bounded by its budget"
    if late:
        much = "every interleaving in which no timeout fires early, up to equivalence"
    noun = "schedule" if schedules == 1 else "schedules"
    bound = "" if preemptions is None else f", at most {preemptions} preemptions each"
    partly = "; partial control: a thread was in real blocking" if outside else ""
    partly += "; finalizers ran beyond control" if finalized else ""
    benign = f"; {suppressed} suppressed as benign" if suppressed else ""
    promised = f"; {guarantee}" if guarantee else ""
    before = f" ({preparing:.1f} s of it to put the probes in)" if preparing >= _LONG else ""
    return (
        f"explored {schedules:,} {noun}, {steps:,} steps in {seconds:.2f} s{before}, {much}{bound} "
        f"({strategy}, seed {seed}{_lacking(left_out)}{partly}{benign}{promised})"
    )


def contract_scope(
    *,
    name: str,
    claim: str,
    scenarios: int,
    of: int,
    schedules: int,
    exhausted: int,
    first: tuple[int, float] | None,
    seconds: float,
    seed: int,
    left_out: Sequence[tuple[str, str]],
    doubt: str | None,
) -> str:
    """One line: how much of a contract was tried, and why that says nothing where it does not."""
    failed = "" if first is None else f", the first to fail after {first[0]:,} and {first[1]:.2f} s"
    why = "" if doubt is None else f"; {doubt}"
    return (
        f"contract of {name}, {claim}: {scenarios:,} different scenarios (at most {of:,}), "
        f"{schedules:,} schedules in {seconds:.2f} s{failed}; every interleaving of "
        f"{exhausted:,} (seed {seed}{_lacking(left_out)}){why}"
    )


def _lacking(left_out: Sequence[tuple[str, str]]) -> str:
    """How many functions have no probes, with some of their names."""
    if not left_out:
        return ""
    names = ", ".join(name for name, _ in left_out[:_MOST_NAMES])
    more = len(left_out) - _MOST_NAMES
    rest = f" and {more} more" if more > 0 else ""
    noun = "function" if len(left_out) == 1 else "functions"
    return f"; {len(left_out)} {noun} without probes: {names}{rest}"


def _traceback(failure: Failure) -> list[str]:
    error = failure.exception
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return text.rstrip().splitlines()


def _threads(states: Sequence[ThreadState], *, cycle: bool) -> Iterator[str]:
    known = [state for state in states if state.waits_for or state.holds]
    if known:
        yield from layout.columns(row for state in known for row in layout.lock_rows(state))
        yield ""
    if cycle:
        order = ", then ".join(dict.fromkeys(use.name for s in states[:1] for use in _both(s)))
        yield f"Usual repair: take these locks in one order everywhere (here: {order})."
    for index, state in enumerate(each for each in states if each.stack):
        if index or cycle:
            yield ""
        doing = f", in {state.waits_in}" if state.waits_in else ""
        yield f"{layout.title(state)}{doing}, most recent line last:"
        yield from layout.stack(state.stack)


def _both(state: ThreadState) -> list[LockUse]:
    return [*state.holds, *([state.waits_for] if state.waits_for else [])]


def _leak(leak: Leak) -> Iterator[str]:
    names = ", ".join(leak.names[:_MOST_NAMES])
    more = len(leak.names) - _MOST_NAMES
    yield f"{'daemon ' if leak.daemon else ''}threads: {names}" + (
        f" and {more} more" if more > 0 else ""
    )
    if leak.started_at:
        yield "started at, most recent line last:"
        yield from layout.stack(leak.started_at)
    else:
        yield "started by something other than threading.Thread.start"
    if leak.state.stack:
        doing = f", in {leak.state.waits_in}" if leak.state.waits_in else ""
        yield f"now{doing}, most recent line last:"
        yield from layout.stack(leak.state.stack)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "(no text)"
