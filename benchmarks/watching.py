"""What it costs a free run that its threads are looked at for a deadlock twice a second.

One round that takes some seconds, of threads that compute, take locks and call deeply, with the
looks and without, several times in turn.
"""

from __future__ import annotations

import argparse
import math
import platform
import threading
import time
from statistics import median

from pytest_freethread import stress
from pytest_freethread.execution import free

DEPTH = 40


class Work:
    """Threads that nest calls and take turns with two locks."""

    def __init__(self) -> None:
        self.outer, self.inner = threading.Lock(), threading.Lock()
        self.done = 0

    def deep(self, depth: int) -> None:
        """Hold a lock, call, and take another one at the bottom."""
        if depth:
            self.deep(depth - 1)
            return
        with self.outer, self.inner:
            self.done += 1

    def run(self, times: int) -> None:
        """One thread's share."""
        for _ in range(times):
            self.deep(DEPTH)


def measured(threads: int, times: int, *, watched: bool) -> tuple[float, float, float]:
    """Seconds that a round takes: by the clock, of CPU time, and of that the calling thread's."""
    glance, free._GLANCE = free._GLANCE, free._GLANCE if watched else math.inf  # noqa: SLF001 - what is measured
    began = time.perf_counter(), time.process_time(), time.thread_time()
    try:
        result = stress(
            lambda work: work.run(times), threads=threads, setup=Work, rounds=1, deadline=600
        )
    finally:
        free._GLANCE = glance  # noqa: SLF001 - as above
    ended = time.perf_counter(), time.process_time(), time.thread_time()
    result.raise_for_verdict()
    clock, cpu, own = (after - before for before, after in zip(began, ended, strict=True))
    return clock, cpu, own


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="times that both are run in turn")
    parser.add_argument("--times", type=int, default=400_000, help="steps of all threads together")
    options = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}")
    for threads in (2, 8):
        taken: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        for _ in range(options.repeat):
            for watched, each in taken.items():
                each.append(measured(threads, options.times // threads, watched=watched))
        clock, cpu, own = (
            {watched: median(column) for watched, column in zip(taken, columns, strict=True)}
            for columns in zip(*(zip(*rows, strict=True) for rows in taken.values()), strict=True)
        )
        looks = (own[True] - own[False]) / clock[True]
        print(
            f"{threads} threads: by the clock {clock[True] / clock[False] - 1:+.1%}, CPU time "
            f"{cpu[True] / cpu[False] - 1:+.1%}; the looks alone take {looks:.2%} of the time"
        )


if __name__ == "__main__":
    main()
