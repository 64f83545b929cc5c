"""An engine that runs many small graphs of stages at once, and keeps a log of what was decided.

A *cycle* is one input on its way through the *stages*, a graph such as analyse -> (architect,
mentor) -> build. Cycles overlap, and so do the stages of one cycle that do not wait for each other.

No thread ever waits for a predecessor: the thread that ends a stage hands the stages which became
ready to the pool (continuations, not futures waiting for futures), so any number of cycles runs on
any number of workers without a deadlock. At most as many cycles are under way as there are workers.
That is enough to keep every worker busy, since a cycle under way always has a stage that runs or is
ready; and it keeps the latency of a cycle independent of how many wait behind it.
"""

import contextlib
import enum
import errno
import graphlib
import io
import json
import logging
import math
import os
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Self, TypeVar

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "CycleResult",
    "DecisionLog",
    "LogCorruptError",
    "Metrics",
    "ParallelEngine",
    "PerThread",
    "Report",
    "Stage",
    "Status",
    "Synthesis",
    "SynthesisError",
    "Variant",
]

T = TypeVar("T")

LATENCIES_KEPT = 4096
DECISION_LOG = "(decision log)"

_logger = logging.getLogger(__name__)


class LogCorruptError(Exception):
    """A file is no decision log, or one that lost entries. It has been left as it was found."""


class SynthesisError(Exception):
    """No variant gave a candidate with a score.

    Attributes:
        variants: What became of each variant, in the order given.
    """

    def __init__(self, variants: "tuple[Variant, ...]") -> None:
        self.variants = variants
        reasons = "; ".join(
            f"{variant.index}: {_describe(variant.error) if variant.error else 'cancelled'}"
            for variant in variants
        )
        super().__init__(f"none of {len(variants)} variants gave a scored candidate ({reasons})")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# Records


@dataclass(frozen=True)
class Stage:
    """One step of a cycle.

    Concurrency contract: Immutable. `fn` itself is called from many threads at once.

    Args:
        name: Unique among the stages of an engine.
        fn: Called with the cycle's input and a dict of its own that holds the results of the stages
            named in `after`, by name. What it returns is its result.
        after: The stages whose results it needs.

    Raises:
        TypeError: `fn` cannot be called, or `after` is a single string.
    """

    name: str
    fn: Callable[[Any, Mapping[str, Any]], Any]
    after: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"stage {self.name!r}: fn must be callable, not {self.fn!r}")
        if isinstance(self.after, str):
            raise TypeError(f"stage {self.name!r}: after must be a tuple, not {self.after!r}")
        object.__setattr__(self, "after", tuple(dict.fromkeys(self.after)))


class Status(enum.Enum):
    """How a cycle or a variant ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class CycleResult:
    """What became of one cycle.

    Concurrency contract: Immutable, as far as the results are.

    Attributes:
        index: Its place in the order of submission, from 0.
        status: FAILED if any stage failed, else COMPLETED if all ran, else CANCELLED.
        results: What the stages returned, by stage, of all stages that ran to their end.
        failures: What the stages raised, by stage. A decision log that could not be written counts
            as a failure of the cycle, under the name "(decision log)".
        seconds: From its beginning to the end of its last stage; 0 if it never began.
    """

    index: int
    status: Status
    results: Mapping[str, Any]
    failures: Mapping[str, BaseException]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of the cycles of one `ParallelEngine.run`, in the order of their submission.

    Concurrency contract: Immutable.
    """

    results: tuple[CycleResult, ...]
    seconds: float

    def count(self, status: Status) -> int:
        """How many cycles ended so."""
        return sum(result.status is status for result in self.results)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The cycles of all runs of an engine so far, as of one moment.

    Concurrency contract: Immutable; taken atomically, so that its numbers fit each other.

    Attributes:
        completed: Cycles that completed.
        failed: Cycles that failed.
        cancelled: Cycles that were cancelled.
        success_rate: completed / (completed + failed); None before the first.
        throughput: (completed + failed) per second of the time in which a run was under way.
        p50: The median latency in seconds of the last 4096 cycles that completed or failed (nearest
            rank); None before the first.
        p95: As `p50`, the 95th percentile.
        p99: As `p50`, the 99th percentile.
    """

    completed: int
    failed: int
    cancelled: int
    success_rate: float | None
    throughput: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What became of one variant of a synthesis.

    Concurrency contract: Immutable, as far as the candidate is.

    Attributes:
        index: Its place in the order given, from 0.
        status: COMPLETED with a candidate and its score, FAILED with an error, or CANCELLED.
        candidate: What the variant returned; also there when only the scoring failed.
        score: Its score; None unless COMPLETED.
        error: What the variant or the scoring raised.
    """

    index: int
    status: Status
    candidate: Any
    score: float | None
    error: BaseException | None


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """The variant with the highest score (the first of them, if several share it), and all others.

    Concurrency contract: Immutable.
    """

    best: Variant
    variants: tuple[Variant, ...]


