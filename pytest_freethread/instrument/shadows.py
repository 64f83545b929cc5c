# ruff: noqa: SLF001 - it keeps the state of `threading`'s classes, and that is private
"""Modelled synchronisation: locks, conditions, queues, threads and the clock under control.

Nothing has a second state that could drift from the first. A shadow of a lock or a `SimpleQueue`
wraps the real one and takes it when it is taken; what `threading` writes in Python (`Condition`,
`Event`, `Semaphore`, `Thread`) is patched in its methods and keeps its state where it was. So it
does not matter whether an object was made before the run or within, in which module, or as an
instance of which subclass; and whatever outlives a run is a working real object again.

`Barrier`, `Timer`, the `Queue` family and `concurrent.futures` are Python code on top of these and
run as they are. Only threads of the run are controlled: everybody else passes straight through.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import linecache
import queue
import random
import sys
import threading
import time
from types import FunctionType, GenericAlias, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_freethread.instrument import probes
from pytest_freethread.instrument.patching import Patches
from pytest_freethread.instrument.probes import SITES, Site
from pytest_freethread.interpreter import namespace_of

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType

LockType: Final = _thread.LockType
RLockType: Final = _thread.RLock
SimpleQueueType: Final = queue.SimpleQueue
_allocate_lock: Final = _thread.allocate_lock

EPOCH: Final = 2_000_000_000_000_000_000
"""Nanoseconds: where `time.time()` starts in every execution; later than anything from before."""

UPTIME: Final = 1_000_000_000_000_000_000
"""Nanoseconds: where the monotonic clocks start in every execution."""

_PATIENT_GLANCES: Final = 100
_GLANCE: Final = 1e-3
"""A thread that reads the clock again and again, and does nothing else, waits for time to pass."""


class NewKey:
    """In a `Pending`: a key that a dict does not have yet.

    It equals all other new keys besides itself: a dict keeps the order of its insertions.
    """

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return type(other) is NewKey or bool(other == self.key)

    def __hash__(self) -> int:
        return hash(self.key)


class SameKey:
    """In a `Pending`: a key that is equal to nothing but itself, such as a member of an `Enum`."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return type(other) is SameKey and other.key is self.key

    def __hash__(self) -> int:
        return id(self.key)


class Gate(Protocol):
    """What a thread waits for."""

    def open(self, task: Task, /) -> bool:
        """Whether `task` could go on now; always so once it has `expired`, but for a lock."""
        ...


class Task:
    """A logical thread: a body, or a thread that the code under test started.

    Attributes:
        index: bodies count from 0, the thread that drives the run follows, then started ones.
        at: the site that a probe announced for the operation to come; -1: none did.
        site: where its last synchronisation was.
        gate: what it waits for, if anything.
        deadline: virtual nanoseconds after which it waits no longer.
        impatient: whether that may be while others could still go on.
        expired: whether it stopped waiting because of the deadline.
        held: the locks that it holds, in the order in which it took them.
        left: how many steps the execution had when its last turn ended.
        seen, touched, wrote, quiet, quietly, objects: what it has touched in this execution, for
            whoever learns which locations are shared.
        numbers: by identity, the numbers of the objects that it has touched, for judges.
    """

    __slots__ = (
        *("at", "body", "carrier", "context", "daemon", "deadline", "ended", "error", "expired"),
        *("gate", "give", "glances", "held", "ident", "impatient", "index", "last", "left"),
        *("numbers", "objects", "outside", "quiet", "quietly", "seen", "site", "take", "thread"),
        *("touched", "what", "wrote"),
    )

    context: contextvars.Context

    def __init__(self, index: int, body: Callable[[], object]) -> None:
        self.index = index
        self.body = body
        self.at = self.site = -1
        self.gate: Gate | None = None
        self.deadline: int | None = None
        self.expired = self.ended = self.outside = self.daemon = self.impatient = False
        self.glances = 0
        self.left = 0
        self.held: list[Lock | RLock] = []
        self.error: BaseException | None = None
        self.thread: Any = None
        self.what = ""
        self.last: Any = None
        self.carrier: Any = None
        self.ident = 0
        self.give: Callable[[], object]
        self.take: Callable[[], object]
        self.seen: set[int] = set()
        self.touched: set[int] = set()
        self.wrote: set[int] = set()
        self.quiet: set[int] = set()
        self.quietly: dict[int, set[int]] = {}
        self.objects: dict[int, list[Any]] = {}
        self.numbers: dict[int, int] = {}

    def open(self, task: Task) -> bool:
        """As a gate: for who joins it."""
        return self.ended or task.expired


