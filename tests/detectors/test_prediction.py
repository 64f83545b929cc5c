"""What other schedules surely reach: on traces typed by hand, and against every schedule."""

from __future__ import annotations

from random import Random

import oracle
import pytest

from pytest_freethread.detectors import races
from pytest_freethread.detectors.order import ACQUIRE, EFFECTS, LOCK_EFFECTS
from pytest_freethread.detectors.prediction import Trace
from pytest_freethread.detectors.races import READ, WRITE

COUNTER, FLAG, LOCK, EVENT, QUEUE = range(5)
A, B, C = range(3)


class Typed(Trace):
    """A trace that is short to type; locks count as one step each."""

    def __init__(self):
        super().__init__(3)

    def write(self, thread, obj, site=0):
        self.access(thread, obj, "value", WRITE, site)

    def read(self, thread, obj, site=0):
        self.access(thread, obj, "value", READ, site)

    def take(self, thread):
        self.synchronise(thread, LOCK, LOCK_EFFECTS["acquire"])

    def drop(self, thread):
        self.synchronise(thread, LOCK, LOCK_EFFECTS["release"])


def test_a_race_that_a_lock_hides_by_chance():
    trace = Typed()
    trace.write(A, COUNTER, 10)
    trace.take(A)
    trace.drop(A)
    trace.take(B)
    trace.drop(B)
    trace.write(B, COUNTER, 20)
    assert list(trace.races()) == [(1, 6)]


def test_accesses_under_one_lock_never_meet():
    trace = Typed()
    for thread in (A, B):
        trace.take(thread)
        trace.write(thread, COUNTER, thread)
        trace.drop(thread)
    assert not list(trace.races())
    assert trace.may_meet(1, 4)  # before the lock


def test_what_depends_on_a_value_that_was_read_stays_behind_its_write():
    trace = Typed()
    trace.write(A, COUNTER, 10)
    trace.write(A, FLAG, 11)
    trace.read(B, FLAG, 20)
    trace.read(B, COUNTER, 21)
    assert list(trace.races()) == [(2, 3)]


def test_what_was_read_under_a_lock_puts_sections_in_order():
    trace = Typed()
    trace.write(A, COUNTER, 10)
    trace.take(A)
    trace.write(A, FLAG, 11)
    trace.drop(A)
    trace.take(B)
    trace.read(B, FLAG, 20)
    trace.drop(B)
    trace.write(B, COUNTER, 21)
    assert not list(trace.races())


@pytest.mark.parametrize(("give", "take"), [("set", "wait"), ("put", "get"), ("end", "join")])
def test_what_waits_for_another_thread_stays_behind_it(give, take):
    trace = Typed()
    trace.write(A, COUNTER, 10)
    trace.synchronise(A, EVENT, EFFECTS[give])
    trace.synchronise(B, EVENT, EFFECTS[take])
    trace.write(B, COUNTER, 20)
    assert not list(trace.races())


def test_a_failed_attempt_stays_behind_whoever_holds_the_lock():
    trace = Typed()
    trace.write(A, COUNTER, 10)
    trace.take(A)
    trace.synchronise(B, LOCK, ACQUIRE)
    trace.write(B, COUNTER, 20)
    assert not list(trace.races())


def test_who_was_notified_stays_behind_whoever_notified():
    trace = Typed()
    trace.take(A)
    trace.synchronise(A, LOCK, LOCK_EFFECTS["wait"])
    trace.write(B, COUNTER, 20)
    trace.take(B)
    trace.synchronise(B, LOCK, LOCK_EFFECTS["notify"])
    trace.drop(B)
    trace.synchronise(A, LOCK, LOCK_EFFECTS["wake up"])
    trace.drop(A)
    trace.write(A, COUNTER, 10)
    assert not list(trace.races())


def test_a_thread_does_nothing_before_its_start_and_all_before_who_joins_it():
    trace = Typed()
    trace.write(A, COUNTER, 10)
    trace.fork(A, 3)
    trace.write(3, COUNTER, 30)
    trace.write(A, FLAG, 11)
    trace.write(3, FLAG, 31)
    trace.join(A, 3)
    trace.write(A, COUNTER, 12)
    assert list(trace.races()) == [(4, 5)]


def test_steps_have_the_numbers_that_the_judge_of_races_gives_them():
    program = [[("acquire", "L"), ("write", "x"), ("release", "L")], [("read", "x")]]
    steps, _ = oracle.any_run(program, Random(1))
    trace = Trace(2)
    list(oracle.tell(trace, steps))
    (clash,) = oracle.judged(steps, 2)
    assert list(trace.races()) == [(clash.earlier.event, clash.later.event)]


@pytest.mark.parametrize("seed", range(6))
def test_all_that_is_predicted_can_happen_and_what_was_seen_is_predicted(seed):
    random = Random(seed)
    seen = predicted = 0
    for number in range(150):
        program = oracle.drawn_program(random, most=7, rich=bool(number % 3))
        real = oracle.real_races(program)
        for _ in range(4):
            steps, _ = oracle.any_run(program, random)
            trace = Trace(len(program))
            list(oracle.tell(trace, steps))
            said = {oracle.pair(steps[i - 1], steps[j - 1]) for i, j in trace.races(attempts=99)}
            clashes = {oracle.sites(clash) for clash in oracle.judged(steps, len(program))}
            assert clashes <= said <= real, (program, steps)
            seen += len(clashes)
            predicted += len(said)
    assert predicted > 1.3 * seen > 400


def test_both_judges_mean_the_same_by_their_numbers():
    kinds = "write", "atomic", "item", "whole"
    from pytest_freethread.detectors import prediction

    for kind in kinds:
        assert getattr(prediction, f"_{kind.upper()}") == getattr(races, kind.upper())