# Parts that are useful alone


class PerThread(Generic[T]):
    """A resource for each thread, such as a client, made by `factory` when a thread first asks.

    Several threads may be in the factory at once.

    Concurrency contract: Internally synchronised. No thread ever sees the resource of another one;
    the resource itself needs no synchronisation. The one exception is `close`, which closes all
    resources on the thread that calls it; so nobody may be using them any more.
    """

    def __init__(self, factory: Callable[[], T]) -> None:
        self._factory = factory
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[T] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def get(self) -> T:
        """This thread's resource, the same one every time; kept until `close`.

        Raises:
            RuntimeError: It has been closed.
            Exception: Whatever the factory raises; the next call tries again.
        """
        with self._lock:
            closed = self._closed
        if not closed:
            if hasattr(self._mine, "resource"):
                return self._mine.resource  # type: ignore[no-any-return]  # a local is untyped
            resource = self._factory()
            with self._lock:
                closed = self._closed
                if not closed:
                    self._all.append(resource)
                    self._mine.resource = resource
                    return resource
            _close(resource)
        raise RuntimeError(f"the resources of {self._factory!r} are closed")

    def close(self) -> None:
        """Close every resource that has a `close` method, the last made first. Idempotent.

        Raises:
            Exception: What a resource raised, after all have been closed.
        """
        with self._lock:
            self._closed = True
            resources, self._all = self._all, []
        with contextlib.ExitStack() as stack:
            for resource in resources:
                stack.callback(_close, resource)


def _close(resource: object) -> None:
    close = getattr(resource, "close", None)
    if close is not None:
        close()


@contextlib.contextmanager
def _held(path: str) -> Iterator[None]:
    """Hold a file's lock; it ends with the process, however violently that ends.

    Raises:
        OSError: The file cannot be opened.
    """
    # A description of its own each time: a process that was forked shares those of its parent, and
    # the locks on them.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        else:
            while not _took_first_byte(file):
                pass
            yield
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)  # closed, it would be unlocked some time later
    finally:
        os.close(file)


if sys.platform == "win32":

    def _took_first_byte(file: int) -> bool:
        try:
            msvcrt.locking(file, msvcrt.LK_LOCK, 1)  # tries ten times, a second apart
        except OSError as error:
            if error.errno == errno.EDEADLK:
                return False
            raise
        return True


