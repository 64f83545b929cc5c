"""A round of a free run as the judges of orders hear it: accesses, and what puts them in order.

Threads run at once, and each writes down what it does, in one list: to append is atomic, on every
build. An access is written down before it is made, an acquisition after, a release before. So of
two accesses that a lock, a queue or the start of a thread put in order, the first one comes first,
with what put them in order between them. (In which order two others come may differ by a hair from
the one in which they were made.)

The list is bounded: whoever finds it long has the judges hear it, while others wait. What is kept
for the whole round belongs to an object or to a place, nothing to an access.
"""

from __future__ import annotations

import _thread
import itertools
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread import interpreter
from pytest_freethread.execution.values import PLAIN, addition, comparable, described
from pytest_freethread.instrument import recording
from pytest_freethread.instrument.effects import ITEM_ADD, OP_NAMES, ROUTE
from pytest_freethread.instrument.probes import SITES
from pytest_freethread.instrument.shadows import caller_site, skip_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_freethread.records import Event

_MOST_EVENTS: Final = 50_000
"""What is kept until the judges hear it."""

_MOST_OBJECTS: Final = 100_000
"""Objects that cannot be referred to weakly, and are kept so that no other is taken for them."""

_MOST_THREADS: Final = 256
"""What is known of threads takes the square of their number."""

_NO_OBJECT: Final = -1
skip_file(__file__)
_get_ident: Final = interpreter.get_ident


class _Thread:
    """What a thread has of its own: its index, and the site that a probe announced last.

    Also what it knows already of objects and sites. On a free-threaded 3.13, threads that look
    into one dict at once wait for each other, unless all its keys are strings.
    """

    __slots__ = ("at", "calls", "index", "numbers", "sites")

    def __init__(self, index: int) -> None:
        self.index = index
        self.at = -1
        self.numbers: dict[int, int] = {}
        self.sites: set[int] = set()
        self.calls: dict[object, int] = {}


