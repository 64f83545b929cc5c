"""The probes of a free run: in for some of its rounds, and out for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_freethread import interpreter
from pytest_freethread.execution import scope
from pytest_freethread.instrument import probes
from pytest_freethread.instrument.standby import Standby

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_freethread.instrument.probes import Sink

turn: Final = interpreter.Lock()
"""Held by the run that the probes speak to."""


class Probing:
    """The probes of one run. Only one run at a time can have any.

    Args:
        functions: their modules get probes, and those below the working directory.
        exact: whether functions that are younger than their module's last look are looked for, at
            some milliseconds; see `Standby`.
        library: whether the library's modules get probes whose state threads share, and whose locks
            put them in order.

    Attributes:
        left_out: functions without probes, as (name, reason), once they were in.
    """

    def __init__(
        self, functions: tuple[Callable[..., object], ...], *, exact: bool, library: bool = False
    ) -> None:
        self.left_out: tuple[tuple[str, str], ...] = ()
        self._functions = functions
        self._exact = exact
        self._library = library
        self._standby: Standby | None = None
        self._has_turn = self._listening = False

    def get_ready(self) -> None:
        """Find the functions, once, if it is this run's turn."""
        if self._has_turn or not turn.acquire(blocking=False):
            return
        self._has_turn = True
        modules = scope.own(self._functions)
        if self._library:
            modules |= scope.loaded(scope.STATEFUL_LIBRARY)
        self._standby = Standby(modules.values(), exact=self._exact)
        self.left_out = self._standby.left_out

    def put_in(self) -> bool:
        """Have the probes in; False where another run, or an exploration, has the say over them."""
        self.get_ready()
        return self._standby is not None and self._standby.put_in()

    def take_out(self) -> None:
        """Have the code as it was."""
        self.listen(None)
        assert self._standby is not None
        self._standby.take_out()

    def listen(self, sink: Sink | None) -> None:
        """Have the probes speak to a sink; None: to nobody."""
        # Only if it listened: others may have begun to since.
        if sink is not None or self._listening:
            self._listening = True
            probes.listen(sink)
            self._listening = sink is not None

    def close(self) -> None:
        """Leave all as it was; a thread that still runs code with probes runs it in silence."""
        if not self._has_turn:
            return
        try:
            self.listen(None)
        finally:
            try:
                if self._standby is not None:
                    self._standby.end()
            finally:
                self._has_turn = False
                turn.release()
