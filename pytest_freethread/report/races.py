"""A race as text: both accesses, who made them, what they held, what usually repairs it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from pytest_freethread.report import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_freethread.records import Finding, Place, Race, RacingAccess

_WIDTH: Final = 98  # of a line; the block is indented by two more
_MOST_CALLERS: Final = 3


def lines(finding: Finding, race: Race) -> Iterator[str]:
    """The evidence of a finding, line by line."""
    if race.made is not None:
        yield f"The object was made at {layout.place(race.made)}  {race.made.source}".rstrip()
        yield ""
    rows = layout.columns(_cells(access) for access in race.accesses)
    for access, row in zip(race.accesses, rows, strict=True):
        yield row
        yield from _whence(access)
    yield ""
    yield from textwrap.wrap(f"{_why(race)} {_repair(race)}", _WIDTH)
    if finding.token is None:
        yield ""
        yield from textwrap.wrap(f"Not replayable: seen in a free run. {_seen(race)}", _WIDTH)
    if finding.reproduced is not None:
        yield ""
        yield "reproduced {}/{}".format(*finding.reproduced)
    again = [how for how in (race.command, race.call) if how]
    if again:
        yield ""
    for index, how in enumerate(again):
        yield f"{'' if index else 'Again:':<8}{how}"


def _cells(access: RacingAccess) -> tuple[str, ...]:
    held = ", ".join(use.name for use in access.holds) or "nothing"
    source = textwrap.shorten(access.place.source, 50, placeholder=" ...")
    where = layout.place(access.place)
    return f"thread {access.thread}", access.action, where, source, f"holding {held}"


def _whence(access: RacingAccess) -> Iterator[str]:
    indent = " " * len(f"thread {access.thread}  ")
    calls = [access.place.function]
    callers = access.stack[-2::-1]
    calls += [f"{each.function} ({layout.place(each)})" for each in callers[:_MOST_CALLERS]]
    if len(callers) > _MOST_CALLERS:
        calls.append("...")
    path = " ← ".join(calls)
    yield from textwrap.wrap(
        f"in {path}", _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}   "
    )
    if access.started_by is not None:
        yield f"{indent}started by {access.started_by}{_at(access.started_at)}"


def _at(place: Place | None) -> str:
    return "" if place is None else f" at {layout.place(place)}"


def _why(race: Race) -> str:
    one, other = race.accesses
    met = "" if race.together else " in this schedule they did not meet, but"
    held = {access.thread: [use.name for use in access.holds] for access in race.accesses}
    if not one.holds and not other.holds:
        reason = "neither thread holds a lock"
    elif one.holds and other.holds:
        reason = " and ".join(
            f"thread {access.thread} holds {' and '.join(held[access.thread])}"
            for access in race.accesses
        )
    else:
        bare, locked = (one, other) if not one.holds else (other, one)
        reason = f"{_noun(bare)} is not under {' or '.join(use.name for use in locked.holds)}"
    return f"Nothing orders them:{met} {reason}."


def _seen(race: Race) -> str:
    if race.together:
        return (
            "One thread was held up before its access until the other one came to its own: both "
            "stood there at the same moment."
        )
    return (
        "No lock, queue or thread that was recorded puts them in order. They were not seen at the "
        "same moment, so something that was not recorded may."
    )


def _noun(access: RacingAccess) -> str:
    if access.action == "walked over":
        return "the loop"
    return f"the {'write' if access.action == 'wrote' else 'read'} of thread {access.thread}"


def _repair(race: Race) -> str:
    one, other = race.accesses
    if race.published:
        return (
            "It was written once, and the reader has seen what was written: harmless if it is a "
            "flag that is polled, or is looked at again under the lock before anything is done."
        )
    if "walked over" in {one.action, other.action}:
        return "Usual repair: hold one lock around the loop and the change, or loop over a copy."
    locked = [access for access in race.accesses if access.holds]
    if len(locked) == 1:
        (bare,) = (access for access in race.accesses if not access.holds)
        return f"Usual repair: take {locked[0].holds[-1].name} in {bare.place.function}."
    if locked:
        return "Usual repair: take the same lock at both places."
    return "Usual repair: hold one lock at both places, or hand the value over through a queue."