class DecisionLog:
    """An append-only file of JSON values, numbered from 0, shared by threads and processes.

    Each line of `path` is one entry, ``{"sequence": 0, "entry": ...}``. Beside it, `path`.index
    holds for each entry the offset of its end (8 bytes, little-endian), and `path`.lock is what
    processes lock. The lines are the truth: an index that is behind is completed from them.

    An entry counts when its line is complete. A process that is killed while it writes leaves at
    most one torn line, which the next use of the log removes, with a warning to the logger of this
    module; it is never read as data, and no entry that `append` has returned for is lost. (A
    machine that loses power may lose the last entries: they are not forced to the disk.)

    Concurrency contract: Linearizable, over all threads and processes that use the same path.
    """

    _END = struct.Struct("<Q")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the log, and create it if there is none.

        Raises:
            LogCorruptError: There is a file that is no decision log, or a damaged one.
            OSError: The file cannot be opened.
        """
        self.path = Path(path)
        self._threads = threading.Lock()
        with contextlib.ExitStack() as files:
            self._data = files.enter_context(self.path.open("a+b", buffering=0))
            self._index = files.enter_context(Path(f"{self.path}.index").open("a+b", buffering=0))
            len(self)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, entry: Any) -> int:
        """Add an entry, durable against the death of this process once this returns.

        Returns:
            The number of the entry, to `read` it by.

        Raises:
            TypeError: `entry` is no JSON value.
            ValueError: `entry` holds a number that JSON has not (NaN, infinities), or the log is
                closed.
            LogCorruptError: The file has been damaged by others.
            OSError: The entry could not be written; then nothing of it stays.
        """
        body = json.dumps(entry, allow_nan=False).encode()
        with self._exclusive():
            count, end = self._recover()
            line = b'{"sequence": %d, "entry": %b}\n' % (count, body)
            try:
                self._write(self._data, line)
                self._write(self._index, self._END.pack(end + len(line)))
            except BaseException:
                self._data.truncate(end)
                self._index.truncate(count * self._END.size)
                raise
            return count

    def read(self, sequence: int) -> Any:
        """The entry with that number, found through the index.

        Raises:
            IndexError: There is none.
            ValueError: The log is closed.
            LogCorruptError: The file has been damaged by others.
        """
        with self._exclusive():
            count, _ = self._recover()
            if not 0 <= sequence < count:
                raise IndexError(f"{self.path} has {count} entries, none numbered {sequence!r}")
            start, end = self._end_of(sequence - 1), self._end_of(sequence)
            self._data.seek(start)
            return self._parsed(self._data.read(end - start), sequence)

    def __len__(self) -> int:
        """The number of entries, whoever wrote them."""
        with self._exclusive():
            return self._recover()[0]

    def __iter__(self) -> Iterator[Any]:
        """The entries that are there now, from the first on."""
        return map(self.read, range(len(self)))

    def close(self) -> None:
        """Close the files. Idempotent."""
        with self._threads:
            self._files.close()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Threads first: so at most one thread of a process ever waits for the file's lock.
        with self._threads:
            if self._data.closed:
                raise ValueError(f"the decision log {self.path} is closed")
            with _held(f"{self.path}.lock"):
                yield

    def _recover(self) -> tuple[int, int]:
        """Bring index and lines to agree, whoever was killed in between.

        Returns:
            The number of entries, and the offset of their end.
        """
        count = self._size(self._index) // self._END.size
        if self._size(self._index) % self._END.size:
            self._index.truncate(count * self._END.size)
        end, size = self._end_of(count - 1), self._size(self._data)
        if end > size:
            raise LogCorruptError(
                f"{self.path} has {size} bytes, but its index knows of {end}: entries were lost "
                f"(to go on with those that are left, delete {self.path}.index)"
            )
        if end < size:
            count, end = self._scan(count, end)
        return count, end

    def _scan(self, count: int, end: int) -> tuple[int, int]:
        """Take up the lines behind the last one in the index."""
        with self.path.open("rb") as lines:
            lines.seek(end)
            for line in lines:
                start = b'{"sequence": %d, "entry": ' % count
                if line.endswith(b"\n"):
                    self._parsed(line, count)
                    end += len(line)
                    self._write(self._index, self._END.pack(end))
                    count += 1
                elif line.startswith(start) or start.startswith(line):
                    self._data.truncate(end)
                    _logger.warning(
                        "%s: removed a torn last line of %d bytes", self.path, len(line)
                    )
                else:
                    raise self._corrupt(line, count)
        return count, end

    def _parsed(self, line: bytes, sequence: int) -> Any:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise self._corrupt(line, sequence) from error
        match record:
            case {"sequence": int(found), "entry": entry} if found == sequence:
                return entry
        raise self._corrupt(line, sequence)

    def _corrupt(self, line: bytes, sequence: int) -> LogCorruptError:
        return LogCorruptError(
            f"{self.path} is no decision log, or is damaged: "
            f"where entry {sequence} should be there is {line[:60]!r}"
        )

    def _end_of(self, sequence: int) -> int:
        if sequence < 0:
            return 0
        self._index.seek(sequence * self._END.size)
        (end,) = self._END.unpack(self._index.read(self._END.size))
        return int(end)

    @staticmethod
    def _size(file: io.FileIO) -> int:
        return os.fstat(file.fileno()).st_size

    @staticmethod
    def _write(file: io.FileIO, data: bytes) -> None:
        written = file.write(data)
        if written != len(data):
            raise OSError(errno.EIO, f"only {written} of {len(data)} bytes were written", file.name)


# The engine


class _Graph:
    """Stages that fit together: names are unique and known, and no stage waits for itself."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages: dict[str, Stage] = {}
        for stage in stages:
            if stage.name in self.stages:
                raise ValueError(f"two stages are named {stage.name!r}")
            self.stages[stage.name] = stage
        if not self.stages:
            raise ValueError("stages must not be empty")
        self.followers: dict[str, list[str]] = {name: [] for name in self.stages}
        for stage in self.stages.values():
            for name in stage.after:
                if name not in self.stages:
                    known = ", ".join(self.stages)
                    raise ValueError(
                        f"stage {stage.name!r} comes after {name!r}, which is none of: {known}"
                    )
                self.followers[name].append(stage.name)
        order = graphlib.TopologicalSorter({s.name: s.after for s in self.stages.values()})
        try:
            order.prepare()
        except graphlib.CycleError as error:
            raise ValueError(f"stages wait in a circle: {' -> '.join(error.args[1])}") from None
        self.first = [stage for stage in self.stages.values() if not stage.after]


