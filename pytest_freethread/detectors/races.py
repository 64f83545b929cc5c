"""Data races: two accesses to one location, one of them a write, that nothing puts in order.

The order is *schedulable happens-before* (Mathur, Kini, Viswanathan: "What happens-after the first
race?", OOPSLA 2018), with the epochs of FastTrack (Flanagan, Freund 2009; VerifiedFT 2018): what a
thread does is ordered by the program; an acquisition comes after the release before it; what a
thread does comes after its start, and joining it after its end; **and a read comes after the write
whose value it sees**, once the two have been judged. CPython's accesses are sequentially
consistent, so what is reached through a published reference is ordered by the publication. With
that last rule every race is real, not the first one alone: there is a schedule in which both
threads stand before their accesses at the same moment. Where it is the schedule that was seen, the
clash says so (`together`).

Memory: what is kept belongs to a location (the last write, the last read of each thread), nothing
to an event; `forget` drops an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_freethread.detectors.order import Order
from pytest_freethread.records import Finding, Race

if TYPE_CHECKING:
    from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pytest_freethread.records import Place

# --- what the steps of an execution mean ----------------------------------------------------------

READ: Final = 0
WRITE: Final = 1
ATOMIC: Final = 2
"""The access is one call of a method in C: it is no race with another one."""
ITEM: Final = 4
"""The location is an item of a container, which operations on the whole concern too."""
WHOLE: Final = 8
"""The location is a container as a whole, whatever the key."""
VAIN: Final = 16
"""The access would have written if nothing had been there: it read, and its author meant to act."""

HOW: Final[Mapping[str, int]] = {
    "attribute read": READ,
    "attribute write": WRITE,
    "cell read": READ,
    "cell write": WRITE,
    "item read": ITEM,
    "item write": ITEM | WRITE,
    "item addition": ITEM | VAIN,
    "container read": WHOLE | ATOMIC,
    "container write": WHOLE | ATOMIC | WRITE,
    "iteration step": WHOLE,
    "iterator write": WHOLE | WRITE,
}
"""What an operation (by the names of `effects.OP_NAMES`) is to the judge.

An item's operation that is a method's (`d.setdefault(k, v)`, `s.add(x)`), or `in`, is `ATOMIC`
besides; a subscript is as plain as an attribute. An "iterator write" is a step of an iterator that
breaks when two threads are in it (a generator, `itertools.tee`); a step of any other iterator in C
is a container write.
"""

INTERNALLY_ORDERED: Final = frozenset(
    {
        ("functools.py", "cached_property.__get__"),  # documented: may compute twice, the last wins
        ("functools.py", "singledispatch.<locals>.dispatch"),  # a cache of what can be found again
        ("functools.py", "_lru_cache_wrapper.<locals>.wrapper"),  # counts its hits loosely
    }
)
"""Functions of the standard library whose own races are documented, or of no consequence."""


def excused(one: Place, other: Place) -> bool:
    """Whether both accesses of a race are the standard library's own business."""
    return all(
        (place.file.replace("\\", "/").rpartition("/")[2], place.function) in INTERNALLY_ORDERED
        for place in (one, other)
    )


def finding(
    race: Race,
    *,
    token: str | None = None,
    reproduced: tuple[int, int] | None = None,
    strict: bool = True,
) -> Finding:
    """A race as a finding.

    Args:
        race: what was found.
        token: of the schedule that shows it.
        reproduced: (k, n): k of n replays showed it again.
        strict: whether it is an error: where an execution proves it, each time that its schedule
            is followed, and it is no publication.
    """
    sure = reproduced is None or reproduced[0] == reproduced[1]
    return Finding(
        kind="race",
        severity="error" if strict and sure and race.together and not race.published else "note",
        message=f"data race on {race.target}",
        evidence=race,
        token=token,
        reproduced=reproduced,
    )


def one_for_two_lines(
    found: Iterable[Finding], told: AbstractSet[tuple[str, int]] = frozenset()
) -> Iterator[Finding]:
    """One race is several, operation by operation; two lines with one target are one finding.

    Args:
        found: races.
        told: lines of which enough was said: a race between them is no news.
    """
    said = set()
    for each in found:
        assert isinstance(each.evidence, Race)
        places = frozenset((a.place.file, a.place.line) for a in each.evidence.accesses)
        if places <= told or (places, each.evidence.target) in said:
            continue
        said.add((places, each.evidence.target))
        yield each


# --- what is found --------------------------------------------------------------------------------


