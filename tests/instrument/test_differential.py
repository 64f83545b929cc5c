"""The standard library's own tests give the same results with probes in as without.

The quick part is always run; the long one where FREETHREAD_LONG is set in the environment.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("differential.py")
ROOT = SCRIPT.parents[2]

QUICK = {
    "augassign": "",
    "bisect": "bisect",
    "fractions": "fractions",
    "named_expressions": "",
    "patma": "",
    "shlex": "shlex",
    "string": "string",
    "super": "",
    "textwrap": "textwrap",
    "with": "",
}
LONG = {
    "argparse": "argparse",
    "asyncgen": "",
    "builtin": "",
    "class": "",
    "collections": "collections",
    "configparser": "configparser",
    "contextlib": "contextlib",
    "coroutines": "",
    "csv": "csv",
    "dataclasses": "dataclasses",
    "decimal": "_pydecimal",
    "descr": "",
    "difflib": "difflib",
    "enum": "enum",
    "except_star": "",
    "fstring": "",
    "functools": "functools",
    "generators": "",
    "grammar": "",
    "heapq": "heapq",
    "inspect": "inspect",
    "ipaddress": "ipaddress",
    "itertools": "",
    "json": "json json.decoder json.encoder json.scanner",
    "optparse": "optparse",
    "ordered_dict": "collections",
    "plistlib": "plistlib",
    "pprint": "pprint",
    "scope": "",
    "set": "",
    "traceback": "traceback",
    "type_params": "",
    "typing": "typing",
    "userdict": "collections",
    "yield_from": "",
}


def compare(name, subjects):
    try:
        found = importlib.util.find_spec(f"test.test_{name}")
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"this Python has no test.test_{name}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), name, *subjects.split()],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    tests, events, functions, unmatched, differing = json.loads(process.stdout)
    assert tests > 0
    assert events > 0
    assert functions > 0
    assert unmatched == []
    assert differing == {}


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_suite_of_the_standard_library_is_unchanged(name):
    compare(name, QUICK[name])


@pytest.mark.skipif(not os.environ.get("FREETHREAD_LONG"), reason="long: set FREETHREAD_LONG")
@pytest.mark.parametrize("name", LONG)
def test_a_long_suite_of_the_standard_library_is_unchanged(name):
    compare(name, LONG[name])
