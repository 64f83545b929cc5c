"""What a measurement of parallelism looks like: golden text, from samples typed by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_freethread.detectors import parallelism, scalability
from pytest_freethread.records import MeasuredRound, Pair, Place, Samples, Scaling, ThreadState
from pytest_freethread.report import compared, scaling

sys.path.insert(0, str(Path(__file__).parent.parent / "detectors"))
from samples import GIL, measured, measurement, pair, parallel, rounds, serial, timed


def report(measurement, *, fitted=False):
    points = parallelism.points(measurement)
    claims = parallelism.claims(measurement, points)
    made = Scaling(
        verdict=parallelism.verdict(measurement, claims),
        claims=claims,
        points=points,
        remarks=parallelism.remarks(measurement, points),
        fits=scalability.fits(points, measurement) if fitted else (),
        measurement=measurement,
        text="",
    )
    return replace(made, text=scaling.render(made))


def golden(text):
    return text.strip("\n")


def test_parts_that_run_in_parallel():
    runs = (
        MeasuredRound(Pair(serial(24, 12, 12), parallel(24.8, 12, 13)), pair(1.96), None, 0.0),
    ) * 9
    made = report(
        measurement(
            Samples(threads=3, rounds=runs), names=("load", "parse", "store"), min_speedup=1.5
        )
    )
    assert str(made) == golden("""
PASSED: 9 pairs of runs in 3.00 s; CPython 3.13.5 free-threaded, GIL off, 2 cores, Linux x86_64

  3 parts   total 24.8 ms < sum of parts 48.0 ms   longest part 24.0 ms
  speed-up 1.94 × [1.94 … 1.94] of 1.96 × possible here
  PASSED  asked to reach 1.5 ×: so does all of the interval
  The parts are not equal: load alone takes 50% of the sum, so 2.00 × is the most.

  one by one        |------------------------------------------------------------| 48.0 ms
    load            |██████████████████████████████                              |
    parse           |                              ███████████████               |
    store           |                                             ███████████████|
  at once
    load            |███████████████████████████████                             |
    parse           |███████████████                                             |
    store           |████████████████                                            |
  tasks under way at once: 1 for 48% of the time, 2 for 4% of the time, 3 for 48% of the time
""")


def test_one_lock():
    run = timed((0, "Cache._lock", 88, 0, 10))
    made = report(measured([1.0] * 9, timed=(run,) * 5, names=("Cache.get",), min_speedup=1.5))
    assert str(made) == golden("""
FAILED: 9 pairs of runs in 3.00 s; CPython 3.13.5 free-threaded, GIL off, 2 cores, Linux x86_64

  Cache.get on 2 threads   total 20.0 ms ≈ sum of parts 20.0 ms   longest part 10.0 ms
  speed-up 1.00 × [1.00 … 1.00] of 2.00 × possible here
  FAILED  asked to reach 1.5 ×: none of the interval does, and it could here
  33% of the parallel time waits for Cache._lock (cache.py:88), once a run.

  one by one        |------------------------------------------------------------| 20.0 ms
    Cache.get 1     |██████████████████████████████                              |
    Cache.get 2     |                              ██████████████████████████████|
  at once
    Cache.get 1     |████████████████████████████████████████████████████████████|
    Cache.get 2     |████████████████████████████████████████████████████████████|
  at once, with the locks timed; ░ waits for one: 20.0 ms
    Cache.get 1     |░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░██████████████████████████████|
    Cache.get 2     |██████████████████████████████                              |
  tasks under way at once: 2 for 100% of the time
""")


def test_the_gil():
    given = {"machine": GIL, "native": 1.95, "min_efficiency": 0.9, "max_total": 1.2}
    lines = str(report(measured([1.0] * 9, 1.0, **given))).splitlines()
    assert lines[0].startswith("INCONCLUSIVE: 9 pairs of runs in 3.00 s; CPython 3.11.7, GIL on")
    assert (
        lines[4:7]
        == golden("""
  INCONCLUSIVE  asked to reach 90% of what is possible, it does 100% [100% … 100%]: no more than \
1.00 × is possible here: with the GIL one thread at a time runs Python; try a free-threaded build, \
so a share of that says nothing
  INCONCLUSIVE  asked to take at most 1.2 × the longest part, it does 2.00 × [2.00 … 2.00]: no \
more than 1.00 × is possible here: with the GIL one thread at a time runs Python; try a \
free-threaded build
  The GIL is on: one thread at a time runs Python; work in C that lets go of it gains 1.95 ×.
""").splitlines()
    )


def curve():
    return measurement(
        Samples(threads=1, rounds=rounds([1.0] * 9, 1.0, threads=1)),
        Samples(threads=2, rounds=rounds([1.8] * 9, 2.0)),
        Samples(threads=4, rounds=rounds([2.8] * 9, 3.6, threads=4)),
    )


def test_a_curve_has_bars_up_to_what_is_possible():
    lines = str(report(curve())).splitlines()
    start = next(n for n, line in enumerate(lines) if "threads  speed-up" in line)
    assert (
        lines[start : start + 4]
        == golden("""
  threads  speed-up              possible
        1  1.00 × [1.00 … 1.00]  1.00 ×    ████████
        2  1.80 × [1.80 … 1.80]  2.00 ×    ███████████████░░
        4  2.80 × [2.80 … 2.80]  3.60 ×    ███████████████████████░░░░░░░
