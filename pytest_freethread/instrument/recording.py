# ruff: noqa: SLF001 - it stands in for `threading`'s classes, and what they ask is private
"""Synchronisation of real threads, written down as it happens; nobody waits for anybody else.

An acquisition is told after it was made, a release before it is: so what is told in between is told
in an order that the lock has made. The stand-ins of locks and `SimpleQueue`s do what the real ones
do that they wrap. Everything in the library that is Python code over them (`Condition`, `Event`,
`Semaphore`, `Barrier`, the `Queue` family, futures, executors) is put in order by the locks inside;
methods are patched only where such an object holds real locks since it was made before, and where
no lock is involved: when threads start and end, and when an event is looked at.
"""

from __future__ import annotations

import _thread
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_freethread.instrument import probes
from pytest_freethread.instrument.patching import Patches, is_ours
from pytest_freethread.instrument.shadows import (
    LockType,
    RLockType,
    SimpleQueueType,
    insist_on_being_alone,
    is_through,
    skip_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Recorder(Protocol):
    """Who is told; called by whichever thread it is that synchronises."""

    def synchronised(self, obj: object, what: str, *, lock: bool) -> None:
        """Something was done to a lock or another object: as the judges of `order` name it."""

    def failed(self) -> None:
        """An attempt was in vain; somebody has done what forbids it, but who is not known."""

    def forked(self, thread: threading.Thread) -> None:
        """A thread is about to be started."""

    def joined(self, thread: threading.Thread) -> None:
        """A thread is known to have ended."""


_recorder: Recorder | None = None
_stand_ins: Final[dict[int, Any]] = {}
"""By the identity of a real lock or queue: what stands in for it, which keeps it alive."""

_allocate_lock: Final = _thread.allocate_lock
skip_file(__file__)


class _StandIn(type):
    """Counts instances of the real type as its own."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or type(instance) is _REAL.get(cls)


def _is_seen() -> bool:
    """Whether the lock that is made, or gets its stand-in, is one that users know as a lock."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and (
        is_ours(frame.f_globals.get("__name__", "")) or frame.f_code.co_qualname in _OF_CONDITIONS
    ):
        frame = frame.f_back
    return frame is None or not is_through(frame.f_code.co_filename)


def _how(blocking: bool, timeout: float) -> str:
    return "acquire" if blocking and timeout == -1 else "try"


class Lock(metaclass=_StandIn):
    """A `threading.Lock` that tells who takes it.

    Attributes:
        real: the lock itself.
        seen: whether users know it as a lock: it is no part of an event, a queue or the like.
    """

    __slots__ = ("__weakref__", "real", "seen")

    def __init__(self) -> None:
        self.real: Any = _allocate_lock()
        self.seen = _is_seen()

    __class__ = property(lambda _: LockType)  # for isinstance()

    def __repr__(self) -> str:
        return repr(self.real)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Like the real one's."""
        taken: bool = self.real.acquire(blocking, timeout)
        recorder = _recorder
        if recorder is not None:
            if taken:
                recorder.synchronised(self, _how(blocking, timeout), lock=self.seen)
            else:
                recorder.failed()
        return taken

    __enter__ = acquire

    def release(self) -> None:
        """Like the real one's."""
        recorder = _recorder
        if recorder is not None:
            recorder.synchronised(self, "release", lock=self.seen)
        self.real.release()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        """Like the real one's."""
        locked: bool = self.real.locked()
        recorder = _recorder
        if recorder is not None:
            if locked:
                recorder.failed()
            else:
                recorder.synchronised(self, "locked", lock=self.seen)
        return locked

    def let_go(self) -> int:
        """The real one is about to be released; returns what `taken_again` wants."""
        if _recorder is not None:
            _recorder.synchronised(self, "release", lock=self.seen)
        return 1

    def taken_again(self, count: int) -> None:  # noqa: ARG002 - a reentrant one wants to know
        """The real one was acquired again."""
        if _recorder is not None:
            _recorder.synchronised(self, "acquire", lock=self.seen)

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked

    def _is_owned(self) -> bool:
        return bool(self.real.locked())

    def _at_fork_reinit(self) -> None:
        self.real._at_fork_reinit()


