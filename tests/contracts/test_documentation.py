"""The examples of `docs/contracts.md` run, and find what the page says."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from pytest_freethread import ThreadSafetyError
from pytest_freethread.report import text

PAGE = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
QUOTED = re.search(r"^```\n(error: Door.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """All examples, as one module: later ones use what earlier ones import."""
    path = tmp_path_factory.mktemp("examples") / "test_door.py"
    path.write_text("\n".join(CODE), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("documented_contracts", path)
    module = sys.modules["documented_contracts"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["documented_contracts"]


def test_the_door_lets_three_in_and_the_page_quotes_how(examples):
    with pytest.raises(ThreadSafetyError) as raised:
        examples.test_door()
    (finding,) = raised.value.result.findings
    said = "\n".join(text.block(finding))
    assert said.startswith(QUOTED[1])


def test_the_other_examples_pass(examples):
    examples.test_box()
    examples.test_deque()
    examples.test_a_stale_read()


def test_a_bug_in_twenty_lines():
    assert len([line for line in CODE[0].splitlines() if line.strip()]) <= 22
