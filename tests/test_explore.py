"""User stories of `explore` and `replay`: what is found, how it is told, and how it comes again."""

from __future__ import annotations

import gc
import importlib.util
import os
import queue
import random
import re
import signal
import sys
import sysconfig
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_freethread import (
    SettingError,
    ThreadSafetyError,
    Verdict,
    explore,
    exploring,
    interpreter,
    replay,
    suspecting,
)
from pytest_freethread.execution import baton, carriers, kernel
from pytest_freethread.instrument import shadows, swap
from pytest_freethread.scheduling import STRATEGIES, decode


class Counter:
    def __init__(self):
        self.value = 0
        self.lock = threading.Lock()


def increment(counter):
    counter.value += 1


def increment_locked(counter):
    with counter.lock:
        counter.value += 1


def increment_locked_5_times(counter):
    for _ in range(5):
        with counter.lock:
            counter.value += 1


def is_two(counter):
    return counter.value == 2


def lost_update(**settings):
    return explore(increment, increment, setup=Counter, invariant=is_two, **settings)


def the_finding(result, kind):
    assert result.verdict is Verdict.FAILED, str(result)
    (finding,) = (each for each in result.findings if each.severity == "error")
    assert (finding.kind, finding.severity) == (kind, "error"), str(result)
    assert finding.reproduced == (10, 10), str(result)
    return finding


def is_exhausted(result):
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings
    assert "every interleaving" in result.scope
    return result.exhaustive


def without_times(report):
    report = re.sub(r"\d+ ms", "N ms", str(report))
    return re.sub(r"in \d+\.\d+ s", "in N s", report)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Make a module of a text, as the file `bank.py` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(text):
        path = Path("bank.py").absolute()
        path.write_text(textwrap.dedent(text))
        spec = importlib.util.spec_from_file_location("bank", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "bank", module)
        spec.loader.exec_module(module)
        return module

    return load


# --- what is found --------------------------------------------------------------------------------


def test_a_lost_update_is_found_and_shrunk_to_one_preemption():
    result = lost_update()
    finding = the_finding(result, "invariant")
    assert finding.evidence.preemptions == 1
    assert re.fullmatch(r"ft1:(0x\d+\.1x\d+\.0x\d+|1x\d+\.0x\d+\.1x\d+)", finding.token)
    assert finding.token in str(result)
    with pytest.raises(ThreadSafetyError, match="invariant"):
        result.raise_for_verdict()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_finds_a_lost_update(strategy):
    finding = the_finding(lost_update(strategy=strategy), "invariant")
    assert finding.evidence.preemptions == 1


def test_the_same_body_runs_in_as_many_threads_as_wanted():
    def increments_by(number):
        return explore(
            increment_locked,
            setup=Counter,
            threads=number,
            invariant=lambda counter: counter.value == number,
        )

    assert is_exhausted(increments_by(1))
    assert is_exhausted(increments_by(2))
    assert is_exhausted(increments_by(3))


def test_the_search_of_a_locked_counter_is_exhaustive_and_optimal():
    result = explore(
        increment_locked_5_times,
        threads=2,
        setup=Counter,
        invariant=lambda counter: counter.value == 10,
        strategy="dpor",
    )
    assert is_exhausted(result)
    assert result.executions == 252  # 10 over 5: the orders in which the lock is taken


@pytest.mark.parametrize("strategy", ["auto", "dfs", "dpor"])
def test_a_small_correct_program_is_exhausted(strategy):
    result = explore(
        increment_locked, threads=2, setup=Counter, invariant=is_two, strategy=strategy
    )
    assert is_exhausted(result)


@pytest.mark.parametrize("strategy", ["random", "pct", "pos", "surw"])
def test_sampling_is_never_exhaustive(strategy):
    result = explore(increment_locked, threads=2, setup=Counter, strategy=strategy, schedules=50)
    assert result.verdict is Verdict.PASSED
    assert (result.executions, result.exhaustive) == (50, False)


def test_a_search_that_is_cut_short_passes_as_bounded():
    result = explore(
        increment_locked_5_times, threads=2, setup=Counter, strategy="dpor", schedules=3
    )
    assert result.verdict is Verdict.PASSED
    assert (result.executions, result.exhaustive) == (3, False)
    assert "bounded" in result.scope
    assert "every interleaving" not in str(result)


