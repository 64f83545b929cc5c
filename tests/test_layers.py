"""The layers of docs/architecture.md, enforced by walking the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_freethread

PACKAGE = Path(pytest_freethread.__file__).parent
NAME = "pytest_freethread"

MAY_IMPORT = {
    # leaves: nothing of ours, but each other in this order
    "errors": set(),
    "interpreter": set(),
    "records": {"errors"},
    "settings": {"errors", "interpreter", "records"},
    # where events come from: knows nothing of what is done with them
    "instrument": {"errors", "interpreter", "records", "instrument"},
    "execution": {"errors", "interpreter", "records", "instrument", "execution"},
    # who runs next: pure policy
    "scheduling": {"errors", "records", "scheduling"},
    # the search loop of an exploration: what is tried next, shrunk, confirmed
    "exploring": {
        "errors", "interpreter", "records", "instrument", "execution", "scheduling", "detectors",
        "suspecting",
    },
    # what executions make suspect, and the schedules that prove it
    "suspecting": {
        "errors", "interpreter", "records", "instrument", "execution", "scheduling", "detectors",
    },
    # which rounds of a free run are recorded, and which prove what those make suspect
    "recorded": {"records", "instrument", "execution", "detectors"},
    # judges: records only, not even each other
    "detectors": {"records", "detectors"},
    "linearizability": {"records"},
    "report": {"records", "report"},
    "harness": {
        "errors", "interpreter", "records", "settings", "instrument", "execution", "detectors",
        "report", "exploring", "recorded", "scheduling",
    },
    # generated scenarios, explored and judged
    "contracts": {
        "errors", "interpreter", "records", "settings", "execution", "scheduling", "detectors",
        "report", "exploring", "harness", "linearizability",
    },
    # what Hypothesis draws, run and told
    "drawing": {
        "errors", "interpreter", "records", "settings", "execution", "scheduling", "exploring",
        "harness",
    },
    "plugin": {
        "errors", "interpreter", "records", "settings", "instrument", "execution", "detectors",
        "report", "harness", "exploring", "scheduling", "drawing", "plugin",
    },
    # subjects under test: nothing of the harness, not even each other
    "reference": set(),
    # the façade names everything, lazily
    "": {"errors", "records", "linearizability", "harness", "contracts", "drawing"},
}  # fmt: skip

ONLY_IN = {
    "pytest": {"plugin"}, "_pytest": {"plugin"},
    "scipy": {"detectors"}, "matplotlib": {"report"},
}  # fmt: skip
HYPOTHESIS_ONLY_IN = {"scheduling/drawn.py", "contracts.py"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path):
    """The absolute names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module
            if node.module == NAME:
                yield from (f"{NAME}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path):
    layer = layer_of(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert layer in ONLY_IN.get(top, {layer}), f"{path}: imports {name}"
        if top == "hypothesis":
            assert path.relative_to(PACKAGE).as_posix() in HYPOTHESIS_ONLY_IN, path
        if top == NAME and rest:
            imported = rest.partition(".")[0]
            assert imported in MAY_IMPORT[layer], f"{path}: {layer} imports {imported}"


def test_detectors_do_not_import_each_other_nor_threads_nor_clocks():
    for path in (PACKAGE / "detectors").glob("*.py"):
        assert not {"threading", "time", f"{NAME}.detectors"} & {*imports(path)}, path


def test_every_layer_is_named_here():
    assert {layer_of(path) for path in modules()} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    "forbidden",
    [
        f"{NAME}.harness",
        f"{NAME}.execution",
        f"{NAME}.records",
        "hypothesis",
        "scipy",
        "matplotlib",
    ],
)
def test_loading_the_plugin_loads_neither_the_harness_nor_hypothesis(forbidden):
    code = f"import sys, {NAME}.plugin; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("extra", ["scipy", "matplotlib"])
def test_the_harness_loads_no_extra_before_it_is_needed(extra):
    code = f"import sys, {NAME}.harness, {NAME}.report.plots; sys.exit({extra!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_all_there_and_nothing_else():
    assert dir(pytest_freethread) == pytest_freethread.__all__
    for name in pytest_freethread.__all__:
        assert getattr(pytest_freethread, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pytest_freethread.no_such_name
