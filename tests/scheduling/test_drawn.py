"""Schedules that Hypothesis draws: what is found, how it shrinks, and how it comes again."""

from __future__ import annotations

import re
import threading
import warnings
from functools import partial

import hypothesis
import pytest
from hypothesis import Phase, example, given, note, settings, target
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pytest_freethread import Schedule, SettingError, ThreadSafetyError, explore, schedules
from pytest_freethread.instrument import swap
from pytest_freethread.scheduling import Turns, drawn

quickly = settings(
    database=None, derandomize=True, phases=[Phase.explicit, Phase.generate, Phase.shrink]
)


class Account:
    def __init__(self):
        self.balance = 0
        self.lock = threading.Lock()

    def deposit(self, amount):
        balance = self.balance
        self.balance = balance + amount

    def deposit_locked(self, amount):
        with self.lock:
            self.deposit(amount)


class Transfer:
    def __init__(self, *, in_order):
        self.one, self.other = threading.Lock(), threading.Lock()
        self.in_order = in_order

    def bodies(self):
        return self.there, self.there if self.in_order else self.back

    def there(self):
        with self.one, self.other:
            pass

    def back(self):
        with self.other, self.one:
            pass


def failure_of(test):
    """What a test of Hypothesis fails with, and all that is said of it."""
    with pytest.raises(Exception) as caught:
        test()
    return caught.value, "\n".join([str(caught.value), *caught.value.__notes__])


def deposits(method, **kwargs):
    """The test of the documentation, about one of the two ways to deposit."""

    @settings(quickly, **kwargs)
    @given(schedule=schedules(), amounts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def test_deposits(schedule, amounts):
        account = Account()
        schedule.run(*[partial(method, account, amount) for amount in amounts])
        assert account.balance == sum(amounts)

    return test_deposits


# --- turns ----------------------------------------------------------------------------------------


def names(turns, threads, first=0):
    """Who runs at each step, of threads that have so many steps each and never wait."""
    scheduler = Turns(turns, first)
    assert scheduler.begin()
    assert not scheduler.begin()
    left, current, ran = dict(enumerate(threads)), None, []
    while any(left.values()):
        enabled = [thread for thread, steps in left.items() if steps]
        current = scheduler.choose(enabled, current, [])
        left[current] -= 1
        ran.append(current)
    scheduler.end()
    return "".join(map(str, ran))


@pytest.mark.parametrize(
    ("turns", "first", "expected"),
    [
        ([], 0, "001122"),
        ([], 1, "112200"),
        ([], 5, "220011"),
        ([(0, 0)], 0, "001122"),
        ([(0, 1)], 0, "002211"),  # the first cannot go on; the other one of the others does
        ([(1, 0)], 0, "011220"),  # preempted after a step
        ([(1, 1)], 0, "022011"),
        ([(1, 3)], 0, "022011"),  # who is too large starts again
        ([(1, 0), (1, 0), (1, 0)], 0, "012012"),
        ([(3, 0), (1, 0)], 0, "001212"),  # steps of whichever threads
    ],
)
def test_turns_say_who_goes_on_and_when(turns, first, expected):
    assert names(turns, [2, 2, 2], first) == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.integers(0, 9))
def test_whatever_the_numbers_are_they_are_a_schedule(turns, first):
    ran = names(turns, [3, 1, 2], first)
    assert sorted(ran) == sorted("000122")


def test_every_order_is_drawn():
    seen = set()

    @settings(quickly, max_examples=300, phases=[Phase.generate])
    @given(drawn.strategy(lambda turns, first: names(turns, [2, 2], first)))
    def test(ran):
        seen.add(ran)

    test()
    assert seen == {"0011", "0101", "0110", "1001", "1010", "1100"}


def test_the_simplest_schedule_preempts_nobody():
    assert repr(hypothesis.find(schedules(), lambda _: True)) == "Schedule()"


# --- what is found --------------------------------------------------------------------------------


def test_a_lost_update_is_found_and_shrunk_to_one_preemption_and_the_smallest_amounts():
    error, said = failure_of(deposits(Account.deposit))
    assert isinstance(error, AssertionError)
    assert "amounts=[1, 1]" in said
    assert "schedule=Schedule([(1, 0)])" in said
    assert (
        "Lost update on Account.balance: both threads read it before either wrote it back" in said
    )
    assert "drawn · 1 preemption\n" in said
    assert re.search(r"thread 0  Account.deposit +thread 1  Account.deposit", said)
    assert '@example(schedule=Schedule.from_token("ft1:0x1.1x2.0x1"), ...)' in said


def test_its_repaired_twin_is_silent():
    deposits(Account.deposit_locked)()


