"""The stress mode beside pytest-run-parallel and pytest-freethreaded, measured in one run.

Two questions: what does it cost, and what does it find in the same time? Each tool gets an
environment of its own, since the two peers define the same option and cannot be loaded together.
Runs are interleaved (one of each, then again one of each), so that a busy moment of the machine
falls on all of them; medians are printed, and ratios, which carry over to other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import _programs
from benchmarks._programs import PROGRAMS, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
EMPTY_TESTS = 300
THREADS = 4
LOADS = (1, 10)
"""Rounds of `THREADS` threads that the empty tests are run for."""

UNBOUNDED = 10**9
"""More rounds than fit into any time."""

TEST_HEAD = """
import threading
import pytest
from programs import WRONG, {program} as PROGRAM
SECONDS = {seconds}
"""

OURS = """
@pytest.fixture
def state():
    it = PROGRAM()
    yield it
    assert it.holds(), WRONG

@pytest.mark.freethread(seconds=SECONDS, shared=["state"])
def test_race(state):
    state.work()
"""

# A fixture is set up once for all iterations, so the states are made beforehand and chosen by the
# index that the plugin provides; a barrier of the plugin's stands before each iteration.
RUN_PARALLEL = """
@pytest.fixture
def states(num_iterations):
    them = [PROGRAM() for _ in range(num_iterations)]
    yield them
    assert all(it.holds() for it in them), WRONG

def test_race(states, iteration_index):
    states[iteration_index].work()
"""

# The same without an index: a barrier stands before each round of a pool's threads, so that each of
# these takes part in each round once, and its own count is the round's number. The plugin runs
# the body once more, on the main thread.
FREETHREADED = """
@pytest.fixture
def states(request):
    rounds = request.config.option.iterations // request.config.option.threads
    them = [PROGRAM() for _ in range(rounds)]
    yield them
    assert all(it.holds() for it in them), WRONG

@pytest.fixture
def own():
    return threading.local()

def test_race(states, own):
    if threading.current_thread() is not threading.main_thread():
        own.round = getattr(own, "round", -1) + 1
        states[own.round].work()
"""

RECORDER = """
import json
import pathlib
import programs

reports = []

def pytest_runtest_logreport(report):
    reports.append([report.outcome, report.duration, report.longreprtext])

def pytest_sessionfinish():
    record = {"reports": reports, "rounds": programs.Program.made}
    pathlib.Path(__file__).with_name("record.json").write_text(json.dumps(record))
"""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """How a tool is installed, told what to do, and used to look for a race."""

    name: str
    requirement: str
    options: Callable[[int, int], list[str]]
    """The command line for a number of threads and of rounds."""
    race: str
    """A test of PROGRAM, the best that the tool allows: a fresh state for each round, worked on by
    all threads at once, looked at in the teardown."""
    bounded_by_time: bool
    """It stops after SECONDS by itself; where it cannot, the rounds are fitted to the time."""


def the_tools() -> list[Tool]:
    """Ours, then the peers that this Python can have, as the project's dependency group asks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    bench: list[str] = project["dependency-groups"]["bench"]
    tools = [
        Tool(
            name="pytest-freethread",
            requirement=str(ROOT),
            options=lambda threads, rounds: [
                "--freethread",
                f"--freethread-threads={threads}",
                f"--freethread-rounds={rounds}",
            ],
            race=OURS,
            bounded_by_time=True,
        ),
        Tool(
            name="pytest-run-parallel",
            requirement=next(peer for peer in bench if peer.startswith("pytest-run-parallel")),
            options=lambda threads, rounds: [
                f"--parallel-threads={threads}",
                f"--iterations={rounds}",
            ],
            race=RUN_PARALLEL,
            bounded_by_time=False,
        ),
    ]
    if sys.version_info < (3, 13):
        print("Left out: pytest-freethreaded, which needs Python 3.13.")
        return tools
    tools.append(
        Tool(
            name="pytest-freethreaded",
            requirement=next(peer for peer in bench if peer.startswith("pytest-freethreaded")),
            # Its iterations are counted over all threads.
            options=lambda threads, rounds: [
                f"--threads={threads}",
                f"--iterations={threads * rounds}",
            ],
            race=FREETHREADED,
            bounded_by_time=False,
        )
    )
    return tools


