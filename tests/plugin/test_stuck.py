"""Threads that do not come back, and threads that are left behind."""

from __future__ import annotations

import sys

import pytest

DEADLOCK = """
    import threading

    a, b = threading.Lock(), threading.Lock()
    both_hold_one = threading.Barrier(2)

    def test_before():
        pass

    def test_transfer(thread_index):
        first, second = (a, b) if thread_index == 0 else (b, a)
        with first:
            both_hold_one.wait()
            with second:
                pass

    def test_after():
        pass
"""


def test_a_deadlock_in_the_middle_fails_its_test_and_the_session_goes_on_and_ends(rerun_apart):
    result = rerun_apart(DEADLOCK, "-v")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*::test_before PASSED [[]2 threads x 3[]]*",
            "*::test_transfer FAILED*",
            "*::test_after PASSED [[]2 threads x 3[]]*",
            "*deadlock in round 0: thread 0 and thread 1 each hold the lock that the other waits*",
            "*thread 0 *holds *taken at *with first:*",
            "*waits for *at *with second:*",
            "*thread 1 *holds *taken at *with first:*",
            "*waits for *at *with second:*",
            "*thread 0*most recent line last:",
            "*in test_transfer *with second:",
            "*thread 1*most recent line last:",
            "*in test_transfer *with second:",
            "1 finding, 0 notes",
            "   error  deadlock: deadlock in round 0: *::test_transfer",
            "FAILED *::test_transfer - *deadlock in round 0*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_freethread*")


def test_a_deadlock_under_xdist(rerun_apart):
    result = rerun_apart(DEADLOCK, "-n2")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*deadlock in round 0: thread 0 and thread 1 each*"])


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_a_deadlock_with_pytest_timeout(rerun_apart, method):
    result = rerun_apart(DEADLOCK, "--timeout=20", f"--timeout-method={method}")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*deadlock in round 0: thread 0 and thread 1 each*"])


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_our_deadline_stays_below_the_one_of_pytest_timeout(rerun_apart, method):
    result = rerun_apart("""
        import threading
        import pytest

        @pytest.mark.timeout(1)
        def test_stuck():
            threading.Event().wait()

        def test_after():
            pass
    """, f"--timeout-method={method}")  # fmt: skip
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*2 of 2 threads did not come back within the deadline of 0.5 s*"])


def test_philosophers_with_rlocks_and_a_lock_taken_twice(rerun_apart):
    result = rerun_apart("""
        import threading
        import pytest

        class Table:
            def __init__(self):
                self.forks = [threading.RLock() for _ in range(3)]
                self.all_hold_one = threading.Barrier(3)

            def eat(self, seat):
                with self.forks[seat]:
                    self.all_hold_one.wait()
                    with self.forks[(seat + 1) % 3]:
                        pass

        @pytest.fixture
        def table():
            return Table()

        @pytest.mark.freethread(threads=3, shared=["table"])
        def test_dinner(table, thread_index):
            table.eat(thread_index)

        def test_twice():
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()

        def test_after():
            pass
    """, threads=1)  # fmt: skip
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*deadlock in round 0: thread 0, thread 1, thread 2: each waits for a lock that the "
            "next one holds*",
            "*holds *self.forks[[]seat[]]*",
            "*waits for *self.forks[[](seat + 1) % 3[]]*",
            "*in test_dinner *table.eat(thread_index)",
            "*in Table.eat *with self.forks[[](seat + 1) % 3[]]:",
            "*thread 0 waits for a lock that it holds itself*",
        ]
    )


def test_a_deadlock_in_a_later_round_with_threads_of_the_test(rerun_apart):
    result = rerun_apart("""
        import threading

        class Account:
            def __init__(self):
                self.lock = threading.Lock()

        def test_it(round_index):
            if round_index == 0:
                return
            mine, theirs = Account(), Account()
            both = threading.Barrier(2)

            def move(source, target):
                with source.lock:
                    both.wait()
                    with target.lock:
                        pass

            helper = threading.Thread(target=move, args=(theirs, mine), name="helper")
            helper.start()
            move(mine, theirs)
    """, threads=1)  # fmt: skip
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*deadlock in round 1: thread 0 and helper each hold the lock that the other waits for*",
            "*thread 0 *holds *Account.lock *with source.lock:*",
            "*thread 'helper' *holds *Account.lock *with source.lock:*",
        ]
    )


def test_threads_that_are_stuck_without_a_cycle_fail_at_the_deadline(rerun_apart):
    result = rerun_apart("""
        import queue
        import threading

        def test_waits(thread_index):
            if thread_index == 1:
                queue.Queue().get()

        def test_event():
            threading.Event().wait()

        def test_spins():
            while True:
                pass

        def test_after():
            assert not [t.name for t in threading.enumerate() if t.name == "spinning"]
    """, "--freethread-deadline=0.3")  # fmt: skip
    result.assert_outcomes(passed=1, failed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*stuck in round 0: 1 of 2 threads did not come back within the deadline of 0.3 s*",
            "*thread 1, in Queue.get, most recent line last:",
            "*in test_waits *queue.Queue().get()",
            "*stuck in round 0: 2 of 2 threads did not come back within the deadline of 0.3 s*",
            "*thread 0, in Event.wait, most recent line last:",
            "*in test_event *threading.Event().wait()",
            "*stuck in round 0: 2 of 2 threads did not come back within the deadline of 0.3 s*",
            "*thread 0, most recent line last:",
            "*in test_spins *",
            "3 findings, 0 notes",
        ]
    )


