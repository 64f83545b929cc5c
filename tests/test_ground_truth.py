"""Every program below `fixtures/` is what its header says. See `fixtures/README.md`."""

import importlib.util
import itertools
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_freethread import Verdict, explore, stress

ROOT = Path(__file__).parents[1] / "fixtures"
FILES = {side: sorted((ROOT / side).rglob("*.py")) for side in ("racy", "safe")}

HEADER = re.compile(
    r"kind: (?P<kind>[a-z]+(-[a-z]+)*) \| wrong: (?P<wrong>[^|]+) \| "
    r"threads: (?P<threads>[1-9]\d*) \| found by: (?P<found_by>stress|exploration)"
)

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

FINDINGS_OF_EXPLORATION = {
    **FINDINGS,
    # An event that comes too late for some is seen by a look at the result as well.
    "stuck": FINDINGS["stuck"] | {"invariant"},
    "lost-wakeup": FINDINGS["lost-wakeup"] | {"exception"},
}
"""Likewise for exploration, where a timeout is over at once: then the result is what is wrong."""

OUT_OF_SIGHT = {
    "leak/blocked_thread": "a thread that is left behind breaks nothing within an execution",
    "leak/timer": "a thread that is left behind breaks nothing within an execution",
}
"""The racy programs that exploration does not find, and why not."""

SOON = 0.5  # seconds to wait for threads that are stuck for ever, if the header is right
BLOCKED = 0.2  # likewise for a body that waits for one which has not been started
LONG = 30.0  # seconds that no program takes which ends at all


@dataclass(frozen=True, kw_only=True)
class Program:
    path: Path
    kind: str
    wrong: str
    threads: int
    found_by: str

    @property
    def name(self):
        return self.path.relative_to(ROOT).with_suffix("").as_posix()

    @property
    def twins(self):
        """What both twins have in common."""
        name = self.name.partition("/")[2]
        return name, self.kind, self.threads, self.found_by

    @property
    def ends(self):
        return FINDINGS[self.kind].isdisjoint(DOES_NOT_END)

    def load(self):
        name = "ground_truth_" + self.name.replace("/", "_")
        spec = importlib.util.spec_from_file_location(name, self.path)
        # Dataclasses, for one, look their module up.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @contextmanager
    def loaded(self):
        """The module and a `setup` for it; what its rounds leave running is ended afterwards."""
        module, states = self.load(), []
        before = set(threading.enumerate())

        def setup():
            states.append(module.setup())
            return states[-1]

        try:
            yield module, setup
        finally:
            if hasattr(module, "cleanup"):
                for state in states:
                    module.cleanup(state)
        left = {t.name for t in threading.enumerate() if t not in before and not is_harmless(t)}
        assert not left, f"{self.name} leaves {left} running: it needs a cleanup(state)"

    def stressed(self, *, rounds, deadline):
        with self.loaded() as (module, setup):
            return stress(
                *module.threads,
                setup=setup,
                invariant=getattr(module, "invariant", None),
                threads=len(module.threads),
                rounds=rounds,
                deadline=deadline,
            )

    def explored(self, *, schedules, seconds):
        with self.loaded() as (module, setup):
            return explore(
                *module.threads,
                setup=setup,
                invariant=getattr(module, "invariant", None),
                threads=len(module.threads),
                schedules=schedules,
                seconds=seconds,
                seed=0,
                include=["pytest_freethread.reference"] if self.is_about_reference else (),
                deadline=LONG,
            )

    @property
    def is_about_reference(self):
        return self.path.parent.name == "reference"


def is_harmless(thread):
    """Whether the interpreter does not wait for a thread at its end."""
    return thread.daemon or thread.name.startswith("freethread-")


def header(path):
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return HEADER.fullmatch(line.removeprefix('"""').removesuffix('"""'))


def programs(side, *, found_by=("stress", "exploration")):
    """Parameters; a file whose header is malformed is none, and fails a test of its own."""
    found = []
    for path in FILES[side]:
        fields = header(path)
        if fields is None or fields["found_by"] not in found_by:
            continue
        program = Program(path=path, **{**fields.groupdict(), "threads": int(fields["threads"])})
        found.append(pytest.param(program, id=program.twins[0]))
    return found


def wrong_kinds(program, result, fitting=FINDINGS):
    """The kinds of errors that a result blames a program for and should not."""
    found = {finding.kind for finding in result.findings if finding.severity == "error"}
    return found - fitting[program.kind]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for s in FILES for path in FILES[s]],
)
def test_a_program_says_in_its_first_line_what_it_is(path):
    fields = header(path)
    assert fields, f"not a header: {path.read_text().partition(chr(10))[0]}"
    assert fields["kind"] in FINDINGS
    if path.parent.name != "reference":
        assert path.parent.name == fields["kind"].replace("-", "_")
    safe = path.relative_to(ROOT).parts[0] == "safe"
    assert safe == bool(re.fullmatch(r"nothing \(.+\)", fields["wrong"]))


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
    result = program.stressed(rounds=30, deadline=LONG)
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings, str(result)


@pytest.mark.parametrize("program", programs("racy", found_by=("stress",)))
def test_stress_finds_what_it_is_said_to_find(program):
    deadline = LONG if program.ends else SOON
    attempts = (program.stressed(rounds=20, deadline=deadline) for _ in range(50))
    result = next((r for r in attempts if r.verdict is not Verdict.PASSED), None)
    assert result is not None, "nothing was found"
    assert result.verdict is Verdict.FAILED, str(result)
    assert not wrong_kinds(program, result), str(result)


# An exception in a thread that the code under test started is a finding of its own kind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("program", programs("racy", found_by=("exploration",)))
def test_stress_finds_the_right_thing_or_nothing(program):
    result = program.stressed(rounds=30, deadline=LONG if program.ends else SOON)
    assert result.verdict in {Verdict.PASSED, Verdict.FAILED}, str(result)
    assert not wrong_kinds(program, result), str(result)


@pytest.mark.parametrize("program", programs("safe"))
def test_exploration_does_not_blame_a_safe_program(program):
    result = program.explored(schedules=200, seconds=1.0)
    assert result.verdict is Verdict.PASSED, str(result)
    # Some hand a value over without a lock, and are right to.
    assert {finding.kind for finding in result.findings} <= {"race"}, str(result)


@pytest.mark.parametrize("program", programs("racy"))
def test_exploration_finds_each_bug_that_it_can_see(program):
    result = program.explored(schedules=2000, seconds=5.0)
    if program.twins[0] in OUT_OF_SIGHT:
        assert result.verdict is Verdict.PASSED, f"it is found now: {result}"
        return
    assert result.verdict is Verdict.FAILED, str(result)
    assert not wrong_kinds(program, result, FINDINGS_OF_EXPLORATION), str(result)
    (finding,) = (each for each in result.findings if each.severity == "error")
    assert finding.token, str(result)
    assert finding.reproduced == (10, 10), str(result)


def test_what_is_out_of_sight_is_there():
    assert {program.values[0].twins[0] for program in programs("racy")} >= set(OUT_OF_SIGHT)


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
