"""A schedule as turns: for how long nobody is preempted, and who goes on then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_freethread.records import Pending

_NEVER = -1


class Turns:
    """One execution in which turns say who goes on, and when; then nobody is preempted any more.

    A turn is (steps, who). After that many steps, of whichever threads, the one that runs is
    preempted; with 0 steps the turn lasts for as long as the thread can go on. Then `who` of the
    others goes on: 0 is the next one, and whatever is too large goes round again. So 0 is always
    what anybody would do, and whatever the numbers are, they are a schedule of any program.

    Args:
        turns: (steps, who) each.
        first: who goes on in the beginning, counted likewise.
    """

    exhausted = False

    def __init__(self, turns: Iterable[tuple[int, int]], first: int = 0) -> None:
        self._turns = iter(turns)
        self._first = first
        self._step = 0
        self._until = self._who = 0
        self._begun = False

    def begin(self) -> bool:
        """There is one execution."""
        begun, self._begun = self._begun, True
        return not begun

    def choose(
        self, enabled: Sequence[int], current: int | None, _pending: Sequence[Pending | None]
    ) -> int:
        """Whoever runs, or the one that its turn names."""
        step = self._step
        self._step = step + 1
        if step == 0:
            self._take_turn(step)
            return enabled[self._first % len(enabled)]
        stays = current is not None and current in enabled
        if step == self._until or (self._until == _NEVER and not stays):
            who = self._who
            self._take_turn(step)
            last = -1 if current is None else current
            others = [thread for thread in enabled if thread > last]
            others += [thread for thread in enabled if thread < last]
            if others:
                return others[who % len(others)]
        return current if stays else enabled[0]  # type: ignore[return-value] # None never stays

    def end(self) -> None:
        """Nothing is learned."""

    def _take_turn(self, step: int) -> None:
        steps, self._who = next(self._turns, (0, 0))
        self._until = step + steps if steps else _NEVER
