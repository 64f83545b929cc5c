"""The order that a program's synchronisation puts its steps in: what each kind of step means.

Time is the number of the event, so there is no clock to tick: that a thread knows event e of
another one is `e <= known[other]`. A thread's `known` is replaced and never changed, and whoever
releases leaves the list itself behind: O(1), but when something really is learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

ACQUIRE: Final = 1
RELEASE: Final = 2
TAKE: Final = 4
DROP: Final = 8
BRIEFLY: Final = 16
"""With `TAKE`: the thread would not have waited for the lock for ever."""
NOTIFY: Final = 32
"""A thread notifies those who wait on a condition with this lock, or was notified."""
NOTHING: Final = 0

LOCK_EFFECTS: Final[Mapping[str, int]] = {
    "acquire": ACQUIRE | RELEASE | TAKE,
    "try": ACQUIRE | RELEASE | TAKE | BRIEFLY,
    "release": ACQUIRE | RELEASE | DROP,
    "wait": ACQUIRE | RELEASE | DROP,
    "wake up": ACQUIRE | RELEASE | TAKE | NOTIFY,
    "notify": NOTIFY,
    "locked": ACQUIRE,
    "qsize": ACQUIRE,
    "empty": ACQUIRE,
    "full": ACQUIRE,
}
"""What a step does whose object is a `Lock` or `RLock`; those of a `Condition` are among them.

Each synchronising object is an atomic variable. What looks at it, acquires (the knowledge of
whoever changed it last); what sets it without a look, releases; what changes it, does both. To take
a lock is a change: who tries and fails is ordered after whoever holds it. An attempt that failed is
itself a mere `ACQUIRE`, and takes nothing.
"""

EFFECTS: Final[Mapping[str, int]] = {
    # Semaphore; a failed attempt is an ACQUIRE
    "acquire": ACQUIRE | RELEASE,
    "release": ACQUIRE | RELEASE,
    # Event
    "set": RELEASE,
    "clear": RELEASE,
    "wait": ACQUIRE,
    "is_set": ACQUIRE,
    # SimpleQueue; a failed attempt is an ACQUIRE
    "put": ACQUIRE | RELEASE,
    "get": ACQUIRE | RELEASE,
    "empty": ACQUIRE,
    "qsize": ACQUIRE,
    # Thread; besides, `fork` says that it starts
    "start": RELEASE,
    "end": RELEASE,
    "join": ACQUIRE,
    "is_alive": ACQUIRE,
    # a lock inside of an event, a queue or the like, where real threads are recorded
    "try": ACQUIRE | RELEASE,
    "locked": ACQUIRE,
    "full": ACQUIRE,
    # the clock: to wait for time to pass orders nothing
    "sleep": NOTHING,
    "yield": NOTHING,
}
"""What a step does whose object is no lock.

`Barrier`, `Timer`, the `Queue` family (`task_done` and `join` too), futures and executors are
Python code on top of these: their ordering comes with the steps of the locks, conditions and
threads within. An `Event` is set blindly: two who set it are not ordered, and who waits is ordered
after the last of them.
"""


_ALWAYS: Final = 1 << 62


class Order:
    """Listens to the synchronisation of one execution. Threads, objects, sites are numbers.

    Every step that a scheduler could have chosen has to be told, also one that means nothing
    (`synchronise` with `NOTHING`): what a thread was about to do is derived from its step before.

    Args:
        threads: how many there are from the beginning; none of them knows anything of the others.

    Attributes:
        now: the number of the last event.
        held: by thread, the locks that it holds, in the order in which it took them, each with the
            site where that was.
        known: by thread, the last event of each thread that it comes after.
    """

    def __init__(self, threads: int) -> None:
        self.now = 0
        self.held: list[tuple[tuple[int, int], ...]] = [()] * threads
        self.known = [[0] * threads for _ in range(threads)]
        for thread, known in enumerate(self.known):
            known[thread] = _ALWAYS
        self._last = [0] * threads
        self._changed: dict[int, tuple[int, int, list[int]]] = {}

    def synchronise(self, thread: int, obj: int, effect: int, site: int = -1) -> None:
        """A step that is no access.

        Args:
            thread: who makes it.
            obj: the synchronising object.
            effect: of `LOCK_EFFECTS` or `EFFECTS`.
            site: where; it is kept with a lock that is taken.
        """
        now = self.now = self.now + 1
        self._last[thread] = now
        if effect & ACQUIRE:
            changed = self._changed.get(obj)
            if changed is not None and changed[0] > self.known[thread][changed[1]]:
                self.learn(thread, *changed)
        if effect & RELEASE:
            self._changed[obj] = now, thread, self.known[thread]
        if effect & (TAKE | DROP):
            if effect & TAKE:
                self.held[thread] += ((obj, site),)
            else:
                self._drop(thread, obj)

    def _drop(self, thread: int, lock: int) -> None:
        """Let go of a lock; it may be another thread that took it."""
        for holder in (thread, *range(len(self.held))):
            held = self.held[holder]
            for index in range(len(held) - 1, -1, -1):
                if held[index][0] == lock:
                    self.held[holder] = held[:index] + held[index + 1 :]
                    return

    def access(  # noqa: PLR0917 - by position, for speed
        self, thread: int, obj: int, key: Hashable, how: int, site: int, stack: object = None
    ) -> Sequence[Any]:
        """A step that is an access: it puts nobody after anybody, as far as this goes.

        Returns:
            What a judge finds in it.
        """
        del obj, key, how, site, stack
        self.now += 1
        self._last[thread] = self.now
        return ()

    def fork(self, parent: int, child: int) -> None:
        """A thread starts, and knows what its parent knows; it may be a new one."""
        now = self.now = self.now + 1
        self._last[parent] = now
        more = child + 1 - len(self.known)
        if more > 0:
            self._last += [0] * more
            self.held += [()] * more
            for each in self.known:
                each.extend([0] * more)  # what is not known yet is no change
            self.known += [[0] * (child + 1) for _ in range(more)]
        self._last[child] = now
        self.learn(child, now, parent, self.known[parent])

    def join(self, waiting: int, ended: int) -> None:
        """A thread goes on that has waited for the end of another one."""
        now = self.now = self.now + 1
        self._last[waiting] = now
        self.learn(waiting, now, ended, self.known[ended])

    def learn(self, thread: int, event: int, other: int, known: list[int]) -> None:
        """From now on a thread knows what another one knew at an event of its own."""
        mine = self.known[thread]
        both = [a if a > b else b for a, b in zip(mine, known, strict=False)]  # noqa: FURB136 - faster
        both += mine[len(both) :]  # threads that started since
        both[other] = event
        both[thread] = _ALWAYS
        self.known[thread] = both

    def forget(self, obj: int) -> None:
        """An object is gone; its number may be given to another one."""
        self._changed.pop(obj, None)
