"""Cases that need packages at pinned versions: installed once, each case in a process of its own.

A case is a file as in `fixtures/safe`: `setup`, `threads` (the bodies), mostly an `invariant`; and
`PACKAGE`, a requirement that pip understands, `REQUIRES`, more of them, each empty where there are
none. What is installed stays in the user's cache, one folder for each set of requirements.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _judged
from benchmarks.stress import ROOT

GRACE = 60.0
"""Seconds beyond its budget that a search may take, with all that it confirms."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, and the literals at its top by name."""

    path: Path
    header: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Case:
        """Without running it."""
        header = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                    try:
                        header[name] = ast.literal_eval(value)
                    except ValueError:
                        continue
        return cls(path=path, header=header)

    @property
    def requirements(self) -> list[str]:
        """What pip installs for it."""
        package = self.header.get("PACKAGE")
        return [*([package] if package else []), *self.header.get("REQUIRES", [])]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search came to: a verdict, or how the process ended without one."""

    verdict: str
    schedules: int = 0
    seconds: float = 0.0
    exhaustive: bool = False
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    text: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict == "failed"


def search(case: Case, *, seconds: float, **how: object) -> Outcome:
    """Explore a case in a process of its own.

    Args:
        case: which.
        seconds: the budget of the search; the process gets `GRACE` besides.
        how: see `_judged.Search`.
    """
    paths = [str(ROOT), *([str(_installed(case.requirements))] if case.requirements else [])]
    include = case.header.get("INCLUDE", [])
    asked = {"path": str(case.path), "packages": paths[1:], "include": include, "seconds": seconds}
    try:
        process = subprocess.run(
            # -P: a case may be called as the package that it is about.
            [sys.executable, "-P", "-m", _judged.__name__, json.dumps({**asked, **how})],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            cwd=case.path.parent,
            capture_output=True,
            text=True,
            timeout=seconds + GRACE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(verdict="hang")
    answer = process.stdout.rpartition("\n@")[2]
    if process.returncode or not answer.startswith("{"):
        return Outcome(verdict="crash", text=process.stderr)
    return Outcome(**json.loads(answer))


def _installed(requirements: list[str]) -> Path:
    """The folder with the packages, and no others: what they depend on is pinned likewise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pytest-freethread"
    build = f"{sys.version_info[0]}.{sys.version_info[1]}{sys.abiflags}"
    name = re.sub(r"[^\w.=]+", "-", "_".join(requirements))
    folder = cache / "packages" / build / name
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
        partial = folder.with_name(f".{name}")
        where = ["--no-compile", "--no-deps", "--upgrade", "--target", str(partial)]
        subprocess.run([*pip, *where, *requirements], check=True, stderr=subprocess.DEVNULL)
        partial.rename(folder)
    return folder
