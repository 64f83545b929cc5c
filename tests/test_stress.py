"""`stress(...)`: what it runs, what it counts, what it finds, and what it leaves behind."""

from __future__ import annotations

import re
import sys
import threading

import pytest

from pytest_freethread import SettingError, ThreadSafetyError, Verdict, interpreter, stress


class Box:
    def __init__(self):
        self.items = []


def test_one_body_runs_in_every_thread_of_every_round():
    ran = []
    result = stress(lambda: ran.append(threading.get_ident()), threads=3, rounds=5)
    assert result.verdict is Verdict.PASSED
    assert result.executions == len(ran) == 15
    assert len(set(ran)) == 3
    assert not result.exhaustive
    assert "3 threads × 5 rounds, 15 executions" in result.scope


def test_each_round_has_a_state_of_its_own_that_its_bodies_share():
    boxes = []

    def setup():
        boxes.append(Box())
        return boxes[-1]

    stress(lambda box: box.items.append(1), setup=setup, threads=2, rounds=4).raise_for_verdict()
    assert [len(box.items) for box in boxes] == [2, 2, 2, 2]


def test_several_bodies_run_in_one_thread_each_and_are_dealt_out_in_turn():
    def body(name):
        return lambda box: box.items.append(name)

    seen = []

    def invariant(box):
        seen.append(sorted(box.items))

    stress(body("a"), body("b"), setup=Box, invariant=invariant, rounds=1)
    stress(body("a"), body("b"), setup=Box, invariant=invariant, rounds=1, threads=3)
    assert seen == [["a", "b"], ["a", "a", "b"]]


def test_setup_and_invariant_run_on_the_calling_thread():
    threads = []

    def note(*_):
        threads.append(threading.current_thread())

    stress(lambda _: None, setup=note, invariant=note, threads=2, rounds=2)
    assert set(threads) == {threading.current_thread()}


def test_bodies_of_a_round_really_meet():
    barrier = threading.Barrier(4)
    stress(lambda: barrier.wait(timeout=30), threads=4, rounds=20).raise_for_verdict()


def test_an_invariant_that_returns_false_or_asserts_is_a_finding():
    def asserts(box):
        assert box.items == [], "not empty"

    for invariant, said in [
        (lambda box: box.items == [], "returned False"),
        (asserts, "not empty"),
    ]:
        result = stress(
            lambda box: box.items.append(1), setup=Box, invariant=invariant, threads=2, rounds=3
        )
        assert result.verdict is Verdict.FAILED
        (finding,) = result.findings
        assert (finding.kind, finding.severity) == ("invariant", "error")
        assert said in finding.message
        assert "round 0; 3 of 3 rounds" in finding.message
        assert finding.token is None


def test_an_invariant_that_returns_nothing_holds():
    stress(lambda: None, invariant=lambda: None, threads=2, rounds=1).raise_for_verdict()


def test_every_distinct_failure_is_kept_with_its_count():
    turns = iter(range(1_000))
    lock = threading.Lock()

    def body():
        with lock:
            turn = next(turns)
        if turn % 2:
            raise KeyError(turn)
        raise ValueError(turn)

    result = stress(body, threads=2, rounds=6)
    assert {type(f.evidence.exception) for f in result.findings} == {KeyError, ValueError}
    assert [f.evidence.count for f in result.findings] == [6, 6]
    assert [len(f.evidence.other_texts) for f in result.findings] == [5, 5]


def test_texts_that_differ_by_an_address_only_are_one():
    def body(box):
        raise ValueError(f"{box!r} is full")

    result = stress(body, setup=Box, threads=2, rounds=4)
    assert result.findings[0].evidence.other_texts == ()


def test_raise_for_verdict_carries_the_report_and_the_result():
    result = stress(lambda: 1 / 0, threads=2, rounds=1)
    with pytest.raises(ThreadSafetyError, match="ZeroDivisionError") as caught:
        result.raise_for_verdict()
    assert caught.value.result is result


def test_the_report_shows_the_traceback_from_the_body_on():
    report = str(stress(lambda: 1 / 0, threads=2, rounds=3))
    assert "error: ZeroDivisionError: division by zero (thread 0, round 0; 6 of 6" in report
    assert "lambda: 1 / 0" in report
    assert "free.py" not in report


def test_system_exit_in_a_body_is_a_finding_and_ctrl_c_ends_the_run():
    assert stress(sys.exit, threads=2, rounds=1).verdict is Verdict.FAILED

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stress(interrupted, threads=2, rounds=1)
    stress(lambda: None, threads=2, rounds=1).raise_for_verdict()


def test_an_exception_in_setup_is_a_finding_and_no_body_runs():
    result = stress(lambda _: None, setup=lambda: {}["missing"], threads=2, rounds=2)
    assert result.verdict is Verdict.FAILED
    assert result.executions == 0
    assert "setup raised KeyError" in result.findings[0].message


def test_a_budget_in_seconds_ends_the_rounds():
    result = stress(lambda: None, threads=2, rounds=10**9, seconds=0.05)
    assert result.verdict is Verdict.PASSED
    assert "rounds (its 0.05 s were over)" in result.scope


def test_the_switch_interval_is_tiny_during_a_run_and_restored_after():
    before = sys.getswitchinterval()
    seen = []
    stress(lambda: seen.append(sys.getswitchinterval()), threads=2, rounds=1)
    assert sys.getswitchinterval() == before
    assert max(seen) < 1e-5


def test_threads_started_by_a_body_see_all_cores_and_are_no_daemons():
    seen = []

    def child():
        seen.append((interpreter.usable_cores(), threading.current_thread().daemon))

    def body():
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()

    stress(body, threads=2, rounds=2).raise_for_verdict()
    assert set(seen) == {(interpreter.usable_cores(), False)}


