"""Run a batch of tasks in parallel, with the outcome of a serial run.

    >>> with ParallelExecutor(workers=2) as executor:
    ...     result = executor.run([
    ...         Task(lambda s: s.update(price=100), writes={"price"}),
    ...         Task(lambda s: s.update(price=2 * s["price"]), reads={"price"}, writes={"price"}),
    ...         lambda: "independent",
    ...     ])
    >>> result.state["price"], result.values()[2], bool(result.verify_serial_equivalence())
    (200, 'independent', True)

**Order.** A task waits for the tasks that it names in `after`, and for every task submitted before
it that uses the same key of the state, where at least one of the two writes it. That is
conservative: it is never asked whether the order would have mattered. A task's *level* is the
length of the longest chain of tasks that it waits for. A level starts when the level before it has
ended; its tasks run in parallel. No two tasks of a level conflict, so running them one by one,
level after level, explains what they did together.

**Pool.** The tasks of a level are dealt in turn to the workers' deques. A worker takes from the
front of its own and, when that is empty, from the back of another's: work stealing, after Blumofe
and Leiserson, "Scheduling multithreaded computations by work stealing", J. ACM 46(5), 1999. A
worker that finds nothing sleeps on a condition. The worker that ends a level deals the next one,
so a chain of tasks costs no hand-over between threads. Threads start when they are first needed.

**State.** A batch works on a copy of the mapping that it is given; the caller's is never written. A
task sees a copy-on-write view, a layer of its own over the state. Exactly this is copied:

* the mapping is not: what the task writes and deletes stays in its layer until it has succeeded,
  and then enters the state in one step;
* a value read under a key that is in both `reads` and `writes` is deep-copied once, into the
  layer, so that the task may change it in place;
* a value read under a key in `reads` alone is handed out as it is and must not be changed in place;
* a value that is written is stored as it is.

A task that fails or is given up on leaves no trace in the state.

**Time.** A thread cannot be killed in Python. A task that overstays its timeout is given up on: its
result says so, nothing that it still does can reach the state, and its thread (a daemon) is left
to itself and replaced, so that the pool keeps its size.
"""

from __future__ import annotations

import copy
import enum
import graphlib
import itertools
import math
import reprlib
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

__all__ = [
    "BatchResult",
    "CycleError",
    "ParallelExecutor",
    "SerialCheck",
    "Statistics",
    "Status",
    "Task",
    "TaskNotRunError",
    "TaskResult",
    "TraceEntry",
    "UndeclaredAccessError",
]


class CycleError(ValueError):
    """The tasks of a batch wait for each other in a circle.

    Concurrency contract: Immutable.

    Attributes:
        cycle: the names along the circle, each waiting for the next; the first is also the last.
    """

    def __init__(self, message: str, cycle: tuple[str, ...]) -> None:
        super().__init__(message)
        self.cycle = cycle


class UndeclaredAccessError(RuntimeError):
    """A task read or wrote a key of the state that it had not declared.

    The task fails with it even where it catches it: the batch's order did not cover the access.

    Concurrency contract: Immutable.
    """


class TaskNotRunError(RuntimeError):
    """A task was never started: one that it depends on did not succeed, or the batch was stopped.

    Concurrency contract: Immutable.
    """


