"""User stories of `--freethread-mode=explore`: existing tests under one schedule after another."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from pytest_freethread import settings
from pytest_freethread.scheduling import STRATEGIES

RACY = """
    import threading
    import pytest

    class Counter:
        def __init__(self):
            self.value = 0
            self.lock = threading.Lock()

        def increment(self):
            value = self.value
            self.value = value + 1

        def increment_locked(self):
            with self.lock:
                self.increment()

    @pytest.fixture
    def counter():
        counter = Counter()
        yield counter
        assert counter.value == 2

    shared = pytest.mark.freethread(shared=["counter"])

    @shared
    def test_racy(counter):
        counter.increment()

    @shared
    def test_repaired(counter):
        counter.increment_locked()
"""


@pytest.fixture
def explore(pytester):
    """Explore all tests of a file, within this process."""

    def explore(source, *options):
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_inprocess("--freethread-mode=explore", *options)

    return explore


@pytest.fixture
def explore_apart(pytester):
    """The same in a process of its own, which must end by itself."""

    def explore_apart(source, *options):
        pytester.makepyfile(test_it=source)
        options = "--freethread-mode=explore", *options
        return pytester.runpytest_subprocess(*options, timeout=60)

    return explore_apart


def command_of(result):
    """What the report of a failure says to type."""
    return re.search(r"(?:Again: +|^ +)(pytest .*--freethread-replay=.*)", result.stdout.str())[1]


def typed(command, cwd):
    """What comes of a command typed at a shell's prompt."""
    words = [sys.executable, "-m", *shlex.split(command)]
    return subprocess.run(
        words, cwd=cwd, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


# --- what is found --------------------------------------------------------------------------------


def test_a_race_is_found_and_its_repaired_twin_is_silent(explore):
    result = explore(RACY, "-v")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "freethread: *; explore, 2 threads, up to 200 schedules or 2 s per test, seed 0",
            "*::test_racy FAILED*",
            "*::test_repaired PASSED [[]explored * schedules, all[]]*",
            "*thread 0*test_racy*thread 1*test_racy*",
            ">  *assert counter.value == 2",
            "E  *assert 1 == 2",
            "2 tests explored, 0 on one thread, 0 left alone",
            "1 finding, 0 notes",
            "   error  *::test_racy  ft1:*",
            "explored * schedules in * s (tests: 1 exhaustively)",
            "FAILED *::test_racy - assert 1 == 2 (ft1:*)",
        ]
    )


