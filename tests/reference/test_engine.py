"""The engine and its parts, by user story: cycles, failures, cancellation, metrics, the log."""

import contextlib
import gc
import json
import logging
import math
import os
import random
import subprocess
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_freethread import stress
from pytest_freethread.reference import engine as engine_module
from pytest_freethread.reference.engine import (
    DecisionLog,
    LogCorruptError,
    Metrics,
    ParallelEngine,
    PerThread,
    Stage,
    Status,
    SynthesisError,
)

PATIENCE = 30.0  # seconds until a test that hangs is called failed
COMPLETED, FAILED, CANCELLED = Status.COMPLETED, Status.FAILED, Status.CANCELLED

DIAMOND = [
    Stage("analyse", lambda value, _: value * 10),
    Stage("architect", lambda _, given: given["analyse"] + 1, after=("analyse",)),
    Stage("mentor", lambda _, given: given["analyse"] + 2, after=("analyse",)),
    Stage("build", lambda _, given: sorted(given.items()), after=("architect", "mentor")),
]


class Call(threading.Thread):
    """`function(*args)` in a thread, with its outcome."""

    def __init__(self, function, *args):
        super().__init__(daemon=True)
        self._call = lambda: function(*args)
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


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def failing(error):
    def fn(*_):
        raise error

    return fn


def statuses(report):
    return [result.status for result in report.results]


# Graphs


def test_stages_that_wait_for_each_other_are_refused_with_the_circle_named():
    stages = [
        Stage("start", print),
        Stage("a", print, after=("start", "c")),
        Stage("b", print, after=("a",)),
        Stage("c", print, after=("b",)),
    ]
    with pytest.raises(ValueError, match=r"circle: (a -> b -> c -> a|b -> c -> a -> b|c -> a.*c)"):
        ParallelEngine(stages)


def test_a_stage_that_waits_for_itself_is_refused():
    with pytest.raises(ValueError, match="circle: a -> a"):
        ParallelEngine([Stage("a", print, after=("a",))])


def test_an_unknown_predecessor_is_refused_with_those_that_are_known():
    stages = [Stage("analyse", print), Stage("build", print, after=("analyze",))]
    with pytest.raises(ValueError, match=r"'build' comes after 'analyze', .* of: analyse, build"):
        ParallelEngine(stages)


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two stages are named 'a'"):
        ParallelEngine([Stage("a", print), Stage("b", print), Stage("a", print)])


def test_an_engine_without_stages_is_refused():
    with pytest.raises(ValueError, match="stages must not be empty"):
        ParallelEngine([])


@pytest.mark.parametrize("workers", [0, -3])
def test_an_engine_without_workers_is_refused(workers):
    with pytest.raises(ValueError, match=f"workers must be at least 1, not {workers}"):
        ParallelEngine(DIAMOND, workers=workers)


def test_a_stage_says_at_once_what_is_wrong_with_it():
    with pytest.raises(TypeError, match="stage 'a': fn must be callable, not 7"):
        Stage("a", 7)
    with pytest.raises(TypeError, match="stage 'b': after must be a tuple, not 'analyse'"):
        Stage("b", print, after="analyse")


# Runs


def test_each_stage_gets_the_input_and_the_results_of_its_predecessors_alone():
    seen = {}

    def record(name):
        def fn(value, given):
            seen[name] = (value, dict(given))
            return name.upper()

        return fn

    stages = [
        Stage("build", record("build"), after=("architect", "mentor")),
        Stage("architect", record("architect"), after=["analyse"]),
        Stage("mentor", record("mentor"), after=("analyse", "analyse")),
        Stage("analyse", record("analyse")),
    ]
    with ParallelEngine(stages, workers=2) as engine:
        (result,) = engine.run(["input"]).results
    assert seen == {
        "analyse": ("input", {}),
        "architect": ("input", {"analyse": "ANALYSE"}),
        "mentor": ("input", {"analyse": "ANALYSE"}),
        "build": ("input", {"architect": "ARCHITECT", "mentor": "MENTOR"}),
    }
    assert (result.status, dict(result.failures)) == (COMPLETED, {})
    assert result.results["build"] == "BUILD"


def test_a_run_of_nothing_gives_an_empty_report():
    with ParallelEngine(DIAMOND) as engine:
        report = engine.run([])
    assert report.results == ()
    assert report.count(COMPLETED) == 0


def test_results_come_in_the_order_of_submission_whoever_ends_first():
    last_ended = threading.Event()

    def fn(value, _):
        if value == 0:
            assert last_ended.wait(PATIENCE)
        if value == 4:
            last_ended.set()
        return value

    with ParallelEngine([Stage("only", fn)], workers=2) as engine:
        report = engine.run(iter(range(5)))
    assert [result.index for result in report.results] == [0, 1, 2, 3, 4]
    assert [result.results["only"] for result in report.results] == [0, 1, 2, 3, 4]


def test_stages_of_one_cycle_that_do_not_wait_for_each_other_overlap():
    meeting = threading.Barrier(2)

    def meet(*_):
        meeting.wait(PATIENCE)

    stages = [
        Stage("analyse", lambda *_: None),
        Stage("architect", meet, after=("analyse",)),
        Stage("mentor", meet, after=("analyse",)),
    ]
    with ParallelEngine(stages, workers=2) as engine:
        assert statuses(engine.run([1])) == [COMPLETED]


def test_cycles_overlap():
    meeting = threading.Barrier(4)
    with ParallelEngine([Stage("meet", lambda *_: meeting.wait(PATIENCE))], workers=4) as engine:
        assert engine.run(range(8)).count(COMPLETED) == 8


