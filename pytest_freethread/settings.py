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
    from typing import TypeAlias

    from pytest_freethread.records import ExplorationPlan, ParallelPlan, Plan

    # By the name of a setting: what was given, and where.
    Values: TypeAlias = Mapping[str, tuple[object, str]]

AUTO = "auto"
MODES = ("stress", "explore")
STRATEGIES = ("auto", "random", "pct", "pos", "surw", "dfs", "dpor")
RACES = ("error", "note", "off")
JUDGED = ("race", "atomicity", "lock-order")


def mode(value: object, where: str) -> str:
    """One of `MODES`."""
    return _one_of(MODES, value, where, "a mode")


def threads(value: object, where: str) -> int:
    """A number of threads; `auto` is one for each core, and at least 8."""
    if value == AUTO:
        return max(8, interpreter.usable_cores())
    return _positive_int(value, where, "a number of threads (a positive integer, or 'auto')")


def rounds(value: object, where: str) -> int:
    """A number of rounds."""
    return _positive_int(value, where, "a number of rounds (a positive integer)")


def schedules(value: object, where: str) -> int:
    """A number of schedules."""
    return _positive_int(value, where, "a number of schedules (a positive integer)")


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


def switch(value: object, where: str) -> bool:
    """On or off."""
    if isinstance(value, bool):
        return value
    raise SettingError(f"{where}: {value!r} is not True or False")


def strategy(value: object, where: str) -> object:
    """The name of a strategy, or a `Scheduler`."""
    if all(callable(getattr(value, name, None)) for name in ("begin", "choose", "end")):
        return value
    return _one_of(STRATEGIES, value, where, "a strategy", "or a Scheduler of your own")


def preemptions(value: object, where: str) -> int | None:
    """A number of preemptions; None for any number."""
    number = None if value is None else _int(value)
    if value is not None and (number is None or number < 0):
        raise SettingError(
            f"{where}: {value!r} is not a number of preemptions (an integer from 0 on, or None)"
        )
    return number


def races(value: object, where: str) -> str:
    """What a race is."""
    return _one_of(RACES, value, where, "what a race can be")


