"""Contracts: how soon the wrong twins fail, how small that gets, and how much a search gets done.

For each wrong twin below `fixtures/racy/contract`, with so many seeds: the time until a scenario
fails first, until it is shrunk and confirmed, and the size of what is reported, beside the smallest
that is known (calls / switches, from the twin's header). For each repaired twin: scenarios and
schedules per second. All in one process, one after the other, without Hypothesis's database.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import hypothesis

from benchmarks.stress import ROOT, print_table
from pytest_freethread import Verdict, check_contract
from pytest_freethread.records import Interleaving

if TYPE_CHECKING:
    from types import ModuleType

    from pytest_freethread import Result

SCOPE = re.compile(r"([\d,]+) different scenarios .*?([\d,]+) schedules in ([\d.]+) s")
FIRST = re.compile(r"the first to fail after [\d,]+ and ([\d.]+) s")
KNOWN = re.compile(r"calls: (\d+) \| switches: (\d+)")


def load(side: str, name: str) -> ModuleType:
    path = ROOT / "fixtures" / side / "contract" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"contract_{side}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(module: ModuleType, **how: Any) -> Result:
    return check_contract(module.contract, **{**getattr(module, "options", {}), **how})


def racy(name: str, seeds: int) -> list[str]:
    module = load("racy", name)
    first, whole, calls, switches = [], [], [], []
    missed = 0
    for seed in range(seeds):
        began = time.perf_counter()
        result = check(module, seed=seed)
        whole.append(time.perf_counter() - began)
        if result.verdict is not Verdict.FAILED:
            missed += 1
            continue
        (finding,) = result.findings
        shown = finding.evidence
        assert isinstance(shown, Interleaving)
        assert shown.scenario is not None
        assert finding.token is not None
        failed = FIRST.search(result.scope)
        assert failed is not None, result.scope
        first.append(float(failed[1]))
        calls.append(sum(len(called) for _, called in shown.scenario.rows))
        switches.append(finding.token.count("."))
    known = KNOWN.search(module.__doc__ or "")
    assert known is not None, f"{name}: its header says nothing of calls and switches"
    return [
        name,
        f"{seeds - missed}/{seeds}",
        f"{median(first):.2f} s" if first else "-",
        f"{max(first):.2f} s" if first else "-",
        f"{median(whole):.2f} s",
        f"{median(calls):g} (of {known[1]})" if calls else "-",
        f"{median(switches):g} (of {known[2]})" if switches else "-",
    ]


def safe(name: str) -> list[str]:
    result = check(load("safe", name), seconds=None)
    assert result.verdict is Verdict.PASSED, str(result)
    said = SCOPE.search(result.scope)
    assert said is not None, result.scope
    scenarios, schedules = (int(said[part].replace(",", "")) for part in (1, 2))
    seconds = float(said[3])
    return [
        name,
        f"{scenarios:,}",
        f"{schedules:,}",
        f"{seconds:.1f} s",
        f"{scenarios / seconds:,.0f}",
        f"{schedules / seconds:,.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contracts", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="for each wrong twin (default 20)")
    parser.add_argument("names", nargs="*", help="of the twins; all unless told")
    arguments = parser.parse_args()
    hypothesis.settings.register_profile("no_database", database=None)
    hypothesis.settings.load_profile("no_database")
    folder = ROOT / "fixtures" / "racy" / "contract"
    names = arguments.names or sorted(path.stem for path in folder.glob("*.py"))

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, the GIL is {'on' if gil else 'off'}, {os.cpu_count()} cores\n")
    print(f"Wrong twins, {arguments.seeds} seeds: medians (and the longest time to a failure)\n")
    head = ["", "found", "first failure", "longest", "shrunk", "calls", "switches"]
    print_table(head, [racy(name, arguments.seeds) for name in names])
    print("\nRepaired twins, all scenarios\n")
    head = ["", "scenarios", "schedules", "time", "scenarios/s", "schedules/s"]
    print_table(head, [safe(name) for name in names])


if __name__ == "__main__":
    main()
