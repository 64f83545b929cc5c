"""Options, ini and markers → a Plan for each test. Marker beats option beats ini."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread import settings
from pytest_freethread.errors import SettingError

if TYPE_CHECKING:
    from pytest_freethread.records import ExplorationPlan, ParallelPlan, Plan

FLAGS = {
    "freethread": "rerun tests in parallel threads, many rounds each (stress)",
    "freethread-strict": "a test that cannot run in parallel is an error, not a note",
    "freethread-require-nogil": "fail the session where the GIL is on",
}

SETTINGS = {
    "mode": (
        "stress (real threads, many rounds) or explore (one schedule after another, controlled); "
        "for every test, also without --freethread"
    ),
    "threads": (
        "threads per test (default: auto; stress: one for each core and at least 8, explore: 2)"
    ),
    "rounds": "stress: rounds per test, each on fresh fixtures (default: 50)",
    "schedules": "explore: schedules per test at most (default: 200)",
    "seconds": "budget per test; nothing new is begun after it (default: none; explore: 2)",
    "seed": "where randomness starts (default: stress: drawn, and shown in the header; explore: 0)",
    "pairs": "parallelism: pairs of a serial and a parallel run per test at most (default: 100)",
    "locks": (
        "parallelism: when to time the waits for locks: always, never, or auto, where a claim "
        "does not hold (default: auto)"
    ),
    "races": (
        "whether a race is an error, a note, or off (default: explore: note; stress: off, since "
        "rounds that are recorded are slower)"
    ),
    "deadline": "seconds after which threads that do not come back are given up (default: 30)",
}

PLACES = {
    "freethread-scaling": (
        "FOLDER",
        "write what measurements of parallelism come to: JSON with all samples, and pictures",
    ),
    "freethread-compare": (
        "PYTHON",
        "measure parallelism under a second interpreter too, and print both with their ratios",
    ),
}

MARKERS = (
    (
        "freethread(mode=, threads=, seconds=, seed=, deadline=, shared=[...], races=, "
        "benign=[...], rounds=, noise=, schedules=, strategy=, preemptions=, include=[...]): rerun "
        "in parallel threads (mode 'stress', which rounds and noise are for) or explore one "
        "schedule after another (mode 'explore', which the last four are for); `shared` names "
        "function-scoped fixtures of which all threads use one instance"
    ),
    (
        "freethread_parallel(threads=, min_speedup=, min_efficiency=, max_total=, pairs=, "
        "seconds=, locks=, pin=, deadline=, shared=[...]): measure how much faster copies of the "
        "test run at once than one after another, and fail if less than is asked"
    ),
    "thread_unsafe(reason=): run on one thread, and say why in the summary",
)

_PARSERS = {"mode": settings.mode, **settings.PARSERS["stress"], **settings.PARSERS["explore"]}
_MARKER_SETTINGS = {*_PARSERS, "shared"}
_OPTION_PARSERS = {**settings.PARSERS["parallel"], **_PARSERS}

ASKED = ("min_speedup", "min_efficiency", "max_total")
"""Settings of a measurement that say what is asked of it."""

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
    help_ = (
        "what judges find in tests and nobody wants to hear of, a pattern ([KIND:]GLOB) "
        "on each line, such as race:Stats.total or legacy/*.py"
    )
    parser.addini("freethread_benign", help_, type="linelist", default=[])
    for name, (metavar, help_) in PLACES.items():
        group.addoption(f"--{name}", metavar=metavar, default=None, help=help_)
        parser.addini(_ini(name), help_, default=None)
    help_ = "run the one selected test under exactly the schedule that a report gave this token"
    group.addoption("--freethread-replay", metavar="TOKEN", default=None, help=help_)


def check(config: pytest.Config) -> None:
    """Reject values that mean nothing, and settle on the session's seed.

    Raises:
        SettingError: one line that names the value and where it came from.
    """
    values = {
        name: _OPTION_PARSERS[name](value, where)
        for name, (value, where) in _configured(config).items()
    }
    for name in FLAGS:
        flag(config, name)
    token = replayed(config)
    if token is not None:
        from pytest_freethread import harness  # not for those who replay nothing

        if not harness.is_token(token):
            raise SettingError(
                f"--freethread-replay: {token!r} is not the token of a schedule; a report of a "
                "failure under 'Again' has one, such as ft1:0x1.1x2.0x1"
            )
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


def replayed(config: pytest.Config) -> str | None:
    """The token of the schedule to replay, if there is one."""
    token: str | None = config.getoption("--freethread-replay")
    return token


def session_mode(config: pytest.Config) -> str | None:
    """The mode in which every test runs that says nothing itself; None: not at all."""
    return _told_mode(config) or ("stress" if flag(config, "freethread") else None)


def session_plan(config: pytest.Config) -> Plan:
    """The plan of a stress run for tests without settings of their own."""
    return settings.plan(_stress_values(config, _configured(config)))


def session_exploration(config: pytest.Config) -> ExplorationPlan:
    """The same for explorations."""
    return settings.exploration(_configured(config))


def item_plan(item: pytest.Item) -> tuple[Plan | ExplorationPlan, frozenset[str]] | None:
    """The plan of a test and its shared fixtures; None if it is to be left alone.

    Raises:
        SettingError: a marker says something that means nothing.
    """
    marks = list(item.iter_markers("freethread"))
    if not marks and session_mode(item.config) is None:
        return None
    values, shared = _settled(item, marks)
    # The thread method of pytest-timeout would end the whole session.
    limit = _timeout(item)
    if values["mode"][0] == "explore":
        search = settings.exploration(values)
        if limit is not None:
            # What is left is for shrinking what was found.
            seconds = min(search.seconds or limit, 0.5 * limit)
            search = replace(search, seconds=seconds, deadline=min(search.deadline, _below(limit)))
        return search, shared
    plan = settings.plan(_stress_values(item.config, values))
    if limit is not None:
        plan = replace(plan, deadline=min(plan.deadline, _below(limit)))
    return plan, shared


def parallel_plan(item: pytest.Item) -> tuple[ParallelPlan, frozenset[str]] | None:
    """How to measure a test that is marked for it, and its shared fixtures; None if it is not.

    Raises:
        SettingError: a marker says something that means nothing.
    """
    marks = list(item.iter_markers("freethread_parallel"))
    if not marks:
        return None
    values, shared = _parallel_values(item, marks)
    plan = settings.parallel(values)
    limit = _timeout(item)
    if limit is not None:
        seconds = min(plan.seconds or limit, 0.5 * limit)
        plan = replace(plan, seconds=seconds, deadline=min(plan.deadline, _below(limit)))
    return plan, shared


def place(config: pytest.Config, name: str) -> str | None:
    """A path that an option or the ini file names."""
    told: str | None = config.getoption(f"--{name}") or config.getini(_ini(name)) or None
    return told


def said_where(config: pytest.Config, name: str) -> str:
    """Where an option was given: on the command line, or in the ini file."""
    return f"--{name}" if config.getoption(f"--{name}") else f"{config.inipath}: {_ini(name)}"


def verb_defaults(item: pytest.Item, mode: str) -> dict[str, Any]:
    """What a test's marker, the options and ini say, as arguments for the verb of a mode."""
    if mode == "parallel":
        values, _ = _parallel_values(item, list(item.iter_markers("freethread_parallel")))
    else:
        values, _ = _settled(item, list(item.iter_markers("freethread")))
    if mode == "stress":
        values = _stress_values(item.config, values)
    parsers = settings.PARSERS[mode]
    return {name: parsers[name](*value) for name, value in values.items() if name in parsers}


