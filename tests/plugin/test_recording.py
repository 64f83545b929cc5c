"""Races that are looked for in tests that run in parallel threads."""

from __future__ import annotations

import pytest

RACY = """
    import pytest

    class Stats:
        total = 0

        def add(self):
            self.total += 1

    @pytest.fixture
    def stats():
        return Stats()

    @pytest.mark.freethread(shared=["stats"]{settings})
    def test_add(stats):
        stats.add()
"""

TOLD = [
    "*error: data race on Stats.total*",
    "*thread ? *test_*.py:7 *self.total += 1 *holding nothing",
    "*in Stats.add ← test_add (test_*",
    "*Not replayable: seen in a free run.*",
    "1 finding, 0 notes",
    "   error  race: data race on Stats.total  *::test_add*",
]


def test_a_race_fails_a_test_if_the_command_line_says_so(rerun):
    result = rerun(RACY.format(settings=""), "--freethread-races=error", rounds=8)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(TOLD)


def test_a_race_fails_a_test_if_the_ini_file_says_so(rerun, pytester):
    pytester.makeini("[pytest]\nfreethread_races = error")
    rerun(RACY.format(settings=""), rounds=8).assert_outcomes(failed=1)


def test_a_race_fails_a_test_if_its_marker_says_so(rerun):
    result = rerun(RACY.format(settings=", races='error'"), rounds=8)
    result.assert_outcomes(failed=1)


def test_nobody_looks_unless_told(rerun):
    result = rerun(RACY.format(settings=""), "--freethread-seed=1", rounds=1)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*data race*")


@pytest.mark.parametrize("setting", ["note", "error"])
def test_a_note_does_not_fail_a_test_and_is_in_the_summary(rerun, setting):
    result = rerun(RACY.format(settings=f", races={setting!r}"), rounds=1)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*note   race: data race on Stats.total *::test_add*"])


def test_what_is_benign_is_counted_and_patterns_that_match_nothing_are_named(rerun, pytester):
    pytester.makeini("[pytest]\nfreethread_benign =\n    race:Stats.total\n    race:Gone.*")
    result = rerun(RACY.format(settings=", races='error'"), rounds=8)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*1 suppressed as benign: race:Stats.total (1)",
            "*benign matched nothing in this run: race:Gone.*",
        ]
    )


def test_in_stress_mode_too_a_pattern_has_to_be_one(rerun):
    result = rerun(RACY.format(settings=", benign=['rase:x']"))
    result.stderr.fnmatch_lines(["*'rase:x' is not a pattern*"])
