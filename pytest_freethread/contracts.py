"""Contracts: what a class's operations are, and the scenarios that put its claim to the test.

`operation` says which methods are operations and what their arguments may be; `check_contract`
makes scenarios of them (calls before, calls of several threads at once, calls after), explores each
one, and compares what the calls gave with what the class itself gives when they come one at a time:

    class Counter:
        def __init__(self):
            self.value = 0

        @operation()
        def increment(self):
            self.value += 1

        @operation()
        def get(self):
            return self.value

    check_contract(Counter).raise_for_verdict()

The idea is that of Lincheck (Koval, Fedorov, Sokolova, Tsitelov & Alistarh, "Lincheck: a practical
framework for testing concurrent data structures on JVM", CAV 2023), with Hypothesis to make the
scenarios and to shrink them, and an exploration of interleavings that replays.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import hypothesis
from hypothesis import Phase
from hypothesis import strategies as st

from pytest_freethread import exploring, harness, interpreter, settings
from pytest_freethread.detectors import interleavings
from pytest_freethread.errors import SettingError
from pytest_freethread.execution import scope
from pytest_freethread.execution.calls import MARK, Call, Calls, Escaped
from pytest_freethread.linearizability import Operation, SequentialSpec, check_history
from pytest_freethread.records import Interleaving, Result, Scenario, Verdict
from pytest_freethread.report import text
from pytest_freethread.scheduling import DFS, Plain, make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from pytest_freethread.detectors.interleavings import Symptom
    from pytest_freethread.execution.controlled import Controlled
    from pytest_freethread.linearizability import Claim, Judgement
    from pytest_freethread.records import (
        ControlledExecution,
        ExplorationPlan,
        Failure,
        Finding,
        Move,
        Pending,
    )
    from pytest_freethread.scheduling import Scheduler

    Function = TypeVar("Function", bound="Callable[..., object]")

_DECLARED: Final = "__freethread_operation__"
_BEFORE: Final = "before"
_AFTER: Final = "after"
_OBSTRUCTION_FREE: Final = "obstruction-free"
_PROGRESS: Final = ("deadlock-free", _OBSTRUCTION_FREE)
_KIND: Final = "linearizability"
"""Of the finding that the results of calls have no explanation, whichever the claim."""

_STANDSTILLS: Final = ("deadlock", "lost-wakeup")

_ANYWHERE: Final = 8
"""Schedules that switch at any access, of a scenario that has no others left."""

_SHRINKING: Final = (7.0, 3_000)
"""Seconds and schedules that the search for a smaller scenario may take, whichever is over first.

