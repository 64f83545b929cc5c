"""Tests with a machinery of their own: `unittest.TestCase` and subtests."""

from __future__ import annotations

import unittest
import unittest.case
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.unittest import TestCaseFunction

SIGNALS = (pytest.skip.Exception, pytest.xfail.Exception, unittest.SkipTest)
"""Exceptions that are outcomes of a test, not failures."""


class Subtests:
    """pytest's `subtests` for one thread: failures are kept for the report of the whole test."""

    def __init__(self, errors: list[BaseException]) -> None:
        self._errors = errors

    @contextmanager
    def test(self, msg: str | None = None, **kwargs: Any) -> Iterator[None]:
        """A part of the test after whose failure the test goes on."""
        try:
            yield
        except SIGNALS:
            pass
        except Exception as error:
            said = [f"[{msg}]"] if msg is not None else []
            if kwargs:
                said.append(f"({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})")
            error.add_note(f"in subtest {' '.join(said) or '(<subtest>)'}")
            self._errors.append(error)


class UnittestCase:
    """A `unittest.TestCase` whose parts run where they belong.

    `unittest.TestCase.run` does all in one go. Here `setUp`, `tearDown` and the cleanups run on
    the main thread and the test method in its own, with the bookkeeping of the standard library.
    """

    def __init__(self, item: TestCaseFunction) -> None:
        self._case: Any = item.instance
        self._method: Any = item.obj
        self._result = _Outcomes()
        self._outcome: Any = unittest.case._Outcome(self._result)  # type: ignore[attr-defined]
        self._case._outcome = self._outcome

    def set_up(self) -> None:
        """Run `setUp`; raises what that raised."""
        for holder in (self._case, self._method):
            if getattr(holder, "__unittest_skip__", False):
                raise _skip(getattr(holder, "__unittest_skip_why__", ""))
        with self._outcome.testPartExecutor(self._case):
            self._case.setUp()
        self._raise()

    def run(self) -> None:
        """Run the test method; raises all that it and its subtests raised."""
        expecting = any(
            getattr(holder, "__unittest_expecting_failure__", False)
            for holder in (self._case, self._method)
        )
        self._outcome.expecting_failure = expecting
        with self._outcome.testPartExecutor(self._case, subTest=False):
            self._method()
        self._outcome.expecting_failure = False
        if expecting:
            if self._outcome.expectedFailure:
                pytest.xfail("unittest.expectedFailure")
            pytest.fail("Unexpected success", pytrace=False)
        raise_all(self._result.take())

    def tear_down(self) -> None:
        """Run `tearDown` and the cleanups; raises what they raised."""
        with self._outcome.testPartExecutor(self._case):
            self._case.tearDown()
        self._case.doCleanups()
        self._case._outcome = None
        self._raise()

    def _raise(self) -> None:
        errors = self._result.take()
        if len(errors) > 1:
            raise BaseExceptionGroup("several errors", errors)
        if errors:
            raise errors[0]


class _Outcomes(unittest.TestResult):
    """Keeps the exceptions themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[BaseException] = []

    def take(self) -> list[BaseException]:
        """The exceptions since the last time."""
        errors, self._errors = self._errors, []
        return errors

    def addError(self, test: object, err: Any) -> None:  # noqa: ARG002, N802 - unittest's name
        self._errors.append(err[1])

    addFailure = addError  # noqa: N815 - unittest's name

    def addSubTest(self, test: object, subtest: Any, err: Any) -> None:  # noqa: ARG002, N802
        if err is not None:
            err[1].add_note(f"in subtest {subtest._subDescription()}")
            self._errors.append(err[1])

    def addSkip(self, test: object, reason: str) -> None:  # noqa: ARG002, N802 - unittest's name
        self._errors.append(_skip(reason))


def _skip(reason: str) -> BaseException:
    """Says that it was the test that was skipped, not a line of ours or of the standard library."""
    return pytest.skip.Exception(reason, _use_item_location=True)


def raise_all(errors: list[BaseException]) -> None:
    """Raise what a body collected, if anything, and forget it."""
    from pytest_freethread.execution.free import SeveralFailures

    collected = errors[:]
    errors.clear()
    if len(collected) == 1:
        raise collected[0]
    if collected:
        raise SeveralFailures(collected)