def test_no_more_stages_run_at_once_than_there_are_workers_and_no_more_cycles():
    lock = threading.Lock()
    running, most, under_way, most_under_way = 0, 0, set(), 0

    def fn(value, given):
        nonlocal running, most, most_under_way
        with lock:
            running += 1
            most = max(most, running)
            under_way.add(value)
            most_under_way = max(most_under_way, len(under_way))
        with lock:
            running -= 1
            if len(given) == 3:
                under_way.discard(value)

    wide = [Stage("first", fn)]
    wide += [Stage(name, fn, after=("first",)) for name in "abc"]
    wide += [Stage("last", fn, after=("a", "b", "c"))]
    with ParallelEngine(wide, workers=3) as engine:
        assert engine.run(range(200)).count(COMPLETED) == 200
    assert 1 <= most <= 3
    assert 1 <= most_under_way <= 3
    assert not under_way


@pytest.mark.parametrize("workers", [1, 8])
def test_a_thousand_cycles_end_on_any_number_of_workers(workers):
    with ParallelEngine(DIAMOND, workers=workers) as engine:
        report = engine.run(range(1000))
        assert engine.metrics().completed == 1000
    assert report.count(COMPLETED) == 1000
    for index, result in enumerate(report.results):
        expected = [("architect", index * 10 + 1), ("mentor", index * 10 + 2)]
        assert (result.index, result.results["build"]) == (index, expected)


def test_a_thousand_cycles_of_a_long_chain_block_nobody():
    names = [f"s{i}" for i in range(20)]
    stages = [
        Stage(name, lambda value, given: sum(given.values(), value), after=names[max(i - 1, 0) : i])
        for i, name in enumerate(names)
    ]
    with ParallelEngine(stages, workers=2) as engine:
        report = engine.run(range(1000))
    assert [result.results["s19"] for result in report.results] == [20 * i for i in range(1000)]


def test_several_runs_at_once_on_one_engine_keep_their_results_apart():
    with ParallelEngine(DIAMOND, workers=3) as engine:
        calls = [Call(engine.run, range(base, base + 100)) for base in (0, 1000, 2000)]
        for base, call in zip((0, 1000, 2000), calls, strict=True):
            results = call.result().results
            assert [r.results["analyse"] for r in results] == [
                10 * value for value in range(base, base + 100)
            ]


def test_a_run_that_has_ended_is_forgotten():
    class Input:
        pass

    with ParallelEngine([Stage("a", lambda *_: None)], workers=2) as engine:
        value = Input()
        gone = threading.Event()
        forgotten = weakref.ref(value, lambda _: gone.set())
        engine.run([value] * 10)
        engine.run([None] * 10)
        del value
        # On a busy machine a worker may still be on its way out of the run that has ended.
        assert any(gc.collect() < 0 or gone.wait(0.01) for _ in range(1000)), forgotten()


# Failures


def test_a_failure_stays_in_its_cycle_and_names_its_stage():
    error = RuntimeError("no plan")
    stages = [
        Stage("analyse", lambda value, _: value),
        Stage("plan", lambda v, _: failing(error)() if v == 3 else v, after=("analyse",)),
        Stage("build", lambda value, _: value, after=("plan",)),
    ]
    with ParallelEngine(stages, workers=4) as engine:
        report = engine.run(range(10))
    assert statuses(report) == [FAILED if i == 3 else COMPLETED for i in range(10)]
    assert report.count(FAILED) == 1
    assert report.results[3].failures == {"plan": error}
    assert report.results[3].results == {"analyse": 3}


def test_after_a_failure_the_independent_stages_still_run_and_the_dependent_ones_do_not():
    first, second = ValueError("first"), KeyError("second")
    ran = []
    stages = [
        Stage("a", failing(first)),
        Stage("b", lambda *_: ran.append("b")),
        Stage("c", failing(second), after=("b",)),
        Stage("d", lambda *_: ran.append("d"), after=("b",)),
        Stage("after a", lambda *_: ran.append("after a"), after=("a", "d")),
        Stage("after that", lambda *_: ran.append("after that"), after=("after a",)),
    ]
    with ParallelEngine(stages, workers=2) as engine:
        (result,) = engine.run([0]).results
    assert sorted(ran) == ["b", "d"]
    assert result.status is FAILED
    assert result.failures == {"a": first, "c": second}
    assert sorted(result.results) == ["b", "d"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_even_what_ends_programs_only_fails_the_stage_that_raised_it(error):
    with ParallelEngine([Stage("exit", failing(error))], workers=1) as engine:
        report = engine.run(range(3))
        assert [result.failures for result in report.results] == [{"exit": error}] * 3


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 7))
    after = [draw(st.sets(st.integers(0, i - 1))) if i else set() for i in range(count)]
    order = draw(st.permutations(range(count)))
    fails = draw(st.sets(st.tuples(st.integers(0, 5), st.integers(0, count - 1)), max_size=6))
    return after, order, fails


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), workers=st.integers(1, 4), cycles=st.integers(0, 6))
def test_every_graph_gives_what_running_its_stages_one_by_one_gives(graph, workers, cycles):
    after, order, fails = graph

    def value_of(cycle, number, given):
        if (cycle, number) in fails:
            raise LookupError(f"{cycle}/{number}")
        return (cycle, number, tuple(sorted(given.items())))

    def stage(number):
        names = [f"s{predecessor}" for predecessor in after[number]]
        return Stage(f"s{number}", lambda cycle, given: value_of(cycle, number, given), names)

    with ParallelEngine([stage(number) for number in order], workers=workers) as engine:
        report = engine.run(range(cycles))

    for cycle in range(cycles):
        results, failures = {}, {}
        for number in range(len(after)):
            names = [f"s{predecessor}" for predecessor in after[number]]
            if all(name in results for name in names):
                try:
                    given = {name: results[name] for name in names}
                    results[f"s{number}"] = value_of(cycle, number, given)
                except LookupError as error:
                    failures[f"s{number}"] = str(error)
        result = report.results[cycle]
        assert result.results == results
        assert {name: str(error) for name, error in result.failures.items()} == failures
        assert result.status is (FAILED if failures else COMPLETED)


