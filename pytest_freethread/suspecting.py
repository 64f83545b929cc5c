"""What the executions of a search make suspect, and the schedules that prove it.

A judge that hears an execution which went well may find what goes wrong in others. Nothing of that
is an error before a schedule was followed that shows it, again and again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from pytest_freethread.detectors import accesses, interleavings, leftovers, races
from pytest_freethread.detectors.atomicity import Atomicity, same_function
from pytest_freethread.detectors.hearing import StepwiseHearing
from pytest_freethread.detectors.interleavings import naming
from pytest_freethread.detectors.lock_order import ALL_ALIKE, LockOrder
from pytest_freethread.detectors.prediction import Trace
from pytest_freethread.detectors.races import Races
from pytest_freethread.instrument.effects import OP_NAMES
from pytest_freethread.instrument.probes import SITES, is_call
from pytest_freethread.interpreter import Allowance
from pytest_freethread.records import Finding, Place
from pytest_freethread.scheduling import Directed, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from pytest_freethread.detectors.lock_order import Cycle
    from pytest_freethread.execution.kernel import Chooser, Hear
    from pytest_freethread.records import ControlledExecution, Event

    class Run(Protocol):
        """Runs one schedule."""

        def __call__(
            self, *, hear: Hear | None = None, record: bool = False
        ) -> ControlledExecution:
            """Keep the trace, if asked to."""

    Attempt: TypeAlias = Callable[[Run], bool]

CONFIRMATIONS: Final = 10
"""How often a schedule is run again before what it shows is reported."""

_CONFIRMING: Final = 5.0
"""Seconds in which suspicions are confirmed that often; what is left then is run again once."""

_STEERING: Final = 1.0
"""Seconds in which executions are steered to what is foreseen."""

_TRIES: Final = 10
"""How often chance is told to go somewhere."""

_ORDERS: Final = 6
"""Serial orders that are tried: all of three threads."""

_FORESEEABLE: Final = 20_000
"""Steps of an execution beyond which nothing is foreseen: all of its trace is kept for that."""

REPEATABLE: Final = 400_000
"""Steps of a schedule that is run again or recorded; of a longer one, so many of the first."""

Choices: TypeAlias = tuple[int, ...]
Line = tuple[str, int]
Pair = tuple[int, int]
Sites = tuple[int, int, int]


class Follower(Protocol):
    """Runs the program under test; see `exploring.Explorer`."""

    def run(
        self,
        choose: Chooser,
        *,
        early_timeouts: int = 0,
        hear: Hear | None = None,
    ) -> ControlledExecution:
        """Run whatever schedule the chooser chooses."""

    def follow(
        self,
        choices: Choices,
        *,
        record: bool = False,
        hear: Hear | None = None,
        watched: AbstractSet[int] = frozenset(),
    ) -> ControlledExecution | None:
        """Run a schedule, and go on with whoever runs; None if a choice cannot be made."""

    def in_order(self, order: Sequence[int]) -> ControlledExecution:
        """Record an execution whose threads run one after the other."""

    def shrunk(self, execution: ControlledExecution, attempt: Attempt) -> Choices:
        """A schedule with few switches that shows the same."""


class _Bench:
    """The judges of what an execution shows.

    Args:
        threads: how many there are from the beginning.
        proven: the sites of races that are proven, and not to be heard of again.
        seen: the sites of what was torn, likewise.
    """

    def __init__(
        self,
        threads: int,
        proven: AbstractSet[Pair] = frozenset(),
        seen: AbstractSet[Sites] = frozenset(),
    ) -> None:
        self.races = Races(threads, proven)
        self.atomicity = Atomicity(threads, seen)
        self._hearing = StepwiseHearing((self.races, self.atomicity), OP_NAMES, is_call)
        self.hear = self._hearing.hear
        self.steps = self._hearing.steps


class _Oracle:
    """The judges of what other executions may show."""

    def __init__(self, threads: int) -> None:
        self.lock_order = LockOrder(threads)
        self.trace = Trace(threads)
        self._hearing = StepwiseHearing((self.lock_order, self.trace), OP_NAMES, is_call)
        self.hear = self._hearing.hear
        self.steps = self._hearing.steps

    def leading_to(self, events: Iterable[int]) -> Choices | None:
        """The schedule that brings threads before some events, if the trace tells of one."""
        found = self.trace.leading_to(*events)
        if found is None:
            return None
        return tuple(thread for event, thread in found if self.steps[event] >= 0)


@dataclass(frozen=True, kw_only=True)
class _Suspect:
    """A schedule, and whether its execution proves what is suspected."""

    choices: Choices
    proven: bool


class Suspicions:
    """Collects what judges find in the executions of one program.

    Executions that are the same, event by event, are judged once.

    Args:
        names: of the bodies.
        strict: whether what is confirmed is an error.
    """

    def __init__(self, names: tuple[str, ...], *, strict: bool) -> None:
        self._names = names
        self._strict = strict
        self._threads = len(names) + 1  # and the one that drives the execution
        self._heard: set[int] = set()
        self._events: list[Event] = []
        self._bench: _Bench | None = None
        self._longest = 0
        self._races: dict[Pair, _Suspect] = {}
        self._proven: set[Pair] = set()
        self._torn: dict[Sites, ControlledExecution] = {}
        self._cycles: list[tuple[Choices, Cycle]] = []
        self._left: dict[str, Finding] = {}

    # ----- while the search goes on ---

    def hear(self, events: list[Event]) -> None:
        """A part of the execution that is under way; most have one part only."""
        if self._bench is None and not self._events:
            self._events = events
            return
        if self._bench is None:
            self._bench = self._judges()
            self._bench.hear(self._events)
        self._bench.hear(events)

    def consider(self, execution: ControlledExecution) -> None:
        """The execution that was heard is over."""
        bench, events = self._bench, self._events
        self._bench, self._events = None, []
        self._longest = max(self._longest, execution.steps)
        for finding in leftovers.judge(execution, self._names):
            self._left.setdefault(finding.message, finding)
        if bench is None:
            identity = hash(tuple(events))
            if identity in self._heard:
                return
            self._heard.add(identity)
            bench = self._judges()
            bench.hear(events)
        for pair, clash in bench.races.clashes.items():
            known = self._races.get(pair)
            if known is None or (clash.proven and not known.proven):
                choices = execution.beginning(REPEATABLE)
                self._races[pair] = _Suspect(choices=choices, proven=clash.proven)
            if clash.proven:
                self._proven.add(pair)
        for sites in bench.atomicity.torn:
            self._torn[sites] = execution

    def _judges(self) -> _Bench:
        return _Bench(self._threads, self._proven, self._torn.keys())

    # ----- what the search did not come to ---

    def steered(self, follower: Follower) -> Iterator[ControlledExecution]:
        """Executions on the way to what is foreseen; whoever asks looks whether they fail.

        Foreseen is what plain schedules tell of others: cycles of locks, and races. Where the trace
        tells of a schedule that is sure to come there, that one is followed; after that, chance is
        told where to go.
        """
        allowance = Allowance(_STEERING)
        if self._longest > _FORESEEABLE:
            return
        said: set[frozenset[object]] = set()
        for first in range(len(self._names)):
            oracle = _Oracle(self._threads)
            plain = follower.follow((first,) if first else (), hear=oracle.hear)
            if plain is None or plain.outcome != "ended":
                continue
            for cycle in oracle.lock_order.cycles(ALL_ALIKE, said):
                self._cycles.append((plain.threads, cycle))
                way = oracle.leading_to(edge.event for edge in cycle)
                for execution in self._towards(follower, way, {edge.site for edge in cycle}):
                    if execution.outcome == "deadlock":
                        self._cycles.pop()
                    yield execution
                    if allowance.spent():
                        return
            for pair in oracle.trace.races():
                one, other = sorted(map(oracle.trace.site, pair))
                if (one, other) in self._proven:
                    continue
                for execution in self._towards(follower, oracle.leading_to(pair), {one, other}):
                    yield execution
                    if (one, other) in self._proven:
                        break
                    if allowance.spent():
                        return

    def _towards(
        self, follower: Follower, way: Choices | None, sites: AbstractSet[int]
    ) -> Iterator[ControlledExecution]:
        """The execution that goes a known way, then such as are drawn to some sites."""
        known = None if way is None else follower.follow(way, hear=self.hear)
        if known is not None:
            self.consider(known)
            yield known
        for seed in range(_TRIES):
            drawn = follower.run(Directed(sites, seed).choose, early_timeouts=0, hear=self.hear)
            self.consider(drawn)
            yield drawn

    # ----- when it is over ---

    def findings(self, follower: Follower, told: AbstractSet[Line]) -> list[Finding]:
        """What was suspected and is confirmed, by following its schedule again; errors first.

        Args:
            follower: follows schedules.
            told: the lines of what failed, if anything did: a race between them is no news.
        """
        allowance = Allowance(_CONFIRMING)
        if self._races:
            self._try_plain_schedules(follower)
        for pair in _of_interest(self._races):
            if not self._races[pair].proven and not allowance.spent():
                self._try_to_prove(follower, pair)
        schedules: dict[Choices, set[Pair]] = {}
        for pair in _of_interest(self._races):
            schedules.setdefault(self._races[pair].choices, set()).add(pair)
        found: list[Finding] = []
        for choices, pairs in sorted(schedules.items(), key=lambda each: len(each[0])):
            found += self._confirmed(follower, choices, pairs, allowance)
        found = list(races.one_for_two_lines(sorted(found, key=_is_note), told))
        for sites in self._torn:
            if not allowance.spent():
                found += self._confirmed_torn(follower, sites, told)
        for choices, cycle in self._cycles:
            found += self._inverted(follower, choices, cycle)
        return [*sorted(found, key=_is_note), *self._left.values()]

    def shown_by(
        self, choices: Choices, follower: Follower, told: AbstractSet[Line]
    ) -> list[Finding]:
        """What one schedule shows; the arguments are those of `findings`."""
        bench = _Bench(self._threads)
        follower.follow(choices, hear=bench.hear)
        self._races = {
            pair: _Suspect(choices=choices, proven=True)
            for pair, clash in bench.races.clashes.items()
            if clash.proven
        }
        pairs = _of_interest(self._races)
        races_found = self._confirmed(follower, choices, pairs, Allowance(_CONFIRMING))
        found = list(races.one_for_two_lines(races_found, told))
        for sites in bench.atomicity.torn:
            found += self._confirmed_torn(follower, sites, told, choices)
        return sorted(found, key=_is_note)

    def _try_plain_schedules(self, follower: Follower) -> None:
        """Races mostly show where the threads just run one after the other: so they read best."""
        for first in range(len(self._names)):
            bench = _Bench(self._threads)
            execution = follower.follow((first,) if first else (), hear=bench.hear)
            if execution is None:
                continue
            for pair, clash in bench.races.clashes.items():
                known = self._races.get(pair)
                if clash.proven and (known is None or first == 0 or not known.proven):
                    self._races[pair] = _Suspect(choices=execution.threads, proven=True)

    def _try_to_prove(self, follower: Follower, pair: Pair) -> None:
        """Bring both threads before their accesses, where an execution shows that it is possible.

        What looked like a publication may show then that a reader does not look again.
        """
        bench, oracle = _Bench(self._threads), _Oracle(self._threads)

        def hear(events: list[Event]) -> None:
            bench.hear(events)
            oracle.hear(events)

        execution = follower.follow(self._races[pair].choices, hear=hear)
        clash = bench.races.clashes.get(pair)
        if execution is None or clash is None or execution.steps > _FORESEEABLE:
            return
        way = oracle.leading_to((clash.earlier.event, clash.later.event))
        for first in (clash.later.thread, clash.earlier.thread) if way is not None else ():
            again = _Bench(self._threads)
            execution = follower.follow((*(way or ()), first), hear=again.hear)
            clash = again.races.clashes.get(pair)
            if execution is not None and clash is not None and clash.proven:
                self._races[pair] = _Suspect(choices=execution.threads, proven=True)
                return

    def _confirmed(
        self,
        follower: Follower,
        choices: Choices,
        pairs: AbstractSet[Pair],
        allowance: Allowance,
    ) -> Iterator[Finding]:
        """The races of one schedule, run again ten times, or as often as the time allows."""
        bench = _Bench(self._threads)
        watched = {site for pair in pairs for site in pair}
        execution = follower.follow(choices, record=True, hear=bench.hear, watched=watched)
        if execution is None:
            return
        shown = dict.fromkeys(sorted(pairs & bench.races.clashes.keys()), 0)
        if len(choices) == REPEATABLE:
            for pair in sorted(pairs - shown.keys()):
                self._say_of_a_late(pair)
        times = 0
        while shown and times < CONFIRMATIONS and not (times and allowance.spent()):
            times += 1
            again = _Bench(self._threads)
            follower.follow(choices, hear=again.hear)
            for pair in shown.keys() & again.races.clashes.keys():
                shown[pair] += 1
        token = encode(choices)
        call = interleavings.call(token, self._names, 'races="error"' if self._strict else "")
        for pair, count in shown.items():
            clash = bench.races.clashes[pair]
            race = accesses.race(clash, execution, bench.steps, self._names, call)
            yield races.finding(race, token=token, reproduced=(count, times), strict=self._strict)

    def _say_of_a_late(self, pair: Pair) -> None:
        """A race that nothing is run again for."""
        one, other = (naming.short(_place(site)) for site in pair)
        message = (
            f"data race between {one} and {other}, not reproduced: it comes after the first "
            f"{REPEATABLE:,} steps of its schedule"
        )
        self._left[message] = Finding(kind="race", severity="note", message=message)

    def _confirmed_torn(
        self,
        follower: Follower,
        sites: Sites,
        told: AbstractSet[Line],
        choices: Choices | None = None,
    ) -> Iterator[Finding]:
        """What was torn, as the schedule shows it that has the fewest preemptions, or as given."""
        look, change, act = map(_place, sites)
        racing = any(tuple(sorted(pair)) in self._races for pair in itertools.pairwise(sites))
        if racing or {(place.file, place.line) for place in (look, change, act)} <= told:
            return  # told as a race, or as what failed
        serial = self._serial(follower)
        if choices is None:
            choices = follower.shrunk(self._torn[sites], self._tears(sites, serial))
        bench = _Bench(self._threads)
        watched = {sites[0], sites[2]}
        execution = follower.follow(choices, record=True, hear=bench.hear, watched=watched)
        found = bench.atomicity.torn.get(sites)
        if execution is None or found is None:
            return
        events = found.look.event, found.change.event, found.act.event
        one, two, three = (bench.steps[event] for event in events)
        if not same_function(look, act) and not _within_a_call(
            execution.stacks.get(one, ()), execution.stacks.get(three, ())
        ):
            return  # the act hardly depends on the look
        again = 0
        for _ in range(CONFIRMATIONS):
            bench_again = _Bench(self._threads)
            follower.follow(choices, hear=bench_again.hear)
            again += sites in bench_again.atomicity.torn
        schedule = interleavings.Schedule(
            token=encode(choices),
            names=self._names,
            found=(1, "judged", 0.0),
            reproduced=(again, CONFIRMATIONS),
        )
        finding = interleavings.torn(
            execution, (one, two, three), serial, schedule, strict=self._strict
        )
        if finding is not None:
            yield finding

    def _tears(self, sites: Sites, serial: Sequence[ControlledExecution]) -> Attempt:
        def attempt(run: Run) -> bool:
            bench = _Bench(self._threads)
            execution = run(hear=bench.hear, record=True)
            found = bench.atomicity.torn.get(sites)
            if found is None:
                return False
            events = found.look.event, found.change.event, found.act.event
            look, change, act = (bench.steps[event] for event in events)
            return interleavings.matters(execution, (look, change, act), serial)

        return attempt

    def _serial(self, follower: Follower) -> list[ControlledExecution]:
        """Recorded executions whose threads run one after the other, in all orders of a few."""
        orders = itertools.islice(itertools.permutations(range(len(self._names))), _ORDERS)
        return [follower.in_order(order) for order in orders]

    def _inverted(self, follower: Follower, choices: Choices, cycle: Cycle) -> Iterator[Finding]:
        """A cycle of locks that no execution came to."""
        oracle = _Oracle(self._threads)
        execution = follower.follow(choices, record=True, hear=oracle.hear)
        if execution is not None:
            yield accesses.inversion(cycle, execution, oracle.steps, self._names)


def _within_a_call(one: tuple[Place, ...], other: tuple[Place, ...]) -> bool:
    """Whether two stacks share a call within the body; not the body alone."""
    both = zip(one, other, strict=False)
    shared = itertools.takewhile(lambda pair: same_function(*pair), both)
    return sum(1 for _ in shared) > 1


def _is_note(finding: Finding) -> bool:
    return finding.severity == "note"


def _of_interest(pairs: Iterable[Pair]) -> set[Pair]:
    """Without what is the standard library's own business."""
    return {pair for pair in pairs if not races.excused(*map(_place, pair))}


def _place(site: int) -> Place:
    where = SITES[site]
    return Place(file=where.file, line=where.line, function=where.function, source=where.text)
