"""The race judge: on events typed by hand, and against a machine that tries every schedule."""

from __future__ import annotations

import ast
from pathlib import Path
from random import Random

import oracle
import pytest

from pytest_freethread.detectors import races
from pytest_freethread.detectors.order import ACQUIRE, EFFECTS, LOCK_EFFECTS
from pytest_freethread.detectors.races import (
    ATOMIC,
    ITEM,
    READ,
    WHOLE,
    WRITE,
    Races,
)
from pytest_freethread.instrument import shadows
from pytest_freethread.instrument.effects import OP_NAMES, ROUTE
from pytest_freethread.records import Place

COUNTER, LOCK, OTHER_LOCK, EVENT, QUEUE, LIST, BOX, THREAD = range(8)
A, B, MAIN = range(3)
APPEND = WHOLE | ATOMIC | WRITE


def judge(*, threads=3):
    return Races(threads)


def lock(judge, thread, obj=LOCK, site=50):
    judge.synchronise(thread, obj, LOCK_EFFECTS["acquire"], site)


def unlock(judge, thread, obj=LOCK):
    judge.synchronise(thread, obj, LOCK_EFFECTS["release"])


# --- what is a race -------------------------------------------------------------------------------


def test_a_write_and_a_read_that_nothing_orders():
    judging = judge()
    assert not judging.access(A, COUNTER, "value", WRITE, 10)
    (clash,) = judging.access(B, COUNTER, "value", READ, 20)
    assert (clash.earlier.thread, clash.earlier.site, clash.earlier.how) == (A, 10, WRITE)
    assert (clash.later.thread, clash.later.site, clash.later.how) == (B, 20, READ)
    assert (clash.obj, clash.key) == (COUNTER, "value")


def test_a_read_and_a_write_that_nothing_orders():
    judging = judge()
    judging.access(A, COUNTER, "value", READ, 10)
    (clash,) = judging.access(B, COUNTER, "value", WRITE, 20)
    assert clash.earlier.site == 10


def test_two_writes_that_nothing_orders():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    assert judging.access(B, COUNTER, "value", WRITE, 20)


def test_two_reads_are_no_race():
    judging = judge()
    judging.access(A, COUNTER, "value", READ, 10)
    assert not judging.access(B, COUNTER, "value", READ, 20)


def test_a_write_clashes_with_each_of_the_readers():
    judging = judge()
    judging.access(A, COUNTER, "value", READ, 10)
    judging.access(B, COUNTER, "value", READ, 20)
    found = judging.access(MAIN, COUNTER, "value", WRITE, 30)
    assert [clash.earlier.thread for clash in found] == [A, B]


def test_other_attributes_and_other_objects_are_other_locations():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    assert not judging.access(B, COUNTER, "other", WRITE, 20)
    assert not judging.access(B, BOX, "value", WRITE, 30)


def test_a_thread_does_not_race_with_itself():
    judging = judge()
    for how in (WRITE, READ, WRITE, WRITE, READ):
        assert not judging.access(A, COUNTER, "value", how, 10)


# --- what puts accesses in order ------------------------------------------------------------------


def hand_over(judging, *steps):
    judging.access(A, COUNTER, "value", WRITE, 10)
    for thread, obj, effect in steps:
        judging.synchronise(thread, obj, effect)
    return judging.access(B, COUNTER, "value", WRITE, 20)


def test_a_lock_that_both_hold():
    judging = judge()
    lock(judging, A)
    judging.access(A, COUNTER, "value", WRITE, 10)
    unlock(judging, A)
    lock(judging, B)
    assert not judging.access(B, COUNTER, "value", WRITE, 20)


def test_two_different_locks_order_nothing():
    judging = judge()
    lock(judging, A)
    judging.access(A, COUNTER, "value", WRITE, 10)
    unlock(judging, A)
    lock(judging, B, OTHER_LOCK, site=51)
    (clash,) = judging.access(B, COUNTER, "value", WRITE, 20)
    assert clash.earlier.held == ((LOCK, 50),)
    assert clash.later.held == ((OTHER_LOCK, 51),)


def test_a_lock_taken_by_one_of_them_only():
    judging = judge()
    lock(judging, A)
    judging.access(A, COUNTER, "value", WRITE, 10)
    unlock(judging, A)
    (clash,) = judging.access(B, COUNTER, "value", READ, 20)
    assert clash.later.held == ()


def test_the_order_goes_through_a_third_thread():
    assert not hand_over(
        judge(),
        (A, LOCK, LOCK_EFFECTS["release"]),
        (MAIN, LOCK, LOCK_EFFECTS["acquire"]),
        (MAIN, EVENT, EFFECTS["set"]),
        (B, EVENT, EFFECTS["wait"]),
    )


