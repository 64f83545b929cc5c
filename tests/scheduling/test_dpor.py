"""DPOR is proved by counting: all outcomes, and as many executions as there are classes."""

from functools import partial
from math import comb, factorial

import programs
import pytest
from generated import generate
from machine import Machine, brute_force, explore, trace_class

from pytest_freethread.scheduling import DPOR, Diverged


def search(program):
    scheduler = DPOR()
    runs = explore(program, scheduler)
    assert scheduler.executions == len(runs)
    return scheduler, runs


def outcomes_of(program):
    outcomes = {outcome for outcome, _ in search(program)[1]}
    assert outcomes == brute_force(program)[0]
    return outcomes


def results_of(program):
    """What the threads returned, each combination once."""
    return {tuple(value for _, value in outcome[3]) for outcome in outcomes_of(program)}


def test_on_generated_programs_it_reaches_what_brute_force_reaches_and_each_class_once():
    programs_tried = classes_found = redundant = 0
    for seed in range(360):
        program = generate(seed)
        truth = brute_force(program, most=200)
        if truth is None:
            continue
        outcomes, classes, _ = truth
        scheduler, runs = search(program)
        assert scheduler.exhausted or any(outcome[0] == "deadlock" for outcome in outcomes), seed
        assert {outcome for outcome, _ in runs} == outcomes, seed
        assert {trace_class(machine) for _, machine in runs} == classes, seed
        assert len(runs) - scheduler.redundant == len(classes), seed
        programs_tried += 1
        classes_found += len(classes)
        redundant += scheduler.redundant
    assert programs_tried >= 200
    assert classes_found >= 400  # the programs do have races
    assert redundant < 0.1 * classes_found


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "on their way"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_two_threads_of_locked_increments(k, announced):
    scheduler, runs = search(programs.counter(k, announced=announced))
    assert len(runs) == comb(2 * k, k)
    assert scheduler.exhausted
    assert scheduler.redundant == 0
    assert {dict(outcome[2])["x"] for outcome, _ in runs} == {2 * k}


@pytest.mark.parametrize("k", [1, 2])
def test_three_threads_of_locked_increments(k):
    scheduler, runs = search(programs.counter(k, threads=3))
    assert len(runs) == factorial(3 * k) // factorial(k) ** 3
    assert scheduler.redundant == 0


@pytest.mark.parametrize(("threads", "k"), [(2, 1), (2, 3), (2, 4), (3, 2)])
def test_unlocked_writers_of_one_variable(threads, k):
    scheduler, runs = search(programs.writers(k, threads))
    assert len(runs) == factorial(threads * k) // factorial(k) ** threads
    assert scheduler.redundant == 0


def test_threads_that_share_nothing_need_one_execution():
    scheduler, runs = search(programs.independent(5, threads=4))
    assert len(runs) == 1
    assert scheduler.exhausted


@pytest.mark.parametrize(("threads", "redundant"), [(3, 1), (4, 2), (6, 8)])
def test_a_reader_of_what_others_write_where_sleep_sets_alone_try_too_much(threads, redundant):
    scheduler, runs = search(programs.reader_and_writers(threads))
    assert len(runs) - scheduler.redundant == 2 ** (threads - 1)
    assert scheduler.redundant == redundant  # wake-up trees would have none


def test_what_is_asleep_is_not_woken_by_a_turn():
    def body_of(*names):
        def body(m):
            for name in names:
                yield m.write(name, 1)

        return body

    bodies = [body_of("d", "d"), body_of("x", "x"), body_of("d", "d", "x")]
    scheduler, runs = search(partial(Machine, bodies, {"d": 0, "x": 0}))
    assert len(runs) - scheduler.redundant == comb(4, 2) * 3
    assert len({trace_class(machine) for _, machine in runs}) == comb(4, 2) * 3


def test_lock_order_with_the_second_thread_first():
    def body_of(name):
        def body(m):
            yield m.lock("lock")
            yield m.append("order", name)
            yield m.unlock("lock")

        return body

    program = partial(Machine, [body_of("a"), body_of("b")], {"lock": None, "order": []})
    assert {dict(o[2])["order"] for o in outcomes_of(program)} == {("a", "b"), ("b", "a")}


