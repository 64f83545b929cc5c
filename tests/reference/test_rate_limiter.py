"""The token bucket and the keyed limiter, by user story: alone, in plain threads, under stress."""

import itertools
import math
import random
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_freethread import stress
from pytest_freethread.reference.rate_limiter import KeyedLimiter, TokenBucket, TooManyKeysError

PATIENCE = 30.0  # seconds until a test that hangs is called failed


class Call(threading.Thread):
    """`function(*args)` in a thread, with its outcome."""

    def __init__(self, function, *args, on_end=lambda: None, **kwargs):
        super().__init__(daemon=True)
        self._call = lambda: function(*args, **kwargs)
        self._on_end = on_end
        self._error = None
        self.ended = False
        self.start()

    def run(self):
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self.ended = True
        self._on_end()

    def result(self):
        self.join(PATIENCE)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._value


class FakeTime:
    """A clock that only the test moves, for threads that wait on it.

    Each step of the test (`call`, `move`, `look`) ends when all threads sleep again or are done.
    """

    def __init__(self, now=1000.0):
        self.now = now
        self._changed = threading.Condition()
        self._asleep = {}
        self._running = 0

    def clock(self):
        return self.now

    def wait(self, condition, _timeout):
        awake = threading.Event()
        condition.notify = lambda: self._wake(condition)
        with self._changed:
            self._asleep[condition] = awake
            self._changed.notify_all()
        condition.release()
        try:
            assert awake.wait(PATIENCE), "nobody moved the clock"
        finally:
            condition.acquire()

    def call(self, function, *args, **kwargs):
        with self._changed:
            self._running += 1
        call = Call(function, *args, on_end=self._one_ended, **kwargs)
        self._settle()
        return call

    def move(self, seconds):
        self.now += seconds
        self.look()

    def look(self):
        for condition in list(self._asleep):
            self._wake(condition)
        self._settle()

    def _wake(self, condition):
        with self._changed:
            awake = self._asleep.pop(condition, None)
        if awake is not None:  # else it is on its way already
            awake.set()

    def _one_ended(self):
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _settle(self):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._asleep) == self._running, PATIENCE)


class JumpingTime:
    """A clock for one thread alone: waiting moves it, as far as it was asked to."""

    def __init__(self, now=1000.0):
        self.now = now

    def clock(self):
        return self.now

    def wait(self, _condition, timeout):
        assert timeout is not None, "nobody is left who could wake this thread"
        assert self.now + timeout > self.now, "waiting must move the clock, or it never ends"
        self.now += timeout


def drained(rate=1.0, capacity=5, fake=None):
    fake = fake or FakeTime()
    bucket = TokenBucket(rate, capacity, fake.clock, wait=fake.wait)
    assert bucket.try_acquire(capacity)
    return bucket, fake


def most_over_the_bound(grants, rate, capacity):
    """The greatest excess over capacity + rate * t of any window of (moment, n), exactly."""
    rate, worst = Fraction(rate), -math.inf
    best_start = math.inf  # the least `issued before - rate * moment` of a window's first grant
    issued = 0
    for moment, n in grants:
        best_start = min(best_start, issued - rate * moment)
        issued += n
        worst = max(worst, issued - rate * moment - best_start - Fraction(capacity))
    return worst


# One thread, a clock of its own


def test_a_new_bucket_is_full_and_gives_no_more_than_it_holds():
    fake = FakeTime()
    bucket = TokenBucket(1, 3, fake.clock)
    assert [bucket.try_acquire() for _ in range(5)] == [True] * 3 + [False] * 2


def test_permits_come_back_at_the_rate():
    bucket, fake = drained(rate=2, capacity=4)
    fake.now += 0.5
    assert bucket.try_acquire()
    assert not bucket.try_acquire()
    fake.now += 1
    assert bucket.try_acquire(2)


def test_a_bucket_never_holds_more_than_its_capacity():
    bucket, fake = drained(rate=2, capacity=4)
    fake.now += 1e9
    assert [bucket.try_acquire() for _ in range(5)] == [True] * 4 + [False]


