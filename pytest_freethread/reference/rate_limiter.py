"""Rate limiting for threads: a token bucket, and one bucket per client in bounded memory.

The bucket is the generic cell rate algorithm in its "virtual scheduling" form (ITU-T I.371, annex
A): instead of a level that is refilled, it keeps the moment at which it will be full again. Taking
permits moves that moment into the future; a request is granted when it would not move it further
than a whole bucket takes to fill.

All of it is integer arithmetic. Clock readings are cut to multiples of 2**-60 s, which is no cut at
all for a float of 4 ms and more, and are scaled so that one permit is a whole number of units. So
nothing accumulates: in any window of t seconds at most ``capacity + rate * (t + 2**-60)`` permits
are issued, however many requests there are. (Where the clock steps back no time passes: t is the
sum of what it moved forwards.)
"""

import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from fractions import Fraction

__all__ = ["KeyedLimiter", "TokenBucket", "TooManyKeysError"]

Wait = Callable[[threading.Condition, float | None], object]


class TooManyKeysError(RuntimeError):
    """A `KeyedLimiter` has no room for another key: every budget it remembers still matters."""


def _wait(condition: threading.Condition, timeout: float | None) -> object:
    return condition.wait(timeout)


class _Budget:
    """One bucket: full from the moment `full_at` on; `line` holds those who wait, in order."""

    __slots__ = ("full_at", "line")

    def __init__(self) -> None:
        self.full_at = 0
        self.line: deque[threading.Condition] = deque()


class _Limiter:
    """What the limiters share: the scale, the steady time, the line. `_lock` guards all of it."""

    def __init__(
        self, rate: float, capacity: float, clock: Callable[[], float], wait: Wait
    ) -> None:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rate must be a positive number of permits per second, not {rate!r}")
        if not (math.isfinite(capacity) and capacity >= 1):
            raise ValueError(
                f"capacity must be a number of permits of at least 1, not {capacity!r}"
            )
        self.rate = rate
        self.capacity = capacity
        self._clock = clock
        self._wait = wait
        # One unit of time is 2**-60 s divided by the numerator of the rate: then a permit is a
        # whole number of units.
        per_second = Fraction(rate)
        self._scale = per_second.numerator
        self._second = per_second.numerator << 60
        self._permit = per_second.denominator << 60
        self._span = int(Fraction(capacity) * self._permit)
        self._longest_wait = int(threading.TIMEOUT_MAX) * self._second
        self._lock = threading.Lock()
        self._reading = self._units(clock())
        self._time = 0

    def _units(self, seconds: float) -> int:
        numerator, denominator = seconds.as_integer_ratio()
        return (numerator << 60) // denominator * self._scale

    def _cost(self, n: int) -> int:
        if not isinstance(n, int) or not 1 <= n <= self.capacity:
            raise ValueError(
                f"n must be a whole number from 1 to the capacity of {self.capacity}, not {n!r}"
            )
        return n * self._permit

    def _now(self) -> int:
        """Steady time: the sum of what the clock moved forwards."""
        reading = self._units(self._clock())
        if reading > self._reading:
            self._time += reading - self._reading
        self._reading = reading
        return self._time

    def _take(self, budget: _Budget, cost: int, now: int) -> bool:
        full_at = max(budget.full_at, now) + cost
        if full_at > now + self._span:
            return False
        budget.full_at = full_at
        return True

    def _acquire(self, budget: _Budget, cost: int, timeout: float | None, now: int) -> bool:
        """Stand in line. Called with the lock held, which is given up while waiting."""
        if not budget.line and self._take(budget, cost, now):
            return True
        deadline = None if timeout is None else now + self._units(timeout)
        turn = threading.Condition(self._lock)
        budget.line.append(turn)
        try:
            while budget.line[0] is not turn or not self._take(budget, cost, now):
                if deadline is not None and now >= deadline:
                    return False
                wake_at = [] if deadline is None else [deadline]
                if budget.line[0] is turn:
                    wake_at.append(max(budget.full_at, now) + cost - self._span)
                self._wait(turn, self._seconds(min(wake_at) - now) if wake_at else None)
                now = self._now()
            return True
        finally:
            # Also when the wait was interrupted: whoever is in front now must look at the clock.
            budget.line.remove(turn)
            if budget.line:
                budget.line[0].notify()

    def _seconds(self, units: int) -> float:
        """How long to wait: never less than the clock can show, lest a wait end where it began."""
        shortest = math.ulp(self._reading / self._second)
        return max(min(units, self._longest_wait) / self._second, shortest)


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not (math.isfinite(timeout) and timeout >= 0):
        raise ValueError(f"timeout must be None or a number of seconds from 0 on, not {timeout!r}")
    return timeout


