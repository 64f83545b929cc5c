"""Modules made of a few lines, and a sink that writes down what it hears."""

import importlib.util
import itertools
import sys
import textwrap

import pytest

from pytest_freethread.instrument import effects, probes, swap

numbers = itertools.count()


class Recorder:
    """Hears the probes as tuples: operation, text of the site, key."""

    def __init__(self):
        self.heard = []
        self.objects = []
        self.sites = []
        self.stand_ins = {}

    def access(self, obj, key, op, site):
        self.heard.append((effects.OP_NAMES[op], probes.SITES[site].text, key))
        self.objects.append(obj)
        self.sites.append(probes.SITES[site])
        return self.stand_ins.get(id(obj), obj)


@pytest.fixture
def make_module(tmp_path):
    made = []

    def make(source):
        name = f"made_for_a_test_{next(numbers)}"
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


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def listening(recorder):
    """Call functions of a module with probes in; returns what was announced."""

    def hear(module, call, *arguments, recorder=recorder):
        with swap.instrumented([module]) as coverage:
            assert coverage.left_out == ()
            probes.listen(recorder)
            try:
                getattr(module, call)(*arguments)
            finally:
                probes.listen(None)
        return recorder

    return hear


@pytest.fixture
def announced(make_module, listening):
    """The events of the function `f` of a source, run with the given arguments."""

    def events(source, *arguments):
        return listening(make_module(source), "f", *arguments).heard

    return events
