"""Threads that do not come back: deadlocks where a cycle of waiting is known, else stuck."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_freethread.records import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_freethread.records import Execution, ThreadState


def judge(execution: Execution) -> Iterator[Finding]:
    """One error for a round that did not end, with the state of each of its threads."""
    if not execution.stuck:
        return
    cycle = cycle_of_waiting(execution.stuck)
    if cycle:
        yield Finding(
            kind="deadlock",
            severity="error",
            message=f"deadlock in round {execution.rounds}: {_sentence(cycle)}",
            evidence=(*cycle, *(state for state in execution.stuck if state not in cycle)),
        )
        return
    bodies = [state for state in execution.stuck if state.thread is not None]
    count = f"{len(bodies)} of {execution.plan.threads} threads"
    yield Finding(
        kind="stuck",
        severity="error",
        message=f"stuck in round {execution.rounds}: {count} did not come back within the "
        f"deadline of {execution.plan.deadline:g} s",
        evidence=execution.stuck,
    )


def cycle_of_waiting(states: Sequence[ThreadState]) -> tuple[ThreadState, ...]:
    """Threads each of which waits, for ever, for a lock that the next one holds.

    The last waits for the first; a thread that waits for a lock of its own is a cycle of one.
    Empty if there is none. A lock that two threads seem to hold counts as held by nobody.
    """
    claims = Counter(use.identity for state in states for use in state.holds)
    holders = {
        use.identity: state for state in states for use in state.holds if claims[use.identity] == 1
    }
    for start in states:
        path: list[ThreadState] = []
        state: ThreadState | None = start
        while state is not None and state not in path:
            path.append(state)
            wait = state.waits_for
            state = holders.get(wait.identity) if wait is not None and wait.forever else None
        if state is not None:
            return tuple(path[path.index(state) :])
    return ()


def _sentence(cycle: Sequence[ThreadState]) -> str:
    names = [_name(state) for state in cycle]
    match names:
        case [one]:
            return f"{one} waits for a lock that it holds itself"
        case [one, other]:
            return f"{one} and {other} each hold the lock that the other waits for"
        case _:
            return f"{', '.join(names)}: each waits for a lock that the next one holds"


def _name(state: ThreadState) -> str:
    return state.name if state.thread is None else f"thread {state.thread}"
