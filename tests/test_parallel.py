"""Measuring with real threads: what runs where, what is timed, what goes wrong; no timings asserted."""

from __future__ import annotations

import json
import queue
import threading
import time

import pytest

from pytest_freethread import (
    SettingError,
    ThreadSafetyError,
    Verdict,
    assert_parallel,
    explore,
    interpreter,
    measure_parallelism,
)
from pytest_freethread.execution import waits
from pytest_freethread.execution.waits import LockTimer
from pytest_freethread.instrument import probes
from pytest_freethread.report.scaling import as_json

BRIEF = {"pairs": 2, "seconds": None}


# ----- runs -----


def test_tasks_run_one_by_one_on_one_thread_and_at_once_on_a_thread_each():
    scaling = measure_parallelism(lambda: None, lambda: None, lambda: None, **BRIEF)
    (samples,) = scaling.measurement.samples
    assert samples.threads == 3
    assert len(samples.rounds) == 2
    for tasks, probe, native, coreless in samples.rounds:
        assert coreless >= 0
        assert [(part.task, part.thread) for part in tasks.serial] == [(0, 0), (1, 0), (2, 0)]
        assert [(part.task, part.thread) for part in tasks.parallel] == [(0, 0), (1, 1), (2, 2)]
        assert len(probe.serial) == len(probe.parallel) == 3
        assert (native is not None) is interpreter.gil_enabled()
        starts = [part.start for part in tasks.serial]
        assert starts == sorted(starts) and starts[0] == 0
        assert all(a.end <= b.start for a, b in zip(tasks.serial, tasks.serial[1:], strict=False))


def test_copies_run_on_one_thread_or_on_as_many_as_there_are():
    runs = []

    def setup():
        runs.append(set())
        return runs[-1]

    def task(threads):
        threads.add(threading.get_ident())

    measure_parallelism(task, threads=3, setup=setup, **BRIEF)
    assert sorted(len(threads) for threads in runs) == [1, 1, 1, 3, 3, 3]


def test_each_run_has_its_own_state_and_each_task_gets_it():
    made = []

    def setup():
        made.append([])
        return made[-1]

    measure_parallelism(lambda state: state.append(1), threads=2, setup=setup, **BRIEF)
    assert len(made) == 2 * (1 + 2)  # a warm-up and two pairs
    assert made == [[1, 1]] * 6


def test_a_curve_has_a_point_for_each_number_of_threads():
    scaling = measure_parallelism(lambda: None, threads=[2, 1], **BRIEF)
    assert [point.threads for point in scaling.points] == [1, 2]
    assert scaling.speedup is scaling.points[-1].speedup
    assert "threads  speed-up" in str(scaling)


def test_several_tasks_are_named_and_one_is_numbered():
    def load():
        pass

    def store():
        pass

    parts = measure_parallelism(load, store, **BRIEF).points[-1].parts
    assert [part.name.rpartition(".")[2] for part in parts] == ["load", "store"]
    parts = measure_parallelism(load, threads=2, **BRIEF).points[-1].parts
    assert [part.name.rpartition(".")[2] for part in parts] == ["load 1", "load 2"]


def test_what_a_task_raises_comes_out():
    def fails():
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        measure_parallelism(fails, threads=2, **BRIEF)


def test_an_exception_leaves_no_thread_behind():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        measure_parallelism(lambda: 1 / 0, threads=2, **BRIEF)
    measure_parallelism(lambda: None, threads=2, **BRIEF)
    assert threading.active_count() == before


def test_tasks_that_never_come_back_fail_and_say_where_they_are():
    lock = threading.Lock()

    def leaves_it_locked():
        lock.acquire()

    try:
        with pytest.raises(ThreadSafetyError) as caught:
            assert_parallel(leaves_it_locked, threads=2, deadline=0.2, **BRIEF)
    finally:
        lock.release()
    said = str(caught.value)
    assert "did not come back within the deadline of 0.2 s" in said
    assert "leaves_it_locked" in said and "lock.acquire()" in said
    assert caught.value.result.verdict is Verdict.FAILED


@pytest.mark.skipif(not hasattr(__import__("os"), "sched_getaffinity"), reason="has no affinity")
def test_pinned_threads_stay_on_a_core_of_their_own_and_others_on_all():
    import os

    seen = []
    measure_parallelism(
        lambda: seen.append(len(os.sched_getaffinity(0))), threads=2, pin=True, **BRIEF
    )
    assert set(seen) == {1}
    seen.clear()
    measure_parallelism(lambda: seen.append(len(os.sched_getaffinity(0))), threads=2, **BRIEF)
    assert set(seen) == {interpreter.usable_cores()}


