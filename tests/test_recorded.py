"""Races in free runs: recorded, met, told; and nothing where threads hand over what they share."""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread import Verdict, stress
from pytest_freethread.execution import recorder

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 8


def races(result, severity="error"):
    return [each for each in result.findings if (each.kind, each.severity) == ("race", severity)]


# --- handing over ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """How one thread tells another one that it has written something."""

    make: Callable[[], Any]
    send: Callable[[Any], object]
    receive: Callable[[Any], object]


def locked():
    lock = threading.Lock()
    lock.acquire()
    return lock


def a_queue_with_an_item():
    items = queue.Queue()
    items.put(None)
    return items


def notify(condition):
    with condition:
        condition.ready = True
        condition.notify()


def wait_for_notice(condition):
    with condition:
        while not getattr(condition, "ready", False):
            condition.wait()


def wait_for_ready(condition):
    with condition:
        condition.wait_for(lambda: getattr(condition, "ready", False))


def poll(ready):
    while not ready():
        pass


def finish(items):
    items.get()
    items.task_done()


def hold_up(lock):
    """Whoever cannot take a lock knows that somebody else has it."""
    lock.acquire()


def until_taken(lock):
    while lock.acquire(blocking=False):
        lock.release()


SOME = {
    "lock": HandOver(make=locked, send=lambda x: x.release(), receive=lambda x: x.acquire()),
    "lock, polled": HandOver(
        make=locked, send=lambda x: x.release(), receive=lambda x: poll(lambda: not x.locked())
    ),
    "lock, tried": HandOver(make=threading.Lock, send=hold_up, receive=until_taken),
    "lock, with a timeout": HandOver(
        make=locked,
        send=lambda x: x.release(),
        receive=lambda x: poll(lambda: x.acquire(timeout=1)),
    ),
    "condition": HandOver(make=threading.Condition, send=notify, receive=wait_for_notice),
    "condition, wait_for": HandOver(make=threading.Condition, send=notify, receive=wait_for_ready),
    "condition over a lock": HandOver(
        make=lambda: threading.Condition(threading.Lock()), send=notify, receive=wait_for_notice
    ),
    "semaphore": HandOver(
        make=lambda: threading.Semaphore(0),
        send=lambda x: x.release(),
        receive=lambda x: x.acquire(),
    ),
    "event": HandOver(make=threading.Event, send=lambda x: x.set(), receive=lambda x: x.wait()),
    "event, polled": HandOver(
        make=threading.Event, send=lambda x: x.set(), receive=lambda x: poll(x.is_set)
    ),
    "barrier": HandOver(
        make=lambda: threading.Barrier(2), send=lambda x: x.wait(), receive=lambda x: x.wait()
    ),
    "queue": HandOver(make=queue.Queue, send=lambda x: x.put(1), receive=lambda x: x.get()),
    "bounded queue": HandOver(
        make=lambda: queue.Queue(1), send=lambda x: x.put(1), receive=lambda x: x.get(timeout=5)
    ),
    "stack": HandOver(make=queue.LifoQueue, send=lambda x: x.put(1), receive=lambda x: x.get()),
    "heap": HandOver(make=queue.PriorityQueue, send=lambda x: x.put(1), receive=lambda x: x.get()),
    "simple queue": HandOver(
        make=queue.SimpleQueue, send=lambda x: x.put(1), receive=lambda x: x.get()
    ),
    "simple queue, polled": HandOver(
        make=queue.SimpleQueue, send=lambda x: x.put(1), receive=lambda x: poll(x.qsize)
    ),
    "queue, polled": HandOver(
        make=queue.Queue, send=lambda x: x.put(1), receive=lambda x: poll(lambda: not x.empty())
    ),
    "task_done and join": HandOver(
        make=a_queue_with_an_item, send=finish, receive=lambda x: x.join()
    ),
    "future": HandOver(
        make=Future, send=lambda x: x.set_result(1), receive=lambda x: x.result(timeout=5)
    ),
    "future, polled": HandOver(
        make=Future, send=lambda x: x.set_result(1), receive=lambda x: poll(x.done)
    ),
}

BEFORE = {name: [each.make() for _ in range(ROUNDS)] for name, each in SOME.items()}
"""Made when nobody was recorded."""