def test_a_deadlock_is_found_with_its_report():
    @quickly
    @given(schedule=schedules())
    def test(schedule):
        schedule.run(*Transfer(in_order=False).bodies())

    error, said = failure_of(test)
    assert isinstance(error, ThreadSafetyError)
    assert "Deadlock: thread 0 and thread 1 each hold the lock that the other waits for" in said
    assert "Usual repair: take these locks in one order" in said
    assert "schedule=Schedule([(2, 0)])" in said
    assert error.result.findings[0].kind == "deadlock"


def test_locks_taken_in_one_order_are_silent():
    @quickly
    @given(schedule=schedules())
    def test(schedule):
        schedule.run(*Transfer(in_order=True).bodies())

    test()


def test_a_lost_wakeup_is_found():
    @quickly
    @given(schedule=schedules())
    def test(schedule):
        condition = threading.Condition()

        def wait():
            with condition:
                condition.wait()

        def wake():
            with condition:
                condition.notify()

        schedule.run(wait, wake)

    error, _ = failure_of(test)
    assert error.result.findings[0].kind == "lost-wakeup"


def test_an_order_of_three_threads_is_found():
    @settings(quickly, max_examples=2_000)
    @given(schedule=schedules())
    def test(schedule):
        stages = []

        def use():
            assert stages[-1:] != ["closed"]

        schedule.run(
            lambda: stages.append("open"),
            lambda: stages[-1:] == ["open"] and stages.append("closed"),
            use,
        )

    error, said = failure_of(test)
    assert isinstance(error, AssertionError)
    assert "schedule=Schedule()" in said


def test_what_a_body_raises_is_raised_and_told_apart():
    @settings(quickly, report_multiple_bugs=True)
    @given(schedule=schedules(), which=st.booleans())
    def test(schedule, which):
        def raises():
            if which:
                raise KeyError("one")
            raise ValueError("other")

        schedule.run(raises, raises)

    with pytest.raises(ExceptionGroup) as caught:
        test()
    assert {type(each) for each in caught.value.exceptions} == {KeyError, ValueError}


def test_a_body_made_in_a_function_that_had_begun_before_has_probes():
    found = 0
    for _ in range(2):
        values = [0]

        def add(values=values):
            value = values[0]
            values[0] = value + 1

        Schedule([(1, 0)]).run(add, add)
        found += values == [1]
    assert found == 2


# --- how it comes again ---------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_failure_and_the_same_text():
    def said():
        return re.sub(r"at 0x\w+", "", failure_of(deposits(Account.deposit))[1])

    assert said() == said()


def test_the_database_replays_a_failure_first():
    database = InMemoryExampleDatabase()
    calls = []

    def body(account, amount):
        calls.append(amount)
        account.deposit(amount)

    # Chance has to find it: what has a seed is not kept.
    kept = {"database": database, "derandomize": False, "max_examples": 2_000}
    phases = [Phase.reuse, Phase.generate, Phase.shrink]
    failure_of(deposits(body, **kept, phases=phases))
    calls.clear()
    failure_of(deposits(body, **kept, phases=[Phase.reuse]))
    assert calls[:2] == [1, 1]


def test_an_example_names_its_schedule_by_turns_or_by_token():
    for schedule in (Schedule([(1, 0)]), Schedule.from_token("ft1:0x1.1x2.0x1")):

        @settings(quickly, phases=[Phase.explicit])
        @example(schedule=schedule)
        @given(schedule=schedules())
        def test(schedule):
            account = Account()
            schedule.run(partial(account.deposit, 1), partial(account.deposit, 2))
            assert account.balance == 3

        error, said = failure_of(test)
        assert isinstance(error, AssertionError)
        assert f"schedule={schedule!r}" in said
        assert "Lost update on Account.balance" in said


def test_a_schedule_says_what_makes_it_again():
    for schedule in (Schedule(), Schedule([(2, 1)], first=1), Schedule.from_token("ft1:0x1.1x2")):
        assert repr(eval(repr(schedule))) == repr(schedule)


