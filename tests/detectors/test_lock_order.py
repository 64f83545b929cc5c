"""Lock-order inversions: on acquisitions typed by hand, and against every schedule there is."""

from __future__ import annotations

from random import Random

import oracle
import pytest

from pytest_freethread.detectors.lock_order import LockOrder
from pytest_freethread.detectors.order import BRIEFLY, EFFECTS, LOCK_EFFECTS
from pytest_freethread.detectors.prediction import Trace

K, L, M, N, GATE, EVENT = range(6)


def judge(*, threads=4):
    return LockOrder(threads)


def take(judging, thread, *locks, site=0):
    """Nested, then all let go of; sites count up from `site`."""
    for number, lock in enumerate(locks):
        judging.synchronise(thread, lock, LOCK_EFFECTS["acquire"], site + number)
    for lock in reversed(locks):
        judging.synchronise(thread, lock, LOCK_EFFECTS["release"])


def locks_of(judging, **kwargs):
    return [tuple(edge.lock for edge in cycle) for cycle in judging.cycles(**kwargs)]


def test_two_locks_in_opposite_orders():
    judging = judge()
    take(judging, 0, K, L, site=10)
    take(judging, 1, L, K, site=20)
    ((one, other),) = judging.cycles()
    assert (one.thread, one.lock, one.site, one.held) == (0, L, 11, ((K, 10),))
    assert (other.thread, other.lock, other.site, other.held) == (1, K, 21, ((L, 20),))


def test_one_order_everywhere():
    judging = judge()
    take(judging, 0, K, L)
    take(judging, 1, K, L)
    assert not locks_of(judging)


def test_one_thread_in_both_orders_waits_for_nobody():
    judging = judge()
    take(judging, 0, K, L)
    take(judging, 0, L, K)
    assert not locks_of(judging)


def test_locks_that_are_not_nested_have_no_order():
    judging = judge()
    for locks in ((K,), (L,)):
        take(judging, 0, *locks)
    for locks in ((L,), (K,)):
        take(judging, 1, *locks)
    assert not locks_of(judging)


def test_a_gate_keeps_the_two_apart():
    judging = judge()
    take(judging, 0, GATE, K, L)
    take(judging, 1, GATE, L, K)
    assert not locks_of(judging)


def test_a_gate_that_one_of_them_passes_by():
    judging = judge()
    take(judging, 0, GATE, K, L)
    take(judging, 1, L, K)
    assert locks_of(judging) == [(L, K)]


def test_three_and_four_locks():
    judging = judge()
    take(judging, 0, K, L)
    take(judging, 1, L, M)
    take(judging, 2, M, K)
    assert locks_of(judging) == [(L, M, K)]
    judging = judge()
    for thread, locks in enumerate([(K, L), (L, M), (M, N), (N, K)]):
        take(judging, thread, *locks)
    assert locks_of(judging) == [(L, M, N, K)]


def test_a_cycle_through_a_lock_that_is_held_further_out():
    judging = judge()
    take(judging, 0, K, M, L)
    take(judging, 1, L, K)
    assert locks_of(judging) == [(L, K)]


def test_what_happened_before_the_thread_was_started_cannot_meet_it():
    judging = judge(threads=1)
    take(judging, 0, K, L)
    judging.fork(0, 1)
    take(judging, 1, L, K)
    assert not locks_of(judging)
    take(judging, 0, K, L)
    assert locks_of(judging) == [(L, K)]


def test_an_event_in_between_keeps_them_apart_too():
    judging = judge()
    take(judging, 0, K, L)
    judging.synchronise(0, EVENT, EFFECTS["set"])
    judging.synchronise(1, EVENT, EFFECTS["wait"])
    take(judging, 1, L, K)
    assert not locks_of(judging)


def test_a_lock_does_not_keep_them_apart_that_only_happened_to_come_between():
    judging = judge()
    take(judging, 0, K, L)
    take(judging, 0, M)
    take(judging, 1, M)
    take(judging, 1, L, K)
    assert locks_of(judging) == [(L, K)]


def test_a_condition_lets_go_while_it_waits():
    judging = judge()
    judging.synchronise(0, K, LOCK_EFFECTS["acquire"])
    judging.synchronise(0, K, LOCK_EFFECTS["wait"])
    take(judging, 1, L, K)
    judging.synchronise(0, K, LOCK_EFFECTS["wake up"])
    judging.synchronise(0, K, LOCK_EFFECTS["release"])
    take(judging, 0, L)
    assert not locks_of(judging)


