"""DPOR: dynamic partial order reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_freethread.scheduling.protocol import Diverged, dependent, name_threads, name_turn
from pytest_freethread.scheduling.replay import stay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class _Node:
    """One step of the execution. Sets of threads and of steps are integers, a bit for each member.

    Attributes:
        thread: who ran.
        operation: what it did; of the execution at hand.
        site: where; of the execution in which the choice was made.
        enabled: who could run.
        done: who need not be tried here: the asleep, those that were tried and those to be tried.
        asleep: whose next operation leads nowhere new: the inherited, and those that were tried.
        turns: what is to be tried after this step, as the threads of the next steps.
        past: the steps that happen before this one, and itself.
        place: the number of its object.
    """

    __slots__ = (
        "asleep", "done", "enabled", "operation", "past", "place", "site", "thread", "turns",
    )  # fmt: skip

    def __init__(
        self, thread: int, operation: Pending | None, enabled: tuple[int, ...], asleep: int
    ) -> None:
        self.thread = thread
        self.operation = operation
        self.site = None if operation is None else operation.site
        self.enabled = enabled
        self.asleep = asleep
        self.done = asleep | 1 << thread
        self.turns: list[list[int]] = []
        self.past = 0
        self.place = -1


class DPOR:
    """One complete execution for each class of equivalent interleavings, until all are tried.

    Abdulla, Aronis, Jonsson & Sagonas, "Source Sets: A Foundation for Optimal Dynamic Partial Order
    Reduction" (JACM 2017; POPL 2014): source sets and sleep sets. Each execution is ordered by what
    happens before what. For every race in it (two dependent operations that nothing orders) the
    steps that make it go the other way are kept as a turn at the first of the two, unless a thread
    they may begin with is tried there anyway. Turns are taken from the end of the trace: the steps
    before are replayed, those of the turn follow, then whoever is not asleep. Unlike in the paper
    all steps of a turn are kept, not only the first one; it leads straight to the reversal, and
    far fewer executions end in a place where everybody is asleep. Wake-up trees, which end
    none there, would need to know objects again in later executions.

    Blocking is read off `enabled`. An operation that could not run before another one (an acquire
    before the release that let it in) does not race with it, but with what came before: the acquire
    of whoever held the lock. What a thread still waits for at the end takes part as if it had
    happened, so orders that a deadlock has hidden are tried too. Whether an operation could have
    run is not known at steps before its thread came to it; then the reverse is tried, and where
    it turns out to be impossible, the search looks further back from there.

    Attributes:
        executions: how many began.
        redundant: how many of them came to a place where all that can happen was tried already.
    """

    def __init__(self) -> None:
        self.exhausted = False
        self.executions = 0
        self.redundant = 0
        self._nodes: list[_Node] = []
        self._replayed = 0  # how many nodes stood before the execution began
        self._step = 0
        self._turn: list[int] = []
        self._turned = 0  # how many of its steps were made
        self._sleep = 0
        self._nothing_new = False  # whoever can run is asleep
        self._sleepers: tuple[int, ...] = ()  # these
        self._pending: Sequence[Pending | None] = ()
        self._trace = _Trace(self._nodes)
        self._blocking: set[int] = set()  # sites where a thread was seen that could not go on
        self._hiding: set[int | None] = set()  # sites where an execution ended that perhaps could

    def begin(self) -> bool:
        """Go back to the last step at which a turn is left to take."""
        self._step = 0
        self._nothing_new = False
        nodes = self._nodes
        if self.executions:
            while nodes and not nodes[-1].turns:
                nodes.pop()
            if not nodes:
                self.exhausted = self._hiding <= self._blocking
                return False
            node = nodes[-1]
            node.asleep |= 1 << node.thread
            self._turn = node.turns.pop()
            self._turned = 1
            node.thread = self._turn[0]
            self._trace.cut(len(nodes) - 1)
        self._replayed = len(nodes)
        self.executions += 1
        return True

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """As before up to the turn, then as the turn says, then whoever is not asleep.

        Raises:
            Diverged: the execution does not go as it went before.
        """
        step = self._step
        self._step = step + 1
        if step >= self._replayed:
            if self._nothing_new:
                return stay(enabled, current)
            return self._explore(step, enabled, current, pending)
        node = self._nodes[step]
        if tuple(enabled) != node.enabled:
            raise Diverged(
                step,
                f"{name_threads(node.enabled)} to be able to run",
                f"only {name_threads(enabled)} can",
            )
        thread = node.thread
        operation = node.operation = pending[thread]
        site = None if operation is None else operation.site
        if step == self._replayed - 1:
            node.site = site
            self._pending = pending
            self._sleep = self._still_asleep(node.asleep, operation, enabled, pending)
        elif site != node.site:
            raise Diverged(step, name_turn(thread, node.site), f"it is {name_turn(thread, site)}")
        return thread

    def _explore(
        self,
        step: int,
        enabled: Sequence[int],
        current: int | None,
        pending: Sequence[Pending | None],
    ) -> int:
        """Make a step that was not made before."""
        self._pending = pending
        self._trace.meet(step, enabled, pending)
        for other, waiting in enumerate(pending):
            if waiting is not None and other not in enabled:
                self._blocking.add(waiting.site)
        sleep = self._sleep
        thread = -1
        if self._turned < len(self._turn):
            thread = self._turn[self._turned]
            self._turned += 1
            if sleep >> thread & 1 or thread not in enabled:
                self._turn = []  # it leads nowhere new, or nowhere at all
                thread = -1
        if thread < 0:
            awake = [t for t in enabled if not sleep >> t & 1] if sleep else enabled
            if not awake:
                self._nothing_new = True
                self._sleepers = tuple(enabled)
                self._pending = [*pending]
                self.redundant += 1
                return stay(enabled, current)
            # What a thread waits for is known once it gets there: first those on their way.
            on_their_way = [t for t in awake if pending[t] is None]
            thread = on_their_way[0] if on_their_way else stay(awake, current)
        operation = pending[thread]
        self._nodes.append(_Node(thread, operation, tuple(enabled), sleep))
        if sleep:
            self._sleep = self._still_asleep(sleep, operation, enabled, pending)
        return thread

    @staticmethod
    def _still_asleep(
        sleep: int,
        operation: Pending | None,
        enabled: Sequence[int],
        pending: Sequence[Pending | None],
    ) -> int:
        """Those whose next operation does not depend on the one that is made."""
        still = 0
        for thread in enabled:
            if sleep >> thread & 1:
                other = pending[thread]
                if operation is None or other is None or not dependent(other, operation):
                    still |= 1 << thread
        return still

    def end(self) -> None:
        """Find the races of the execution, and keep the turns that reverse them."""
        if self._step < self._replayed:
            node = self._nodes[self._step]
            raise Diverged(self._step, name_turn(node.thread, node.site), "the execution has ended")
        if not self._nodes:
            return  # nobody could run at all
        waiting = {t: operation for t, operation in enumerate(self._pending) if operation}
        if self._nothing_new:
            for thread in self._sleepers:
                waiting.pop(thread, None)
        else:
            self._doubt(waiting)
        self._trace.order(waiting)

    def _doubt(self, waiting: dict[int, Pending]) -> None:
        """Note where the execution ended, if that may have been a failure and not a deadlock.

        Such an execution hides races. Nobody says whether a thread that is left could have gone on:
        it could if it was able to and the last step did not touch its object; otherwise it counts
        as blocked if anybody was seen blocked at its site.
        """
        last = self._nodes[-1]
        for thread, operation in waiting.items():
            if thread == last.thread:
                stale = operation is last.operation  # the list was not kept up to date
                self._hiding.add(None if stale else operation.site)
            elif thread in last.enabled:
                touched = last.operation is not None and dependent(operation, last.operation)
                self._hiding.add(operation.site if touched else None)


class _Trace:
    """What happens before what in the execution at hand, and its races."""

    def __init__(self, nodes: list[_Node]) -> None:
        self._nodes = nodes
        self._ordered = 0  # how many nodes have their past
        self._born: dict[int, int] = {}  # thread → the first step at which it was there
        self._steps_of: dict[int, int] = {}  # thread → its steps
        self._users: list[int] = []  # place → the steps that touch its object
        self._places: dict[int, int] = {}  # identity of an object → place

    def meet(self, step: int, enabled: Sequence[int], pending: Sequence[Pending | None]) -> None:
        """Remember since when a thread is there."""
        if len(self._born) < len(pending):
            for thread, operation in enumerate(pending):
                if operation is not None or thread in enabled:
                    self._born.setdefault(thread, step)

    def cut(self, length: int) -> None:
        """Forget all steps but the first ones."""
        kept = (1 << length) - 1
        self._ordered = length
        self._steps_of = {thread: mask & kept for thread, mask in self._steps_of.items()}
        self._users = [mask & kept for mask in self._users]
        while self._users and not self._users[-1]:
            self._users.pop()  # places are numbered in order of their first use
        self._born = {thread: step for thread, step in self._born.items() if step <= length}

    def order(self, waiting: dict[int, Pending]) -> None:
        """Order the new steps, and keep turns for their races.

        Args:
            waiting: what blocked threads would do.
        """
        nodes = self._nodes
        self._places = {
            id(node.operation.obj): node.place
            for node in nodes[: self._ordered]
            if node.operation is not None
        }
        for step in range(self._ordered, len(nodes)):
            node = nodes[step]
            thread = node.thread
            before, known = self._origin(thread)
            past = before | 1 << step
            if node.operation is not None:
                place = self._places.setdefault(id(node.operation.obj), len(self._users))
                if place == len(self._users):
                    self._users.append(0)
                past |= self._look_back(thread, node.operation, before, known, step)
                node.place = place
                self._users[place] |= 1 << step
            for earlier in range(step - 1, known - 1, -1):
                if thread not in nodes[earlier].enabled:
                    past |= nodes[earlier].past  # which let it run, for whatever reason
                    break
            node.past = past
            self._steps_of[thread] = self._steps_of.get(thread, 0) | 1 << step
        self._ordered = len(nodes)
        for thread, operation in waiting.items():
            before, known = self._origin(thread)
            self._look_back(thread, operation, before, known, len(nodes))

    def _origin(self, thread: int) -> tuple[int, int]:
        """What happens before the thread's next step whatever it is, and since when it is known."""
        mine = self._steps_of.get(thread, 0)
        known = mine.bit_length() if mine else self._born.get(thread, len(self._nodes))
        return (self._nodes[known - 1].past if known else 0), known

    def _look_back(
        self, thread: int, operation: Pending, before: int, known: int, until: int
    ) -> int:
        """Reverse the races of an operation with the steps before it; returns its past."""
        past = 0
        place = self._places.get(id(operation.obj), -1)
        rest = self._users[place] & ~before if place >= 0 else 0
        while rest:
            step = rest.bit_length() - 1
            node = self._nodes[step]
            if node.operation is None or not dependent(node.operation, operation):
                rest ^= 1 << step
                continue
            past |= node.past
            if step >= known and thread not in node.enabled:
                rest ^= 1 << step  # it could not run before that step: look further back
            else:
                rest &= ~node.past
                self._reverse(step, thread, operation, before, until)
        return past

    def _reverse(self, step: int, thread: int, operation: Pending, before: int, until: int) -> None:
        """Keep a turn that makes the operation happen before a step, unless it will anyway."""
        nodes = self._nodes
        node = nodes[step]
        done = node.done
        turn: list[int] = []
        started = 0  # threads with a step in the turn
        steps = 0
        for later in range(step + 1, until):
            other = nodes[later]
            if not other.past >> step & 1:
                bit = 1 << other.thread
                if not started & bit:
                    started |= bit
                    if done & bit and not other.past & steps:
                        return  # the turn may begin with it
                steps |= 1 << later
                turn.append(other.thread)
        alone = not started >> thread & 1 and not before & steps
        if alone and done >> thread & 1 and not self._meets(operation, steps):
            return
        turn.append(thread)
        # Whoever cannot start waits for something that no operation says: then try all who can.
        turns = [turn] if turn[0] in node.enabled else [[other] for other in node.enabled]
        for turn in turns:
            if not node.done >> turn[0] & 1:
                node.done |= 1 << turn[0]
                node.turns.append(turn)

    def _meets(self, operation: Pending, steps: int) -> bool:
        """Whether one of the steps depends on an operation."""
        steps &= self._users[self._places[id(operation.obj)]]
        while steps:
            node = self._nodes[steps.bit_length() - 1]
            if node.operation is not None and dependent(node.operation, operation):
                return True
            steps ^= 1 << (steps.bit_length() - 1)
        return False