def handed_over(name, when, *, late):
    """Two threads that use one after the other what they share; or the second one too early."""
    how, before = SOME[name], iter(BEFORE[name])

    def setup():
        return SimpleNamespace(
            value=0, means=how.make() if when == "during the run" else next(before)
        )

    def give(state):
        state.value = 1
        how.send(state.means)

    def take(state):
        if late:
            how.receive(state.means)
        state.value += 1
        if not late:
            how.receive(state.means)

    return stress(give, take, setup=setup, rounds=ROUNDS, races="error")


@pytest.mark.parametrize("when", ["during the run", "before"])
@pytest.mark.parametrize("name", SOME)
def test_what_is_handed_over_is_no_race(name, when):
    result = handed_over(name, when, late=True)
    assert result.findings == (), str(result)


@pytest.mark.parametrize("name", SOME)
def test_what_is_taken_before_it_was_handed_over_is_one(name):
    (race,) = races(handed_over(name, "during the run", late=False))
    assert race.message == "data race on SimpleNamespace.value"


GUARDS = {
    "lock": threading.Lock,
    "reentrant lock": threading.RLock,
    "condition": threading.Condition,
    "semaphore": lambda: threading.Semaphore(1),
    "bounded semaphore": lambda: threading.BoundedSemaphore(1),
}
GUARDS_BEFORE = {name: make() for name, make in GUARDS.items()}


@pytest.mark.parametrize("when", ["during the run", "before"])
@pytest.mark.parametrize("name", GUARDS)
def test_what_is_guarded_is_no_race_and_half_of_it_is_one(name, when):
    def setup():
        guard = GUARDS[name]() if when == "during the run" else GUARDS_BEFORE[name]
        return SimpleNamespace(value=0, guard=guard)

    def guarded(state):
        with state.guard:
            state.value += 1

    def by_hand(state):
        state.guard.acquire()
        try:
            state.value += 1
        finally:
            state.guard.release()

    def twice(state):
        if name == "reentrant lock":
            with state.guard:
                guarded(state)
                state.value += 1
        else:
            guarded(state)

    def bare(state):
        state.value += 1

    result = stress(guarded, by_hand, twice, setup=setup, rounds=ROUNDS, races="error")
    assert result.findings == (), str(result)
    (race,) = races(stress(guarded, bare, setup=setup, rounds=ROUNDS, races="error"))
    assert race.message == "data race on SimpleNamespace.value"
    held = [use.name for each in race.evidence.accesses for use in each.holds]
    # What holds the lock is named by its class where its attribute is stored by other code, too.
    assert [each.rpartition(".")[2] for each in held] == ([] if "semaphore" in name else ["guard"])


def started_and_joined(state):
    state.value = 1
    thread = threading.Thread(target=bump, args=(state,))
    thread.start()
    thread.join()
    state.value += 1


def started_and_polled(state):
    thread = threading.Thread(target=bump, args=(state,))
    thread.start()
    poll(lambda: not thread.is_alive())
    state.value += 1


def timed(state):
    state.value = 1
    timer = threading.Timer(0, bump, args=(state,))
    timer.start()
    timer.join()
    state.value += 1


def pooled(state):
    state.value = 1
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bump, state).result()
        state.value += 1
        list(pool.map(bump, [state]))
        state.value += 1
        pool.submit(bump, state)
    state.value += 1


def bump(state):
    state.value += 1


def not_joined(state):
    thread = threading.Thread(target=bump, args=(state,))
    thread.start()
    state.value += 1
    thread.join()


def not_waited_for(state):
    runs = threading.Event()

    def work():
        runs.set()
        bump(state)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        runs.wait()  # else it may be the future's own lock that puts them in order
        state.value += 1
        future.result()


def value():
    return SimpleNamespace(value=0)


@pytest.mark.parametrize("body", [started_and_joined, started_and_polled, timed, pooled])
def test_threads_that_are_waited_for_do_not_race(body):
    result = stress(body, setup=value, threads=1, rounds=ROUNDS, races="error")
    assert result.findings == (), str(result)


@pytest.mark.parametrize("body", [not_joined, not_waited_for])
def test_threads_that_are_not_waited_for_do(body):
    (race,) = races(stress(body, setup=value, threads=1, rounds=ROUNDS, races="error"))
    started = [each for each in race.evidence.accesses if each.started_by is not None]
    assert [each.started_by for each in started] == ["thread 0"]
    assert started[0].started_at.function == body.__name__