def test_a_thousand_cycles_with_failures_all_over_are_all_accounted_for():
    def fn(value, _):
        if value % 7 == 0:
            raise ArithmeticError(value)
        return value

    with ParallelEngine([Stage("a", fn), Stage("b", fn, after=("a",))], workers=8) as engine:
        report = engine.run(range(1000))
        metrics = engine.metrics()
    assert statuses(report) == [FAILED if i % 7 == 0 else COMPLETED for i in range(1000)]
    assert (metrics.completed, metrics.failed) == (857, 143)


# Cancellation


def test_a_stage_that_cancels_ends_the_run_with_all_that_has_not_started():
    clock = FakeClock()

    def fn(value, _):
        clock.now += 1
        if value == 5:
            engine.cancel()
        return value

    stages = [Stage("a", fn), Stage("b", fn, after=("a",))]
    with ParallelEngine(stages, workers=1, clock=clock) as engine:
        report = engine.run(range(1000))
        metrics = engine.metrics()
    assert statuses(report) == [COMPLETED] * 5 + [CANCELLED] * 995
    assert [dict(result.results) for result in report.results[4:7]] == [
        {"a": 4, "b": 4},
        {"a": 5},
        {},
    ]
    assert report.results[6].seconds == 0
    assert report.count(CANCELLED) == metrics.cancelled == 995
    assert (metrics.completed, metrics.p50) == (5, 2)


def test_cancelling_from_another_thread_lets_what_runs_end_and_starts_nothing_more():
    both_run, go_on = threading.Barrier(3), threading.Event()
    started = []

    def fn(value, _):
        started.append(value)
        both_run.wait(PATIENCE)
        assert go_on.wait(PATIENCE)
        return value

    with ParallelEngine([Stage("a", fn), Stage("b", fn, after=("a",))], workers=2) as engine:
        call = Call(engine.run, range(100))
        both_run.wait(PATIENCE)
        engine.cancel()
        go_on.set()
        report = call.result()
        assert sorted(started) == [0, 1]
        assert statuses(report) == [CANCELLED] * 100
        assert [dict(result.results) for result in report.results[:3]] == [{"a": 0}, {"a": 1}, {}]
        assert engine.metrics().cancelled == 100


def test_a_cancelled_run_that_has_failed_as_well_says_both():
    def fn(value, _):
        engine.cancel()
        raise ValueError(value)

    with ParallelEngine([Stage("a", fn)], workers=1) as engine:
        assert statuses(engine.run(range(3))) == [FAILED, CANCELLED, CANCELLED]


def test_an_engine_goes_on_after_it_was_cancelled():
    with ParallelEngine(DIAMOND, workers=2) as engine:
        engine.cancel()
        assert engine.run(range(3)).count(COMPLETED) == 3
        engine.cancel()
        assert engine.run(range(3)).count(COMPLETED) == 3


def test_an_interrupted_run_cancels_and_raises_and_the_engine_still_closes(monkeypatch):
    running, interrupted = threading.Event(), threading.Event()
    ran = []

    class Run(engine_module._Run):
        def __init__(self, *args):
            super().__init__(*args)
            wait, self.done.wait = self.done.wait, self.interrupt
            self.wait_again = wait

        def interrupt(self):
            assert running.wait(PATIENCE)
            self.done.wait = self.wait_again
            raise KeyboardInterrupt

    def fn(value, _):
        ran.append(value)
        running.set()
        assert interrupted.wait(PATIENCE)

    monkeypatch.setattr(engine_module, "_Run", Run)
    with ParallelEngine([Stage("a", fn)], workers=1) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.run(range(100))
        interrupted.set()
    assert ran == [0]
    metrics = engine.metrics()
    assert (metrics.completed, metrics.failed, metrics.cancelled) == (1, 0, 99)


@pytest.mark.parametrize("accepted", range(12))
@pytest.mark.parametrize("runs_refused", [False, True])
def test_a_pool_that_takes_no_more_tasks_ends_the_run_instead_of_hanging_it(
    accepted, runs_refused, monkeypatch
):
    """As when no thread can be started; the standard pool may run a task it has refused."""
    lock, left = threading.Lock(), accepted
    with ParallelEngine(DIAMOND, workers=2) as engine:
        submit = engine._pool.submit

        def refusing(function, *args):
            nonlocal left
            with lock:
                left -= 1
                refused = left < 0
            if not refused:
                submit(function, *args)
                return
            if runs_refused and function == engine._run_stage:
                function(*args)
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(engine._pool, "submit", refusing)
        call = Call(engine.run, range(50))
        if accepted < 2:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                call.result()
            assert engine.metrics().completed + engine.metrics().failed <= 2
            return
        report = call.result()
    assert len(report.results) == 50
    assert report.count(CANCELLED) >= 40
    for result in report.results:
        assert all("new thread" in str(error) for error in result.failures.values())
        assert (result.status is FAILED) == bool(result.failures)
        assert (result.status is COMPLETED) == (len(result.results) == 4)


