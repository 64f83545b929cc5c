"""Every program below `fixtures/` is what its header says. See `fixtures/README.md`.

How they are explored and judged is tested in `tests/detectors/test_battery.py`.
"""

import itertools
import re

import pytest

from fixtures import ground_truth
from fixtures.ground_truth import ROOT
from pytest_freethread import Verdict, stress

FILES = {side: ground_truth.files(side) for side in ("racy", "safe")}

ENDS_WRONG = {"exception", "invariant"}
DOES_NOT_END = {"deadlock", "stuck", "lost-wakeup"}
FINDINGS = {
    "lost-update": ENDS_WRONG,
    "check-then-act": ENDS_WRONG,
    "double-computation": ENDS_WRONG,
    "publication": ENDS_WRONG,
    "iteration": ENDS_WRONG,
    "invariant": ENDS_WRONG,
    "exception": ENDS_WRONG,
    "deadlock": DOES_NOT_END,
    "stuck": DOES_NOT_END | {"invariant"},
    "lost-wakeup": DOES_NOT_END | {"invariant"},  # where the program has a timeout of its own
    "leak": {"leak"},
}
"""The kinds of findings that a program of a kind may be blamed for."""

BREAKS_INTERPRETERS = {"exception/shared_generator", "exception/tee"}
"""Racy programs that free-threaded builds may not survive: stress leaves them alone."""

SOON = 0.5  # seconds to wait for threads that are stuck for ever, if the header is right
BLOCKED = 0.2  # likewise for a body that waits for one which has not been started
LONG = 30.0  # seconds that no program takes which ends at all


def ends(program):
    return FINDINGS[program.kind].isdisjoint(DOES_NOT_END)


def stressed(program, *, rounds, deadline, races="off"):
    with program.loaded() as (module, setup):
        return stress(
            *module.threads,
            setup=setup,
            invariant=getattr(module, "invariant", None),
            threads=len(module.threads),
            rounds=rounds,
            deadline=deadline,
            races=races,
        )


def programs(side, *, found_by=("stress", "exploration")):
    """Parameters; a file whose header is malformed is none, and fails a test of its own."""
    return [
        pytest.param(program, id=program.name)
        for program in ground_truth.programs(side)
        if program.found_by in found_by
    ]


def wrong_kinds(program, result):
    """The kinds of errors that a result blames a program for and should not."""
    found = {finding.kind for finding in result.findings if finding.severity == "error"}
    return found - FINDINGS[program.kind]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for s in FILES for path in FILES[s]],
)
def test_a_program_says_in_its_first_line_what_it_is(path):
    program = ground_truth.program(path)
    assert program, f"not a header: {path.read_text().partition(chr(10))[0]}"
    assert program.kind in FINDINGS
    if path.parent.name != "reference":
        assert path.parent.name == program.kind.replace("-", "_")
    safe = program.side == "safe"
    assert safe == bool(re.fullmatch(r"nothing \(.+\)", program.wrong))


def test_every_racy_program_has_a_safe_twin_and_the_other_way_round():
    racy = {p.values[0].twins for p in programs("racy")}
    safe = {p.values[0].twins for p in programs("safe")}
    assert racy, f"there are no programs below {ROOT}"
    assert racy == safe


@pytest.mark.parametrize("program", [*programs("racy"), *programs("safe")])
def test_a_program_has_a_body_for_each_thread_or_one_that_starts_them(program):
    assert len(program.load().threads) in {1, program.threads}


@pytest.mark.parametrize("program", programs("safe"))
def test_a_safe_program_is_not_blamed(program):
    result = stressed(program, rounds=30, deadline=LONG)
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings, str(result)


@pytest.mark.parametrize("program", programs("racy", found_by=("stress",)))
def test_stress_finds_what_it_is_said_to_find(program):
    deadline = LONG if ends(program) else SOON
    attempts = (stressed(program, rounds=20, deadline=deadline) for _ in range(50))
    result = next((r for r in attempts if r.verdict is not Verdict.PASSED), None)
    assert result is not None, "nothing was found"
    assert result.verdict is Verdict.FAILED, str(result)
    assert not wrong_kinds(program, result), str(result)


# An exception in a thread that the code under test started is a finding of its own kind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "program",
    [p for p in programs("racy", found_by=("exploration",)) if p.id not in BREAKS_INTERPRETERS],
)
def test_stress_finds_the_right_thing_or_nothing(program):
    result = stressed(program, rounds=30, deadline=LONG if ends(program) else SOON)
    assert result.verdict in {Verdict.PASSED, Verdict.FAILED}, str(result)
    assert not wrong_kinds(program, result), str(result)


@pytest.mark.parametrize("program", programs("safe"))
def test_rounds_that_are_recorded_do_not_blame_a_safe_program(program):
    result = stressed(program, rounds=20, deadline=LONG, races="error")
    errors = [finding for finding in result.findings if finding.severity == "error"]
    assert not errors, str(result)


def test_what_is_an_exception_is_there():
    names = {program.id for program in programs("racy")}
    assert names >= BREAKS_INTERPRETERS


@pytest.mark.parametrize("program", programs("racy", found_by=("exploration",)))
def test_the_bug_needs_concurrency(program):
    with program.loaded() as (module, setup):
        if len(module.threads) == 1:
            pytest.skip("its body starts the threads itself")
        for order in dict.fromkeys(itertools.permutations(module.threads)):

            def one_after_the_other(state, order=order):
                for body in order:
                    body(state)

            result = stress(
                one_after_the_other,
                setup=setup,
                invariant=getattr(module, "invariant", None),
                threads=1,
                rounds=1,
                deadline=BLOCKED,
            )
            # A body may wait for one that comes later: then there is nothing to be seen.
            blocked = {finding.kind for finding in result.findings} <= DOES_NOT_END
            names = ", ".join(body.__name__ for body in order)
            assert result.verdict is Verdict.PASSED or blocked, f"{names}: {result}"
