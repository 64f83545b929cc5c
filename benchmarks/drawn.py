"""Schedules drawn by Hypothesis: examples until a race is found, and what an example costs.

`python -m benchmarks.drawn [--seeds 20]`
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from functools import partial
from statistics import mean, median
from typing import TYPE_CHECKING

import hypothesis

from benchmarks.stress import print_table
from pytest_freethread import Schedule, ThreadSafetyError, drawing, schedules

if TYPE_CHECKING:
    from collections.abc import Callable

CAP = 1_000
"""Examples after which a search is given up."""


class Found(Exception):  # noqa: N818 - it is what the search is for
    """The example shows the bug."""


class LostUpdate:
    """lost update, 2 threads"""

    def __init__(self) -> None:
        self.value = 0

    def bodies(self) -> list[Callable[[], object]]:
        return [self.increment] * 2

    def increment(self) -> None:
        value = self.value
        self.value = value + 1

    def holds(self) -> bool:
        return self.value == 2


class LateLostUpdate(LostUpdate):
    """the same after 100 other accesses"""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = 0

    def increment(self) -> None:
        for _ in range(100):
            self.scratch = 1
        super().increment()


class CheckThenAct:
    """check-then-act, 2 threads"""

    def __init__(self) -> None:
        self.made: list[object] = []
        self.cache: dict[str, object] = {}

    def bodies(self) -> list[Callable[[], object]]:
        return [self.get] * 2

    def get(self) -> object:
        if "key" not in self.cache:
            self.made.append(object())
            self.cache["key"] = self.made[-1]
        return self.cache["key"]

    def holds(self) -> bool:
        return len(self.made) == 1


class Deadlock:
    """two locks, 2 threads"""

    def __init__(self) -> None:
        self.one, self.other = threading.Lock(), threading.Lock()

    def bodies(self) -> list[Callable[[], object]]:
        return [partial(self.move, self.one, self.other), partial(self.move, self.other, self.one)]

    def move(self, source: threading.Lock, target: threading.Lock) -> None:
        with source, target:
            pass

    def holds(self) -> bool:
        return True


class Chain:
    """an order of 3 threads"""

    def __init__(self) -> None:
        self.stage = 0
        self.broken = False

    def bodies(self) -> list[Callable[[], object]]:
        return [self.begin, self.close, self.use]

    def begin(self) -> None:
        self.stage = 1
        self.stage = 2

    def close(self) -> None:
        if self.stage == 1:
            self.stage = 3

    def use(self) -> None:
        if self.stage == 3:
            self.broken = True

    def holds(self) -> bool:
        return not self.broken


class ThreeLost:
    """a lost update, 3 threads, all three updates"""

    def __init__(self) -> None:
        self.value = 0

    def bodies(self) -> list[Callable[[], object]]:
        return [self.increment] * 3

    def increment(self) -> None:
        value = self.value
        self.value = value + 1

    def holds(self) -> bool:
        return self.value > 1


PROGRAMS = (LostUpdate, LateLostUpdate, CheckThenAct, Deadlock, Chain, ThreeLost)


def examples_until_found(program: type, seed: int) -> int:
    """How many examples it takes; `CAP` if it is not found in so many."""
    count = 0
    found: list[int] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=CAP,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.target],
        deadline=None,
        report_multiple_bugs=False,
    )
    @hypothesis.given(schedule=schedules())
    def test(schedule: Schedule) -> None:
        nonlocal count
        count += 1
        state = program()
        try:
            schedule.run(*state.bodies())
            broken = not state.holds()
        except ThreadSafetyError:
            broken = True
        if broken:
            found.append(count)
            raise Found

    with contextlib.suppress(Found):
        test()
    return found[0] if found else CAP


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drawn", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    rows = []
    with drawing.keeping_the_stage():
        for program in PROGRAMS:
            began = time.perf_counter()
            counts = [examples_until_found(program, seed) for seed in seeds]
            each = (time.perf_counter() - began) / sum(counts)
            missed = sum(count == CAP for count in counts)
            rows.append(
                [
                    program.__doc__ or "",
                    f"{median(counts):.0f}",
                    f"{mean(counts):.0f}",
                    str(max(counts)),
                    str(missed),
                    f"{each * 1e3:.1f}",
                ]
            )
    print_table(["examples until found", "median", "mean", "most", "missed", "ms/example"], rows)


if __name__ == "__main__":
    main()
