"""What the race judge costs for each event that it is told, and what it keeps in memory.

Each workload is fed to the judge alone, without the threads that would make it, several times in
turn; the cost of the feeding loop itself is in the numbers.
"""

from __future__ import annotations

import argparse
import platform
import time
import tracemalloc
from statistics import median
from typing import TYPE_CHECKING

from pytest_freethread.detectors.order import EFFECTS, LOCK_EFFECTS
from pytest_freethread.detectors.races import (
    ATOMIC,
    ITEM,
    READ,
    WHOLE,
    WRITE,
    Races,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TAKE, DROP = LOCK_EFFECTS["acquire"], LOCK_EFFECTS["release"]
PUT, GET = EFFECTS["put"], EFFECTS["get"]


def locked(judge: Races, threads: int, rounds: int) -> int:
    """`with lock: self.value += 1`, each thread in turn: every acquisition learns something."""
    for number in range(rounds):
        thread = number % threads
        judge.synchronise(thread, 1, TAKE, 10)
        judge.access(thread, 2, "value", READ, 11)
        judge.access(thread, 2, "value", WRITE, 12)
        judge.synchronise(thread, 1, DROP, 13)
    return 4 * rounds


def alone(judge: Races, threads: int, rounds: int) -> int:
    """`self.value += 1`, one thread at a time."""
    for number in range(rounds):
        thread = number * threads // rounds
        judge.access(thread, thread, "value", READ, 11)
        judge.access(thread, thread, "value", WRITE, 12)
    return 2 * rounds


def racing(judge: Races, threads: int, rounds: int) -> int:
    """`self.value += 1` without a lock: nearly every access is a race that is known already."""
    for number in range(rounds):
        thread = number % threads
        judge.access(thread, 2, "value", READ, 11)
        judge.access(thread, 2, "value", WRITE, 12)
    return 2 * rounds


def items(judge: Races, threads: int, rounds: int) -> int:
    """`d[key] += 1` for keys of one's own."""
    for number in range(rounds):
        thread = number % threads
        judge.access(thread, 2, thread, ITEM, 11)
        judge.access(thread, 2, thread, ITEM | WRITE, 12)
    return 2 * rounds


def appending(judge: Races, threads: int, rounds: int) -> int:
    """`queue.append(…)`, each thread in turn: every call sees the one before."""
    for number in range(rounds):
        judge.access(number % threads, 2, None, WHOLE | ATOMIC | WRITE, 11)
    return rounds


def handing_over(judge: Races, threads: int, rounds: int) -> int:
    """Objects that are filled, handed over through a queue, read, and gone."""
    for number in range(rounds):
        giver, taker, obj = number % threads, (number + 1) % threads, 10 + number % 100
        judge.access(giver, obj, "value", WRITE, 11)
        judge.synchronise(giver, 1, PUT)
        judge.synchronise(taker, 1, GET)
        judge.access(taker, obj, "value", READ, 12)
        judge.forget(obj)
    return 4 * rounds


WORKLOADS: tuple[Callable[[Races, int, int], int], ...] = (
    locked,
    alone,
    racing,
    items,
    appending,
    handing_over,
)


def microseconds(work: Callable[[Races, int, int], int], threads: int, rounds: int) -> float:
    """The CPU time for one event: other work on the machine does not count."""
    judge = Races(threads)
    began = time.thread_time()
    events = work(judge, threads, rounds)
    return (time.thread_time() - began) / events * 1e6


def kept(work: Callable[[Races, int, int], int], threads: int, rounds: int) -> int:
    """Bytes that the judge holds after so many rounds."""
    tracemalloc.start()
    judge = Races(threads)
    work(judge, threads, rounds)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del judge
    return size


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}")
    print("microseconds of CPU time per event, median")
    print(f"{'':14}{'2 threads':>12}{'8 threads':>12}   bytes kept after 1,000 and 10,000 rounds")
    for work in WORKLOADS:
        cells = [
            median(microseconds(work, threads, arguments.rounds) for _ in range(arguments.repeats))
            for threads in (2, 8)
        ]
        sizes = [kept(work, 2, rounds) for rounds in (1_000, 10_000)]
        print(f"{work.__name__:14}{cells[0]:12.2f}{cells[1]:12.2f}   {sizes[0]:,}  {sizes[1]:,}")


if __name__ == "__main__":
    main()
