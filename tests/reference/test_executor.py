"""The executor, by user story: alone, in plain threads, as a property, under stress."""

import ast
import doctest
import gc
import inspect
import itertools
import math
import pathlib
import queue
import re
import subprocess
import sys
import threading
import types
import weakref
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_freethread import stress
from pytest_freethread.reference import executor
from pytest_freethread.reference.executor import (
    CycleError,
    ParallelExecutor,
    Status,
    Task,
    TaskNotRunError,
    UndeclaredAccessError,
)

PATIENCE = 30.0  # seconds until a test that hangs is called failed
SOON = 0.02  # a timeout that is meant to be reached


class Call(threading.Thread):
    """`function(*args)` in a thread of its own."""

    def __init__(self, function, *args, **kwargs):
        super().__init__(daemon=True)
        self._call = partial(function, *args, **kwargs)
        self._error = None
        self.start()

    def run(self):
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(PATIENCE)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._value


class Gate(threading.Event):
    """A function that hangs until the gate is opened, and says who is in it."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.threads = []

    def __call__(self, *_):
        self.threads.append(threading.current_thread())
        self.entered.set()
        self.wait(PATIENCE)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.set()
    for thread in gate.threads:
        thread.join(PATIENCE)


@pytest.fixture
def pool(gate):  # noqa: ARG001  the order of tearing down: no close() waits for an open gate
    with ParallelExecutor(workers=4, timeout=PATIENCE) as pool:
        yield pool


@pytest.fixture
def clock(monkeypatch):
    """The executor's clock, which only tasks and tests move."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(executor, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def get(key):
    return lambda state: state[key]


def put(key, value):
    return lambda state: state.update({key: value})


def add(key, number=1):
    def fn(state):
        state[key] += number

    return Task(fn, reads={key}, writes={key})


def fail(*_):
    raise ValueError("no luck")


def statuses(result):
    return {one.name: one.status for one in result.results}


def outcome(result, name):
    return next(one for one in result.results if one.name == name)


def entry(result, name):
    return next(entry for entry in result.trace if entry.task == name)


def living(pool):
    """The threads of a pool, without those left to tasks that were given up on."""
    threads = [worker.thread for worker in pool._workers]
    return [thread for thread in threads if thread is not None and thread.is_alive()]


def assert_full_strength(pool, workers):
    """All workers of the pool can be at work at the same time."""
    together = threading.Barrier(workers)
    pool.run([partial(together.wait, PATIENCE)] * workers).values()


class TestABatch:
    def test_of_plain_functions_gives_their_values_in_submission_order(self, pool):
        assert pool.run([lambda: "a", lambda: "b", lambda: "c"]).values() == ("a", "b", "c")

    def test_keeps_submission_order_when_its_tasks_end_in_reverse(self, pool):
        ended = [threading.Event() for _ in range(4)]

        def task(number):
            if number < 3:
                assert ended[number + 1].wait(PATIENCE)
            ended[number].set()
            return number

        result = pool.run([partial(task, number) for number in range(4)])
        assert result.values() == (0, 1, 2, 3)
        assert [one.name for one in result.results] == ["task-0", "task-1", "task-2", "task-3"]

    def test_may_be_empty(self, pool):
        result = pool.run([], {"kept": 1})
        assert (result.values(), result.serial_order(), result.levels, result.trace) == ((),) * 4
        assert result.state == {"kept": 1}
        assert result.statistics.total == result.statistics.throughput == 0
        assert result.verify_serial_equivalence()

    def test_may_be_one_task(self, pool):
        result = pool.run([lambda: 42])
        assert result.values() == (42,)
        assert [entry.task for entry in result.trace] == ["task-0"]

    def test_may_have_far_more_tasks_than_there_are_workers(self):
        with ParallelExecutor(workers=3) as pool:
            result = pool.run(partial(pow, number, 2) for number in range(2000))
        assert result.values() == tuple(number**2 for number in range(2000))
        assert len({entry.thread for entry in result.trace}) <= 3

    def test_of_a_thousand_tasks_that_all_conflict_runs_in_submission_order(self, pool):
        result = pool.run([add("n") for _ in range(1000)], {"n": 0})
        assert result.state == {"n": 1000}
        assert [entry.task for entry in result.trace] == list(result.tasks)
        assert [entry.level for entry in result.trace] == list(range(1000))
        assert result.verify_serial_equivalence()

    def test_of_a_thousand_tasks_over_a_hundred_keys_loses_no_update(self, pool):
        keys = [f"key-{number}" for number in range(100)]
        result = pool.run([add(key, n) for n in range(10) for key in keys], dict.fromkeys(keys, 0))
        assert result.state == dict.fromkeys(keys, 45)
        assert [len(level) for level in result.levels] == [100] * 10
        assert result.verify_serial_equivalence()

    def test_reuses_the_threads_of_the_batches_before_it(self, pool):
        threads = set()
        for _ in range(50):
            result = pool.run([lambda: 1] * 10)
            assert result.values() == (1,) * 10
            threads |= {entry.thread for entry in result.trace}
        assert len(threads) <= 4

    def test_starts_no_more_threads_than_it_has_tasks(self, pool):
        pool.run([lambda: 1])
        assert len(living(pool)) == 1

    def test_runs_as_many_tasks_at_once_as_there_are_workers(self, pool):
        assert_full_strength(pool, 4)

    def test_leaves_its_values_to_the_caller_alone(self, pool):
        class Value:
            pass

        gone = threading.Event()
        values = pool.run([Value]).values()
        weakref.finalize(values[0], gone.set)
        del values
        # Without the GIL, a thread that sleeps leaves its objects to the collector.
        assert any(gone.wait(0.01) or gc.collect() < 0 for _ in range(1000))

    def test_gives_all_errors_at_once_to_who_asks_for_the_values(self, pool):
        result = pool.run([fail, lambda: 1, partial(int, "x")])
        with pytest.raises(ExceptionGroup, match="2 of 3 tasks did not succeed") as raised:
            result.values()
        assert raised.value.exceptions == (result.results[0].error, result.results[2].error)


