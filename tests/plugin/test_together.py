"""Together with what else people use: pytest's own options, xdist, timeout, coverage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

MIXED = """
    import pytest

    def test_good(): pass

    def test_bad(thread_index):
        assert thread_index == 0

    def test_prints(capsys): pass

    def test_worse(): raise ValueError("worse")

    def test_fine(): pass
"""


def test_stop_at_the_first_failure(rerun):
    result = rerun(MIXED, "-x")
    result.assert_outcomes(passed=1, failed=1)


def test_stop_at_a_number_of_failures_counts_tests_not_threads(rerun):
    result = rerun(MIXED, "--maxfail=2", threads=4)
    result.assert_outcomes(passed=2, failed=2)


def test_run_what_failed_last_time(rerun):
    rerun(MIXED).assert_outcomes(passed=3, failed=2)
    result = rerun(MIXED, "--lf", "-v")
    result.assert_outcomes(failed=2)
    result = rerun(MIXED, "--ff", "-v")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["*::test_bad FAILED*", "*::test_worse FAILED*", "*::test_good *"])


def test_stepwise(rerun):
    rerun(MIXED, "--stepwise").assert_outcomes(passed=1, failed=1)
    result = rerun(MIXED, "--stepwise", "--stepwise-skip")
    result.assert_outcomes(passed=1, failed=2, deselected=1)


def test_selection_by_name_and_marker(rerun):
    rerun(MIXED, "-k", "good or fine").assert_outcomes(passed=2, deselected=3)
    result = rerun("""
        import pytest

        @pytest.mark.freethread(rounds=1)
        def test_marked(): pass

        def test_other(): pass
    """, "-m", "freethread")  # fmt: skip
    result.assert_outcomes(passed=1, deselected=1)


def test_junitxml_has_one_case_per_test_with_all_its_failures(rerun, pytester):
    rerun(
        """
        def test_good(): pass

        def test_bad(thread_index):
            if thread_index:
                raise KeyError("one")
            raise ValueError("two")
        """,
        "--junitxml=report.xml",
    )
    cases = ET.parse(pytester.path / "report.xml").getroot().findall(".//testcase")
    assert [case.get("name") for case in cases] == ["test_good", "test_bad"]
    (failure,) = cases[1].findall("failure")
    assert "thread 0, round 0; 3 of 6 executions" in failure.text
    assert "thread 1, round 0; 3 of 6 executions" in failure.text
    assert "KeyError: 'one'" in failure.text
    assert "ValueError: two" in failure.text


def test_xdist_tells_the_same_as_one_process(rerun_apart):
    here = rerun_apart(MIXED, "-v")
    there = rerun_apart(MIXED, "-v", "-n2")
    there.assert_outcomes(passed=3, failed=2)
    there.stdout.fnmatch_lines_random(
        [
            "*PASSED [[]2 threads x 3[]] *::test_good*",
            "*PASSED [[]2 threads x 3[]] *::test_fine*",
            "*PASSED test_*::test_prints*",
        ]
    )
    assert sorted(summary(here)) == sorted(summary(there))
    assert len(summary(here)) >= 5


def summary(result):
    lines = result.outlines
    (start,) = (index for index, line in enumerate(lines) if "= freethread =" in line)
    kept = [line for line in lines[start + 1 :] if not line.startswith("ran ")]
    end = next(index for index, line in enumerate(kept) if line.startswith("==="))
    return [line for line in kept[:end] if line]


def test_xdist_workers_use_the_seed_of_the_session(rerun_apart, pytester):
    pytester.makeconftest("""
        from pytest_freethread.plugin import options

        def pytest_runtest_call(item):
            plan, _ = options.item_plan(item)
            with open(f"{item.name}.seed", "w") as file:
                file.write(str(plan.seed))
    """)
    result = rerun_apart("def test_1(): pass\ndef test_2(): pass", "-n2")
    result.assert_outcomes(passed=2)
    shown = re.search(r"freethread: .*, seed (\d+)", result.stdout.str())[1]
    assert (pytester.path / "test_1.seed").read_text() == shown
    assert (pytester.path / "test_2.seed").read_text() == shown


def test_a_timeout_above_the_deadline_changes_nothing(rerun):
    result = rerun("def test_it(): pass", "--timeout=60", "-v")
    result.stdout.fnmatch_lines(["*::test_it PASSED [[]2 threads x 3[]]*"])


def test_coverage_sees_the_lines_that_run_in_the_threads(pytester):
    pytester.makepyfile(
        subject="""
            def inside():
                return 1

            def untouched():
                return 2
        """,
        test_subject="""
            import subject

            def test_it():
                assert subject.inside() == 1
        """,
    )
    (pytester.path / ".coveragerc").write_text("[run]\ndata_file = .coverage\n")
    environment = {name: v for name, v in os.environ.items() if not name.startswith("COV")}
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run(
        [*coverage, "run", "--include=subject.py", "-m", "pytest", "--freethread"],
        env=environment,
        check=True,
        timeout=60,
    )
    shown = subprocess.run(
        [*coverage, "report", "-m"],
        env=environment,
        check=True,
        timeout=60,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    assert re.search(r"subject\.py +4 +1 +75% +5\n", shown)


def test_switched_off_it_is_gone(pytester):
    pytester.makepyfile("""
        import sys

        def test_it(request):
            assert "pytest_freethread.plugin" not in sys.modules
            assert not request.config.pluginmanager.hasplugin("freethread")
    """)
    result = pytester.runpytest_subprocess("-p", "no:freethread", timeout=60)
    result.assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess("-p", "no:freethread", "--freethread", timeout=60)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --freethread*"])


def test_installed_but_not_used_it_loads_nothing_heavy(pytester):
    pytester.makepyfile("""
        import sys

        def test_it():
            assert "pytest_freethread.plugin" in sys.modules
            assert "pytest_freethread.harness" not in sys.modules
            assert "pytest_freethread.execution.free" not in sys.modules
            assert "unittest.mock" not in sys.modules
    """)
    result = pytester.runpytest_subprocess(
        "-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:timeout", timeout=60
    )
    result.assert_outcomes(passed=1)


def test_assertion_rewriting_off(rerun_apart):
    result = rerun_apart("def test_it(thread_index): assert thread_index == 0", "--assert=plain")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["thread 1, round 0; 3 of 6 executions"])


def test_no_capture(rerun_apart):
    result = rerun_apart("def test_it(): print('hello')", "-s")
    result.assert_outcomes(passed=1)
    assert result.stdout.str().count("hello") == 6


def test_quiet(rerun):
    result = rerun("def test_it(): pass", "-q")
    result.assert_outcomes(passed=1)


def test_the_summary_of_outcomes(rerun):
    result = rerun(MIXED, "-rA")
    result.stdout.fnmatch_lines_random(
        ["PASSED * *::test_good", "PASSED *::test_prints", "FAILED *::test_bad - *"]
    )


def test_durations_are_of_whole_tests(rerun):
    result = rerun("def test_it(): pass", "--durations=0", "-vv")
    assert sum("s call " in line for line in result.outlines) == 1


def test_a_debugger_opens_where_the_failure_is(pytester):
    pytester.makepyfile(test_it="def test_it():\n    answer = 42\n    assert answer == 43\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--freethread", "--freethread-rounds=1", "--pdb"],
        input="p 'answer', answer\nq\n",
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert "('answer', 42)" in done.stdout


def test_faulthandler_and_other_plugins_that_wrap_the_call_see_one(rerun, pytester):
    pytester.makeconftest("""
        import pytest

        calls = []

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(item):
            calls.append(item.name)
            return (yield)

        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"calls: {calls}")
    """)
    result = rerun("def test_1(): pass\ndef test_2(): pass")
    result.stdout.fnmatch_lines(["calls: ['test_1', 'test_2']"])
