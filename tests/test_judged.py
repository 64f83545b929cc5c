"""What judges find in executions that went well, made to happen before it is an error."""

import queue
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import pytest

from pytest_freethread import SettingError, Verdict, explore, replay


class Stats:
    def __init__(self):
        self.lock = threading.Lock()
        self.other = threading.Lock()
        self.total = 0
        self.items = {}
        self.value = None
        self.ready = threading.Event()
        self.handed = queue.Queue()

    def add(self):
        self.total += 1

    def add_locked(self):
        with self.lock:
            self.total += 1

    def add_under_another_lock(self):
        with self.other:
            self.total += 1

    def look(self):
        return self.total

    def add_in_two_sections(self):
        with self.lock:
            seen = self.total
        with self.lock:
            self.total = seen + 1

    def reset_in_two_sections(self):
        with self.lock:
            high = self.total >= 0
        if high:
            with self.lock:
                self.total = 0

    def remember(self):
        with self.lock:
            known = "k" in self.items
        if not known:
            with self.lock:
                self.items["k"] = 42

    def make_once(self):
        with self.lock:
            made = self.items.get("k")
        if made is None:
            with self.lock:
                self.items["k"] = object()

    def publish(self):
        self.value = [1]
        self.ready.set()

    def await_value(self):
        self.ready.wait()
        return self.value[0]

    def hand_over(self):
        box = [0]
        box[0] += 1
        self.handed.put(box)

    def take_over(self):
        self.handed.get()[0] += 1

    def benign(self):
        return self.total  # freethread: benign, an estimate


def judged(*bodies, **settings):
    return explore(*bodies, setup=Stats, **{"races": "error", **settings})


def errors(result):
    return [finding for finding in result.findings if finding.severity == "error"]


def the_error(result, kind):
    assert result.verdict is Verdict.FAILED, str(result)
    (finding,) = errors(result)
    assert finding.kind == kind, str(result)
    assert finding.token, str(result)
    assert finding.reproduced == (10, 10), str(result)
    return finding


# --- races ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "random", "pct", "pos", "surw", "dfs", "dpor"])
def test_a_race_is_found_by_every_strategy(strategy):
    finding = the_error(judged(Stats.add_locked, Stats.look, strategy=strategy), "race")
    race = finding.evidence
    assert race.target == "Stats.total"
    assert {access.action for access in race.accesses} == {"read", "wrote"}
    held = {access.action: [use.name for use in access.holds] for access in race.accesses}
    assert held == {"read": [], "wrote": ["Stats.lock"]}


def make():
    return Stats()


def test_a_race_says_where_the_object_was_made():
    result = explore(Stats.add_locked, Stats.look, setup=make, races="error")
    assert the_error(result, "race").evidence.made.source == "return Stats()"


def test_one_race_is_one_finding():
    result = judged(Stats.add, Stats.add, Stats.add)
    the_error(result, "race")


def test_a_race_is_a_note_by_default_and_nothing_where_it_is_off():
    noted = judged(Stats.add_locked, Stats.look, races="note")
    assert noted.verdict is Verdict.PASSED
    assert [(each.kind, each.severity) for each in noted.findings] == [("race", "note")]
    assert not judged(Stats.add_locked, Stats.look, races="off").findings


@pytest.mark.parametrize(
    "bodies",
    [
        (Stats.add_locked, Stats.add_locked),
        (Stats.publish, Stats.await_value),
        (Stats.hand_over, Stats.take_over),
    ],
)
def test_what_is_ordered_is_no_race(bodies):
    result = judged(*bodies)
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings, str(result)


def test_two_different_locks_order_nothing():
    the_error(judged(Stats.add_locked, Stats.add_under_another_lock), "race")


def start_and_join(stats):
    thread = threading.Thread(target=stats.add)
    thread.start()
    thread.join()
    return stats.total


def start_and_look(stats):
    thread = threading.Thread(target=stats.add)
    thread.start()
    stats.look()
    thread.join()


