"""A stress run: real threads, released together, at full speed, on fresh state each round.

One round: the calling thread makes the state; the carriers are woken, meet at a rendezvous where
they spin (waking up takes the kernel some 50 µs, far longer than most races are open; leaving a
spin takes a fraction of one), and run their bodies; the last one to end wakes the calling thread,
which takes the state down. All set-up and tear-down happens on the calling thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import os
import queue
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, cast

from pytest_freethread import interpreter
from pytest_freethread.execution import leaks, stacks
from pytest_freethread.records import Execution, Failure, Phase, ThreadState

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from pytest_freethread.records import Plan

T = TypeVar("T")
Hopeless: TypeAlias = "Callable[[tuple[ThreadState, ...]], tuple[ThreadState, ...]]"

SWITCH_INTERVAL = 1e-6
"""Seconds between thread switches on GIL builds; the default of 5 ms hides most races."""

_GLANCE = 0.5
"""Seconds after which a round that has not ended is looked at for a deadlock, again and again."""

_STILL = 0.02
"""Seconds between two quick looks: who takes the same lock at both is looked at more closely."""

_SURE = 0.1
"""Seconds between the two looks that must agree before a deadlock is believed."""

_MOST_LEAKED = 128
"""A run ends early when the code under test has left so many threads behind."""

_LONGEST_DELAY = 512
"""Noise delays the start of a body by up to so many turns of an empty loop, 5 to 10 µs."""


_GENERATED = re.compile(r"(?<=<).*(?=>)", re.DOTALL)
"""The part of a file name that code made at run time has of its own, each time another."""


class SeveralFailures(BaseException):
    """Raised by a body that failed in more than one way."""

    def __init__(self, exceptions: Sequence[BaseException]) -> None:
        super().__init__(*exceptions)
        self.exceptions = exceptions


class Abandoned(BaseException):
    """Raised in threads that were given up, to end those that can still be ended."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a stress run does in each round, as functions of the round's index.

    Attributes:
        begin: makes fresh state and returns one body for each thread.
        end: takes it down, given the indices of the threads that failed; yields what went wrong.
            Not called for a round whose `begin` raised or whose threads got stuck.
        signals: exceptions that are outcomes rather than failures, such as a skip.
        interrupts: exceptions that end the run and are raised again on the calling thread.
        progress: called now and then with the number of rounds done and of failures so far.
        subjects: functions whose modules are under test, besides those below the working directory.
    """

    begin: Callable[[int], Sequence[Callable[[], object]]]
    end: Callable[[int, frozenset[int]], Iterable[tuple[Phase, int | None, BaseException]]]
    signals: tuple[type[BaseException], ...] = ()
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
    progress: Callable[[int, int], None] | None = None
    subjects: tuple[Callable[..., object], ...] = ()


class Companion(Protocol):
    """What goes along with the rounds of a run, and does something to some of them."""

    def prepare(self) -> None:
        """Before the state of a round is made."""

    def begin(self, threads: Sequence[threading.Thread]) -> None:
        """Just before the threads of a round start, which run the bodies in this order."""

    def hush(self) -> None:
        """In the middle of a round that takes long."""

    def end(self, seconds: float) -> None:
        """When the threads of a round have ended, or are given up, after so many seconds."""

    def close(self) -> None:
        """When the run is over, however it ends: leave all as it was."""


def run(
    plan: Plan,
    workload: Workload,
    watch: leaks.ThreadWatch,
    *,
    hopeless: Hopeless,
    companion: Companion | None = None,
) -> Execution:
    """Run all rounds of a plan, within its budgets.

    Args:
        plan: how many threads and rounds, and the budgets.
        workload: what they do.
        watch: knows the threads that the code under test starts.
        hopeless: which of some threads can never go on; asked about a round that takes long, so
            that a deadlock does not last until the deadline.
        companion: goes along with the rounds; closed in the end.

    Raises:
        BaseException: one of the workload's `interrupts`, from whichever thread it came, or what
            a signal handler raised on the calling thread. The threads are given up then.
    """
    with interpreter.switch_interval(SWITCH_INTERVAL):
        try:
            return _Run(plan, workload, watch, hopeless, companion).run()
        finally:
            if companion is not None:
                companion.close()


@dataclass(kw_only=True)
class _Group:
    """Failures that are one and the same; `Failure` while it still counts."""

    exception: BaseException
    phase: Phase
    thread: int | None
    round: int
    text: str
    texts: Counter[str] = field(default_factory=Counter)

    def frozen(self) -> Failure:
        return Failure(
            exception=self.exception,
            phase=self.phase,
            thread=self.thread,
            round=self.round,
            text=self.text,
            count=self.texts.total(),
            other_texts=tuple(each for each in self.texts.most_common() if each[0] != self.text),
        )


class _Tally:
    """Groups exceptions by type and by the lines that they came through."""

    def __init__(self) -> None:
        self._groups: dict[object, _Group] = {}

    def add(self, phase: Phase, thread: int | None, round_: int, exception: BaseException) -> None:
        trace = stacks.without_our_frames(exception.__traceback__)
        exception.__traceback__ = trace
        lines = []
        while trace is not None:
            lines.append((_GENERATED.sub("", trace.tb_frame.f_code.co_filename), trace.tb_lineno))
            trace = trace.tb_next
        key = (phase, type(exception), tuple(lines[:20] + lines[-20:]))
        text = stacks.text_of(exception)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(
                exception=exception, phase=phase, thread=thread, round=round_, text=text
            )
        group.texts[text] += 1

    @property
    def total(self) -> int:
        return sum(group.texts.total() for group in self._groups.values())

    def frozen(self) -> tuple[Failure, ...]:
        failures = [group.frozen() for group in self._groups.values()]
        return tuple(sorted(failures, key=lambda failure: -failure.count))


class _CarrierThread(interpreter.Thread):
    carrier: _Carrier


class _Carrier:
    """A thread of the harness that runs one body a round, for one run after another."""

    def __init__(self) -> None:
        self.run: _Run | None = None
        self.index = 0
        self.ended = True
        self.error: BaseException | None = None
        self._body: Callable[[], object] = _nothing
        self._context = contextvars.Context()
        self._turns = range(0)
        self._settle: Callable[[], object] = _nothing
        self._wake = interpreter.Lock()
        self._wake.acquire()
        self.thread = _CarrierThread(target=self._loop, daemon=True)
        self.thread.carrier = self
        leaks.mark_as_ours(self.thread)
        self.thread.start()
        # The interpreter no longer looks: it does not wait for this thread at exit. The code under
        # test does: threads that it starts are no daemons, as they would not be without us.
        self.thread._daemonic = False  # type: ignore[attr-defined] # noqa: SLF001

    def hire(self, run: _Run, index: int) -> None:
        """Belong to a run from now on."""
        self.error = None
        self.run = run
        self.index = index
        self.thread.name = f"freethread-{index}"
        self._settle = interpreter.core_settler(index)

    def start(self, body: Callable[[], object], delay: int) -> None:
        """Run a body, `delay` turns of an empty loop after all carriers have met."""
        inherited = interpreter.inherits_context()
        self._context = contextvars.copy_context() if inherited else contextvars.Context()
        self._body = body
        self._turns = range(delay)
        self.ended = False
        self._wake.release()

    def dismiss(self) -> None:
        """End the thread, which runs no body now."""
        self.run = None
        self._wake.release()

    def _loop(self) -> None:
        while True:
            self._wake.acquire()
            run, turns = self.run, self._turns
            if run is None:
                return
            try:
                self._settle()
                run.rendezvous()
                for _ in turns:
                    pass
                self._context.run(self._body)
            except BaseException as error:
                self.error = error
            # The state must be gone before the next round makes its own.
            self._body, self._context = _nothing, contextvars.Context()
            self.ended = True
            if run.abandoned:
                return
            run.arrive_at_end()
            del run


def _nothing() -> None:
    pass


_idle: list[_Carrier] = []
"""Carriers between runs: to start a thread costs a free-threaded build a quarter of a ms."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


