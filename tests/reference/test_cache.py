import copy
import doctest
import gc
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections import OrderedDict
from contextlib import closing, suppress
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytest_freethread
from pytest_freethread import stress
from pytest_freethread.reference import cache as module
from pytest_freethread.reference.cache import (
    Cache,
    CacheClosedError,
    CacheError,
    CacheFileError,
    CacheStats,
    CacheValueError,
    RecursiveComputationError,
)

PATIENCE = 30.0  # seconds after which a test gives up on a thread or process; none takes that long


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Call(threading.Thread):
    """A call in a thread of its own; `result` joins it and returns or raises what the call did."""

    def __init__(self, fn, *args):
        super().__init__(daemon=True)
        self.fn, self.args = fn, args
        self.value = self.error = None
        self.start()

    def run(self):
        try:
            self.value = self.fn(*self.args)
        except BaseException as error:
            self.error = error

    def result(self):
        self.join(PATIENCE)
        assert not self.is_alive(), "the call hangs"
        if self.error is not None:
            raise self.error
        return self.value


def at_once(count, body):
    """Run ``body(0) … body(count - 1)`` in threads released together; return what they returned."""
    start = threading.Barrier(count)

    def run(number):
        start.wait(PATIENCE)
        return body(number)

    calls = [Call(run, number) for number in range(count)]
    return [call.result() for call in calls]


class Waiting(dict):
    """The front's table of waiting threads, which tells the test when one is in it.

    The front's lock is held from then on until the thread sleeps, so whoever gets the lock
    next finds it asleep.
    """

    def __init__(self):
        super().__init__()
        self.arrivals = threading.Semaphore(0)

    def __setitem__(self, thread, flight):
        super().__setitem__(thread, flight)
        self.arrivals.release()

    def expect(self, count):
        for _ in range(count):
            assert self.arrivals.acquire(timeout=PATIENCE), "nobody waits for the computation"


def waiting_threads(cache):
    cache._front._waiting = Waiting()
    return cache._front._waiting


class Computation:
    """A computation that tells when it runs, and ends when it is let go."""

    def __init__(self, value=None, error=None):
        self.value, self.error = value, error
        self.running = threading.Event()
        self.let_go = threading.Event()
        self.runs = 0

    def __call__(self):
        self.runs += 1
        self.running.set()
        assert self.let_go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.value

    def started_by(self, cache, key):
        call = Call(cache.get_or_compute, key, self)
        assert self.running.wait(PATIENCE)
        return call


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.db"


@pytest.fixture(params=["memory", "file", "file behind a front of one"])
def cache(request, path):
    """A cache of each kind; the last one reads nearly every value from the file."""
    options = {
        "memory": {},
        "file": {"path": path},
        "file behind a front of one": {"path": path, "front_entries": 1},
    }[request.param]
    with Cache(max_entries=100, **options) as cache:
        yield cache


def rows(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT key FROM entry ORDER BY sequence").fetchall()


# Getting, setting, deleting


def test_what_was_set_is_returned_until_it_is_deleted(cache):
    assert cache.get("a") is None
    cache.set("a", {"list": [1, 2.5, "three", None, True]})
    cache.set("b", 2)
    assert cache.get("a") == {"list": [1, 2.5, "three", None, True]}
    cache.set("a", "new")
    assert cache.get("a") == "new"
    assert cache.delete("a") is True
    assert cache.delete("a") is False
    assert cache.get("a") is None
    assert cache.get("b") == 2


def test_a_cached_none_is_told_from_a_missing_key_by_the_default(cache):
    absent = object()
    assert cache.get("a", absent) is absent
    cache.set("a", None)
    assert cache.get("a", absent) is None


def test_every_reader_has_a_value_of_its_own(cache):
    value = [1]
    cache.set("a", value)
    value.append("changed after set")
    cache.get("a").append("changed by a reader")
    assert cache.get("a") == [1]
    computed = cache.get_or_compute("b", lambda: [1])
    computed.append("changed by who computed it")
    assert cache.get("b") == [1]


def test_unusual_keys_are_keys_like_any_other(path):
    keys = ["", " ", "a\x00b", "a\x00c", "ключ 🗝", "x" * 10_000, "'; DROP TABLE entry; --"]
    with Cache(path, front_entries=1) as cache:
        for number, key in enumerate(keys):
            cache.set(key, number)
        assert [cache.get(key) for key in keys] == list(range(len(keys)))
    with Cache(path) as cache:
        assert [cache.get(key) for key in keys] == list(range(len(keys)))


class Colour(StrEnum):
    RED = "red"


def test_a_string_of_another_class_is_the_same_key(cache):
    cache.set(Colour.RED, 1)
    assert cache.get("red") == 1
    assert {type(key) for key in cache._front._index} == {str}


@pytest.mark.parametrize("key", [1, None, b"bytes", ("a",)])
def test_a_key_that_is_no_string_is_refused_by_name(cache, key):
    for use in (
        lambda: cache.get(key),
        lambda: cache.set(key, 1),
        lambda: cache.delete(key),
        lambda: cache.get_or_compute(key, lambda: 1),
    ):
        with pytest.raises(TypeError) as refusal:
            use()
        assert str(refusal.value) == f"a key must be a string, not {key!r}"
    assert cache.stats().entries == 0


def test_a_key_that_no_file_can_hold_is_refused(cache):
    with pytest.raises(UnicodeEncodeError):
        cache.set("\ud800", 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_entries": 0}, ValueError, "max_entries must be at least 1, not 0"),
        ({"max_entries": -3}, ValueError, "max_entries must be at least 1, not -3"),
        ({"max_entries": "9"}, TypeError, "max_entries must be a whole number, not '9'"),
        ({"max_entries": True}, TypeError, "max_entries must be a whole number, not True"),
        ({"ttl": 0}, ValueError, "ttl must be a positive number of seconds or None, not 0"),
        ({"ttl": -1}, ValueError, "ttl must be a positive number of seconds or None, not -1"),
        ({"ttl": "1"}, ValueError, "ttl must be a positive number of seconds or None, not '1'"),
        (
            {"ttl": math.nan},
            ValueError,
            "ttl must be a positive number of seconds or None, not nan",
        ),
        ({"serializer": "yaml"}, ValueError, "serializer must be 'json' or 'pickle', not 'yaml'"),
        ({"front_entries": 5}, ValueError, "front_entries=5 has no meaning without a path"),
        ({"front_entries": 0}, ValueError, "front_entries must be at least 1, not 0"),
        (
            {"path": ":memory:"},
            ValueError,
            "path must name a file, not ':memory:'; leave it out for memory alone",
        ),
    ],
)
def test_an_argument_out_of_its_domain_is_refused_with_its_value(arguments, error, message):
    with pytest.raises(error) as refusal:
        Cache(**arguments)
    assert str(refusal.value) == message


