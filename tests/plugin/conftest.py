"""Runs of test files of their own, as a user would start them."""

from __future__ import annotations

import importlib
import pkgutil

import hypothesis  # noqa: F401 - loaded for the same reason
import pytest

import pytest_freethread

# Loaded once here: a run within this process forgets at its end what it has loaded itself. It would
# load it anew each time, and a free-threaded 3.13 never frees a function of a module.
for module in pkgutil.walk_packages(pytest_freethread.__path__, "pytest_freethread."):
    importlib.import_module(module.name)


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