def test_a_failure_is_reproduced_by_its_blob():
    _, said = failure_of(deposits(Account.deposit, print_blob=True))
    version, blob = re.search(r"@reproduce_failure\('(.+)', b'(.+)'\)", said).groups()

    @hypothesis.reproduce_failure(version, blob.encode())
    @given(schedule=schedules(), amounts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def test(schedule, amounts):
        assert amounts == [1, 1]
        assert repr(schedule) == "Schedule([(1, 0)])"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        test()


def test_a_schedule_works_outside_of_hypothesis():
    account = Account()
    Schedule([(1, 0)]).run(partial(account.deposit, 1), partial(account.deposit, 2))
    assert account.balance == 1
    with pytest.raises(ThreadSafetyError, match="Deadlock"):
        Schedule([(2, 0)]).run(*Transfer(in_order=False).bodies())


# --- what else Hypothesis offers ------------------------------------------------------------------


def test_the_bodies_are_part_of_the_example():
    said = []

    @settings(quickly, phases=[Phase.generate])
    @given(schedule=schedules(), n=st.integers(0, 1))
    def test(schedule, n):
        def body():
            hypothesis.assume(n)
            note("noted in a body")
            raise ZeroDivisionError

        schedule.run(body, lambda: said.append(n))

    error, text = failure_of(test)
    assert isinstance(error, ZeroDivisionError)
    assert "noted in a body" in text
    assert 0 in said
    assert 1 in said


def test_target_is_fed_and_free_for_others():
    scores = []

    @settings(quickly, phases=[Phase.generate], max_examples=50)
    @given(schedule=schedules())
    def test(schedule):
        account = Account()
        bodies = [partial(account.deposit, 1)] * 2
        schedule.run(*bodies)
        schedule.run(*bodies)
        target(account.balance, label="balance")
        observed = hypothesis.control.current_build_context().data.target_observations
        scores.append(observed["distinct switches between places in the code"])

    test()
    assert scores[0] == 1  # no preemption: one switch, where the first thread ends
    assert max(scores) > 1


def test_ordinary_use_is_within_hypothesis_deadline_and_health_checks():
    test = deposits(Account.deposit_locked, suppress_health_check=[], deadline=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test()


def test_schedules_are_run_by_the_rules_of_a_state_machine():
    class Machine(RuleBasedStateMachine):
        method = Account.deposit

        def __init__(self):
            super().__init__()
            self.account, self.expected = Account(), 0

        @rule(schedule=schedules(), amount=st.integers(1, 9))
        def deposit(self, schedule, amount):
            self.expected += 2 * amount
            schedule.run(*[partial(type(self).method, self.account, amount)] * 2)

        @invariant()
        def nothing_is_lost(self):
            assert self.account.balance == self.expected

    class Repaired(Machine):
        method = Account.deposit_locked

    few = settings(quickly, max_examples=20, stateful_step_count=3)
    error, said = failure_of(partial(run_state_machine_as_test, Machine, settings=few))
    assert isinstance(error, AssertionError)
    assert "state.deposit(amount=1, schedule=Schedule([(1, 0)]))" in said
    assert "Lost update on Account.balance" in said
    run_state_machine_as_test(Repaired, settings=few)


# --- what is left behind, and what is refused -----------------------------------------------------


def test_without_a_test_that_keeps_it_nothing_is_left_in_place():
    from pytest_freethread import drawing

    lock = threading.Lock
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_stage", None)
        Schedule().run(lambda: None)
        assert not swap.has_probes(Account.deposit.__code__)
        assert threading.Lock is lock


def test_a_stage_is_kept_for_the_next_run_and_cleared_in_the_end():
    from pytest_freethread import drawing

    account = Account()
    with drawing.keeping_the_stage():
        Schedule().run(partial(account.deposit, 1))
        assert swap.has_probes(Account.deposit.__code__)
        before = Account.deposit.__code__
        Schedule().run(partial(account.deposit, 1))
        assert Account.deposit.__code__ is before
    assert not swap.has_probes(Account.deposit.__code__)


def test_a_kept_stage_gives_way_to_an_exploration():
    account = Account()
    Schedule().run(partial(account.deposit, 1))
    assert explore(lambda: account.deposit(1), threads=2, schedules=3).executions
    Schedule().run(partial(account.deposit, 1))


def test_a_run_within_a_run_is_refused():
    with pytest.raises(RuntimeError, match="under way already"):
        Schedule().run(lambda: Schedule().run(lambda: None))


@pytest.mark.parametrize("call", ["run()", "run(1)"])
def test_what_cannot_be_run_is_refused(call):
    with pytest.raises(SettingError, match=re.escape("schedule.run(")):
        eval(f"Schedule().{call}")


@pytest.mark.parametrize(
    "call",
    [
        "Schedule(1)",
        "Schedule([1])",
        "Schedule([(1, -1)])",
        "Schedule([(1, 2, 3)])",
        "Schedule([(1, True)])",
        "Schedule([], first=-1)",
        "Schedule([], first='a')",
        "Schedule.from_token('ft')",
    ],
)
def test_what_is_no_schedule_is_refused(call):
    with pytest.raises(SettingError):
        eval(call)


def test_strategies_tell_what_they_draw():
    parts = st.tuples(st.none(), schedules().map(lambda schedule: schedule))
    assert drawn.draws_schedules(parts)
    assert not drawn.draws_schedules(st.lists(st.integers()))
    assert drawn.draws_later(st.tuples(st.data()))
    assert not drawn.draws_later(st.integers())
