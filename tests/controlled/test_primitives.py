"""Each primitive under control: what CPython does, in every order, and stuck ones found."""

import pytest

LOCKED_COUNTER = """
    import threading

    class Counter:
        def __init__(self):
            self.value = 0
            self.lock = threading.{kind}()

        def add(self):
            with self.lock:
                self.value += 1

    setup = Counter
    threads = [Counter.add] * 3

    def invariant(counter):
        return counter.value == 3
    """


def outcomes(executions):
    return {(execution.outcome, execution.holds) for execution in executions}


def thrown(executions):
    return {
        (type(each.exception).__name__, str(each.exception))
        for execution in executions
        for each in execution.thrown
    }


def everything_ends_well(executions):
    assert thrown(executions) == set()
    assert outcomes(executions) == {("ended", True)}


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_what_is_done_under_a_lock_is_never_lost(explore, kind):
    everything_ends_well(explore.some(LOCKED_COUNTER.format(kind=kind)))


def test_two_locks_in_opposite_orders_are_a_deadlock(explore):
    executions = explore.everything("""
        import threading

        class Bank:
            def __init__(self):
                self.first, self.second = threading.Lock(), threading.Lock()

            def forth(self):
                with self.first:
                    with self.second:
                        pass

            def back(self):
                with self.second:
                    with self.first:
                        pass

        setup = Bank
        threads = [Bank.forth, Bank.back]
        """)
    assert {execution.outcome for execution in executions} == {"ended", "deadlock"}
    stuck = next(each for each in executions if each.outcome == "deadlock")
    one, other = stuck.waiting
    assert (one.thread, one.by, one.operation, one.kind) == (0, 1, "acquire", "Lock")
    assert (other.thread, other.by, other.kind) == (1, 0, "Lock")
    assert one.lock == other.holds[0].lock
    assert one.taken == other.holds[0].place
    assert [holding.place.source for holding in one.holds] == ["self.first"]
    assert one.stack[-1].source == "with self.second:"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("lock.release()", ("RuntimeError", "release unlocked lock")),
        ("lock.acquire(False, 1)", ("ValueError", None)),
        ("lock.acquire(timeout=-2)", ("ValueError", None)),
        ("rlock.release()", ("RuntimeError", "cannot release un-acquired lock")),
        ("condition.wait()", ("RuntimeError", "cannot wait on un-acquired lock")),
        ("condition.notify()", ("RuntimeError", "cannot notify on un-acquired lock")),
        ("bounded.release()", ("ValueError", "Semaphore released too many times")),
        ("semaphore.acquire(False, 1)", ("ValueError", None)),
        ("semaphore.release(0)", ("ValueError", None)),
        ("thread.join()", ("RuntimeError", "cannot join thread before it is started")),
        ("threading.current_thread().join()", ("RuntimeError", "cannot join current thread")),
        ("thread.start(); thread.start()", ("RuntimeError", "threads can only be started once")),
        ("simple.get(timeout=-1)", ("ValueError", None)),
        ("simple.get_nowait()", ("Empty", "")),
        ("simple.get(timeout=3)", ("Empty", "")),
        ("fifo.get(timeout=3)", ("Empty", "")),
        ("time.sleep(-1)", ("ValueError", None)),
    ],
)
def test_errors_are_those_of_cpython(explore, statement, expected):
    execution = explore.once(f"""
        import queue, threading, time

        def body():
            lock, rlock, condition = threading.Lock(), threading.RLock(), threading.Condition()
            bounded, semaphore = threading.BoundedSemaphore(), threading.Semaphore()
            thread, simple, fifo = threading.Thread(), queue.SimpleQueue(), queue.Queue()
            {statement}

        threads = [body]
        """)
    kind, text = expected
    (found,) = execution.thrown
    assert type(found.exception).__name__ == kind
    assert text is None or str(found.exception) == text


def test_an_rlock_is_its_holders_alone(explore):
    executions = explore.everything("""
        import threading

        class State:
            def __init__(self):
                self.lock = threading.RLock()
                self.refused = self.inside = 0

        def holder(state):
            with state.lock, state.lock:
                state.inside += 1
                with state.lock:
                    state.inside -= 1

        def stranger(state):
            if state.lock.acquire(blocking=False):
                assert state.inside == 0
                state.lock.release()
            else:
                state.refused = 1
                try:
                    state.lock.release()
                except RuntimeError:
                    state.refused = 2

        setup = State
        threads = [holder, stranger]

        def invariant(state):
            return state.refused in (0, 2)
        """)
    everything_ends_well(executions)


