"""Whether tasks run in parallel, and what holds them back: samples in, claims and sentences out.

Everything is judged on intervals. A claim holds if all of the measured interval does. It is
refuted if none of it does *and* a probe, in the same seconds on the same cores, shows that it
could: what is possible reaches what is asked, and the tasks surely stay below what is possible.
Anything else is undecided. So a busy or a small machine makes intervals wide or ceilings low, and
nothing red.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from pathlib import PurePath
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_freethread.records import Claim, Estimate, LockShare, Part, Point, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal

    from pytest_freethread.records import (
        Machine,
        MeasuredRound,
        Measurement,
        Pair,
        ParallelPlan,
        PartRun,
        Place,
        Samples,
        TimedRun,
    )

DOUBT: Final = 0.01
"""An interval misses what it is about in at most so many cases."""

FEWEST: Final = 8
"""Of fewer pairs not even all make such an interval: they miss the median with 2 · (1/2)^n."""

SHORTEST: Final = 1e-3
"""Seconds that the longest task takes at least: threads start some tens of µs apart."""

FASTER: Final = 1.05
"""By more than clocks and caches err: asked where nothing is, and the headroom of what fails."""

_TIGHT: Final = 0.03
"""An interval of so little to either side is worth no more runs."""

_TELLING: Final = 1.2
"""Where less than this is possible, any program reaches most of what is possible."""

_HELD_UP: Final = 0.15
"""Threads that neighbours keep from running for more of the time show nothing of the code."""

_MOST_LOCKS: Final = 3
_NOTABLE: Final = 0.1
"""Shares and slowdowns below this are not worth a sentence."""


def estimate(values: Iterable[float]) -> Estimate:
    """The median with its bootstrap interval; of few values it takes all of them.

    Nothing is resampled: the bootstrap distribution of a median is known exactly. That of a
    resample is at most the k-th of n values if half of n draws are, each with probability k/n
    (Maritz & Jarrett, "A note on estimating the variance of the sample median", 1978).
    """
    ordered = sorted(values)
    highest = -_lowest_plausible([-value for value in reversed(ordered)])
    return Estimate(median(ordered), _lowest_plausible(ordered), highest)


def _lowest_plausible(ordered: Sequence[float]) -> float:
    count = len(ordered)
    half = (count + 1) // 2
    for rank, value in enumerate(ordered, 1):
        share = rank / count
        reached = sum(
            math.comb(count, draws) * share**draws * (1 - share) ** (count - draws)
            for draws in range(half, count + 1)
        )
        if reached > DOUBT / 2:
            return value
    raise ValueError("an estimate of nothing")


def tight(rounds: Sequence[MeasuredRound]) -> bool:
    """Whether the speed-up is known so well that more runs are of no use.

    And that of the probe, as far as the tasks compute: only so far does it say what is possible.
    """
    if len(rounds) < FEWEST:
        return False
    speedup = _error(estimate(ratio(each.tasks) for each in rounds))
    ceiling = _error(estimate(ratio(each.probe) for each in rounds))
    return max(speedup, ceiling * _computing(rounds)) <= _TIGHT


def _error(found: Estimate) -> float:
    return max(found.value - found.low, found.high - found.value) / found.value


def ratio(pair: Pair) -> float:
    """How many times faster the tasks were at once."""
    return total(pair.serial) / total(pair.parallel)


def total(parts: Sequence[PartRun]) -> float:
    """Seconds from the start of the first task to the end of the last."""
    return max(part.end for part in parts) - min(part.start for part in parts)


# ----- points -----


def points(measurement: Measurement) -> tuple[Point, ...]:
    """What was measured, by number of threads."""
    return tuple(
        _point(each, measurement.names, measurement.machine) for each in measurement.samples
    )


def _point(samples: Samples, names: Sequence[str], machine: Machine) -> Point:
    rounds = samples.rounds
    pairs = [each.tasks for each in rounds]
    count = len(pairs[0].serial)
    labels = names if len(names) == count else [f"{names[0]} {n}" for n in range(1, count + 1)]
    parts = tuple(
        Part(
            name=label,
            alone=median(_seconds(pair.serial[task]) for pair in pairs),
            together=median(_seconds(pair.parallel[task]) for pair in pairs),
        )
        for task, label in enumerate(labels)
    )
    computing = _computing(rounds)
    best = sum(part.alone for part in parts) / max(part.alone for part in parts)
    natives = [ratio(each.native) for each in rounds if each.native is not None]
    probes = [ratio(each.probe) for each in rounds]
    # What an extension has taken from a free-threaded build is to be had there all the same.
    ceilings = natives if natives and machine.free_threaded else probes
    shares, cost, typical = _timed(samples)
    return Point(
        threads=samples.threads,
        pairs=len(rounds),
        serial=estimate(total(pair.serial) for pair in pairs),
        total=estimate(total(pair.parallel) for pair in pairs),
        speedup=estimate(map(ratio, pairs)),
        possible=estimate(_possible(each, best, computing) for each in ceilings),
        headroom=estimate(
            _possible(ceiling, best, computing) / ratio(pair)
            for ceiling, pair in zip(ceilings, pairs, strict=True)
        ),
        ceiling=estimate(probes),
        native=estimate(natives) if natives else None,
        parts=parts,
        computing=computing,
        held_up=_held_up(rounds, samples.threads * min(1.0, computing) - machine.cores),
        core_share=min(1.0, median(_busy(each.probe.serial) for each in rounds)),
        at_once=_at_once(_middle(pairs, key=ratio).parallel),
        example=_middle(pairs, key=ratio),
        locks=shares,
        timing_cost=cost,
        waits=typical,
    )


def _possible(ceiling: float, best: float, computing: float) -> float:
    """The speed-up of tasks that compute for a share of their time and wait for the rest.

    Waiting goes on at once whatever the machine; computing does as far as the probes show. Tasks
    that keep more than one core busy have so much less to gain.
    """
    most = min(max(ceiling, 1.0), best)
    if computing > 1:
        return max(1.0, most / computing)
    return 1 / ((1 - computing) / best + computing / most)


def _computing(rounds: Sequence[MeasuredRound]) -> float:
    """The share of its time in which a task computes, alone; more than 1 if on several cores.

    Neighbours hold up whoever computes, tasks and probes alike, and that is no waiting.
    """
    tasks = median(_busy(each.tasks.serial) for each in rounds)
    probes = median(_busy(each.probe.serial) for each in rounds)
    share = tasks / probes if probes else 1.0
    # More of one core than the probe gets is luck; more than one core is not.
    return share if tasks > 1 + _NOTABLE else min(1.0, share)


def _held_up(rounds: Sequence[MeasuredRound], crowded: float) -> float:
    """How long threads waited for a core, besides the `crowded` that there are too many of."""
    shares = median(each.coreless / total(each.tasks.parallel) for each in rounds)
    return max(0.0, shares - max(0.0, crowded))


def _busy(parts: Sequence[PartRun]) -> float:
    seconds = sum(_seconds(part) for part in parts)
    return sum(part.cpu for part in parts) / seconds if seconds else 1.0


def _seconds(part: PartRun) -> float:
    return part.end - part.start


def _middle(values: Sequence[Pair], *, key: Callable[[Pair], float]) -> Pair:
    return sorted(values, key=key)[len(values) // 2]


def _at_once(parts: Sequence[PartRun]) -> tuple[float, ...]:
    """For 0, 1, 2 … tasks, the share of the run in which exactly so many were under way."""
    changes = sorted([(part.start, 1) for part in parts] + [(part.end, -1) for part in parts])
    lengths = [0.0] * (len(parts) + 1)
    under_way = 0
    for (moment, change), (following, _) in itertools.pairwise(changes):
        under_way += change
        lengths[under_way] += following - moment
    whole = sum(lengths)
    return tuple(length / whole for length in lengths) if whole else (1.0, *lengths[1:])


def _timed(samples: Samples) -> tuple[tuple[LockShare, ...], float | None, TimedRun | None]:
    """The locks that were waited for most, what timing that cost, and a run to show."""
    runs = samples.timed
    if not runs:
        return (), None, None
    waited: defaultdict[str, float] = defaultdict(float)
    places: defaultdict[str, defaultdict[Place, float]] = defaultdict(lambda: defaultdict(float))
    waits: Counter[str] = Counter()
    available = 0.0
    for run in runs:
        started = {wait.thread for wait in run.waits if wait.thread < 0}
        available += sum(map(_seconds, run.parts)) + len(started) * total(run.parts)
        for wait in run.waits:
            seconds = wait.end - wait.start
            waited[wait.name] += seconds
            places[wait.name][wait.place] += seconds
            waits[wait.name] += 1
    shares = tuple(
        LockShare(
            name=name,
            place=max(places[name], key=places[name].__getitem__),
            share=min(1.0, seconds / available),
            waits=waits[name] / len(runs),
        )
        for name, seconds in sorted(waited.items(), key=lambda each: -each[1])
    )
    untimed = median(total(each.tasks.parallel) for each in samples.rounds)
    typical = sorted(runs, key=lambda run: total(run.parts))[len(runs) // 2]
    return shares, total(typical.parts) / untimed, typical


# ----- claims -----


class _Asked(NamedTuple):
    """A claim before it is judged; `least` says which way it goes."""

    what: Literal["speed-up", "efficiency", "total"]
    asked: float
    measured: Estimate
    possible: Estimate
    least: bool


def claims(measurement: Measurement, points: Sequence[Point]) -> tuple[Claim, ...]:
    """What was asked, at the largest number of threads; none where nothing was measured."""
    if not points:
        return ()
    last = points[-1]
    return tuple(
        _judged(each, measurement, last)
        for each in _asked(measurement.plan, last, measurement.samples[-1])
    )


def verdict(measurement: Measurement, judged: Sequence[Claim]) -> Verdict:
    """The worst of the claims'; FAILED where the tasks got stuck."""
    verdicts = {claim.verdict for claim in judged}
    if measurement.stuck or Verdict.FAILED in verdicts:
        return Verdict.FAILED
    return Verdict.INCONCLUSIVE if verdicts != {Verdict.PASSED} else Verdict.PASSED