class Status(enum.Enum):
    """What became of a task; the first two are of a task in a batch that runs, never of a result.

    Concurrency contract: Immutable.
    """

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Task:
    """A function and what it depends on.

    Concurrency contract: Immutable. One task may be in several batches at once if its function may
    be called from several threads at once.

    Attributes:
        fn: called with a view of the state (a `MutableMapping[str, Any]`) where `reads` or `writes`
            name a key, else with nothing.
        name: unique in the batch; `None` stands for `task-` and the position, from 0.
        after: names of the tasks of the batch that must have succeeded before this one starts.
        reads: the keys of the state that the function may read.
        writes: the keys that it may write and delete. Reading back what it wrote itself needs no
            further declaration, reading what was there before does.
        timeout: seconds after its start when the task is given up on; `None` stands for the
            executor's, `math.inf` for never.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the name is empty, or the timeout is not positive.
    """

    fn: Callable[..., Any]
    name: str | None = field(default=None, kw_only=True)
    after: Collection[str] = field(default=(), kw_only=True)
    reads: Collection[str] = field(default=frozenset(), kw_only=True)
    writes: Collection[str] = field(default=frozenset(), kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"a task's function must be callable, not {self.fn!r}")
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"a task's name must be a string, not {self.name!r}")
        if self.name == "":
            raise ValueError("a task's name must not be empty, but it is ''")
        for which, kind in (("after", tuple), ("reads", frozenset), ("writes", frozenset)):
            names = getattr(self, which)
            if type(names) is kind and not names:
                continue  # the default, in most tasks
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"a task's {which!r} must be a collection of names, not {names!r}")
            object.__setattr__(self, which, kind(names))
        if self.timeout is not None:
            _check_seconds("a task's timeout", self.timeout)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What became of one task.

    Concurrency contract: Immutable; `value` is the very object that the function returned.

    Attributes:
        name: the task's name.
        status: `SUCCEEDED`, `FAILED`, `TIMED_OUT`, `SKIPPED` or `CANCELLED`.
        value: what the function returned; `None` unless it succeeded.
        error: what the function raised if the task failed, a `TimeoutError` if it was given up on,
            a `TaskNotRunError` if it was skipped or cancelled, `None` if it succeeded.
        because_of: for a skipped task, the name of the task whose failure or timeout is the origin.
    """

    name: str
    status: Status
    value: Any
    error: BaseException | None
    because_of: str | None


@dataclass(frozen=True, kw_only=True)
class TraceEntry:
    """Where and when one task ran.

    Concurrency contract: Immutable.

    Attributes:
        task: the task's name.
        thread: the name of the worker thread.
        start: seconds from the start of the batch to the start of the task.
        end: seconds from the start of the batch until the task ended or was given up on.
        level: the task's level, from 0.
        stolen: whether it was taken from another worker's deque.
    """

    task: str
    thread: str
    start: float
    end: float
    level: int
    stolen: bool


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A batch in figures.

    Concurrency contract: Immutable.

    Attributes:
        total: number of tasks.
        succeeded: those that returned.
        failed: all others: failed, timed out, skipped and cancelled.
        seconds: wall time of the batch.
        mean_latency: mean seconds from start to end over the tasks that were started, 0.0 for none.
        max_latency: the largest of these, 0.0 for none.
        throughput: tasks that succeeded per second of wall time, 0.0 for an empty batch.
    """

    total: int
    succeeded: int
    failed: int
    seconds: float
    mean_latency: float
    max_latency: float
    throughput: float