class TestOrder:
    def test_a_task_starts_after_the_tasks_it_names(self, pool):
        done = []
        result = pool.run(
            [
                Task(lambda: done.append("build"), name="build", after=["write", "design"]),
                Task(lambda: done.append("write"), name="write", after=("design",)),
                Task(lambda: done.append("design"), name="design"),
            ]
        )
        assert done == ["design", "write", "build"]
        assert result.levels == (("design",), ("write",), ("build",))
        assert result.serial_order() == ("design", "write", "build")

    @pytest.mark.parametrize(
        ("first", "second", "levels"),
        [("w", "r", 2), ("r", "w", 2), ("w", "w", 2), ("rw", "rw", 2), ("r", "r", 1)],
    )
    def test_tasks_conflict_over_a_key_unless_both_only_read_it(self, pool, first, second, levels):
        def task(name, use):
            uses = {"reads": {"x"} if "r" in use else (), "writes": {"x"} if "w" in use else ()}
            return Task(lambda _: None, name=name, **uses)

        result = pool.run([task("one", first), task("two", second)], {"x": 0})
        assert len(result.levels) == levels
        assert result.serial_order() == ("one", "two")

    def test_a_reader_sees_the_writes_before_it_and_none_after_it(self, pool):
        look = Task(get("x"), reads={"x"})
        one = Task(put("x", 1), writes={"x"})
        two = Task(put("x", 2), writes={"x"})
        result = pool.run([look, one, look, look, two, look], {"x": 0})
        assert result.values() == (0, None, 1, 1, None, 2)
        assert [len(level) for level in result.levels] == [1, 1, 2, 1, 1]

    def test_tasks_on_different_keys_overlap(self, pool):
        together = threading.Barrier(2)

        def meet(key, state):
            together.wait(PATIENCE)
            state[key] = "met"

        result = pool.run([Task(partial(meet, key), writes={key}) for key in "ab"])
        assert result.state == {"a": "met", "b": "met"}

    def test_a_level_starts_when_the_level_before_it_has_ended(self, pool):
        result = pool.run(
            [add(key) for _ in range(20) for key in "abcde"], dict.fromkeys("abcde", 0)
        )
        for number in range(1, 20):
            before = [entry for entry in result.trace if entry.level == number - 1]
            after = [entry for entry in result.trace if entry.level == number]
            assert len(before) == len(after) == 5
            assert max(one.end for one in before) <= min(one.start for one in after)


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: ParallelExecutor(0), ValueError, "workers must be at least 1, not 0"),
            (lambda: ParallelExecutor(-3), ValueError, "workers must be at least 1, not -3"),
            (lambda: ParallelExecutor("8"), TypeError, "workers must be an integer, not '8'"),
            (lambda: ParallelExecutor(2.5), TypeError, "workers must be an integer, not 2.5"),
            (lambda: ParallelExecutor(True), TypeError, "workers must be an integer, not True"),
            (
                lambda: ParallelExecutor(timeout=-1),
                ValueError,
                "timeout must be more than 0 seconds, not -1",
            ),
            (
                lambda: ParallelExecutor(timeout=math.nan),
                ValueError,
                "timeout must be more than 0 seconds, not nan",
            ),
            (
                lambda: ParallelExecutor(timeout="1"),
                TypeError,
                "timeout must be a number of seconds, not '1'",
            ),
            (
                lambda: Task(print, timeout=-0.5),
                ValueError,
                "a task's timeout must be more than 0 seconds, not -0.5",
            ),
            (lambda: Task("print"), TypeError, "a task's function must be callable, not 'print'"),
            (lambda: Task(print, name=3), TypeError, "a task's name must be a string, not 3"),
            (lambda: Task(print, name=""), ValueError, "a task's name must not be empty"),
            (
                lambda: Task(print, after="ab"),
                TypeError,
                "a task's 'after' must be a collection of names, not 'ab'",
            ),
            (
                lambda: Task(print, reads={1}),
                TypeError,
                "a task's 'reads' must be a collection of names, not {1}",
            ),
            (
                lambda: Task(print, writes="x"),
                TypeError,
                "a task's 'writes' must be a collection of names, not 'x'",
            ),
        ],
    )
    def test_a_bad_setting_is_answered_with_its_value(self, make, error, message):
        with pytest.raises(error, match=re.escape(message)):
            make()

    @pytest.mark.parametrize(
        ("tasks", "options", "error", "message"),
        [
            ([3], {}, TypeError, "a task's function must be callable, not 3"),
            ([], {"state": [1]}, TypeError, "state must be a mapping, not [1]"),
            (
                [],
                {"batch_timeout": -2},
                ValueError,
                "batch_timeout must be more than 0 seconds, not -2",
            ),
            (
                [Task(print, name="a"), print, Task(print, name="a")],
                {},
                ValueError,
                "two tasks are named 'a': those at positions 0 and 2",
            ),
            (
                [Task(print, name="task-1"), print],
                {},
                ValueError,
                "two tasks are named 'task-1': those at positions 0 and 1",
            ),
            (
                [Task(print, name="a", after=("b",))],
                {},
                ValueError,
                "task 'a' is to run after 'b', but no task has that name",
            ),
        ],
    )
    def test_a_bad_batch_is_answered_with_its_value(self, pool, tasks, options, error, message):
        with pytest.raises(error, match=re.escape(message)):
            pool.run(tasks, **options)

    @pytest.mark.parametrize(
        ("tasks", "cycle"),
        [
            ({"a": "a"}, "a -> a"),
            ({"a": "b", "b": "a"}, "a -> b -> a"),
            ({"x": "", "c": "b", "b": "a", "a": "c"}, "c -> b -> a -> c"),
            ({"a": "b", "b": "cd", "c": "", "d": "b"}, "b -> d -> b"),
        ],
    )
    def test_a_cycle_is_refused_and_named(self, pool, tasks, cycle):
        with pytest.raises(CycleError) as raised:
            pool.run([Task(fail, name=name, after=tuple(up)) for name, up in tasks.items()])
        assert str(raised.value) == f"tasks wait for each other: {cycle}"
        assert raised.value.cycle == tuple(cycle.split(" -> "))

    def test_a_cycle_through_a_conflict_says_over_which_key(self, pool):
        first = Task(fail, name="first", after=("second",), reads={"x"})
        second = Task(fail, name="second", writes={"x"})
        with pytest.raises(CycleError) as raised:
            pool.run([first, second])
        assert str(raised.value) == (
            "tasks wait for each other: first -> second -> first;"
            " 'second' waits for 'first' because both use 'x'"
        )

    def test_a_refused_batch_runs_nothing_and_does_no_harm(self, pool):
        ran = []
        with pytest.raises(ValueError, match="two tasks"):
            pool.run([Task(partial(ran.append, 1), name="a"), Task(fail, name="a")])
        assert not ran
        assert pool.run([lambda: "fine"]).values() == ("fine",)

    def test_a_task_keeps_its_own_copy_of_what_it_was_declared_with(self):
        reads, after = {"x"}, ["a"]
        task = Task(fail, reads=reads, after=after)
        reads.add("y")
        after.append("b")
        assert (task.reads, task.after, task.writes) == (frozenset("x"), ("a",), frozenset())