def test_a_lock_says_whether_it_is_one_and_locked(explore):
    everything_ends_well(
        explore.some("""
        import _thread
        import threading

        made_before = threading.Lock()
        Kind = type(made_before)

        def body():
            lock, rlock = threading.Lock(), threading.RLock()
            assert isinstance(lock, Kind) and isinstance(lock, type(threading.Lock()))
            assert isinstance(rlock, _thread.RLock) and not isinstance(rlock, Kind)
            assert not lock.locked()
            with lock:
                assert lock.locked()
                assert not lock.acquire(False) and not lock.acquire(timeout=5)
            with made_before:
                assert made_before.locked()
            assert lock.acquire(timeout=5) and repr(lock).startswith("<locked")

        threads = [body, body]
        invariant = lambda: not made_before.locked()
        """)
    )


def test_a_condition_wakes_exactly_those_that_are_notified(explore):
    executions = explore.everything(
        """
        import threading

        class Box:
            def __init__(self):
                self.changed = threading.Condition()
                self.items = []
                self.got = []

            def put(self):
                with self.changed:
                    self.items.append(1)
                    self.changed.notify()

            def get(self):
                with self.changed:
                    while not self.items:
                        self.changed.wait()
                    self.got.append(self.items.pop())

        setup = Box
        threads = [Box.get, Box.put]

        def invariant(box):
            return box.got == [1]
        """
    )
    everything_ends_well(executions)


def test_an_if_in_place_of_a_while_takes_what_is_not_there(explore):
    executions = explore.some(
        """
        import threading

        class Box:
            def __init__(self):
                self.changed = threading.Condition()
                self.items = []

            def put(self):
                with self.changed:
                    self.items.append(1)
                    self.changed.notify_all()

            def get(self):
                with self.changed:
                    if not self.items:
                        self.changed.wait()
                    self.items.pop()

        setup = Box
        threads = [Box.get, Box.get, Box.put, Box.put]
        """,
        times=200,
    )
    assert thrown(executions) == {("IndexError", "pop from empty list")}


def test_a_wake_up_that_came_too_early_is_lost(explore):
    executions = explore.everything("""
        import threading

        def setup():
            return threading.Condition()

        def sleeper(condition):
            with condition:
                condition.wait()

        def waker(condition):
            with condition:
                condition.notify()

        threads = [sleeper, waker]
        """)
    assert {execution.outcome for execution in executions} == {"ended", "lost-wakeup"}
    stuck = next(each for each in executions if each.outcome == "lost-wakeup")
    (sleeper,) = stuck.waiting
    assert (sleeper.thread, sleeper.kind, sleeper.by) == (0, "Condition", None)
    assert sleeper.stack[-1].source == "condition.wait()"


def test_a_wait_that_times_out_goes_on_without_a_notification(explore):
    everything_ends_well(
        explore.everything("""
        import threading, time

        class State:
            def __init__(self):
                self.condition = threading.Condition()
                self.event = threading.Event()

        def body(state):
            began = time.monotonic()
            with state.condition:
                assert not state.condition.wait(timeout=3600)
                assert not state.condition.wait_for(lambda: False, timeout=60)
                assert state.condition._is_owned()
            assert not state.event.wait(40)
            assert 3700 <= time.monotonic() - began < 3701

        setup = State
        threads = [body, body]
        invariant = lambda state: True
        """)
    )


def test_an_event_lets_everybody_go_on(explore):
    everything_ends_well(
        explore.everything("""
        import threading

        class State:
            def __init__(self):
                self.ready = threading.Event()
                self.seen = []

        def waiter(state):
            assert state.ready.wait()
            assert state.ready.is_set()
            state.seen.append(1)

        setup = State
        threads = [waiter, waiter, lambda state: state.ready.set()]
        invariant = lambda state: state.seen == [1, 1]
        """)
    )


def test_an_event_that_nobody_sets_is_a_lost_wakeup(explore):
    execution = explore.once("""
        import threading

        threads = [lambda: threading.Event().wait()]
        """)
    assert execution.outcome == "lost-wakeup"
    assert execution.waiting[0].kind == "Event"