def test_a_refused_request_takes_nothing():
    bucket, fake = drained(rate=1, capacity=5)
    fake.now += 2
    assert not bucket.try_acquire(3)
    assert bucket.try_acquire(2)


def test_acquire_waits_exactly_as_long_as_the_permits_need():
    fake = JumpingTime()
    bucket, _ = drained(rate=4, capacity=4, fake=fake)
    assert bucket.acquire(3)
    assert fake.now == 1000.75


def test_acquire_with_a_timeout_gives_up_when_it_has_passed_and_takes_nothing():
    fake = JumpingTime()
    bucket, _ = drained(rate=1, capacity=5, fake=fake)
    assert not bucket.acquire(3, timeout=2)
    assert fake.now == 1002
    assert bucket.try_acquire(2)


def test_acquire_gets_what_comes_at_the_very_end_of_its_timeout():
    fake = JumpingTime()
    bucket, _ = drained(rate=1, capacity=5, fake=fake)
    assert bucket.acquire(2, timeout=2)


def test_a_timeout_of_zero_never_waits():
    bucket, fake = drained()
    assert not bucket.acquire(timeout=0)
    fake.now += 1
    assert bucket.acquire(timeout=0)


def test_a_wait_for_longer_than_the_machine_can_wait_is_cut_into_pieces():
    waits = []

    def wait(_condition, timeout):
        waits.append(timeout)
        raise InterruptedError

    bucket = TokenBucket(1e-300, 1, lambda: 0.0, wait=wait)
    assert bucket.acquire()
    with pytest.raises(InterruptedError):
        bucket.acquire()
    with pytest.raises(InterruptedError):
        bucket.acquire(timeout=1e308)
    assert waits == [threading.TIMEOUT_MAX] * 2


def test_a_capacity_need_not_be_whole():
    fake = FakeTime()
    bucket = TokenBucket(1, 2.5, fake.clock)
    assert [bucket.try_acquire() for _ in range(3)] == [True, True, False]
    fake.now += 0.5
    assert bucket.try_acquire()


@pytest.mark.parametrize("limiter", [TokenBucket, KeyedLimiter])
@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused_by_name(limiter, rate):
    with pytest.raises(ValueError, match=f"rate must be a positive number .*{rate}"):
        limiter(rate, 1)


@pytest.mark.parametrize("limiter", [TokenBucket, KeyedLimiter])
@pytest.mark.parametrize("capacity", [0, 0.5, -1, math.nan, math.inf])
def test_a_capacity_that_could_not_give_one_permit_is_refused_by_name(limiter, capacity):
    with pytest.raises(ValueError, match=f"capacity must be .*{capacity}"):
        limiter(1, capacity)


@pytest.mark.parametrize("n", [6, 0, -1, 1.5, 1.0, "1", None])
def test_a_request_that_could_never_be_granted_is_an_error_not_a_wait(n):
    bucket, keyed = TokenBucket(1, 5), KeyedLimiter(1, 5)
    for call in (
        bucket.acquire,
        bucket.try_acquire,
        lambda n: keyed.acquire("key", n),
        lambda n: keyed.try_acquire("key", n),
    ):
        with pytest.raises(ValueError, match=rf"n must .* from 1 to the capacity of 5, not {n!r}"):
            call(n)
    assert len(keyed) == 0


@pytest.mark.parametrize("timeout", [-1, -1e-9, math.nan, math.inf])
def test_a_timeout_that_is_no_time_is_refused_by_name(timeout):
    bucket, keyed = TokenBucket(1, 5), KeyedLimiter(1, 5)
    for call in (bucket.acquire, lambda **kwargs: keyed.acquire("key", **kwargs)):
        with pytest.raises(ValueError, match=f"timeout must be None or .*{timeout}"):
            call(timeout=timeout)
    assert len(keyed) == 0


# A clock that misbehaves


def test_a_clock_that_jumps_backwards_issues_nothing_and_goes_on_from_there():
    bucket, fake = drained(rate=1, capacity=5)
    fake.now -= 3600
    assert not bucket.try_acquire()
    fake.now += 2
    assert bucket.try_acquire(2)
    assert not bucket.try_acquire()


