"""Why a test cannot run in parallel threads, decided before it runs.

Some fixtures and context managers change the whole process, whichever thread uses them: two threads
of one test would see each other's changes, and fail where the code under test is right.
"""

from __future__ import annotations

import functools
import inspect
import sys
import unittest
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

import pytest

from pytest_freethread import interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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

_PROCESS_WIDE = (
    ("click.testing", "CliRunner"),
    ("contextlib", "chdir"),
    ("contextlib", "redirect_stderr"),
    ("contextlib", "redirect_stdout"),
    ("doctest", "DocTestRunner"),
    ("doctest", "run_docstring_examples"),
    ("doctest", "testfile"),
    ("doctest", "testmod"),
    ("freezegun", "freeze_time"),
    ("os", "chdir"),
    ("pytest", "MonkeyPatch"),
    ("random", "seed"),
    ("signal", "signal"),
    ("time_machine", "travel"),
    ("typer.testing", "CliRunner"),
    ("unittest.mock", "patch"),
)
"""Functions and classes, by module and name, which change what all threads see."""

_WARNINGS = (("pytest", "deprecated_call"), ("pytest", "warns"), ("warnings", "catch_warnings"))
_WARNING_METHODS = frozenset({"assertWarns", "assertWarnsRegex"})
_LOG_METHODS = frozenset({"assertLogs", "assertNoLogs"})

_PACKAGE = "pytest_freethread"
_VERBS = frozenset({f"{_PACKAGE}.harness", f"{_PACKAGE}.drawing"})
"""The modules of the functions that run threads themselves: to rerun them in threads is no use."""

_VERB_NAMES = frozenset({"stress", "explore", "replay", "schedules", "Schedule"})

_AROUND_EACH_TEST = (
    "setup_function",
    "teardown_function",
    "setup_method",
    "teardown_method",
    "setUp",
    "tearDown",
)


def left_alone(item: pytest.Item) -> str | None:
    """Why a test is not ours to run at all; None if it is."""
    if isinstance(item, pytest.DoctestItem):
        return "doctest"
    if not isinstance(item, pytest.Function):
        return f"{type(item).__name__} (run by another plugin)"
    inner = _inner(item.obj)
    asynchronous = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
    if asynchronous or issubclass(item.cls or object, unittest.IsolatedAsyncioTestCase):
        return "async"
    if type(item).__module__.partition(".")[0] not in ("_pytest", "pytest"):
        return f"{type(item).__name__} (run by another plugin)"
    if "freethread" in item.fixturenames:
        return "drives its own threads (fixture freethread)"
    if any(_of_drawn(item, "draws_schedules")):
        return "drives its own threads (schedules)"
    function = inspect.unwrap(inner)
    if hasattr(function, "__code__"):
        scopes = [*map(vars, inspect.getmro(item.cls or object)), function.__globals__]
        for verb in _verbs_called(function.__code__, scopes):
            return f"drives its own threads ({verb})"
    return None


def reason(item: pytest.Function, shared: frozenset[str]) -> str | None:
    """Why a test has to run on one thread; None if it need not."""
    fixtures = list(_private_fixtures(item, shared))
    for name, via, definition in fixtures:
        if name in PROCESS_WIDE_FIXTURES and _is_plugins(definition):
            return f"uses {name}" + (f" (by fixture {via})" if via else "")
    if getattr(item.obj, "patchings", None):
        return "uses unittest.mock.patch"
    if any(_of_drawn(item, "draws_later")):
        return "draws while it runs (st.data)"
    functions = [(item.function, "")]
    functions += [(each.func, f" (by fixture {via or name})") for name, via, each in fixtures]
    holder = item.cls or item.module
    functions += [
        (getattr(holder, name), f" (by {name})")
        for name in _AROUND_EACH_TEST
        if hasattr(holder, name)
    ]
    for outer, by in functions:
        function = inspect.unwrap(_inner(outer))
        called = _called(function, item.cls) if hasattr(function, "__code__") else None
        if called is not None:
            return f"uses {called}{by}"
    return None


