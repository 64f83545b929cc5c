"""What the executions of a search make suspect, and the schedules that prove it.

A judge that hears an execution which went well may find what goes wrong in others. Nothing of that
is an error before a schedule was followed that shows it, again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pytest_freethread import interpreter
from pytest_freethread.detectors import accesses, interleavings, races
from pytest_freethread.detectors.atomicity import Atomicity
from pytest_freethread.detectors.hearing import Hearing
from pytest_freethread.detectors.races import Races
from pytest_freethread.instrument.effects import OP_NAMES
from pytest_freethread.instrument.probes import SITES, is_call
from pytest_freethread.records import Place, Race
from pytest_freethread.scheduling import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from pytest_freethread.records import ControlledExecution, Event, Finding

CONFIRMATIONS: Final = 10
"""How often a schedule is run again before what it shows is reported."""

_CONFIRMING: Final = 5.0
"""Seconds in which suspicions are confirmed that often; what is left then is run again once."""

Choices = tuple[int, ...]
Line = tuple[str, int]
Pair = tuple[int, int]
Sites = tuple[int, int, int]


class Follower(Protocol):
    """Follows schedules of the program under test."""

    def follow(
        self,
        choices: Choices,
        *,
        record: bool = False,
        hear: Callable[[list[Event]], object] | None = None,
        watched: AbstractSet[int] = frozenset(),
    ) -> ControlledExecution | None:
        """Run a schedule; None if it cannot be followed to its end."""


class _Bench:
    """The judges of one execution."""

    def __init__(self, threads: int, settled: AbstractSet[Pair] = frozenset()) -> None:
        self.races = Races(threads, settled)
        self.atomicity = Atomicity(threads)
        judges = self.races, self.atomicity
        self.hearing = Hearing(judges, OP_NAMES, is_call)
        self.hear = self.hearing.hear


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
        self._races: dict[Pair, _Suspect] = {}
        self._torn: dict[Sites, _Suspect] = {}
        self._settled: set[Pair] = set()

    # ----- while the search goes on ---

    def hear(self, events: list[Event]) -> None:
        """A part of the execution that is under way; most have one part only."""
        if self._bench is None and not self._events:
            self._events = events
            return
        if self._bench is None:
            self._bench = _Bench(self._threads, self._settled)
            self._bench.hear(self._events)
        self._bench.hear(events)

    def consider(self, execution: ControlledExecution) -> None:
        """The execution that was heard is over."""
        bench, events = self._bench, self._events
        self._bench, self._events = None, []
        if bench is None:
            identity = hash(tuple(events))
            if identity in self._heard:
                return
            self._heard.add(identity)
            bench = _Bench(self._threads, self._settled)
            bench.hear(events)
        for pair, clash in bench.races.clashes.items():
            known = self._races.get(pair)
            if known is None or (clash.proven and not known.proven):
                self._races[pair] = _Suspect(choices=execution.threads, proven=clash.proven)
            if clash.proven:
                self._settled.add(pair)
        for sites in bench.atomicity.seen - self._torn.keys():
            self._torn[sites] = _Suspect(choices=execution.threads, proven=True)

    # ----- when it is over ---

    def findings(self, follower: Follower, told: AbstractSet[Line]) -> list[Finding]:
        """What was suspected and is confirmed, by following its schedule again; errors first.

        Args:
            follower: follows schedules.
            told: the lines of what failed, if anything did: a race between them is no news.
        """
        until = interpreter.monotonic() + _CONFIRMING
        if self._races:
            self._try_plain_schedules(follower)
        schedules: dict[Choices, set[Pair]] = {}
        for pair, suspect in self._races.items():
            if not races.excused(*map(_place, pair)):
                schedules.setdefault(suspect.choices, set()).add(pair)
        found: list[Finding] = []
        for choices, pairs in sorted(schedules.items(), key=lambda each: len(each[0])):
            times = CONFIRMATIONS if interpreter.monotonic() < until else 1
            found += self._confirmed(follower, choices, pairs, times)
        found.sort(key=lambda finding: finding.severity != "error")
        return list(_one_for_two_lines(found, told))

    def _try_plain_schedules(self, follower: Follower) -> None:
        """Races mostly show where the threads just run one after the other: so they read best."""
        for thread in range(len(self._names)):
            bench = _Bench(self._threads)
            execution = follower.follow((thread,) if thread else (), hear=bench.hear)
            if execution is None:
                continue
            for pair, clash in bench.races.clashes.items():
                known = self._races.get(pair)
                if clash.proven and (known is None or thread == 0 or not known.proven):
                    self._races[pair] = _Suspect(choices=execution.threads, proven=True)

    def _confirmed(
        self, follower: Follower, choices: Choices, pairs: set[Pair], times: int
    ) -> Iterator[Finding]:
        """The races of one schedule."""
        bench = _Bench(self._threads)
        watched = {site for pair in pairs for site in pair}
        execution = follower.follow(choices, record=True, hear=bench.hear, watched=watched)
        if execution is None:
            return
        shown = dict.fromkeys(sorted(pairs & bench.races.clashes.keys()), 0)
        for _ in range(times):
            again = _Bench(self._threads)
            follower.follow(choices, hear=again.hear)
            for pair in shown.keys() & again.races.clashes.keys():
                shown[pair] += 1
        token = encode(choices)
        for pair, count in shown.items():
            call = interleavings.call(token, self._names, 'races="error"' if self._strict else "")
            race = accesses.race(
                bench.races.clashes[pair], execution, bench.hearing.steps, self._names, call
            )
            yield races.finding(race, token=token, reproduced=(count, times), strict=self._strict)


def _one_for_two_lines(found: Iterable[Finding], told: AbstractSet[Line]) -> Iterator[Finding]:
    """One race is several, operation by operation; two lines with one target are one finding."""
    said = set()
    for finding in found:
        assert isinstance(finding.evidence, Race)
        places = frozenset((a.place.file, a.place.line) for a in finding.evidence.accesses)
        if places <= told or (places, finding.evidence.target) in said:
            continue
        said.add((places, finding.evidence.target))
        yield finding


def _place(site: int) -> Place:
    where = SITES[site]
    return Place(file=where.file, line=where.line, function=where.function, source=where.text)