def test_a_refused_task_that_the_pool_runs_late_is_not_counted_twice(monkeypatch):
    go_on = threading.Event()
    refused, still_under_way = [], []
    stages = [
        Stage("slow", lambda *_: go_on.wait(PATIENCE)),
        Stage("refused", failing(AssertionError("it has run"))),
        Stage("last", failing(AssertionError("it has run"))),
    ]
    with ParallelEngine(stages, workers=2) as engine:
        submit = engine._pool.submit

        def refusing(function, *args):
            name = args[1].name if function == engine._run_stage else None
            if name == "refused":
                refused.append(lambda: function(*args))
                raise RuntimeError("can't start new thread")
            if name == "last":
                refused[0]()
                function(*args)
                still_under_way.append(len(engine._runs))
                go_on.set()
            else:
                submit(function, *args)

        monkeypatch.setattr(engine._pool, "submit", refusing)
        (result,) = Call(engine.run, [0]).result().results
    assert still_under_way == [1]
    assert list(result.results) == ["slow"]
    assert [str(error) for error in result.failures.values()] == ["can't start new thread"]


# Closing


def test_closing_is_idempotent_and_ends_the_threads():
    before = set(threading.enumerate())
    engine = ParallelEngine(DIAMOND, workers=4)
    engine.run(range(20))
    assert set(threading.enumerate()) > before
    engine.close()
    engine.close()
    assert set(threading.enumerate()) <= before


def test_a_closed_engine_refuses_to_run_and_still_tells_its_metrics():
    with ParallelEngine(DIAMOND) as engine:
        engine.run(range(3))
    for call in (lambda: engine.run([1]), lambda: engine.synthesize(1, [abs], float)):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            call()
    assert engine.metrics().completed == 3
    assert engine.metrics().cancelled == 0


def test_closing_while_a_run_is_under_way_cancels_it_and_waits_for_it():
    running, go_on, both_close = threading.Event(), threading.Event(), threading.Barrier(3)

    class Watched(ParallelEngine):
        def cancel(self):
            super().cancel()
            both_close.wait(PATIENCE)

    def fn(value, _):
        running.set()
        assert go_on.wait(PATIENCE)
        return value

    engine = Watched([Stage("a", fn), Stage("b", fn, after=("a",))], workers=1)
    run = Call(engine.run, range(50))
    assert running.wait(PATIENCE)
    shutdown, under_way = engine._pool.shutdown, []
    engine._pool.shutdown = lambda: (under_way.append(len(engine._runs)), shutdown())
    closings = [Call(engine.close) for _ in range(2)]
    both_close.wait(PATIENCE)
    assert all(closing.is_alive() for closing in closings)
    go_on.set()
    for closing in closings:
        closing.result()
    assert statuses(run.result()) == [CANCELLED] * 50
    assert under_way == [0, 0]


def test_what_would_wait_for_itself_is_refused_in_a_stage():
    def fn(_, __):
        messages = []
        for call in (
            lambda: engine.run([1]),
            lambda: engine.synthesize(1, [abs], float),
            engine.close,
        ):
            with pytest.raises(RuntimeError, match=r"called from a stage .* would never return"):
                call()
            messages.append(call)
        return len(messages)

    with ParallelEngine([Stage("a", fn)], workers=1) as engine:
        (result,) = engine.run([0]).results
        assert result.results == {"a": 3}


def test_a_stage_may_use_another_engine():
    with ParallelEngine(DIAMOND, workers=1) as inner:
        stage = Stage("outer", lambda value, _: inner.run([value]).count(COMPLETED))
        with ParallelEngine([stage], workers=2) as outer:
            report = outer.run(range(5))
    assert [result.results["outer"] for result in report.results] == [1] * 5


# Metrics


def test_an_engine_that_has_not_run_has_no_rates_to_tell():
    with ParallelEngine(DIAMOND) as engine:
        assert engine.metrics() == Metrics(
            completed=0,
            failed=0,
            cancelled=0,
            success_rate=None,
            throughput=0.0,
            p50=None,
            p95=None,
            p99=None,
        )


def test_metrics_are_exact_for_known_latencies():
    clock = FakeClock()

    def fn(value, _):
        clock.now += value
        if value > 75:
            raise TimeoutError

    lengths = list(range(1, 101))
    random.Random(7).shuffle(lengths)
    with ParallelEngine([Stage("work", fn)], workers=1, clock=clock) as engine:
        report = engine.run(lengths)
        clock.now += 1e6  # idle time is no time of work
        assert engine.metrics() == Metrics(
            completed=75,
            failed=25,
            cancelled=0,
            success_rate=0.75,
            throughput=100 / 5050,
            p50=50,
            p95=95,
            p99=99,
        )
        assert report.seconds == 5050
        assert [result.seconds for result in report.results] == lengths
        engine.run([50])
        assert engine.metrics().throughput == 101 / 5100


def test_metrics_can_be_read_while_cycles_run_also_by_a_stage():
    with ParallelEngine([Stage("a", lambda *_: engine.metrics().completed)], workers=1) as engine:
        report = engine.run(range(5))
    assert [result.results["a"] for result in report.results] == [0, 1, 2, 3, 4]


