"""A look, a change by another thread, an act: typed by hand, and against every schedule."""

from __future__ import annotations

from random import Random

import oracle
import pytest

from pytest_freethread.detectors.atomicity import Atomicity, same_function
from pytest_freethread.detectors.order import LOCK_EFFECTS
from pytest_freethread.detectors.prediction import Trace
from pytest_freethread.detectors.races import ATOMIC, ITEM, READ, WHOLE, WRITE
from pytest_freethread.records import Place

COUNTER, LOCK, OTHER, TABLE = range(4)
A, B = range(2)


class Typed(Atomicity):
    """Short to type: answers are collected, sites are given by hand."""

    def __init__(self):
        super().__init__(2)
        self.found = []

    def do(self, thread, how, site, key="value", obj=COUNTER):
        self.found += self.access(thread, obj, key, how, site)

    def take(self, thread, lock=LOCK, site=50):
        self.synchronise(thread, lock, LOCK_EFFECTS["acquire"], site)

    def drop(self, thread, lock=LOCK):
        self.synchronise(thread, lock, LOCK_EFFECTS["release"])

    def locked(self, thread, how, site, lock=LOCK):
        self.take(thread, lock)
        self.do(thread, how, site)
        self.drop(thread, lock)

    @property
    def sites(self):
        return [torn.sites for torn in self.found]


def predicted(judging):
    return [torn.sites for torn in judging.predictions()]


def test_a_lost_update_without_a_lock():
    judging = Typed()
    judging.do(A, READ, 10)
    judging.do(B, READ, 10)
    judging.do(B, WRITE, 11)
    judging.do(A, WRITE, 11)
    (torn,) = judging.found
    assert torn.seen
    assert [(point.thread, point.site) for point in (torn.look, torn.change, torn.act)] == [
        (A, 10),
        (B, 11),
        (A, 11),
    ]


def test_a_lock_that_is_let_go_of_in_between():
    judging = Typed()
    judging.locked(A, READ, 10)
    judging.locked(B, WRITE, 20)
    judging.locked(A, WRITE, 11)
    (torn,) = judging.found
    assert torn.released == {LOCK}


def test_a_lock_that_is_held_throughout_lets_nobody_in():
    judging = Typed()
    judging.take(A)
    judging.do(A, READ, 10)
    judging.do(A, WRITE, 11)
    judging.drop(A)
    judging.locked(B, WRITE, 20)
    assert not judging.found
    assert not predicted(judging)


def test_another_lock_at_the_change_does():
    judging = Typed()
    judging.take(A)
    judging.do(A, READ, 10)
    judging.do(A, WRITE, 11)
    judging.drop(A)
    judging.locked(B, WRITE, 20, OTHER)
    assert predicted(judging) == [(10, 20, 11)]


def test_what_did_not_happen_but_could():
    judging = Typed()
    judging.locked(A, READ, 10)
    judging.locked(A, WRITE, 11)
    judging.locked(B, WRITE, 20)
    assert not judging.found
    (torn,) = judging.predictions()
    assert (torn.sites, torn.seen, torn.released) == ((10, 20, 11), False, {LOCK})


def test_what_is_looked_at_again_is_no_old_answer():
    judging = Typed()
    judging.do(A, READ, 10)
    judging.do(B, WRITE, 20)
    judging.do(A, READ, 11)
    judging.do(A, WRITE, 12)
    assert not judging.found


def test_a_write_of_its_own_ends_what_a_thread_looked_at():
    judging = Typed()
    judging.do(A, READ, 10)
    judging.do(A, WRITE, 11)
    judging.do(B, WRITE, 20)
    judging.do(A, WRITE, 12)
    assert not judging.found


def test_a_check_of_a_dict_and_a_store():
    judging = Typed()
    judging.do(A, ITEM | ATOMIC, 10, "key", TABLE)
    judging.do(B, ITEM | WRITE, 20, "key", TABLE)
    judging.do(A, ITEM | WRITE, 11, "key", TABLE)
    assert judging.sites == [(10, 20, 11)]