class Touch(NamedTuple):
    """An access, as it is remembered.

    Attributes:
        event: its number, from 1 on.
        thread: who.
        known: what the thread knew of the others then.
        site: where, as a number.
        how: `READ` or `WRITE`, with `ATOMIC`, `ITEM` or `WHOLE`.
        held: the locks that the thread held, in the order in which it took them, each with the
            site where it was taken.
        stack: whatever the caller handed over.
    """

    event: int
    thread: int
    known: list[int]
    site: int
    how: int
    held: tuple[tuple[int, int], ...]
    stack: Any


class Location:
    """What is remembered of an attribute, an item or a variable: epochs, as in FastTrack.

    Attributes:
        write: the last write.
        reads: the last read of each thread since then.
        writes: how many writes there were.
    """

    __slots__ = ("reads", "write", "writes")

    def __init__(self) -> None:
        self.write: tuple[Any, ...] = _NEVER
        self.reads: dict[int, tuple[Any, ...]] = {}
        self.writes = 0


class Whole(Location):
    """What is remembered of a container as a whole.

    Its `reads` and `write` are not used: writes to items need not be ordered among each other.

    Attributes:
        changes: the last write of each thread, to an item or to the whole; the latest comes last.
            Most often it has seen all the others, and who has seen it needs no look at them.
        wholes: those to the whole alone.
        loose: the last access to the whole of each thread that was not atomic: iteration, mostly.
    """

    __slots__ = ("changes", "loose", "wholes")

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[int, tuple[Any, ...]] = {}
        self.wholes: dict[int, tuple[Any, ...]] = {}
        self.loose: dict[int, tuple[Any, ...]] = {}

    def changed(self, touch: tuple[Any, ...]) -> None:
        """Remember a write."""
        thread = touch[1]
        self.changes.pop(thread, None)
        self.changes[thread] = touch
        self.writes += 1


class Clash(NamedTuple):
    """Two accesses that nothing puts in order, at least one of them a write.

    Attributes:
        obj: the object's number.
        key: the attribute or item; None for a whole container.
        earlier: the one that came first in this execution.
        later: the other one.
        together: whether the later thread already stood before its access when the earlier one was
            made: so either could have come first, and this very execution proves it. Always so of
            two steps of a generator: there is no standing before one, who is in it is in it.
        location: what else is known of it; it goes on to change.
    """

    obj: int
    key: Hashable
    earlier: Touch
    later: Touch
    together: bool
    location: Location

    @property
    def published(self) -> bool:
        """Whether it looks like the publication of one value, asked when the execution is over.

        The location was written just once, and the reader has (also) seen what was written: a flag
        that is polled, or double-checked initialisation. In a schedule in which a reader acts on
        what was there before, and does not look again, the same two places are not published.
        """
        readers = {touch.thread for touch in (self.earlier, self.later) if not touch.how & WRITE}
        return self.location.writes == 1 and bool(readers & self.location.reads.keys())

    @property
    def proven(self) -> bool:
        """Whether this execution leaves no doubt, asked when it is over."""
        return self.together and not self.published

    def says_more(self, *, together: bool) -> bool:
        """Whether another clash at the same sites is no news."""
        return self.together > together or (self.together == together and not self.published)


_NEVER: Final[tuple[Any, ...]] = (0, 0, [], -1, WRITE, (), None)


# --- the judge ------------------------------------------------------------------------------------