@pytest.mark.parametrize(
    ("give", "take"),
    [
        ("set", "wait"),
        ("set", "is_set"),
        ("clear", "is_set"),
        ("release", "acquire"),
        ("put", "get"),
        ("put", "empty"),
        ("end", "join"),
        ("end", "is_alive"),
    ],
)
def test_whoever_sees_what_another_one_did_comes_after_it(give, take):
    assert not hand_over(judge(), (A, EVENT, EFFECTS[give]), (B, EVENT, EFFECTS[take]))
    assert hand_over(judge(), (B, EVENT, EFFECTS[take]), (A, EVENT, EFFECTS[give]))
    assert hand_over(judge(), (A, EVENT, EFFECTS[give]), (B, QUEUE, EFFECTS[take]))


def test_waiting_on_a_condition_lets_go_of_its_lock():
    judging = judge()
    lock(judging, A)
    judging.synchronise(A, LOCK, LOCK_EFFECTS["wait"])
    lock(judging, B)
    judging.access(B, COUNTER, "value", WRITE, 10)
    judging.synchronise(B, LOCK, LOCK_EFFECTS["notify"])
    unlock(judging, B)
    judging.synchronise(A, LOCK, LOCK_EFFECTS["wake up"], 52)
    assert not judging.access(A, COUNTER, "value", READ, 20)
    (clash,) = judging.access(MAIN, COUNTER, "value", WRITE, 30)[1:]
    assert clash.earlier.held == ((LOCK, 52),)


def test_sleeping_orders_nothing():
    assert hand_over(judge(), (B, EVENT, EFFECTS["sleep"]))


def test_two_who_set_an_event_are_not_ordered_and_who_waits_sees_the_last():
    set_twice = (A, EVENT, EFFECTS["set"]), (MAIN, EVENT, EFFECTS["set"])
    assert hand_over(judge(), *set_twice, (B, EVENT, EFFECTS["wait"]))


def test_a_failed_attempt_is_ordered_after_whoever_holds_the_lock():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    lock(judging, A)
    judging.synchronise(B, LOCK, ACQUIRE)
    assert not judging.access(B, COUNTER, "value", READ, 20)
    assert judging.access(A, COUNTER, "value", WRITE, 30)[0].later.held == ((LOCK, 50),)


def test_a_lock_may_be_released_by_another_thread():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    lock(judging, A)
    unlock(judging, B)
    assert not judging.access(B, COUNTER, "value", WRITE, 20)
    assert judging.access(A, COUNTER, "value", WRITE, 30)[0].later.held == ()


def test_a_started_thread_comes_after_its_start_and_before_who_joins_it():
    judging = judge(threads=1)
    judging.access(0, COUNTER, "value", WRITE, 10)
    judging.fork(0, 1)
    assert not judging.access(1, COUNTER, "value", WRITE, 20)
    judging.fork(1, 2)
    judging.access(2, BOX, "value", WRITE, 30)
    judging.join(0, 1)
    assert not judging.access(0, COUNTER, "value", WRITE, 40)
    assert judging.access(0, BOX, "value", WRITE, 50)


def test_what_a_parent_does_after_the_start_is_not_ordered():
    judging = judge(threads=1)
    judging.fork(0, 1)
    judging.access(0, COUNTER, "value", WRITE, 10)
    assert judging.access(1, COUNTER, "value", WRITE, 20)


# --- what is reached through a published reference ------------------------------------------------


def test_what_was_written_before_a_flag_is_ordered_for_whoever_sees_the_flag():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    judging.access(A, COUNTER, "ready", WRITE, 11)
    (clash,) = judging.access(B, COUNTER, "ready", READ, 20)
    assert clash.key == "ready"
    assert not judging.access(B, COUNTER, "value", READ, 21)


def test_what_was_written_after_the_flag_is_not():
    judging = judge()
    judging.access(A, COUNTER, "ready", WRITE, 11)
    judging.access(B, COUNTER, "ready", READ, 20)
    judging.access(A, COUNTER, "value", WRITE, 12)
    assert judging.access(B, COUNTER, "value", READ, 21)


def test_an_object_handed_over_through_a_deque():
    judging = judge()
    judging.access(A, BOX, "value", WRITE, 10)
    judging.access(A, QUEUE, None, APPEND, 11)
    assert not judging.access(B, QUEUE, None, APPEND, 20)  # popleft
    assert not judging.access(B, BOX, "value", READ, 21)


