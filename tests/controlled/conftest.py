"""Programs as modules with probes, and choosers that go through all orders or draw one."""

import importlib.util
import itertools
import random
import sys
import textwrap
from types import SimpleNamespace

import pytest

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


def stay(enabled, current, _pending):
    """Go on as long as that is possible, then the first one."""
    return current if current in enabled else enabled[0]


def drawn(seed):
    """A chooser that draws."""
    draw = random.Random(seed)
    return lambda enabled, *_: draw.choice(enabled)


class Tree:
    """Goes through all orders, depth first; a bound on preemptions keeps the tree small."""

    def __init__(self, preemptions=None):
        self.preemptions = preemptions
        self.path = []  # of [the options at a choice, the index of the one taken]
        self.depth = self.spent = 0

    def choose(self, enabled, current, _pending):
        if self.depth == len(self.path):
            options = list(enabled)
            if current in enabled:
                options.remove(current)
                options.insert(0, current)
                if self.preemptions is not None and self.spent >= self.preemptions:
                    options = [current]
            self.path.append([options, 0])
        options, taken = self.path[self.depth]
        assert set(options) <= set(enabled), "the same choices led to another place"
        self.depth += 1
        self.spent += current in enabled and options[taken] != current
        return options[taken]

    def advance(self):
        self.depth = self.spent = 0
        while self.path and self.path[-1][1] + 1 == len(self.path[-1][0]):
            self.path.pop()
        if self.path:
            self.path[-1][1] += 1
        return bool(self.path)


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
