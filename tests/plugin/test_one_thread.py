"""Tests that cannot be rerun in parallel: they run once, and the summary says why."""

from __future__ import annotations

import sys

import pytest

context_aware = bool(getattr(sys.flags, "context_aware_warnings", 0))


@pytest.mark.parametrize(
    "fixture",
    ["capsys", "capfd", "capsysbinary", "capfdbinary", "caplog", "recwarn", "monkeypatch"],
)
def test_fixtures_that_change_the_whole_process(rerun, fixture):
    result = rerun(f"""
        import threading

        def test_it({fixture}):
            assert threading.current_thread() is threading.main_thread()
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_it PASSED  *",
            "0 tests ran in parallel, 1 on one thread, 0 left alone",
            f"   1  uses {fixture}  test_*.py::test_it",
        ]
    )


def test_such_fixtures_give_no_false_failure(rerun):
    result = rerun("""
        import logging
        import os
        import warnings

        def test_prints(capsys):
            print("hello")
            assert capsys.readouterr().out == "hello\\n"

        def test_env(monkeypatch, tmp_path):
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("HOME", "here")
            assert os.environ["HOME"] == "here"

        def test_warns(recwarn):
            warnings.warn("one")
            assert len(recwarn) == 1

        def test_logs(caplog):
            logging.getLogger("x").warning("hello")
            assert caplog.messages == ["hello"]
    """)
    result.assert_outcomes(passed=4)


def test_a_fixture_that_uses_another_is_named_with_it(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def base(monkeypatch):
            monkeypatch.setenv("A", "1")

        @pytest.fixture
        def environment(base):
            pass

        def test_it(environment):
            pass

        class TestAuto:
            @pytest.fixture(autouse=True)
            def quiet(self, capsys):
                pass

            def test_auto(self):
                pass
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(
        [
            "   1  uses monkeypatch (by fixture environment) *::test_it",
            "   1  uses capsys (by fixture quiet) *::test_auto",
        ]
    )


def test_a_fixture_of_the_same_name_that_is_none_of_pytests_is_no_reason(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def fs():
            return []

        def test_it(fs):
            fs.append(1)
            assert fs == [1]
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


def test_a_fixture_that_extends_one_of_pytests_counts_as_that_one(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def monkeypatch(monkeypatch):
            monkeypatch.setenv("A", "1")
            return monkeypatch

        def test_it(monkeypatch):
            pass

        class TestOther:
            @pytest.fixture
            def monkeypatch(self):
                return {}

            def test_replaced(self, monkeypatch):
                monkeypatch["A"] = "1"
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*::test_replaced PASSED [[]2 threads x 3[]]*",
            "   1  uses monkeypatch  *::test_it",
        ]
    )


def test_a_fixture_of_the_project_in_a_conftest_is_no_reason(rerun, pytester):
    pytester.makeconftest("""
        import pytest

        @pytest.fixture
        def mocker():
            return []
    """)
    result = rerun("def test_it(mocker): mocker.append(1)", "-v")
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


def test_fixtures_and_set_ups_that_call_what_changes_the_whole_process(rerun):
    result = rerun("""
        import os
        import unittest
        import pytest

        @pytest.fixture
        def elsewhere(tmp_path):
            before = os.getcwd()
            os.chdir(tmp_path)
            yield
            os.chdir(before)

        @pytest.fixture
        def deeper(elsewhere):
            pass

        def test_fixture(deeper, tmp_path):
            assert os.path.samefile(os.getcwd(), tmp_path)

        class TestMethod:
            def setup_method(self):
                self.before = os.getcwd()
                self.go("/")

            def teardown_method(self):
                os.chdir(self.before)

            def go(self, where):
                os.chdir(where)

            def test_method(self):
                assert os.getcwd() == os.path.abspath("/")

        class TestHelper:
            def go(self, where):
                os.chdir(where)

            def test_helper(self):
                self.go(".")

        class TestCase(unittest.TestCase):
            def setUp(self):
                os.chdir(".")

            def test_case(self):
                pass
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines_random(
        [
            "   1  uses os.chdir (by fixture deeper)  *::test_fixture",
            "   1  uses os.chdir (by setup_method)  *::test_method",
            "   1  uses os.chdir  *::test_helper",
            "   1  uses os.chdir (by setUp)  *::test_case",
        ]
    )


def test_properties_and_decorated_tests_are_looked_into(rerun):
    result = rerun("""
        import functools
        import os
        from hypothesis import given, settings, strategies

        @given(n=strategies.just(1))
        @settings(database=None)
        def test_property(n):
            os.chdir(".")

        def twice(function):
            @functools.wraps(function)
            def wrapper():
                function()
                function()
            return wrapper

        @twice
        def test_decorated():
            os.chdir(".")
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines(["   2  uses os.chdir  *::test_property, *::test_decorated"])


def test_wide_fixtures_may_change_the_process(rerun):
    result = rerun("""
        import os
        import pytest

        @pytest.fixture(scope="module")
        def environment():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("A", "1")
                yield

        def test_it(environment):
            assert os.environ["A"] == "1"
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


@pytest.mark.parametrize(
    ("name", "imports", "body"),
    [
        ("pytest.warns", "import pytest", "with pytest.warns(UserWarning): warn()"),
        ("pytest.warns", "from pytest import warns", "with warns(UserWarning): warn()"),
        ("pytest.warns", "import pytest as pt", "with pt.warns(UserWarning): warn()"),
        ("pytest.warns", "", "import pytest\n    with pytest.warns(UserWarning): warn()"),
        ("pytest.warns", "import pytest", "helper(lambda: pytest.warns(UserWarning))"),
        ("pytest.warns", "import pytest", "indirect()"),
        (
            "pytest.deprecated_call",
            "import pytest",
            "with pytest.deprecated_call(): warn(DeprecationWarning)",
        ),
        ("warnings.catch_warnings", "", "with warnings.catch_warnings(): pass"),
    ],
)
@pytest.mark.skipif(context_aware, reason="warnings are caught per thread here")
def test_catching_warnings(rerun, name, imports, body):
    result = rerun(f"""
{imports}
import warnings

def warn(category=UserWarning):
    warnings.warn("x", category)

def helper(make):
    with make():
        warn()

def indirect():
    with pytest.warns(UserWarning):
        warn()

def test_it():
    {body}
""", "-v")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"   1  uses {name}  test_*.py::test_it"])


