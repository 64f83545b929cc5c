"""One execution: determined by its choices, never stuck, and leaving nothing behind."""

import _thread
import gc
import os
import queue
import random
import signal
import sys
import threading
import time

import choosers
import pytest

from pytest_freethread.execution.baton import CAN_PIN, HAS_EVENTFD, Baton, Core
from pytest_freethread.execution.controlled import STOP, Controlled
from pytest_freethread.instrument import shadows

LOST_UPDATE = """
    class Counter:
        value = 0

        def __init__(self):
            self.value = 0

        def add(self):
            temp = self.value
            self.value = temp + 1

    setup = Counter
    threads = [Counter.add] * 2
    invariant = lambda counter: counter.value == 2
    """


def outcomes(executions):
    return {(execution.outcome, execution.holds) for execution in executions}


# --- every order, and nothing else ----------------------------------------------------------------


def test_a_lost_update_is_found_in_four_of_its_six_orders(explore):
    executions = explore.everything(LOST_UPDATE)
    assert len(executions) == 6
    assert sorted(execution.holds for execution in executions) == [False] * 4 + [True] * 2


def test_a_key_that_is_missed_by_both_is_computed_twice(explore):
    executions = explore.everything("""
        class Cache:
            def __init__(self):
                self.known = {}
                self.computed = []

            def get(self, key):
                if key not in self.known:
                    self.computed.append(key)
                    self.known[key] = key * 2
                return self.known[key]

        setup = Cache
        threads = [lambda cache: cache.get(1)] * 2
        invariant = lambda cache: len(cache.computed) == 1
        """)
    assert outcomes(executions) == {("ended", True), ("ended", False)}


def test_one_who_uses_and_one_who_closes_meet_in_both_orders(explore):
    executions = explore.everything("""
        import threading

        class Resource:
            def __init__(self):
                self.lock = threading.Lock()
                self.open = True

            def use(self):
                with self.lock:
                    assert self.open

            def close(self):
                with self.lock:
                    self.open = False

        setup = Resource
        threads = [Resource.use, Resource.close]
        """)
    failed = [execution for execution in executions if execution.thrown]
    assert 0 < len(failed) < len(executions)
    assert {each.thread for execution in failed for each in execution.thrown} == {0}


def test_locked_increments_have_all_their_orders(explore):
    executions = explore.everything("""
        import threading

        class State:
            def __init__(self):
                self.lock = threading.Lock()
                self.order = []

        def body(name):
            def run(state):
                for _ in range(2):
                    with state.lock:
                        state.order.append(name)

            return run

        def invariant(state):
            seen.add(tuple(state.order))

        setup = State
        threads = [body("a"), body("b")]
        seen = set()
        """)
    assert {execution.outcome for execution in executions} == {"ended"}
    module = sys.modules[max(name for name in sys.modules if "controlled_by_a_test" in name)]
    assert len(module.seen) == 6  # 4 over 2


def test_three_threads_have_ninety_orders(explore):
    source = LOST_UPDATE.replace("* 2", "* 3").replace("== 2", "== 3")
    executions = explore.everything(source)
    assert len(executions) == 90  # 6! / (2! 2! 2!)
    assert sum(execution.holds for execution in executions) == 6


# --- determined -----------------------------------------------------------------------------------

SOMETHING_OF_EVERYTHING = """
    import queue, random, threading, time
    from concurrent.futures import ThreadPoolExecutor

    class State:
        def __init__(self):
            self.lock, self.ready = threading.Lock(), threading.Condition()
            self.queue, self.items, self.total = queue.Queue(2), {}, 0

    def first(state):
        with ThreadPoolExecutor(2) as pool:
            results = [pool.submit(add, state, number) for number in range(3)]
            state.queue.put(sum(result.result() for result in results))
        with state.ready:
            state.ready.notify_all()

    def add(state, number):
        state.items[number] = random.random()
        state.total += number
        time.sleep(0.1)
        return number

    def second(state):
        with state.ready:
            state.ready.wait(5)
        state.items["got", 1] = state.queue.get()
        for item in state.items:
            str(item)

    setup = State
    threads = [first, second]
    invariant = lambda state: state.total == 3
    """


