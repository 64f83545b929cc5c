"""Settings: which source wins, and the one line that answers nonsense."""

from __future__ import annotations

import pytest


def test_marker_beats_option_beats_ini_beats_default(pytester):
    pytester.makeini("""
        [pytest]
        freethread = true
        freethread_threads = 2
        freethread_rounds = 3
        freethread_deadline = 20
        freethread_seed = 5
    """)
    pytester.makepyfile("""
        import pytest

        def test_plain(): pass

        @pytest.mark.freethread(rounds=5)
        def test_marked(): pass
    """)
    result = pytester.runpytest_inprocess("-v", "--freethread-rounds=4")
    result.stdout.fnmatch_lines(
        [
            "freethread: *; stress, 2 threads × 4 rounds, seed 5",
            "*::test_plain PASSED [[]2 threads x 4[]]*",
            "*::test_marked PASSED [[]2 threads x 5[]]*",
        ]
    )


def test_ini_settings_in_pyproject(pytester):
    pytester.makepyprojecttoml("""
        [tool.pytest.ini_options]
        freethread = true
        freethread_threads = 2
        freethread_rounds = "3"
        freethread_seconds = "none"
    """)
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("-v")
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


def test_automatic_threads_are_at_least_eight(pytester):
    pytester.makepyfile("""
        import os
        import pytest

        @pytest.mark.freethread(threads="auto", rounds=1)
        def test_it(thread_index):
            seen.add(thread_index)

        seen = set()

        def test_seen():
            assert seen == set(range(max(8, len(os.sched_getaffinity(0)))))
    """)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


ABSURD = [
    ("threads", "0", "'0' is not a number of threads (a positive integer, or 'auto')"),
    ("threads", "-2", "'-2' is not a number of threads (a positive integer, or 'auto')"),
    ("threads", "abc", "'abc' is not a number of threads (a positive integer, or 'auto')"),
    ("threads", "2.5", "'2.5' is not a number of threads (a positive integer, or 'auto')"),
    ("threads", "", "'' is not a number of threads (a positive integer, or 'auto')"),
    ("rounds", "0", "'0' is not a number of rounds (a positive integer)"),
    ("rounds", "many", "'many' is not a number of rounds (a positive integer)"),
    ("seconds", "-1", "'-1' is not a budget in seconds (a positive number, or 'none')"),
    ("seconds", "nan", "'nan' is not a budget in seconds (a positive number, or 'none')"),
    ("deadline", "-3", "'-3' is not a deadline in seconds (a positive number)"),
    ("deadline", "0", "'0' is not a deadline in seconds (a positive number)"),
    ("deadline", "inf", "'inf' is not a deadline in seconds (a positive number)"),
    ("seed", "x", "'x' is not a seed (an integer from 0 on)"),
    ("seed", "-1", "'-1' is not a seed (an integer from 0 on)"),
    ("mode", "explode", "'explode' is not a mode ('stress' or 'explore')"),
    ("mode", "", "'' is not a mode ('stress' or 'explore')"),
    ("schedules", "0", "'0' is not a number of schedules (a positive integer)"),
    ("races", "yes", "'yes' is not what a race can be ('error', 'note' or 'off')"),
]