def _asked(plan: ParallelPlan, last: Point, samples: Samples) -> Iterator[_Asked]:
    nothing = plan.min_speedup is plan.min_efficiency is plan.max_total is None
    least = FASTER if nothing else plan.min_speedup
    if least is not None:
        yield _Asked("speed-up", least, last.speedup, last.possible, least=True)
    possible = last.possible
    if plan.min_efficiency is not None:
        share = estimate(ratio(each.tasks) / possible.value for each in samples.rounds)
        # What is possible is uncertain too: the interval is as wide as both make it.
        share = Estimate(
            share.value,
            share.low * possible.value / possible.high,
            share.high * possible.value / possible.low,
        )
        yield _Asked("efficiency", plan.min_efficiency, share, Estimate(1, 1, 1), least=True)
    if plan.max_total is not None:
        longest = last.longest.alone
        lengths = [total(each.tasks.parallel) / longest for each in samples.rounds]
        best = sum(part.alone for part in last.parts) / longest
        shortest = Estimate(best / possible.value, best / possible.high, best / possible.low)
        yield _Asked("total", plan.max_total, estimate(lengths), shortest, least=False)


def _judged(claim: _Asked, measurement: Measurement, last: Point) -> Claim:
    what, asked, measured, possible, least = claim
    holds = measured.low >= asked if least else measured.high <= asked
    refuted = measured.high < asked if least else measured.low > asked
    could = possible.value >= asked if least else possible.value <= asked
    outcome, reason = Verdict.INCONCLUSIVE, _undecided(claim, measurement, last)
    if reason is None and holds:
        outcome, reason = Verdict.PASSED, "so does all of the interval"
    elif reason is None and refuted and last.held_up > _HELD_UP:
        # Who is stopped while holding a lock stops all others, and no probe shows that.
        reason = (
            f"other processes kept its threads from running for {last.held_up:.0%} of the time, "
            "so it might do better"
        )
    elif reason is None and refuted and could and last.headroom.low > FASTER:
        outcome, reason = Verdict.FAILED, "none of the interval does, and it could here"
    elif reason is None:
        reason = _in_doubt(claim, measurement.machine, last, refuted=refuted, could=could)
    return Claim(
        what=what,
        asked=asked,
        measured=measured,
        possible=possible,
        verdict=outcome,
        reason=reason,
    )


