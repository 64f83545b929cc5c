"""One schedule on real threads, one thread at a time, each step where a chooser says.

A thread announces what it will do (`Pending`) and then asks who goes on; it is handed its own baton
again when its turn has come. So between two announcements exactly one thread runs, and whatever it
does there is local: the choices determine the execution.

The driving thread is a logical thread too: it runs `setup` and `invariant`. As long as no other
thread lives it runs freely; it takes part in the choosing (as thread number `len(bodies)`) only
while threads that the code under test started in `setup` or left behind are alive.

Every body is first run up to its first announcement, so that the first choice knows them all.
"""

from __future__ import annotations

import bisect
import contextlib
import contextvars
import itertools
import linecache
import sys
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from pytest_freethread import interpreter
from pytest_freethread.execution import carriers, ownership, stacks
from pytest_freethread.execution.baton import Baton, Core
from pytest_freethread.execution.repetition import Repetition, repeated
from pytest_freethread.execution.values import PLAIN, addition, comparable, described, has, peek
from pytest_freethread.instrument import probes, shadows
from pytest_freethread.instrument.effects import (
    ITEM_ADD,
    ITEM_WRITE,
    OP_NAMES,
    ROUTE,
)
from pytest_freethread.instrument.shadows import CLOCK, Lock, NewKey, RLock, Task
from pytest_freethread.interpreter import get_ident
from pytest_freethread.records import (
    ControlledExecution,
    Holding,
    Pause,
    Pending,
    Place,
    Step,
    Thrown,
    Waiting,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from pytest_freethread.execution.carriers import Carrier
    from pytest_freethread.records import Event, Outcome, Phase

    Cleanup: TypeAlias = Callable[
        [frozenset[int]], Iterable[tuple[Phase, int | None, BaseException]]
    ]
    Hear: TypeAlias = Callable[[list[Event]], object]
    Chooser: TypeAlias = Callable[[Sequence[int], int | None, Sequence[Pending | None]], int]

STOP: Final = -1
"""What a chooser returns to have the execution given up: it is of no interest any more."""

_LOOK: Final = 61
"""Steps after which a thread that runs alone is looked at for a spin loop, again and again.

A prime: of a loop of any length each step is looked at, so one at which others can go on is, too.
"""

_STARVES: Final = 4
"""The fraction of the most steps after which a thread starves that is ready all the time.

Programs take fewer altogether (`exploring` sees to that), unless others go round in a loop that
changes something each time, such as the count of their tries.
"""

_MORE_STEPS: Final = 50_000
"""How many more an execution may have before it is looked again whether it still may."""

_MOST_IDLE: Final = 3
"""How often the patience must be over before nobody outside of control is waited for."""

_SHORT: Final = 0.1
"""Seconds: a timeout up to this may be over while others could go on; longer than that they run."""

_MOST_ALONE: Final = 2_000_000
"""Accesses of the driving thread, while nobody else lives, after which it goes round for ever."""

_COMPUTES: Final = 0.05
"""The share of its time from which on a thread computes; below it is blocked, and says nothing."""

_MOST_KEPT: Final = 10_000
"""Objects that are kept before anybody looks which of them nobody else has any more."""

_MOST_EVENTS: Final = 50_000
"""What is kept until the judges hear it."""

_MOST_ROUNDS: Final = 10
"""Times that threads finalize what others have dropped, which then may have dropped more."""

_GRACE: Final = 0.04
"""Seconds in which any thread that is on its way through our own code comes to its end."""

_sleep: Final = time.sleep
shadows.skip_file(__file__)


class Unwound(BaseException):
    """Raised at the scheduling point of a thread whose execution is over, to end it."""


_NOBODY: Final = -1
_WRITES: Final = tuple(bool(op & 1) for op in range(max(OP_NAMES) + 1))
_BEGINNING: Final = Pending(None, None, False, -1)
_LOCKS: Final = frozenset({Lock, RLock})
_NO_OBJECT: Final = -1
_STORES: Final = frozenset({ITEM_WRITE, ITEM_ADD})
_TRIES: Final = frozenset({"acquire", "get"})
"""Synchronisations by which a thread that is in a loop may have got nowhere."""
_make: Final = tuple.__new__


def _advances(what: str, *, lock: bool) -> bool:
    """Whether a synchronisation changes something; to take a lock and to let it go does not."""
    return what not in _TRIES and not (lock and what == "release")


def _changes(event: Event) -> bool:
    """Whether an event is no mere look at something."""
    _, _, key, op, _ = event
    return bool(op & 1) if isinstance(op, int) else _advances(op, lock=key is True)


def _no_part(_: object) -> int:
    return 0


class Kernel:
    """The state of the execution under way; the probes' sink, and the shadows' conductor.

    `running` is the ident of the OS thread that is in control. Whoever has another ident takes the
    slow path; so control is taken away from a thread by changing this one field.
    """

    # Who runs. `live` are the controlled tasks that have not ended, in the order of their indices;
    # `ready` the indices of those that can go on: a list that is replaced, never changed.
    task: Task
    main: Task
    tasks: list[Task]
    live: list[Task]
    ready: list[int]
    pending: list[Pending | None]
    unborn: list[int]
    unended: int
    by_thread: dict[int, Task]
    # Whether the driving thread runs alone, or waits until all bodies have ended.
    waits_for_all: bool
    # Who chooses, and what came of it. A turn: (thread, steps, the site that it stopped before).
    choose: Chooser
    user_choose: Chooser
    choices: list[int]
    # Whether the chooser stays with whoever runs, in all of the execution, and judges hear it: then
    # sharing is learned from what they hear. While nobody waits, such a thread is quick; and what
    # it repeats is expected: none of it is in `events` or `steps` before that is over.
    staying: bool
    quick: bool
    repetition: Repetition | None
    turns: list[tuple[int, int, int]]
    steps: int
    turn_began: int
    # The step that last changed something that threads share, and something that one has alone.
    progress: int
    own_progress: int
    look: int
    max_steps: int
    until: float | None
    # For how many steps a schedule is followed, whoever spins.
    followed: int
    # After so many steps whoever is ready starves. Who goes behind others, and those: they were
    # ready while it spun, or starved, and have not gone on since.
    stint: int
    spins: int
    behind: dict[int, set[int]]
    timed: bool
    late: int
    alone: int
    widened: bool
    # Whether a finalizer was heard where no choice had led to.
    finalized: bool
    # How it ended.
    outcome: Outcome
    failure: BaseException | None
    diverged: tuple[int, int, tuple[int, ...]] | None
    # Out of control: `away` now, `returned` and not yet let in, `outside` ever.
    away: list[Task]
    returned: list[Task]
    outside: set[int]
    standstill: bool
    # The trace.
    record: bool
    trace: list[Step]
    pauses: list[Pause]
    left: dict[int, str | None]
    locations: dict[int, tuple[int, Any]]
    watched: Container[int]
    chains: dict[int, stacks.Chain]
    births: dict[int, tuple[int, int]]
    origins: dict[int, tuple[Any, stacks.Chain]]
    # What judges hear. An object is kept, or watched for its end, so that none that comes later is
    # taken for it: `numbers` and `kept` are by identity, `identities` are by number.
    hear: Hear | None
    log: Callable[[Event], None] | None
    events: list[Event]
    numbers: dict[int, int]
    identities: dict[int, int]
    kept: dict[int, Any]
    most_kept: int
    counted: int
    touched_at: dict[int, dict[Any, tuple[dict[int, int], set[int]]]]

    def __init__(
        self,
        *,
        core: int,
        learn: bool,
        patience: float,
        deadline: float,
        seed: int,
        eventfd: bool,
    ) -> None:
        self.patience = patience
        self.deadline = deadline
        self.early_timeouts = 0
        self.seed = seed
        self.eventfd = eventfd
        self.running = _NOBODY
        self.abandoned = self.solo = self.deaf = False
        self.now = self.made = 0
        self.drawn = False
        self.shadows: dict[int, Any] = {}
        self.by_ident: dict[int, Task] = {}
        self.guard = interpreter.Lock()
        # What is known about sharing, over all executions.
        self.learn = learn
        self.sites: set[int] = set()
        self.quiet_sites: set[int] = set()
        self.tracking = False
        # Whether finalizers were heard where no choice had led to.
        self.disowns = False
        self.part: Callable[[Any], int] = hash
        self.baton = Baton(eventfd=eventfd, timed=True)
        self.main_ident = get_ident()
        self.tasks = []
        self.errand = Task(_NOBODY, _nothing)
        self.carriers: list[Carrier] = []
        self.free: list[Carrier] = []
        self.prototype = carriers.prototype()
        self.inherits = interpreter.inherits_context()
        self.locals = carriers.Locals()
        self.core = Core(core)
        self.core.tie(_native_id())

    def dismiss(self) -> None:
        """Let the carriers go."""
        self.core.release()
        for carrier in list(self.carriers):
            self._wait_for(carrier)
        carriers.dismiss(self.carriers)
        self.baton.close()

    # ----- the probes' sink ---

    def access(self, obj: Any, key: Any, op: int, site: int, /) -> Any:
        """See `probes.Sink`. The hottest code of all."""
        if get_ident() != self.running:
            return self._access_elsewhere(obj, key, op, site)
        me = self.task
        if op == ROUTE:
            me.at = site
            return obj if type(obj) in _LOCKS else shadows.stand_in(obj, key)
        index = me.index
        if op > 1 and type(key) not in PLAIN:
            key = comparable(key)
        if self.quick and self.steps + 1 < self.look:
            self.steps += 1
            if op == ITEM_ADD:
                op = addition(obj, key)
            number = me.numbers.get(id(obj)) or self._number(me, obj)
            log = self.log
            log((index, number, key, op, site))  # type: ignore[misc] # it is quick
            return obj
        if self.learn and not self.staying and (self.tracking or site not in self.sites):
            touch = id(obj) ^ (site << 48) ^ (op & 1)
            if op < 2:
                touch ^= self.part(key)
            if touch not in me.seen:
                self._first_touch(me, obj, key, op, site, touch)
            if site not in self.sites:
                self.steps += 1
                if op & 1:
                    self.own_progress = self.steps
                if self.steps < self.look or not self._look(me):
                    log = self.log
                    if log is not None:
                        if op == ITEM_ADD:
                            op = addition(obj, key)
                        number = me.numbers.get(id(obj)) or self._number(me, obj)
                        log((index, number, key, op, site))
                    return obj
                self.steps -= 1  # it spins, and here is where others may go first
                self.sites.add(site)
                self.widened = True
        part = key
        if op in _STORES and isinstance(obj, dict) and not has(obj, key):
            part = None if key is None else NewKey(key)
        self.pending[index] = _make(Pending, (obj, part, _WRITES[op], site))
        if self.steps >= self.look:
            self._look(me)
        try:
            chosen = self.choose(self.ready, index, self.pending)
        except (RecursionError, Unwound):
            raise  # the body's own: it is as deep as it may be, or over
        except BaseException as error:
            if not self.ready:
                return obj  # a finalizer, while the control is on its way to the driving thread
            self._fail(me, error)
        self.choices.append(chosen)
        if chosen != index:
            self._switch(me, chosen)
        self.steps += 1
        if self.behind:
            self._has_gone_on(index)
        self.quick = self.staying and all(task.gate is None for task in self.live)
        if op == ITEM_ADD:
            op = addition(obj, key)
        if _WRITES[op]:
            self.progress = self.steps
        log = self.log
        if log is not None:
            number = me.numbers.get(id(obj)) or self._number(me, obj)
            log((index, number, key, op, site))
        if self.quick:
            self._expect_repetition()
        if self.record:
            if op == ITEM_ADD:
                op = ITEM_WRITE  # to a reader, it is what is written there
            self._note(me, obj, key, OP_NAMES[op], _WRITES[op], site)
        return obj

    def _expect_repetition(self) -> None:
        block = repeated(self.events)
        if block is not None:
            self.repetition = Repetition(self.task, block, self._owners(block), self._differs)
            probes.divert(self.repetition.hear)
            shadows.divert(self.repetition)

    def _owners(self, block: Iterable[Event]) -> dict[int, Callable[[], Any]]:
        """By its number, what returns an object, without a reference that keeps it longer."""
        owners: dict[int, Callable[[], Any]] = {}
        for number in {event[1] for event in block}:
            held = self.kept[self.identities[number]]
            weak = type(held) is weakref.ref
            owners[number] = held if weak else itertools.repeat(held).__next__
        return owners

    def _differs(self, obj: Any, key: Any, op: int | str, site: int, /) -> Any:
        """Go on with what was not expected; not with a lock, for which whoever asked does."""
        if op != ROUTE and get_ident() == self.running:
            self._end_repetition()
        return self.access(obj, key, op, site) if isinstance(op, int) else None

    def _end_repetition(self) -> None:
        """Note what was repeated; whoever counts steps, or tells what happened, does so before."""
        repetition, log = self.repetition, self.log
        if repetition is not None and log is not None:
            self.repetition = None
            probes.divert(None)
            shadows.divert(None)
            again, rest = repetition.end()
            self.steps += again[1] + len(rest)
            if again[1]:
                log(again)
            for event in rest:
                log(event)

    def _access_elsewhere(self, obj: Any, key: Any, op: int, site: int) -> Any:
        me = self.me(quiet=True)
        if me is None:
            if not self.deaf:
                self._hear_finalizer()
            return obj
        if op == ROUTE:
            me.at = site
            return shadows.stand_in(obj, key)
        if self.abandoned:
            self.late += 1
            if self.late > 10_000:
                raise Unwound
            return obj
        if self.solo or get_ident() != self.running:
            if self.watched:
                self._meet(obj)
            if self.solo:
                self.alone += 1
                if self.alone > _MOST_ALONE:
                    self._stop(self.main, "livelock")
            return obj  # nobody else lives; or on its way into the control, or out of it
        return self.access(obj, key, op, site)

    # ----- which locations threads share ---
    # A thread has its own records, and others look into its sets only. (On a free-threaded 3.13 a
    # lookup in a dict that another thread has filled costs some 80 µs, the first time.)

    def _first_touch(  # noqa: PLR0917 - by position, for speed
        self, me: Task, obj: Any, key: Any, op: int, site: int, touch: int
    ) -> None:
        """A thread comes to a location at a site for the first time in this execution."""
        me.seen.add(touch)
        if issubclass(type(obj), threading.local):
            return  # every thread has its own
        if op < 2 and key is None and self.part is hash:
            # All attributes at once: from now on they are not told apart.
            self.part = _no_part
            self.widened = True
        location = id(obj) ^ self.part(key) if op < 2 else id(obj)
        write = op & 1
        quiet = site not in self.sites
        if quiet and site not in self.quiet_sites:
            self.quiet_sites.add(site)
            if not self.tracking:  # what was touched before at shared sites is not known
                self.tracking = self.widened = True
        self._remember(me, obj, touch, location)
        me.touched.add(location)
        if write:
            me.wrote.add(location)
        if quiet:
            me.quiet.add(location)
            me.quietly.setdefault(location, set()).add(site)
        meets = [
            task
            for task in self.tasks
            if task is not me and (location in task.wrote or (write and location in task.touched))
        ]
        if meets:
            for task in (me, *meets):
                if location in task.quiet:
                    task.quiet.discard(location)
                    sites = task.quietly.pop(location)
                    self.sites |= sites
                    self.quiet_sites -= sites
                    self.tracking = bool(self.quiet_sites)
                    self.widened = True

    def _remember(self, me: Task, obj: Any, touch: int, location: int) -> None:
        """See to it that no other object is taken for this one when it has ended."""
        identity = id(obj)
        touches = me.objects.get(identity)
        if touches is None:

            def forget(_: object) -> None:
                for each, where in me.objects.pop(identity, ())[1:]:
                    me.seen.discard(each)
                    me.touched.discard(where)
                    me.wrote.discard(where)
                    me.quiet.discard(where)
                    me.quietly.pop(where, None)

            holder: Any = obj
            with contextlib.suppress(TypeError):
                holder = weakref.ref(obj, forget)
            touches = me.objects[identity] = [holder]
        touches.append((touch, location))

    # ----- the shadows' conductor ---

    def me(self, *, quiet: bool = False) -> Task | None:
        """See `shadows.Conductor`; `quiet`: do not unwind a thread that is to be unwound."""
        ident = get_ident()
        if ident == self.running:
            return self.task
        if self.deaf:
            return None
        if ident == self.main_ident:
            if self.abandoned and not quiet:
                raise Unwound
            return self.main if self.solo or self.abandoned else None
        me = self.by_ident.get(ident)
        if me is None or me.ended or not me.ident:
            return None
        if self.abandoned:
            if not quiet:
                raise Unwound
        else:
            self._come_back(me)
        return me

    def step(
        self,
        me: Task,
        obj: object,
        what: str,
        *,
        write: bool = True,
        gate: shadows.Gate | None = None,
        timeout: float | None = None,
        site: int = -1,
    ) -> bool:
        """See `shadows.Conductor`."""
        if self.repetition is not None:
            self._end_repetition()
        if site < 0:
            site = me.at if me.at >= 0 else shadows.caller_site()
        me.at = -1
        me.site = site
        me.glances = 0
        me.expired = self.quick = False
        if self.solo:
            return self._step_alone(me, what, gate, timeout)
        index = me.index
        self.pending[index] = _make(Pending, (obj, None, write, site))
        if gate is not None:
            me.gate = gate
            me.what = what
            if timeout is not None:
                me.deadline = self.now + max(0, int(timeout * 1e9))
                me.impatient = timeout <= _SHORT
                if timeout <= 0 and not gate.open(me):
                    me.expired = True
            if not self._can_go_on(me):
                self.ready = [each for each in self.ready if each != index]
                self.timed = self.timed or (timeout is not None and me.impatient)
        if self.steps >= self.look:
            self._look(me)
        if self.ready or self._nobody_can(me):
            try:
                chosen = self.choose(self.ready, index, self.pending)
            except RecursionError:
                self._give_up_waiting(me)
                raise
            except Unwound:
                raise
            except BaseException as error:
                self._fail(me, error)
            self.choices.append(chosen)
            if chosen != index or gate is not None:
                self._switch(me, chosen)
        if gate is not None:
            if not gate.open(me):  # a timeout that fires early, because the chooser likes it
                self.early_timeouts -= 1
                self._pass_time(me.deadline or 0)
            me.gate = me.deadline = None
        self.steps += 1
        if self.behind:
            self._has_gone_on(index)
        self.quick = self.staying and all(task.gate is None for task in self.live)
        if write and _advances(what, lock=type(obj) in _LOCKS):
            self.progress = self.steps
        if self.log is not None:
            self._tell_of(me, obj, what, site, patient=gate is not None and timeout is None)
        if self.quick:
            self._expect_repetition()
        if self.record:
            self._note(me, obj, None, what, write, site)
        return not me.expired

    def glide(self, obj: object, what: str) -> Task | None:
        """See `shadows.Conductor`."""
        if get_ident() != self.running:
            return None
        me = self.task
        if self.steps + 1 >= self.look:
            return None
        if me.at >= 0:
            me.site = me.at
            me.at = -1
        elif what == "acquire":
            me.site = shadows.caller_site()
        self.steps += 1
        number = me.numbers.get(id(obj)) or self._number(me, obj)
        log = self.log
        log((me.index, number, True, what, me.site))  # type: ignore[misc] # it is quick
        return me

    def _has_gone_on(self, index: int) -> None:
        """A thread makes a step: nobody has to go behind it any more."""
        for others in self.behind.values():
            others.discard(index)
        self.behind = {each: others for each, others in self.behind.items() if others}
        self._update()

    def _give_up_waiting(self, me: Task) -> None:
        me.gate = me.deadline = None
        self._update()

    def changed(self) -> None:
        """See `shadows.Conductor`."""
        for task in self.live:
            if task.gate is not None:
                self._update()
                break

    def _update(self) -> None:
        """Find out who can go on."""
        ready = [task.index for task in self.live if task.gate is None or self._can_go_on(task)]
        if self.behind:
            able = set(ready)
            ready = [each for each in ready if able.isdisjoint(self.behind.get(each, ()))] or ready
        if ready != self.ready:
            self.ready = ready

    def _can_go_on(self, task: Task) -> bool:
        gate = task.gate
        if gate is None or gate.open(task):
            return True
        if task.deadline is None or not (self.early_timeouts and task.impatient) or gate is CLOCK:
            return False
        task.expired = True
        opens = gate.open(task)
        task.expired = False
        return opens

    def _step_alone(
        self, me: Task, what: str, gate: shadows.Gate | None, timeout: float | None
    ) -> bool:
        if gate is None or gate.open(me):
            return True
        me.expired = timeout is not None
        if not gate.open(me):
            me.gate, me.what = gate, what
            self._stop(me, self._kind_of_standstill([me]))
        self.now += max(0, int((timeout or 0) * 1e9))
        return False

    def apart(self, choose: Chooser) -> Chooser:
        """A chooser whose own code may have probes: what it does is no part of the execution."""

        def choose_apart(
            ready: Sequence[int], current: int | None, pending: Sequence[Pending | None]
        ) -> int:
            running, self.running = self.running, _NOBODY
            self.deaf = True
            try:
                return choose(ready, current, pending)
            finally:
                self.deaf = False
                self.running = running

        return choose_apart

    def task_of(self, thread: threading.Thread) -> Task | None:
        """See `shadows.Conductor`."""
        return self.by_thread.get(id(thread))

    # ----- handing over ---

    def _switch(self, me: Task, chosen: int) -> None:
        """Let the chosen thread go on, and wait for this one's turn."""
        if self.returned:
            self._take_back()
        if chosen not in self.ready:
            self._refuse(me, chosen)
        index = me.index
        if chosen == index:
            return
        self._count(index)
        self._hand_over(chosen)
        me.take()
        if self.abandoned:
            raise Unwound
        self._has_waited()

    def _hand_over(self, chosen: int) -> None:
        to = self.tasks[chosen]
        self.task = to
        self.running = to.ident
        to.give()

    def _count(self, index: int) -> None:
        """Note a thread's turn that is over now."""
        self._end_repetition()
        if self.record:
            self._note_pause(self.tasks[index])
        pending = self.pending[index]
        self.turns.append((index, self.steps - self.turn_began, pending.site if pending else -1))
        self.turn_began = self.tasks[index].left = self.steps

    def _to_main(self, me: Task) -> None:
        """Give the control to the driving thread; wait for a turn, if that ever comes."""
        self._count(me.index)
        self.task = self.main
        self.running = self.main_ident
        self.baton.give()
        if not me.ended:
            me.take()
            if self.abandoned:
                raise Unwound

    def _stop(self, me: Task, outcome: Outcome) -> NoReturn:
        """End the execution from within one of its threads."""
        self.outcome = outcome
        if me is not self.main:
            self._to_main(me)
        self.abandoned = True  # what it passes on its way out gets no errors of its own
        raise Unwound

    def _fail(self, me: Task, error: BaseException) -> NoReturn:
        self.failure = error
        self._stop(me, "stopped")

    def _refuse(self, me: Task, chosen: int) -> NoReturn:
        if chosen != STOP:
            self.diverged = len(self.choices) - 1, chosen, tuple(self.ready)
        self._stop(me, "stopped" if chosen == STOP else "diverged")

    def _nobody_can(self, me: Task) -> bool:
        """What happens when nobody is ready; whether somebody is, and is to be chosen, then."""
        while True:
            if self.returned:
                self._take_back()
            self._update()
            if self.ready:
                return True
            if self.unended == 0 and self.waits_for_all:
                self._to_main(me)
                return False
            deadlines = [task.deadline for task in self.live if task.deadline is not None]
            if deadlines:
                self._pass_time(min(deadlines))
            elif self.away:
                self.standstill = True
                self._to_main(me)
                return False
            else:
                self.outcome = self._kind_of_standstill(self.live)
                if me is self.main:
                    self.abandoned = True
                    raise Unwound
                self._to_main(me)
                return False

    def _pass_time(self, until: int) -> None:
        self.now = max(self.now, until)
        for task in self.live:
            if task.deadline is not None and task.deadline <= self.now and task.gate is not None:
                if not task.gate.open(task):
                    task.expired = True
                task.deadline = None
        self._update()

    def _look(self, me: Task) -> bool:
        """Now and then: does the thread that runs get anywhere? If not, others go first.

        Each that could go on does so before the one that spins does (fair stateless model checking,
        Musuvathi & Qadeer 2008). So does whoever was ready for long, and sooner the next time.

        Returns:
            Whether the thread that runs may not go on.
        """
        steps = self.steps
        self.look = steps + _LOOK
        if self.staying and any(map(_changes, self.events[-_LOOK:])):
            self.progress = steps
        if steps >= self.max_steps:
            if self.unended == 0 and self.waits_for_all:
                self._to_main(me)
            elif self.until is None or 2 * max(self.progress, self.own_progress) < steps:
                self._stop(me, "livelock")
            elif interpreter.monotonic() >= self.until:
                self._stop(me, "too-long")
            else:
                self.max_steps += _MORE_STEPS
                self.stint = max(self.stint, self.max_steps // _STARVES)
        if len(self.events) >= _MOST_EVENTS:
            self._tell()
        self._update()
        others = {index for index in self.ready if index != me.index}
        if steps < self.followed or not others:
            return False
        # Rather not while a lock is held or asked for: whoever goes first may only come to wait for
        # it, and while anybody stands before a lock nobody is quick.
        engaged = me.held or me.gate is not None
        hungry = self.max_steps // 2 if engaged else self.stint
        starving = {index for index in others if steps - self.tasks[index].left >= hungry}
        if starving:
            self.stint = max(_LOOK, self.stint // 2)
            for index in (me.index, *others - starving):
                self.behind[index] = starving.copy()
        elif min(steps - self.turn_began, steps - self.progress) >= _LOOK:
            self.behind[me.index] = others
        else:
            return False
        self.spins += 1
        self._update()
        return True

    # ----- bodies and the threads that they start ---

    def _begin(
        self,
        count: int,
        choose: Chooser,
        max_steps: int,
        *,
        until: float | None,
        record: bool,
        followed: int,
        stays: bool,
        hear: Hear | None,
        watched: Container[int],
    ) -> None:
        self.main = main = Task(count, _nothing)
        main.ident = self.main_ident
        main.give, main.take = self.baton.give, self._await
        main.thread = threading.current_thread()
        self.abandoned = self.standstill = self.widened = self.timed = self.finalized = False
        self.outcome = "ended"
        self.failure = None
        self.diverged = None
        self.user_choose = choose
        self.choose = choose
        self.max_steps = max_steps
        self.until = until
        self.record = record
        self.followed = followed
        self.now = self.steps = self.turn_began = self.progress = self.spins = self.late = 0
        self.own_progress = self.alone = 0
        self.behind = {}
        self.stint = max_steps // _STARVES
        self.look = min(_LOOK, max_steps)
        self.choices = []
        self.staying = stays and hear is not None and not record
        self.quick = False
        self.repetition = None
        self.turns = []
        self.trace = []
        self.pauses = []
        self.left = {}
        self.locations = {}
        self.watched = watched
        self.chains = {}
        self.births = {}
        self.origins = {}
        self.hear = hear
        self.events = []
        self.log = None if hear is None else self.events.append
        self.numbers = {}
        self.identities = {}
        self.kept = {}
        self.most_kept = _MOST_KEPT
        self.counted = 0
        self.touched_at = {}
        self.tasks = [Task(index, _nothing) for index in range(count)]
        self.tasks.append(main)
        self.pending = [None] * (count + 1)
        self.live = []
        self.ready = []
        self.away = []
        self.outside = set()
        self.returned = []
        self.by_ident = {}
        self.by_thread = {}
        self.shadows.clear()
        self.made = 0
        self.unended = count
        self.waits_for_all = False
        self.unborn = []
        self.solo = True
        self.running = _NOBODY
        self.task = main
        if self.disowns:
            self._settle()
            self.finalized = False  # of an execution before
        self.free = self.carriers[::-1]
        carriers.restart_counters()
        self.drawn = False

    def execute(
        self,
        bodies: Sequence[Callable[..., object]],
        choose: Chooser,
        *,
        setup: Callable[[], object] | None,
        invariant: Callable[..., object] | None,
        cleanup: Cleanup | None,
        max_steps: int,
        until: float | None,
        early_timeouts: int,
        record: bool,
        followed: int,
        stays: bool,
        hear: Hear | None,
        watched: Container[int],
    ) -> ControlledExecution:
        """Run one execution; `Controlled.run` says how."""
        self._begin(
            len(bodies),
            choose,
            max_steps,
            until=until,
            record=record,
            followed=followed,
            stays=stays,
            hear=hear,
            watched=watched,
        )
        self.early_timeouts = early_timeouts
        thrown: list[Thrown] = []
        holds: bool | None = None
        waiting: tuple[Waiting, ...] = ()
        abandoned: tuple[tuple[int, Holding], ...] = ()
        left = False
        try:
            state: Any = None
            try:
                if setup is not None:
                    state = setup()
            except Unwound:
                left = True
            except Exception as error:
                thrown.append(Thrown("setup", None, error))
                left = True
            if not left:
                if self.disowns:
                    self._disown((state, *bodies))
                self._run_bodies(bodies, (state,) if setup is not None else ())
                if ownership.MAKERS_FINALIZE:
                    self._settle()
                thrown += [
                    Thrown("body", task.index, task.error)
                    for task in self.tasks
                    if task.error is not None
                ]
                if self.outcome == "ended" and invariant is not None:
                    try:
                        holds = invariant(*((state,) if setup is not None else ())) is not False
                    except Unwound:
                        pass
                    except Exception as error:
                        thrown.append(Thrown("invariant", None, error))
            abandoned = tuple(
                (task.index, _holding(held))
                for task in self.tasks
                if task.ended
                for held in task.held
            )
            if self.live or self.away or self.outcome != "ended":
                waiting = tuple(self._describe())
            elif cleanup is not None:
                cleaned = cleanup
                cleanup = None
                thrown += self._cleaned(cleaned)
        finally:
            self._clear()
            if cleanup is not None:
                thrown += self._cleaned(cleanup)
            # What bodies leave behind ends here: a finalizer that ran on a carrier, on its way to
            # its next task, would be taken for that task.
            for task in self.tasks:
                task.body, task.context, task.error = _nothing, contextvars.Context(), None
                task.objects.clear()
            self._tell()
            self.log = None
            self.numbers = {}
            self.identities = {}
            self.kept = {}
        if self.failure is not None:
            raise self.failure
        return self._result(tuple(thrown), holds, waiting, abandoned)

    def _cleaned(self, cleanup: Cleanup) -> Iterator[Thrown]:
        """Clean up: under control where the execution came to its end, free otherwise."""
        failed = frozenset(task.index for task in self.tasks if task.error is not None)
        try:
            for phase, thread, error in cleanup(failed):
                yield Thrown(phase, thread, error)
        except Unwound:
            pass

    def _run_bodies(
        self, bodies: Sequence[Callable[..., object]], arguments: tuple[Any, ...]
    ) -> None:
        main = self.main
        if not self.solo:
            self.live.remove(main)
            self._count(main.index)
        else:
            self.solo = False
        self.pending[main.index] = None
        newcomers = []
        for index, body in enumerate(bodies):
            task = self.tasks[index]
            task.body = partial(body, *arguments) if arguments else body
            task.thread = carriers.thread_object(f"body-{index}", self.prototype)
            self._employ(task)
            newcomers.append(task)
            if self.log is not None:
                self.log((main.index, index, None, "fork", -1))
        self.live[:0] = newcomers
        self.waits_for_all = True
        self._update()
        if not bodies:
            self.waits_for_all = False
        else:
            self.unborn = list(range(len(bodies) - 1, 0, -1))
            self.choose = self._begin_next
            first = self.tasks[0]
            self.task = first
            self.running = first.ident
            first.give()
            self._await()
            self._has_waited()
            self.waits_for_all = False
        if self.log is not None:
            for task in newcomers:
                self.log((main.index, task.index, None, "joined", -1))
        self.running = _NOBODY
        self.task = main
        if self.live and self.outcome == "ended":
            self.running = self.main_ident
            bisect.insort(self.live, main, key=lambda task: task.index)
            self._update()
        elif not self.live:
            self.solo = True

    def _begin_next(self, *_: object) -> int:
        """In place of the chooser, until all bodies stand before their first operation."""
        if self.unborn:
            return self.unborn.pop()
        self.choose = self.user_choose
        self.choices.clear()
        return self.choose(self.ready, None, self.pending)

    def _employ(self, task: Task) -> None:
        """Find a carrier for a task."""
        carrier = self.free.pop() if self.free else self._hire()
        carrier.perform = self.perform
        carrier.task = task
        task.carrier = carrier
        task.give, task.take = carrier.baton.give, carrier.baton.take
        thread = task.thread
        carriers.mark_as_started(thread, carrier.ident, carrier.native_id)
        task.daemon = thread.daemon
        self.by_ident[carrier.ident] = task
        self.by_thread[id(thread)] = task
        task.context = getattr(thread, "_context", None) or (
            contextvars.copy_context() if self.inherits else contextvars.Context()
        )
        self.pending[task.index] = _BEGINNING

    def _hire(self) -> Carrier:
        carrier = carriers.hire(eventfd=self.eventfd)
        self.carriers.append(carrier)
        self.core.tie(carrier.native_id)
        return carrier

    def start(self, me: Task, thread: threading.Thread) -> None:
        """See `shadows.Conductor`."""
        if self.solo:
            me.site = me.at if me.at >= 0 else shadows.caller_site()
            me.at = -1
            self.solo = False
            self.live = [me]
            self.ready = [me.index]
            self.pending[me.index] = _BEGINNING
            self.running = me.ident
        else:
            self.step(me, thread, "start")
        task = Task(len(self.tasks), thread.run)
        task.thread = thread
        self.births[task.index] = me.index, me.site
        self.tasks.append(task)
        self.pending.append(None)
        self._employ(task)
        if self.log is not None:
            self.log((me.index, task.index, None, "fork", me.site))
        self.live.append(task)
        self._update()
        after, index = self.choose, me.index

        def back(*_: object) -> int:
            self.choose = after
            return index

        # It runs up to its first operation, which the next choice has to know.
        self.choose = back
        waits_for_all, self.waits_for_all = self.waits_for_all, False
        self._switch(me, task.index)
        self.waits_for_all = waits_for_all
        self.choices.pop()

    def perform(self, task: Task) -> None:
        """Run a task from its beginning to its end; on its carrier."""
        carrier_thread = carriers.stand_in(task.thread, task.carrier.ident)
        try:
            if not self.abandoned:
                self._take_over(task)
                task.context.run(task.body)
        except Unwound:
            pass
        except SystemExit as error:
            if task.index < self.main.index:
                task.error = error
        except BaseException as error:
            task.error = error
        with contextlib.suppress(Unwound):
            me = None if self.abandoned else self.me()  # which waits until it is in control
            if me is not None and task.index > self.main.index:
                self.step(me, task.thread, "end", site=task.site)
        for lock in task.held:
            if type(lock) is RLock:  # nobody else can; the model goes on to say who has it
                while lock.real._is_owned():  # noqa: SLF001 - as `threading.Condition` asks it
                    lock.real.release()
        carriers.stand_in(carrier_thread, task.carrier.ident)
        self._leave(task)

    def _take_over(self, task: Task) -> None:
        """From here on a carrier is the task's; before, it may have finalized what it had made."""
        with self.guard:
            task.ident = task.carrier.ident
            if not task.outside:
                self.running = task.ident
        if task.outside:
            self._come_back(task)

    def _leave(self, task: Task) -> None:
        if task.ended:
            return  # it was given up, and another execution may be under way
        task.ended = True
        task.gate = None
        if self.abandoned:
            if not task.outside:
                self.running = _NOBODY
                self.baton.give()
            return
        self.pending[task.index] = None
        self._count(task.index)
        self.live.remove(task)
        if task.index < self.main.index:
            self.unended -= 1
        self._update()
        try:
            if self.unended == 0 and self.waits_for_all and self._only_daemons():
                self._to_main(task)
            elif self.ready or self._nobody_can(task):
                try:
                    chosen = self.choose(self.ready, task.index, self.pending)
                except BaseException as error:
                    self._fail(task, error)
                self.choices.append(chosen)
                if chosen not in self.ready:
                    self._refuse(task, chosen)
                self._hand_over(chosen)
        except Unwound:
            pass

    def _only_daemons(self) -> bool:
        return all(self.tasks[index].daemon for index in self.ready)

    # ----- the driving thread, and threads that leave the control ---

    def _await(self) -> None:
        """Wait for the control; a thread that holds it and shows no sign of life loses it."""
        wait = self.patience / 2
        seen: tuple[Task, int] | None = None
        idle = 0
        computed = given_up_at = 0.0
        while True:
            if self.baton.take_within(wait):
                if not self.standstill:
                    if self.running == self.main_ident:
                        return
                    continue  # two threads gave it at the same time
            elif not self.standstill:
                if self.running == self.main_ident:
                    return  # a finalizer has taken it before
                now = interpreter.monotonic()
                before = computed
                computed = interpreter.cpu_seconds(self.task.carrier.ident)
                if seen != (self.task, self.steps):
                    seen = self.task, self.steps
                    given_up_at = now + self.deadline
                elif now >= given_up_at or not (
                    computed - before >= wait * _COMPUTES
                    or interpreter.is_runnable(getattr(self.task.carrier, "native_id", 0))
                ):
                    self._detach()
                    if self.outcome != "ended":  # the chooser would have none of the others
                        return
                continue
            else:
                idle += 1
            # Nobody was ready, and somebody else may change that: outside of control.
            if self._go_on_from_here() or self.outcome != "ended":
                idle = 0
                if self.outcome != "ended":
                    return
            elif idle >= _MOST_IDLE:
                self.outcome = "partial-control"
                self.standstill = False
                return

    def _go_on_from_here(self) -> bool:
        """Choose among the others; whether there was one. Called by the driving thread."""
        with self.guard:
            self._take_back()
            self._update()
            while not self.ready:
                deadlines = [task.deadline for task in self.live if task.deadline is not None]
                if not deadlines:
                    break
                self._pass_time(min(deadlines))
            self.standstill = not self.ready
            if self.standstill:
                if not self.away and not self._held_elsewhere():
                    self.outcome = self._kind_of_standstill(self.live)
                    self.standstill = False
                return False
        try:
            chosen = self.choose(self.ready, None, self.pending)
        except BaseException as error:
            self.failure, self.outcome = error, "stopped"
            return False
        self.choices.append(chosen)
        if chosen not in self.ready:
            self.diverged = len(self.choices) - 1, chosen, tuple(self.ready)
            self.outcome = "stopped" if chosen == STOP else "diverged"
            return False
        self._hand_over(chosen)
        return True

    def _detach(self) -> None:
        """Put the thread that holds the control outside of it, unless it turns out to live."""
        with self.guard:
            suspect, ident, steps = self.task, self.running, self.steps
            self.running = _NOBODY
            _sleep(_GRACE)  # whoever decides who goes on right now has done so by then
            if self.task is not suspect or self.steps != steps or suspect is self.main:
                if self.running == _NOBODY:
                    self.running = self.task.ident if self.task is not suspect else ident
                return
            self._end_repetition()
            suspect.outside = True
            self.outside.add(suspect.index)
            self.away.append(suspect)
            self.live.remove(suspect)
            self.task = self.main
            self.running = self.main_ident
            self.standstill = True
        self._go_on_from_here()

    def _come_back(self, me: Task) -> None:
        """A thread that lost the control wants to go on: it waits for its turn."""
        with self.guard:
            if me not in self.away:
                return
            self.away.remove(me)
            self.returned.append(me)
            if self.standstill:
                with contextlib.suppress(RuntimeError):  # a lock that is free already
                    self.baton.give()
        me.take()
        if self.abandoned:
            raise Unwound

    def _take_back(self) -> None:
        """Let those that came back be chosen again."""
        while self.returned:
            task = self.returned.pop()
            task.outside = False
            task.gate = None
            self.pending[task.index] = _BEGINNING
            bisect.insort(self.live, task, key=lambda each: each.index)
        self._update()

    def _held_elsewhere(self) -> bool:
        """Whether somebody waits for a lock that a thread outside of control holds."""
        return any(
            type(task.gate) is Lock and task.gate.owner is None and task.gate.real.locked()
            for task in self.live
        )

    # ----- what threads have to finalize ---
    # A free-threaded build leaves an object to the thread that made it, when that goes on. What
    # bodies made is finalized once they have ended, as it is where threads really end. Where a
    # finalizer was heard, what `setup` made comes to belong to no thread from then on, and nothing
    # is left to the next execution.

    def _has_waited(self) -> None:
        """A thread goes on. On its way it may have finalized what others have dropped."""
        if self.steps != self.turn_began:
            self.finalized = True

    def _hear_finalizer(self) -> None:
        """Something is announced in a thread that has ended, or not begun."""
        ident = get_ident()
        if any(carrier.ident == ident for carrier in self.carriers):
            self.finalized = True

    def _disown(self, roots: Iterable[object]) -> None:
        """Have what is shared finalized by whoever drops it."""
        self.free = self.free or [self._hire()]
        ownership.disown(ownership.shared(roots), partial(self._have_done, self.free[-1]))

    def _settle(self) -> None:
        """Have all threads that have ended finalize what others have dropped."""
        for _ in range(_MOST_ROUNDS):
            before, self.finalized = self.finalized, False
            busy = [task.carrier for task in self.tasks if not task.ended]
            for carrier in [each for each in self.carriers if each not in busy]:
                self._have_done(carrier, _nothing)
            heard, self.finalized = self.finalized, self.finalized or before
            if not heard:
                break  # otherwise that may have dropped what another one made

    def _have_done(self, carrier: Carrier, what: Callable[[], object]) -> None:
        """Have something done by a carrier that is idle."""
        self.errand.body = what
        carrier.perform, carrier.task = self._perform_errand, self.errand
        carrier.baton.give()
        if not self.baton.take_within(self.patience):
            self._give_up(carrier)
        self.errand.body = _nothing  # what it holds on to, nobody finalizes

    def _perform_errand(self, errand: Task) -> None:
        errand.body()
        self.baton.give()

    # ----- the end of an execution ---

    def _clear(self) -> None:
        """Unwind what has not ended; afterwards every carrier is free again, or given up."""
        unfinished = [task for task in self.tasks if task.carrier is not None and not task.ended]
        started = self.tasks[self.main.index + 1 :]
        interrupted = self.task
        if unfinished or interrupted is not self.main:
            self.abandoned = True
            self.running = _NOBODY
            with carriers.quiet_executors():
                if interrupted is not self.main:
                    unfinished.sort(key=lambda task: task is not interrupted)
                for task in unfinished:
                    self._unwind(task, in_control=task is interrupted)
            if interrupted is not self.main:
                for carrier in list(self.carriers):
                    self._wait_for(carrier)
                self.baton.close()
                self.baton = Baton(eventfd=self.eventfd, timed=True)
        self.running = _NOBODY
        self.solo = False
        for task in self.tasks:
            for lock in task.held:
                lock.owner = None
                if type(lock) is RLock:
                    lock.count = 0
                elif lock.real.locked():
                    lock.real.release()
        for task in started:
            carriers.mark_as_ended(task.thread)
        self.locals.clear(self.carriers)
        self.by_ident = {}  # a thread that was given up goes on as if there were no run
        self.abandoned = False

    def _unwind(self, task: Task, *, in_control: bool) -> None:
        carrier = task.carrier
        if carrier.task is task and not in_control:
            carrier.task = None  # it never began
            task.ended = True
            return
        patience = self.patience
        if not task.outside:
            if not in_control:
                task.give()
            if self.baton.take_within(patience):
                return
            if in_control:
                task.give()  # it was interrupted on the way to it
                if self.baton.take_within(_GRACE):
                    return
        carriers.throw(carrier.ident, Unwound)
        task.outside = True
        for _ in range(10):
            if task.ended:
                break
            _sleep(_GRACE / 4)
        task.ended = True
        self._give_up(carrier)

    def _wait_for(self, carrier: Carrier) -> None:
        """Wait until it has handed over: that its task has ended comes before."""
        until = interpreter.monotonic() + self.patience
        while not carrier.idle:
            if interpreter.monotonic() >= until:
                self._give_up(carrier)
                break
            _sleep(_GRACE / 40)

    def _give_up(self, carrier: Carrier) -> None:
        """It may still run, and must not be mistaken for another one: nobody uses it again."""
        self.carriers.remove(carrier)
        carrier.thread.name = "freethread-abandoned"

    def _kind_of_standstill(self, tasks: Iterable[Task]) -> Outcome:
        for task in tasks:
            seen: set[int] = set()
            other: Task | None = task
            while other is not None:
                if other.ended or other.index in seen:
                    return "deadlock"
                seen.add(other.index)
                other = _awaited(other)
        return "lost-wakeup"

    def _describe(self) -> Iterator[Waiting]:
        frames = sys._current_frames()  # noqa: SLF001 - documented; there is no other way
        for task in self.tasks:
            carrier = task.carrier
            if task.ended or (carrier is None and task.gate is None):
                continue
            if carrier is not None and carrier.task is task:
                continue
            frame = frames.get(task.ident)
            gate: Any = task.gate
            lock = gate.lock if isinstance(gate, shadows.Waiter) and gate.notified else gate
            is_lock = type(lock) in {Lock, RLock}
            other = None if gate is None else _awaited(task)
            pending = self.pending[task.index]
            obj = gate if pending is None else pending.obj
            yield Waiting(
                thread=task.index,
                name="main" if task.thread is None else str(task.thread.name),
                daemon=task.daemon,
                operation=task.what if gate is not None else "",
                kind="" if gate is None else _kind(gate, obj),
                through=_library_call(frame),
                place=_place(task.site if pending is None else pending.site),
                lock=id(lock) if is_lock else None,
                by=None if other is None else other.index,
                taken=_place(lock.site) if is_lock and other is not None else None,
                holds=tuple(map(_holding, task.held)),
                stack=stacks.callers(frame, limit=60),
            )

    def _result(
        self,
        thrown: tuple[Thrown, ...],
        holds: bool | None,
        waiting: tuple[Waiting, ...],
        abandoned: tuple[tuple[int, Holding], ...],
    ) -> ControlledExecution:
        turns = [turn for turn in self.turns if turn[1]]
        if self.steps > self.turn_began:
            turns.append((self.task.index, self.steps - self.turn_began, -1))
        counts: dict[int, int] = {}
        for index, steps, _ in turns:
            counts[index] = counts.get(index, 0) + steps
        if self.record and self.trace:
            self._fill_in()
        if self.finalized and not self.disowns:
            self.disowns = self.widened = True
        return ControlledExecution(
            outcome=self.outcome,
            choices=self.choices,
            schedule=turns,
            steps=self.steps,
            changed=max(self.progress, self.own_progress),
            counts=counts,
            thrown=thrown,
            holds=holds,
            waiting=waiting,
            abandoned=abandoned,
            outside=tuple(sorted(self.outside)),
            widened=self.widened,
            spins=self.spins,
            timed=self.timed,
            finalized=self.finalized,
            diverged=self.diverged,
            trace=tuple(self._completed(self.trace)),
            pauses=tuple(self.pauses),
            names=tuple(
                "" if task.thread is None else str(task.thread.name) for task in self.tasks
            ),
            stacks={index: stacks.unchained(chain) for index, chain in self.chains.items()},
            made={
                number: place
                for number, obj in self.locations.values()
                if id(obj) in self.origins
                and (place := stacks.made_at(self.origins[id(obj)][1])) is not None
            },
            births={task: (by, _place(site)) for task, (by, site) in self.births.items()},
        )

    # ----- what judges hear ---

    def _number(self, me: Task, obj: Any) -> int:
        """A number for an object that a thread has not heard of before.

        Each thread has a record of its own: see above.
        """
        identity = id(obj)
        known = self.numbers.get(identity)
        if known is not None:
            me.numbers[identity] = known
            return known
        kept = self.kept
        self.counted = number = self.counted + 1
        if issubclass(type(obj), threading.local):  # every thread has its own
            number = _NO_OBJECT
        self.numbers[identity] = me.numbers[identity] = number
        self.identities[number] = identity

        def end(_: object) -> None:
            if self.kept is kept:  # the execution is still under way
                self._forget(identity)

        try:
            kept[identity] = weakref.ref(obj, end)
        except TypeError:
            kept[identity] = obj
        return number

    def _tell_of(self, me: Task, obj: Any, what: str, site: int, *, patient: bool) -> None:
        """Have a synchronisation heard, and what came of it."""
        lock = type(obj) in _LOCKS
        if what == "acquire":
            free = obj.free(me) if lock else obj._value > 0  # noqa: SLF001 - as in `shadows`
            what = "fail" if not free else what if patient or not lock else "try"
        elif what == "get" and obj.real.empty():
            what = "fail"
        number = me.numbers.get(id(obj)) or self._number(me, obj)
        self.log((me.index, number, lock, what, site))  # type: ignore[misc] # somebody listens

    def _tell(self) -> None:
        """Have the judges hear what happened since they heard last."""
        self._end_repetition()
        if self.hear is not None:
            if len(self.kept) > self.most_kept:
                self._let_go()
            events, self.events = self.events, []
            self.log = self.events.append
            if self.staying and self.learn:
                self._learn_from(events)
            self.hear(events)

    def _let_go(self) -> None:
        """Let go of objects that are kept here alone: what cannot be referred to weakly."""
        for identity in list(self.kept):
            held = self.kept[identity]
            # One reference is the record's, one is `held`, one the argument's.
            if type(held) is not weakref.ref and sys.getrefcount(held) <= 3:
                self._forget(identity)
        self.most_kept = _MOST_KEPT + 2 * len(self.kept)

    def _forget(self, identity: int) -> None:
        number = self.numbers.pop(identity)
        if self.repetition is not None and self.repetition.is_about(number):
            self._end_repetition()
        self.identities.pop(number, None)
        del self.kept[identity]
        for task in self.tasks:
            task.numbers.pop(identity, None)
        if self.log is not None:
            self.log((0, number, None, "gone", -1))

    def _learn_from(self, events: Iterable[Event]) -> None:
        """The same as `_first_touch`, of an execution in which there was nothing to choose."""
        for thread, number, key, op, site in dict.fromkeys(events):
            if op == "gone":
                self.touched_at.pop(number, None)
            if not isinstance(op, int):
                continue
            places = self.touched_at.setdefault(number, {})
            wrote, sites = places.setdefault(key if op < 2 else None, ({}, set()))
            wrote[thread] = wrote.get(thread, 0) | op & 1
            sites.add(site)
            if len(wrote) > 1 and any(wrote.values()) and sites - self.sites:
                self.sites |= sites
                self.quiet_sites -= sites
                self.widened = True
            elif site not in self.sites:
                self.quiet_sites.add(site)
        self.tracking = bool(self.quiet_sites)

    # ----- the trace ---

    def _note(  # noqa: PLR0917 - by position, for speed
        self, me: Task, obj: Any, key: Any, op: str, write: bool, site: int
    ) -> None:
        """Write a step down, and what the step before has left there."""
        self._fill_in()
        if self.watched:
            self._meet(obj)
        if site in self.watched:
            self.chains[len(self.trace)] = stacks.chain(sys._getframe(2))  # noqa: SLF001 - as below
        where = probes.SITES[site] if site >= 0 else None
        before = peek(obj, key, op)
        me.last = len(self.trace), obj, key, op
        op, label, written = described(obj, key, op, None if where is None else where.name)
        self.trace.append(
            Step(
                thread=me.index,
                place=_place(site),
                op=op,
                location=self._location(obj),
                label=label,
                key=written,
                write=write,
                before=before,
                after=None,
                held=tuple(self._location(lock) for lock in me.held),
            )
        )

    def _meet(self, obj: Any) -> None:
        """Note where an object is accessed first."""
        if id(obj) not in self.origins:
            self.origins[id(obj)] = obj, stacks.chain(sys._getframe(2), limit=12)  # noqa: SLF001 - as above

    def _note_pause(self, task: Task) -> None:
        gate = task.gate
        waits = gate is not None and not gate.open(task)
        other = _awaited(task) if waits else None
        pending = self.pending[task.index]
        self.pauses.append(
            Pause(
                steps=len(self.trace),
                thread=task.index,
                ready=not waits and not task.ended,
                ended=task.ended,
                operation=task.what if waits else "",
                source="" if pending is None else _place(pending.site).source,
                by=None if other is None else other.index,
            )
        )

    def _fill_in(self) -> None:
        """Note what the step before has left, before anybody changes it again."""
        for task in self.tasks:
            if task.last is not None:
                index, obj, key, op = task.last
                if self.trace[index].write:
                    self.left[index] = peek(obj, key, op)
                task.last = None

    def _completed(self, trace: Iterable[Step]) -> Iterator[Step]:
        """The steps with what is known in the end; the standard library's code has probes here."""
        lines: dict[tuple[str, int], str] = {}
        for index, step in enumerate(trace):
            where = step.place.file, step.place.line
            if where not in lines:
                lines[where] = linecache.getline(*where).strip() if where[0] else ""
            *known, _, held, _ = step
            yield _make(Step, (*known, self.left.get(index), held, lines[where]))

    def _location(self, obj: Any) -> int:
        found = self.locations.get(id(obj))
        if found is None:
            found = self.locations[id(obj)] = len(self.locations), obj
        return found[0]


def _nothing() -> None:
    pass


def _place(site: int) -> Place:
    if site < 0:
        return Place(file="", line=0, function="", source="")
    where = probes.SITES[site]
    return Place(file=where.file, line=where.line, function=where.function, source=where.text)


def _holding(held: Lock | RLock) -> Holding:
    return Holding(lock=id(held), kind=type(held).__name__, place=_place(held.site))


def _native_id() -> int:
    return threading.get_native_id() if hasattr(threading, "get_native_id") else 0


def _awaited(task: Task) -> Task | None:
    """The thread that would have to act for another one to go on; None if anybody might."""
    gate: Any = task.gate
    if isinstance(gate, shadows.Waiter):
        if not gate.notified:
            return None
        gate = gate.lock
    if isinstance(gate, Task):
        return gate
    if type(gate) in {Lock, RLock}:
        owner: Task | None = gate.owner
        return owner
    return None


def _kind(gate: Any, obj: Any) -> str:
    if isinstance(gate, shadows.Waiter):
        return type(gate.condition).__name__
    return type(gate if type(gate) in {Lock, RLock} else obj).__name__


def _library_call(frame: Any) -> str | None:
    """The library's function that the user's code is inside of, such as `Queue.get`."""
    name = None
    while frame is not None:
        file = frame.f_code.co_filename
        if not stacks.is_ours(file):
            if not stacks.is_foreign(file):
                break
            name = frame.f_code.co_qualname
        elif name is not None:
            break  # where a body begins
        frame = frame.f_back
    return name
