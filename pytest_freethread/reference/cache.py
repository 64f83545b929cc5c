"""A cache for many threads: LRU in memory, and over a SQLite file that survives ``kill -9``.

How it is cut, from the outside in:

- `Cache` encodes and decodes values, runs the computations, and holds no lock while it does.
- `_Front` is the truth about which keys exist: one lock, one index in least-recently-used order,
  the table of running computations, the counters. It knows nothing of files. Without a path it is
  the whole cache. A hit takes no lock: it reads one dict, and notes that the key was used; those
  notes are worked off, in order, by whoever takes the lock next (BP-Wrapper: Ding, Jiang and Zhang,
  ICDE 2009; as in Caffeine).
- `_Writer` is the only thread that changes a cache with a file. It takes all writes that wait as
  one batch, asks the front what the batch amounts to, commits that in one transaction, *then*
  publishes it in the front and acknowledges the callers (group commit: while one batch is on its
  way to the disk, the next one gathers).
- `_Store` is the file: WAL mode, one connection that writes, a bounded pool of connections that
  read.

Because a write is published after its commit, nobody ever sees a value that a crash could take
back, and a commit that fails changes nothing. No thread ever holds two of the locks in this module,
and none is held while foreign code (a computation, a serializer, a clock) or SQLite runs.

Durability: ``synchronous = NORMAL`` in WAL mode. What was acknowledged survives the death of the
process, however violent; a power cut may take the last moments before it, but leaves the file
consistent (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

import contextlib
import copy
import json
import math
import os
import pickle
import queue
import sqlite3
import threading
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

__all__ = [
    "Cache",
    "CacheClosedError",
    "CacheError",
    "CacheFileError",
    "CacheStats",
    "CacheValueError",
    "RecursiveComputationError",
]

_DEFAULT_FRONT_ENTRIES: Final = 1_000
_MANY_USES: Final = 256
_MOST_USES: Final = 16 * _MANY_USES
_READERS: Final = 4

_SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_APPLICATION_ID: Final = int.from_bytes(b"ftca", "big")
_SCHEMA_VERSION: Final = 1
# A row never changes: a new value for a key is a new row. So a reader that knows the sequence
# number of an entry reads exactly that entry, or nothing.
_SCHEMA: Final = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
    "CREATE TABLE settings (serializer TEXT NOT NULL)",
    """CREATE TABLE entry (
        sequence INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        expires REAL NOT NULL,
        value BLOB NOT NULL
    )""",
)


class CacheError(Exception):
    """What every error of a cache derives from."""


class CacheClosedError(CacheError):
    """The cache was closed, before or during the call."""

    def __init__(self, message: str = "the cache is closed") -> None:
        super().__init__(message)


class CacheFileError(CacheError):
    """The file cannot be opened, read or written: foreign, corrupt, in use, full, read-only."""


class CacheValueError(CacheError):
    """The serializer cannot encode a value, or cannot decode it again."""


class RecursiveComputationError(CacheError):
    """A computation needs, directly or through other threads, its own result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStats:
    """Counters of a cache, all of one moment.

    Concurrency contract: Immutable.

    Attributes:
        entries: Entries that are held, at most ``max_entries``; an expired one counts until it is
            dropped.
        hits: Calls of `Cache.get` and `Cache.get_or_compute` that were answered with a cached
            value.
        misses: Calls answered without one: by the default, or by a computation, the caller's own or
            one it waited for.
        file_reads: The part of ``hits`` whose value was not in memory and came from the file.
        computations: How many computations were started.
        evictions: Entries dropped to make room.
    """

    entries: int
    hits: int
    misses: int
    file_reads: int
    computations: int
    evictions: int


