"""Why a test cannot run in parallel threads, decided before it runs.

Some fixtures and context managers change the whole process, whichever thread uses them: two threads
of one test would see each other's changes, and fail where the code under test is right.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import unittest
import warnings
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

import pytest

from pytest_freethread import interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESS_WIDE_FIXTURES = frozenset(
    {
        "capfd",
        "capfdbinary",
        "caplog",
        "capsys",
        "capsysbinary",
        "capteesys",
        "monkeypatch",
        "pytester",
        "recwarn",
        "testdir",
        # of other plugins that many suites use
        "freezer",
        "fs",
        "httpx_mock",
        "mocker",
        "requests_mock",
        "respx_mock",
    }
)
"""Function-scoped fixtures which change what all threads see."""

_PROCESS_WIDE_CALLS: dict[int, str] = {
    id(function): name
    for name, function in {
        "contextlib.redirect_stdout": contextlib.redirect_stdout,
        "contextlib.redirect_stderr": contextlib.redirect_stderr,
        "contextlib.chdir": contextlib.chdir,
        "os.chdir": os.chdir,
    }.items()
}
_WARNING_CALLS: dict[int, str] = {
    id(function): name
    for name, function in {
        "pytest.warns": pytest.warns,
        "pytest.deprecated_call": pytest.deprecated_call,
        "warnings.catch_warnings": warnings.catch_warnings,
    }.items()
}
_WARNING_METHODS = frozenset({"assertWarns", "assertWarnsRegex"})
_LOG_METHODS = frozenset({"assertLogs", "assertNoLogs"})
_IMPORTED_IN_A_FUNCTION = {
    "contextlib": "contextlib",
    "mock": "unittest.mock",
    "os": "os",
    "pytest": "pytest",
    "unittest.mock": "unittest.mock",
    "warnings": "warnings",
}
"""Modules that a test may import in its body, by the name that its code then has."""


def left_alone(item: pytest.Item) -> str | None:
    """Why a test is not ours to run at all; None if it is."""
    if isinstance(item, pytest.DoctestItem):
        return "doctest"
    if not isinstance(item, pytest.Function):
        return f"{type(item).__name__} (run by another plugin)"
    inner = getattr(getattr(item.obj, "hypothesis", None), "inner_test", item.obj)
    asynchronous = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
    if asynchronous or issubclass(item.cls or object, unittest.IsolatedAsyncioTestCase):
        return "async"
    if type(item).__module__.partition(".")[0] not in ("_pytest", "pytest"):
        return f"{type(item).__name__} (run by another plugin)"
    if "freethread" in item.fixturenames:
        return "drives its own threads (fixture freethread)"
    return None


def reason(item: pytest.Function, shared: frozenset[str]) -> str | None:
    """Why a test has to run on one thread; None if it need not."""
    for name, via in _private_fixtures(item, shared):
        if name in PROCESS_WIDE_FIXTURES:
            return f"uses {name}" + (f" (by fixture {via})" if via else "")
    if getattr(item.obj, "patchings", None):
        return "uses unittest.mock.patch"
    code = getattr(inspect.unwrap(item.function), "__code__", None)
    if code is not None:
        called = next(_process_wide_calls(code, item.function.__globals__), None)
        if called is not None:
            return f"uses {called}"
    return None


def _private_fixtures(
    item: pytest.Function, shared: frozenset[str]
) -> Iterator[tuple[str, str | None]]:
    """The function-scoped fixtures that every thread has of its own, and who asks for each."""
    info: Any = item._fixtureinfo  # noqa: SLF001 - the closure that pytest computed
    todo: list[tuple[str, str | None]] = [(name, None) for name in info.initialnames]
    seen: set[str] = set()
    while todo:
        name, via = todo.pop()
        definitions = info.name2fixturedefs.get(name)
        if name in seen or name in shared or not definitions:
            continue
        seen.add(name)
        if definitions[-1].scope == "function":
            yield name, via
            todo += [(argument, via or name) for argument in definitions[-1].argnames]


def _process_wide_calls(code: CodeType, scope: dict[str, Any], depth: int = 3) -> Iterator[str]:
    """The process-wide functions that a test refers to, itself or by helpers in its own file."""
    used = set(_names(code))
    per_context = interpreter.warnings_are_per_context()
    calls = _PROCESS_WIDE_CALLS if per_context else _PROCESS_WIDE_CALLS | _WARNING_CALLS
    mock = sys.modules.get("unittest.mock")  # loading it takes longer than all of this plugin
    if mock is not None:
        calls = calls | {id(mock.patch): "unittest.mock.patch"}
    methods = _LOG_METHODS if per_context else _LOG_METHODS | _WARNING_METHODS
    yield from sorted(methods & used)
    imported = [scope.get(name) for name in used] + [
        sys.modules.get(module) for name, module in _IMPORTED_IN_A_FUNCTION.items() if name in used
    ]
    modules = [value for value in imported if isinstance(value, ModuleType)]
    for name in used:
        for value in (scope.get(name), *(vars(module).get(name) for module in modules)):
            if id(value) in calls:
                yield calls[id(value)]
            elif depth and _is_helper(value, code):
                yield from _process_wide_calls(value.__code__, scope, depth - 1)


def _is_helper(value: object, code: CodeType) -> TypeGuard[FunctionType]:
    return isinstance(value, FunctionType) and value.__code__.co_filename == code.co_filename


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