def _settled(
    item: pytest.Item, marks: list[pytest.Mark]
) -> tuple[dict[str, tuple[object, str]], frozenset[str]]:
    """What is said of a test, each value with where it is said, and its shared fixtures."""
    values, shared = _marked(item, marks, _MARKER_SETTINGS)
    told = "mode" in values
    mode = settings.mode(*values.setdefault("mode", ("stress", "the default of mode")))
    for mark in marks:
        _check_mode(mark, item, None if told else mode)
    if replayed(item.config) is not None:
        values["mode"] = ("explore", "--freethread-replay")
    return values, shared


def _parallel_values(
    item: pytest.Item, marks: list[pytest.Mark]
) -> tuple[dict[str, tuple[object, str]], frozenset[str]]:
    """The same of a test that is measured."""
    return _marked(item, marks, {*settings.PARSERS["parallel"], "shared"})


def _marked(
    item: pytest.Item, marks: list[pytest.Mark], known: set[str]
) -> tuple[dict[str, tuple[object, str]], frozenset[str]]:
    """What options, ini and markers of one name say, and the fixtures that they name as shared."""
    values = _configured(item.config)
    shared: frozenset[str] | None = None
    for mark in marks:  # the closest one first
        where = f"{item.nodeid}: marker {mark.name}"
        if mark.args:
            raise SettingError(
                f"{where}({mark.args[0]!r}): settings are given by name, such as threads=4"
            )
        for name in mark.kwargs:
            if name not in known:
                raise settings.unknown(name, known, f"{where}({name}={mark.kwargs[name]!r})")
        if shared is None and "shared" in mark.kwargs:
            shared = _shared(item, mark.kwargs["shared"], where)
    for mark in reversed(marks):
        for name, value in mark.kwargs.items():
            if name != "shared":
                values[name] = (value, f"{item.nodeid}: marker {mark.name}({name}={value!r})")
    return values, shared or frozenset()


def _check_mode(mark: pytest.Mark, item: pytest.Item, mode: str | None) -> None:
    """Reject what means nothing in a marker's own mode, or in the one that nobody has named."""
    named = "mode" in mark.kwargs
    mode = mark.kwargs["mode"] if named else mode
    for name, value in mark.kwargs.items():
        if mode is not None and name in _PARSERS and name not in {"mode", *settings.PARSERS[mode]}:
            other = next(each for each in settings.MODES if each != mode)
            raise SettingError(
                f"{item.nodeid}: marker freethread({name}={value!r}): it means something in mode "
                f"{other!r} only" + ("" if named else f"; say mode={other!r} too")
            )


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


def _told_mode(config: pytest.Config) -> str | None:
    if replayed(config) is not None:
        return "explore"
    value = _configured(config).get("mode")
    return None if value is None else settings.mode(*value)


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
    if benign := config.getini("freethread_benign"):
        values["benign"] = (benign, f"{config.inipath or 'ini'}: freethread_benign")
    return values


def _stress_values(
    config: pytest.Config, values: dict[str, tuple[object, str]]
) -> dict[str, tuple[object, str]]:
    """With the seed that the session has drawn, where a test has none of its own."""
    drawn = (config.stash[_seed_key], "the session's seed")
    return values if "seed" in values else {**values, "seed": drawn}


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


def _below(limit: float) -> float:
    """A deadline that leaves of a timeout what it takes to tell of the threads that are stuck."""
    return max(0.5 * limit, min(0.8 * limit, limit - 0.5))


def _timeout(item: pytest.Item) -> float | None:
    """The seconds after which pytest-timeout ends a test, if it does."""
    module: Any = sys.modules.get("pytest_timeout")
    if module is None or not item.config.pluginmanager.hasplugin("timeout"):
        return None
    return module._get_item_settings(item).timeout or None  # noqa: SLF001 - no other way


def _ini(name: str) -> str:
    return name.replace("-", "_")
