"""Races in a free run: rounds that are recorded, and rounds that prove what those made suspect.

A recorded round tells which accesses nothing puts in order that the judge has heard of, whether or
not they collided. That is no proof: threads may be put in order by what makes no event, such as a
byte through a pipe, or a lock in code without probes. So further rounds lie in wait at the two
places, one suspicion at a time. What was met there is a race; what was not is a note.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_freethread.detectors import accesses, races
from pytest_freethread.detectors.hearing import Hearing
from pytest_freethread.detectors.lock_order import ALL_ALIKE, LockOrder
from pytest_freethread.detectors.races import Races
from pytest_freethread.execution.ambush import Ambush
from pytest_freethread.execution.recorder import Recorder
from pytest_freethread.execution.stacks import unchained
from pytest_freethread.execution.values import written
from pytest_freethread.instrument.effects import OP_NAMES
from pytest_freethread.instrument.probes import SITES, is_call
from pytest_freethread.instrument.recording import Recording
from pytest_freethread.records import Account, Place, Race, Step

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from pytest_freethread.detectors.lock_order import Cycle
    from pytest_freethread.detectors.races import Clash
    from pytest_freethread.execution.ambush import Stand
    from pytest_freethread.execution.noise import Noise
    from pytest_freethread.execution.probing import Probing
    from pytest_freethread.records import Finding, RacingAccess

_TRIES: Final = 6
"""Rounds that lie in wait for one suspicion."""

_WAITING: Final = 5.0
"""Seconds that such rounds may take, all of them."""

_PATIENCE: Final = (0.05, 0.5)
"""Seconds for which a thread is held up, at least and at most: twice as long as recorded rounds."""

Pair = tuple[int, int]
Held = tuple[tuple[int, int], ...]


@dataclass(kw_only=True)
class _Suspect:
    """Two places that nothing orders: the sites in the order of the accesses, and how it looks."""

    sites: Pair
    race: Race
    tries: int = 0


class RecordedRounds:
    """Goes along with the rounds of a free run, of which it records some; see `free.Companion`.

    Recorded are the first round, and those whose index is a power of two: what is not ordered in
    one round is not ordered in most. The others lie in wait as long as there is something to wait
    for, and are noisy, or left alone, like those of any run.

    Args:
        threads: how many bodies there are.
        probing: the run's probes.
        noise: of the other rounds.
    """

    def __init__(self, threads: int, probing: Probing, noise: Noise | None) -> None:
        self._threads = threads
        self._probing = probing
        self._noise = noise
        self._round = -1
        self._recorder: Recorder | None = None
        self._ambush: Ambush | None = None
        self._target: _Suspect | None = None
        self._recording = Recording()
        self._races = Races(threads + 1)
        self._lock_order = LockOrder(threads + 1)
        self._suspects: dict[Pair, _Suspect] = {}
        self._inversions: list[Finding] = []
        self._said: set[frozenset[object]] = set()
        self._recorded = self._events = self._waited = 0
        self._waiting_seconds = 0.0
        self._longest = 0.0
        self._refused = False
        self._cut: str | None = None

    def __str__(self) -> str:
        """What it did, to go on a sentence with."""
        noise = "" if self._noise is None else str(self._noise)
        if self._refused:
            return f"{noise}; races not looked for: another run has the probes"
        cut = f", not all of them: {self._cut}" if self._cut else ""
        lain = f", {_rounds(self._waited)} in wait for races" if self._waited else ""
        return f"{noise}; {_rounds(self._recorded)} recorded ({self._events:,} events{cut}){lain}"

    # --- what a free run asks ---------------------------------------------------------------------

    def prepare(self) -> None:
        """See `free.Companion`."""
        self._put_back()
        self._round += 1
        record = self._round & (self._round - 1) == 0
        target = None if record else self._next_target()
        if record or target is not None:
            if self._noise is not None:
                self._noise.rest()
            self._refused = self._refused or not self._probing.put_in()
        if self._refused or not (record or target):
            if self._noise is not None:
                self._noise.prepare()
        elif target is None:
            self._races = Races(self._threads + 1, self._settled())
            self._lock_order = LockOrder(self._threads + 1)
            hearing = Hearing((self._races, self._lock_order), OP_NAMES, is_call)
            self._recorder = Recorder(hearing.hear)
            self._recording.install(self._recorder)
        else:
            self._target = target
            self._ambush = _ambush(target, self._longest)

    def begin(self, threads: Sequence[threading.Thread]) -> None:
        """See `free.Companion`."""
        if self._recorder is not None:
            self._recorder.begin(threads)
            self._probing.listen(self._recorder)
        elif self._ambush is not None:
            self._ambush.begin(threads)
            self._probing.listen(self._ambush)
        elif self._noise is not None:
            self._noise.begin(threads)

    def hush(self) -> None:
        """See `free.Companion`. What takes long is recorded all the same."""
        if self._recorder is None and self._ambush is None and self._noise is not None:
            self._noise.hush()

    def end(self, seconds: float) -> None:
        """See `free.Companion`."""
        recorder, ambush, target = self._recorder, self._ambush, self._target
        if recorder is not None:
            recorder.end()
            self._recorded += 1
            self._events += recorder.counted
            self._cut = self._cut or recorder.cut
            self._longest = max(self._longest, seconds)
            self._consider(recorder)
        elif ambush is not None and target is not None:
            ambush.end()
            self._waited += 1
            self._waiting_seconds += seconds
            target.tries += 1
            if ambush.met is not None:
                target.race = _met(target, ambush.met)
        elif self._noise is not None:
            self._noise.end(seconds)
        self._put_back()

    def close(self) -> None:
        """See `free.Companion`."""
        try:
            self._put_back()
        finally:
            self._probing.close()

    def _put_back(self) -> None:
        """Have the code as it was after a round of one's own, also if it was broken off."""
        if self._recorder is None and self._ambush is None:
            return
        if self._recorder is not None:
            self._recording.restore()
        self._recorder = self._ambush = self._target = None
        self._probing.take_out()

    # --- what comes of it -------------------------------------------------------------------------

    def findings(self, *, strict: bool) -> list[Finding]:
        """Races, and locks in opposite orders; errors first.

        Args:
            strict: whether a race that was met is an error.
        """
        found = [races.finding(each.race, strict=strict) for each in self._suspects.values()]
        found.sort(key=lambda finding: (finding.severity == "note", not _is_met(finding)))
        return [*races.one_for_two_lines(found), *self._inversions]

    def _settled(self) -> set[Pair]:
        return {pair for pair, each in self._suspects.items() if not each.race.published}

    def _consider(self, recorder: Recorder) -> None:
        for pair, clash in self._races.clashes.items():
            places = [_place(site) for site in pair]
            if not races.excused(*places):
                race = _race(clash, recorder)
                sites = clash.earlier.site, clash.later.site
                known = self._suspects.get(pair)
                tries = 0 if known is None else known.tries
                self._suspects[pair] = _Suspect(sites=sites, race=race, tries=tries)
        for cycle in self._lock_order.cycles(ALL_ALIKE, self._said):
            self._inversions.append(_inversion(cycle, recorder))

    def _next_target(self) -> _Suspect | None:
        """What to lie in wait for: each in turn, but what is known to race already."""
        if self._waiting_seconds > _WAITING:
            return None
        met = {_lines(each.race) for each in self._suspects.values() if each.race.together}
        left = [
            each
            for each in self._suspects.values()
            if each.tries < _TRIES and _lines(each.race) not in met
        ]
        return min(left, key=lambda each: (each.tries, each.race.published), default=None)


