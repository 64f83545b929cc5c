"""pytest-freethread: validate thread safety with pytest. The public names, lazily loaded."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_freethread.contracts import check_contract, operation
    from pytest_freethread.drawing import Schedule, schedules
    from pytest_freethread.errors import SettingError, ThreadSafetyError
    from pytest_freethread.harness import (
        assert_parallel,
        explore,
        measure_parallelism,
        replay,
        stress,
    )
    from pytest_freethread.linearizability import (
        Judgement,
        Operation,
        SequentialSpec,
        check_history,
    )
    from pytest_freethread.records import Finding, Plan, Result, Scaling, Verdict

__all__ = [
    "Finding",
    "Judgement",
    "Operation",
    "Plan",
    "Result",
    "Scaling",
    "Schedule",
    "SequentialSpec",
    "SettingError",
    "ThreadSafetyError",
    "Verdict",
    "assert_parallel",
    "check_contract",
    "check_history",
    "explore",
    "measure_parallelism",
    "operation",
    "replay",
    "schedules",
    "stress",
]

_HOMES = {
    "Finding": "records",
    "Judgement": "linearizability",
    "Operation": "linearizability",
    "Plan": "records",
    "Result": "records",
    "Scaling": "records",
    "Schedule": "drawing",
    "SequentialSpec": "linearizability",
    "SettingError": "errors",
    "ThreadSafetyError": "errors",
    "Verdict": "records",
    "assert_parallel": "harness",
    "check_contract": "contracts",
    "check_history": "linearizability",
    "explore": "harness",
    "measure_parallelism": "harness",
    "operation": "contracts",
    "replay": "harness",
    "schedules": "drawing",
    "stress": "harness",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
