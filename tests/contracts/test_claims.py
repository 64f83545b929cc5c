"""Each word for a guarantee is checked: who keeps it passes, who breaks that one only is found."""

import functools
import threading
from collections import deque

import pytest
from hypothesis import strategies as st

from pytest_freethread import SettingError, Verdict, check_contract, operation


class Point:
    """Nothing changes once it is made."""

    def __init__(self):
        self.coordinates = (1, 2)

    @operation(index=st.integers(0, 2))
    def get(self, index):
        return self.coordinates[index]

    @operation()
    def moved(self):
        return tuple(each + 1 for each in self.coordinates)


class LazyPoint(Point):
    """The first call leaves something that later ones can see."""

    @operation()
    def moved(self):
        self.coordinates = tuple(each + 1 for each in self.coordinates)
        return self.coordinates


class Pad(threading.local):
    """A pad for each thread."""

    def __init__(self):
        self.lines = []

    @operation(line=st.integers(1, 9))
    def write(self, line):
        self.lines.append(line)

    @operation()
    def read(self):
        return list(self.lines)


class SharedPad(Pad):
    """The class has one list for all."""

    lines = property(lambda _: SHARED, lambda _self, _value: SHARED.clear())


SHARED = []


class Register:
    """Atomic: what is written is kept for a while by the thread that wrote it."""

    def __init__(self):
        self.value = 0
        self.lock = threading.Lock()

    @operation(value=st.integers(1, 9))
    def write(self, value):
        with self.lock:
            self.value = value

    @operation()
    def read(self):
        with self.lock:
            return self.value

    @operation()
    def pair(self):
        with self.lock:
            return self.value, self.value


class TornRegister(Register):
    """What is read twice may be of two moments."""

    @operation()
    def pair(self):
        return self.read(), self.read()


class Delayed:
    """Each thread goes through the values in their order, but may be late."""

    def __init__(self):
        self.lock = threading.Lock()
        self.values = deque([0])
        self.seen = {}
        self.started_at = 0

    @operation(value=st.integers(1, 9))
    def write(self, value):
        with self.lock:
            self.values.append(value)
            self.seen[threading.current_thread().name] = len(self.values) - 1
            if threading.current_thread() is threading.main_thread():
                self.started_at = len(self.values) - 1

    @operation()
    def read(self):
        with self.lock:
            me = threading.current_thread()
            if me is threading.main_thread():
                return self.values[-1]
            return self.values[self.seen.get(me.name, self.started_at)]


class Adder:
    """Each thread adds in an order of its own, but nothing is lost."""

    def __init__(self):
        self.lock = threading.Lock()
        self.total = 0

    @operation(number=st.integers(1, 9))
    def add(self, number):
        with self.lock:
            self.total += number

    @operation()
    def get(self):
        with self.lock:
            return self.total


class LosingAdder(Adder):
    @operation(number=st.integers(1, 9))
    def add(self, number):
        self.total = self.get() + number


class Plain:
    """Not safe by itself, and safe with a lock around each call."""

    def __init__(self):
        self.total = 0

    @operation(number=st.integers(1, 9))
    def add(self, number):
        total = self.total
        self.total = total + number

    @operation()
    def get(self):
        return self.total


class Bound(Plain):
    """What a thread adds is seen by itself alone: no lock around it helps."""

    def __init__(self):
        super().__init__()
        self.own = threading.local()

    @operation(number=st.integers(1, 9))
    def add(self, number):
        self.own.total = getattr(self.own, "total", 0) + number

    @operation()
    def get(self):
        return getattr(self.own, "total", 0)


class Log:
    """May be called again in the middle of a call, such as by a signal's handler."""

    def __init__(self):
        self.lock = threading.RLock()
        self.lines = deque()

    @operation(line=st.integers(1, 9))
    def write(self, line):
        with self.lock:
            self.lines.append(line)

    @operation()
    def last(self):
        with self.lock:
            return self.lines[-1] if self.lines else None


class LockedLog(Log):
    """Who is interrupted holds the lock that the handler waits for."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class HalfLog(Log):
    """An RLock lets the handler in, to find things half done."""

    @operation()
    def last(self):
        with self.lock:
            return self.lines[-1] if len(self.lines) else None

    @operation()
    def take(self):
        with self.lock:
            line = self.lines[-1] if self.lines else None
            self.lines.clear()
            return line


check = functools.partial(check_contract, scenarios=30, schedules=40, seconds=None)

KEPT = {
    "immutable": [Point],
    "isolated": [Pad],
    "atomic": [Register, Delayed, Adder],
    "internally synchronised": [Register, Delayed, Adder],
    "linearizable": [Register, Adder],
    "externally synchronised": [Plain, Register],
    "reentrant": [Log, Point],
}
BROKEN = {
    "immutable": [LazyPoint, Register],
    "isolated": [SharedPad, Register],
    "atomic": [TornRegister, LosingAdder, Plain],
    "internally synchronised": [LosingAdder, Plain],
    "linearizable": [Delayed, TornRegister, LosingAdder],
    "externally synchronised": [Bound],
    "reentrant": [LockedLog, HalfLog, Plain],
}
pairs = lambda table: [  # noqa: E731
    pytest.param(word, cls, id=f"{word}-{cls.__name__}") for word in table for cls in table[word]
]


@pytest.mark.parametrize(("word", "cls"), pairs(KEPT))
def test_a_promise_that_is_kept_passes(word, cls):
    result = check(cls, claims=word)
    assert result.verdict is Verdict.PASSED, str(result)


@pytest.mark.parametrize(("word", "cls"), pairs(BROKEN))
def test_a_promise_that_is_broken_is_found(word, cls):
    result = check(cls, claims=word)
    assert result.verdict is Verdict.FAILED, str(result)
    (finding,) = result.findings
    assert finding.reproduced == (10, 10), str(result)
    if finding.kind == "linearizability":
        assert word.partition(" ")[0][:8] in finding.message or "synchronisation" in finding.message


def test_words_are_known_in_other_spellings():
    for word in (
        "Linearizable",
        "LINEARIZABLE",
        "Internally synchronized",
        "externally-synchronised",
    ):
        assert check(Register, claims=word, scenarios=2).verdict is Verdict.PASSED


def test_an_unknown_word_is_named_with_the_likeliest_one():
    with pytest.raises(SettingError, match=r"claims='linearisable'.*did you mean linearizable"):
        check(Register, claims="linearisable")
