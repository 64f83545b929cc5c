"""What it costs a free run to look for races, and what it keeps in memory.

A lock-protected loop, `with lock: self.v += 1` in two threads: plain threads without the harness, a
stress run of one round without races, and one whose round is recorded and judged, several times in
turn. Then a recorded round of ten times as many steps: memory has to be bounded as it grows.
"""

from __future__ import annotations

import argparse
import platform
import threading
import time
import tracemalloc
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from pytest_freethread import stress

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPS = 20_000


class Counter:
    """Two threads count with it, under its lock."""

    def __init__(self, loops: int = LOOPS) -> None:
        self.v = 0
        self.lock = threading.Lock()
        self.loops = loops

    def count(self) -> None:
        """One thread's share."""
        for _ in range(self.loops):
            with self.lock:
                self.v += 1


def plain() -> None:
    """Two threads, without the harness."""
    counter = Counter()
    threads = [threading.Thread(target=counter.count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(races: str, loops: int = LOOPS) -> None:
    """One round of a stress run."""
    result = stress(
        Counter.count,
        threads=2,
        setup=lambda: Counter(loops),
        rounds=1,
        races=races,
        noise=False,
        deadline=600,
    )
    result.raise_for_verdict()


def seconds(function: Callable[[], None]) -> float:
    """The CPU time that it takes: other work on the machine does not count."""
    began = time.process_time()
    function()
    return time.process_time() - began


def peak(function: Callable[[], None]) -> float:
    """The most memory that is allocated at once, in MB."""
    tracemalloc.start()
    function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="times that all are run in turn")
    repeat = parser.parse_args().repeat
    ways: dict[str, Callable[[], None]] = {
        "plain threads": plain,
        "stress, races off": lambda: run("off"),
        "stress, races recorded": lambda: run("error"),
    }
    for way in ways.values():
        way()  # modules are compiled with probes once
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            times[name].append(seconds(way))
    print(f"{platform.python_implementation()} {platform.python_version()}; 2 x {LOOPS:,} loops")
    base = median(times["plain threads"])
    for name, taken in times.items():
        print(f"{name:24} {median(taken) * 1e3:9.1f} ms  {median(taken) / base:6.1f} x plain")
    for loops in (LOOPS, 5 * LOOPS, 10 * LOOPS):
        most = peak(partial(run, "error", loops))
        print(f"peak memory, {8 * loops:>9,} events: {most:6.1f} MB")


if __name__ == "__main__":
    main()