def test_a_search_with_few_preemptions_is_never_exhaustive():
    result = lost_update(preemptions=0)
    assert result.verdict is Verdict.PASSED
    assert not result.exhaustive
    assert "at most 0 preemptions" in result.scope
    the_finding(lost_update(preemptions=1), "invariant")


class Account:
    def __init__(self):
        self.first = threading.Lock()
        self.second = threading.Lock()


def first_then_second(account):
    with account.first, account.second:
        pass


def second_then_first(account):
    with account.second, account.first:
        pass


@pytest.mark.parametrize("strategy", ["auto", "dfs", "dpor"])
@pytest.mark.parametrize(
    "bodies", [(first_then_second, second_then_first), (second_then_first, first_then_second)]
)
def test_locks_taken_in_two_orders_are_a_deadlock(bodies, strategy):
    result = explore(*bodies, setup=Account, strategy=strategy)
    finding = the_finding(result, "deadlock")
    waiting = finding.evidence.blocked
    assert {state.thread for state in waiting} == {0, 1}
    assert {use.identity for state in waiting for use in state.holds} == {
        state.waits_for.identity for state in waiting
    }


def test_locks_taken_in_one_order_are_none():
    assert is_exhausted(explore(first_then_second, first_then_second, setup=Account))


class Mailbox:
    def __init__(self):
        self.condition = threading.Condition()
        self.letter = None


def look_then_wait(box):
    if box.letter is None:
        with box.condition:
            box.condition.wait()


def wait_while_empty(box):
    with box.condition:
        while box.letter is None:
            box.condition.wait()


def post(box):
    with box.condition:
        box.letter = "hello"
        box.condition.notify()


@pytest.mark.parametrize("strategy", ["auto", "dfs", "dpor"])
def test_a_wake_up_before_the_wait_is_lost(strategy):
    result = explore(look_then_wait, post, setup=Mailbox, strategy=strategy)
    the_finding(result, "lost-wakeup")
    assert "wait" in str(result)
    assert is_exhausted(explore(wait_while_empty, post, setup=Mailbox, strategy=strategy))


def wait_for_value(counter):
    while not counter.value:
        pass


def test_a_loop_that_waits_for_another_thread_ends():
    result = explore(wait_for_value, increment, setup=Counter, schedules=50)
    assert result.verdict is Verdict.PASSED, str(result)[:2000]


class Turnstile:
    """Of those who pass, each tries again and again until it may."""

    def __init__(self):
        self.lock = threading.Lock()
        self.queue = queue.SimpleQueue()
        self.queue.put("key")
        self.passed = self.tries = 0
        self.inside = False


def try_the_lock(turnstile):
    while not turnstile.lock.acquire(blocking=False):
        pass
    turnstile.passed += 1
    turnstile.lock.release()


def count_the_tries(turnstile):
    while not turnstile.lock.acquire(blocking=False):
        turnstile.tries += 1
    turnstile.passed += 1
    turnstile.lock.release()


def ask_for_the_key(turnstile):
    while True:
        try:
            key = turnstile.queue.get_nowait()
            break
        except queue.Empty:
            continue
    turnstile.passed += 1
    turnstile.queue.put(key)


def look_under_the_lock(turnstile):
    while True:
        with turnstile.lock:
            if not turnstile.inside:
                turnstile.inside = True
                break
    turnstile.passed += 1
    with turnstile.lock:
        turnstile.inside = False


@pytest.mark.parametrize("strategy", ["dpor", "dfs", "random", "pct", "pos", "surw"])
@pytest.mark.parametrize(
    "body", [try_the_lock, count_the_tries, ask_for_the_key, look_under_the_lock]
)
def test_who_tries_again_and_again_lets_others_go_on(body, strategy):
    result = explore(
        body,
        setup=Turnstile,
        invariant=lambda turnstile: turnstile.passed == 3,
        threads=3,
        strategy=strategy,
        schedules=20,
        seconds=None,
    )
    assert result.verdict is Verdict.PASSED, str(result)


def take_and_keep(turnstile):
    turnstile.lock.acquire()


