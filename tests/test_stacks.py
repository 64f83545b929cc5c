"""What is read off the stacks of threads that block: which lock they wait for, which they hold."""

from __future__ import annotations

import contextlib
import queue
import threading

import pytest

from pytest_freethread.execution import stacks


class Bank:
    __slots__ = ("__private", "forks", "lock_a")

    def __init__(self):
        self.lock_a = threading.Lock()
        self.__private = threading.RLock()
        self.forks = [threading.Lock(), threading.Lock()]

    def with_private(self, go_on):
        with self.__private:
            go_on()

    def wait_for_private(self):
        with self.__private:
            pass


@contextlib.contextmanager
def blocked(function, *, until):
    """A thread in `function`; `until` says by its state that it has come where it blocks."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    state = None
    while state is None or not until(state):
        (state,) = stacks.examine({thread.ident: (0, thread.name)})
    yield state


def held(lock):
    lock.acquire()
    return lock


def waits(state):
    return state.waits_for is not None


def test_a_with_statement_names_the_lock_that_it_waits_for():
    bank = Bank()
    with bank.lock_a:

        def body():
            with bank.lock_a:
                pass

        with blocked(body, until=waits) as state:
            assert state.waits_for.name == "Bank.lock_a"
            assert state.waits_for.identity == id(bank.lock_a)
            assert state.waits_for.forever
            assert state.waits_for.place.source == "with bank.lock_a:"
            assert state.holds == ()


def test_of_several_locks_in_one_with_the_first_is_held_and_the_second_waited_for():
    first, second = threading.Lock(), held(threading.Lock())

    def body():
        with first, second:
            pass

    with blocked(body, until=waits) as state:
        assert state.waits_for.name == "second"
        assert [use.name for use in state.holds] == ["first"]
    second.release()


def test_acquire_names_the_lock_and_whether_it_waits_for_ever():
    lock = held(threading.Lock())
    with blocked(lambda: lock.acquire(), until=waits) as state:  # noqa: PLW0108 - a frame of ours
        assert state.waits_for.name == "lock"
        assert state.waits_for.forever
    with blocked(lambda: lock.acquire(timeout=60), until=waits) as state:
        assert not state.waits_for.forever
    lock.release()


def test_a_lock_taken_by_acquire_and_not_released_is_held():
    first, second, third = threading.Lock(), threading.Lock(), held(threading.Lock())

    def body():
        first.acquire()
        second.acquire()
        second.release()
        third.acquire()

    with blocked(body, until=waits) as state:
        assert [use.name for use in state.holds] == ["first"]
    third.release()


def test_items_of_lists_by_arithmetic_are_understood():
    bank, index = Bank(), 1
    bank.forks[0].acquire()

    def body():
        with bank.forks[index], bank.forks[(index + 1) % 2]:
            pass

    with blocked(body, until=waits) as state:
        assert state.waits_for.identity == id(bank.forks[0])
        assert [use.identity for use in state.holds] == [id(bank.forks[1])]
    bank.forks[0].release()


def test_class_private_names_in_slots_are_found():
    bank = Bank()
    taken, done = threading.Event(), threading.Event()

    def hold():
        taken.set()
        done.wait()

    holder = threading.Thread(target=bank.with_private, args=[hold], daemon=True)
    holder.start()
    taken.wait()
    with blocked(bank.wait_for_private, until=waits) as state:
        (other,) = stacks.examine({holder.ident: (1, "holder")})
        assert [use.identity for use in other.holds] == [state.waits_for.identity]
    done.set()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: queue.Queue().get(), "Queue.get"),
        (lambda: threading.Event().wait(), "Event.wait"),
        (lambda: threading.Barrier(2).wait(), "Barrier.wait"),
    ],
)
def test_a_blocking_call_of_the_library_is_named(call, name):
    with blocked(call, until=lambda state: state.waits_in == name) as state:
        assert state.waits_for is None


def test_waiting_on_a_condition_does_not_hold_its_lock():
    condition = threading.Condition()

    def body():
        with condition:
            condition.wait()

    with blocked(body, until=lambda state: state.waits_in == "Condition.wait") as state:
        assert state.holds == ()


def test_looking_runs_no_code_of_the_user():
    class Trap:
        @property
        def lock(self):
            raise AssertionError("a property was run")

    trap, gate = Trap(), threading.Event()

    def body():
        if gate.wait():
            with trap.lock:
                pass

    with blocked(body, until=lambda state: state.waits_in == "Event.wait") as state:
        assert state.waits_for is None
        assert state.holds == ()


def test_a_stack_reads_from_the_outside_in_without_how_threads_begin():
    gate = threading.Event()

    def inner():
        gate.wait()

    def outer():
        inner()

    with blocked(outer, until=lambda state: state.waits_in == "Event.wait") as state:
        functions = [place.function.rpartition(".")[2] for place in state.stack]
        assert functions[:3] == ["outer", "inner", "wait"]
    gate.set()


class Guard:
    """A lock of one's own."""

    def __init__(self):
        self.lock = threading.Lock()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()

    def take(self):
        self.lock.acquire()

    def give(self):
        self.lock.release()

    @contextlib.contextmanager
    def taken(self, why):
        with self.lock:
            yield why


