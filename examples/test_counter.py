"""One object used by all threads: a marker, and a fixture that is named as shared.

In each round four threads call the test at once, all with the same fresh counter; the fixture's
tear-down looks at what they left. Take the lock out of `add` and, on a free-threaded Python, see
the report.

    pytest -v examples/test_counter.py
"""

import threading
from collections.abc import Iterator

import pytest

THREADS = 4
AMOUNTS = (1, 2, 3)


class Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, amount: int) -> int:
        with self._lock:
            value = self.value + amount
            self.value = value
            return value


@pytest.fixture
def counter() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    assert counter.value == THREADS * sum(AMOUNTS)


@pytest.mark.freethread(threads=THREADS, rounds=100, shared=["counter"])
def test_no_amount_is_lost(counter: Counter) -> None:
    values = [counter.add(amount) for amount in AMOUNTS]
    assert values == sorted(values)
