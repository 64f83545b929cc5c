"""A round of a free run in which a thread is held up where it may race, until another one comes.

Koushik Sen, "Race directed random testing of concurrent programs" (PLDI 2008): a thread that comes
to one of two places which are suspected to race waits there; when another one comes to the other
place, about to access the same location, both stand before their accesses at the same moment. That
is a race, and no matter what a judge knows of the order between them: had anything put them in
order, whoever comes second could not be there. If nobody comes the thread goes on after a while,
and nothing is said. (John Erickson et al., "Effective data-race detection for the kernel", OSDI
2010, find races by that alone, at places drawn at random.)
"""

from __future__ import annotations

import _thread
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.execution import stacks
from pytest_freethread.execution.values import comparable
from pytest_freethread.instrument.effects import (
    ATTRIBUTE_WRITE,
    RESUME,
    ROUTE,
    STEP,
    WHOLE_READ,
    WHOLE_WRITE,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

_MOST_STOPS: Final = 3
"""How often a thread is held up in a round."""

_WHOLE: Final = frozenset({WHOLE_READ, WHOLE_WRITE, STEP, RESUME})
_get_ident: Final = interpreter.get_ident


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A thread before an access.

    Attributes:
        thread: the index of its body; None for a thread that the code under test started.
        site: where.
        chain: its frames.
    """

    thread: int | None
    site: int
    chain: stacks.Chain


@dataclass(kw_only=True, eq=False)
class _Held:
    """A thread that is held up."""

    stand: Stand
    ident: int
    obj: Any
    key: Any
    op: int
    signal: Any = field(default_factory=interpreter.Lock)

    @property
    def whole(self) -> bool:
        """Whether it is about all of the object."""
        return self.op in _WHOLE or (self.op <= ATTRIBUTE_WRITE and self.key is None)


class Ambush:
    """The probes' sink in one round.

    Args:
        pair: the sites of a race that is suspected.
        stop: those of them where threads are held up.
        patience: seconds for which one is.

    Attributes:
        met: the two threads that stood before their accesses, whoever was there first coming first;
            None if it did not come to that.
    """

    def __init__(self, pair: tuple[int, int], stop: frozenset[int], patience: float) -> None:
        self.met: tuple[Stand, Stand] | None = None
        self._other = dict(zip(pair, reversed(pair), strict=True))
        self._stop = stop
        self._patience = patience
        self._bodies: dict[int, int] = {}
        self._stops: dict[int, int] = {}
        self._held: list[_Held] = []
        self._guard = _thread.RLock()  # a finalizer may come between
        self._over = True

    def begin(self, threads: Sequence[threading.Thread]) -> None:
        """Lie in wait from now on; `threads` will run the bodies."""
        self._bodies = {thread.ident or 0: index for index, thread in enumerate(threads)}
        self._over = False

    def end(self) -> None:
        """Hold nobody up any longer."""
        with self._guard:
            self._over = True
            for held in self._held:
                held.signal.release()
            self._held.clear()

    def access(self, obj: Any, key: Any, op: int, site: int, /) -> Any:
        """See `probes.Sink`."""
        if self._over or op == ROUTE or site not in self._other:
            return obj
        ident = _get_ident()
        stand = Stand(
            thread=self._bodies.get(ident),
            site=site,
            chain=stacks.chain(sys._getframe(1)),  # noqa: SLF001 - documented
        )
        here = _Held(stand=stand, ident=ident, obj=obj, key=key, op=op)
        with self._guard:
            if self._over:
                return obj
            for held in self._held:
                if self._clash(held, here):
                    self.met = held.stand, here.stand
                    self.end()
                    return obj
            stops = self._stops.get(ident, 0)
            if site not in self._stop or stops >= _MOST_STOPS:
                return obj
            self._stops[ident] = stops + 1
            here.signal.acquire()
            self._held.append(here)
        here.signal.acquire(timeout=self._patience)
        with self._guard:
            if here in self._held:
                self._held.remove(here)
        return obj

    def _clash(self, one: _Held, other: _Held) -> bool:
        return (
            one.ident != other.ident
            and one.obj is other.obj
            and other.stand.site == self._other[one.stand.site]
            and (one.op | other.op) & 1 == 1
            and (one.whole or other.whole or one.key is other.key or _equal(one.key, other.key))
        )


def _equal(one: Any, other: Any) -> bool:
    one = comparable(one)
    return one is not None and bool(one == comparable(other))