On an idle machine it is the latter, if any, so that the same seed ends with the same scenario. Its
schedule gets some two seconds more after that.
"""


# --- what is claimed ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Word:
    """A word for a guarantee, and the check that goes with it.

    Attributes:
        broken: the sentence about a class that does not keep it.
        claim: which orders of the calls count as an explanation.
        sees: which of the calls before it, by the same client or not, an operation builds on.
        locked: whether each call is made under one lock, as the callers have promised.
        nested: whether the second thread's calls interrupt those of the first in its own thread.
    """

    broken: str
    claim: Claim = "linearizable"
    sees: Literal["all", "own", "none"] = "all"
    locked: bool = False
    nested: bool = False


_ORDER = "no order of these calls, one at a time, gives these results"

_WORDS: Final = {
    "immutable": _Word(
        broken="is not immutable: a call gives something else than on a new object", sees="none"
    ),
    "isolated": _Word(
        broken="is not isolated: a thread sees more than its own calls explain", sees="own"
    ),
    "atomic": _Word(
        broken="is not atomic: no order of these calls that keeps each thread's own gives these "
        "results",
        claim="sequential",
    ),
    "internally synchronised": _Word(
        broken=f"is not internally synchronised: {_ORDER}", claim="serializable"
    ),
    "linearizable": _Word(broken=f"is not linearizable: {_ORDER}"),
    "externally synchronised": _Word(
        broken=f"does not become safe by external synchronisation: with a lock around each call, "
        f"{_ORDER}",
        locked=True,
    ),
    "reentrant": _Word(
        broken="is not reentrant: interrupted by another call in the same thread, a call gives "
        "something else than before or after it",
        nested=True,
    ),
}


# --- what an operation is -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Declaration:
    """What `operation` noted on a method."""

    arguments: Mapping[str, SearchStrategy[Any]]
    group: str | None
    blocking: bool


def operation(
    *, group: str | None = None, blocking: bool = False, **arguments: SearchStrategy[Any]
) -> Callable[[Function], Function]:
    """Declare that a method is an operation of its class's contract.

    Args:
        group: operations of the same group are called by one thread only, as where there may be
            just one producer; before and after the threads anybody may call them.
        blocking: whether the operation may wait for ever for what another thread does. Any other
            one has to return in every schedule.
        arguments: by the name of the parameter, a strategy for what is passed. Those without one
            keep their defaults.

    Raises:
        SettingError: what is decorated is no function, has no such parameter, or lacks a strategy.
    """

    def declare(function: Function) -> Function:
        name = getattr(function, "__qualname__", repr(function))
        if not inspect.isfunction(function):
            raise SettingError(
                f"operation(): {name} is not a function; write a method that calls it"
            )
        _, *parameters = inspect.signature(function).parameters.values()
        known = {each.name for each in parameters if each.kind is not each.VAR_POSITIONAL}
        for argument, strategy in arguments.items():
            where = f"operation({argument}=…) of {name}"
            if argument not in known:
                raise settings.unknown(argument, known, where, what="parameter")
            if not isinstance(strategy, st.SearchStrategy):
                raise SettingError(f"{where}: {strategy!r} is not a strategy of Hypothesis")
        for each in parameters:
            variable = each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD}
            if each.default is each.empty and not variable and each.name not in arguments:
                raise SettingError(
                    f"operation() of {name}: there is no strategy for {each.name} "
                    f"(write operation({each.name}=…))"
                )
        ordered = {each.name: arguments[each.name] for each in parameters if each.name in arguments}
        declared = _Declaration(arguments=ordered, group=group, blocking=blocking)
        setattr(function, _DECLARED, declared)
        return function

    return declare


def _declarations(cls: type) -> dict[str, tuple[Callable[..., object], _Declaration]]:
    """The operations of a class, by name, in the order in which they were written."""
    found: dict[str, tuple[Callable[..., object], _Declaration]] = {}
    for base in reversed(cls.__mro__):
        for name in vars(base):
            function: Any = getattr(cls, name, None)
            declared = getattr(function, _DECLARED, None)
            if isinstance(declared, _Declaration):
                found[name] = function, declared
    return found


# --- scenarios ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Scenario:
    """Calls before, calls of each thread, calls after."""

    before: tuple[Call, ...]
    threads: tuple[tuple[Call, ...], ...]
    after: tuple[Call, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All of them; their index here is how everything else refers to them."""
        return (*self.before, *(call for thread in self.threads for call in thread), *self.after)

    @property
    def clients(self) -> dict[object, range]:
        """The indices of the calls, by who makes them: `before`, threads from 0 on, `after`."""
        clients = {}
        first = 0
        named = [(_BEFORE, self.before), *enumerate(self.threads), (_AFTER, self.after)]
        for client, calls in named:
            clients[client] = range(first, first + len(calls))
            first += len(calls)
        return clients

    @property
    def parts(self) -> tuple[tuple[Call, ...], ...]:
        """The calls of each client, in the order of `clients`."""
        return self.before, *self.threads, self.after

    @property
    def shape(self) -> list[list[str]]:
        """Which operations are called where, whatever their arguments."""
        return [[call.name for call in calls] for calls in self.parts]

    def contains(self, other: _Scenario) -> bool:
        """Whether the other one is what is left of this one without some of its calls."""
        return any(
            all(map(_is_part, other.parts, replace(self, threads=threads).parts))
            for threads in itertools.combinations(self.threads, len(other.threads))
        )

    def shorter(self) -> Iterator[_Scenario]:
        """The same with a call less, and with two less: one may undo what the other one does."""
        for fewer in 1, 2:
            for left_out in itertools.combinations(range(len(self.calls)), fewer):
                before, *threads, after = (
                    tuple(self.calls[index] for index in own if index not in left_out)
                    for own in self.clients.values()
                )
                yield _Scenario(before=before, threads=tuple(threads), after=after)

    def smaller(self) -> Iterator[_Scenario]:
        """Those, and the same with a call before all threads instead of in one."""
        yield from self.shorter()
        for thread, (first, *rest) in enumerate(self.threads):
            threads = (*self.threads[:thread], tuple(rest), *self.threads[thread + 1 :])
            yield replace(self, before=(*self.before, first), threads=threads)

    def __str__(self) -> str:
        return " | ".join("; ".join(map(str, calls)) for calls in self.parts)


def _is_part(some: Sequence[Call], calls: Sequence[Call]) -> bool:
    rest = iter(calls)
    return all(call in rest for call in some)  # each from behind the one before