def test_context_variables_set_by_a_body_do_not_reach_the_next_round():
    import contextvars

    variable = contextvars.ContextVar("variable", default=0)

    def body():
        assert variable.get() == 0
        variable.set(1)

    stress(body, threads=2, rounds=5).raise_for_verdict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "stress(threads=0): 0 is not a number of threads (a positive integer,"),
        ({"threads": "abc"}, "stress(threads='abc'): 'abc' is not a number of threads"),
        ({"threads": True}, "stress(threads=True): True is not a number of threads"),
        ({"threads": 1}, "stress(threads=1): there are 2 bodies; each needs a thread"),
        ({"rounds": -1}, "stress(rounds=-1): -1 is not a number of rounds"),
        ({"rounds": 1.5}, "stress(rounds=1.5): 1.5 is not a number of rounds"),
        ({"seconds": 0}, "stress(seconds=0): 0 is not a budget in seconds"),
        ({"seconds": float("nan")}, "stress(seconds=nan): nan is not a budget in seconds"),
        ({"deadline": -3}, "stress(deadline=-3): -3 is not a deadline in seconds"),
        ({"seed": -1}, "stress(seed=-1): -1 is not a seed"),
        ({"noise": "yes"}, "stress(noise='yes'): 'yes' is not True or False"),
    ],
)
def test_a_setting_that_means_nothing_is_named(settings, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        stress(lambda: None, lambda: None, **settings)


def test_there_must_be_something_to_run():
    with pytest.raises(SettingError, match="nothing to run"):
        stress()


def test_a_deadlock_is_named_long_before_the_deadline_and_the_process_ends(run_program):
    report = run_program("""
        import threading
        from pytest_freethread import stress

        class Bank:
            def __init__(self):
                self.lock_a = threading.Lock()
                self.lock_b = threading.Lock()
                self.both = threading.Barrier(2)

        def there(bank):
            with bank.lock_a:
                bank.both.wait()
                with bank.lock_b:
                    pass

        def back(bank):
            with bank.lock_b:
                bank.both.wait()
                with bank.lock_a:
                    pass

        result = stress(there, back, setup=Bank, deadline=1000)
        print(result.findings[0].kind)
        print(result)
    """)
    assert report.startswith("deadlock\n")
    assert "each hold the lock that the other waits for" in report


def test_threads_that_block_for_another_reason_are_stuck_at_the_deadline(run_program):
    report = run_program("""
        import queue
        from pytest_freethread import stress

        result = stress(lambda q: q.get(), setup=queue.Queue, threads=2, deadline=0.2)
        print(result.findings[0].kind)
        print(result)
    """)
    assert report.startswith("stuck\n")
    assert "2 of 2 threads did not come back within the deadline of 0.2 s" in report
    assert "thread 0, in Queue.get, most recent line last:" in report


def test_a_thread_that_runs_for_ever_is_stuck_and_then_ended(run_program):
    report = run_program("""
        import threading
        from pytest_freethread import stress

        def spin():
            while True:
                pass

        before = threading.active_count()
        result = stress(spin, threads=2, deadline=0.2)
        print(result.findings[0].kind)
        while threading.active_count() > before:
            pass
        print("ended")
    """)
    assert report == "stuck\nended\n"


def test_a_slow_body_that_comes_back_is_no_failure_even_after_the_deadline():
    gate = threading.Event()
    timer = threading.Timer(0.3, gate.set)
    turns = iter([False, True])

    def body():
        if next(turns):
            timer.start()
            gate.wait()

    # The first round is quick, so the second one has a second at least, whatever the deadline.
    stress(body, threads=1, rounds=2, deadline=1.0).raise_for_verdict()
    timer.join()


def test_a_thread_left_running_is_a_leak_with_the_line_that_started_it():
    gate = threading.Event()

    def body():
        threading.Thread(target=gate.wait, name="left").start()

    result = stress(body, threads=2, rounds=2)
    gate.set()
    (finding,) = result.findings
    assert (finding.kind, finding.severity) == ("leak", "error")
    assert len(finding.evidence.names) == 4
    assert finding.evidence.started_at[-1].source.startswith("threading.Thread(target=gate.wait")
    assert not finding.evidence.daemon


def test_threads_that_are_joined_or_about_to_end_are_no_leak():
    def body():
        thread = threading.Thread(target=lambda: None)
        thread.start()

    stress(body, threads=2, rounds=3).raise_for_verdict()


def test_an_idle_worker_of_a_pool_in_use_is_only_a_note():
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    result = stress(lambda: pool.submit(int).result(), threads=2, rounds=2)
    assert result.verdict is Verdict.PASSED
    assert [(f.kind, f.severity) for f in result.findings] == [("leak", "note")]
    pool.shutdown()


def test_thread_start_is_itself_again_after_a_run():
    before = threading.Thread.start
    stress(lambda: None, threads=2, rounds=1)
    assert threading.Thread.start is before


def test_a_run_within_a_run_works():
    def body():
        stress(lambda: None, threads=2, rounds=2).raise_for_verdict()

    stress(body, threads=2, rounds=2).raise_for_verdict()


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs os.fork")
def test_a_forked_child_can_run_too(run_program):
    report = run_program("""
        import os, warnings
        from pytest_freethread import stress
        warnings.simplefilter("ignore")
        stress(lambda: None, threads=2, rounds=1).raise_for_verdict()
        child = os.fork()
        if not child:
            stress(lambda: None, threads=2, rounds=1).raise_for_verdict()
            print("child is fine", flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
    """)
    assert report == "child is fine\n0\n"