def _undecided(claim: _Asked, measurement: Measurement, last: Point) -> str | None:
    """Why nothing can be said whatever was measured; None if it can."""
    longest = last.longest.alone
    if last.threads < 2 or len(last.parts) < 2:
        return "one thread runs nothing at once; measure with two or more"
    if longest < SHORTEST:
        times = math.ceil(2 * SHORTEST / max(longest, 1e-9))
        return (
            f"the longest part takes {longest * 1e3:.3g} ms, too short beside what it takes to "
            f"start threads; do the work {times:,} times over within a task"
        )
    if last.pairs < FEWEST:
        needed = FEWEST * measurement.seconds / last.pairs
        few = measurement.plan.pairs < FEWEST
        advice = f"pairs={FEWEST} or more" if few else f"seconds={math.ceil(1.2 * needed)}"
        return f"{last.pairs} pairs of runs say little, {FEWEST} are needed; give {advice}"
    if claim.what == "efficiency" and last.possible.low < _TELLING:
        return f"{_limit(measurement.machine, last)}, so a share of that says nothing"
    return None


def _in_doubt(claim: _Asked, machine: Machine, last: Point, *, refuted: bool, could: bool) -> str:
    """Why an interval decides nothing."""
    if refuted and not could:
        return _limit(machine, last)
    if refuted:
        low, high = 1 / last.headroom.high, 1 / last.headroom.low
        return f"it is {low:.0%} to {high:.0%} of what is possible here: too near, or too noisy"
    busy = _neighbours(last)
    return (
        f"it lies between {claim.measured.low:.2f} and {claim.measured.high:.2f}: too noisy to tell"
        + (f"; {busy}" if busy else "; allow more pairs or seconds")
    )


