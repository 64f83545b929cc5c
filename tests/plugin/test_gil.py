"""The GIL: demanded to be off, and who switched it back on."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

import pytest

free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
gil = bool(getattr(sys, "_is_gil_enabled", lambda: True)())
with_gil = pytest.mark.skipif(not gil, reason="the GIL is off")
without_gil = pytest.mark.skipif(gil, reason="the GIL is on")

EXTENSION = """
#include <Python.h>

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "old_extension", NULL, 0, NULL};

PyMODINIT_FUNC PyInit_old_extension(void) { return PyModuleDef_Init(&definition); }
"""


@pytest.fixture
def old_extension(pytester):
    """A module `old_extension` that does not declare that it can do without the GIL."""
    source = pytester.path / "old_extension.c"
    source.write_text(EXTENSION)
    target = source.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    include = sysconfig.get_path("include")
    command = ["cc", "-shared", "-fPIC", f"-I{include}", "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=60)


@with_gil
def test_a_session_that_demands_no_gil_fails_at_the_start_where_it_is_on(pytester):
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("--freethread-require-nogil")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.stderr.lines if line)
    assert line.startswith("ERROR: --freethread-require-nogil: the GIL is on (CPython ")
    assert "uv python install 3.14t" in line
    result.stdout.no_fnmatch_line("*passed*")


@with_gil
def test_a_session_that_demands_no_gil_by_ini_fails_too(pytester):
    pytester.makeini("[pytest]\nfreethread_require_nogil = true\n")
    pytester.makepyfile("def test_it(): pass")
    assert pytester.runpytest_inprocess().ret == pytest.ExitCode.USAGE_ERROR


@without_gil
def test_a_session_that_demands_no_gil_runs_where_it_is_off(pytester):
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("--freethread-require-nogil", "--freethread", timeout=60)
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["freethread: CPython * free-threaded, GIL off, *"])
    result.stdout.no_fnmatch_line("*the GIL is on*")


@pytest.mark.skipif(not free_threaded, reason="there is no build without the GIL here")
def test_a_session_that_demands_no_gil_fails_where_it_was_switched_on_by_hand(
    pytester, monkeypatch
):
    monkeypatch.setenv("PYTHON_GIL", "1")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("--freethread-require-nogil", timeout=60)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --freethread-require-nogil: the GIL is on (*"])


@without_gil
@pytest.mark.usefixtures("old_extension")
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["here", "xdist"])
def test_an_import_in_a_test_that_switches_the_gil_on_is_named(pytester, workers):
    pytester.makepyfile("""
        def test_before(): pass

        def test_imports():
            import old_extension

        def test_after(): pass
    """)
    flags = ["--freethread", "--freethread-threads=2", "--freethread-rounds=2", "-W", "ignore"]
    finding = "   {}  gil: importing old_extension switched the GIL on  test_*.py::test_imports"
    result = pytester.runpytest_subprocess(*flags, *workers, timeout=60)
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["0 findings, 1 note", finding.format("note ")])
    result = pytester.runpytest_subprocess(
        *flags, *workers, "--freethread-require-nogil", timeout=60
    )
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["1 finding, 0 notes", finding.format("error")])


@without_gil
@pytest.mark.usefixtures("old_extension")
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["here", "xdist"])
def test_an_import_during_collection_that_switches_the_gil_on_is_named(pytester, workers):
    pytester.makepyfile(
        test_innocent="def test_it(): pass",
        test_importing="import old_extension\ndef test_it(): pass",
    )
    result = pytester.runpytest_subprocess(
        *workers, "-W", "ignore", "--freethread-require-nogil", timeout=60
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*gil: importing old_extension switched the GIL on  collecting test_importing.py"]
    )


@without_gil
@pytest.mark.usefixtures("old_extension")
def test_an_import_in_a_conftest_that_switches_the_gil_on_stops_a_session_that_demands_none(
    pytester,
):
    pytester.makeconftest("import old_extension")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-W", "ignore", timeout=60)
    result.assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess("-W", "ignore", "--freethread-require-nogil", timeout=60)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *; importing old_extension switched it on); *"])


def test_the_import_system_is_put_back(pytester):
    from importlib.machinery import ExtensionFileLoader

    before = ExtensionFileLoader.create_module, ExtensionFileLoader.exec_module
    pytester.makepyfile("def test_it(): pass")
    pytester.runpytest_inprocess("--freethread")
    assert (ExtensionFileLoader.create_module, ExtensionFileLoader.exec_module) == before
