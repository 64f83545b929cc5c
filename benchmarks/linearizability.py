"""The linearizability checker: time against the length of a history, memory, and a naive search.

Histories are simulated: clients that call, take effect at some moment, and return, so that they
are linearizable by construction. In a corrupted one a single result of the last tenth is that of
another operation. Each measurement has a process of its own. The naive search is Wing & Gong's
without memory and without parts: what it costs to leave out what `check_history` adds.

porcupine publishes factors over Knossos (1,000 to 10,000, "millions" with partitions), no times
of its own that could stand beside these.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.stress import ROOT, print_table
from pytest_freethread.linearizability import (
    Operation,
    SequentialSpec,
    check_history,
    map_spec,
    queue_spec,
    register_spec,
)
from pytest_freethread.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Call = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An object, what its clients call, and which of these calls tell of its state."""

    spec: SequentialSpec[Any]
    call: Callable[[random.Random], Call]
    reads: tuple[str, ...]


def call_register(rng: random.Random) -> Call:
    kind = rng.random()
    if kind < 0.5:
        return "read", ()
    if kind < 0.8:
        return "write", (rng.randrange(5),)
    return "cas", (rng.randrange(5), rng.randrange(5))


def call_map(rng: random.Random) -> Call:
    key, kind = f"key {rng.randrange(100)}", rng.random()
    if kind < 0.5:
        return "get", (key,)
    return ("put", (key, rng.randrange(10))) if kind < 0.9 else ("pop", (key,))


def call_queue(rng: random.Random) -> Call:
    return ("put", (rng.random(),)) if rng.random() < 0.5 else ("get_nowait", ())


SUBJECTS = {
    "register": Subject(spec=register_spec(0), call=call_register, reads=("read",)),
    "map of 100 keys": Subject(spec=map_spec(), call=call_map, reads=("get",)),
    "queue": Subject(spec=queue_spec(), call=call_queue, reads=("get_nowait",)),
}


def simulate(subject: Subject, *, length: int, clients: int, seed: int) -> list[Operation]:
    """A history of operations that overlap, each of which took effect between its two ends."""
    rng = random.Random(seed)
    state: Hashable = subject.spec.initial
    history: list[Operation] = []
    idle = [*range(clients)]
    called: list[Operation] = []
    done: list[Operation] = []
    now, left = 0, length
    while left or called or done:
        now += 1
        move = rng.choice(
            ["call"] * bool(left and idle) + ["effect"] * bool(called) + ["return"] * bool(done)
        )
        if move == "call":
            client = idle.pop(rng.randrange(len(idle)))
            name, args = subject.call(rng)
            called.append(Operation(client=client, name=name, args=args, called=now))
            left -= 1
        elif move == "effect":
            operation = called.pop(rng.randrange(len(called)))
            ((result, state),) = subject.spec.step(state, operation)
            done.append(replace(operation, result=result))
        else:
            operation = done.pop(rng.randrange(len(done)))
            history.append(replace(operation, returned=now))
            idle.append(operation.client)
    return history