def test_who_tries_in_vain_for_ever_is_in_a_livelock():
    result = explore(take_and_keep, try_the_lock, setup=Turnstile, strategy="pct", seconds=None)
    the_finding(result, "livelock")


@pytest.mark.usefixtures("short_is_long")
@pytest.mark.parametrize("strategy", ["auto", "pct"])
def test_who_counts_the_tries_for_ever_may_only_take_long(strategy):
    result = explore(
        take_and_keep, count_the_tries, setup=Turnstile, strategy=strategy, seconds=0.1
    )
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "the threads, one after the other, came to no end in" in result.scope


@pytest.fixture
def short_is_long(monkeypatch):
    monkeypatch.setattr(exploring, "_MOST_STEPS", 4_000)
    monkeypatch.setattr(suspecting, "REPEATABLE", 4_000)
    monkeypatch.setattr(exploring, "_STEPS", 200)


class Guarded:
    def __init__(self):
        self.lock = threading.Lock()
        self.value = 0


def count_long(guarded):
    for _ in range(500):
        with guarded.lock:
            guarded.value += 1


def count_long_and_race(guarded):
    count_long(guarded)
    guarded.value += 1


def count_long_and_fail(guarded):
    count_long(guarded)
    raise ValueError(guarded.value)


@pytest.mark.usefixtures("short_is_long")
def test_a_long_execution_is_judged_and_nothing_else_is_tried():
    result = explore(count_long, setup=Guarded, races="error")
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.executions == 1
    assert "one execution has 5,000 steps, too many for others to be tried" in result.scope


@pytest.mark.usefixtures("short_is_long")
def test_a_long_execution_is_all_that_was_asked_for():
    result = explore(count_long, setup=Guarded, races="error", schedules=1, seconds=60)
    assert result.verdict is Verdict.PASSED


@pytest.mark.usefixtures("short_is_long")
def test_a_race_at_the_end_of_a_long_execution_is_told_though_not_run_again():
    result = explore(count_long_and_race, setup=Guarded, races="error", schedules=1, seconds=60)
    [finding] = [each for each in result.findings if "not reproduced" in each.message]
    assert (finding.kind, finding.severity) == ("race", "note")
    assert "it comes after the first 4,000 steps of its schedule" in finding.message


@pytest.mark.usefixtures("short_is_long")
@pytest.mark.parametrize("races", ["off", "note"])
def test_what_fails_at_the_end_of_a_long_execution_fails_again_in_a_second_one(races):
    result = explore(count_long_and_fail, setup=Guarded, races=races, schedules=1, seconds=60)
    [finding] = [each for each in result.findings if each.severity == "error"]
    assert (finding.kind, finding.reproduced) == ("exception", (1, 1))
    again = replay(finding.token, count_long_and_fail, threads=2, setup=Guarded)
    assert again.findings[0].message == finding.message


def count_on(state):
    for _ in range(60):
        state["value"] = state["value"] + 1


def is_nothing(state):
    return state["value"] == 0


@pytest.mark.usefixtures("short_is_long")
def test_the_token_of_a_long_schedule_is_no_livelock():
    program = {"setup": lambda: {"value": 0}, "invariant": is_nothing}
    finding = the_finding(explore(count_on, count_on, schedules=1, **program), "invariant")
    assert len(decode(finding.token)) > 200
    again = replay(finding.token, count_on, count_on, **program)
    assert [each.kind for each in again.findings if each.severity == "error"] == ["invariant"]


def test_a_loop_that_waits_for_nobody_is_a_livelock():
    result = explore(wait_for_value, setup=Counter, schedules=50)
    the_finding(result, "livelock")


def test_an_inconclusive_exploration_says_why():
    result = explore(lambda: None, schedules=50)
    assert str(result).startswith("INCONCLUSIVE: no step was seen: ")


class Resource:
    def __init__(self):
        self.lock = threading.Lock()
        self.open = True

    def is_open(self):
        with self.lock:
            return self.open

    def read(self):
        with self.lock:
            if not self.open:
                raise ValueError("read after close")


def use(resource):
    if resource.is_open():
        resource.read()


def close(resource):
    with resource.lock:
        resource.open = False


