"""Which locks threads wait for, and how long: a thin layer over the locks of the project's code.

Probes route each `with lock`, `lock.acquire()`, `queue.get()` … of live code through here, whenever
the lock was made. A lock that is free is taken at once, by one call more than without; only where a
thread really has to wait, the clock is read. Nothing else has probes.
"""

from __future__ import annotations

import ast
import contextlib
import linecache
import queue
import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.execution import probing, scope, stacks
from pytest_freethread.instrument import probes
from pytest_freethread.instrument.effects import ROUTE
from pytest_freethread.instrument.rewrite_locks import WAITING_CALLS, rewrite_locks
from pytest_freethread.instrument.standby import Standby
from pytest_freethread.records import Place, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

_MEETING_PLACES: Final = (
    *(threading.Condition, threading.Event, threading.Semaphore, threading.BoundedSemaphore),
    *(queue.Queue, queue.LifoQueue, queue.PriorityQueue, queue.SimpleQueue, threading.Barrier),
)

_SHORTEST_CALL: Final = 5e-6
"""Seconds: a call that took less has not waited."""


class LockTimer:
    """Times the waits of threads, as a context manager; one at a time in a process.

    Args:
        functions: the code of their modules is looked into, and that of the project.

    Attributes:
        refused: why nothing is timed; None if it is.
    """

    def __init__(self, functions: tuple[Callable[..., object], ...]) -> None:
        self.refused: str | None = None
        self._functions = functions
        self._undo = contextlib.ExitStack()
        self._noted: list[tuple[int, int, int, float, float]] = []
        self._stand_ins: dict[tuple[int, int], _StandIn] = {}
        self._names: dict[tuple[int, int], tuple[str, Place]] = {}

    def __enter__(self) -> None:
        """Put the probes in, unless somebody else has some in."""
        if not probing.turn.acquire(blocking=False):
            self.refused = "another run has the probes"
            return
        with contextlib.ExitStack() as undo:
            undo.callback(probing.turn.release)
            probes.route(*_MEETING_PLACES)
            modules = scope.own(self._functions).values()
            standby = Standby(modules, exact=True, rewrite=rewrite_locks)
            undo.callback(standby.end)
            if standby.put_in():
                probes.listen(self)
                undo.callback(probes.listen, None)
            else:
                self.refused = "an exploration has the probes"
            self._undo = undo.pop_all()

    def __exit__(self, *_: object) -> None:
        """Take them out."""
        self._undo.close()

    def take(self, threads: Mapping[int, int]) -> list[Wait]:
        """The waits so far, by the clock of `perf_counter`; there are none after that.

        Args:
            threads: the index of each thread by its ident.
        """
        noted, self._noted = self._noted, []
        started: dict[int, int] = {}
        return [
            Wait(
                threads[ident]
                if ident in threads
                else started.setdefault(ident, -1 - len(started)),
                *self._names[lock, site],
                start,
                end,
            )
            for ident, lock, site, start, end in noted
        ]

    # ----- by the threads that wait -----

    def access(self, obj: Any, key: Any, op: int, site: int, /) -> Any:
        """Before a lock is entered or called: the stand-in that times it."""
        if op != ROUTE or (key is not None and key not in WAITING_CALLS):
            return obj
        try:
            return self._stand_ins[id(obj), site]
        except KeyError:
            return self._stand_ins.setdefault((id(obj), site), _StandIn(obj, site, self))

    def note(self, obj: object, site: int, start: float, end: float) -> None:
        """Take a wait down."""
        key = id(obj), site
        if key not in self._names:
            self._names[key] = _name_and_place(site, sys._getframe(2))  # noqa: SLF001 - documented
        self._noted.append((interpreter.get_ident(), *key, start, end))


def _timed_call(name: str) -> Callable[..., Any]:
    def call(self: _StandIn, *args: Any, **keywords: Any) -> Any:
        start = interpreter.perf_counter()
        try:
            return getattr(self.real, name)(*args, **keywords)
        finally:
            end = interpreter.perf_counter()
            if end - start >= _SHORTEST_CALL:
                self.timer.note(self.real, self.site, start, end)

    return call


class _StandIn:
    """A lock, condition, queue … of which the calls that wait are timed.

    It keeps the real one alive, so that an identity stands for one of them only.
    """

    __slots__ = ("real", "site", "timer")

    def __init__(self, real: Any, site: int, timer: LockTimer) -> None:
        self.real = real
        self.site = site
        self.timer = timer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __enter__(self) -> Any:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.real.release()

    def acquire(self, *args: Any, **keywords: Any) -> Any:
        if not args and not keywords and self.real.acquire(blocking=False):
            return True
        start = interpreter.perf_counter()
        try:
            return self.real.acquire(*args, **keywords)
        finally:
            self.timer.note(self.real, self.site, start, interpreter.perf_counter())

    wait = _timed_call("wait")
    wait_for = _timed_call("wait_for")
    get = _timed_call("get")
    put = _timed_call("put")
    join = _timed_call("join")


def _name_and_place(site: int, frame: FrameType | None) -> tuple[str, Place]:
    """What a reader of the code calls what is waited for, and the line."""
    where = probes.SITES[site]
    while frame is not None and stacks.is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    source = linecache.getline(where.file, where.line).strip()
    text = where.text
    if text.startswith("@"):  # a variable of pytest's assertions
        written = re.search(rf"([\w.]+)\.{where.name}\b", source)
        text = "lock" if written is None else written[1]
    name = text
    if frame is not None:
        name = stacks.name_of(ast.parse(text, mode="eval").body, frame)
    if where.name not in {None, "acquire"}:
        name = f"{name}.{where.name}()"
    return name, Place(file=where.file, line=where.line, function=where.function, source=source)