def submit(stats):
    with ThreadPoolExecutor(1) as executor:
        executor.submit(stats.add).result()
        stats.total += 1


def test_a_thread_is_ordered_by_its_start_and_by_joining_it():
    assert not judged(start_and_join, threads=1).findings
    finding = the_error(judged(start_and_look, threads=1), "race")
    started = [access for access in finding.evidence.accesses if access.started_by is not None]
    assert [access.started_by for access in started] == ["start_and_look"]


def test_a_future_hands_over():
    result = judged(submit, threads=1)
    assert not result.findings, str(result)


def test_a_race_that_an_assertion_shows_too_is_told_once():
    result = judged(Stats.add, Stats.add, invariant=lambda stats: stats.total == 2)
    (finding,) = errors(result)
    assert finding.kind == "invariant"


def test_replaying_the_token_shows_the_race_again():
    bodies = Stats.add_locked, Stats.look
    token = the_error(judged(*bodies), "race").token
    again = replay(token, *bodies, setup=Stats, races="error")
    assert the_error(again, "race").token == token
    assert replay(token, *bodies, setup=Stats).verdict is Verdict.PASSED  # it is a note there


# --- atomicity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [Stats.add_in_two_sections, Stats.make_once])
def test_a_lock_that_is_let_go_of_in_between(body):
    finding = the_error(judged(body, threads=2), "atomicity")
    assert finding.evidence.violation.released == "Stats.lock"
    assert finding.evidence.preemptions == 1
    again = replay(finding.token, body, threads=2, setup=Stats, races="error")
    the_error(again, "atomicity")


@pytest.mark.parametrize("body", [Stats.reset_in_two_sections, Stats.remember])
def test_what_a_serial_order_leaves_too_is_none(body):
    result = judged(body, threads=2)
    assert not result.findings, str(result)


# --- predictions ----------------------------------------------------------------------------------


class Bank:
    def __init__(self):
        self.gate = threading.Lock()
        self.a = threading.Lock()
        self.b = threading.Lock()
        self.moved = 0

    def forth(self):
        for _ in range(20):
            self.moved += 0
        with self.a, self.b:
            self.moved += 1

    def back(self):
        with self.b, self.a:
            self.moved += 1

    def forth_behind_the_gate(self):
        with self.gate:
            self.forth()

    def back_behind_the_gate(self):
        with self.gate:
            self.back()


def once(*bodies):
    return explore(*bodies, setup=Bank, schedules=1)


def test_one_schedule_that_goes_well_foretells_a_deadlock_and_it_is_made_to_happen():
    result = once(Bank.forth, Bank.back)
    finding = the_error(result, "deadlock")
    assert "steering" in str(result)
    again = replay(finding.token, Bank.forth, Bank.back, setup=Bank)
    assert [each.kind for each in errors(again)] == ["deadlock"]


def test_a_gate_keeps_them_apart():
    result = once(Bank.forth_behind_the_gate, Bank.back_behind_the_gate)
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings, str(result)


def pass_on(bank):
    with bank.a, bank.b:
        bank.moved += 1
    thread = threading.Thread(target=bank.back)
    thread.start()
    thread.join()


def test_an_order_that_a_start_rules_out_is_not_even_a_note():
    result = explore(pass_on, setup=Bank, threads=1, schedules=1)
    assert not result.findings, str(result)


# --- what is called benign ------------------------------------------------------------------------


def test_a_comment_at_the_place_and_a_pattern_suppress():
    commented = judged(Stats.add_locked, Stats.benign)
    assert commented.verdict is Verdict.PASSED
    assert "1 suppressed as benign" in commented.scope
    matched = judged(Stats.add_locked, Stats.look, benign=["race:Stats.*"])
    assert matched.verdict is Verdict.PASSED
    assert "1 suppressed as benign" in matched.scope
    the_error(judged(Stats.add_locked, Stats.look, benign=["atomicity:*"]), "race")


