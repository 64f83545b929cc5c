"""False alarms: every correct program of the ground truth under many schedules; none may be red.

The programs are `fixtures/safe`: the repaired twin of every racy program. A search ends early where
it has tried every interleaving; then that is said instead of the number of schedules.

    python -m benchmarks.false_alarms [--schedules 10000] [--seconds 60] [NAME ...]
"""

from __future__ import annotations

import argparse
import platform
import sys

from fixtures import ground_truth
from pytest_freethread import Verdict, explore


def main() -> int:
    """Explore all of them; the exit status says whether any was blamed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names; all programs by default")
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}, {sys.abiflags or '-'}")
    blamed = 0
    for program in ground_truth.programs("safe"):
        name = program.name
        if chosen.names and not any(part in name for part in chosen.names):
            continue
        with program.loaded() as (module, setup):
            result = explore(
                *module.threads,
                setup=setup,
                invariant=getattr(module, "invariant", None),
                threads=len(module.threads),
                schedules=chosen.schedules,
                seconds=chosen.seconds,
                races="error",
                include=program.include,
            )
        much = "all" if result.exhaustive else f"{result.executions:,}"
        good = result.verdict is Verdict.PASSED
        blamed += not good
        said = "" if good else f"  {result.verdict.name}: {result}"
        print(f"{name:<40} {much:>8} schedules  {result.seconds:6.1f} s{said}", flush=True)
    print(f"{blamed} false alarms")
    return 1 if blamed else 0


if __name__ == "__main__":
    sys.exit(main())