def test_pairs_and_seconds_bound_it():
    assert (
        len(measure_parallelism(lambda: None, threads=2, pairs=3).measurement.samples[0].rounds)
        == 3
    )
    brief = measure_parallelism(lambda: None, threads=2, seconds=1e-6)
    assert len(brief.measurement.samples[0].rounds) == 1


# ----- claims -----


def test_inconclusive_does_not_raise():
    assert assert_parallel(lambda: None, threads=2, **BRIEF).verdict is Verdict.INCONCLUSIVE


def test_sleeping_tasks_need_no_core():
    scaling = assert_parallel(lambda: time.sleep(0.01), threads=2, min_speedup=1.2)
    assert scaling.verdict is not Verdict.FAILED


def test_a_serialised_task_is_never_green():
    lock = threading.Lock()

    def task():
        with lock:
            time.sleep(0.01)

    try:
        scaling = assert_parallel(task, threads=2, min_speedup=1.5, seconds=1)
    except ThreadSafetyError as error:
        scaling = error.result
        assert "waits for lock (test_parallel.py:" in str(error)
    assert scaling.verdict is not Verdict.PASSED


# ----- settings -----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threads": 0}, "threads=0): 0 is not numbers of threads"),
        ({"threads": []}, "threads=[]): [] is not numbers of threads"),
        ({"threads": [2, "x"]}, "'x' is not numbers of threads"),
        ({"pairs": 0}, "pairs=0): 0 is not a number of pairs"),
        ({"seconds": -1}, "seconds=-1): -1 is not a budget in seconds"),
        ({"locks": "often"}, "locks='often'): 'often' does not say when to time locks"),
        ({"pin": 1}, "pin=1): 1 is not True or False"),
        ({"min_speedup": 0}, "min_speedup=0): 0 is not what can be asked for"),
        ({"min_efficiency": 1.5}, "min_efficiency=1.5): 1.5 is not a share"),
        ({"max_total": "long"}, "max_total='long'): 'long' is not what can be asked for"),
    ],
)
def test_a_setting_that_means_nothing_is_named(settings, said):
    with pytest.raises(SettingError) as caught:
        assert_parallel(lambda: None, **settings)
    assert said in str(caught.value)
    assert str(caught.value).startswith("assert_parallel(")


def test_there_must_be_tasks_and_several_have_their_threads():
    with pytest.raises(SettingError, match="there is nothing to run"):
        measure_parallelism()
    with pytest.raises(SettingError, match="2 tasks, each with its own thread"):
        measure_parallelism(print, print, threads=4)


# ----- what the process may use -----


def _group(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_quota_of_a_control_group_is_the_least_of_those_around_it(tmp_path):
    _group(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
        },
    )
    assert interpreter.cpu_quota(tmp_path) == 1.5


