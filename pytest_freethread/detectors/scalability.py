"""The laws of scalability, fitted to a curve: Amdahl's serial share, the USL's two coefficients.

G. Amdahl, "Validity of the single processor approach to achieving large scale computing
capabilities", 1967; N. Gunther, "A simple capacity model of massively parallel transaction
systems", 1993 (the Universal Scalability Law). What is fitted is the speed-up as a share of what
was possible, so that the machine's limits are not blamed on the code. scipy fits it.
"""

from __future__ import annotations

import random
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.records import Estimate, Fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_freethread.records import Measurement, Pair, Point

EXTRAPOLATED: Final = (4, 8, 16, 32, 64)
"""Numbers of threads for which a speed-up is told, where they are more than was measured."""

_RESAMPLES: Final = 200
_DOUBT: Final = 0.05

LACKING: Final = "no law is fitted: scipy is not installed (pip install pytest-freethread[fit])"


def amdahl(threads: float, serial: float) -> float:
    """The speed-up where a share of the work is serial."""
    return threads / (1 + serial * (threads - 1))


def usl(threads: float, contention: float, coherency: float) -> float:
    """The speed-up with contention (queueing) and coherency (every thread with every other)."""
    return threads / (1 + contention * (threads - 1) + coherency * threads * (threads - 1))


def fits(points: Sequence[Point], measurement: Measurement) -> tuple[Fit, ...]:
    """The laws that there are enough points for: Amdahl's for one, the USL for three.

    Points where the tasks would compute on more cores than there are say nothing about the code.

    Args:
        points: a curve.
        measurement: what it comes from.

    Raises:
        ImportError: there is no scipy.
    """
    cores = measurement.machine.cores
    curve = {
        point.threads: [
            point.threads * _ratio(each.tasks) / point.possible.value for each in samples.rounds
        ]
        for point, samples in zip(points, measurement.samples, strict=True)
        if point.threads > 1 and point.threads * point.computing <= cores * 1.01
    }
    laws: list[tuple[Any, Any, tuple[str, ...]]] = [("Amdahl", amdahl, ("serial share",))]
    if len(curve) > 2:
        laws.append(("USL", usl, ("contention", "coherency")))
    return tuple(_fit(*law, curve) for law in laws) if curve else ()


def _ratio(pair: Pair) -> float:
    serial, parallel = (max(p.end for p in run) - min(p.start for p in run) for run in pair)
    return serial / parallel


def _fit(
    law: Any,
    function: Callable[..., float],
    names: tuple[str, ...],
    curve: Mapping[int, Sequence[float]],
) -> Fit:
    generator = random.Random(0)  # noqa: S311 - resampling, no secret
    fitted = _parameters(function, {n: median(values) for n, values in curve.items()}, len(names))
    resampled = [
        _parameters(
            function,
            {n: median(generator.choices(values, k=len(values))) for n, values in curve.items()},
            len(names),
        )
        for _ in range(_RESAMPLES)
    ]
    told = [*range(1, max(curve) + 1), *(n for n in EXTRAPOLATED if n > max(curve))]
    return Fit(
        law=law,
        parameters=tuple(
            (name, _spread(fitted[k], [one[k] for one in resampled]))
            for k, name in enumerate(names)
        ),
        threads=tuple(curve),
        speedups=tuple(
            (n, _spread(function(n, *fitted), [function(n, *one) for one in resampled]))
            for n in told
        ),
    )


def _parameters(
    function: Callable[..., float], curve: Mapping[int, float], count: int
) -> tuple[float, ...]:
    """Each from 0 on, and at most 1: the smallest squares of what is left over."""
    from scipy.optimize import curve_fit  # noqa: PLC0415 - an extra, and slow to load

    threads, speedups = [1.0, *map(float, curve)], [1.0, *curve.values()]

    def law(many: Any, *parameters: float) -> list[float]:
        return [function(n, *parameters) for n in many]

    found, _ = curve_fit(
        law, threads, speedups, p0=[0.01] * count, bounds=(0.0, 1.0), max_nfev=1_000
    )
    return tuple(map(float, found))


def _spread(value: float, resampled: Sequence[float]) -> Estimate:
    """With the percentiles of what came of the resampled pairs."""
    ordered = sorted(resampled)
    cut = round(_DOUBT / 2 * len(ordered))
    return Estimate(value, min(value, ordered[cut]), max(value, ordered[-1 - cut]))