def _limit(machine: Machine, last: Point) -> str:
    """What keeps tasks like these from running at once here, whoever wrote them."""
    most = f"no more than {last.possible.value:.2f} × is possible here"
    if machine.gil and not machine.free_threaded and last.computing > _NOTABLE:
        return f"{most}: with the GIL one thread at a time runs Python; try a free-threaded build"
    if machine.cores < last.threads:
        few = "core" if machine.cores == 1 else "cores"
        return f"{most}: the process may use {machine.cores:g} {few}"
    busy = _neighbours(last)
    return f"{most} now" + (f": {busy}" if busy else "")


def _neighbours(last: Point) -> str | None:
    taken = 1 - last.core_share
    return f"other processes take {taken:.0%} of the time of a core" if taken > _NOTABLE else None


# ----- what holds them back -----


def remarks(measurement: Measurement, points: Sequence[Point]) -> tuple[str, ...]:
    """What holds the tasks back with the largest number of threads, the most telling first."""
    if not points:
        return ()
    return tuple(_remarks(measurement, points[-1], measurement.samples[-1]))


def _remarks(measurement: Measurement, last: Point, samples: Samples) -> Iterator[str]:
    machine = measurement.machine
    if machine.gil and last.computing > _NOTABLE:
        who = f", switched on by {machine.gil_by}" if machine.gil_by else ""
        build = ", and this build can do without" if machine.free_threaded else ""
        native = (
            f"; work in C that lets go of it gains {last.native.value:.2f} ×" if last.native else ""
        )
        yield f"the GIL is on{who}{build}: one thread at a time runs Python{native}"
    named = [lock for lock in last.locks if lock.share >= _NOTABLE / 10][:_MOST_LOCKS]
    for lock in named:
        times = f"{lock.waits:,.0f} times" if round(lock.waits) != 1 else "once"
        where = f"{PurePath(lock.place.file).name}:{lock.place.line}"
        yield (
            f"{lock.share:.0%} of the parallel time waits for {lock.name} ({where}), {times} a run"
        )
    if last.timing_cost is not None and last.timing_cost > 1 + _NOTABLE:
        yield f"with the locks timed it takes {last.timing_cost:.1f} × as long, so shares are rough"
    if samples.untimed:
        yield f"waits for locks were not timed: {samples.untimed}"
    yield from _slower_together(samples, last, explained=bool(named) or machine.gil)
    best = last.serial.value / last.longest.alone
    if len(measurement.names) > 1 and best < (1 - _NOTABLE) * len(last.parts):
        yield (
            f"the parts are not equal: {last.longest.name} alone takes "
            f"{1 / best:.0%} of the sum, so {best:.2f} × is the most"
        )
    busy = _neighbours(last)
    if busy:
        yield busy


def _slower_together(samples: Samples, last: Point, *, explained: bool) -> Iterator[str]:
    """Whether the tasks wait for each other, or compute longer for the same work."""
    tasks = [each.tasks for each in samples.rounds]
    probes = [each.probe for each in samples.rounds]
    both = list(zip(tasks, probes, strict=True))
    together = estimate(_busy(task.parallel) / _busy(probe.parallel) for task, probe in both)
    if not explained and together.high < last.computing - _NOTABLE:
        yield (
            f"together the tasks compute for {together.value:.0%} of their time, alone for "
            f"{last.computing:.0%}: they wait for each other"
        )
    longer = estimate(_inflation(task) / _inflation(probe) for task, probe in both)
    if longer.low > 1 + _NOTABLE and last.computing > _NOTABLE:
        yield (
            f"for the same work they compute {longer.value:.2f} × as long together as alone: "
            "threads contend for memory, for what CPython counts and locks in shared objects, or "
            "spin"
        )


def _inflation(pair: Pair) -> float:
    alone = sum(part.cpu for part in pair.serial)
    return sum(part.cpu for part in pair.parallel) / alone if alone else 1.0