def comparable(execution):
    return (
        *(execution.outcome, execution.choices, execution.schedule, execution.steps),
        *(execution.counts, execution.holds, execution.names, execution.trace),
        [(each.phase, each.thread, repr(each.exception)) for each in execution.thrown],
        [(each.thread, each.operation, each.kind, each.place) for each in execution.waiting],
    )


def test_the_same_choices_give_the_same_execution(make_module):
    module = make_module(SOMETHING_OF_EVERYTHING)
    arguments = {"setup": module.setup, "invariant": module.invariant, "record": True}
    with Controlled([module]) as control:
        for seed in range(8):  # until it knows what is shared
            control.run(module.threads, choosers.drawn(seed), **arguments)
        for seed in range(8):
            announced = []

            def noting(enabled, current, pending, choose, to):
                to.append(
                    [each and (type(each.obj), each.key, each.write, each.site) for each in pending]
                )
                return choose(enabled, current, pending)

            runs = []
            for _ in range(2):
                heard, choose = [], choosers.drawn(seed)
                runs.append(
                    control.run(
                        module.threads,
                        lambda *asked, heard=heard, choose=choose: noting(*asked, choose, heard),
                        **arguments,
                    )
                )
                announced.append(heard)
            assert comparable(runs[0]) == comparable(runs[1])
            assert announced[0] == announced[1]


def following(schedule):
    """A chooser that makes the turns of a schedule, one step at a time."""
    turns = [[thread, steps] for thread, steps, _ in schedule]

    def choose(enabled, _current, _pending):
        while turns and turns[0][1] == 0:
            del turns[0]
        if not turns:
            return enabled[0]
        turns[0][1] -= 1
        return turns[0][0]

    return choose


@pytest.mark.parametrize("source", [LOST_UPDATE, SOMETHING_OF_EVERYTHING])
def test_a_schedule_is_the_same_wherever_there_is_something_to_choose(make_module, source):
    module = make_module(source)
    arguments = {"setup": module.setup, "invariant": module.invariant}
    with Controlled([module]) as control:
        originals = [
            control.run(module.threads, choosers.drawn(seed), **arguments) for seed in range(20)
        ]
    with Controlled([module], learn=False) as control:
        for original in originals:
            again = control.run(
                module.threads, following(original.schedule), followed=sys.maxsize, **arguments
            )
            assert again.outcome == original.outcome
            assert again.holds == original.holds
            assert again.counts == original.counts


def test_the_trace_says_what_was_read_and_written(explore):
    def one_by_one(enabled, current, _pending):
        return enabled[0] if current is None else enabled[(current + 1) % len(enabled)]

    execution = explore.once(LOST_UPDATE, one_by_one, record=True, learn=False)
    assert execution.holds is False
    assert [
        (step.thread, step.op, step.label, step.key, step.before, step.after)
        for step in execution.trace
    ] == [
        (0, "attribute read", "Counter", "value", "0", None),
        (1, "attribute read", "Counter", "value", "0", None),
        (0, "attribute write", "Counter", "value", "0", "1"),
        (1, "attribute write", "Counter", "value", "1", "1"),
    ]
    assert len({step.location for step in execution.trace}) == 1
    assert execution.counts == {0: 2, 1: 2}
    assert [step.place.line for step in execution.trace] == [9, 9, 10, 10]


def test_what_one_thread_alone_touches_is_nothing_to_choose_at(explore):
    executions = explore.some("""
        class State:
            def __init__(self):
                self.shared = 0
                self.left, self.right = [], []

        def fill(items):
            local = {}
            for number in range(10):
                local[number] = number
                items.append(number)

        def left(state):
            fill(state.left)
            state.shared += 1

        def right(state):
            fill(state.right)
            state.shared += 1

        setup = State
        threads = [left, right]
        """)
    assert executions[0].widened
    assert not executions[-1].widened
    assert executions[-1].steps > 40
    assert len(executions[-1].choices) <= 5