@pytest.mark.parametrize("strategy", ["auto", "dfs", "dpor"])
@pytest.mark.parametrize("bodies", [(use, close), (close, use)])
def test_a_use_after_close_is_found_though_each_step_is_locked(bodies, strategy):
    result = explore(*bodies, setup=Resource, strategy=strategy)
    finding = the_finding(result, "exception")
    assert "Check-then-act on Resource.open" in finding.message
    assert "ValueError: read after close" in str(result)


class Registry:
    def __init__(self):
        self.made = []
        self.known = {}


def register(registry):
    if "key" not in registry.known:
        registry.known["key"] = object()
        registry.made.append("key")


@pytest.mark.parametrize("strategy", ["auto", "dfs", "dpor"])
def test_not_in_is_a_read(strategy):
    result = explore(
        register,
        threads=2,
        setup=Registry,
        invariant=lambda registry: registry.made == ["key"],
        strategy=strategy,
    )
    assert the_finding(result, "invariant").evidence.preemptions == 1


def put(jobs):
    jobs.put("job")


def get(jobs):
    assert jobs.get() == "job"


@pytest.mark.parametrize("make", [queue.Queue, queue.LifoQueue, queue.SimpleQueue])
@pytest.mark.parametrize("bodies", [(get, put), (put, get)])
def test_a_queue_may_be_read_before_it_is_filled(bodies, make):
    assert is_exhausted(explore(*bodies, setup=make))


def test_a_queue_that_is_filled_too_rarely_leaves_somebody_waiting():
    result = explore(get, get, put, setup=queue.Queue)
    the_finding(result, "lost-wakeup")
    assert "Queue.get" in str(result)


# --- threads that the code under test starts ------------------------------------------------------