@pytest.mark.parametrize(("name", "value", "answer"), ABSURD)
@pytest.mark.parametrize("flag", [[], ["--freethread"]], ids=["unused", "used"])
def test_an_absurd_option_stops_with_one_line(pytester, name, value, answer, flag):
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess(*flag, f"--freethread-{name}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said(result.stderr) == [f"ERROR: --freethread-{name}: {answer}"]
    assert said(result.stdout) == []


@pytest.mark.parametrize(("name", "value", "answer"), [absurd for absurd in ABSURD if absurd[1]])
def test_an_absurd_value_in_the_ini_file_stops_with_one_line(pytester, name, value, answer):
    ini = pytester.makeini(f"[pytest]\nfreethread_{name} = {value}\n")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said(result.stderr) == [f"ERROR: {ini}: freethread_{name}: {answer}"]
    assert said(result.stdout) == []


def test_an_absurd_flag_in_the_ini_file_stops_with_one_line(pytester):
    ini = pytester.makeini("[pytest]\nfreethread = perhaps\n")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said(result.stderr) == [f"ERROR: {ini}: freethread: invalid truth value 'perhaps'"]


@pytest.mark.parametrize(
    ("marker", "answer"),
    [
        (
            "freethread(threads=0)",
            "marker freethread(threads=0): 0 is not a number of threads "
            "(a positive integer, or 'auto')",
        ),
        (
            "freethread(threads='abc')",
            "marker freethread(threads='abc'): 'abc' is not a number of threads "
            "(a positive integer, or 'auto')",
        ),
        (
            "freethread(threads=True)",
            "marker freethread(threads=True): True is not a number of threads "
            "(a positive integer, or 'auto')",
        ),
        (
            "freethread(rounds=1.5)",
            "marker freethread(rounds=1.5): 1.5 is not a number of rounds (a positive integer)",
        ),
        (
            "freethread(deadline=-1)",
            "marker freethread(deadline=-1): -1 is not a deadline in seconds (a positive number)",
        ),
        (
            "freethread(seconds=0)",
            "marker freethread(seconds=0): 0 is not a budget in seconds "
            "(a positive number, or 'none')",
        ),
        (
            "freethread(noise='yes')",
            "marker freethread(noise='yes'): 'yes' is not True or False",
        ),
        (
            "freethread(treads=4)",
            "marker freethread(treads=4): no such setting; did you mean threads?",
        ),
        (
            "freethread(xyz=4)",
            "marker freethread(xyz=4): no such setting; there are: benign, deadline, include, "
            "mode, noise, preemptions, races, rounds, schedules, seconds, seed, shared, strategy, threads",
        ),
        (
            "freethread(4)",
            "marker freethread(4): settings are given by name, such as threads=4",
        ),
        (
            "freethread(shared=['cachee'])",
            "marker freethread(shared=['cachee']): no such fixture: 'cachee'; did you mean cache?",
        ),
        (
            "freethread(shared='cache')",
            "marker freethread(shared='cache'): not a list of fixture names",
        ),
        (
            "freethread(shared=[1])",
            "marker freethread(shared=[1]): not a list of fixture names",
        ),
        (
            "thread_unsafe(raeson='x')",
            "marker thread_unsafe(raeson='x'): no such setting; did you mean reason?",
        ),
    ],
)
def test_an_absurd_marker_stops_with_one_line_that_names_the_test(pytester, marker, answer):
    pytester.makepyfile(f"""
        import pytest

        @pytest.fixture
        def cache():
            return {{}}

        @pytest.mark.{marker}
        def test_it(cache):
            pass

        @pytest.mark.freethread(threads=1, rounds=1)
        def test_other():
            pass
    """)
    name = "test_an_absurd_marker_stops_with_one_line_that_names_the_test"
    result = pytester.runpytest_inprocess("--freethread")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said(result.stderr) == [f"ERROR: {name}.py::test_it: {answer}"]
    assert not any("test_other" in line for line in result.outlines)


@pytest.mark.parametrize("marker", ["freethread(treads=4)", "freethread(threads=0)"])
def test_under_xdist_an_absurd_marker_stops_with_the_same_words(pytester, marker):
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.{marker}
        def test_it():
            pass

        def test_other():
            pass
    """)
    result = pytester.runpytest_inprocess("-n2")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"!!!* test_*.py::test_it: marker {marker}: * !!!*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_shared_fixture_must_be_one_of_a_function(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture(scope="module")
        def wide():
            return []

        @pytest.mark.freethread(threads=2, rounds=1, shared=["wide"])
        def test_it(wide):
            wide.append(1)

        def test_shared_as_ever(wide):
            assert wide == [1, 1]
    """)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_a_shared_fixture_that_only_some_tests_of_a_class_use(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def cache():
            return []

        @pytest.mark.freethread(threads=2, rounds=1, shared=["cache"])
        class TestClass:
            def test_with(self, cache):
                pass

            def test_without(self):
                pass
    """)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize("option", ["--freethread-threads=0", "--freethread-deadline=-1"])
def test_under_xdist_an_absurd_option_stops_with_the_same_line(pytester, option):
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("-n2", "--freethread", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = said(result.stderr)
    name, _, value = option.partition("=")
    assert line.startswith(f"ERROR: {name}: '{value}' is not a ")


def test_a_misspelt_option_is_pytests_to_answer(pytester):
    result = pytester.runpytest_inprocess("--freethread-theads=2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --freethread-theads=2*"])


def test_a_short_form_of_an_option_is_not_taken_for_another(pytester):
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("--freethread-th=2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def said(stream):
    return [line for line in stream.lines if line.strip()]
