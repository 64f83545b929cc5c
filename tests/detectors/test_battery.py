"""Every program below `fixtures/`, judged with the default budgets: what is wrong is an error.

Then once more, mute: the invariants are not asked, and exceptions are swallowed. What is found then
is found by the accesses alone. What is right is no error.
"""

import contextlib
import functools

import pytest

from fixtures.ground_truth import programs
from pytest_freethread import Verdict, explore

SYMPTOMS = {"invariant", "exception"}

OUT_OF_SIGHT = {
    "leak/blocked_thread": "a thread that is left behind breaks nothing within an execution",
    "leak/timer": "a thread that is left behind breaks nothing within an execution",
}
"""The racy programs in which no execution shows what is wrong, and why not."""

LONG = 60.0
"""Seconds for what is wrong: on a busy machine too, the schedules are what bounds the search."""

ENOUGH = 3.0
"""Seconds for what is right: the longest programs, which no budget exhausts, would take all."""


def named(programs):
    return [pytest.param(program, id=program.name) for program in programs]


def mutable(program):
    """Whether its accesses alone show what is wrong, within the default budgets."""
    shown = program.detected_as.isdisjoint(SYMPTOMS) and program.name not in OUT_OF_SIGHT
    return shown and not program.include  # the components' executions are long


def mute(body):
    @functools.wraps(body)
    def muted(state):
        with contextlib.suppress(Exception):
            body(state)

    return muted


def judged(program, *, muted=False, seconds=LONG):
    with program.loaded() as (module, setup):
        return explore(
            *(map(mute, module.threads) if muted else module.threads),
            setup=setup,
            invariant=None if muted else getattr(module, "invariant", None),
            threads=len(module.threads),
            seconds=seconds,
            races="error",
            include=(module.__name__, *program.include),
        )


def kinds_of_errors(result):
    errors = [finding for finding in result.findings if finding.severity == "error"]
    for finding in errors:
        assert finding.token, str(result)
        assert finding.reproduced == (10, 10), str(result)
    return {finding.kind for finding in errors}


@pytest.mark.parametrize("program", named(programs("racy")))
def test_what_is_wrong_is_an_error(program):
    result = judged(program)
    found = kinds_of_errors(result)
    if program.name in OUT_OF_SIGHT:
        assert not found, f"it is found now: {result}"
        return
    assert result.verdict is Verdict.FAILED, str(result)
    assert found <= program.detected_as | SYMPTOMS, str(result)


@pytest.mark.parametrize("program", named(filter(mutable, programs("racy"))))
def test_what_is_wrong_is_found_by_the_accesses_alone(program):
    result = judged(program, muted=True)
    found = kinds_of_errors(result)
    assert found, f"not found: {sorted(program.detected_as)}\n{result}"
    assert found <= program.detected_as, str(result)


@pytest.mark.parametrize("program", named(programs("safe")))
def test_what_is_right_is_no_error(program):
    result = judged(program, seconds=ENOUGH)
    assert result.verdict is Verdict.PASSED, str(result)


def test_what_is_out_of_sight_is_there():
    assert {program.name for program in programs("racy")} >= set(OUT_OF_SIGHT)