class RLock(metaclass=_StandIn):
    """A `threading.RLock`, likewise; taking it again, or not the last release, is no event."""

    __slots__ = ("__weakref__", "count", "real", "seen")

    def __init__(self) -> None:
        self.real: Any = RLockType()
        self.count = 0
        self.seen = _is_seen()

    __class__ = property(lambda _: RLockType)  # for isinstance()

    def __repr__(self) -> str:
        return repr(self.real)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Like the real one's."""
        taken: bool = self.real.acquire(blocking, timeout)
        recorder = _recorder
        if taken:
            self.count += 1
            if recorder is not None and self.count == 1:
                recorder.synchronised(self, _how(blocking, timeout), lock=self.seen)
        elif recorder is not None:
            recorder.failed()
        return taken

    __enter__ = acquire

    def release(self) -> None:
        """Like the real one's."""
        if self.real._is_owned():
            self.count = max(self.count - 1, 0)  # it may have been taken before it had a stand-in
            recorder = _recorder
            if recorder is not None and self.count == 0:
                recorder.synchronised(self, "release", lock=self.seen)
        self.real.release()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        """Like the real one's."""
        locked: bool = self.real.locked()
        if _recorder is not None and locked:
            _recorder.failed()
        return locked

    def _is_owned(self) -> bool:
        return bool(self.real._is_owned())

    def let_go(self) -> int:
        """See `Lock.let_go`."""
        count, self.count = self.count, 0
        if _recorder is not None:
            _recorder.synchronised(self, "release", lock=self.seen)
        return count

    def taken_again(self, count: int) -> None:
        """See `Lock.taken_again`."""
        self.count = count
        if _recorder is not None:
            _recorder.synchronised(self, "acquire", lock=self.seen)

    def _release_save(self) -> Any:
        return self.let_go(), self.real._release_save()

    def _acquire_restore(self, state: Any) -> None:
        count, state = state
        self.real._acquire_restore(state)
        self.taken_again(count)

    def _recursion_count(self) -> int:
        return int(self.real._recursion_count())

    def _at_fork_reinit(self) -> None:
        self.real._at_fork_reinit()
        self.count = 0


class SimpleQueue(metaclass=_StandIn):
    """A `queue.SimpleQueue` that tells who puts and who gets."""

    def __init__(self) -> None:
        self.real: Any = SimpleQueueType()

    __class__ = property(lambda _: SimpleQueueType)  # for isinstance()
    __class_getitem__: Any = SimpleQueueType.__class_getitem__

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Like the real one's."""
        self._tell("put")
        self.real.put(item, block, timeout)

    def put_nowait(self, item: Any) -> None:
        """Like the real one's."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Like the real one's."""
        item = self.real.get(block, timeout)
        self._tell("get")
        return item

    def get_nowait(self) -> Any:
        """Like the real one's."""
        return self.get(block=False)

    def empty(self) -> bool:
        """Like the real one's."""
        empty: bool = self.real.empty()
        self._tell("empty")
        return empty

    def qsize(self) -> int:
        """Like the real one's."""
        size: int = self.real.qsize()
        self._tell("qsize")
        return size

    def _tell(self, what: str) -> None:
        if _recorder is not None:
            _recorder.synchronised(self, what, lock=False)


_REAL: Final[dict[type, type]] = {
    Lock: LockType,
    RLock: RLockType,
    SimpleQueue: SimpleQueueType,
}
_STAND_INS: Final[dict[type, Any]] = {real: kind for kind, real in _REAL.items()}
_FACTORIES: Final[dict[int, Any]] = {
    id(_thread.allocate_lock): Lock,
    id(threading.Lock): Lock,
    id(_thread.RLock): RLock,
    id(threading.RLock): RLock,
    id(SimpleQueueType): SimpleQueue,
}
"""By the identity of what a module may have imported, what it finds there during a recording."""

_OF_CONDITIONS: Final = frozenset({"Condition.__init__", "Condition.__enter__"})
"""What makes and takes a condition's lock, which users know if they know the condition."""

_INTERNAL: Final = ("_allocate_lock", "_CRLock")
"""Names in `threading` that its own code uses, for what is none of anybody else's business."""


def stand_in(obj: Any, name: str | None = None) -> Any:
    """What a recorded thread shall use instead of an object that is routed.

    Args:
        obj: a real lock or queue, or an object over real locks.
        name: the method that is about to be called on it; None for `with`.
    """
    real = type(obj)
    if real is Lock or real is RLock or _recorder is None:
        return obj
    kind = _STAND_INS.get(real)
    if kind is not None:
        found = _stand_ins.get(id(obj))
        if found is None:
            made = kind()
            made.real = obj
            found = _stand_ins.setdefault(id(obj), made)
        return found
    if name in {"acquire", "release"} and isinstance(obj, threading.Condition):
        return stand_in(obj._lock)  # type: ignore[attr-defined] # they are bound to the real one's
    return obj