@dataclass(frozen=True, kw_only=True)
class SerialCheck:
    """A batch compared with its serial rerun; true where they agree.

    Concurrency contract: Immutable.

    Attributes:
        differences: a sentence for each task and each key of the state on which they do not agree.
    """

    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.differences


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The outcome of a batch.

    Concurrency contract: Immutable; both mappings are read-only, their values are shared.

    Attributes:
        tasks: the tasks by their names, in submission order.
        results: what became of each, in submission order.
        levels: the names of the tasks of each level, in submission order.
        initial_state: the state before the batch.
        state: the state after it.
        trace: the tasks that were started, by the time of their start.
        statistics: the batch in figures.
        progress_error: what the progress callback raised, if it did.
    """

    tasks: Mapping[str, Task]
    results: tuple[TaskResult, ...]
    levels: tuple[tuple[str, ...], ...]
    initial_state: Mapping[str, Any]
    state: Mapping[str, Any]
    trace: tuple[TraceEntry, ...]
    statistics: Statistics
    progress_error: Exception | None

    def values(self) -> tuple[Any, ...]:
        """Return what the tasks returned, in submission order.

        Raises:
            BaseExceptionGroup: the errors of the tasks that did not succeed, if there are any; an
                `ExceptionGroup` unless one of them is no `Exception`.
        """
        errors = [result.error for result in self.results if result.error is not None]
        if errors:
            summary = f"{len(errors)} of {len(self.results)} tasks did not succeed"
            raise BaseExceptionGroup(summary, errors)
        return tuple(result.value for result in self.results)

    def serial_order(self) -> tuple[str, ...]:
        """Return a serial order of task names that explains the outcome.

        It goes level after level, each in submission order, and holds the tasks that ran to their
        end, in success or failure; the others left no trace in the state.
        """
        ended = {
            result.name
            for result in self.results
            if result.status in (Status.SUCCEEDED, Status.FAILED)
        }
        return tuple(name for level in self.levels for name in level if name in ended)

    def verify_serial_equivalence(self) -> SerialCheck:
        """Run `serial_order()` again from the initial state, in this thread, and compare.

        Values and states are compared by `==`, errors by type and arguments. A function that is not
        deterministic, or uses more than its view, may differ for that reason alone. Timeouts do
        not apply.
        """
        results = {result.name: result for result in self.results}
        state = dict(self.initial_state)
        differences = []
        for name in self.serial_order():
            batch = results[name]
            view = _View(name, self.tasks[name], state, threading.Lock())
            value, error = _execute(self.tasks[name], view)
            if isinstance(error, KeyboardInterrupt) and type(batch.error) is not type(error):
                raise error
            if error is None:
                view.commit()
            if not _equal(_comparable(batch.value, batch.error), _comparable(value, error)):
                differences.append(
                    f"task {name!r} {_describe(batch.value, batch.error)} in the batch,"
                    f" but {_describe(value, error)} in the serial run"
                )
        for key in dict.fromkeys((*self.state, *state)):
            ours, theirs = self.state.get(key, _ABSENT), state.get(key, _ABSENT)
            if not _equal(ours, theirs):
                differences.append(
                    f"state[{key!r}] is {reprlib.repr(ours)} after the batch,"
                    f" but {reprlib.repr(theirs)} after the serial run"
                )
        return SerialCheck(differences=tuple(differences))


class ParallelExecutor:
    """A pool of threads that runs batches of tasks, each with the outcome of a serial run.

    Concurrency contract: Internally synchronised. `run()` and `close()` may be called from any
    number of threads at once. The batches share the workers, and nothing else: each has its own
    state, results and timeouts; in which order the tasks of different batches run is not promised.
    A task's effect on the state of its batch is Atomic, and the outcome of a batch is that of its
    `BatchResult.serial_order()`.

    Use it in a `with` statement, or call `close()` at the end. An executor that is never closed
    keeps its sleeping threads, but as daemons they do not keep the process alive.

    Args:
        workers: the largest number of tasks that run at once.
        timeout: seconds after its start when a task is given up on, unless it has a timeout of its
            own; `math.inf` for never.

    Raises:
        TypeError: `workers` is not an integer, or `timeout` not a number.
        ValueError: `workers` is below 1, or `timeout` is not positive.
    """

    def __init__(self, workers: int = 8, timeout: float = 30.0) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"workers must be an integer, not {workers!r}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers!r}")
        _check_seconds("timeout", timeout)
        self._timeout = timeout
        self._workers = tuple(_Worker(index) for index in range(workers))
        # Guards what follows and every worker's `thread`. It is taken before a worker's lock, and
        # never while a worker's or a batch's lock is held.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # idle workers wait here for jobs
        self._quiet = threading.Condition(self._lock)  # close() waits here for the last batch
        self._idle = 0  # workers that wait and that nobody has promised a job to
        self._started = 0  # threads started so far, for their names
        self._callers: list[threading.Thread] = []  # one for each batch in flight
        self._closing = False
        self._closed = False

    def run(
        self,
        tasks: Iterable[Task | Callable[[], Any]],
        state: Mapping[str, Any] | None = None,
        *,
        batch_timeout: float = math.inf,
        progress: Callable[[int, int], object] | None = None,
    ) -> BatchResult:
        """Run a batch to its end and return what became of it; failing tasks do not raise here.

        A failing task fails itself and the tasks that depend on it by `after`, directly or not.
        Tasks that are merely ordered after it, because they use the same keys, run all the same.

        Args:
            tasks: the batch; a plain callable stands for `Task(callable)`.
            state: what the tasks' views show; copied (the mapping, not its values).
            batch_timeout: seconds after which running tasks are given up on and those that have not
                started are cancelled.
            progress: called with (tasks done, tasks in all), once for each count from 1 on, in
                this thread; while it runs, no timeout is noticed. If it raises an `Exception`, it
                is not called again, the batch goes on, and the result keeps the error.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: two tasks have one name, a task depends on an unknown one, or the batch
                timeout is not positive.
            CycleError: tasks wait for each other.
            RuntimeError: the executor is closed, the call comes from one of its own tasks (which
                would hold the worker that it waits for), or no thread can be started.
        """
        _check_seconds("batch_timeout", batch_timeout)
        if state is not None and not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, not {state!r}")
        batch = _Batch(
            tasks=_by_name(tasks),
            state={} if state is None else state,
            timeout=self._timeout,
            batch_timeout=batch_timeout,
            listened_to=progress is not None,
        )
        self._enter_batch()
        try:
            self._deal(batch.start(), None)
            progress_error = self._supervise(batch, progress)
        except BaseException:
            for worker in batch.stop("the call of run() was interrupted"):
                self._replace(worker)
            raise
        finally:
            self._leave_batch()
        return batch.result(progress_error)

    def close(self) -> None:
        """Refuse further batches, wait for those in flight and end the threads; idempotent.

        It returns when every thread has ended but those left to tasks that were given up on. A task
        without a timeout that does not end keeps it waiting.

        Raises:
            RuntimeError: the call comes from one of the executor's own tasks or progress callbacks,
                for whose end it would wait.
        """
        with self._lock:
            self._refuse_own_threads("close()")
            if threading.current_thread() in self._callers:
                raise RuntimeError("close() was called from a progress callback of the executor")
            self._closing = True
            while self._callers:
                self._quiet.wait()
            self._closed = True
            self._work.notify_all()
            threads = [worker.thread for worker in self._workers if worker.thread is not None]
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _refuse_own_threads(self, what: str) -> None:
        """Raise if the current thread is a worker (lock held)."""
        current = threading.current_thread()
        if any(worker.thread is current for worker in self._workers):
            raise RuntimeError(
                f"{what} was called from a task of the same executor ({current.name})"
            )

    def _enter_batch(self) -> None:
        with self._lock:
            self._refuse_own_threads("run()")
            if self._closing:
                raise RuntimeError("run() was called on a closed executor")
            self._callers.append(threading.current_thread())

    def _leave_batch(self) -> None:
        with self._lock:
            self._callers.remove(threading.current_thread())
            if not self._callers:
                self._quiet.notify_all()

    def _supervise(
        self, batch: _Batch, progress: Callable[[int, int], object] | None
    ) -> Exception | None:
        """See a batch to its end; return what the progress callback raised."""
        reported = 0
        failure: Exception | None = None
        while True:
            ready, stuck, done = batch.watch(reported)
            for worker in stuck:
                self._replace(worker)
            self._deal(ready, None)
            while reported < done:
                reported += 1
                if progress is not None and failure is None:
                    try:
                        progress(reported, batch.total)
                    except Exception as error:
                        failure = error
            if done == batch.total:
                return failure

    def _deal(self, jobs: Sequence[_Job], dealer: _Worker | None) -> None:
        """Deal jobs to the deques, and see that there are threads awake to take them.

        A worker that deals begins with itself and takes the first job right after.
        """
        if not jobs:
            return
        first = 0 if dealer is None else dealer.index
        seats = self._workers[first:] + self._workers[:first]
        with self._lock:
            for turn, worker in enumerate(seats[: len(jobs)]):
                with worker.lock:
                    worker.jobs.extend(jobs[turn :: len(seats)])
            wanted = len(jobs) if dealer is None else len(jobs) - 1
            woken = min(wanted, self._idle)
            self._idle -= woken
            self._work.notify(woken)
            vacant = [worker for worker in seats if worker.thread is None]
            for worker in vacant[: wanted - woken]:
                self._seat(worker)

    def _replace(self, worker: _Worker) -> None:
        """Leave the worker's thread to the task it is stuck in, and seat another."""
        with self._lock:
            self._seat(worker)

    def _seat(self, worker: _Worker) -> None:
        """Start a new thread for a worker (lock held).

        Where the system has no more threads, the pool goes on with those it has, if it has any:
        every job can be stolen.
        """
        self._started += 1
        worker.thread = threading.Thread(
            target=self._serve, args=(worker,), name=f"executor-worker-{self._started}", daemon=True
        )
        try:
            worker.thread.start()
        except RuntimeError:
            worker.thread = None
            if not any(other.thread for other in self._workers):
                raise

    def _serve(self, worker: _Worker) -> None:
        thread = threading.current_thread().name
        while self._serve_one(worker, thread):
            pass

    def _serve_one(self, worker: _Worker, thread: str) -> bool:
        """Take a job and run it; return whether the thread is to go on.

        A function of its own, so that a waiting thread keeps no job, and no value, alive.
        """
        job, stolen = self._take(worker)
        if job is None:
            return False
        batch = job.batch
        if not batch.begin(job, worker, thread=thread, stolen=stolen):
            return True
        view = _View(job.name, job.task, batch.state, batch.lock)
        value, error = _execute(job.task, view)
        ready = batch.finish(job, value, error, view)
        if ready is None:
            return False  # given up on meanwhile: another thread has this seat
        self._deal(ready, worker)
        return True

    def _take(self, worker: _Worker) -> tuple[_Job | None, bool]:
        """Return the worker's next job and whether it is stolen; wait for one. None: go home."""
        with worker.lock:
            if worker.jobs:
                return worker.jobs.popleft(), False
        # Jobs are dealt under this lock: none can be missed between a search in vain and the wait.
        with self._lock:
            while True:
                for turn in range(len(self._workers)):
                    victim = self._workers[worker.index - turn]
                    with victim.lock:
                        if victim.jobs:
                            return victim.jobs.pop(), victim is not worker
                if self._closed:
                    return None, False
                self._idle += 1
                self._work.wait()


