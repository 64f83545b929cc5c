"""Three steps that break what their author took for one: a look, a change by another, an act.

The unserialisable interleavings of Lu, Tucek, Qin and Zhou, "AVIO: Detecting Atomicity Violations
via Access Interleaving Invariants" (ASPLOS 2006), as far as a reader has names for them. A name is
only given where the failing execution shows the pattern; what it says is what happened there, and
of several it is the one around a preemption, with the fewest steps between the look and the act.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from pytest_freethread.detectors.interleavings import naming
from pytest_freethread.records import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from pytest_freethread.records import Failure, Step

_Kind: TypeAlias = Literal["lost-update", "check-then-act", "iteration"]

_CHECK = re.compile(r"(if|elif|while|assert)\b|.*\b(if|and|or|not)\b")
_LONGEST = 1_000
"""Steps of a trace beyond which nobody looks for a pattern: the failure has another shape."""


class _Candidate(NamedTuple):
    """Ordered: the smaller, the more the failure is related to it."""

    elsewhere: bool
    unforced: bool
    between: int
    earlier: int
    violation: Violation


def operation(step: Step) -> str:
    """What a step does, in a word: `read`, `write`, `step`, `acquire` … ."""
    return step.op.rpartition(" ")[2] if naming.kind_of(step) else step.op


def violation(
    trace: Sequence[Step],
    targets: Sequence[str],
    preempted: AbstractSet[int],
    failure: Failure | None,
) -> Violation | None:
    """The pattern that a failure comes from, if the failing execution has one.

    Args:
        trace: the steps of the execution.
        targets: what each of them is about.
        preempted: the indices of the steps after which a thread was preempted.
        failure: the exception, where there is one.
    """
    if len(trace) > _LONGEST:
        return None
    candidates = list(_candidates(trace, targets, preempted, failure))
    return min(candidates, key=lambda each: each[:4]).violation if candidates else None


def torn(
    trace: Sequence[Step], targets: Sequence[str], look: int, change: int, act: int
) -> Violation:
    """Three given steps as a pattern: a lost update where the act writes back what was read."""
    updates = _updates(trace, look, change, act)
    return _violation(
        trace, targets, "lost-update" if updates else "check-then-act", look, change, act
    )


def matters(
    violation: Violation,
    trace: Sequence[Step],
    targets: Sequence[str],
    serial: Sequence[tuple[Sequence[Step], Sequence[str]]],
) -> bool:
    """Whether the three steps leave something that no serial execution leaves.

    That is a value at one of the locations; the order within a list is none. Where the act makes an
    object of its own, it is enough that it was made more often than in any serial execution.

    Args:
        violation: the steps.
        trace: those of the execution that has them.
        targets: what each of them is about.
        serial: of executions whose threads ran one after the other, the same.
    """
    act = trace[violation.act]
    if _looks_itself(act):
        return False
    others = [_left(*each) for each in serial]
    left = _left(trace, targets)
    if any(all(values != other.get(target) for other in others) for target, values in left.items()):
        return True
    exchangeable = act.after is not None and not act.after.startswith("<")
    most = max((_times(act, steps) for steps, _ in serial), default=0)
    return not exchangeable and _times(act, trace) > most


def _left(trace: Sequence[Step], targets: Sequence[str]) -> dict[str, list[str | None]]:
    """By name, what was written last at each location of that name."""
    last: dict[tuple[str, int, str | None], str | None] = {}
    for step, target in zip(trace, targets, strict=True):
        if step.write and naming.kind_of(step):
            last[target, step.location, step.key] = _unordered(step.after)
    left: dict[str, list[str | None]] = {}
    for (target, _, _), value in last.items():
        left.setdefault(target, []).append(value)
    for values in left.values():
        values.sort(key=str)
    return left


def _times(act: Step, trace: Sequence[Step]) -> int:
    return sum(step.write and step.place == act.place for step in trace)


def _unordered(value: str | None) -> str | None:
    """A value; the elements of a list or a deque in the order of their text."""
    match value and re.fullmatch(r"(?:deque\()?\[(.*)\].*", value):
        case re.Match() as found:
            return str(sorted(found[1].split(", ")))
    return value


def _looks_itself(act: Step) -> bool:
    """Whether an act finds out by itself what there is, and minds no change since the look."""
    match _called(act):
        case ast.Call(func=ast.Attribute(attr="setdefault" | "discard")):
            return True
        case ast.Call(func=ast.Attribute(attr="pop"), args=[_, _]):
            return True
    return False


def _called(step: Step) -> ast.expr | None:
    try:
        return ast.parse(naming.flat(step.place.source), mode="eval").body
    except SyntaxError:
        return None


def _candidates(
    trace: Sequence[Step],
    targets: Sequence[str],
    preempted: AbstractSet[int],
    failure: Failure | None,
) -> Iterator[_Candidate]:
    raised = failure.thread if failure is not None and failure.phase == "body" else None
    touches: dict[int, list[int]] = {}
    for index, step in enumerate(trace):
        if naming.kind_of(step):
            touches.setdefault(step.location, []).append(index)
    for change, step in enumerate(trace):
        if step.write and naming.kind_of(step) and _changes(step):
            for look, act, kind in _around(trace, touches[step.location], change, failure):
                mine = [i for i in range(look, act) if trace[i].thread == trace[look].thread]
                between = any(
                    trace[i].thread == step.thread and trace[i].write and _same(trace[i], step)
                    for i in range(change + 1, act)
                )
                if between:
                    continue  # a later change of that thread says it better
                yield _Candidate(
                    raised is not None and trace[act].thread != raised,
                    not any(i in preempted for i in mine),
                    len(mine),
                    -change,
                    _violation(trace, targets, kind, look, change, act),
                )


def _violation(  # noqa: PLR0917 - the trace, what its steps are about, and what to say of three
    trace: Sequence[Step], targets: Sequence[str], kind: _Kind, look: int, change: int, act: int
) -> Violation:
    names = {step.location: target for step, target in zip(trace, targets, strict=True)}
    ordered = set(trace[change].held) & set(trace[act].held)
    released = ordered & set(trace[look].held)
    reread = any(
        trace[i].thread == trace[act].thread and _same(trace[i], trace[act])
        for i in range(change + 1, act)
    )
    return Violation(
        kind=kind,
        look=look,
        change=change,
        act=act,
        released=names[min(released)] if released else None,
        late=names[min(ordered)] if ordered and not released else None,
        overwrites=_assigns(trace[change]) and _assigns(trace[act]) and not reread,
    )


def sentence(violation: Violation, trace: Sequence[Step], targets: Sequence[str]) -> str:
    """What happened, in one sentence."""
    look, change = trace[violation.look], trace[violation.change]
    one, two = sorted((look.thread, change.thread))
    both = "both threads" if _threads(trace) == {one, two} else f"threads {one} and {two}"
    target = targets[violation.act]
    if violation.kind == "iteration":
        return (
            f"Iteration over {target}: thread {change.thread} changed it while thread "
            f"{look.thread} was going through it."
        )
    if violation.kind == "lost-update":
        said = (
            f"{both} read it before either wrote it back."
            if _symmetric(violation, trace)
            else f"thread {change.thread} wrote it after thread {look.thread} had read it, and "
            f"thread {look.thread} wrote it back."
        )
        return f"Lost update on {target}: {said}"
    if trace[violation.act].write and _symmetric(violation, trace):
        return f"Check-then-act on {target}: {both} looked at it before either changed it."
    then = "acted on what it had seen" if trace[violation.act].write else "used it all the same"
    return (
        f"Check-then-act on {target}: thread {look.thread} looked at it, thread {change.thread} "
        f"changed it, and thread {look.thread} {then}."
    )


def repair(violation: Violation, trace: Sequence[Step]) -> str:
    """What usually repairs it."""
    look, change, act = (trace[i] for i in (violation.look, violation.change, violation.act))
    lock = violation.released or violation.late or "one lock"
    if violation.kind == "iteration":
        return (
            f"hold {lock} around the whole iteration ({naming.short(look.place)}) and the change "
            f"({naming.short(change.place)}), or iterate over a copy that was made under it."
        )
    first, last = naming.short(look.place), naming.short(act.place)
    meanwhile = trace[violation.look : violation.act]
    if any(step.op == "wake up" and step.thread == look.thread for step in meanwhile):
        return f"look again after each wait, with `while` ({first})."
    if first == last:
        span = f"around {naming.shown(act, alone=True)} ({last})"
    else:
        words = ("read", "write") if violation.kind == "lost-update" else ("look", "act")
        span = f"from the {words[0]} ({first}) to the {words[1]} ({last})"
    within = (
        change.place.file == look.place.file == act.place.file
        and look.place.line <= change.place.line <= act.place.line
    )
    there = "" if within else f", and for the change ({naming.short(change.place)})"
    return f"hold {lock} {span}{there}."


def _around(
    trace: Sequence[Step], touches: Sequence[int], change: int, failure: Failure | None
) -> Iterator[tuple[int, int, _Kind]]:
    """For each other thread: a look before a change, and an act on it after that."""
    changed = trace[change]
    raised = failure.thread if failure is not None and failure.phase == "body" else None
    related = [i for i in touches if _same(trace[i], changed)]
    for thread in sorted({trace[i].thread for i in related} - {changed.thread}):
        mine = [i for i in related if trace[i].thread == thread]
        before = [i for i in mine if i < change]
        after = [i for i in mine if i > change]
        if after and raised == thread and failure and _iterates(trace[after[-1]], failure):
            began = _began(trace, change, after[-1])
            if began is not None:
                yield began, after[-1], "iteration"
            continue
        if not before or not after:
            continue
        last, first = before[-1], after[0]
        if trace[last].write:
            continue
        if trace[first].write and _updates(trace, last, change, first):
            yield last, first, "lost-update"
            continue
        checked = _looks(trace[last])
        acts = [i for i in after if trace[i].write]
        if checked and acts and not any(_looks(trace[i]) for i in after if i < acts[0]):
            yield last, acts[0], "check-then-act"
        looped = trace[last].place == trace[first].place  # the next round looks again
        if raised == thread and after[-1] == first and not (looped or (checked and acts)):
            yield last, first, "check-then-act"


def _iterates(step: Step, failure: Failure) -> bool:
    """Whether an iterator has noticed, as those of dicts, sets and deques do."""
    return step.op == "iteration step" and "during iteration" in failure.text


def _began(trace: Sequence[Step], change: int, act: int) -> int | None:
    """The last step before a change on the line of an iteration, where that was under way."""
    step = trace[act]
    return next(
        (
            index
            for index in range(change - 1, -1, -1)
            if trace[index].thread == step.thread and trace[index].place.line == step.place.line
        ),
        None,
    )


def _updates(trace: Sequence[Step], look: int, change: int, act: int) -> bool:
    """Whether an assignment writes back what was read, and so loses what another wrote."""
    read, write = trace[look], trace[act]
    if not (_assigns(write) and _assigns(trace[change])):
        return False
    if _is_check(read) and read.place.line != write.place.line:
        return False
    return read.place.function == write.place.function or any(
        trace[i].thread == trace[change].thread
        and not trace[i].write
        and _same(trace[i], write)
        and not any(trace[j].write and _same(trace[j], write) for j in range(i + 1, change))
        for i in range(change)
    )


def _symmetric(violation: Violation, trace: Sequence[Step]) -> bool:
    """Whether both threads had read the same before the first of them wrote."""
    change = trace[violation.change]
    for index in range(violation.change - 1, -1, -1):
        step = trace[index]
        if not _same(step, change):
            continue
        if step.write:
            return False
        if step.thread == change.thread:
            return not any(
                trace[i].write and _same(trace[i], change)
                for i in range(min(index, violation.look), violation.change)
            )
    return False


def _same(one: Step, other: Step) -> bool:
    """Whether two steps touch the same location, or one of them all of what the other is in."""
    return (
        one.location == other.location
        and bool(naming.kind_of(one))
        and (one.key == other.key or one.key is None or other.key is None)
    )


def _changes(step: Step) -> bool:
    """Whether a write left something else than there was, as far as that can be told."""
    return (
        step.before is None
        or step.after is None
        or step.before != step.after
        or step.after.startswith("<")
        or " of " in step.after
    )


def _assigns(step: Step) -> bool:
    """Whether a write puts a new value in the place of the old one."""
    replaced = naming.kind_of(step) in {"attribute", "item", "global", "cell"}
    return step.write and replaced and naming.is_assignment(step.place.source)


def _is_check(step: Step) -> bool:
    """Whether a decision hangs on what a step reads, as far as its line shows."""
    return " in " in f" {step.place.source} " or _CHECK.match(step.line) is not None


def _looks(step: Step) -> bool:
    return not step.write and _is_check(step)


def _threads(trace: Sequence[Step]) -> set[int]:
    return {step.thread for step in trace}
