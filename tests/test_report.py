"""The exact text that a user reads, from records typed by hand."""

from __future__ import annotations

import textwrap

from pytest_freethread.records import (
    Failure,
    Finding,
    Leak,
    LockUse,
    Place,
    ThreadState,
    Verdict,
)
from pytest_freethread.report import text


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