class _Worker:
    """A seat in the pool: a deque of jobs, and the thread that serves it at present.

    Concurrency contract: Externally synchronised: `jobs` by `lock`, `thread` by the executor's.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()
        self.jobs: deque[_Job] = deque()
        self.thread: threading.Thread | None = None


@dataclass(slots=True, eq=False)
class _Job:
    """A task on its way through a batch.

    Concurrency contract: Externally synchronised, by the lock of its batch; the first six
    attributes do not change.
    """

    batch: _Batch
    name: str
    task: Task
    level: int
    timeout: float
    after: tuple[_Job, ...] = ()
    status: Status = Status.PENDING
    value: Any = None
    error: BaseException | None = None
    origin: _Job | None = None
    thread: str = ""
    stolen: bool = False
    start: float = math.nan
    end: float = math.nan


class _Batch:
    """The jobs of one call of `run()`, their state, and their way from level to level.

    Concurrency contract: Linearizable. Each public method but `result` takes effect at one moment,
    under `lock`, which `watch` leaves to wait. A job is settled once: whoever comes second finds
    that it is not running any more.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        state: Mapping[str, Any],
        timeout: float,
        batch_timeout: float,
        listened_to: bool,
    ) -> None:
        self.lock = threading.Lock()
        self.state = dict(state)
        self.total = len(tasks)
        self._tasks = tasks
        self._initial_state = dict(state)
        self._levels = _plan(tasks)
        self._jobs: dict[str, _Job] = {}
        for number, level in enumerate(self._levels):
            for name in level:
                task = tasks[name]
                self._jobs[name] = _Job(
                    batch=self,
                    name=name,
                    task=task,
                    level=number,
                    timeout=timeout if task.timeout is None else task.timeout,
                    after=tuple(self._jobs[earlier] for earlier in task.after),
                )
        self._changed = threading.Condition(self.lock)  # the caller of run() waits here
        self._listened_to = listened_to
        self._shortest_timeout = min((job.timeout for job in self._jobs.values()), default=math.inf)
        self._batch_timeout = batch_timeout
        self._began = self._ended = time.perf_counter()
        self._coming = iter(self._levels)
        self._left = 0  # jobs of the current level that are not settled
        self._done = 0
        self._running: dict[_Job, _Worker] = {}

    def start(self) -> list[_Job]:
        """Return the jobs of the first level."""
        with self.lock:
            return self._advance()

    def begin(self, job: _Job, worker: _Worker, *, thread: str, stolen: bool) -> bool:
        """Record that a worker starts a job; return whether the job is still to be run."""
        with self.lock:
            if job.status is not Status.PENDING:
                return False
            job.status = Status.RUNNING
            job.thread = thread
            job.stolen = stolen
            job.start = time.perf_counter()
            self._running[job] = worker
            return True

    def finish(
        self, job: _Job, value: Any, error: BaseException | None, view: _View
    ) -> list[_Job] | None:
        """Settle a job that ran to its end, and commit what it wrote.

        Returns:
            the jobs that can start now, or `None` if the job had been given up on.
        """
        with self.lock:
            if job.status is not Status.RUNNING:
                return None
            if error is not None:
                return self._settle(job, Status.FAILED, error)
            view.commit()
            job.value = value
            return self._settle(job, Status.SUCCEEDED, None)

    def watch(self, reported: int) -> tuple[list[_Job], list[_Worker], int]:
        """Wait until there is something to do for the caller of `run()`; give up on overdue jobs.

        Returns:
            the jobs that can start now, the workers stuck in jobs that were given up on, and the
            number of jobs done (where progress is listened to, as soon as it exceeds `reported`).
        """
        with self.lock:
            while True:
                now = time.perf_counter()
                end = self._began + self._batch_timeout
                if now >= end and self._done < self.total:
                    reason = f"the batch reached its timeout of {self._batch_timeout:g} s"
                    return [], self._stop(reason), self._done
                ready: list[_Job] = []
                stuck: list[_Worker] = []
                for job, worker in list(self._running.items()):
                    if now >= job.start + job.timeout:
                        stuck.append(worker)
                        ready += self._give_up(job, f"it reached its timeout of {job.timeout:g} s")
                if (
                    stuck
                    or self._done == self.total
                    or (self._listened_to and self._done > reported)
                ):
                    return ready, stuck, self._done
                # A job that starts after `now` is not overdue before `now` + the shortest timeout.
                ends = [job.start + job.timeout for job in self._running]
                wake = min(end, now + self._shortest_timeout, *ends)
                self._changed.wait(min(wake - now, threading.TIMEOUT_MAX))

    def stop(self, reason: str) -> list[_Worker]:
        """Give up on the running jobs and cancel the others; return the workers that are stuck."""
        with self.lock:
            return self._stop(reason)

    def result(self, progress_error: Exception | None) -> BatchResult:
        """Return the outcome; called once, when all jobs are settled."""
        # Taken out, jobs and batch are no cycle any more: values die with the result.
        jobs = [self._jobs.pop(name) for name in self._tasks]
        started = sorted((job for job in jobs if job.thread), key=lambda job: job.start)
        latencies = [job.end - job.start for job in started]
        succeeded = sum(job.status is Status.SUCCEEDED for job in jobs)
        seconds = self._ended - self._began
        return BatchResult(
            tasks=MappingProxyType(self._tasks),
            results=tuple(
                TaskResult(
                    name=job.name,
                    status=job.status,
                    value=job.value,
                    error=job.error,
                    because_of=job.origin.name if job.origin else None,
                )
                for job in jobs
            ),
            levels=tuple(map(tuple, self._levels)),
            initial_state=MappingProxyType(self._initial_state),
            state=MappingProxyType(self.state),
            trace=tuple(
                TraceEntry(
                    task=job.name,
                    thread=job.thread,
                    start=job.start - self._began,
                    end=job.end - self._began,
                    level=job.level,
                    stolen=job.stolen,
                )
                for job in started
            ),
            statistics=Statistics(
                total=self.total,
                succeeded=succeeded,
                failed=self.total - succeeded,
                seconds=seconds,
                mean_latency=sum(latencies) / len(latencies) if latencies else 0.0,
                max_latency=max(latencies, default=0.0),
                throughput=succeeded / seconds if seconds else 0.0,
            ),
            progress_error=progress_error,
        )

    # The lock is held in all that follows. No code of the user's runs in it, not even a __repr__:
    # an exception here would end a worker.

    def _advance(self) -> list[_Job]:
        """Enter the next level that has a job to run; skip the jobs whose dependencies failed."""
        for level in self._coming:
            ready = []
            for job in map(self._jobs.__getitem__, level):
                lost = next((up for up in job.after if up.status is not Status.SUCCEEDED), None)
                if lost is None:
                    ready.append(job)
                else:
                    self._skip(job, lost.origin or lost)
            if ready:
                self._left = len(ready)
                return ready
        return []

    def _skip(self, job: _Job, origin: _Job) -> None:
        job.origin = origin
        error = TaskNotRunError(
            f"task {job.name!r} was skipped: it depends on task {origin.name!r},"
            f" which {'failed' if origin.status is Status.FAILED else 'timed out'}"
            f" ({type(origin.error).__name__})"
        )
        error.__cause__ = origin.error
        self._record(job, Status.SKIPPED, error)

    def _stop(self, reason: str) -> list[_Worker]:
        self._coming = iter(())
        stuck = list(self._running.values())
        for job in self._jobs.values():
            if job.status is Status.RUNNING:
                self._give_up(job, reason)
            elif job.status is Status.PENDING:
                error = TaskNotRunError(f"task {job.name!r} was cancelled: {reason}")
                self._record(job, Status.CANCELLED, error)
        return stuck

    def _give_up(self, job: _Job, reason: str) -> list[_Job]:
        error = TimeoutError(f"task {job.name!r} was given up on: {reason}")
        return self._settle(job, Status.TIMED_OUT, error)

    def _settle(self, job: _Job, status: Status, error: BaseException | None) -> list[_Job]:
        """Settle a running job; return the jobs that can start now."""
        del self._running[job]
        job.end = time.perf_counter()
        self._left -= 1
        self._record(job, status, error)
        return [] if self._left else self._advance()

    def _record(self, job: _Job, status: Status, error: BaseException | None) -> None:
        job.status = status
        job.error = error
        self._done += 1
        if self._done == self.total:
            self._ended = time.perf_counter()
            self._changed.notify()
        elif self._listened_to:
            self._changed.notify()


