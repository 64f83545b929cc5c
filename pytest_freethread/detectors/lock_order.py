"""Locks that are taken in opposite orders: deadlocks that did not happen this time.

The lock graph of Havelund ("Using Runtime Analysis to Guide Model Checking of Java Programs", SPIN
2000) with the refinements of Bensalem and Havelund ("Dynamic Deadlock Analysis of Multi-threaded
Programs", 2005): an edge is one thread's acquisition of a lock while it holds others; a cycle
counts only if its threads are different, if no lock is held in two of its edges (a *gate* keeps
them apart), and if nothing but locks puts one edge before another (the start of a thread, an event,
a queue). A reentrant lock that is taken again makes no event, hence no edge.

On one trace of a program that only takes locks, and has no branches, every deadlock that any of its
schedules reaches is found. The other way round, what is found may be out of reach, unless
`prediction.Trace.may_meet` says that the threads can stand before the acquisitions of a cycle; if
not, it is to be made to happen before it is called an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_freethread.detectors.order import BRIEFLY, DROP, TAKE, Order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Edge(NamedTuple):
    """A thread took a lock while it held others.

    Attributes:
        thread: who.
        lock: what it took.
        site: where.
        held: what it held then, in the order in which it took them, each with the site.
        event: the number of the event.
        known: what the thread comes after, locks aside.
    """

    thread: int
    lock: int
    site: int
    held: tuple[tuple[int, int], ...]
    event: int
    known: list[int]

    def site_of(self, lock: int) -> int:
        """Where a lock was taken that is held."""
        return next(site for each, site in self.held if each == lock)


Cycle = tuple[Edge, ...]
"""Each edge's thread holds the lock that the one before takes; the first's holds the last's."""


class _AllAlike(dict[int, object]):
    def get(self, _lock: int, _default: object = None) -> object:
        return None


ALL_ALIKE: Final = _AllAlike()
"""The same class for each lock: by number, those of other executions cannot be told apart."""


class LockOrder(Order):
    """Listens to one execution; reads and writes do not concern it.

    What is kept: each edge once for its thread, locks and places, as it first came up and as it
    last did (which may be ordered differently).
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._edges: dict[object, list[Edge]] = {}
        self._locks: set[int] = set()

    def synchronise(self, thread: int, obj: int, effect: int, site: int = -1) -> None:
        """As `Order`'s, but that a lock puts nobody after anybody: the order is what is asked."""
        held = self.held[thread]
        super().synchronise(thread, obj, effect & (TAKE | DROP) or effect, site)
        if held and effect & TAKE and not effect & BRIEFLY:
            edge = Edge(thread, obj, site, held, self.now, self.known[thread])
            self._edges.setdefault((thread, obj, site, held), [edge])[1:] = [edge]
            self._locks.update([obj], (lock for lock, _ in held))

    def forget(self, obj: int) -> None:
        """As `Order`'s: nobody will wait for that lock any more."""
        super().forget(obj)
        if obj in self._locks:
            self._locks.remove(obj)
            for key, (edge, *_) in list(self._edges.items()):
                if edge.lock == obj or any(lock == obj for lock, _ in edge.held):
                    del self._edges[key]

    def cycles(
        self,
        classes: Mapping[int, object] | None = None,
        seen: set[frozenset[object]] | None = None,
    ) -> Iterator[Cycle]:
        """The cycles of what has been heard so far, the shortest first.

        Args:
            classes: by lock, where it was made; cycles of the same classes at the same sites are
                one. A lock that is not in it is a class of its own.
            seen: the cycles that were reported already; it is added to.
        """
        named = {} if classes is None else classes
        said = set() if seen is None else seen
        edges = [edge for each in self._edges.values() for edge in each]
        for length in range(2, len(self.known) + 1):
            for cycle in _cycles(edges, length):
                what = frozenset(
                    (named.get(edge.lock, edge.lock), edge.site, edge.site_of(before.lock))
                    for before, edge in zip((cycle[-1], *cycle), cycle, strict=False)
                )
                if what not in said:
                    said.add(what)
                    yield cycle


def _cycles(edges: Sequence[Edge], length: int) -> Iterator[Cycle]:
    """Cycles of so many edges, each from the one of its smallest thread."""
    after: dict[int, list[Edge]] = {}
    for edge in edges:
        for lock, _ in edge.held:
            after.setdefault(lock, []).append(edge)
    paths: list[Cycle] = [(edge,) for edge in edges]
    while paths:
        path = paths.pop()
        first, last = path[0], path[-1]
        if len(path) == length:
            if any(lock == last.lock for lock, _ in first.held):
                yield path
            continue
        paths += [
            (*path, edge)
            for edge in after.get(last.lock, ())
            if edge.thread > first.thread and all(_may_meet(each, edge) for each in path)
        ]


def _may_meet(one: Edge, other: Edge) -> bool:
    """Whether two threads may stand before these acquisitions at the same moment."""
    return (
        one.thread != other.thread
        and not {lock for lock, _ in one.held} & {lock for lock, _ in other.held}
        and one.event > other.known[one.thread]
        and other.event > one.known[other.thread]
    )