def test_a_thread_that_runs_python_is_ended_when_it_is_given_up(rerun_apart):
    result = rerun_apart("""
        import threading
        import pytest

        ended = threading.Event()

        def test_spins():
            try:
                while True:
                    pass
            finally:
                ended.set()

        @pytest.mark.thread_unsafe
        def test_ended():
            assert ended.wait(20)
    """, "--freethread-deadline=0.3", threads=1)  # fmt: skip
    result.assert_outcomes(passed=1, failed=1)


def test_a_tear_down_that_waits_for_stuck_threads_is_broken_off(rerun_apart):
    result = rerun_apart("""
        import threading
        import pytest

        held = threading.Lock()
        torn_down = []

        @pytest.fixture(scope="module", autouse=True)
        def module():
            yield
            torn_down.append("module")
            assert torn_down == ["own", "wide", "module"]

        @pytest.fixture(scope="class")
        def wide():
            yield
            torn_down.append("wide")
            held.acquire()

        @pytest.fixture
        def own():
            yield
            torn_down.append("own")
            held.acquire()

        class TestIt:
            def test_stuck(self, own, wide):
                with held:
                    threading.Event().wait()

        def test_after():
            pass
    """, "--freethread-deadline=0.3", threads=1)  # fmt: skip
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*TimeoutError: broken off after 0.3 s: threads of a test are *"])


def test_exit_handlers_run_and_output_is_written_though_threads_are_stuck(rerun_apart):
    result = rerun_apart("""
        import atexit
        import sys
        import threading

        def test_stuck():
            atexit.register(sys.__stdout__.write, "goodbye")
            threading.Event().wait()
    """, "--freethread-deadline=0.3", "-s", threads=1)  # fmt: skip
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*goodbye*"])


def test_an_expected_failure_that_gets_stuck_ends_too(rerun_apart):
    result = rerun_apart("""
        import threading
        import pytest

        @pytest.mark.xfail
        def test_stuck():
            threading.Event().wait()
    """, "--freethread-deadline=0.3", threads=1)  # fmt: skip
    result.assert_outcomes(xfailed=1)
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_control_c_ends_a_session_whose_threads_are_stuck(rerun_apart):
    result = rerun_apart("""
        import os
        import threading

        def test_stuck(thread_index):
            if thread_index == 1:
                os.kill(os.getpid(), 2)
            threading.Event().wait()

        def test_not_run():
            pass
    """)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    result.stdout.no_fnmatch_line("*1 passed*")


def test_threads_that_are_left_behind_fail_the_test_and_the_process_ends(rerun_apart):
    result = rerun_apart("""
        import threading

        never = threading.Event()

        def start(name, daemon):
            threading.Thread(target=never.wait, name=name, daemon=daemon).start()

        def test_leaks(thread_index):
            start(f"left-{thread_index}", daemon=False)

        def test_leaks_a_daemon():
            start("background", daemon=True)

        def test_after():
            pass
    """, rounds=2)  # fmt: skip
    result.assert_outcomes(passed=1, failed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*4 threads still run after the test, started at *test_*.py:6*",
            "*threads: left-*",
            "*started at, most recent line last:",
            "*in test_leaks *start(f*",
            "*in start *threading.Thread(*).start()",
            "*4 threads still run after the test, started at *",
            "*daemon threads: background, background, background and 1 more*",
            "2 findings, 0 notes",
            "   error  leak: 4 threads still run after the test, started at * *::test_leaks",
        ]
    )


def test_what_a_failing_test_left_behind_is_shown_beside_its_failure(rerun_apart):
    result = rerun_apart("""
        import threading

        def test_it():
            threading.Thread(target=threading.Event().wait, name="left").start()
            assert False, "and this"
    """, threads=1, rounds=1)  # fmt: skip
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: and this*", "*thread 'left' still runs after the test*", "2 findings, *"]
    )


def test_threads_that_end_with_their_test_are_no_finding(rerun):
    result = rerun("""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import pytest

        @pytest.fixture
        def worker():
            stop = threading.Event()
            thread = threading.Thread(target=stop.wait)
            thread.start()
            yield thread
            stop.set()
            thread.join()

        def test_fixture(worker):
            assert worker.is_alive()

        def test_told_but_not_waited_for():
            stop = threading.Event()
            threading.Thread(target=stop.wait).start()
            stop.set()

        def test_pool():
            with ThreadPoolExecutor(2) as pool:
                assert list(pool.map(abs, [-1, -2])) == [1, 2]

        def test_pool_that_is_dropped():
            pool = ThreadPoolExecutor(1)
            assert pool.submit(abs, -1).result() == 1

        @pytest.fixture(scope="module")
        def server():
            stop = threading.Event()
            thread = threading.Thread(target=stop.wait)
            thread.start()
            yield thread
            stop.set()
            thread.join()

        def test_wide_fixture(server):
            assert server.is_alive()
    """)
    result.assert_outcomes(passed=5)
    result.stdout.no_fnmatch_line("*leak:*")


def test_the_workers_of_a_pool_that_lives_on_are_a_note(rerun):
    result = rerun("""
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(2)

        def test_it():
            assert pool.submit(abs, -1).result() == 1

        def teardown_module():
            pool.shutdown()
    """)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["0 findings, 1 note", "   note   leak: * still run* after the test, started at *"]
    )


def test_a_test_that_leaves_ever_more_threads_behind_is_cut_short(rerun_apart):
    result = rerun_apart("""
        import threading

        never = threading.Event()

        def test_it():
            for _ in range(50):
                threading.Thread(target=never.wait, daemon=True).start()
    """, rounds=50)  # fmt: skip
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*200 threads still run after the test*", "*it left more than 128 threads behind*"]
    )
