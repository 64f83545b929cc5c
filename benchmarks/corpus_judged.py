"""What the detectors find by themselves in a folder of known bugs of real packages.

Each bug is searched for three times: with its invariant, without it (all is well in the end, as far
as anybody says), and without it and with its bodies' exceptions swallowed, so that only what the
detectors say is left. Each control, a fixed release or a documented lock, is explored with races as
errors; what is found there is either a race that the fix left, or a false alarm.

    python -m benchmarks.corpus_judged FOLDER [--seconds 10] [NAME ...]

The cases say of themselves what they are: see `_pinned.py`, and `KIND`, `EXPECT` (`bug` or `ok`).
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from pathlib import Path

from benchmarks._pinned import Case, Outcome, search
from benchmarks.stress import print_table

WAYS = {
    "detectors alone": {"invariant": False, "exceptions": False},
    "and exceptions": {"invariant": False},
    "and invariant": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="parts of names; all cases by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each search (default 10)")
    parser.add_argument("--verbose", action="store_true", help="print whole reports")
    chosen = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}")
    cases = [Case.read(path) for path in sorted(chosen.folder.glob("*.py"))]
    wanted = [
        case
        for case in cases
        if "EXPECT" in case.header
        and (not chosen.names or any(name in case.path.stem for name in chosen.names))
    ]
    bugs = [case for case in wanted if case.header["EXPECT"] == "bug"]
    found = {}
    for case in bugs:
        found[case.path] = outcomes = {
            way: search(case, seconds=chosen.seconds, **how) for way, how in WAYS.items()
        }
        for way, outcome in outcomes.items():
            tell(f"{case.path.stem}, {way}", outcome, verbose=chosen.verbose)
    kinds = defaultdict(list)
    for case in bugs:
        kinds[case.header["KIND"]].append(found[case.path])
    rows = [
        [
            kind,
            *(f"{sum(each[way].failed for each in several)}/{len(several)}" for way in WAYS),
        ]
        for kind, several in [*sorted(kinds.items()), ("all", list(found.values()))]
    ]
    print()
    print_table(["kind", *WAYS], rows)
    print("\nControls, with races as errors:\n")
    for case in wanted:
        if case.header["EXPECT"] != "bug":
            outcome = search(case, seconds=chosen.seconds)
            tell(case.path.stem, outcome, verbose=chosen.verbose)


def tell(what: str, outcome: Outcome, *, verbose: bool) -> None:
    """Print what a search came to, in a line."""
    much = "all" if outcome.exhaustive else f"{outcome.schedules:,}"
    said = "; ".join(outcome.errors) or outcome.text[-200:] * (outcome.verdict == "crash")
    print(
        f"{what:<42} {outcome.verdict:<12} {much:>7} schedules {outcome.seconds:5.1f} s  {said}",
        flush=True,
    )
    if verbose:
        print(outcome.text, flush=True)


if __name__ == "__main__":
    main()
