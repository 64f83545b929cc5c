"""Who finalizes an object: whoever drops it, once it belongs to no thread."""

import sys
import threading

from pytest_freethread.execution import ownership


class Noted:
    def __init__(self, log):
        self.log = log

    def __del__(self):
        self.log.append(threading.current_thread().name)


def run(function):
    thread = threading.Thread(target=function, name="other")
    thread.start()
    thread.join()


def test_what_belongs_to_nobody_is_finalized_where_it_is_dropped():
    log = []
    state = {"a": [Noted(log)], "b": (Noted(log),)}
    ownership.disown(ownership.shared([state]), run)
    run(lambda: (state.clear(), log.append("dropped")))
    assert log == ["other", "other", "dropped"]


def test_references_are_as_many_as_before():
    state = [object.__new__(Noted) for _ in range(3)]
    for each in state:
        each.log = []
    before = [sys.getrefcount(each) for each in (state, *state)]
    ownership.disown(ownership.shared([state]), run)
    assert [sys.getrefcount(each) for each in (state, *state)] == before


def test_modules_classes_and_functions_are_left_alone():
    inner = []

    def function():
        return inner, threading

    found = ownership.shared([function, Noted, threading])
    assert any(each is inner for each in found)
    assert not {id(function), id(Noted), id(threading), id(vars(threading))} & set(map(id, found))
