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

    from pytest_freethread.records import ControlledExecution, Pause, Step, Violation, Waiting

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


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is known of the schedule that shows something.

    Attributes:
        token: of it.
        names: of the bodies.
        found: which schedule showed it first, by which strategy, after how many seconds.
        reproduced: (k, n): k of n replays showed it again.
    """

    token: str
    names: tuple[str, ...]
    found: tuple[int, str, float]
    reproduced: tuple[int, int]


def finding(symptom: Symptom, execution: ControlledExecution, schedule: Schedule) -> Finding:
    """A symptom with its evidence: the recorded execution that shows it."""
    story = _Story(execution)
    message, violation, repair = symptom.message, None, None
    match symptom.kind:
        case "deadlock":
            message, repair = standstills.deadlock(execution, story.locks)
        case "lost-wakeup":
            message, repair = standstills.lost_wakeup(execution, story.targets)
        case "livelock":
            message = standstills.livelock(execution)
        case "invariant" | "exception":
            violation = atomicity.violation(
                execution.trace, story.targets, story.preempted, symptom.failure
            )
            if violation is not None:
                message = atomicity.sentence(violation, execution.trace, story.targets)
                repair = atomicity.repair(violation, execution.trace)
    return Finding(
        kind=symptom.kind,
        severity="note" if symptom.kind == "partial-control" or _doubtful(schedule) else "error",
        message=message,
        evidence=story.told(symptom, schedule, violation, repair),
        token=schedule.token,
        reproduced=schedule.reproduced,
    )


def torn(
    execution: ControlledExecution,
    steps: tuple[int, int, int],
    serial: Sequence[ControlledExecution],
    schedule: Schedule,
    *,
    strict: bool,
) -> Finding | None:
    """Three steps that break what their author took for one, though nothing has failed yet.

    Args:
        execution: the recorded one that has them.
        steps: the indices of the look, the change and the act.
        serial: recorded ones, of threads that run one after the other.
        schedule: what shows it.
        strict: whether it is an error.

    Returns:
        None where it leaves what a serial execution does.
    """
    story = _Story(execution)
    trace, targets = execution.trace, story.targets
    if not matters(execution, steps, serial):
        return None
    violation = atomicity.torn(trace, targets, *steps)
    message = atomicity.sentence(violation, trace, targets)
    symptom = Symptom(kind="atomicity", message=message, failure=None)
    repair = atomicity.repair(violation, trace)
    return Finding(
        kind="atomicity",
        severity="error" if strict and not _doubtful(schedule) else "note",
        message=message,
        evidence=story.told(symptom, schedule, violation, repair),
        token=schedule.token,
        reproduced=schedule.reproduced,
    )


def matters(
    execution: ControlledExecution,
    steps: tuple[int, int, int],
    serial: Sequence[ControlledExecution],
) -> bool:
    """Whether three steps leave something that no serial execution leaves; see `torn`."""
    targets = naming.targets(execution.trace)
    violation = atomicity.torn(execution.trace, targets, *steps)
    others = [(each.trace, naming.targets(each.trace)) for each in serial]
    return atomicity.matters(violation, execution.trace, targets, others)


def _doubtful(schedule: Schedule) -> bool:
    return schedule.reproduced[0] < schedule.reproduced[1]


class _Story:
    """A recorded execution, and what a reader calls the things in it."""

    def __init__(self, execution: ControlledExecution) -> None:
        self.execution = execution
        self.targets = naming.targets(execution.trace)
        self.locks = standstills.LockNames(execution, self.targets)
        self.pauses = _pauses(execution)
        self.preempted = {
            index
            for index, pause in self.pauses.items()
            if _preempts(execution.trace, index, pause)
        }

    def told(
        self,
        symptom: Symptom,
        schedule: Schedule,
        violation: Violation | None,
        repair: str | None,
    ) -> Interleaving:
        """The execution step by step."""
        execution, failure = self.execution, symptom.failure
        returned = symptom.kind == "invariant" and violation and not failure
        return Interleaving(
            moves=tuple(
                _moves(
                    execution,
                    symptom,
                    targets=self.targets,
                    locks=self.locks,
                    pauses=self.pauses,
                    preempted=self.preempted,
                )
            ),
            names=schedule.names + execution.names[len(schedule.names) :],
            preemptions=len(self.preempted),
            found=schedule.found,
            blocked=tuple(
                _state(each, self.locks)
                for each in execution.waiting
                if symptom.kind in _STANDSTILLS
            ),
            failure=failure,
            broken="The invariant returned False." if returned else None,
            call=call(
                schedule.token,
                schedule.names,
                'races="error"' if symptom.kind == "atomicity" else "",
            ),
            violation=violation,
            repair=repair,
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
