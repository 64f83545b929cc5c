"""Explorations: everything in place for one controlled execution after another."""

from __future__ import annotations

import contextlib
import gc
import random
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_freethread.execution import carriers
from pytest_freethread.execution.baton import HAS_EVENTFD
from pytest_freethread.execution.kernel import STOP, Kernel, Unwound
from pytest_freethread.instrument import heap, probes, shadows
from pytest_freethread.instrument.swap import Instrumentation, instrumented

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence
    from types import ModuleType, TracebackType
    from typing import Self

    from pytest_freethread.execution.kernel import Chooser, Cleanup, Hear
    from pytest_freethread.records import ControlledExecution

__all__ = ["STOP", "Controlled"]

_MOST_GARBAGE: Final = 20_000
"""Tracked objects that executions may leave before the collector runs between two of them."""

_MANY: Final = 500
"""Executions after which garbage is collected in the end.

What they leave would be mixed with what there was before, and every look through all objects take
longer; a free-threaded build may not come to it by itself for long, since objects from before that
are freed take its counter below zero. But there a collection looks through all that exists, which
after a few executions takes longer than they did.
"""


class Controlled:
    """Everything in place for running the same bodies under one schedule after another.

    Args:
        modules: have probes put into their functions.
        core: which core to run on, as an index; processes that explore at once take different ones.
        learn: choose only where threads were seen to share something; otherwise at every access.
        patience: seconds of real time after which a thread that is blocked in something that is
            not modelled is outside of control, and others go on.
        deadline: the same for a thread that computes, or may do so.
        seed: for the `random` module, the same in every execution.
        eventfd: whether batons are eventfds; locks otherwise.

    Attributes:
        coverage: which functions have probes, and which have not.
    """

    def __init__(
        self,
        modules: Iterable[ModuleType] = (),
        *,
        core: int = 0,
        learn: bool = True,
        patience: float = 1.0,
        deadline: float = 30.0,
        seed: int = 0,
        eventfd: bool = HAS_EVENTFD,
    ) -> None:
        self.coverage = Instrumentation(functions=0, left_out=())
        self._modules = tuple(modules)
        self._make_kernel = partial(
            Kernel,
            core=core,
            learn=learn,
            patience=patience,
            deadline=deadline,
            seed=seed,
            eventfd=eventfd,
        )
        self._kernel: Kernel | None = None
        self._executions = 0
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        shadows.insist_on_being_alone()
        with contextlib.ExitStack() as exits:
            with heap.one_look():
                self.coverage = exits.enter_context(instrumented(self._modules))
                exits.callback(random.setstate, random.getstate())
                exits.enter_context(carriers.counters())
                kernel = self._make_kernel()
            exits.callback(kernel.dismiss)
            exits.enter_context(_no_collection())
            exits.callback(self._collect)
            installed = shadows.Shadows()
            exits.callback(installed.restore)
            installed.install(kernel, self._modules)
            exits.callback(probes.listen, None)
            probes.listen(kernel)
            self._kernel = kernel
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kernel = None
        self._exits.close()

    @property
    def reached(self) -> frozenset[int]:
        """The sites that threads came to in executions whose chooser was not told of all."""
        assert self._kernel is not None, "reached outside of the with block"
        return frozenset(self._kernel.sites | self._kernel.quiet_sites)

    def _collect(self) -> None:
        if self._executions >= _MANY:
            gc.collect()
        self._executions = 0

    def choose_everywhere(self, everywhere: bool) -> None:
        """Choose at every access from now on, as a replay does; or only where threads share."""
        assert self._kernel is not None, "choose_everywhere() outside of the with block"
        self._kernel.learn = not everywhere

    def apart(self, choose: Chooser) -> Chooser:
        """A chooser of the user's own, whose code may have probes, as one for `run`."""
        assert self._kernel is not None, "apart() outside of the with block"
        return self._kernel.apart(choose)

    def run(
        self,
        bodies: Sequence[Callable[..., object]],
        choose: Chooser,
        *,
        setup: Callable[[], object] | None = None,
        invariant: Callable[..., object] | None = None,
        cleanup: Cleanup | None = None,
        max_steps: int = 20_000,
        until: float | None = None,
        early_timeouts: int = 0,
        record: bool = False,
        followed: int = 0,
        stays: bool = False,
        hear: Hear | None = None,
        watched: Container[int] = (),
    ) -> ControlledExecution:
        """Run one execution.

        Args:
            bodies: one for each thread; they get what `setup` returned, if there is a `setup`.
            choose: called with the indices of the threads that can go on, in order; the index of
                the one that ran last (None at first); what each thread will do next, by its index
                (the list changes later on). Returns one of the indices, or `STOP`.
            setup: makes fresh state.
            invariant: asked when all bodies have ended.
            cleanup: called in the end, whatever happened, with the indices of the threads that
                threw something; yields (phase, thread, exception) of what failed in it.
            max_steps: ends the execution as a livelock.
            until: by `interpreter.monotonic`: up to then it may have more steps, if the later half
                of those that it had has changed something; None: it may not.
            early_timeouts: how many short timeouts may fire while others could go on, as a choice.
            record: whether to keep the trace, with values.
            followed: steps of a schedule that the chooser follows. After them a thread that spins
                lets others go first.
            stays: whether the chooser always chooses whoever runs, for as long as that can go on;
                then it is asked now and then only.
            hear: is told what happened (`records.Event`), a part at a time, in order; the last of
                it before this returns.
            watched: sites at which a recorded execution keeps the stacks; it also tells then where
                objects were made.

        Raises:
            BaseException: what the chooser raised; `KeyboardInterrupt` and the like that came up
                in the driving thread. All threads have been unwound then.
        """
        kernel = self._kernel
        assert kernel is not None, "run() outside of the with block"
        if gc.get_count()[0] > _MOST_GARBAGE:
            gc.collect()
        self._executions += 1
        with carriers.quiet_finalizers(Unwound):
            return kernel.execute(
                bodies,
                choose,
                setup=setup,
                invariant=invariant,
                cleanup=cleanup,
                max_steps=max_steps,
                until=until,
                early_timeouts=early_timeouts,
                record=record,
                followed=followed,
                stays=stays,
                hear=hear,
                watched=watched,
            )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collector, and what exists now out of its way when it is called by hand."""
    enabled = gc.isenabled()
    freeze = not heap.is_frozen()
    gc.disable()
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()
        if enabled:
            gc.enable()
