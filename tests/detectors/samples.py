"""Samples of parallelism, typed by hand."""

from __future__ import annotations

from pytest_freethread.records import (
    Machine,
    MeasuredRound,
    Measurement,
    Pair,
    ParallelPlan,
    PartRun,
    Place,
    Samples,
    TimedRun,
    Wait,
)

MS = 1e-3

FREE = Machine(
    python="CPython 3.13.5", free_threaded=True, gil=False, gil_by=None, cores=2.0,
    system="Linux x86_64",
)  # fmt: skip
GIL = Machine(
    python="CPython 3.11.7", free_threaded=False, gil=True, gil_by=None, cores=2.0,
    system="Linux x86_64",
)  # fmt: skip


def plan(**settings):
    default = {
        "threads": (2,), "pairs": 100, "seconds": 3.0, "locks": None, "pin": False,
        "deadline": 30.0, "min_speedup": None, "min_efficiency": None, "max_total": None,
    }  # fmt: skip
    return ParallelPlan(**{**default, **settings})


def serial(*lengths, busy=1.0):
    """Tasks one after another on thread 0; lengths in milliseconds."""
    parts, start = [], 0.0
    for task, length in enumerate(lengths):
        seconds = length * MS
        parts.append(PartRun(task, 0, start, start + seconds, busy * seconds))
        start += seconds
    return tuple(parts)


def parallel(*lengths, busy=1.0, starts=None):
    """Tasks on a thread each."""
    starts = starts or [0.0] * len(lengths)
    return tuple(
        PartRun(task, task, start * MS, (start + length) * MS, busy * length * MS)
        for task, (length, start) in enumerate(zip(lengths, starts, strict=True))
    )


def pair(speedup, *, threads=2, length=10.0, busy=1.0):
    """So many equal tasks that are so many times faster at once."""
    together = threads * length / speedup
    return Pair(
        serial(*[length] * threads, busy=busy),
        parallel(*[together] * threads, busy=busy * length / together),
    )


def rounds(
    speedups, ceilings=2.0, *, threads=2, busy=1.0, length=10.0, native=None, core=1.0, coreless=0.0
):
    """A round for each speed-up; the ceiling is one for all, or one for each."""
    if isinstance(ceilings, float):
        ceilings = [ceilings] * len(speedups)
    return tuple(
        MeasuredRound(
            pair(speedup, threads=threads, busy=busy, length=length),
            pair(ceiling, threads=threads, busy=core),
            None if native is None else pair(native, threads=threads),
            coreless * MS,
        )
        for speedup, ceiling in zip(speedups, ceilings, strict=True)
    )


def measurement(*samples, machine=FREE, names=("work",), stuck=(), **settings):
    threads = tuple(each.threads for each in samples)
    return Measurement(
        machine=machine,
        plan=plan(threads=threads, **settings),
        names=names,
        samples=samples,
        stuck=stuck,
        seconds=3.0,
    )


def measured(speedups, ceilings=2.0, *, machine=FREE, threads=2, timed=(), untimed=None, **more):
    """A measurement with one number of threads; what is left over goes to the plan."""
    for_rounds = {
        name: more.pop(name)
        for name in ("busy", "length", "native", "core", "coreless")
        if name in more
    }
    runs = rounds(speedups, ceilings, threads=threads, **for_rounds)
    one = Samples(threads=threads, rounds=runs, timed=timed, untimed=untimed)
    return measurement(one, machine=machine, **more)


def place(line, file="cache.py"):
    return Place(file=f"/src/{file}", line=line, function="Cache.get", source="with self._lock:")


def timed(*waits, lengths=(20.0, 10.0)):
    """A run with waits given as (thread, name, line, start, end), in milliseconds."""
    return TimedRun(
        parallel(*lengths),
        tuple(Wait(t, name, place(line), a * MS, b * MS) for t, name, line, a, b in waits),
    )
