"""Probes that stand by: into live functions and out again many times in a session, cheaply.

`instrumented` looks through every object of the process, both ways, which takes 5 to 30 ms: dear
for a run that takes a few. Here the functions of a module are looked for once, and remembered
(weakly) with both of their codes; from then on, in and out is an assignment for each function. What
that gives up: a function made after the look by code without probes has none, and one made by code
with probes keeps them, idle, until an exact standby or an exploration ends.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from pytest_freethread.instrument import heap, probes, swap
from pytest_freethread.instrument.rewrite import rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import CodeType, FunctionType, ModuleType

# ruff: noqa: SLF001 - one mechanism in two modules: what swaps, and what remembers what to swap


class _Known:
    """A module that was looked through."""

    def __init__(self, module: ModuleType) -> None:
        self.module = weakref.ref(module)
        self.compiled: swap._Compiled | None = None
        self.functions: list[tuple[weakref.ref[FunctionType], CodeType, CodeType]] = []
        self.left_out: list[tuple[str, str]] = []


_known: Final[dict[tuple[str, swap._Rewrite], _Known]] = {}
"""By the module's name: one that is loaded again takes the place of the former."""


class Standby:
    """The probes of some modules, at rest until they are put in.

    Args:
        modules: whose functions.
        rewrite: puts the probes into a module's tree; `rewrite.py`'s, or another one.
        exact: look for the functions though the modules are known, and find those that were made
            meanwhile when it ends. Otherwise only modules that are new are looked through.

    Attributes:
        left_out: the qualified name of each function (or module) without probes, and the reason.
    """

    def __init__(
        self,
        modules: Collection[ModuleType],
        *,
        exact: bool,
        rewrite: swap._Rewrite = rewrite,
    ) -> None:
        self._exact = exact
        with swap._lock:
            new = [each for each in modules if exact or not _is_known(each, rewrite)]
            _look_through(new, rewrite)
            self._chosen = [_known[each.__name__, rewrite] for each in modules]
        self.left_out = tuple(sorted({each for known in self._chosen for each in known.left_out}))

    def put_in(self) -> bool:
        """Give the functions their probes; False where an exploration has the say over them."""
        with swap._lock:
            if swap._installed:
                return False
            for known in self._chosen:
                if known.compiled is not None:
                    probes.stored_names.update(known.compiled.stored)
                for reference, before, after in known.functions:
                    function = reference()
                    if function is not None and function.__code__ is before:
                        swap.give(function, after)
        return True

    def take_out(self) -> None:
        """Give the functions back what they had; what interrupts this goes on afterwards."""
        self._insist(self._take_out)

    def end(self) -> None:
        """Take the probes out for good."""
        self._insist(self._take_out)
        if self._exact:
            self._insist(self._sweep)

    def _insist(self, step: Callable[[], None]) -> None:
        interruption: BaseException | None = None
        with swap._lock:
            while True:
                try:
                    step()
                    break
                except BaseException as error:
                    interruption = error
        if interruption is not None:
            raise interruption

    def _take_out(self) -> None:
        if swap._installed:
            return  # an exploration has taken over, and restores all when it ends
        for known in self._chosen:
            for reference, before, after in known.functions:
                function = reference()
                if function is not None and function.__code__ is after:
                    swap.give(function, before)
        probes.forget()

    def _sweep(self) -> None:
        """Take the probes out of functions that were made while they were in."""
        originals: dict[int, CodeType] = {}
        for known in self._chosen:
            if known.compiled is not None and known.compiled.file not in swap._installed:
                originals.update(known.compiled.original)
        for function in heap.functions():
            before = originals.get(id(function.__code__))
            if before is not None:
                swap.give(function, before)


def _is_known(module: ModuleType, rewrite: swap._Rewrite) -> bool:
    known = _known.get((module.__name__, rewrite))
    return known is not None and known.module() is module


def _look_through(modules: Collection[ModuleType], rewrite: swap._Rewrite) -> None:
    """Find the functions of modules, and what takes the place of their code."""
    if not modules:
        return
    with swap._no_collection():
        found = {module: swap._compiled(module, rewrite) for module in modules}
    by_file: dict[str, _Known] = {}
    by_name: dict[str, _Known] = {}
    for module, compiled in found.items():
        known = by_name[module.__name__] = _Known(module)
        if isinstance(compiled, str):
            known.left_out.append((module.__name__, compiled))
        else:
            known.compiled = compiled
            by_file[compiled.file] = known
    for function in swap._live_functions(tuple(modules)):
        before = function.__code__
        known_ = by_file.get(swap._absolute(before.co_filename)) or by_name.get(function.__module__)
        if known_ is None:
            continue  # its module's source cannot be used, as is said of the module
        if known_.compiled is None or swap._absolute(before.co_filename) != known_.compiled.file:
            reason = "made by exec: no source"
        else:
            before = known_.compiled.original.get(id(before), before)
            after = known_.compiled.counterpart(before)
            if after is not None:
                if after != before:  # it has something to announce
                    known_.functions.append((weakref.ref(function), before, after))
                continue
            reason = "its code is not what its source compiles to"
        known_.left_out.append((f"{function.__module__}.{function.__qualname__}", reason))
    _known.update({(name, rewrite): known for name, known in by_name.items()})