def test_a_location_that_is_shared_later_widens_the_search(explore):
    executions = explore.everything("""
        class State:
            def __init__(self):
                self.flag = False
                self.value = 0

        def first(state):
            state.flag = True
            state.value += 1

        def second(state):
            if state.flag:
                state.value += 1

        setup = State
        threads = [first, second]
        invariant = lambda state: state.value in (1, 2)
        """)
    assert not any(execution.widened for execution in executions)
    assert len(executions) > 6
    assert outcomes(executions) == {("ended", True)}


def test_random_numbers_and_clocks_are_the_same_in_every_execution(explore):
    seen = []
    source = """
        import random, time, uuid
        from time import perf_counter, sleep

        def body(out):
            began = perf_counter()
            sleep(5)
            out.append((random.random(), time.time(), time.monotonic_ns(), perf_counter() - began))

        setup = list
        threads = [body]
        invariant = lambda out: seen.append(out)
        seen = []
        """
    executions = explore.some(source, times=3)
    assert not any(execution.thrown for execution in executions)
    module = sys.modules[max(name for name in sys.modules if "controlled_by_a_test" in name)]
    seen = [each[0] for each in module.seen]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][3] == 5


# --- never stuck ----------------------------------------------------------------------------------


def test_a_spin_loop_lets_others_go_first(explore):
    execution = explore.once("""
        class State:
            def __init__(self):
                self.flag = False

        def spin(state):
            while not state.flag:
                pass

        def set(state):
            state.flag = True

        setup = State
        threads = [spin, set]
        """)
    assert execution.outcome == "ended"
    assert execution.spins == 1


@pytest.mark.parametrize(
    "loop",
    [
        "while not state.flag: pass",
        "while not state.flag: time.sleep(1)",
        "while not state.flag: time.sleep(0)",
        "while not state.lock.acquire(blocking=False): pass",
        "while time.monotonic(): state.flag",
    ],
)
def test_a_loop_that_nothing_ends_is_a_livelock(explore, loop):
    execution = explore.once(
        f"""
        import threading, time

        class State:
            def __init__(self):
                self.flag = False
                self.lock = threading.Lock()
                self.lock.acquire()

        def spin(state):
            {loop}

        setup = State
        threads = [spin, lambda state: state.flag]
        """,
        max_steps=1000,
    )
    assert execution.outcome == "livelock"
    assert execution.steps <= 1100
    assert [waiting.thread for waiting in execution.waiting] == [0]


def test_waiting_for_the_clock_passes_the_time(explore):
    execution = explore.once("""
        import time

        def body():
            until = time.monotonic() + 5
            while time.monotonic() < until:
                pass

        threads = [body]
        """)
    assert execution.outcome == "ended"


def test_a_body_that_blocks_for_real_is_outside_of_control_and_comes_back(explore):
    began = time.monotonic()
    execution = explore.once(
        """
        import os

        class State:
            def __init__(self):
                self.pipe = os.pipe()
                self.value = 0

        def reader(state):
            assert os.read(state.pipe[0], 1) == b"x"
            state.value += 1

        def writer(state):
            state.value += 1
            os.write(state.pipe[1], b"x")
            state.value += 1

        def invariant(state):
            for end in state.pipe:
                os.close(end)
            return state.value == 3

        setup = State
        threads = [reader, writer]
        """,
        patience=0.05,
        deadline=0.3,
    )
    assert (execution.outcome, execution.holds) == ("ended", True)
    assert execution.outside == (0,)
    assert time.monotonic() - began < 30


def test_a_body_that_never_comes_back_is_given_up(explore):
    execution = explore.once(
        """
        def runaway():
            while True:
                pass

        def fine():
            return 1

        threads = [runaway, fine]
        """,
        patience=0.05,
        deadline=0.3,
    )
    assert execution.outcome == "partial-control"
    assert execution.outside == (0,)
    assert [waiting.thread for waiting in execution.waiting] == [0]


