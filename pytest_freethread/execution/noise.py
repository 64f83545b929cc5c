"""Noise: threads of a free run pause where they share something, so that others come between.

With the GIL a thread runs for so long at a time that a race of a few instructions is never met: a
plain lost update in none of 100,000 rounds. The probes tell where threads share something, and a
short pause there, before one access in a few, lets another thread in between a read and the write
that depends on it: the same lost update is met within the first ten rounds.

After Edelstein, Farchi, Goldin, Nir, Ratsaby and Ur, "Framework for testing multi-threaded Java
programs" (ConTest, 2003), and Křena, Letko, Vojnar and Ur, "Noise-based testing and analysis of
multi-threaded programs": noise by chance, at accesses to *shared* variables and before locks are
taken, as a yield or a sleep, and how strong it is drawn anew for each round, since no strength is
best for all programs. What is shared is learned on the fly, as there: two threads at one location,
one of them writing. Noise also hides races, above all where threads do run at once: so rounds
without probes alternate with noisy ones, and the code under test is as it was for most of the time.

It changes what is likely and nothing else: pauses of tens of microseconds, as any scheduler makes.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.instrument import probes
from pytest_freethread.instrument.effects import ITEM_READ, ROUTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.execution.probing import Probing

GRACE: Final = 0.01
SHARE: Final = 0.5
"""Noisy rounds may take `GRACE` seconds, and `SHARE` of the time of those without probes."""

_RATES: Final = (2, 2, 8, 32)
"""One access in so many pauses, in expectation; powers of two."""

_SLEEPS: Final = (0, 0, 20, 200)
"""Microseconds that a pause lasts at most; 0: the thread just lets others go first."""

_TIMER: Final = 60
"""Microseconds that the kernel adds to any sleep."""

_FUEL: Final = 2_000
"""Microseconds that the noise may take of each thread in each round: less than a scheduler may."""

_MOST_ACCESSES: Final = 10_000
"""Accesses of a thread after which the rest of its round is left in peace: some 5 ms of probing."""

_YIELD: Final = 10
"""Microseconds that giving way costs a thread."""

_MEETING_PLACES: Final = (
    *(threading.Condition, threading.Event, threading.Semaphore, threading.BoundedSemaphore),
    *(queue.Queue, queue.SimpleQueue),
)
"""What threads synchronise on, besides locks: a call to one is worth a pause before it."""

# Bound at once, like the primitives of `interpreter`: tests patch them.
_sleep: Final = time.sleep
_get_ident: Final = interpreter.get_ident


class _Pauses:
    """What is left of a thread's noise in a round, and the state of its xorshift generator."""

    __slots__ = ("accesses", "fuel", "state")

    def __init__(self, seed: int) -> None:
        self.state = seed & 0xFFFFFFFF or 1
        self.fuel = _FUEL
        self.accesses = _MOST_ACCESSES

    def draw(self) -> int:
        """A number of 32 bits (Marsaglia, "Xorshift RNGs", 2003)."""
        x = self.state
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        self.state = x
        return x


