"""Pictures of how well tasks run in parallel, where matplotlib is installed (the extra `plot`).

Made for black and white: lines differ in style and marker, areas in hatching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.report.scaling import interpreter, interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_freethread.records import Fit, PartRun, Point, Scaling

LACKING: Final = "no pictures: matplotlib is not installed (pip install pytest-freethread[plot])"

_LAWS: Final = {"Amdahl": "-.", "USL": (0, (1, 1))}
_MOST_EXTRAPOLATED: Final = 16
_SHORTEST_SEEN: Final = 1 / 500
"""Of the whole line; thousands of shorter waits would take long to draw and look like one."""


def draw(scaling: Scaling, folder: Path, name: str) -> list[Path]:
    """Write the curve of the speed-up, where there are several points, and the timeline, as PNG.

    Returns:
        The files.

    Raises:
        ImportError: there is no matplotlib.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to load

    pictures: list[tuple[str, Callable[[Any, Scaling], None], tuple[float, float]]] = []
    if scaling.points:
        pictures.append(("timeline", _timeline, (9.0, _height(scaling.points[-1]))))
    if len(scaling.points) > 1:
        pictures.append(("speedup", _curve, (7.0, 5.5)))
    files = []
    for what, paint, size in pictures:
        figure = Figure(figsize=size, layout="constrained")
        paint(figure, scaling)
        files.append(folder / f"{name}-{what}.png")
        figure.savefig(files[-1], dpi=120)
    return files


# ----- the curve -----


def _curve(figure: Any, scaling: Scaling) -> None:
    axes = figure.add_subplot()
    points = scaling.points
    threads = [point.threads for point in points]
    told = [n for fit in scaling.fits for n, _ in fit.speedups if n <= _MOST_EXTRAPOLATED]
    most = max(threads + told)
    axes.plot([1, most], [1, most], color="0.6", linestyle="--", linewidth=1, label="ideal")
    axes.plot(
        threads,
        [point.possible.value for point in points],
        color="0.35",
        linestyle=":",
        marker="^",
        label="possible on this machine",
    )
    for fit in scaling.fits:
        _law(axes, fit)
    axes.errorbar(
        threads,
        [point.speedup.value for point in points],
        yerr=_errors(points),
        color="black",
        marker="o",
        capsize=4,
        linewidth=2,
        label="measured, 99 % interval",
    )
    axes.set_xlabel("threads")
    axes.set_ylabel("speed-up")
    axes.set_xticks(sorted({*threads, *told}) if told else threads)
    reached = [point.possible.value for point in points] + [
        each.value for fit in scaling.fits for n, each in fit.speedups if n <= most
    ]
    axes.set_ylim(0, 1.25 * max(reached))
    axes.set_title(f"{scaling.measurement.names[0]}\n{_machine(scaling)}", fontsize=10)
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)


def _law(axes: Any, fit: Fit) -> None:
    told = [(n, estimate) for n, estimate in fit.speedups if n <= _MOST_EXTRAPOLATED]
    numbers = [n for n, _ in told]
    parameters = ", ".join(f"{name} {each.value:.1%}" for name, each in fit.parameters)
    axes.plot(
        numbers,
        [each.value for _, each in told],
        color="black",
        linestyle=_LAWS[fit.law],
        linewidth=1,
        label=f"{fit.law}: {parameters}",
    )
    axes.fill_between(
        numbers,
        [each.low for _, each in told],
        [each.high for _, each in told],
        color="0.88",
        linewidth=0,
    )
    if numbers[-1] > max(fit.threads):
        axes.axvline(max(fit.threads), color="0.6", linewidth=0.8)
        axes.annotate(
            "extrapolated →",
            (max(fit.threads), 0.02),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(4, 2),
            fontsize=8,
        )


def _errors(points: Sequence[Point]) -> list[list[float]]:
    return [
        [point.speedup.value - point.speedup.low for point in points],
        [point.speedup.high - point.speedup.value for point in points],
    ]


def _machine(scaling: Scaling) -> str:
    machine = scaling.measurement.machine
    return f"{interpreter(machine)}, {machine.cores:g} cores"


# ----- the timeline -----


def _height(point: Point) -> float:
    lanes = len(point.parts) * (2 if point.waits is None else 3)
    return min(12.0, 1.8 + 0.35 * lanes)


def _timeline(figure: Any, scaling: Scaling) -> None:
    axes = figure.add_subplot()
    point = scaling.points[-1]
    groups: list[tuple[str, Sequence[PartRun]]] = [
        ("one by one", point.example.serial),
        ("at once", point.example.parallel),
    ]
    if point.waits is not None:
        groups.append(("locks timed", point.waits.parts))
    rows: list[str] = []
    for group, parts in groups:
        for part in parts:
            axes.barh(
                len(rows),
                1e3 * (part.end - part.start),
                left=1e3 * part.start,
                height=0.7,
                color="0.75",
                edgecolor="black",
            )
            rows.append(f"{group}: {point.parts[part.task].name}")
            if group != "locks timed" or point.waits is None:
                continue
            visible = _SHORTEST_SEEN * max(each.end for each in parts)
            for wait in point.waits.waits:
                if wait.thread == part.thread and wait.end - wait.start >= visible:
                    axes.barh(
                        len(rows) - 1,
                        1e3 * (wait.end - wait.start),
                        left=1e3 * wait.start,
                        height=0.7,
                        color="white",
                        edgecolor="black",
                        linewidth=0.5,
                        hatch="////",
                    )
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds" + ("; hatched: waits for a lock" if point.waits else ""))
    axes.set_title(
        f"speed-up {interval(point.speedup)} of {point.possible.value:.2f} × possible here\n"
        f"{_machine(scaling)}",
        fontsize=10,
    )
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