class _Absent(enum.Enum):
    """Stands for the value of a key that is not there.

    Concurrency contract: Immutable.
    """

    ABSENT = "absent"

    def __repr__(self) -> str:
        return self.value


_ABSENT = _Absent.ABSENT


class _View(MutableMapping[str, Any]):
    """A task's own layer over the state, open to the keys that the task declares.

    It iterates in sorted order over the keys that exist among those it may read or has written.

    Concurrency contract: Externally synchronised: it belongs to the thread that runs the task;
    `commit()` is called with the lock held.
    """

    def __init__(self, name: str, task: Task, state: dict[str, Any], lock: threading.Lock) -> None:
        self.violation: UndeclaredAccessError | None = None
        self._name = name
        self._task = task
        self._state = state
        self._lock = lock
        # Every key read or written so far. No other task of the level writes a key that this one
        # declares, so what was read once needs not be read again.
        self._layer: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._layer:
            if key not in self._task.reads:
                raise self._undeclared("read", key)
            with self._lock:
                value = self._state.get(key, _ABSENT)
            if key in self._task.writes:
                try:
                    value = copy.deepcopy(value)
                except Exception as error:
                    error.add_note(
                        f"while copying state[{key!r}], which task {self._name!r} writes"
                    )
                    raise
            self._layer[key] = value
        value = self._layer[key]
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._task.writes:
            raise self._undeclared("write", key)
        self._layer[key] = value

    def __delitem__(self, key: str) -> None:
        if key in self._layer or key in self._task.reads:
            self[key]  # raises KeyError if it is known that there is nothing to delete
        self[key] = _ABSENT

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in sorted({*self._task.reads, *self._layer}) if key in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def commit(self) -> None:
        """Enter what was written and deleted into the state."""
        # A list: a function that leaked its view to another thread must not break the worker here.
        for key, value in list(self._layer.items()):
            if key not in self._task.writes:
                continue
            if value is _ABSENT:
                self._state.pop(key, None)
            else:
                self._state[key] = value

    def _undeclared(self, verb: str, key: str) -> UndeclaredAccessError:
        declared = self._task.reads if verb == "read" else self._task.writes
        error = UndeclaredAccessError(
            f"task {self._name!r} may not {verb} state[{key!r}]: its {verb}s are {sorted(declared)}"
        )
        self.violation = self.violation or error
        return error


