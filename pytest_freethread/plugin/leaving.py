"""Leaving though threads are stuck: tear-downs that may block, and the end of the process."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@contextlib.contextmanager
def interruptible(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread every `seconds`, to get it out of whatever blocks it.

    Each time one blocking step is broken off and the next one gets its chance. Does nothing where
    there are no timers, off the main thread, and where somebody else (such as pytest-timeout)
    already has the timer.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(
            f"broken off after {seconds:g} s: threads of a test are stuck and hold what this needs"
        )

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def never_wait_at_exit(status: Callable[[], int]) -> None:
    """End the process when it is done, whatever threads still run.

    The interpreter waits for every thread that is no daemon; one that is stuck makes that for ever.
    Exit handlers run, standard streams are flushed, and the status is what the session's was.
    """

    def leave() -> None:
        stuck = [
            thread
            for thread in threading.enumerate()
            if thread is not threading.main_thread() and not thread.daemon
        ]
        if stuck:
            atexit._run_exitfuncs()  # noqa: SLF001 - nobody else will
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status())

    # Called first of all, before the interpreter and thread pools join their threads.
    threading._register_atexit(leave)  # type: ignore[attr-defined] # noqa: SLF001
