"""The detectors beside pyvft, threadcheck and frontrun, on the ground truth of `fixtures/`.

What each finds and what it blames wrongly, program by program; how much longer a loop under a lock
takes under it; and the memory that ours needs for it. Each tool has an environment of its own, each
program a process of its own with a limit of time: who crashes, hangs or comes to no conclusion has
given no answer, and that is not counted as clean. All runs are interleaved, so that a busy moment
of the machine falls on all of them.

    python -m benchmarks.detectors [NAME ...] [--repeats 5] [--large]
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import _detected
from benchmarks.explore import Tool, install
from benchmarks.stress import ROOT, Environment, print_table
from fixtures import ground_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fixtures.ground_truth import Program

LIMIT = 30.0
"""Seconds for a program; a search is told to take 10."""

ROUNDS = 20_000
"""Of the loop, for each of its two threads."""

FEW_ROUNDS = 1_000
"""The same for threadcheck, whose time grows with their square."""

ACCESSES_OF_A_ROUND = 2 * 2
"""A read and a write, in two threads."""

OURS = Tool(name="pytest-freethread", requirement=str(ROOT))
PYVFT = Tool(name="pyvft", requirement="pyvft>=0.2", options=("--ignore-requires-python",))
THREADCHECK = Tool(name="threadcheck", requirement="threadcheck>=0.0.1")
FRONTRUN = Tool(name="frontrun", requirement="frontrun>=0.7", launcher="frontrun")
TOOLS = (OURS, PYVFT, THREADCHECK, FRONTRUN)


class Answer(enum.Enum):
    """What came of showing a program to a tool."""

    FOUND = "found"
    CLEAN = "clean"
    INCONCLUSIVE = "inconclusive"
    CRASH = "crash"
    HANG = "hang"


NO_ANSWER = (Answer.INCONCLUSIVE, Answer.CRASH, Answer.HANG)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A column of the tables: a tool, and how it is asked."""

    name: str
    tool: Tool
    mode: str
    """As `_detected` calls it."""


JUDGES = (
    Judge(name="ours", tool=OURS, mode="pytest-freethread"),
    Judge(name="ours, accesses alone", tool=OURS, mode="mute"),
    *(Judge(name=tool.name, tool=tool, mode=tool.name) for tool in TOOLS[1:]),
)

Answers = dict[tuple[str, str, str], Answer]
"""By side, name of the program, and name of the judge."""


def ask(environment: Environment, tool: Tool, *arguments: str, limit: float) -> str | None:
    """The last line that `_detected` prints; None if it ended badly.

    Raises:
        subprocess.TimeoutExpired: it did not end.
    """
    command = [
        str(environment.python.with_name(tool.launcher)),
        *(("python",) if tool.launcher != "python" else ()),
        str(Path(_detected.__file__)),
        *arguments,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))},
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=limit,
    )
    lines = done.stdout.splitlines()
    return lines[-1] if done.returncode == 0 and lines else None


def judged(environment: Environment, judge: Judge, program: Program) -> Answer:
    """What a tool says of a program."""
    try:
        line = ask(environment, judge.tool, "judge", judge.mode, str(program.path), limit=LIMIT)
    except subprocess.TimeoutExpired:
        return Answer.HANG
    if line is None:
        return Answer.CRASH
    said = json.loads(line)
    if said["note"]:
        return Answer.INCONCLUSIVE
    return Answer.FOUND if said["found"] else Answer.CLEAN


def judge_all(
    environments: Mapping[Tool, Environment], judges: Sequence[Judge], programs: Sequence[Program]
) -> Answers:
    """Show each program to each tool."""
    return {
        (program.side, program.name, judge.name): judged(environments[judge.tool], judge, program)
        for program in programs
        for judge in judges
    }


def show_sums(answers: Answers, judges: Sequence[Judge], programs: Sequence[Program]) -> None:
    """Print how often each tool is right, wrong, or says nothing."""
    sizes = Counter(program.side for program in programs)
    rows = []
    for judge in judges:
        row = [judge.name]
        for side, order in (
            ("racy", (Answer.FOUND, Answer.CLEAN, *NO_ANSWER)),
            ("safe", (Answer.CLEAN, Answer.FOUND, *NO_ANSWER)),
        ):
            count = Counter(a for (s, _, j), a in answers.items() if (s, j) == (side, judge.name))
            row += [str(count[answer]) for answer in order]
        rows.append(row)
    none = [answer.value for answer in NO_ANSWER]
    print(f"\n{sizes['racy']} racy programs, then {sizes['safe']} safe ones:\n")
    print_table(["", "found", "missed", *none, "clean", "false alarms", *none], rows)


