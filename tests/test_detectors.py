"""The judges, on executions typed by hand."""

from __future__ import annotations

from pytest_freethread.detectors import deadlocks, leaks, outcomes
from pytest_freethread.records import Execution, Failure, Leak, LockUse, Place, Plan, ThreadState

PLAN = Plan(threads=2, rounds=10, seconds=None, seed=0, noise=False, deadline=5.0)
HERE = Place(file="bank.py", line=12, function="transfer", source="with a:")


def execution(**kwargs):
    return Execution(plan=PLAN, rounds=10, executions=20, seconds=0.1, **kwargs)


def use(name, *, forever=True):
    return LockUse(name=name, identity=hash(name), place=HERE, forever=forever)


def state(thread, *, waits_for=None, holds=(), forever=True):
    return ThreadState(
        thread=thread,
        name=f"freethread-{thread}",
        stack=(HERE,),
        waits_for=use(waits_for, forever=forever) if waits_for else None,
        holds=tuple(use(name) for name in holds),
    )


def failure(exception, **kwargs):
    defaults = {"phase": "body", "thread": 1, "round": 3, "count": 4}
    return Failure(exception=exception, text=str(exception), **{**defaults, **kwargs})


def test_nothing_happened_nothing_is_wrong():
    calm = execution()
    assert [*outcomes.judge(calm), *deadlocks.judge(calm), *leaks.judge(calm)] == []


def test_an_exception_in_a_body_says_where_and_how_often():
    (finding,) = outcomes.judge(execution(failures=(failure(KeyError("a")),)))
    assert finding.kind == "exception"
    assert finding.severity == "error"
    assert finding.message == "KeyError: 'a' (thread 1, round 3; 4 of 20 executions)"


def test_an_invariant_that_does_not_hold_is_told_apart_from_one_that_crashes():
    broken = failure(AssertionError("total is 3"), phase="invariant", thread=None)
    crashed = failure(ZeroDivisionError("division by zero"), phase="invariant", thread=None)
    kinds = [(f.kind, f.message) for f in outcomes.judge(execution(failures=(broken, crashed)))]
    assert kinds == [
        (
            "invariant",
            "the invariant does not hold: AssertionError: total is 3 (round 3; 4 of 10 rounds)",
        ),
        (
            "exception",
            "the invariant does not hold: ZeroDivisionError: division by zero "
            "(round 3; 4 of 10 rounds)",
        ),
    ]


def test_tear_down_of_every_thread_is_counted_by_thread_and_round():
    one = failure(ValueError("x"), phase="teardown")
    assert outcomes.how_often(one, execution()) == "thread 1, round 3; 4 of 20 times"


def test_two_threads_that_wait_for_each_other_are_a_deadlock():
    states = (state(0, waits_for="b", holds=["a"]), state(1, waits_for="a", holds=["b"]))
    (finding,) = deadlocks.judge(execution(stuck=states))
    assert finding.kind == "deadlock"
    assert finding.message == (
        "deadlock in round 10: thread 0 and thread 1 each hold the lock that the other waits for"
    )
    assert deadlocks.cycle_of_waiting(states) == states


def test_the_cycle_comes_first_and_nobody_is_left_out():
    bystander = state(0, waits_for="a")
    cycle = (state(1, waits_for="b", holds=["a"]), state(2, waits_for="a", holds=["b"]))
    (finding,) = deadlocks.judge(execution(stuck=(bystander, *cycle)))
    assert finding.evidence == (*cycle, bystander)


def test_a_cycle_of_three_and_a_cycle_of_one_are_named():
    three = tuple(state(i, waits_for="abc"[(i + 1) % 3], holds=["abc"[i]]) for i in range(3))
    assert (
        "each waits for a lock that the next one holds"
        in next(deadlocks.judge(execution(stuck=three))).message
    )
    one = (state(0, waits_for="a", holds=["a"]),)
    assert (
        "thread 0 waits for a lock that it holds itself"
        in next(deadlocks.judge(execution(stuck=one))).message
    )


def test_a_wait_with_a_timeout_is_no_deadlock():
    states = (
        state(0, waits_for="b", holds=["a"], forever=False),
        state(1, waits_for="a", holds=["b"]),
    )
    assert deadlocks.cycle_of_waiting(states) == ()


def test_a_lock_that_two_threads_seem_to_hold_is_held_by_nobody():
    states = (
        state(0, waits_for="b", holds=["a"]),
        state(1, waits_for="a", holds=["b"]),
        state(2, holds=["a"]),
    )
    assert deadlocks.cycle_of_waiting(states) == ()


def test_threads_that_do_not_come_back_without_a_cycle_are_stuck():
    (finding,) = deadlocks.judge(execution(stuck=(state(0), state(1, waits_for="a"))))
    assert finding.kind == "stuck"
    assert finding.message == (
        "stuck in round 10: 2 of 2 threads did not come back within the deadline of 5 s"
    )


def test_a_leaked_thread_is_an_error_and_somebody_elses_background_a_note():
    def leak(*, background):
        return Leak(
            names=("Thread-1",),
            started_at=(HERE,),
            state=state(None),
            daemon=False,
            background=background,
        )

    found = leaks.judge(execution(leaks=(leak(background=False), leak(background=True))))
    assert [(f.kind, f.severity, f.message) for f in found] == [
        ("leak", "error", "thread 'Thread-1' still runs after the test, started at bank.py:12"),
        ("leak", "note", "thread 'Thread-1' still runs after the test, started at bank.py:12"),
    ]
