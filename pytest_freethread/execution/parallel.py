"""Measuring whether tasks run in parallel: the same work serially and at once, over and over.

A round is a pair of runs of the tasks (one after another on one thread; at once on a thread each)
and the same pair of a probe that computes and shares nothing: what this machine, with this load and
this interpreter, can show at all. The runs of a round come in random order, so that whatever
changes meanwhile falls on all of them, and each run is of threads that were started long before and
have met. What it all means is judged elsewhere.
"""

from __future__ import annotations

import contextvars
import hashlib
import queue
import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.execution import free, leaks, stacks
from pytest_freethread.execution.waits import LockTimer
from pytest_freethread.records import (
    Machine,
    MeasuredRound,
    Measurement,
    Pair,
    PartRun,
    Samples,
    ThreadState,
    TimedRun,
    Wait,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_freethread.records import ParallelPlan

TIMED_RUNS: Final = 5
"""Parallel runs in which the waits for locks are timed, after all others."""

_PROBE_SECONDS: Final = (0.001, 0.02)
"""A run of the probe takes as long as a task computes, within these bounds."""

_Task = tuple[int, "Callable[[], object]"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured.

    Attributes:
        names: of the tasks.
        begin: makes fresh state and returns so many bodies, not timed.
        end: takes it down, also what a `begin` that raised has made of it.
        subjects: functions whose modules are looked into for locks.
    """

    names: tuple[str, ...]
    begin: Callable[[int], Sequence[Callable[[], object]]]
    end: Callable[[], object]
    subjects: tuple[Callable[..., object], ...]


class StuckError(Exception):
    """Threads did not come back; `states` says what they were doing."""

    def __init__(self, states: tuple[ThreadState, ...]) -> None:
        super().__init__("threads did not come back")
        self.states = states


def measure(
    plan: ParallelPlan,
    workload: Workload,
    *,
    tight: Callable[[Sequence[MeasuredRound]], bool],
    explain: Callable[[Measurement], bool],
) -> Measurement:
    """Measure with each number of threads of the plan, within its budgets.

    Args:
        plan: how.
        workload: what.
        tight: whether these rounds say enough; asked after each one.
        explain: given what was measured so far, whether to time waits for locks too, with the
            number of threads that was last.

    Raises:
        BaseException: what a task raised.
    """
    began = interpreter.monotonic()
    facts = interpreter.facts()
    quota = interpreter.cpu_quota()
    machine = Machine(
        python=facts.name,
        free_threaded=facts.free_threaded,
        gil=facts.gil,
        gil_by=interpreter.gil_switched_on_by() if facts.free_threaded and facts.gil else None,
        cores=facts.cores if quota is None else min(facts.cores, quota),
        system=interpreter.system(),
    )
    samples: list[Samples] = []

    def measured(stuck: tuple[ThreadState, ...] = ()) -> Measurement:
        return Measurement(
            machine=machine,
            plan=plan,
            names=workload.names,
            samples=tuple(samples),
            stuck=stuck,
            seconds=interpreter.monotonic() - began,
        )

    crew = _Crew(plan)
    try:
        for number, threads in enumerate(plan.threads):
            until = None
            if plan.seconds is not None:
                share = sum(plan.threads[: number + 1]) / sum(plan.threads)
                until = began + plan.seconds * share  # more tasks take longer
            one = _Point(plan, workload, crew, threads, machine)
            one.run_rounds(until, tight)
            samples.append(one.samples())
            if explain(measured()):
                samples[-1] = one.with_locks(samples[-1])
        return measured()
    except StuckError as error:
        return measured(error.states)
    finally:
        crew.close()


class _Point:
    """Measures with one number of threads."""

    def __init__(
        self,
        plan: ParallelPlan,
        workload: Workload,
        crew: _Crew,
        threads: int,
        machine: Machine,
    ) -> None:
        self._plan = plan
        self._workload = workload
        self._crew = crew
        self._threads = threads
        self._rounds: list[MeasuredRound] = []
        self._random = random.Random(threads)  # noqa: S311 - an order of runs, no secret
        warm_up = self._pair(self._run_tasks)  # caches, and code that the interpreter specialises
        computed = statistics.fmean(part.cpu for part in warm_up.serial)
        shortest, longest = _PROBE_SECONDS
        wanted = min(max(computed, shortest), longest)
        self._probe = _sized(_count, wanted)
        self._native = _sized(_hash, wanted) if machine.gil else None

    def run_rounds(
        self, until: float | None, tight: Callable[[Sequence[MeasuredRound]], bool]
    ) -> None:
        """Until they say enough, there are enough of them, or the time is over."""
        while len(self._rounds) < self._plan.pairs:
            self._rounds.append(self._round())
            if until is not None and interpreter.monotonic() >= until:
                return
            if tight(self._rounds):
                return

    def samples(self) -> Samples:
        return Samples(threads=self._threads, rounds=tuple(self._rounds))

    def with_locks(self, samples: Samples) -> Samples:
        """With some more parallel runs in which the waits for locks are timed."""
        timed: list[TimedRun] = []
        timer = LockTimer(self._workload.subjects)
        with timer:
            if timer.refused is None:
                for _ in range(TIMED_RUNS):
                    parts = self._run_tasks(parallel=True)
                    timed.append(_from_origin(parts, timer.take(self._crew.idents())))
        return Samples(
            threads=samples.threads,
            rounds=samples.rounds,
            timed=tuple(timed),
            untimed=timer.refused,
        )

    def _round(self) -> MeasuredRound:
        runs: dict[tuple[str, bool], tuple[PartRun, ...]] = {}
        kinds = [("tasks", self._run_tasks), ("probe", self._run_probe(self._probe))]
        if self._native is not None:
            kinds.append(("native", self._run_probe(self._native)))
        order = [(name, run, parallel) for name, run in kinds for parallel in (False, True)]
        self._random.shuffle(order)
        coreless = 0.0
        for name, run, parallel in order:
            watched = parallel and name == "tasks"
            before = interpreter.seconds_without_core() if watched else 0.0
            runs[name, parallel] = _from_origin(run(parallel=parallel)).parts
            if watched:
                coreless = max(0.0, interpreter.seconds_without_core() - before)
        pairs = {name: Pair(runs[name, False], runs[name, True]) for name, _ in kinds}
        return MeasuredRound(pairs["tasks"], pairs["probe"], pairs.get("native"), coreless)

    def _pair(self, run: Any) -> Pair:
        return Pair(run(parallel=False), run(parallel=True))

    def _run_tasks(self, *, parallel: bool) -> tuple[PartRun, ...]:
        try:
            parts = self._crew.run(self._workload.begin(self._threads), parallel=parallel)
        except StuckError:
            raise  # the state is still in use
        except BaseException:
            self._workload.end()
            raise
        self._workload.end()
        return parts

    def _run_probe(self, probe: Callable[[], object]) -> Any:
        def run(*, parallel: bool) -> tuple[PartRun, ...]:
            return self._crew.run([probe] * self._threads, parallel=parallel)

        return run


def _from_origin(parts: Sequence[PartRun], waits: Sequence[Wait] = ()) -> TimedRun:
    """A run whose times count from the start of its first task."""
    origin = min(part.start for part in parts)
    return TimedRun(
        tuple(p._replace(start=p.start - origin, end=p.end - origin) for p in parts),
        tuple(w._replace(start=w.start - origin, end=w.end - origin) for w in waits),
    )


def _count(turns: int) -> None:
    """Pure Python that computes and shares nothing."""
    total = 0
    for turn in range(turns):
        total += turn & 7


_BLOCK: Final = bytes(16 * 1024)


def _hash(turns: int) -> None:
    """Work in C for which the GIL is let go of; each turn some 10 to 40 µs."""
    digest = hashlib.sha256()
    for _ in range(turns):
        digest.update(_BLOCK)


def _sized(work: Callable[[int], None], seconds: float) -> Callable[[], object]:
    """The work with as many turns as take so long."""
    turns = 16
    while True:
        began = interpreter.thread_time()
        work(turns)
        took = interpreter.thread_time() - began
        if took > 0.1 * seconds:
            enough = max(1, round(turns * seconds / took))
            return lambda: work(enough)
        turns *= 4


# ----- the threads -----


class _Crew:
    """Threads that wait for work, for the length of a measurement."""

    def __init__(self, plan: ParallelPlan) -> None:
        self._plan = plan
        self._workers = [_Worker(self, index) for index in range(max(plan.threads))]
        self._arrived: list[None] = []
        self._expected = 0
        self._patience = 0
        self._yield_core = interpreter.core_yielder()
        self._ended: queue.SimpleQueue[_Worker] = interpreter.SimpleQueue()

    def run(self, bodies: Sequence[Callable[[], object]], *, parallel: bool) -> tuple[PartRun, ...]:
        """Run bodies at once, each on a thread, or one after another on the first.

        Returns:
            A run of each, by the clock of `perf_counter`.

        Raises:
            BaseException: what a body raised; of several, that of the first one.
            StuckError: they did not come back before the deadline.
        """
        tasks = list(enumerate(bodies))
        shares = [[task] for task in tasks] if parallel else [tasks]
        self._arrived = []
        self._expected = len(shares)
        # Whoever spins while others have no core to arrive on only keeps them waiting.
        together = not interpreter.gil_enabled() and interpreter.usable_cores() >= len(shares)
        self._patience = 20_000 if together else 20
        busy = self._workers[: len(shares)]
        for worker, share in zip(busy, shares, strict=True):
            worker.start(share, alone=not parallel)
        self._wait_for(busy)
        for worker in busy:
            if worker.error is not None:
                raise worker.error
        return tuple(sorted(part for worker in busy for part in worker.parts))

    def idents(self) -> dict[int, int]:
        """The index of each thread, by its ident."""
        return {worker.thread.ident or 0: worker.index for worker in self._workers}

    def close(self) -> None:
        """End the threads that are not in a task; ask the others to."""
        for worker in self._workers:
            worker.dismiss()
        free.abandon(worker.thread for worker in self._workers if not worker.idle)

    def rendezvous(self) -> None:
        """Return when all threads of the run have come here, at nearly the same moment."""
        arrived, everybody, patience = self._arrived, self._expected, self._patience
        arrived.append(None)  # atomic, as is len(), on every build
        while len(arrived) < everybody:
            patience -= 1
            if patience < 0:
                self._yield_core()

    def arrive_at_end(self, worker: _Worker) -> None:
        self._ended.put(worker)

    def _wait_for(self, busy: Sequence[_Worker]) -> None:
        until = interpreter.monotonic() + self._plan.deadline
        for _ in busy:
            try:
                self._ended.get(timeout=max(0.0, until - interpreter.monotonic()))
            except queue.Empty:
                left = [worker for worker in busy if not worker.idle]
                states = {w.thread.ident or 0: (w.index, w.thread.name) for w in left}
                raise StuckError(stacks.examine(states)) from None


class _Worker:
    def __init__(self, crew: _Crew, index: int) -> None:
        self.index = index
        self.idle = True
        self.error: BaseException | None = None
        self.parts: list[PartRun] = []
        self._crew = crew
        self._share: list[_Task] | None = None
        self._clock = interpreter.thread_time
        self._settle = interpreter.core_settler(index)
        self._pin = interpreter.core_pinner(index) if crew._plan.pin else None  # noqa: SLF001 - one mechanism
        self._wake = interpreter.Lock()
        self._wake.acquire()
        self.thread = interpreter.Thread(target=self._loop, name=f"freethread-{index}", daemon=True)
        leaks.mark_as_ours(self.thread)
        self.thread.start()

    def start(self, share: list[_Task], *, alone: bool) -> None:
        self._share = share
        # Alone, whatever computes in this process does so for the task.
        self._clock = interpreter.process_time if alone else interpreter.thread_time
        self.error = None
        self.parts = []
        self.idle = False
        self._wake.release()

    def dismiss(self) -> None:
        """End the thread once it has nothing to do."""
        self._share = None
        self._wake.release()
        if self.idle:
            self.thread.join()

    def _loop(self) -> None:
        if self._pin is not None:
            self._pin()
        while True:
            self._wake.acquire()
            share = self._share
            if share is None:
                return
            try:
                if self._pin is None:
                    self._settle()
                self._crew.rendezvous()
                for index, body in share:
                    self.parts.append(self._timed(index, body))
            except BaseException as error:
                self.error = error
            self.idle = True
            self._crew.arrive_at_end(self)

    def _timed(self, index: int, body: Callable[[], object]) -> PartRun:
        inherited = interpreter.inherits_context()
        context = contextvars.copy_context() if inherited else contextvars.Context()
        computed = self._clock()
        start = interpreter.perf_counter()
        context.run(body)
        end = interpreter.perf_counter()
        computed = self._clock() - computed
        return PartRun(index, self.index, start, end, computed)
