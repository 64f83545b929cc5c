"""The schedules that anybody would try first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class Plain:
    """Three executions: one thread after the other, the other way round, and in turns."""

    exhausted = False

    def __init__(self) -> None:
        self._execution = 0

    def begin(self) -> bool:
        """There are three."""
        self._execution += 1
        return self._execution <= 3

    def choose(
        self, enabled: Sequence[int], current: int | None, _pending: Sequence[Pending | None]
    ) -> int:
        """By position alone."""
        if self.stays():
            if current is not None and current in enabled:
                return current
            return enabled[0 if self._execution == 1 else -1]
        if current is not None:
            for thread in enabled:
                if thread > current:
                    return thread
        return enabled[0]

    def stays(self) -> bool:
        """See `protocol.Stays`."""
        return self._execution <= 2

    def end(self) -> None:
        """Nothing is learned."""
