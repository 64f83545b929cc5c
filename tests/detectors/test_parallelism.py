"""Whether tasks run in parallel and why not: on samples typed by hand, with no clock and no thread."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from samples import (
    FREE,
    GIL,
    measured,
    measurement,
    pair,
    parallel,
    rounds,
    serial,
    timed,
)

from pytest_freethread.detectors import parallelism
from pytest_freethread.detectors.parallelism import estimate
from pytest_freethread.records import MeasuredRound, Pair, Samples, Verdict


def judge(measurement):
    """The claims, the verdict, and the remarks."""
    points = parallelism.points(measurement)
    claims = parallelism.claims(measurement, points)
    return (
        claims,
        parallelism.verdict(measurement, claims),
        parallelism.remarks(measurement, points),
    )


def verdict(*args, **kwargs):
    return judge(measured(*args, **kwargs))[1]


def reason(*args, **kwargs):
    (claim,) = judge(measured(*args, **kwargs))[0]
    return claim.reason


def remarks(*args, **kwargs):
    return " | ".join(judge(measured(*args, **kwargs))[2])


# ----- intervals -----


def test_the_interval_of_eight_values_is_all_of_them_and_of_more_it_is_narrower():
    assert estimate([3, 1, 2, 8, 5, 4, 7, 6]) == (4.5, 1, 8)
    value, low, high = estimate(range(101))
    assert value == 50
    assert 30 < low < 45 and 55 < high < 70


@pytest.mark.parametrize("count", [8, 9, 20, 31])
def test_the_exact_interval_is_the_one_that_resampling_approaches(count):
    generator = random.Random(count)
    values = sorted(generator.lognormvariate(0, 0.3) for _ in range(count))
    half = (count + 1) // 2
    lower = sorted(sorted(generator.choices(values, k=count))[half - 1] for _ in range(20_000))[100]
    _, low, _ = estimate(values)
    neighbours = range(max(0, values.index(lower) - 1), values.index(lower) + 2)
    assert low in [values[k] for k in neighbours]


def test_the_interval_is_the_same_mirrored():
    values = [1.0, 1.5, 1.6, 1.7, 2.0, 2.1, 2.2, 3.0, 4.0, 9.0, 9.5]
    value, low, high = estimate(values)
    assert estimate([-each for each in values]) == (-value, -high, -low)


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_the_interval_misses_the_true_median_in_at_most_a_few_of_a_hundred_cases(spread):
    generator = random.Random(1)
    missed = 0
    for _ in range(400):
        _, low, high = estimate(generator.lognormvariate(0, spread) for _ in range(12))
        missed += not low <= 1 <= high
    assert missed <= 8


# ----- verdicts -----


def test_what_is_asked_and_reached_passes():
    assert verdict([1.9] * 10, min_speedup=1.6) is Verdict.PASSED


def test_what_stays_below_on_a_machine_that_could_fails():
    assert verdict([1.0] * 10, min_speedup=1.6) is Verdict.FAILED


def test_where_nothing_is_asked_the_total_must_be_less_than_the_sum():
    assert verdict([1.2] * 10) is Verdict.PASSED
    assert verdict([1.0] * 10) is Verdict.FAILED
    assert verdict([1.02] * 10) is Verdict.FAILED


def test_an_interval_around_what_is_asked_decides_nothing():
    speedups = [1.3, 1.4, 1.5, 1.55, 1.65, 1.7, 1.8, 1.9]
    assert verdict(speedups, min_speedup=1.6) is Verdict.INCONCLUSIVE
    assert "lies between 1.30 and 1.90: too noisy" in reason(speedups, min_speedup=1.6)


def test_a_machine_that_cannot_show_it_refutes_nothing():
    assert verdict([1.0] * 10, 1.1, min_speedup=1.6) is Verdict.INCONCLUSIVE
    assert "no more than 1.10 × is possible here now" in reason([1.0] * 10, 1.1, min_speedup=1.6)


def test_busy_neighbours_are_named():
    said = reason([1.0] * 10, 1.1, core=0.5, min_speedup=1.6)
    assert "other processes take 50% of the time of a core" in said


def test_threads_that_neighbours_keep_from_running_refute_nothing():
    """One that is stopped while it holds a lock stops the others, which the probe does not show."""
    held_up = {"coreless": 8.0, "busy": 0.1, "min_speedup": 1.6}  # of 20 ms
    assert verdict([1.0] * 10, **held_up) is Verdict.INCONCLUSIVE
    assert "kept its threads from running for 40% of the time" in reason([1.0] * 10, **held_up)
    assert verdict([1.9] * 10, **held_up) is Verdict.PASSED
    assert verdict([1.0] * 10, coreless=1.0, busy=0.1, min_speedup=1.6) is Verdict.FAILED


def test_more_tasks_than_cores_keep_each_other_from_running():
    crowd = {"threads": 4, "coreless": 80.0, "min_speedup": 1.6}  # of 40 ms, two cores too few
    assert verdict([1.0] * 10, 1.9, **crowd) is Verdict.FAILED


def test_tasks_that_do_as_well_as_the_probe_are_never_at_fault():
    speedups = [1.3, 1.5, 1.4, 1.2, 1.45, 1.35, 1.3, 1.4, 1.5, 1.3]
    ceilings = [each * 1.02 for each in speedups]
    for asked in (1.05, 1.2, 1.4, 1.6, 1.9):
        assert verdict(speedups, ceilings, min_speedup=asked) is not Verdict.FAILED
    assert "too near" in reason([1.5] * 10, 1.56, min_speedup=1.55)


def test_a_noisy_ceiling_is_no_excuse_for_tasks_that_are_slower_in_every_round():
    ceilings = [1.4, 1.9, 1.7, 1.95, 1.5, 1.8, 1.75, 1.9, 1.65, 1.85]
    assert verdict([1.0] * 10, ceilings, min_speedup=1.6) is Verdict.FAILED


def test_too_few_pairs_decide_nothing_and_the_advice_is_what_to_change():
    assert verdict([1.9] * 7, min_speedup=1.6) is Verdict.INCONCLUSIVE
    assert "7 pairs of runs say little, 8 are needed; give seconds=5" in reason([1.9] * 7)
    assert "give pairs=8 or more" in reason([1.9] * 5, pairs=5)


def test_too_short_tasks_decide_nothing_and_the_advice_is_how_much_to_repeat():
    said = reason([2.0] * 10, length=0.05, min_speedup=1.6)
    assert "the longest part takes 0.05 ms, too short" in said
    assert "do the work 40 times over within a task" in said
    assert verdict([0.5] * 10, length=0.05, min_speedup=1.6) is Verdict.INCONCLUSIVE


def test_one_thread_runs_nothing_at_once():
    assert verdict([1.0] * 10, threads=1) is Verdict.INCONCLUSIVE


def test_the_gil_is_no_fault_of_the_code_but_is_said():
    said = reason([1.0] * 10, 1.0, machine=GIL, native=1.95, min_speedup=1.6)
    assert "with the GIL one thread at a time runs Python; try a free-threaded build" in said
    assert verdict([1.0] * 10, 1.0, machine=GIL, native=1.95) is Verdict.INCONCLUSIVE
    assert "work in C that lets go of it gains 1.95 ×" in remarks(
        [1.0] * 10, 1.0, machine=GIL, native=1.95
    )


def test_waiting_goes_on_at_once_with_the_gil_too():
    gil = {"machine": GIL, "native": 1.95, "busy": 0.01}
    assert verdict([1.98] * 10, 1.0, min_speedup=1.6, **gil) is Verdict.PASSED
    assert verdict([1.0] * 10, 1.0, min_speedup=1.6, **gil) is Verdict.FAILED


def test_work_in_c_that_lets_go_of_the_gil_passes_though_the_probe_shows_nothing():
    assert verdict([1.9] * 10, 1.0, machine=GIL, native=1.95, min_speedup=1.6) is Verdict.PASSED


def test_a_gil_that_was_switched_on_where_it_need_not_be_fails_and_is_named():
    machine = replace(FREE, gil=True, gil_by="old_extension")
    given = {"machine": machine, "native": 1.95, "min_speedup": 1.6}
    assert verdict([1.0] * 10, 1.0, **given) is Verdict.FAILED
    assert "the GIL is on, switched on by old_extension" in remarks([1.0] * 10, 1.0, **given)


def test_stuck_tasks_fail_whatever_was_measured():
    stuck = replace(measured([1.9] * 10), stuck=("anything",))
    assert judge(stuck)[1] is Verdict.FAILED
    assert judge(measurement(stuck=("anything",)))[1] is Verdict.FAILED


def test_the_claim_is_about_the_largest_number_of_threads():
    curve = measurement(
        Samples(threads=2, rounds=rounds([1.9] * 10)),
        Samples(threads=4, rounds=rounds([1.9] * 10, 3.9, threads=4)),
        min_speedup=3.0,
    )
    (claim,), outcome, _ = judge(curve)
    assert outcome is Verdict.FAILED
    assert claim.measured.value == pytest.approx(1.9)


# ----- efficiency and total -----


def test_efficiency_is_a_share_of_what_is_possible_here():
    assert verdict([1.5] * 10, 1.6, min_efficiency=0.9) is Verdict.PASSED
    assert verdict([1.2] * 10, 1.9, min_efficiency=0.9) is Verdict.FAILED


def test_a_share_of_nothing_says_nothing():
    assert verdict([1.0] * 10, 1.0, min_efficiency=0.9) is Verdict.INCONCLUSIVE
    assert "so a share of that says nothing" in reason([1.0] * 10, 1.0, min_efficiency=0.9)


def test_total_is_in_lengths_of_the_longest_part():
    runs = [MeasuredRound(Pair(serial(5, 20), parallel(5.5, 21)), pair(2.0), None, 0.0)] * 10
    parts = measurement(
        Samples(threads=2, rounds=tuple(runs)), names=("short", "long"), max_total=1.1
    )
    (claim,), outcome, said = judge(parts)
    assert outcome is Verdict.PASSED
    assert claim.measured.value == pytest.approx(21 / 20)
    assert "long alone takes 80% of the sum, so 1.25 × is the most" in " ".join(said)


def test_total_of_serialised_parts_fails():
    runs = [MeasuredRound(Pair(serial(10, 10), parallel(10, 20)), pair(2.0), None, 0.0)] * 10
    parts = measurement(Samples(threads=2, rounds=tuple(runs)), names=("a", "b"), max_total=1.2)
    assert judge(parts)[1] is Verdict.FAILED


def test_several_claims_are_judged_each_and_the_worst_counts():
    claims, outcome, _ = judge(measured([1.7] * 10, min_speedup=1.5, max_total=1.05))
    assert [claim.verdict for claim in claims] == [Verdict.PASSED, Verdict.FAILED]
    assert outcome is Verdict.FAILED


# ----- what is possible -----


@pytest.mark.parametrize(
    ("busy", "ceiling", "possible"),
    [(1.0, 1.8, 1.8), (0.0, 1.0, 2.0), (0.5, 1.0, 4 / 3), (1.0, 0.9, 1.0), (2.0, 2.0, 1.0)],
)
def test_computing_scales_as_the_probe_and_waiting_with_the_threads(busy, ceiling, possible):
    (point,) = parallelism.points(measured([1.0] * 10, ceiling, busy=busy))
    assert point.possible.value == pytest.approx(possible)


def test_time_that_neighbours_take_is_no_waiting():
    (point,) = parallelism.points(measured([1.0] * 10, 1.0, busy=0.5, core=0.5))
    assert point.computing == 1.0
    assert point.possible.value == pytest.approx(1.0)


def test_how_many_tasks_were_under_way_at_once():
    runs = MeasuredRound(
        Pair(serial(10, 10), parallel(10, 10, starts=[0, 5])), pair(2.0), None, 0.0
    )
    (point,) = parallelism.points(measurement(Samples(threads=2, rounds=(runs,) * 9)))
    assert point.at_once == pytest.approx((0, 2 / 3, 1 / 3))


def test_each_part_has_its_duration_alone_and_together():
    runs = MeasuredRound(Pair(serial(5, 20), parallel(9, 21)), pair(2.0), None, 0.0)
    (point,) = parallelism.points(
        measurement(Samples(threads=2, rounds=(runs,) * 9), names=("a", "b"))
    )
    assert [(p.name, round(p.alone, 6), round(p.together, 6)) for p in point.parts] == [
        ("a", 0.005, 0.009),
        ("b", 0.020, 0.021),
    ]


def test_more_rounds_are_no_use_once_both_intervals_are_narrow():
    assert parallelism.tight(rounds([1.9] * 8))
    assert not parallelism.tight(rounds([1.9, 1.7] * 4))
    noisy = [2.0, 1.5] * 4
    assert not parallelism.tight(rounds([1.9] * 8, noisy))
    assert parallelism.tight(rounds([1.9] * 8, noisy, busy=0.0))


# ----- why not -----


def test_the_lock_that_is_waited_for_is_named_with_its_share_and_line():
    runs = (timed((0, "Cache._lock", 88, 0, 10)),) * 5
    assert "33% of the parallel time waits for Cache._lock (cache.py:88), once a run" in remarks(
        [1.0] * 10, timed=runs
    )


def test_locks_come_in_the_order_of_their_shares_each_at_its_busiest_line():
    run = timed(
        (0, "Cache._lock", 88, 0, 1),
        (1, "Cache._lock", 91, 0, 4),
        (0, "jobs.get()", 12, 5, 6),
        (1, "Cache._lock", 88, 5, 6),
    )
    said = remarks([1.0] * 10, timed=(run,))
    assert said.index("20% of the parallel time waits for Cache._lock (cache.py:91), 3 times") < (
        said.index("3% of the parallel time waits for jobs.get() (cache.py:12), once")
    )


def test_threads_that_tasks_start_count_too():
    run = timed((-1, "Pool.lock", 5, 0, 10), lengths=(20.0, 20.0))
    assert "17% of the parallel time waits for Pool.lock" in remarks([1.0] * 10, timed=(run,))


def test_a_short_wait_is_not_worth_a_sentence():
    run = timed((0, "Cache._lock", 88, 0, 0.1))
    assert "Cache._lock" not in remarks([1.0] * 10, timed=(run,))


def test_what_timing_the_locks_costs_is_said():
    run = timed((0, "Cache._lock", 88, 0, 10), lengths=(40.0, 40.0))
    assert "with the locks timed it takes 2.0 × as long" in remarks([1.0] * 10, timed=(run,))


def test_why_locks_were_not_timed_is_said():
    assert "not timed: another run has the probes" in remarks(
        [1.0] * 10, untimed="another run has the probes"
    )


def test_tasks_that_wait_for_something_nameless_are_said_to_wait():
    assert "together the tasks compute for 50% of their time, alone for 100%" in remarks([1.0] * 10)
    assert "wait for each other" not in remarks([1.9] * 10)


def test_tasks_that_compute_longer_together_contend():
    slow = Pair(serial(10, 10), parallel(18, 18))
    runs = tuple(MeasuredRound(slow, pair(2.0), None, 0.0) for _ in range(10))
    said = " ".join(judge(measurement(Samples(threads=2, rounds=runs)))[2])
    assert "they compute 1.80 × as long together as alone" in said


def test_what_slows_the_probe_too_is_no_contention():
    slow = Pair(serial(10, 10), parallel(18, 18))
    runs = tuple(MeasuredRound(slow, slow, None, 0.0) for _ in range(10))
    assert not any(
        "as long" in each for each in judge(measurement(Samples(threads=2, rounds=runs)))[2]
    )


# ----- trust -----


def _noisy(generator, true, spread):
    return true * generator.lognormvariate(0, spread)


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("ceiling", [1.0, 1.5, 2.0])
def test_noise_makes_no_parallel_task_red(spread, ceiling):
    """Tasks that run as the probe does, whatever that is: a red would be a false one."""
    generator = random.Random(f"{spread} {ceiling}")
    for _ in range(60):
        count = generator.randint(8, 30)
        speedups = [_noisy(generator, ceiling, spread) for _ in range(count)]
        ceilings = [_noisy(generator, ceiling, spread) for _ in range(count)]
        for asked in (None, 1.2, 1.6, 1.9):
            assert verdict(speedups, ceilings, min_speedup=asked) is not Verdict.FAILED


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3, 0.6])
def test_noise_makes_no_serialised_task_green(spread):
    generator = random.Random(spread)
    for _ in range(100):
        count = generator.randint(8, 30)
        speedups = [_noisy(generator, 1.0, spread) for _ in range(count)]
        ceilings = [_noisy(generator, 1.9, spread) for _ in range(count)]
        assert verdict(speedups, ceilings, min_speedup=1.6) is not Verdict.PASSED


def test_on_a_quiet_machine_both_are_told_apart_every_time():
    generator = random.Random(0)
    for _ in range(100):
        ceilings = [_noisy(generator, 1.95, 0.02) for _ in range(12)]
        good = [_noisy(generator, 1.9, 0.02) for _ in range(12)]
        bad = [_noisy(generator, 1.0, 0.02) for _ in range(12)]
        assert verdict(good, ceilings, min_speedup=1.6) is Verdict.PASSED
        assert verdict(bad, ceilings, min_speedup=1.6) is Verdict.FAILED


def test_every_measurement_has_a_verdict_and_a_reason():
    grid = itertools.product(
        (0.5, 1.0, 1.4, 2.0), (0.9, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0), (FREE, GIL), (3, 8)
    )
    for speedup, ceiling, busy, machine, count in grid:
        native = 1.9 if machine.gil else None
        for asked in ({}, {"min_speedup": 1.5}, {"min_efficiency": 0.8}, {"max_total": 1.2}):
            given = {"busy": busy, "machine": machine, "native": native, **asked}
            claims, outcome, _ = judge(measured([speedup] * count, ceiling, **given))
            assert all(claim.reason for claim in claims)
            # Whoever passes has reached it, whoever fails could have done better.
            for claim in claims:
                better = claim.what != "total"
                reached = (claim.measured.value >= claim.asked) is better
                if claim.verdict is Verdict.PASSED:
                    assert reached
                if claim.verdict is Verdict.FAILED:
                    assert not reached and speedup < 2.0
            assert outcome in {claim.verdict for claim in claims}