class _Codec(NamedTuple):
    """How values become bytes and come back.

    Concurrency contract: Immutable.
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


_CODECS: Final = {
    "json": _Codec(
        lambda value: json.dumps(value, separators=(",", ":")).encode(),
        lambda data: json.loads(data.decode()),
    ),
    "pickle": _Codec(
        lambda value: pickle.dumps(value, pickle.HIGHEST_PROTOCOL),
        pickle.loads,
    ),
}


class Cache:
    """A cache of JSON or pickle values by string keys, in memory or in a file.

    Concurrency contract: Linearizable. Any number of threads may call any method at any time.
    `get`, `set` and `delete` each take effect at one moment between their call and their return; so
    does an eviction, as a `delete` by nobody, together with the `set` that needed the room. The
    size bound holds at every moment, in memory and in the file. An entry counts as used from when
    its `get` has returned; during the call it may still make room. Every `get` returns a value of
    its own, never an object that another thread may be changing.

    One cache owns its file: a second one, in this process or another, is refused (the front of one
    could not know of the writes of the other). The right is held by an operating-system lock on
    ``<path>-owner``, an empty file that stays, so it ends with the process. A process forked from
    the owner must not use the cache.

    Example:
        >>> with Cache(max_entries=2) as cache:
        ...     cache.set("answer", 42)
        ...     cache.get("answer"), cache.get("question", "unknown")
        (42, 'unknown')

    Args:
        path: The file (SQLite, made if it is missing or empty; its directory must exist); None
            keeps everything in memory.
        max_entries: How many entries are held at most; the least recently used one makes room, one
            that a `get` found expired first. A file with more entries loses its oldest ones when it
            is opened.
        ttl: Seconds that an entry lives after it was set; None for ever.
        clock: Returns the time in seconds. The moment of expiry is stored in the file, so the clock
            must mean the same in the next process: `time.time` does, `time.monotonic` does not.
        serializer: ``"json"`` (what comes back is what JSON makes of the value: tuples are lists)
            or ``"pickle"`` (anything, but reading a file can run any code that somebody put into
            it: only for files that you trust).
        front_entries: How many values of a file are kept in memory as well, at most (1,000 unless
            told). The keys are all in memory. Without a path all values are, so it must not be
            given.

    Raises:
        ValueError, TypeError: An argument is out of its domain.
        CacheFileError: The file is not a cache with this serializer, is corrupt, in use, or cannot
            be opened. It is left as it was.
    """

    _writer: "_Writer | None" = None

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_entries: int = 10_000,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
        serializer: Literal["json", "pickle"] = "json",
        front_entries: int | None = None,
    ) -> None:
        _require_count("max_entries", max_entries)
        if ttl is not None and not (isinstance(ttl, int | float) and 0 < ttl < math.inf):
            raise ValueError(f"ttl must be a positive number of seconds or None, not {ttl!r}")
        if serializer not in _CODECS:
            raise ValueError(f"serializer must be 'json' or 'pickle', not {serializer!r}")
        if front_entries is not None:
            _require_count("front_entries", front_entries)
            if path is None:
                raise ValueError(f"front_entries={front_entries} has no meaning without a path")
        self._ttl = math.inf if ttl is None else ttl
        self._clock = clock
        self._serializer = serializer
        self._codec = _CODECS[serializer]
        if path is None:
            self._front = _Front(max_entries=max_entries, resident=max_entries)
        else:
            store = _Store(path, serializer=serializer, max_entries=max_entries)
            resident = _DEFAULT_FRONT_ENTRIES if front_entries is None else front_entries
            try:
                index = store.load()
                self._front = _Front(max_entries=max_entries, resident=resident, index=index)
                self._writer = _Writer(self._front, store)
            except BaseException:
                store.close()
                raise
            self._store = store

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of the key, or the default where there is none that has not expired.

        Raises:
            CacheClosedError: The cache is closed.
            CacheFileError: The file cannot be read.
            CacheValueError: The stored value cannot be decoded (pickle: its class is gone).
        """
        key = _plain(key)
        now = self._clock()
        entry = self._front.peek(key, now)
        if entry is not None and entry.data is not None:
            return self._decode(key, entry.data)
        while (entry := self._front.find(key, now)) is not None:
            data = self._data(key, entry)
            if data is not None:
                return self._decode(key, data)
            now = self._clock()
        return default

    def set(self, key: str, value: Any) -> None:
        """Store a value; with a file, return when it is there to stay.

        A computation of this key that is running gives its result to those who asked before; it
        does not overwrite this value.

        Raises:
            CacheClosedError: The cache is closed; nothing was stored.
            CacheFileError: The file cannot be written (full, read-only); nothing was changed.
            CacheValueError: The value cannot be encoded; nothing was changed.
        """
        key = _plain(key)
        data = self._encode(key, value)
        now = self._clock()
        self._apply(_Write(key=key, data=data, now=now, expires=now + self._ttl))

    def delete(self, key: str) -> bool:
        """Drop the key; return whether it had a value; with a file, when it is gone for good.

        A computation of this key that is running gives its result to those who asked before, and it
        is not stored: who asks after the delete gets a value computed after it.

        Raises:
            CacheClosedError: The cache is closed; nothing was dropped.
            CacheFileError: The file cannot be written; nothing was changed.
        """
        write = _Write(key=_plain(key), data=None, now=self._clock())
        self._apply(write)
        return write.removed

    def get_or_compute(self, key: str, fn: Callable[[], Any]) -> Any:
        """Return the value of the key; where there is none, that of ``fn()``, now stored.

        At most one thread at a time computes a key; the others wait for it and share the outcome.
        An `Exception` reaches all of them, in each thread as an exception object of its own (same
        type and arguments, the original as its cause), and is not cached. Any other exception (a
        `KeyboardInterrupt`, a `SystemExit`) is meant for the thread it was raised in: it goes
        through there, and a waiting thread computes instead.

        Raises:
            Exception: Whatever ``fn`` raised.
            RecursiveComputationError: This thread, or one that waits for it, is computing this key
                already, so that the call would wait for itself.
            CacheClosedError: The cache is closed, or was before there was a result to store.
            CacheFileError: The file cannot be read or written; the value is not stored.
            CacheValueError: The value cannot be encoded, or not decoded.
        """
        key = _plain(key)
        while True:
            now = self._clock()
            found = self._front.peek(key, now) or self._front.join(key, now)
            if found is None:
                continue
            if isinstance(found, _Entry):
                data = self._data(key, found)
                if data is not None:
                    return self._decode(key, data)
                continue
            if found.done:
                return self._decode(key, found.outcome())
            try:
                data = self._encode(key, fn())
                value = self._decode(key, data)
                now = self._clock()
                self._apply(
                    _Write(key=key, data=data, now=now, expires=now + self._ttl, flight=found)
                )
            except BaseException as error:
                self._front.land(found, error=error if isinstance(error, Exception) else None)
                raise
            else:
                self._front.land(found, data=data)
                return value
            finally:
                # Else an error, its traceback, this frame and the flight would hold each other.
                del found

    def stats(self) -> CacheStats:
        """Return the counters of this moment, of a closed cache too."""
        return self._front.stats()

    def close(self) -> None:
        """End all use: write what was accepted, release who waits, close the file.

        Calls that wait for a computation end with `CacheClosedError`; the computation itself is not
        interrupted. Closing again, also from several threads, is harmless; each call returns when
        the file is closed.
        """
        self._front.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._writer is not None and self._writer.abandon():
            warnings.warn(
                f"unclosed cache {self._store.path}", ResourceWarning, stacklevel=2, source=self
            )

    def _apply(self, write: "_Write") -> None:
        if self._writer is None:
            self._front.apply(write)
        else:
            self._writer.submit(write)

    def _data(self, key: str, entry: "_Entry") -> bytes | None:
        """Return the data, read where the front has it not; None if it was just replaced."""
        if entry.data is not None:
            return entry.data
        data = self._store.read(entry.sequence)
        if data is not None:
            self._front.fill(key, entry, data)
        elif self._front.still_holds(key, entry):
            raise CacheFileError(
                f"{self._store.path}: the entry {key!r} is gone; something else changed the file"
            )
        return data

    def _encode(self, key: str, value: Any) -> bytes:
        try:
            return self._codec.encode(value)
        except Exception as error:
            raise CacheValueError(
                f"the value for {key!r}, of type {type(value).__qualname__}, "
                f"cannot be stored as {self._serializer}: {error}"
            ) from error

    def _decode(self, key: str, data: bytes) -> Any:
        try:
            return self._codec.decode(data)
        except Exception as error:
            raise CacheValueError(
                f"the value for {key!r} cannot be read as {self._serializer}: {error}"
            ) from error


