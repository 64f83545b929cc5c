"""The samplers, the bounded search and the portfolio, on the model machine."""

from math import comb
from statistics import mean

import programs
import pytest
from generated import generate
from machine import Machine, brute_force, explore

from pytest_freethread.errors import SettingError
from pytest_freethread.scheduling import DFS, DPOR, PCT, STRATEGIES, SURW, RandomWalk, make

SAMPLERS = ["random", "pct", "pos", "surw"]


def choices(machine):
    return [thread for thread, _ in machine.trace]


def preemptions(machine):
    """How many switches there were away from a thread that could go on; replayed to find out."""
    again, count, current = Machine(machine.bodies, machine.state), 0, None
    for thread in choices(machine):
        count += current is not None and thread != current and current in again.enabled()
        again.step(thread)
        current = thread
    return count


def first_wrong(program, scheduler, most):
    """How many executions it takes to see what is wrong; `most` + 1 if it takes more."""
    for number in range(1, most + 1):
        assert scheduler.begin()
        if programs.wrong(program().run(scheduler)):
            return number
        scheduler.end()
    return most + 1


@pytest.mark.parametrize("name", [*SAMPLERS, "auto", "dfs"])
def test_no_strategy_sees_what_cannot_happen(name):
    for seed in range(40):
        truth = brute_force(generate(seed), most=300)
        if truth is not None:
            runs = explore(generate(seed), make(name, seed=seed, preemptions=None), most=15)
            assert {outcome for outcome, _ in runs} <= truth[0], seed


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_sees_all_outcomes_of_a_small_program_in_the_end(name):
    program = programs.counter(1, threads=3, locked=False)
    runs = explore(program, make(name, seed=1, preemptions=None), most=300)
    assert {outcome for outcome, _ in runs} == brute_force(program)[0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_makes_the_same_choices(name):
    def run(seed):
        scheduler = make(name, seed=seed, preemptions=None)
        runs = explore(programs.twostage(4), scheduler, most=120)
        return [choices(machine) for _, machine in runs]

    assert run(7) == run(7)
    assert (run(7) == run(8)) is (name in {"dfs", "dpor"})


def test_the_choices_are_the_same_on_every_version_of_python():
    taken = {
        name: "".join(
            str(thread)
            for _, machine in explore(
                programs.counter(1, threads=3, locked=False),
                make(name, seed=3, preemptions=None),
                most=4,
            )
            for thread in choices(machine)
        )
        for name in SAMPLERS
    }
    assert taken == {
        "random": "011220002112212010012120",
        "pct": "112200220011002211221010",
        "pos": "110022001122112200022110",
        "surw": "220110102210101202112200",
    }


def test_a_random_walk_takes_all_threads_alike():
    walk = RandomWalk(5)
    taken = [walk.choose([0, 2, 3], None, []) for _ in range(3000)]
    assert set(taken) == {0, 2, 3}
    assert all(900 < taken.count(thread) < 1100 for thread in (0, 2, 3))


# The published figures, as means of 20 seeds


@pytest.mark.parametrize("threads", [3, 4, 5, 10, 20, 50])
def test_surw_finds_reorder_within_25_schedules(threads):
    program = programs.reorder(threads)
    assert mean(first_wrong(program, SURW(seed), 400) for seed in range(20)) <= 25


@pytest.mark.parametrize("threads", [3, 20, 50])
def test_surw_finds_twostage_within_50_schedules(threads):
    program = programs.twostage(threads)
    assert mean(first_wrong(program, SURW(seed), 400) for seed in range(20)) <= 50


@pytest.mark.parametrize(
    "program", [programs.reorder(10), programs.reorder(50), programs.twostage(20)]
)
def test_the_portfolio_finds_them_within_1000(program):
    for seed in range(5):
        assert first_wrong(program, make("auto", seed=seed, preemptions=None), 1000) <= 1000


# PCT


def depth_2():
    """A lost update: the writer must come between the reading and the writing."""

    def body(m):
        for name in ("a", "b", "c"):
            yield m.read(name)
        value = yield m.read("x")
        yield m.write("x", value + 1)
        for name in ("a", "b", "c"):
            yield m.read(name)

    return Machine([body, body], {"a": 0, "b": 0, "c": 0, "x": 0})


def depth_3():
    """The reader must come between the two writes, and be interrupted itself."""

    def writer(m):
        yield m.write("x", 1)
        yield m.write("x", 2)

    def reader(m):
        return (yield m.read("x")), (yield m.read("x"))

    return Machine([writer, reader], {"x": 0})


@pytest.mark.parametrize(
    ("program", "depth", "steps", "hit"),
    [
        (depth_2, 2, 16, lambda outcome: dict(outcome[2])["x"] == 1),
        (depth_3, 3, 4, lambda outcome: outcome[3][1][1] == (1, 2)),
    ],
)
def test_pct_finds_a_bug_of_its_depth_at_least_as_often_as_it_promises(program, depth, steps, hit):
    executions = 4000
    scheduler = PCT(11, depth=depth)
    runs = explore(program, scheduler, most=executions)
    found = sum(hit(outcome) for outcome, _ in runs)
    assert found / executions >= 1 / (2 * steps ** (depth - 1))
    assert scheduler.guarantee.startswith(
        f"PCT: with 2 threads and {steps} steps, one execution finds a bug of depth {depth} or less"
    )


def test_pct_states_its_guarantee_in_numbers():
    scheduler = PCT(0)
    explore(depth_3, scheduler, most=20)
    assert scheduler.guarantee == (
        "PCT: with 2 threads and 4 steps, one execution finds a bug of depth 3 or less with "
        "p ≥ 0.031; all 20 miss it with p ≤ 0.53"
    )


# DFS


def test_dfs_tries_every_interleaving_once():
    program = programs.writers(3)
    scheduler = DFS()
    runs = explore(program, scheduler)
    assert len(runs) == comb(6, 3) == len({tuple(choices(machine)) for _, machine in runs})
    assert scheduler.exhausted


def test_dfs_agrees_with_brute_force_on_generated_programs():
    for seed in range(60):
        truth = brute_force(generate(seed), most=300)
        if truth is not None:
            runs = explore(generate(seed), DFS())
            assert len(runs) == truth[2]
            assert {outcome for outcome, _ in runs} == truth[0]


def test_dfs_spends_preemptions_one_by_one():
    runs = explore(programs.counter(1, threads=3, locked=False), DFS())
    spent = [preemptions(machine) for _, machine in runs]
    assert spent == sorted(spent)
    assert spent[-1] > 2


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_dfs_stays_within_its_bound_and_says_that_it_did(bound):
    program = programs.counter(1, threads=3, locked=False)
    everything = [preemptions(machine) for _, machine in explore(program, DFS())]
    scheduler = DFS(bound)
    spent = [preemptions(machine) for _, machine in explore(program, scheduler)]
    assert spent == [count for count in everything if count <= bound]
    assert not scheduler.exhausted


def test_dfs_is_exhaustive_where_the_bound_forbids_nothing():
    scheduler = DFS(1)
    assert len(explore(programs.writers(1), scheduler)) == 2
    assert scheduler.exhausted


def test_dfs_notices_a_program_that_is_another_one_the_second_time():
    sites = iter(range(100))

    def body(m):
        yield m.write("x", 0, site=next(sites))
        yield m.write("x", 0, site=50)

    with pytest.raises(Exception, match="step 0: expected thread 0 at site 0, but it is thread 0"):
        explore(lambda: Machine([body, body], {"x": 0}), DFS())


@pytest.mark.parametrize("name", [*SAMPLERS, "auto"])
def test_a_bound_on_preemptions_holds_for_every_strategy(name):
    scheduler = make(name, seed=2, preemptions=1)
    runs = explore(programs.twostage(4), scheduler, most=150)
    assert max(preemptions(machine) for _, machine in runs) == 1
    assert not scheduler.exhausted


# The portfolio


def test_the_portfolio_begins_with_the_plain_schedules():
    scheduler = make("auto", seed=0, preemptions=None)
    runs = explore(programs.writers(2, threads=3), scheduler, most=3)
    assert [choices(machine) for _, machine in runs] == [
        [0, 0, 1, 1, 2, 2],
        [2, 2, 1, 1, 0, 0],
        [0, 1, 2, 0, 1, 2],
    ]


def test_the_portfolio_gives_everybody_a_turn_and_the_search_half_of_them():
    scheduler = make("auto", seed=0, preemptions=None)
    taken = []
    for _ in range(483):
        assert scheduler.begin()
        taken.append(scheduler.strategy)
        programs.twostage(5)().run(scheduler)
        scheduler.end()
    assert {name: taken.count(name) for name in taken} == {
        "Plain": 3, "SURW": 108, "POS": 36, "PCT": 36, "RandomWalk": 36, "DPOR": 264,
    }  # fmt: skip


@pytest.mark.parametrize(("k", "within"), [(2, 30), (3, 40), (4, 100), (5, 470)])
def test_the_portfolio_exhausts_a_small_program_early(k, within):
    scheduler = make("auto", seed=0, preemptions=None)
    runs = explore(programs.counter(k), scheduler, most=1000)
    assert len(runs) <= within
    assert scheduler.exhausted


def test_the_portfolio_goes_on_sampling_where_its_search_had_to_leave_something_out():
    scheduler = make("auto", seed=0, preemptions=None)
    for _ in range(300):
        assert scheduler.begin()
        programs.independent(2, threads=2)().run(scheduler, steps=3)  # as if a failure ended it
        scheduler.end()
    assert not scheduler.exhausted


def test_a_bounded_portfolio_ends_with_its_search_but_is_not_exhaustive():
    scheduler = make("auto", seed=0, preemptions=1)
    runs = explore(programs.counter(3), scheduler, most=1000)
    assert len(runs) < 200
    assert not scheduler.exhausted


# Making one


def test_a_scheduler_of_ones_own_is_taken_as_it_is():
    own = DPOR()
    assert make(own, seed=0, preemptions=None) is own


@pytest.mark.parametrize(
    ("strategy", "preemptions_", "message"),
    [
        (
            "bfs",
            None,
            "strategy='bfs': there is no such strategy; there are 'auto', 'random', 'pct', 'pos', "
            "'surw', 'dfs', 'dpor', or a Scheduler of your own",
        ),
        ("dpor", 2, "preemptions=2: strategy 'dpor' takes no bound; 'dfs' does"),
        ("dfs", -1, "preemptions=-1: must be at least 0, or None for no bound"),
    ],
)
def test_a_strategy_that_there_is_not_is_named(strategy, preemptions_, message):
    with pytest.raises(SettingError) as caught:
        make(strategy, seed=0, preemptions=preemptions_)
    assert str(caught.value) == message
