"""Programs to explore, and each tool's search on them; `benchmarks.explore` runs it as a script.

In an environment that has one of the tools only: a tool is imported where it is used, and nothing
of this repository is. Prints one line of JSON:

    python _explored.py TOOL STRATEGY PROGRAM SEEDS SECONDS [--blind]

`--blind` takes the programs' checks away, so that a search goes on to the end of its budget.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

UNBOUNDED = 10**9
"""More schedules than fit into any time."""

WARMING = 0.2
"""Seconds of a search that is not counted: a tool's first one imports and compiles."""

Outcome = dict[str, Any]
"""Of one search: found, schedules, seconds, exhausted, and what is to be said about it."""


class Program:
    """The state of an execution, with a body for each thread and what must hold after."""

    threads: ClassVar[int] = 2

    def work(self, index: int) -> None:
        """The body of a thread."""
        raise NotImplementedError

    def holds(self) -> bool:
        """Whether all is well in the end; a standstill is wrong by itself."""
        return True


class LostUpdate(Program):
    """a: lost update"""

    def __init__(self) -> None:
        self.value = 0

    def work(self, _index: int) -> None:
        temp = self.value
        self.value = temp + 1

    def holds(self) -> bool:
        return self.value == 2


class Increments(Program):
    """b: three times `+= 1`"""

    threads = 4

    def __init__(self) -> None:
        self.value = 0

    def work(self, _index: int) -> None:
        for _ in range(3):
            self.value += 1

    def holds(self) -> bool:
        return self.value == 12


class LazySingleton(Program):
    """c: lazy singleton"""

    def __init__(self) -> None:
        self.instance: object | None = None
        self.built: list[object] = []

    def work(self, _index: int) -> None:
        if self.instance is None:
            self.instance = object()
            self.built.append(self.instance)

    def holds(self) -> bool:
        return len(self.built) == 1


class Transfers(Program):
    """d: two locks, both orders"""

    def __init__(self) -> None:
        self.locks = [threading.Lock(), threading.Lock()]
        self.balances = [100, 100]

    def work(self, index: int) -> None:
        with self.locks[index], self.locks[1 - index]:
            self.balances[index] -= 10
            self.balances[1 - index] += 10


class Philosophers(Program):
    """e: philosophers"""

    threads = 3

    def __init__(self) -> None:
        self.forks = [threading.Lock() for _ in range(3)]

    def work(self, index: int) -> None:
        with self.forks[index], self.forks[(index + 1) % 3]:
            pass


class ConditionIf(Program):
    """f: condition with `if`"""

    threads = 3

    def __init__(self) -> None:
        self.filled = threading.Condition()
        self.items: list[int] = []
        self.underflow = False

    def work(self, index: int) -> None:
        if index == 0:
            for item in range(2):
                with self.filled:
                    self.items.append(item)
                    self.filled.notify()
            return
        with self.filled:
            if not self.items:
                self.filled.wait()
            if self.items:
                self.items.pop()
            else:
                self.underflow = True

    def holds(self) -> bool:
        return not self.underflow


class GetOrCompute(Program):
    """g: get or compute (`in`)"""

    def __init__(self) -> None:
        self.results: dict[str, int] = {}
        self.computed: list[str] = []

    def work(self, _index: int) -> None:
        if "key" not in self.results:
            self.computed.append("key")
            self.results["key"] = 1

    def holds(self) -> bool:
        return len(self.computed) == 1


class Locked2(Program):
    """h2: locked counter x 5"""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value = 0

    def work(self, _index: int) -> None:
        for _ in range(5):
            with self.lock:
                self.value += 1

    def holds(self) -> bool:
        return self.value == 5 * self.threads


class Locked3(Locked2):
    """h3: locked counter x 5"""

    threads = 3


class Rare(Program):
    """i: three preemptions at exact places among about 200 steps"""

    def __init__(self) -> None:
        self.open = 0
        self.seen = 0
        self.own = [0, 0]

    def work(self, index: int) -> None:
        for gate in (1, 2, 3):
            for _ in range(16):
                self.own[index] += 1
            if index == 0:
                self.open = gate
                self.open = 0
            elif self.open == gate:
                self.seen += 1

    def holds(self) -> bool:
        return self.seen < 3