def unexplorable(item: pytest.Function) -> str | None:
    """Why a test that can run in parallel cannot be explored; None if it can.

    A state machine of Hypothesis goes another way each time: it remembers what it has tried.
    """
    machine = getattr(item.obj, "is_hypothesis_test", False) and not is_given(item)
    return "is a state machine of Hypothesis" if machine else None


def is_given(item: pytest.Function) -> bool:
    """Whether a test has its arguments from Hypothesis."""
    return hasattr(item.obj, "hypothesis")


def _of_drawn(item: pytest.Function, question: str) -> Iterator[bool]:
    """What `drawn` says of each strategy that a test draws from."""
    strategies: list[Any] = []
    if is_given(item):
        strategies += item.obj.hypothesis._given_kwargs.values()  # noqa: SLF001 - no other way
    machine = getattr(item.obj, "_hypothesis_state_machine_class", None)
    if machine is not None:
        for rule in machine.setup_state().rules:
            strategies += rule.arguments.values()
    if strategies:
        from pytest_freethread.scheduling import drawn

        yield from map(getattr(drawn, question), strategies)


@functools.lru_cache(maxsize=256)
def _called(function: Any, cls: type | None) -> str | None:
    """A process-wide function that a function refers to; the same for all of its parameters."""
    scopes = [*map(vars, inspect.getmro(cls or object)), function.__globals__]
    return next(_process_wide_calls(function.__code__, scopes), None)


def _inner(function: Any) -> Any:
    """The test function itself, where Hypothesis runs it."""
    return getattr(getattr(function, "hypothesis", None), "inner_test", function)


def _is_plugins(definition: Any) -> bool:
    """Whether a fixture comes with a plugin, rather than from the tests or their conftest."""
    home = getattr(definition.func, "__module__", "")
    return not definition.baseid and home.rpartition(".")[2] != "conftest"


def _private_fixtures(
    item: pytest.Function, shared: frozenset[str]
) -> Iterator[tuple[str, str | None, Any]]:
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
        for definition in reversed(definitions):
            if definition.scope == "function":
                yield name, via, definition
                todo += [(argument, via or name) for argument in definition.argnames]
            if name not in definition.argnames:
                break  # it overrides the others


def _process_wide_calls(
    code: CodeType, scopes: Sequence[Mapping[str, Any]], depth: int = 3
) -> Iterator[str]:
    """The process-wide functions that a test refers to, itself or by helpers in its own file."""
    used = set(_names(code))
    per_context = interpreter.warnings_are_per_context()
    methods = _LOG_METHODS if per_context else _LOG_METHODS | _WARNING_METHODS
    yield from sorted(methods & used)
    values = [scope[name] for scope in scopes for name in sorted(used) if name in scope]
    identities = set(map(id, values))
    modules = {value.__name__ for value in values if isinstance(value, ModuleType)}
    for module, name in _PROCESS_WIDE if per_context else _PROCESS_WIDE + _WARNINGS:
        short = module.rpartition(".")[2]
        imported_in_the_body = name != short and not used.isdisjoint({module, short})
        by_its_name = name in used and (module in modules or imported_in_the_body)
        # What nobody has loaded is not loaded here: that takes long.
        by_another_name = id(getattr(sys.modules.get(module), name, code)) in identities
        if by_its_name or by_another_name:
            yield f"{module}.{name}"
    for value in values:
        if depth and _is_helper(value, code):
            yield from _process_wide_calls(value.__code__, scopes, depth - 1)


def _verbs_called(
    code: CodeType, scopes: Sequence[Mapping[str, Any]], depth: int = 3
) -> Iterator[str]:
    """The functions of ours that a test refers to, itself or by helpers in its own file."""
    used = set(_names(code))
    known = {name: scope[name] for scope in scopes for name in sorted(used) if name in scope}
    yield from (name for name, each in known.items() if getattr(each, "__module__", "") in _VERBS)
    if _PACKAGE in used or any(
        getattr(each, "__name__", "") == _PACKAGE for each in known.values()
    ):
        yield from sorted(_VERB_NAMES & used)
    for value in known.values():
        if depth and _is_helper(value, code):
            yield from _verbs_called(value.__code__, scopes, depth - 1)


def _is_helper(value: object, code: CodeType) -> TypeGuard[FunctionType]:
    return isinstance(value, FunctionType) and value.__code__.co_filename == code.co_filename


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