def test_a_semaphore_admits_no_more_than_its_value(explore):
    everything_ends_well(
        explore.some("""
        import threading

        class Room:
            def __init__(self):
                self.places = threading.Semaphore(2)
                self.inside, self.seen = [], []

        def visit(room):
            with room.places:
                room.inside.append(1)
                room.seen.append(len(room.inside))
                room.inside.pop()

        setup = Room
        threads = [visit] * 3
        invariant = lambda room: max(room.seen) <= 2 and room.places._value == 2
        """)
    )


def test_a_barrier_is_passed_together(explore):
    everything_ends_well(
        explore.some("""
        import threading

        class State:
            def __init__(self):
                self.barrier = threading.Barrier(3)
                self.before = []
                self.first = []

        def body(state):
            state.before.append(1)
            if state.barrier.wait() == 0:
                state.first.append(1)
            assert len(state.before) == 3
            state.barrier.wait()

        setup = State
        threads = [body] * 3
        invariant = lambda state: state.first == [1]
        """)
    )


def test_a_barrier_with_somebody_missing_is_a_lost_wakeup(explore):
    execution = explore.once("""
        import threading

        setup = lambda: threading.Barrier(3)
        threads = [lambda barrier: barrier.wait()] * 2
        """)
    assert execution.outcome == "lost-wakeup"
    assert {waiting.through for waiting in execution.waiting} == {"Barrier.wait"}


@pytest.mark.parametrize("kind", ["Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"])
def test_a_queue_whose_get_comes_first(explore, kind):
    source = f"""
        import queue

        class State:
            def __init__(self):
                self.queue = queue.{kind}()
                self.got = []

        def consumer(state):
            state.got.append(state.queue.get())
            state.got.append(state.queue.get())

        def producer(state):
            state.queue.put(1)
            state.queue.put(2)

        setup = State
        threads = [consumer, producer]
        invariant = lambda state: sorted(state.got) == [1, 2] and state.queue.empty()
        """
    everything_ends_well(explore.some(source))


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_a_queue_that_nobody_fills_is_a_lost_wakeup(explore, kind):
    execution = explore.once(f"""
        import queue

        setup = queue.{kind}
        threads = [lambda queue: queue.get(), lambda queue: queue.put(1), lambda queue: queue.get()]
        """)
    assert execution.outcome == "lost-wakeup"
    (waiting,) = execution.waiting
    assert "get" in (waiting.through or waiting.operation)


def test_a_bounded_queue_is_joined_when_all_tasks_are_done(explore):
    everything_ends_well(
        explore.some("""
        import queue

        class State:
            def __init__(self):
                self.queue = queue.Queue(maxsize=1)
                self.done = 0

        def producer(state):
            for number in range(3):
                state.queue.put(number)
            state.queue.join()
            assert state.done == 3

        def consumer(state):
            for _ in range(3):
                state.queue.get()
                state.done += 1
                state.queue.task_done()

        setup = State
        threads = [producer, consumer]
        invariant = lambda state: state.queue.empty() and not state.queue.full()
        """)
    )


def test_threads_that_a_body_starts_race_like_any_other(explore):
    executions = explore.everything("""
        import threading

        class State:
            value = 0

        def add(state):
            temp = state.value
            state.value = temp + 1

        def body(state):
            workers = [threading.Thread(target=add, args=(state,)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
                assert not worker.is_alive()

        setup = State
        threads = [body]
        invariant = lambda state: state.value == 2
        """)
    assert outcomes(executions) == {("ended", True), ("ended", False)}


def test_a_thread_subclass_defined_elsewhere_is_controlled_and_never_accused(explore, make_module):
    elsewhere = make_module("""
        import threading

        class Worker(threading.Thread):
            def __init__(self, state):
                super().__init__(name="worker")
                self.state = state

            def run(self):
                assert threading.current_thread() is self and self.is_alive()
                with self.state.lock:
                    self.state.value += 1
        """)
    everything_ends_well(
        explore.everything(f"""
        import threading
        from {elsewhere.__name__} import Worker

        class State:
            def __init__(self):
                self.lock = threading.Lock()
                self.value = 0

        def body(state):
            worker = Worker(state)
            worker.start()
            with state.lock:
                state.value += 1
            worker.join()

        setup = State
        threads = [body]
        invariant = lambda state: state.value == 2
        """)
    )