def corrupt(history: list[Operation], subject: Subject, *, seed: int) -> list[Operation]:
    """With one late result replaced by a different one of the same kind of call."""
    reads = [n for n, operation in enumerate(history) if operation.name in subject.reads]
    chosen = random.Random(seed).choice(reads[-max(1, len(reads) // 10) :])
    others = [history[n].result for n in reads if history[n].result != history[chosen].result]
    wrong = others[-1] if others else "nobody wrote this"
    return [
        replace(operation, result=wrong) if n == chosen else operation
        for n, operation in enumerate(history)
    ]


def naive(history: list[Operation], spec: SequentialSpec[Any], seconds: float) -> Verdict:
    """Wing & Gong's search as they give it: no memory, and no parts."""
    deadline = time.perf_counter() + seconds
    untried = [(sorted(history, key=lambda o: o.called), spec.initial)]
    while untried:
        if time.perf_counter() > deadline:
            return Verdict.INCONCLUSIVE
        rest, state = untried.pop()
        if not rest:
            return Verdict.PASSED
        soonest = min(o.returned for o in rest if o.returned is not None)
        for n, operation in enumerate(rest):
            if operation.called > soonest:
                break
            untried += [
                (rest[:n] + rest[n + 1 :], after)
                for result, after in spec.step(state, operation)
                if result == operation.result
            ]
    return Verdict.FAILED


def measure(subject: str, length: int, clients: int, seed: int, seconds: float) -> dict[str, Any]:
    """Of one history, and of the same one corrupted: verdict, seconds, configurations; memory."""
    chosen = SUBJECTS[subject]
    history = simulate(chosen, length=length, clients=clients, seed=seed)
    # What was never read cannot be corrupted: then both are the history as it is.
    readable = any(operation.name in chosen.reads for operation in history)
    broken = corrupt(history, chosen, seed=seed) if readable else history
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {}
    for kind, operations in (("valid", history), ("corrupted", broken)):
        start = time.perf_counter()
        judgement = check_history(operations, chosen.spec, seconds=seconds)
        found[kind] = {
            "verdict": judgement.verdict.name,
            "seconds": time.perf_counter() - start,
            "configurations": judgement.configurations,
        }
    found["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    start = time.perf_counter()
    found["naive"] = naive(history, chosen.spec, min(seconds, 1.0)).name
    found["naive seconds"] = time.perf_counter() - start
    if found["valid"]["verdict"] == "FAILED":
        raise AssertionError(f"{subject}, {length} operations, seed {seed} failed: {found}")
    return found


def measured(*arguments: object) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.linearizability", "--one", json.dumps(arguments)]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def cell(runs: list[dict[str, Any]], kind: str, length: int) -> tuple[str, str]:
    """Median time with the verdicts that were not reached, and operations a second."""
    times = sorted(run[kind]["seconds"] for run in runs)
    middle = times[len(times) // 2]
    unknown = sum(run[kind]["verdict"] == "INCONCLUSIVE" for run in runs)
    missing = f" ({unknown}/{len(runs)} unknown)" if unknown else ""
    return f"{middle * 1000:,.1f} ms{missing}", f"{length / middle:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linearizability", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=3, help="histories per row (default 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="per check (default 10)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, the GIL is {'on' if gil else 'off'}, {os.cpu_count()} cores")
    print(
        f"Medians of {arguments.seeds} histories; unknown: not decided in {arguments.seconds:g} s, "
        "the shortest failing prefix included.\nGrowth: the exponent of the time between this "
        "length and the one before. Naive: on the valid history, given up after 1 s.\n"
    )
    rows = []
    for subject in SUBJECTS:
        for clients in arguments.clients:
            last: tuple[int, float] | None = None
            for length in arguments.lengths:
                runs = [
                    measured(subject, length, clients, seed, arguments.seconds)
                    for seed in range(arguments.seeds)
                ]
                valid, speed = cell(runs, "valid", length)
                corrupted, _ = cell(runs, "corrupted", length)
                times = sorted(run["valid"]["seconds"] for run in runs)
                middle = times[len(times) // 2]
                growth = "-"
                if last is not None:
                    growth = f"{math.log(middle / last[1]) / math.log(length / last[0]):.2f}"
                last = length, middle
                slow = sorted(run["naive seconds"] for run in runs)[len(runs) // 2]
                done = sum(run["naive"] == "PASSED" for run in runs)
                least = "" if done == len(runs) else ">= "
                ratio = f"{least}{slow / middle:,.1f}x"
                memory = f"{max(run['megabytes'] for run in runs):,.0f} MB"
                row = [subject, str(clients), f"{length:,}", valid, speed, growth]
                rows.append([*row, corrupted, memory, ratio])
                print(" | ".join(rows[-1]), file=sys.stderr)
    head = ["", "clients", "operations", "valid", "operations/s", "growth", "corrupted"]
    print_table([*head, "memory", "naive / ours"], rows)


if __name__ == "__main__":
    main()