class Relay(Program):
    """nothing but steps at which the other thread may go on"""

    writes = 500

    def __init__(self) -> None:
        self.value = 0

    def work(self, index: int) -> None:
        for _ in range(self.writes):
            self.value = index


PROGRAMS: tuple[type[Program], ...] = (
    LostUpdate,
    Increments,
    LazySingleton,
    Transfers,
    Philosophers,
    ConditionIf,
    GetOrCompute,
    Rare,
    Locked2,
    Locked3,
    Relay,
)


def bodies(program: type[Program]) -> list[Callable[[Program], None]]:
    """A body for each thread, as all tools but one take them."""

    def body(index: int) -> Callable[[Program], None]:
        return lambda state: state.work(index)

    return [body(index) for index in range(program.threads)]


def freethread(
    program: type[Program], strategy: str, seed: int, seconds: float, blind: bool
) -> Outcome:
    from pytest_freethread import explore  # noqa: PLC0415 - see the module's docstring

    result = explore(
        *bodies(program),
        setup=program,
        invariant=None if blind else program.holds,
        strategy=strategy,
        schedules=UNBOUNDED,
        seconds=seconds,
        seed=seed,
    )
    outcome: Outcome = {"schedules": result.executions, "exhausted": result.exhaustive}
    for finding in result.findings:
        # What comes after is the work on the report, which the peers are spared here too.
        schedule, _, elapsed = finding.evidence.found  # type: ignore[union-attr]
        return outcome | {"found": True, "schedules": schedule, "seconds": elapsed}
    return outcome


def frontrun(
    program: type[Program], strategy: str, seed: int, seconds: float, blind: bool
) -> Outcome:
    tool = importlib.import_module("frontrun")

    dpor = {
        "max_executions": UNBOUNDED,
        "preemption_bound": None if strategy == "dpor" else 2,
    }
    result = tool.explore(
        setup=program,
        workers=bodies(program),
        invariant=(lambda _: True) if blind else program.holds,
        strategy="random" if strategy == "random" else "dpor",
        total_timeout=seconds,
        reproduce_on_failure=0,
        **({"max_attempts": UNBOUNDED, "seed": seed} if strategy == "random" else dpor),
    )
    return {
        "found": result.property_holds is False,
        "schedules": result.num_explored,
        "note": {True: "holds", False: "", None: "inconclusive"}[result.property_holds],
    }


def interleave(
    program: type[Program], strategy: str, seed: int, seconds: float, blind: bool
) -> Outcome:
    tool = importlib.import_module("interleave_test")

    until = time.monotonic() + seconds
    real_time = time.monotonic

    class Spent(BaseException):
        """It has no budget of time for a whole search."""

    explored = 0

    def model() -> None:
        nonlocal explored
        if real_time() > until:
            raise Spent
        explored += 1
        state = program()
        tasks = [tool.spawn(state.work, index) for index in range(program.threads)]
        for task in tasks:
            task.join()
        assert blind or state.holds()

    result = tool.explore(
        model, iterations=UNBOUNDED, seed=seed, strategy=strategy, raise_on_failure=False
    )
    spent = "Spent" in str(result.failure)
    return {
        "found": not result.ok and not spent,
        "schedules": explored,
        "exhausted": result.exhausted,
    }


TOOLS = {"pytest-freethread": freethread, "frontrun": frontrun, "interleave-test": interleave}


def main() -> None:
    tool, strategy, name, seeds, seconds = sys.argv[1:6]
    program = next(each for each in PROGRAMS if each.__name__ == name)
    explore = TOOLS[tool]
    explore(program, strategy, 0, WARMING, "--blind" in sys.argv)
    outcomes = []
    for seed in range(1, int(seeds) + 1):
        began = time.perf_counter()
        outcome = explore(program, strategy, seed, float(seconds), "--blind" in sys.argv)
        elapsed = time.perf_counter() - began
        outcomes.append({"found": False, "exhausted": False, "seconds": elapsed} | outcome)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
