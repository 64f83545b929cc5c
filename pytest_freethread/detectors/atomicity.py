"""A look and an act that depends on it, with another thread's change in between.

The unserialisable interleaving read, remote write, write of Lu, Tucek, Qin and Zhou, "AVIO"
(ASPLOS 2006): a lost update, or a check whose answer was old when it was acted upon. Each access
may well hold a lock; what counts is that none was held from the look to the act. What a thread
looks at again before it acts is no old answer.

That the act depends on the look is presumed: a thread that reads a location and then writes it,
without a write of its own in between. `same_function` says where that is all but certain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_freethread.detectors.order import TAKE, Order

if TYPE_CHECKING:
    from collections.abc import Container, Hashable, Iterator, Sequence

    from pytest_freethread.records import Place

_WRITE: Final = 1  # as in `races`
_ATOMIC: Final = 2
_ITEM: Final = 4
_WHOLE: Final = 8
_VAIN: Final = 16


def same_function(look: Place, act: Place) -> bool:
    """Whether one function looks and acts: then hardly by chance."""
    return (look.file, look.function) == (act.file, act.function)


class Point(NamedTuple):
    """An access.

    Attributes:
        event: its number, from 1 on.
        thread: who.
        site: where, as a number.
        held: the locks that the thread held, each with the site where it was taken.
        outermost: the event that took the first of them; of an act the first since the look. The
            event itself where there is none. Before it the thread must wait for others to come in.
    """

    event: int
    thread: int
    site: int
    held: tuple[tuple[int, int], ...]
    outermost: int


class Torn(NamedTuple):
    """What its author took for one step, and the change that comes in between, or could.

    Attributes:
        obj: the object's number.
        key: the attribute or item; None for a whole container.
        look: a thread reads the location.
        change: another thread writes it.
        act: the first thread writes it, for all that.
        seen: whether they happened in this order; else the locks would allow it.
    """

    obj: int
    key: Hashable
    look: Point
    change: Point
    act: Point
    seen: bool

    @property
    def released(self) -> frozenset[int]:
        """The locks that are held at both ends, and let go of in between."""
        look, act = ({lock for lock, _ in point.held} for point in (self.look, self.act))
        return frozenset(look & act & {lock for lock, _ in self.change.held})

    @property
    def sites(self) -> tuple[int, int, int]:
        """What two have in common that are one finding."""
        return self.look.site, self.change.site, self.act.site


class _Location:
    __slots__ = ("acts", "changes", "looks", "written")

    def __init__(self) -> None:
        self.written: Point | None = None
        self.looks: dict[int, Point] = {}
        self.acts: dict[tuple[int, int, int], tuple[Point, Point, frozenset[int]]] = {}
        self.changes: dict[tuple[int, int], Point] = {}


class Atomicity(Order):
    """Listens to one execution, and hears all that `races.Races` hears.

    Args:
        threads: how many there are from the beginning.
        settled: the sites of what nobody wants to hear any more.

    Attributes:
        torn: by its sites, the first of what was torn.
    """

    def __init__(self, threads: int, settled: Container[tuple[int, int, int]] = ()) -> None:
        super().__init__(threads)
        self.settled = settled
        self.torn: dict[tuple[int, int, int], Torn] = {}
        self._locations: dict[int, dict[Hashable, _Location]] = {}
        self._since: dict[tuple[int, int], int] = {}

    def synchronise(self, thread: int, obj: int, effect: int, site: int = -1) -> None:
        """As `Order`'s."""
        super().synchronise(thread, obj, effect, site)
        if effect & TAKE:
            self._since[thread, obj] = self.now

    def forget(self, obj: int) -> None:
        """As `Order`'s."""
        super().forget(obj)
        self._locations.pop(obj, None)

    def access(  # noqa: PLR0917 - by position, for speed
        self, thread: int, obj: int, key: Hashable, how: int, site: int, stack: object = None
    ) -> Sequence[Torn]:
        """As `Order`'s; what is torn by it, and was not reported yet.

        Iteration is no look: what another thread changes under it is a race.
        """
        super().access(thread, obj, key, how, site, stack)
        if how & _WHOLE:
            key = None
        locations = self._locations.setdefault(obj, {})
        location = locations.get(key)
        if location is None:
            location = locations[key] = _Location()
        if not how & (_WRITE | _VAIN):
            if how & (_WHOLE | _ATOMIC) != _WHOLE:
                location.looks[thread] = self._point(thread, site)
            return ()
        found = self._act(obj, key, location, thread, site)
        if how & _VAIN:
            return found
        self._change(location, self._point(thread, site))
        if how >= _ITEM and key is not None:
            whole = locations.setdefault(None, _Location())
            self._change(whole, self._point(thread, site))
        return found

    def _point(self, thread: int, site: int, after: int = 0) -> Point:
        held = self.held[thread]
        if not held:
            return Point(self.now, thread, site, (), self.now)
        taken = [since for lock, _ in held if (since := self._since[thread, lock]) > after]
        return Point(self.now, thread, site, held, min(taken, default=self.now))

    def _change(self, location: _Location, change: Point) -> None:
        location.written = location.changes[change.thread, change.site] = change

    def _act(
        self, obj: int, key: Hashable, location: _Location, thread: int, site: int
    ) -> Sequence[Torn]:
        change, look = location.written, location.looks.pop(thread, None)
        if look is None:
            return ()
        act = self._point(thread, site, after=look.event)
        throughout = frozenset(
            lock for lock, _ in act.held if self._since[thread, lock] < look.event
        )
        location.acts[thread, look.site, site] = look, act, throughout
        if change is None or change.event < look.event or change.thread == thread:
            return ()
        torn = Torn(obj, key, look, change, act, seen=True)
        if torn.sites in self.torn or torn.sites in self.settled:
            return ()
        self.torn[torn.sites] = torn
        return (torn,)

    def predictions(self) -> Iterator[Torn]:
        """What was not seen, here or before, though no lock forbids it.

        Whether more than a lock does tells `prediction.Trace.may_meet` of the `outermost` events of
        the act and of the change: from there the change can be made, and then the act.
        """
        for obj, locations in self._locations.items():
            for key, location in locations.items():
                for look, act, throughout in location.acts.values():
                    for change in location.changes.values():
                        torn = Torn(obj, key, look, change, act, seen=False)
                        locks = {lock for lock, _ in change.held}
                        free = change.thread != act.thread and not locks & throughout
                        known = torn.sites in self.torn or torn.sites in self.settled
                        if free and not known:
                            yield torn
