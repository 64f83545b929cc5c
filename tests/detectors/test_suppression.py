"""What is called benign, by a comment or by a pattern; findings typed by hand."""

import pytest

from pytest_freethread.detectors.suppression import excused_by, without_benign
from pytest_freethread.records import (
    Finding,
    LockUse,
    Place,
    Race,
    RacingAccess,
    ThreadState,
)

SOURCE = {
    ("/app/legacy/stats.py", 11): "self.total += n",
    ("/app/legacy/stats.py", 15): "return self.total  # freethread: benign, an estimate",
    ("/app/bank.py", 6): "with self.lock:",
}


def line(file, number):
    return SOURCE.get((file, number), "")


def at(number, file="/app/legacy/stats.py"):
    return Place(file=file, line=number, function="f", source="")


def race(*numbers):
    one, other = (
        RacingAccess(thread=thread, name="", action="wrote", place=at(number))
        for thread, number in enumerate(numbers)
    )
    evidence = Race(
        target="Stats.total", made=None, accesses=(one, other), together=True, published=False
    )
    return Finding(kind="race", severity="error", message="", evidence=evidence)


def inversion():
    use = LockUse(name="Bank.a", identity=1, place=at(6, "/app/bank.py"))
    state = ThreadState(thread=0, name="", stack=(), waits_for=use)
    return Finding(kind="lock-order", severity="note", message="", evidence=(state,))


def test_a_comment_on_either_line():
    assert excused_by(race(11, 15), (), line) == "/app/legacy/stats.py:15"
    assert excused_by(race(15, 11), (), line) == "/app/legacy/stats.py:15"
    assert excused_by(race(11, 11), (), line) is None


@pytest.mark.parametrize(
    "pattern", ["Stats.total", "Stats.*", "race:Stats.total", "*:Stats.total", "legacy/*.py"]
)
def test_a_pattern_that_matches(pattern):
    assert excused_by(race(11, 11), ("nothing", pattern), line) == pattern


@pytest.mark.parametrize("pattern", ["stats.total", "atomicity:Stats.total", "stats", "*.txt"])
def test_a_pattern_that_does_not(pattern):
    assert excused_by(race(11, 11), (pattern,), line) is None


def test_what_suppresses_nothing_is_counted_as_none():
    reached = [("/app/legacy/stats.py", 11), ("/app/legacy/stats.py", 15)]
    findings = [race(11, 11), race(11, 15)]
    wanted, suppressed = without_benign(findings[:1], ["race:Gone.*"], line, reached=reached)
    assert wanted == findings[:1]
    assert suppressed == {"race:Gone.*": 0, "/app/legacy/stats.py:15": 0}
    wanted, suppressed = without_benign(findings, [], line, reached=reached)
    assert wanted == findings[:1]
    assert suppressed == {"/app/legacy/stats.py:15": 1}
    assert without_benign([], [], line, reached=()) == ([], {})


def test_locks_by_name_and_file():
    assert excused_by(inversion(), ("lock-order:Bank.*",), line) == "lock-order:Bank.*"
    assert excused_by(inversion(), ("bank.py",), line) == "bank.py"
    assert excused_by(inversion(), ("race:bank.py",), line) is None