def start_two(counter, work):
    threads = [threading.Thread(target=work, args=(counter,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def submit_two(counter, work):
    with ThreadPoolExecutor(max_workers=2) as pool:
        for future in [pool.submit(work, counter) for _ in range(2)]:
            future.result()


@pytest.mark.parametrize("start", [start_two, submit_two])
def test_threads_that_a_body_starts_are_explored_too(start):
    def incremented(work):
        return explore(
            lambda counter: start(counter, work), setup=Counter, invariant=is_two, threads=1
        )

    the_finding(incremented(increment), "invariant")
    result = incremented(increment_locked)
    assert result.verdict is Verdict.PASSED, str(result)


WORKER = """
    import threading

    class Worker(threading.Thread):
        def __init__(self, work, *args):
            super().__init__()
            self.work, self.args, self.result = work, args, None

        def run(self):
            self.result = self.work(*self.args)
"""


def test_a_thread_subclass_of_another_module_is_no_false_alarm(load):
    worker = load(WORKER).Worker

    def run_two(counter, work):
        workers = [worker(work, counter) for _ in range(2)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        assert [each.result for each in workers] == [None, None]

    def incremented(work):
        return explore(
            lambda counter: run_two(counter, work), setup=Counter, invariant=is_two, threads=1
        )

    result = incremented(increment_locked)
    assert result.verdict is Verdict.PASSED, str(result)
    the_finding(incremented(increment), "invariant")


LOCK, OTHER = threading.Lock(), threading.RLock()
TOTAL = {"value": 0}


def add_to_total():
    with LOCK:
        TOTAL["value"] += 1


def lock_then_other():
    with LOCK, OTHER:
        pass


def other_then_lock():
    with OTHER, LOCK:
        pass


def test_a_lock_that_is_older_than_the_search_is_modelled():
    assert is_exhausted(explore(add_to_total, threads=2))
    the_finding(explore(lock_then_other, other_then_lock), "deadlock")
    assert not LOCK.locked()
    with OTHER:
        pass


# --- exceptions -----------------------------------------------------------------------------------


def fail(error):
    def body(_state=None):
        raise error

    return body


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("no")])
def test_an_exception_that_escapes_a_body_is_a_finding(error):
    result = explore(fail(error), increment, setup=Counter)
    finding = the_finding(result, "exception")
    assert type(error).__name__ in finding.message
    assert finding.evidence.failure.phase == "body"


@pytest.mark.parametrize("phase", ["setup", "invariant"])
def test_an_exception_in_setup_or_invariant_is_a_finding(phase):
    result = explore(increment, **{"setup": Counter, phase: fail(ValueError("no way"))})
    finding = the_finding(result, "exception")
    assert finding.message == f"{phase}: ValueError: no way"
    assert finding.evidence.failure.phase == phase


def test_a_failed_assertion_in_the_invariant_says_what_was_wrong():
    def check(counter):
        assert counter.value == 2, f"it is {counter.value}"

    result = explore(increment, setup=Counter, invariant=check)
    the_finding(result, "invariant")
    assert "it is 1" in str(result)


def test_a_search_without_setup_gives_the_bodies_nothing():
    calls = []
    result = explore(lambda: calls.append(1), lambda: calls.append(2), invariant=lambda: None)
    assert result.verdict is Verdict.PASSED
    assert {1, 2} == set(calls)


# --- replay ---------------------------------------------------------------------------------------


def test_a_token_replays_the_failure():
    found = the_finding(lost_update(), "invariant")
    again = replay(found.token, increment, increment, setup=Counter, invariant=is_two)
    assert again.verdict is Verdict.FAILED
    (finding,) = again.findings
    assert (finding.kind, finding.token) == ("invariant", found.token)
    assert finding.evidence.moves == found.evidence.moves
    assert again.executions == 1


def test_a_token_of_a_deadlock_replays_it():
    found = the_finding(explore(first_then_second, second_then_first, setup=Account), "deadlock")
    again = replay(found.token, first_then_second, second_then_first, setup=Account)
    assert [finding.kind for finding in again.findings] == ["deadlock"]


def test_a_replay_passes_once_the_bug_is_repaired(load):
    bank = load(BANK)
    found = explore(bank.deposit, threads=2, setup=bank.Bank, invariant=bank.holds)
    token = the_finding(found, "invariant").token
    bank = load(BANK.replace("bank.balance = balance + 1", "bank.balance += 0"))
    again = replay(token, bank.deposit, threads=2, setup=bank.Bank)
    assert again.verdict is Verdict.PASSED, str(again)


def test_a_token_outlives_an_edit_elsewhere_in_the_file(load):
    bank = load(BANK)
    found = explore(bank.deposit, threads=2, setup=bank.Bank, invariant=bank.holds)
    token = the_finding(found, "invariant").token
    bank = load("def unrelated(bank):\n    return [bank.balance] * 2\n\n" + textwrap.dedent(BANK))
    again = replay(token, bank.deposit, threads=2, setup=bank.Bank, invariant=bank.holds)
    assert [finding.kind for finding in again.findings] == ["invariant"], str(again)


@pytest.mark.parametrize(
    ("token", "step"), [("ft1:0x900.1x2", "step 2:"), ("ft1:0x1.7x1", "step 1:")]
)
def test_a_token_of_another_program_says_where_it_went_another_way(token, step):
    again = replay(token, increment, increment, setup=Counter, invariant=is_two)
    assert again.verdict is Verdict.INCONCLUSIVE
    assert step in str(again)
    assert "expected thread" in str(again)
    with pytest.raises(ThreadSafetyError, match="diverged"):
        again.raise_for_verdict()


@pytest.mark.parametrize("token", ["nonsense", "", "ft2:0x1", "ft1:0y1", "ft1:0x0", "ft1:0x1..1x1"])
def test_a_token_that_is_none_is_an_error(token):
    with pytest.raises(SettingError, match=re.escape(repr(token))):
        replay(token, increment, setup=Counter)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("strategy", "nope"),
        ("schedules", 0),
        ("seconds", 0),
        ("seed", -1),
        ("threads", 0),
        ("preemptions", -1),
        ("races", "perhaps"),
        ("deadline", -1.0),
        ("include", "json"),
    ],
)
def test_a_setting_that_means_nothing_is_named(setting, value):
    with pytest.raises(SettingError, match=re.escape(f"{setting}={value!r}")):
        lost_update(**{setting: value})


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(SettingError, match="'no_such_module'"):
        lost_update(include=["no_such_module"])


def test_there_has_to_be_something_to_run():
    with pytest.raises(SettingError, match="nothing to run"):
        explore(setup=Counter)