def test_an_object_found_in_a_dict():
    for stored, seen in (
        (ITEM | ATOMIC | WRITE, ITEM | ATOMIC),
        (APPEND, ITEM | ATOMIC),
        (ITEM | ATOMIC | WRITE, WHOLE | ATOMIC),
        (ITEM | ATOMIC | WRITE, ITEM | ATOMIC | WRITE),
    ):
        judging = judge()
        judging.access(A, BOX, "value", WRITE, 10)
        judging.access(A, QUEUE, "key", stored, 11)
        judging.access(B, QUEUE, "key", seen, 20)
        assert not judging.access(B, BOX, "value", READ, 21), (stored, seen)


def test_storing_an_item_looks_at_nothing():
    judging = judge()
    judging.access(A, BOX, "value", WRITE, 10)
    judging.access(A, QUEUE, "key", ITEM | WRITE, 11)
    judging.access(B, QUEUE, "key", ITEM | WRITE, 20)
    assert judging.access(B, BOX, "value", READ, 21)


# --- containers -----------------------------------------------------------------------------------


def pair(one, other, key="key", other_key="key"):
    judging = judge()
    judging.access(A, LIST, key, one, 10)
    return judging.access(B, LIST, other_key, other, 20)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (APPEND, APPEND),
        (APPEND, WHOLE | ATOMIC),  # len
        (APPEND, ITEM),  # lst[0]
        (APPEND, ITEM | WRITE),
        (ITEM | WRITE, WHOLE | ATOMIC),
        (ITEM | ATOMIC | WRITE, ITEM | ATOMIC),  # setdefault, get
        (ITEM | ATOMIC | WRITE, ITEM | ATOMIC | WRITE),
        (WHOLE, WHOLE),  # two that iterate
        (WHOLE, ITEM),
        (WHOLE, WHOLE | ATOMIC),
    ],
)
def test_operations_that_are_atomic_or_concern_different_parts_are_no_race(one, other):
    assert not pair(one, other)
    assert not pair(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WHOLE, APPEND),  # iterating while somebody appends
        (WHOLE, ITEM | WRITE),
        (WHOLE, ITEM | ATOMIC | WRITE),
        (ITEM | WRITE, ITEM),  # d[k] = v, d[k]
        (ITEM | WRITE, ITEM | ATOMIC),  # d[k] = v, d.get(k)
        (ITEM | WRITE, ITEM | WRITE),
        (ITEM | WRITE, ITEM | ATOMIC | WRITE),
        (WHOLE | WRITE, WHOLE | WRITE),  # next() on a generator
    ],
)
def test_iteration_and_plain_items_are(one, other):
    assert pair(one, other)
    assert pair(other, one)


def test_other_items_are_other_locations_but_for_who_iterates():
    assert not pair(ITEM | WRITE, ITEM | WRITE, other_key="other")
    assert pair(ITEM | WRITE, WHOLE, other_key=None)


def test_who_iterates_clashes_with_the_writes_of_all_threads():
    judging = judge()
    judging.access(A, LIST, 0, ITEM | WRITE, 10)
    judging.access(B, LIST, 1, ITEM | WRITE, 20)
    found = judging.access(MAIN, LIST, None, WHOLE, 30)
    assert [clash.earlier.site for clash in found] == [10, 20]


def test_an_item_under_a_key_that_cannot_be_compared_may_be_any():
    assert not pair(ITEM | WRITE, ITEM | WRITE, key=None, other_key=None)
    assert pair(ITEM | WRITE, WHOLE, key=None)


# --- how a race is said ---------------------------------------------------------------------------


def test_one_race_one_finding():
    judging = judge()
    found = []
    for _ in range(3):
        for thread in (A, B):
            found += judging.access(thread, COUNTER, "value", READ, 10)
            found += judging.access(thread, COUNTER, "value", WRITE, 11)
    assert [(oracle.sites(clash), clash.together) for clash in found] == [((10, 11), True)]


def test_together_where_the_other_thread_stood_before_its_access_already():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    (clash,) = judging.access(B, COUNTER, "value", READ, 20)
    assert clash.together


def test_not_together_where_the_other_thread_still_had_to_do_something():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    judging.synchronise(B, EVENT, EFFECTS["sleep"])
    (clash,) = judging.access(B, COUNTER, "value", READ, 20)
    assert not clash.together


def test_a_race_is_said_again_once_it_is_seen_together():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    judging.synchronise(B, EVENT, EFFECTS["sleep"])
    assert not judging.access(B, COUNTER, "value", READ, 20)[0].together
    assert judging.access(A, COUNTER, "value", WRITE, 10)[0].together
    assert not judging.access(B, COUNTER, "value", READ, 20)
    (clash,) = judging.clashes.values()
    assert clash.proven