def test_another_key_is_another_location():
    judging = Typed()
    judging.do(A, ITEM | ATOMIC, 10, "key", TABLE)
    judging.do(B, ITEM | WRITE, 20, "other", TABLE)
    judging.do(A, ITEM | WRITE, 11, "key", TABLE)
    assert not judging.found


def test_a_check_of_a_size_and_a_pop():
    for change in (WHOLE | ATOMIC | WRITE, ITEM | WRITE):
        judging = Typed()
        judging.do(A, WHOLE | ATOMIC, 10, None, TABLE)
        judging.do(B, change, 20, "key", TABLE)
        judging.do(A, WHOLE | ATOMIC | WRITE, 11, None, TABLE)
        assert judging.sites == [(10, 20, 11)], change


def test_iteration_is_no_look():
    judging = Typed()
    judging.do(A, WHOLE, 10, None, TABLE)
    judging.do(B, WHOLE | ATOMIC | WRITE, 20, None, TABLE)
    judging.do(A, WHOLE | ATOMIC | WRITE, 11, None, TABLE)
    assert not judging.found


def test_each_three_places_are_said_once_and_not_predicted_after():
    judging = Typed()
    for _ in range(3):
        judging.do(A, READ, 10)
        judging.do(B, WRITE, 20)
        judging.do(A, WRITE, 11)
    assert judging.sites == [(10, 20, 11)]
    assert not predicted(judging)


def test_an_object_that_is_gone_leaves_nothing_behind():
    judging = Typed()
    judging.do(A, READ, 10)
    judging.do(B, WRITE, 20)
    judging.forget(COUNTER)
    judging.do(A, WRITE, 11)
    assert not judging.found


def test_one_function_hardly_looks_and_acts_by_chance():
    here = Place(file="a.py", line=1, function="A.add", source="")
    there = Place(file="a.py", line=9, function="A.reset", source="")
    assert same_function(here, here)
    assert not same_function(here, there)


# --- against every schedule there is --------------------------------------------------------------


def torn_by_definition(steps):
    """Found by looking back from each act: the sites of look, change, act; and of last changes."""
    every, last = set(), set()
    for index, act in enumerate(steps):
        if act.op[0] != "write":
            continue
        before = [each for each in steps[:index] if each.op[1] == act.op[1]]
        mine = [number for number, each in enumerate(before) if each.thread == act.thread]
        if mine and before[mine[-1]].op[0] == "read":
            changes = [each for each in before[mine[-1] + 1 :] if each.op[0] == "write"]
            torn = [(before[mine[-1]].site, change.site, act.site) for change in changes]
            every.update(torn)
            last.update(torn[-1:])
    return every, last


@pytest.mark.parametrize("seed", range(6))
def test_what_is_torn_is_what_is_said_and_what_is_predicted_within_reach_happens(seed):
    random = Random(seed)
    seen = predicted = 0
    for _ in range(40):
        program = oracle.drawn_program(random, threads=2, most=6, variables="x", rich=False)
        runs = list(oracle.all_runs(program))
        real = {sites for steps in runs for sites in torn_by_definition(steps)[0]}
        for steps in random.sample(runs, min(10, len(runs))):
            judging, trace = Atomicity(2), Trace(2)
            found = {torn.sites for each in oracle.tell(judging, steps) for torn in each}
            list(oracle.tell(trace, steps))
            assert found == torn_by_definition(steps)[1]
            within_reach = {
                torn.sites
                for torn in judging.predictions()
                if trace.may_meet(torn.act.outermost, torn.change.outermost)
            }
            assert within_reach <= real, (program, steps, within_reach - real)
            seen += len(found)
            predicted += len(within_reach)
    assert seen > 50
    assert predicted > 50
