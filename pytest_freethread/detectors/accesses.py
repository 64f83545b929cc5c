"""What judges found in numbers, as a reader of the code sees it: names, locks, stacks, births."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pytest_freethread.detectors.interleavings import naming
from pytest_freethread.detectors.races import ATOMIC, WHOLE, WRITE
from pytest_freethread.records import (
    Finding,
    LockUse,
    Place,
    Race,
    RacingAccess,
    ThreadState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_freethread.detectors.lock_order import Cycle
    from pytest_freethread.detectors.races import Clash, Touch
    from pytest_freethread.records import Account

    Indices = Sequence[int] | Mapping[int, int]


def race(
    clash: Clash,
    execution: Account,
    steps: Indices,
    names: tuple[str, ...],
    call: str,
) -> Race:
    """A clash with its evidence.

    Args:
        clash: what the judge of races found.
        execution: what is known of the one in which it did.
        steps: by the number of an event, the index of its step in the trace.
        names: of the bodies.
        call: what replays it.
    """
    trace = execution.trace
    targets = naming.targets(trace)
    objects = {step.location: target for step, target in zip(trace, targets, strict=True)}
    called = names + execution.names[len(names) :]
    earlier, later = (steps[touch.event] for touch in (clash.earlier, clash.later))
    target = targets[later]
    if clash.key is None and naming.kind_of(trace[later]) == "item":
        target = targets[earlier] if naming.kind_of(trace[earlier]) == "container" else target

    def access(touch: Touch, index: int) -> RacingAccess:
        step = trace[index]
        source = naming.shown(step, alone=True)
        by, where = execution.births.get(step.thread, (None, None))
        return RacingAccess(
            thread=step.thread,
            name=called[step.thread],
            action=_action(touch),
            place=Place(
                file=step.place.file,
                line=step.place.line,
                function=step.place.function,
                source=source,
            ),
            holds=tuple(_holds(execution, index, objects)),
            stack=execution.stacks.get(index, ()),
            started_by=None if by is None else called[by],
            started_at=where,
        )

    return Race(
        target=target,
        made=execution.made.get(trace[later].location),
        accesses=(access(clash.earlier, earlier), access(clash.later, later)),
        together=clash.together,
        published=clash.published,
        call=call,
    )


def _action(touch: Touch) -> Literal["read", "wrote", "walked over"]:
    if touch.how & WRITE:
        return "wrote"
    return "walked over" if touch.how & (WHOLE | ATOMIC) == WHOLE else "read"


def _holds(execution: Account, index: int, objects: dict[int, str]) -> Iterator[LockUse]:
    """The locks that were held at a step, with the places where they were taken."""
    trace = execution.trace
    for lock in trace[index].held:
        taken = next(
            (
                trace[i]
                for i in range(index - 1, -1, -1)
                if trace[i].location == lock and trace[i].op in {"acquire", "wake up"}
            ),
            None,
        )
        if taken is not None:
            yield LockUse(name=objects[lock], identity=lock, place=taken.place)


def inversion(cycle: Cycle, execution: Account, steps: Indices, names: tuple[str, ...]) -> Finding:
    """A cycle of locks that is possible as far as the trace tells, and was not made to happen.

    The arguments are those of `race`.
    """
    trace = execution.trace
    targets = naming.targets(trace)
    objects = {step.location: target for step, target in zip(trace, targets, strict=True)}
    called = names + execution.names[len(names) :]
    states = []
    for edge in cycle:
        index = steps[edge.event]
        step = trace[index]
        states.append(
            ThreadState(
                thread=step.thread,
                name=called[step.thread],
                stack=(),
                waits_for=LockUse(
                    name=objects[step.location], identity=step.location, place=step.place
                ),
                holds=tuple(_holds(execution, index, objects)),
            )
        )
    locks = sorted({use.name for s in states if (use := s.waits_for) is not None})
    return Finding(
        kind="lock-order",
        severity="note",
        message=f"{' and '.join(locks)} are taken in opposite orders: predicted, not reproduced",
        evidence=tuple(states),
    )