class Conductor(Protocol):
    """Who decides which thread goes on.

    Attributes:
        abandoned: whether the run is over and its threads are being unwound.
        quick: whether the thread that runs goes on anyhow, and nobody waits.
        task: the thread that runs.
        now: virtual nanoseconds since the execution began.
        made: how many threads and futures were made in this execution.
        drawn: whether the `random` module was used in it.
        seed: where its numbers start.
        shadows: by the identity of a real lock or queue, its stand-in in this execution.
    """

    abandoned: bool
    quick: bool
    task: Task
    drawn: bool
    made: int
    now: int
    seed: int
    shadows: dict[int, Any]

    def me(self) -> Task | None:
        """The controlled thread that asks; None for all others."""
        ...

    def step(
        self,
        me: Task,
        obj: object,
        what: str,
        *,
        write: bool = True,
        gate: Gate | None = None,
        timeout: float | None = None,
        site: int = -1,
    ) -> bool:
        """Announce a synchronisation, and return when it is its turn and `gate` is open.

        Returns:
            Whether the gate opened before `timeout` seconds of virtual time were over.
        """
        ...

    def glide(self, obj: object, what: str) -> Task | None:
        """Announce what a thread does that is quick, to a lock, if nobody need be asked.

        Returns:
            The thread that asks; None: `step` has to do it.
        """
        ...

    def changed(self) -> None:
        """Say that a gate may have opened or closed."""
        ...

    def start(self, me: Task, thread: threading.Thread) -> None:
        """Run a thread's `run()` under control."""
        ...

    def task_of(self, thread: threading.Thread) -> Task | None:
        """The task that runs, or ran, a thread object in this execution."""
        ...


class Repeated(Protocol):
    """What a thread repeats while nobody else does anything; the attributes are called."""

    enter: Callable[[Lock], bool]
    leave: Callable[[Lock], bool]


_conductor: Conductor | None = None
_repeated: Repeated | None = None


def divert(repeated: Repeated | None) -> None:
    """Ask `repeated` first, of `with` statements; None: nobody."""
    global _repeated  # noqa: PLW0603 - as the one conductor
    _repeated = repeated


def _me() -> tuple[Conductor, Task] | None:
    conductor = _conductor
    if conductor is None:
        return None
    me = conductor.me()
    return None if me is None else (conductor, me)


# --- places of calls from code without probes -----------------------------------------------------

_SELF = __file__
_THROUGH: Final = dict.fromkeys((threading.__file__, queue.__file__, _SELF, contextlib.__file__))
_sites: Final[dict[tuple[CodeType, int], int]] = {}


def skip_file(file: str) -> None:
    """Say that synchronisation in a source file is done on behalf of its caller."""
    _THROUGH[file] = None


def is_through(file: str) -> bool:
    """Whether synchronisation in a source file is done on behalf of its caller."""
    return file in _THROUGH


def caller_site(known: dict[Any, int] = _sites) -> int:
    """The site of the innermost call that is not within a primitive's own code.

    Args:
        known: the sites that were found before; threads that run at once have one each.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _THROUGH:
        frame = frame.f_back
    code = frame.f_code
    key = code, frame.f_lasti
    found = known.get(key)
    if found is None:
        found = known[key] = _sites.get(key, -1)
    if found < 0:
        line = frame.f_lineno or code.co_firstlineno
        SITES.append(
            Site(
                file=code.co_filename,
                line=line,
                function=code.co_qualname,
                ordinal=code.co_firstlineno - line - 1,  # no probe's: those count from 0
                kind="lock",
                text=linecache.getline(code.co_filename, line).strip(),
                name=None,
            )
        )
        found = known[key] = _sites[key] = len(SITES) - 1
    return found


# --- shadows of what is written in C --------------------------------------------------------------


class _Factory(type):
    """Makes the real thing in threads that are not controlled."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if cls in _REAL and _me() is None:
            return _REAL[cls](*args, **keywords)
        return super().__call__(*args, **keywords)

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or type(instance) is _REAL_TYPE.get(cls)


