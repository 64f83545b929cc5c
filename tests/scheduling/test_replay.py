"""A schedule as data: the token, and the replay of it."""

import programs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import explore

from pytest_freethread.errors import SettingError
from pytest_freethread.scheduling import Diverged, RandomWalk, Replay, decode, encode


@pytest.mark.parametrize(
    ("choices", "token"),
    [((), "ft1:"), ((0,), "ft1:0x1"), ((0, 1, 1, 0), "ft1:0x1.1x2.0x1"), ((12,) * 30, "ft1:12x30")],
)
def test_a_token_is_short_and_can_be_read(choices, token):
    assert encode(choices) == token
    assert decode(token) == choices


@given(st.lists(st.integers(0, 20)))
def test_every_list_of_choices_has_a_token_that_stands_for_it(choices):
    assert decode(encode(choices)) == tuple(choices)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "'' is no token of a schedule; one looks like 'ft1:0x3.1x2'"),
        ("0x3", "'0x3' is no token of a schedule; one looks like 'ft1:0x3.1x2'"),
        ("ft2:0x3", "token 'ft2:0x3' is of version 'ft2'; this is 'ft1'"),
        ("ft1:0x3.", "token 'ft1:0x3.': '' is no run; one is THREADxTIMES, such as '0x3'"),
        ("ft1:0x0", "token 'ft1:0x0': '0x0' is no run; one is THREADxTIMES, such as '0x3'"),
        ("ft1:-1x2", "token 'ft1:-1x2': '-1x2' is no run; one is THREADxTIMES, such as '0x3'"),
        ("ft1:0x3 1x2", "token 'ft1:0x3 1x2': '0x3 1x2' is no run; one is THREADxTIMES, such as '0x3'"),
        ("ft1:٣x1", "token 'ft1:٣x1': '٣x1' is no run; one is THREADxTIMES, such as '0x3'"),
        ("ft1:0x9999999999", "token 'ft1:0x9999999999' is longer than 10,000,000 steps"),
    ],
)  # fmt: skip
def test_what_is_no_token_is_said_to_be_none(token, message):
    with pytest.raises(SettingError) as caught:
        decode(token)
    assert str(caught.value) == message


def test_a_schedule_replays_to_the_same_outcome():
    program = programs.counter(2, threads=3, locked=False)
    for outcome, machine in explore(program, RandomWalk(1), most=30):
        choices = [thread for thread, _ in machine.trace]
        ((again, replayed),) = explore(program, Replay(decode(encode(choices))))
        assert again == outcome
        assert [thread for thread, _ in replayed.trace] == choices


def test_a_choice_that_cannot_be_made_is_drift():
    with pytest.raises(Diverged) as caught:
        explore(programs.counter(1), Replay([0, 1]))
    assert str(caught.value) == "step 1: expected thread 1 to run, but only thread 0 can"
    assert (caught.value.step, caught.value.expected) == (1, "thread 1 to run")


def test_an_execution_that_is_shorter_is_drift():
    with pytest.raises(Diverged, match="step 2: expected thread 1 to run, but the execution has"):
        explore(programs.writers(1), Replay([0, 1, 1]))


def test_behind_the_last_choice_whoever_runs_goes_on():
    ((_, machine),) = explore(programs.writers(3), Replay([0, 1]))
    assert [thread for thread, _ in machine.trace] == [0, 1, 1, 1, 0, 0]


def test_any_list_is_a_schedule_while_shrinking():
    ((_, machine),) = explore(programs.counter(1), Replay([1, 0, 0, 1, 1, 9, 1], strict=False))
    assert [thread for thread, _ in machine.trace] == [1, 1, 1, 1, 0, 0, 0, 0]