# --- methods --------------------------------------------------------------------------------------
# Each stands in for a method of the class that is named in `_METHODS`; `_real` has the originals.

_real: Final[dict[Callable[..., Any], Any]] = {}


def _condition_enter(self: Any) -> Any:
    return stand_in(self._lock).__enter__()


def _condition_exit(self: Any, *error: object) -> Any:
    return stand_in(self._lock).__exit__(*error)


def _condition_wait(self: Any, timeout: float | None = None) -> bool:
    lock = stand_in(self._lock)
    if lock is self._lock or not self._is_owned():
        return bool(_real[_condition_wait](self, timeout))
    count = lock.let_go()
    try:
        return bool(_real[_condition_wait](self, timeout))
    finally:
        lock.taken_again(count)


def _event_is_set(self: Any) -> bool:
    found = bool(_real[_event_is_set](self))
    if found and _recorder is not None:
        _recorder.synchronised(stand_in(self._cond._lock), "locked", lock=False)
    return found


def _thread_start(self: Any) -> None:
    if _recorder is not None and not self._started.is_set():
        _recorder.forked(self)
    _real[_thread_start](self)


def _thread_join(self: Any, timeout: float | None = None) -> None:
    _real[_thread_join](self, timeout)
    self.is_alive()


def _thread_is_alive(self: Any) -> bool:
    alive = bool(_real[_thread_is_alive](self))
    if not alive and _recorder is not None:
        _recorder.joined(self)
    return alive


def _looked_at(what: str) -> Callable[..., Any]:
    """A look at how much there is in a queue, which may hold a real lock."""

    def look(self: Any) -> Any:
        seen = _real[look](self)
        if _recorder is not None:
            _recorder.synchronised(stand_in(self.mutex), what, lock=False)
        return seen

    return look


def _work_made(self: Any, *args: Any, **keywords: Any) -> None:
    _real[_work_made](self, *args, **keywords)
    if _recorder is not None:
        _recorder.synchronised(self, "put", lock=False)


def _work_run(self: Any, *args: Any, **keywords: Any) -> Any:
    if _recorder is not None:
        _recorder.synchronised(self, "get", lock=False)
    return _real[_work_run](self, *args, **keywords)


_METHODS: Final[tuple[tuple[type, str, Callable[..., Any]], ...]] = (
    (threading.Condition, "__enter__", _condition_enter),
    (threading.Condition, "__exit__", _condition_exit),
    (threading.Condition, "wait", _condition_wait),
    (threading.Event, "is_set", _event_is_set),
    (threading.Thread, "start", _thread_start),
    (threading.Thread, "join", _thread_join),
    (threading.Thread, "is_alive", _thread_is_alive),
    (queue.Queue, "qsize", _looked_at("qsize")),
    (queue.Queue, "empty", _looked_at("empty")),
    (queue.Queue, "full", _looked_at("full")),
)


class Recording:
    """All of the above in place, from `install` to `restore`."""

    def __init__(self) -> None:
        self._patches = Patches()

    def install(self, recorder: Recorder) -> None:
        """Have `recorder` told by all threads; at most one at a time."""
        global _recorder  # noqa: PLW0603 - there is one for the process
        insist_on_being_alone()
        for owner, name, method in _METHODS:
            _real[method] = self._patches.method(owner, name, method)
        executors = sys.modules.get("concurrent.futures.thread")
        if executors is not None:  # one that was made before has a real queue, in code of its own
            item = executors._WorkItem
            _real[_work_made] = self._patches.method(item, "__init__", _work_made)
            _real[_work_run] = self._patches.method(item, "run", _work_run)
            skip_file(str(executors.__file__))
            skip_file(str(sys.modules["concurrent.futures._base"].__file__))
        internal = {name: vars(threading)[name] for name in _INTERNAL}
        self._patches.everywhere(_FACTORIES)
        for name, value in internal.items():
            self._patches.name(vars(threading), name, value)
        probes.route(SimpleQueueType, threading.Condition, *_REAL)
        _recorder = recorder

    def restore(self) -> None:
        """Put everything back. What was made meanwhile goes on as a real object would."""
        global _recorder  # noqa: PLW0603 - see above
        _recorder = None
        self._patches.restore()
        _stand_ins.clear()
