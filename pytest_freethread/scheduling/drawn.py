"""Schedules that Hypothesis draws, shrinks and replays.

A drawn schedule is a list of turns (see `Turns`): after how many steps whoever runs is preempted,
and who goes on then. The choice 0 is to stay on whoever runs. So what Hypothesis calls simpler,
fewer and smaller choices, is a schedule with fewer preemptions, and its shrinker finds the fewest.

The turns are drawn before anything runs. To draw at every step instead would be as many choices as
there are steps (thousands, of the 8,192 bytes that Hypothesis gives an example), and the shape of
the data would depend on the program: one that caches something takes fewer steps the second time,
which Hypothesis rightly calls a flaky strategy. Turns say nothing of the program, so whatever is
drawn is a schedule of it.

As in PCT (Burckhardt 2010) a few switches at random places are what most bugs need. There the
places are drawn evenly from a known number of steps; here that is not known, so a turn's length is
drawn evenly from one of several ranges, each some times as long as the one before.
"""

from __future__ import annotations

import contextlib
import copy
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from hypothesis import Verbosity, note, settings, target
from hypothesis import strategies as st
from hypothesis._settings import local_settings
from hypothesis.control import (
    BuildContext,
    _current_build_context,
    current_build_context,
    currently_in_test_context,
)
from hypothesis.errors import InvalidArgument, UnsatisfiedAssumption
from hypothesis.internal.conjecture.data import ConjectureData
from hypothesis.reporting import current_reporter, current_verbosity, with_reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from hypothesis.strategies import SearchStrategy

    Strategy: TypeAlias = SearchStrategy

T = TypeVar("T")

SIGNALS: Final = (UnsatisfiedAssumption,)
"""Exceptions that say something of the example, not of the code under test."""

_STEPS: Final = ((0, 2), (1, 8), (1, 32), (1, 128), (1, 512))
"""Of a turn: evenly from one of these ranges."""

_MOST_TURNS: Final = 12
_OTHERS: Final = 2
"""The highest number that is drawn for who goes on."""

_MADE_OF_TURNS: Final = "turns=lists(tuples(one_of(integers("
"""What the repr of each strategy for schedules has in it, and of those that are made of it."""

_A_DAY: Final = 86_400.0
"""Seconds: more than any deadline."""

_CONSTANT: Final = frozenset({type(None), bool, int, float, complex, str, bytes})

_COVERAGE: Final = "distinct switches between places in the code"


def strategy(make: Callable[..., T]) -> Strategy[T]:
    """A strategy for what `make(turns=…, first=…)` makes of drawn turns."""
    steps = st.one_of([st.integers(least, most) for least, most in _STEPS])
    who = st.integers(0, _OTHERS)
    return st.builds(make, turns=st.lists(st.tuples(steps, who), max_size=_MOST_TURNS), first=who)


def draws_schedules(strategy: object) -> bool:
    """Whether a strategy draws schedules, perhaps as a part of something."""
    return _MADE_OF_TURNS in repr(strategy)


def draws_later(strategy: object) -> bool:
    """Whether a strategy is one for drawing within the test, as `st.data()` is."""
    return re.search(r"\bdata\(\)", repr(strategy)) is not None


# --- the example that is under way ----------------------------------------------------------------


def is_shown() -> bool:
    """Whether anybody sees what is noted: it is the smallest example, or all are shown."""
    if not currently_in_test_context():
        return False
    return current_build_context().is_final or current_verbosity() >= Verbosity.verbose


def tell(text: object) -> None:
    """Have something shown with the example."""
    note(text)


def score(switches: int) -> None:
    """Have Hypothesis look for more of the like; of an example's runs the first one counts."""
    if currently_in_test_context():
        with contextlib.suppress(InvalidArgument):  # there was one before
            target(switches, label=_COVERAGE)


def lift_the_deadline() -> None:
    """Take this example's deadline away: time under control says nothing of the code under test."""
    if currently_in_test_context():
        # Taken off the example's time, as that of a stateful test's rules is, which have their own.
        times = getattr(current_build_context().data, "_stateful_run_times", {})
        times["execute:freethread"] = _A_DAY


def elsewhere(
    notes: list[object] | None = None,
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What makes another thread part of this thread's example, for `note`, `assume` and such.

    Args:
        notes: where to keep all that is noted there; None: it is told as it would be here.
    """
    if not currently_in_test_context():
        return contextlib.nullcontext
    context, reporter = current_build_context(), current_reporter()
    if notes is not None:
        context, reporter = copy.copy(context), notes.append
        context.is_final = True  # otherwise nobody would be told
    chosen = cast("settings", settings.default)

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        with (
            _current_build_context.with_value(context),
            local_settings(chosen),
            with_reporter(reporter),
        ):
            yield

    return within


class Example:
    """The example that this thread is in, for those who run its test more than once.

    Args:
        strategies: what the arguments of the test were drawn from, by their names.
        arguments: all that the test was called with.

    Attributes:
        key: equal for the same example.
        is_final: whether Hypothesis is about to report it.
    """

    def __init__(self, strategies: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        context = current_build_context()
        self._strategies = strategies
        self._arguments = arguments
        drawn = {name: arguments[name] for name in strategies if name in arguments}
        self._choices = context.data.choices
        self._test = context.wrapped_test
        self._kept: dict[str, Any] = {}
        for name, value in drawn.items():
            with contextlib.suppress(_CannotSay):
                self._kept[name] = _copied(value)
        self._others = drawn.keys() - self._kept.keys()
        # Explicit examples have no choices, and the same objects each time.
        self.key = self._choices or tuple(map(id, drawn.values()))
        self.is_final = context.is_final

    def again(self) -> dict[str, Any]:
        """The arguments made anew, so that nobody has changed them yet.

        What was drawn is drawn again, which gives the same values. Of an explicit example, objects
        other than built-in containers are what they are.
        """
        made = {name: _copied(value) for name, value in self._kept.items()}
        if self._others and self._choices:
            data = ConjectureData.for_choices(self._choices)
            with BuildContext(data, wrapped_test=self._test):
                drawn = {name: data.draw(each) for name, each in self._strategies.items()}
            made = {**drawn, **made}
        return {**self._arguments, **made}


class _CannotSay(Exception):  # noqa: N818 - a signal within this module, not an error
    """A value may hold anything."""


def _copied(value: Any) -> Any:
    """A copy of built-in containers with nothing in them that could be changed.

    Raises:
        _CannotSay: it is something else.
    """
    kind = type(value)
    if kind in _CONSTANT:
        return value
    if kind in {list, tuple, set, frozenset}:
        return kind(map(_copied, value))
    if kind is dict:
        return {_copied(key): _copied(each) for key, each in value.items()}
    raise _CannotSay
