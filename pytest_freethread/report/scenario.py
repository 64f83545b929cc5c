"""The scenario of a contract as text: who called what, and the order that comes nearest."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pytest_freethread.report import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_freethread.records import Scenario

_WIDTH = 96


def lines(shown: Scenario) -> Iterator[str]:
    """The calls with their results, and where their nearest explanation breaks."""
    yield from layout.columns((f"  {who}", ", ".join(calls)) for who, calls in shown.rows)
    if shown.next:
        yield ""
        nearest = ", ".join(shown.order) + ", then " if shown.order else ""
        said = f"Nearest order: {nearest}{'; or '.join(shown.next)}."
        yield from textwrap.wrap(said, _WIDTH, subsequent_indent="  ")
