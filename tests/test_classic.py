"""The classic racy programs, each found by the defaults of an exploration within its budget."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from pytest_freethread import Verdict, explore, replay

FOLDER = Path(__file__).parents[1] / "fixtures" / "classic"
HEADER = re.compile(
    r"kind: (?P<kind>[a-z]+(-[a-z]+)*) \| wrong: [^|]+ \| "
    r"threads: (?P<least>\d+)( to (?P<most>\d+))? \| published: (?P<published>[^|]+)"
)
STANDSTILL = {"deadlock", "stuck", "lost-wakeup"}
"""Kinds of bugs, and of findings, that show in threads which do not come back."""

TOO_LARGE = {"reorder_100", "twostage_50", "twostage_100"}
"""Variants that take seconds; `benchmarks.classic` runs them."""


def load(path):
    name = f"classic_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {path.stem: load(path) for path in sorted(FOLDER.glob("*.py"))}


def header(module):
    return HEADER.fullmatch(module.__doc__.partition("\n")[0])


def variants(name):
    module = MODULES[name]
    if hasattr(module, "variants"):
        return module.variants
    return {name: (module.setup, module.threads, getattr(module, "invariant", None))}


def programs(*, trivial):
    return [
        pytest.param(module, *parts, id=variant)
        for name, module in MODULES.items()
        for variant, parts in variants(name).items()
        if variant not in TOO_LARGE and trivial == module.__doc__.endswith("published: trivial")
    ]


def finding(module, setup, threads, invariant, *, schedules):
    result = explore(
        *threads,
        setup=setup,
        invariant=invariant,
        strategy="auto",
        schedules=schedules,
        seconds=5,
        seed=0,
    )
    assert result.verdict is Verdict.FAILED, str(result)
    (found,) = (each for each in result.findings if each.severity == "error")
    assert (found.kind in STANDSTILL) == (header(module)["kind"] in STANDSTILL)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_classic_program_says_in_its_first_line_what_it_is(name):
    fields = header(MODULES[name])
    assert fields, MODULES[name].__doc__
    sizes = [len(threads) for _, threads, _ in variants(name).values()]
    assert (min(sizes), max(sizes)) == (
        int(fields["least"]),
        int(fields["most"] or fields["least"]),
    )


@pytest.mark.parametrize(("module", "setup", "threads", "invariant"), programs(trivial=False))
def test_the_portfolio_finds_a_classic_bug_which_comes_back_each_time(
    module, setup, threads, invariant
):
    found = finding(module, setup, threads, invariant, schedules=1000)
    assert found.reproduced == (10, 10)
    again = replay(found.token, *threads, setup=setup, invariant=invariant)
    assert [one.kind for one in again.findings if one.severity == "error"] == [found.kind]


@pytest.mark.parametrize(("module", "setup", "threads", "invariant"), programs(trivial=True))
def test_a_program_marked_as_trivial_fails_in_its_first_schedule(module, setup, threads, invariant):
    finding(module, setup, threads, invariant, schedules=1)
