"""An interleaving as text: what failed, the steps in columns, what repairs it, how to see it again.

Threads stand side by side where there is room for that. `folding` says which steps are shown.
"""

from __future__ import annotations

import linecache
import math
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from pytest_freethread.report import folding, layout, scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from pytest_freethread.records import (
        Failure,
        Finding,
        Interleaving,
        Move,
        Place,
        ThreadState,
        Violation,
    )

_WIDTH: Final = 98  # of a line; the block is indented by two more
_ROOM: Final = _WIDTH - 6  # beside the number
_MOST_FRAMES: Final = 5
_MOST_TEXT: Final = 12
_NARROWEST: Final = 16
_WIDEST: Final = 44
_MOST_COLUMNS: Final = 4
_NEAREST: Final = 30  # where the second of two columns begins at least


def lines(finding: Finding, shown: Interleaving, *, full: bool) -> Iterator[str]:
    """The evidence of a finding, line by line; `full`: every step, however many."""
    if shown.scenario is not None:
        yield from scenario.lines(shown.scenario)
        yield ""
    if shown.failure is not None:
        yield from _failure(shown.failure, full=full)
        yield ""
    elif shown.broken is not None:
        yield f"  {shown.broken}"
        yield ""
    yield _facts(finding, shown)
    if shown.moves:
        yield ""
        rows, untold = folding.rows(shown, full=full)
        yield from _table(shown, rows, full=full)
        if untold:
            yield ""
            steps = folding.count(untold, "step")
            one = untold == 1
            verb = "touches" if one else "touch"
            yield f"({steps} that {verb} nothing shared {'is' if one else 'are'} not shown)"
        repair = _repair(shown, rows)
    else:
        repair = _repair(shown, [])
    if shown.blocked:
        yield ""
        yield from _blocked(shown.blocked)
    if repair:
        yield ""
        yield from textwrap.wrap(repair, _WIDTH - 2)
    yield ""
    again = [shown.call] if shown.command is None else [shown.command, shown.call]
    for index, how in enumerate(again):
        yield f"{'' if index else 'Again:':<8}{how}"


def _facts(finding: Finding, shown: Interleaving) -> str:
    """Where it was found, how little it takes, and how sure it is."""
    number, by, seconds = shown.found
    preemptions = folding.count(shown.preemptions, "preemption")
    if by in {"replay", "drawn"}:
        return f"{by} · {preemptions}"
    facts = [by.lower().removesuffix("walk"), f"{preemptions}, the fewest found"]
    if seconds:
        facts[:0] = [f"schedule {number:,}", f"{math.ceil(seconds * 1000)} ms"]
    if finding.reproduced is not None:
        facts.append("reproduced {}/{}".format(*finding.reproduced))
    return " · ".join(facts)


def _failure(failure: Failure, *, full: bool) -> Iterator[str]:
    """The line that failed with its place, those that led there, and what the exception says."""
    error = failure.exception
    frames = [(frame.f_code.co_filename, line) for frame, line in _walk(error)]
    for file, line in frames[-_MOST_FRAMES:]:
        source = linecache.getline(file, line).strip()
        where = f"{layout.relative(file)}:{line}"
        room = _WIDTH - len(where) - 6
        if room < min(len(source), _NEAREST):  # a long path has a line of its own
            yield f"  {_cut(source, _WIDTH - 2)}"
            yield f"    {where}"
        else:
            yield f"  {_cut(source, room):<{room + 2}}{where}"
    said = failure.text.splitlines()
    if not isinstance(error, AssertionError):
        said[:1] = [": ".join([type(error).__name__, *said[:1]])]
    elif not said and not frames:
        said = ["AssertionError"]
    for each in said if full else said[:_MOST_TEXT]:
        yield f"    {each.strip().removeprefix('+').strip()}"
    if full:
        yield ""
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        yield from text.rstrip().splitlines()