def test_a_thread_that_waits_while_the_clock_jumps_backwards_is_not_left_waiting():
    bucket, fake = drained(rate=1, capacity=5)
    waiter = fake.call(bucket.acquire, 2)
    fake.move(-3600)
    fake.move(2)
    assert waiter.result() is True


def test_a_timeout_also_ends_after_the_clock_has_jumped_backwards():
    bucket, fake = drained(rate=0.1, capacity=5)
    waiter = fake.call(bucket.acquire, 2, timeout=3)
    fake.move(-3600)
    fake.move(3)
    assert waiter.result() is False


def test_a_clock_that_gives_large_numbers_still_moves_while_somebody_waits():
    fake = JumpingTime(now=1.0e15)
    bucket = TokenBucket(1e6, 1, fake.clock, wait=fake.wait)
    for _ in range(10):
        assert bucket.acquire()


# What holds for every sequence of requests

finite_rates = st.one_of(
    st.integers(1, 1000), st.floats(0.001, 1000), st.sampled_from([0.1, 1 / 3, 1e-9, 1e9])
)
requests = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(-20, 20), st.sampled_from([0.1, 1 / 3, 1e-9])),
        st.integers(1, 5),
        st.one_of(st.none(), st.floats(0, 10)),
        st.booleans(),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(rate=finite_rates, capacity=st.integers(5, 12), start=st.floats(1, 1e9), plan=requests)
def test_no_window_of_any_sequence_sees_more_than_capacity_and_rate_allow(
    rate, capacity, start, plan
):
    """Exactly: readings of 4 ms and more are taken as they are, so the bound needs no epsilon."""
    fake = JumpingTime(start)
    passed, last = Fraction(0), Fraction(fake.now)

    def clock():
        nonlocal passed, last
        reading = Fraction(fake.now)
        passed += max(reading - last, 0)
        last = reading
        return fake.now

    bucket = TokenBucket(rate, capacity, clock, wait=fake.wait)
    grants = []
    for gap, n, timeout, patient in plan:
        fake.now = max(fake.now + gap, 1.0)
        if bucket.acquire(n, timeout) if patient else bucket.try_acquire(n):
            grants.append((passed, n))
        else:
            assert not patient or timeout is not None, "a call without a timeout gave up"
    assert most_over_the_bound(grants, rate, capacity) <= 0


@settings(deadline=None)
@given(
    rate=st.integers(1, 50),
    capacity=st.integers(3, 8),
    plan=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 3)), max_size=60),
)
def test_every_answer_is_the_textbook_buckets(rate, capacity, plan):
    """The textbook bucket: a level, refilled before each request, in exact fractions."""
    fake = FakeTime()
    bucket = TokenBucket(rate, capacity, fake.clock)
    level = Fraction(capacity)
    for ticks, n in plan:
        fake.now += ticks / 1024
        level = min(Fraction(capacity), level + rate * Fraction(ticks, 1024))
        granted = level >= n
        level -= n * granted
        assert bucket.try_acquire(n) == granted


def test_the_check_of_the_bound_itself_notices_one_permit_too_many():
    grants = [(Fraction(0), 5), (Fraction(1), 1), (Fraction(2), 1)]
    assert most_over_the_bound(grants, rate=1, capacity=5) == 0
    assert most_over_the_bound([*grants, (Fraction(2), 1)], rate=1, capacity=5) == 1
    assert most_over_the_bound([*grants, (Fraction(100), 6)], rate=1, capacity=5) == 1


# Several threads, a clock which the test moves


def test_those_who_wait_are_served_in_the_order_of_their_arrival():
    bucket, fake = drained(rate=1, capacity=5)
    waiters = [fake.call(bucket.acquire) for _ in range(5)]
    for served in range(1, 6):
        fake.move(1)
        assert [waiter.ended for waiter in waiters] == [True] * served + [False] * (5 - served)
    assert [waiter.result() for waiter in waiters] == [True] * 5


