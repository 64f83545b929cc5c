"""Threads that outlive the test that started them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_freethread.records import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_freethread.records import Execution


def judge(execution: Execution) -> Iterator[Finding]:
    """One finding for each place that leaked threads; a note for somebody else's background."""
    for leak in execution.leaks:
        count = len(leak.names)
        threads = (
            f"thread {leak.names[0]!r} still runs" if count == 1 else f"{count} threads still run"
        )
        where = f", started at {leak.started_at[-1]}" if leak.started_at else ""
        yield Finding(
            kind="leak",
            severity="note" if leak.background else "error",
            message=f"{threads} after the test{where}",
            evidence=leak,
        )