class TestState:
    def test_the_callers_mapping_is_never_written(self, pool):
        mine = {"n": 1, "items": [1]}
        result = pool.run(
            [add("n"), Task(lambda s: s["items"].append(2), reads={"items"}, writes={"items"})],
            mine,
        )
        assert mine == {"n": 1, "items": [1]} == result.initial_state
        assert result.state == {"n": 2, "items": [1, 2]}

    def test_the_state_of_a_result_is_read_only(self, pool):
        with pytest.raises(TypeError, match="does not support item assignment"):
            pool.run([]).state["x"] = 1

    def test_a_task_without_reads_and_writes_is_called_with_nothing(self, pool):
        assert pool.run([Task(lambda *args: args, name="a")], {"x": 1}).values() == ((),)

    def test_a_value_that_is_only_read_is_the_object_itself(self, pool):
        value = object()
        assert pool.run([Task(get("x"), reads={"x"})], {"x": value}).values() == (value,)

    def test_a_value_that_is_written_is_stored_as_it_is(self, pool):
        value = object()
        assert pool.run([Task(put("x", value), writes={"x"})]).state["x"] is value

    def test_a_value_that_is_read_and_written_is_copied_once(self, pool):
        value = [[]]
        task = Task(lambda s: (s["x"], s["x"][0], s["x"]), reads={"x"}, writes={"x"})
        [(copy, inner, again)] = pool.run([task], {"x": value}).values()
        assert copy == value
        assert copy is again
        assert copy is not value
        assert inner is not value[0]

    def test_a_value_that_cannot_be_copied_fails_the_task_and_says_where(self, pool):
        task = Task(get("lock"), name="a", reads={"lock"}, writes={"lock"})
        result = pool.run([task], {"lock": threading.Lock()})
        assert isinstance(result.results[0].error, TypeError)
        assert result.results[0].error.__notes__ == [
            "while copying state['lock'], which task 'a' writes"
        ]

    def test_a_task_sees_its_own_writes_and_deletions(self, pool):
        def task(state):
            state["new"] = 1
            state["new"] += 1
            del state["old"]
            return state["new"], "old" in state, state.get("old", "gone"), dict(state), len(state)

        result = pool.run([Task(task, reads={"old"}, writes={"old", "new"})], {"old": 0})
        assert result.values() == ((2, False, "gone", {"new": 2}, 1),)
        assert result.state == {"new": 2}

    def test_a_view_shows_the_declared_keys_that_exist_in_sorted_order(self, pool):
        task = Task(list, reads={"d", "b", "a", "missing"}, writes={"a"})
        assert pool.run([task], {"d": 0, "c": 0, "b": 0, "a": 0}).values() == (["a", "b", "d"],)

    def test_a_missing_key_is_a_key_error(self, pool):
        tasks = [
            Task(get("x"), reads={"x"}),
            Task(lambda s: s.pop("x"), reads={"x"}, writes={"x"}),
            Task(lambda s: s.__delitem__("x"), reads={"x"}, writes={"x"}),
        ]
        assert [type(one.error) for one in pool.run(tasks).results] == [KeyError] * 3

    def test_a_key_can_be_deleted_unseen(self, pool):
        task = Task(lambda s: s.__delitem__("x"), writes={"x"})
        assert pool.run([task], {"x": 0, "y": 1}).state == {"y": 1}

    @pytest.mark.parametrize(
        ("access", "message"),
        [
            (lambda s: s["b"], "may not read state['b']: its reads are ['a']"),
            (lambda s: s.get("b", 0), "may not read state['b']: its reads are ['a']"),
            (lambda s: "b" in s, "may not read state['b']: its reads are ['a']"),
            (lambda s: s["c"], "may not read state['c']: its reads are ['a']"),
            (lambda s: s.update(a=1), "may not write state['a']: its writes are ['c']"),
            (lambda s: s.pop("a"), "may not write state['a']: its writes are ['c']"),
            (lambda s: s.clear(), "may not write state['a']: its writes are ['c']"),
        ],
    )
    def test_an_undeclared_access_fails_the_task(self, pool, access, message):
        state = {"a": 1, "b": 2, "c": 3}
        result = pool.run([Task(access, name="t", reads={"a"}, writes={"c"}), add("a")], state)
        assert isinstance(result.results[0].error, UndeclaredAccessError)
        assert str(result.results[0].error) == f"task 't' {message}"
        assert result.state == {"a": 2, "b": 2, "c": 3}

    def test_an_undeclared_access_fails_the_task_even_if_it_is_caught(self, pool):
        def sly(state):
            state["a"] = 1
            try:
                state["b"] = 2
            except RuntimeError:
                return "all is well"

        result = pool.run([Task(sly, writes={"a"})])
        assert isinstance(result.results[0].error, UndeclaredAccessError)
        assert (result.results[0].value, result.state) == (None, {})

    def test_a_failing_task_leaves_no_trace_in_the_state(self, pool):
        def task(state):
            state["items"].append(2)
            state["new"] = 1
            del state["old"]
            fail()

        before = {"items": [1], "old": 0}
        result = pool.run([Task(task, reads=before, writes={*before, "new"})], before)
        assert result.state == {"items": [1], "old": 0}

    def test_a_commit_is_seen_whole_or_not_at_all(self, pool):
        keys = [f"key-{number}" for number in range(20)]
        both = {"reads": keys, "writes": keys}
        bump = Task(lambda s: s.update({key: s[key] + 1 for key in keys}), **both)
        look = Task(lambda s: len(set(s.values())), reads=keys)
        result = pool.run([bump, look, look, look] * 25, dict.fromkeys(keys, 0))
        assert {one.value for one in result.results} == {None, 1}