def test_a_pool_that_was_made_before_hands_over_too():
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result()

        def body(state):
            state.value = 1
            pool.submit(bump, state).result()
            state.value += 1

        result = stress(body, setup=value, threads=1, rounds=ROUNDS, races="error")
    assert result.findings == (), str(result)


# --- what is told ---------------------------------------------------------------------------------


class Stats:
    def __init__(self):
        self.lock = threading.Lock()
        self.total = 0
        self.by_name = {}

    def add(self):
        self.total += 1

    def add_locked(self):
        with self.lock:
            self.total += 1

    def add_benign(self):
        self.total += 1  # freethread: benign, a guess will do

    def count(self):
        self.by_name["x"] += 1


def test_a_race_is_told_with_both_stacks_and_locks_and_how_it_was_seen():
    result = stress(Stats.add, Stats.add_locked, setup=Stats, rounds=ROUNDS, races="error")
    (race,) = races(result)
    assert (race.token, race.reproduced, race.message) == (None, None, "data race on Stats.total")
    assert race.evidence.together
    assert {each.stack[-1].function for each in race.evidence.accesses} == {
        "Stats.add",
        "Stats.add_locked",
    }
    (held,) = [each.holds for each in race.evidence.accesses if each.holds]
    assert [use.name for use in held] == ["Stats.lock"]
    text = " ".join(str(result).split())
    assert "Usual repair: take Stats.lock in Stats.add." in text
    assert "Not replayable: seen in a free run. One thread was held up before its access" in text
    assert "recorded (" in result.scope
    assert "in wait for races" in result.scope


def test_an_item_is_named_by_the_attribute_that_holds_it():
    def setup():
        stats = Stats()
        stats.by_name["x"] = 0
        return stats

    found = races(stress(Stats.count, Stats.count, setup=setup, rounds=ROUNDS, races="error"))
    assert {each.message for each in found} == {"data race on Stats.by_name['x']"}


def test_what_is_not_made_to_happen_is_a_note_and_the_text_says_why():
    result = stress(Stats.add, Stats.add_locked, setup=Stats, rounds=1, races="error")
    (race,) = races(result, "note")
    assert not race.evidence.together
    assert result.verdict is Verdict.PASSED
    assert "They were not seen at the same moment" in " ".join(str(result).split())


def test_what_a_pipe_puts_in_order_is_no_error():
    def setup():
        reader, writer = os.pipe()
        return SimpleNamespace(value=0, reader=reader, writer=writer)

    def give(state):
        state.value += 1
        os.write(state.writer, b"x")
        os.close(state.writer)

    def take(state):
        os.read(state.reader, 1)
        os.close(state.reader)
        state.value += 1

    result = stress(give, take, setup=setup, rounds=ROUNDS, races="error")
    assert races(result) == []
    assert [each.evidence.together for each in races(result, "note")] == [False]


@pytest.mark.parametrize(("setting", "severities"), [("note", ["note"]), ("off", [])])
def test_races_are_notes_or_nothing_if_that_is_wanted(setting, severities):
    result = stress(Stats.add, Stats.add, setup=Stats, rounds=ROUNDS, races=setting)
    assert [each.severity for each in result.findings if each.kind == "race"] == severities
    assert ("recorded" in result.scope) == (setting == "note")


def test_what_its_authors_call_benign_is_counted_and_left_out():
    result = stress(Stats.add_benign, Stats.add_benign, setup=Stats, rounds=ROUNDS, races="error")
    assert result.findings == ()
    assert "; 1 suppressed as benign;" in result.scope
    result = stress(
        *(Stats.add, Stats.add), setup=Stats, rounds=ROUNDS, races="error", benign=["*.total"]
    )
    assert result.findings == ()
    assert result.suppressed == {"*.total": 1}


class Bank:
    def __init__(self):
        self.one, self.other = threading.Lock(), threading.Lock()
        self.turn = threading.Event()

    def there(self):
        with self.one, self.other:
            pass
        self.turn.set()

    def back(self):
        self.turn.wait()
        with self.other, self.one:
            pass


