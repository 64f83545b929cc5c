"""Handing over between OS threads, as fast as the kernel can.

Each thread waits on a baton of its own; whoever goes on is handed his. An `os.eventfd` with all
threads on one core takes about 1 µs for a hand-over on either build: the waker never has to reach
into another core, and the kernel just switches. Where there is no eventfd, a lock is the baton.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_freethread.interpreter import Lock

if TYPE_CHECKING:
    from collections.abc import Callable

HAS_EVENTFD: Final = hasattr(os, "eventfd")
CAN_PIN: Final = hasattr(os, "sched_setaffinity") and hasattr(threading, "get_native_id")


class Baton:
    """What one thread waits for. `give` and `take` are bound straight to the system's calls.

    Args:
        eventfd: whether it is an eventfd; a lock otherwise.
        timed: whether it is taken by `take_within` alone.

    Attributes:
        give: lets the owner go on, now or when it waits next; called once for each `take`.
        take: waits until it is given.
        take_within: waits for so many seconds at most; whether it was given. Whoever takes it
            while this waits (a finalizer, in the same thread) leaves nothing.
    """

    __slots__ = ("_close", "give", "take", "take_within")

    def __init__(self, *, eventfd: bool = HAS_EVENTFD, timed: bool = False) -> None:
        self.give: Callable[[], object]
        self.take: Callable[[], object]
        self.take_within: Callable[[float], bool]
        self._close: Callable[[], object] = _nothing
        if eventfd:
            descriptor = os.eventfd(0, os.EFD_CLOEXEC | (os.EFD_NONBLOCK if timed else 0))
            ready = select.poll()
            ready.register(descriptor, select.POLLIN)
            self.give = partial(os.eventfd_write, descriptor, 1)
            self.take = partial(os.eventfd_read, descriptor)
            self.take_within = partial(_taken_within, ready, self.take)
            self._close = partial(os.close, descriptor)
        else:
            lock = Lock()
            lock.acquire()
            self.give = lock.release
            self.take = lock.acquire
            self.take_within = partial(lock.acquire, True)

    def close(self) -> None:
        """Give the descriptor back; nobody may hold on to the baton."""
        self._close()


def _taken_within(ready: select.poll, take: Callable[[], object], seconds: float) -> bool:
    if ready.poll(seconds * 1000):
        with contextlib.suppress(BlockingIOError):
            take()
            return True
    return False


def _nothing() -> None:
    pass


class Core:
    """One core that all threads of an exploration are tied to; nothing where that cannot be.

    Args:
        index: which of the cores that this process may use, modulo their number.
    """

    def __init__(self, index: int) -> None:
        self._tied: set[int] = set()
        self._allowed = os.sched_getaffinity(0) if CAN_PIN else set()
        self._core = {sorted(self._allowed)[index % len(self._allowed)]} if CAN_PIN else set()

    def tie(self, native_id: int) -> None:
        """Tie a thread to the core; `threading.get_native_id()` names it."""
        if self._core and native_id not in self._tied:
            self._tied.add(native_id)
            os.sched_setaffinity(native_id, self._core)

    def release(self) -> None:
        """Let all threads that still live run on every core that this thread could use before."""
        while self._tied:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._tied.pop(), self._allowed)