class TestFailure:
    def test_of_a_task_fails_its_dependants_and_nothing_else(self, pool):
        result = pool.run(
            [
                Task(fail, name="bad"),
                Task(lambda: 1, name="child", after=("bad",)),
                Task(lambda: 1, name="grandchild", after=("other", "child")),
                Task(lambda: 1, name="other"),
                Task(lambda: 1, name="last", after=("other",)),
            ]
        )
        assert statuses(result) == {
            "bad": Status.FAILED,
            "child": Status.SKIPPED,
            "grandchild": Status.SKIPPED,
            "other": Status.SUCCEEDED,
            "last": Status.SUCCEEDED,
        }
        assert [one.because_of for one in result.results] == [None, "bad", "bad", None, None]
        grandchild = outcome(result, "grandchild").error
        assert isinstance(grandchild, TaskNotRunError)
        assert grandchild.__cause__ is outcome(result, "bad").error
        assert str(grandchild) == (
            "task 'grandchild' was skipped: it depends on task 'bad', which failed (ValueError)"
        )
        assert [entry.task for entry in result.trace] != list(result.tasks)
        assert result.serial_order() == ("bad", "other", "last")

    def test_of_a_task_does_not_stop_those_that_only_come_after_it_by_conflict(self, pool):
        bad = Task(fail, reads={"x"}, writes={"x"})
        result = pool.run([bad, add("x"), bad, add("x")], {"x": 0})
        assert result.state == {"x": 2}
        assert result.statistics.succeeded == 2

    def test_of_everything_is_a_result_too(self, pool):
        result = pool.run([fail] * 100)
        assert set(statuses(result).values()) == {Status.FAILED}
        assert result.statistics.failed == 100
        assert result.verify_serial_equivalence()

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
    def test_by_an_error_that_would_end_a_thread_ends_the_task_alone(self, pool, error):
        def leave():
            raise error

        result = pool.run([leave] * 8 + [lambda: "fine"])
        assert [one.error for one in result.results] == [error] * 8 + [None]
        assert_full_strength(pool, 4)
        with pytest.raises(BaseExceptionGroup):
            result.values()

    def test_is_told_with_the_traceback_of_the_users_code_alone(self, pool):
        [one] = pool.run([fail]).results
        assert one.error.__traceback__.tb_frame.f_code is fail.__code__

    def test_whose_error_cannot_be_printed_still_names_its_dependants(self, pool):
        class Unspeakable(Exception):  # noqa: N818  the name is the point
            def __repr__(self):
                raise RuntimeError

            __str__ = __repr__

        def task():
            raise Unspeakable

        result = pool.run([Task(task, name="a"), Task(fail, name="b", after=("a",))])
        assert str(result.results[1].error).endswith("'a', which failed (Unspeakable)")


