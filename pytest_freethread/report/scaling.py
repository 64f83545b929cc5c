"""How well tasks run in parallel, as text for a terminal and as JSON with all raw samples."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

from pytest_freethread.records import Finding, Scaling, Verdict
from pytest_freethread.report import layout, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_freethread.records import (
        Claim,
        Estimate,
        Fit,
        Machine,
        Measurement,
        PartRun,
        Point,
        TimedRun,
    )

_BAR: Final = 30
_LINE: Final = 60
_MOST_LANES: Final = 8
_LABEL: Final = 16

_ASKED: Final = {
    "speed-up": "asked to reach {:g} ×",
    "efficiency": "asked to reach {:.0%} of what is possible",
    "total": "asked to take at most {:g} × the longest part",
}
"""How what is asked is written, by what it is asked of; reasons go on from there."""


def render(scaling: Scaling) -> str:
    """The whole report."""
    points = scaling.points
    lines = [f"{scaling.verdict.name}: {scope(scaling)}", ""]
    lines += layout.indented(summary(scaling))
    if len(points) > 1:
        lines += ["", *layout.indented(chart(points))]
    if scaling.fits:
        lines += ["", *layout.indented(line for fit in scaling.fits for line in law(fit))]
    if points:
        lines += ["", *layout.indented(timeline(points[-1]))]
    if scaling.measurement.stuck:
        lines += ["", *layout.indented(text.block(stuck(scaling.measurement)))]
    return "\n".join(lines)


def summary(scaling: Scaling) -> Iterator[str]:
    """The headline, the speed-up with what is possible, each claim, and what holds it back."""
    if not scaling.points:
        yield stuck(scaling.measurement).message
        return
    last = scaling.points[-1]
    serial, together = last.serial, last.total
    faster = "<" if together.high < serial.low else ">" if together.low > serial.high else "≈"
    yield (
        f"{_what(scaling.measurement, last)}   total {duration(together.value)} {faster} sum of "
        f"parts {duration(serial.value)}   longest part {duration(last.longest.alone)}"
    )
    yield f"speed-up {interval(last.speedup)} of {last.possible.value:.2f} × possible here"
    for claim in scaling.claims:
        yield f"{claim.verdict.name}  {asked(claim)}: {claim.reason}"
    yield from (remark[0].upper() + remark[1:] + "." for remark in scaling.remarks)


def asked(claim: Claim) -> str:
    """What was asked, and what there is where the speed-up does not say it."""
    wanted = _ASKED[claim.what].format(claim.asked)
    match claim.what:
        case "speed-up":
            return wanted
        case "efficiency":
            value, low, high = claim.measured
            return f"{wanted}, it does {value:.0%} [{low:.0%} … {high:.0%}]"
        case "total":
            return f"{wanted}, it does {interval(claim.measured)}"


def chart(points: Sequence[Point]) -> Iterator[str]:
    """A row for each number of threads; the bar is dotted from the speed-up to what is possible."""
    most = max(max(point.speedup.value, point.possible.value) for point in points)
    rows = [("threads", "speed-up", "possible", "")]
    for point in points:
        full = round(_BAR * point.speedup.value / most)
        dotted = round(_BAR * point.possible.value / most) - full
        rows.append(
            (
                f"{point.threads:>7}",
                interval(point.speedup),
                f"{point.possible.value:.2f} ×",
                "█" * full + "░" * dotted,
            )
        )
    return layout.columns(rows)


def law(fit: Fit) -> Iterator[str]:
    """The parameters of a law, and what it says of more threads."""
    parameters = ", ".join(
        f"{name} {value:.1%} [{low:.1%} … {high:.1%}]"
        for name, (value, low, high) in fit.parameters
    )
    on = ", ".join(map(str, (1, *fit.threads)))
    yield f"{fit.law}: {parameters}; fitted to {on} threads, as shares of what is possible here"
    beyond = [each for each in fit.speedups if each[0] > max(fit.threads)]
    if beyond:
        more = ", ".join(f"{n} threads {value:.1f} ×" for n, (value, _, _) in beyond)
        yield f"  extrapolated, not measured: {more}"


def timeline(point: Point) -> Iterator[str]:
    """A lane for each task: alone, one after another, and at once; the run in the middle."""
    pair = point.example
    whole = max(part.end for part in pair.serial + pair.parallel)
    yield f"{'one by one':<{_LABEL}}  |{'':-<{_LINE}}| {duration(whole)}"
    yield from _lanes(point, pair.serial, whole)
    yield "at once"
    yield from _lanes(point, pair.parallel, whole)
    if point.waits is not None:
        whole = max(part.end for part in point.waits.parts)
        yield f"at once, with the locks timed; ░ waits for one: {duration(whole)}"
        yield from _lanes(point, point.waits.parts, whole, point.waits)
    shares = ", ".join(
        f"{count} for {share:.0%} of the time"
        for count, share in enumerate(point.at_once)
        if share >= 0.005
    )
    yield f"tasks under way at once: {shares}"


def _lanes(
    point: Point, parts: Sequence[PartRun], whole: float, timed: TimedRun | None = None
) -> Iterator[str]:
    for part in parts[:_MOST_LANES]:
        waits = [] if timed is None else [w for w in timed.waits if w.thread == part.thread]
        cells = [" "] * _LINE
        for column in range(_columns(part.start, whole), _columns(part.end, whole) or 1):
            cells[column] = "█"
        for wait in waits:
            for column in range(_columns(wait.start, whole), _columns(wait.end, whole)):
                cells[column] = "░"
        name = point.parts[part.task].name
        label = name if len(name) <= _LABEL - 2 else name[: _LABEL - 3] + "…"
        yield f"  {label:<{_LABEL - 2}}  |{''.join(cells)}|"
    if len(parts) > _MOST_LANES:
        yield f"  and {len(parts) - _MOST_LANES} more"


def _columns(moment: float, whole: float) -> int:
    return min(_LINE, round(_LINE * moment / whole)) if whole else 0


def scope(scaling: Scaling) -> str:
    """One line: how much was measured, on what."""
    pairs = sum(point.pairs for point in scaling.points)
    machine = scaling.measurement.machine
    return (
        f"{pairs} pairs of runs in {scaling.measurement.seconds:.2f} s; {interpreter(machine)}, "
        f"{machine.cores:g} core{'s' * (machine.cores != 1)}, {machine.system}"
    )


def interpreter(machine: Machine) -> str:
    """The Python, its build, and the GIL."""
    build = " free-threaded" if machine.free_threaded else ""
    return f"{machine.python}{build}, GIL {'on' if machine.gil else 'off'}"


def stuck(measurement: Measurement) -> Finding:
    """That the tasks did not come back, with what their threads were doing."""
    count = len(measurement.stuck)
    return Finding(
        kind="stuck",
        severity="error",
        message=f"{count} task{'s' * (count != 1)} did not come back within the deadline of "
        f"{measurement.plan.deadline:g} s",
        evidence=measurement.stuck,
    )


def interval(estimate: Estimate) -> str:
    """A factor with its interval."""
    value, low, high = estimate
    return f"{value:.2f} × [{low:.2f} … {high:.2f}]"


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _what(measurement: Measurement, last: Point) -> str:
    count = len(last.parts)
    if len(measurement.names) == count:
        return f"{count} part{'s' * (count != 1)}"
    return f"{measurement.names[0]} on {last.threads} threads"


def outcome(scaling: Scaling) -> dict[str, Any]:
    """What a measurement came to, as plain values: the summary's lines, and the key figures."""
    found: dict[str, Any] = {
        "verdict": scaling.verdict.value,
        "python": interpreter(scaling.measurement.machine),
        "lines": list(summary(scaling)),
    }
    if scaling.points:
        last = scaling.points[-1]
        found |= {
            "threads": last.threads,
            "total": last.total.value,
            "speedup": list(last.speedup),
        }
    return found


def as_json(scaling: Scaling) -> str:
    """All of it but the text, raw samples included."""
    return json.dumps(_plain(scaling), indent=1)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            each.name: _plain(getattr(value, each.name))
            for each in dataclasses.fields(value)
            if each.name != "text"
        }
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def save(scaling: Scaling, folder: Path, name: str) -> tuple[list[Path], str | None]:
    """Write JSON, and pictures where matplotlib is installed.

    Returns:
        The files, and what is lacking, if anything.
    """
    from pytest_freethread.report import plots  # noqa: PLC0415 - few draw anything

    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.json"
    data.write_text(as_json(scaling), encoding="utf-8")
    try:
        return [data, *plots.draw(scaling, folder, name)], None
    except ImportError:
        return [data], plots.LACKING