class Alternate:
    """Each thread in turn, as far as it can; one execution only."""

    exhausted = False

    def __init__(self):
        self.executions = self.ended = 0

    def begin(self):
        self.executions += 1
        return self.executions == 1

    def choose(self, enabled, current, pending):
        assert len(pending) >= len(enabled)
        return enabled[0] if current == enabled[-1] else enabled[-1]

    def end(self):
        self.ended += 1


def test_a_scheduler_may_be_the_users_own():
    scheduler = Alternate()
    result = lost_update(strategy=scheduler)
    finding = the_finding(result, "invariant")
    assert finding.evidence.found[:2] == (1, "Alternate")
    assert scheduler.ended == 1

    scheduler = Alternate()
    result = explore(increment_locked, setup=Counter, strategy=scheduler)
    assert result.verdict is Verdict.PASSED
    assert (result.executions, result.exhaustive, scheduler.executions) == (1, False, 2)


def test_the_same_seed_gives_the_same_report():
    def report(seed, strategy="auto"):
        return without_times(
            explore(
                increment,
                increment_locked_5_times,
                setup=Counter,
                invariant=lambda counter: counter.value == 6,
                strategy=strategy,
                seed=seed,
            )
        )

    for strategy in ("auto", "random", "pct", "pos", "surw"):
        assert report(7, strategy) == report(7, strategy)
    assert len({report(seed, "random") for seed in range(5)}) > 1


def test_without_a_seed_the_search_is_the_same_each_time():
    assert without_times(lost_update(strategy="random")) == without_times(
        lost_update(strategy="random", seed=0)
    )


# --- time and chance ------------------------------------------------------------------------------


def test_hours_pass_at_once_and_the_same_way_each_time():
    def nap(naps):
        began = time.monotonic()
        time.sleep(3600)
        naps.append(time.monotonic() - began)

    began = time.perf_counter()
    result = explore(nap, threads=2, setup=list, invariant=lambda naps: min(naps) >= 3600)
    assert result.verdict is Verdict.PASSED, str(result)
    assert time.perf_counter() - began < 3600


@pytest.mark.parametrize(("timeout", "outcomes"), [(0.05, {True, False}), (5, {True})])
def test_a_short_timeout_may_come_first_and_a_long_one_lets_others_run(timeout, outcomes):
    seen = set()

    def wait(event):
        seen.add(event.wait(timeout=timeout))

    result = explore(wait, threading.Event.set, setup=threading.Event)
    assert result.verdict is Verdict.PASSED, str(result)
    assert seen == outcomes
    assert result.exhaustive == (outcomes == {True})
    assert ("in which no timeout fires early" in result.scope) != result.exhaustive


def test_random_numbers_are_the_same_in_each_schedule():
    drawn = set()

    def draw():
        drawn.add(random.random())

    explore(draw, threads=1, schedules=20, strategy="random")
    assert len(drawn) == 1


# --- finalizers -----------------------------------------------------------------------------------
# On a free-threaded build they run in the thread that made their object, when that goes on.


class Journal:
    def __init__(self):
        self.lock = threading.Lock()
        self.lines = []

    def log(self, line):
        with self.lock:
            self.lines.append(line)


class Connection:
    def __init__(self, journal):
        self.journal = journal

    def __del__(self):
        self.journal.log("closed")


class Pool:
    def __init__(self):
        self.journal = Journal()
        self.idle = [Connection(self.journal)]
        self.expired = False


def expire(pool):
    pool.expired = True


def drop_under_the_lock(pool):
    with pool.journal.lock:
        if pool.expired:
            pool.idle.clear()


def drop_outside_of_the_lock(pool):
    with pool.journal.lock:
        dropped = pool.idle
        if pool.expired:
            pool.idle = []
    del dropped


def test_a_finalizer_that_wants_a_lock_of_its_thread_is_found():
    the_finding(explore(drop_under_the_lock, expire, setup=Pool), "deadlock")


def test_a_finalizer_that_finds_its_lock_free_is_none():
    result = explore(drop_outside_of_the_lock, expire, setup=Pool)
    assert (result.verdict, result.exhaustive) == (Verdict.PASSED, True), str(result)


class Guest(list):
    def __del__(self):
        (house,) = self
        house.left += 1


class House:
    def __init__(self):
        self.guests = []
        self.came = self.left = 0


def come(house):
    house.came += 1
    house.guests.append(Guest([house]))