class TokenBucket(_Limiter):
    """At most `capacity` permits at once, and `rate` permits a second in the long run.

    Requests are served strictly in the order of their arrival: a large one in front is not
    overtaken by smaller ones, by `try_acquire` neither, so nobody starves. Waiting happens outside
    the lock.

    Concurrency contract: Linearizable. Each call takes effect at one moment between call and
    return, the moment when it takes its permits or gives up; these moments keep the bound that the
    module states. Arrival is the moment at which a call gets the bucket's lock.

    Args:
        rate: Permits per second, finite and above 0.
        capacity: The most permits that one moment can see, at least 1. The bucket starts full.
        clock: Gives seconds. A step backwards counts as no time at all: it issues nothing, and
            delays those who wait by at most the time since the clock was last read. It is called
            with the lock held.
        wait: How to wait with a clock that is not the machine's: gets a held condition and the
            longest time in seconds of that clock (None: for ever), gives the condition up
            meanwhile, and may return early.

    Raises:
        ValueError: `rate` or `capacity` makes no bucket.
    """

    def __init__(
        self,
        rate: float,
        capacity: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        wait: Wait = _wait,
    ) -> None:
        super().__init__(rate, capacity, clock, wait)
        self._budget = _Budget()

    def acquire(self, n: int = 1, timeout: float | None = None) -> bool:
        """Take `n` permits, waiting for them and for everybody who came earlier.

        Args:
            n: Permits, a whole number from 1 to the capacity.
            timeout: The longest time to wait in seconds; None waits as long as it takes.

        Returns:
            True with the permits taken; False when the timeout has passed, with nothing taken.

        Raises:
            ValueError: `n` could never be granted, or `timeout` is no time.
        """
        cost, timeout = self._cost(n), _checked_timeout(timeout)
        with self._lock:
            return self._acquire(self._budget, cost, timeout, self._now())

    def try_acquire(self, n: int = 1) -> bool:
        """Take `n` permits if they are there now and nobody waits for any.

        Raises:
            ValueError: `n` could never be granted.
        """
        cost = self._cost(n)
        with self._lock:
            return not self._budget.line and self._take(self._budget, cost, self._now())


class KeyedLimiter(_Limiter):
    """A token bucket for each key (a client, an address), remembering at most `max_keys` of them.

    A full bucket that nobody waits for behaves as a fresh one, so it is forgotten when room is
    needed, and only such a bucket is. While all `max_keys` buckets owe permits, an unknown key is
    refused with an error: forgetting a debt would hand somebody a second budget, and sharing one
    would bill strangers.

    Concurrency contract: Linearizable, per key as `TokenBucket`, and first come, first served among
    those who wait for the same key. Waiting for one key never delays another.

    Args:
        rate: Permits per second and key, finite and above 0.
        capacity: The most permits of one key that one moment can see, at least 1.
        clock: As for `TokenBucket`.
        max_keys: How many keys are remembered at most, at least 1.
        wait: As for `TokenBucket`.

    Raises:
        ValueError: `rate`, `capacity` or `max_keys` makes no limiter.
    """

    def __init__(
        self,
        rate: float,
        capacity: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_keys: int = 10_000,
        wait: Wait = _wait,
    ) -> None:
        super().__init__(rate, capacity, clock, wait)
        if max_keys < 1:
            raise ValueError(f"max_keys must be at least 1, not {max_keys!r}")
        self.max_keys = max_keys
        self._budgets: dict[Hashable, _Budget] = {}
        # A heap with one entry per key: a moment before which its bucket is not full. Buckets only
        # ever get full later than they were going to, so an entry is put right when it comes to the
        # front, not before.
        self._not_before: list[tuple[int, int, Hashable]] = []
        self._serial = itertools.count()

    def __len__(self) -> int:
        """The number of keys remembered now."""
        with self._lock:
            return len(self._budgets)

    def acquire(self, key: Hashable, n: int = 1, timeout: float | None = None) -> bool:
        """As `TokenBucket.acquire`, on the budget of `key`.

        Raises:
            ValueError: `n` could never be granted, or `timeout` is no time.
            TooManyKeysError: The key is unknown, and all `max_keys` budgets owe permits.
        """
        cost, timeout = self._cost(n), _checked_timeout(timeout)
        with self._lock:
            now = self._now()
            return self._acquire(self._budget(key, now), cost, timeout, now)

    def try_acquire(self, key: Hashable, n: int = 1) -> bool:
        """As `TokenBucket.try_acquire`, on the budget of `key`.

        Raises:
            ValueError: `n` could never be granted.
            TooManyKeysError: The key is unknown, and all `max_keys` budgets owe permits.
        """
        cost = self._cost(n)
        with self._lock:
            now = self._now()
            budget = self._budget(key, now)
            return not budget.line and self._take(budget, cost, now)

    def _budget(self, key: Hashable, now: int) -> _Budget:
        # Not `get`: 3.13t takes 24 µs for that in a dict that another thread has made, and 0.2 so.
        if key not in self._budgets:
            if len(self._budgets) >= self.max_keys and not self._forget_one(now):
                soonest = self._seconds(self._not_before[0][0] - now)
                raise TooManyKeysError(
                    f"no budget for {key!r}: all {self.max_keys} known keys owe permits, "
                    f"each for another {soonest:.3g} s or more"
                )
            self._budgets[key] = _Budget()
            heapq.heappush(self._not_before, (now, next(self._serial), key))
        return self._budgets[key]

    def _forget_one(self, now: int) -> bool:
        while self._not_before[0][0] <= now:
            _, serial, key = self._not_before[0]
            budget = self._budgets[key]
            if budget.full_at <= now and not budget.line:
                heapq.heappop(self._not_before)
                del self._budgets[key]
                return True
            # A full bucket can still have a line, whose first is about to take from it.
            later = max(budget.full_at, now + 1)
            heapq.heapreplace(self._not_before, (later, serial, key))
        return False