def test_use_after_close_where_the_critical_sections_are_the_only_conflict():
    def use(m):
        yield m.lock("lock")
        open_ = yield m.read("open")
        yield m.unlock("lock")
        return open_

    def close(m):
        yield m.lock("lock")
        yield m.write("open", False)
        yield m.unlock("lock")

    for bodies in ([use, close], [close, use]):
        assert len(results_of(partial(Machine, bodies, {"lock": None, "open": True}))) == 2


def test_k_not_in_d_is_an_access():
    def body(m):
        if not (yield m.contains("d", "k")):
            yield m.put_item("d", "k", 1)
            return "computed"
        return "found"

    program = partial(Machine, [body, body], {"d": {}})
    assert ("computed", "computed") in results_of(program)


def test_other_keys_of_a_dict_are_independent_but_its_length_depends_on_all():
    def put(key):
        def body(m):
            yield m.put_item("d", key, 1)

        return body

    def snapshot(m):
        return (yield m.snapshot("d"))

    assert len(search(partial(Machine, [put("a"), put("b")], {"d": {}}))[1]) == 1
    assert len(search(partial(Machine, [put("a"), put("b"), snapshot], {"d": {}}))[1]) == 4


def test_a_key_that_cannot_be_compared_counts_as_the_same():
    class Odd:
        def __eq__(self, other):
            raise TypeError

        __hash__ = None

    def touch(m):
        operation = m.read("x")
        operation.key, operation.write = Odd(), True
        yield operation

    assert len(search(partial(Machine, [touch, touch], {"x": 0}))[1]) == 2


def test_a_lost_wakeup_is_a_deadlock():
    def waiter(m):
        yield m.lock("lock")
        yield from m.wait("condition", "lock")
        yield m.unlock("lock")

    def notifier(m):
        yield m.lock("lock")
        yield m.notify("condition")
        yield m.unlock("lock")

    for bodies in ([waiter, notifier], [notifier, waiter]):
        outcomes = outcomes_of(partial(Machine, bodies, {"lock": None, "condition": None}))
        assert {outcome[0] for outcome in outcomes} == {"end", "deadlock"}


@pytest.mark.parametrize("first", ["get", "put"])
def test_a_queue_whose_get_comes_first(first):
    def get(m):
        return (yield m.take("queue"))

    def put(m):
        yield m.put("queue", 1)

    bodies = [get, put] if first == "get" else [put, get]
    assert {outcome[0] for outcome in outcomes_of(partial(Machine, bodies, {"queue": []}))} == {
        "end"
    }


def test_opposite_lock_orders_deadlock_and_both_orders_that_do_not_are_tried_too():
    def body_of(one, other):
        def body(m):
            yield m.lock(one)
            yield m.lock(other)
            yield m.append("order", one)
            yield m.unlock(other)
            yield m.unlock(one)

        return body

    program = partial(
        Machine, [body_of("a", "b"), body_of("b", "a")], {"a": None, "b": None, "order": []}
    )
    outcomes = {(outcome[0], dict(outcome[2])["order"]) for outcome in outcomes_of(program)}
    assert outcomes == {("end", ("a", "b")), ("end", ("b", "a")), ("deadlock", ())}


def test_a_lock_that_is_never_given_back_hides_no_order():
    def keeper(m):
        yield m.write("unrelated", 1)
        yield m.lock("lock")

    def other(m):
        yield m.read("unrelated")
        yield m.lock("lock")
        yield m.unlock("lock")
        return "had it"

    program = partial(Machine, [keeper, other], {"lock": None, "unrelated": 0})
    assert results_of(program) == {(None, "had it"), (None, None)}


def test_threads_started_inside_a_thread_race_with_each_other_and_with_their_parent():
    def child(m):
        value = yield m.read("x")
        yield m.write("x", value + 1)

    def parent(m):
        one = yield m.start(child)
        two = yield m.start(child)
        yield m.join(one)
        yield m.join(two)
        return (yield m.read("x"))

    for announced in (True, False):
        results = results_of(partial(Machine, [parent], {"x": 0}, announced))
        assert {result[0] for result in results} == {1, 2}


