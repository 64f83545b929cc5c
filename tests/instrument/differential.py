"""Run a standard-library test module without and with probes; print what differs, as JSON.

    python differential.py heapq heapq      # test.test_heapq, with probes in heapq and in the test

Frames at the very edge of the recursion limit, and the moments at which the garbage collector runs,
are the two things that probes may change; tests of exactly these are left out by the caller.
"""

import contextlib
import importlib
import io
import json
import sys
import unittest

from pytest_freethread.instrument import probes, swap


class Outcomes(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.of = {}

    def addSuccess(self, test):  # noqa: N802 - unittest's name
        self.of[test.id()] = "passed"

    def addSkip(self, test, reason):  # noqa: ARG002, N802 - unittest's name
        self.of[test.id()] = "skipped"

    def addFailure(self, test, error):  # noqa: N802 - unittest's name
        self.of[test.id()] = f"failed: {self._exc_info_to_string(error, test)[-1500:]}"

    addError = addFailure  # noqa: N815 - unittest's name

    def addSubTest(self, test, subtest, error):  # noqa: ARG002, N802 - unittest's name
        if error is not None:
            self.of[subtest.id()] = f"failed: {self._exc_info_to_string(error, subtest)[-1500:]}"


class Counter:
    def __init__(self):
        self.events = 0

    def access(self, obj, key, op, site):  # noqa: ARG002
        self.events += 1
        return obj


def outcomes(module):
    result = Outcomes()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    return result.of


def main(name, *subjects):
    tests = importlib.import_module(f"test.test_{name}")
    modules = [importlib.import_module(subject) for subject in subjects]
    modules += [m for n, m in sorted(sys.modules.items()) if n.startswith(f"test.test_{name}")]
    plain = outcomes(tests)
    sink = Counter()
    with swap.instrumented(modules) as coverage:
        probes.listen(sink)
        probed = outcomes(tests)
        probes.listen(None)
    again = outcomes(tests)

    def verdict(results, test):
        return results.get(test, "absent").split(":")[0]

    differing = {
        test: probed.get(test, "absent")
        for test in sorted(plain | probed)
        if not verdict(plain, test) == verdict(probed, test) == verdict(again, test)
    }
    unmatched = [entry for entry in coverage.left_out if "exec" not in entry[1]]
    print(json.dumps([len(plain), sink.events, coverage.functions, unmatched, differing]))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