def test_waking_up_takes_the_lock_again():
    judging = judge()
    judging.synchronise(0, L, LOCK_EFFECTS["acquire"])
    judging.synchronise(0, K, LOCK_EFFECTS["acquire"])
    judging.synchronise(0, K, LOCK_EFFECTS["wait"])
    judging.synchronise(0, K, LOCK_EFFECTS["wake up"], 11)
    take(judging, 1, K, L)
    assert (K, L) in locks_of(judging)


def test_locks_made_at_one_place_are_one_class():
    judging = judge()
    for one, other in ((K, L), (M, N)):
        take(judging, 0, one, other, site=10)
        take(judging, 1, other, one, site=20)
    assert len(locks_of(judging)) == 2
    assert len(locks_of(judging, classes=dict.fromkeys((K, L, M, N), "bank.py:6"))) == 1


def test_a_cycle_is_said_once_over_several_executions():
    seen = set()
    said = []
    for _ in range(2):
        judging = judge()
        take(judging, 0, K, L, site=10)
        take(judging, 1, L, K, site=20)
        said += judging.cycles(seen=seen)
    assert len(said) == 1


def test_who_does_not_wait_for_ever_closes_no_cycle():
    judging = judge()
    take(judging, 0, K, L)
    judging.synchronise(1, L, LOCK_EFFECTS["acquire"])
    judging.synchronise(1, K, LOCK_EFFECTS["acquire"] | BRIEFLY)
    assert not locks_of(judging)


def test_a_lock_that_is_gone_is_not_the_next_one_with_its_number():
    judging = judge()
    take(judging, 0, K, L)
    judging.forget(L)
    take(judging, 1, L, K)
    assert not locks_of(judging)


# --- against every schedule there is --------------------------------------------------------------


def drawn_program(random):
    """Threads that do nothing but take locks, nested, in any order."""

    def block(free, depth):
        ops = []
        for _ in range(random.randint(1, 2)):
            if not free or depth == 3:
                break
            lock = random.choice(free)
            rest = [each for each in free if each != lock]
            ops += [("acquire", lock), *block(rest, depth + 1), ("release", lock)]
        return ops

    return [block(list("KLM"), 0) for _ in range(random.choice([2, 3]))]


def real_deadlocks(program):
    """Sets of (thread, site) that wait for each other in some schedule."""
    found = set()
    for machine in oracle.reachable(program):
        waits = {}
        for thread in range(len(program)):
            op = machine.next_op(thread)
            if op is not None and op[0] == "acquire" and op[1] in machine.owners:
                waits[thread] = machine.owners[op[1]]
        for start in waits:
            path, thread = [], start
            while thread in waits and thread not in path:
                path.append(thread)
                thread = waits[thread]
            if thread == start:
                found.add(frozenset((each, 100 * each + machine.pcs[each]) for each in path))
    return found


def predicted(program, steps):
    """By cycle, as sets of (thread, site), whether it is surely within reach."""
    judging, trace = LockOrder(len(program)), Trace(len(program))
    for listener in (judging, trace):
        list(oracle.tell(listener, steps))
    found = {}
    for cycle in judging.cycles():
        what = frozenset((edge.thread, edge.site) for edge in cycle)
        found[what] = trace.may_meet(*(edge.event for edge in cycle))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_every_deadlock_of_any_schedule_is_predicted_from_a_single_one_that_ends(seed):
    random = Random(seed)
    number = 0
    for _ in range(200):
        program = drawn_program(random)
        steps, machine = oracle.any_run(program, random)
        if all(map(machine.ended, range(len(program)))):
            real = real_deadlocks(program)
            assert real <= predicted(program, steps).keys(), program
            number += len(real)
    assert number > 50


@pytest.mark.parametrize("seed", range(6))
def test_what_is_surely_within_reach_is(seed):
    random = Random(seed)
    sure = 0
    for number in range(200):
        program = oracle.drawn_program(random, most=7) if number % 2 else drawn_program(random)
        steps, _ = oracle.any_run(program, random)
        said = predicted(program, steps)
        surely = {cycle for cycle, reached in said.items() if reached}
        assert surely <= real_deadlocks(program), (program, steps)
        sure += len(surely)
    assert sure > 5
