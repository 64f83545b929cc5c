"""Programs as modules with probes, and choosers that go through all orders or draw one."""

import importlib.util
import itertools
import sys
import textwrap
from types import SimpleNamespace

import pytest
from choosers import Tree, drawn, stay

from pytest_freethread.execution.controlled import Controlled

numbers = itertools.count()


@pytest.fixture
def make_module(tmp_path):
    """A module with a source of one's own: `setup`, `threads` and `invariant` are its program."""
    made = []

    def make(source):
        name = f"controlled_by_a_test_{next(numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        made.append(name)
        spec.loader.exec_module(module)
        return module

    yield make
    for name in made:
        del sys.modules[name]


def program(module):
    return SimpleNamespace(
        bodies=module.threads,
        setup=getattr(module, "setup", None),
        invariant=getattr(module, "invariant", None),
    )


class Explorer:
    """Runs the program of a module."""

    def __init__(self, make_module):
        self.make_module = make_module

    def everything(
        self,
        source,
        *,
        preemptions=None,
        limit=20_000,
        max_steps=2_000,
        early_timeouts=0,
        **options,
    ):
        """All executions of a program; the search starts over when it has learned something."""
        module = self.make_module(source)
        parts = program(module)
        with Controlled([module], **options) as control:
            tree, executions = Tree(preemptions), []
            while True:
                execution = control.run(
                    parts.bodies,
                    tree.choose,
                    setup=parts.setup,
                    invariant=parts.invariant,
                    max_steps=max_steps,
                    early_timeouts=early_timeouts,
                )
                executions.append(execution)
                assert len(executions) < limit, "the tree is too large for a test"
                if execution.widened:
                    tree, executions = Tree(preemptions), []
                elif not tree.advance():
                    return executions

    def some(self, source, times=60, *, max_steps=5_000, record=False, **options):
        """Executions under drawn schedules."""
        module = self.make_module(source)
        parts = program(module)
        with Controlled([module], **options) as control:
            return [
                control.run(
                    parts.bodies,
                    drawn(seed),
                    setup=parts.setup,
                    invariant=parts.invariant,
                    max_steps=max_steps,
                    record=record,
                )
                for seed in range(times)
            ]

    def once(self, source, choose=stay, **options):
        """One execution."""
        module = self.make_module(source)
        parts = program(module)
        run = {key: options.pop(key) for key in ("max_steps", "record", "fair") if key in options}
        with Controlled([module], **options) as control:
            return control.run(
                parts.bodies, choose, setup=parts.setup, invariant=parts.invariant, **run
            )


@pytest.fixture
def explore(make_module):
    return Explorer(make_module)
