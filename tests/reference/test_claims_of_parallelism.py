"""That the components let their clients wait at once: claims that hold with the GIL and without.

Each is refuted, and red, if a component holds a lock while its client waits; a machine that is too
busy to tell makes none red.
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from pytest_freethread import ThreadSafetyError, assert_parallel, interpreter
from pytest_freethread.reference.cache import Cache
from pytest_freethread.reference.engine import ParallelEngine, Stage
from pytest_freethread.reference.executor import ParallelExecutor
from pytest_freethread.reference.rate_limiter import KeyedLimiter

CLAIM = {"threads": 4, "min_speedup": 2.5, "pairs": 8, "seconds": None}


def wait():
    time.sleep(0.01)


def test_batches_of_one_executor_run_at_once():
    with ParallelExecutor(workers=4) as executor:
        assert_parallel(lambda: executor.run([wait]), **CLAIM)


def test_cycles_of_one_engine_run_at_once():
    with ParallelEngine([Stage("only", lambda _, __: wait())], workers=4) as engine:
        assert_parallel(lambda: engine.run([0]), **CLAIM)


def test_computations_of_different_keys_run_at_once():
    keys = itertools.count()
    with Cache() as cache:
        assert_parallel(lambda: cache.get_or_compute(str(next(keys)), wait), **CLAIM)


def test_who_waits_for_a_permit_of_one_key_does_not_hold_up_the_others():
    limiter = KeyedLimiter(rate=200, capacity=1)
    keys = itertools.count()

    def two_permits():
        key = next(keys)
        limiter.acquire(key)
        limiter.acquire(key)  # after 5 ms

    assert_parallel(two_permits, **CLAIM)


def test_a_cache_that_computes_under_its_lock_is_found_out(monkeypatch):
    monkeypatch.setattr(interpreter, "seconds_without_core", lambda: 0.0)  # undisturbed

    class Hasty(Cache):
        lock = threading.Lock()

        def get_or_compute(self, key, fn):
            with self.lock:
                return super().get_or_compute(key, fn)

    keys = itertools.count()
    with Hasty() as cache, pytest.raises(ThreadSafetyError, match=r"waits for Hasty\.lock"):
        assert_parallel(
            lambda: cache.get_or_compute(str(next(keys)), wait),
            **{**CLAIM, "threads": 8, "min_speedup": 5},
        )