def test_threads_that_are_stuck_are_unwound_through_their_finally_blocks(explore):
    source = """
        import threading

        log = []

        class State:
            def __init__(self):
                self.lock, self.event = threading.Lock(), threading.Event()
                self.changed = threading.Condition()
                log.clear()

        def body(state):
            try:
                with state.changed:
                    state.changed.wait()
            finally:
                log.append("unwound")
                with state.lock:
                    state.event.wait()
                log.append("never")

        def stubborn(state):
            while True:
                try:
                    state.event.wait()
                except BaseException:
                    if len(log) > 3:
                        raise
                    log.append("again")

        setup = State
        threads = [body, stubborn]
        """
    execution = explore.once(source)
    assert execution.outcome == "lost-wakeup"
    assert execution.thrown == ()
    module = sys.modules[max(name for name in sys.modules if "controlled_by_a_test" in name)]
    assert module.log.count("unwound") == 1
    assert "never" not in module.log


def test_a_lock_that_existed_before_is_free_again_after_a_deadlock(explore):
    executions = explore.some(
        """
        import threading

        first, second = threading.Lock(), threading.RLock()

        def forth():
            first.acquire()
            with second:
                pass
            first.release()

        def back():
            second.acquire()
            with first:
                pass
            second.release()

        threads = [forth, back]
        """,
        times=40,
    )
    assert {execution.outcome for execution in executions} == {"ended", "deadlock"}
    module = sys.modules[max(name for name in sys.modules if "controlled_by_a_test" in name)]
    assert module.first.acquire(blocking=False)
    assert module.second.acquire(blocking=False)


def test_a_lock_that_nobody_gives_back_blocks_the_others(explore):
    execution = explore.once("""
        import threading

        lock = threading.Lock()
        threads = [lambda: lock.acquire(), lambda: lock.acquire()]
        """)
    assert execution.outcome == "deadlock"
    (waiting,) = execution.waiting
    assert (waiting.thread, waiting.by) == (1, 0)


@pytest.mark.parametrize(
    "kind", ["KeyboardInterrupt", "SystemExit", "RecursionError", "ValueError"]
)
def test_what_a_body_throws_is_taken_down(explore, kind):
    statement = "body()" if kind == "RecursionError" else f"raise {kind}"
    execution = explore.once(f"""
        def body():
            {statement}

        threads = [body, lambda: None]
        """)
    (thrown,) = execution.thrown
    assert (thrown.phase, thrown.thread, type(thrown.exception).__name__) == ("body", 0, kind)
    assert execution.outcome == "ended"


def test_exceptions_in_setup_and_invariant_are_told_apart(explore):
    source = """
        def setup():
            {setup}

        def invariant(_):
            {invariant}

        threads = [lambda _: None]
        """
    first = explore.once(source.format(setup="1 / 0", invariant="pass"))
    second = explore.once(source.format(setup="pass", invariant="assert False, 'broken'"))
    third = explore.once(source.format(setup="pass", invariant="return False"))
    assert [(each.phase, str(each.exception)) for each in first.thrown] == [
        ("setup", "division by zero")
    ]
    assert [each.phase for each in second.thrown] == ["invariant"]
    assert (third.thrown, third.holds) == ((), False)


def test_a_setup_that_waits_for_nobody_ends(explore):
    execution = explore.once("""
        import threading

        setup = lambda: threading.Event().wait()
        threads = [lambda _: None]
        """)
    assert execution.outcome == "lost-wakeup"
    assert [waiting.name for waiting in execution.waiting] == [threading.current_thread().name]


def test_a_service_that_setup_starts_and_the_invariant_stops(explore):
    executions = explore.some("""
        import queue, threading

        class Service:
            def __init__(self):
                self.tasks, self.done = queue.Queue(), []
                self.thread = threading.Thread(target=self.serve)
                self.thread.start()

            def serve(self):
                while (task := self.tasks.get()) is not None:
                    self.done.append(task)

            def stop(self):
                self.tasks.put(None)
                self.thread.join()
                return sorted(self.done) == [1, 2]

        setup = Service
        threads = [lambda service: service.tasks.put(1), lambda service: service.tasks.put(2)]
        invariant = Service.stop
        """)
    assert outcomes(executions) == {("ended", True)}
    assert all(execution.waiting == () for execution in executions)