# Serializers


def test_json_refuses_what_it_cannot_hold_and_changes_nothing(cache):
    cache.set("a", 1)
    circular = []
    circular.append(circular)
    for value in ({1, 2}, b"bytes", object(), circular):
        with pytest.raises(CacheValueError, match=r"'a', of type \w+, cannot be stored as json"):
            cache.set("a", value)
    assert cache.get("a") == 1


def test_pickle_holds_what_json_cannot(path):
    values = {
        "set": {1, 2},
        "tuple": (1, (2,)),
        "bytes": b"\x00",
        "keys": {1: 2},
        "colour": Colour.RED,
    }
    with Cache(path, serializer="pickle", front_entries=1) as cache:
        for key, value in values.items():
            cache.set(key, value)
        assert {key: cache.get(key) for key in values} == values


def test_who_computes_a_value_gets_what_every_later_reader_gets(cache):
    assert cache.get_or_compute("a", lambda: {1: (2,)}) == {"1": [2]} == cache.get("a")


def test_a_value_whose_class_is_gone_is_an_error_that_names_the_key(monkeypatch):
    class Fleeting:
        pass

    Fleeting.__qualname__ = "Fleeting"
    monkeypatch.setattr(sys.modules[__name__], "Fleeting", Fleeting, raising=False)
    with Cache(serializer="pickle") as cache:
        cache.set("a", Fleeting())
        monkeypatch.delattr(sys.modules[__name__], "Fleeting")
        with pytest.raises(CacheValueError, match="'a' cannot be read as pickle"):
            cache.get("a")


# Which entries are kept


def test_the_least_recently_used_entry_makes_room(cache):
    for number in range(100):
        cache.set(f"k{number}", number)
    cache.get("k0")
    cache.set("k1", "set again")
    cache.get_or_compute("k2", lambda: "not computed")
    for number in range(4):
        cache.set(f"new{number}", number)
    kept = {f"k{number}" for number in range(100) if cache.get(f"k{number}") is not None}
    assert kept == {"k0", "k1", "k2"} | {f"k{number}" for number in range(7, 100)}
    assert cache.stats().entries == 100
    assert cache.stats().evictions == 4


def test_a_hit_takes_no_lock_and_counts_for_the_order_all_the_same():
    with Cache(max_entries=2) as cache:
        cache.set("a", 1)
        cache.set("b", 2)
        with cache._front._lock:
            assert cache.get("a") == 1
        cache.set("c", 3)
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
        assert cache.stats().hits == 3


def test_what_was_used_is_worked_off_before_it_piles_up():
    with Cache() as cache:
        cache.set("a", 1)
        for _ in range(1_000):
            cache.get("a")
            assert len(cache._front._uses) < module._MANY_USES
        assert cache.stats().hits == 1_000


def test_hits_go_on_while_another_thread_has_the_lock_for_long():
    with Cache() as cache:
        cache.set("a", 1)
        with cache._front._lock:
            hits = [cache.get("a") for _ in range(2 * module._MANY_USES)]
        assert cache.stats().hits == len(hits)


def test_a_value_that_was_read_before_the_close_is_not_to_be_had_after_it():
    cache = Cache()
    cache.set("a", 1)
    assert cache.get("a") == 1
    cache.close()
    with pytest.raises(CacheClosedError):
        cache.get("a")


def test_a_cache_of_one_entry_works():
    with Cache(max_entries=1) as cache:
        for number in range(3):
            cache.set(f"k{number}", number)
            assert cache.get(f"k{number}") == number
        assert cache.stats().entries == 1
        assert cache.stats().evictions == 2


def test_an_entry_lives_until_its_time_is_over(path):
    clock = Clock()
    with Cache(path, ttl=10.0, clock=clock) as cache:
        cache.set("a", 1)
        clock.now += 9.999
        assert cache.get("a") == 1
        cache.set("a", 2)
        clock.now += 9.999
        assert cache.get("a") == 2
        clock.now += 0.001
        assert cache.get("a") is None
        assert cache.delete("a") is False
        assert cache.get_or_compute("a", lambda: 3) == 3
        assert cache.get_or_compute("a", lambda: 4) == 3


def test_time_goes_on_while_the_file_is_closed(path):
    clock = Clock()
    with Cache(path, ttl=10.0, clock=clock) as cache:
        cache.set("early", 1)
        clock.now += 5
        cache.set("late", 2)
    clock.now += 5
    with Cache(path, clock=clock) as cache:
        assert cache.get("early") is None
        assert cache.get("late") == 2
        clock.now += 5
        assert cache.get("late") is None


