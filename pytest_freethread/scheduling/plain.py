"""The schedules that anybody would try first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class Plain:
    """Three executions: always the first thread that can run, always the last, and in turns."""

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
        if self._execution == 1:
            return enabled[0]
        if self._execution == 2:
            return enabled[-1]
        if current is not None:
            for thread in enabled:
                if thread > current:
                    return thread
        return enabled[0]

    def end(self) -> None:
        """Nothing is learned."""
