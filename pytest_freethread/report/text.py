"""A Result as text for a terminal: what broke, where, how it came about, what repairs it."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

from pytest_freethread.records import Failure, Finding, Leak, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_freethread.records import LockUse, Place, ThreadState

_MOST_MESSAGES = 4
_MOST_NAMES = 3


def render(verdict: Verdict, findings: Sequence[Finding], scope: str) -> str:
    """The whole report."""
    lines = [f"{verdict.name}: {scope}"]
    for finding in findings:
        lines += ["", *block(finding)]
    return "\n".join(lines)


def block(finding: Finding) -> list[str]:
    """A finding's lines: the sentence, then its evidence, indented."""
    lines = [f"{finding.severity}: {finding.message}", ""]
    match finding.evidence:
        case Failure() as failure:
            lines += _indented(_traceback(failure))
            lines += _indented(other_messages(failure))
        case Leak() as leak:
            lines += _indented(_leak(leak))
        case tuple() as states:
            lines += _indented(_threads(states, deadlock=finding.kind == "deadlock"))
    return lines


def other_messages(failure: Failure) -> list[str]:
    """The other texts that a failure came with, the most frequent first."""
    lines = [f"also, {_times(count)}: {_first_line(text)}" for text, count in failure.other_texts]
    if len(lines) > _MOST_MESSAGES:
        more = len(lines) - _MOST_MESSAGES
        lines[_MOST_MESSAGES:] = [f"... and {more} other texts"]
    return lines


def relative(file: str) -> str:
    """A path as seen from the working directory, where it is below that."""
    try:
        path = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return file if path.startswith("..") else path


def _place(place: Place) -> str:
    return f"{relative(place.file)}:{place.line}"


def _traceback(failure: Failure) -> list[str]:
    error = failure.exception
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return text.rstrip().splitlines()


def _threads(states: Sequence[ThreadState], *, deadlock: bool) -> Iterator[str]:
    known = [state for state in states if state.waits_for or state.holds]
    if known:
        yield from _columns(row for state in known for row in _lock_rows(state))
        yield ""
    if deadlock:
        order = ", then ".join(dict.fromkeys(use.name for s in states[:1] for use in _both(s)))
        yield f"Usual repair: take these locks in one order everywhere (here: {order})."
        yield ""
    for index, state in enumerate(states):
        if index:
            yield ""
        doing = f", in {state.waits_in}" if state.waits_in else ""
        yield f"{_title(state)}{doing}, most recent line last:"
        yield from _stack(state.stack)


def _both(state: ThreadState) -> list[LockUse]:
    return [*state.holds, *([state.waits_for] if state.waits_for else [])]


def _lock_rows(state: ThreadState) -> Iterator[tuple[str, ...]]:
    who = _title(state)
    for use in state.holds:
        yield who, "holds", use.name, f"taken at {_place(use.place)}", use.place.source
        who = ""
    if state.waits_for:
        use = state.waits_for
        yield who, "waits for", use.name, f"at {_place(use.place)}", use.place.source


def _title(state: ThreadState) -> str:
    return f"thread {state.name!r}" if state.thread is None else f"thread {state.thread}"


def _leak(leak: Leak) -> Iterator[str]:
    names = ", ".join(leak.names[:_MOST_NAMES])
    more = len(leak.names) - _MOST_NAMES
    yield f"{'daemon ' if leak.daemon else ''}threads: {names}" + (
        f" and {more} more" if more > 0 else ""
    )
    if leak.started_at:
        yield "started at, most recent line last:"
        yield from _stack(leak.started_at)
    else:
        yield "started by something other than threading.Thread.start"
    if leak.state.stack:
        doing = f", in {leak.state.waits_in}" if leak.state.waits_in else ""
        yield f"now{doing}, most recent line last:"
        yield from _stack(leak.state.stack)


def _stack(places: Iterable[Place]) -> Iterator[str]:
    return _columns((f"  {_place(p)}", f"in {p.function}", p.source) for p in places)


def _columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}".rstrip() for line in lines]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "(no text)"
