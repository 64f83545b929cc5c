# ruff: noqa: SLF001 - it acts for the interpreter's own threading code, which is private
"""Carriers: real threads that perform one logical thread after another, fresh for each.

A logical thread has its own thread object where `threading` looks for it, and finds all
`threading.local`s empty. What counts threads starts anew in every execution.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.execution import leaks
from pytest_freethread.execution.baton import Baton
from pytest_freethread.instrument import heap, shadows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_freethread.instrument.shadows import Task


class Carrier:
    """A thread that performs whatever task it is given, one after another.

    Attributes:
        baton: lets it go on.
        task: what it shall perform next; None as soon as it has begun.
        perform: does so; set with the task.
        idle: whether it waits for a task, or has ended.
    """

    def __init__(self, *, eventfd: bool) -> None:
        self.baton = Baton(eventfd=eventfd)
        self.eventfd = eventfd
        self.perform: Callable[[Task], None] | None = None
        self.task: Task | None = None
        self.locals: dict[Any, Any] = {}
        self.idle = True
        self.thread = interpreter.Thread(target=self._loop, daemon=True, name="freethread-carrier")
        leaks.mark_as_ours(self.thread)
        self.thread.start()
        self.ident = self.thread.ident or 0
        self.native_id = getattr(self.thread, "native_id", 0) or 0

    def _loop(self) -> None:
        self.locals = _thread_dict()
        while True:
            self.baton.take()
            self.idle = False
            task, perform = self.task, self.perform
            self.task = self.perform = None
            try:
                if task is not None and perform is not None:
                    perform(task)
            finally:
                del task, perform
                self.idle = True


def hire(*, eventfd: bool) -> Carrier:
    """A carrier that nobody else uses; `dismiss` gives it back."""
    with shadows.aside():  # to ask a thread is a step, of controlled ones
        _idle[:] = [each for each in _idle if each.thread.is_alive()]
    found = next((each for each in _idle if each.eventfd == eventfd), None)
    if found is None:
        with shadows.aside():
            return Carrier(eventfd=eventfd)
    _idle.remove(found)
    return found


def dismiss(carriers: Iterable[Carrier]) -> None:
    """Keep carriers for who needs some next."""
    _idle.extend(carriers)


def thread_object(name: str, prototype: dict[str, Any]) -> threading.Thread:
    """A thread object that looks as if it had been started."""
    thread = object.__new__(interpreter.Thread)
    vars(thread).update(prototype, _name=name)
    return thread


def prototype() -> dict[str, Any]:
    """What all such objects have in common."""
    thread = interpreter.Thread(name="body", daemon=False)
    mark_as_started(thread, 0, 0)
    mark_as_ended(thread)
    return vars(thread)


def mark_as_started(thread: threading.Thread, ident: int, native_id: int) -> None:
    """Have a thread object say that it runs in the thread with these numbers."""
    thread._ident = ident  # type: ignore[attr-defined]
    thread._native_id = native_id  # type: ignore[attr-defined]
    thread._started._flag = True  # type: ignore[attr-defined]


def stand_in(thread: Any, ident: int) -> Any:
    """Have `threading` take a thread object for the one that runs here; returns the one before."""
    active = threading._active  # type: ignore[attr-defined]
    before = active.get(ident)
    active[ident] = thread
    return before


_idle: list[Carrier] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


def _thread_dict() -> dict[Any, Any]:
    """Where this thread's `threading.local`s keep what they hold, up to 3.12."""
    ctypes.pythonapi.PyThreadState_GetDict.restype = ctypes.py_object
    found: dict[Any, Any] = ctypes.pythonapi.PyThreadState_GetDict()
    # The function lends its result, which ctypes takes for given.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(found))
    return found


_LOCALS_HAVE_TABLES: Final = sys.version_info >= (3, 13)


class Locals:
    """Every logical thread finds the `threading.local`s empty that existed before the run."""

    def __init__(self) -> None:
        self._tables: list[tuple[dict[Any, Any], frozenset[Any]]] = []
        if _LOCALS_HAVE_TABLES:
            for thing in heap.thread_locals():
                # From 3.13 on the object has a table of what it holds for each thread.
                for table in gc.get_referents(thing):
                    if type(table) is dict and _is_table(table):
                        self._tables.append((table, frozenset(table)))  # or its arguments

    def clear(self, carriers: Iterable[Carrier]) -> None:
        """Drop what the execution's threads have put there."""
        if not _LOCALS_HAVE_TABLES:
            for carrier in carriers:
                carrier.locals.clear()
        for table, before in self._tables:
            if len(table) != len(before):
                for key in [key for key in list(table) if key not in before]:
                    table.pop(key, None)


def _is_table(table: dict[Any, Any]) -> bool:
    return all(type(key).__name__ == "_localdummy" for key in list(table))


def throw(ident: int, kind: type[BaseException]) -> None:
    """Raise an exception in another thread, as soon as it runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))


@contextlib.contextmanager
def quiet_executors() -> Iterator[None]:
    """Workers that are unwound write no obituary for their pool."""
    base = sys.modules.get("concurrent.futures._base")
    if base is None:
        yield
        return
    before = base.LOGGER.disabled
    base.LOGGER.disabled = True
    try:
        yield
    finally:
        base.LOGGER.disabled = before


@contextlib.contextmanager
def quiet_finalizers(unwound: type[BaseException]) -> Iterator[None]:
    """Finalizers that are unwound are nothing to report."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not unwound:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


_HANDLES: Final = ("_os_thread_handle", "_handle")
"""Where a thread object keeps what knows the thread: from 3.14 on, and in 3.13."""


def mark_as_ended(thread: Any) -> None:
    """Have a thread object that ran under control say so to everybody else."""
    name = next((name for name in _HANDLES if hasattr(thread, name)), None)
    if name is not None:
        handle = threading._make_thread_handle(thread._ident or 0)  # type: ignore[attr-defined]
        handle._set_done()
        setattr(thread, name, handle)
    else:
        thread._is_stopped = True
        thread._tstate_lock = None
    executors = sys.modules.get("concurrent.futures.thread")
    if executors is not None:
        executors._threads_queues.pop(thread, None)


@contextlib.contextmanager
def counters() -> Iterator[None]:
    """Keep what counts threads and pools; both are named by number."""
    threads = threading._counter  # type: ignore[attr-defined]
    executors = sys.modules.get("concurrent.futures.thread")
    pools = None if executors is None else executors.ThreadPoolExecutor._counter
    try:
        yield
    finally:
        threading._counter = threads  # type: ignore[attr-defined]
        if executors is not None:
            executors.ThreadPoolExecutor._counter = pools


def restart_counters() -> None:
    """Count threads and pools from one on again."""
    threading._counter = itertools.count(1).__next__  # type: ignore[attr-defined]
    executors = sys.modules.get("concurrent.futures.thread")
    if executors is not None:
        executors.ThreadPoolExecutor._counter = itertools.count().__next__