def clear(house):
    house.guests.clear()


def are_in_or_have_left(house):
    return house.came == len(house.guests) + house.left


def test_what_a_thread_made_is_finalized_before_the_invariant_is_asked():
    result = explore(come, clear, setup=House, invariant=are_in_or_have_left)
    assert result.verdict is Verdict.PASSED, str(result)
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert result.exhaustive is not free_threaded
    assert ("finalizers ran beyond control" in str(result)) is free_threaded


def come_in_turn(house):
    with house.lock:
        come(house)


class LockedHouse(House):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_what_an_execution_leaves_is_no_part_of_the_next_one():
    result = explore(come_in_turn, come_in_turn, setup=LockedHouse, invariant=are_in_or_have_left)
    assert (result.verdict, result.exhaustive) == (Verdict.PASSED, True), str(result)
    finding = the_finding(
        explore(come, come, setup=House, invariant=are_in_or_have_left), "invariant"
    )
    assert finding.evidence.violation is not None


# --- afterwards -----------------------------------------------------------------------------------

MODULES = (threading, time, queue, random)
FUNCTIONS = (increment, increment_locked, is_two, Counter.__init__, queue.Queue.get, fail)


def everything():
    """Whatever a search may have changed and has to restore."""
    names = [
        (module.__name__, name, id(v)) for module in MODULES for name, v in vars(module).items()
    ]
    classes = [
        (name, id(v)) for c in (threading.Thread, queue.Queue) for name, v in vars(c).items()
    ]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    codes = [function.__code__ for function in FUNCTIONS]
    return names, classes, codes, cores, gc.isenabled(), threading.active_count()


class Interrupting(Alternate):
    def choose(self, *_):
        raise KeyboardInterrupt


def interrupted_by_the_scheduler():
    with pytest.raises(KeyboardInterrupt):
        lost_update(strategy=Interrupting())


def interrupted_by_ctrl_c():
    def press(counter):
        increment(counter)
        os.kill(os.getpid(), signal.SIGINT)
        increment(counter)

    with pytest.raises(KeyboardInterrupt):
        explore(press, setup=Counter, strategy="random", schedules=10_000_000)


def refused():
    with pytest.raises(SettingError):
        lost_update(include=["no_such_module"])


@pytest.mark.parametrize(
    "search",
    [
        lost_update,
        lambda: explore(increment_locked, setup=Counter),
        lambda: explore(first_then_second, second_then_first, setup=Account),
        lambda: explore(fail(SystemExit()), fail(KeyboardInterrupt())),
        lambda: explore(increment, setup=fail(ValueError())),
        lambda: replay("ft1:0x900", increment, setup=Counter),
        interrupted_by_the_scheduler,
        pytest.param(
            interrupted_by_ctrl_c,
            marks=pytest.mark.skipif(os.name != "posix", reason="os.kill() ends a process"),
        ),
        refused,
    ],
    ids=[
        *("failed", "passed", "deadlock", "exceptions", "setup", "diverged"),
        *("interrupted", "ctrl-c", "refused"),
    ],
)
def test_nothing_is_left_changed(search):
    lost_update()  # so that the harness's own threads are there already
    before = everything()
    search()
    assert everything() == before


@pytest.mark.skipif(os.name != "posix", reason="os.kill() ends a process")
def test_an_interrupt_while_the_last_thread_ends_breaks_nothing(monkeypatch):
    count, close = kernel.Kernel._count, baton.Baton.close
    closed, interrupted = baton.Baton(timed=True), []

    def count_late(self, index):
        count(self, index)
        if self.tasks[index].ended and not interrupted:  # it will hand over next
            interrupted.append(index)
            os.kill(os.getpid(), signal.SIGINT)
            closed.take_within(0.1)

    def close_and_tell(self):
        close(self)
        if self is not closed:
            closed.give()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kernel.Kernel, "_count", count_late)
        patch.setattr(baton.Baton, "close", close_and_tell)
        explore(increment, setup=Counter, threads=1)
    closed.close()
    assert all(carrier.thread.is_alive() for carrier in carriers._idle)
    assert explore(increment_locked, setup=Counter).exhaustive


