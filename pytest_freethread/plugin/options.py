"""Options, ini and markers → a Plan for each test. Marker beats option beats ini."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread import settings
from pytest_freethread.errors import SettingError

if TYPE_CHECKING:
    from pytest_freethread.records import Plan

FLAGS = {
    "freethread": "rerun tests in parallel threads, many rounds each (stress)",
    "freethread-strict": "a test that cannot run in parallel is an error, not a note",
    "freethread-require-nogil": "fail the session where the GIL is on",
}

SETTINGS = {
    "threads": "threads per test (default: auto, one for each core and at least 8)",
    "rounds": "rounds per test, each on fresh fixtures (default: 50)",
    "seconds": "budget per test; no new round is begun after it (default: none)",
    "seed": "where the noise's randomness starts (default: drawn, and shown in the header)",
    "deadline": "seconds after which threads that do not come back fail their test (default: 30)",
}

MARKERS = (
    (
        "freethread(threads=, rounds=, seconds=, seed=, noise=, deadline=, shared=[...]): rerun in "
        "parallel threads; `shared` names function-scoped fixtures of which all threads of a "
        "round use one instance"
    ),
    "thread_unsafe(reason=): run on one thread, and say why in the summary",
)

_MARKER_SETTINGS = {*settings.PARSERS, "shared"}

_seed_key = pytest.StashKey[int]()


def add(parser: pytest.Parser) -> None:
    """Declare every option and its ini twin."""
    group = parser.getgroup("freethread", "thread safety (pytest-freethread)")
    for name, help_ in FLAGS.items():
        group.addoption(f"--{name}", action="store_true", default=None, help=help_)
        parser.addini(_ini(name), help_, type="bool", default=False)
    for setting, help_ in SETTINGS.items():
        name = f"freethread-{setting}"
        group.addoption(f"--{name}", metavar=setting.upper(), default=None, help=help_)
        parser.addini(_ini(name), help_, default=None)


def check(config: pytest.Config) -> None:
    """Reject values that mean nothing, and settle on the session's seed.

    Raises:
        SettingError: one line that names the value and where it came from.
    """
    values = {
        name: settings.PARSERS[name](value, where)
        for name, (value, where) in _configured(config).items()
    }
    for name in FLAGS:
        flag(config, name)
    inherited = getattr(config, "workerinput", {}).get("freethread_seed")
    seed = values.get("seed") if inherited is None else inherited
    config.stash[_seed_key] = settings.seed(seed, "the session's seed")


def flag(config: pytest.Config, name: str) -> bool:
    """Whether a flag is set, on the command line or in the ini file.

    Raises:
        SettingError: the ini file has something else than true or false.
    """
    chosen = config.getoption(f"--{name}")
    try:
        return bool(config.getini(_ini(name)) if chosen is None else chosen)
    except (ValueError, pytest.UsageError) as error:  # by the version of pytest
        said = str(error).removeprefix(f"{config.inipath}: ")
        raise SettingError(f"{config.inipath}: {_ini(name)}: {said}") from None


def session_plan(config: pytest.Config) -> Plan:
    """The plan for tests without settings of their own."""
    values = _configured(config)
    values["seed"] = (config.stash[_seed_key], "the session's seed")
    return settings.plan(values)


def item_plan(item: pytest.Item) -> tuple[Plan, frozenset[str]] | None:
    """The plan of a test and its shared fixtures; None if it is to be left alone.

    Raises:
        SettingError: a marker says something that means nothing.
    """
    marks = list(item.iter_markers("freethread"))
    if not marks and not flag(item.config, "freethread"):
        return None
    values, shared = _settled(item, marks)
    return _under_timeout(settings.plan(values), item), shared


def verb_defaults(item: pytest.Item) -> dict[str, Any]:
    """What a test's marker, the options and ini say, as arguments for the verbs."""
    values, _ = _settled(item, list(item.iter_markers("freethread")))
    return {name: settings.PARSERS[name](*value) for name, value in values.items()}


def _settled(
    item: pytest.Item, marks: list[pytest.Mark]
) -> tuple[dict[str, tuple[object, str]], frozenset[str]]:
    """What is said of a test, each value with where it is said, and its shared fixtures."""
    values = _configured(item.config)
    values["seed"] = (item.config.stash[_seed_key], "the session's seed")
    shared: frozenset[str] | None = None
    for mark in marks:  # the closest one first
        where = f"{item.nodeid}: marker freethread"
        if mark.args:
            raise SettingError(
                f"{where}({mark.args[0]!r}): settings are given by name, such as threads=4"
            )
        for name in mark.kwargs:
            if name not in _MARKER_SETTINGS:
                said = f"{where}({name}={mark.kwargs[name]!r})"
                raise settings.unknown(name, _MARKER_SETTINGS, said)
        if shared is None and "shared" in mark.kwargs:
            shared = _shared(item, mark.kwargs["shared"], where)
    for mark in reversed(marks):
        for name, value in mark.kwargs.items():
            if name != "shared":
                values[name] = (value, f"{item.nodeid}: marker freethread({name}={value!r})")
    return values, shared or frozenset()


def unsafe_reason(item: pytest.Item) -> str | None:
    """Why a test's author keeps it on one thread; None if not.

    Raises:
        SettingError: the marker says something that means nothing.
    """
    mark = item.get_closest_marker("thread_unsafe")
    if mark is None:
        return None
    for name, value in mark.kwargs.items():
        if name != "reason":
            said = f"{item.nodeid}: marker thread_unsafe({name}={value!r})"
            raise settings.unknown(name, ["reason"], said)
    reason = mark.kwargs.get("reason", mark.args[0] if mark.args else None)
    return f'thread_unsafe: "{reason}"' if reason else "thread_unsafe"


def _configured(config: pytest.Config) -> dict[str, tuple[object, str]]:
    """What options and ini say, with where they say it."""
    values: dict[str, tuple[object, str]] = {}
    for setting in SETTINGS:
        name = f"freethread-{setting}"
        option, ini = config.getoption(f"--{name}"), config.getini(_ini(name))
        if option is not None:
            values[setting] = (option, f"--{name}")
        elif ini:
            values[setting] = (ini, f"{config.inipath or 'ini'}: {_ini(name)}")
    return values


def _shared(item: pytest.Item, names: Any, where: str) -> frozenset[str]:
    where = f"{where}(shared={names!r})"
    if not isinstance(names, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in names
    ):
        raise SettingError(f"{where}: not a list of fixture names")
    manager = item.session._fixturemanager  # noqa: SLF001 - pytest offers no other look-up
    for name in names:
        if not manager.getfixturedefs(name, item):
            known = getattr(item, "fixturenames", ())
            raise settings.unknown(name, known, where, what="fixture")
    return frozenset(names)


def _under_timeout(plan: Plan, item: pytest.Item) -> Plan:
    """Keep the deadline below pytest-timeout's, whose thread method would end the whole session."""
    module: Any = sys.modules.get("pytest_timeout")
    if module is None or not item.config.pluginmanager.hasplugin("timeout"):
        return plan
    timeout = module._get_item_settings(item).timeout  # noqa: SLF001 - it offers no other way
    if not timeout:
        return plan
    return replace(plan, deadline=min(plan.deadline, 0.8 * timeout))


def _ini(name: str) -> str:
    return name.replace("-", "_")
