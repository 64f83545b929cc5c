"""Executions that do not end: who waits for what, and what usually repairs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_freethread.detectors.interleavings import naming

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_freethread.records import ControlledExecution, Step, Waiting

_LONGEST_CYCLE = 200


class LockNames:
    """What a reader calls the locks, by their identity."""

    def __init__(self, execution: ControlledExecution, targets: Sequence[str]) -> None:
        self._names: dict[int, str] = {}
        for each in execution.waiting:
            known = naming.names_of(execution.trace, targets, each.thread)
            uses = [(held.lock, held.place.source) for held in each.holds]
            if each.lock is not None:
                uses.append((each.lock, each.place.source))
            for lock, source in uses:
                text = naming.synchroniser(source)
                name = known.get(text, text)
                if lock not in self._names or text in known:
                    self._names[lock] = name

    def __getitem__(self, lock: int) -> str:
        return self._names[lock]


def _stuck(execution: ControlledExecution) -> list[Waiting]:
    return [each for each in execution.waiting if each.operation]


def deadlock(execution: ControlledExecution, locks: LockNames) -> tuple[str, str | None]:
    """A deadlock in a sentence, and what usually repairs it."""
    stuck = {each.thread: each for each in _stuck(execution)}
    for first in stuck.values():
        cycle = [first]
        while (by := cycle[-1].by) in stuck and stuck[by] not in cycle:
            cycle.append(stuck[by])
        if by == first.thread:
            return _cycle(cycle, locks)
    for each in stuck.values():
        if each.by is not None and each.by not in stuck and each.lock is not None:
            message = (
                f"Deadlock: thread {each.thread} waits for {locks[each.lock]}, and thread "
                f"{each.by}, which holds it, has ended."
            )
            return message, "release it in a `finally`, or take it in a `with`."
    waits = "; ".join(f"thread {each.thread} {_waits(each, locks)}" for each in stuck.values())
    return f"Deadlock: {waits}.", None


def _cycle(cycle: Sequence[Waiting], locks: LockNames) -> tuple[str, str | None]:
    only_locks = all(each.lock is not None for each in cycle)
    names = list(dict.fromkeys(locks[each.lock] for each in cycle if each.lock is not None))
    if len(cycle) == 1 and only_locks:
        return (
            f"Deadlock: thread {cycle[0].thread} waits for {names[0]}, which it holds itself.",
            "do not take it again while it is held, or make it an RLock.",
        )
    if not only_locks:
        waits = "; ".join(f"thread {each.thread} {_waits(each, locks)}" for each in cycle)
        return f"Deadlock: {waits}.", None
    order = ", then ".join(names[-1:] + names[:-1])
    repair = f"take these locks in one order everywhere (here: {order})."
    if len(names) < len(cycle):  # locks of several objects
        repair = "take these locks in one order everywhere, such as that of their objects' ids."
    if len(cycle) == 2:
        one, two = sorted(each.thread for each in cycle)
        return (
            f"Deadlock: thread {one} and thread {two} each hold the lock that the other waits for.",
            repair,
        )
    waits = "; ".join(
        f"thread {each.thread} waits for {locks[each.lock or 0]}, held by thread {each.by}"
        for each in cycle
    )
    return f"Deadlock: {waits}.", repair


def _waits(each: Waiting, locks: LockNames) -> str:
    if each.lock is not None:
        held = "" if each.by is None else f", held by thread {each.by}"
        return f"waits for {locks[each.lock]}{held}"
    if each.operation == "join" and each.by is not None:
        return f"waits for thread {each.by} to end"
    return f"waits in {waits_in(each)}"


def waits_in(each: Waiting) -> str:
    """The call that a thread waits in: the library's, or the primitive's own."""
    return (
        each.through or f"{each.kind}.{'wait' if each.operation == 'wake up' else each.operation}"
    )


def lost_wakeup(execution: ControlledExecution, targets: Sequence[str]) -> tuple[str, str | None]:
    """A lost wake-up in a sentence, and what usually repairs it."""
    trace, stuck = execution.trace, _stuck(execution)
    for each in stuck:
        lost = None if each.through else _unheard(trace, each.thread)
        if lost is not None:
            return (
                f"Lost wake-up: thread {trace[lost].thread} notified {targets[lost]} before thread "
                f"{each.thread} waited for it, and nobody is left to do so again."
            ), (
                "look at the condition and wait under one lock, in a loop (`while not …: wait()`), "
                "and notify under it after each change."
            )
    calls = {
        waits_in(each): [str(e.thread) for e in stuck if waits_in(e) == waits_in(each)]
        for each in stuck
    }
    waits = "; ".join(
        f"thread {by[0]} waits in {call}"
        if len(by) == 1
        else f"threads {' and '.join(by)} wait in {call}"
        for call, by in calls.items()
    )
    repair = None
    notified = [step.place.source for step in trace if step.op == "notify"]
    direct = any(each.kind == "Condition" and each.through is None for each in stuck)
    if direct and notified and not any("notify_all" in source for source in notified):
        repair = "`notify_all`, where those who wait do so for different things."
    them = "it" if len(stuck) == 1 else "them"
    return f"Lost wake-up: {waits}, and nobody is left to wake {them}.", repair


def _unheard(trace: Sequence[Step], thread: int) -> int | None:
    """The last notification before a thread began to wait, if nobody was there to hear it."""
    began = max(
        (i for i, s in enumerate(trace) if s.thread == thread and s.op == "wait"), default=-1
    )
    waiting: set[int] = set()
    unheard = None
    for index, step in enumerate(trace):
        if began < 0 or step.location != trace[began].location:
            continue
        if step.op == "wait":
            waiting.add(step.thread)
        elif step.op == "wake up":
            waiting.discard(step.thread)
        elif step.op.startswith("notify") and step.thread != thread:
            unheard = None if waiting else index
    return unheard if unheard is not None and unheard < began else None


def livelock(execution: ControlledExecution) -> str:
    """The steps that each thread makes again and again at the end, if they are found."""
    trace, changed = execution.trace, execution.changed
    if 2 * changed < execution.steps:
        message, end = f"nothing changes after {changed:,} steps, and nothing ends", trace[changed:]
    else:
        message, end = f"no end after {execution.steps:,} steps", trace[-_LONGEST_CYCLE:]
    going = []
    for thread in sorted({step.thread for step in end}):
        cycle = _round([step for step in trace if step.thread == thread])
        if cycle:
            going.append(f"thread {thread} goes round in {_places(cycle)}")
    return "; ".join([f"Livelock: {message}", *going]) + "."


def _round(steps: Sequence[Step]) -> Sequence[Step]:
    """The last round of what is the same again and again in the end; nothing if it is not."""
    window = min(4 * _LONGEST_CYCLE, len(steps) // 2)
    last = [(step.place, step.op) for step in steps[-window:]]
    for period in range(1, _LONGEST_CYCLE + 1):
        if len(last) > 2 * period and last[period:] == last[:-period]:
            return steps[-period:]
    return ()


def _places(steps: Iterable[Step]) -> str:
    """The places of steps in the order in which they stand in the source."""
    lines = sorted({(step.place.file, step.place.line): step.place for step in steps}.items())
    return ", ".join(naming.short(place) for _, place in lines)
