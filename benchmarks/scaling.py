"""How the reference components scale, on each of several interpreters, as a table in Markdown.

    python -m benchmarks.scaling --python .venv/bin/python --python .venv-t/bin/python

Clients of one component run on 1, 2 and 4 threads; batches and cycles run on pools of 1 to 100
workers. All are ratios from one run: one thread and n threads, one worker and n workers, in pairs,
medians. The figures that this project set out from stand beside ours. Two cores show a speed-up of
2 at most where work computes; for more, Amdahl's law is extrapolated, and marked as such.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.parallelism_trust import compute
from pytest_freethread import interpreter, measure_parallelism
from pytest_freethread.detectors.parallelism import estimate
from pytest_freethread.reference.cache import Cache
from pytest_freethread.reference.engine import ParallelEngine, Stage
from pytest_freethread.reference.executor import ParallelExecutor
from pytest_freethread.reference.rate_limiter import KeyedLimiter, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
THREADS = (1, 2, 4)
EXTRAPOLATED = 8
ITEM = 0.005
"""Seconds that an item or a stage waits, as for a reply."""

CYCLE = 0.02
"""Likewise a cycle."""

# ----- clients of one component: what each thread does to it -----


def _keys() -> list[str]:
    return [f"key {number}" for number in range(100)]


def _full_cache() -> Cache:
    cache = Cache(max_entries=1_000)
    for key in _keys():
        cache.set(key, {"value": key})
    return cache


def read(cache: Cache) -> None:
    """Hits only."""
    for _ in range(20):
        for key in _keys():
            cache.get(key)


def read_and_write(cache: Cache) -> None:
    """One in ten writes."""
    for turn in range(200):
        for number, key in enumerate(_keys()[:10]):
            if number == turn % 10:
                cache.set(key, turn)
            else:
                cache.get(key)


class Fresh:
    """An empty cache of which each client computes keys of its own."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.cache = Cache()
        self.work = work
        self.clients = itertools.count()

    def client(self) -> None:
        """Four keys that nobody else asks for."""
        me = next(self.clients)
        for number in range(4):
            self.cache.get_or_compute(f"{me} {number}", self.work)


def wait() -> None:
    """As for a reply."""
    time.sleep(ITEM)


def take(bucket: TokenBucket) -> None:
    """Permits that are there."""
    for _ in range(2_000):
        bucket.try_acquire()


def take_of_many(limiter: KeyedLimiter) -> None:
    """The same, of keys that each client has for itself."""
    key = interpreter.get_ident()
    for _ in range(2_000):
        limiter.try_acquire(key)


CLIENTS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "no component at all (the ceiling)": (lambda: None, lambda _: compute()),
    "limiter, one bucket": (lambda: TokenBucket(1e9, 1e9), take),
    "limiter, a key for each thread": (lambda: KeyedLimiter(1e9, 1e9), take_of_many),
    "cache, reads": (_full_cache, read),
    "cache, one in ten writes": (_full_cache, read_and_write),
    "cache, keys computed apart, waiting": (
        lambda: Fresh(wait),
        Fresh.client,
    ),
    "cache, keys computed apart, computing": (
        lambda: Fresh(compute),
        Fresh.client,
    ),
}

# ----- pools: one call, with so many workers -----