class _Run:
    def __init__(
        self,
        plan: Plan,
        workload: Workload,
        watch: leaks.ThreadWatch,
        hopeless: Hopeless,
        companion: Companion | None,
    ) -> None:
        self.plan = plan
        self.workload = workload
        self.watch = watch
        self.hopeless = hopeless
        self.companion = companion
        self.failures = _Tally()
        self.signals = _Tally()
        self.executions = 0
        self.rounds = 0
        self.abandoned = False
        self._started = interpreter.monotonic()
        self._longest_round = 0.0
        self._reported = self._started
        self._arrived: list[None] = []
        self._yield_core = interpreter.core_yielder()
        # Whoever spins while others have no core to arrive on only keeps them waiting.
        together = not interpreter.gil_enabled() and interpreter.usable_cores() >= plan.threads
        self._patience = 20_000 if together else 20
        self._running = 0
        self._counting = interpreter.Lock()
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = interpreter.SimpleQueue()
        self._carriers: list[_Carrier] = []
        self._random = random.Random(plan.seed)  # noqa: S311 - noise, no secret

    def rendezvous(self) -> None:
        """Return when all carriers have come here, at nearly the same moment."""
        arrived, everybody, patience = self._arrived, self.plan.threads, self._patience
        arrived.append(None)  # atomic, as is len(), on every build
        while len(arrived) < everybody:
            patience -= 1
            if patience < 0:
                self._yield_core()

    def arrive_at_end(self) -> None:
        with self._counting:
            self._running -= 1
            last = self._running == 0
        if last:
            self._errands.put(None)

    def send(self, errand: Callable[[], None]) -> None:
        """Have something done by the calling thread while it waits for the round to end."""
        self._errands.put(errand)

    def run(self) -> Execution:
        cut: str | None = None
        stuck: tuple[ThreadState, ...] = ()
        try:
            for index in range(self.plan.threads):
                carrier = _idle.pop() if _idle else _Carrier()
                carrier.hire(self, index)
                self._carriers.append(carrier)
            for round_ in range(self.plan.rounds):
                cut = self._budget_spent() if round_ else None
                if cut is not None:
                    break
                stuck = self._round(round_)
                if stuck:
                    cut = "its threads are stuck"
                    break
        finally:
            self._dismiss()
        return Execution(
            plan=self.plan,
            rounds=self.rounds,
            executions=self.executions,
            seconds=interpreter.monotonic() - self._started,
            failures=self.failures.frozen(),
            signals=self.signals.frozen(),
            stuck=stuck,
            leaks=() if stuck else self.watch.leaks(grace=0.5),
            cut=cut,
        )

    def _budget_spent(self) -> str | None:
        elapsed = interpreter.monotonic() - self._started
        if self.plan.seconds is not None and elapsed >= self.plan.seconds:
            return f"its {self.plan.seconds:g} s were over"
        if elapsed >= self.plan.deadline:
            return f"the deadline of {self.plan.deadline:g} s was over"
        if len(self.watch.running()) > _MOST_LEAKED:
            return f"it left more than {_MOST_LEAKED} threads behind"
        return None

    def _round(self, round_: int) -> tuple[ThreadState, ...]:
        """Run one round; what its threads are doing if they do not come back."""
        if self.companion is not None:
            self.companion.prepare()
        try:
            bodies = self.workload.begin(round_)
        except BaseException as error:
            self._note("setup", None, round_, error)
            return ()
        began = interpreter.monotonic()
        self._arrived = []
        self._running = len(self._carriers)
        if self.companion is not None:
            self.companion.begin([carrier.thread for carrier in self._carriers])
        for carrier, body in zip(self._carriers, bodies, strict=True):
            carrier.start(body, self._delay())
        del bodies, body
        stuck = self._await_end(began)
        seconds = interpreter.monotonic() - began
        self._longest_round = max(self._longest_round, seconds)
        if self.companion is not None:
            self.companion.end(seconds)
        failed = set()
        for carrier in self._carriers:
            if not carrier.ended:
                continue
            self.executions += 1
            raised, carrier.error = carrier.error, None
            if raised is None:
                continue
            several = raised.exceptions if isinstance(raised, SeveralFailures) else [raised]
            for each in several:
                if self._note("body", carrier.index, round_, each):
                    failed.add(carrier.index)
        if not stuck:
            self.rounds += 1
            for phase, thread, raised in self.workload.end(round_, frozenset(failed)):
                self._note(phase, thread, round_, raised)
        return stuck

    def _delay(self) -> int:
        """None for half of the bodies; for the others short ones more often than long ones."""
        if not self.plan.noise or self._random.random() < 0.5:
            return 0
        return int(_LONGEST_DELAY * self._random.random() ** 3)

    def _note(self, phase: Phase, thread: int | None, round_: int, error: BaseException) -> bool:
        """Take an exception down; whether it is a failure."""
        if isinstance(error, self.workload.interrupts):
            raise error
        signal = isinstance(error, self.workload.signals)
        (self.signals if signal else self.failures).add(phase, thread, round_, error)
        return not signal

    def _await_end(self, began: float) -> tuple[ThreadState, ...]:
        deadline = self.plan.deadline
        # A slow test is not a stuck one: a late round may take as long as others did, and more.
        patience = min(deadline, max(1.0, 10 * self._longest_round)) if self.rounds else deadline
        until = max(self._started + deadline, began + patience)
        while True:
            if self._round_ends_within(min(_GLANCE, until - interpreter.monotonic())):
                self._report_progress()
                return ()
            if self.companion is not None:
                self.companion.hush()
            self._report_progress()
            if interpreter.monotonic() >= until:
                return self._examine()
            with interpreter.undisturbed():
                before = stacks.at_locks()
            if self._round_ends_within(_STILL):
                return ()
            with interpreter.undisturbed():
                waiting = {ident for ident, *_ in before & stacks.at_locks()}
                stuck = self.hopeless(self._examine(waiting)) if waiting else ()
            if stuck:
                if self._round_ends_within(_SURE):
                    return ()
                states = self._examine()
                if self.hopeless(states) == stuck:
                    return states

    def _round_ends_within(self, seconds: float) -> bool:
        until = interpreter.monotonic() + seconds
        while True:
            try:
                errand = self._errands.get(timeout=max(0.0, until - interpreter.monotonic()))
            except queue.Empty:
                return False
            if errand is None:
                return True
            errand()

    def _examine(self, those: Container[int] | None = None) -> tuple[ThreadState, ...]:
        """The states of the carriers that have not ended and of the threads that they started.

        Args:
            those: idents of the threads that are of interest; None: all of them.
        """
        threads: dict[int, tuple[int | None, str]] = {
            carrier.thread.ident or 0: (carrier.index, carrier.thread.name)
            for carrier in self._carriers
            if not carrier.ended
        }
        for thread in self.watch.running():
            threads[thread.ident or 0] = (None, thread.name)
        return stacks.examine(
            {ident: who for ident, who in threads.items() if those is None or ident in those}
        )

    def _report_progress(self) -> None:
        now = interpreter.monotonic()
        if self.workload.progress is not None and now - self._reported >= 0.5:
            self._reported = now
            self.workload.progress(self.rounds, self.failures.total)

    def _dismiss(self) -> None:
        """Let the carriers go; give up those that are in a body still."""
        self.abandoned = not all(carrier.ended for carrier in self._carriers)
        if not self.abandoned:
            _idle.extend(self._carriers)
            return
        for carrier in self._carriers:
            if carrier.ended:
                carrier.dismiss()
        abandon(carrier.thread for carrier in self._carriers if not carrier.ended)


def on_calling_thread(function: Callable[[], T]) -> T:
    """Called in a body: have a function done by the thread that runs the rounds.

    Elsewhere the function is just called.
    """
    thread = threading.current_thread()
    if not isinstance(thread, _CarrierThread):
        return function()
    done = interpreter.Lock()
    done.acquire()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def errand() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            done.release()

    assert thread.carrier.run is not None
    thread.carrier.run.send(errand)
    done.acquire()
    value, error = outcome[0]
    if error is not None:
        raise error
    return cast("T", value)


def abandon(threads: Iterable[threading.Thread]) -> None:
    """Ask threads to end: they do where they run Python code, not where they block in C."""

    def ask(ident: int | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(ident or 0), ctypes.py_object(Abandoned)
        )

    for thread in threads:
        ask(thread.ident)
    # On 3.11, asking a thread that is blocked leaves a flag set which makes every traced function
    # (coverage, debuggers) wait for ever; a thread that takes such an exception clears it.
    with contextlib.suppress(Abandoned):
        ask(interpreter.get_ident())
        for _ in range(1_000):
            pass
