"""Tests that are measured, fixture verbs that measure, their summary, files and comparison.

Nothing here depends on what the machine can show: sleeping tasks or a lock around a sleep, asked for
what they reach or miss by far, or a verdict that is INCONCLUSIVE whatever happens.
"""

from __future__ import annotations

import json
import sys

import pytest

from pytest_freethread import interpreter

SLEEPS = """
    import threading, time, pytest

    @pytest.mark.freethread_parallel(threads=2, pairs=8, seconds=None, min_speedup=0.2)
    def test_sleeps():
        time.sleep(0.005)
"""

LOCKED = """
    import threading, time, pytest

    class Cache:
        def __init__(self):
            self._lock = threading.Lock()

        def get(self):
            with self._lock:
                time.sleep(0.005)

    @pytest.fixture
    def cache():
        return Cache()

    @pytest.mark.freethread_parallel(
        threads=8, pairs=8, seconds=None, min_speedup=5, shared=["cache"]
    )
    def test_cache(cache):
        cache.get()
"""

BRIEF = """
    import pytest

    @pytest.mark.freethread_parallel(threads=2, pairs=1)
    def test_brief():
        pass
"""


@pytest.fixture
def run(pytester):
    def run(source, *options):
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)

    return run


def test_a_test_that_reaches_what_is_asked_passes_and_the_summary_says_how(run):
    result = run(SLEEPS, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_sleeps PASSED [[]in parallel]*",
            "*= freethread =*",
            "1 test measured, 0 on one thread, 0 left alone",
            "*= freethread: parallelism =*",
            "1 passed",
            "*::test_sleeps",
            "    test_sleeps on 2 threads   total * sum of parts * longest part *",
            "    speed-up * × [[]* … *] of * × possible here",
            "    PASSED  asked to reach 0.2 ×: so does all of the interval",
        ]
    )


@pytest.fixture
def undisturbed(monkeypatch):
    """As if no other process had kept this one from running: then a red is red on any machine."""
    monkeypatch.setattr(interpreter, "seconds_without_core", lambda: 0.0)


def test_a_test_behind_one_lock_fails_and_the_lock_is_named(run, undisturbed):  # noqa: ARG001
    result = run(LOCKED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "FAILED: 8 pairs of runs in *",
            "  FAILED  asked to reach 5 ×: none of the interval does, and it could here",
            "*% of the parallel time waits for Cache._lock (*.py:8), [1-7] times a run.",
            "  at once, with the locks timed; ░ waits for one*",
            "FAILED *::test_cache - asked to reach 5 ×: speed-up *",
        ]
    )
    result.stdout.no_fnmatch_line("*_lock.py*Error*")


def test_what_cannot_be_told_passes_and_is_said(run):
    result = run(BRIEF, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*PASSED [[]parallelism inconclusive]*", "1 inconclusive", "*too short*"]
    )


def test_what_cannot_be_told_fails_if_strict(run):
    result = run(BRIEF, "--freethread-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--freethread-strict: inconclusive: the longest part takes*"])


def test_each_copy_has_its_own_fixtures_in_each_run_but_those_that_are_shared(run):
    result = run("""
        import pytest

        made = []

        @pytest.fixture
        def own():
            made.append([])
            yield made[-1]
            assert made[-1] is not None

        @pytest.fixture
        def common():
            return []

        @pytest.mark.freethread_parallel(threads=3, pairs=1, shared=["common"])
        def test_copies(own, common, thread_index):
            own.append(thread_index)
            common.append(thread_index)
            assert len(own) == 1
            assert len(common) <= 3

        def test_afterwards():
            assert len(made) == 12  # three copies in a warm-up and a pair
            assert sorted(map(tuple, made)) == [(0,)] * 4 + [(1,)] * 4 + [(2,)] * 4
    """)
    result.assert_outcomes(passed=2)


def test_a_curve(run):
    result = run("""
        import pytest

        @pytest.mark.freethread_parallel(threads=[1, 3], pairs=1)
        def test_curve(thread_index):
            pass
    """)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["    test_curve on 3 threads *"])


def test_what_the_test_raises_fails_it(run):
    result = run("""
        import pytest

        @pytest.mark.freethread_parallel(threads=2, pairs=1)
        def test_wrong():
            assert 1 + 1 == 3
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       assert (1 + 1) == 3"])


def test_a_skip_is_a_skip(run):
    run("""
        import pytest

        @pytest.mark.freethread_parallel(threads=2, pairs=1)
        def test_skips():
            pytest.skip("not here")
    """).assert_outcomes(skipped=1)


def test_a_tear_down_that_fails_is_an_error_of_the_test(run):
    result = run("""
        import pytest

        @pytest.fixture
        def broken():
            yield
            raise OSError("cannot close")

        @pytest.mark.freethread_parallel(threads=2, pairs=1)
        def test_it(broken):
            pass
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*cannot close*"])


def test_a_test_that_changes_the_process_runs_on_one_thread(run):
    result = run("""
        import pytest

        @pytest.mark.freethread_parallel(threads=2)
        def test_output(capsys):
            print("x")
            assert capsys.readouterr().out == "x\\n"
    """)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["0 tests ran in parallel, 1 on one thread*", "*uses capsys*"])


