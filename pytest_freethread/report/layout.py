"""How lines are laid out: places, columns, stacks, locks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_freethread.records import Place, ThreadState


def relative(file: str) -> str:
    """A path as seen from the working directory, where it is below that."""
    try:
        path = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return file if path.startswith("..") else path


def place(where: Place) -> str:
    """A file, as seen from the working directory, and a line."""
    return f"{relative(where.file)}:{where.line}"


def columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows of equally many cells, each column as wide as its widest cell."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def stack(places: Iterable[Place]) -> Iterator[str]:
    """The lines that a thread is in."""
    return columns((f"  {place(p)}", f"in {p.function}", p.source) for p in places)


def lock_rows(state: ThreadState) -> Iterator[tuple[str, ...]]:
    """What a thread holds and waits for, as cells for `columns`."""
    who = title(state)
    for use in state.holds:
        taken = f"taken at {place(use.place)}" if use.place.file else "taken in a call"
        yield who, "holds", use.name, taken, use.place.source
        who = ""
    if state.waits_for:
        use = state.waits_for
        yield who, "waits for", use.name, f"at {place(use.place)}", use.place.source


def title(state: ThreadState) -> str:
    """What a thread is called."""
    return f"thread {state.name!r}" if state.thread is None else f"thread {state.thread}"


def indented(lines: Iterable[str]) -> list[str]:
    """Lines, two spaces further right."""
    return [f"  {line}".rstrip() for line in lines]
