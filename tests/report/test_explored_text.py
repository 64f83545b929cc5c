"""What a user reads of a failing schedule: the whole text, pinned in a file for each story.

`REWRITE_GOLDEN=1` in the environment writes the files anew; look at what changes.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from pytest_freethread import explore, replay
from pytest_freethread.report import text

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"

STORIES = {
    "lost_update": lambda s: explore(
        s.Counter.increment, threads=2, setup=s.Counter, invariant=s.assert_two
    ),
    "a_lock_is_let_go_of_between_read_and_write": lambda s: explore(
        s.Counter.increment_in_two_steps, threads=2, setup=s.Counter, invariant=s.Counter.is_two
    ),
    "a_lock_is_held_for_the_write_only": lambda s: explore(
        s.Counter.increment_half_locked, threads=2, setup=s.Counter, invariant=s.Counter.is_two
    ),
    "lost_update_of_a_global": lambda s: explore(
        s.add, threads=2, setup=s.begin, invariant=lambda _: s.total_is_two()
    ),
    "lost_update_in_threads_that_a_body_starts": lambda s: explore(
        s.start_two, setup=s.Counter, threads=1, invariant=s.Counter.is_two
    ),
    "a_key_is_gone_after_the_check": lambda s: explore(
        s.Registry.use, s.Registry.forget, setup=s.Registry
    ),
    "initialised_twice_in_three_threads": lambda s: explore(
        s.Registry.get, threads=3, setup=s.Registry, invariant=s.Registry.made_one
    ),
    "changed_while_it_is_iterated_over": lambda s: explore(
        s.Registry.walk, s.Registry.add, setup=s.Registry
    ),
    "an_exception_without_a_pattern": lambda s: explore(
        s.Registry.publish, s.Registry.first_letter, setup=s.Registry
    ),
    "deadlock_of_two": lambda s: explore(s.Bank.transfer, s.Bank.refund, setup=s.Bank),
    "deadlock_of_three": lambda s: explore(s.Bank.a_b, s.Bank.b_c, s.Bank.c_a, setup=s.Bank),
    "deadlock_with_oneself": lambda s: explore(s.Bank.twice, setup=s.Bank, threads=1),
    "a_lock_is_never_released": lambda s: explore(s.Bank.keep, s.Bank.a_b, setup=s.Bank),
    "lost_wake_up": lambda s: explore(s.Mailbox.look_then_wait, s.Mailbox.post, setup=s.Mailbox),
    "livelock": lambda s: explore(s.Polite.first, s.Polite.second, setup=s.Polite),
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The programs, as the module `shop` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "shop.py"
    path.write_text((HERE / "shop.py").read_text(encoding="utf-8"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("shop", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shop", module)
    spec.loader.exec_module(module)
    return module


def told(result):
    """The report of the one finding, without times; the line about the search differs by platform."""
    finding, *_ = result.findings
    report = "\n".join(text.block(finding))
    assert report in str(result)
    return re.sub(r"\d+ ms", "N ms", report) + "\n"


@pytest.mark.parametrize("story", STORIES)
def test_the_whole_text(shop, story):
    report = told(STORIES[story](shop))
    path = GOLDEN / f"{story}.txt"
    if "REWRITE_GOLDEN" in os.environ:
        path.write_text(report, encoding="utf-8")
    assert report == path.read_text(encoding="utf-8")
    assert max(map(len, report.splitlines())) <= 100


def test_every_golden_text_has_a_story():
    assert {path.stem for path in GOLDEN.iterdir()} == set(STORIES)


def test_the_text_is_the_same_each_time(shop):
    for story in ("lost_update", "lost_update_in_threads_that_a_body_starts", "lost_wake_up"):
        assert told(STORIES[story](shop)) == told(STORIES[story](shop))


def test_a_replay_tells_the_same_story(shop):
    first = STORIES["lost_update"](shop)
    (finding,) = first.findings
    again = replay(
        finding.token, shop.Counter.increment, setup=shop.Counter, invariant=shop.assert_two
    )
    facts = "schedule 4 · N ms · plain · 1 preemption, the fewest found · reproduced 10/10"
    assert told(again) == told(first).replace(facts, "replay · 1 preemption")


def test_all_of_it_where_it_is_asked_for(shop):
    (finding,) = STORIES["a_lock_is_let_go_of_between_read_and_write"](shop).findings
    short, full = text.block(finding), text.block(finding, full=True)
    assert not any("<Lock>" in line for line in short)
    assert sum("with self.lock:" in line and "<Lock>" in line for line in full) == 4
    assert not any("not shown" in line for line in full)


def test_a_failure_below_a_long_path_has_a_line_for_its_place():
    names = {}
    exec(
        compile("def body():\n    raise KeyError('no')", "/folder" * 20 + "/far.py", "exec"), names
    )
    report = str(explore(names["body"], threads=1))
    assert f"\n      {'/folder' * 20}/far.py:2\n" in report
