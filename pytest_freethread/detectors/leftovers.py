"""What a controlled execution leaves behind though it went well: locks held, threads alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_freethread.detectors.interleavings import naming, standstills
from pytest_freethread.records import Finding, LockUse, ThreadState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_freethread.records import ControlledExecution


def judge(execution: ControlledExecution, names: tuple[str, ...]) -> Iterator[Finding]:
    """Notes: each may be meant so, and breaks nothing within the execution.

    Args:
        execution: one that has ended.
        names: of the bodies.
    """
    if execution.outcome != "ended":
        return
    called = names + execution.names[len(names) :]
    for thread, held in execution.abandoned:
        lock = naming.synchroniser(held.place.source)
        use = LockUse(name=lock, identity=held.lock, place=held.place)
        yield Finding(
            kind="abandoned-lock",
            severity="note",
            message=(
                f"thread {thread} ({called[thread]}) has ended and still holds {lock}, taken at "
                f"{naming.short(held.place)}"
            ),
            evidence=(ThreadState(thread=thread, name=called[thread], stack=(), holds=(use,)),),
        )
    for left in execution.waiting:
        by, place = execution.births.get(left.thread, (None, None))
        if left.daemon or by is None or by >= len(names) or place is None:
            continue  # it was there before the bodies, which may well share it
        doing = f" in {standstills.waits_in(left)}" if left.operation else ""
        yield Finding(
            kind="leak",
            severity="note",
            message=(
                f"thread {left.name!r}, started by {called[by]} at {naming.short(place)}, is "
                f"never joined: it still {'waits' if doing else 'runs'}{doing}"
            ),
            evidence=(ThreadState(thread=left.thread, name=left.name, stack=left.stack),),
        )