def test_an_executor_within_a_body(explore):
    source = """
        import concurrent.futures as futures
        import threading

        class State:
            value = 0

            def __init__(self):
                self.lock = threading.Lock()

            def add(self):
                {guard}:
                    temp = self.value
                    self.value = temp + 1
                return 5

        def body(state):
            with futures.ThreadPoolExecutor(2) as pool:
                results = [pool.submit(state.add) for _ in range(2)]
                assert sum(each.result() for each in futures.as_completed(results)) == 10
                assert futures.wait(results).not_done == set()
                assert list(pool.map(abs, [-1, 2])) == [1, 2]

        setup = State
        threads = [body]
        invariant = lambda state: state.value == 2
        """
    everything_ends_well(explore.some(source.format(guard="with self.lock")))
    assert ("ended", False) in outcomes(explore.some(source.format(guard="if True"), times=200))


def test_a_pool_that_is_left_to_itself_is_no_deadlock(explore, capfd):
    execution = explore.once("""
        from concurrent.futures import ThreadPoolExecutor

        class State:
            pool = None

        def body(state):
            state.pool = ThreadPoolExecutor(1)
            assert state.pool.submit(abs, -1).result() == 1

        setup = State
        threads = [body]
        invariant = lambda state: True
        """)
    assert (execution.outcome, execution.holds) == ("ended", True)
    assert [waiting.kind for waiting in execution.waiting] == ["SimpleQueue"]
    assert capfd.readouterr().err == ""


def test_a_timer_fires_when_its_time_has_come_and_not_when_cancelled(explore):
    everything_ends_well(
        explore.some("""
        import threading, time

        class State:
            def __init__(self):
                self.fired = []

        def body(state):
            began = time.time()
            timer = threading.Timer(10, lambda: state.fired.append(time.time() - began))
            other = threading.Timer(20, lambda: state.fired.append("never"))
            timer.start()
            other.start()
            timer.join()
            other.cancel()
            other.join()

        setup = State
        threads = [body]
        invariant = lambda state: state.fired == [10]
        """)
    )


def test_locks_and_queues_that_existed_before_are_controlled(explore):
    everything_ends_well(
        explore.some("""
        import queue, threading
        from queue import SimpleQueue
        from threading import Condition, Lock, RLock

        lock, rlock, condition = Lock(), RLock(), Condition()
        semaphore, event, ready = threading.Semaphore(), threading.Event(), threading.Condition(lock)
        fifo, simple = queue.Queue(), SimpleQueue()
        value = 0

        def setup():
            global value
            value = 0
            event.clear()

        def body(_):
            global value
            with lock, rlock, condition, semaphore:
                value += 1
            ready.acquire()
            ready.release()
            fifo.put(1)
            simple.put(1)
            if value == 2:
                event.set()
            event.wait(5)
            assert fifo.get() == simple.get() == 1
            fifo.qsize()

        threads = [body, body]
        invariant = lambda _: value == 2 and fifo.empty() and not lock.locked()
        """)
    )


def test_a_lock_that_is_made_by_its_imported_name(explore):
    everything_ends_well(
        explore.some("""
        from threading import Lock, RLock, Thread

        class State:
            def __init__(self):
                self.lock = Lock()
                self.value = 0

            def add(self):
                with self.lock:
                    self.value += 1

        setup = State
        threads = [State.add] * 2
        invariant = lambda state: state.value == 2
        """)
    )


def test_thread_locals_are_empty_in_every_execution_wherever_they_were_made(explore):
    executions = explore.some("""
        import threading

        class Kept(threading.local):
            def __init__(self, start):
                self.value = start

        made_before, kept = threading.local(), Kept(3)

        def body():
            inside = threading.local()
            assert not hasattr(made_before, "value") and not hasattr(inside, "value")
            assert kept.value == 3
            kept.value += 1
            made_before.value = inside.value = 1
            made_before.value += 1
            assert (made_before.value, kept.value) == (2, 4)

        threads = [body, body]
        invariant = lambda: True
        """)
    everything_ends_well(executions)
    # They belong to one thread each, so there is nothing to choose but who begins.
    assert max(len(execution.choices) for execution in executions) <= 2


def test_each_body_has_a_thread_object_and_a_context_of_its_own(explore):
    everything_ends_well(
        explore.some("""
        import contextvars, threading

        variable = contextvars.ContextVar("variable", default=0)
        seen = []

        def setup():
            seen.clear()

        def body(_):
            me = threading.current_thread()
            assert not hasattr(me, "mark") and me.is_alive() and not me.daemon
            assert me.ident == threading.get_ident() and me in threading.enumerate()
            me.mark = True
            assert variable.get() == 0
            variable.set(1)
            seen.append(me)

        threads = [body, body]
        invariant = lambda _: len({id(thread) for thread in seen}) == 2
        """)
    )