def _scenarios(
    declared: Mapping[str, tuple[Callable[..., object], _Declaration]],
    *,
    threads: int,
    operations: int,
    prefix: int,
    suffix: int,
) -> SearchStrategy[_Scenario]:
    groups = dict.fromkeys(each.group for _, each in declared.values() if each.group is not None)
    called = {name: _called(name, *declared[name]) for name in declared}

    @functools.cache  # to make a strategy takes longer than to draw from it
    def calls(owned: frozenset[str], least: int, most: int) -> SearchStrategy[tuple[Call, ...]]:
        allowed = [
            called[name]
            for name, (_, each) in declared.items()
            if each.group is None or each.group in owned
        ]
        if not allowed:
            return st.just(())
        return st.lists(st.one_of(allowed), min_size=least, max_size=most).map(tuple)

    @st.composite
    def scenarios(draw: DrawFn) -> _Scenario:
        # Small ones as often as large ones: they cost little, and need no shrinking if they fail.
        most = draw(st.integers(1, operations))
        owners = {group: draw(st.integers(0, threads - 1)) for group in groups}
        everything = frozenset(groups)
        return _Scenario(
            before=draw(calls(everything, 0, min(prefix, most))),
            threads=tuple(
                draw(
                    calls(
                        frozenset(group for group in groups if owners[group] == thread),
                        int(thread < 2),
                        most,
                    )
                )
                for thread in range(threads)
            ),
            after=draw(calls(everything, 0, min(suffix, most))),
        )

    return scenarios()


def _called(
    name: str, function: Callable[..., object], declared: _Declaration
) -> SearchStrategy[Call]:
    return st.tuples(*declared.arguments.values()).map(
        lambda drawn: Call(
            name=name,
            function=function,
            arguments=tuple(zip(declared.arguments, drawn, strict=True)),
            blocking=declared.blocking,
        )
    )


# --- what the calls give one at a time ------------------------------------------------------------


class _Waits:
    """In place of a result: the call does not return."""

    def __repr__(self) -> str:
        return "waits"


_WAITS: Final = _Waits()


class _Reference:
    """What calls give in this order, one at a time, on an object of the class or of its model.

    Each order is run once, from the beginning: copies of objects that hold locks and threads are
    not to be had, and a run takes no longer than a copy.

    Attributes:
        telling: the names of operations that ever gave something else than None.
    """

    def __init__(self, make: Callable[[], object], on: Controlled) -> None:
        self._make = make
        self._on = on
        self._known: dict[tuple[Call, ...], object] = {}
        self.telling: set[str] = set()

    def result(self, order: tuple[Call, ...]) -> object:
        """Of the last call of an order; those before it have returned."""
        if order not in self._known:
            self.run(order)
        return self._known[order]

    def run(self, order: tuple[Call, ...]) -> None:
        """Learn what all calls of an order give, up to one that waits."""
        state = Calls(order, None)

        def setup() -> Calls:
            state.subject = self._make()
            return state

        # In a thread, not in `setup`: there, one that goes round for ever would not be stopped.
        body = partial(_perform, client=0, indices=range(len(order)))
        for thrown in self._on.run([body], _stay, setup=setup).thrown:
            raise thrown.exception
        for index, call in enumerate(order):
            result = self._known[order[: index + 1]] = state.results.get(index, _WAITS)
            if result is not None and result is not _WAITS and not isinstance(result, Escaped):
                self.telling.add(call.name)


def _perform(calls: Calls, *, client: object, indices: Sequence[int]) -> None:
    calls.perform(client, indices)


def _stay(enabled: Sequence[int], current: int | None, _: Sequence[Pending | None]) -> int:
    return current if current is not None and current in enabled else enabled[0]


# --- one scenario ---------------------------------------------------------------------------------