class Noise:
    """The noise of one run.

    Args:
        probing: the run's probes.
        seed: where its randomness starts.

    Attributes:
        shared: the sites where threads were seen to share something.
        rounds: how many rounds were noisy.
    """

    def __init__(self, probing: Probing, seed: int) -> None:
        self.shared: set[int] = set()
        self.rounds = 0
        self._probing = probing
        self._random = random.Random(seed)  # noqa: S311 - noise, no secret
        self._yield = interpreter.core_yielder()
        self._noisy = self._refused = False
        self._plain_seconds = self._noisy_seconds = 0.0
        # Of the round. Whoever comes late, from a round before, finds it silent.
        self._silent = True
        self._seed = self._rate = self._longest = 0
        self._threads: dict[int, _Pauses] = {}
        self._touched: dict[object, tuple[int, int]] = {}
        self._written: dict[object, tuple[int, int]] = {}

    def __str__(self) -> str:
        """What it did, to go on a sentence with; empty where no round was noisy."""
        if not self.rounds:
            return ""
        places = f"{len(self.shared)} shared place" + "s" * (len(self.shared) != 1)
        rounds = f"{self.rounds} round" + "s" * (self.rounds != 1)
        left_out = self._probing.left_out
        lacking = f", {len(left_out)} functions without probes" if left_out else ""
        return f"; noise at {places} in {rounds}{lacking}"

    # --- by the thread that runs the rounds -------------------------------------------------------

    def prepare(self) -> None:
        """Before the state of a round is made: settle whether it is noisy, and have it so."""
        allowed = SHARE * self._plain_seconds
        wanted = self._noisy_seconds <= allowed + (GRACE if self._noisy else 0.0)
        if not self._plain_seconds or self._refused:
            wanted = False
        if wanted != self._noisy:
            self._probing.get_ready()
            began = interpreter.monotonic()
            if wanted:
                self._put_in()
            else:
                self.rest()
            self._noisy_seconds += interpreter.monotonic() - began

    def begin(self, threads: Sequence[threading.Thread] = ()) -> None:  # noqa: ARG002 - all alike
        """Just before the threads of a round start."""
        if not self._noisy:
            return
        self.rounds += 1
        self._seed = self._random.getrandbits(32)
        self._rate = self._random.choice(_RATES)
        self._longest = self._random.choice(_SLEEPS)
        self._threads, self._touched, self._written = {}, {}, {}
        self._probing.listen(self)
        self._silent = False

    def hush(self) -> None:
        """In the middle of a round that takes long: have its probes cost as little as they can."""
        self._silent = True
        self._probing.listen(None)

    def end(self, seconds: float) -> None:
        """When the threads of a round have ended, or are given up, after so many seconds."""
        self._silent = True
        if self._noisy:
            self._noisy_seconds += seconds
        else:
            self._plain_seconds += max(seconds, 1e-9)

    def rest(self) -> None:
        """Have the code as it was, until it is noisy again."""
        if self._noisy:
            self._noisy = False
            self._probing.take_out()

    def close(self) -> None:
        """Leave all as it was; a thread that still runs code with probes runs it in silence."""
        self._silent = True
        self._probing.close()

    def _put_in(self) -> None:
        probes.route(*_MEETING_PLACES)
        self._noisy = self._probing.put_in()
        self._refused = not self._noisy  # somebody else has the probes

    # --- by all others ----------------------------------------------------------------------------

    def access(self, obj: Any, key: Any, op: int, site: int, /) -> Any:
        """Before an access: learn whether it is to something shared; pause now and then if so."""
        if self._silent:
            return obj
        ident = _get_ident()
        try:
            pauses = self._threads[ident]
        except KeyError:
            pauses = self._threads[ident] = _Pauses(self._seed + 0x9E3779B9 * len(self._threads))
            pauses.draw()
        pauses.accesses -= 1
        if site not in self.shared:
            if pauses.accesses < 0:
                self._silent = True  # for all: it costs less
            else:
                self._learn(obj, key, op, site, ident)
        elif pauses.fuel > 0:
            drawn = pauses.draw()
            if drawn % self._rate == 0:
                self._pause(pauses, drawn >> 8)
        return obj

    def _learn(self, obj: Any, key: Any, op: int, site: int, ident: int) -> None:
        # An address is given again within a round now and then: then a pause is wasted. Containers
        # count as one: whoever walks over one meets whoever adds to it.
        location = id(obj) if op >= ITEM_READ else (id(obj), key)
        if op & 1 or op == ROUTE:
            last = self._touched.get(location)
            self._written[location] = ident, site
        else:
            last = self._written.get(location)
        self._touched[location] = ident, site
        if last is not None and last[0] != ident:
            self.shared.add(site)
            self.shared.add(last[1])

    def _pause(self, pauses: _Pauses, drawn: int) -> None:
        if self._longest == 0:
            pauses.fuel -= _YIELD
            self._yield()
        else:
            microseconds = 1 + drawn % self._longest
            pauses.fuel -= microseconds + _TIMER
            _sleep(microseconds * 1e-6)
