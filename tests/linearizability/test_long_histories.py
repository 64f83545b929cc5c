"""A long history of many clients is judged, and one wrong result in it is found."""

import random
from dataclasses import replace

import pytest

from pytest_freethread import Verdict, check_history
from pytest_freethread.linearizability import Operation, map_spec

OPERATIONS = 5_000
LONG = 60.0
"""Seconds; it takes a fraction of one."""


@pytest.fixture(scope="module")
def history():
    """Operations on 100 keys, each of which took effect at a moment between its two ends."""
    rng = random.Random(5)
    values = {}
    made = []
    for moment in range(OPERATIONS):
        key = f"key {rng.randrange(100)}"
        called, returned = moment - 8 * rng.random(), moment + 8 * rng.random()
        if rng.random() < 0.5:
            name, args, result = "get", (key,), values.get(key)
        else:
            value = values[key] = moment
            name, args, result = "put", (key, value), None
        made.append(
            Operation(
                client=moment % 16,
                name=name,
                args=args,
                result=result,
                called=called,
                returned=returned,
            )
        )
    return made


def test_a_long_history_of_a_partitioned_map_passes(history):
    judgement = check_history(history, map_spec(), seconds=LONG)
    assert judgement.verdict is Verdict.PASSED
    assert len(judgement.witness) == OPERATIONS


@pytest.mark.parametrize("place", [100, 2_500, 4_900])
def test_one_wrong_result_in_it_is_found(history, place):
    read = next(i for i, each in enumerate(history) if i >= place and each.name == "get")
    wrong = [*history]
    wrong[read] = replace(history[read], result="nobody wrote this")
    judgement = check_history(wrong, map_spec(), seconds=LONG)
    assert judgement.verdict is Verdict.FAILED
    assert judgement.part == history[read].args[0]
    assert wrong[read] in judgement.prefix
