"""Which thread finalizes an object: on a free-threaded build the one that made it, if it lives.

There an object belongs to the thread that made it, and whoever else drops the last reference leaves
it to that thread, which finalizes it when it goes on (PEP 703, biased reference counting). The
thread that made the state of an execution waits until all others have ended, and a carrier goes on
with another task. But once its thread drops all references that it has to an object while others
hold some, the object belongs to nobody, and is finalized where the last reference goes.
"""

from __future__ import annotations

import gc
import sys
import sysconfig
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.interpreter import namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAKERS_FINALIZE: Final = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
"""Whether that is so here."""

_MOST: Final = 10_000
"""Objects that are looked for; beyond that it would take longer than an execution."""

_MOST_REFERENCES: Final = 1_000
"""To one of them; an immortal object seems to have billions."""


def shared(roots: Iterable[object]) -> list[Any]:
    """What is reached from some objects, but for modules, classes and functions."""
    modules = [each for each in list(sys.modules.values()) if issubclass(type(each), ModuleType)]
    seen = {id(namespace_of(each)) for each in modules}
    found: list[Any] = []
    wave: list[Any] = list(roots)
    while wave and len(found) < _MOST:
        new = []
        for thing in wave:
            kind = type(thing)
            if (
                id(thing) in seen
                or not gc.is_tracked(thing)
                or issubclass(kind, (type, ModuleType))
            ):
                continue
            seen.add(id(thing))
            new.append(thing)
        found += [
            thing
            for thing in new
            if type(thing) is not FunctionType and sys.getrefcount(thing) < _MOST_REFERENCES
        ]
        wave = gc.get_referents(*new)
    return found


def disown(things: Sequence[object], elsewhere: Callable[[Callable[[], object]], object]) -> None:
    """Have objects that this thread has made belong to nobody.

    Args:
        things: the objects.
        elsewhere: has another thread call a function, and waits until that is done.
    """
    references: list[list[object]] = []

    def refer() -> None:
        references.extend([thing] * sys.getrefcount(thing) for thing in things)

    elsewhere(refer)
    for each in references:
        each.clear()
