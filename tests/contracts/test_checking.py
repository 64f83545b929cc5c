"""What a contract asks, what it tolerates, and what it says."""

import math
import re
import threading
from collections import deque

import pytest
import shop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase

from pytest_freethread import SettingError, Verdict, check_contract, contracts, operation
from pytest_freethread.report import text

ITEMS = st.integers(1, 9)


def check(cls, **how):
    return check_contract(cls, **{"scenarios": 30, "schedules": 60, "seconds": None, **how})


def passes(cls, **how):
    result = check(cls, **how)
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings
    return result


def finding(cls, **how):
    result = check(cls, **how)
    assert result.verdict is Verdict.FAILED, str(result)
    (found,) = result.findings
    assert found.reproduced == (10, 10), str(result)
    return found


def rows(found):
    return dict(found.evidence.scenario.rows)


# --- results --------------------------------------------------------------------------------------


class Stack:
    def __init__(self):
        self.items = []

    @operation(item=ITEMS)
    def push(self, item):
        self.items.append(item)

    @operation()
    def pop(self):
        return self.items.pop()


class CheckedStack(Stack):
    @operation()
    def pop(self):
        return self.items.pop() if self.items else None


def test_an_exception_is_a_result():
    passes(Stack)


def test_an_exception_that_no_order_gives_is_found():
    found = finding(CheckedStack)
    assert any("pop() raised IndexError" in call for call in sum(rows(found).values(), ()))
    assert "must give" in str(found.evidence.scenario.next)
    assert "raised IndexError: pop from empty list" in str(found.evidence.scenario.next)


class Shelf:
    """Gives out what it holds itself, objects without equality, and what it was given."""

    def __init__(self):
        self.lock = threading.Lock()
        self.items = []

    @operation(item=ITEMS)
    def put(self, item):
        with self.lock:
            self.items.append(item)
            return self.items

    @operation(items=st.lists(ITEMS, max_size=2))
    def extend(self, items):
        with self.lock:
            items.append(0)
            self.items.extend(items)
            return items

    @operation()
    def label(self):
        return object()

    @operation()
    def not_a_number(self):
        return float("nan")


def test_results_are_compared_as_they_were_and_arguments_are_nobody_elses():
    passes(Shelf)


# --- waiting --------------------------------------------------------------------------------------


class Hand:
    """One place: who finds it full or empty waits."""

    def __init__(self):
        self.changed = threading.Condition()
        self.item = None

    @operation(item=ITEMS, blocking=True)
    def put(self, item):
        with self.changed:
            while self.item is not None:
                self.changed.wait()
            self.item = item
            self.changed.notify_all()

    @operation(blocking=True)
    def take(self):
        with self.changed:
            while self.item is None:
                self.changed.wait()
            item, self.item = self.item, None
            self.changed.notify_all()
            return item


class ForgetfulHand(Hand):
    """Wakes nobody who waits for the place to be empty."""

    @operation(blocking=True)
    def take(self):
        with self.changed:
            while self.item is None:
                self.changed.wait()
            item, self.item = self.item, None
            return item


class ImpatientHand(Hand):
    @operation()
    def take(self):
        return super().take()


def test_a_blocking_operation_may_wait_for_ever():
    passes(Hand)
    passes(Hand, progress="deadlock-free")


def test_one_that_waits_though_it_need_not_is_found_where_that_is_asked_for():
    passes(ForgetfulHand)
    found = finding(ForgetfulHand, progress="deadlock-free", scenarios=60)
    assert any(call.endswith(" waits") for call in sum(rows(found).values(), ()))


def test_an_operation_that_is_not_blocking_has_to_return():
    assert finding(ImpatientHand).kind == "lost-wakeup"


class Tally:
    """Wait-free: each operation is one step."""

    def __init__(self):
        self.marks = deque()

    @operation()
    def mark(self):
        self.marks.append(None)

    @operation()
    def count(self):
        return len(self.marks)


