"""The exploration mode beside frontrun and interleave-test, measured in one run.

Three questions: how many schedules and how long until a bug is found, how many schedules in a
second, and what an exhaustive search counts. Each tool gets an environment of its own and each
search a process of its own, interleaved, so that a busy moment of the machine falls on all of them.
The times are those of the search: no tool's start, and no tool's work on its report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from benchmarks import _explored
from benchmarks._explored import (
    ConditionIf,
    GetOrCompute,
    Increments,
    LazySingleton,
    Locked2,
    Locked3,
    LostUpdate,
    Philosophers,
    Program,
    Rare,
    Relay,
    Transfers,
)
from benchmarks.stress import ROOT, Environment, print_table, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RACY = (
    LostUpdate,
    Increments,
    LazySingleton,
    Transfers,
    Philosophers,
    ConditionIf,
    GetOrCompute,
    Rare,
)
ENDLESS = (LostUpdate, Increments, LazySingleton, GetOrCompute, Locked2, Locked3)
"""Programs that end in every schedule, so that a search which checks nothing goes on and on."""

ORDERS = {Locked2: 252, Locked3: 756_756}
"""In how many orders the threads can take the lock: (2·5)! / 5!², (3·5)! / 5!³."""

HAND_OVERS = 100_000


@dataclass(frozen=True, kw_only=True)
class Tool:
    """How a tool is installed and started."""

    name: str
    requirement: str
    options: tuple[str, ...] = ()
    """For pip."""
    launcher: str = "python"
    """What starts a script; frontrun has its own."""


@dataclass(frozen=True, kw_only=True)
class Explorer(Tool):
    """A tool that explores, and the strategies that it has."""

    strategies: tuple[str, ...]
    samplers: tuple[str, ...]
    """Those that go on for ever."""
    exhaustive: tuple[str, ...]


AnyTool = TypeVar("AnyTool", bound=Tool)

TOOLS = (
    Explorer(
        name="pytest-freethread",
        requirement=str(ROOT),
        strategies=("auto", "random", "dpor"),
        samplers=("random", "pct", "pos", "surw"),
        exhaustive=("dpor",),
    ),
    Explorer(
        name="frontrun",
        requirement="frontrun>=0.7",
        strategies=("dpor2", "dpor", "random"),
        samplers=("random",),
        exhaustive=("dpor2", "dpor"),
        launcher="frontrun",
    ),
    Explorer(
        name="interleave-test",
        requirement="interleave-test>=0.1",
        strategies=("random", "pct", "dfs"),
        samplers=("random", "pct"),
        exhaustive=("dfs",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one search."""

    found: bool
    schedules: int
    seconds: float
    exhausted: bool
    note: str = ""
    """What the tool says besides, where it found nothing."""


def install(folder: Path, tools: Sequence[AnyTool]) -> dict[AnyTool, Environment]:
    """The environments of the tools that this Python can have; says why not, of the others.

    Args:
        folder: where they are made.
        tools: ours comes first.
    """
    environments = {}
    for tool in tools:
        try:
            # Of the peers a ready-made release: nothing is compiled here.
            environments[tool] = Environment.make(
                folder / tool.name,
                "--only-binary=frontrun,interleave-test",
                *tool.options,
                tool.requirement,
            )
        except SystemExit as failure:
            if tool is tools[0]:
                raise
            errors = [line for line in str(failure).splitlines() if line.startswith("ERROR: ")]
            print(f"- left out: {tool.name}; pip says {errors[0] if errors else failure}")
        else:
            ask = f"import importlib.metadata; print(importlib.metadata.version({tool.name!r}))"
            version = run([str(environments[tool].python), "-c", ask]).strip()
            print(f"- {tool.name} {version} beside {environments[tool].installed}")
    return environments


def search(
    tool: Explorer,
    environment: Environment,
    strategy: str,
    program: type[Program],
    *,
    seeds: int = 1,
    seconds: float,
    blind: bool = False,
) -> list[Outcome]:
    """A search for each seed, in one process."""
    output = run(
        [
            str(environment.python.with_name(tool.launcher)),
            *(("python",) if tool.launcher != "python" else ()),
            str(Path(_explored.__file__)),
            *(tool.name, strategy, program.__name__, str(seeds), str(seconds)),
            *(("--blind",) if blind else ()),
        ]
    )
    return [Outcome(**outcome) for outcome in json.loads(output.splitlines()[-1])]


def title(program: type[Program]) -> str:
    return f"{program.__doc__}, {program.threads} threads"