def test_a_large_request_in_front_is_not_overtaken_by_small_ones():
    bucket, fake = drained(rate=1, capacity=5)
    large = fake.call(bucket.acquire, 5)
    small = fake.call(bucket.acquire, 1)
    fake.move(4)
    latecomer = fake.call(bucket.acquire, 1)
    assert [large.ended, small.ended, latecomer.ended] == [False, False, False]
    assert not bucket.try_acquire()
    assert not bucket.acquire(timeout=0)
    fake.move(1)
    assert [large.ended, small.ended, latecomer.ended] == [True, False, False]
    fake.move(1)
    assert [large.ended, small.ended, latecomer.ended] == [True, True, False]
    fake.move(1)
    assert [large.result(), small.result(), latecomer.result()] == [True, True, True]


def test_a_burst_after_a_long_stop_is_no_larger_than_the_capacity():
    """Those who wait hold no claim on the past: the bound counts when permits are taken."""
    bucket, fake = drained(rate=1, capacity=2)
    waiters = [fake.call(bucket.acquire) for _ in range(5)]
    fake.move(1000)
    assert [waiter.ended for waiter in waiters] == [True, True, False, False, False]
    fake.move(1000)
    fake.move(1000)
    assert [waiter.result() for waiter in waiters] == [True] * 5


def test_a_timeout_in_front_lets_the_next_one_through_at_once():
    bucket, fake = drained(rate=1, capacity=5)
    large = fake.call(bucket.acquire, 5, timeout=3)
    small = fake.call(bucket.acquire, 3)
    fake.move(3)
    assert large.result() is False
    assert small.result() is True


def test_a_timeout_in_the_middle_of_the_line_leaves_the_order_of_the_others():
    bucket, fake = drained(rate=1, capacity=5)
    first = fake.call(bucket.acquire, 4)
    middle = fake.call(bucket.acquire, 1, timeout=2)
    last = fake.call(bucket.acquire, 1)
    fake.move(2)
    assert middle.result() is False
    fake.move(2)
    assert first.result() is True
    fake.move(1)
    assert last.result() is True


def test_an_interrupted_wait_leaves_the_line_and_wakes_the_next():
    fake = FakeTime()
    waited = []

    def wait(condition, timeout):
        waited.append(condition)
        fake.wait(condition, timeout)
        if condition is waited[0]:
            raise KeyboardInterrupt

    bucket = TokenBucket(1, 5, fake.clock, wait=wait)
    assert bucket.try_acquire(5)
    first = fake.call(bucket.acquire, 5)
    second = fake.call(bucket.acquire, 1)
    fake.now += 1
    fake.look()
    with pytest.raises(KeyboardInterrupt):
        first.result()
    assert second.result() is True


def test_a_waiting_thread_does_not_hold_the_lock():
    bucket, fake = drained(rate=1, capacity=5)
    waiter = fake.call(bucket.acquire, 1)
    assert Call(bucket.try_acquire).result() is False
    fake.move(1)
    assert waiter.result() is True


def test_threads_that_race_for_the_last_permits_get_exactly_those_that_are_there():
    fake = FakeTime()
    bucket = TokenBucket(1, 100, fake.clock)
    start = threading.Barrier(8)

    def race():
        start.wait(PATIENCE)
        return sum(bucket.try_acquire() for _ in range(50))

    racers = [Call(race) for _ in range(8)]
    assert sum(racer.result() for racer in racers) == 100


def test_the_machines_own_clock_and_waiting_keep_the_bound_for_many_threads():
    rate, capacity, threads, each = 2000, 10, 8, 40
    before = time.monotonic()
    bucket = TokenBucket(rate, capacity)
    workers = [
        Call(
            lambda sizes: [bucket.acquire(n) for n in sizes], [1 + (i + j) % 3 for j in range(each)]
        )
        for i in range(threads)
    ]
    assert all(all(worker.result()) for worker in workers)
    permits = sum(1 + (i + j) % 3 for i in range(threads) for j in range(each))
    assert permits <= capacity + rate * (time.monotonic() - before)


def test_the_machines_own_waiting_ends_with_its_timeout():
    bucket = TokenBucket(1e-6, 1)
    assert bucket.acquire(timeout=PATIENCE)
    before = time.monotonic()
    assert not bucket.acquire(timeout=0.02)
    assert time.monotonic() - before >= 0.02


# One budget per client