class Recorder:
    """The probes' sink in one round, and whom the stand-ins of `recording` tell.

    Args:
        hear: given the events, part by part, in their order, by one thread at a time.

    Attributes:
        samples: by site, the first access there: operation, owner and key, as a reader says it.
        names: of the threads, by their index; bodies first, then the thread that runs the rounds.
        births: by index of a thread that the code under test started: who did, and where.
        counted: how many events there were.
        cut: why not all of the round was recorded; None if it was.
    """

    def __init__(self, hear: Callable[[list[Event]], object]) -> None:
        self.samples: dict[int, tuple[str, str, str | None]] = {}
        self.names: list[str] = []
        self.births: dict[int, tuple[int, int]] = {}
        self.counted = 0
        self.cut: str | None = None
        self._hear = hear
        self._events: list[Event] = []
        self._log: Callable[[Event], None] | None = None
        self._mine: Any = _thread._local()  # noqa: SLF001 - the real one, whoever patches it
        # Reentrant, all of them: a finalizer may come between at any moment.
        self._guard = _thread.RLock()
        self._judging = interpreter.Lock()
        self._judge = 0
        self._threads: list[threading.Thread] = []
        self._numbers: dict[int, int] = {}
        self._known: dict[int, dict[int, int]] = {}  # those of all threads
        self._number = itertools.count(1)
        self._kept: dict[int, Any] = {}

    # --- by the thread that runs the rounds -------------------------------------------------------

    def begin(self, threads: Sequence[threading.Thread]) -> None:
        """Record from now on; `threads` will run the bodies."""
        for index, thread in enumerate(threads):
            self._threads.append(thread)
            self.names.append(f"thread {index}")
        main = len(threads)
        self._threads.append(threading.current_thread())
        self.names.append("the main thread")
        self._mine.thread = _Thread(main)
        for index in range(main):
            self._events.append((main, index, None, "fork", -1))
        self._log = self._events.append

    def end(self) -> None:
        """Record no longer, and have the rest heard."""
        self._log = None
        with self._judging:
            self._tell()
        self._numbers, self._known, self._kept, self._threads = {}, {}, {}, []

    # --- by all others ----------------------------------------------------------------------------

    def access(self, obj: Any, key: Any, op: int, site: int, /) -> Any:
        """See `probes.Sink`."""
        log = self._log
        if log is None:
            return obj
        try:
            me = self._mine.thread
        except AttributeError:
            me = self._arrive()
        if op == ROUTE:
            me.at = site if key in {None, "acquire"} else -1
            return recording.stand_in(obj, key)
        if op > 1 and type(key) not in PLAIN:
            key = comparable(key)
        if op == ITEM_ADD:
            op = addition(obj, key)
        if site not in me.sites:
            me.sites.add(site)
            self.samples[site] = described(obj, key, OP_NAMES[op], SITES[site].name)
        number = me.numbers.get(id(obj)) or self._numbered(obj, me)
        log((me.index, number, key, op, site))
        if len(self._events) >= _MOST_EVENTS:
            self._drain()
        return obj

    def synchronised(self, obj: object, what: str, *, lock: bool) -> None:
        """See `recording.Recorder`."""
        log = self._log
        if log is None:
            return
        try:
            me = self._mine.thread
        except AttributeError:
            me = self._arrive()
        site = -1
        if what in {"acquire", "try"}:
            site = me.at if me.at >= 0 else caller_site(me.calls)
            me.at = -1
        number = me.numbers.get(id(obj)) or self._numbered(obj, me)
        log((me.index, number, lock, what, site))
        if len(self._events) >= _MOST_EVENTS:
            self._drain()

    def failed(self) -> None:
        """See `recording.Recorder`: it comes after all that anybody has done so far."""
        log = self._log
        if log is not None:
            me = self._me()
            for other in range(len(self._threads)):
                if other != me.index:
                    log((me.index, other, None, "joined", -1))

    def forked(self, thread: threading.Thread) -> None:
        """See `recording.Recorder`."""
        if self._log is not None:
            me, site = self._me(), caller_site()
            index = self._add(thread, me.index)
            self.births[index] = me.index, site

    def joined(self, thread: threading.Thread) -> None:
        """See `recording.Recorder`."""
        log = self._log
        if log is not None:
            for index, each in enumerate(self._threads):
                if each is thread:
                    log((self._me().index, index, None, "joined", -1))

    def _me(self) -> _Thread:
        try:
            me: _Thread = self._mine.thread
        except AttributeError:
            return self._arrive()
        return me

    def _arrive(self) -> _Thread:
        """The calling thread does something for the first time."""
        ident = _get_ident()
        threads = list(enumerate(self._threads))
        # An ident is given again: the youngest one has it.
        index = next((i for i, thread in reversed(threads) if thread.ident == ident), None)
        if index is not None:
            me = self._mine.thread = _Thread(index)
            return me
        # It was there before, or started by something unknown: it comes after all that was so far.
        index = self._add(threading.current_thread(), 0)
        me = self._mine.thread = _Thread(index)
        self.failed()
        return me

    def _add(self, thread: threading.Thread, parent: int) -> int:
        with self._guard:
            index = len(self._threads)
            self._threads.append(thread)
            self.names.append(thread.name)
            self._events.append((parent, index, None, "fork", -1))
        if index >= _MOST_THREADS:
            self._stop(f"it started more than {_MOST_THREADS} threads")
        return index

    def _numbered(self, obj: Any, me: _Thread) -> int:
        """The number of an object that a thread meets for the first time."""
        identity, numbers, kept = id(obj), self._numbers, self._kept
        with self._guard:
            known = me.numbers
            self._known[id(known)] = known
            if identity in numbers:
                known[identity] = numbers[identity]
                return numbers[identity]
            number = next(self._number)
            if isinstance(obj, threading.local):  # every thread has its own
                number = _NO_OBJECT
            log = self._events.append

            everybody = self._known

            def end(_: object) -> None:
                numbers.pop(identity, None)
                for each in list(everybody.values()):
                    each.pop(identity, None)
                kept.pop(identity, None)
                log((0, number, None, "gone", -1))

            try:
                kept[identity] = weakref.ref(obj, end)
            except TypeError:
                kept[identity] = obj
            numbers[identity] = known[identity] = number
        if len(kept) > _MOST_OBJECTS:
            self._stop(f"it touched more than {_MOST_OBJECTS:,} objects")
        return number

    def _stop(self, why: str) -> None:
        self._log = None
        self.cut = why

    def _drain(self) -> None:
        """Have the judges hear what there is; others who come here wait, so that it stays short."""
        if self._judge == _get_ident():
            return  # a finalizer, while they hear
        with self._judging:
            self._judge = _get_ident()
            try:
                if len(self._events) >= _MOST_EVENTS:
                    self._tell()
            finally:
                self._judge = 0

    def _tell(self) -> None:
        count = len(self._events)
        heard = self._events[:count]
        del self._events[:count]  # the rest came meanwhile
        self.counted += count
        self._hear(heard)
