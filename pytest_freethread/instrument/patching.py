"""Other things in the places of those that modules and classes hold; all put back afterwards."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.interpreter import namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FunctionType

_PACKAGE: Final = __name__.partition(".")[0]
_absent: Final = object()


class Patches:
    """What was put in place, until `restore`."""

    def __init__(self) -> None:
        self._methods: list[tuple[type, str, Any]] = []
        self._names: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._defaults: list[tuple[FunctionType, tuple[Any, ...]]] = []

    def method(self, owner: type, name: str, method: Callable[..., Any]) -> Any:
        """Give a class another method; returns the one of its own that it had."""
        original = owner.__dict__.get(name, _absent)
        self._methods.append((owner, name, original))
        setattr(owner, name, method)
        return original

    def name(self, namespace: dict[str, Any], name: str, value: Any) -> None:
        """Give a name another value."""
        self._names.append((namespace, name, namespace.get(name, _absent), value))
        namespace[name] = value

    def names(self, namespace: dict[str, Any], instead: Mapping[int, Any]) -> None:
        """Give names other values, by the identity of those that they have."""
        # Hardly any of all the modules has one, and this is done for each exploration.
        if instead.keys().isdisjoint(map(id, list(namespace.values()))):
            return
        found = [name for name, value in list(namespace.items()) if id(value) in instead]
        for name in found:
            self.name(namespace, name, instead[id(namespace[name])])

    def everywhere(self, instead: Mapping[int, Any]) -> None:
        """The same in all modules but those of the harness."""
        for module in list(sys.modules.values()):
            if issubclass(type(module), ModuleType):
                names = namespace_of(module)  # asked itself, a lazy module is loaded
                if not is_ours(str(names.get("__name__"))):
                    self.names(names, instead)

    def defaults(self, function: FunctionType, instead: Mapping[int, Any]) -> None:
        """The same in a function's defaults."""
        defaults = function.__defaults__
        if defaults and any(id(value) in instead for value in defaults):
            self._defaults.append((function, defaults))
            function.__defaults__ = tuple(instead.get(id(value), value) for value in defaults)
        if function.__kwdefaults__:
            self.names(function.__kwdefaults__, instead)

    def restore(self) -> None:
        """Put everything back, but what somebody else has changed meanwhile."""
        while self._names:
            namespace, name, original, ours = self._names[-1]
            if namespace.get(name, _absent) is ours:
                if original is _absent:
                    del namespace[name]
                else:
                    namespace[name] = original
            self._names.pop()
        while self._defaults:
            function, defaults = self._defaults.pop()
            function.__defaults__ = defaults
        while self._methods:
            owner, name, original = self._methods[-1]
            if original is not _absent:
                setattr(owner, name, original)
            elif name in owner.__dict__:
                delattr(owner, name)
            self._methods.pop()


def is_ours(module: str) -> bool:
    """Whether a module of that name is the harness's own; its reference components are subjects."""
    return module.partition(".")[0] == _PACKAGE and not module.startswith(f"{_PACKAGE}.reference")