""").splitlines()
    )


def test_tasks_that_got_stuck():
    place = Place(file="/src/bank.py", line=12, function="pay", source="lock.acquire()")
    state = ThreadState(thread=1, name="freethread-1", stack=(place,))
    said = str(report(measurement(stuck=(state,))))
    assert said.startswith("FAILED: 0 pairs of runs")
    assert "  1 task did not come back within the deadline of 30 s" in said
    assert "bank.py:12  in pay  lock.acquire()" in said


def test_many_lanes_are_cut():
    runs = rounds([10.0] * 9, 2.0, threads=12)
    text = str(report(measurement(Samples(threads=12, rounds=runs))))
    assert text.count("    and 4 more") == 2


def test_two_interpreters_side_by_side():
    here = [
        {"test": "t.py::a", "python": "CPython 3.13.5 free-threaded, GIL off", "total": 0.010,
         "speedup": [1.93, 1.9, 1.95]},
        {"test": "t.py::b", "python": "the same", "total": 0.002, "speedup": [1.0, 1.0, 1.0]},
    ]  # fmt: skip
    there = [
        {"test": "t.py::a", "python": "CPython 3.11.7, GIL on", "total": 0.018,
         "speedup": [1.01, 0.9, 1.1]},
    ]  # fmt: skip
    assert "\n".join(compared.table(here, there)) == golden("""
A: CPython 3.13.5 free-threaded, GIL off
B: CPython 3.11.7, GIL on
         total A  B        speed-up A  B       total A : B
t.py::a  10.0 ms  18.0 ms  1.93 ×      1.01 ×  0.56
t.py::b  2.0 ms   none     1.00 ×      none    none
""")


# ----- laws; they need scipy -----


def test_laws_are_found_again_in_what_they_make():
    pytest.importorskip("scipy", reason="an extra")
    serial_share, threads = 0.1, (1, 2, 4, 8)
    speedups = {n: scalability.amdahl(n, serial_share) for n in threads}
    made = measurement(
        *(
            Samples(threads=n, rounds=rounds([speedups[n]] * 9, float(n), threads=n, busy=0.01))
            for n in threads
        )
    )
    amdahl, usl = scalability.fits(parallelism.points(made), made)
    ((name, share),) = amdahl.parameters
    assert name == "serial share"
    assert share.value == pytest.approx(serial_share, abs=0.002)
    assert share.low <= share.value <= share.high
    (_, contention), (_, coherency) = usl.parameters
    assert contention.value == pytest.approx(serial_share, abs=0.005)
    assert coherency.value == pytest.approx(0, abs=0.002)
    assert dict(amdahl.speedups)[16].value == pytest.approx(6.4, abs=0.1)
    said = str(report(made, fitted=True))
    assert "Amdahl: serial share 10.0%" in said
    assert "extrapolated, not measured: 16 threads 6.4 ×" in said


def test_coherency_is_told_from_contention():
    pytest.importorskip("scipy", reason="an extra")
    threads = (1, 2, 4, 8, 16)
    made = measurement(
        *(
            Samples(
                threads=n,
                rounds=rounds([scalability.usl(n, 0.02, 0.01)] * 9, float(n), threads=n, busy=0.01),
            )
            for n in threads
        )
    )
    _, usl = scalability.fits(parallelism.points(made), made)
    (_, contention), (_, coherency) = usl.parameters
    assert contention.value == pytest.approx(0.02, abs=0.01)
    assert coherency.value == pytest.approx(0.01, abs=0.003)


def test_points_beyond_the_cores_are_not_fitted_where_tasks_compute():
    pytest.importorskip("scipy", reason="an extra")
    made = curve()
    (amdahl,) = scalability.fits(parallelism.points(made), made)
    assert amdahl.threads == (2,)
    assert amdahl.parameters[0][1].value == pytest.approx(0.111, abs=0.002)


def test_without_scipy_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    made = curve()
    with pytest.raises(ImportError):
        scalability.fits(parallelism.points(made), made)
    assert "pip install pytest-freethread[fit]" in scalability.LACKING


# ----- pictures; they need matplotlib -----


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="an extra")
    files, lacking = scaling.save(report(curve()), tmp_path, "curve")
    assert lacking is None
    assert [file.name for file in files] == [
        "curve.json", "curve-timeline.png", "curve-speedup.png",
    ]  # fmt: skip
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files[1:])


def test_without_matplotlib_there_is_json_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    files, lacking = scaling.save(report(curve()), tmp_path, "curve")
    assert [file.name for file in files] == ["curve.json"]
    assert "pip install pytest-freethread[plot]" in lacking