def test_what_fails_in_a_body_is_shown_as_pytest_shows_it(explore):
    result = explore("""
        import pytest

        @pytest.fixture
        def stack():
            return []

        @pytest.mark.freethread(shared=["stack"])
        def test_one_in_one_out(stack):
            stack.append(1)
            size = len(stack)
            assert size == 1, "somebody else is here"
            stack.pop()
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "thread ?:",
            ">  *assert size == 1, *",
            "E  *AssertionError: somebody else is here",
            "E  *assert 2 == 1",
            "test_it.py:11: AssertionError",
            "FAILED *::test_one_in_one_out - AssertionError: somebody else is here (ft1:*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_freethread/*")


def test_locks_of_fixtures_are_known_and_a_deadlock_is_told(explore):
    result = explore("""
        import threading
        import pytest

        @pytest.fixture
        def locks():
            return [threading.Lock(), threading.Lock()]

        @pytest.mark.freethread(shared=["locks"])
        def test_deadlock(locks, thread_index):
            with locks[thread_index], locks[1 - thread_index]:
                pass

        @pytest.mark.freethread(shared=["locks"])
        def test_in_one_order(locks, thread_index):
            with locks[0], locks[1]:
                pass
    """, "-v")  # fmt: skip
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*::test_in_one_order PASSED [[]explored *, all[]]*", "*eadlock*", "FAILED *eadlock*"]
    )


def test_time_is_virtual_in_bodies_and_fixtures(explore_apart):
    result = explore_apart("""
        import time
        import pytest

        @pytest.fixture
        def started():
            time.sleep(3600)
            yield time.monotonic()
            time.sleep(3600)

        def test_it(started):
            time.sleep(3600)
            assert time.monotonic() - started >= 3600
    """)
    result.assert_outcomes(passed=1)


# --- fixtures -------------------------------------------------------------------------------------


def test_fixtures_are_fresh_for_each_thread_and_schedule_and_always_torn_down(explore):
    result = explore("""
        import threading
        import pytest

        events = []
        total = [0]

        def here():
            return threading.current_thread() is threading.main_thread()

        @pytest.fixture(scope="module")
        def wide():
            events.append(("wide", None, here()))

        @pytest.fixture
        def basket(wide, thread_index, round_index):
            assert round_index == 0
            events.append(("up", thread_index, here()))
            yield []
            events.append(("down", thread_index, here()))

        def test_it(basket, thread_index, tmp_path, request):
            assert basket == []
            basket.append(thread_index)
            (tmp_path / "mine").mkdir()
            assert request.getfixturevalue("basket") is basket
            total[0] += 1
            events.append(("body", thread_index, here()))

        @pytest.mark.thread_unsafe
        def test_events():
            assert events.pop(0) == ("wide", None, True)
            assert len(events) > 6 and len(events) % 6 == 0
            for first in range(0, len(events), 6):
                execution = events[first : first + 6]
                assert execution[:2] == [("up", 0, True), ("up", 1, True)]
                assert sorted(execution[2:4]) == [("body", 0, False), ("body", 1, False)]
                assert execution[4:] == [("down", 1, True), ("down", 0, True)]
    """)
    result.assert_outcomes(passed=2)


def test_a_fixture_that_fails_says_so_and_everything_is_torn_down(explore):
    result = explore("""
        import pytest

        alive = []

        @pytest.fixture
        def resource(thread_index):
            alive.append(thread_index)
            yield
            alive.remove(thread_index)

        @pytest.fixture
        def bad(resource, thread_index):
            if thread_index == 1:
                raise OSError("no such thing")

        @pytest.fixture
        def bad_end(resource):
            yield
            raise OSError("not closed")

        @pytest.fixture
        def gives_up(resource):
            pytest.fail("no way")

        def test_set_up(bad): pass
        def test_tear_down(bad_end): pass
        def test_failed(gives_up): pass

        @pytest.mark.thread_unsafe
        def test_nothing_is_left(): assert not alive
    """)
    result.assert_outcomes(failed=3, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*OSError: no such thing*",
            "teardown, thread 1:",
            "*OSError: not closed*",
            "E  *Failed: no way",
            "FAILED *::test_set_up - OSError: no such thing (ft1:*",
            "FAILED *::test_tear_down - OSError: not closed (ft1:*",
            "FAILED *::test_failed - Failed: no way",
        ]
    )


def test_methods_have_an_instance_each_and_unittest_keeps_its_ways(explore):
    result = explore("""
        import unittest

        instances = set()

        class TestPlain:
            def test_it(self):
                assert not vars(self)
                self.mine = 1

        class TestCase(unittest.TestCase):
            def setUp(self):
                self.items = []

            def test_it(self):
                self.assertEqual(self.items, [])
                self.items.append(1)

            def test_parts(self):
                for number in range(3):
                    with self.subTest(number=number):
                        self.assertNotEqual(number, 1)
                        self.assertNotEqual(number, 2)

            @unittest.skip("not now")
            def test_later(self):
                raise AssertionError

            def tearDown(self):
                assert len(self.items) <= 1
    """)
    result.assert_outcomes(passed=2, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*several failures*", "*1 == 1*", "*2 == 2*"])


# --- outcomes that are no failures ----------------------------------------------------------------


def test_skips_and_expected_failures_pass_through(explore):
    result = explore("""
        import pytest

        def test_skip(): pytest.skip("not here")

        @pytest.fixture
        def unavailable(): pytest.skip("no server")

        def test_skip_in_a_fixture(unavailable): raise AssertionError

        def test_expected(): pytest.xfail("known")

        @pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
        def test_marked(): 1 / 0

        @pytest.mark.xfail(raises=ZeroDivisionError)
        def test_fails_otherwise(): raise ValueError("other")

        def test_one_of_two(thread_index):
            if thread_index:
                pytest.skip("this one")
    """, "-rfsx")  # fmt: skip
    result.assert_outcomes(skipped=2, xfailed=2, failed=1, passed=1)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED [[]1[]] *not here",
            "SKIPPED [[]1[]] *no server",
            "*skipped in some executions: *this one  *::test_one_of_two",
            "FAILED *::test_fails_otherwise - ValueError: other*",
        ]
    )


@pytest.mark.parametrize(
    ("how", "status"),
    [("pytest.exit('enough')", "Exit: enough"), ("raise KeyboardInterrupt", "KeyboardInterrupt")],
)
def test_what_ends_the_session_ends_it(explore_apart, how, status):
    result = explore_apart(f"""
        import pytest

        def test_it(thread_index):
            if thread_index:
                {how}

        def test_never(): pass
    """)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{status}*"])
    result.stdout.no_fnmatch_line("*passed*")


def test_what_cannot_be_explored_runs_as_ever_and_the_reason_is_told(explore):
    result = explore("""
        import unittest
        import pytest
        import pytest_freethread
        from hypothesis import given, strategies as st
        from pytest_freethread import explore

        @given(st.data())
        def test_property(data): pass

        def test_output(capsys): pass

        @pytest.mark.thread_unsafe(reason="alone")
        def test_alone(): pass

        def holds(body):
            return explore(body, threads=2).verdict.value == "inconclusive"

        def test_itself(): assert explore(print, threads=1)

        def test_by_a_helper(): assert holds(lambda: None)

        def test_by_the_package():
            assert pytest_freethread.explore(lambda: None, threads=2)

        def test_by_the_fixture(freethread):
            assert freethread.explore(lambda: None).executions

        class TestAsync(unittest.IsolatedAsyncioTestCase):
            async def test_it(self): pass
    """)
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["0 tests ran in parallel, 3 on one thread, 5 left alone"])
    result.stdout.fnmatch_lines_random(
        [
            "   1  draws while it runs (st.data) *",
            "   1  uses capsys *",
            '   1  thread_unsafe: "alone" *',
            "   3  drives its own threads (explore) *",
            "   1  drives its own threads (fixture freethread) *",
            "   1  async *",
        ]
    )


# --- verdicts -------------------------------------------------------------------------------------

DOUBTFUL = """
    import os
    import pytest

    calls = []

    def test_once():
        calls.append(1)
        assert len(calls) > 1

    @pytest.mark.freethread(mode="explore", deadline=0.1, schedules=1)
    def test_blocked(thread_index):
        if thread_index == 0:
            ends.extend(os.pipe())
            os.read(ends[0], 1)
        else:
            os.write(ends[1], b"x")
            os.close(ends.pop())

    ends = []
"""


def test_what_cannot_be_said_passes_but_is_counted(explore_apart):
    result = explore_apart(DOUBTFUL, "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*::test_once PASSED [[]inconclusive, explored 1 schedule[]]*",
            "*::test_blocked PASSED [[]inconclusive, explored 1 schedule[]]*",
            "1 test inconclusive: what failed did not fail again *::test_once",
            "1 test inconclusive: a thread was in real blocking, out of control *::test_blocked",
            "0 findings, 1 note",
            "   note   *::test_once*",
        ]
    )


LONG = """
    def test_long():
        numbers = {}
        for number in range(ROUNDS):
            numbers[number % 10] = number
        assert len(numbers) == 10
"""


def test_a_long_test_is_no_livelock(explore):
    result = explore(LONG.replace("ROUNDS", "15_000"), "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_long PASSED [[]explored *schedule*"])


def test_a_test_that_is_too_long_is_no_livelock_either(explore):
    result = explore(LONG.replace("ROUNDS", "250_000"), "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "1 test inconclusive: one execution has * steps, too many for others to be tried *::test_long"
        ]
    )


def test_strictly_what_cannot_be_said_fails(explore_apart):
    result = explore_apart(DOUBTFUL, "--freethread-strict")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "--freethread-strict: inconclusive: what failed did not fail again *",
            "--freethread-strict: inconclusive: a thread was in real blocking, out of control",
        ]
    )


# --- replay ---------------------------------------------------------------------------------------


def test_the_command_of_the_report_shows_the_failure_again(explore, pytester):
    command = command_of(explore(RACY))
    again = typed(command, pytester.path)
    assert "replayed: failed as before" in again.stdout
    assert re.search(r"assert 1 == 2 \(ft1:[^)]*\)\n", again.stdout)
    assert "1 test replayed, 0 on one thread, 0 left alone\n" in again.stdout
    assert again.returncode == pytest.ExitCode.TESTS_FAILED
    typed_with_workers = typed(f"{command} -n2", pytester.path)
    assert "replayed: failed as before" in typed_with_workers.stdout


def test_the_command_works_where_it_was_shown_whatever_the_root(pytester):
    pytester.makeini("[pytest]")
    below = pytester.mkdir("tests with spaces")
    source = """
        import pytest

        numbers = []

        @pytest.mark.parametrize("text", ["it's $HOME"])
        def test_it(text):
            numbers.append(len(numbers))
            assert numbers.count(numbers[-1]) == 1
    """
    pytester.makepyfile(test_it=source)
    (pytester.path / "test_it.py").rename(below / "test_it.py")
    options = "--freethread-mode=explore", "--freethread-threads=3", "--rootdir=.."
    os.chdir(below)
    shown = pytester.runpytest_inprocess(*options)
    shown.assert_outcomes(failed=1)
    command = command_of(shown)
    assert "--freethread-threads=3" in command
    assert "replayed: failed as before" in typed(command, below).stdout


def test_chance_is_the_same_in_a_replay_whatever_the_seed_of_the_search(explore, pytester):
    source = """
        import random
        import pytest

        @pytest.fixture
        def box():
            box = {"n": 0, "times": random.randrange(3, 6)}
            yield box
            assert box["n"] >= 2 * box["times"]

        @pytest.mark.freethread(shared=["box"])
        def test_racy(box):
            for _ in range(box["times"]):
                box["n"] += 1
    """
    token = re.search(r"ft1:[\dx.]+", explore(source, "--freethread-seed=7").stdout.str())[0]
    again = pytester.runpytest_inprocess(f"--freethread-replay={token}")
    again.stdout.fnmatch_lines([f"replayed {token}: failed as before"])


def test_a_replay_that_shows_no_failure_says_so(explore, pytester):
    token = re.search(r"ft1:[\dx.]+", explore(RACY).stdout.str())[0]
    repaired = RACY.replace("value = self.value", "value = 1 if self.value else 0")
    repaired = repaired.replace("counter.value == 2", "counter.value > 0")
    pytester.makepyfile(test_it=repaired)
    result = pytester.runpytest_inprocess("-k", "racy", f"--freethread-replay={token}", "-v")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_racy PASSED [[]replayed: the token's schedule shows no failure[]]*",
            f"replayed {token}: the token's schedule shows no failure",
        ]
    )


def test_a_replay_that_cannot_follow_says_where(explore, pytester):
    token = re.search(r"ft1:[\dx.]+", explore(RACY).stdout.str())[0]
    pytester.makepyfile(test_it=RACY)
    result = pytester.runpytest_inprocess("-k", "repaired", f"--freethread-replay={token}")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines([f"replay of {token} diverged at step *: expected thread *"])


@pytest.mark.parametrize(
    ("token", "selection", "answer"),
    [
        ("nonsense", [], "'nonsense' is not the token of a schedule*"),
        ("ft1:0x1", [], "3 tests are selected, and a schedule is of one; name it*"),
        ("ft1:0x1", ["-k", "output"], "*::test_output is run on one thread: uses capsys"),
    ],
)
def test_a_replay_that_means_nothing_stops_with_one_line(pytester, token, selection, answer):
    pytester.makepyfile("""
        def test_1(): pass
        def test_2(): pass
        def test_output(capsys): pass
    """)
    result = pytester.runpytest_inprocess(f"--freethread-replay={token}", *selection)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --freethread-replay: {answer}"])


# --- kept schedules -------------------------------------------------------------------------------


def kept(pytester):
    file = pytester.path / ".pytest_cache" / "v" / "freethread" / "schedules"
    return json.loads(file.read_text()) if file.exists() else None


def test_a_comment_that_suppresses_nothing_is_named(explore):
    result = explore(
        """
        import pytest

        class Stats:
            total = 0

            def add(self):
                self.total += 1  # freethread: benign, a guess will do

            def look(self):
                return self.total  # freethread: benign

        @pytest.fixture
        def stats():
            return Stats()

        @pytest.mark.freethread(shared=["stats"])
        def test_add(stats):
            stats.add()

        @pytest.mark.freethread(shared=["stats"])
        def test_look(stats):
            stats.look()
        """,
        "--freethread-races=error",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*1 suppressed as benign: test_*.py:7 (1)",
            "benign matched nothing in this run: test_*.py:10",
        ]
    )


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_a_failing_schedule_is_kept_and_run_first_until_it_passes(explore_apart, pytester, workers):
    name = "test_it.py::test_racy"
    explore_apart(RACY, *workers).stdout.no_fnmatch_line("*a kept schedule*")
    ((nodeid, (token,)),) = kept(pytester).items()
    assert nodeid == name
    again = explore_apart(RACY, *workers)
    again.assert_outcomes(failed=1, passed=1)
    again.stdout.fnmatch_lines(["  a kept schedule*"])
    assert kept(pytester) == {name: [token]}
    repaired = RACY.replace("counter.increment()", "counter.increment_locked()")
    explore_apart(repaired, *workers).assert_outcomes(passed=2)
    assert kept(pytester) == {}


def test_without_a_cache_nothing_is_kept(explore, pytester):
    explore(RACY, "-p", "no:cacheprovider").assert_outcomes(failed=1, passed=1)
    assert kept(pytester) is None


def test_a_kept_schedule_that_is_none_any_more_is_passed_over(explore, pytester):
    file = pytester.path / ".pytest_cache" / "v" / "freethread" / "schedules"
    file.parent.mkdir(parents=True)
    name = "test_it.py::test_repaired"
    file.write_text(json.dumps({name: ["ft0:old"]}))
    explore(RACY).assert_outcomes(failed=1, passed=1)
    assert list(kept(pytester)) == [name.replace("repaired", "racy")]


# --- settings -------------------------------------------------------------------------------------


def test_marker_beats_option_beats_ini(pytester):
    pytester.makeini("[pytest]\nfreethread_mode = explore\nfreethread_schedules = 5\n")
    pytester.makepyfile("""
        import pytest

        events = []

        def test_plain():
            events.append(1)

        @pytest.mark.freethread(schedules=3, strategy="random", preemptions=1, include=["json"])
        def test_marked():
            events.append(1)

        @pytest.mark.freethread(mode="stress", threads=2, rounds=4)
        def test_stressed(): pass

        @pytest.mark.freethread(mode="explore", races="error", threads="auto", seed=3)
        def test_automatic(thread_index): assert thread_index < 2
    """)
    by_ini = pytester.runpytest_inprocess("-v")
    by_ini.stdout.fnmatch_lines(
        [
            "freethread: *; explore, 2 threads, up to 5 schedules or 2 s per test, seed 0",
            "*::test_plain PASSED [[]explored 5 schedules[]]*",
            "*::test_marked PASSED [[]explored 3 schedules[]]*",
            "*::test_stressed PASSED [[]2 threads x 4[]]*",
            "*::test_automatic PASSED [[]inconclusive, explored *",
            "1 test ran in parallel, 3 explored, 0 on one thread, 0 left alone",
        ]
    )
    by_option = pytester.runpytest_inprocess("-v", "--freethread-schedules=4")
    by_option.stdout.fnmatch_lines(
        [
            "*::test_plain PASSED [[]explored 4 schedules[]]*",
            "*::test_marked PASSED [[]explored 3 schedules[]]*",
        ]
    )
    stressed = ["--freethread-mode=stress", "--freethread-threads=2", "--freethread-rounds=2"]
    by_option = pytester.runpytest_inprocess("-v", *stressed)
    by_option.stdout.fnmatch_lines(
        [
            "freethread: *; stress, 2 threads × 2 rounds, seed *",
            "*::test_plain PASSED [[]2 threads x 2[]]*",
            "*::test_marked PASSED [[]2 threads x 2[]]*",
            "*::test_automatic PASSED [[]inconclusive, explored *",
        ]
    )


def test_the_names_of_the_strategies_are_those_that_there_are():
    assert settings.STRATEGIES == STRATEGIES


@pytest.mark.parametrize(
    ("marker", "answer"),
    [
        ("mode='explode'", "'explode' is not a mode ('stress' or 'explore')"),
        ("schedules=4", "it means something in mode 'explore' only; say mode='explore' too"),
        ("mode='stress', include=['json']", "it means something in mode 'explore' only"),
        ("mode='explore', rounds=4", "it means something in mode 'stress' only"),
        ("mode='explore', schedules=0", "0 is not a number of schedules (a positive integer)"),
        (
            "mode='explore', strategy='best'",
            "'best' is not a strategy ('auto', 'random', 'pct', 'pos', 'surw', 'dfs', 'dpor', or "
            "a Scheduler of your own)",
        ),
        (
            "mode='explore', preemptions=-1",
            "-1 is not a number of preemptions (an integer from 0 on, or None)",
        ),
        (
            "mode='explore', strategy='dpor', preemptions=2",
            "strategy 'dpor' takes no bound; 'dfs' does",
        ),
        ("mode='explore', include='json'", "not a list of module names"),
        (
            "mode='explore', races='perhaps'",
            "'perhaps' is not what a race can be ('error', 'note' or 'off')",
        ),
    ],
)
def test_an_absurd_marker_stops_with_one_line(pytester, marker, answer):
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.freethread({marker})
        def test_it(): pass
    """)
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    name = "test_an_absurd_marker_stops_with_one_line"
    said = marker.rpartition(", ")[2]
    expected = f"ERROR: {name}.py::test_it: marker freethread({said}): {answer}"
    assert [line for line in result.stderr.lines if line] == [expected]