def _rounds(number: int) -> str:
    return f"{number} round" + "s" * (number != 1)


def _is_met(finding: Finding) -> bool:
    return isinstance(finding.evidence, Race) and finding.evidence.together


def _lines(race: Race) -> object:
    places = frozenset((each.place.file, each.place.line) for each in race.accesses)
    return places, race.target


def _ambush(target: _Suspect, longest: float) -> Ambush:
    """At both places, the second one alone, the first one alone: a lock may be held at either."""
    first, second = target.sites
    stops = (frozenset({first, second}), frozenset({second}), frozenset({first}))
    least, most = _PATIENCE
    patience = min(most, max(least, 2 * longest))
    return Ambush(target.sites, stops[target.tries % len(stops)], patience)


def _met(target: _Suspect, stands: tuple[Stand, Stand]) -> Race:
    """The race as it was met."""
    one, other = stands
    first, second = target.race.accesses
    if one.site != target.sites[0]:
        first, second = second, first
    return replace(target.race, accesses=(_at(first, one), _at(second, other)), together=True)


def _at(access: RacingAccess, stand: Stand) -> RacingAccess:
    if stand.thread is not None:
        access = replace(
            access, thread=stand.thread, name=f"thread {stand.thread}", started_by=None
        )
    return replace(access, stack=unchained(stand.chain))


