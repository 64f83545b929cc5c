"""Which import switched the GIL back on.

A free-threaded build switches it on, for good, when it loads an extension module that does not
declare that it can do without (PEP 703). Everything is then still right, but nothing runs in
parallel any more.
"""

from __future__ import annotations

import importlib.machinery
from typing import TYPE_CHECKING, Any

from pytest_freethread import interpreter

if TYPE_CHECKING:
    from collections.abc import Callable

HOW_TO_GET_ONE = (
    "install a free-threaded Python, for instance `uv python install 3.14t`, and run "
    "`uv run --python 3.14t pytest`; docs: https://py-free-threading.github.io/installing-cpython/"
)


class GilWatch:
    """Names the extension module whose import switches the GIL on.

    Attributes:
        culprit: the name of the module; None as long as there is none.
        during: what the session was doing; whoever knows sets it.
    """

    def __init__(self) -> None:
        self.culprit: str | None = None
        self.during = "start-up"
        self.culprit_during = ""
        self._loader: Any = importlib.machinery.ExtensionFileLoader
        self._real: dict[str, Callable[..., Any]] = {}
        self._users = 0

    def start(self) -> None:
        """Begin to watch, where there is anything to watch for; as often as there are sessions."""
        self._users += 1
        facts = interpreter.facts()
        if facts.free_threaded and not facts.gil and not self._real:
            for name in ("create_module", "exec_module"):
                self._real[name] = getattr(self._loader, name)
                setattr(self._loader, name, self._watched(name, self._real[name]))

    def stop(self) -> None:
        """Put the import system back as it was when the last session ends."""
        self._users -= 1
        if not self._users:
            for name, real in self._real.items():
                setattr(self._loader, name, real)
            self._real.clear()

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(loader: Any, argument: Any) -> Any:
            try:
                return real(loader, argument)
            finally:
                if self.culprit is None and interpreter.gil_enabled():
                    self.culprit = interpreter.gil_culprit = loader.name
                    self.culprit_during = self.during

        watched.__name__ = name
        return watched