class _Trial:
    """A scenario as a program to explore, and the judge of its executions.

    Args:
        contract: what is asked of the class.
        scenario: what the threads call; each of them calls something.
        reference: what the calls may give.
        on: where it runs.
        interrupt: where a nested scenario is interrupted: before which step, from 1 on.

    Attributes:
        steps: how many choices the last execution had, where they are watched.
    """

    def __init__(
        self,
        contract: _Contract,
        scenario: _Scenario,
        reference: _Reference,
        on: Controlled,
        interrupt: int,
    ) -> None:
        self._contract = contract
        self._calls = scenario.calls
        self._clients = scenario.clients
        self._threads = range(len(scenario.threads))
        self._bodies = self._threads[:1] if contract.word.nested else self._threads
        self._reference = reference
        self._interrupt = interrupt
        self._judged: dict[object, Judgement] = {}
        self._run = Calls((), None)
        self._obstructed: tuple[int, int] | None = None
        self._states: list[str] = []
        self._note_state = on.apart(self._noted)
        self.steps = 0

    def program(self) -> exploring.Program:
        """What the threads do, on a new object each time."""
        contract = self._contract
        watched = (
            contract.observed or contract.word.nested or contract.progress == _OBSTRUCTION_FREE
        )
        return exploring.Program(
            bodies=tuple(
                partial(_perform, client=thread, indices=self._clients[thread])
                for thread in self._bodies
            ),
            setup=self._setup,
            invariant=self._finish,
            judge=self._judge,
            watch=self._watch if watched else None,
        )

    def _setup(self) -> Calls:
        self._obstructed = None
        self._states = []
        self.steps = 0
        lock = threading.Lock() if self._contract.word.locked else None
        self._run = run = Calls(self._calls, self._contract.cls(), lock)
        run.perform(_BEFORE, self._clients[_BEFORE])
        return run

    def _finish(self, run: Calls) -> object:
        run.perform(_AFTER, self._clients[_AFTER])
        invariant = self._contract.invariant
        return None if invariant is None else invariant(run.subject)

    def _watch(self, ready: Sequence[int], pending: Sequence[Pending | None]) -> None:
        self.steps += 1
        if self._contract.observed:
            self._note_state(ready, None, pending)
        if self._contract.progress == _OBSTRUCTION_FREE and self._obstructed is None:
            self._look_for_obstruction(ready, pending)
        if self._contract.word.nested and self.steps == self._interrupt:
            for thread in self._threads[1:]:
                self._run.perform(thread, self._clients[thread])

    def _look_for_obstruction(
        self, ready: Sequence[int], pending: Sequence[Pending | None]
    ) -> None:
        for thread, step in enumerate(pending):
            index = self._run.current.get(thread)
            stands = step is not None and thread not in ready
            if stands and index is not None and not self._calls[index].blocking:
                self._obstructed = thread, index

    def _noted(self, *_: object) -> int:
        self._states.append(self._contract.state_of(self._run.subject))
        return 0

    # ----- what an execution shows ---

    def _judge(self, execution: ControlledExecution, failures: Sequence[Failure]) -> Symptom | None:
        usual = interleavings.symptom(execution, failures)
        if usual is not None and not (usual.kind in _STANDSTILLS and self._may_wait()):
            return usual
        contract = self._contract
        if self._obstructed is not None:
            thread, index = self._obstructed
            message = (
                f"{contract.name} is not obstruction-free: {self._calls[index]} of thread {thread} "
                "has to wait for another thread"
            )
            return interleavings.Symptom(kind="obstruction", message=message, failure=None)
        if self._judgement().verdict is Verdict.PASSED:
            return None
        message = f"{contract.name} {contract.word.broken}"
        return interleavings.Symptom(kind=_KIND, message=message, failure=None)

    def _may_wait(self) -> bool:
        """Whether everybody who did not come back is in an operation that may wait for ever."""
        waiting = self._run.current.values()
        blocking = [self._calls[index].blocking for index in waiting]
        # Under the callers' lock one that waits keeps all others from beginning.
        return any(blocking) if self._contract.word.locked else bool(blocking) and all(blocking)

    def _judgement(self) -> Judgement:
        """Whether the results have an explanation; the same ones are judged once."""
        run = self._run
        # Which of several calls in a row was first makes no difference, nor of several returns.
        events = itertools.groupby(run.events, key=lambda event: event >= 0)
        moments = tuple(tuple(sorted(group)) for _, group in events)
        key = moments, tuple(sorted(run.results.items()))
        try:
            known = self._judged.get(key)
        except TypeError:  # results that have no hash
            return self._check()
        if known is None:
            known = self._judged[key] = self._check()
        return known

    def _check(self) -> Judgement:
        history, indices = self._history()
        word = self._contract.word
        # What is likely to be asked for, at once: calls in the order in which they returned.
        likely = sorted(history, key=lambda each: each.returned or math.inf)
        self._reference.run(tuple(self._calls[indices[each.called]] for each in likely))
        prefix = len(self._clients[_BEFORE])
        returned = {
            indices[each.called]
            for each in history
            if each.client in self._threads and each.returned is not None
        }

        def step(
            state: tuple[int, ...], called: Operation
        ) -> Iterator[tuple[object, tuple[int, ...]]]:
            index = indices[called.called]
            # Claims that do not look at the time say nothing of threads being started and joined.
            started = called.client == _BEFORE or len(state) >= prefix
            joined = called.client != _AFTER or returned <= {*state}
            if word.sees == "all" and not (started and joined):
                return
            order = (index,) if word.sees == "none" else (*state, index)
            result = self._reference.result(tuple(self._calls[each] for each in order))
            yield result, state if result is _WAITS else (*state, index)

        spec: SequentialSpec[tuple[int, ...]] = SequentialSpec(
            name=self._contract.name,
            initial=(),
            step=step,
            partition=self._thread_of if word.sees == "own" else None,
        )
        return check_history(history, spec, claim=word.claim, seconds=None)

    def _thread_of(self, called: Operation) -> object:
        """Before and after the threads, calls are made by one and the same."""
        return called.client if called.client in self._threads else _BEFORE

    def _history(self) -> tuple[list[Operation], dict[float, int]]:
        """The calls as operations, and the index of the call that was called at a moment."""
        run = self._run
        moments = {event: moment for moment, event in enumerate(run.events)}
        end = len(run.events)
        history = []
        indices: dict[float, int] = {}
        for client, own in self._clients.items():
            for index in own:
                if index not in moments:
                    continue
                call = self._calls[index]
                called, returned = moments[index], moments.get(~index)
                result = run.results.get(index)
                if returned is None and self._contract.progress is not None:
                    # That it waits is what it gives, once all that could go on has done so.
                    called, returned, result = end + index, end + len(self._calls), _WAITS
                indices[called] = index
                history.append(
                    Operation(
                        client=client,
                        name=call.name,
                        args=tuple(value for _, value in call.arguments),
                        result=result,
                        called=called,
                        returned=returned,
                    )
                )
        return history, indices

    # ----- what is said about it ---

    def told(self, finding: Finding) -> Finding:
        """A finding of the execution that has just been run, with the scenario."""
        evidence = finding.evidence
        assert isinstance(evidence, Interleaving), "that is what an exploration finds"
        order: tuple[str, ...] = ()
        following: tuple[str, ...] = ()
        if finding.kind == _KIND:
            _, indices = self._history()
            for nearest in self._check().longest[:1]:
                order = tuple(self._told(indices[each.called]) for each in nearest.order)
                following = tuple(
                    self._wrong(indices[each.called], each.client, given)
                    for each, given in nearest.candidates
                )
        rows = tuple(
            (self._who(client), tuple(map(self._told, own)))
            for client, own in self._clients.items()
            if own
        )
        names = tuple(
            ", ".join(str(self._calls[index]) for index in self._clients[thread])
            for thread in self._bodies
        )
        told = replace(
            evidence,
            moves=tuple(self._moves(evidence.moves)),
            names=names + evidence.names[len(names) :],
            found=(1, "the smallest scenario found", 0.0),
            call=f"check_contract({self._contract.name}, seed={self._contract.seed}, ...)",
            scenario=Scenario(rows=rows, order=order, next=following),
        )
        return replace(finding, evidence=told)

    def _told(self, index: int) -> str:
        """A call with its result."""
        run = self._run
        call = self._calls[index]
        if index not in run.results:
            return f"{call} waits" if index in run.events else f"{call} is not reached"
        result = run.results[index]
        if isinstance(result, Escaped):
            return f"{call} {result!r}"
        silent = result is None and call.name not in self._reference.telling
        return str(call) if silent else f"{call} → {result!r}"

    def _who(self, client: object) -> str:
        if client not in self._threads:
            return str(client)
        return f"thread {client}" if client in self._bodies else "interrupt"

    def _wrong(self, index: int, client: object, given: Sequence[object]) -> str:
        call = f"{self._who(client)}'s {self._calls[index]}"
        result = self._run.results.get(index, _WAITS)
        if result in given:
            return f"{call} fits, but leads no further"
        must = " or ".join(map(_must, given)) if given else _must(_WAITS)
        return f"{call} must {must}; it {_did(result)}"

    def _moves(self, moves: Sequence[Move]) -> Iterator[Move]:
        """The steps, with calls and returns as such, and with what `state()` gave after each."""
        events: dict[int, list[int]] = {thread: [] for thread in self._bodies}
        makes = {index: client for client, own in self._clients.items() for index in own}
        for event in self._run.events:
            client = makes[max(event, ~event)]
            if isinstance(client, int):
                events[client if client in events else 0].append(event)
        states = [*self._states, self._contract.state_of(self._run.subject)]
        shown = None
        for number, move in enumerate(moves, 1):
            changed: dict[str, Any] = {}
            if move.place is not None and move.place.function == MARK and events.get(move.thread):
                event = events[move.thread].pop(0)
                verb = "begins" if makes.get(event) in self._bodies else "interrupts"
                line = f"{self._calls[event]} {verb}" if event >= 0 else self._told(~event)
                line += " returns" if event < 0 and line == str(self._calls[~event]) else ""
                changed = {"line": line, "place": None, "operation": "call"}
            if self._contract.observed and number < len(states) and states[number] != shown:
                shown = changed["state"] = states[number]
            yield replace(move, **changed)