class LockedTally(Tally):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    @operation()
    def mark(self):
        with self.lock:
            self.marks.append(None)


def test_who_waits_for_a_lock_is_not_obstruction_free():
    passes(Tally, progress="obstruction-free")
    passes(LockedTally)
    found = finding(LockedTally, progress="obstruction-free")
    assert found.kind == "obstruction"
    assert "mark() of thread" in found.message


# --- who calls what -------------------------------------------------------------------------------


class Ring:
    """Right for one producer and one consumer."""

    def __init__(self):
        self.items = [0, 0]
        self.head = self.tail = 0

    @operation(item=ITEMS, group="producer")
    def put(self, item):
        if self.tail - self.head == len(self.items):
            return False
        self.items[self.tail % len(self.items)] = item
        self.tail += 1
        return True

    @operation(group="consumer")
    def get(self):
        if self.head == self.tail:
            return None
        item = self.items[self.head % len(self.items)]
        self.head += 1
        return item


class CrowdedRing(Ring):
    @operation(item=ITEMS)
    def put(self, item):
        return super().put(item)


def test_operations_of_a_group_are_called_by_one_thread_only():
    passes(Ring)
    passes(Ring, threads=3)
    assert finding(CrowdedRing).kind == "linearizability"


def test_three_threads_are_no_more_than_it_takes():
    found = finding(CheckedStack, threads=3)
    assert len(rows(found)) <= 3  # before, and two of the threads


# --- what it is compared with ---------------------------------------------------------------------


class Two:
    """Counts in twos, whatever that is good for."""

    def __init__(self):
        self.lock = threading.Lock()
        self.value = 0

    @operation()
    def increment(self):
        with self.lock:
            self.value += 2
            return self.value


class One:
    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
        return self.value


def test_a_model_says_what_is_right():
    passes(Two)
    found = finding(Two, model=One)
    assert "must give 1; it gave 2" in str(found.evidence.scenario.next)


class Pair:
    def __init__(self):
        self.left = self.right = 0

    @operation()
    def both(self):
        self.left += 1
        self.right += 1


def test_an_invariant_is_asked_in_the_end():
    passes(Pair)
    found = finding(Pair, invariant=lambda pair: pair.left == pair.right)
    assert found.kind == "invariant"
    assert rows(found) == {"thread 0": ("both()",), "thread 1": ("both()",)}


# --- what is said ---------------------------------------------------------------------------------


def told(result):
    return "\n".join(text.block(result.findings[0]))


def test_the_whole_text():
    result = check(shop.Counter)
    assert told(result) in str(result)
    assert told(result) == SOLD


def test_the_same_seed_gives_the_same_text():
    first, again = (check(CrowdedRing, seed=5) for _ in range(2))
    assert told(first) == told(again)
    assert first.findings[0].token == again.findings[0].token


def tried_as(found):
    """The scenario of a finding as a scenario says it."""
    clients = ("before", "thread 0", "thread 1", "after")
    called = ([re.sub(r" (→|raised) .*", "", c) for c in rows(found).get(k, ())] for k in clients)
    return " | ".join("; ".join(each) for each in called)


@pytest.fixture
def tried(monkeypatch):
    """The scenarios that are explored, and whether each fails."""
    scenarios = []
    explore = contracts._Search._explore

    def noted(self, scenario):
        found = explore(self, scenario)
        scenarios.append((scenario, found is not None))
        return found

    monkeypatch.setattr(contracts._Search, "_explore", noted)
    return scenarios


def test_only_smaller_scenarios_are_tried_to_shrink_one_that_fails(tried):
    found = finding(CrowdedRing, seed=1)
    fails = [failed for _, failed in tried]
    assert sum(fails) > 1
    smallest = math.inf
    for scenario, failed in tried[fails.index(True) :]:
        assert len(scenario.calls) <= smallest
        smallest = len(scenario.calls) if failed else smallest
    assert smallest == len(sum(rows(found).values(), ()))