def test_a_thread_that_is_left_behind_runs_on_before_the_invariant_is_asked(explore):
    executions = explore.some("""
        import threading

        class State:
            def __init__(self):
                self.done = []

        def body(state):
            threading.Thread(target=lambda: state.done.append(1)).start()

        def forever(state):
            threading.Thread(target=threading.Event().wait, daemon=True).start()

        setup = State
        threads = [body, forever]
        invariant = lambda state: state.done == [1]
        """)
    assert outcomes(executions) == {("ended", True)}
    assert {each.daemon for execution in executions for each in execution.waiting} == {True}


def test_a_timeout_may_fire_early_if_that_is_a_choice(explore):
    source = """
        import threading

        class State:
            def __init__(self):
                self.ready = threading.Event()

        def waiter(state):
            assert state.ready.wait(0.05)

        setup = State
        threads = [waiter, lambda state: state.ready.set()]
        """
    late = explore.everything(source)
    early = explore.everything(source, early_timeouts=1)
    assert not any(execution.thrown for execution in late)
    assert 0 < sum(bool(execution.thrown) for execution in early) < len(early)


def test_a_chooser_may_stop_an_execution_or_be_wrong_or_broken(make_module):
    module = make_module(LOST_UPDATE)
    with Controlled([module]) as control:
        stopped = control.run(module.threads, lambda *_: STOP, setup=module.setup)
        wrong = control.run(module.threads, lambda *_: 7, setup=module.setup)
        with pytest.raises(ZeroDivisionError):
            control.run(module.threads, lambda *_: 1 / 0, setup=module.setup)
        fine = control.run(module.threads, choosers.stay, setup=module.setup)
    assert stopped.outcome == "stopped"
    assert (wrong.outcome, wrong.diverged) == ("diverged", (0, 7, (0, 1)))
    assert fine.outcome == "ended"


# --- nothing left behind --------------------------------------------------------------------------


def everything_patched():
    namespaces = [vars(module) for module in (threading, queue, time, _thread, random)]
    classes = (threading.Thread, threading.Condition, threading.Event, threading.Semaphore)
    tables = [*namespaces, *(vars(each) for each in (*classes, queue.Queue))]
    return [{key: id(value) for key, value in table.items() if callable(value)} for table in tables]


def affinity():
    return os.sched_getaffinity(0) if CAN_PIN else None


@pytest.mark.parametrize("leaves_by", ["end", "exception", "chooser", "interrupt", "deadlock"])
def test_everything_is_as_before_however_it_ends(make_module, leaves_by):
    module = make_module(
        LOST_UPDATE
        + """
    import os, signal, threading, time
    from threading import Lock
    from time import sleep

    def interrupted(counter):
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            counter.value

    def stuck(counter):
        threading.Event().wait()
    """
    )
    codes = {key: value.__code__ for key, value in vars(module.Counter).items() if key == "add"}
    before = everything_patched(), affinity(), gc.isenabled(), random.getstate()
    names = dict(vars(module))

    def leave():
        with Controlled([module]) as control:
            control.run(module.threads, choosers.stay, setup=module.setup)
            if leaves_by == "exception":
                raise ValueError
            if leaves_by == "chooser":
                control.run(module.threads, lambda *_: 1 / 0, setup=module.setup)
            if leaves_by == "interrupt":
                control.run(
                    [module.interrupted], choosers.stay, setup=module.setup, max_steps=10**9
                )
            if leaves_by == "deadlock":
                execution = control.run([module.stuck], choosers.stay, setup=module.setup)
                assert execution.outcome == "lost-wakeup"

    errors = {
        "exception": ValueError,
        "chooser": ZeroDivisionError,
        "interrupt": KeyboardInterrupt,
    }
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if leaves_by in errors:
            with pytest.raises(errors[leaves_by]):
                leave()
        else:
            leave()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (everything_patched(), affinity(), gc.isenabled(), random.getstate()) == before
    assert {key: vars(module.Counter)[key].__code__ for key in codes} == codes
    assert vars(module) == names
    assert shadows._conductor is None
    # and real threads, locks, clocks work
    real = threading.Thread(target=time.monotonic)
    real.start()
    real.join(10)
    assert not real.is_alive()
    assert type(threading.Lock()) is shadows.LockType
    with Controlled([module]) as control:  # and another exploration
        assert control.run(module.threads, choosers.stay, setup=module.setup).outcome == "ended"