def benign(value: object, where: str) -> tuple[str, ...]:
    """Patterns of what judges find and nobody wants to hear of: `[KIND:]GLOB`."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise SettingError(f"{where}: not a list of patterns, such as 'race:Stats.total'")
    for pattern in value:
        kind, colon, glob = pattern.rpartition(":")
        if not glob or (colon and kind not in {*JUDGED, "*"}):
            kinds = ", ".join(map(repr, JUDGED))
            raise SettingError(
                f"{where}: {pattern!r} is not a pattern ([KIND:]GLOB with one of {kinds}, such as "
                "'race:Stats.total' or 'legacy/*.py')"
            )
    return tuple(value)


def include(value: object, where: str) -> tuple[str, ...]:
    """Names of modules and packages."""
    if not isinstance(value, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in value
    ):
        raise SettingError(f"{where}: not a list of module names")
    return tuple(value)


def thread_counts(value: object, where: str) -> tuple[int, ...]:
    """Numbers of threads to measure with, ascending; `auto` is one for each core, at least 2."""
    if value == AUTO:
        return (max(2, interpreter.usable_cores()),)
    if isinstance(value, str):
        value = value.split(",")
    given = value if isinstance(value, list | tuple | range) else [value]
    what = "numbers of threads (such as 4, [1, 2, 4] or '1,2,4', or 'auto')"
    if not given:
        raise SettingError(f"{where}: {value!r} is not {what}")
    return tuple(sorted({_positive_int(each, where, what) for each in given}))


def pairs(value: object, where: str) -> int:
    """A number of pairs of runs."""
    return _positive_int(value, where, "a number of pairs of runs (a positive integer)")


def locks(value: object, where: str) -> bool | None:
    """Whether waits for locks are timed; None or `auto` where a claim does not hold."""
    if value is None or value == AUTO:
        return None
    if value in {"always", "never"}:
        return value == "always"
    if isinstance(value, bool):
        return value
    raise SettingError(
        f"{where}: {value!r} does not say when to time locks (True or 'always', False or 'never', "
        "None or 'auto': where a claim does not hold)"
    )


def asked(value: object, where: str) -> float | None:
    """The least or the most that is asked for; None: nothing."""
    if value is None:
        return None
    return _positive_float(value, where, "what can be asked for (a positive number, or None)")


def efficiency(value: object, where: str) -> float | None:
    """A share of what is possible, from 0 to 1; None: nothing is asked."""
    share = asked(value, where)
    if share is not None and share > 1:
        raise SettingError(f"{where}: {value!r} is not a share (a number up to 1, or None)")
    return share


def turns(value: object, where: str) -> tuple[tuple[int, int], ...]:
    """Turns of a schedule: (steps, who) each."""
    turns = []
    for turn in value if isinstance(value, list | tuple) else [None]:
        numbers = turn if isinstance(turn, list | tuple) else ()
        if len(numbers) != 2 or not all(type(each) is int and each >= 0 for each in numbers):
            raise SettingError(f"{where}: not a list of turns (pairs of integers from 0 on)")
        turns.append((numbers[0], numbers[1]))
    return tuple(turns)


def index(value: object, where: str) -> int:
    """An index, counted from 0."""
    if type(value) is int and value >= 0:
        return value
    raise SettingError(f"{where}: {value!r} is not an index (an integer from 0 on)")


_OF_BOTH: Mapping[str, Callable[[object, str], Any]] = {
    "threads": threads,
    "seconds": seconds,
    "seed": seed,
    "deadline": deadline,
    "races": races,
    "benign": benign,
}
PARSERS: Mapping[str, Mapping[str, Callable[[object, str], Any]]] = {
    "stress": {**_OF_BOTH, "rounds": rounds, "noise": switch},
    "explore": {
        **_OF_BOTH,
        "schedules": schedules,
        "strategy": strategy,
        "preemptions": preemptions,
        "include": include,
    },
    "parallel": {
        "threads": thread_counts,
        "pairs": pairs,
        "seconds": seconds,
        "locks": locks,
        "pin": switch,
        "deadline": deadline,
        "min_speedup": asked,
        "min_efficiency": efficiency,
        "max_total": asked,
    },
}
"""By mode, and by the name of a field of its plan; `parallel` is how parallelism is measured."""

DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "stress": {
        "threads": AUTO,
        "rounds": 50,
        "seconds": None,
        "seed": None,
        "noise": True,
        "deadline": 30.0,
        "races": "off",
        "benign": (),
    },
    "explore": {
        "threads": AUTO,
        "schedules": 200,
        "seconds": 2.0,
        "seed": 0,
        "deadline": 30.0,
        "strategy": "auto",
        "preemptions": None,
        "races": "note",
        "benign": (),
        "include": (),
    },
    "parallel": {
        "threads": AUTO,
        "pairs": 100,
        "seconds": 3.0,
        "locks": None,
        "pin": False,
        "deadline": 30.0,
        "min_speedup": None,
        "min_efficiency": None,
        "max_total": None,
    },
}
"""Those of tests; by mode, and by the name of a field of its plan."""


def plan(values: Values) -> Plan:
    """A Plan of what was given; what was not has its default.

    Raises:
        SettingError: a value means nothing.
    """
    from pytest_freethread.records import Plan  # noqa: PLC0415 - not needed to check values

    return Plan(**_parsed("stress", values))


def exploration(values: Values) -> ExplorationPlan:
    """The same for an exploration. By itself, the number of its threads is two.

    Raises:
        SettingError: a value means nothing.
    """
    from pytest_freethread.records import ExplorationPlan  # noqa: PLC0415 - see above

    if values.get("threads", (AUTO, ""))[0] == AUTO:
        values = {**values, "threads": (2, "")}
    chosen = _parsed("explore", values)
    if chosen["strategy"] == "dpor" and chosen["preemptions"] is not None:
        raise SettingError(
            f"{values['preemptions'][1]}: strategy 'dpor' takes no bound; 'dfs' does"
        )
    return ExplorationPlan(**chosen)


def parallel(values: Values) -> ParallelPlan:
    """The same for a measurement of parallelism.

    Raises:
        SettingError: a value means nothing.
    """
    from pytest_freethread.records import ParallelPlan  # noqa: PLC0415 - see above

    return ParallelPlan(**_parsed("parallel", values))


def unknown(
    name: str, known: Collection[str], where: str, *, what: str = "setting"
) -> SettingError:
    """The answer to a name that does not exist, with the likeliest one that does."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(known))}"
    said = "no such setting" if what == "setting" else f"no such {what}: {name!r}"
    return SettingError(f"{where}: {said}; {hint}")


def _parsed(mode: str, values: Values) -> dict[str, Any]:
    defaults = DEFAULTS[mode]
    return {
        name: parse(*values.get(name, (defaults[name], f"the default of {name}")))
        for name, parse in PARSERS[mode].items()
    }


def _one_of(choices: Collection[str], value: object, where: str, what: str, other: str = "") -> str:
    if not isinstance(value, str) or value not in choices:
        *most, last = map(repr, choices)
        listed = f"{', '.join([*most, last])}, {other}" if other else f"{', '.join(most)} or {last}"
        raise SettingError(f"{where}: {value!r} is not {what} ({listed})")
    return value


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
