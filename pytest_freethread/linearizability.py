"""Is there an order of these operations that explains their results? A pure checker.

A history says which operations clients called, when they returned and with what; a sequential
specification says what an operation does when it is alone. `check_history` looks for an order in
which the specification gives every result that was seen, and that keeps to the order in time:

    history = [
        Operation(client=0, name="write", args=(1,), called=0, returned=3),
        Operation(client=1, name="read", result=1, called=1, returned=2),
        Operation(client=2, name="read", result=0, called=4, returned=5),
    ]
    judgement = check_history(history, register_spec(0))
    assert judgement.verdict is Verdict.FAILED  # the last read came after the write

Linearizability is due to Herlihy & Wing, "Linearizability: a correctness condition for concurrent
objects", TOPLAS 1990. The search is that of Wing & Gong, "Testing and verifying concurrent
objects", JPDC 1993, with what Lowe added in "Testing for linearizability", CCPE 2017: never enter
the same configuration (operations done, state) twice. Parts of a history that do not touch each
other are judged one by one: Horn & Kroening, "Faster linearizability checking via
P-compositionality", FORTE 2015. The problem is NP-complete (Gibbons & Korach, "Testing shared
memories", SICOMP 1997): the time can run out, and that is no pass.
"""

from __future__ import annotations

import json
import math
import re
import time
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TextIO, TypeVar

from pytest_freethread.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

State = TypeVar("State", bound="Hashable")

Claim = Literal["linearizable", "sequential", "quiescent", "serializable"]
"""Which order in time the explanation has to keep to; see `check_history`."""

SHOWN = 5
"""How many of the longest partial orders a judgement keeps."""

TOLD = 10_000
"""How many steps of a search are made for the sake of a report alone."""


# --- What is judged -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Raised:
    """The result of an operation that raised: the name of the exception's class."""

    error: str

    def __str__(self) -> str:
        return f"raised {self.error}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """A call that a client made, and what came of it.

    The interval from `called` to `returned` is closed: an operation that returns at the very
    moment in which another one is called overlaps with it, since the clock cannot tell which was
    first. A client that never saw its operation return does not know whether it took effect:
    that operation is pending, and may be part of an explanation or not.

    Attributes:
        client: who called; the clients' own order is what `sequential` goes by.
        name: which operation of the specification.
        args: its arguments.
        result: what it returned; a `Raised` where it raised. Means nothing while pending.
        called: when it was called, in any unit that only grows.
        returned: when it returned, in the same unit; None while it is pending.
    """

    client: Hashable = 0
    name: str
    args: tuple[Any, ...] = ()
    result: object = None
    called: float
    returned: float | None = None

    def __post_init__(self) -> None:
        if self.returned is not None and not self.called <= self.returned:
            raise ValueError(f"{self} returned at {self.returned}, called at {self.called}")

    def __str__(self) -> str:
        call = f"{self.name}({', '.join(map(repr, self.args))})"
        if self.returned is None:
            return f"{call} pending"
        result = self.result
        return f"{call} {result}" if isinstance(result, Raised) else f"{call} -> {result!r}"


@dataclass(frozen=True, kw_only=True)
class SequentialSpec(Generic[State]):
    """What the operations of an object do when nothing else is going on, as a record of functions.

        def step(state, operation):
            match operation.name, operation.args:
                case "read", ():
                    yield state, state
                case "write", (value,):
                    yield None, value

        register = SequentialSpec(name="register", initial=0, step=step)

    Attributes:
        name: how reports call the object.
        initial: the state before the first operation. States are immutable and hashable: two that
            are equal are explored once.
        step: gives every way in which the operation can take effect in that state: its result and
            the next state. One for a deterministic operation, several where the specification
            leaves a choice, none where the operation would have to wait. Must not look at the
            operation's result, which is compared with those that it gives.
        partition: gives the part of the object that an operation concerns, such as a map's key;
            None where it concerns all of it. Operations on different parts neither see nor change
            each other's state. If every operation has a part, each part is judged by itself, from
            `initial` on, which is what makes long histories cheap.
        observes: whether an operation never changes the state, in whichever state it is called.
            Such an operation is taken as soon as it fits, with no need to try it later.
        foresight: what the results say of the future, to give up early. Gets the operations of a
            history and makes a test that tells of a state whether it is hopeless: nothing that
            follows it can give all these results and keep to the order in time. A search stays
            right without it, only slower. Asked for the claim `linearizable` alone.
        describe: a state in the words of a report.
    """

    name: str
    initial: State
    step: Callable[[State, Operation], Iterable[tuple[object, State]]]
    partition: Callable[[Operation], Hashable | None] | None = None
    observes: Callable[[Operation], bool] | None = None
    foresight: Callable[[Sequence[Operation]], Callable[[State], bool]] | None = None
    describe: Callable[[State], str] = repr


@dataclass(frozen=True, kw_only=True)
class Partial:
    """An order that explains some of the operations, and why it goes no further.

    Attributes:
        order: the operations, in an order that the specification accepts.
        state: after the last of them, as the specification describes it.
        candidates: the complete operations that may come next in time, each with the results
            that the specification gives for it in that state: none where it would have to wait.
    """

    order: tuple[Operation, ...]
    state: str
    candidates: tuple[tuple[Operation, tuple[object, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a history says about a claim. `str(judgement)` is the report.

    Attributes:
        verdict: INCONCLUSIVE if the time ran out before an order was found or excluded.
        claim: the claim that was judged.
        spec: the name of the specification.
        witness: where PASSED: an order that explains the results; a pending operation is part of
            it only where it took effect.
        part: where it did not pass and the history was partitioned: the part that this is about.
        prefix: where FAILED: the shortest beginning of that part's history that no order explains
            (the shortest one known, if the time ran out here). Operations that had not returned
            by its end are pending. For claims other than `linearizable`, where later operations
            may explain earlier ones, it is all of the history.
        longest: where it did not pass: the longest orders found for `prefix`, or for the part, of
            at least one operation less than needed; at most `SHOWN` of them.
        configurations: how many different ones, of operations done and state, were entered.
        seconds: how long it took, by the clock that was given.
    """

    verdict: Verdict
    claim: Claim
    spec: str
    witness: tuple[Operation, ...] = ()
    part: Hashable = None
    prefix: tuple[Operation, ...] = ()
    longest: tuple[Partial, ...] = ()
    configurations: int
    seconds: float

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        about = self.spec if self.part is None else f"{self.spec}, {self.part!r}"
        tried = f"{self.configurations} configurations, {self.seconds:.2f} s"
        match self.verdict:
            case Verdict.PASSED:
                yield f"{self.claim} ({about}): {len(self.witness)} operations in order; {tried}"
                return
            case Verdict.FAILED:
                yield f"not {self.claim} ({about}): no order explains these results; {tried}"
                yield from _table(self.prefix)
            case Verdict.INCONCLUSIVE:
                yield f"unknown whether {self.claim} ({about}): out of time; {tried}"
        for partial in self.longest[:1]:
            done = len(partial.order)
            ends = ", ends with" * (done > 3)
            yield f"the longest order that works, of length {done}{ends}:"
            yield from (f"  {operation}" for operation in partial.order[-3:])
            yield f"  state {partial.state}, in which"
            for operation, results in partial.candidates:
                if any(_same(result, operation.result) for result in results):
                    yield f"  {operation} fits, but leads no further"
                else:
                    given = " or ".join(map(_result, results)) or "it would have to wait"
                    yield f"  {operation} is wrong: {given}"


