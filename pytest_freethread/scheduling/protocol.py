"""The narrow interface between a strategy and the execution that it steers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_freethread.records import Pending


class Scheduler(Protocol):
    """Decides who runs next. A new execution begins with `begin` and ends with `end`.

    Attributes:
        exhausted: after `begin` returned False: whether every interleaving was tried, up to
            equivalence.
    """

    exhausted: bool

    def begin(self) -> bool:
        """Get ready for another execution; False if there is none."""

    def choose(
        self, enabled: Sequence[int], current: int | None, pending: Sequence[Pending | None]
    ) -> int:
        """Say who runs next.

        Called at every step, also where one thread only can run.

        Args:
            enabled: the threads that can run now, as ascending indices in order of creation.
            current: who ran last; None at the first step.
            pending: what each thread will do next. None for a thread that has not been started,
                that has ended, or whose next step touches nothing that is shared. The execution
                keeps one list and updates it in place, so that at `end` it says what each thread
                still waits for: a deadlock tells who wanted what.

        Returns:
            One of `enabled`.
        """

    def end(self) -> None:
        """The execution that began last has ended: normally, by a deadlock or by a failure."""


@runtime_checkable
class Stays(Protocol):
    """A scheduler that can say when there is nothing to ask it."""

    def stays(self) -> bool:
        """Whether it always chooses whoever runs, in the execution that began last."""


class Diverged(Exception):  # noqa: N818 - it is an event in a run, not somebody's error
    """A replayed execution did not go the way it went before.

    Attributes:
        step: index of the step, from 0.
        expected: what was there when the choices were made.
        actual: what is there now.
    """

    def __init__(self, step: int, expected: str, actual: str) -> None:
        super().__init__(f"step {step}: expected {expected}, but {actual}")
        self.step = step
        self.expected = expected
        self.actual = actual


def dependent(a: Pending, b: Pending) -> bool:
    """Whether the order of two operations of different threads can matter."""
    return (
        a.obj is b.obj
        and (a.write or b.write)
        and (a.key is b.key or a.key is None or b.key is None or _equal(a.key, b.key))
    )


def _equal(a: Any, b: Any) -> bool:
    """Whether two keys are equal; True, which is the safe side, where they do not say."""
    try:
        return bool(a == b)
    except Exception:
        return True


def name_threads(threads: Sequence[int]) -> str:
    """`thread 0`, `threads 0, 2`, for messages."""
    return f"thread{'s' * (len(threads) != 1)} {', '.join(map(str, threads))}"


def name_turn(thread: int, site: int | None) -> str:
    """`thread 1 at site 7`, for messages."""
    return f"thread {thread} at {'no site' if site is None else f'site {site}'}"
