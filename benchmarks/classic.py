"""Classic racy programs: how many schedules each strategy needs to find the bug.

The programs are our ports (`fixtures/classic`) of SCTBench, the collection on which papers about
schedule exploration are compared. A search counts all schedules that it ran, those included that
only taught it what is shared. The published numbers beside ours are those of the artefact of SURW
(20 trials, at most 10,000 schedules): the programs are the same, the steps are those of C, so that
they say what is usual and not what is better.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.stress import print_table
from pytest_freethread import explore
from pytest_freethread.records import Interleaving, Verdict
from pytest_freethread.scheduling import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "classic"
PUBLISHED = {"surw": "SURW", "pct": "PCT-3", "pos": "POS", "random": "RW"}
"""Which of the published columns stands for which of our strategies."""

LEFT_OUT = """
Left out: arithmetic_prog and fsbench, which fail in every schedule, as phase01, sync01 and sync02
do (ported, marked trivial, not run); the other three variants of the work-stealing queue, which are
about atomic instructions that Python does not have; qsort_mt, radbench, safestack, parsec and
splash2, which are whole programs in C. Of the work-stealing queue and the bounded buffer the bug is
ported, not the text; the philosophers, who fail an assertion there, come to a standstill here."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A port, or one variant of it, with its row of the published table."""

    name: str
    setup: Callable[[], Any]
    threads: Sequence[Callable[[Any], object]]
    invariant: Callable[[Any], object] | None
    published: dict[str, str]


def load() -> list[Program]:
    """All ports but the trivial ones, each variant for itself."""
    programs = []
    for path in sorted(FOLDER.glob("*.py")):
        name = f"classic_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        # Under its name, since the bodies' module is looked up by it.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        header, _, rows = (module.__doc__ or "").partition("\n")
        said = header.rpartition("published: ")[2]
        if said == "trivial":
            continue
        published = {path.stem: said} | dict(re.findall(r"^(\w+): (.+)$", rows, re.MULTILINE))
        if hasattr(module, "variants"):
            variants = module.variants
        else:
            invariant = getattr(module, "invariant", None)
            variants = {path.stem: (module.setup, module.threads, invariant)}
        programs += [
            Program(
                name=variant,
                setup=setup,
                threads=threads,
                invariant=invariant,
                published=cells(published.get(variant, "-")),
            )
            for variant, (setup, threads, invariant) in variants.items()
        ]
    return programs


def cells(row: str) -> dict[str, str]:
    """Of `SURW 7±7, PCT-3 -` the number of each column."""
    parts = (part.partition(" ") for part in row.split(", "))
    return {column: number for column, _, number in parts}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A search that found the bug: at which schedule, after how many seconds."""

    schedule: int
    seconds: float


def search(program: Program, strategy: str, *, seed: int, cap: int, seconds: float) -> Found | None:
    """One search, which ends at the bug, at `cap` schedules, or after `seconds`.

    Raises:
        SystemExit: the search was not in control of the program.
    """
    result = explore(
        *program.threads,
        setup=program.setup,
        invariant=program.invariant,
        strategy=strategy,
        schedules=cap,
        seconds=seconds,
        seed=seed,
    )
    if result.verdict is Verdict.INCONCLUSIVE:
        raise SystemExit(f"{program.name}, {strategy}, seed {seed}:\n{result}")
    for finding in result.findings:
        if isinstance(finding.evidence, Interleaving):
            schedule, _, elapsed = finding.evidence.found
            return Found(schedule=schedule, seconds=elapsed)
    return None


def cell(found: Sequence[Found | None]) -> str:
    """The mean of the schedules and its deviation; how many found it, where not all did."""
    numbers = [one.schedule for one in found if one is not None]
    if not numbers:
        return "-"
    spread = stdev(numbers) if len(numbers) > 1 else 0.0
    text = f"{mean(numbers):.0f}±{spread:.0f}"
    return text if len(numbers) == len(found) else f"{text} ({len(numbers)}/{len(found)})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classic", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="searches per cell (default 20)")
    parser.add_argument("--cap", type=int, default=2000, help="schedules at most (default 2000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per search (default 20)")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    arguments = parser.parse_args()

    strategies = ("auto", *(name for name in STRATEGIES if name != "auto"))
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, the GIL is {'on' if gil else 'off'}, {os.cpu_count()} cores")
    print(
        f"Schedules to the bug, mean±deviation of {arguments.seeds} seeds; (n/{arguments.seeds})"
        f" where not all found it\nwithin {arguments.cap} schedules and {arguments.seconds:g} s."
        " dfs and dpor do not depend on the seed: one search.\n"
    )
    rows, slowest = [], 0.0
    began = time.perf_counter()
    for program in load():
        if arguments.only not in program.name:
            continue
        row = [program.name, str(len(program.threads))]
        for strategy in strategies:
            seeds = 1 if strategy in {"dfs", "dpor"} else arguments.seeds
            found = [
                search(program, strategy, seed=seed, cap=arguments.cap, seconds=arguments.seconds)
                for seed in range(seeds)
            ]
            row.append(cell(found))
            if strategy == "auto":
                most = max((one.seconds for one in found if one), default=0.0)
                slowest = max(slowest, most)
                row.append(f"{most * 1000:,.0f} ms")
        rows.append([*row, *(program.published.get(name, "-") for name in PUBLISHED.values())])
        print(f"{time.perf_counter() - began:.0f} s: {' | '.join(row)}", file=sys.stderr)
    head = ["", "threads", "auto", "its slowest", *strategies[1:]]
    print_table([*head, *(f"published {name}" for name in PUBLISHED.values())], rows)
    print(f"\nThe slowest search of auto took {slowest:.2f} s.{LEFT_OUT}")


if __name__ == "__main__":
    main()