def plain_threads(items: int) -> Callable[[int], float]:
    """Seconds that computing items take on so many threads that divide them up beforehand."""

    def run(workers: int) -> float:
        def worker() -> None:
            for _ in range(items // workers):
                compute()

        threads = [threading.Thread(target=worker) for _ in range(workers)]

        def everything() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return timed(everything)

    return run


def batch(work: Callable[[], object], items: int) -> Callable[[int], float]:
    """Seconds that a batch takes on so many workers, whose threads have been started."""

    def run(workers: int) -> float:
        with ParallelExecutor(workers=workers) as executor:
            executor.run([lambda: None] * workers)
            return timed(lambda: executor.run([work] * items))

    return run


def cycles(work: Callable[[], object], count: int) -> Callable[[int], float]:
    """The same of cycles of one stage through an engine; many, one by one, are told from fewer."""

    def run(workers: int) -> float:
        enough = min(count, 50) if workers == 1 else count
        with ParallelEngine([Stage("only", lambda _, __: work())], workers=workers) as engine:
            engine.run(range(workers))
            return timed(lambda: engine.run(range(enough))) * count / enough

    return run


def long_wait() -> None:
    """As for a reply from far away."""
    time.sleep(CYCLE)


def timed(function: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


POOLS: Sequence[tuple[str, Callable[[int], float], int, int]] = (
    # name, what runs, workers, pairs
    ("no component at all, 16 computing items (the ceiling)", plain_threads(16), 8, 11),
    ("executor, 8 waiting items", batch(wait, 8), 8, 11),
    ("executor, 5 computing items", batch(compute, 5), 8, 11),
    ("executor, 10 computing items", batch(compute, 10), 8, 11),
    ("executor, 20 computing items", batch(compute, 20), 8, 11),
    ("engine, 10 waiting cycles", cycles(long_wait, 10), 100, 9),
    ("engine, 100 waiting cycles", cycles(long_wait, 100), 100, 5),
    ("engine, 1,000 waiting cycles", cycles(long_wait, 1_000), 100, 5),
    ("engine, 40 computing cycles", cycles(compute, 40), 8, 5),
)


def computations() -> int:
    """How often four clients that ask for the same four keys have something computed."""
    calls: list[None] = []

    def work() -> None:
        calls.append(None)
        wait()

    def client() -> None:
        for number in range(4):
            cache.get_or_compute(str(number), work)

    with Cache() as cache, ParallelExecutor(workers=4) as executor:
        executor.run([client] * 4)
    return len(calls)


def measure_here(seconds: float) -> dict[str, Any]:
    """All rows under this interpreter."""
    rows: dict[str, Any] = {}
    for name, (setup, task) in CLIENTS.items():
        scaling = measure_parallelism(
            task, setup=setup, threads=THREADS, seconds=seconds, locks=True
        )
        last = scaling.points[-1]
        two = scaling.points[1]
        law = next((fit for fit in scaling.fits if fit.law == "Amdahl"), None)
        lock = last.locks[0] if last.locks and last.locks[0].share > 0.01 else None
        rows[name] = {
            "speedups": {point.threads: list(point.speedup) for point in scaling.points},
            "possible": two.possible.value,
            "each": two.serial.value / 2,
            "at two": two.total.value,
            "computing": two.computing,
            "extrapolated": None if law is None else list(dict(law.speedups)[EXTRAPOLATED]),
            "lock": None
            if lock is None
            else f"{lock.share:.0%} {lock.name} ({Path(lock.place.file).name}:{lock.place.line})",
        }
    for name, run, workers, pairs in POOLS:
        both = [(run(1), run(workers)) for _ in range(pairs)]
        rows[name] = {
            "workers": workers,
            "speedup": list(estimate(one / many for one, many in both)),
            "seconds": median(many for _, many in both),
        }
    return {
        "interpreter": str(interpreter.facts()),
        "rows": rows,
        "computations": computations(),
    }


# ----- the table -----

HEADLINES = {
    "executor, 5 computing items": 1.7,
    "executor, 10 computing items": 2.3,
    "executor, 20 computing items": 2.8,
    "executor, 8 waiting items": 6.8,
    "engine, 10 waiting cycles": 10,
    "engine, 100 waiting cycles": 60,
    "engine, 1,000 waiting cycles": 60,
    "cache, reads": 3,
}
"""Figures to compare with; the first three and the last are against the GIL, on many cores."""


def table(sides: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Markdown."""
    names = [side["interpreter"].partition(",")[0] for side in sides]
    yield _row(
        "clients on threads",
        *(f"{name}: 2 / 4 threads" for name in names),
        "possible, 2",
        f"{EXTRAPOLATED} threads, extrapolated",
        "waits at 4 threads",
    )
    yield _row(*["---"] * (len(sides) + 4))
    last = sides[-1]["rows"]
    for name in CLIENTS:
        row = last[name]
        yield _row(
            name,
            *(
                " / ".join(f"{side['rows'][name]['speedups'][str(n)][0]:.2f} ×" for n in (2, 4))
                for side in sides
            ),
            f"{row['possible']:.2f} ×",
            "" if row["extrapolated"] is None else f"{row['extrapolated'][0]:.1f} ×",
            row["lock"] or "",
        )
    yield ""
    yield _row(
        "pools",
        *(f"{name}: n workers : 1" for name in names),
        "n",
        f"{names[-1]} against {names[0]}",
        "set out from",
    )
    yield _row(*["---"] * (len(sides) + 4))
    first = sides[0]["rows"]
    for name, *_ in POOLS:
        said = HEADLINES.get(name)
        yield _row(
            name,
            *(_interval(side["rows"][name]["speedup"]) for side in sides),
            str(last[name]["workers"]),
            f"{first[name]['seconds'] / last[name]['seconds']:.2f} ×",
            "" if said is None else f"{said:g} ×",
        )
    yield ""
    throughput = first["cache, reads"]["at two"] / last["cache, reads"]["at two"]
    yield (
        f"Cache reads on two threads, {names[-1]} against {names[0]}: {throughput:.2f} × the "
        f"throughput (set out from, on more cores: {HEADLINES['cache, reads']:g} ×). Single "
        f"flight: four clients ask for the same four keys, {sides[-1]['computations']} of 16 are "
        "computed."
    )


def _interval(found: Sequence[float]) -> str:
    value, low, high = found
    return f"{value:.1f} × [{low:.1f} … {high:.1f}]"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure under each interpreter, one after another, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="an interpreter; repeat it")
    parser.add_argument("--seconds", type=float, default=6.0, help="budget of a curve")
    parser.add_argument("--here", action="store_true", help="this interpreter alone, as JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.seconds)))
        return
    began = time.monotonic()
    sides = []
    for python in options.python or [sys.executable]:
        command = [python, "-m", "benchmarks.scaling", "--here", f"--seconds={options.seconds}"]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        sides.append(json.loads(done.stdout))
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{'; '.join(side['interpreter'] for side in sides)}; {platform.platform()}, {load}")
    print()
    print("\n".join(table(sides)))
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
