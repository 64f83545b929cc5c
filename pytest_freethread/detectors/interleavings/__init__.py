"""What a controlled execution means: the first thing that went wrong, and how it came about."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_freethread.detectors.interleavings import atomicity, naming, standstills
from pytest_freethread.records import (
    Failure,
    Finding,
    Interleaving,
    LockUse,
    Move,
    ThreadState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_freethread.records import ControlledExecution, Pause, Step, Waiting

_STANDSTILLS = ("deadlock", "lost-wakeup", "partial-control")
_ALWAYS = ("start", "join", "sleep")  # steps that concern other threads whatever they touch
_END = "end"  # of a thread; no line of anybody's says so


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """What went wrong in an execution; `key` is the same for the same failure."""

    kind: str
    message: str
    failure: Failure | None

    @property
    def key(self) -> tuple[str, type | None]:
        """What two symptoms have in common that count as the same."""
        return self.kind, None if self.failure is None else type(self.failure.exception)


def symptom(execution: ControlledExecution, failures: Sequence[Failure]) -> Symptom | None:
    """The first thing that went wrong in an execution, if anything did.

    Args:
        execution: what happened.
        failures: those of the exceptions that it threw which are failures.
    """
    for failure in failures:
        error, text = failure.exception, failure.text
        broken = failure.phase == "invariant" and isinstance(error, AssertionError)
        said = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
        where = "" if failure.phase == "body" else f"{failure.phase}: "
        return Symptom(
            kind="invariant" if broken else "exception",
            message=f"{where}{said}" if not broken else f"The invariant does not hold: {said}",
            failure=failure,
        )
    match execution.outcome:
        case "deadlock":
            return Symptom(kind="deadlock", message="Deadlock", failure=None)
        case "lost-wakeup":
            return Symptom(kind="lost-wakeup", message="Lost wake-up", failure=None)
        case "livelock":
            return Symptom(kind="livelock", message="Livelock", failure=None)
        case "partial-control":
            message = "A thread did not come back from real blocking"
            return Symptom(kind="partial-control", message=message, failure=None)
    if execution.holds is False:
        return Symptom(
            kind="invariant", message="The invariant does not hold: it returned False", failure=None
        )
    return None


def finding(
    symptom: Symptom,
    execution: ControlledExecution,
    *,
    names: tuple[str, ...],
    found: tuple[int, str, float],
    reproduced: tuple[int, int],
    token: str,
) -> Finding:
    """A symptom with its evidence: the recorded execution that shows it.

    Args:
        symptom: what went wrong.
        execution: a recorded one.
        names: of the bodies.
        found: which schedule it was first, by which strategy, after how many seconds.
        reproduced: (k, n): k of n replays showed it again.
        token: of the schedule.
    """
    trace = execution.trace
    targets = naming.targets(trace)
    pauses = _pauses(execution)
    preempted = {index for index, pause in pauses.items() if _preempts(trace, index, pause)}
    message, violation, repair = symptom.message, None, None
    locks = standstills.LockNames(execution, targets)
    match symptom.kind:
        case "deadlock":
            message, repair = standstills.deadlock(execution, locks)
        case "lost-wakeup":
            message, repair = standstills.lost_wakeup(execution, targets)
        case "livelock":
            message = standstills.livelock(execution)
        case "invariant" | "exception":
            violation = atomicity.violation(trace, targets, preempted, symptom.failure)
            if violation is not None:
                message = atomicity.sentence(violation, trace, targets)
                repair = atomicity.repair(violation, trace)
    certain = symptom.kind != "partial-control" and reproduced[0] == reproduced[1]
    evidence = Interleaving(
        moves=tuple(
            _moves(
                execution,
                symptom,
                targets=targets,
                locks=locks,
                pauses=pauses,
                preempted=preempted,
            )
        ),
        names=names + execution.names[len(names) :],
        preemptions=len(preempted),
        found=found,
        blocked=tuple(
            _state(each, locks) for each in execution.waiting if symptom.kind in _STANDSTILLS
        ),
        failure=symptom.failure,
        broken="The invariant returned False." if violation and not symptom.failure else None,
        call=call(token, names),
        violation=violation,
        repair=repair,
    )
    return Finding(
        kind=symptom.kind,
        severity="error" if certain else "note",
        message=message,
        evidence=evidence,
        token=token,
        reproduced=reproduced,
    )


def call(token: str, names: tuple[str, ...], more: str = "") -> str:
    """What replays a schedule.

    Args:
        token: of the schedule.
        names: of the bodies.
        more: another argument.
    """
    return f'replay("{token}", {_arguments(names)}{f", {more}" if more else ""}, ...)'


def _arguments(names: tuple[str, ...]) -> str:
    """The bodies as a call has them."""
    if any("<" in name for name in names):  # lambdas and inner functions have no name to call
        return "*bodies"
    if len(names) > 1 and len(set(names)) == 1:
        return f"{names[0]}, threads={len(names)}"
    return ", ".join(names)


# --- the steps ------------------------------------------------------------------------------------


def _pauses(execution: ControlledExecution) -> dict[int, Pause]:
    """By the index of the step after which a thread did not go on: why not."""
    trace = execution.trace
    return {
        pause.steps - 1: pause
        for pause in execution.pauses
        if pause.steps and trace[pause.steps - 1].thread == pause.thread
    }


def _preempts(trace: Sequence[Step], index: int, pause: Pause) -> bool:
    switched = index + 1 < len(trace) and trace[index + 1].thread != pause.thread
    return switched and pause.ready


def _moves(
    execution: ControlledExecution,
    symptom: Symptom,
    *,
    targets: Sequence[str],
    locks: standstills.LockNames,
    pauses: Mapping[int, Pause],
    preempted: set[int],
) -> Iterator[Move]:
    trace = execution.trace
    objects = {step.location: target for step, target in zip(trace, targets, strict=True)}
    awaited = {locks[each.lock] for each in execution.waiting if each.lock is not None}
    contested = [
        shared or (target in awaited and not naming.kind_of(step))
        for step, target, shared in zip(trace, targets, _contested(trace), strict=True)
    ]
    subjects: dict[tuple[str, int], set[str]] = defaultdict(set)
    for step, target, counts in zip(trace, targets, contested, strict=True):
        if counts:
            subjects[step.place.file, step.place.line].add(target)
    raised = {thrown.thread: type(thrown.exception).__name__ for thrown in execution.thrown}
    if symptom.failure is not None and symptom.failure.text:
        said = symptom.failure.text.splitlines()[0]
        raised[symptom.failure.thread] = f"{type(symptom.failure.exception).__name__}: {said}"
    for index, step in enumerate(trace):
        pause = None
        if index in preempted:
            pause = "preempted"
        elif index in pauses:
            pause = _why(pauses[index], raised.get(step.thread), step.thread, targets, trace)
        yield Move(
            thread=step.thread,
            place=step.place if step.place.file and step.op != _END else None,
            line=naming.shown(step, alone=len(subjects[step.place.file, step.place.line]) < 2),
            operation=atomicity.operation(step),
            target=targets[index],
            before=step.before,
            after=step.after,
            contested=contested[index],
            holding=tuple(objects.get(location, "a lock") for location in step.held),
            pause=pause,
        )


def _why(
    pause: Pause, raised: str | None, thread: int, targets: Sequence[str], trace: Sequence[Step]
) -> str | None:
    if pause.ended:
        return "done" if raised is None else f"raises {raised}"
    match pause.operation:
        case "":
            return None
        case "acquire":
            known = naming.names_of(trace, targets, thread)
            text = naming.synchroniser(pause.source)
            held = "" if pause.by is None else f", held by thread {pause.by}"
            return f"waits for {known.get(text, text)}{held}"
        case "join":
            return "joins a thread" if pause.by is None else f"waits for thread {pause.by} to end"
        case "sleep" | "yield":
            return "sleeps"
    return f"waits in {pause.source}"


def _contested(trace: Sequence[Step]) -> list[bool]:
    """Of each step, whether other threads touch the location too, and not all of them only read."""
    readers: dict[int, dict[str | None, set[int]]] = defaultdict(lambda: defaultdict(set))
    writers: dict[int, dict[str | None, set[int]]] = defaultdict(lambda: defaultdict(set))
    for step in trace:
        (writers if step.write else readers)[step.location][step.key].add(step.thread)

    def others(step: Step, of: Mapping[int, Mapping[str | None, set[int]]]) -> bool:
        there = of.get(step.location, {})
        if step.key is None:
            threads = set().union(*there.values())
        else:
            threads = there.get(step.key, set()) | there.get(None, set())
        return bool(threads - {step.thread})

    known: dict[tuple[int, int, str | None, bool, str], bool] = {}
    contested = []
    for step in trace:
        kind = step.thread, step.location, step.key, step.write, step.op
        if kind not in known:
            met = others(step, writers) or (step.write and others(step, readers))
            known[kind] = step.op in _ALWAYS or (met and step.op != _END)
        contested.append(known[kind])
    return contested


def _state(waiting: Waiting, locks: standstills.LockNames) -> ThreadState:
    return ThreadState(
        thread=waiting.thread,
        name=waiting.name,
        stack=waiting.stack,
        waits_for=None
        if waiting.lock is None
        else LockUse(name=locks[waiting.lock], identity=waiting.lock, place=waiting.place),
        waits_in=None
        if waiting.lock is not None or not waiting.operation
        else standstills.waits_in(waiting),
        holds=tuple(
            LockUse(name=locks[held.lock], identity=held.lock, place=held.place)
            for held in waiting.holds
        ),
    )