@pytest.mark.skipif(not context_aware, reason="warnings are caught for all threads here")
def test_catching_warnings_where_each_thread_catches_its_own(rerun):
    result = rerun("""
        import warnings
        import pytest

        def test_it(thread_index):
            with pytest.warns(UserWarning, match=f"from {thread_index}"):
                warnings.warn(f"from {thread_index}")
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("contextlib.redirect_stdout", "with contextlib.redirect_stdout(io.StringIO()): pass"),
        ("contextlib.redirect_stderr", "with redirect_stderr(io.StringIO()): pass"),
        ("contextlib.chdir", "with contextlib.chdir('.'): pass"),
        ("os.chdir", "os.chdir('.')"),
        ("unittest.mock.patch", "with unittest.mock.patch('os.getcwd'): pass"),
        ("unittest.mock.patch", "with mock.patch.object(os, 'getcwd'): pass"),
        ("unittest.mock.patch", "with patch.dict(os.environ, {'A': '1'}): pass"),
        ("signal.signal", "signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))"),
        ("signal.signal", "set_handler(2, getsignal(2))"),
        ("random.seed", "random.seed(1); assert random.randrange(100) == 17"),
        ("random.seed", "seed(1)"),
        ("doctest.testmod", "import doctest; assert doctest.testmod(os).failed == 0"),
        ("pytest.MonkeyPatch", "with pytest.MonkeyPatch.context() as m: m.setenv('A', '1')"),
    ],
)
def test_calls_that_change_the_whole_process(rerun, name, body):
    result = rerun(f"""
        import contextlib
        import io
        import os
        import random
        import signal
        import unittest.mock
        from contextlib import redirect_stderr
        from random import seed
        from signal import getsignal, signal as set_handler
        from unittest import mock
        from unittest.mock import patch
        import pytest

        def test_it():
            {body}
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"   1  uses {name}  test_*.py::test_it"])


