"""User stories of tests with `@given`: Hypothesis chooses the arguments, and we the threads."""

from __future__ import annotations

import re

import pytest

ONCE = """
    import threading
    from hypothesis import assume, example, given, note, settings, strategies as st

    class Once:
        def __init__(self):
            self.made, self.count, self.lock = None, 0, threading.Lock()

        def get(self):
            if self.made is None:
                self.count += 1
                self.made = object()
            assert self.count == 1

        def get_locked(self):
            with self.lock:
                self.get()

    quickly = settings(database=None, derandomize=True, max_examples=20)
"""

PAIR = (
    ONCE
    + """
    @given(once=st.builds(Once), n=st.integers(0, 99))
    @quickly
    def test_racy(once, n):
        if n > 10:
            once.get()

    @given(once=st.builds(Once), n=st.integers(0, 99))
    @quickly
    def test_repaired(once, n):
        if n > 10:
            once.get_locked()
"""
)


@pytest.fixture
def given(pytester):
    """Run a file in one of the modes, within this process."""

    def given(mode, source, *options, seconds=60):
        pytester.makepyfile(test_it=source)
        # Enough time to shrink arguments on a busy machine too.
        budget = f"--freethread-seconds={seconds}", "--freethread-deadline=120"
        options = f"--freethread-mode={mode}", "--freethread-threads=2", *budget, *options
        return pytester.runpytest_inprocess(*options)

    return given


both = pytest.mark.parametrize("mode", ["stress", "explore"])


# --- what is found --------------------------------------------------------------------------------


def test_a_race_is_explored_and_its_arguments_and_schedule_are_shrunk(given):
    result = given("explore", PAIR, "-v")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_racy FAILED*",
            "*::test_repaired PASSED [[]explored * schedules in * examples[]]*",
            "E *assert 2 == 1*",
            "E *: test_racy(",
            "E *n=11,",
            "E *error: Check-then-act on Once.made: both threads looked at it before either changed*",
            "E *1 preemption, the fewest found * reproduced 10/10",
            "E *thread 0  test_racy *thread 1  test_racy*",
            "E *preempted",
            "E *Again:  pytest 'test_it.py::test_racy' --freethread-replay=ft1:*",
            "2 tests explored, 0 on one thread, 0 left alone",
            "1 finding, 0 notes",
            "   error  *::test_racy  ft1:*",
        ]
    )


def test_a_race_is_found_under_stress_with_thread_and_round(given):
    result = given("stress", PAIR, "-v", "--freethread-rounds=300")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_repaired PASSED [[]2 threads x * in * examples[]]*",
            "E *assert 2 == 1*",
            "E *thread *, round *; * of * executions",
            "E *: test_racy(",
            "2 tests ran in parallel, 0 on one thread, 0 left alone",
            "   error  exception: AssertionError: assert 2 == 1 (thread *",
        ]
    )
    result.stdout.no_fnmatch_line("*Flaky*")


def test_the_command_of_the_report_replays_the_schedule_with_hypothesis_own_database(given):
    source = PAIR.replace("database=None, derandomize=True, ", "")
    result = given("explore", source)
    token = re.search(r"--freethread-replay=(ft1:\S+)", result.stdout.str())[1]
    result = given("explore", source, "-k", "racy", f"--freethread-replay={token}", "-v")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *n=11,", f"replayed {token}: failed as before"])


def test_a_deadlock_is_found_in_both_modes(given):
    source = (
        ONCE
        + """
    locks = [threading.Lock(), threading.Lock()]

    @given(st.integers())
    @quickly
    def test_locks(n):
        one, other = locks if threading.current_thread().name[-1] == "0" else locks[::-1]
        with one:
            with other:
                pass
    """
    )
    for mode in ("explore", "stress"):
        result = given(mode, source, "--freethread-rounds=300", "--freethread-deadline=5")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*thread 0 and thread 1 each hold the lock that the other*"])


# --- what an example is ---------------------------------------------------------------------------


@both
def test_every_example_runs_in_all_threads_with_the_same_arguments(given, mode):
    result = given(
        mode,
        ONCE
        + """
    import pytest

    class Sight:
        def __init__(self):
            self.visits = set()
            sights.append(self)

    sights = []

    @given(n=st.integers(0, 9), sight=st.builds(Sight))
    @quickly
    def test_it(n, sight):
        me = threading.current_thread()
        assert me is not threading.main_thread()
        sight.visits.add((me.name, n))

    @pytest.mark.thread_unsafe
    def test_all():
        visited = [sight.visits for sight in sights if sight.visits]
        assert len(visited) >= 20
        for visits in visited:
            assert len({thread for thread, _ in visits}) == 2
            assert len({n for _, n in visits}) == 1
    """,
    )
    result.assert_outcomes(passed=2)


