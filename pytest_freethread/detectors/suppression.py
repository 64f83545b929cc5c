"""What its authors call benign, by a comment at the place or a pattern in the configuration."""

from __future__ import annotations

import re
from collections import Counter
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from pytest_freethread.records import Interleaving, Race

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pytest_freethread.records import Finding, Place

_COMMENT: Final = re.compile(r"#\s*freethread:\s*benign\b")


def excused_by(
    finding: Finding, patterns: Sequence[str], line: Callable[[str, int], str]
) -> str | None:
    """What says that a finding is benign; None if nothing does.

    Args:
        finding: one that judges made.
        patterns: `[KIND:]GLOB` each; the glob is matched with what was touched (`Stats.total`), and
            with the end of the paths of the files (`legacy/*.py`).
        line: gives the source line of a file.

    Returns:
        The place of the comment, or the pattern.
    """
    places = list(_places(finding))
    for place in places:
        if _COMMENT.search(line(place.file, place.line)):
            return str(place)
    names = [*_targets(finding), *(place.file.replace("\\", "/") for place in places)]
    for pattern in patterns:
        kind, colon, glob = pattern.rpartition(":")
        if colon and kind not in {finding.kind, "*"}:
            continue
        if any(fnmatchcase(name, glob) or fnmatchcase(name, f"*/{glob}") for name in names):
            return pattern
    return None


def without_benign(
    findings: Iterable[Finding],
    patterns: Sequence[str],
    line: Callable[[str, int], str],
    *,
    reached: Iterable[tuple[str, int]],
) -> tuple[list[Finding], Counter[str]]:
    """The findings that nobody calls benign, and by what said so, how many others there were.

    Args:
        findings: those that judges made.
        patterns: as for `excused_by`.
        line: as for `excused_by`.
        reached: files and lines that were run, where that is known. A comment there that nothing
            was left out for is counted as 0, as such a pattern is anyway.
    """
    wanted, suppressed = [], Counter(dict.fromkeys(patterns, 0))
    for file, number in reached:
        if _COMMENT.search(line(file, number)):
            suppressed[f"{file}:{number}"] = 0
    for finding in findings:
        reason = excused_by(finding, patterns, line)
        if reason is None:
            wanted.append(finding)
        else:
            suppressed[reason] += 1
    return wanted, suppressed


def _places(finding: Finding) -> Iterator[Place]:
    match finding.evidence:
        case Race(accesses=accesses):
            yield from (access.place for access in accesses)
        case Interleaving(violation=broken, moves=moves) if broken is not None:
            steps = (moves[index] for index in (broken.look, broken.change, broken.act))
            yield from (move.place for move in steps if move.place is not None)
        case tuple() as states:
            for state in states:
                uses = [*state.holds, *([state.waits_for] if state.waits_for else [])]
                yield from (use.place for use in uses)


def _targets(finding: Finding) -> Iterator[str]:
    match finding.evidence:
        case Race(target=target):
            yield target
        case Interleaving(violation=broken, moves=moves) if broken is not None:
            yield moves[broken.act].target
        case tuple() as states:
            yield from (state.waits_for.name for state in states if state.waits_for)
