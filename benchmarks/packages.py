"""What the detectors say of well-known packages and of the standard library, with races as errors.

The programs are `fixtures/packages`: `single`, where each thread has instances of its own;
`shared`, where threads share them as the package's users do; and `library`, modules of the standard
library used as documented. An error is expected, and explained in `docs/findings.md`, or wrong.

    python -m benchmarks.packages [--seconds 5] [--reports] [--speed] [NAME ...]
"""

from __future__ import annotations

import argparse
import platform
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks._pinned import Case, Outcome, search

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "packages"


def main() -> int:
    """Explore all of them; the exit status says whether anything is not explained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names; all programs by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each search (default 5)")
    parser.add_argument("--reports", action="store_true", help="print whole reports")
    parser.add_argument("--speed", action="store_true", help="measure what judging costs")
    chosen = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}, {sys.abiflags or '-'}")
    unexplained = 0
    for path in sorted(FOLDER.rglob("*.py")):
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        if chosen.names and not any(part in name for part in chosen.names):
            continue
        case = Case.read(path)
        judged = search(case, seconds=chosen.seconds)
        slower = _rate(case, "off") / _rate(case, "error") if chosen.speed else 0.0
        strange = _unexplained(case, judged)
        unexplained += bool(strange)
        much = "all" if judged.exhaustive else f"{judged.schedules:,}"
        print(
            f"{name:<26} {judged.verdict:<12} {much:>7} schedules {judged.seconds:5.1f} s"
            + (f"   judging is {slower:.1f} x slower" if chosen.speed else "")
        )
        for error in judged.errors:
            print(f"    {'UNEXPLAINED' if error in strange else 'explained':<11}  {error}")
        if judged.verdict in {"crash", "hang", "inconclusive"} or chosen.reports:
            print(judged.text)
        sys.stdout.flush()
    print(f"{unexplained} programs with something that is not explained")
    return 1 if unexplained else 0


def _unexplained(case: Case, outcome: Outcome) -> list[str]:
    """The errors that the case does not expect; what is no verdict is one."""
    expected = case.header.get("EXPLAINED", [])
    strange = [e for e in outcome.errors if not any(fnmatchcase(e, each) for each in expected)]
    if outcome.verdict not in {"passed", "failed"}:
        strange.append(outcome.verdict)
    return strange


def _rate(case: Case, races: str) -> int:
    """How many schedules a random walk makes in two seconds, whatever it finds."""
    how = {"strategy": "random", "invariant": False, "exceptions": False}
    return search(case, seconds=2.0, races=races, **how).schedules


if __name__ == "__main__":
    sys.exit(main())
