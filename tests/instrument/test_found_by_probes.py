"""What the probes announce is what an exploration needs: each race is found, its repair is quiet."""

import contextlib
import heapq
import sys
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_freethread import Verdict, explore


@dataclass(eq=False)
class State:
    """What the two threads of a program share."""

    data: Any = None
    lock: Any = field(default_factory=threading.Lock)
    out: list = field(default_factory=list)


class lazy:  # noqa: N801 - a decorator
    """A cached property as it is often written: it stores past the class's back."""

    def __init__(self, function):
        self.function = function

    def __get__(self, obj, owner):
        value = obj.__dict__[self.function.__name__] = self.function(obj)
        return value


class Expensive:
    def __init__(self):
        self.made = []
        self.lock = threading.Lock()

    @lazy
    def value(self):
        self.made.append(1)
        return object()


def twice_computed(s):
    s.out.append(s.data.value)


def once_computed(s):
    with s.data.lock:
        s.out.append(s.data.value)


def through_vars(s):
    vars(s.data)["n"] = s.data.n + 1


def through_vars_locked(s):
    with s.lock:
        vars(s.data)["n"] = s.data.n + 1


def by_computed_name(s):
    name = "another"[1]
    setattr(s.data, name, getattr(s.data, name) + 1)


def by_computed_name_locked(s):
    with s.lock:
        by_computed_name(s)


def numbers():
    n = 0
    while n < 6:
        n += 1
        yield n


def next_of_generator(s):
    s.out.append(next(s.data))


def next_of_generator_locked(s):
    with s.lock:
        s.out.append(next(s.data))


def each_of_generator(s):
    for n in s.data:
        s.out.append(n)
        break


def each_of_generator_locked(s):
    with s.lock:
        each_of_generator(s)


def grow(d, key):
    d[key] = 1


def largest(s):
    s.out.append(max(s.data))
    grow(s.data, object_key(s))


def largest_of_copy(s):
    s.out.append(max(list(s.data)))
    grow(s.data, object_key(s))


def object_key(s):
    return 10 + len(s.out)


def tuple_of_dict(s):
    s.out.append(tuple(s.data))
    grow(s.data, object_key(s))


def tuple_of_copy(s):
    s.out.append(tuple(s.data.copy()))
    grow(s.data, object_key(s))


def comprehension(s):
    s.out.append([key for key in s.data])  # noqa: C416 - the loop is the point
    grow(s.data, object_key(s))


def comprehension_of_copy(s):
    s.out.append([key for key in list(s.data)])  # noqa: C416 - likewise
    grow(s.data, object_key(s))


def absent_then_put(s):
    if "key" not in s.data:
        s.data["key"] = object()
    s.out.append(s.data["key"])


def set_default(s):
    s.out.append(s.data.setdefault("key", object()))


def some_then_take(s):
    if s.data:
        s.out.append(s.data.popleft())


def take_or_give_up(s):
    with contextlib.suppress(IndexError):
        s.out.append(s.data.popleft())


def missing_key(s):
    made = s.data.get("key")
    if made is None:
        made = s.data["key"]
    s.data["key"] = [*made, 1]


def missing_key_in_place(s):
    s.data["key"].append(1)


def count_up(s):
    s.data["key"] += 1


def count_up_locked(s):
    with s.lock:
        s.data["key"] += 1


def some_then_pop(s):
    if s.data:
        s.out.append(heapq.heappop(s.data))


def some_then_pop_locked(s):
    with s.lock:
        some_then_pop(s)


def replace_all(s):
    s.data[:] = [*s.data, 1]


def extend(s):
    s.data.extend([1])


def kept_methods(s):
    get, put = s.data.get, s.data.__setitem__
    put("key", get("key") + 1)


def kept_methods_locked(s):
    with s.lock:
        kept_methods(s)


def seen_through_proxy(s):
    if "key" not in s.out_view:
        s.out.append(1)
        s.data["key"] = 1


def seen_through_proxy_locked(s):
    with s.lock:
        seen_through_proxy(s)


