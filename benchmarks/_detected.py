"""What a race detector says of one program or one loop; `benchmarks.detectors` runs it as a script.

In an environment that has one of the tools only: a tool is imported where it is used, and nothing
of this repository is. Prints one line of JSON:

    python _detected.py judge TOOL FILE     found, the kinds, and what is to be said about it
    python _detected.py loop TOOL ROUNDS    seconds of two threads that count under a lock
    python _detected.py memory ROUNDS       bytes that ours takes at most for such a loop, traced

TOOL may be `mute`, which is ours on a program whose failures are swallowed, and, for a loop,
`plain`, or `plain-global` for the variant that threadcheck sees: a global.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = 10.0
"""For a search; the other tools run a program once."""

WARMING = 100
"""Rounds that are not counted: the first run of a tool imports and compiles."""

Answer = dict[str, Any]

DRIVER = """

def _run_all():
    import threading as _threading
    state = setup()
    all_threads = [_threading.Thread(target=body, args=(state,)) for body in threads]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()

_run_all()
"""


class Counter:
    """What the loop works on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value = 0


def counting(rounds: int) -> Callable[[Counter], None]:
    """The body of the loop."""

    def count(counter: Counter) -> None:
        for _ in range(rounds):
            with counter.lock:
                counter.value += 1

    return count


LOOP = """
import threading

class Counter:
    def __init__(self):
        self.lock = threading.Lock()
        self.value = 0

def setup():
    return Counter()

def count(counter):
    for _ in range({rounds}):
        with counter.lock:
            counter.value += 1

threads = [count, count]
"""

GLOBAL_LOOP = """
import threading

lock = threading.Lock()
value = 0

def setup():
    return None

def count(_):
    global value
    for _ in range({rounds}):
        with lock:
            value += 1

threads = [count, count]
"""


def load(path: Path) -> ModuleType:
    """The program as a module of a name that is nobody else's."""
    spec = importlib.util.spec_from_file_location(f"judged_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_all(bodies: Sequence[Callable[[Any], None]], state: object) -> None:
    """Run them in threads of their own, as anybody would."""
    threads = [threading.Thread(target=body, args=(state,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def mute(body: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(body)
    def muted(state: Any) -> None:
        with contextlib.suppress(Exception):
            body(state)

    return muted


# --- a program ------------------------------------------------------------------------------------


def freethread(path: Path, *, muted: bool = False) -> Answer:
    from pytest_freethread import Verdict, explore  # noqa: PLC0415 - see the module's docstring

    module = load(path)
    result = explore(
        *(map(mute, module.threads) if muted else module.threads),
        setup=module.setup,
        invariant=None if muted else getattr(module, "invariant", None),
        threads=len(module.threads),
        seconds=SECONDS,
        races="error",
        include=[module.__name__],
    )
    kinds = {finding.kind for finding in result.findings if finding.severity == "error"}
    note = "inconclusive" if result.verdict is Verdict.INCONCLUSIVE else ""
    return {"found": bool(kinds), "kinds": sorted(kinds), "note": note}


def pyvft(path: Path) -> Answer:
    tool = importlib.import_module("pyvft")
    hook = importlib.import_module("pyvft.instrument.import_hook")

    tool.install()
    module = sys.modules["judged"] = ModuleType("judged")
    tree = hook.transform_source(path.read_text(encoding="utf-8"), str(path))
    exec(compile(tree, str(path), "exec"), module.__dict__)
    run_all(module.threads, module.setup())
    kinds = {race.kind.value for race in tool.races()}
    return {"found": bool(kinds), "kinds": sorted(kinds), "note": ""}


def threadcheck(path: Path) -> Answer:
    tool = importlib.import_module("threadcheck.dynamic.__main__")

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / path.name
        script.write_text(path.read_text(encoding="utf-8") + DRIVER, encoding="utf-8")
        return {"found": tool.run_script(str(script), "json"), "kinds": ["race"], "note": ""}


def frontrun(path: Path) -> Answer:
    tool = importlib.import_module("frontrun")

    module = load(path)
    result = tool.explore(
        setup=module.setup,
        workers=list(module.threads),
        invariant=getattr(module, "invariant", lambda _: True),
        error_on_any_race=True,
        total_timeout=SECONDS,
        reproduce_on_failure=0,
    )
    found = result.property_holds is False
    note = "inconclusive" if result.property_holds is None else ""
    return {"found": found, "kinds": ["race"] if found else [], "note": note}


JUDGES: dict[str, Callable[[Path], Answer]] = {
    "pytest-freethread": freethread,
    "mute": functools.partial(freethread, muted=True),
    "pyvft": pyvft,
    "threadcheck": threadcheck,
    "frontrun": frontrun,
}


# --- a loop ---------------------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def plain_loop(rounds: int, source: str = LOOP) -> float:
    namespace: dict[str, Any] = {}
    exec(source.format(rounds=rounds), namespace)
    return timed(lambda: run_all(namespace["threads"], namespace["setup"]()))


def freethread_loop(rounds: int, strategy: str = "auto") -> float:
    explored(WARMING, strategy)
    return timed(lambda: explored(rounds, strategy))


def explored(rounds: int, strategy: str = "auto") -> None:
    """One controlled execution of the loop, with race detection: the strategy's first one.

    By default that is one in which whoever runs goes on. A random walk switches at every other
    step, and takes the time of as many hand-overs between threads.
    """
    from pytest_freethread import Verdict, explore  # noqa: PLC0415 - see the module's docstring

    body = counting(rounds)
    result = explore(
        body,
        body,
        setup=Counter,
        schedules=1,
        seconds=3600.0,
        strategy=strategy,
        races="note",
        include=[__name__],
    )
    assert result.verdict is Verdict.PASSED, str(result)


def pyvft_loop(rounds: int) -> float:
    tool = importlib.import_module("pyvft")
    hook = importlib.import_module("pyvft.instrument.import_hook")

    tool.install()
    namespace = ModuleType("looping").__dict__
    tree = hook.transform_source(LOOP.format(rounds=rounds), "looping.py")
    exec(compile(tree, "looping.py", "exec"), namespace)
    return timed(lambda: run_all(namespace["threads"], namespace["setup"]()))


def threadcheck_loop(rounds: int) -> float:
    tool = importlib.import_module("threadcheck.dynamic.__main__")

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "looping.py"
        script.write_text(GLOBAL_LOOP.format(rounds=rounds) + DRIVER, encoding="utf-8")
        return timed(lambda: tool.run_script(str(script), "json"))


LOOPS: dict[str, Callable[[int], float]] = {
    "plain": plain_loop,
    "plain-global": functools.partial(plain_loop, source=GLOBAL_LOOP),
    "pytest-freethread": freethread_loop,
    "random walk": functools.partial(freethread_loop, strategy="random"),
    "pyvft": pyvft_loop,
    "threadcheck": threadcheck_loop,
}


def grown(rounds: int) -> Answer:
    """By how much the process grew at most, in bytes, after a first execution; and the seconds."""
    explored(WARMING)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(lambda: explored(rounds))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"grown": grown * 1024, "seconds": seconds}


def main() -> None:
    what, *arguments = sys.argv[1:]
    answer: Answer
    if what == "judge":
        tool, path = arguments
        answer = JUDGES[tool](Path(path))
    elif what == "loop":
        tool, rounds = arguments
        answer = {"seconds": LOOPS[tool](int(rounds))}
    else:
        answer = grown(int(arguments[0]))
    print(json.dumps(answer), flush=True)
    os._exit(0)  # whatever threads the program left behind


if __name__ == "__main__":
    main()