def test_the_database_has_the_failure_tried_first(tried):
    settings.register_profile("kept", database=InMemoryExampleDatabase())
    settings.load_profile("kept")  # until the fixture of all tests here loads another one
    first = finding(CrowdedRing, seed=1)
    before = len(tried)
    again = finding(CrowdedRing, seed=2)
    assert str(tried[before][0]) == tried_as(first)
    assert rows(again) == rows(first)


def test_a_budget_that_is_over_is_no_pass():
    result = check(Stack, seconds=0.05, scenarios=1000)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "the budget of 0.05 s was over before all were tried" in result.scope
    assert re.search(r"\d+ different scenarios \(at most 1,000\)", result.scope)


def test_a_class_without_probes_is_not_passed():
    namespace = {"operation": operation}
    exec(
        "class Blind:\n"
        "    def __init__(self): self.value = 0\n"
        "    @operation()\n"
        "    def increment(self):\n"
        "        value = self.value + 1\n"
        "        self.value = value\n",
        namespace,
    )
    result = check(namespace["Blind"], scenarios=3)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no operation has probes" in result.scope


SOLD = """\
error: Counter is not linearizable: no order of these calls, one at a time, gives these results

    thread 0  increment() → 1
    thread 1  increment() → 1

  Nearest order: increment() → 1, then thread 1's increment() must give 2; it gave 1.

  the smallest scenario found · 1 preemption, the fewest found · reproduced 10/10

        thread 0  increment()                      thread 1  increment()
        -----------------------------------------  -----------------------------------------
     1              increment() begins
        state: value 0
     2  shop.py:12  value = self.value + 1  → 0
        preempted
     3                                                         increment() begins
     4                                             shop.py:12  value = self.value + 1  → 0
     5                                             shop.py:13  self.value = value      0 → 1
                                                   state: value 1
     6                                                         increment() → 1
                                                   done
     7  shop.py:13  self.value = value      1 → 1
     8              increment() → 1
        done

  Again:  check_contract(Counter, seed=0, ...)"""


# --- errors of use --------------------------------------------------------------------------------


class Needy:
    def __init__(self, size):
        self.size = size

    @operation()
    def get(self):
        return self.size


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: operation(itme=ITEMS)(Ring.put), "no such parameter: 'itme'; did you mean item"),
        (lambda: operation(item=3)(Ring.put), "3 is not a strategy"),
        (lambda: operation()(Ring.put), "no strategy for item"),
        (lambda: operation()(deque.append), "not a function"),
    ],
)
def test_what_is_declared_wrong_is_said(declare, said):
    with pytest.raises(SettingError, match=said):
        declare()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"cls": One}, "check_contract.One.: it has no operations"),
        ({"cls": Needy}, r"Needy.. raised TypeError"),
        ({"threads": 1}, "threads=1.: a scenario has at least two"),
        ({"operations": 0}, "operations=0"),
        ({"prefix": -1}, "prefix=-1"),
        ({"suffix": "x"}, "suffix='x'"),
        ({"scenarios": True}, "scenarios=True"),
        ({"progress": "deadlock"}, "progress='deadlock'.*deadlock-free"),
        ({"include": ["no.such"]}, "no.such"),
        ({"schedules": 0}, "schedules=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_asked_wrong_is_said(how, said):
    with pytest.raises(SettingError, match=said):
        check(**{"cls": Stack, **how})


# --- going round for ever -------------------------------------------------------------------------


class Polled:
    """Who finds nothing looks again and again."""

    def __init__(self):
        self.items = deque()

    @operation(item=ITEMS)
    def put(self, item):
        self.items.append(item)

    @operation()
    def take(self):
        while not self.items:
            pass
        return self.items.popleft()


def test_an_operation_that_goes_round_for_ever_is_found():
    assert finding(Polled, operations=1, prefix=0, suffix=0).kind == "livelock"
