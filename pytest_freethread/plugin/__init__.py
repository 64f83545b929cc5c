"""Everything that knows pytest: hooks, options/ini/markers → Plan, items and fixtures, terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_freethread import interpreter
from pytest_freethread.errors import SettingError, ThreadSafetyError
from pytest_freethread.plugin import gil, options
from pytest_freethread.plugin.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_freethread.records import Result, Scaling

_gil_watch = gil.GilWatch()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options; watch imports from here on, before any conftest is loaded."""
    options.add(parser)
    _gil_watch.start()


def pytest_configure(config: pytest.Config) -> None:
    """Check the settings, so that nonsense ends the session before it starts."""
    for marker in options.MARKERS:
        config.addinivalue_line("markers", marker)
    try:
        options.check(config)
    except SettingError as error:
        raise pytest.UsageError(str(error)) from None
    facts = interpreter.facts()
    if options.flag(config, "freethread-require-nogil") and facts.gil:
        culprit = _gil_watch.culprit
        why = f"; importing {culprit} switched it on" if culprit else ""
        raise pytest.UsageError(
            f"--freethread-require-nogil: the GIL is on ({facts}{why}); {gil.HOW_TO_GET_ONE}"
        )
    config.pluginmanager.register(Session(config, _gil_watch), "freethread-session")


def pytest_unconfigure() -> None:
    """Put the import system back as it was."""
    _gil_watch.stop()


@pytest.fixture
def thread_index(request: pytest.FixtureRequest) -> int:
    """Index of the thread that runs the test, from 0 on; 0 where it runs on one thread."""
    from pytest_freethread.plugin.contexts import thread_index_key

    index: int = request.node.stash.get(thread_index_key, 0)
    return index


@pytest.fixture
def round_index(request: pytest.FixtureRequest) -> int:
    """Index of the round, from 0 on; 0 where there are no rounds."""
    from pytest_freethread.plugin.contexts import round_index_key

    index: int = request.node.stash.get(round_index_key, 0)
    return index


class Verbs:
    """The harness's verbs with a test's plan as their defaults; see the functions of that name."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def stress(self, *bodies: Callable[..., object], **settings: Any) -> Result:
        """`pytest_freethread.stress`."""
        from pytest_freethread.harness import stress

        return stress(*bodies, **{**options.verb_defaults(self._item, "stress"), **settings})

    def explore(self, *bodies: Callable[..., object], **settings: Any) -> Result:
        """`pytest_freethread.explore`."""
        from pytest_freethread.harness import explore

        return explore(*bodies, **{**options.verb_defaults(self._item, "explore"), **settings})

    def measure_parallelism(self, *tasks: Callable[..., object], **settings: Any) -> Scaling:
        """`pytest_freethread.measure_parallelism`."""
        from pytest_freethread.harness import measure_parallelism
        from pytest_freethread.plugin import measured

        told = self._parallel_defaults(tasks)
        told = {name: value for name, value in told.items() if name not in options.ASKED}
        return measured.keep(self._item, measure_parallelism(*tasks, **{**told, **settings}))

    def assert_parallel(self, *tasks: Callable[..., object], **settings: Any) -> Scaling:
        """`pytest_freethread.assert_parallel`."""
        from pytest_freethread.harness import assert_parallel
        from pytest_freethread.plugin import measured

        __tracebackhide__ = True
        told = self._parallel_defaults(tasks)
        try:
            scaling = assert_parallel(*tasks, **{**told, **settings})
        except ThreadSafetyError as error:
            measured.keep(self._item, error.result)
            raise
        return measured.keep(self._item, scaling)

    def _parallel_defaults(self, tasks: tuple[Callable[..., object], ...]) -> dict[str, Any]:
        told = options.verb_defaults(self._item, "parallel")
        if len(tasks) > 1:
            told.pop("threads", None)  # each has its own
        return told

    def replay(self, token: str, *bodies: Callable[..., object], **settings: Any) -> Result:
        """`pytest_freethread.replay`."""
        from pytest_freethread.harness import replay

        told = options.verb_defaults(self._item, "explore")
        settings = {
            **{name: told[name] for name in ("threads", "include") if name in told},
            **settings,
        }
        return replay(token, *bodies, **settings)


@pytest.fixture
def freethread(request: pytest.FixtureRequest) -> Verbs:
    """The harness's verbs with the test's marker, options and ini as defaults."""
    return Verbs(request.node)