@both
def test_each_round_and_schedule_has_arguments_that_nobody_has_changed(given, mode):
    result = given(
        mode,
        ONCE
        + """
    class Seen:
        def __init__(self):
            self.visitors = []

    @example(numbers=[1, 2], sight=Seen())
    @given(numbers=st.lists(st.integers(), max_size=3), sight=st.builds(Seen))
    @quickly
    def test_it(numbers, sight):
        assert len(numbers) <= 5  # what was drawn, and one more by each thread
        numbers.append(0)
    """,
    )
    result.assert_outcomes(passed=1)


@both
def test_assume_note_and_skip_mean_what_they_do(given, mode):
    result = given(
        mode,
        ONCE
        + """
    import pytest

    @given(n=st.integers(0, 9))
    @quickly
    def test_assumes(n):
        assume(n > 3)
        assert n > 3

    @given(n=st.integers(0, 9))
    @quickly
    def test_notes(n):
        note(f"noted {n}")
        assert n < 5

    @given(n=st.integers())
    @quickly
    def test_skips(n):
        pytest.skip("not here")

    @given(n=st.integers())
    @quickly
    def test_returns(n):
        return n
    """,
    )
    result.assert_outcomes(passed=1, failed=2, skipped=1)
    result.stdout.fnmatch_lines(["E *n=5,", "*noted 5*"])
    result.stdout.fnmatch_lines(["*Tests run under @given should return None*"])


@both
def test_hypothesis_has_one_fixture_for_all_examples(given, mode):
    result = given(
        mode,
        ONCE
        + """
    import pytest
    import unittest
    from hypothesis import HealthCheck

    made = []

    @pytest.fixture
    def thing():
        made.append(1)
        return made

    @given(n=st.integers())
    @settings(quickly, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_it(thing, n):
        assert len(made) == 1

    class TestMethods:
        @given(n=st.integers())
        @quickly
        def test_method(self, n):
            assert isinstance(self, TestMethods)

    class TestCase(unittest.TestCase):
        def setUp(self):
            self.ready = True

        @given(n=st.integers())
        @quickly
        def test_case(self, n):
            self.assertTrue(self.ready)
    """,
    )
    result.assert_outcomes(passed=3)


# --- what stays as it is --------------------------------------------------------------------------


@both
def test_what_cannot_run_in_threads_is_told_with_the_reason(given, mode):
    result = given(
        mode,
        ONCE
        + """
    import os
    import pytest
    from hypothesis.stateful import RuleBasedStateMachine, rule
    from pytest_freethread import Schedule, schedules

    @given(schedule=schedules())
    @quickly
    def test_drawn(schedule):
        schedule.run(lambda: None)

    @given(pair=st.tuples(schedules(), st.none()))
    @quickly
    def test_nested(pair):
        pair[0].run(lambda: None)

    def test_fixed():
        Schedule().run(lambda: None)

    class Machine(RuleBasedStateMachine):
        @rule(schedule=schedules())
        def step(self, schedule):
            schedule.run(lambda: None)

    few = settings(quickly, max_examples=3)
    Machine.TestCase.settings = settings(few, stateful_step_count=2)
    TestMachine = Machine.TestCase

    @given(data=st.data())
    @quickly
    def test_later(data):
        data.draw(st.integers())

    @given(n=st.integers())
    @quickly
    def test_directory(n):
        os.chdir(".")

    @pytest.mark.thread_unsafe(reason="alone")
    @given(n=st.integers())
    @quickly
    def test_alone(n):
        pass
    """,
    )
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines_random(
        [
            "*, 3 on one thread, 4 left alone",
            "   3  drives its own threads (schedules) *",
            "   1  drives its own threads (Schedule) *",
            "   1  draws while it runs (st.data) *",
            "   1  uses os.chdir *",
            '   1  thread_unsafe: "alone" *',
        ]
    )


def test_a_state_machine_is_not_explored(given):
    source = (
        ONCE
        + """
    from hypothesis.stateful import RuleBasedStateMachine, rule

    class Machine(RuleBasedStateMachine):
        @rule()
        def step(self):
            pass

    TestMachine = Machine.TestCase
    """
    )
    result = given("explore", source)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["   1  is a state machine of Hypothesis *"])


def test_when_its_time_is_over_the_other_examples_run_on_one_thread_and_that_is_told(given):
    result = given(
        "stress",
        ONCE
        + """
    @given(n=st.integers())
    @quickly
    def test_it(n):
        pass
    """,
        seconds=0.000001,
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["   cut short after *: its time was over: * ran on one thread *"])


def test_the_function_under_given_is_its_own_again_afterwards(given):
    result = given(
        "explore",
        ONCE
        + """
    import pytest

    @given(n=st.integers())
    @quickly
    def test_it(n):
        pass

    @pytest.mark.thread_unsafe
    def test_after():
        assert test_it.hypothesis.inner_test.__code__.co_name == "test_it"
    """,
    )
    result.assert_outcomes(passed=2)