class TestTimeouts:
    def test_a_stuck_task_is_given_up_on_with_its_dependants_and_the_rest_goes_on(self, pool, gate):
        result = pool.run(
            [
                Task(gate, name="stuck", timeout=SOON),
                Task(fail, name="child", after=("stuck",)),
                Task(lambda: 1, name="other"),
                Task(lambda: 2, name="last", after=("other",)),
            ]
        )
        assert statuses(result) == {
            "stuck": Status.TIMED_OUT,
            "child": Status.SKIPPED,
            "other": Status.SUCCEEDED,
            "last": Status.SUCCEEDED,
        }
        assert isinstance(outcome(result, "stuck").error, TimeoutError)
        assert str(outcome(result, "stuck").error) == (
            "task 'stuck' was given up on: it reached its timeout of 0.02 s"
        )
        assert outcome(result, "child").because_of == "stuck"
        assert "timed out (TimeoutError)" in str(outcome(result, "child").error)
        assert result.serial_order() == ("other", "last")
        assert result.verify_serial_equivalence()

    def test_the_executors_timeout_holds_for_tasks_without_their_own(self, gate):
        with ParallelExecutor(workers=1, timeout=SOON) as pool:
            result = pool.run([gate, Task(gate, timeout=2 * SOON)])
        assert [str(one.error)[-6:] for one in result.results] == ["0.02 s", "0.04 s"]

    def test_a_task_may_take_as_long_as_it_needs_without_a_timeout(self, clock):
        with ParallelExecutor(workers=1, timeout=math.inf) as pool:
            result = pool.run([lambda: setattr(clock, "now", clock.now + 1e9)])
        assert result.statistics.succeeded == 1

    def test_the_pool_keeps_its_size_though_all_its_threads_are_stuck(self, gate):
        with ParallelExecutor(workers=2) as pool:
            for _ in range(3):
                result = pool.run([Task(gate, timeout=SOON)] * 2)
                assert set(statuses(result).values()) == {Status.TIMED_OUT}
            assert_full_strength(pool, 2)

    def test_more_stuck_tasks_than_workers_cannot_hang_a_batch(self, gate):
        with ParallelExecutor(workers=2) as pool:
            result = pool.run([Task(gate, timeout=SOON)] * 7 + [lambda: "fine"])
        assert result.statistics.succeeded == 1
        assert len({thread.name for thread in gate.threads}) == 7

    def test_what_a_task_does_after_it_was_given_up_on_has_no_effect(self, pool, gate):
        def late(state):
            state["x"].append("early")
            gate()
            state["x"].append("late")
            state["x"] = "very late"

        look = Task(get("x"), reads={"x"})
        task = Task(late, reads={"x"}, writes={"x"}, timeout=SOON)
        result = pool.run([task, look], {"x": []})
        gate.set()
        gate.threads[0].join(PATIENCE)
        assert not gate.threads[0].is_alive()
        assert result.results[0].status is Status.TIMED_OUT
        assert result.results[1].value == result.state["x"] == []

    def test_the_batchs_timeout_gives_up_on_what_runs_and_cancels_the_rest(self, clock, gate):
        def stuck():
            clock.now += 60
            gate()

        with ParallelExecutor(workers=1, timeout=math.inf) as pool:
            tasks = [
                Task(lambda: "fine", name="early"),
                Task(stuck, name="stuck"),
                Task(fail, name="waiting"),
                Task(fail, name="child", after=("stuck",)),
            ]
            result = pool.run(tasks, batch_timeout=SOON)
            assert statuses(result) == {
                "early": Status.SUCCEEDED,
                "stuck": Status.TIMED_OUT,
                "waiting": Status.CANCELLED,
                "child": Status.CANCELLED,
            }
            assert [str(one.error) for one in result.results[1:]] == [
                "task 'stuck' was given up on: the batch reached its timeout of 0.02 s",
                "task 'waiting' was cancelled: the batch reached its timeout of 0.02 s",
                "task 'child' was cancelled: the batch reached its timeout of 0.02 s",
            ]
            assert isinstance(result.results[2].error, TaskNotRunError)
            assert [entry.task for entry in result.trace] == ["early", "stuck"]
            assert pool.run([lambda: "still here"]).values() == ("still here",)

    def test_the_batchs_timeout_cancels_what_depends_on_what_it_gave_up_on(self, clock, gate):
        def stuck():
            clock.now += 60
            gate()

        with ParallelExecutor(workers=1, timeout=math.inf) as pool:
            tasks = [Task(stuck, name="a"), Task(fail, name="b", after=("a",))]
            result = pool.run(tasks, batch_timeout=SOON)
        assert [one.status for one in result.results] == [Status.TIMED_OUT, Status.CANCELLED]

    def test_a_batch_that_is_done_does_not_time_out(self, clock):
        def slow():
            clock.now += 60
            return "done"

        with ParallelExecutor(workers=1) as pool:
            result = pool.run([Task(slow, timeout=math.inf)], batch_timeout=3600)
        assert result.values() == ("done",)

    def test_an_interrupted_call_cancels_its_batch_and_leaves_the_pool_whole(self, pool, gate):
        def interrupt(*_):
            assert gate.entered.wait(PATIENCE)
            raise KeyboardInterrupt

        ran = []
        with pytest.raises(KeyboardInterrupt):
            pool.run(
                [
                    Task(lambda: 1, name="a"),
                    Task(gate, name="b"),
                    Task(lambda: ran.append(1), after=("a", "b")),
                ],
                progress=interrupt,
            )
        assert_full_strength(pool, 4)
        assert not ran


class TestStealing:
    def test_an_idle_worker_takes_the_jobs_of_a_busy_one(self):
        # Two workers are dealt tasks 0 and 2, and 1. Who has task 0 is not free before task 2 has
        # run, so task 2 must be stolen from the deque in which task 0 was.
        freed = threading.Event()
        with ParallelExecutor(workers=2) as pool:
            result = pool.run(
                [
                    partial(freed.wait, PATIENCE),
                    lambda: None,
                    freed.set,
                ]
            )
        assert result.values()[0] is True
        assert entry(result, "task-2").stolen
        assert entry(result, "task-2").thread != entry(result, "task-0").thread

    def test_the_jobs_behind_a_long_task_do_not_wait_for_it(self, gate):
        ran = []

        def rest(number):
            ran.append(number)
            if len(ran) == 20:
                gate.set()

        with ParallelExecutor(workers=2, timeout=PATIENCE) as pool:
            result = pool.run([gate, *(partial(rest, number) for number in range(20))])
        assert result.statistics.succeeded == 21
        assert sum(entry.stolen for entry in result.trace) >= 10

    def test_a_lone_worker_has_nobody_to_steal_from(self):
        with ParallelExecutor(workers=1) as pool:
            result = pool.run([lambda: 1] * 50)
        assert not any(entry.stolen for entry in result.trace)
        assert [entry.task for entry in result.trace] == list(result.tasks)


