"""Runs of test files of their own, as a user would start them."""

from __future__ import annotations

import hypothesis  # noqa: F401 - see below
import pytest

# Loaded once here: what a run within this process loads itself is forgotten at its end.
import pytest_freethread.harness  # noqa: F401 - so that it stays loaded


@pytest.fixture(autouse=True)
def plain_surroundings(pytester, monkeypatch):  # noqa: ARG001 - it clears the environment first
    """No ini file, no other plugin's remarks, and nothing of the run that this one is part of."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:asyncio -W default")
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def rerun(pytester):
    """Rerun all tests of a file in parallel threads, within this process."""

    def rerun(source, *options, threads=2, rounds=3):
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess(*_flags(threads, rounds), *options)

    return rerun


@pytest.fixture
def rerun_apart(pytester):
    """The same in a process of its own, which must end by itself."""

    def rerun_apart(source, *options, threads=2, rounds=3):
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess(*_flags(threads, rounds), *options, timeout=60)

    return rerun_apart


def _flags(threads, rounds):
    return "--freethread", f"--freethread-threads={threads}", f"--freethread-rounds={rounds}"