def test_a_race_is_said_again_where_it_published_something_before():
    judging = judge()
    judging.access(A, BOX, "value", WRITE, 10)
    (published,) = judging.access(B, BOX, "value", READ, 20)
    judging.access(B, COUNTER, "value", READ, 20)
    (proven,) = judging.access(A, COUNTER, "value", WRITE, 10)
    assert not published.proven
    assert judging.clashes == {(10, 20): proven}
    assert proven.proven


def test_what_is_settled_is_not_said():
    judging = Races(3, settled={(10, 20)})
    judging.access(B, COUNTER, "value", WRITE, 20)
    assert not judging.access(A, COUNTER, "value", READ, 10)
    assert judging.access(MAIN, COUNTER, "value", READ, 30)


def test_a_flag_that_is_polled_until_it_is_seen_looks_published():
    judging = judge()
    judging.access(A, COUNTER, "ready", READ, 10)
    (clash,) = judging.access(B, COUNTER, "ready", WRITE, 20)
    assert not clash.published
    judging.access(A, COUNTER, "ready", READ, 10)
    assert clash.published


def test_double_checked_initialisation_looks_published():
    judging = judge()
    judging.access(A, COUNTER, "instance", READ, 10)
    lock(judging, B)
    judging.access(B, COUNTER, "instance", READ, 11)
    (clash,) = judging.access(B, COUNTER, "instance", WRITE, 12)
    unlock(judging, B)
    lock(judging, A)
    assert not judging.access(A, COUNTER, "instance", READ, 11)
    unlock(judging, A)
    assert clash.published


def test_what_is_written_twice_is_not_published():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    (clash,) = judging.access(B, COUNTER, "value", READ, 20)
    assert clash.published
    judging.access(A, COUNTER, "value", WRITE, 10)
    assert not clash.published


def test_two_writers_publish_nothing():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10)
    (clash,) = judging.access(B, COUNTER, "value", WRITE, 20)
    assert not clash.published


def test_an_object_that_is_gone_leaves_nothing_to_the_next_one_with_its_number():
    judging = judge()
    judging.access(A, LIST, 0, ITEM | WRITE, 10)
    judging.access(A, LIST, None, APPEND, 11)
    judging.access(A, LIST, "attribute", WRITE, 12)
    judging.forget(LIST)
    assert not judging.access(B, LIST, 0, ITEM | WRITE, 20)
    assert not judging.access(B, LIST, None, WHOLE, 21)
    assert not judging.access(B, LIST, "attribute", WRITE, 22)


def test_a_stack_is_handed_back():
    judging = judge()
    judging.access(A, COUNTER, "value", WRITE, 10, "the stack")
    (clash,) = judging.access(B, COUNTER, "value", READ, 20, "another")
    assert (clash.earlier.stack, clash.later.stack) == ("the stack", "another")


def test_the_library_minds_its_own_races():
    cached = Place(
        file="/usr/lib/python3.13/functools.py",
        line=1,
        function="cached_property.__get__",
        source="",
    )
    mine = Place(file="functools.py", line=1, function="mine", source="")
    assert races.excused(cached, cached)
    assert not races.excused(cached, mine)


# --- against every schedule there is --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_every_race_that_is_said_can_happen(seed):
    random = Random(seed)
    said = 0
    for _ in range(120):
        program = oracle.drawn_program(random)
        real = oracle.real_races(program)
        for _ in range(12):
            steps, _ = oracle.any_run(program, random)
            found = {oracle.sites(clash) for clash in oracle.judged(steps, len(program))}
            assert found <= real, (program, steps, found - real)
            said += len(found)
    assert said > 200


@pytest.mark.parametrize("seed", range(8))
def test_every_race_that_can_happen_is_said_together_on_some_schedule_and_no_other(seed):
    random = Random(seed)
    said = 0
    for _ in range(150):
        program = oracle.drawn_program(random, threads=2, most=4, variables="x")
        found = set()
        for steps in oracle.all_runs(program):
            for clash in oracle.judged(steps, len(program)):
                if clash.together:
                    found.add(oracle.sites(clash))
        assert found == oracle.real_races(program), program
        said += len(found)
    assert said > 10


# --- complete tables ------------------------------------------------------------------------------


def test_every_operation_of_the_probes_has_a_meaning():
    assert races.HOW.keys() == {name for op, name in OP_NAMES.items() if op != ROUTE}
    assert all(how & WRITE == name.endswith("write") for name, how in races.HOW.items())


def test_every_step_of_the_shadows_has_a_meaning():
    tree = ast.parse(Path(shadows.__file__).read_text(encoding="utf-8"))
    said = {
        argument.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "step"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    looks = {"empty", "qsize", "full", "try"}  # handed on to a helper, or told by the kernel
    assert said
    assert said | looks | {"start", "end"} == EFFECTS.keys() | LOCK_EFFECTS.keys()