def test_each_key_has_a_budget_of_its_own():
    keyed = KeyedLimiter(1, 2, FakeTime().clock)
    assert [keyed.try_acquire("ann") for _ in range(3)] == [True, True, False]
    assert [keyed.try_acquire("bob") for _ in range(3)] == [True, True, False]


def test_a_key_that_waits_delays_no_other():
    fake = FakeTime()
    keyed = KeyedLimiter(1, 2, fake.clock, wait=fake.wait)
    assert keyed.try_acquire("ann", 2)
    waiter = fake.call(keyed.acquire, "ann", 2)
    assert Call(keyed.acquire, "bob", 2).result() is True
    fake.move(1)
    assert not keyed.try_acquire("ann")
    fake.move(1)
    assert waiter.result() is True


def test_acquiring_with_a_key_keeps_its_timeout():
    fake = JumpingTime()
    keyed = KeyedLimiter(1, 2, fake.clock, wait=fake.wait)
    assert keyed.acquire("ann", 2)
    assert not keyed.acquire("ann", 2, timeout=1)
    assert keyed.acquire("ann", 2, timeout=1)
    assert fake.now == 1002


def test_memory_stays_bounded_over_any_number_of_clients():
    fake = FakeTime()
    keyed = KeyedLimiter(1, 1, fake.clock, max_keys=50)
    for client in range(5000):
        assert keyed.try_acquire(client)
        assert len(keyed) <= 50
        fake.now += 1 / 32
    assert len(keyed._not_before) == len(keyed)


def test_a_full_budget_makes_room_and_a_debt_is_kept():
    fake = FakeTime()
    keyed = KeyedLimiter(1, 4, fake.clock, max_keys=2)
    assert keyed.try_acquire("small", 1)
    assert keyed.try_acquire("large", 4)
    fake.now += 1
    assert keyed.try_acquire("new", 4)
    assert len(keyed) == 2
    assert [keyed.try_acquire("large") for _ in range(2)] == [True, False]


def test_when_all_keys_owe_permits_a_new_one_is_refused_by_name_and_says_until_when():
    fake = FakeTime()
    keyed = KeyedLimiter(2, 4, fake.clock, max_keys=2)
    assert keyed.try_acquire("ann", 4)
    fake.now += 0.5
    assert keyed.try_acquire("bob", 4)
    for call in (keyed.try_acquire, keyed.acquire):
        with pytest.raises(TooManyKeysError, match=r"'cyd': all 2 known .* another 1.5 s or more"):
            call("cyd")
    fake.now += 1.5
    assert keyed.try_acquire("cyd")


def test_a_key_that_is_known_is_served_while_no_new_one_could_be():
    fake = FakeTime()
    keyed = KeyedLimiter(1, 4, fake.clock, max_keys=1)
    assert [keyed.try_acquire("ann", 3), keyed.try_acquire("ann", 3)] == [True, False]
    assert keyed.try_acquire("ann", 1)


def test_a_budget_that_somebody_waits_for_is_not_forgotten_though_it_has_filled_up():
    fake = FakeTime()
    keyed = KeyedLimiter(1, 2, fake.clock, max_keys=1, wait=fake.wait)
    assert keyed.try_acquire("ann", 2)
    waiter = fake.call(keyed.acquire, "ann", 2)
    fake.now += 2  # enough, but the thread has not looked yet
    with pytest.raises(TooManyKeysError):
        keyed.try_acquire("bob")
    fake.look()
    assert waiter.result() is True
    assert not keyed.try_acquire("ann")


@pytest.mark.parametrize("max_keys", [0, -5])
def test_a_limiter_for_no_keys_is_refused_by_name(max_keys):
    with pytest.raises(ValueError, match=f"max_keys must be at least 1, not {max_keys}"):
        KeyedLimiter(1, 1, max_keys=max_keys)


