"""Replay of a list of choices, and the token that it prints as."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from pytest_freethread.errors import SettingError
from pytest_freethread.scheduling.protocol import Diverged, name_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_freethread.records import Pending

VERSION = "ft1"
LONGEST = 10_000_000  # steps; a token that asks for more was not made here

_RUN = re.compile(r"(\d+)x(\d+)", re.ASCII)


def encode(choices: Iterable[int]) -> str:
    """The token of a list of choices: `ft1:0x3.1x2` is thread 0 thrice, then thread 1 twice."""
    runs = (f"{thread}x{sum(1 for _ in run)}" for thread, run in groupby(choices))
    return f"{VERSION}:{'.'.join(runs)}"


def decode(token: str) -> tuple[int, ...]:
    """The choices that a token stands for.

    Raises:
        SettingError: it is no token, or one of another version.
    """
    version, colon, runs = token.strip().partition(":")
    if not colon or not re.fullmatch(r"ft\d+", version, re.ASCII):
        raise SettingError(f"{token!r} is no token of a schedule; one looks like 'ft1:0x3.1x2'")
    if version != VERSION:
        raise SettingError(f"token {token!r} is of version {version!r}; this is {VERSION!r}")
    choices: list[int] = []
    for run in runs.split(".") if runs else ():
        match = _RUN.fullmatch(run)
        if match is None or int(match[2]) == 0:
            raise SettingError(
                f"token {token!r}: {run!r} is no run; one is THREADxTIMES, such as '0x3'"
            )
        if len(choices) + int(match[2]) > LONGEST:
            raise SettingError(f"token {token!r} is longer than {LONGEST:,} steps")
        choices += [int(match[1])] * int(match[2])
    return tuple(choices)


class Replay:
    """One execution that follows a list of choices, then stays on whoever runs.

    Args:
        choices: the thread of every step.
        strict: whether a choice that cannot be made, or is left over, raises `Diverged`. Without
            it such a choice is passed over, for shrinking: any list is a schedule.
    """

    exhausted = False

    def __init__(self, choices: Sequence[int], *, strict: bool = True) -> None:
        self._choices = choices
        self._strict = strict
        self._step = 0
        self._begun = False

    def begin(self) -> bool:
        """There is one execution."""
        if self._begun:
            return False
        self._begun = True
        return True

    def choose(
        self, enabled: Sequence[int], current: int | None, _pending: Sequence[Pending | None]
    ) -> int:
        """The next of the choices.

        Raises:
            Diverged: the thread cannot run.
        """
        while self._step < len(self._choices):
            thread = self._choices[self._step]
            self._step += 1
            if thread in enabled:
                return thread
            if self._strict:
                raise Diverged(
                    self._step - 1, f"thread {thread} to run", f"only {name_threads(enabled)} can"
                )
        return stay(enabled, current)

    def stays(self) -> bool:
        """See `protocol.Stays`."""
        return not self._choices

    def end(self) -> None:
        """Check that all choices were made.

        Raises:
            Diverged: the execution was shorter.
        """
        if self._strict and self._step < len(self._choices):
            step = self._step
            raise Diverged(step, f"thread {self._choices[step]} to run", "the execution has ended")


def stay(enabled: Sequence[int], current: int | None) -> int:
    """Whoever ran last, or else the first: the choice that costs no preemption."""
    return current if current is not None and current in enabled else enabled[0]