def _must(result: object) -> str:
    if isinstance(result, Escaped):
        return f"raise {result.error.__name__}"
    return "wait" if result is _WAITS else f"give {result!r}"


def _did(result: object) -> str:
    if isinstance(result, Escaped):
        return f"raised {result.error.__name__}" + (f": {result.text}" if result.text else "")
    return "waits" if result is _WAITS else f"gave {result!r}"


# --- the whole contract ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Contract:
    """What is asked of a class."""

    cls: type
    model: type
    claim: str
    progress: str | None
    invariant: Callable[[Any], object] | None
    seed: int

    @property
    def word(self) -> _Word:
        """What the claim means."""
        return _WORDS[self.claim]

    @property
    def name(self) -> str:
        """Of the class, as a reader knows it."""
        return self.cls.__name__

    @property
    def observed(self) -> bool:
        """Whether its objects have a `state()` to be shown."""
        return hasattr(self.cls, "state")

    def state_of(self, subject: Any) -> str:
        """What that gives, as text."""
        return str(subject.state()) if self.observed else ""


def check_contract(
    cls: type,
    *,
    threads: int = 2,
    operations: int = 3,
    prefix: int = 3,
    suffix: int = 2,
    model: type | None = None,
    invariant: Callable[[Any], object] | None = None,
    progress: str | None = None,
    claims: str = "linearizable",
    scenarios: int = 100,
    schedules: int = 200,
    seconds: float | None = 60.0,
    seed: int | None = None,
    include: Sequence[str] = (),
    deadline: float = 30.0,
) -> Result:
    """Make scenarios of a class's operations, explore each, and compare with one call at a time.

    A scenario is what is called before, what several threads call at once, and what is called
    after, on a new object each time. What the calls may give is what the class gives, or its
    model, when the same calls come one at a time, in an order that the claim allows. An exception
    is a result, compared by its type. What has no equality of its own counts as equal to any other
    object of its type.

    A failing scenario is shrunk to the smallest one found, its schedule to the fewest switches.
    Hypothesis keeps it in its database and has it tried first in the next run.

    Args:
        cls: a class that can be made without arguments, whose operations are declared by
            `operation`. If it has a method `state()`, what that gives is shown after each step; it
            must change nothing, and wait for nothing.
        threads: how many call operations at once, at most.
        operations: how many each of them calls, at most.
        prefix: how many are called before, at most.
        suffix: how many are called after, at most.
        model: another class with the same operations, to compare with.
        invariant: given the object after all calls; False or an AssertionError is a finding.
        progress: `deadlock-free`: a blocking operation may wait in the end only where it would
            have to wait by itself; `obstruction-free`: besides, no other operation ever has to
            wait for another thread, such as for a lock. None: a blocking operation may wait.
        claims: what the class promises: `immutable`, `isolated`, `atomic`, `internally
            synchronised`, `linearizable`, `externally synchronised` or `reentrant`.
        scenarios: how many to try at most.
        schedules: how many to try of each, at most.
        seconds: a budget for all of them. One that is over before is no pass.
        seed: where randomness starts; the same seed gives the same scenarios and schedules. 0
            unless told.
        include: names of modules and packages that get probes besides the class's own module and
            those below the working directory.
        deadline: seconds of real time after which a thread that does not come back from something
            that is not modelled is left to itself.

    Returns:
        FAILED with one finding; PASSED where all scenarios passed; INCONCLUSIVE where the budget
        was over before that, the failure did not come back, or something was out of control.

    Raises:
        SettingError: an argument means nothing, or the class has no operations.
    """
    declared = _declarations(cls)
    if not declared:
        raise SettingError(
            f"check_contract({cls.__name__}): it has no operations (decorate some with operation())"
        )

    def number(name: str, value: int, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(
                f"check_contract({name}={value!r}): not a number of calls (from {least} on)"
            )
        return value

    given = {
        "threads": threads,
        "schedules": schedules,
        "seconds": seconds,
        "seed": 0 if seed is None else seed,
        "include": include,
        "deadline": deadline,
    }
    plan = settings.exploration({k: (v, f"check_contract({k}={v!r})") for k, v in given.items()})
    if plan.threads < 2:
        raise SettingError(f"check_contract(threads={threads!r}): a scenario has at least two")
    if progress is not None and progress not in _PROGRESS:
        where = f"check_contract(progress={progress!r})"
        raise settings.unknown(str(progress), _PROGRESS, where, what="guarantee")
    contract = _Contract(
        cls=cls,
        model=cls if model is None else model,
        claim=_claim(claims),
        progress=progress,
        invariant=invariant,
        seed=plan.seed,
    )
    strategy = _scenarios(
        declared,
        threads=plan.threads,
        operations=number("operations", operations, 1),
        prefix=number("prefix", prefix, 0),
        suffix=number("suffix", suffix, 0),
    )
    for name in declared:
        if not callable(getattr(contract.model, name, None)):
            raise SettingError(f"check_contract(model={model!r}): it has no operation {name}")
    functions = [cls, contract.model, *(function for function, _ in declared.values())]
    with exploring.controlled(functions, include=plan.include, deadline=plan.deadline) as on:
        return _Search(contract, plan, on).run(strategy, number("scenarios", scenarios, 1))


def _claim(claims: object) -> str:
    spelled = str(claims).lower().replace("_", " ").replace("-", " ").replace("ized", "ised")
    if spelled not in _WORDS:
        raise settings.unknown(
            str(claims), _WORDS, f"check_contract(claims={claims!r})", what="claim"
        )
    return spelled


class _Fails(Exception):  # noqa: N818 - what Hypothesis looks for is no error
    """A scenario fails."""


class _Over(BaseException):
    """There is no time for another scenario."""


class _Search:
    """The scenarios that were tried, and the smallest one that failed."""

    def __init__(self, contract: _Contract, plan: ExplorationPlan, on: Controlled) -> None:
        self._contract = contract
        self._plan = plan
        self._on = on
        self._began = interpreter.monotonic()
        self._until = math.inf if plan.seconds is None else self._began + plan.seconds
        self._most = math.inf
        self._reference = _Reference(contract.model, on)
        self._failed: dict[_Scenario, bool] = {}
        self._smallest: tuple[_Scenario, str, int] | None = None
        self._first: tuple[int, float] | None = None  # schedules and seconds until one failed
        self._doubt: str | None = None
        self._schedules = self._exhausted = 0
        self._cut = False

    def run(self, strategy: SearchStrategy[_Scenario], scenarios: int) -> Result:
        """Try so many scenarios, or as many as it takes until one fails; shrink that one."""
        contract, on = self._contract, self._on
        made = on.run([], _stay, setup=contract.cls)
        for thrown in made.thrown:
            raise SettingError(
                f"check_contract({contract.name}): {contract.name}() raised "
                f"{type(thrown.exception).__name__}: {thrown.exception}"
            ) from thrown.exception
        # The smallest one is kept here: the time may be over when Hypothesis asks for it once more.
        with contextlib.suppress(_Fails, _Over, hypothesis.errors.Flaky):
            self._test(strategy, scenarios)()
        self._reduce(_Scenario.smaller)
        return self._result(self._finding(), scenarios)

    def _test(self, strategy: SearchStrategy[_Scenario], scenarios: int) -> Callable[[], None]:
        """What Hypothesis runs with one scenario after the other."""
        contract = self._contract

        def test(scenario: _Scenario) -> None:
            if self._fails(scenario):
                raise _Fails

        # The database tells tests apart by source and signature: this one is that of the class.
        key = f"{contract.cls.__module__}.{contract.cls.__qualname__}, {contract.claim}"
        test.__annotations__["scenario"] = Literal[key]
        configured = hypothesis.settings(
            max_examples=scenarios,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            # Not to explain: that traces every line, and knows nothing of threads.
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
        )
        # A seed takes the database away, unless the settings come after it.
        return configured(hypothesis.seed(self._plan.seed)(hypothesis.given(strategy)(test)))

    def _fails(self, drawn: _Scenario) -> bool:
        """Whether a scenario fails that Hypothesis has drawn, to find one or to shrink it.

        To shrink, it leaves out choices, and those that follow come to mean other calls: most of
        what it tries is larger, and passes, after all of its schedules. So the first scenario that
        fails is reduced here, call by call. Hypothesis follows down to the smallest one, which
        takes no schedules, and goes on from there with simpler arguments.
        """
        scenario = self._tidy(drawn)
        if self._smallest is None:
            if self._over():
                self._cut = True
                raise _Over
            fails = self._tried(scenario)
            self._reduce(_Scenario.shorter)
            return fails
        smallest, *_ = self._smallest
        if scenario.contains(smallest):
            if interpreter.monotonic() >= self._until:
                raise _Over  # which Hypothesis keeps in its database too
            return True
        return scenario.shape == smallest.shape and self._tried(scenario)

    def _reduce(self, smaller: Callable[[_Scenario], Iterator[_Scenario]]) -> None:
        """Put a smaller scenario in the place of the smallest one, until none of them fails."""
        passed = position = 0
        while self._smallest is not None:
            candidates = list(smaller(self._smallest[0]))
            if passed == len(candidates):
                break
            if self._tried(self._tidy(candidates[position % len(candidates)])):
                passed = 0  # of those of the new one; the next is where the call was
            else:
                passed += 1
                position += 1

    def _tried(self, scenario: _Scenario) -> bool:
        """Whether a scenario fails; the last one that does so is the smallest."""
        if scenario not in self._failed and len(scenario.threads) > 1 and not self._over():
            found = self._explore(scenario)
            self._failed[scenario] = found is not None
            if found is not None:
                if self._smallest is None:
                    now = interpreter.monotonic()
                    self._first = self._schedules, now - self._began
                    self._until = now + _SHRINKING[0]
                    self._most = self._schedules + _SHRINKING[1]
                self._smallest = scenario, *found
        return self._failed.get(scenario, False)

    def _tidy(self, drawn: _Scenario) -> _Scenario:
        """Without threads that call nothing, and without a prefix that never comes to its end."""
        before = drawn.before
        while before and self._reference.result(before) is _WAITS:
            before = before[:-1]
        return replace(
            drawn,
            before=before,
            threads=tuple(thread for thread in drawn.threads if thread),
        )

    def _explore(self, scenario: _Scenario) -> tuple[str, int] | None:
        """The token of a schedule that fails, and where it was interrupted; None if none does."""
        for interrupt in itertools.count(1):
            trial = self._trial(scenario, interrupt)
            found = self._search(trial)
            finding = found.failure
            if finding is not None and finding.severity == "error":
                assert finding.token is not None, "what an exploration finds can be replayed"
                return finding.token, interrupt
            self._cut = self._cut or self._over()
            if not self._contract.word.nested or trial.steps < interrupt or self._cut:
                self._exhausted += found.exhaustive
                return None
        raise AssertionError("an execution has an end")

    def _trial(self, scenario: _Scenario, interrupt: int) -> _Trial:
        return _Trial(self._contract, scenario, self._reference, self._on, interrupt)

    def _search(self, trial: _Trial) -> exploring.Search:
        """Explore a scenario until a schedule fails.

        The first half of the schedules are the portfolio's, which exhausts a small scenario. In one
        that it does not exhaust, the bugs of data structures are found soonest by SURW. In one that
        it does, what threads share may be out of its sight, in an object that is written in C and
        calls back: so some schedules switch at any access, shared or not.

        If a larger one has failed, one preemption is most likely to be enough, at whichever access;
        to try all schedules with no more than that takes some tens of them.
        """
        if self._contract.word.nested:
            # What is varied is where the one thread is interrupted, of all its steps.
            return self._searched(trial, Plain(), 1)
        half = max(1, self._plan.schedules // 2)
        if self._smallest is not None:
            found = self._searched(trial, DFS(preemptions=1), half)
            if found.failure is not None:
                return found
        found = self._searched(trial, "auto", half)
        if found.failure is not None or self._over():
            return found
        if found.exhaustive or found.late:
            anywhere = make("pos", seed=self._plan.seed, preemptions=None)
            more = self._searched(trial, anywhere, min(_ANYWHERE, half))
        else:
            more = self._searched(trial, "surw", half)
        return found if more.failure is None else more

    def _searched(
        self,
        trial: _Trial,
        strategy: str | Scheduler,
        schedules: int,
        *,
        first: Sequence[str] = (),
        thorough: bool = False,
    ) -> exploring.Search:
        plan = self._plan
        found = exploring.search(
            trial.program(),
            strategy,
            schedules=schedules,
            seconds=max(0.1, self._until - interpreter.monotonic()),
            preemptions=None,
            seed=plan.seed,
            races="off",  # what a race does to the results is what a contract is about
            benign=(),
            deadline=plan.deadline,
            first=first,
            on=self._on,
            thorough=thorough,
        )
        self._schedules += found.schedules
        if found.failure is None or found.failure.severity == "note":
            self._doubt = self._doubt or harness.doubt(found)
        return found

    def _over(self) -> bool:
        return self._schedules >= self._most or interpreter.monotonic() >= self._until

    def _finding(self) -> Finding | None:
        """The smallest scenario that failed, its schedule shrunk, confirmed and told."""
        if self._smallest is None:
            return None
        scenario, token, interrupt = self._smallest
        trial = self._trial(scenario, interrupt)
        finding = self._searched(trial, "auto", 1, first=[token], thorough=True).failure
        return None if finding is None else trial.told(finding)

    def _result(self, finding: Finding | None, scenarios: int) -> Result:
        doubt = self._doubt
        if self._cut and self._smallest is None:
            doubt = f"the budget of {self._plan.seconds:g} s was over before all were tried"
        if self._smallest is not None and finding is None:
            doubt = "what failed did not fail again"
        unprobed = {name for name, _ in self._on.coverage.left_out}
        cls = self._contract.cls
        functions = [function for function, _ in _declarations(cls).values()]
        homes = ({scope.path(each), each.__module__ or cls.__module__} for each in functions)
        if all(home & unprobed for home in homes):
            doubt = "no operation has probes"
        verdict = Verdict.PASSED if doubt is None else Verdict.INCONCLUSIVE
        if finding is not None:
            certain = finding.severity == "error"
            verdict = Verdict.FAILED if certain else Verdict.INCONCLUSIVE
        seconds = interpreter.monotonic() - self._began
        findings = () if finding is None else (finding,)
        said = text.contract_scope(
            name=self._contract.name,
            claim=self._contract.claim,
            scenarios=len(self._failed),
            of=scenarios,
            schedules=self._schedules,
            exhausted=self._exhausted,
            first=self._first,
            seconds=seconds,
            seed=self._plan.seed,
            left_out=self._on.coverage.left_out,
            doubt=doubt if finding is None else None,
        )
        return Result(
            verdict=verdict,
            findings=findings,
            executions=self._schedules,
            exhaustive=False,
            seconds=seconds,
            scope=said,
            text=text.render(verdict, findings, said),
        )