def _execute(task: Task, view: _View) -> tuple[Any, BaseException | None]:
    """Call a task's function; return its value and its error, one of which is `None`."""
    try:
        value = task.fn(view) if task.reads or task.writes else task.fn()
    except BaseException as error:  # SystemExit too: it would end the worker and hang the batch
        # The traceback without this frame, which would tie the error to the view and the task.
        own = error.__traceback__
        return None, view.violation or error.with_traceback(own.tb_next if own else None)
    return (None, view.violation) if view.violation else (value, None)


def _check_seconds(what: str, seconds: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")
    if not seconds > 0:
        raise ValueError(f"{what} must be more than 0 seconds, not {seconds!r}")


def _by_name(tasks: Iterable[Task | Callable[[], Any]]) -> dict[str, Task]:
    """Return the tasks of a batch by their names, in submission order."""
    named: dict[str, Task] = {}
    for position, given in enumerate(tasks):
        task = given if isinstance(given, Task) else Task(given)
        name = f"task-{position}" if task.name is None else task.name
        if name in named:
            first = list(named).index(name)
            raise ValueError(
                f"two tasks are named {name!r}: those at positions {first} and {position}"
            )
        named[name] = task
    return named


def _plan(tasks: Mapping[str, Task]) -> list[list[str]]:
    """Return the levels of a batch, each in submission order.

    A task is made to wait for the last earlier writer of each key it uses and, for a key it writes,
    for the readers since; the order among all other conflicting tasks follows.
    """
    position = {name: at for at, name in enumerate(tasks)}
    waits: dict[
        str, dict[str, str | None]
    ] = {}  # who waits for whom, for which key; None: declared
    writer: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for name, task in tasks.items():
        mine = waits[name] = {}
        for other in task.after:
            if other not in tasks:
                raise ValueError(
                    f"task {name!r} is to run after {other!r}, but no task has that name"
                )
            mine[other] = None
        for key in sorted({*task.reads, *task.writes}):
            if key in writer:
                mine.setdefault(writer[key], key)
            if key in task.writes:
                for reader in readers.pop(key, ()):
                    mine.setdefault(reader, key)
                writer[key] = name
            else:
                readers.setdefault(key, []).append(name)
    sorter = graphlib.TopologicalSorter(waits)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        # In graphlib's list each name waits for the one before it, and the last is the first.
        circle = error.args[1][:0:-1]
        first = circle.index(min(circle, key=position.__getitem__))
        circle = [*circle[first:], *circle[: first + 1]]
        message = f"tasks wait for each other: {' -> '.join(circle)}"
        for one, other in itertools.pairwise(circle):
            shared = waits[one][other]
            if shared is not None:
                message += f"; {one!r} waits for {other!r} because both use {shared!r}"
        raise CycleError(message, tuple(circle)) from None
    levels = []
    while sorter.is_active():
        level = sorter.get_ready()
        levels.append(sorted(level, key=position.__getitem__))
        sorter.done(*level)
    return levels


def _comparable(value: Any, error: BaseException | None) -> tuple[Any, ...]:
    return (value,) if error is None else (type(error), error.args)


def _equal(ours: Any, theirs: Any) -> bool:
    """Whether both are the same or equal; what cannot be compared is not."""
    try:
        return ours is theirs or bool(ours == theirs)
    except Exception:
        return False


def _describe(value: Any, error: BaseException | None) -> str:
    if error is None:
        return f"returned {reprlib.repr(value)}"
    return f"raised {reprlib.repr(error)}"