def test_an_expired_entry_that_was_asked_for_makes_room_first():
    clock = Clock()
    with Cache(max_entries=3, ttl=10.0, clock=clock) as cache:
        cache.set("dead", 1)
        clock.now += 5
        cache.set("idle", 2)
        cache.set("used", 3)
        cache.get("dead")  # the most recently used one now
        clock.now += 5
        assert cache.get("dead") is None
        cache.set("new", 4)
        assert [cache.get(key) for key in ("idle", "used", "new")] == [2, 3, 4]


class Model:
    """A cache as one would write it for one thread."""

    def __init__(self, max_entries, ttl):
        self.entries, self.max_entries, self.ttl, self.now = OrderedDict(), max_entries, ttl, 0.0

    def get(self, key):
        value, expires = self.entries.get(key, (None, math.inf))
        if key in self.entries:
            self.entries.move_to_end(key, last=self.now < expires)
        return value if self.now < expires else None

    def set(self, key, value):
        if key not in self.entries and len(self.entries) == self.max_entries:
            self.entries.popitem(last=False)
        self.entries[key] = (value, self.now + self.ttl)
        self.entries.move_to_end(key)

    def delete(self, key):
        _, expires = self.entries.pop(key, (None, -math.inf))
        return self.now < expires


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "set", "set", "delete", "pass time", "reopen"]),
        st.sampled_from("abcde"),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, on_file=st.booleans())
def test_used_by_one_thread_it_is_what_the_simple_model_is(steps, on_file):
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        options = {"path": Path(folder, "c.db"), "front_entries": 2} if on_file else {}
        options |= {"max_entries": 3, "ttl": 2.0, "clock": clock}
        cache, model = Cache(**options), Model(3, 2.0)
        model.now = clock.now
        try:
            for number, (step, key) in enumerate(steps):
                if step == "get":
                    assert cache.get(key) == model.get(key)
                elif step == "set":
                    cache.set(key, number)
                    model.set(key, number)
                elif step == "delete":
                    assert cache.delete(key) == model.delete(key)
                elif step == "pass time":
                    clock.now = model.now = clock.now + 0.5
                elif on_file:
                    cache.close()
                    cache = Cache(**options)
                    # Recency is not in the file: it starts from the order of the sets.
                    written = sorted(model.entries, key=lambda key: model.entries[key][0])
                    for old in written:
                        model.entries.move_to_end(old)
                assert cache.stats().entries == len(model.entries)
                if on_file:
                    assert {key for (key,) in rows(options["path"])} == set(model.entries)
                    assert len(cache._front._resident) <= 2
        finally:
            cache.close()


# Computing


def test_a_value_is_computed_once_and_then_cached(cache):
    calls = []
    for _ in range(3):
        assert cache.get_or_compute("a", lambda: calls.append(1) or len(calls)) == 1
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.computations) == (2, 1, 1)


def test_many_threads_that_need_one_value_share_one_computation(cache):
    waiting = waiting_threads(cache)
    compute = Computation(["shared"])
    calls = [compute.started_by(cache, "a")]
    calls += [Call(cache.get_or_compute, "a", compute) for _ in range(7)]
    waiting.expect(7)
    compute.let_go.set()
    results = [call.result() for call in calls]
    assert results == [["shared"]] * 8
    assert len({id(result) for result in results}) == 8
    assert compute.runs == 1
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.computations) == (0, 8, 1)


def test_computations_of_different_keys_run_at_the_same_time(cache):
    both = threading.Barrier(2)

    def compute():
        both.wait(PATIENCE)
        return "met"

    assert at_once(2, lambda n: cache.get_or_compute(f"k{n}", compute)) == ["met", "met"]


def test_the_cache_serves_others_while_it_computes(cache):
    compute = Computation("slow")
    call = compute.started_by(cache, "a")
    cache.set("b", 1)
    assert cache.get("a") is None
    assert cache.get("b") == 1
    assert cache.get_or_compute("c", lambda: 2) == 2
    assert cache.delete("b")
    compute.let_go.set()
    assert call.result() == "slow"


class RefusedError(Exception):
    """An exception whose arguments are not those of its __init__."""

    def __init__(self, status, body):
        super().__init__(f"refused with {status}")
        self.status, self.body = status, body


class CodeError(Exception):
    """An exception whose arguments its __init__ takes, and takes for something else."""

    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