def _walk(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _blocked(states: Sequence[ThreadState]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = []
    for state in states:
        mine = list(layout.lock_rows(state))
        if state.waits_in:
            where = _called(state)
            at = ("", "") if where is None else (f"at {layout.place(where)}", where.source)
            who = layout.title(state) if not mine else ""
            mine.append((who, "waits in", state.waits_in, *at))
        rows += mine
    if rows:
        yield from (_cut(row, _WIDTH) for row in layout.columns(rows))


def _called(state: ThreadState) -> Place | None:
    """The line that called what a thread waits in."""
    for caller, called in zip(state.stack, state.stack[1:], strict=False):
        if called.function == state.waits_in:
            return caller
    return state.stack[-1] if state.stack else None


def _repair(shown: Interleaving, rows: Sequence[folding.Row]) -> str:
    """What should have ordered the steps and did not, and what usually does."""
    said = (
        [] if shown.violation is None else [_order(shown, shown.violation, folding.numbers(rows))]
    )
    if shown.repair:
        said.append(f"Usual repair: {shown.repair}")
    return " ".join(said)


def _order(shown: Interleaving, broken: Violation, numbers: dict[int, int]) -> str:
    look, change, act = (numbers[i] for i in (broken.look, broken.change, broken.act))
    if broken.released:
        return (
            f"Steps {look}, {change} and {act} each hold {broken.released}, but thread "
            f"{shown.moves[broken.look].thread} lets go of it in between."
        )
    if broken.late:
        return f"Steps {change} and {act} hold {broken.late}, but step {look} does not."
    one, other = shown.moves[broken.change].holding, shown.moves[broken.act].holding
    if not one and not other:
        return f"Steps {change} and {act} are not ordered by any lock."
    locks = [", ".join(each) or "no lock" for each in (one, other)]
    if locks[0] == locks[1]:
        locks[1] = "that of another object"
    return f"Step {change} holds {locks[0]}, step {act} {locks[1]}: that does not order them."


# --- how they are laid out ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The lines above the steps, what comes before a thread's cells, and the cells of the moves."""

    heads: list[str]
    before: dict[int, str]
    cells: dict[int, str]


def _table(shown: Interleaving, rows: Sequence[folding.Row], *, full: bool) -> Iterator[str]:
    """A column for each thread; where that is too wide, the thread before each step."""
    numbers = folding.numbers(rows)
    names = {t: _name(shown, t) for row in rows if (t := _thread(shown, row)) is not None}
    names = dict(sorted(names.items()))
    caps = [10**6] if full else list(range(_WIDEST, _NARROWEST, -4))
    layout = _beside(shown, numbers, names, caps) or _below(shown, numbers, names, caps)
    yield from (_line("", head) for head in layout.heads)
    for row in rows:
        if isinstance(row, folding.Fold):
            yield _line("", ("" if row.thread is None else layout.before[row.thread]) + row.text)
            continue
        move = shown.moves[row]
        before = layout.before[move.thread]
        yield _line(numbers[row], _fitting(before + layout.cells[row], full=full))
        if move.state is not None:
            yield _line("", _fitting(f"{before}state: {move.state}", full=full))
        if move.pause is not None:
            yield _line("", _fitting(before + move.pause, full=full))


def _beside(
    shown: Interleaving, numbers: Mapping[int, int], names: Mapping[int, str], caps: Iterable[int]
) -> _Layout | None:
    """Threads in columns; as a row has one cell only, it may reach into those to the right."""
    titles = [f"thread {t}  {name}".rstrip() for t, name in names.items()]
    for cap in caps:
        cells = _cells(shown, numbers, cap)
        widths = [
            max([len(title), *(len(c) for r, c in cells.items() if shown.moves[r].thread == t)])
            for t, title in zip(names, titles, strict=True)
        ]
        starts = _starts(widths)
        if starts is not None:
            ends = [start - 2 for start in starts[1:]] + [_ROOM]
            spans = [min(w, end - at) for w, at, end in zip(widths, starts, ends, strict=True)]
            heads = []
            for texts in (titles, ["-" * span for span in spans]):
                head = ""
                for text, start, span in zip(texts, starts, spans, strict=True):
                    head = head.ljust(start) + _cut(text, span)
                heads.append(head)
            before = {t: " " * start for t, start in zip(names, starts, strict=True)}
            return _Layout(heads=heads, before=before, cells=cells)
    return None


def _below(
    shown: Interleaving, numbers: Mapping[int, int], names: Mapping[int, str], caps: Iterable[int]
) -> _Layout:
    """All threads one below the other, each step with the name of its thread."""
    before = {t: f"thread {t}  " for t in names}
    cells: dict[int, str] = {}
    for cap in caps:
        cells = _cells(shown, numbers, cap, beside=False)
        if max(map(len, cells.values()), default=0) + max(map(len, before.values())) <= _ROOM:
            break
    heads = []
    for name in dict.fromkeys(names.values()):
        threads = [str(t) for t in names if names[t] == name]
        head = f"thread{'s' * (len(threads) > 1)} {', '.join(threads)}  {name}".rstrip()
        heads.append(_cut(head, _ROOM))
    return _Layout(heads=[*heads, "-" * max(map(len, heads))], before=before, cells=cells)


def _thread(shown: Interleaving, row: folding.Row) -> int | None:
    return row.thread if isinstance(row, folding.Fold) else shown.moves[row].thread


def _starts(widths: Sequence[int]) -> list[int] | None:
    """Where the columns begin; None if there is no room for them."""
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    if len(widths) <= _MOST_COLUMNS and starts[-1] + widths[-1] <= _ROOM:
        return starts
    if len(widths) == 2 and widths[1] + _NEAREST <= _ROOM:
        return [0, min(starts[1], _ROOM - widths[1])]
    return None


def _fitting(text: str, *, full: bool) -> str:
    return text if full else _cut(text, _ROOM)


def _line(number: int | str, text: str) -> str:
    return f"{number:>4}  {text}".rstrip()


def _name(shown: Interleaving, thread: int) -> str:
    name = shown.names[thread] if thread < len(shown.names) else ""
    return name.rpartition("<locals>.")[2]


def _cells(
    shown: Interleaving, numbers: Mapping[int, int], widest: int, *, beside: bool = True
) -> dict[int, str]:
    """Each move's place, source and values, aligned with those of the same column."""
    broken = shown.violation
    places: dict[int, int] = {}
    sources: dict[int, int] = {}
    table: dict[int, tuple[int, str, str, str]] = {}
    for row in numbers:
        move = shown.moves[row]
        place = f"{PurePath(move.place.file).name}:{move.place.line}" if move.place else ""
        source = _cut(move.line or move.operation, widest)
        value = _value(move, max(widest // 2, 12))
        if broken is not None and broken.overwrites and row == broken.act:
            value += f"   overwrites step {numbers[broken.change]}"
        table[row] = move.thread if beside else 0, place, source, value
        column = move.thread if beside else 0
        places[column] = max(places.get(column, 0), len(place))
        if value:
            sources[column] = max(sources.get(column, 0), len(source))
    return {
        row: f"{place:<{places[column]}}  {source:<{sources.get(column, 0)}}  {value}".rstrip()
        for row, (column, place, source, value) in table.items()
    }


def _value(move: Move, widest: int) -> str:
    before, after = (each and _cut(each, widest) for each in (move.before, move.after))
    if before is not None and after is not None:
        return f"{before} → {after}"
    if before is not None or after is not None:
        return f"→ {after if after is not None else before}"
    return "(written)" if move.operation == "write" else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
