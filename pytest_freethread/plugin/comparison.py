"""`--freethread-compare=PYTHON`: the measured tests once more, under a second interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

OUTCOMES: Final = "scaling.json"
"""The file, in the folder of `--freethread-scaling`, with what each measurement came to."""

_INSIDE: Final = "FREETHREAD_COMPARED"
"""Set in the environment of the second interpreter, which compares with nobody."""

_QUESTION: Final = """
import sys
print(sys.version)
import pytest
try:
    import pytest_freethread.plugin
except ImportError:
    sys.exit("pytest-freethread is not installed there")
"""

_PATIENCE: Final = 60


class Comparison:
    """Runs tests under a second interpreter.

    Args:
        config: of this session.
        python: the interpreter, as it was given.
        where: by whom.

    Raises:
        SettingError: it is none, or its environment lacks pytest or this plugin.
    """

    def __init__(self, config: pytest.Config, python: str, where: str) -> None:
        self._config = config
        found = shutil.which(python)
        if found is None:
            raise SettingError(
                f"{where}: {python!r} is not an interpreter (the path of a Python, such as "
                "~/envs/3.14t/bin/python)"
            )
        self._python = os.path.abspath(found)  # noqa: PTH100 - resolving a link leaves its venv
        try:
            asked = subprocess.run(  # noqa: S603 - the user's own interpreter
                [self._python, "-c", _QUESTION],
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
                cwd=config.rootpath,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SettingError(f"{where}: {python!r} does not run: {error}") from None
        if asked.returncode:
            said = asked.stderr.strip().splitlines() or ["it says nothing"]
            raise SettingError(
                f"{where}: {python!r} cannot run these tests: {said[-1]}\nmake it an environment "
                f"with the plugin and with what the tests need:\n  {found} -m venv .venv-compare\n"
                "  .venv-compare/bin/pip install --only-binary hypothesis pytest-freethread\nand "
                "say --freethread-compare=.venv-compare/bin/python"
            )

    def lines(self, here: Sequence[dict[str, Any]]) -> Iterator[str]:
        """Run the tests of these outcomes there, and tell how both compare."""
        from pytest_freethread.report import compared

        tests = list(dict.fromkeys(outcome["test"] for outcome in here))
        with tempfile.TemporaryDirectory(prefix="freethread-") as folder:
            done = self._run(tests, folder)
            file = Path(folder) / OUTCOMES
            there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        yield from compared.table(here, there)
        if not there:
            yield f"{self._python} measured nothing; it said:"
            yield from (f"  {line}" for line in (done.stdout + done.stderr).splitlines()[-20:])

    def _run(self, tests: Sequence[str], folder: str) -> subprocess.CompletedProcess[str]:
        config = self._config
        command = [self._python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--rootdir={config.rootpath}", f"--freethread-scaling={folder}"]
        if config.inipath is not None:
            command += ["-c", str(config.inipath)]
        for setting in ("pairs", "seconds", "threads", "deadline"):
            value = config.getoption(f"--freethread-{setting}")
            command += [] if value is None else [f"--freethread-{setting}={value}"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        return subprocess.run(  # noqa: S603 - see above
            [*command, *tests],
            capture_output=True,
            text=True,
            check=False,
            cwd=config.rootpath,
            env={**environment, _INSIDE: "1"},
        )


def is_inside() -> bool:
    """Whether this session is the second interpreter's."""
    return _INSIDE in os.environ
