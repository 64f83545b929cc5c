"""A copy of a test item for each thread, with function-scoped fixtures of its own.

The one place that knows pytest's private fixture machinery. Fixtures wider than a function are set
up once, by pytest, on the item itself. In each round the contexts are set up one after the other on
the main thread, nested on pytest's own stack of active nodes so that pytest tears them down in the
opposite order. Fixtures that are named as shared live in a context before those of the threads.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.fixtures import TopRequest
from _pytest.tmpdir import tmppath_result_key
from _pytest.unittest import TestCaseFunction

from pytest_freethread.plugin.parts import Subtests, UnittestCase, raise_all

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

thread_index_key = pytest.StashKey[int]()
round_index_key = pytest.StashKey[int]()


class Context:
    """A copy of an item, for one thread (or, with no index, for the shared fixtures)."""

    def __init__(
        self,
        item: pytest.Function,
        index: int | None,
        names: Sequence[str],
        before: Sequence[Context],
    ) -> None:
        self.index = index
        self._item = item
        self._before = before
        self._chain = [*item.listchain(), *(context._copy for context in before)]
        self._wide: dict[str, Any] = dict(item._request._fixture_defs)
        self._copy: pytest.Function = copy.copy(item)
        clone = self._copy
        for attribute in ("setup", "runtest", "repr_failure"):
            vars(clone).pop(attribute, None)
        clone.stash = pytest.Stash()
        if index is not None:
            clone.stash[thread_index_key] = index
        clone.fixturenames = list(names)
        clone._fixtureinfo = replace(item._fixtureinfo, name2fixturedefs=_Definitions(item))
        self._fresh_instance = item.cls is not None and not hasattr(item.obj, "hypothesis")
        self._needs_set_up = bool(names) or isinstance(item, TestCaseFunction)
        self._tmp: Path | None = None
        self._unittest: UnittestCase | None = None
        self._subtest_errors: list[BaseException] = []
        self.body: Callable[[], object] = lambda: None

    def set_up(self, round_: int) -> None:
        """Set up the fixtures of a round, and make its body."""
        clone = self._copy
        clone.stash[round_index_key] = round_
        clone._initrequest()
        clone._request.getfixturevalue = self._getfixturevalue  # type: ignore[assignment, method-assign]
        if self._fresh_instance:
            clone._obj = None
            vars(clone).pop("_instance", None)
        known = clone._request._fixture_defs
        known.update(self._wide)
        for context in self._before:
            if context.index is None:
                made = context._copy._request._fixture_defs
                known.update({name: made[name] for name in context._copy.fixturenames})
        known.update(self._temporary_paths(known))
        if "subtests" in clone.fixturenames:
            definition = clone._fixtureinfo.name2fixturedefs["subtests"][-1]
            known["subtests"] = _constant(definition, Subtests(self._subtest_errors))
        if self._needs_set_up:
            self._marks = {id(d): (d, len(d._finalizers)) for d in self._wide.values()}
            clone.session._setupstate.setup(self._node(inclusive=True))
        if self.index is None:
            return
        if isinstance(clone, TestCaseFunction):
            self._unittest = UnittestCase(clone)
            self._unittest.set_up()
            self.body = self._unittest.run
        else:
            self.body = body_of(clone, self._subtest_errors)

    def tear_down(self, *, failed: bool) -> None:
        """Tear down the fixtures of a round.

        Raises:
            Exception: what a fixture's tear-down raised.
        """
        self.body = lambda: None
        self._copy.stash[tmppath_result_key] = {"setup": True, "call": not failed}
        try:
            if self._unittest is not None:
                case, self._unittest = self._unittest, None
                case.tear_down()
        finally:
            if self._needs_set_up:
                self._copy.session._setupstate.teardown_exact(self._node(inclusive=False))
                for definition, length in self._marks.values():
                    # They refer to fixtures that are no more, and would pile up until the end.
                    del definition._finalizers[length:]
            if self._tmp is not None and not failed:
                shutil.rmtree(self._tmp, ignore_errors=True)

    def _node(self, *, inclusive: bool) -> Any:
        """What pytest takes for an item below all contexts that come before this one."""
        chain = [*self._chain, self._copy] if inclusive else self._chain
        return SimpleNamespace(listchain=lambda: chain)

    def _getfixturevalue(self, name: str) -> Any:
        """`request.getfixturevalue` of the test: done on the main thread, whoever asks."""
        from pytest_freethread.execution.free import on_calling_thread

        def get() -> Any:
            if name not in self._copy._request._fixture_defs and is_wide(self._item, name):
                return self._item._request.getfixturevalue(name)
            return TopRequest.getfixturevalue(self._copy._request, name)

        return on_calling_thread(get)

    def _temporary_paths(self, known: dict[str, Any]) -> dict[str, Any]:
        """Factories of temporary paths that are a thread's and round's own."""
        definition = known.get("tmp_path_factory")
        if definition is None:
            return {}
        shared = definition.cached_result[0]
        who = "shared" if self.index is None else f"thread-{self.index}"
        round_ = self._copy.stash[round_index_key]
        self._tmp = shared.mktemp(f"{_short(self._item.name)}-round-{round_}-{who}-")
        factory = copy.copy(shared)
        factory._basetemp = self._tmp
        if hasattr(factory, "_next_number"):
            factory._next_number = {}
        private = {"tmp_path_factory": _constant(definition, factory)}
        legacy = known.get("tmpdir_factory")
        if legacy is not None:
            paths = copy.copy(legacy.cached_result[0])
            paths._tmppath_factory = factory
            private["tmpdir_factory"] = _constant(legacy, paths)
        return private


def body_of(item: pytest.Function, subtest_errors: list[BaseException]) -> Callable[[], object]:
    """A call of the test function with the fixtures that are set up now."""
    function = item.obj
    request = item._request
    known: dict[str, Any] = request._fixture_defs
    values = {
        name: request if name == "request" else known[name].cached_result[0]
        for name in item._fixtureinfo.argnames
    }
    nodeid = item.nodeid

    def body() -> None:
        try:
            returned = function(**values)
        except Exception as error:
            if not subtest_errors:
                raise
            subtest_errors.append(error)
            returned = None
        raise_all(subtest_errors)
        if returned is not None:
            warnings.warn(
                pytest.PytestReturnNotNoneWarning(
                    f"Test functions should return None, but {nodeid} returned a value of type "
                    f"{type(returned)!r}."
                ),
                stacklevel=1,
            )

    return body


def is_wide(item: pytest.Function, name: str) -> bool:
    """Whether a fixture lives longer than a test."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and name in callspec.params:
        return bool(callspec._arg2scope[name].value != "function")
    definitions = item._fixtureinfo.name2fixturedefs.get(name)
    if definitions is None:
        definitions = item.session._fixturemanager.getfixturedefs(name, item)
    return definitions is not None and any(d.scope != "function" for d in definitions[-1:])