class TestProgress:
    def test_is_told_once_for_each_count_in_order_in_the_callers_thread(self, pool):
        told = []
        caller = threading.current_thread()
        pool.run(
            [lambda: 1] * 300,
            progress=lambda *counts: told.append((*counts, threading.current_thread())),
        )
        assert told == [(done, 300, caller) for done in range(1, 301)]

    def test_counts_every_task_whatever_became_of_it(self, pool, gate):
        told = []
        pool.run(
            [
                Task(gate, name="stuck", timeout=SOON),
                Task(fail, name="bad"),
                Task(fail, after=("stuck",)),
                lambda: 1,
            ],
            progress=lambda *counts: told.append(counts),
        )
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_comes_while_the_batch_is_running(self, pool):
        told = threading.Event()
        result = pool.run([lambda: 1, partial(told.wait, PATIENCE)], progress=lambda *_: told.set())
        assert result.values() == (1, True)

    def test_that_raises_is_not_told_again_and_does_not_break_the_batch(self, pool):
        told = []

        def progress(done, total):
            told.append((done, total))
            raise ValueError("no display")

        result = pool.run([lambda: 1] * 10, progress=progress)
        assert result.values() == (1,) * 10
        assert told == [(1, 10)]
        assert str(result.progress_error) == "no display"

    def test_may_run_another_batch(self, pool):
        inner = []
        pool.run([lambda: 1], progress=lambda *_: inner.append(pool.run([lambda: 2]).values()))
        assert inner == [(2,)]


class TestFigures:
    def test_of_a_batch_are_exact(self, clock):
        def take(seconds, then=lambda: None):
            def fn():
                clock.now += seconds
                return then()

            return fn

        with ParallelExecutor(workers=1, timeout=math.inf) as pool:
            result = pool.run(
                [
                    Task(take(1), name="a"),
                    Task(take(2, fail), name="b"),
                    Task(take(3), name="c"),
                    Task(take(2), name="d", after=("a",)),
                    Task(take(9), name="e", after=("b",)),
                ]
            )
        figures = result.statistics
        assert (figures.total, figures.succeeded, figures.failed) == (5, 3, 2)
        assert (figures.mean_latency, figures.max_latency) == (2.0, 3.0)
        assert (figures.seconds, figures.throughput) == (8.0, 3 / 8)
        assert [(one.task, one.start, one.end, one.level) for one in result.trace] == [
            ("a", 0, 1, 0),
            ("b", 1, 3, 0),
            ("c", 3, 6, 0),
            ("d", 6, 8, 1),
        ]

    def test_count_a_stuck_task_until_it_was_given_up_on(self, clock, gate):
        def stuck():
            clock.now += 5
            gate()

        with ParallelExecutor(workers=1, timeout=SOON) as pool:
            result = pool.run([stuck])
        assert result.statistics.max_latency == 5
        assert (result.trace[0].start, result.trace[0].end) == (0, 5)

    def test_name_the_thread_that_ran_a_task(self, pool):
        result = pool.run([lambda: threading.current_thread().name] * 20)
        ran = {one.name: one.value for one in result.results}
        assert ran == {entry.task: entry.thread for entry in result.trace}


class TestSeveralThreads:
    def test_each_run_batches_of_their_own_on_one_pool(self, pool):
        def batches(start):
            for number in range(10):
                tasks = [add("n", number) for _ in range(10)] + [Task(get("n"), reads={"n"})]
                result = pool.run(tasks, {"n": start})
                assert result.results[-1].value == start + 10 * number
                assert result.verify_serial_equivalence()

        for call in [Call(batches, start) for start in range(6)]:
            call.result()

    def test_do_not_wait_for_each_others_batches(self, pool):
        met = threading.Event()
        waiting = Call(pool.run, [partial(met.wait, PATIENCE)])
        pool.run([met.set])
        assert waiting.result().values() == (True,)

    def test_a_stuck_batch_does_not_stop_another(self, gate):
        with ParallelExecutor(workers=2, timeout=PATIENCE) as pool:
            stuck = Call(pool.run, [gate])
            assert gate.entered.wait(PATIENCE)
            assert pool.run([lambda: 1] * 50).statistics.succeeded == 50
            assert stuck.is_alive()
            gate.set()
            stuck.result()

    def test_closing_waits_for_the_batches_in_flight_and_takes_no_new_ones(self, gate):
        pool = ParallelExecutor(workers=2, timeout=PATIENCE)
        running = Call(pool.run, [gate, lambda: "done"])
        assert gate.entered.wait(PATIENCE)
        closing = [Call(pool.close) for _ in range(3)]
        with pytest.raises(RuntimeError, match="closed executor"):
            while True:  # until the first close() has begun
                pool.run([])
        assert all(close.is_alive() for close in closing)
        gate.set()
        assert running.result().results[1].value == "done"
        for close in closing:
            close.result()
        assert not gate.threads[0].is_alive()

    def test_closing_waits_for_a_stuck_batch_but_not_for_its_stuck_thread(self, gate):
        pool = ParallelExecutor(workers=1)
        running = Call(pool.run, [Task(gate, timeout=0.2)])
        assert gate.entered.wait(PATIENCE)
        pool.close()
        assert gate.threads[0].is_alive()
        assert running.result().results[0].status is Status.TIMED_OUT
        assert not living(pool)

    def test_a_task_must_not_run_a_batch_in_its_own_pool(self, pool):
        [one] = pool.run([lambda: pool.run([lambda: 1])]).results
        assert isinstance(one.error, RuntimeError)
        assert "run() was called from a task of the same executor" in str(one.error)

    def test_a_task_may_run_a_batch_in_another_pool(self, pool):
        with ParallelExecutor(workers=1) as other:
            [inner] = pool.run([lambda: other.run([lambda: 1]).values()]).values()
        assert inner == (1,)