def test_what_suppresses_nothing_is_told_of():
    alone = judged(Stats.benign, Stats.benign, benign=["race:Gone.*"])
    assert alone.verdict is Verdict.PASSED
    assert "suppressed" not in alone.scope
    pattern, comment = alone.suppressed
    assert pattern == "race:Gone.*"
    assert re.fullmatch(r".*test_judged\.py:\d+", comment)
    assert not any(alone.suppressed.values())
    assert not judged(Stats.add_locked, Stats.add_locked).suppressed


@pytest.mark.parametrize("pattern", ["", "deadlock:Bank.a", "race:"])
def test_a_pattern_that_means_nothing(pattern):
    with pytest.raises(SettingError, match="benign="):
        judged(Stats.add, benign=[pattern])


# --- what is left behind --------------------------------------------------------------------------


def keep(bank):
    bank.a.acquire()


def keep_and_let_go(bank):
    bank.a.acquire()
    bank.a.release()


def leave_a_pool(bank):
    executor = ThreadPoolExecutor(1)
    executor.submit(bank.back).result()
    bank.kept = executor


def close_the_pool(bank):
    leave_a_pool(bank)
    bank.kept.shutdown()


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (keep, "abandoned-lock", "thread 0 (keep) has ended and still holds bank.a"),
        (leave_a_pool, "leak", "started by leave_a_pool"),
    ],
)
def test_what_is_left_behind_is_a_note(body, kind, said):
    result = explore(body, setup=Bank, threads=1)
    assert result.verdict is Verdict.PASSED, str(result)
    (finding,) = result.findings
    assert (finding.kind, finding.severity) == (kind, "note")
    assert said in finding.message


@pytest.mark.parametrize("body", [keep_and_let_go, close_the_pool])
def test_what_is_given_back_is_none(body):
    result = explore(body, setup=Bank, threads=1)
    assert not result.findings, str(result)


# --- additions ------------------------------------------------------------------------------------


class Collected:
    def __init__(self):
        self.lists = {}
        self.seen = {"key"}

    def add_where_nothing_is(self):
        self.lists.setdefault("key", [])
        self.lists["key"].append(1)

    def replace(self):
        self.lists["key"] = []
        self.lists["key"].append(1)

    def add_what_is_there(self):
        self.seen.add("key")
        for _ in self.seen:
            pass

    def add_something_new(self):
        self.seen.add(object())
        for _ in self.seen:
            pass


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (Collected.add_where_nothing_is, Collected.replace),
        (Collected.add_what_is_there, Collected.add_something_new),
    ],
)
def test_to_add_what_is_there_changes_nothing(right, wrong):
    assert not errors(explore(right, setup=Collected, races="error"))
    assert errors(explore(wrong, setup=Collected, races="error"))


class Point(NamedTuple):
    x: int


def look_at(points):
    return points[Point(0)]


def move(points):
    points[Point(0)] = "elsewhere"


def move_another(points):
    points[Point(1)] = "elsewhere"


def test_named_tuples_are_told_apart_as_keys():
    def setup():
        return {Point(0): "here", Point(1): "there"}

    assert not errors(explore(look_at, move_another, setup=setup, races="error"))
    the_error(explore(look_at, move, setup=setup, races="error"), "race")


# --- what is looked at is the user's --------------------------------------------------------------


class Private:
    """Nobody may ask it anything."""

    value = 0

    @property
    def __class__(self):
        raise PermissionError


class Closed(ModuleType):
    def __getattribute__(self, name):
        raise PermissionError(name)


def count_in_an_object(private):
    private.value += 1


def count_in_a_namespace(namespace):
    namespace["value"] += 1


def test_objects_are_not_asked_for_their_class(monkeypatch):
    monkeypatch.setitem(sys.modules, "closed", Closed("closed"))
    for body, setup in [
        (count_in_an_object, Private),
        (count_in_a_namespace, lambda: {"__name__": "closed", "value": 0}),
    ]:
        the_error(explore(body, setup=setup, races="error"), "race")
