"""The same seed gives the same search on every interpreter, and a token made on one replays on all.

The numbers and tokens below were made once; each interpreter that runs these tests has to agree.
"""

import queue
import threading

import pytest

from pytest_freethread import Verdict, explore, replay


class Counter:
    def __init__(self):
        self.value = 0
        self.log = {}
        self.first, self.second = threading.Lock(), threading.RLock()
        self.changed = threading.Condition()
        self.items = queue.Queue()


def increment(counter):
    counter.value += 1


def is_two(counter):
    return counter.value == 2


def look_and_set(counter):
    if "key" not in counter.log:
        counter.log["key"] = 0
        counter.value += 1
    counter.log["key"] += 1


def forth(counter):
    with counter.first, counter.second:
        counter.value += 1


def back(counter):
    with counter.second, counter.first:
        counter.value += 1


def wait(counter):
    if not counter.value:
        with counter.changed:
            counter.changed.wait()


def notify(counter):
    with counter.changed:
        counter.value = 1
        counter.changed.notify()


def start_two(counter):
    threads = [threading.Thread(target=increment, args=(counter,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def take(counter):
    if not counter.items.empty():
        counter.items.get_nowait()


def filled():
    counter = Counter()
    counter.items.put(1)
    return counter


def add_all(counter):
    counter.value = sum([number for number in (counter.value, 1) if number >= 0])


PROGRAMS = {
    "lost update": ((increment, increment), Counter, is_two),
    "check-then-act": ((look_and_set, look_and_set), Counter, lambda c: c.value == 1),
    "lock order": ((forth, back), Counter, None),
    "lost wake-up": ((wait, notify), Counter, None),
    "threads in a body": ((start_two,), Counter, is_two),
    "a queue": ((take, take), filled, None),
    "a comprehension": ((add_all, increment), Counter, is_two),
    "three threads": ((increment, increment, increment), Counter, lambda c: c.value == 3),
}

MADE = {
    ("lost update", "auto"): (4, "invariant", "ft1:0x1.1x2.0x1"),
    ("lost update", "random"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("lost update", "pct"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("lost update", "pos"): (2, "invariant", "ft1:0x1.1x2.0x1"),
    ("lost update", "surw"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("lost update", "dfs"): (4, "invariant", "ft1:0x1.1x2.0x1"),
    ("lost update", "dpor"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("check-then-act", "auto"): (4, "invariant", "ft1:0x3.1x9.0x6"),
    ("check-then-act", "random"): (3, "invariant", "ft1:0x3.1x9.0x6"),
    ("check-then-act", "pct"): (3, "invariant", "ft1:0x3.1x9.0x6"),
    ("check-then-act", "pos"): (2, "invariant", "ft1:0x3.1x9.0x6"),
    ("check-then-act", "surw"): (6, "invariant", "ft1:0x3.1x9.0x6"),
    ("check-then-act", "dfs"): (4, "invariant", "ft1:0x3.1x9.0x6"),
    ("check-then-act", "dpor"): (7, "invariant", "ft1:0x3.1x9.0x6"),
    ("lock order", "auto"): (4, "deadlock", "ft1:0x3.1x3"),
    ("lock order", "random"): (3, "deadlock", "ft1:0x3.1x3"),
    ("lock order", "pct"): (3, "deadlock", "ft1:0x3.1x3"),
    ("lock order", "pos"): (3, "deadlock", "ft1:0x3.1x3"),
    ("lock order", "surw"): (8, "deadlock", "ft1:0x3.1x3"),
    ("lock order", "dfs"): (4, "deadlock", "ft1:0x3.1x3"),
    ("lock order", "dpor"): (4, "deadlock", "ft1:0x3.1x3"),
    ("lost wake-up", "auto"): (4, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("lost wake-up", "random"): (3, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("lost wake-up", "pct"): (3, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("lost wake-up", "pos"): (2, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("lost wake-up", "surw"): (1, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("lost wake-up", "dfs"): (4, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("lost wake-up", "dpor"): (3, "lost-wakeup", "ft1:1x1.0x2.1x5.0x3"),
    ("threads in a body", "auto"): (6, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("threads in a body", "random"): (2, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("threads in a body", "pct"): (8, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("threads in a body", "pos"): (4, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("threads in a body", "surw"): (9, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("threads in a body", "dfs"): (6, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("threads in a body", "dpor"): (3, "invariant", "ft1:0x6.2x1.3x3.2x2.0x4"),
    ("a queue", "auto"): (3, "exception", "ft1:0x3.1x6.0x2"),
    ("a queue", "random"): (3, "exception", "ft1:0x3.1x6.0x2"),
    ("a queue", "pct"): (3, "exception", "ft1:0x3.1x6.0x2"),
    ("a queue", "pos"): (1, "exception", "ft1:0x3.1x6.0x2"),
    ("a queue", "surw"): (3, "exception", "ft1:0x3.1x6.0x2"),
    ("a queue", "dfs"): (4, "exception", "ft1:0x3.1x6.0x2"),
    ("a queue", "dpor"): (3, "exception", "ft1:0x3.1x6.0x2"),
    ("a comprehension", "auto"): (4, "invariant", "ft1:0x1.1x2.0x1"),
    ("a comprehension", "random"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("a comprehension", "pct"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("a comprehension", "pos"): (2, "invariant", "ft1:0x1.1x2.0x1"),
    ("a comprehension", "surw"): (6, "invariant", "ft1:0x1.1x2.0x1"),
    ("a comprehension", "dfs"): (4, "invariant", "ft1:0x1.1x2.0x1"),
    ("a comprehension", "dpor"): (3, "invariant", "ft1:0x1.1x2.0x1"),
    ("three threads", "auto"): (4, "invariant", "ft1:0x1.1x2.0x1.2x2"),
    ("three threads", "random"): (2, "invariant", "ft1:0x1.1x2.0x1.2x2"),
    ("three threads", "pct"): (3, "invariant", "ft1:0x1.1x2.0x1.2x2"),
    ("three threads", "pos"): (3, "invariant", "ft1:0x1.1x2.0x1.2x2"),
    ("three threads", "surw"): (3, "invariant", "ft1:0x1.1x2.0x1.2x2"),
    ("three threads", "dfs"): (8, "invariant", "ft1:0x1.1x2.0x1.2x2"),
    ("three threads", "dpor"): (3, "invariant", "ft1:0x1.1x2.0x1.2x2"),
}


@pytest.mark.parametrize(("name", "strategy"), MADE)
def test_the_same_search_everywhere(name, strategy):
    bodies, setup, invariant = PROGRAMS[name]
    result = explore(
        *bodies,
        setup=setup,
        invariant=invariant,
        threads=len(bodies),
        strategy=strategy,
        seed=7,
    )
    (finding,) = (each for each in result.findings if each.severity == "error")
    assert finding.reproduced == (10, 10)
    assert (result.executions, finding.kind, finding.token) == MADE[name, strategy]


@pytest.mark.parametrize(("name", "strategy"), MADE)
def test_a_token_made_elsewhere_replays(name, strategy):
    bodies, setup, invariant = PROGRAMS[name]
    _, kind, token = MADE[name, strategy]
    result = replay(token, *bodies, setup=setup, invariant=invariant, threads=len(bodies))
    assert result.verdict is Verdict.FAILED
    assert result.findings[0].kind == kind
    assert result.findings[0].token == token