@settings(deadline=None)
@given(
    plan=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(1, 4)), max_size=60),
    max_keys=st.integers(1, 4),
)
def test_forgetting_keys_never_changes_an_answer(plan, max_keys):
    """Against a limiter that remembers every key: same answers, or a refusal for a true reason."""
    fake = FakeTime()
    keyed = KeyedLimiter(1, 4, fake.clock, max_keys=max_keys)
    remembered = {key: TokenBucket(1, 4, fake.clock) for key in range(7)}
    full_at = dict.fromkeys(remembered, 0.0)
    for seconds, key, n in plan:
        fake.now += seconds
        in_debt = {key for key, moment in full_at.items() if moment > fake.now}
        try:
            granted = keyed.try_acquire(key, n)
        except TooManyKeysError:
            assert len(in_debt) == max_keys
            assert key not in in_debt
            continue
        assert granted == remembered[key].try_acquire(n)
        full_at[key] = max(full_at[key], fake.now) + n * granted
        assert len(keyed) <= max_keys


def test_threads_that_race_for_the_same_keys_get_exactly_each_keys_budget():
    fake = FakeTime()
    keyed = KeyedLimiter(1, 10, fake.clock, max_keys=20)
    start = threading.Barrier(8)

    def race(seed):
        chance = random.Random(seed)
        start.wait(PATIENCE)
        keys = [chance.randrange(20) for _ in range(400)]
        return [key for key in keys if keyed.try_acquire(key)]

    racers = [Call(race, seed) for seed in range(8)]
    granted = list(itertools.chain.from_iterable(racer.result() for racer in racers))
    assert {key: granted.count(key) for key in range(20)} == dict.fromkeys(range(20), 10)


# Under stress, through the project's own tools


def test_stress_last_permits_are_never_given_twice():
    def setup():
        fake = FakeTime()
        return TokenBucket(1, 5, fake.clock), []

    def body(state):
        bucket, granted = state
        for _ in range(3):
            if bucket.try_acquire():
                granted.append(1)

    stress(
        body, setup=setup, invariant=lambda state: len(state[1]) == 5, threads=4, rounds=200
    ).raise_for_verdict()


def test_stress_waiting_threads_all_get_served_and_keep_the_bound():
    class State:
        def __init__(self):
            self.start = time.monotonic()
            self.bucket = TokenBucket(4000, 3)
            self.served = []

    def body(state):
        for n in (1, 3, 2):
            assert state.bucket.acquire(n)
            state.served.append(n)

    def bound(state):
        passed = time.monotonic() - state.start
        return len(state.served) == 12 and sum(state.served) <= 3 + 4000 * passed

    stress(body, setup=State, invariant=bound, threads=4, rounds=40).raise_for_verdict()


def test_stress_timeouts_leave_the_line_in_order():
    def setup():
        return TokenBucket(2000, 2)

    def impatient(bucket):
        for _ in range(3):
            bucket.acquire(2, timeout=0.0002)

    def patient(bucket):
        for _ in range(3):
            assert bucket.acquire(1)

    stress(
        impatient,
        patient,
        patient,
        impatient,
        setup=setup,
        invariant=lambda bucket: not bucket._budget.line,
        rounds=60,
    ).raise_for_verdict()


def test_stress_keyed_budgets_survive_the_forgetting_of_others():
    class State:
        def __init__(self):
            self.fake = FakeTime()
            self.keyed = KeyedLimiter(1, 2, self.fake.clock, max_keys=3)
            self.granted = []

    def body(state):
        for key in ("a", "b", "c", "d", "a", "b"):
            try:
                if state.keyed.try_acquire(key):
                    state.granted.append(key)
            except TooManyKeysError:
                assert key == "d"

    def exact(state):
        counts = {key: state.granted.count(key) for key in "abc"}
        return len(state.keyed) == 3 and counts == {"a": 2, "b": 2, "c": 2}

    stress(body, setup=State, invariant=exact, threads=4, rounds=100).raise_for_verdict()


@pytest.fixture
def shared_bucket():
    bucket = TokenBucket(1, 8, FakeTime().clock)
    bucket.granted = []
    yield bucket
    assert len(bucket.granted) <= 8


@pytest.mark.freethread(threads=4, rounds=50, shared=["shared_bucket"])
def test_stress_a_bucket_shared_by_a_rerun_test_gives_what_it_holds(shared_bucket):
    for _ in range(3):
        if shared_bucket.try_acquire():
            shared_bucket.granted.append(1)