def test_locks_in_opposite_orders_are_a_note_unless_something_keeps_them_apart():
    def there(bank):
        with bank.one, bank.other:
            pass
        os.write(bank.pipe[1], b"x")

    def back(bank):
        os.read(bank.pipe[0], 1)
        with bank.other, bank.one:
            pass

    def setup():
        bank = Bank()
        bank.pipe = os.pipe()
        return bank

    result = stress(there, back, setup=setup, rounds=ROUNDS, races="error")
    (order,) = result.findings
    assert (order.kind, order.severity) == ("lock-order", "note")
    assert order.message == (
        "Bank.one and Bank.other are taken in opposite orders: predicted, not reproduced"
    )
    kept_apart = stress(Bank.there, Bank.back, setup=Bank, rounds=ROUNDS, races="error")
    assert kept_apart.findings == ()


def test_a_deadlock_in_a_recorded_round_is_told_like_any(run_program):
    report = run_program("""
        import threading
        from pytest_freethread import stress

        class Bank:
            def __init__(self):
                self.lock_a, self.lock_b = threading.Lock(), threading.RLock()
                self.met = threading.Barrier(2)

        def there(bank):
            with bank.lock_a:
                bank.met.wait()
                with bank.lock_b:
                    pass

        def back(bank):
            with bank.lock_b:
                bank.met.wait()
                with bank.lock_a:
                    pass

        print(stress(there, back, setup=Bank, rounds=1, races="error"))
    """)
    assert "error: deadlock in round 0: thread 0 and thread 1 each hold the lock" in report
    assert "thread 0  holds      Bank.lock_a  taken at" in report
    assert "waits for  Bank.lock_b  at" in report
    assert "in there  with bank.lock_b:" in report


# --- what it does not touch -----------------------------------------------------------------------


def test_all_is_as_it_was_afterwards():
    before = threading.Lock, threading.RLock, queue.SimpleQueue, threading.Condition.wait
    code, start = Stats.add.__code__, threading.Thread.start
    made = []

    def setup():
        made.append(Stats())
        return made[-1]

    stress(Stats.add_locked, Stats.add_locked, setup=setup, rounds=2, races="error")
    assert before == (
        *(threading.Lock, threading.RLock, queue.SimpleQueue, threading.Condition.wait),
    )
    assert (Stats.add.__code__, threading.Thread.start) == (code, start)
    with made[0].lock:
        assert made[0].lock.locked()
    assert isinstance(made[0].lock, type(threading.Lock()))


def test_a_round_of_many_events_is_judged_part_by_part(monkeypatch):
    monkeypatch.setattr(recorder, "_MOST_EVENTS", 100)
    lengths = []
    tell = recorder.Recorder._tell

    def watched(self):
        lengths.append(len(self._events))
        tell(self)

    monkeypatch.setattr(recorder.Recorder, "_tell", watched)

    def many(stats):
        for _ in range(500):
            stats.add_locked()

    assert stress(many, many, setup=Stats, rounds=1, races="error").findings == ()
    assert 100 <= max(lengths) < 300
    found = stress(many, lambda stats: stats.add(), setup=Stats, rounds=ROUNDS, races="error")
    assert [each.message for each in races(found)] == ["data race on Stats.total"]


def test_a_round_that_touches_too_much_is_recorded_up_to_there(monkeypatch):
    monkeypatch.setattr(recorder, "_MOST_OBJECTS", 50)

    def many(stats):
        for number in range(100):
            stats.by_name[number] = []
            stats.by_name[number].append(number)

    result = stress(many, threads=1, setup=Stats, rounds=1, races="error")
    assert "not all of them: it touched more than 50 objects" in result.scope


def test_a_run_within_a_run_does_without_and_says_so():
    scopes = []

    def body():
        scopes.append(stress(Stats.add, Stats.add, setup=Stats, rounds=1, races="error").scope)

    stress(body, threads=1, rounds=1)
    assert "races not looked for within another run" in scopes[0]


def test_an_addition_is_a_write_of_what_is_not_there_and_a_read_of_what_is():
    def add_item(stats):
        stats.by_name.setdefault("x", 0)

    def store(stats):
        stats.by_name["x"] = 1

    def setup(*, there):
        stats = Stats()
        if there:
            stats.by_name["x"] = 0
        return stats

    both_add = stress(add_item, add_item, setup=Stats, rounds=ROUNDS, races="error")
    assert both_add.findings == ()
    for there in (False, True):
        begin = partial(setup, there=there)
        result = stress(add_item, store, setup=begin, rounds=ROUNDS, races="note")
        assert {each.message for each in result.findings} == {"data race on Stats.by_name['x']"}
