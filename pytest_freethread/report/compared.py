"""The same measurements under two interpreters, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_freethread.report import layout
from pytest_freethread.report.scaling import duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def table(here: Sequence[dict[str, Any]], there: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row for each measurement: the totals and speed-ups of both, and how many times faster.

    Args:
        here: outcomes, as `scaling.outcome` makes them, each with the name of its test.
        there: those of the other interpreter; of a test's measurements the first belongs to the
            first.
    """
    others: dict[str, list[dict[str, Any]]] = {}
    for outcome in there:
        others.setdefault(outcome["test"], []).append(outcome)
    names = [side[0]["python"] if side else "the other one" for side in (here, there)]
    yield f"A: {names[0]}"
    yield f"B: {names[1]}"
    rows = [("", "total A", "B", "speed-up A", "B", "total A : B")]
    for outcome in here:
        left = others.get(outcome["test"], [])
        rows.append((outcome["test"], *_cells(outcome, left.pop(0) if left else {})))
    yield from layout.columns(rows)


def _cells(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for side in (one, other):
        yield duration(side["total"]) if "total" in side else "none"
    for side in (one, other):
        yield f"{side['speedup'][0]:.2f} ×" if "speedup" in side else "none"
    both = "total" in one and "total" in other
    yield f"{one['total'] / other['total']:.2f}" if both else "none"
