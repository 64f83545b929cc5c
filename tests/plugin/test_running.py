"""What is rerun, how often, and how the terminal says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


def test_without_flag_and_marker_nothing_is_different(pytester):
    pytester.makepyfile("""
        import threading

        def test_runs_here_and_once():
            assert threading.current_thread() is threading.main_thread()
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*freethread:*")
    result.stdout.no_fnmatch_line("*= freethread =*")
    result.stdout.fnmatch_lines(["test_*.py .*"])


def test_the_flag_reruns_a_test_in_every_thread_and_round_as_one_test(rerun):
    result = rerun("""
        import threading
        from collections import Counter
        import pytest

        ran = Counter()

        def test_rerun():
            ran[threading.get_ident(), threading.current_thread().name] += 1

        @pytest.mark.thread_unsafe
        def test_every_thread_ran_every_round():
            assert sorted((name, count) for (_, name), count in ran.items()) == [
                ("freethread-0", 4), ("freethread-1", 4), ("freethread-2", 4)]
            assert threading.get_ident() not in {ident for ident, _ in ran}
    """, threads=3, rounds=4)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_the_threads_of_a_round_run_at_once(rerun):
    result = rerun("""
        import threading

        meeting = threading.Barrier(4, timeout=20)

        def test_all_threads_meet():
            meeting.wait()
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=1)


def test_one_thread_and_one_round_are_possible(rerun):
    result = rerun("""
        import threading

        def test_in_a_thread():
            assert threading.current_thread() is not threading.main_thread()
    """, "-v", threads=1, rounds=1)  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_in_a_thread PASSED [[]1 thread x 1[]]*"])


def test_every_kind_of_test_is_rerun(rerun):
    result = rerun("""
        import functools
        import unittest
        from collections import Counter
        import pytest
        from hypothesis import given, settings, strategies

        ran = []

        def count(function):
            @functools.wraps(function)
            def counted(*args, **kwargs):
                ran.append(function.__name__)
                return function(*args, **kwargs)
            return counted

        @count
        def test_function():
            pass

        class TestClass:
            @count
            def test_method(self):
                pass

            @staticmethod
            def test_static():
                ran.append("test_static")

            @classmethod
            def test_of_class(cls):
                ran.append("test_of_class")

            class TestInner:
                @count
                def test_inner(self):
                    pass

        @pytest.mark.parametrize("n", [1, 2])
        def test_parametrised(n):
            ran.append(f"test_parametrised_{n}")

        class TestCase(unittest.TestCase):
            @count
            def test_case(self):
                pass

        class TestGiven:
            @given(n=strategies.integers())
            @settings(max_examples=5, database=None)
            def test_given_method(self, n):
                assert isinstance(n, int)
                ran.append("examples")

        @given(n=strategies.just(1))
        @settings(max_examples=1, database=None)
        def test_given(n):
            ran.append("test_given")

        test_partial = functools.partial(test_function)

        @pytest.mark.thread_unsafe
        def test_all_were_rerun():
            count = Counter(ran)
            assert count.pop("examples") == 5 * 6
            assert count.pop("test_function") == 2 * 6  # itself, and by the partial
            assert len(count) == 8
            assert set(count.values()) == {6}
    """, "-v")  # fmt: skip
    result.stdout.fnmatch_lines(
        [
            "*::test_function PASSED [[]2 threads x 3[]]*",
            "*::TestClass::test_method PASSED [[]2 threads x 3[]]*",
            "*::test_static PASSED [[]2 threads x 3[]]*",
            "*::test_of_class PASSED [[]2 threads x 3[]]*",
            "*::TestInner::test_inner PASSED [[]2 threads x 3[]]*",
            "*::test_parametrised[[]1[]] PASSED [[]2 threads x 3[]]*",
            "*::test_parametrised[[]2[]] PASSED [[]2 threads x 3[]]*",
            "*::TestCase::test_case PASSED [[]2 threads x 3[]]*",
            "*::test_given_method PASSED [[]2 threads x 15 in 5 examples[]]*",
            "*::test_given PASSED [[]2 threads x 3 in 1 example[]]*",
            "*::test_partial PASSED [[]2 threads x 3[]]*",
            "*::test_all_were_rerun PASSED *",
            "11 tests ran in parallel, 1 on one thread, 0 left alone",
        ]
    )


def test_a_falsified_property_is_shown_with_its_example(rerun):
    result = rerun("""
        from hypothesis import given, settings, strategies

        @given(strategies.integers(0, 100))
        @settings(database=None, derandomize=True)
        def test_property(n):
            assert n < 10
    """, rounds=1)  # fmt: skip
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *: test_property(", "E *n=10,"])


def test_the_marker_reruns_one_test_without_the_flag(pytester):
    pytester.makepyfile("""
        import threading
        import pytest

        @pytest.mark.freethread(threads=2, rounds=3)
        def test_marked():
            assert threading.current_thread() is not threading.main_thread()

        def test_other():
            assert threading.current_thread() is threading.main_thread()
    """)
    result = pytester.runpytest_inprocess("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*::test_marked PASSED [[]2 threads x 3[]]*", "*::test_other PASSED  *", "1 test ran in *"]
    )
    result.stdout.no_fnmatch_line("freethread: *")


def test_the_marker_works_on_classes_modules_and_parameters(pytester):
    pytester.makepyfile("""
        import pytest

        pytestmark = pytest.mark.freethread(threads=2, rounds=1)

        def test_by_module():
            pass

        @pytest.mark.freethread(rounds=2)
        class TestByClass:
            def test_it(self):
                pass

            @pytest.mark.freethread(threads=3)
            def test_and_by_function(self):
                pass

        @pytest.mark.parametrize(
            "n", [1, pytest.param(2, marks=pytest.mark.freethread(rounds=5))])
        def test_by_parameter(n):
            pass
    """)
    result = pytester.runpytest_inprocess("-v")
    result.stdout.fnmatch_lines(
        [
            "*::test_by_module PASSED [[]2 threads x 1[]]*",
            "*::test_it PASSED [[]2 threads x 2[]]*",
            "*::test_and_by_function PASSED [[]3 threads x 2[]]*",
            "*::test_by_parameter[[]1[]] PASSED [[]2 threads x 1[]]*",
            "*::test_by_parameter[[]2[]] PASSED [[]2 threads x 5[]]*",
        ]
    )


def test_strict_markers_know_ours(rerun):
    result = rerun("""
        import pytest

        @pytest.mark.freethread
        def test_marked():
            pass

        @pytest.mark.thread_unsafe
        def test_alone():
            pass
    """, "--strict-markers", "--strict-config")  # fmt: skip
    result.assert_outcomes(passed=2)


def test_a_budget_of_seconds_cuts_a_test_short_and_says_so(rerun):
    result = rerun("""
        def test_long():
            pass
    """, "-v", "--freethread-seconds=0.05", rounds=10_000_000)  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "freethread: *, 2 threads × 10,000,000 rounds or 0.05 s, seed *",
            "*::test_long PASSED [[]2 threads x * of 10,000,000[]]*",
            "*cut short after 2 threads x * of 10,000,000: its 0.05 s were over *::test_long",
        ]
    )


def test_the_header_shows_the_interpreter_and_the_plan(rerun):
    result = rerun("def test_it(): pass", "--freethread-seed=17")
    version = re.escape(sys.version.split()[0])
    result.stdout.re_match_lines(
        [
            rf"freethread: CPython {version}.*, GIL (on|off), \d+ cores?; "
            "stress, 2 threads × 3 rounds, seed 17"
        ]
    )


def test_a_seed_that_was_drawn_is_shown(rerun):
    result = rerun("def test_it(): pass")
    result.stdout.re_match_lines([r"freethread: .*, seed \d+$"])


def test_the_summary_counts_and_gives_the_reasons(rerun):
    result = rerun("""
        import pytest

        def test_parallel():
            pass

        def test_prints(capsys):
            pass

        @pytest.mark.thread_unsafe(reason="counts files")
        def test_alone():
            pass

        async def test_async():
            pass

        @pytest.mark.skip
        def test_skipped():
            pass
    """)
    result.stdout.fnmatch_lines(
        [
            "*= freethread =*",
            "1 test ran in parallel, 2 on one thread, 1 left alone",
            '   1  thread_unsafe: "counts files"  test_*.py',
            "ran 6 executions in * s*: no proof, and not replayable",
        ]
    )
    result.stdout.fnmatch_lines_random(
        ["   1  async  *  test_*.py", "   1  uses capsys  *  test_*.py"]
    )


def test_reasons_are_listed_by_file_and_in_verbose_mode_by_test(pytester):
    for name in "abcde":
        pytester.makepyfile(**{f"test_{name}": "def test_1(capsys): pass\ndef test_2(capfd): pass"})
    result = pytester.runpytest_inprocess("--freethread")
    result.stdout.fnmatch_lines_random(
        ["   5  uses capsys  test_a.py, test_b.py, test_c.py and 2 more"]
    )
    verbose = pytester.runpytest_inprocess("--freethread", "-v", "test_a.py")
    verbose.stdout.fnmatch_lines_random(["   1  uses capsys  test_a.py::test_1"])


@pytest.mark.parametrize(("encoding", "letter"), [("utf-8", "⁝"), ("ascii", ":")])
def test_a_letter_of_its_own_for_what_ran_in_parallel(pytester, encoding, letter):
    pytester.makepyfile("""
        import pytest

        def test_1(): pass
        def test_2(): pass
        @pytest.mark.thread_unsafe
        def test_3(): pass
        def test_4(): assert False
        def test_5(): pytest.skip("no")
        @pytest.mark.xfail
        def test_6(): assert False
        @pytest.mark.xfail
        def test_7(): pass
    """)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--freethread", "--freethread-rounds=1"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        encoding=encoding,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert f".py {letter}{letter}.FsxX " in done.stdout


def test_collecting_only_runs_nothing(rerun):
    result = rerun("def test_it(): assert False", "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::test_it"])
    result.stdout.no_fnmatch_line("*= freethread =*")


def test_setup_can_be_shown_without_running(rerun):
    source = """
        import pytest

        @pytest.fixture
        def thing():
            yield 1

        def test_it(thing):
            assert False
    """
    result = rerun(source, "--setup-only")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*SETUP    F thing*", "*TEARDOWN F thing*"])
    result = rerun(source, "--setup-plan")
    assert result.ret == 0


def test_a_test_that_returns_something_is_warned_about(rerun):
    result = rerun("def test_it(): return 1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*PytestReturnNotNoneWarning*test_it returned*'int'*"])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_progress_line_shows_up_and_goes_away_where_a_person_watches(pytester):
    import pty

    pytester.makepyfile(test_long="def test_it(): pass")
    terminal, slave = pty.openpty()
    command = [sys.executable, "-m", "pytest", "--freethread", "--freethread-rounds=10000000"]
    with subprocess.Popen(
        [*command, "--freethread-seconds=0.8", "--freethread-threads=2"], stdout=slave
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while some := os.read(terminal, 10_000):
                shown += some
        except OSError:  # how the end of a pseudo-terminal is told
            pass
    os.close(terminal)
    assert process.returncode == 0
    assert re.search(rb"test_long\.py \x1b7 round [\d,]+ of 10,000,000: .*?\x1b\[K\x1b8", shown)
    assert re.search(rb"\x1b8\x1b\[K[^\x1b]*(\x1b\[\d*m)*\S", shown)


def test_no_progress_line_where_nobody_watches(rerun_apart):
    result = rerun_apart("def test_long(): pass", "--freethread-seconds=0.8", rounds=10_000_000)
    assert "\x1b" not in result.stdout.str()
    result.stdout.no_fnmatch_line("*: round *")


def test_the_verbs_get_the_plan_of_a_test_by_a_fixture(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.mark.freethread(threads=3, rounds=7)
        def test_it(freethread):
            result = freethread.stress(lambda: None)
            assert result.executions == 3 * 7
            assert freethread.stress(lambda: None, rounds=2).executions == 3 * 2

        def test_by_option(freethread):
            assert freethread.stress(lambda: None).executions == 2 * 4
    """)
    result = pytester.runpytest_inprocess("--freethread-threads=2", "--freethread-rounds=4")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*drives its own threads (fixture freethread)*"])


def test_the_help_lists_every_option_and_the_markers(pytester):
    result = pytester.runpytest_inprocess("--help")
    settings = "mode", "threads", "rounds", "schedules", "seconds", "seed", "races", "deadline"
    for name in (*settings, "strict", "require-nogil"):
        result.stdout.fnmatch_lines_random([f"*--freethread-{name}*"])
        result.stdout.fnmatch_lines_random([f"*freethread_{name.replace('-', '_')} (*"])
    result.stdout.fnmatch_lines_random(["*--freethread-replay=TOKEN*"])
    result = pytester.runpytest_inprocess("--markers")
    result.stdout.fnmatch_lines_random(["@pytest.mark.freethread(mode=*"])
    result.stdout.fnmatch_lines_random(["@pytest.mark.thread_unsafe(reason=*"])
