"""Leaf: the exceptions that a user can catch."""

from __future__ import annotations

from typing import Any


class SettingError(ValueError):
    """A setting has a value that means nothing.

    The message is one line: where the value came from (a call, an option, the ini file or a
    marker), the value, and what would have been right.
    """


class ThreadSafetyError(AssertionError):
    """The code under test is not thread-safe; raised by `Result.raise_for_verdict()`.

    Attributes:
        result: the `Result` with all findings. The message is its report.
    """

    def __init__(self, result: Any) -> None:
        super().__init__(str(result))
        self.result = result