class Races(Order):
    """Listens to one execution, step by step.

    Args:
        threads: how many there are from the beginning; none of them knows anything of the others.
        settled: pairs of sites of which nobody wants to hear any more: those that were `proven` in
            another execution, for example. It may grow meanwhile.

    Attributes:
        clashes: by pair of sites, the smaller first, the clash that says most so far.
    """

    def __init__(self, threads: int, settled: Container[tuple[int, int]] = ()) -> None:
        super().__init__(threads)
        self.settled = settled
        self.clashes: dict[tuple[int, int], Clash] = {}
        self._locations: dict[int, dict[Hashable, Location]] = {}
        self._wholes: dict[int, Whole] = {}

    def forget(self, obj: int) -> None:
        """An object is gone; its number may be given to another one."""
        super().forget(obj)
        self._locations.pop(obj, None)
        self._wholes.pop(obj, None)

    def access(  # noqa: PLR0917 - by position, for speed
        self, thread: int, obj: int, key: Hashable, how: int, site: int, stack: object = None
    ) -> Sequence[Clash]:
        """An access is made; what it clashes with, of what `clashes` did not know yet.

        A `threading.local` is another object in each thread, and needs a number for each.

        Args:
            thread: who makes it.
            obj: the owner of the location.
            key: the part of it; ignored for a `WHOLE`. An `ITEM` under None is some item, unknown
                which: it clashes with iteration only.
            how: see `HOW`.
            site: where.
            stack: handed back with a clash.
        """
        now = self.now = self.now + 1
        before = self._last[thread]
        self._last[thread] = now
        known = self.known[thread]
        touch = (now, thread, known, site, how, self.held[thread], stack)
        if how >= ITEM:
            if key is None and not how & WHOLE:
                how = how & WRITE | ATOMIC | WHOLE
                touch = (*touch[:4], how, *touch[5:])
            if how & WHOLE:
                return self._access_whole(obj, touch, before)
            return self._access_item(obj, key, touch, before)
        try:
            location = self._locations[obj][key]
        except KeyError:
            location = self._locations.setdefault(obj, {}).setdefault(key, Location())
        write = location.write
        if write[0] > known[write[1]]:
            return self._judge(obj, key, location, touch, before)
        if not how:
            location.reads[thread] = touch
            return ()
        reads = location.reads
        if reads:
            for read in reads.values():
                if read[0] > known[read[1]]:
                    return self._judge(obj, key, location, touch, before)
            reads.clear()
        location.write = touch
        location.writes += 1
        return ()

    def _judge(  # noqa: PLR0917 - as `access`
        self,
        obj: int,
        key: Hashable,
        location: Location,
        touch: tuple[Any, ...],
        before: int,
        seen: Iterable[tuple[Any, ...]] = (),
    ) -> Sequence[Clash]:
        """The same for any location that is no whole container, and at leisure."""
        _, thread, known, _, how, _, _ = touch
        write = location.write
        others = []
        if write[0] > known[write[1]] and not how & write[4] & ATOMIC:
            others.append(write)
        if how & WRITE:
            others += [
                read
                for read in location.reads.values()
                if read[0] > known[read[1]] and not how & read[4] & ATOMIC
            ]
        if how & ATOMIC or not how & WRITE:
            for each in (write, *seen):
                touch = self._sees(touch, each)
        if how & WRITE:
            location.reads.clear()
            location.write = touch
            location.writes += 1
        else:
            location.reads[thread] = touch
        return self._clashes(obj, key, location, others, touch, before)

    def _sees(self, touch: tuple[Any, ...], write: tuple[Any, ...]) -> tuple[Any, ...]:
        """An access sees what was written: now its thread knows what the writer knew."""
        event, other, then = write[:3]
        thread = touch[1]
        if event <= touch[2][other]:
            return touch
        self.learn(thread, event, other, then)
        return (*touch[:2], self.known[thread], *touch[3:])

    def _whole(self, obj: int) -> Whole:
        container = self._wholes.get(obj)
        if container is None:
            container = self._wholes[obj] = Whole()
            self._locations.setdefault(obj, {})
        return container

    def _access_item(
        self, obj: int, key: Hashable, touch: tuple[Any, ...], before: int
    ) -> Sequence[Clash]:
        container = self._whole(obj)
        locations = self._locations[obj]
        location = locations.get(key)
        if location is None:
            location = locations[key] = Location()
        known = touch[2]
        clashes = self._judge(obj, key, location, touch, before, container.wholes.values())
        if touch[4] & WRITE:
            write = location.write
            container.changed(write)
            if container.loose:
                steps = [each for each in container.loose.values() if each[0] > known[each[1]]]
                clashes = [*clashes, *self._clashes(obj, None, container, steps, write, before)]
        return clashes

    def _access_whole(self, obj: int, touch: tuple[Any, ...], before: int) -> Sequence[Clash]:
        _, thread, known, _, how, _, _ = touch
        container = self._whole(obj)
        others: dict[int, tuple[Any, ...]] = {}
        if how & WRITE:
            others = {e[0]: e for e in container.loose.values() if e[0] > known[e[1]]}
        for change in reversed(container.changes.values()):
            if change[0] > known[change[1]]:
                if not how & ATOMIC:
                    others[change[0]] = change
                touch = self._sees(touch, change)
        if how & WRITE:
            container.changed(touch)
            container.wholes[thread] = touch
        if not how & ATOMIC:
            container.loose[thread] = touch
        ordered = [others[event] for event in sorted(others)]
        return self._clashes(obj, None, container, ordered, touch, before)

    def _clashes(  # noqa: PLR0917 - as `access`
        self,
        obj: int,
        key: Hashable,
        location: Location,
        others: Iterable[tuple[Any, ...]],
        touch: tuple[Any, ...],
        before: int,
    ) -> Sequence[Clash]:
        found = []
        for other in others:
            fragile = other[4] == touch[4] == WHOLE | WRITE  # they break where two are in them
            together = before < other[0] or fragile
            one, two = other[3], touch[3]
            pair = (one, two) if one <= two else (two, one)
            known = self.clashes.get(pair)
            if pair in self.settled or (known is not None and known.says_more(together=together)):
                continue
            clash = Clash(obj, key, Touch(*other), Touch(*touch), together, location)
            self.clashes[pair] = clash
            found.append(clash)
        return found