def test_a_measured_test_is_measured_in_a_stressed_session_too(run):
    result = run(BRIEF, "--freethread", "--freethread-rounds=2", "--freethread-threads=2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1 test measured, 0 on one thread, 0 left alone"])


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (
            "thread=2",
            "marker freethread_parallel(thread=2): no such setting; did you mean threads?",
        ),
        ("4", "marker freethread_parallel(4): settings are given by name"),
        ("threads='many'", "marker freethread_parallel(threads='many'): 'many' is not numbers of"),
        ("min_efficiency=2", "freethread_parallel(min_efficiency=2): 2 is not a share"),
        ("shared=['x']", "freethread_parallel(shared=['x']): no such fixture: 'x'"),
    ],
)
def test_a_marker_that_means_nothing_ends_the_session(run, marker, said):
    result = run(f"""
        import pytest

        @pytest.mark.freethread_parallel({marker})
        def test_it():
            pass
    """)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{said.replace('[', '[[]')}*"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--freethread-pairs=few", "--freethread-pairs: 'few' is not a number of pairs of runs"),
        ("--freethread-locks=often", "--freethread-locks: 'often' does not say when to time locks"),
    ],
)
def test_an_option_that_means_nothing_ends_the_session(run, option, said):
    result = run(BRIEF, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said}*"])


def test_options_have_ini_twins(pytester, run):
    pytester.makeini("[pytest]\nfreethread_pairs = 3\nfreethread_scaling = curves\n")
    run("""
        import pytest

        @pytest.mark.freethread_parallel(threads=2)
        def test_brief():
            pass
    """).assert_outcomes(passed=1)
    (file,) = (pytester.path / "curves").glob("*test_brief.json")
    data = json.loads(file.read_text())
    assert len(data["measurement"]["samples"][0]["rounds"]) == 3


def test_the_marker_beats_the_option(run, pytester):
    run(BRIEF, "--freethread-pairs=5", "--freethread-scaling=curves").assert_outcomes(passed=1)
    (file,) = (pytester.path / "curves").glob("*test_brief.json")
    assert len(json.loads(file.read_text())["measurement"]["samples"][0]["rounds"]) == 1


# ----- the fixture -----


def test_the_fixture_measures_and_asserts_with_the_test_s_settings(run):
    result = run(
        """
        import time

        def test_measures(freethread):
            scaling = freethread.measure_parallelism(lambda: None, lambda: None)
            assert len(scaling.measurement.samples[0].rounds) == 2

        def test_asserts(freethread):
            freethread.assert_parallel(lambda: None, threads=2, pairs=1)
    """,
        "--freethread-pairs=2",
        "--freethread-threads=3",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["2 inconclusive", "*::test_measures", "*::test_asserts"])


def test_a_claim_that_fails_fails_the_test_without_our_frames(run, undisturbed):  # noqa: ARG001
    result = run("""
        import threading, time

        lock = threading.Lock()

        def task():
            with lock:
                time.sleep(0.005)

        def test_red(freethread):
            freethread.assert_parallel(*[task] * 8, min_speedup=5, pairs=8, seconds=None)
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       freethread.assert_parallel(*",
            "E       pytest_freethread.errors.ThreadSafetyError: FAILED: 8 pairs of runs*",
            "*waits for lock (*",
        ]
    )
    result.stdout.no_fnmatch_line("*harness.py:*")


# ----- xdist, files, comparison -----


def test_workers_hand_their_measurements_to_the_controller(pytester):
    pytester.makepyfile(BRIEF)
    result = pytester.runpytest_subprocess("-n1", "--freethread-scaling=curves", "-pno:asyncio")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*freethread: parallelism*", "1 inconclusive"])
    (outcome,) = json.loads((pytester.path / "curves" / "scaling.json").read_text())
    assert outcome["test"].endswith("::test_brief")
    assert outcome["verdict"] == "inconclusive"
    assert outcome["threads"] == 2


def test_a_comparison_runs_the_measured_tests_under_the_other_interpreter(pytester):
    pytester.makepyfile(BRIEF + "\n    def test_other():\n        pass\n")
    result = pytester.runpytest_subprocess(f"--freethread-compare={sys.executable}", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*freethread: two interpreters*",
            "A: CPython 3.*, GIL o*",
            "B: CPython 3.*, GIL o*",
            "*total A *B *speed-up A *B *total A : B",
            "*::test_brief * [µm]s * [µm]s * × * × *",
        ]
    )
    result.stdout.no_fnmatch_line("*measured nothing*")


def test_a_comparison_with_what_is_no_interpreter(run):
    result = run(BRIEF, "--freethread-compare=no-such-python")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --freethread-compare: 'no-such-python' is not an interpreter (*"]
    )


def test_a_comparison_with_an_environment_without_the_plugin_says_how_to_make_one(run, pytester):
    bare = pytester.path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    result = run(BRIEF, f"--freethread-compare={bare}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --freethread-compare: '*bare' cannot run these tests: *",
            "*-m venv .venv-compare",
            "*.venv-compare/bin/pip install *pytest-freethread",
            "and say --freethread-compare=.venv-compare/bin/python",
        ]
    )


def test_the_gil_s_culprit_is_known_to_measurements(monkeypatch):
    monkeypatch.setattr(interpreter, "gil_culprit", "old_extension")
    monkeypatch.delenv("PYTHON_GIL", raising=False)
    monkeypatch.setattr(sys, "_xoptions", {})
    assert interpreter.gil_switched_on_by() == "old_extension"
    monkeypatch.setenv("PYTHON_GIL", "1")
    assert interpreter.gil_switched_on_by() == "PYTHON_GIL=1"
    monkeypatch.setattr(sys, "_xoptions", {"gil": "1"})
    assert interpreter.gil_switched_on_by() == "-X gil=1"
