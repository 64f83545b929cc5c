"""Exploration: every order in which two threads can look something up, and an hour that passes.

The first test runs its body in two threads, on one fresh cache for every schedule; the report of
pytest's summary says that all orders were tried. Take the lock out of `get`, and see in which one
the value is computed twice. The second calls `explore` for threads that do different things.

    pytest -v examples/test_expiry.py
"""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_freethread import explore


class Cache:
    """Values that are kept for an hour."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, tuple[float, str]] = {}
        self.computed = 0

    def get(self, key: str, compute: Callable[[str], str]) -> str:
        with self._lock:
            until, value = self._values.get(key, (0.0, ""))
            if until <= time.monotonic():
                self.computed += 1
                value = compute(key)
                self._values[key] = (time.monotonic() + 3600, value)
            return value


@pytest.fixture
def cache() -> Iterator[Cache]:
    cache = Cache()
    yield cache
    assert cache.computed == 1


@pytest.mark.freethread(mode="explore", shared=["cache"])
def test_a_value_is_computed_once(cache: Cache) -> None:
    assert cache.get("key", str.upper) == "KEY"


def test_a_value_is_computed_again_after_an_hour() -> None:
    def now_and_later(cache: Cache) -> None:
        cache.get("key", str.upper)
        time.sleep(3601)
        cache.get("key", str.upper)

    result = explore(
        now_and_later,
        lambda cache: cache.get("key", str.upper),
        setup=Cache,
        invariant=lambda cache: cache.computed == 2,
    )
    result.raise_for_verdict()
    assert result.exhaustive
