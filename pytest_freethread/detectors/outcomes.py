"""Bodies that raised, invariants that did not hold, set-up and tear-down that went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_freethread.records import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_freethread.records import Execution, Failure


def judge(execution: Execution) -> Iterator[Finding]:
    """One error for each distinct failure, the most frequent first."""
    for failure in execution.failures:
        broken = failure.phase == "invariant" and isinstance(failure.exception, AssertionError)
        yield Finding(
            kind="invariant" if broken else "exception",
            severity="error",
            message=f"{_what(failure)} ({how_often(failure, execution)})",
            evidence=failure,
        )


def how_often(failure: Failure, execution: Execution) -> str:
    """Where a failure first came up and how often it did: `thread 3, round 17; 12 of 400 …`."""
    if failure.phase == "body":
        total, unit = execution.executions, "executions"
    else:
        total, unit = execution.plan.rounds if execution.cut is None else 0, "rounds"
        total = total or max(execution.rounds, failure.round + 1)
        if failure.thread is not None:
            total, unit = total * execution.plan.threads, "times"
    where = f"round {failure.round}"
    if failure.thread is not None:
        where = f"thread {failure.thread}, {where}"
    return f"{where}; {failure.count} of {total} {unit}"


def _what(failure: Failure) -> str:
    name = type(failure.exception).__name__
    said = f"{name}: {failure.text.splitlines()[0]}" if failure.text else name
    match failure.phase:
        case "body":
            return said
        case "invariant":
            return f"the invariant does not hold: {said}"
        case "setup" | "teardown":
            return f"{failure.phase} raised {said}"