def test_every_snapshot_of_the_metrics_fits_together():
    ended = threading.Event()

    def watch():
        last = 0
        while not ended.is_set():
            now = engine.metrics()
            finished = now.completed + now.failed
            assert last <= finished <= 1000
            assert now.success_rate == (now.completed / finished if finished else None)
            assert (now.p50 is None) == (finished == 0)
            assert finished == 0 or now.p50 <= now.p95 <= now.p99
            last = finished

    def fn(value, _):
        assert value % 3

    with ParallelEngine([Stage("a", fn)], workers=4) as engine:
        watcher = Call(watch)
        engine.run(range(1000))
        ended.set()
        watcher.result()
        assert (engine.metrics().completed, engine.metrics().failed) == (666, 334)


def test_metrics_do_not_grow_with_the_number_of_cycles():
    with ParallelEngine([Stage("a", lambda *_: None)], workers=1) as engine:
        engine.run(range(5000))
        assert engine.metrics().completed == 5000
        assert len(engine._meter._latencies) == 4096


# Synthesis


def test_a_synthesis_gives_the_best_variant_and_all_scores():
    variants = [lambda x: x + 1, lambda x: x * 10, lambda x: -x]
    with ParallelEngine(DIAMOND, workers=2) as engine:
        synthesis = engine.synthesize(4, variants, float)
        assert engine.metrics().completed == 0
    assert (synthesis.best.index, synthesis.best.candidate, synthesis.best.score) == (1, 40, 40.0)
    assert [variant.score for variant in synthesis.variants] == [5.0, 40.0, -4.0]
    assert synthesis.best is synthesis.variants[1]


def test_the_first_of_equal_variants_wins():
    with ParallelEngine(DIAMOND, workers=4) as engine:
        synthesis = engine.synthesize(0, [lambda _: 1, lambda _: 2, lambda _: 2.0], lambda x: x)
    assert synthesis.best.index == 1


def test_variants_run_in_parallel_and_may_be_more_than_the_workers():
    meeting = threading.Barrier(3)

    def variant(problem):
        meeting.wait(PATIENCE)
        return problem

    with ParallelEngine(DIAMOND, workers=3) as engine:
        assert len(engine.synthesize(1, [variant] * 30, float).variants) == 30


def test_a_variant_or_a_score_that_raises_is_recorded_and_does_not_win():
    def score(candidate):
        return {"nan": math.nan, "text": "high", "infinite": math.inf, "good": 1}[candidate]

    variants = [failing(OSError("broken"))]
    variants += [lambda _, c=c: c for c in ("unknown", "nan", "text", "infinite", "good")]
    with ParallelEngine(DIAMOND, workers=2) as engine:
        synthesis = engine.synthesize(None, variants, score)
    assert synthesis.best.index == 5
    assert [variant.status for variant in synthesis.variants] == [FAILED] * 5 + [COMPLETED]
    assert [variant.score for variant in synthesis.variants] == [None] * 5 + [1]
    errors = [variant.error for variant in synthesis.variants]
    assert [type(error) for error in errors] == [
        OSError,
        KeyError,
        ValueError,
        TypeError,
        ValueError,
        type(None),
    ]
    assert "a score must be a finite number, not nan" in str(errors[2])
    assert [v.candidate for v in synthesis.variants] == [
        None,
        "unknown",
        "nan",
        "text",
        "infinite",
        "good",
    ]


def test_when_all_variants_fail_the_error_says_why_for_each():
    error = OSError("no net")
    variants = [failing(error), lambda _: "text"]
    with ParallelEngine(DIAMOND, workers=2) as engine, pytest.raises(SynthesisError) as caught:
        engine.synthesize(None, variants, lambda text: failing(KeyError(text))())
    assert str(caught.value) == (
        "none of 2 variants gave a scored candidate (0: OSError: no net; 1: KeyError: 'text')"
    )
    assert caught.value.__cause__ is error
    assert [variant.candidate for variant in caught.value.variants] == [None, "text"]


def test_a_synthesis_of_no_variants_is_refused():
    with ParallelEngine(DIAMOND) as engine, pytest.raises(ValueError, match="variants must not"):
        engine.synthesize(1, [], float)


def test_a_cancelled_synthesis_chooses_among_what_was_scored():
    def cancelling(problem):
        engine.cancel()
        return problem

    with ParallelEngine(DIAMOND, workers=1) as engine:
        synthesis = engine.synthesize(7, [abs, cancelling, abs], float)
        assert synthesis.best.index == 0
        assert [v.status for v in synthesis.variants] == [COMPLETED, CANCELLED, CANCELLED]
        assert [v.candidate for v in synthesis.variants] == [7, 7, None]
        with pytest.raises(SynthesisError, match=r"\(0: cancelled; 1: cancelled\)"):
            engine.synthesize(7, [cancelling, abs], float)


# A resource for each thread


class Client:
    def __init__(self):
        self.thread = threading.get_ident()
        self.closed = 0

    def close(self):
        self.closed += 1


def recording(make):
    """A list, and a function that makes something and notes it there."""
    made = []

    def make_and_note():
        resource = make()
        made.append(resource)
        return resource

    return made, make_and_note


def test_each_thread_has_one_resource_of_its_own():
    clients = PerThread(Client)
    mine = clients.get()
    assert clients.get() is mine
    theirs = Call(clients.get).result()
    assert theirs is not mine
    assert theirs.thread != mine.thread


def test_two_sets_of_resources_are_apart():
    assert PerThread(Client).get() is not PerThread(Client).get()


