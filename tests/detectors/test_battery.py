"""Every program below `fixtures/`, shown to the detectors.

The racy ones are mute: their invariants are not asked, and their exceptions are swallowed. So what
is found is found by the accesses alone.
"""

import contextlib
import functools

import pytest

from fixtures import ground_truth
from pytest_freethread import Verdict, explore

SYMPTOMS = {"invariant", "exception"}

ENOUGH = 3.0
"""Seconds for what is right: the longest programs, which no budget exhausts, would take all."""

OUT_OF_SIGHT = {
    "leak/blocked_thread": "a thread that is left behind breaks nothing within an execution",
    "leak/timer": "a thread that is left behind breaks nothing within an execution",
}
"""The racy programs in which no execution shows what is wrong, and why not."""


def programs(side):
    return [pytest.param(program, id=program.name) for program in ground_truth.programs(side)]


def mute(body):
    @functools.wraps(body)
    def muted(state):
        with contextlib.suppress(Exception):
            body(state)

    return muted


def judged(program, *, muted, seconds=10.0):
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


@pytest.mark.parametrize("program", programs("racy"))
def test_what_is_wrong_is_found_by_the_accesses_alone(program):
    result = judged(program, muted=program.detected_as.isdisjoint(SYMPTOMS))
    errors = [finding for finding in result.findings if finding.severity == "error"]
    if program.name in OUT_OF_SIGHT:
        assert not errors, f"it is found now: {result}"
        return
    kinds = {finding.kind for finding in errors}
    assert kinds, f"not found: {sorted(program.detected_as)}\n{result}"
    assert kinds <= program.detected_as, f"not {sorted(program.detected_as)}\n{result}"
    assert result.verdict is Verdict.FAILED
    for finding in errors:
        assert finding.token, str(result)
        assert finding.reproduced == (10, 10), str(result)


@pytest.mark.parametrize("program", programs("safe"))
def test_what_is_right_is_no_error(program):
    result = judged(program, muted=False, seconds=ENOUGH)
    assert result.verdict is Verdict.PASSED, str(result)


def test_what_is_out_of_sight_is_there():
    assert {program.id for program in programs("racy")} >= set(OUT_OF_SIGHT)