def _result(result: object) -> str:
    return f"it {result}" if isinstance(result, Raised) else f"it gives {result!r}"


def _table(operations: Sequence[Operation]) -> Iterator[str]:
    """The last operations of a history, with their times."""
    last = sorted(operations, key=lambda operation: operation.called)[-20:]
    if len(last) < len(operations):
        yield f"  ... {len(operations) - len(last)} before"
    names = [f"client {operation.client}" for operation in last]
    width = max(map(len, names), default=0)
    for name, operation in zip(names, last, strict=True):
        end = "" if operation.returned is None else operation.returned
        yield f"  {name:<{width}}  [{operation.called}, {end}]  {operation}"


def check_history(
    history: Iterable[Operation],
    spec: SequentialSpec[Any],
    *,
    claim: Claim = "linearizable",
    seconds: float | None = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Judgement:
    """Judge whether some order of the operations explains all results.

    Args:
        history: the operations, in any order; their times say what came before what.
        spec: what they do one at a time.
        claim: which orders count as an explanation.
            `linearizable`: those in which an operation that returned before another was called
            comes before it (Herlihy & Wing 1990). The only claim that partitions a history: the
            others do not follow for the whole from their truth for each part.
            `sequential`: those that keep each client's own order (Lamport, "How to make a
            multiprocessor computer that correctly executes multiprocess programs", 1979).
            `quiescent`: those that keep the order of operations with a moment in between in which
            nothing was going on (Aspnes, Herlihy & Shavit, "Counting networks", 1994).
            `serializable`: all of them (Papadimitriou, "The serializability of concurrent
            database updates", 1979); the operations are transactions, see `transactions_spec`,
            for which `linearizable` means strictly serializable.
        seconds: how long to search, by `clock`; None: until it is known.
        clock: seconds that only grow.

    Raises:
        ValueError: if the claim is none of these, or if it is `sequential` and a client called
            an operation before its last one had returned.
    """
    budget = _Budget(seconds, clock)
    parts = _partitioned(history, spec) if claim == "linearizable" else {None: [*history]}
    entered = 0

    def judgement(verdict: Verdict, **evidence: Any) -> Judgement:
        return Judgement(
            verdict=verdict,
            claim=claim,
            spec=spec.name,
            configurations=entered,
            seconds=budget.spent(),
            **evidence,
        )

    witnesses = []
    unknown = None
    # The small parts first: a large one that takes all the time does not hide what they show.
    for part, operations in sorted(parts.items(), key=lambda item: len(item[1])):
        search = _Search(operations, claim, spec, budget)
        entered += search.configurations
        if search.verdict is Verdict.FAILED:
            prefix = search.operations
            if claim == "linearizable":
                prefix, search = _shortest(search, spec, budget)
            return judgement(
                Verdict.FAILED, part=part, prefix=tuple(prefix), longest=search.partials()
            )
        if search.verdict is Verdict.PASSED:
            witnesses.append(search.witness())
        elif unknown is None:
            unknown = {"part": part, "longest": search.partials()}
    if unknown is not None:
        return judgement(Verdict.INCONCLUSIVE, **unknown)
    return judgement(Verdict.PASSED, witness=_joined(witnesses))


class _Budget:
    """How much time is left."""

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._seconds = math.inf if seconds is None else seconds

    def spent(self) -> float:
        return self._clock() - self._start

    def over(self) -> bool:
        return self.spent() >= self._seconds


def _partitioned(
    history: Iterable[Operation], spec: SequentialSpec[Any]
) -> dict[Hashable, list[Operation]]:
    """The operations of each part; all of them under None if there are no parts to tell apart."""
    operations = [*history]
    parts: dict[Hashable, list[Operation]] = {}
    if spec.partition is not None:
        for operation in operations:
            part = spec.partition(operation)
            if part is None:
                return {None: operations}
            parts.setdefault(part, []).append(operation)
    return parts or {None: operations}


def _joined(witnesses: list[list[Operation]]) -> tuple[Operation, ...]:
    """One order from those of the parts: linearizability is local (Herlihy & Wing, theorem 1).

    Each operation takes effect as early as its part's order allows, never before its call and,
    as that order keeps to time, never after its return. So the moments order the whole as well.
    """
    if len(witnesses) == 1:
        return tuple(witnesses[0])
    moments = []
    for part, witness in enumerate(witnesses):
        now = -math.inf
        for position, operation in enumerate(witness):
            now = max(now, operation.called)
            moments.append((now, part, position, operation))
    moments.sort(key=lambda moment: moment[:3])
    return tuple(moment[3] for moment in moments)


def _shortest(
    search: _Search, spec: SequentialSpec[Any], budget: _Budget
) -> tuple[list[Operation], _Search]:
    """The shortest failing prefix of the history of a failed search, and its own search.

    Every prefix of a linearizable history is linearizable, so of the prefixes that end with a
    return, those up to some moment pass and all later ones fail. What the time does not suffice
    for counts as passed, so that the prefix found is known to fail.
    """
    operations = search.operations
    moments = sorted({o.returned for o in operations if o.returned is not None})
    low, high = bisect_left(moments, search.reached()), len(moments) - 1
    step = 1  # the failure is mostly close to what was reached: gallop there, then halve
    while low < high:
        middle = min(low + step - 1, (low + high) // 2)
        step *= 2
        tried = _Search(_prefix(operations, moments[middle]), "linearizable", spec, budget)
        if tried.verdict is Verdict.FAILED:
            high, search = middle, tried
        else:
            low = middle + 1
    prefix = _prefix(search.operations, moments[high])
    if spec.foresight is not None:
        # It gives up before the order that a reader would follow to where it breaks.
        told = replace(spec, foresight=None)
        search = _Search(prefix, "linearizable", told, budget, limit=TOLD)
    return prefix, search


def _prefix(operations: Iterable[Operation], moment: float) -> list[Operation]:
    """What was known of the operations at a moment."""
    return [
        operation
        if operation.returned is not None and operation.returned <= moment
        else replace(operation, result=None, returned=None)
        for operation in operations
        if operation.called <= moment
    ]


# --- Which operations may come next ---------------------------------------------------------------


class _Order(Protocol):
    """Operations, and which of them may be next once some are done.

    What is done is a value that only the order can read: small, hashable, equal for equal sets.
    """

    operations: list[Operation]
    start: Any

    def frontier(self, done: Any) -> list[int]:
        """The operations that may come next, the complete ones first."""

    def after(self, done: Any, index: int) -> Any:
        """What is done when that operation of the frontier is done too."""

    def finished(self, done: Any) -> bool:
        """Whether all complete operations are done."""


def _order(operations: Iterable[Operation], claim: Claim) -> _Order:
    operations = [*operations]
    match claim:
        case "linearizable":
            return _Intervals([(o, o.called, _end(o)) for o in operations])
        case "quiescent":
            return _Intervals(_busy_periods(operations))
        case "serializable":
            # Nothing has to wait for a return that never comes; the calls' order is tried first.
            return _Intervals([(o, o.called, math.inf) for o in operations])
        case "sequential":
            return _Programs(operations)
        case _:
            raise ValueError(
                f"claim: {claim!r} is not linearizable, sequential, quiescent or serializable"
            )


def _end(operation: Operation) -> float:
    return math.inf if operation.returned is None else operation.returned


_Interval = tuple[Operation, float, float]


def _busy_periods(operations: Iterable[Operation]) -> list[_Interval]:
    """Each operation with the interval of the busy period that it is in, which no quiet cuts."""
    stretched: list[_Interval] = []
    period: list[Operation] = []
    end = -math.inf
    for operation in sorted(operations, key=lambda o: o.called):
        if operation.called > end:
            stretched += [(o, period[0].called, end) for o in period]
            period = []
        period.append(operation)
        end = max(end, _end(operation))
    return stretched + [(o, period[0].called, end) for o in period]


class _Intervals:
    """An operation comes before those that were called after it had returned.

    Complete operations are numbered in the order of their calls, then come the pending ones. What
    is done is (low, window, pending): the complete ones below `low`, and two sets of bits, of
    those from `low` on and of the pending ones. As `low` itself is not done, nothing that was
    called after its return is: the window is never longer than the operations that overlap with
    one, and a configuration of a long history is as small as that of a short one.
    """

    start = (0, 0, 0)

    def __init__(self, intervals: Iterable[_Interval]) -> None:
        by_call = sorted(intervals, key=lambda interval: interval[1])
        complete = [interval for interval in by_call if interval[0].returned is not None]
        pending = [interval for interval in by_call if interval[0].returned is None]
        self.operations = [operation for operation, _, _ in complete + pending]
        self._called = [called for _, called, _ in complete]
        self._returned = [returned for _, _, returned in complete]
        self._pending = [called for _, called, _ in pending]

    def frontier(self, done: tuple[int, int, int]) -> list[int]:
        index, window, pending = done
        called, returned, complete = self._called, self._returned, len(self._called)
        soonest = math.inf  # what was called later than the first return has to wait for it
        found = []
        while index < complete and called[index] <= soonest:
            if not window & 1:
                found.append(index)
                soonest = min(soonest, returned[index])
            window >>= 1
            index += 1
        for index, moment in enumerate(self._pending, complete):
            if moment > soonest:
                break
            if not pending & 1:
                found.append(index)
            pending >>= 1
        return found

    def after(self, done: tuple[int, int, int], index: int) -> tuple[int, int, int]:
        low, window, pending = done
        complete = len(self._called)
        if index >= complete:
            return low, window, pending | 1 << index - complete
        window |= 1 << index - low
        while window & 1:
            window >>= 1
            low += 1
        return low, window, pending

    def finished(self, done: tuple[int, int, int]) -> bool:
        return done[0] == len(self._called)


class _Programs:
    """An operation comes after the earlier ones of its client. Done: how many of each client."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        programs: dict[Hashable, list[Operation]] = {}
        for operation in sorted(operations, key=lambda o: (o.called, _end(o))):
            program = programs.setdefault(operation.client, [])
            if program and _end(program[-1]) > operation.called:
                raise ValueError(
                    f"client {operation.client} called {operation} at {operation.called}, when "
                    f"its {program[-1]} had not returned"
                )
            program.append(operation)
        self.operations = [o for program in programs.values() for o in program]
        self.start = (0,) * len(programs)
        self._client = [client for client, o in enumerate(programs.values()) for _ in o]
        # Of each client: the index of its first operation, and how many are complete, and are.
        self._programs: list[tuple[int, int, int]] = []
        first = 0
        for program in programs.values():
            pending = program[-1].returned is None
            self._programs.append((first, len(program) - pending, len(program)))
            first += len(program)

    def frontier(self, done: tuple[int, ...]) -> list[int]:
        complete = []
        pending = []
        for (first, returned, called), count in zip(self._programs, done, strict=True):
            if count < returned:
                complete.append(first + count)
            elif count < called:
                pending.append(first + count)
        return complete + pending

    def after(self, done: tuple[int, ...], index: int) -> tuple[int, ...]:
        client = self._client[index]
        return (*done[:client], done[client] + 1, *done[client + 1 :])

    def finished(self, done: tuple[int, ...]) -> bool:
        return all(
            count >= returned for (_, returned, _), count in zip(self._programs, done, strict=True)
        )


# --- The search -----------------------------------------------------------------------------------

_Path = tuple[int, Any, int, "_Path | None"]
"""An operation, the state after it, how many there are up to it, and the path before it."""


class _Search:
    """Depth first through the configurations, each of which is entered once.

    Attributes:
        operations: by the indices that the order has for them.
        verdict: FAILED once no configuration is left, INCONCLUSIVE if the time ran out before.
        configurations: how many were entered.
    """

    def __init__(
        self,
        operations: Iterable[Operation],
        claim: Claim,
        spec: SequentialSpec[Any],
        budget: _Budget,
        *,
        limit: float = math.inf,
    ) -> None:
        order = _order(operations, claim)
        self._order = order
        self._spec = spec
        self.operations = order.operations
        # Pairs of intervals mean what they say only where they are those of the calls.
        foresight = spec.foresight if claim == "linearizable" else None
        self._hopeless = foresight and foresight(order.operations)
        self._observes = [
            spec.observes is not None and o.returned is not None and spec.observes(o)
            for o in order.operations
        ]
        self._best: list[tuple[Any, _Path]] = []
        self._best_length = -1
        self._end: _Path | None = None
        self._entered: set[tuple[Any, Any]] = set()
        self.verdict = self._run(budget, limit)
        self.configurations = len(self._entered)
        self._entered.clear()  # most of the memory, and of no more use

    def _run(self, budget: _Budget, limit: float) -> Verdict:
        step = self._spec.step
        hopeless = self._hopeless
        operations = self.operations
        # What is to be tried: a configuration, and the operation to come next in it.
        untried: list[tuple[Any, _Path, int]] = []
        if self._enter(self._order.start, (-1, self._spec.initial, 0, None), untried):
            return Verdict.PASSED
        tries = 0
        while untried:
            tries += 1
            if tries > limit or (not tries % 16 and budget.over()):
                return Verdict.INCONCLUSIVE
            done, path, index = untried.pop()
            operation = operations[index]
            for result, state in step(path[1], operation):
                if operation.returned is None:
                    # It need not take effect, so there is nothing in it without an effect.
                    fits = state != path[1]
                else:
                    fits = _same(result, operation.result)
                if not fits or (hopeless and hopeless(state)):
                    continue
                extended = index, state, path[2] + 1, path
                if self._enter(self._order.after(done, index), extended, untried):
                    return Verdict.PASSED
        return Verdict.FAILED

    def _enter(self, done: Any, path: _Path, untried: list[tuple[Any, _Path, int]]) -> bool:
        """Take up a configuration; tells whether it explains everything.

        All that can be observed in its state is observed at once: an order of the rest that
        begins here stays one if an operation that fits and changes nothing moves to its front.
        """
        order = self._order
        state = path[1]
        frontier = order.frontier(done)
        if self._spec.observes is not None:
            seen = True
            while seen:
                seen = False
                for index in frontier:
                    if self._observes[index] and self._fits(index, state):
                        done = order.after(done, index)
                        path = index, state, path[2] + 1, path
                        seen = True
                if seen:
                    frontier = order.frontier(done)
            frontier = [index for index in frontier if not self._observes[index]]
        if order.finished(done):
            self._end = path
            return True
        configuration = done, state
        if configuration in self._entered:
            return False
        self._entered.add(configuration)
        if path[2] > self._best_length:
            self._best_length = path[2]
            self._best = []
        if path[2] == self._best_length and len(self._best) < SHOWN:
            self._best.append((done, path))
        untried += [(done, path, index) for index in reversed(frontier)]
        return False

    def _fits(self, index: int, state: Any) -> bool:
        operation = self.operations[index]
        return any(_same(given, operation.result) for given, _ in self._spec.step(state, operation))

    def reached(self) -> float:
        """A moment up to which, itself excluded, some order explains all returns."""
        return max(
            min(_end(self.operations[index]) for index in self._order.frontier(done))
            for done, _ in self._best
        )

    def witness(self) -> list[Operation]:
        """The order that explains everything, where there is one."""
        return self._operations_of(self._end)

    def _operations_of(self, path: _Path | None) -> list[Operation]:
        order = []
        while path and path[3]:
            order.append(self.operations[path[0]])
            path = path[3]
        return order[::-1]

    def partials(self) -> tuple[Partial, ...]:
        """The longest orders that were found, and what the specification says of the next ones."""
        return tuple(
            Partial(
                order=tuple(self._operations_of(path)),
                state=self._spec.describe(path[1]),
                candidates=tuple(
                    (operation, tuple(given for given, _ in self._spec.step(path[1], operation)))
                    for operation in map(self.operations.__getitem__, self._order.frontier(done))
                    if operation.returned is not None
                ),
            )
            for done, path in self._best
        )


def _same(result: object, other: object) -> bool:
    return result is other or bool(result == other)


# --- Specifications ------------------------------------------------------------------------------


_Pairs = frozenset[tuple["Hashable", "Hashable"]]
_Items = frozenset["Hashable"]
_Sequence = tuple[object, ...]


def register_spec(initial: Hashable = None) -> SequentialSpec[Hashable]:
    """A cell: `read()` gives its value, `write(value)` sets it; `cas(old, new)` tells if it did."""

    def step(value: Hashable, operation: Operation) -> Iterator[tuple[object, Hashable]]:
        match operation.name, operation.args:
            case "read", ():
                yield value, value
            case "write", (new,):
                yield None, new
            case "cas", (old, new) if _same(value, old):
                yield True, new
            case "cas", (_, _):
                yield False, value
            case _:
                raise _unknown("register", operation)

    return SequentialSpec(name="register", initial=initial, step=step, observes=_named("read"))


def counter_spec(initial: int = 0) -> SequentialSpec[int]:
    """A number: `read()` gives it, `increment(by=1)` gives None, `add(by)` the new number."""

    def step(value: int, operation: Operation) -> Iterator[tuple[object, int]]:
        match operation.name, operation.args:
            case "read", ():
                yield value, value
            case "increment", ():
                yield None, value + 1
            case "increment", (by,):
                yield None, value + by
            case "add", (by,):
                yield value + by, value + by
            case _:
                raise _unknown("counter", operation)

    return SequentialSpec(name="counter", initial=initial, step=step, observes=_named("read"))


def map_spec(default: Hashable = None) -> SequentialSpec[_Pairs]:
    """A dictionary, empty at first, partitioned by key unless somebody asks for `len()`.

    `get(key)` gives the value or `default`, `contains(key)` a bool, `put(key, value)` None,
    `setdefault(key, value)` what is there after it, `pop(key)` the value or `Raised("KeyError")`,
    `append(key, more)` None: it puts the value, or else the default, plus more.
    """

    def step(pairs: _Pairs, operation: Operation) -> Iterator[tuple[object, _Pairs]]:
        values = dict(pairs)

        def put(key: Hashable, value: Hashable) -> _Pairs:
            return frozenset({**values, key: value}.items())

        match operation.name, operation.args:
            case "get", (key,):
                yield values.get(key, default), pairs
            case "contains", (key,):
                yield key in values, pairs
            case "len", ():
                yield len(values), pairs
            case "put", (key, value):
                yield None, put(key, value)
            case "append", (key, more):
                yield None, put(key, values.get(key, default) + more)
            case "setdefault", (key, value):
                yield values.get(key, value), pairs if key in values else put(key, value)
            case "pop", (key,) if key in values:
                yield values[key], pairs - {(key, values[key])}
            case "pop", (_,):
                yield Raised("KeyError"), pairs
            case _:
                raise _unknown("map", operation)

    return SequentialSpec(
        name="map",
        initial=frozenset(),
        step=step,
        partition=_first_argument,
        observes=_named("get", "contains", "len"),
        describe=lambda pairs: repr(dict(sorted(pairs, key=repr))),
    )


def set_spec() -> SequentialSpec[_Items]:
    """A set, empty at first, partitioned by element unless somebody asks for `len()`.

    `add(item)` and `discard(item)` give None, `remove(item)` None or `Raised("KeyError")`,
    `contains(item)` a bool.
    """

    def step(items: _Items, operation: Operation) -> Iterator[tuple[object, _Items]]:
        match operation.name, operation.args:
            case "contains", (item,):
                yield item in items, items
            case "len", ():
                yield len(items), items
            case "add", (item,):
                yield None, items | {item}
            case "discard", (item,):
                yield None, items - {item}
            case "remove", (item,):
                yield None if item in items else Raised("KeyError"), items - {item}
            case _:
                raise _unknown("set", operation)

    return SequentialSpec(
        name="set",
        initial=frozenset(),
        step=step,
        partition=_first_argument,
        observes=_named("contains", "len"),
        describe=lambda items: repr(sorted(items, key=repr)),
    )


def queue_spec() -> SequentialSpec[_Sequence]:
    """First in, first out; the operations of `queue.Queue`.

    `put(item)` gives None, `get()` waits while there is no item, `get_nowait()` then gives
    `Raised("Empty")`, `qsize()` tells how many there are.
    """
    return _buffer("queue", capacity=math.inf)


def bounded_buffer_spec(capacity: int) -> SequentialSpec[_Sequence]:
    """A queue of at most so many items.

    As `queue_spec`, but `put(item)` waits while it is full, and `put_nowait(item)` then gives
    `Raised("Full")`.
    """
    return _buffer("bounded buffer", capacity=capacity)


def _buffer(name: str, *, capacity: float) -> SequentialSpec[_Sequence]:
    def step(items: _Sequence, operation: Operation) -> Iterator[tuple[object, _Sequence]]:
        match operation.name, operation.args:
            case "put" | "put_nowait", (item,) if len(items) < capacity:
                yield None, (*items, item)
            case "put_nowait", (_,):
                yield Raised("Full"), items
            case "get" | "get_nowait", () if items:
                yield items[0], items[1:]
            case "get_nowait", ():
                yield Raised("Empty"), items
            case "put", (_,):
                return
            case "get", ():
                return
            case "qsize", ():
                yield len(items), items
            case _:
                raise _unknown(name, operation)

    return SequentialSpec(
        name=name,
        initial=(),
        step=step,
        observes=_named("qsize"),
        foresight=_first_in_first_out,
    )


def _first_in_first_out(history: Sequence[Operation]) -> Callable[[_Sequence], bool]:
    """Three of the four ways in which a queue goes wrong that can be seen without a search.

    Henzinger, Sezgin & Vafeiadis, "Aspect-oriented linearizability proofs", CONCUR 2013: an item
    was got that nobody had put (VFresh), or got twice (VRepet): all is hopeless. An item was got
    too late for one that is behind it in the queue (VOrd): its get was called after the other
    one's had returned, or there was none. What was put twice cannot be told apart, and a pending
    get may have got anything. (What is left is that a queue was found empty when it was not.)
    """
    puts: dict[tuple[Any, ...], Operation] = {}
    twice = set()
    got: dict[tuple[Any, ...], Operation] = {}
    nobody = math.inf  # from when on somebody may have got what nobody is known to have
    done = [o for o in history if not isinstance(o.result, Raised)]
    for operation in done:
        if operation.name in ("put", "put_nowait"):
            if operation.args in puts:
                twice.add(operation.args)
            puts[operation.args] = operation
    for operation in done:
        item = (operation.result,)
        if operation.name not in ("get", "get_nowait"):
            continue
        if operation.returned is None:
            nobody = min(nobody, operation.called)
        elif item not in puts or (item in got and item not in twice):
            return lambda _items: True
        else:
            got[item] = operation
    for item in twice:
        del puts[item]
    called = {item: got[item].called if item in got else nobody for item in puts}
    returned = {item: _end(got[item]) if item in got else math.inf for item in puts}

    # VOrd of puts that did not overlap: the latest call of a get of anything that was put before.
    before = sorted(((_end(put), called[item]) for item, put in puts.items()), reverse=True)
    latest = -math.inf
    for item, put in sorted(puts.items(), key=lambda pair: pair[1].called):
        while before[-1][0] < put.called:
            latest = max(latest, before.pop()[1])
        if latest > returned[item]:
            return lambda _items: True

    def hopeless(items: _Sequence) -> bool:
        last = items[-1:]
        if last not in puts:
            return False
        end = returned[last]
        return any(called[item,] > end for item in items[:-1] if (item,) in puts)

    return hopeless


def stack_spec() -> SequentialSpec[_Sequence]:
    """Last in, first out.

    `push(item)` gives None; `pop()` and `peek()` give the item or `Raised("IndexError")`;
    `len()` tells how many there are.
    """

    def step(items: _Sequence, operation: Operation) -> Iterator[tuple[object, _Sequence]]:
        top = items[-1] if items else Raised("IndexError")
        match operation.name, operation.args:
            case "push", (item,):
                yield None, (*items, item)
            case "pop", ():
                yield top, items[:-1]
            case "peek", ():
                yield top, items
            case "len", ():
                yield len(items), items
            case _:
                raise _unknown("stack", operation)

    return SequentialSpec(name="stack", initial=(), step=step, observes=_named("peek", "len"))


def lock_spec() -> SequentialSpec[int]:
    """A `threading.Lock`, which anybody may release.

    `acquire()` gives True and waits while it is held; `try_acquire()` gives whether it took it;
    `release()` gives None, or `Raised("RuntimeError")` where it is not held.
    """
    return _permits("lock", 1, too_many="RuntimeError")


def semaphore_spec(permits: int, *, bounded: bool = False) -> SequentialSpec[int]:
    """A `threading.Semaphore`, or a `BoundedSemaphore`.

    `acquire()` gives True and waits while there is no permit; `try_acquire()` gives whether it
    took one; `release()` gives None, or if bounded `Raised("ValueError")` where all are there.
    """
    return _permits("semaphore", permits, too_many="ValueError" if bounded else None)


def _permits(name: str, permits: int, *, too_many: str | None) -> SequentialSpec[int]:
    def step(free: int, operation: Operation) -> Iterator[tuple[object, int]]:
        match operation.name, operation.args:
            case "acquire" | "try_acquire", () if free:
                yield True, free - 1
            case "try_acquire", ():
                yield False, free
            case "acquire", ():
                return
            case "release", () if too_many and free == permits:
                yield Raised(too_many), free
            case "release", ():
                yield None, free + 1
            case _:
                raise _unknown(name, operation)

    return SequentialSpec(name=name, initial=permits, step=step)


def token_bucket_spec(capacity: float, rate: float) -> SequentialSpec[tuple[float, float]]:
    """A bucket that is full at first and gets `rate` tokens per unit of time, up to `capacity`.

    `take(tokens, now)` gives whether they were there, and takes them if so; `now` is the time
    that the bucket itself read. A time before that of an earlier operation counts as that one's:
    a bucket never takes tokens back. With times and rates that are integers or
    `fractions.Fraction`s this is exact; with floats it rounds as `level + rate * elapsed` does.
    """

    def step(
        bucket: tuple[float, float], operation: Operation
    ) -> Iterator[tuple[object, tuple[float, float]]]:
        level, last = bucket
        match operation.name, operation.args:
            case "take", (tokens, now):
                now = max(now, last)
                level = min(capacity, level + rate * (now - last))
                if tokens <= level:
                    yield True, (level - tokens, now)
                else:
                    yield False, (level, now)
            case _:
                raise _unknown("token bucket", operation)

    return SequentialSpec(
        name="token bucket",
        initial=(capacity, 0),
        step=step,
        describe=lambda bucket: f"{bucket[0]} tokens at {bucket[1]}",
    )


def transactions_spec(
    default: Hashable = None,
) -> SequentialSpec[_Pairs]:
    """Reads and writes of several keys at once, for the claim `serializable`.

    A transaction's arguments are its accesses, `("read", key)` and `("write", key, value)`, and
    its result is the tuple of what they gave: the value, or `default` where nobody wrote, for a
    read and None for a write:

        Operation(
            name="transaction",
            args=(("read", "x"), ("write", "y", 2)),
            result=(1, None),
            called=0,
            returned=1,
        )
    """

    def step(pairs: _Pairs, operation: Operation) -> Iterator[tuple[object, _Pairs]]:
        values = dict(pairs)
        results = []
        for access in operation.args:
            match access:
                case "read", key:
                    results.append(values.get(key, default))
                case "write", key, value:
                    values[key] = value
                    results.append(None)
                case _:
                    raise _unknown("transactions", operation)
        yield tuple(results), frozenset(values.items())

    return SequentialSpec(
        name="transactions",
        initial=frozenset(),
        step=step,
        observes=lambda operation: all(kind == "read" for kind, *_ in operation.args),
        describe=lambda pairs: repr(dict(sorted(pairs, key=repr))),
    )


def _named(*names: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.name in names


def _first_argument(operation: Operation) -> Hashable | None:
    """The part of an operation on one key; those without arguments concern all keys."""
    return operation.args[0] if operation.args else None


def _unknown(spec: str, operation: Operation) -> ValueError:
    return ValueError(f"{operation}: the specification of a {spec} has no such operation")


# --- Histories in files ---------------------------------------------------------------------------


def save_history(history: Iterable[Operation], file: TextIO) -> None:
    """Write a history as JSON lines, one operation each.

    `{"client": 0, "name": "pop", "args": ["k"], "raised": "KeyError", "called": 1, "returned": 2}`:
    `result` or `raised`, and neither of them nor `returned` while it is pending. Values are None,
    booleans, numbers, strings, and tuples of them, which are lists in the file.

    Raises:
        TypeError: if a value is of another type.
    """
    for operation in history:
        entry = {
            "client": _plain(operation.client),
            "name": operation.name,
            "args": _plain(operation.args),
        }
        if isinstance(operation.result, Raised):
            entry["raised"] = operation.result.error
        elif operation.returned is not None:
            entry["result"] = _plain(operation.result)
        entry["called"] = operation.called
        if operation.returned is not None:
            entry["returned"] = operation.returned
        file.write(json.dumps(entry) + "\n")


def load_history(lines: Iterable[str]) -> list[Operation]:
    """Read what `save_history` wrote, such as from an open file; lists become tuples.

    Raises:
        ValueError: if a line is not an operation.
    """
    history = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = {key: _frozen(value) for key, value in json.loads(line).items()}
            if "raised" in entry:
                entry["result"] = Raised(entry.pop("raised"))
            history.append(Operation(**entry))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"line {number} is no operation: {line.strip()} ({error})") from error
    return history


def _plain(value: object) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return [_plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be saved in a history: {value!r}")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_EVENT = re.compile(
    r"INFO\s+jepsen\.util\s+-\s+(?P<process>\d+)\s+:(?P<type>\w+)\s+:(?P<name>\w+)"
    r"\s+(?P<value>.*?)(\s+:hint\s+\d+)?"
    r"|\{:process (?P<process_>\d+), :type :(?P<type_>\w+), :f :(?P<name_>\w+), "
    r":key (?P<key>\".*?\"), :value (?P<value_>.*)\}"
)
_NEMESIS = re.compile(r"INFO\s+jepsen\.util\s+-\s+:nemesis\b.*")


def read_jepsen(lines: Iterable[str]) -> list[Operation]:
    r"""Read a log of Jepsen, in either of the two forms in which porcupine's tests have them.

    The logs of etcd tests, where the parts are separated by tabs or spaces, for `register_spec()`:

        INFO  jepsen.util - 0 :invoke :cas [1 3]
        INFO  jepsen.util - 0 :fail   :cas [1 3]

    and of key-value stores, for `map_spec("")`, with the operations `get`, `put` and `append`:

        {:process 0, :type :invoke, :f :append, :key "4", :value "more"}
        {:process 0, :type :ok, :f :append, :key "4", :value "more"}

    The times are the numbers of the lines. `:ok` is a return. `:fail` says that nothing was
    done: a `cas` returned False, anything else is left out. After `:info`, or if nothing follows,
    the operation is pending: nobody knows whether it took effect. What the nemesis does is no
    operation.

    Raises:
        ValueError: if a line is none of these, or ends what did not begin.
    """
    begun: dict[int, tuple[int, Operation]] = {}
    history: dict[int, Operation] = {}
    for number, text in enumerate(lines, 1):
        line = text.strip()
        if not line or _NEMESIS.fullmatch(line):
            continue
        match = _EVENT.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is no event of a process: {line}")
        keyed = match["key"] is not None
        process, kind, name, value = (
            match[field + "_" * keyed] for field in ("process", "type", "name", "value")
        )
        client = int(process)
        if kind == "invoke":
            if client in begun:
                raise ValueError(f"line {number}: process {client} is not done yet: {line}")
            args = _edn(match["key"]) if keyed else ()
            args += () if name in ("read", "get") else _edn(value)
            operation = Operation(client=client, name=name, args=args, called=number)
            history[number] = operation
            begun[client] = number, operation
            continue
        if client not in begun or begun[client][1].name != name:
            raise ValueError(f"line {number}: process {client} did not begin this: {line}")
        call, operation = begun.pop(client)
        if kind == "ok":
            result = _edn(value)[0] if name in ("read", "get") else True if name == "cas" else None
            history[call] = replace(operation, result=result, returned=number)
        elif kind == "fail" and name == "cas":
            history[call] = replace(operation, result=False, returned=number)
        elif kind == "fail":
            del history[call]
        elif kind != "info":
            raise ValueError(f"line {number}: :{kind} is not :invoke, :ok, :fail or :info: {line}")
    return [*history.values()]


def _edn(text: str) -> tuple[Any, ...]:
    """The values of a log: nil, numbers, strings in quotes, or a vector of them."""
    if text == "nil":
        return (None,)
    return tuple(json.loads(item) for item in re.findall(r'"(?:[^"\\]|\\.)*"|[^\s\[\]]+', text))