class _Run:
    """The cycles of one call. Externally synchronised: guarded by the engine's lock."""

    def __init__(
        self,
        graph: _Graph,
        inputs: Sequence[Any],
        settle: Callable[[CycleResult], CycleResult] = lambda result: result,
    ) -> None:
        self.graph = graph
        self.inputs = inputs
        self.settle = settle  # sees each result before anybody else does; called without the lock
        self.begun = 0
        self.cancelled = False
        self.results: dict[int, CycleResult] = {}
        self.done = threading.Event()


class _Cycle:
    """One cycle under way. Externally synchronised: guarded by the engine's lock."""

    def __init__(self, run: _Run, index: int, started: float | None) -> None:
        self.run = run
        self.index = index
        self.started = started
        self.missing = {stage.name: len(stage.after) for stage in run.graph.stages.values()}
        self.results: dict[str, Any] = {}
        self.failures: dict[str, BaseException] = {}
        self.handed_out: set[str] = set()  # stages that nobody has claimed yet
        self.unfinished = 0  # stages that were handed out and have not ended

    def hand_out(self, stages: Sequence[Stage]) -> None:
        self.handed_out.update(stage.name for stage in stages)
        self.unfinished += len(stages)

    def claim(self, stage: Stage) -> bool:
        """Whether it is the caller's now. A pool that refuses a task may run it all the same."""
        claimed = stage.name in self.handed_out
        self.handed_out.discard(stage.name)
        return claimed


