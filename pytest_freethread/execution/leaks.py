"""Threads that outlive the code that started them."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_freethread.execution import stacks
from pytest_freethread.interpreter import Lock, monotonic
from pytest_freethread.records import Leak, Place, ThreadState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PRIMITIVES = ("_queue", "_thread", "queue", "threading")

_STARTED_AT = "_freethread_started_at"
_OURS = "_freethread_carrier"

_BETWEEN_TASKS = 0.05
"""Seconds for which a worker may itself hold on to its pool, which nobody else does any more."""

_lock = Lock()
_watches = 0
_real_start: Callable[[threading.Thread], None] = threading.Thread.start


def _start(thread: threading.Thread) -> None:
    """`Thread.start`, which first notes who calls it."""
    setattr(thread, _STARTED_AT, stacks.callers(sys._getframe(1)))  # noqa: SLF001 - documented
    _real_start(thread)


def mark_as_ours(thread: threading.Thread) -> None:
    """Say that a thread belongs to the harness and is no leak."""
    setattr(thread, _OURS, True)


def is_ours(thread: threading.Thread) -> bool:
    """Whether a thread is one of the harness's own."""
    return hasattr(thread, _OURS)


class ThreadWatch:
    """Notes which threads are started between its creation and `stop()`, and where.

    Args:
        kept: objects that are older than the code under test and stay, asked for when there is a
            leak; a thread that runs a method of one of them, or of an attribute of one, is theirs.
    """

    def __init__(self, kept: Callable[[], Iterable[object]] = tuple) -> None:
        global _watches  # noqa: PLW0603 - `Thread.start` is one for the whole process
        self._before = set(threading.enumerate())
        self._kept = kept
        self._watching = True
        with _lock:
            if _watches == 0:
                threading.Thread.start = _start  # type: ignore[assignment, method-assign]
            _watches += 1

    def stop(self) -> None:
        """Stop watching; may be called again."""
        global _watches  # noqa: PLW0603 - see above
        with _lock:
            if self._watching:
                self._watching = False
                _watches -= 1
                if _watches == 0:
                    threading.Thread.start = _real_start  # type: ignore[assignment, method-assign]

    def running(self) -> list[threading.Thread]:
        """The threads that were started since and still run, without the harness's own."""
        return [
            thread
            for thread in threading.enumerate()
            # One that is being started right now is listed, but cannot be joined yet.
            if thread not in self._before and thread.is_alive() and not is_ours(thread)
        ]

    def leaks(self, *, grace: float) -> tuple[Leak, ...]:
        """What still runs after `grace` seconds for all, grouped by where it was started."""
        until = monotonic() + grace
        briefly = monotonic() + _BETWEEN_TASKS
        for thread in self.running():
            if _is_pool_worker(thread):
                thread.join(max(0.0, briefly - monotonic()))
            if not _is_pool_worker(thread):
                thread.join(max(0.0, until - monotonic()))
        left = self.running()
        kept = _with_attributes(self._kept()) if left else set()
        groups: dict[tuple[tuple[Place, ...], bool, bool], list[threading.Thread]] = {}
        for thread in left:
            started_at: tuple[Place, ...] = getattr(thread, _STARTED_AT, ())
            key = (started_at, thread.daemon, _is_background(thread, started_at, kept))
            groups.setdefault(key, []).append(thread)
        return tuple(_leak(key, threads) for key, threads in groups.items())


def _leak(key: tuple[tuple[Place, ...], bool, bool], threads: list[threading.Thread]) -> Leak:
    started_at, daemon, background = key
    first = threads[0]
    states = stacks.examine({first.ident or 0: (None, first.name)})
    return Leak(
        names=tuple(thread.name for thread in threads),
        started_at=started_at,
        state=states[0] if states else ThreadState(thread=None, name=first.name, stack=()),
        daemon=daemon,
        background=background,
    )


def _with_attributes(objects: Iterable[object]) -> set[int]:
    found = set()
    for each in objects:
        found.add(id(each))
        if not isinstance(each, ModuleType | type):
            found.update(map(id, getattr(each, "__dict__", {}).values()))
    return found


def _is_background(thread: threading.Thread, started_at: tuple[Place, ...], kept: set[int]) -> bool:
    if _is_pool_worker(thread) or id(_owner(thread)) in kept:
        return True
    return thread.daemon and bool(started_at) and stacks.is_foreign(started_at[-1].file)


def _owner(thread: threading.Thread) -> object:
    """The object whose method it runs, or the thread itself."""
    owner = getattr(getattr(thread, "_target", None), "__self__", thread)
    # To wait on an event is nobody's service.
    return thread if type(owner).__module__ in _PRIMITIVES else owner


def _is_pool_worker(thread: threading.Thread) -> bool:
    """Whether it idles in a `ThreadPoolExecutor` that somebody still holds on to.

    Such a thread ends when its executor is dropped or shut down, or at exit.
    """
    target: Any = getattr(thread, "_target", None)
    arguments: Any = getattr(thread, "_args", ())
    if getattr(target, "__module__", None) != "concurrent.futures.thread" or not arguments:
        return False
    executor = arguments[0]()  # a weak reference to it
    return executor is not None and not getattr(executor, "_shutdown", True)