class Lock(metaclass=_Factory):
    """A `threading.Lock` under control; the real one that it wraps says whether it is locked."""

    __slots__ = ("__weakref__", "owner", "real", "site")

    def __init__(self) -> None:
        self._wrap(_allocate_lock())

    @classmethod
    def around(cls, real: Any) -> Any:
        """The shadow of a real one."""
        self = cls.__new__(cls)
        self._wrap(real)
        return self

    def _wrap(self, real: Any) -> None:
        self.real = real
        self.owner: Task | None = None
        self.site = -1

    __class__ = property(lambda _: LockType)  # for isinstance()

    def __repr__(self) -> str:
        return repr(self.real)

    def open(self, task: Task) -> bool:
        """As a gate: for who wants to acquire it."""
        return task.expired or not self.real.locked()

    def free(self, task: Task) -> bool:  # noqa: ARG002 - a reentrant one wants to know
        """Whether it could be taken now."""
        return not self.real.locked()

    def take(self, me: Task, count: int = 1) -> None:  # noqa: ARG002 - see above
        """Become locked; it is free."""
        self.real.acquire(False)
        self.belong_to(me)

    def let_go(self, me: Task) -> int:  # noqa: ARG002 - see above
        """Become free; returns what `take` wants to be as before."""
        self.real.release()
        self.belong_to(None)
        return 1

    def belong_to(self, me: Task | None) -> None:
        """Write down who has it; None: nobody."""
        if self.owner is not None:
            self.owner.held.remove(self)
        self.owner = me
        if me is not None:
            self.site = me.site
            me.held.append(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Like the real one's."""
        controlled = _me()
        if controlled is None or (timeout != -1 and (not blocking or timeout < 0)):
            return bool(self.real.acquire(blocking, timeout))
        conductor, me = controlled
        if not blocking:
            conductor.step(me, self, "acquire")
            if self.real.locked():
                return False
        else:
            within = None if timeout == -1 else timeout
            if not conductor.step(me, self, "acquire", gate=self, timeout=within):
                return False
        self.take(me)
        conductor.changed()
        return True

    def release(self) -> None:
        """Like the real one's; quiet in a thread that is being unwound."""
        conductor = _conductor
        if conductor is not None and conductor.abandoned:
            if self.real.locked():  # else a thread is unwound that was waiting on a condition
                self.real.release()
            return
        me = None if conductor is None else conductor.me()
        if conductor is None or me is None:
            self.real.release()
            return
        conductor.step(me, self, "release", site=me.at if me.at >= 0 else self.site)
        self.let_go(me)
        conductor.changed()

    def locked(self) -> bool:
        """Like the real one's."""
        controlled = _me()
        if controlled is not None:
            controlled[0].step(controlled[1], self, "locked", write=False)
        return bool(self.real.locked())

    def __enter__(self) -> bool:
        repeated = _repeated
        if repeated is not None and repeated.enter(self):
            return True
        conductor = _conductor
        if conductor is not None and conductor.quick and self.real.acquire(False):
            me = conductor.glide(self, "acquire")
            if me is not None:
                self.belong_to(me)
                return True
            self.real.release()
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        repeated = _repeated
        if repeated is not None and repeated.leave(self):
            return
        conductor = _conductor
        if conductor is not None and conductor.quick and self.owner is conductor.task:
            conductor.task.site = self.site
            me = conductor.glide(self, "release")
            if me is not None:
                self.let_go(me)
                return
        self.release()

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked

    def _is_owned(self) -> bool:
        return bool(self.real.locked())

    def _at_fork_reinit(self) -> None:
        self.real._at_fork_reinit()
        self.owner = None


class RLock(metaclass=_Factory):
    """A `threading.RLock` under control; taking it again, or not the last release, is no event."""

    __slots__ = ("__weakref__", "count", "owner", "real", "site")

    def __init__(self) -> None:
        self._wrap(RLockType())

    @classmethod
    def around(cls, real: Any) -> Any:
        """The shadow of a real one."""
        self = cls.__new__(cls)
        self._wrap(real)
        return self

    def _wrap(self, real: Any) -> None:
        self.real = real
        self.owner: Task | None = None
        self.count = 0
        self.site = -1

    __class__ = property(lambda _: RLockType)  # for isinstance()

    def __repr__(self) -> str:
        return repr(self.real)

    def open(self, task: Task) -> bool:
        """As a gate: for who wants to acquire it."""
        return task.expired or self.owner is None

    def free(self, task: Task) -> bool:  # noqa: ARG002 - as for a lock
        """Whether it could be taken now."""
        return self.owner is None

    def take(self, me: Task, count: int = 1) -> None:
        """Become locked; it is free."""
        for _ in range(count):
            self.real.acquire(False)
        self.owner = me
        self.count = count
        self.site = me.site
        me.held.append(self)

    def let_go(self, me: Task) -> int:
        """Become free; returns what `take` wants to be as before."""
        count, self.count = self.count, 0
        for _ in range(count):
            self.real.release()
        self.owner = None
        me.held.remove(self)
        return count

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Like the real one's."""
        controlled = _me()
        if controlled is None or (timeout != -1 and (not blocking or timeout < 0)):
            return bool(self.real.acquire(blocking, timeout))
        conductor, me = controlled
        if self.owner is me:
            me.at = -1
            self.count += 1
            return bool(self.real.acquire(False))
        if not blocking:
            conductor.step(me, self, "acquire")
            if self.owner is not None:
                return False
        else:
            within = None if timeout == -1 else timeout
            if not conductor.step(me, self, "acquire", gate=self, timeout=within):
                return False
        self.take(me)
        conductor.changed()
        return True

    def release(self) -> None:
        """Like the real one's; quiet in a thread that is being unwound."""
        conductor = _conductor
        if conductor is not None and conductor.abandoned:
            if self.real._is_owned():
                self.real.release()
            return
        me = None if conductor is None else conductor.me()
        if conductor is None or me is None or self.owner is not me:
            self.real.release()  # an error, unless somebody else than the run took it
        elif self.count > 1:
            me.at = -1
            self.count -= 1
            self.real.release()
        else:
            conductor.step(me, self, "release", site=me.at if me.at >= 0 else self.site)
            self.let_go(me)
            conductor.changed()

    def locked(self) -> bool:
        """Like the real one's."""
        controlled = _me()
        if controlled is None:
            return bool(self.real.locked())
        controlled[0].step(controlled[1], self, "locked", write=False)
        return self.owner is not None

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return bool(self.real._is_owned())

    def _release_save(self) -> Any:
        self.owner = None
        self.count = 0
        return self.real._release_save()

    def _acquire_restore(self, state: Any) -> None:
        self.real._acquire_restore(state)

    def _recursion_count(self) -> int:
        return int(self.real._recursion_count())

    def _at_fork_reinit(self) -> None:
        self.real._at_fork_reinit()
        self.owner = None
        self.count = 0


class SimpleQueue(metaclass=_Factory):
    """A `queue.SimpleQueue` under control; what it holds is in the real one."""

    def __init__(self) -> None:
        self.real: Any = SimpleQueueType()

    @classmethod
    def around(cls, real: Any) -> Any:
        """The shadow of a real one."""
        self = cls.__new__(cls)
        self.real = real
        return self

    __class__ = property(lambda _: SimpleQueueType)
    __class_getitem__: Any = classmethod(GenericAlias)

    def open(self, task: Task) -> bool:
        """As a gate: for who wants to get from it."""
        return task.expired or not self.real.empty()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Like the real one's."""
        del block, timeout  # never waits
        controlled = _me()
        if controlled is None:
            self.real.put(item)
            return
        conductor, me = controlled
        conductor.step(me, self, "put")
        self.real.put(item)
        conductor.changed()

    def put_nowait(self, item: Any) -> None:
        """Like the real one's."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Like the real one's."""
        controlled = _me()
        if controlled is None or (block and timeout is not None and timeout < 0):
            return self.real.get(block, timeout)
        conductor, me = controlled
        if block:
            conductor.step(me, self, "get", gate=self, timeout=timeout)
        else:
            conductor.step(me, self, "get")
        item = self.real.get_nowait()
        conductor.changed()
        return item

    def get_nowait(self) -> Any:
        """Like the real one's."""
        return self.get(block=False)

    def _look(self, what: str) -> None:
        controlled = _me()
        if controlled is not None:
            controlled[0].step(controlled[1], self, what, write=False)

    def empty(self) -> bool:
        """Like the real one's."""
        self._look("empty")
        return bool(self.real.empty())

    def qsize(self) -> int:
        """Like the real one's."""
        self._look("qsize")
        return int(self.real.qsize())


_REAL: Final[dict[type, Callable[..., Any]]] = {
    Lock: _allocate_lock,
    RLock: RLockType,
    SimpleQueue: SimpleQueueType,
}
_REAL_TYPE: Final[dict[type, type]] = {
    Lock: LockType,
    RLock: RLockType,
    SimpleQueue: SimpleQueueType,
}
_SHADOW: Final[dict[type, Any]] = {real: shadow for shadow, real in _REAL_TYPE.items()}


def stand_in(obj: Any, name: str | None = None) -> Any:
    """What a controlled thread shall use instead of an object that is routed.

    Args:
        obj: a real lock or queue, or an object over real locks.
        name: the method that is about to be called on it; None for `with`.
    """
    kind = _SHADOW.get(type(obj))
    if kind is not None:
        conductor = _conductor
        if conductor is None:
            return obj
        shadow = conductor.shadows.get(id(obj))
        if shadow is None:
            shadow = conductor.shadows[id(obj)] = kind.around(obj)
        return shadow
    if name in {"acquire", "release"} and isinstance(obj, threading.Condition):
        return stand_in(obj._lock)  # type: ignore[attr-defined] # they are bound to the real one's
    return obj


# --- methods of what is written in Python ---------------------------------------------------------
# Each stands in for a method of the class that is named in `_METHODS`; `_real` has the originals.

_real: Final[dict[Callable[..., Any], Any]] = {}


class Waiter:
    """A controlled thread's entry among those who wait on a condition.

    `Condition.notify` releases it like the lock that it would be otherwise.
    """

    __slots__ = ("condition", "lock", "notified", "task")

    def __init__(self, condition: threading.Condition, lock: Lock | RLock, task: Task) -> None:
        self.condition = condition
        self.lock = lock
        self.task = task
        self.notified = False

    def open(self, task: Task) -> bool:
        """As a gate: for who waits."""
        return (self.notified or task.expired) and self.lock.free(task)

    def release(self) -> None:
        """Be notified."""
        self.notified = True
        self.task.deadline = None


def _condition_enter(self: Any) -> Any:
    lock = self._lock
    if type(lock) in _SHADOW and _me() is not None:
        lock = stand_in(lock)
    return lock.__enter__()


def _condition_exit(self: Any, *error: object) -> Any:
    lock = self._lock
    if type(lock) in _SHADOW and (conductor := _conductor) is not None:
        lock = conductor.shadows.get(id(lock), lock)
    return lock.__exit__(*error)


def _condition_wait(self: Any, timeout: float | None = None) -> bool:
    controlled = _me()
    lock: Any = None if controlled is None else stand_in(self._lock)
    if controlled is None or type(lock) not in {Lock, RLock}:
        return bool(_real[_condition_wait](self, timeout))
    if not self._is_owned():
        raise RuntimeError("cannot wait on un-acquired lock")
    conductor, me = controlled
    conductor.step(me, lock, "wait")
    waiter = Waiter(self, lock, me)
    self._waiters.append(waiter)
    count = lock.let_go(me)
    conductor.changed()
    notified = conductor.step(me, lock, "wake up", gate=waiter, timeout=timeout, site=me.site)
    lock.take(me, count)
    conductor.changed()
    if not notified:
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
    return notified


def _condition_notify(self: Any, n: int = 1) -> None:
    controlled = _me()
    if controlled is not None and self._is_owned():
        controlled[0].step(controlled[1], stand_in(self._lock), "notify")
    _real[_condition_notify](self, n)
    if controlled is not None:
        controlled[0].changed()


class _EventGate:
    __slots__ = ("event",)

    def __init__(self, event: Any) -> None:
        self.event = event

    def open(self, task: Task) -> bool:
        return self.event._flag or task.expired


def _event_wait(self: Any, timeout: float | None = None) -> bool:
    controlled = _me()
    if controlled is None:
        return bool(_real[_event_wait](self, timeout))
    conductor, me = controlled
    conductor.step(me, self, "wait", gate=_EventGate(self), timeout=timeout)
    return bool(self._flag)


def _event_set(self: Any) -> None:
    controlled = _me()
    if controlled is None:
        _real[_event_set](self)
        return
    conductor, me = controlled
    conductor.step(me, self, "set")
    self._flag = True
    _wake_others(self._cond, len(self._cond._waiters))
    conductor.changed()


def _event_clear(self: Any) -> None:
    controlled = _me()
    if controlled is None:
        _real[_event_clear](self)
        return
    controlled[0].step(controlled[1], self, "clear")
    self._flag = False
    controlled[0].changed()


def _event_is_set(self: Any) -> bool:
    controlled = _me()
    if controlled is not None:
        controlled[0].step(controlled[1], self, "is_set", write=False)
    return bool(self._flag)


def _wake_others(condition: Any, n: int) -> None:
    """Let threads go on that are not controlled and wait within an event or a semaphore."""
    waiters = condition._waiters
    while waiters and n:
        waiters.popleft().release()
        n -= 1


class _SemaphoreGate:
    __slots__ = ("semaphore",)

    def __init__(self, semaphore: Any) -> None:
        self.semaphore = semaphore

    def open(self, task: Task) -> bool:
        return self.semaphore._value > 0 or task.expired


def _semaphore_acquire(self: Any, blocking: bool = True, timeout: float | None = None) -> bool:
    controlled = _me()
    if controlled is None or (not blocking and timeout is not None):
        return bool(_real[_semaphore_acquire](self, blocking, timeout))
    conductor, me = controlled
    if blocking:
        conductor.step(me, self, "acquire", gate=_SemaphoreGate(self), timeout=timeout)
    else:
        conductor.step(me, self, "acquire")
    if self._value <= 0:
        return False
    self._value -= 1
    conductor.changed()
    return True


def _semaphore_release(self: Any, n: int = 1) -> None:
    controlled = _me()
    if controlled is None or n < 1:
        _real[_semaphore_release](self, n)
        return
    conductor, me = controlled
    conductor.step(me, self, "release")
    self._value += n
    _wake_others(self._cond, n)
    conductor.changed()


def _bounded_release(self: Any, n: int = 1) -> None:
    controlled = _me()
    if controlled is None or n < 1:
        _real[_bounded_release](self, n)
        return
    conductor, me = controlled
    conductor.step(me, self, "release")
    if self._value + n > self._initial_value:
        raise ValueError("Semaphore released too many times")
    self._value += n
    _wake_others(self._cond, n)
    conductor.changed()


def _thread_start(self: Any) -> None:
    controlled = _me()
    if controlled is None:
        _real[_thread_start](self)
        return
    if not self._initialized:
        raise RuntimeError("thread.__init__() not called")
    if self._started._flag:
        raise RuntimeError("threads can only be started once")
    controlled[0].start(controlled[1], self)


def _thread_join(self: Any, timeout: float | None = None) -> None:
    controlled = _me()
    task = None if controlled is None else controlled[0].task_of(self)
    if controlled is None or task is None:
        _real[_thread_join](self, timeout)
        return
    conductor, me = controlled
    if task is me:
        raise RuntimeError("cannot join current thread")
    within = None if timeout is None else max(timeout, 0)
    conductor.step(me, self, "join", gate=task, timeout=within)


def _thread_is_alive(self: Any) -> bool:
    controlled = _me()
    task = None if controlled is None else controlled[0].task_of(self)
    if controlled is None or task is None:
        return bool(_real[_thread_is_alive](self))
    controlled[0].step(controlled[1], self, "is_alive", write=False)
    return not task.ended


def _number(self: Any) -> int:
    """In place of an address: sets of threads and of futures have the same order in every run."""
    found = self.__dict__.get(_NUMBER)
    return object.__hash__(self) if found is None else found


def _numbered(real_init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(real_init)
    def init(self: Any, *args: Any, **keywords: Any) -> None:
        controlled = _me()
        if controlled is not None:
            controlled[0].made += 1
            self.__dict__[_NUMBER] = controlled[0].made
        real_init(self, *args, **keywords)

    return init


class _Unlocked:
    """As a gate: a lock that is looked through, not taken."""

    __slots__ = ("lock",)

    def __init__(self, lock: Lock | RLock) -> None:
        self.lock = lock

    def open(self, task: Task) -> bool:
        return self.lock.free(task)


def _look_at_queue(self: Any, what: str) -> bool:
    controlled = _me()
    lock: Any = None if controlled is None else stand_in(self.mutex)
    if controlled is None or type(lock) not in {Lock, RLock}:
        return False
    controlled[0].step(controlled[1], lock, what, write=False, gate=_Unlocked(lock))
    return True


def _queue_qsize(self: Any) -> int:
    looked = _look_at_queue(self, "qsize")
    return int(self._qsize() if looked else _real[_queue_qsize](self))


def _queue_empty(self: Any) -> bool:
    looked = _look_at_queue(self, "empty")
    return not self._qsize() if looked else bool(_real[_queue_empty](self))


def _queue_full(self: Any) -> bool:
    looked = _look_at_queue(self, "full")
    if looked:
        return bool(0 < self.maxsize <= self._qsize())
    return bool(_real[_queue_full](self))


_NUMBER: Final = "_freethread_number"
_METHODS: Final[tuple[tuple[type, str, Callable[..., Any]], ...]] = (
    (threading.Condition, "__enter__", _condition_enter),
    (threading.Condition, "__exit__", _condition_exit),
    (threading.Condition, "wait", _condition_wait),
    (threading.Condition, "notify", _condition_notify),
    (threading.Event, "wait", _event_wait),
    (threading.Event, "set", _event_set),
    (threading.Event, "clear", _event_clear),
    (threading.Event, "is_set", _event_is_set),
    (threading.Semaphore, "acquire", _semaphore_acquire),
    (threading.Semaphore, "__enter__", _semaphore_acquire),
    (threading.Semaphore, "release", _semaphore_release),
    (threading.BoundedSemaphore, "release", _bounded_release),
    (threading.Thread, "__init__", _numbered(threading.Thread.__init__)),
    (threading.Thread, "__hash__", _number),
    (threading.Thread, "start", _thread_start),
    (threading.Thread, "join", _thread_join),
    (threading.Thread, "is_alive", _thread_is_alive),
    (queue.Queue, "qsize", _queue_qsize),
    (queue.Queue, "empty", _queue_empty),
    (queue.Queue, "full", _queue_full),
)
_ROUTED: Final = (
    *(SimpleQueueType, Lock, RLock, SimpleQueue, threading.Condition, threading.Event),
    *(threading.Semaphore, threading.BoundedSemaphore, threading.Thread, queue.Queue),
)
"""What probes announce a call on: real things for their stand-ins, the others for the place."""


# --- the clock ------------------------------------------------------------------------------------


class _Clock:
    """Virtual time as an object that threads wait for."""

    def open(self, task: Task) -> bool:
        return task.expired


CLOCK: Final = _Clock()
_real_sleep: Final = time.sleep


def _sleep(seconds: float, /) -> None:
    controlled = _me()
    if controlled is None or seconds < 0:
        _real_sleep(seconds)
        return
    conductor, me = controlled
    if seconds == 0:
        conductor.step(me, CLOCK, "yield", write=False)
    else:
        conductor.step(me, CLOCK, "sleep", write=False, gate=CLOCK, timeout=seconds)


def _clock(real: Callable[[], Any], start: int, unit: int) -> Callable[[], Any]:
    def read() -> Any:
        controlled = _me()
        if controlled is None:
            return real()
        conductor, me = controlled
        me.glances += 1
        if me.glances > _PATIENT_GLANCES:
            conductor.step(me, CLOCK, "sleep", write=False, gate=CLOCK, timeout=_GLANCE)
        return start + conductor.now if unit == 1 else (start + conductor.now) / unit

    return read


def _seeded(real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def draw(*args: Any, **keywords: Any) -> Any:
        controlled = _me()
        if controlled is not None and not controlled[0].drawn:
            controlled[0].drawn = True
            _real_seed(controlled[0].seed)
        return real(*args, **keywords)

    return draw


_real_seed: Final = random.seed
_FUNCTIONS: Final[dict[int, Any]] = {
    id(value): _seeded(value)
    for value in vars(random).values()
    if getattr(value, "__self__", None) is random._inst
} | {
    id(_thread.allocate_lock): Lock,
    id(threading.Lock): Lock,
    id(_thread.RLock): RLock,
    id(threading.RLock): RLock,
    id(SimpleQueueType): SimpleQueue,
    id(time.sleep): _sleep,
    id(time.time): _clock(time.time, EPOCH, 10**9),
    id(time.time_ns): _clock(time.time_ns, EPOCH, 1),
    id(time.monotonic): _clock(time.monotonic, UPTIME, 10**9),
    id(time.monotonic_ns): _clock(time.monotonic_ns, UPTIME, 1),
    id(time.perf_counter): _clock(time.perf_counter, UPTIME, 10**9),
    id(time.perf_counter_ns): _clock(time.perf_counter_ns, UPTIME, 1),
}
"""By the identity of what a module may have imported, what it finds there during a run."""


# --- putting it all in and taking it out ----------------------------------------------------------


class _Nobody(set[Any]):
    def add(self, thread: Any) -> None:
        """Forget it at once."""


class Shadows:
    """All of the above in place, from `install` to `restore`."""

    def __init__(self) -> None:
        self._patches = Patches()

    def install(self, conductor: Conductor, modules: Iterable[ModuleType] = ()) -> None:
        """Have `conductor` asked by all threads; at most one at a time.

        Args:
            conductor: who decides.
            modules: whose functions may have got hold of a clock or a lock's type as a default.
        """
        global _conductor  # noqa: PLW0603 - there is one for the process
        insist_on_being_alone()
        _conductor = conductor
        for owner, name, method in _METHODS:
            self._patch(owner, name, method)
        patches = self._patches
        patches.everywhere(_FUNCTIONS)
        for module in modules:
            for function in _functions(module):
                patches.defaults(function, _FUNCTIONS)
        # Who is alive is known here; that list would only be a place where all threads meet.
        patches.name(vars(threading), "_dangling", _Nobody())
        executors = sys.modules.get("concurrent.futures.thread")
        if executors is not None:
            patches.name(vars(executors), "_threads_queues", {})
            # Held around operations of ours, in code without probes.
            real = executors._global_shutdown_lock
            patches.name(vars(executors), "_global_shutdown_lock", Lock.around(real))
            base = sys.modules["concurrent.futures._base"]
            self._patch(base.Future, "__init__", _numbered(base.Future.__init__))
            self._patch(base.Future, "__hash__", _number)
            patches.name(vars(base), "id", _number)  # by which futures are sorted
            skip_file(str(executors.__file__))
            skip_file(str(base.__file__))
        probes.route(*_ROUTED)

    def _patch(self, owner: type, name: str, method: Callable[..., Any]) -> None:
        _real[method] = self._patches.method(owner, name, method)

    def restore(self) -> None:
        """Put everything back, but what somebody else has changed meanwhile."""
        global _conductor  # noqa: PLW0603 - see above
        self._patches.restore()
        _conductor = None


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """The functions that a module defines, and those of its classes."""
    for value in list(namespace_of(module).values()):
        if type(value) is FunctionType:
            yield value
        elif issubclass(type(value), type) and value.__module__ == module.__name__:
            for attribute in list(vars(value).values()):
                wrapped = type(attribute) in {staticmethod, classmethod}
                function = attribute.__func__ if wrapped else attribute
                if type(function) is FunctionType:  # asking an object itself may run its code
                    yield function


def insist_on_being_alone() -> None:
    """Raise `RuntimeError` if a conductor is in place."""
    if _conductor is not None:
        raise RuntimeError("a controlled run is under way already, and there can be one only")


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Within, the calling thread is not controlled (nor is any other: one alone runs anyway)."""
    global _conductor  # noqa: PLW0603 - see above
    conductor, _conductor = _conductor, None
    try:
        yield
    finally:
        _conductor = conductor