def with_notes():
    error = KeyError("a")
    error.add_note("seen near b")
    error.extra = [1]
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 7),
        RefusedError(404, "nothing here"),
        CodeError(5),
        FileNotFoundError(2, "No such file", "missing.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        with_notes(),
        ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
        StopIteration("value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_computation_fails_all_who_wait_and_is_not_cached(cache, error):
    waiting = waiting_threads(cache)
    compute = Computation(error=error)
    calls = [compute.started_by(cache, "a")]
    calls += [Call(cache.get_or_compute, "a", compute) for _ in range(3)]
    waiting.expect(3)
    compute.let_go.set()
    for call in calls:
        call.join(PATIENCE)
    raised = [call.error for call in calls]
    assert raised[0] is error
    assert len({id(one) for one in raised}) == 4, "threads share an exception object"
    for one in raised[1:]:
        assert type(one) is type(error)
        assert str(one) == str(error)
        assert one.args == error.args
        assert vars(one) == vars(error)
        assert one.__cause__ is error
        functions = [frame.name for frame in traceback.extract_tb(one.__traceback__)]
        assert functions == ["run", "get_or_compute", "outcome"]
    assert compute.runs == 1
    assert cache.get("a") is None
    assert cache.get_or_compute("a", lambda: "now it works") == "now it works"


def test_a_failed_computation_keeps_nothing_alive(cache):
    class Resource:
        pass

    seen = []

    def fail():
        resource = Resource()
        seen.append(weakref.ref(resource))
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError):
            cache.get_or_compute("a", fail)
        assert seen[0]() is None
    finally:
        gc.enable()


def test_an_interrupt_stops_the_thread_it_hits_and_another_one_computes(cache):
    waiting = waiting_threads(cache)
    interrupted = Computation(error=KeyboardInterrupt())
    first = interrupted.started_by(cache, "a")
    others = [Call(cache.get_or_compute, "a", lambda: "computed") for _ in range(3)]
    waiting.expect(3)
    interrupted.let_go.set()
    with pytest.raises(KeyboardInterrupt):
        first.result()
    assert [call.result() for call in others] == ["computed"] * 3
    assert cache.stats().computations == 2


def test_a_value_that_cannot_be_stored_fails_all_who_wait(cache):
    waiting = waiting_threads(cache)
    compute = Computation({1, 2})
    calls = [compute.started_by(cache, "a"), Call(cache.get_or_compute, "a", compute)]
    waiting.expect(1)
    compute.let_go.set()
    for call in calls:
        with pytest.raises(CacheValueError, match="cannot be stored as json"):
            call.result()
    assert cache.stats().entries == 0


def test_a_computation_that_needs_itself_is_an_error_not_a_deadlock(cache):
    def compute():
        return cache.get_or_compute("a", compute)

    with pytest.raises(RecursiveComputationError) as refusal:
        Call(cache.get_or_compute, "a", compute).result()
    assert str(refusal.value) == ("the computation of 'a' needs its own result: 'a' waits for 'a'")
    assert cache.get_or_compute("a", lambda: 1) == 1


def test_a_computation_may_use_the_cache(cache):
    def compute():
        cache.set("side effect", 1)
        return [cache.get("side effect"), cache.get_or_compute("inner", lambda: 2)]

    assert cache.get_or_compute("outer", compute) == [1, 2]


def test_computations_that_need_each_other_are_an_error_not_a_deadlock(cache):
    all_running = threading.Barrier(3)

    def compute(number):
        all_running.wait(PATIENCE)
        return cache.get_or_compute(f"k{(number + 1) % 3}", lambda: "never computed")

    calls = [
        Call(cache.get_or_compute, f"k{number}", lambda number=number: compute(number))
        for number in range(3)
    ]
    for call in calls:
        with pytest.raises(RecursiveComputationError, match="needs its own result: 'k"):
            call.result()
    assert cache.get_or_compute("k0", lambda: 1) == 1


def test_waiting_for_who_does_not_wait_for_me_is_no_circle(cache):
    """The owner of `a` waits for `b`, whose owner goes on with `c`: nobody waits for himself."""
    waiting = waiting_threads(cache)
    b = Computation("b")

    def computes_b_then_c():
        return [cache.get_or_compute("b", b), cache.get_or_compute("c", lambda: "c")]

    owner_of_b = Call(computes_b_then_c)
    assert b.running.wait(PATIENCE)
    owner_of_a = Call(cache.get_or_compute, "a", lambda: cache.get_or_compute("b", b))
    waiting.expect(1)
    b.let_go.set()
    assert owner_of_b.result() == ["b", "c"]
    assert owner_of_a.result() == "b"


def test_a_flight_that_has_landed_is_no_part_of_a_circle():
    """Its waiters may not have woken up when their former computer comes to wait for them."""
    front = module._Front(max_entries=10, resident=10)
    landed = front.join("a", 0.0)
    front.land(landed, data=b"1")
    other = module._Flight(key="b", owner=-1, settled=threading.Condition(front._lock))
    front._waiting[-1] = landed
    with front._lock:
        front._refuse_cycle(threading.get_ident(), other)


def test_a_set_during_a_computation_wins(cache):
    compute = Computation("computed")
    call = compute.started_by(cache, "a")
    cache.set("a", "set")
    compute.let_go.set()
    assert call.result() == "computed"
    assert cache.get("a") == "set"


def test_a_result_computed_from_before_a_delete_is_not_stored(cache):
    compute = Computation("stale")
    call = compute.started_by(cache, "a")
    cache.delete("a")
    compute.let_go.set()
    assert call.result() == "stale"
    assert cache.get("a") is None


def test_who_asks_after_a_delete_gets_a_value_computed_after_it(cache):
    waiting = waiting_threads(cache)
    stale = Computation("stale")
    before = [stale.started_by(cache, "a"), Call(cache.get_or_compute, "a", stale)]
    waiting.expect(1)
    cache.delete("a")
    fresh = Computation("fresh")
    after = [Call(cache.get_or_compute, "a", fresh) for _ in range(2)]
    waiting.expect(2)
    assert not fresh.running.is_set(), "two computations of one key at a time"
    stale.let_go.set()
    fresh.let_go.set()
    assert [call.result() for call in before] == ["stale", "stale"]
    assert [call.result() for call in after] == ["fresh", "fresh"]
    assert (stale.runs, fresh.runs) == (1, 1)
    assert cache.get("a") == "fresh"
    stats = cache.stats()
    assert stats.hits + stats.misses == 5


def test_a_computation_that_sets_its_own_key_is_overruled_by_itself(cache):
    def compute():
        cache.set("a", "explicit")
        return "returned"

    assert cache.get_or_compute("a", compute) == "returned"
    assert cache.get("a") == "explicit"


# Closing


def test_a_closed_cache_refuses_use_and_says_so(cache):
    cache.set("a", 1)
    cache.close()
    for use in (
        lambda: cache.get("a"),
        lambda: cache.set("a", 2),
        lambda: cache.delete("a"),
        lambda: cache.get_or_compute("a", lambda: 2),
    ):
        with pytest.raises(CacheClosedError, match=r"^the cache is closed$"):
            use()
    assert cache.stats().entries == 1


def test_closing_again_is_harmless_from_many_threads(cache):
    cache.set("a", 1)
    at_once(4, lambda _: cache.close())
    cache.close()


def test_closing_releases_who_waits_for_a_computation(cache):
    waiting = waiting_threads(cache)
    compute = Computation("late")
    owner = compute.started_by(cache, "a")
    waiter = Call(cache.get_or_compute, "a", compute)
    waiting.expect(1)
    cache.close()
    with pytest.raises(CacheClosedError):
        waiter.result()
    compute.let_go.set()
    with pytest.raises(CacheClosedError):
        owner.result()


def test_a_computation_may_close_the_cache(cache):
    with pytest.raises(CacheClosedError):
        Call(cache.get_or_compute, "a", cache.close).result()


def test_what_was_accepted_before_the_close_is_written(path):
    cache = Cache(path)
    committing, go_on = hold_commits(cache)
    calls = [Call(cache.set, "a", 1)]
    assert committing.wait(PATIENCE)
    calls += [Call(cache.set, f"b{number}", number) for number in range(5)]
    wait_for_queue(cache, 5)
    close = Call(cache.close)
    go_on.set()
    for call in [*calls, close]:
        call.result()
    assert len(rows(path)) == 6


def hold_commits(cache):
    """Stop the writer before its next commit; return the events «it is there» and «go on»."""
    committing, go_on = threading.Event(), threading.Event()
    commit = cache._store.commit

    def held(plan):
        committing.set()
        assert go_on.wait(PATIENCE)
        commit(plan)

    cache._store.commit = held
    return committing, go_on


def wait_for_queue(cache, count):
    """Return when so many writes are queued."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if cache._writer._queue.qsize() >= count:
            return
        pause.wait(0.001)
    raise AssertionError(f"{cache._writer._queue.qsize()} of {count} writes are queued")


def test_a_closed_file_is_one_file(path, tmp_path):
    with Cache(path) as cache:
        cache.set("a", 1)
    assert {file.name for file in tmp_path.iterdir()} == {"cache.db", "cache.db-owner"}


def test_closing_closes_every_connection_and_ends_the_writer(path, monkeypatch):
    opened = []
    connect = module._connect

    def note(*args):
        connection = connect(*args)  # not `opened[-1]`: that may be another thread's
        opened.append(connection)
        return connection

    monkeypatch.setattr(module, "_connect", note)
    cache = Cache(path, front_entries=1)
    for number in range(50):
        cache.set(f"k{number}", number)
    at_once(12, lambda _: [cache.get(f"k{number}") for number in range(50)])
    assert 3 <= len(opened) <= 2 + 4, "not a bounded pool"
    cache.close()
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
    assert not cache._writer._thread.is_alive()


def test_readers_beyond_the_pool_wait_for_a_connection_and_learn_of_the_close(path):
    cache = Cache(path, front_entries=1)
    cache.set("a", 1)
    cache.set("b", 2)
    readers = cache._store._readers
    leases = [readers.lease() for _ in range(4)]
    for lease in leases:
        lease.__enter__()
    assert readers._idle.empty()
    reads = [Call(cache.get, "a") for _ in range(3)]
    close = Call(cache.close)
    for lease in leases:
        lease.__exit__(None, None, None)
    close.result()
    for read in reads:
        with suppress(CacheClosedError):
            assert read.result() == 1
    for _ in range(5):
        with pytest.raises(CacheClosedError):
            readers.lease().__enter__()


def test_a_cache_that_nobody_closed_warns_and_frees_its_file(path):
    cache = Cache(path)
    cache.set("a", 1)
    writer = cache._writer
    with pytest.warns(ResourceWarning, match=r"unclosed cache .*cache.db"):
        del cache
        gc.collect()
    writer._thread.join(PATIENCE)
    with Cache(path) as again:
        assert again.get("a") == 1


# The file


def test_everything_is_there_when_the_file_is_opened_again(path):
    with Cache(path) as cache:
        for number in range(50):
            cache.set(f"k{number}", number)
        cache.delete("k7")
    with Cache(path) as cache:
        assert cache.get("k7", "gone") == "gone"
        assert [cache.get(f"k{n}") for n in range(50) if n != 7] == [n for n in range(50) if n != 7]
        stats = cache.stats()
        assert (stats.entries, stats.hits, stats.file_reads, stats.misses) == (49, 49, 49, 1)
        assert cache.get("k0") == 0
        assert cache.stats().file_reads == 49


def test_memory_holds_no_more_values_than_asked_for(path):
    with Cache(path, front_entries=2) as cache:
        for number in range(10):
            cache.set(f"k{number}", number)
        for number in [*range(10), 9, 8, 9, 8]:
            assert cache.get(f"k{number}") == number
            with_data = [
                key for key, entry in cache._front._index.items() if entry.data is not None
            ]
            assert set(with_data) == set(cache._front._resident)
            assert len(with_data) == 2
        stats = cache.stats()
        assert (stats.hits, stats.file_reads) == (14, 10)


def test_a_file_with_too_many_entries_keeps_the_youngest(path):
    with Cache(path) as cache:
        for number in range(10):
            cache.set(f"k{number}", number)
        cache.set("k0", "set again")
    with Cache(path, max_entries=3) as cache:
        assert rows(path) == [("k8",), ("k9",), ("k0",)]
        assert [cache.get(key) for key in ("k7", "k8", "k9", "k0")] == [None, 8, 9, "set again"]


def test_an_empty_file_becomes_a_cache(path):
    path.touch()
    with Cache(path) as cache:
        cache.set("a", 1)
    with Cache(str(path)) as cache:
        assert cache.get("a") == 1


def other_database(path, *statements):
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


FOREIGN = {
    "a text": (
        lambda path: path.write_text("Dear diary, " * 50),
        "is not a SQLite database",
    ),
    "a short text": (lambda path: path.write_text("x"), "is not a SQLite database"),
    "a cut header": (
        lambda path: path.write_bytes(b"SQLite format 3\x00" + b"\x00" * 20),
        "is not a SQLite database",
    ),
    "another program's database": (
        lambda path: other_database(path, "CREATE TABLE diary (text)"),
        "is a SQLite database of another program",
    ),
    "another program's database in WAL mode": (
        lambda path: other_database(path, "PRAGMA journal_mode = WAL", "CREATE TABLE entry (key)"),
        "is a SQLite database of another program",
    ),
    "a newer format": (
        lambda path: other_database(
            path,
            f"PRAGMA application_id = {module._APPLICATION_ID}",
            "PRAGMA user_version = 2",
            "CREATE TABLE entry (something_else)",
        ),
        "is a cache of format 2, this program knows format 1",
    ),
    "our mark on other tables": (
        lambda path: other_database(
            path,
            f"PRAGMA application_id = {module._APPLICATION_ID}",
            "PRAGMA user_version = 1",
            "CREATE TABLE diary (text)",
        ),
        "cannot be opened: no such table: settings",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_and_left_as_it_is(path, kind):
    make, message = FOREIGN[kind]
    make(path)
    before = path.read_bytes()
    with pytest.raises(CacheFileError) as refusal:
        Cache(path)
    assert str(refusal.value).startswith(f"{path} {message}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_damaged_file_is_refused_and_left_as_it_is(path, where):
    with Cache(path) as cache:
        for number in range(500):
            cache.set(f"k{number}", "x" * 200)
    sound = path.read_bytes()
    page = int(len(sound) * where) // 4096 * 4096
    damaged = sound[:page] + b"\xa5" * 4096 + sound[page + 4096 :]
    path.write_bytes(damaged)
    with pytest.raises(CacheFileError, match=r"corrupt|malformed"):
        Cache(path)
    assert path.read_bytes() == damaged
    path.write_bytes(sound)
    with Cache(path) as cache:
        assert cache.get("k499") == "x" * 200


def test_a_file_that_was_cut_off_is_refused(path):
    with Cache(path) as cache:
        for number in range(500):
            cache.set(f"k{number}", "x" * 200)
    cut = path.read_bytes()[:40_000]
    path.write_bytes(cut)
    with pytest.raises(CacheFileError, match=r"corrupt|malformed"):
        Cache(path)
    assert path.read_bytes() == cut


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    with pytest.raises(CacheFileError, match=r"missing.*cannot be opened"):
        Cache(tmp_path / "missing" / "cache.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CacheFileError, match="folder cannot be opened"):
        Cache(tmp_path / "folder")


def test_an_owner_file_that_is_somebody_elses_is_refused_and_left_as_it_is(path, tmp_path):
    owner = tmp_path / "cache.db-owner"
    owner.write_text("mine! " * 100)
    with pytest.raises(CacheFileError, match=r"cache.db-owner: file is not a database"):
        Cache(path)
    assert owner.read_text() == "mine! " * 100
    assert not path.exists()


def test_a_file_is_read_only_with_the_serializer_it_was_written_with(path):
    Cache(path, serializer="pickle").close()
    with pytest.raises(CacheFileError, match=r"cache.db holds pickle values, not json"):
        Cache(path)
    Cache(path, serializer="pickle").close()


def test_a_value_that_was_damaged_in_the_file_is_an_error_that_names_the_key(path):
    with Cache(path) as cache:
        cache.set("a", 1)
        cache.set("b", 2)
    other_database(path, "UPDATE entry SET value = x'7b' WHERE key = 'a'")
    with Cache(path) as cache:
        with pytest.raises(CacheValueError, match="'a' cannot be read as json"):
            cache.get("a")
        assert cache.get("b") == 2
        cache.set("a", 3)
        assert cache.get("a") == 3


def test_an_entry_that_somebody_else_removed_is_an_error_not_a_hang(path):
    with Cache(path, front_entries=1) as cache:
        cache.set("a", 1)
        cache.set("b", 2)
        other_database(path, "DELETE FROM entry")
        with pytest.raises(CacheFileError, match="the entry 'a' is gone"):
            Call(cache.get, "a").result()
        cache.set("a", 3)
        assert cache.get("a") == 3


def test_an_entry_removed_after_a_failed_write_of_it_is_an_error_not_a_hang(path):
    with Cache(path, front_entries=1) as cache:
        cache.set("a", 1)
        cache.set("b", 2)
        fill_the_disk(cache)
        with pytest.raises(CacheFileError, match="full"):
            cache.set("a", "x" * 100_000)
        other_database(path, "DELETE FROM entry")
        with pytest.raises(CacheFileError, match="the entry 'a' is gone"):
            Call(cache.get, "a").result()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_file_that_was_removed_is_an_error_for_who_needs_it(path):
    with Cache(path, front_entries=1) as cache:
        cache.set("a", 1)
        cache.set("b", 2)
        path.unlink()
        with pytest.raises(CacheFileError, match="cannot be read: unable to open"):
            cache.get("a")
        assert cache.get("b") == 2


def test_a_cache_that_cannot_start_its_thread_gives_the_file_back(path, monkeypatch):
    def start(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Cache(path)
    Cache(path).close()


def test_a_failed_open_leaves_nothing_behind(path):
    path.write_text("foreign")
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(CacheFileError, match="not a SQLite database"):
            Cache(path)
    assert threading.active_count() == threads
    path.unlink()
    Cache(path).close()


# One owner


def test_a_second_cache_on_the_same_file_is_refused(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with Cache(path):
        for name in (path, os.path.relpath(path), link):
            with pytest.raises(CacheFileError, match=r"cache.db is in use by another cache"):
                Cache(name)
        answer = child("open_again", path).communicate(timeout=PATIENCE)[0]
        assert answer.decode() == f"{path} is in use by another cache\n"
    assert child("open_again", path).communicate(timeout=PATIENCE)[0] == b""
    Cache(path).close()


def child(story, *arguments):
    """Start `_cache_child.py` in a process of its own, which ends when its pipes are closed."""
    root = Path(pytest_freethread.__file__).parent.parent
    script = Path(__file__).with_name("_cache_child.py")
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), story, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_process_is_told_that_the_cache_is_not_its_own(path):
    process = child("fork", path)
    output = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 0
    assert output.count("so it cannot be used in process") == 2
    with Cache(path) as cache:
        assert [cache.get("a"), cache.get("b")] == [1, 2]


# Errors while writing


def fill_the_disk(cache):
    """Allow the file no further page: to SQLite the disk is full, for real."""
    (pages,) = cache._store._connection.execute("PRAGMA page_count").fetchone()
    cache._store._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_reaches_the_caller_and_changes_nothing(path):
    with Cache(path) as cache:
        cache.set("a", "old")
        fill_the_disk(cache)
        with pytest.raises(CacheFileError, match=r"'a' cannot be written: .*full"):
            cache.set("a", "x" * 100_000)
        with pytest.raises(CacheFileError, match="full"):
            cache.get_or_compute("b", lambda: "x" * 100_000)
        assert cache.get("a") == "old"
        assert cache.get("b") is None
        cache.set("a", "new")
        assert cache.get("a") == "new"
    with Cache(path) as cache:
        assert cache.get("a") == "new"
        assert cache.stats().entries == 1


def test_in_a_batch_only_the_write_that_cannot_be_made_fails(path):
    with Cache(path) as cache:
        cache.set("a", 1)
        fill_the_disk(cache)
        committing, go_on = hold_commits(cache)
        first = Call(cache.set, "first", 1)
        assert committing.wait(PATIENCE)
        small = [Call(cache.set, f"small{number}", number) for number in range(3)]
        big = Call(cache.set, "big", "x" * 100_000)
        delete = Call(cache.delete, "a")
        wait_for_queue(cache, 5)
        go_on.set()
        first.result()
        with pytest.raises(CacheFileError, match="'big' cannot be written"):
            big.result()
        assert [call.result() for call in small] == [None] * 3
        assert delete.result() is True
        assert cache.get("big") is None
        assert {key for (key,) in rows(path)} == {"first", "small0", "small1", "small2"}


def test_a_file_that_turned_read_only_is_an_error_for_each_writer(path):
    with Cache(path) as cache:
        cache.set("a", 1)
        cache._store._connection.execute("PRAGMA query_only = ON")
        for use in (lambda: cache.set("a", 2), lambda: cache.delete("a")):
            with pytest.raises(CacheFileError, match=r"'a' cannot be written: .*readonly"):
                use()
        assert cache.get("a") == 1


def test_a_file_that_somebody_else_locks_is_an_error_not_a_hang(path):
    with Cache(path) as cache, closing(sqlite3.connect(path)) as other:
        cache._store._connection.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheFileError, match="database is locked"):
            cache.set("a", 1)
        other.rollback()
        cache.set("a", 2)
        assert cache.get("a") == 2


# What is seen, and when


def test_nobody_sees_a_value_that_a_crash_could_still_take_back(path):
    with Cache(path) as cache:
        cache.set("a", "old")
        committing, go_on = hold_commits(cache)
        write = Call(cache.set, "a", "new")
        assert committing.wait(PATIENCE)
        assert cache.get("a") == "old"
        go_on.set()
        write.result()
        assert cache.get("a") == "new"


@pytest.mark.parametrize("change", ["set", "delete", "eviction"])
def test_a_reader_that_comes_between_commit_and_publication_waits_for_it(path, change):
    with Cache(path, front_entries=1, max_entries=2) as cache:
        cache.set("a", "old")
        cache.set("b", "in the front")
        publish, read = cache._front.publish, cache._store.read
        committed, go_on, missed = threading.Event(), threading.Event(), threading.Event()

        def held(plan):
            committed.set()
            assert go_on.wait(PATIENCE)
            publish(plan)

        def observed(sequence):
            data = read(sequence)
            if data is None:
                missed.set()
            return data

        cache._front.publish, cache._store.read = held, observed
        write = {
            "set": lambda: cache.set("a", "new"),
            "delete": lambda: cache.delete("a"),
            "eviction": lambda: cache.set("c", "needs room"),
        }[change]
        writer = Call(write)
        assert committed.wait(PATIENCE)
        reader = Call(cache.get, "a")
        assert missed.wait(PATIENCE)
        go_on.set()
        writer.result()
        assert reader.result() == ("new" if change == "set" else None)
        stats = cache.stats()
        assert stats.hits + stats.misses == 1


def test_writes_that_wait_are_committed_together(path):
    with Cache(path, max_entries=4) as cache:
        committing, go_on = hold_commits(cache)
        plans = []
        commit = cache._store.commit
        cache._store.commit = lambda plan: plans.append(plan) or commit(plan)
        first = Call(cache.set, "first", 0)
        assert committing.wait(PATIENCE)
        others = [Call(cache.set, f"k{number}", number) for number in range(10)]
        wait_for_queue(cache, 10)
        go_on.set()
        for call in [first, *others]:
            call.result()
        assert len(plans) == 2
        assert len(rows(path)) == cache.stats().entries == 4
        assert cache.stats().evictions == 7


def test_threads_see_each_others_writes_in_one_order(cache):
    """One thread counts up; no reader ever sees the number go back."""
    rounds = 150

    def body(number):
        if number == 0:
            for value in range(rounds):
                cache.set("n", value)
                cache.set("filler", value)  # pushes n out of a front of one
            return []
        return [cache.get("n", -1) for _ in range(rounds)]

    for seen in at_once(4, body):
        assert seen == sorted(seen)
    assert cache.get("n") == rounds - 1


def test_counts_are_exact_under_contention(cache):
    per_thread = 300

    def body(number):
        hits = 0
        for step in range(per_thread):
            hits += cache.get(f"k{(step * 7 + number) % 20}") is not None
            if step % 3 == 0:
                cache.get_or_compute(f"k{(step + number) % 20}", lambda: 1)
            if step % 30 == 0:
                cache.delete(f"k{step % 20}")
        return hits

    seen = sum(at_once(4, body))
    stats = cache.stats()
    computing = 4 * len(range(0, per_thread, 3))
    assert stats.hits + stats.misses == 4 * per_thread + computing
    assert seen <= stats.hits
    assert 0 < stats.computations <= stats.misses


def test_the_size_bound_holds_at_every_moment_in_memory_and_in_the_file(path):
    with Cache(path, max_entries=5, front_entries=2) as cache:

        def body(number):
            sizes = set()
            with closing(sqlite3.connect(path)) as connection:
                for step in range(60):
                    key = f"k{(step * (number + 1)) % 23}"
                    if step % 10 == 9:
                        cache.delete(key)
                    else:
                        cache.set(key, step)
                    (in_file,) = connection.execute("SELECT count(*) FROM entry").fetchone()
                    sizes |= {in_file, cache.stats().entries}
            return sizes

        assert max(set.union(*at_once(4, body))) == 5


# A process that dies


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(path):
    """Killed in the middle of writes, again and again; each time all that was told is there."""
    present, deleted = {}, set()
    for round_, patience in enumerate((1, 10, 100, 400, 1500, 3000)):
        told = []
        with child("write_until_killed", path, round_) as process:
            for line in process.stdout:
                told.append(line)
                if len(told) == patience:
                    process.kill()
        assert process.returncode != 0
        assert len(told) >= patience
        for line in told:
            what, key, number = line.decode().split()
            if what == "set":
                present[key] = int(number)
            else:
                del present[key]
                deleted.add(key)

        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with Cache(path, max_entries=100_000) as cache:
            for key, number in present.items():
                if number % 5 == 4 and cache.get(key) is None:
                    continue  # its delete may have been made, though not yet told
                assert cache.get(key) == {"number": number, "padding": "x" * (number * 37 % 3000)}
            assert [key for key in deleted if cache.get(key) is not None] == []


@pytest.mark.parametrize("moment", ["creating", "created"])
def test_a_file_whose_creation_was_killed_can_be_opened(path, moment):
    for _ in range(3):
        with child("create", path) as process:
            for line in process.stdout:
                if line.decode().strip() == moment:
                    process.kill()
        with Cache(path) as cache:
            if moment == "created":
                assert cache.get("created") is True
            cache.set("usable", True)
            assert cache.get("usable") is True
        path.unlink()


def test_a_program_that_forgets_to_close_ends_and_loses_nothing(path):
    process = child("forget_to_close", path)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    with Cache(path) as cache:
        assert cache.get("kept") == 1


# Under the harness itself


@pytest.fixture
def counted():
    with Cache(max_entries=3) as cache:
        yield cache
        stats = cache.stats()
        assert stats.hits + stats.misses == 4 * 30
        assert stats.entries <= 3


@pytest.mark.freethread(threads=4, rounds=25, shared=["counted"])
def test_stressed_counts_and_bound_are_exact(counted, thread_index):
    for step in range(15):
        counted.get(f"k{step % 4}")
        counted.get_or_compute(f"k{(step + thread_index) % 5}", lambda: 1)
        assert counted.stats().entries <= 3


@pytest.fixture
def stored(tmp_path):
    with Cache(tmp_path / "stressed.db", max_entries=4, front_entries=2) as cache:
        yield cache
    assert len(rows(tmp_path / "stressed.db")) <= 4


@pytest.mark.freethread(threads=4, rounds=10, shared=["stored"])
def test_stressed_file_keeps_every_thread_in_order(stored, thread_index):
    seen = -1
    for step in range(8):
        stored.set(f"k{thread_index}", step)
        now = stored.get(f"k{(thread_index + 1) % 4}", -1)
        assert now >= seen
        seen = now
        assert stored.get(f"k{thread_index}") == step


def test_stressed_computation_happens_once():
    class State:
        def __init__(self):
            self.cache = Cache()
            self.runs = []
            self.values = []

    def body(state):
        state.values.append(state.cache.get_or_compute("a", lambda: state.runs.append(1) or 7))

    result = stress(
        body,
        setup=State,
        threads=4,
        rounds=100,
        invariant=lambda state: state.values == [7] * 4 and len(state.runs) == 1,
    )
    result.raise_for_verdict()


def test_stressed_closing_leaves_nobody_waiting():
    def compute(state):
        try:
            assert state.get_or_compute("a", lambda: 1) == 1
            state.set("b", 2)
        except CacheClosedError:
            pass

    result = stress(compute, compute, Cache.close, setup=Cache, rounds=100)
    result.raise_for_verdict()


# Records and documentation


def test_stats_are_a_record_that_nobody_can_change():
    stats = Cache().stats()
    assert stats == CacheStats(
        entries=0, hits=0, misses=0, file_reads=0, computations=0, evictions=0
    )
    with pytest.raises(AttributeError):
        stats.hits = 1
    assert copy.copy(stats) == stats


def test_every_error_is_a_cache_error():
    for error in (CacheClosedError, CacheFileError, CacheValueError, RecursiveComputationError):
        assert issubclass(error, CacheError)


def test_the_documented_example_is_true():
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_every_class_states_its_concurrency_contract():
    words = ("Immutable", "Atomic", "Internally synchronised", "Linearizable", "Externally")
    for thing in vars(module).values():
        ours = isinstance(thing, type) and thing.__module__ == module.__name__
        if ours and not issubclass(thing, Exception):
            contract = (thing.__doc__ or "").partition("Concurrency contract: ")[2]
            assert any(word in contract for word in words), thing