def move_then_forget(s):
    if "key" in s.data:
        s.data.move_to_end("key")
        s.data.pop("key", None)


def move_then_forget_locked(s):
    with s.lock:
        move_then_forget(s)


def equal_then_add(s):
    if s.data == [0]:
        s.data.append(1)


def equal_then_add_locked(s):
    with s.lock:
        equal_then_add(s)


def get_or_make(s):
    made = s.data.get("key")
    if made is None:
        made = s.data["key"] = Expensive()
    s.out.append(made)


def get_or_make_locked(s):
    with s.lock:
        get_or_make(s)


def import_once(s):
    if s.data not in sys.modules:
        sys.modules[s.data] = types.ModuleType(s.data)
    s.out.append(sys.modules[s.data])


def import_once_atomically(s):
    s.out.append(sys.modules.setdefault(s.data, types.ModuleType(s.data)))


def holding(make):
    def setup():
        return State(data=make())

    return setup


def counted():
    s = State(data=types.new_class("Bag")())
    s.data.n = 0
    return s


def with_view():
    s = State(data={})
    s.out_view = types.MappingProxyType(s.data)
    return s


def unloaded():
    sys.modules.pop("of_no_file", None)
    return State(data="of_no_file")


def two_counted(s):
    return s.data.n == 2


def same(s):
    return s.out[0] is s.out[1]


def both(s):
    return sorted(s.out) == [1, 2]


PROGRAMS = [
    (holding(Expensive), twice_computed, once_computed, same),
    (counted, through_vars, through_vars_locked, two_counted),
    (counted, by_computed_name, by_computed_name_locked, two_counted),
    (holding(numbers), next_of_generator, next_of_generator_locked, both),
    (holding(numbers), each_of_generator, each_of_generator_locked, both),
    (holding(lambda: (n for n in (1, 2, 3))), next_of_generator, next_of_generator_locked, both),
    (holding(lambda: {1: 1, 2: 1}), largest, largest_of_copy, None),
    (holding(lambda: {1: 1, 2: 1}), tuple_of_dict, tuple_of_copy, None),
    (holding(lambda: {1: 1, 2: 1}), comprehension, comprehension_of_copy, None),
    (holding(dict), absent_then_put, set_default, same),
    (holding(lambda: deque([1])), some_then_take, take_or_give_up, None),
    (holding(lambda: defaultdict(list)), missing_key, missing_key_in_place, lambda s: s.data["key"] == [1, 1]),
    (holding(lambda: Counter(key=0)), count_up, count_up_locked, lambda s: s.data["key"] == 2),
    (holding(lambda: [1]), some_then_pop, some_then_pop_locked, None),
    (holding(list), replace_all, extend, lambda s: s.data == [1, 1]),
    (holding(lambda: {"key": 0}), kept_methods, kept_methods_locked, lambda s: s.data["key"] == 2),
    (with_view, seen_through_proxy, seen_through_proxy_locked, lambda s: s.out == [1]),
    (holding(lambda: OrderedDict(key=1)), move_then_forget, move_then_forget_locked, None),
    (holding(lambda: [0]), equal_then_add, equal_then_add_locked, lambda s: s.data == [0, 1]),
    (holding(weakref.WeakValueDictionary), get_or_make, get_or_make_locked, same),
    (unloaded, import_once, import_once_atomically, same),
]  # fmt: skip


@pytest.mark.parametrize(
    ("setup", "racy", "repaired", "invariant"), PROGRAMS, ids=[p[1].__name__ for p in PROGRAMS]
)
def test_a_race_is_found_and_its_repair_is_quiet(setup, racy, repaired, invariant):
    found = explore(
        racy, racy, setup=setup, invariant=invariant, seconds=None, schedules=200, seed=1
    )
    assert found.verdict is Verdict.FAILED, str(found)
    quiet = explore(
        repaired, repaired, setup=setup, invariant=invariant, seconds=None, schedules=200, seed=1
    )
    assert quiet.verdict is Verdict.PASSED, str(quiet)
