"""The checker agrees with trying every order, on thousands of small histories."""

import math
import random
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_freethread import Verdict
from pytest_freethread.linearizability import (
    Operation,
    Raised,
    SequentialSpec,
    bounded_buffer_spec,
    check_history,
    counter_spec,
    lock_spec,
    map_spec,
    queue_spec,
    register_spec,
    semaphore_spec,
    set_spec,
    stack_spec,
    token_bucket_spec,
    transactions_spec,
)

CLAIMS = ["linearizable", "sequential", "quiescent", "serializable"]
SMALL = (0, 1, 2)


def coin_step(state, operation):
    """A specification that leaves choices: a toss gives either side, and stays."""
    if operation.name == "toss":
        yield "heads", "heads"
        yield "tails", "tails"
    else:
        yield state, state


COIN = SequentialSpec(
    name="coin",
    initial="heads",
    step=coin_step,
    observes=lambda operation: operation.name == "look",
)

SPECS = {
    "register": (
        register_spec(0),
        [("read", ()), *(("write", (n,)) for n in SMALL), ("cas", (0, 1)), ("cas", (1, 2))],
    ),
    "counter": (counter_spec(), [("read", ()), ("increment", ()), ("add", (2,))]),
    "map": (
        map_spec(),
        [
            *((name, (key,)) for name in ("get", "pop", "contains") for key in "ab"),
            *(("put", (key, n)) for key in "ab" for n in (1, 2)),
            ("setdefault", ("a", 3)),
            ("len", ()),
        ],
    ),
    "keys": (
        map_spec(0),
        [
            *((name, (key,)) for name in ("get", "pop") for key in "abc"),
            *(("append", (key, 1)) for key in "abc"),
        ],
    ),
    "set": (
        set_spec(),
        [(name, (n,)) for name in ("add", "discard", "remove", "contains") for n in (1, 2)]
        + [("len", ())],
    ),
    "queue": (
        queue_spec(),
        [*(("put", (n,)) for n in range(5)), ("get", ()), ("get_nowait", ()), ("qsize", ())],
    ),
    "bounded buffer": (
        bounded_buffer_spec(2),
        [*(("put_nowait", (n,)) for n in range(5)), ("put", (5,)), ("get", ()), ("get_nowait", ())],
    ),
    "stack": (
        stack_spec(),
        [("push", (1,)), ("push", (2,)), ("pop", ()), ("pop", ()), ("peek", ()), ("len", ())],
    ),
    "lock": (lock_spec(), [("acquire", ()), ("try_acquire", ()), ("release", ())]),
    "semaphore": (
        semaphore_spec(2, bounded=True),
        [("acquire", ()), ("try_acquire", ()), ("release", ())],
    ),
    "token bucket": (
        token_bucket_spec(2, 1),
        [("take", (tokens, now)) for tokens in (1, 2) for now in (0, 1, 3)],
    ),
    "transactions": (
        transactions_spec(0),
        [
            ("transaction", accesses)
            for accesses in (
                (("read", "x"),),
                (("read", "x"), ("write", "y", 1)),
                (("read", "y"), ("write", "x", 1)),
                (("write", "x", 2), ("read", "x"), ("read", "y")),
            )
        ],
    ),
    "coin": (COIN, [("toss", ()), ("look", ())]),
}


def results_of(spec, calls):
    """The results that the calls ever give, from the states that a few of them lead to."""
    states = {spec.initial}
    results = []
    for _ in range(3):
        for state in [*states]:
            for name, args in calls:
                for result, after in spec.step(state, Operation(name=name, args=args, called=0)):
                    states.add(after)
                    if result not in results:
                        results.append(result)
    return results


def random_history(rng, spec, calls, *, clients, length, honest):
    """What clients may have seen: sequential each, at times that overlap and that coincide.

    An honest one is linearizable by construction, as each operation takes effect at a moment
    between its call and its return; otherwise some results are anything that was ever given.
    """
    results = results_of(spec, calls)
    state, now, history = spec.initial, 0, []
    idle, called, done = [*range(clients)], [], []
    while length or called or done:
        now += rng.random() < 0.8
        moves = (
            ["call"] * bool(length and idle) + ["effect"] * bool(called) + ["return"] * bool(done)
        )
        if not moves:
            break
        move = rng.choice(moves)
        if move == "call":
            client = idle.pop(rng.randrange(len(idle)))
            name, args = rng.choice(calls)
            called.append(Operation(client=client, name=name, args=args, called=now))
            length -= 1
            continue
        if move == "return":
            operation, result = done.pop(rng.randrange(len(done)))
            history.append(replace(operation, result=result, returned=now))
            idle.append(operation.client)
            continue
        operation = called.pop(rng.randrange(len(called)))
        outcomes = [*spec.step(state, operation)]
        if not outcomes or rng.random() < 0.1:
            # It waits for ever, or its client never hears of it.
            if outcomes and rng.random() < 0.5:
                _, state = rng.choice(outcomes)
            history.append(operation)
            continue
        result, state = rng.choice(outcomes)
        done.append((operation, result))
    if not honest:
        complete = [n for n, operation in enumerate(history) if operation.returned is not None]
        for n in rng.sample(complete, min(len(complete), rng.choice((1, 1, 2)))):
            history[n] = replace(history[n], result=rng.choice(results))
    rng.shuffle(history)
    return history


def returned(operation):
    return math.inf if operation.returned is None else operation.returned


