"""Does it really run in parallel? Three ways to ask.

    pytest examples/test_speedup.py

A claim that is refuted is red and says what holds the code back; where this machine, now, cannot
tell, the test passes and the summary says INCONCLUSIVE and why.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_freethread import measure_parallelism

if TYPE_CHECKING:
    from pytest_freethread.plugin import Verbs


class Mirrors:
    """Asks several servers; each has a connection of its own, so nobody waits for anybody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.replies: list[str] = []

    def ask(self) -> None:
        time.sleep(0.005)  # a reply takes that long
        with self._lock:
            self.replies.append("yes")


@pytest.fixture
def mirrors() -> Mirrors:
    return Mirrors()


@pytest.mark.freethread_parallel(threads=4, min_speedup=2, pairs=10, shared=["mirrors"])
def test_clients_do_not_wait_for_each_other(mirrors: Mirrors) -> None:
    mirrors.ask()


def test_the_whole_takes_no_longer_than_its_longest_part(freethread: Verbs) -> None:
    def load() -> None:
        time.sleep(0.004)

    def parse() -> None:
        time.sleep(0.006)

    def store() -> None:
        time.sleep(0.002)

    freethread.assert_parallel(load, parse, store, max_total=1.5, pairs=10)


def test_a_curve() -> None:
    scaling = measure_parallelism(
        Mirrors.ask, setup=Mirrors, threads=[1, 2, 4], pairs=8, locks=True
    )
    assert [point.threads for point in scaling.points] == [1, 2, 4]
    assert "threads  speed-up" in str(scaling)  # print(scaling) shows the curve
