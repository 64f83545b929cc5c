"""The exact text of a race, from records typed by hand."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import pytest

from pytest_freethread.detectors import races as judge
from pytest_freethread.records import LockUse, Place, Race, RacingAccess
from pytest_freethread.report import races


def place(line, source, function="Stats.add", file="stats.py"):
    return Place(file=file, line=line, function=function, source=source)


TAKEN = place(14, "with self.lock:", "Stats.mean")
LOCK = LockUse(name="Stats.lock", identity=1, place=TAKEN)
OTHER = LockUse(name="Stats.other", identity=2, place=TAKEN)
WRITE = RacingAccess(
    thread=1,
    name="worker",
    action="wrote",
    place=place(11, "self.total += n"),
    stack=(place(40, "stats.add(1)", "worker", "app.py"), place(11, "self.total += n")),
    started_by="MainThread",
    started_at=place(52, "thread.start()", "main", "app.py"),
)
READ = RacingAccess(
    thread=0,
    name="body-0",
    action="read",
    place=place(15, "return self.total", "Stats.mean"),
    holds=(LOCK,),
    stack=(),
)
RACE = Race(
    target="Stats.total",
    made=place(31, "stats = Stats()", "main", "app.py"),
    accesses=(WRITE, READ),
    together=True,
    published=False,
)


def shown(race, **kwargs):
    finding = judge.finding(race, **{"token": "ft1:0x1", **kwargs})
    return "\n".join(races.lines(finding, race))


def golden(expected):
    return textwrap.dedent(expected).strip("\n")


def test_a_write_without_the_lock_that_the_reader_holds():
    assert shown(RACE, reproduced=(10, 10)) == golden("""
        The object was made at app.py:31  stats = Stats()

        thread 1  wrote  stats.py:11  self.total += n    holding nothing
                  in Stats.add ← worker (app.py:40)
                  started by MainThread at app.py:52
        thread 0  read   stats.py:15  return self.total  holding Stats.lock
                  in Stats.mean

        Nothing orders them: the write of thread 1 is not under Stats.lock. Usual repair: take Stats.lock
        in Stats.add.

        reproduced 10/10
    """)


def test_no_lock_at_all_and_not_met():
    bare = replace(READ, holds=())
    race = replace(
        RACE, made=None, accesses=(replace(WRITE, started_by=None), bare), together=False
    )
    assert shown(race) == golden("""
        thread 1  wrote  stats.py:11  self.total += n    holding nothing
                  in Stats.add ← worker (app.py:40)
        thread 0  read   stats.py:15  return self.total  holding nothing
                  in Stats.mean

        Nothing orders them: in this schedule they did not meet, but neither thread holds a lock. Usual
        repair: hold one lock at both places, or hand the value over through a queue.
    """)


def test_two_locks():
    race = replace(RACE, accesses=(replace(WRITE, holds=(OTHER,)), READ))
    assert shown(race).endswith(
        golden("""
        Nothing orders them: thread 1 holds Stats.other and thread 0 holds Stats.lock. Usual repair: take
        the same lock at both places.
    """)
    )


def test_a_loop_over_what_another_thread_changes():
    loop = replace(READ, action="walked over", place=place(20, "for each in self.items:"), holds=())
    race = replace(RACE, accesses=(replace(WRITE, holds=(LOCK,)), loop))
    assert shown(race).endswith(
        golden("""
        Nothing orders them: the loop is not under Stats.lock. Usual repair: hold one lock around the loop
        and the change, or loop over a copy.
    """)
    )


def test_a_publication_says_when_it_is_harmless():
    assert "harmless if it is a flag" in shown(replace(RACE, published=True)).replace("\n", " ")


def test_a_deep_stack_is_cut():
    frames = tuple(place(n, "call()", f"f{n}", "app.py") for n in range(1, 7))
    deep = replace(WRITE, stack=(*frames, WRITE.place), started_by=None)
    text = shown(replace(RACE, accesses=(deep, READ)))
    assert "in Stats.add ← f6 (app.py:6) ← f5 (app.py:5) ← f4 (app.py:4) ← ...\n" in text


@pytest.mark.parametrize(
    ("together", "published", "severity"),
    [(True, False, "error"), (True, True, "note"), (False, False, "note")],
)
def test_only_what_was_made_to_happen_is_an_error(together, published, severity):
    found = judge.finding(replace(RACE, together=together, published=published))
    assert (found.kind, found.severity) == ("race", severity)
    assert found.message == "data race on Stats.total"
