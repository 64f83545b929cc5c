"""Every contract below `fixtures/` is kept, and its wrong twin is found and shrunk."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from pytest_freethread import Verdict, check_contract

ROOT = Path(__file__).parents[2] / "fixtures"
NAMES = sorted(path.stem for path in (ROOT / "racy" / "contract").glob("*.py"))
RACY = re.compile(
    r"kind: contract \| wrong: (?P<wrong>[^|]+) "
    r"\| calls: (?P<calls>[1-9]\d*) \| switches: (?P<switches>\d+)"
)
SAFE = re.compile(r"kind: contract \| wrong: nothing \(.+\)")


def load(side, name):
    path = ROOT / side / "contract" / f"{name}.py"
    module_name = f"contract_{side}_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(module, **how):
    return check_contract(module.contract, **{**getattr(module, "options", {}), **how})


def calls(result):
    return sum(len(called) for _, called in result.findings[0].evidence.scenario.rows)


def switches(result):
    return result.findings[0].token.count(".")


def test_both_twins_are_there_and_say_what_they_are():
    assert sorted(path.stem for path in (ROOT / "safe" / "contract").glob("*.py")) == NAMES
    for name in NAMES:
        assert RACY.fullmatch(load("racy", name).__doc__), name
        assert SAFE.fullmatch(load("safe", name).__doc__), name


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_contract_passes(name):
    module = load("safe", name)
    most = getattr(module, "options", {}).get("scenarios", 25)
    result = check(module, seed=1, scenarios=min(most, 25), schedules=60, seconds=None)
    assert result.verdict is Verdict.PASSED, str(result)
    assert not result.findings


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_twin_is_found_shrunk_and_comes_back(name):
    module = load("racy", name)
    header = RACY.fullmatch(module.__doc__)
    result = check(module, seed=4, scenarios=400, seconds=None)
    assert result.verdict is Verdict.FAILED, str(result)
    (finding,) = result.findings
    assert finding.kind in {"linearizability", "deadlock", "lost-wakeup", "exception"}
    assert finding.reproduced == (10, 10), str(result)
    assert finding.token
    assert calls(result) <= max(4, int(header["calls"])), str(result)
    assert switches(result) <= int(header["switches"]) + 2, str(result)
