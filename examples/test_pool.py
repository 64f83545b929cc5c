"""Different bodies on one state: the fixture `freethread`, for tests that are about threads.

`setup` makes a fresh pool for each round, each body runs in a thread of its own, and the invariant
looks at the pool when all of them have ended. `threads=` deals the bodies out in turn.

    pytest -v examples/test_pool.py
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_freethread.plugin import Verbs

SIZE = 2


class Pool:
    """Lends up to `SIZE` connections, here plain numbers; who finds none waits."""

    def __init__(self) -> None:
        self._returned = threading.Condition()
        self._free = list(range(SIZE))
        self._lent: set[int] = set()

    @contextmanager
    def connection(self) -> Iterator[int]:
        with self._returned:
            while not self._free:
                self._returned.wait()
            number = self._free.pop()
            self._lent.add(number)
        try:
            yield number
        finally:
            with self._returned:
                self._lent.remove(number)
                self._free.append(number)
                self._returned.notify()

    def sizes(self) -> tuple[int, int]:
        with self._returned:
            return len(self._free), len(self._lent)


def borrow(pool: Pool) -> None:
    with pool.connection() as number:
        assert number in range(SIZE)


def watch(pool: Pool) -> None:
    free, lent = pool.sizes()
    assert free + lent == SIZE


def all_are_back(pool: Pool) -> bool:
    return pool.sizes() == (SIZE, 0)


def test_no_connection_is_lost(freethread: Verbs) -> None:
    result = freethread.stress(borrow, watch, setup=Pool, invariant=all_are_back, threads=8)
    result.raise_for_verdict()


def test_more_borrowers_than_connections(freethread: Verbs) -> None:
    result = freethread.stress(borrow, setup=Pool, invariant=all_are_back, threads=3 * SIZE)
    result.raise_for_verdict()