def test_helpers_of_other_packages_that_change_the_whole_process(rerun, pytester):
    (pytester.mkpydir("click") / "testing.py").write_text("class CliRunner: pass")
    pytester.makepyfile(freezegun="def freeze_time(when): pass")
    result = rerun("""
        import click.testing
        import freezegun
        import pytest
        from click.testing import CliRunner as Runner

        @pytest.fixture
        def runner():
            return Runner()

        def test_fixture(runner):
            pass

        def test_attribute():
            click.testing.CliRunner()

        def test_clock():
            freezegun.freeze_time("2020-01-01")
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines_random(
        [
            "   1  uses click.testing.CliRunner (by fixture runner) *::test_fixture",
            "   1  uses click.testing.CliRunner  *::test_attribute",
            "   1  uses freezegun.freeze_time  *::test_clock",
        ]
    )


def test_names_that_look_alike_are_no_reason(rerun):
    result = rerun("""
        import types
        import random

        signal = types.SimpleNamespace(signal=lambda: None)
        client = types.SimpleNamespace(patch=lambda: None, chdir=lambda: None)

        def test_it():
            signal.signal()
            client.patch()
            client.chdir()
            assert random.Random(1).random() < 1
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


def test_patches_by_decorator(rerun):
    result = rerun("""
        import os
        import unittest
        from unittest.mock import patch

        @patch("os.getcwd")
        def test_function(getcwd):
            assert os.getcwd is getcwd

        @patch("os.getcwd")
        class TestCase(unittest.TestCase):
            def test_class(self, getcwd):
                self.assertIs(os.getcwd, getcwd)
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["   2  uses unittest.mock.patch  *::test_function, *::test_class"])


@pytest.mark.parametrize("method", ["assertWarns", "assertLogs"])
@pytest.mark.skipif(context_aware, reason="warnings are caught per thread here")
def test_unittest_methods_that_change_the_whole_process(rerun, method):
    argument = "UserWarning" if method == "assertWarns" else "'x'"
    result = rerun(f"""
        import logging
        import unittest
        import warnings

        class TestCase(unittest.TestCase):
            def test_it(self):
                with self.{method}({argument}):
                    warnings.warn("x")
                    logging.getLogger("x").warning("y")
    """, "-v", "-W", "ignore")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"   1  uses {method}  *::test_it"])


def test_a_test_is_kept_on_one_thread_by_its_marker(rerun):
    result = rerun("""
        import threading
        import pytest

        @pytest.mark.thread_unsafe(reason="counts open files")
        def test_reason():
            assert threading.current_thread() is threading.main_thread()

        @pytest.mark.thread_unsafe("by position")
        def test_position():
            pass

        @pytest.mark.thread_unsafe
        class TestClass:
            def test_no_reason(self):
                pass

            @pytest.mark.freethread(threads=2)
            def test_both(self):
                pass
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines_random(
        [
            '   1  thread_unsafe: "counts open files"  *::test_reason',
            '   1  thread_unsafe: "by position"  *::test_position',
            "   2  thread_unsafe  *::test_no_reason, *::test_both",
        ]
    )


def test_marker_thread_unsafe_without_the_flag_says_nothing(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.mark.thread_unsafe
        def test_it():
            pass
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*= freethread =*")


def test_strict_makes_an_error_of_a_test_that_cannot_run_in_parallel(rerun):
    result = rerun("""
        import pytest

        def test_prints(capsys):
            pass

        def test_it():
            pass

        @pytest.mark.thread_unsafe(reason="on purpose")
        def test_on_purpose():
            pass
    """, "--freethread-strict")  # fmt: skip
    result.assert_outcomes(passed=2, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_prints*",
            "*--freethread-strict: it cannot run in parallel: it uses capsys",
            "1 test ran in parallel, 2 on one thread, 0 left alone",
        ]
    )


def test_strict_from_the_ini_file(rerun, pytester):
    pytester.makeini("[pytest]\nfreethread_strict = true\n")
    result = rerun("def test_prints(capsys): pass")
    result.assert_outcomes(errors=1)


def test_async_tests_are_left_to_the_plugin_that_runs_them(rerun_apart, monkeypatch):
    monkeypatch.setenv(
        "PYTEST_ADDOPTS", "-p asyncio -o asyncio_default_fixture_loop_scope=function"
    )
    result = rerun_apart("""
        import unittest
        import pytest

        ran = []

        @pytest.mark.asyncio
        async def test_async():
            ran.append("async")

        class TestCase(unittest.IsolatedAsyncioTestCase):
            async def test_case(self):
                ran.append("case")

        @pytest.mark.thread_unsafe
        def test_once():
            assert ran == ["async", "case"]
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["0 tests ran in parallel, 1 on one thread, 2 left alone", "   2  async  *"]
    )


def test_tests_that_drive_threads_themselves_are_left_alone(rerun):
    result = rerun("""
        import threading
        from pytest_freethread import stress

        def test_verb():
            assert threading.current_thread() is threading.main_thread()
            assert stress(lambda: None, threads=2, rounds=2).executions == 4

        def test_fixture(freethread):
            assert threading.current_thread() is threading.main_thread()
            assert freethread.stress(lambda: None).executions == 2 * 3
    """, "-v", "--freethread-strict")  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(
        [
            "0 tests ran in parallel, 0 on one thread, 2 left alone",
            "   1  drives its own threads (stress) *::test_verb",
            "   1  drives its own threads (fixture freethread)  *::test_fixture",
        ]
    )


def test_doctests_and_items_of_other_plugins_are_left_alone(rerun, pytester):
    pytester.makeconftest("""
        import pytest

        class Text(pytest.File):
            def collect(self):
                yield Line.from_parent(self, name="line")

        class Line(pytest.Item):
            def runtest(self):
                pass

        def pytest_collect_file(file_path, parent):
            if file_path.suffix == ".lines":
                return Text.from_parent(parent, path=file_path)
    """)
    pytester.makefile(".lines", text="x")
    result = rerun('''
        def double(n):
            """
            >>> double(2)
            4
            """
            return 2 * n

        def test_it():
            assert double(1) == 2
    ''', "--doctest-modules", "--freethread-strict")  # fmt: skip
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["1 test ran in parallel, 0 on one thread, 2 left alone"])
    result.stdout.fnmatch_lines_random(
        ["   1  doctest *.py", "   1  Line (run by another plugin)  text.lines"]
    )


def test_what_is_left_alone_is_left_alone_by_the_marker_too(pytester):
    pytester.makepyfile("""
        import pytest

        pytestmark = [pytest.mark.freethread(threads=2), pytest.mark.filterwarnings("ignore")]

        @pytest.mark.skip
        async def test_it():
            pass

        def test_prints(capsys):
            pass
    """)
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines(["*1 on one thread*", "*uses capsys*"])