def test_a_carrier_that_has_ended_is_not_hired(monkeypatch):
    def end(_task):
        raise SystemExit

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    carrier = carriers.hire(eventfd=baton.HAS_EVENTFD)
    carrier.perform, carrier.task = end, shadows.Task(0, end)
    carrier.baton.give()
    carrier.thread.join()
    carriers.dismiss([carrier])
    assert explore(increment_locked, setup=Counter).exhaustive


# --- the report -----------------------------------------------------------------------------------

BANK = """
    import threading

    class Bank:
        def __init__(self):
            self.balance = 0
            self.lock_a = threading.Lock()
            self.lock_b = threading.Lock()

    def deposit(bank):
        balance = bank.balance
        bank.balance = balance + 1

    def transfer(bank):
        with bank.lock_a:
            with bank.lock_b:
                bank.balance -= 1

    def refund(bank):
        with bank.lock_b:
            with bank.lock_a:
                bank.balance += 1

    def holds(bank):
        return bank.balance == 2
"""


def test_putting_the_probes_in_is_no_part_of_the_budget(monkeypatch):
    compiled, now = swap._compiled, interpreter.monotonic
    elapsed = 0.0

    def slowly(*args):
        nonlocal elapsed
        elapsed += 1.2
        return compiled(*args)

    monkeypatch.setattr(swap, "_compiled", slowly)
    monkeypatch.setattr(interpreter, "monotonic", lambda: now() + elapsed)
    result = explore(increment_locked, increment_locked, setup=Counter, seconds=1.0)
    assert result.exhaustive
    assert re.search(r" s \(\d+\.\d s of it to put the probes in\), every ", result.scope)
    monkeypatch.undo()
    assert "of it" not in lost_update().scope


def test_the_report_of_a_lost_update(load):
    bank = load(BANK)
    result = explore(bank.deposit, threads=2, setup=bank.Bank, invariant=bank.holds)
    assert without_times(result) == textwrap.dedent("""\
        FAILED: explored 4 schedules, 16 steps in N s, bounded by its budget (auto, seed 0)

        error: Lost update on Bank.balance: both threads read it before either wrote it back.

            The invariant returned False.

          schedule 4 · N ms · plain · 1 preemption, the fewest found · reproduced 10/10

                thread 0  deposit                              thread 1  deposit
                ---------------------------------------------  ---------------------------------------------
             1  bank.py:11  balance = bank.balance      → 0
                preempted
             2                                                 bank.py:11  balance = bank.balance      → 0
             3                                                 bank.py:12  bank.balance = balance + 1  0 → 1
                                                               done
             4  bank.py:12  bank.balance = balance + 1  1 → 1   overwrites step 3
                done

          Steps 3 and 4 are not ordered by any lock. Usual repair: hold one lock from the read
          (bank.py:11) to the write (bank.py:12).

          Again:  replay("ft1:0x1.1x2.0x1", deposit, threads=2, ...)
    """).rstrip("\n")  # fmt: skip


def test_the_report_of_a_deadlock(load):
    bank = load(BANK)
    result = explore(bank.transfer, bank.refund, setup=bank.Bank)
    assert without_times(result) == textwrap.dedent("""\
        FAILED: explored 4 schedules, 54 steps in N s, bounded by its budget (auto, seed 0)

        error: Deadlock: thread 0 and thread 1 each hold the lock that the other waits for.

          schedule 4 · N ms · plain · 1 preemption, the fewest found · reproduced 10/10

                thread 0  transfer                thread 1  refund
                --------------------------------  --------------------------------
             1  bank.py:15  acquires bank.lock_a
                preempted
             2                                    bank.py:20  acquires bank.lock_b
                                                  waits for Bank.lock_a, held by thread 0

          (4 steps that touch nothing shared are not shown)

          thread 0  holds      Bank.lock_a  taken at bank.py:15  bank.lock_a
                    waits for  Bank.lock_b  at bank.py:16        bank.lock_b
          thread 1  holds      Bank.lock_b  taken at bank.py:20  bank.lock_b
                    waits for  Bank.lock_a  at bank.py:21        bank.lock_a

          Usual repair: take these locks in one order everywhere (here: Bank.lock_a, then Bank.lock_b).

          Again:  replay("ft1:0x3.1x3", transfer, refund, ...)
    """).rstrip("\n")  # fmt: skip
