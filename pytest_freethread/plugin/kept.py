"""Schedules that failed, kept in pytest's cache until they pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_KEY = "freethread/schedules"


class KeptSchedules:
    """The tokens of failing schedules by test, read at a session's start and written at its end.

    Under xdist the workers only read; their reports tell the controller, which writes.
    """

    def __init__(self, config: pytest.Config) -> None:
        # Without the cache's plugin there is none.
        self._cache: Any = getattr(config, "cache", None)
        self._writes = not hasattr(config, "workerinput")
        self._kept: dict[str, list[str]] = {}
        found = self._cache.get(_KEY, {}) if self._cache is not None else {}
        if isinstance(found, dict):
            self._kept = found
        self._changed = False

    def of(self, nodeid: str) -> list[str]:
        """The tokens to try first."""
        return self._kept.get(nodeid, [])

    def take(self, nodeid: str, note: dict[str, Any]) -> None:
        """Learn from the note of a test's report what is to be kept."""
        if note["how"] != "explored" or note["replayed"]:
            return
        if note["token"] is not None:
            kept = [note["token"]]
            self._changed |= self._kept.get(nodeid) != kept
            self._kept[nodeid] = kept
        elif note["verdict"] == "passed":
            self._changed |= self._kept.pop(nodeid, None) is not None

    def save(self) -> None:
        """Write what has changed."""
        if self._changed and self._writes and self._cache is not None:
            self._cache.set(_KEY, self._kept)