# --- the steps that a finding is about ------------------------------------------------------------


def _race(clash: Clash, recorder: Recorder) -> Race:
    sketch = _Sketch(recorder)
    for touch in (clash.earlier, clash.later):
        sketch.locks(touch.thread, touch.held)
        op, label, key = recorder.samples[touch.site]
        if op.startswith("item"):
            key = None if clash.key is None else written(clash.key)
        sketch.step(touch.event, touch.thread, touch.site, op, clash.obj, label, key, touch.held)
    # Neither stood before its access when the other one came, as far as a recording can tell.
    clash = clash._replace(together=False)
    return accesses.race(clash, sketch.account(), sketch.steps, (), "")


def _inversion(cycle: Cycle, recorder: Recorder) -> Finding:
    sketch = _Sketch(recorder)
    for edge in cycle:
        sketch.locks(edge.thread, edge.held)
        sketch.acquire(edge.event, edge.thread, edge.site, edge.lock, edge.held)
    return accesses.inversion(cycle, sketch.account(), sketch.steps, ())


class _Sketch:
    """A trace of those steps alone that say what something is called."""

    def __init__(self, recorder: Recorder) -> None:
        self.steps: dict[int, int] = {}
        self._recorder = recorder
        self._trace: list[Step] = []

    def locks(self, thread: int, held: Held) -> None:
        """The acquisitions of locks that are held at a step to come."""
        for lock, site in held:
            self.acquire(-1, thread, site, lock, ())

    def acquire(self, event: int, thread: int, site: int, lock: int, held: Held) -> None:
        """The acquisition of a lock."""
        self.step(event, thread, site, "acquire", lock, "lock", None, held)

    def step(  # noqa: PLR0917 - the fields of a step
        self,
        event: int,
        thread: int,
        site: int,
        op: str,
        obj: int,
        label: str,
        key: str | None,
        held: Held,
    ) -> None:
        """A step, after those in its function that say what attributes it names."""
        around = SITES[site].file, SITES[site].function
        for other, (how, owner, name) in self._recorder.samples.items():
            where = SITES[other]
            if (where.file, where.function) == around and how.startswith("attribute"):
                self._add(thread, other, how, -1, owner, name, ())
        self.steps[event] = len(self._trace)
        self._add(thread, site, op, obj, label, key, held)

    def _add(  # noqa: PLR0917 - as above
        self,
        thread: int,
        site: int,
        op: str,
        obj: int,
        label: str,
        key: str | None,
        held: Held,
    ) -> None:
        place = _place(site)
        self._trace.append(
            Step(
                thread=thread,
                place=place,
                op=op,
                location=obj,
                label=label,
                key=key,
                write=op.endswith("write"),
                before=None,
                after=None,
                held=tuple(lock for lock, _ in held),
                line=linecache.getline(place.file, place.line).strip(),
            )
        )

    def account(self) -> Account:
        """What judges ask for."""
        births = self._recorder.births
        return Account(
            trace=tuple(self._trace),
            names=tuple(self._recorder.names),
            births={thread: (by, _place(site)) for thread, (by, site) in births.items()},
        )


def _place(site: int) -> Place:
    where = SITES[site]
    return Place(file=where.file, line=where.line, function=where.function, source=where.text)