def run(command: Sequence[str], *, folder: Path = ROOT, accepted: Sequence[int] = (0,)) -> str:
    """The standard output of a command, which is spared this process's settings of Python.

    Raises:
        SystemExit: it ended with an exit code that is not accepted; its output is shown.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    if done.returncode not in accepted:
        raise SystemExit(f"exit code {done.returncode} of {command}\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment with pytest and at most one of the tools."""

    python: Path
    installed: str
    """The versions that matter, to print."""

    @classmethod
    def make(cls, folder: Path, *requirements: str) -> Environment:
        run([sys.executable, "-m", "venv", str(folder)])
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        # Of Hypothesis, which ours depends on, a ready-made release: nothing is compiled here.
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        run([*pip, "install", "--only-binary", "hypothesis", "pytest", *requirements])
        installed = [
            f"{package['name']} {package['version']}"
            for package in json.loads(run([*pip, "list", "--format=json"]))
            if package["name"].startswith(("pytest", "hypothesis"))
        ]
        return cls(python=python, installed=", ".join(installed))

    def pytest(self, folder: Path, options: Sequence[str], *, accepted: Sequence[int]) -> None:
        command = [str(self.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        run(command, folder=folder, accepted=accepted)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join(cells) + " |")


def compare_cost(
    folder: Path, alone: Environment, environments: Mapping[Tool, Environment], repeats: int
) -> None:
    """Print how long whole pytest processes take on empty tests, at rest and under load."""
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    tests = "".join(f"def test_{number}(): pass\n" for number in range(EMPTY_TESTS))
    (folder / "test_empty.py").write_text(tests, encoding="utf-8")

    columns = ("not used", *(f"{THREADS} threads x {rounds}" for rounds in LOADS))
    commands: dict[tuple[str, str], tuple[Environment, list[str]]] = {
        ("pytest alone", columns[0]): (alone, [])
    }
    for tool, environment in environments.items():
        loads = ([], *(tool.options(THREADS, rounds) for rounds in LOADS))
        for column, options in zip(columns, loads, strict=True):
            commands[tool.name, column] = (environment, options)

    times: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
    for repeat in range(1 + repeats):
        for key, (environment, options) in commands.items():
            start = time.perf_counter()
            environment.pytest(folder, options, accepted=(0,))
            if repeat > 0:  # the first one compiles, and fills the disk's cache
                times[key].append(time.perf_counter() - start)
    seconds = {key: median(values) for key, values in times.items()}

    base = seconds["pytest alone", columns[0]]
    names = [tool.name for tool in environments]
    rows = [["pytest alone", f"{base:.2f} s", *("" for _ in LOADS)]]
    for name in names:
        cells = (seconds[name, column] for column in columns)
        rows.append([name, *(f"{cell:.2f} s = {cell / base:.2f} x pytest" for cell in cells)])
    for peer in names[1:]:
        ratios = (seconds[names[0], column] / seconds[peer, column] for column in columns)
        rows.append([f"ours / {peer}", *(f"{ratio:.2f}" for ratio in ratios)])
    print(f"\n{EMPTY_TESTS} empty tests, the whole process, median of {repeats}:\n")
    print_table(["", *columns], rows)
    if "pytest-freethreaded" in names:
        print(
            "\npytest-freethreaded is never off: unused, it runs each test 200 times in 10 threads."
        )


@dataclass(frozen=True, kw_only=True)
class Try:
    """One search for a race: whether it was found, and what was spent on it."""

    found: bool
    seconds: float
    rounds: int


def search(
    folder: Path, tool: Tool, environment: Environment, program: type[Program], rounds: int
) -> Try:
    """Run the tool's test of a program; `folder` holds all but that test.

    Raises:
        SystemExit: the test failed by something else than the program's invariant.
    """
    options = tool.options(program.threads, rounds)
    environment.pytest(folder, options, accepted=(0, 1))
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    failures = [text for outcome, _, text in record["reports"] if outcome == "failed"]
    for text in failures:
        if _programs.WRONG not in text:
            raise SystemExit(f"{tool.name} on {program.__name__}:\n{text}")
    return Try(
        found=bool(failures),
        seconds=sum(duration for _, duration, _ in record["reports"]),
        rounds=record["rounds"],
    )


def compare_power(
    folder: Path, environments: Mapping[Tool, Environment], tries: int, seconds: float
) -> None:
    """Print how often each tool finds each program within the same time."""
    source = Path(_programs.__file__).read_text(encoding="utf-8")
    folders: dict[tuple[type[Program], Tool], Path] = {}
    for program in PROGRAMS:
        for tool in environments:
            own = folder / f"{program.__name__}-{tool.name}"
            own.mkdir(parents=True)
            (own / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
            (own / "programs.py").write_text(source, encoding="utf-8")
            (own / "conftest.py").write_text(RECORDER, encoding="utf-8")
            head = TEST_HEAD.format(program=program.__name__, seconds=seconds)
            (own / "test_race.py").write_text(head + tool.race, encoding="utf-8")
            folders[program, tool] = own

    rounds = {key: UNBOUNDED if key[1].bounded_by_time else 500 for key in folders}
    results: dict[tuple[type[Program], Tool], list[Try]] = {key: [] for key in folders}
    for number in range(1 + tries):
        for (program, tool), own in folders.items():
            key = (program, tool)
            result = search(own, tool, environments[tool], program, rounds[key])
            if not tool.bounded_by_time:
                rounds[key] = max(1, round(result.rounds * seconds / result.seconds))
            if number > 0:  # the first one fits the rounds to the time
                results[key].append(result)

    rows = []
    for program in PROGRAMS:
        row = [f"{program.__doc__}, {program.threads} threads"]
        for tool in environments:
            made = results[program, tool]
            row.append(
                f"{sum(one.found for one in made)}/{tries}"
                f" in {median(one.seconds for one in made):.2f} s"
                f" and {median(one.rounds for one in made):,.0f} rounds"
            )
        rows.append(row)
    print(f"\nFound within {seconds:g} s, and the median of what a try took:\n")
    print_table(["", *(tool.name for tool in environments)], rows)
    print("\nThe last program is correct: to find it would be a false alarm.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stress", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="processes per time (default 5)")
    parser.add_argument("--tries", type=int, default=5, help="searches per program (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per search (default 1)")
    arguments = parser.parse_args()

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, the GIL is {'on' if gil else 'off'}, {os.cpu_count()} cores")
    tools = the_tools()
    with tempfile.TemporaryDirectory(prefix="pytest-freethread-") as temporary:
        folder = Path(temporary)
        print("Environments, made for this run in a temporary folder by venv and pip:")
        alone = Environment.make(folder / "alone")
        environments = {
            tool: Environment.make(folder / tool.name, tool.requirement) for tool in tools
        }
        for environment in (alone, *environments.values()):
            print(f"- {environment.installed}")
        compare_cost(folder / "empty", alone, environments, arguments.repeats)
        compare_power(folder / "races", environments, arguments.tries, arguments.seconds)


if __name__ == "__main__":
    main()