def test_a_module_to_include_that_is_not_there_fails_the_test(explore):
    result = explore("""
        import pytest

        @pytest.mark.freethread(include=["no_such_module"])
        def test_it(): pass
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_it: marker freethread(include='no_such_module'*: no module of that name is loaded*"
        ]
    )


def test_the_fixture_knows_the_tests_settings(pytester):
    pytester.makepyfile("""
        import pytest

        class Counter:
            value = 0

        def increment(counter):
            counter.value += 1

        def is_two(counter):
            return counter.value == 2

        @pytest.mark.freethread(mode="explore", schedules=7, strategy="random", threads=2, seed=1)
        def test_it(freethread):
            program = {"setup": Counter, "invariant": lambda counter: counter.value > 0}
            result = freethread.explore(increment, **program)
            assert result.executions == 7
            assert "random, seed 1" in result.scope
            assert freethread.explore(increment, schedules=3, **program).executions == 3

            found = freethread.explore(increment, setup=Counter, invariant=is_two, schedules=99)
            (finding,) = found.findings
            again = freethread.replay(finding.token, increment, setup=Counter, invariant=is_two)
            assert again.verdict.value == "failed"

            assert freethread.stress(lambda: None, rounds=3).executions == 6
    """)
    pytester.runpytest_inprocess("--freethread-rounds=5").assert_outcomes(passed=1)


# --- together with others -------------------------------------------------------------------------


def test_workers_of_xdist_explore_on_cores_of_their_own(pytester):
    pytester.makepyfile("""
        import os
        import pytest

        from pytest_freethread import interpreter

        @pytest.mark.parametrize("n", range(4))
        def test_it(n, worker_id):
            with open(f"{worker_id}.core", "w") as file:
                file.write(str(interpreter.own_core()))
    """)
    result = pytester.runpytest_subprocess("-n2", timeout=60)
    result.assert_outcomes(passed=4)
    assert [(pytester.path / f"gw{n}.core").read_text() for n in range(2)] == ["0", "1"]


AFTERWARDS = """
    import signal
    import sys
    import threading
    import time

    def helper():
        return threading.Lock()

    class Thing:
        value = 0

        def method(self):
            self.value += 1

    before = helper.__code__, Thing.method.__code__
    clocks = time.monotonic, time.sleep, time.time, threading.Lock, threading.Thread.start
    thing = Thing()

    def test_it():
        helper()
        for _ in range({times}):
            thing.method()
        {then}

    def test_afterwards(capsys):
        assert before == (helper.__code__, Thing.method.__code__)
        assert clocks == (
            time.monotonic, time.sleep, time.time, threading.Lock, threading.Thread.start)
        assert type(helper()).__module__ == "_thread"
        assert threading.active_count() == len(threading.enumerate())
        assert threading.current_thread() is threading.main_thread()
"""


@pytest.mark.parametrize("then", ["pass", "assert thing.value < 0", "raise SystemExit(3)"])
def test_everything_is_as_before_when_the_test_has_ended(explore_apart, then):
    result = explore_apart(AFTERWARDS.format(then=then, times=1))
    result.assert_outcomes(**({"passed": 2} if then == "pass" else {"passed": 1, "failed": 1}))


def test_a_timeout_in_the_middle_ends_the_test_alone(explore_apart):
    source = AFTERWARDS.format(times=1, then="import os; os.read(os.pipe()[0], 1)")
    result = explore_apart(source, "--timeout=1", "--timeout-method=signal", "-v")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.no_fnmatch_line("self = <pytest_freethread*")
    result.stdout.fnmatch_lines(["*::test_afterwards PASSED*", "Failed: Timeout (>1.0s)*"])


def test_a_budget_stays_below_the_timeout_of_either_method(explore_apart):
    source = AFTERWARDS.format(times=50, then="pass")
    options = "--timeout=4", "--freethread-schedules=1000000", "--freethread-seconds=none", "-v"
    result = explore_apart(source, "--timeout-method=thread", *options)
    result.assert_outcomes(passed=2)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_in_the_middle_ends_the_session(explore_apart, pytester):
    pytester.makeconftest("""
        import signal

        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored
    """)
    result = explore_apart("""
        import os

        numbers = []

        def test_it():
            numbers.append(1)
            if len(numbers) == 6:
                os.kill(os.getpid(), 2)

        def test_never(): pass
    """)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    result.stdout.no_fnmatch_line("*1 passed*")


def test_output_is_shown_without_capture_and_kept_with_it(explore_apart):
    source = "def test_it(): print('hello')"
    assert "hello" in explore_apart(source, "-s").stdout.str()
    assert "hello" not in explore_apart(source).stdout.str()


def test_a_debugger_opens_where_the_failure_is(pytester):
    pytester.makepyfile(test_it="def test_it():\n    answer = 42\n    assert answer == 43\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--freethread-mode=explore", "--pdb"],
        input="p 'answer', answer\nq\n",
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert "('answer', 42)" in done.stdout