class _Entry(NamedTuple):
    """What the front knows of a key; ``data`` is None while the value is in the file alone.

    Concurrency contract: Immutable.
    """

    sequence: int
    expires: float
    data: bytes | None


class _Plan(NamedTuple):
    """What a batch of writes amounts to.

    ``after`` has the keys it changes, oldest write first: their new entry, or None where they go.

    Concurrency contract: Immutable.
    """

    after: Mapping[str, _Entry | None]
    evictions: int


@dataclass(kw_only=True, eq=False, slots=True)
class _Flight:
    """One running computation of a key.

    Concurrency contract: Externally synchronised, by the lock of the front that made it, until it
    is done; immutable from then on.
    """

    key: str
    owner: int
    settled: threading.Condition
    superseded: bool = False
    done: bool = False
    data: bytes | None = None
    error: Exception | None = None

    def outcome(self) -> bytes:
        """Return what was computed, or raise a copy of what was raised."""
        if self.error is not None:
            raise _copy_of(self.error) from self.error
        assert self.data is not None
        return self.data


@dataclass(kw_only=True, eq=False, slots=True)
class _Write:
    """One change on its way to the file: a value, or without ``data`` a delete.

    Concurrency contract: Externally synchronised: the caller's, then the writer's from the queue
    until ``done``, then the caller's again.
    """

    key: str
    data: bytes | None
    now: float
    expires: float = math.inf
    flight: _Flight | None = None
    removed: bool = False
    error: CacheError | None = None
    done: threading.Event = field(init=False)  # of those that are submitted


