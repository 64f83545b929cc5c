"""Leaf: facts about the interpreter and the machine, and the real primitives.

The primitives are bound here at import, so that the harness keeps working while somebody patches
`threading` or `time`.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import platform
import queue
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Thread = threading.Thread
Lock = _thread.allocate_lock
SimpleQueue = queue.SimpleQueue
monotonic = time.monotonic
perf_counter = time.perf_counter
process_time = time.process_time
thread_time = time.thread_time
get_ident = _thread.get_ident

namespace_of = cast("Callable[[ModuleType], dict[str, Any]]", vars(ModuleType)["__dict__"].__get__)
"""The namespace of a module, without asking the module itself: a lazy one would be loaded then."""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """Facts about this process, at the time of asking.

    Attributes:
        name: such as `CPython 3.13.5`.
        free_threaded: whether the build can run without the GIL (PEP 703).
        gil: whether the GIL is on now; a free-threaded build can have it on too.
        cores: how many cores this process may use.
    """

    name: str
    free_threaded: bool
    gil: bool
    cores: int

    def __str__(self) -> str:
        build = " free-threaded" if self.free_threaded else ""
        gil = "on" if self.gil else "off"
        cores = f"{self.cores} core" + "s" * (self.cores != 1)
        return f"{self.name}{build}, GIL {gil}, {cores}"


def gil_enabled() -> bool:
    """Whether the GIL is on now."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def usable_cores() -> int:
    """The number of cores that this process may run on (its affinity, where there is one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores' worth of time the process's control group may use; None: any (Linux).

    The least that the group or one of those around it is allowed, in version 1 or 2.

    Args:
        root: below which `proc` and `sys` are.
    """
    quotas = []
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        for folder in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
            with contextlib.suppress(OSError, ValueError):
                if controllers:
                    quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
                    period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
                else:
                    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
                if int(quota) > 0:
                    quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def core_pinner(index: int) -> Callable[[], object]:
    """What a thread calls to be tied to the core that is its own by its index.

    What it starts inherits that. Does nothing where the platform cannot.
    """
    if not hasattr(os, "sched_setaffinity"):
        return lambda: None
    allowed = sorted(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, {allowed[index % len(allowed)]})


def core_settler(index: int) -> Callable[[], object]:
    """What a thread calls to go on running on the core that is its own by its index.

    The kernel likes to wake threads on the core of whoever wakes them; two that shall meet would
    take turns there instead of running at once. The thread is moved, not tied: what it starts
    does not inherit anything, and it sees all cores. Does nothing where the platform cannot.
    """
    if gil_enabled() or not hasattr(os, "sched_setaffinity"):
        return lambda: None
    allowed = os.sched_getaffinity(0)
    own = {sorted(allowed)[index % len(allowed)]}

    def settle() -> None:
        os.sched_setaffinity(0, own)
        os.sched_setaffinity(0, allowed)

    return settle


def own_core() -> int:
    """An index of the core that this process should explore on: pytest-xdist's workers differ."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    return int(worker[2:]) if worker[2:].isdigit() else os.getpid()


class Allowance:
    """So many seconds of the process's CPU time; ten times that by the clock, where it waits.

    What is decided within it does not depend on who else uses the machine.
    """

    def __init__(self, seconds: float) -> None:
        self._cpu = time.process_time() + seconds
        self._clock = monotonic() + 10 * seconds

    def spent(self) -> bool:
        """Whether nothing is left of it."""
        return time.process_time() > self._cpu or monotonic() > self._clock


def cpu_seconds(ident: int) -> float:
    """How long a living thread has computed, by `threading.get_ident()`; 0 where unknown."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def seconds_without_core() -> float:
    """How long the living threads of this process were ready to run and had no core, in sum.

    0 where unknown (Linux tells).
    """
    nanoseconds = 0
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - names will do
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/self/task/{task}/schedstat").read_text(encoding="ascii")
                nanoseconds += int(stat.split()[1])
    return nanoseconds * 1e-9


def is_runnable(native_id: int) -> bool:
    """Whether a thread of this process wants to run, if on a busy machine; False where unknown.

    Asked in the middle of a controlled execution: a codec would be imported, and take locks.
    """
    try:
        file = os.open(b"/proc/self/task/%d/stat" % native_id, os.O_RDONLY)
    except OSError:
        return False
    try:
        stat = os.read(file, 1_000)
    except OSError:
        return False
    finally:
        os.close(file)
    return stat.rpartition(b")")[2].lstrip().startswith(b"R")


def facts() -> Interpreter:
    """The facts about this process."""
    return Interpreter(
        name=f"{platform.python_implementation()} {platform.python_version()}",
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        gil=gil_enabled(),
        cores=usable_cores(),
    )


def system() -> str:
    """The operating system and the processor's architecture, such as `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"


gil_culprit: str | None = None
"""The module whose import switched the GIL on; set by whoever watches imports."""


def gil_switched_on_by() -> str | None:
    """What has a free-threaded build run with the GIL: an option, or a module, if seen."""
    if sys._xoptions.get("gil") == "1":  # noqa: SLF001 - documented
        return "-X gil=1"
    return "PYTHON_GIL=1" if os.environ.get("PYTHON_GIL") == "1" else gil_culprit


def inherits_context() -> bool:
    """Whether a new thread starts with a copy of its starter's `contextvars` context (3.14)."""
    return bool(getattr(sys.flags, "thread_inherit_context", 0))


def warnings_are_per_context() -> bool:
    """Whether `warnings.catch_warnings` acts on its own context instead of the process (3.14)."""
    return bool(getattr(sys.flags, "context_aware_warnings", 0))


def core_yielder() -> Callable[[], object]:
    """What a spinning thread calls to let others run.

    `sched_yield` costs least, but holds on to the GIL before 3.12, where `sleep(0)` lets go of it.
    """
    if hasattr(os, "sched_yield") and sys.version_info >= (3, 12):
        return os.sched_yield

    sleep = time.sleep
    return lambda: sleep(0)


_switch_lock = Lock()
_switch_users = 0
_switch_before = 0.0


@contextlib.contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    """Ask GIL builds to switch threads every `seconds`; restored when the last user leaves."""
    global _switch_users, _switch_before  # noqa: PLW0603 - it is a setting of the whole process
    with _switch_lock:
        if _switch_users == 0:
            _switch_before = sys.getswitchinterval()
            sys.setswitchinterval(seconds)
        _switch_users += 1
    try:
        yield
    finally:
        with _switch_lock:
            _switch_users -= 1
            if _switch_users == 0:
                sys.setswitchinterval(_switch_before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let the calling thread run for some milliseconds at a time, within `switch_interval`.

    To look at other threads takes a millisecond, or ten if all of them ask for the GIL meanwhile.
    """
    with _switch_lock:
        before = sys.getswitchinterval()
        sys.setswitchinterval(0.005)
    try:
        yield
    finally:
        with _switch_lock:
            sys.setswitchinterval(before)