def before(history, claim):
    """Which of two operations has to come before the other, straight from the definitions."""
    times = sorted({t for o in history for t in (o.called, returned(o))})
    between = [(a + b) / 2 for a, b in pairwise(times)]
    quiet = [t for t in between if not any(o.called < t < returned(o) for o in history)]
    listed = {id(o): n for n, o in enumerate(history)}

    def moment(operation):
        return operation.called, returned(operation), listed[id(operation)]

    return {
        "linearizable": lambda a, b: returned(a) < b.called,
        "sequential": lambda a, b: a.client == b.client and moment(a) < moment(b),
        "quiescent": lambda a, b: any(returned(a) < t < b.called for t in quiet),
        "serializable": lambda _a, _b: False,
    }[claim]


def explains(order, spec):
    states = {spec.initial}
    for operation in order:
        states = {
            after
            for state in states
            for result, after in spec.step(state, operation)
            if operation.returned is None or result == operation.result
        }
    return bool(states)


def some_order_explains(history, spec, claim):
    """Brute force: every order that the claim allows, with or without each pending operation."""
    is_before = before(history, claim)

    def go_on(rest, state):
        return all(o.returned is None for o in rest) or any(
            go_on([o for o in rest if o is not operation], after)
            for operation in rest
            if not any(is_before(other, operation) for other in rest)
            for result, after in spec.step(state, operation)
            if operation.returned is None or result == operation.result
        )

    return go_on(history, spec.initial)


def assert_right(history, spec, claim):
    judgement = check_history(history, spec, claim=claim, seconds=None)
    expected = some_order_explains(history, spec, claim)
    assert judgement.verdict is (Verdict.PASSED if expected else Verdict.FAILED), str(judgement)
    if expected:
        is_before = before(history, claim)
        witness = judgement.witness
        assert explains(witness, spec)
        assert not any(is_before(b, a) for a, b in combinations(witness, 2))
        assert {id(o) for o in witness} >= {id(o) for o in history if o.returned is not None}
        assert {id(o) for o in witness} <= {id(o) for o in history}
    return judgement


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("name", SPECS)
def test_the_checker_agrees_with_brute_force(name, claim):
    spec, calls = SPECS[name]
    rng = random.Random(f"{name} {claim}")
    verdicts = []
    for _ in range(200):
        history = random_history(
            rng, spec, calls, clients=3, length=rng.randint(2, 5), honest=rng.random() < 0.3
        )
        verdicts.append(assert_right(history, spec, claim).verdict)
    assert {*verdicts} == {Verdict.PASSED, Verdict.FAILED}


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(rng=st.randoms(use_true_random=False))
def test_the_checker_agrees_with_brute_force_on_what_hypothesis_draws(name, rng):
    spec, calls = SPECS[name]
    history = random_history(
        rng, spec, calls, clients=4, length=rng.randint(2, 6), honest=rng.random() < 0.5
    )
    assert_right(history, spec, "linearizable")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("claim", "length"), [("linearizable", 25), *((c, 7) for c in CLAIMS)])
def test_what_is_linearizable_by_construction_passes_every_claim(name, claim, length):
    spec, calls = SPECS[name]
    rng = random.Random(name)
    for _ in range(20):
        history = random_history(rng, spec, calls, clients=3, length=length, honest=True)
        judgement = check_history(history, spec, claim=claim, seconds=None)
        assert judgement.verdict is Verdict.PASSED, str(judgement)
        assert explains(judgement.witness, spec)


@pytest.mark.parametrize("name", SPECS)
def test_partition_observations_and_foresight_change_no_verdict(name):
    spec, calls = SPECS[name]
    plain = replace(spec, partition=None, observes=None, foresight=None)
    rng = random.Random(name)
    for _ in range(200):
        history = random_history(rng, spec, calls, clients=3, length=10, honest=False)
        fast, slow = (check_history(history, s, seconds=None) for s in (spec, plain))
        assert fast.verdict is slow.verdict
        assert len(fast.prefix) <= len(history)


def known_at(moment, history):
    return [
        o if returned(o) <= moment else replace(o, result=None, returned=None)
        for o in history
        if o.called <= moment
    ]


@pytest.mark.parametrize("name", SPECS)
def test_the_prefix_of_a_failure_is_the_shortest_one_that_fails(name):
    spec, calls = SPECS[name]
    whole = replace(spec, partition=None)
    rng = random.Random(name)
    failures = 0
    for _ in range(60):
        history = random_history(rng, spec, calls, clients=3, length=5, honest=False)
        judgement = check_history(history, whole, seconds=None)
        if judgement.verdict is not Verdict.FAILED:
            continue
        failures += 1
        moments = sorted(o.returned for o in history if o.returned is not None)
        prefixes = (known_at(moment, history) for moment in moments)
        shortest = next(p for p in prefixes if not some_order_explains(p, spec, "linearizable"))
        assert sorted(map(str, judgement.prefix)) == sorted(map(str, shortest))
        longest = [len(partial.order) for partial in judgement.longest]
        assert len({*longest}) == 1
        assert longest[0] < len(shortest)
        assert all(explains(partial.order, spec) for partial in judgement.longest)
    assert failures


def test_a_result_of_the_wrong_kind_is_no_explanation():
    raised = Operation(name="pop", args=("k",), result=Raised("KeyError"), called=0, returned=1)
    for result, verdict in ((Raised("KeyError"), "PASSED"), (Raised("ValueError"), "FAILED")):
        judgement = check_history([replace(raised, result=result)], map_spec())
        assert judgement.verdict is Verdict[verdict]