class _Front:
    """The index of entries in least-recently-used order, the running computations, the counters.

    Concurrency contract: Linearizable; every method but `peek` is one step under the one lock, and
    changes `_readable` one key at a time. Only one caller at a time may be between `plan` and its
    `publish` or `cancel`, and none may `apply` meanwhile: membership has one writer.
    """

    def __init__(
        self, *, max_entries: int, resident: int, index: Mapping[str, _Entry] | None = None
    ) -> None:
        self._max_entries = max_entries
        self._max_resident = min(resident, max_entries)
        self._lock = threading.Lock()
        self._index: OrderedDict[str, _Entry] = OrderedDict(index or {})
        self._resident: OrderedDict[str, None] = OrderedDict()  # the keys with data in the index
        # Read without the lock: those entries, until the front is closed; and what was used since
        # the lock was taken last. Of both, single operations only, which are atomic.
        self._readable: dict[str, _Entry] = {}
        self._uses: deque[str] = deque()
        self._sequence = max((entry.sequence for entry in self._index.values()), default=0)
        self._flights: dict[str, _Flight] = {}
        self._waiting: dict[int, _Flight] = {}  # by thread
        self._planned: Mapping[str, _Entry | None] = {}
        self._settled = threading.Condition(self._lock)  # nothing is planned
        self._closed = False
        self._hits = self._misses = self._file_reads = self._computations = self._evictions = 0

    def peek(self, key: str, now: float) -> _Entry | None:
        """Return the entry, counted, if its data is here and lives; None: look with `find`."""
        # Not `get`: 3.13t takes 24 µs for that in a dict that another thread has made, and 0.2 so.
        try:
            entry = self._readable[key]  # freethread: benign (one lookup, which is atomic)
        except KeyError:
            return None
        if now >= entry.expires:
            return None
        self._uses.append(key)
        # One sees to what has piled up, and the others go on meanwhile, up to a bound.
        many = len(self._uses)
        if many >= _MANY_USES and self._lock.acquire(blocking=many >= _MOST_USES):
            try:
                self._work_off()
            finally:
                self._lock.release()
        return entry

    def find(self, key: str, now: float) -> _Entry | None:
        """Look a key up, and count; an entry whose data is not here is counted by `fill`."""
        with self._lock:
            self._require_open()
            entry = self._live(key, now)
            if entry is None:
                self._misses += 1
            return entry

    def fill(self, key: str, entry: _Entry, data: bytes) -> None:
        """Count a hit from the file, and keep its data unless the key has changed since."""
        with self._lock:
            self._hits += 1
            self._file_reads += 1
            self._work_off()
            current = self._entry(key)
            if current is not None and current.sequence == entry.sequence:
                self._admit(key, _Entry(entry.sequence, entry.expires, data))

    def still_holds(self, key: str, entry: _Entry) -> bool:
        """Return whether the entry is current, once a commit that may concern it is published."""
        with self._lock:
            while key in self._planned:
                self._settled.wait()
            current = self._entry(key)
            return current is not None and current.sequence == entry.sequence

    def join(self, key: str, now: float) -> _Entry | _Flight | None:
        """Look a key up; where there is nothing, take part in its computation.

        Returns:
            The entry; or a computation that the caller must run and `land`; or one that the caller
            has waited for, done; or None: look again.
        """
        me = threading.get_ident()
        with self._lock:
            self._require_open()
            entry = self._live(key, now)
            if entry is not None:
                return entry
            flight = self._flights.get(key)
            if flight is None:
                self._misses += 1
                self._computations += 1
                flight = _Flight(key=key, owner=me, settled=threading.Condition(self._lock))
                self._flights[key] = flight
                return flight
            self._refuse_cycle(me, flight)
            # What began before the key was set or deleted is no answer to who asks afterwards.
            in_time = not flight.superseded
            self._waiting[me] = flight
            try:
                while not flight.done:
                    self._require_open()
                    flight.settled.wait()
            finally:
                del self._waiting[me]
            if in_time and (flight.data is not None or flight.error is not None):
                self._misses += 1
                return flight
            return None

    def land(
        self, flight: _Flight, *, data: bytes | None = None, error: Exception | None = None
    ) -> None:
        """End a computation; with neither data nor an error, those who wait for it look again."""
        with self._lock:
            flight.data = data
            flight.error = error
            flight.done = True
            del self._flights[flight.key]
            flight.settled.notify_all()

    def apply(self, write: _Write) -> None:
        """Make one write, at once."""
        with self._lock:
            self._require_open()
            self._publish(self._plan([write]))

    def plan(self, writes: Sequence[_Write]) -> _Plan:
        """Return what the writes amount to, one after the other."""
        with self._lock:
            plan = self._plan(writes)
            self._planned = plan.after
            return plan

    def publish(self, plan: _Plan) -> None:
        """Make a plan visible, as one step."""
        with self._lock:
            self._publish(plan)
            self._planned = {}
            self._settled.notify_all()

    def cancel(self) -> None:
        """Forget the plan."""
        with self._lock:
            self._planned = {}
            self._settled.notify_all()

    def stats(self) -> CacheStats:
        with self._lock:
            self._work_off()
            return CacheStats(
                entries=len(self._index),
                hits=self._hits,
                misses=self._misses,
                file_reads=self._file_reads,
                computations=self._computations,
                evictions=self._evictions,
            )

    def close(self) -> None:
        """Refuse lookups from now on, and release who waits for a computation."""
        with self._lock:
            self._closed = True
            self._readable.clear()
            for flight in self._flights.values():
                flight.settled.notify_all()

    # The rest is called with the lock held.

    def _require_open(self) -> None:
        if self._closed:
            raise CacheClosedError

    def _work_off(self) -> None:
        """Count what was used, and move it to the end of the order."""
        uses = self._uses
        while uses:
            key = uses.popleft()
            self._hits += 1
            if key in self._index:
                self._index.move_to_end(key)
            if key in self._resident:
                self._resident.move_to_end(key)

    def _entry(self, key: str) -> _Entry | None:
        return self._index[key] if key in self._index else None  # noqa: SIM401 - as in `peek`

    def _live(self, key: str, now: float) -> _Entry | None:
        self._work_off()
        entry = self._entry(key)
        if entry is None:
            return None
        if now >= entry.expires:
            self._index.move_to_end(key, last=False)  # the next to make room
            return None
        self._index.move_to_end(key)
        if entry.data is not None:
            self._resident.move_to_end(key)
            self._hits += 1
        return entry

    def _admit(self, key: str, entry: _Entry) -> None:
        """Hold the key's data as well; those least recently used make room."""
        self._index[key] = entry
        self._resident[key] = None
        self._resident.move_to_end(key)
        if not self._closed:
            self._readable[key] = entry
        if len(self._resident) > self._max_resident:
            leaving, _ = self._resident.popitem(last=False)
            self._readable.pop(leaving, None)
            entry = self._index[leaving]
            self._index[leaving] = _Entry(entry.sequence, entry.expires, None)

    def _refuse_cycle(self, me: int, flight: _Flight) -> None:
        """Raise if waiting for the flight would close a circle of threads that wait for each other.

        A flight that is done holds nobody back, though a thread that waited for it may not have
        woken up yet.
        """
        chain = [flight.key]
        step: _Flight | None = flight
        while step is not None and not step.done:
            if step.owner == me:
                raise RecursiveComputationError(
                    f"the computation of {step.key!r} needs its own result: "
                    + " waits for ".join(map(repr, [step.key, *chain]))
                )
            step = self._waiting.get(step.owner)
            if step is not None:
                chain.append(step.key)

    def _plan(self, writes: Sequence[_Write]) -> _Plan:
        self._work_off()
        after: dict[str, _Entry | None] = {}
        size = len(self._index)
        evictions = 0
        oldest = iter(self._index)
        for write in writes:
            running = self._flights.get(write.key)
            if running is not None and running is not write.flight:
                running.superseded = True
            if write.flight is not None and write.flight.superseded:
                continue
            before = after.pop(write.key) if write.key in after else self._entry(write.key)
            if before is not None:
                size -= 1
            if write.data is None:
                write.removed = before is not None and write.now < before.expires
                after[write.key] = None
                continue
            self._sequence += 1
            after[write.key] = _Entry(self._sequence, write.expires, write.data)
            size += 1
            if size > self._max_entries:
                # What the batch has not touched is older than all that it has.
                victim = next((key for key in oldest if key not in after), None)
                if victim is None:
                    victim = next(key for key, entry in after.items() if entry is not None)
                after[victim] = None
                size -= 1
                evictions += 1
        return _Plan(after, evictions)

    def _publish(self, plan: _Plan) -> None:
        # Room is made first: without a file, data that `_admit` drops would be lost.
        for key, entry in plan.after.items():
            if entry is None:
                self._readable.pop(key, None)
                self._index.pop(key, None)
                self._resident.pop(key, None)
        for key, entry in plan.after.items():
            if entry is not None:
                self._admit(key, entry)
                self._index.move_to_end(key)
        self._evictions += plan.evictions


