"""Which steps of an interleaving are shown.

What touches nothing that another thread changes is left out, what comes again and again is told
once, and of what is still more than a screen the steps around the switches are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_freethread.records import Interleaving, Move

_MOST_ROWS: Final = 40
_UNTOLD: Final = 3  # steps that touch nothing shared: so few in a row are left out without a line
_LONGEST_CYCLE: Final = 60


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A line in the place of steps; all of one thread, or of several (None)."""

    thread: int | None
    text: str


Row = int | Fold
"""The index of a move, or what stands for several."""


def rows(shown: Interleaving, *, full: bool) -> tuple[list[Row], int]:
    """The rows, and how many steps were left out without one; `full`: every step."""
    moves = shown.moves
    if full:
        return list(range(len(moves))), 0
    broken = shown.violation
    marked = set() if broken is None else {broken.look, broken.change, broken.act}
    last = next((i for i, move in enumerate(moves) if _raises(shown, move)), len(moves))
    after = len(moves) - last - 1
    moves = moves[: last + 1]
    if any(move.contested for move in moves):
        rows, untold = _without_the_private(moves, marked)
    else:
        rows, untold = list(range(len(moves))), 0
    rows = _at_most(moves, _without_cycles(moves, rows, marked), marked)
    if after > 0:
        rows.append(Fold(thread=None, text=f"… {count(after, 'step')} after that …"))
    return rows, untold


def _raises(shown: Interleaving, move: Move) -> bool:
    """Whether a step is the one that fails, where it is known why: nothing later explains it."""
    failure = shown.failure
    if failure is None or failure.phase != "body" or shown.violation is None or not move.pause:
        return False
    return move.thread == failure.thread and move.pause.startswith("raises")


def _without_the_private(moves: Sequence[Move], marked: set[int]) -> tuple[list[Row], int]:
    rows: list[Row] = []
    hidden: list[int] = []
    seen: set[int] = set()
    untold = 0

    def close() -> None:
        nonlocal untold
        if len(hidden) > _UNTOLD:
            thread = moves[hidden[0]].thread
            text = f"… {len(hidden):,} steps of thread {thread} that touch nothing shared …"
            rows.append(Fold(thread=thread, text=text))
        else:
            untold += len(hidden)
        hidden.clear()

    for index, move in enumerate(moves):
        if hidden and moves[hidden[0]].thread != move.thread:
            close()
        if move.contested or index in marked:
            close()
            seen.add(move.thread)
            rows.append(index)
            continue
        hidden.append(index)
        if move.pause is not None and move.thread in seen:
            close()
            rows.append(Fold(thread=move.thread, text=move.pause))
    close()
    return rows, untold


def _without_cycles(moves: Sequence[Move], rows: list[Row], marked: set[int]) -> list[Row]:
    """What comes again and again shown once; at least three times in all, and not the marked."""
    keys = [
        row
        if isinstance(row, Fold) or row in marked
        else (moves[row].thread, moves[row].place, moves[row].operation, moves[row].pause)
        for row in rows
    ]
    kept: list[Row] = []
    at = 0
    while at < len(rows):
        for period in range(1, min(_LONGEST_CYCLE, (len(rows) - at) // 3) + 1):
            cycle = keys[at : at + period]
            times = 1
            while keys[at + times * period : at + (times + 1) * period] == cycle:
                times += 1
            if times > 2 and (times - 1) * period > _UNTOLD:
                threads = {
                    row.thread if isinstance(row, Fold) else moves[row].thread
                    for row in rows[at : at + period]
                }
                steps = _steps(rows[at : at + period])
                again = f"same {count(steps, 'step')}" if steps > 1 else "same step"
                kept += rows[at : at + period]
                kept.append(
                    Fold(
                        thread=threads.pop() if len(threads) == 1 else None,
                        text=f"… the {again} {count(times - 1, 'time')} more …",
                    )
                )
                at += times * period
                if keys[at:] == cycle[: len(keys) - at]:  # the execution ended within one more
                    return kept
                break
        else:
            kept.append(rows[at])
            at += 1
    return kept


def _at_most(moves: Sequence[Move], rows: list[Row], marked: set[int]) -> list[Row]:
    """A screen of rows: those that are nearest to the marked steps, the switches and the end."""
    if len(rows) <= _MOST_ROWS:
        return rows
    far = len(rows)
    distance = [far] * len(rows)
    for at, row in enumerate(rows):
        if at in {0, far - 1} or (not isinstance(row, Fold) and moves[row].pause):
            distance[at] = 0
    for order in (range(1, far), range(far - 2, -1, -1)):
        for at in order:
            before = at - 1 if order.step > 0 else at + 1
            distance[at] = min(distance[at], distance[before] + 1)
    for at, row in enumerate(rows):
        if not isinstance(row, Fold) and row in marked:
            distance[at] = -1
    chosen = sorted(sorted(range(far), key=lambda at: (distance[at], -at))[:_MOST_ROWS])
    kept: list[Row] = []
    last = -1
    for at in chosen:
        if at - last > 1:
            kept.append(Fold(thread=None, text=f"… {count(_steps(rows[last + 1 : at]), 'step')} …"))
        kept.append(rows[at])
        last = at
    return kept


def _steps(rows: Iterable[Row]) -> int:
    return sum(not isinstance(row, Fold) for row in rows)


def numbers(rows: Iterable[Row]) -> dict[int, int]:
    """The numbers of the moves that are shown, as a reader counts them."""
    return {
        row: number for number, row in enumerate((r for r in rows if not isinstance(r, Fold)), 1)
    }


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
