"""Which modules get probes, by default and on demand."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.errors import SettingError
from pytest_freethread.execution import stacks
from pytest_freethread.interpreter import namespace_of

if TYPE_CHECKING:
    from collections.abc import Iterable

STATEFUL_LIBRARY: Final = (
    *("_weakrefset", "collections", "functools", "importlib.util", "logging", "weakref"),
)
"""Pure-Python modules of the standard library with state that threads share."""


def own(functions: Iterable[object], root: Path | None = None) -> dict[str, ModuleType]:
    """The modules of some functions, and all loaded ones below a project's root, by name.

    Args:
        functions: any callables.
        root: of the project; None: the working directory.
    """
    chosen: dict[str, ModuleType] = {}
    for function in functions:
        name = getattr(unwrapped(function), "__module__", None)
        if name in sys.modules:
            chosen[name] = sys.modules[name]
    return {**chosen, **_below(str(root or Path.cwd()) + os.sep)}


_last: tuple[str, list[int], dict[str, ModuleType]] = "", [], {}
"""What was below which directory, of modules with these identities: few tests import anything."""


def _below(root: str) -> dict[str, ModuleType]:
    global _last  # noqa: PLW0603 - replaced as a whole, so that threads see one or the other
    before, identities, chosen = _last
    modules = sys.modules.copy()
    loaded = [id(module) for module in modules.values()]
    if before == root and identities == loaded:
        return chosen
    chosen = {}
    for name, module in modules.items():
        if not issubclass(type(module), ModuleType):
            continue
        file = namespace_of(module).get("__file__")  # asked itself, a lazy module is loaded
        if not isinstance(file, str):
            continue
        if file.startswith(root) and not stacks.is_foreign(file) and not stacks.is_ours(file):
            chosen[name] = module
    _last = root, loaded, chosen
    return chosen


def loaded(names: Iterable[str]) -> dict[str, ModuleType]:
    """Those of some modules that are loaded, by name."""
    return {name: sys.modules[name] for name in names if name in sys.modules}


def included(names: Iterable[str]) -> dict[str, ModuleType]:
    """The modules and packages of these names, with all that is loaded of them.

    Raises:
        SettingError: no module of a name is loaded.
    """
    chosen: dict[str, ModuleType] = {}
    for wanted in names:
        if wanted not in sys.modules:
            raise SettingError(f"include={wanted!r}: no module of that name is loaded")
        for name, module in list(sys.modules.items()):
            inside = name == wanted or name.startswith(f"{wanted}.")
            if inside and issubclass(type(module), ModuleType):
                chosen[name] = module
    return chosen


def unwrapped(function: Any) -> Any:
    """The function that a callable is made of: of a method, a partial, a wrapper."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(getattr(function, "__func__", function))


def path(function: Any) -> str:
    """The module and qualified name of the code that a callable runs."""
    function = unwrapped(function)
    if not hasattr(function, "__qualname__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - not: can it be called
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
