"""Whether a verdict on parallelism can be trusted: the same four tasks over and over, in peace and
beside a process on each core that does nothing but spin.

A task that runs in parallel must never be red, a task behind one lock never green, and when it is
red the lock must be named. Run it under each interpreter of interest; it fails if a verdict was
false.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_freethread import ThreadSafetyError, Verdict, assert_parallel, interpreter
from pytest_freethread.detectors.parallelism import ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_freethread import Scaling

ASKED = 1.6
TURNS = 100_000


def compute() -> None:
    """Some 5 ms of pure Python that shares nothing."""
    total = 0
    for turn in range(TURNS):
        total += turn & 3


class Counter_:  # noqa: N801 - the other one counts verdicts
    """Computes while it holds its one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def work(self) -> None:
        """One at a time."""
        with self._lock:
            compute()


def sleep() -> None:
    """Waits, as for a reply."""
    time.sleep(0.005)


def tiny() -> None:
    """Some 50 µs."""
    sum(range(2_000))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A task, and the verdicts on it that would be false."""

    name: str
    task: Callable[[], object]
    never: Verdict


COMPUTED = Verdict.PASSED if interpreter.gil_enabled() else Verdict.FAILED
"""What is false of a task that computes: with the GIL nothing can do so in parallel."""

SUBJECTS = (
    Subject(name="computes in parallel", task=compute, never=COMPUTED),
    Subject(name="behind one lock", task=Counter_().work, never=Verdict.PASSED),
    Subject(name="sleeps", task=sleep, never=Verdict.FAILED),
    Subject(name="takes 50 µs", task=tiny, never=COMPUTED),
)


def measure(subject: Subject, seconds: float) -> Scaling:
    """A verdict, red ones too."""
    try:
        return assert_parallel(subject.task, threads=2, min_speedup=ASKED, seconds=seconds)
    except ThreadSafetyError as error:
        scaling: Scaling = error.result
        return scaling


def spin(seconds: float) -> None:
    """Keep a core busy for as long as the parent lives, and for so long at most."""
    until, parent = time.monotonic() + seconds, os.getppid()
    while time.monotonic() < until and os.getppid() == parent:
        pass


@contextlib.contextmanager
def neighbours(count: int, seconds: float) -> Iterator[None]:
    """So many processes that spin."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spin, args=(seconds,), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def series(tries: int, seconds: float) -> int:
    """A row for each subject; how many verdicts were false."""
    false = 0
    for subject in SUBJECTS if tries else ():
        verdicts: Counter[Verdict] = Counter()
        named = naive = 0
        speedups = []
        for _ in range(tries):
            scaling = measure(subject, seconds)
            verdicts[scaling.verdict] += 1
            speedups.append(scaling.speedup.value)
            once = ratio(scaling.measurement.samples[0].rounds[0].tasks)
            naive += (once < ASKED) is (subject.never is Verdict.FAILED)
            named += "Counter_._lock (parallelism_trust.py:" in str(scaling)
        false += verdicts[subject.never]
        red = f", the lock named in {named}" if subject.name == "behind one lock" else ""
        print(
            f"  {subject.name:<22}"
            + "".join(f"{verdicts[each]:>4} {each.name.lower():<13}" for each in Verdict)
            + f"speed-up {min(speedups):.2f} to {max(speedups):.2f}; a single pair of runs would "
            f"have been wrong {naive} times{red}",
            flush=True,
        )
    return false


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50, help="of each task beside neighbours")
    parser.add_argument("--peaceful", type=int, default=5, help="tries of each task without")
    parser.add_argument("--seconds", type=float, default=1.5, help="budget of a try")
    options = parser.parse_args()
    began = time.monotonic()
    cores = interpreter.usable_cores()
    print(
        f"{interpreter.facts()}; asked: {ASKED} x on 2 threads; budget {options.seconds:g} s",
        flush=True,
    )
    print("without neighbours of ours")
    false = series(options.peaceful, options.seconds)
    print(f"beside {cores} processes that spin")
    longest = 2 * options.tries * len(SUBJECTS) * (options.seconds + 5)
    with neighbours(cores, longest):
        false += series(options.tries, options.seconds)
    print(f"{false} false verdicts; {time.monotonic() - began:.0f} s")
    sys.exit(bool(false))


if __name__ == "__main__":
    main()