def test_two_threads_that_each_start_one_are_told_apart_whoever_is_first():
    def child_of(name):
        def child(m):
            yield m.append("order", name)

        return child

    def parent_of(name):
        def parent(m):
            yield m.start(child_of(name))

        return parent

    program = partial(Machine, [parent_of("a"), parent_of("b")], {"order": []})
    assert {dict(o[2])["order"] for o in outcomes_of(program)} == {("a", "b"), ("b", "a")}
    assert len(search(program)[1]) == 2


def test_a_thread_that_sleeps_is_after_all_that_could_run():
    def sleeper(m):
        yield from m.sleep(1)
        return (yield m.read("x"))

    def writer(m):
        yield m.write("x", 1)
        yield from m.sleep(2)
        yield m.write("x", 2)

    assert results_of(partial(Machine, [sleeper, writer], {"x": 0, "clock": 0})) == {(1, None)}


def test_nobody_is_chosen_who_cannot_run_though_no_operation_says_why():
    def waiter(m):
        operation = m.read("x")
        operation.able = lambda: m.things["flag"].value
        yield operation

    def setter(m):
        yield m.write("flag", True)
        yield m.write("x", 1)

    # What the waiter waits for and what it announces are different objects: not what was agreed.
    program = partial(Machine, [waiter, setter], {"x": 0, "flag": False})
    assert {outcome for outcome, _ in search(program)[1]} == brute_force(program)[0]


def test_a_search_that_is_not_finished_never_says_exhausted():
    program = programs.counter(3)
    scheduler = DPOR()
    assert len(explore(program, scheduler, most=19)) == 19
    assert not scheduler.exhausted
    scheduler = DPOR()
    assert len(explore(program, scheduler, most=20)) == 20
    assert not scheduler.exhausted  # nobody asked yet whether there is another one
    assert not scheduler.begin()
    assert scheduler.exhausted


def test_executions_that_a_failure_has_ended_are_not_called_exhaustive():
    scheduler = DPOR()
    while scheduler.begin():
        machine = programs.writers(2)()
        machine.run(scheduler, steps=2)
        scheduler.end()
    assert not scheduler.exhausted


def test_a_list_of_pending_operations_that_is_not_kept_up_to_date_is_not_called_exhaustive():
    scheduler = DPOR()
    while scheduler.begin():
        machine = programs.counter(1)()
        current = None
        while enabled := machine.enabled():
            current = scheduler.choose(enabled, current, list(machine.pending))
            machine.step(current)
        scheduler.end()
    assert not scheduler.exhausted


def test_a_program_in_which_nobody_can_run_has_one_execution():
    def body(m):
        yield m.take("queue")

    scheduler, runs = search(partial(Machine, [body], {"queue": []}))
    assert [outcome[0] for outcome, _ in runs] == ["deadlock"]
    assert scheduler.executions == 1


class Changing:
    """A program that is another one the second time."""

    def __init__(self, change):
        self.executions = 0
        self.change = change

    def __call__(self):
        self.executions += 1
        changed = self.executions > 1

        def body(m):
            yield m.write("x", 0, site=10 + (changed and self.change == "site"))
            if not (changed and self.change == "ended"):
                yield m.write("x", 1, site=12)
                yield m.write("x", 2, site=13)

        def other(m):
            if changed and self.change == "blocked":
                yield m.take("queue", site=20)
            yield m.write("x", 3, site=20)

        return Machine([body, other], {"x": 0, "queue": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("site", "step 0: expected thread 0 at site 10, but it is thread 0 at site 11"),
        ("blocked", "step 0: expected threads 0, 1 to be able to run, but only thread 0 can"),
        ("ended", "step 1: expected threads 0, 1 to be able to run, but only thread 1 can"),
    ],
)
def test_a_program_that_goes_another_way_in_the_replay_is_noticed(change, message):
    with pytest.raises(Diverged) as caught:
        search(Changing(change))
    assert str(caught.value) == message


def test_a_replay_that_ends_early_is_noticed():
    scheduler = DPOR()
    machine = programs.counter(1)()
    scheduler.begin()
    machine.run(scheduler)
    scheduler.end()
    scheduler.begin()
    with pytest.raises(Diverged, match="the execution has ended"):
        scheduler.end()
