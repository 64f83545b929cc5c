"""Leaf: what a setting may be, and the one-line answer to a value that it may not be.

Calls, markers, options and the ini file all come through here, so that a value means the same
everywhere and an error says where the value came from.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import random
from typing import TYPE_CHECKING, Any

from pytest_freethread import interpreter
from pytest_freethread.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pytest_freethread.records import Plan

AUTO = "auto"


def threads(value: object, where: str) -> int:
    """A number of threads; `auto` is one for each core, and at least 8."""
    if value == AUTO:
        return max(8, interpreter.usable_cores())
    return _positive_int(value, where, "a number of threads (a positive integer, or 'auto')")


def rounds(value: object, where: str) -> int:
    """A number of rounds."""
    return _positive_int(value, where, "a number of rounds (a positive integer)")


def seconds(value: object, where: str) -> float | None:
    """A budget in seconds; None or `none` for no limit."""
    if value is None or value == "none":
        return None
    return _positive_float(value, where, "a budget in seconds (a positive number, or 'none')")


def deadline(value: object, where: str) -> float:
    """A deadline in seconds."""
    return _positive_float(value, where, "a deadline in seconds (a positive number)")


def seed(value: object, where: str) -> int:
    """A seed; None draws one."""
    if value is None:
        return random.randrange(100_000)  # noqa: S311 - a seed that people type, no secret
    number = _int(value)
    if number is None or number < 0:
        raise SettingError(f"{where}: {value!r} is not a seed (an integer from 0 on)")
    return number


def noise(value: object, where: str) -> bool:
    """On or off."""
    if isinstance(value, bool):
        return value
    raise SettingError(f"{where}: {value!r} is not True or False")


PARSERS: Mapping[str, Callable[[object, str], Any]] = {
    "threads": threads,
    "rounds": rounds,
    "seconds": seconds,
    "seed": seed,
    "noise": noise,
    "deadline": deadline,
}
"""By the name of a Plan's field."""

DEFAULTS: Mapping[str, object] = {
    "threads": AUTO,
    "rounds": 50,
    "seconds": None,
    "seed": None,
    "noise": True,
    "deadline": 30.0,
}


def plan(values: Mapping[str, tuple[object, str]]) -> Plan:
    """A Plan of (value, where it came from) by field; what is not named has its default.

    Raises:
        SettingError: a value means nothing.
    """
    from pytest_freethread.records import Plan  # noqa: PLC0415 - not needed to check values

    return Plan(
        **{
            name: parse(*values.get(name, (DEFAULTS[name], f"the default of {name}")))
            for name, parse in PARSERS.items()
        }
    )


def unknown(
    name: str, known: Collection[str], where: str, *, what: str = "setting"
) -> SettingError:
    """The answer to a name that does not exist, with the likeliest one that does."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(known))}"
    said = "no such setting" if what == "setting" else f"no such {what}: {name!r}"
    return SettingError(f"{where}: {said}; {hint}")


def _positive_int(value: object, where: str, what: str) -> int:
    number = _int(value)
    if number is None or number < 1:
        raise SettingError(f"{where}: {value!r} is not {what}")
    return number


def _int(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def _positive_float(value: object, where: str, what: str) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(value)
    if not 0 < number < math.inf:
        raise SettingError(f"{where}: {value!r} is not {what}")
    return number
