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
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.execution import noise, scope, stacks
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
        if not noise.turn.acquire(blocking=False):
            self.refused = "another run has the probes"
            return
        with contextlib.ExitStack() as undo:
            undo.callback(noise.turn.release)
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


class _StandIn:
    """A lock, condition, queue … of which the calls that wait are timed.

    It keeps the real one alive, so that an identity stands for one of them only.
    """

    __slots__ = ("_real", "_site", "_timer")

    def __init__(self, real: Any, site: int, timer: LockTimer) -> None:
        self._real = real
        self._site = site
        self._timer = timer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __enter__(self) -> Any:
        if not self._real.acquire(blocking=False):
            self._timed(self._real.acquire)
        return True

    def __exit__(self, *_: object) -> None:
        self._real.release()

    def acquire(self, *args: Any, **keywords: Any) -> Any:
        if not args and not keywords and self._real.acquire(blocking=False):
            return True
        return self._timed(self._real.acquire, *args, **keywords)

    def wait(self, *args: Any, **keywords: Any) -> Any:
        return self._timed(self._real.wait, *args, **keywords)

    def wait_for(self, *args: Any, **keywords: Any) -> Any:
        return self._timed(self._real.wait_for, *args, **keywords)

    def get(self, *args: Any, **keywords: Any) -> Any:
        return self._timed(self._real.get, *args, **keywords)

    def put(self, *args: Any, **keywords: Any) -> Any:
        return self._timed(self._real.put, *args, **keywords)

    def join(self, *args: Any, **keywords: Any) -> Any:
        return self._timed(self._real.join, *args, **keywords)

    def _timed(self, call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        start = interpreter.perf_counter()
        try:
            return call(*args, **keywords)
        finally:
            self._timer.note(self._real, self._site, start, interpreter.perf_counter())


def _name_and_place(site: int, frame: FrameType | None) -> tuple[str, Place]:
    """What a reader of the code calls what is waited for, and the line."""
    where = probes.SITES[site]
    while frame is not None and stacks.is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    expression = ast.parse(where.text, mode="eval").body
    name = where.text if frame is None else stacks.name_of(expression, frame)
    if where.name not in {None, "acquire"}:
        name = f"{name}.{where.name}()"
    place = Place(
        file=where.file,
        line=where.line,
        function=where.function,
        source=linecache.getline(where.file, where.line).strip(),
    )
    return name, place