class _Writer:
    """The one thread that changes a cache with a file.

    Concurrency contract: Internally synchronised.

    The queue needs no bound: each calling thread has at most one write in it, for which it waits.
    """

    def __init__(self, front: _Front, store: "_Store") -> None:
        self._front = front
        self._store = store
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # nothing is queued after the None that ends the thread
        self._closed = False
        # A daemon, so that a cache which nobody closes does not keep the interpreter from its end;
        # it may be stopped anywhere, as by kill -9.
        self._thread = threading.Thread(
            target=self._run, name=f"cache-writer {store.path}", daemon=True
        )
        self._thread.start()

    def submit(self, write: _Write) -> None:
        """Queue a write and wait until it is committed and visible, or has failed.

        Raises:
            CacheError: The write failed and changed nothing.
        """
        self._store.require_own_process()
        write.done = threading.Event()
        with self._gate:
            if self._closed:
                raise CacheClosedError
            self._queue.put(write)
        write.done.wait()
        error, write.error = write.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # else it and this frame would hold each other

    def close(self) -> None:
        """Write what is queued, end the thread, close the file."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def abandon(self) -> bool:
        """Close without waiting, where nobody can submit any more; return whether it was open."""
        was_open, self._closed = not self._closed, True
        if was_open:
            self._queue.put(None)
        return was_open

    def _run(self) -> None:
        try:
            open_ = True
            while open_:
                batch = [self._queue.get()]
                while not self._queue.empty():
                    batch.append(self._queue.get())
                open_ = batch[-1] is not None
                self._commit([write for write in batch if write is not None])
        finally:
            self._store.close()

    def _commit(self, writes: Sequence[_Write]) -> None:
        try:
            plan = self._front.plan(writes)
            self._store.commit(plan)
            self._front.publish(plan)
        except Exception as error:
            self._front.cancel()
            if len(writes) > 1:
                # One by one, so that the write that cannot be made fails alone.
                for write in writes:
                    self._commit([write])
                return
            for write in writes:
                write.error = CacheFileError(
                    f"{self._store.path}: {write.key!r} cannot be written: {error}"
                )
                write.error.__cause__ = error
        for write in writes:
            write.done.set()


class _Store:
    """The file.

    Concurrency contract: `read` is Internally synchronised; `load` and `commit` are Externally
    synchronised (one thread at a time); `close` is called once, after the last `commit`, and may
    overlap with `read`.
    """

    def __init__(self, path: str | os.PathLike[str], *, serializer: str, max_entries: int) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or given in {"", ":memory:"}:
            raise ValueError(f"path must name a file, not {given!r}; leave it out for memory alone")
        self.path: Final = Path(os.path.realpath(given))
        self._max_entries = max_entries
        self._process = os.getpid()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            # First of all: only the owner may look into the file. (Closing a file drops all POSIX
            # locks that the process has on it, those of SQLite in another thread as well.)
            opened.enter_context(contextlib.closing(_own(self.path)))
            _refuse_foreign(self.path)
            with self._translated("opened"):
                self._connection = opened.enter_context(
                    contextlib.closing(_connect(self.path, "rwc"))
                )
                self._prepare(serializer)
            self._readers = opened.enter_context(
                contextlib.closing(_Readers(lambda: _connect(self.path, "ro")))
            )
            self._resources = opened.pop_all()

    def load(self) -> dict[str, _Entry]:
        """Return all entries without their data, the oldest write first."""
        with self._translated("read"):
            rows = self._connection.execute(
                "SELECT key, sequence, expires FROM entry ORDER BY sequence"
            )
            return {key: _Entry(sequence, expires, None) for key, sequence, expires in rows}

    def read(self, sequence: int) -> bytes | None:
        """Return the data of the entry, or None if it was replaced or dropped."""
        self.require_own_process()
        with self._translated("read"), self._readers.lease() as connection:
            # All rows, so that the statement ends, and with it the snapshot that keeps the WAL from
            # being recycled.
            rows = connection.execute(
                "SELECT value FROM entry WHERE sequence = ?", (sequence,)
            ).fetchall()
            return rows[0][0] if rows else None

    def commit(self, plan: _Plan) -> None:
        """Make a plan durable, as one transaction.

        Raises:
            sqlite3.Error: Nothing was changed.
        """
        if not plan.after:
            return
        gone = [(key,) for key, entry in plan.after.items() if entry is None]
        new = [
            (entry.sequence, key, entry.expires, entry.data)
            for key, entry in plan.after.items()
            if entry is not None
        ]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM entry WHERE key = ?", gone)
            self._connection.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", new)

    def close(self) -> None:
        """Close the connections, those that read first, and give up the ownership last."""
        self._resources.close()

    def require_own_process(self) -> None:
        """Raise in a process that was forked from the one which opened the file."""
        if os.getpid() != self._process:
            raise CacheFileError(
                f"{self.path}: opened by process {self._process}, "
                f"so it cannot be used in process {os.getpid()}"
            )

    def _prepare(self, serializer: str) -> None:
        connection = self._connection
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:
            # One transaction, before WAL mode: as soon as the file has a header, it is one with our
            # mark.
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO settings VALUES (?)", (serializer,))
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise CacheFileError(f"{self.path} is corrupt: {verdict}; it is left as it is")
        (stored,) = connection.execute("SELECT serializer FROM settings").fetchone()
        if stored != serializer:
            raise CacheFileError(f"{self.path} holds {stored} values, not {serializer}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise CacheFileError(f"{self.path} cannot be used in WAL mode, only {mode}")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # a file that cannot be written fails here
            connection.execute(
                "DELETE FROM entry WHERE sequence IN "
                "(SELECT sequence FROM entry ORDER BY sequence DESC LIMIT -1 OFFSET ?)",
                (self._max_entries,),
            )

    @contextlib.contextmanager
    def _translated(self, participle: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CacheFileError(f"{self.path} cannot be {participle}: {error}") from error


class _Readers:
    """A bounded pool of connections that read, opened when they are needed.

    Concurrency contract: Internally synchronised. A connection is used by one thread at a time; the
    queue that hands it on orders what they do.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._closed = False
        # One place per connection; None is a place whose connection is not open.
        self._idle: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()
        for _ in range(_READERS):
            self._idle.put(None)

    @contextlib.contextmanager
    def lease(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; wait where all are lent."""
        connection = self._idle.get()
        try:
            if self._closed:
                raise CacheClosedError
            if connection is None:
                connection = self._connect()
            yield connection
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        """Close all connections, those that are lent when they come back."""
        self._closed = True
        for connection in [self._idle.get() for _ in range(_READERS)]:
            if connection is not None:
                connection.close()
        for _ in range(_READERS):
            self._idle.put(None)  # who still waits for a place finds it closed


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a connection that any thread may use, one at a time, without implicit transactions."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )


def _own(path: Path) -> sqlite3.Connection:
    """Take the sole right to the file; closing the connection gives it back.

    So does the end of the process. SQLite's own file lock, on an empty database beside the file,
    works on every platform, and between two caches of one process too.
    """
    lock = path.with_name(path.name + "-owner")
    try:
        connection = _connect(lock, "rwc")
    except sqlite3.Error as error:
        raise CacheFileError(f"{path} cannot be opened: {lock}: {error}") from error
    try:
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        connection.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise CacheFileError(f"{path} is in use by another cache") from error
        raise CacheFileError(f"{path} cannot be opened: {lock}: {error}") from error
    return connection


def _refuse_foreign(path: Path) -> None:
    """Raise unless the file is missing, empty or marked as a cache.

    Judged by its bytes, before SQLite may touch it.
    The header's layout: https://www.sqlite.org/fileformat2.html#the_database_header
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CacheFileError(f"{path} cannot be opened: {error}") from error
    if not header:
        return
    version = int.from_bytes(header[60:64], "big")
    application = int.from_bytes(header[68:72], "big")
    if len(header) < 100 or not header.startswith(_SQLITE_MAGIC):
        found = f"not a SQLite database (it begins with {header[:16]!r})"
    elif application != _APPLICATION_ID:
        found = f"a SQLite database of another program (application id {application:#x})"
    elif version != _SCHEMA_VERSION:
        found = f"a cache of format {version}, this program knows format {_SCHEMA_VERSION}"
    else:
        return
    raise CacheFileError(f"{path} is {found}; it is left as it is")


def _copy_of(error: Exception) -> Exception:
    """Return an equal exception that another thread can raise.

    Raising writes to the exception object (its traceback and context), so that one object raised in
    several threads would mix and pile up their tracebacks.
    """
    kind = type(error)
    try:
        twin = copy.copy(error)
        faithful = type(twin) is kind
    except Exception:
        faithful = False
    if not faithful:
        # Its __init__ does not take its own args; what matters of such a class is in args and
        # attributes.
        twin = kind.__new__(kind, *error.args)
        vars(twin).update(vars(error))
    twin.args = error.args
    return twin


def _plain(key: str) -> str:
    """Return the key as a plain string, whose hash and equality run no code of others.

    Raises:
        TypeError: It is no string.
        UnicodeEncodeError: It has a lone surrogate, which no file can hold.
    """
    if type(key) is not str:
        if not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")
        key = str.__str__(key)
    if not key.isascii():
        key.encode()
    return key


def _require_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
