"""The exact text that a user reads, from records typed by hand."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from pytest_freethread.records import (
    Failure,
    Finding,
    Interleaving,
    Leak,
    LockUse,
    Move,
    Place,
    ThreadState,
    Verdict,
    Violation,
)
from pytest_freethread.report import layout, text


def place(line, source, function="transfer"):
    return Place(file="bank.py", line=line, function=function, source=source)


LOCK_A, LOCK_B = 1, 2


def use(identity, line, source):
    name = {LOCK_A: "Bank.lock_a", LOCK_B: "Bank.lock_b"}[identity]
    return LockUse(name=name, identity=identity, place=place(line, source))


def golden(expected):
    return textwrap.dedent(expected).strip("\n")


def test_a_deadlock():
    states = (
        ThreadState(
            thread=0,
            name="freethread-0",
            stack=(place(40, "bank.transfer()", "worker"), place(13, "with self.lock_b:")),
            waits_for=use(LOCK_B, 13, "with self.lock_b:"),
            holds=(use(LOCK_A, 12, "with self.lock_a:"),),
        ),
        ThreadState(
            thread=1,
            name="freethread-1",
            stack=(place(19, "with self.lock_a:", "refund"),),
            waits_for=use(LOCK_A, 19, "with self.lock_a:"),
            holds=(use(LOCK_B, 18, "with self.lock_b:"),),
        ),
    )
    finding = Finding(
        kind="deadlock",
        severity="error",
        message="deadlock in round 3: thread 0 and thread 1 each hold the lock that the other "
        "waits for",
        evidence=states,
    )
    assert text.render(Verdict.FAILED, [finding], "stress, 2 threads") == golden("""
        FAILED: stress, 2 threads

        error: deadlock in round 3: thread 0 and thread 1 each hold the lock that the other waits for

          thread 0  holds      Bank.lock_a  taken at bank.py:12  with self.lock_a:
                    waits for  Bank.lock_b  at bank.py:13        with self.lock_b:
          thread 1  holds      Bank.lock_b  taken at bank.py:18  with self.lock_b:
                    waits for  Bank.lock_a  at bank.py:19        with self.lock_a:

          Usual repair: take these locks in one order everywhere (here: Bank.lock_a, then Bank.lock_b).

          thread 0, most recent line last:
            bank.py:40  in worker    bank.transfer()
            bank.py:13  in transfer  with self.lock_b:

          thread 1, most recent line last:
            bank.py:19  in refund  with self.lock_a:
    """)  # fmt: skip


def test_threads_that_are_stuck_without_a_known_lock():
    state = ThreadState(
        thread=0,
        name="freethread-0",
        stack=(place(7, "jobs.get()"),),
        waits_in="Queue.get",
    )
    finding = Finding(kind="stuck", severity="error", message="stuck", evidence=(state,))
    assert text.block(finding) == [
        "error: stuck",
        "",
        "  thread 0, in Queue.get, most recent line last:",
        "    bank.py:7  in transfer  jobs.get()",
    ]


def test_a_leak():
    leak = Leak(
        names=("a", "b", "c", "d"),
        started_at=(place(3, "thread.start()", "test_it"),),
        state=ThreadState(
            thread=None, name="a", stack=(place(9, "gate.wait()", "run"),), waits_in="Event.wait"
        ),
        daemon=True,
        background=False,
    )
    finding = Finding(kind="leak", severity="error", message="4 threads still run", evidence=leak)
    assert text.block(finding) == [
        "error: 4 threads still run",
        "",
        "  daemon threads: a, b, c and 1 more",
        "  started at, most recent line last:",
        "    bank.py:3  in test_it  thread.start()",
        "  now, in Event.wait, most recent line last:",
        "    bank.py:9  in run  gate.wait()",
    ]


def test_an_exception_and_the_other_texts_that_it_came_with():
    failure = Failure(
        exception=ValueError("total is 3"),
        phase="body",
        thread=1,
        round=2,
        text="total is 3",
        count=9,
        other_texts=(("total is 2", 5), ("", 1)),
    )
    finding = Finding(kind="exception", severity="error", message="ValueError", evidence=failure)
    assert text.block(finding) == [
        "error: ValueError",
        "",
        "  ValueError: total is 3",
        "  also, 5 times: total is 2",
        "  also, once: (no text)",
    ]


def test_many_other_texts_are_cut_and_counted():
    failure = Failure(
        exception=ValueError("0"),
        phase="body",
        thread=0,
        round=0,
        text="0",
        other_texts=tuple((str(n), 1) for n in range(1, 10)),
    )
    assert text.other_messages(failure) == [
        *(f"also, once: {n}" for n in range(1, 5)),
        "... and 5 other texts",
    ]


def test_an_exception_whose_text_cannot_be_made_is_still_reported():
    class Broken(Exception):  # noqa: N818
        def __str__(self):
            raise RuntimeError

    failure = Failure(exception=Broken(), phase="body", thread=0, round=0, text="")
    finding = Finding(kind="exception", severity="error", message="Broken", evidence=failure)
    assert "Broken" in "\n".join(text.block(finding))


# --- interleavings; whole texts of them are in report/golden ---------------------------------------


def move(thread, row, **changes):
    known = {
        "thread": thread,
        "place": place(row, "self.value"),
        "line": f"self.value += {row}",
        "operation": "write",
        "target": "Bank.value",
        "before": "1",
        "after": "2",
        "contested": True,
    }
    return Move(**known | changes)


def interleaved(*moves, full=False, **changes):
    known = {
        "moves": moves,
        "names": tuple(f"body_{index}" for index in range(9)),
        "preemptions": 1,
        "found": (1234, "PCT", 0.0015),
        "blocked": (),
        "failure": None,
        "call": 'replay("ft1:0x1")',
    }
    finding = Finding(
        kind="invariant",
        severity="error",
        message="it broke",
        evidence=Interleaving(**known | changes),
        reproduced=(10, 10),
    )
    return text.block(finding, full=full)


def numbers(lines):
    return [int(line.split()[0]) for line in lines if re.match(r"  +\d+  ", line)]


def test_an_interleaving_without_steps_is_facts_and_a_way_back():
    assert interleaved(command="pytest bank.py --freethread-replay=ft1:0x1") == [
        "error: it broke",
        "",
        "  schedule 1,234 · 2 ms · pct · 1 preemption, the fewest found · reproduced 10/10",
        "",
        "  Again:  pytest bank.py --freethread-replay=ft1:0x1",
        '          replay("ft1:0x1")',
    ]


def test_a_schedule_of_a_former_run_has_no_number():
    assert interleaved(found=(1, "a kept schedule", 0.0))[2] == (
        "  a kept schedule · 1 preemption, the fewest found · reproduced 10/10"
    )
    assert interleaved(found=(1, "replay", 0.0))[2] == "  replay · 1 preemption"


def test_a_run_of_steps_that_touch_nothing_shared_is_one_line():
    private = [move(0, line, contested=False) for line in range(2, 43)]
    lines = interleaved(move(0, 1), *private, move(0, 50), move(1, 1))
    assert lines[4:10] == [
        "        thread 0  body_0                     thread 1  body_1",
        "        -----------------------------------  ---------------------------------",
        "     1  bank.py:1   self.value += 1   1 → 2",
        "        … 41 steps of thread 0 that touch nothing shared …",
        "     2  bank.py:50  self.value += 50  1 → 2",
        "     3                                       bank.py:1  self.value += 1  1 → 2",
    ]


def test_a_few_of_them_are_left_out_and_counted():
    lines = interleaved(move(0, 1), move(0, 2, contested=False), move(1, 1))
    assert numbers(lines) == [1, 2]
    assert "  (1 step that touches nothing shared is not shown)" in lines
    lines = interleaved(*[move(0, line, contested=line == 1) for line in (1, 2, 3, 1)])
    assert "  (2 steps that touch nothing shared are not shown)" in lines


def test_what_happens_after_the_failing_step_explains_nothing():
    failure = Failure(exception=KeyError("k"), phase="body", thread=0, round=0, text="'k'")
    moves = move(0, 1), move(1, 2), move(0, 3, pause="raises KeyError"), move(1, 4), move(1, 5)
    known = interleaved(*moves, failure=failure, violation=broken(0, 1, 2))
    assert "        … 2 steps after that …" in known
    assert numbers(known) == [1, 2, 3]
    assert len(numbers(interleaved(*moves, failure=failure))) == 5


def test_all_steps_are_shown_where_nothing_is_shared():
    assert len(numbers(interleaved(*[move(0, line, contested=False) for line in (1, 2, 3)]))) == 3


def test_what_comes_again_and_again_is_told_once():
    lines = interleaved(*[move(index % 2, index % 2) for index in range(2000)], move(0, 9))
    assert numbers(lines) == [1, 2, 3]
    assert "        … the same 2 steps 999 times more …" in lines


def test_a_few_repetitions_are_no_cycle():
    assert len(numbers(interleaved(*[move(0, 1)] * 3))) == 3
    assert len(numbers(interleaved(*[move(0, 1), move(1, 1)] * 2))) == 4


def broken(look, change, act, **changes):
    known = {"released": None, "late": None, "overwrites": True}
    known |= {"kind": "lost-update", "look": look, "change": change, "act": act}
    return Violation(**known | changes)


def test_a_long_story_is_a_screen_with_what_matters_in_it():
    moves = [move(0, line) for line in range(1, 301)]
    moves[150:150] = [move(1, 400, pause="done")]
    moves[99] = move(0, 100, pause="preempted")
    lines = interleaved(*moves, violation=broken(20, 150, 280), repair="a lock.")
    assert len(numbers(lines)) == 40
    assert len(lines) < 65
    for line in (1, 21, 100, 400, 280, 300):
        assert any(f"self.value += {line} " in shown for shown in lines), line
    act = next(line for line in lines if "self.value += 280 " in line)
    change, number = (
        re.match(" +([0-9]+)", line).group(1)
        for line in (next(line for line in lines if "+= 400 " in line), act)
    )
    assert act.endswith(f"overwrites step {change}")
    order = f"  Steps {change} and {number} are not ordered by any lock. Usual repair: a lock."
    assert order in lines
    assert sum(f" {count} steps …" in line for line in lines for count in range(300)) > 3
    assert len(numbers(interleaved(*moves, full=True))) == 301


@pytest.mark.parametrize(
    ("holding", "changes", "said"),
    [
        ([(), ()], {}, "Steps 2 and 3 are not ordered by any lock."),
        ([("A",), ()], {}, "Step 2 holds A, step 3 no lock: that does not order them."),
        ([("A",), ("B",)], {}, "Step 2 holds A, step 3 B: that does not order them."),
        (
            [("A",), ("A",)],
            {},
            "Step 2 holds A, step 3 that of another object: that does not order them.",
        ),
        ([("A",), ("A",)], {"late": "A"}, "Steps 2 and 3 hold A, but step 1 does not."),
        (
            [("A",), ("A",)],
            {"released": "A"},
            "Steps 1, 2 and 3 each hold A, but thread 0 lets go of it in between.",
        ),
    ],
)
def test_what_should_have_ordered_the_steps(holding, changes, said):
    moves = move(0, 1), move(1, 2, holding=holding[0]), move(0, 3, holding=holding[1])
    assert f"  {said}" in interleaved(*moves, violation=broken(0, 1, 2, **changes))


@pytest.mark.parametrize("threads", range(1, 9))
def test_every_number_of_threads_fits_into_100_columns(threads):
    long = "result = self.service.compute(self.parameters, self.more_parameters, and_more=True)"
    moves = [
        move(thread, 1, line=long, before="'" + "x" * 38 + "'", pause="waits for " + "x" * 90)
        for thread in range(threads)
    ]
    lines = interleaved(*moves)
    assert max(map(len, lines)) <= 100
    assert len(numbers(lines)) == threads
    assert sum("result = self" in line and "→ 2" in line for line in lines) == threads
    full = interleaved(*moves, full=True)
    assert sum(long in line for line in full) == threads


def test_few_threads_are_side_by_side_and_many_one_below_the_other():
    def heads(*threads):
        return [
            line for line in interleaved(*[move(t, 1, line="x") for t in threads]) if "body" in line
        ]

    assert heads(0, 1, 2) == ["        thread 0  body_0     thread 1  body_1     thread 2  body_2"]
    assert len(heads(*range(5))) == 5
    assert interleaved(*[move(t, 1) for t in range(5)], names=("b",) * 5)[4] == (
        "        threads 0, 1, 2, 3, 4  b"
    )


def test_values_that_are_not_known_are_not_made_up():
    unknown = {"before": None, "after": None}
    lines = interleaved(
        move(0, 1, **unknown),
        move(0, 2, operation="read", **unknown),
        move(0, 3, place=None, line="", operation="end", **unknown),
    )
    assert lines[6].endswith("self.value += 1  (written)")
    assert lines[7].endswith("self.value += 2")
    assert lines[8].split() == ["3", "end"]


def test_what_is_repeated_is_told_in_full_where_it_is_asked_for():
    steps = [move(0, 1), move(0, 2)] * 1_000
    assert len(interleaved(*steps)) < 30
    assert len(interleaved(*steps, full=True)) > 2_000


@pytest.fixture
def refused():
    """An assertion that failed in this file."""
    try:
        raise AssertionError  # the line that failed
    except AssertionError as error:
        return Failure(
            exception=error,
            phase="invariant",
            thread=None,
            round=0,
            text="assert 1 == 2\n +  where 1 = <Bank object>.value",
        )


def test_an_assertion_is_told_with_its_place(refused, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    lines = interleaved(failure=refused)
    assert re.fullmatch(
        r"    raise AssertionError  # the line that failed +test_report\.py:\d+", lines[2]
    )
    assert lines[3:5] == ["      assert 1 == 2", "      where 1 = <Bank object>.value"]
    assert "  Traceback (most recent call last):" in interleaved(failure=refused, full=True)
    assert "  Traceback (most recent call last):" not in lines


def test_a_place_in_a_deep_folder_has_a_line_of_its_own(refused, monkeypatch):
    monkeypatch.setattr(layout, "relative", lambda file: f"{'/deep' * 20}/{Path(file).name}")
    lines = interleaved(failure=refused)
    assert lines[2] == "    raise AssertionError  # the line that failed"
    assert re.fullmatch(r"      (/deep){20}/test_report\.py:\d+", lines[3])
    assert lines[4] == "      assert 1 == 2"


def test_a_report_in_ascii():
    report = "\n".join(interleaved(move(0, 1), move(1, 1, line="naïve")))
    assert text.plain(report).isascii()
    assert "1 -> 2" in text.plain(report)
    assert "| pct |" in text.plain(report)