def test_an_engine_makes_one_resource_for_each_of_its_threads_and_closes_them_at_its_end():
    made, client = recording(Client)
    clients = PerThread(client)

    def fn(*_):
        assert clients.get().thread == threading.get_ident()
        return clients.get()

    stages = [Stage("a", fn), Stage("b", fn, after=("a",)), Stage("c", fn, after=("a",))]
    with ParallelEngine(stages, workers=3, resources=[clients]) as engine:
        reports = [engine.run(range(100)) for _ in range(2)]
        used = {
            client for r in reports for result in r.results for client in result.results.values()
        }
        assert used == set(made)
        assert 1 <= len(made) <= 3
        assert [client.closed for client in made] == [0] * len(made)
    assert [client.closed for client in made] == [1] * len(made)
    engine.close()
    assert [client.closed for client in made] == [1] * len(made)


def test_closing_closes_every_resource_though_one_fails_to():
    class Stubborn(Client):
        def close(self):
            super().close()
            if self.closed == 1 and self is made[1]:
                raise OSError("stuck")

    made, stubborn = recording(Stubborn)
    clients = PerThread(stubborn)
    for _ in range(3):
        Call(clients.get).result()
    with pytest.raises(OSError, match="stuck"):
        clients.close()
    assert [client.closed for client in made] == [1, 1, 1]
    clients.close()
    assert [client.closed for client in made] == [1, 1, 1]


def test_an_engine_closes_all_its_resources_though_one_fails_to():
    def broken_close():
        raise OSError("stuck")

    first, last = PerThread(Client), PerThread(Client)
    broken = PerThread(lambda: contextlib.closing(None))
    broken.get().close = broken_close
    kept = [first.get(), last.get()]
    engine = ParallelEngine(DIAMOND, resources=(r for r in (first, broken, last)))
    with pytest.raises(OSError, match="stuck"):
        engine.close()
    assert [client.closed for client in kept] == [1, 1]


def test_a_factory_that_fails_is_tried_again():
    outcomes = [OSError("not yet"), None]

    def factory():
        error = outcomes.pop(0)
        if error:
            raise error
        return "plain text needs no closing"

    with PerThread(factory) as clients:
        with pytest.raises(OSError, match="not yet"):
            clients.get()
        assert clients.get() == "plain text needs no closing"


def test_a_closed_set_of_resources_gives_none_and_makes_none():
    clients = PerThread(Client)
    clients.get()
    clients.close()
    for get in (clients.get, Call(clients.get).result):
        with pytest.raises(RuntimeError, match="are closed"):
            get()


def test_a_resource_that_is_finished_too_late_is_closed_and_not_given_out():
    making, go_on, made = threading.Event(), threading.Event(), []

    def factory():
        made.append(Client())
        making.set()
        assert go_on.wait(PATIENCE)
        return made[0]

    clients = PerThread(factory)
    call = Call(clients.get)
    assert making.wait(PATIENCE)
    clients.close()
    go_on.set()
    with pytest.raises(RuntimeError, match="are closed"):
        call.result()
    assert made[0].closed == 1


# The decision log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "decisions.jsonl"


def test_the_log_numbers_what_it_is_given_and_finds_it_again(path):
    entries = [{"choice": "a"}, "line\nbreak \u2028 ü", None, [1, 2.5, {"x": []}], 7]
    with DecisionLog(path) as log:
        assert [log.append(entry) for entry in entries] == [0, 1, 2, 3, 4]
        assert [log.read(number) for number in (4, 0, 2, 1, 3)] == [
            7,
            *entries[:3:2],
            *entries[1:4:2],
        ]
        assert list(log) == entries
        assert len(log) == 5
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"sequence": 0, "entry": {"choice": "a"}}
    assert len(lines) == 5


def test_the_log_goes_on_where_it_ended(path):
    for number in range(3):
        with DecisionLog(path) as log:
            assert log.append(number) == number
    with DecisionLog(str(path)) as log:
        assert list(log) == [0, 1, 2]


@pytest.mark.parametrize("number", [2, -1, 10**30])
def test_a_number_that_is_not_there_is_an_error_that_says_what_is(path, number):
    with DecisionLog(path) as log:
        log.append(1)
        log.append(2)
        with pytest.raises(IndexError, match=f"has 2 entries, none numbered {number}"):
            log.read(number)


@pytest.mark.parametrize("entry", [math.nan, {"x": math.inf}, {1, 2}, object()])
def test_what_json_cannot_hold_is_refused_and_leaves_the_log_as_it_was(path, entry):
    with DecisionLog(path) as log:
        log.append("good")
        with pytest.raises((TypeError, ValueError)):
            log.append(entry)
        assert list(log) == ["good"]


def test_a_closed_log_says_so(path):
    log = DecisionLog(path)
    log.close()
    log.close()
    for call in (lambda: log.append(1), lambda: log.read(0), lambda: len(log)):
        with pytest.raises(ValueError, match=r"the decision log .*decisions.jsonl is closed"):
            call()


def test_two_logs_on_one_file_see_each_others_entries(path):
    with DecisionLog(path) as one, DecisionLog(path) as other:
        assert [one.append("a"), other.append("b"), one.append("c")] == [0, 1, 2]
        assert list(one) == list(other) == ["a", "b", "c"]


def written(path, entries):
    with DecisionLog(path) as log:
        for entry in entries:
            log.append(entry)
    return path.read_bytes(), Path(f"{path}.index").read_bytes()