class TestClosing:
    def test_ends_every_thread_and_may_be_repeated(self):
        pool = ParallelExecutor(workers=3)
        assert_full_strength(pool, 3)
        assert len(living(pool)) == 3
        pool.close()
        pool.close()
        assert not living(pool)

    def test_an_executor_that_never_ran_costs_nothing(self):
        with ParallelExecutor() as pool:
            assert not living(pool)

    def test_leaves_a_stuck_thread_to_itself_until_its_task_ends(self, gate):
        with ParallelExecutor(workers=1, timeout=SOON) as pool:
            pool.run([gate])
        [thread] = gate.threads
        assert thread.is_alive()
        assert thread.daemon
        gate.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()

    def test_happens_on_the_way_out_of_a_with_block_that_fails(self):
        with pytest.raises(ValueError, match="no luck"), ParallelExecutor() as pool:
            fail()
        with pytest.raises(RuntimeError, match="closed executor"):
            pool.run([])

    def test_by_its_own_task_is_refused(self, pool):
        [one] = pool.run([pool.close]).results
        assert "close() was called from a task of the same executor" in str(one.error)

    def test_by_its_own_progress_callback_is_refused(self, pool):
        result = pool.run([lambda: 1], progress=lambda *_: pool.close())
        assert "close() was called from a progress callback" in str(result.progress_error)
        assert pool.run([lambda: 2]).values() == (2,)

    def test_may_be_forgotten_without_keeping_the_process_alive(self):
        script = (
            "import threading\n"
            "from pytest_freethread.reference.executor import ParallelExecutor, Task\n"
            "stuck = Task(threading.Event().wait, timeout=0.01)\n"
            "result = ParallelExecutor().run([stuck, lambda: 'fine'])\n"
            "print(result.results[1].value)\n"
        )
        root = pathlib.Path(executor.__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


class TestWhenTheSystemHasNoMoreThreads:
    @pytest.fixture
    def allow(self, monkeypatch):
        """Set how many more threads can be started."""
        allowed = types.SimpleNamespace(threads=0)
        start = threading.Thread.start

        def limited(thread):
            if allowed.threads == 0:
                raise RuntimeError("can't start new thread")
            allowed.threads -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        return allowed

    def test_a_batch_makes_do_with_those_it_has(self, allow):
        allow.threads = 1
        with ParallelExecutor(workers=4) as pool:
            result = pool.run([lambda: 1] * 20)
            assert result.statistics.succeeded == 20
            allow.threads = 3
            assert_full_strength(pool, 4)

    def test_a_batch_that_has_none_is_refused(self, allow):
        with ParallelExecutor(workers=4) as pool:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.run([lambda: 1])
            allow.threads = 1
            assert pool.run([lambda: 1]).values() == (1,)


class TestSerialEquivalence:
    def test_is_verified_by_running_everything_again(self, pool):
        runs = []
        task = Task(lambda s: runs.append(s["x"]), name="a", reads={"x"})
        result = pool.run([task, Task(fail, name="b")], {"x": 7})
        assert result.verify_serial_equivalence()
        assert runs == [7, 7]

    def test_fails_for_a_task_whose_value_depends_on_more_than_its_view(self, pool):
        count = iter(range(10))
        check = pool.run([Task(lambda: next(count), name="a")]).verify_serial_equivalence()
        assert not check
        assert check.differences == (
            "task 'a' returned 0 in the batch, but returned 1 in the serial run",
        )

    def test_fails_for_a_state_that_comes_out_different(self, pool):
        count = iter(range(10))

        def task(state):
            state["n"] = next(count)
            if state["n"] == 0:
                state["once"] = "x"

        check = pool.run([Task(task, writes={"n", "once"})]).verify_serial_equivalence()
        assert check.differences == (
            "state['n'] is 0 after the batch, but 1 after the serial run",
            "state['once'] is 'x' after the batch, but absent after the serial run",
        )

    def test_fails_for_a_task_that_fails_in_one_run_alone(self, pool):
        count = iter([1, 0])
        check = pool.run([Task(lambda: 1 // next(count), name="a")]).verify_serial_equivalence()
        [difference] = check.differences
        assert difference.startswith("task 'a' returned 1 in the batch, but raised ZeroDivision")

    def test_fails_for_values_that_cannot_be_compared(self, pool):
        class Odd:
            __hash__ = None

            def __eq__(self, other):
                raise TypeError

        assert not pool.run([Odd]).verify_serial_equivalence()

    def test_holds_for_tasks_that_were_not_run(self, pool, gate):
        result = pool.run(
            [
                Task(lambda s: s.update(x=gate()), name="stuck", writes={"x"}, timeout=SOON),
                Task(fail, after=("stuck",)),
                add("x"),
            ],
            {"x": 1},
        )
        assert result.state == {"x": 2}
        assert result.serial_order() == ("task-2",)
        assert result.verify_serial_equivalence()

    def test_can_be_interrupted(self, pool):
        first = [True]

        def task():
            if first:
                first.clear()
                return
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pool.run([task]).verify_serial_equivalence()


KEYS = "wxyz"
STEP = st.fixed_dictionaries(
    {
        "reads": st.sets(st.sampled_from(KEYS)),
        "writes": st.sets(st.sampled_from(KEYS)),
        "after": st.sets(st.integers(0, 19), max_size=3),
        "fails": st.integers(0, 4).map(lambda number: number == 0),
    }
)


def step_task(number, step):
    """A task whose value and writes depend on its number and on all that it reads."""

    def fn(state=None):
        seen = tuple(state[key] for key in sorted(step["reads"])) if state is not None else ()
        value = sum(seen, start=number * 31) * 37 % 1009
        for key in step["writes"]:
            state[key] = value
        if step["fails"]:
            raise ValueError(value)
        return value

    return Task(
        fn,
        name=str(number),
        after=[str(earlier) for earlier in step["after"] if earlier < number],
        reads=step["reads"],
        writes=step["writes"],
    )


def in_submission_order(tasks, state):
    """The oracle: each task in turn, on a copy of the state that it replaces if it succeeds."""
    values = {}
    for task in tasks:
        copy = dict(state)
        if all(values.get(up) is not None for up in task.after):
            try:
                values[task.name] = task.fn(copy) if task.reads or task.writes else task.fn()
            except ValueError:
                continue
            state = copy
    return [values.get(task.name) for task in tasks], state


def run_once(tasks, state=None):
    with ParallelExecutor(workers=4) as pool:
        return pool.run(tasks, state)


class TestAnyBatch:
    @given(steps=st.lists(STEP, max_size=20))
    @settings(deadline=None, max_examples=60)
    def test_has_the_outcome_of_running_it_in_submission_order(self, steps):
        tasks = [step_task(number, step) for number, step in enumerate(steps)]
        initial = dict.fromkeys(KEYS, 1)
        result = run_once(tasks, initial)
        values, state = in_submission_order(tasks, initial)
        assert [one.value for one in result.results] == values
        assert result.state == state
        assert result.verify_serial_equivalence()

    @given(steps=st.lists(STEP, max_size=20))
    @settings(deadline=None, max_examples=60)
    def test_orders_every_conflict_and_every_dependency_by_levels(self, steps):
        tasks = [step_task(number, step) for number, step in enumerate(steps)]
        result = run_once(tasks, dict.fromkeys(KEYS, 1))
        level = {name: number for number, names in enumerate(result.levels) for name in names}
        for position, late in enumerate(tasks):
            waits = [-1]
            for early in tasks[:position]:
                conflict = late.writes & (early.reads | early.writes) or late.reads & early.writes
                if conflict or early.name in late.after:
                    waits.append(level[early.name])
            assert level[late.name] == max(waits) + 1

    @given(graph=st.lists(st.sets(st.integers(0, 9), max_size=3), max_size=10))
    @settings(deadline=None, max_examples=60)
    def test_is_refused_with_a_true_cycle_exactly_if_there_is_one(self, graph):
        after = {
            str(number): [str(up) for up in ups if up < len(graph)]
            for number, ups in enumerate(graph)
        }
        free = set()  # what can run, found by repetition
        for _ in graph:
            free |= {name for name, ups in after.items() if free.issuperset(ups)}
        tasks = [Task(lambda: None, name=name, after=ups) for name, ups in after.items()]
        if len(free) == len(graph):
            assert len(run_once(tasks).values()) == len(graph)
            return
        with pytest.raises(CycleError) as raised:
            run_once(tasks)
        cycle = raised.value.cycle
        assert cycle[0] == cycle[-1] == min(cycle, key=int)
        assert len(set(cycle)) == len(cycle) - 1
        assert all(up in after[name] for name, up in itertools.pairwise(cycle))


OF_THE_PROCESS = "looks for leaks among the threads of the whole process"


class TestUnderStress:
    @pytest.mark.thread_unsafe(reason=OF_THE_PROCESS)
    def test_threads_share_a_pool_without_losing_a_task_or_an_update(self):
        def body(pool):
            result = pool.run([add(key) for key in "abab"] + [lambda: 1], {"a": 0, "b": 0})
            assert result.state == {"a": 2, "b": 2}
            assert result.results[-1].value == 1

        def closed(pool):
            pool.close()
            return True

        make = partial(ParallelExecutor, workers=3)
        stress(body, setup=make, invariant=closed, threads=6, rounds=50).raise_for_verdict()

    @pytest.mark.thread_unsafe(reason=OF_THE_PROCESS)
    def test_a_pool_closed_in_the_middle_finishes_what_it_has_taken(self):
        def run(pool):
            try:
                result = pool.run([add("n") for _ in range(3)], {"n": 0})
            except RuntimeError as error:
                assert "closed executor" in str(error)
            else:
                assert result.state == {"n": 3}

        stress(
            run,
            run,
            ParallelExecutor.close,
            ParallelExecutor.close,
            setup=partial(ParallelExecutor, workers=2),
            rounds=100,
        ).raise_for_verdict()

    @pytest.mark.thread_unsafe(reason=OF_THE_PROCESS)
    def test_a_timeout_and_the_end_of_its_task_agree_on_who_was_first(self):
        def body():
            runners = queue.Queue()

            def slow(state):
                runners.put(threading.current_thread())
                state["x"] = "changed"
                threading.Event().wait(0.002)

            with ParallelExecutor(workers=1) as pool:
                late = Task(slow, writes={"x"}, timeout=0.002)
                result = pool.run([late, add("n")], {"n": 0})
            runners.get().join()
            assert (result.results[0].status is Status.SUCCEEDED) == ("x" in result.state)
            assert result.results[1].status is Status.SUCCEEDED
            assert result.state["n"] == 1

        stress(body, threads=4, rounds=50).raise_for_verdict()

    @pytest.fixture
    def counted(self):
        """A pool, and a list to which every batch adds what it saw."""
        seen = []
        with ParallelExecutor(workers=2) as pool:
            yield pool, seen
        assert all(state == {"n": 20} for state in seen)

    @pytest.mark.freethread(threads=4, rounds=20, shared=["counted"])
    def test_a_pool_is_used_by_all_threads_of_a_test(self, counted):
        pool, seen = counted
        seen.append(pool.run([add("n") for _ in range(20)], {"n": 0}).state)


class TestTheModule:
    @pytest.mark.thread_unsafe(reason="doctest patches linecache for the whole process")
    def test_its_example_is_true(self):
        assert doctest.testmod(executor).failed == 0

    @pytest.mark.thread_unsafe(reason="ast.parse() fails in several threads on Python 3.11")
    def test_imports_the_standard_library_alone(self):
        tree = ast.parse(inspect.getsource(executor))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        assert imported <= sys.stdlib_module_names

    @pytest.mark.parametrize(
        "cls",
        [
            cls
            for cls in vars(executor).values()
            if getattr(cls, "__module__", "") == executor.__name__ and isinstance(cls, type)
        ],
        ids=lambda cls: cls.__name__,
    )
    def test_every_class_states_its_concurrency_contract(self, cls):
        contracts = "Immutable|Atomic|Internally synchronised|Linearizable|Externally synchronised"
        assert re.search(rf"Concurrency contract: ({contracts})\b", cls.__doc__)