def show_kinds(
    answers: Answers, judges: Sequence[Judge], programs: Sequence[Program], side: str
) -> None:
    """Print the same by the kinds of bugs, for the racy or for the safe programs."""
    of_kind: dict[str, list[str]] = {}
    for program in programs:
        if program.side == side:
            of_kind.setdefault(program.kind, []).append(program.name)
    rows = []
    for kind, names in of_kind.items():
        row = [f"{kind} ({len(names)})"]
        for judge in judges:
            count = Counter(answers[side, name, judge.name] for name in names)
            silent = sum(count[answer] for answer in NO_ANSWER)
            row.append(f"{count[Answer.FOUND]}" + (f", {silent} no answer" if silent else ""))
        rows.append(row)
    print(f"\n{'Found' if side == 'racy' else 'False alarms'}, by the kind of the bug:\n")
    print_table(["", *(judge.name for judge in judges)], rows)


def show_failures(answers: Answers, judges: Sequence[Judge]) -> None:
    """Print which programs ours is wrong about, or says nothing of."""
    wrong = {("racy", Answer.CLEAN): "misses", ("safe", Answer.FOUND): "blames"}
    print()
    for judge in judges:
        if judge.tool is OURS:
            for (side, name, asked), answer in answers.items():
                verb = wrong.get((side, answer), answer.value if answer in NO_ANSWER else None)
                if asked == judge.name and verb is not None:
                    print(f"{judge.name}: {verb} {side}/{name}")


def compare_power(environments: Mapping[Tool, Environment], chosen: Callable[[str], bool]) -> None:
    """Print what each tool finds, and what it blames wrongly."""
    programs = [
        program
        for side in ("racy", "safe")
        for program in ground_truth.programs(side)
        # Those that are about the reference components need this package beside them.
        if not program.include and chosen(program.name)
    ]
    judges = [judge for judge in JUDGES if judge.tool in environments]
    answers = judge_all(environments, judges, programs)
    show_sums(answers, judges, programs)
    show_kinds(answers, judges, programs, "racy")
    show_kinds(answers, judges, programs, "safe")
    show_failures(answers, judges)


def compare_speed(environments: Mapping[Tool, Environment], repeats: int) -> None:
    """Print how much longer the loop takes under each tool than without."""
    loops: list[tuple[Tool, str, int]] = [
        (OURS, mode, ROUNDS) for mode in ("plain", OURS.name, "random walk")
    ]
    if PYVFT in environments:
        loops.append((PYVFT, PYVFT.name, ROUNDS))
    if THREADCHECK in environments:
        loops += [(OURS, "plain-global", FEW_ROUNDS), (THREADCHECK, THREADCHECK.name, FEW_ROUNDS)]
    times: dict[str, list[float]] = {mode: [] for _, mode, _ in loops}
    for _ in range(repeats):
        for tool, mode, rounds in loops:
            line = ask(environments[tool], tool, "loop", mode, str(rounds), limit=600.0)
            if line is None:
                raise SystemExit(f"the loop under {mode} failed")
            times[mode].append(json.loads(line)["seconds"])
    rows = []
    for _, mode, rounds in loops:
        plain = median(times["plain-global" if rounds == FEW_ROUNDS else "plain"])
        took = median(times[mode])
        rows.append([mode, f"{rounds:,}", f"{took * 1000:,.1f} ms", f"{took / plain:,.1f} x"])
    print(f"\nTwo threads that count under a lock, median of {repeats}; times without it:\n")
    print_table(["", "rounds", "time", "ratio"], rows)


def show_memory(environment: Environment, sizes: Iterable[int]) -> None:
    """Print what ours takes at most for loops of so many accesses."""
    rows = []
    for accesses in sizes:
        rounds = accesses // ACCESSES_OF_A_ROUND
        line = ask(environment, OURS, "memory", str(rounds), limit=7200.0)
        if line is None:
            raise SystemExit(f"the loop of {accesses:,} accesses failed")
        took = json.loads(line)
        grown = f"{took['grown'] / 2**20:,.1f} MiB"
        rows.append([f"{accesses:,}", grown, f"{took['seconds']:,.1f} s"])
    print("\nOne controlled execution with race detection, and by how much the process grows:\n")
    print_table(["accesses", "memory", "time"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detectors", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", help="parts of names; all programs by default")
    parser.add_argument("--repeats", type=int, default=5, help="of the loop (default 5)")
    parser.add_argument("--large", action="store_true", help="ten million accesses too")
    arguments = parser.parse_args()

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, the GIL is {'on' if gil else 'off'}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="pytest-freethread-") as temporary:
        print("Environments, made for this run in a temporary folder by venv and pip:")
        environments = install(Path(temporary), TOOLS)
        compare_power(
            environments,
            lambda name: not arguments.names or any(part in name for part in arguments.names),
        )
        compare_speed(environments, arguments.repeats)
        show_memory(environments[OURS], [10**5, 10**6, *([10**7] if arguments.large else [])])


if __name__ == "__main__":
    main()