def test_the_quota_in_the_first_version(tmp_path):
    _group(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/job\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert interpreter.cpu_quota(tmp_path) == 0.5


def test_no_quota(tmp_path):
    assert interpreter.cpu_quota(tmp_path) is None


# ----- locks -----


class Shelf:
    def __init__(self):
        self.lock = threading.Lock()
        self.again = threading.RLock()
        self.changed = threading.Condition()
        self.seats = threading.Semaphore(1)
        self.items = queue.Queue()

    def with_lock(self):
        with self.lock:
            pass

    def with_rlock(self):
        with self.again, self.again:
            pass

    def acquire(self):
        self.lock.acquire()
        try:
            pass
        finally:
            self.lock.release()

    def acquire_within(self):
        assert self.lock.acquire(timeout=10)
        self.lock.release()

    def with_condition(self):
        with self.changed:
            self.changed.notify_all()

    def with_semaphore(self):
        with self.seats:
            pass

    def get(self):
        self.items.get()


MODULE_LOCK = threading.Lock()


def with_module_lock(_shelf):
    with MODULE_LOCK:
        pass


@pytest.fixture
def waits_of(monkeypatch):
    """What is noted of a thread that has to wait: for what is held, until it is let go of."""
    monkeypatch.setattr(waits, "_SHORTEST_CALL", 0)
    real, waiting = interpreter.perf_counter, threading.Event()

    def clock():
        # The layer asks for the time once it knows that it has to wait, and never before.
        moment = real()
        waiting.set()
        return moment

    def waits_of(function, hold, let_go, index=7):
        monkeypatch.setattr(interpreter, "perf_counter", clock)
        timer = LockTimer((function,))
        with timer:
            hold()
            thread = threading.Thread(target=function)
            thread.start()
            assert waiting.wait(10)
            let_go()
            thread.join(10)
            return timer.take({} if index is None else {thread.ident: index})

    return waits_of


@pytest.mark.parametrize(
    ("method", "what", "name"),
    [
        ("with_lock", "lock", "Shelf.lock"),
        ("with_rlock", "again", "Shelf.again"),
        ("acquire", "lock", "Shelf.lock"),
        ("acquire_within", "lock", "Shelf.lock"),
        ("with_condition", "changed", "Shelf.changed"),
        ("with_semaphore", "seats", "Shelf.seats"),
    ],
)
def test_a_wait_for_a_lock_is_noted_with_its_name_and_line(waits_of, method, what, name):
    shelf = Shelf()
    held = getattr(shelf, what)
    (wait,) = waits_of(getattr(shelf, method), held.acquire, held.release)
    assert (wait.thread, wait.name) == (7, name)
    assert wait.place.function == f"Shelf.{method}"
    assert what in wait.place.source
    assert wait.start <= wait.end
    assert held.acquire(blocking=False)  # it was let go of, and is the real one


def test_a_wait_for_an_item_is_noted_as_a_call(waits_of):
    shelf = Shelf()
    noted = waits_of(shelf.get, lambda: None, lambda: shelf.items.put(1))
    (wait,) = [each for each in noted if each.thread == 7]
    assert wait.name == "Shelf.items.get()"


def test_a_lock_of_a_module_goes_by_its_own_name(waits_of):
    (wait,) = waits_of(lambda: with_module_lock(None), MODULE_LOCK.acquire, MODULE_LOCK.release)
    assert wait.name == "MODULE_LOCK"


def test_a_lock_that_is_free_is_no_wait():
    shelf = Shelf()
    timer = LockTimer((Shelf.with_lock,))
    with timer:
        for method in (shelf.with_lock, shelf.with_rlock, shelf.acquire, shelf.with_condition):
            method()
        assert timer.take({}) == []


def test_threads_that_tasks_started_have_negative_numbers(waits_of):
    shelf = Shelf()
    (wait,) = waits_of(shelf.with_lock, shelf.lock.acquire, shelf.lock.release, index=None)
    assert wait.thread == -1


def test_the_code_is_as_it_was_afterwards():
    before = Shelf.with_lock.__code__, with_module_lock.__code__, Shelf.__init__.__code__
    timer = LockTimer((Shelf.with_lock,))
    with timer:
        assert Shelf.with_lock.__code__ is not before[0]
        assert Shelf.__init__.__code__ is before[2]  # it waits for nothing
    assert before == (
        Shelf.with_lock.__code__, with_module_lock.__code__, Shelf.__init__.__code__,
    )  # fmt: skip
    assert probes._access is None


def test_within_an_exploration_locks_are_not_timed_and_that_is_said():
    said = []

    def body():
        timer = LockTimer((Shelf.with_lock,))
        with timer:
            said.append(timer.refused)

    explore(body, threads=1, schedules=1)
    assert set(said) == {"an exploration has the probes"}


def test_two_timers_do_not_mix():
    first, second = LockTimer((Shelf.get,)), LockTimer((Shelf.get,))
    with first:
        with second:
            assert second.refused == "another run has the probes"
        assert first.refused is None
        assert Shelf.get.__code__ is not None


def test_timed_waits_are_in_the_report_if_asked_for():
    lock = threading.Lock()

    def task():
        with lock:
            time.sleep(0.005)

    scaling = measure_parallelism(task, threads=2, locks=True, **BRIEF)
    (point,) = scaling.points
    assert point.locks[0].name == "lock"
    assert "at once, with the locks timed" in str(scaling)
    assert measure_parallelism(task, threads=2, locks=False, **BRIEF).points[0].locks == ()


# ----- JSON -----


def test_json_has_all_samples():
    scaling = measure_parallelism(lambda: None, threads=2, **BRIEF)
    data = json.loads(as_json(scaling))
    assert data["verdict"] == "inconclusive"
    (samples,) = data["measurement"]["samples"]
    first = scaling.measurement.samples[0].rounds[0].tasks.parallel[0]
    assert samples["rounds"][0]["tasks"]["parallel"][0] == first._asdict()
    assert data["measurement"]["machine"]["python"].startswith("CPython 3.")
    assert "text" not in data


def test_the_files_are_named_and_the_report_says_where_they_are(tmp_path):
    def two_words():
        pass

    scaling = measure_parallelism(two_words, threads=2, save=tmp_path, **BRIEF)
    (file,) = tmp_path.glob("*two_words.json")
    assert str(file) in str(scaling)
    assert "<" not in file.name
