"""The reference components under every interleaving, or as many as a few seconds allow.

Time is virtual: an hour of waiting for a permit takes no time at all.
"""

from __future__ import annotations

import time

import pytest

from pytest_freethread import Verdict, explore
from pytest_freethread.reference.cache import Cache
from pytest_freethread.reference.engine import ParallelEngine, Stage
from pytest_freethread.reference.engine import Status as CycleStatus
from pytest_freethread.reference.executor import ParallelExecutor, Status, Task
from pytest_freethread.reference.rate_limiter import TokenBucket

HOUR = 3600.0


def passes(*bodies, schedules=300, seconds=4.0, **how):
    result = explore(
        *bodies,
        schedules=schedules,
        seconds=seconds,
        seed=0,
        include=["pytest_freethread.reference"],
        **how,
    )
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings
    assert result.executions > 1
    return result


# --- cache ----------------------------------------------------------------------------------------


class Computed:
    def __init__(self):
        self.cache = Cache()
        self.computations = 0
        self.values = []

    def compute(self):
        self.computations += 1
        return 42

    def get(self):
        self.values.append(self.cache.get_or_compute("key", self.compute))


def test_a_value_is_computed_once_for_all_who_miss_it():
    passes(
        Computed.get,
        threads=2,
        setup=Computed,
        invariant=lambda computed: (computed.computations, computed.values) == (1, [42, 42]),
    )


def test_a_computation_that_fails_is_the_failure_of_those_who_wait_or_is_tried_again():
    class Failing(Computed):
        def compute(self):
            self.computations += 1
            raise LookupError("no value")

    def get(failing):
        with pytest.raises(LookupError, match="no value"):
            failing.get()

    result = passes(
        get,
        threads=2,
        setup=Failing,
        invariant=lambda failing: failing.computations in {1, 2} and not failing.values,
    )
    assert result.exhaustive


def test_a_cache_never_holds_more_than_it_may():
    def fill(key):
        def body(cache):
            cache.set(key, key)
            assert cache.stats().entries <= 1
            assert cache.get(key) in {key, None}

        return body

    passes(
        fill("a"),
        fill("b"),
        setup=lambda: Cache(max_entries=1),
        invariant=lambda cache: cache.stats().entries == 1,
    )


# --- rate limiter ---------------------------------------------------------------------------------


class Hourly:
    """A permit an hour, one at once; who got one writes down when."""

    def __init__(self):
        self.began = time.monotonic()
        self.bucket = TokenBucket(1 / HOUR, 1)
        self.granted = []

    def acquire(self):
        assert self.bucket.acquire()
        self.granted.append(time.monotonic() - self.began)

    def is_at_its_rate(self):
        return all(at >= index * HOUR - 1e-3 for index, at in enumerate(sorted(self.granted)))


def test_a_bucket_keeps_its_rate_for_hours():
    passes(
        Hourly.acquire,
        threads=3,
        setup=Hourly,
        invariant=lambda hourly: len(hourly.granted) == 3 and hourly.is_at_its_rate(),
    )


def test_who_gives_up_takes_no_permit():
    def give_up(hourly):
        if hourly.bucket.acquire(timeout=60):
            hourly.granted.append(time.monotonic() - hourly.began)

    passes(
        Hourly.acquire,
        give_up,
        setup=Hourly,
        invariant=lambda hourly: len(hourly.granted) in {1, 2} and hourly.is_at_its_rate(),
    )


def test_a_last_permit_goes_to_one():
    def try_it(hourly):
        if hourly.bucket.try_acquire():
            hourly.granted.append(0.0)

    result = passes(
        try_it, threads=2, setup=Hourly, invariant=lambda hourly: len(hourly.granted) == 1
    )
    assert result.exhaustive


# --- executor -------------------------------------------------------------------------------------


def add(number):
    def run(state):
        state["total"] = state["total"] + number
        return state["total"]

    return Task(run, name=f"add {number}", reads={"total"}, writes={"total"})


def double(state):
    state["double"] = state["total"] * 2
    return state["double"]


def test_tasks_that_conflict_have_the_outcome_of_a_serial_run():
    def run(results):
        with ParallelExecutor(workers=2) as executor:
            results.append(executor.run([add(1), add(10)], {"total": 0}))

    def is_serial(results):
        (result,) = results
        assert all(each.status is Status.SUCCEEDED for each in result.results), result
        assert dict(result.state) == {"total": 11}
        return result.values() == (1, 11)

    passes(run, threads=1, setup=list, invariant=is_serial, schedules=150)


def test_a_task_waits_for_what_it_reads():
    def run(results):
        with ParallelExecutor(workers=2) as executor:
            tasks = [add(1), add(10), Task(double, reads={"total"}, writes={"double"})]
            results.append(executor.run(tasks, {"total": 0}))

    passes(
        run,
        threads=1,
        setup=list,
        invariant=lambda results: dict(results[0].state) == {"total": 11, "double": 22},
        schedules=150,
    )


# --- engine ---------------------------------------------------------------------------------------


def test_each_cycle_of_an_engine_runs_its_stages_in_their_order():
    stages = [
        Stage("architect", lambda value, _: value + 1),
        Stage("build", lambda _, given: given["architect"] * 10, after=("architect",)),
    ]

    def run(reports):
        with ParallelEngine(stages, workers=2) as engine:
            reports.append((engine.run([1, 2]), engine.metrics()))

    def is_complete(reports):
        ((report, _metrics),) = reports
        assert [result.status for result in report.results] == [CycleStatus.COMPLETED] * 2, report
        return [result.results["build"] for result in report.results] == [20, 30]

    passes(run, threads=1, setup=list, invariant=is_complete, schedules=150)