class _Meter:
    """What `ParallelEngine.metrics` counts.

    Concurrency contract: Internally synchronised; each call is atomic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._count: Counter[Status] = Counter()
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._runs = 0
        self._since = 0.0
        self._busy = 0.0

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        with self._lock:
            self._note_time()
            self._runs += 1
        try:
            yield
        finally:
            with self._lock:
                self._note_time()
                self._runs -= 1

    def _note_time(self) -> None:
        now = self._clock()
        if self._runs:
            self._busy += now - self._since
        self._since = now

    def ended(self, result: CycleResult) -> None:
        with self._lock:
            self._count[result.status] += 1
            if result.status is not Status.CANCELLED:
                self._latencies.append(result.seconds)

    def snapshot(self) -> Metrics:
        with self._lock:
            self._note_time()
            count, busy, latencies = self._count.copy(), self._busy, list(self._latencies)
        latencies.sort()
        finished = count[Status.COMPLETED] + count[Status.FAILED]

        def percentile(percent: int) -> float | None:
            if not latencies:
                return None
            return latencies[math.ceil(len(latencies) * percent / 100) - 1]

        return Metrics(
            completed=count[Status.COMPLETED],
            failed=count[Status.FAILED],
            cancelled=count[Status.CANCELLED],
            success_rate=count[Status.COMPLETED] / finished if finished else None,
            throughput=finished / busy if busy else 0.0,
            p50=percentile(50),
            p95=percentile(95),
            p99=percentile(99),
        )


class ParallelEngine:
    """Runs cycles through a graph of stages on a bounded number of threads.

    Concurrency contract: Internally synchronised. Any thread may call any method at any time, also
    several `run` at once; `cancel` and `metrics` also from a stage. The stages of different cycles,
    and stages of one cycle that do not wait for each other, run in parallel: what they share is for
    them to synchronise. A stage sees everything that its predecessors did.

    Args:
        stages: The graph.
        workers: The number of threads, at least 1.
        log: Gets an entry for each cycle that ended and for each synthesis. It stays open.
        resources: Closed when the engine is closed.
        clock: Gives seconds, for the metrics and reports.

    Raises:
        ValueError: No workers, no stages, two stages of one name, a predecessor that is no stage,
            or stages that wait for each other in a circle; the message names them.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        *,
        workers: int = 8,
        log: DecisionLog | None = None,
        resources: Iterable[PerThread[Any]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers!r}")
        self._graph = _Graph(stages)
        self._workers = workers
        self._log = log
        self._resources = tuple(resources)
        self._clock = clock
        self._meter = _Meter(clock)
        self._here = threading.local()
        self._lock = threading.Lock()
        self._runs: set[_Run] = set()
        self._closed = False
        self._pool = ThreadPoolExecutor(workers, "engine", initializer=self._mark_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, cycles: Iterable[Any]) -> Report:
        """Run one cycle for each input, and wait for all of them.

        A stage that raises fails its cycle: those that come after it are left out, all others of
        the cycle still run, and other cycles do not notice. So what a cycle gives depends on its
        stages alone, and not on which of them was faster.

        Raises:
            RuntimeError: The engine is closed, or this is one of its own stages (whose thread would
                wait for the threads that wait for it).
        """
        started = self._clock()
        with self._meter.run():
            results = self._execute(_Run(self._graph, list(cycles), self._settle))
        return Report(results=results, seconds=self._clock() - started)

    def synthesize(
        self,
        problem: Any,
        variants: Iterable[Callable[[Any], Any]],
        score: Callable[[Any], float],
    ) -> Synthesis:
        """Solve one problem in several ways in parallel, and choose the best.

        Args:
            problem: What each variant is called with.
            variants: Each gives a candidate.
            score: Gives a candidate's score, a finite number; the highest wins, the first of
                equals. It is called on the engine's threads.

        Raises:
            SynthesisError: No variant gave a candidate with a score; says why for each.
            ValueError: There are no variants.
            RuntimeError: As for `run`.
        """
        inputs = list(variants)
        if not inputs:
            raise ValueError("variants must not be empty")

        def checked_score(_: Any, given: Mapping[str, Any]) -> float:
            value = score(given["variant"])
            if not math.isfinite(value):
                raise ValueError(f"a score must be a finite number, not {value!r}")
            return value

        graph = _Graph(
            [
                Stage("variant", lambda variant, _: variant(problem)),
                Stage("score", checked_score, after=("variant",)),
            ]
        )
        found = tuple(
            Variant(
                index=result.index,
                status=result.status,
                candidate=result.results.get("variant"),
                score=result.results.get("score"),
                error=next(iter(result.failures.values()), None),
            )
            for result in self._execute(_Run(graph, inputs))
        )
        scores = {variant.index: variant.score for variant in found if variant.score is not None}
        if not scores:
            raise SynthesisError(found) from next((v.error for v in found if v.error), None)
        best = found[max(scores, key=scores.__getitem__)]  # max gives the first of equals
        if self._log is not None:
            listed = [None if v.score is None else float(v.score) for v in found]
            self._log.append({"synthesis": {"best": best.index, "scores": listed}})
        return Synthesis(best=best, variants=found)

    def metrics(self) -> Metrics:
        """The numbers as of now, also while cycles run. Variants of `synthesize` do not count."""
        return self._meter.snapshot()

    def cancel(self) -> None:
        """Start nothing more of what `run` and `synthesize` have under way; does not wait.

        Stages that have started run to their end, and then those calls return and tell what was
        cancelled. Calls made after this are not affected.
        """
        with self._lock:
            for run in self._runs:
                run.cancelled = True

    def close(self) -> None:
        """Cancel what is under way, wait for its end, end the threads, close the resources.

        Idempotent.

        Raises:
            RuntimeError: This is one of the engine's own stages, whose end it would wait for.
            Exception: What a resource raised as it was closed, after all have been closed.
        """
        self._refuse_in_stage("close")
        with self._lock:
            self._closed = True
            under_way = list(self._runs)
        self.cancel()
        for run in under_way:
            run.done.wait()
        self._pool.shutdown()
        with contextlib.ExitStack() as stack:
            for resource in self._resources:
                stack.callback(resource.close)

    def _mark_worker(self) -> None:
        self._here.is_worker = True

    def _refuse_in_stage(self, method: str) -> None:
        if hasattr(self._here, "is_worker"):
            raise RuntimeError(
                f"{method} called from a stage of the same engine would never return"
            )

    def _execute(self, run: _Run) -> tuple[CycleResult, ...]:
        self._refuse_in_stage("run or synthesize")
        try:
            with self._lock:  # throughout, since `close` must not come in between
                if self._closed:
                    raise RuntimeError("the engine is closed")
                if not run.inputs:
                    return ()
                self._runs.add(run)
                for _ in run.inputs[: self._workers]:
                    self._pool.submit(self._advance, run)
            run.done.wait()
        except BaseException:  # an interrupt, or no thread could be started
            with self._lock:
                run.cancelled = True
                under_way = run in self._runs
            if under_way:
                self._advance(run)  # nobody else may be there to end what will not begin
            raise
        return tuple(run.results[index] for index in range(len(run.inputs)))

    def _advance(self, run: _Run) -> None:
        """Begin the next cycle; in a cancelled run, end all that have not begun."""
        while True:
            now = self._clock()
            with self._lock:
                if run.begun == len(run.inputs):
                    return
                first = [] if run.cancelled else run.graph.first
                cycle = _Cycle(run, run.begun, now if first else None)
                cycle.hand_out(first)
                run.begun += 1
            if first:
                self._submit(cycle, first)
                return
            self._end(cycle)

    def _submit(self, cycle: _Cycle, stages: Iterable[Stage]) -> None:
        for stage in stages:
            try:
                self._pool.submit(self._run_stage, cycle, stage)
            except RuntimeError as error:  # no thread can be started, or the interpreter shuts down
                with self._lock:
                    cycle.run.cancelled = True
                    claimed = cycle.claim(stage)
                if claimed:
                    self._finish(cycle, {}, {stage.name: error})

    def _run_stage(self, cycle: _Cycle, stage: Stage) -> None:
        with self._lock:
            if not cycle.claim(stage):
                return
            cancelled = cycle.run.cancelled
            given = {name: cycle.results[name] for name in stage.after}
        results: dict[str, Any] = {}
        failures: dict[str, BaseException] = {}
        if not cancelled:
            try:
                results[stage.name] = stage.fn(cycle.run.inputs[cycle.index], given)
            except BaseException as error:
                failures[stage.name] = error
        self._finish(cycle, results, failures)

    def _finish(
        self, cycle: _Cycle, results: dict[str, Any], failures: dict[str, BaseException]
    ) -> None:
        """One stage of the cycle has ended: go on with those that waited for it."""
        graph = cycle.run.graph
        with self._lock:
            cycle.results.update(results)
            cycle.failures.update(failures)
            ready = []
            for name in results:
                for follower in graph.followers[name]:
                    cycle.missing[follower] -= 1
                    if not cycle.missing[follower]:
                        ready.append(graph.stages[follower])
            cycle.hand_out(ready)
            cycle.unfinished -= 1
            ended = not cycle.unfinished
        self._submit(cycle, ready)
        if ended:
            self._end(cycle)
            self._advance(cycle.run)

    def _end(self, cycle: _Cycle) -> None:
        run = cycle.run
        if cycle.failures:
            status = Status.FAILED
        elif len(cycle.results) == len(run.graph.stages):
            status = Status.COMPLETED
        else:
            status = Status.CANCELLED
        result = run.settle(
            CycleResult(
                index=cycle.index,
                status=status,
                results=MappingProxyType(cycle.results),
                failures=MappingProxyType(cycle.failures),
                seconds=0.0 if cycle.started is None else self._clock() - cycle.started,
            )
        )
        with self._lock:
            run.results[cycle.index] = result
            if len(run.results) == len(run.inputs):
                self._runs.discard(run)
                run.done.set()

    def _settle(self, result: CycleResult) -> CycleResult:
        if self._log is not None:
            try:
                self._log.append(
                    {
                        "cycle": result.index,
                        "status": result.status.value,
                        "seconds": result.seconds,
                        "failures": {name: _describe(e) for name, e in result.failures.items()},
                    }
                )
            except BaseException as error:
                failures = MappingProxyType({**result.failures, DECISION_LOG: error})
                result = replace(result, status=Status.FAILED, failures=failures)
        self._meter.ended(result)
        return result