@contextmanager
def only(item: pytest.Function, names: Collection[str]) -> Iterator[None]:
    """Let pytest set up these of an item's fixtures only."""
    before = item.fixturenames
    item.fixturenames = [name for name in before if name in names]
    try:
        yield
    finally:
        item.fixturenames = before


class _Definitions(dict[str, Any]):
    """A context's own fixture definitions by name, also those that only running code asks for."""

    def __init__(self, item: pytest.Function) -> None:
        super().__init__()
        self._item = item
        for name, definitions in item._fixtureinfo.name2fixturedefs.items():
            self[name] = [_fresh(definition) for definition in definitions]

    def get(self, name: str, default: Any = None) -> Any:
        """The definitions of a name; pytest looks no further where there are any."""
        if name not in self:
            found = self._item.session._fixturemanager.getfixturedefs(name, self._item)
            if found is None:
                return default
            self[name] = [_fresh(definition) for definition in found]
        return self[name]

    def copy(self) -> Any:
        """What some versions of pytest look things up in."""
        return self


def _fresh(definition: Any) -> Any:
    """A fixture definition that has not been executed; wide ones are one for all."""
    if definition.scope != "function":
        return definition
    definition = copy.copy(definition)
    definition.cached_result = None
    definition._finalizers = []
    return definition


def _constant(definition: Any, value: object) -> Any:
    definition = copy.copy(definition)
    definition.cached_result = (value, None, None)
    definition._finalizers = []
    return definition


def _short(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)[:30]