def test_only_one_exploration_at_a_time(make_module):
    module = make_module(LOST_UPDATE)
    with Controlled([module]) as control:
        with pytest.raises(RuntimeError, match="under way already"), Controlled([module]):
            pass
        assert control.run(module.threads, choosers.stay, setup=module.setup).outcome == "ended"
    assert shadows._conductor is None


def test_objects_made_in_a_run_work_in_real_threads_afterwards(make_module):
    module = make_module("""
        import queue, threading

        made = []

        def body():
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
            made.extend([threading.Lock(), threading.RLock(), threading.Condition()])
            made.extend([threading.Event(), queue.SimpleQueue(), queue.Queue(), thread])
            with made[0], made[1], made[2]:
                made[2].notify()
            made[5].put(2)

        threads = [body]
        """)
    with Controlled([module]) as control:
        assert control.run(module.threads, choosers.stay).thrown == ()
    lock, rlock, condition, event, simple, fifo, thread = module.made
    got = []

    def use():
        with lock, rlock, rlock:
            got.append(fifo.get(timeout=10))
        with condition:
            event.set()
            condition.wait(10)
            got.append(simple.get(timeout=10))

    user = threading.Thread(target=use)
    user.start()
    assert event.wait(10)
    with condition:
        condition.notify()
    simple.put(3)
    user.join(10)
    assert got == [2, 3]
    assert not thread.is_alive()
    thread.join(1)
    assert "stopped" in repr(thread)


def test_threads_that_are_not_controlled_go_on_as_ever(make_module):
    module = make_module(LOST_UPDATE)
    stop, turns = threading.Event(), []
    lock = threading.Lock()

    def bystander():
        while not stop.wait(0.001):
            other, condition = threading.Lock(), threading.Condition()
            with lock, other, condition:
                turns.append(type(other))
            queue.Queue().put(1)

    thread = threading.Thread(target=bystander)
    thread.start()
    try:
        with Controlled([module]) as control:
            before = len(turns)
            while len(turns) < before + 3:
                execution = control.run(module.threads, choosers.drawn(1), setup=module.setup)
                assert execution.outcome == "ended"
                assert execution.outside == ()
    finally:
        stop.set()
        thread.join(10)
    assert set(turns) == {shadows.LockType}


@pytest.mark.parametrize(
    "eventfd",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not HAS_EVENTFD, reason="the platform has none")
        ),
    ],
)
def test_batons_of_both_kinds_hand_over(make_module, eventfd):
    module = make_module(LOST_UPDATE)
    with Controlled([module], eventfd=eventfd) as control:
        found = [
            control.run(
                module.threads,
                choosers.drawn(seed),
                setup=module.setup,
                invariant=module.invariant,
            ).holds
            for seed in range(40)
        ]
    assert set(found) == {True, False}
    baton = Baton(eventfd=eventfd)
    assert not baton.take_within(0)
    baton.give()
    assert baton.take_within(0)
    baton.give()
    baton.take()
    baton.close()


@pytest.mark.skipif(not CAN_PIN, reason="the platform cannot tie a thread to a core")
def test_an_exploration_is_tied_to_the_core_that_it_is_told(make_module):
    module = make_module("""
        import os

        threads = [lambda: seen.append(os.sched_getaffinity(0))] * 2
        seen = []
        """)
    allowed = sorted(os.sched_getaffinity(0))
    for index in range(len(allowed) + 1):
        with Controlled([module], core=index) as control:
            control.run(module.threads, choosers.stay)
    assert module.seen == [
        {allowed[i % len(allowed)]} for i in range(len(allowed) + 1) for _ in "ab"
    ]
    assert os.sched_getaffinity(0) == set(allowed)
    core = Core(0)
    core.tie(threading.get_native_id())
    core.release()
    assert os.sched_getaffinity(0) == set(allowed)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is not known elsewhere")
def test_whether_a_thread_is_runnable_is_asked_without_an_import(run_program):
    run_program("""
        import sys, threading
        from pytest_freethread import interpreter

        modules = set(sys.modules)
        assert interpreter.is_runnable(threading.get_native_id())
        assert set(sys.modules) == modules
    """)