def compare_finding(
    environments: Mapping[Explorer, Environment], seeds: int, seconds: float
) -> None:
    """Print how many schedules and how long it takes until each bug is found."""
    columns = [(tool, strategy) for tool in environments for strategy in tool.strategies]
    rows = []
    for program in RACY:
        row, ours, peers = [title(program)], 0.0, []
        for tool, strategy in columns:
            made = search(tool, environments[tool], strategy, program, seeds=seeds, seconds=seconds)
            hits = [one for one in made if one.found]
            time_taken = median(one.seconds for one in made)
            row.append(
                f"{len(hits)}/{seeds}; {median(one.schedules for one in made):,.0f};"
                f" {time_taken * 1000:,.0f} ms"
                + "".join(f"; {note}" for note in sorted({o.note for o in made if o.note}))
            )
            if (tool, strategy) == columns[0]:
                ours = time_taken
            elif tool is not TOOLS[0] and len(hits) == seeds:
                peers.append(time_taken)
        rows.append([*row, f"{min(peers) / ours:.1f} x" if peers else "only ours"])
    head = [f"{tool.name} {strategy}" for tool, strategy in columns]
    print(
        f"\nFound (of {seeds} seeds, {seconds:g} s each); schedules; time; medians."
        "\nLast: the fastest peer strategy that always finds it / our auto.\n"
    )
    print_table(["", *head, "peer / ours"], rows)


def compare_rate(environments: Mapping[Explorer, Environment], seconds: float) -> None:
    """Print schedules per second, of strategies that go on for ever."""
    columns = [(tool, strategy) for tool in environments for strategy in tool.samplers]
    rows = []
    for program in ENDLESS:
        rates = {}
        for tool, strategy in columns:
            (made,) = search(
                tool, environments[tool], strategy, program, seconds=seconds, blind=True
            )
            rates[tool, strategy] = made.schedules / made.seconds
        ours = [rate for (tool, _), rate in rates.items() if tool is TOOLS[0]]
        peers = [rate for (tool, _), rate in rates.items() if tool is not TOOLS[0]]
        ratios = (
            [f"{max(ours) / max(peers):.1f} x", f"{min(ours) / max(peers):.1f} x"] if peers else []
        )
        rows.append([title(program), *(f"{rate:,.0f}" for rate in rates.values()), *ratios])
    head = [f"{tool.name} {strategy}" for tool, strategy in columns]
    ratio = ["our best / best peer", "our slowest / best peer"] if len(environments) > 1 else []
    print(f"\nSchedules per second, over {seconds:g} s without checks:\n")
    print_table(["", *head, *ratio], rows)


def compare_counts(environments: Mapping[Explorer, Environment], seconds: float) -> None:
    """Print what exhaustive searches count, and whether they say that they were exhaustive."""
    columns = [(tool, strategy) for tool in environments for strategy in tool.exhaustive]
    rows = []
    for program, orders in ORDERS.items():
        row = [title(program), f"{orders:,}"]
        for tool, strategy in columns:
            (made,) = search(tool, environments[tool], strategy, program, seconds=seconds)
            claim = "exhaustive" if made.exhausted else made.note or "not exhausted"
            row.append(f"{made.schedules:,} in {made.seconds:.2f} s, {claim}")
        rows.append(row)
    head = [f"{tool.name} {strategy}" for tool, strategy in columns]
    print(f"\nExhaustive search of correct programs, within {seconds:g} s:\n")
    print_table(["", "orders of the lock", *head], rows)


def floor() -> float:
    """Hand-overs per second of two threads on one core that do nothing but wake each other.

    What no tool can do better on real threads; OSError or AttributeError where it cannot be had.
    """
    batons = [os.eventfd(0), os.eventfd(0)]
    allowed = os.sched_getaffinity(0)

    def play(own: int, other: int) -> None:
        os.sched_setaffinity(0, {min(allowed)})
        for _ in range(HAND_OVERS // 2):
            os.eventfd_read(own)
            os.eventfd_write(other, 1)

    threads = [threading.Thread(target=play, args=pair) for pair in (batons, batons[::-1])]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    os.eventfd_write(batons[0], 1)
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    for baton in batons:
        os.close(baton)
    return HAND_OVERS / elapsed


def compare_floor(environments: Mapping[Explorer, Environment], seconds: float) -> None:
    """Print the hand-overs per second of an exploration beside what the system allows."""
    ours = TOOLS[0]
    (made,) = search(ours, environments[ours], "random", Relay, seconds=seconds, blind=True)
    # At every other step, on average, the random walk chooses the thread that did not run last.
    rate = made.schedules * Relay.threads * Relay.writes / 2 / made.seconds
    print(f"\nHand-overs per second, two threads, random walk: ours {rate:,.0f}")
    try:
        lowest = floor()
    except (AttributeError, OSError) as reason:
        print(f"The floor is not to be had here: {reason}")
    else:
        print(f"The floor (eventfd, one core, no work): {lowest:,.0f}, {lowest / rate:.1f} x ours")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explore", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="searches per cell (default 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="per search (default 10)")
    arguments = parser.parse_args()

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, the GIL is {'on' if gil else 'off'}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="pytest-freethread-") as temporary:
        print("Environments, made for this run in a temporary folder by venv and pip:")
        environments = install(Path(temporary), TOOLS)
        compare_finding(environments, arguments.seeds, arguments.seconds)
        compare_rate(environments, arguments.seconds / 2)
        compare_counts(environments, arguments.seconds)
        compare_floor(environments, arguments.seconds / 2)


if __name__ == "__main__":
    main()
