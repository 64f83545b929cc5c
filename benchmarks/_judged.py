"""One search of one case, in a process of its own; see `_pinned.py`, which starts it.

Takes what to do as JSON, and prints what it came to as JSON after an `@` on the last line.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_freethread import explore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to do.

    Attributes:
        path: of the case.
        packages: the folders of the packages that get probes, all that is loaded of them.
        include: further modules that get probes.
        seconds: the budget.
        races: what `explore` is told.
        invariant: whether the case's own is asked; otherwise all is well in the end.
        exceptions: whether those that escape from a body count; otherwise it just ends.
        strategy: what `explore` is told.
    """

    path: str
    packages: Sequence[str]
    seconds: float
    include: Sequence[str] = ()
    races: str = "error"
    invariant: bool = True
    exceptions: bool = True
    strategy: str = "auto"


def main() -> None:
    wanted = Search(**json.loads(sys.argv[1]))
    spec = importlib.util.spec_from_file_location("case", wanted.path)
    assert spec is not None
    assert spec.loader is not None
    case = sys.modules["case"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(case)
    bodies = case.threads if wanted.exceptions else [quiet(body) for body in case.threads]
    result = explore(
        *bodies,
        threads=len(bodies),
        setup=getattr(case, "setup", None),
        invariant=getattr(case, "invariant", None) if wanted.invariant else None,
        strategy=wanted.strategy,
        schedules=10**9,
        seconds=wanted.seconds,
        seed=1,
        races=wanted.races,
        include=[*wanted.include, *loaded_from(wanted.packages)],
    )
    answer = {
        "verdict": result.verdict.value,
        "schedules": result.executions,
        "seconds": result.seconds,
        "exhaustive": result.exhaustive,
        "errors": [f.message for f in result.findings if f.severity == "error"],
        "notes": [f.message for f in result.findings if f.severity == "note"],
        "text": str(result),
    }
    print(f"\n@{json.dumps(answer)}")


def loaded_from(folders: Sequence[str]) -> list[str]:
    """The outermost names of what is loaded from some folders."""
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    return sorted(
        {
            name.partition(".")[0]
            for name, file in files.items()
            if any(file.startswith(folder) for folder in folders)
        }
    )


def quiet(body: Callable[..., Any]) -> Callable[..., Any]:
    """A body that ends where it would raise."""

    @functools.wraps(body)
    def ends(*arguments: object) -> None:
        with suppress(Exception):
            body(*arguments)

    return ends


if __name__ == "__main__":
    main()