def test_a_torn_last_line_is_removed_wherever_it_was_torn_and_never_read(path, caplog):
    data, index = written(path, ["first", "second", "third"])
    start = data.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(data)):
        for torn_index in (index[:16], index[:19]):
            path.write_bytes(data[:cut])
            Path(f"{path}.index").write_bytes(torn_index)
            caplog.clear()
            with caplog.at_level(logging.WARNING), DecisionLog(path) as log:
                assert list(log) == ["first", "second"]
                warnings = [f"{path}: removed a torn last line of {cut - start} bytes"]
                assert caplog.messages == (warnings if cut > start else [])
                assert log.append("fourth") == 2
                assert list(log) == ["first", "second", "fourth"]


def test_a_line_that_is_complete_counts_though_its_writer_was_killed_before_the_index(path):
    data, index = written(path, ["first", "second", "third"])
    for known in range(len(index) + 1):
        Path(f"{path}.index").write_bytes(index[:known])
        with DecisionLog(path) as log:
            assert log.read(2) == "third"
            assert list(log) == ["first", "second", "third"]
        assert (path.read_bytes(), Path(f"{path}.index").read_bytes()) == (data, index)


def test_a_log_that_was_opened_before_notices_a_torn_line_of_another_process(path):
    with DecisionLog(path) as log:
        log.append("first")
        with path.open("ab") as other:
            other.write(b'{"sequence": 1, "en')
        assert list(log) == ["first"]
        assert log.append("second") == 1
        assert list(log) == ["first", "second"]


@pytest.mark.parametrize(
    "content",
    [
        b"not a log\n",
        b"no line at all",
        b'{"sequence": 1, "entry": 0}\n',
        b'{"sequence": 0}\n',
        b"[]\n",
        b'{"sequence": 0, "entry": 1}\nsomething else',
        b'{"sequence": 0, "entry": 1}\n{"sequence": 0, "entry": 2}\n',
        b"\x00\xff\n",
    ],
)
def test_a_file_that_is_no_log_is_refused_and_left_as_it_was(path, content):
    path.write_bytes(content)
    with pytest.raises(LogCorruptError, match=r"decisions.jsonl is no decision log, or is damaged"):
        DecisionLog(path)
    assert path.read_bytes() == content


def test_a_log_that_has_lost_entries_says_so_and_how_to_go_on(path):
    data, _ = written(path, ["first", "second"])
    path.write_bytes(data[: data.index(b"\n") + 1])
    with pytest.raises(
        LogCorruptError, match=r"entries were lost .*delete .*decisions.jsonl.index"
    ):
        DecisionLog(path)
    Path(f"{path}.index").unlink()
    with DecisionLog(path) as log:
        assert list(log) == ["first"]


def test_a_damaged_entry_is_an_error_and_not_data(path):
    with DecisionLog(path) as log:
        log.append("first")
        log.append("second")
        path.write_bytes(path.read_bytes().replace(b"0", b"5"))
        with pytest.raises(LogCorruptError, match="where entry 0 should be there is"):
            log.read(0)
        assert log.read(1) == "second"