def by_enter(guard, go_on):
    with guard:
        go_on()


def by_a_helper(guard, go_on):
    guard.take()
    go_on()


def by_a_generator(guard, go_on):
    with guard.taken("for good"):
        go_on()


def by_an_exit_stack(guard, go_on):
    with contextlib.ExitStack() as stack:
        stack.enter_context(guard.lock)
        go_on()


def given_back(guard, go_on):
    guard.take()
    guard.give()
    go_on()


def given_back_by_an_exit_stack(guard, go_on):
    with contextlib.ExitStack() as stack:
        stack.enter_context(guard.lock)
    go_on()


@pytest.mark.parametrize("take", [by_enter, by_a_helper, by_a_generator, by_an_exit_stack])
def test_a_lock_is_known_to_be_held_however_it_was_taken(take):
    guard, other = Guard(), held(threading.Lock())

    def go_on():
        with other:
            pass

    with blocked(lambda: take(guard, go_on), until=waits) as state:
        assert [use.identity for use in state.holds] == [id(guard.lock)]
    other.release()


@pytest.mark.parametrize("take", [given_back, given_back_by_an_exit_stack])
def test_a_lock_that_was_given_back_is_not_held(take):
    guard, other = Guard(), held(threading.Lock())

    def go_on():
        with other:
            pass

    with blocked(lambda: take(guard, go_on), until=waits) as state:
        assert state.holds == ()
    other.release()


def test_a_reentrant_lock_says_itself_who_holds_it():
    lock, over, taken = threading.RLock(), threading.Event(), threading.Event()

    def hold():
        getattr(lock, "acquire")()  # noqa: B009 - what the source does not tell
        taken.set()
        over.wait()
        lock.release()

    def wait():
        with lock:
            pass

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    with blocked(wait, until=waits) as state:
        assert state.waits_for.owner == holder.ident
        waiter = next(t for t in threading.enumerate() if t.name == state.name)
        threads = {waiter.ident: (0, "waiter"), holder.ident: (1, "holder")}
        _, holds = stacks.examine(threads)
        assert [use.identity for use in holds.holds] == [id(lock)]
    over.set()
    holder.join()


def test_who_takes_the_same_lock_at_two_looks_is_at_a_lock():
    lock = held(threading.Lock())

    def wait():
        with lock:
            pass

    with blocked(wait, until=waits) as state:
        waiter = next(t for t in threading.enumerate() if t.name == state.name)
        both = stacks.at_locks() & stacks.at_locks()
        assert waiter.ident in {ident for ident, *_ in both}
        assert threading.get_ident() not in {ident for ident, *_ in both}
    lock.release()
