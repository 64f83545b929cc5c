"""What a settled heap lists is what there is, whoever freezes and thaws."""

import gc
import threading
import weakref

import pytest

from pytest_freethread.instrument import heap


class Room(threading.local):
    pass


@pytest.fixture(autouse=True)
def unsettled():
    heap.unsettle()
    yield
    heap.unsettle()


def settle():
    while not gc.get_freeze_count():
        heap.functions()
        heap.settle()


def some():
    """A function and a thread-local that were not there before; on every build both are listed."""
    room = Room()
    return (lambda: room), room


def listed(function, room):
    functions, rooms = heap.functions(), heap.thread_locals()
    assert len(set(map(id, functions))) == len(functions)
    assert len(set(map(id, rooms))) == len(rooms)
    found = any(each is function for each in functions), any(each is room for each in rooms)
    assert found[0] == found[1]
    return found[0]


def test_what_was_there_before_and_what_came_after_are_listed():
    before = some()
    settle()
    after = some()
    assert listed(*before)
    assert listed(*after)


def test_what_has_gone_is_not_listed():
    function, _ = some()
    gone = weakref.ref(function)
    settle()
    del function, _
    assert gone() is None
    assert all(each is not None for each in heap.functions())


def test_one_look_is_not_worth_it():
    settle()
    assert gc.get_freeze_count()
    heap.unsettle()
    heap.settle()
    assert not gc.get_freeze_count()


@pytest.mark.parametrize("then", [gc.unfreeze, gc.freeze], ids=["thaws", "freezes"])
def test_all_is_listed_when_somebody_else(then):
    before = some()
    settle()
    more = [some() for _ in range(10_000)]
    then()
    after = some()
    assert listed(*before)
    assert listed(*more[0])
    assert listed(*after)


def test_what_somebody_else_froze_is_left_frozen():
    gc.freeze()
    try:
        for _ in range(1000):
            heap.functions()
            heap.settle()
            if heap._looked_through > 10 * heap._WORTH_IT:
                break
        assert heap._settled is None
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_garbage_is_not_frozen():
    ring = [some()]
    ring.append(ring)
    gone = weakref.ref(ring[0][0])
    gc.disable()
    try:
        del ring
        settle()
        assert gone() is None
    finally:
        gc.enable()