@pytest.mark.parametrize("half", ["_data", "_index"])
def test_an_entry_that_could_not_be_written_leaves_nothing_behind(path, half):
    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[: len(data) // 2])

    with DecisionLog(path) as log:
        log.append("first")
        before = path.read_bytes(), Path(f"{path}.index").read_bytes()
        real = getattr(log, half)
        setattr(log, half, FullDisk(real))
        with pytest.raises(OSError, match=r"only \d+ of \d+ bytes were written"):
            log.append("second")
        setattr(log, half, real)
        assert (path.read_bytes(), Path(f"{path}.index").read_bytes()) == before
        assert log.append("third") == 1


def test_threads_append_without_losing_or_sharing_a_number(path):
    with DecisionLog(path) as log:

        def append(thread):
            return [(log.append([thread, i]), [thread, i]) for i in range(40)]

        calls = [Call(append, thread) for thread in range(6)]
        appended = dict(pair for call in calls for pair in call.result())
        assert sorted(appended) == list(range(240))
        assert [appended[number] for number in range(240)] == list(log)
        for thread in range(6):
            assert [i for t, i in log if t == thread] == list(range(40))


APPENDING = """
import sys
from pytest_freethread.reference.engine import DecisionLog
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with DecisionLog(path) as log:
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(count):
        print(log.append([name, i, "x" * (i % 50) * 100]), flush=True)
"""


def start_appending(path, name, count):
    """A process that is about to append; it goes on when it is sent a line."""
    root = Path(engine_module.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(path), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_append_without_losing_or_sharing_a_number(path):
    with DecisionLog(path) as log:
        processes = {name: start_appending(path, name, 500) for name in ("one", "two")}
        for process in processes.values():
            process.stdin.write("go\n")
            process.stdin.flush()
        here = [log.append(["here", i, ""]) for i in range(500)]
        numbers = {"here": here}
        for name, process in processes.items():
            output, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
            numbers[name] = [int(line) for line in output.split()]
        assert sorted(number for own in numbers.values() for number in own) == list(range(1500))
        entries = list(log)
    for name, own in numbers.items():
        assert own == sorted(own)
        assert [entries[number][:2] for number in own] == [[name, i] for i in range(500)]


def test_nothing_that_was_acknowledged_is_lost_when_a_writer_is_killed(path):
    total = 0
    for attempt in range(3):
        acknowledged = []
        with start_appending(path, f"killed {attempt}", 10**9) as process:
            process.stdin.write("go\n")
            process.stdin.flush()
            for line in process.stdout:
                acknowledged.append(int(line))
                if len(acknowledged) == 60 + attempt:
                    process.kill()
        assert acknowledged[0] == total
        with DecisionLog(path) as log:
            entries = list(log)
            assert len(entries) > acknowledged[-1]
            assert acknowledged == list(range(total, total + len(acknowledged)))
            assert [entry[1] for entry in entries[total:]] == list(range(len(entries) - total))
            assert {entry[0] for entry in entries[total:]} == {f"killed {attempt}"}
            total = len(entries)


def test_the_engine_logs_what_became_of_each_cycle(path):
    def fn(value, _):
        if value == 1:
            raise ValueError("odd")
        if value == 2:
            engine.cancel()

    with DecisionLog(path) as log:
        with ParallelEngine([Stage("a", fn)], workers=1, log=log, clock=FakeClock()) as engine:
            engine.run(range(4))
        assert list(log) == [
            {"cycle": 0, "status": "completed", "seconds": 0.0, "failures": {}},
            {"cycle": 1, "status": "failed", "seconds": 0.0, "failures": {"a": "ValueError: odd"}},
            {"cycle": 2, "status": "completed", "seconds": 0.0, "failures": {}},
            {"cycle": 3, "status": "cancelled", "seconds": 0.0, "failures": {}},
        ]


def test_the_engine_logs_each_choice_of_a_synthesis(path):
    with DecisionLog(path) as log:
        with ParallelEngine(DIAMOND, workers=2, log=log) as engine:
            engine.synthesize(3, [abs, failing(OSError()), lambda x: 2 * x], lambda x: x)
        assert list(log) == [{"synthesis": {"best": 2, "scores": [3.0, None, 6.0]}}]


def test_a_thousand_cycles_are_all_logged_once(path):
    with DecisionLog(path) as log, ParallelEngine(DIAMOND, workers=8, log=log) as engine:
        engine.run(range(1000))
        assert Counter(entry["cycle"] for entry in log) == Counter(range(1000))


def test_a_cycle_whose_outcome_could_not_be_logged_has_failed(path):
    log = DecisionLog(path)
    log.close()
    with ParallelEngine(DIAMOND, workers=2, log=log) as engine:
        report = engine.run(range(3))
        assert engine.metrics().failed == 3
    assert statuses(report) == [FAILED] * 3
    for result in report.results:
        assert list(result.failures) == ["(decision log)"]
        assert "is closed" in str(result.failures["(decision log)"])
        assert len(result.results) == 4


# Under stress, through the project's own tools


def test_stress_every_run_of_a_shared_engine_is_complete():
    def setup():
        return ParallelEngine(DIAMOND, workers=3)

    def body(engine):
        report = engine.run(range(5))
        assert report.count(COMPLETED) == 5
        assert [len(result.results) for result in report.results] == [4] * 5

    def invariant(engine):
        engine.close()
        return engine.metrics().completed == 15

    stress(body, setup=setup, invariant=invariant, threads=3, rounds=30).raise_for_verdict()


def test_stress_cancelling_and_closing_never_hang_a_run_or_lose_a_cycle():
    class State:
        def __init__(self):
            self.engine = ParallelEngine(DIAMOND, workers=2)
            self.report = None

    def run(state):
        try:
            state.report = state.engine.run(range(20))
        except RuntimeError as error:
            assert "the engine is closed" in str(error)

    def invariant(state):
        if state.report is None:
            return True
        for result in state.report.results:
            assert not result.failures
            assert (result.status is COMPLETED) == (len(result.results) == 4)
        metrics = state.engine.metrics()
        return metrics.completed + metrics.cancelled == len(state.report.results) == 20

    stress(
        run,
        lambda state: state.engine.cancel(),
        lambda state: state.engine.close(),
        lambda state: state.engine.close(),
        setup=State,
        invariant=invariant,
        rounds=60,
    ).raise_for_verdict()


def test_stress_a_resource_is_never_shared_and_always_closed():
    class State:
        def __init__(self):
            self.made, client = recording(Client)
            self.clients = PerThread(client)

    def use(state):
        try:
            for _ in range(3):
                assert state.clients.get().thread == threading.get_ident()
        except RuntimeError as error:
            assert "are closed" in str(error)

    stress(
        use,
        use,
        use,
        lambda state: state.clients.close(),
        setup=State,
        invariant=lambda state: all(client.closed == 1 for client in state.made),
        rounds=200,
    ).raise_for_verdict()


@pytest.fixture
def shared_log(tmp_path):
    with DecisionLog(tmp_path / "log") as log:
        log.numbers = []
        yield log
        assert sorted(log.numbers) == list(range(len(log)))


@pytest.mark.freethread(threads=4, rounds=15, shared=["shared_log"])
def test_stress_a_log_shared_by_a_rerun_test_keeps_every_entry(shared_log):
    for i in range(3):
        number = shared_log.append(i)
        shared_log.numbers.append(number)
        assert shared_log.read(number) == i


def test_stress_metrics_count_each_cycle_once():
    def setup():
        return ParallelEngine([Stage("a", lambda value, _: 1 // value)], workers=4)

    def watch(engine):
        for _ in range(20):
            metrics = engine.metrics()
            finished = metrics.completed + metrics.failed
            assert metrics.success_rate == (metrics.completed / finished if finished else None)

    def invariant(engine):
        engine.close()
        metrics = engine.metrics()
        return (metrics.completed, metrics.failed) == (9, 3)

    def run(engine):
        engine.run([0, 1, 2, 3])

    stress(run, run, run, watch, setup=setup, invariant=invariant, rounds=30).raise_for_verdict()
