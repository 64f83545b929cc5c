"""Fixtures of several test modules."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap

import pytest

# Each of the many processes that tests start would compile the plugin anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """The modules below the working directory get probes, and all of our tests' need none."""
    with contextlib.chdir(tmp_path_factory.mktemp("empty")):
        yield


@pytest.fixture
def run_program(tmp_path):
    """Run a program in a process of its own, since what gets stuck stays stuck."""

    def run(source):
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(source))
        process = subprocess.run(
            [sys.executable, program], capture_output=True, text=True, timeout=60, check=False
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    return run
