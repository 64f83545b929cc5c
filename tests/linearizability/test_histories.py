"""Histories whose judgement is known, from files and typed by hand."""

import io
from pathlib import Path

import pytest

from pytest_freethread import SequentialSpec, Verdict, check_history
from pytest_freethread import linearizability as lin
from pytest_freethread.linearizability import (
    Operation,
    Raised,
    load_history,
    map_spec,
    queue_spec,
    read_jepsen,
    register_spec,
    save_history,
    transactions_spec,
)

FOLDER = Path(__file__).parents[2] / "fixtures" / "histories"
TWINS = sorted(path.name for path in (FOLDER / "linearizable").glob("*.jsonl"))


def load(path):
    """A history of the folder, with the specification that its name begins with."""
    words = path.name.partition(".")[0].split("_")
    numbers = [int(word) for word in words if word.isdigit()]
    name = "_".join(word for word in words if not word.isdigit())
    with path.open(encoding="utf-8") as file:
        return load_history(file), getattr(lin, f"{name}_spec")(*numbers)


def op(client, name, *args, at, gives=None):
    called, returned = at
    return Operation(
        client=client, name=name, args=args, result=gives, called=called, returned=returned
    )


def verdict(history, spec, **options):
    return check_history(history, spec, **options).verdict


@pytest.mark.parametrize("name", TWINS)
def test_a_linearizable_history_passes_and_its_twin_fails(name):
    assert verdict(*load(FOLDER / "linearizable" / name)) is Verdict.PASSED
    judgement = check_history(*load(FOLDER / "not_linearizable" / name))
    assert judgement.verdict is Verdict.FAILED
    assert judgement.longest


def test_every_history_has_a_twin_and_every_specification_a_history():
    assert sorted(path.name for path in (FOLDER / "not_linearizable").glob("*.jsonl")) == TWINS
    named = {name.partition(".")[0].rstrip("_0123456789") for name in TWINS}
    specs = {name.removesuffix("_spec") for name in vars(lin) if name.endswith("_spec")}
    assert specs - named == {"transactions"}
    assert named <= specs


# --- the order in time ---


def read_of_the_old_value(*, at):
    return [op(0, "write", 1, at=(0, 3)), op(1, "read", at=(1, 2), gives=1), op(2, "read", at=at)]


def test_two_histories_that_differ_only_in_real_time_order_are_told_apart():
    assert verdict(read_of_the_old_value(at=(0, 4)), register_spec()) is Verdict.PASSED
    assert verdict(read_of_the_old_value(at=(3, 4)), register_spec()) is Verdict.FAILED


def test_what_returns_at_the_moment_of_a_call_overlaps_with_it():
    history = [op(0, "write", 1, at=(0, 1)), op(1, "read", at=(1, 2), gives=None)]
    assert verdict(history, register_spec()) is Verdict.PASSED


@pytest.mark.parametrize(
    ("claim", "expected"),
    [("linearizable", "FAILED"), ("sequential", "PASSED"), ("quiescent", "FAILED")],
)
def test_a_stale_read_of_another_client_is_sequentially_consistent(claim, expected):
    history = [op(0, "write", 1, at=(0, 1)), op(1, "read", at=(2, 3), gives=None)]
    assert verdict(history, register_spec(), claim=claim) is Verdict[expected]


@pytest.mark.parametrize(
    ("claim", "expected"),
    [("linearizable", "FAILED"), ("sequential", "FAILED"), ("quiescent", "PASSED")],
)
def test_a_long_call_of_another_client_excuses_everything_for_quiescent_consistency(
    claim, expected
):
    history = [
        op(0, "put", "a", at=(0, 1)),
        op(0, "put", "b", at=(2, 3)),
        op(1, "put", "c", at=(0, 6)),
        op(0, "get", at=(4, 5), gives="b"),
    ]
    assert verdict(history, queue_spec(), claim=claim) is Verdict[expected]


def test_calls_that_touch_leave_no_quiet_moment_in_between():
    history = [
        op(0, "write", 1, at=(0, 1)),
        op(1, "write", 2, at=(1, 2)),
        op(0, "read", at=(2, 3), gives=None),
    ]
    assert verdict(history, register_spec(), claim="quiescent") is Verdict.PASSED
    assert verdict([history[0], history[2]], register_spec(), claim="quiescent") is Verdict.FAILED


def test_sequential_consistency_does_not_follow_from_that_of_the_parts():
    """Each key has an order, but together they are a circle."""
    history = [
        op(0, "put", "x", 1, at=(0, 1)),
        op(0, "get", "y", at=(2, 3)),
        op(1, "put", "y", 1, at=(0, 1)),
        op(1, "get", "x", at=(2, 3)),
    ]
    for key in "xy":
        part = [operation for operation in history if operation.args[0] == key]
        assert verdict(part, map_spec(), claim="sequential") is Verdict.PASSED
    assert verdict(history, map_spec(), claim="sequential") is Verdict.FAILED


def transaction(*accesses, at, gives):
    return op(0, "transaction", *accesses, at=at, gives=gives)


def test_write_skew_is_not_serializable():
    accesses = [(("read", "x"), ("write", "y", 1)), (("read", "y"), ("write", "x", 1))]
    skew = [transaction(*each, at=(0, 1), gives=(0, None)) for each in accesses]
    assert verdict(skew, transactions_spec(0), claim="serializable") is Verdict.FAILED
    one_saw = [skew[0], transaction(*accesses[1], at=(0, 1), gives=(1, None))]
    assert verdict(one_saw, transactions_spec(0), claim="serializable") is Verdict.PASSED


def test_serializable_transactions_may_read_the_past_and_strictly_serializable_ones_may_not():
    history = [
        transaction(("write", "x", 1), at=(0, 1), gives=(None,)),
        transaction(("read", "x"), at=(2, 3), gives=(0,)),
    ]
    assert verdict(history, transactions_spec(0), claim="serializable") is Verdict.PASSED
    assert verdict(history, transactions_spec(0)) is Verdict.FAILED


# --- what did not return ---


@pytest.mark.parametrize("seen", [None, 1])
def test_a_call_that_never_returned_took_effect_or_not(seen):
    history = [op(0, "write", 1, at=(0, None)), op(1, "read", at=(1, 2), gives=seen)]
    judgement = check_history(history, register_spec())
    assert judgement.verdict is Verdict.PASSED
    assert [o.name for o in judgement.witness] == (["write", "read"] if seen else ["read"])


def test_a_call_that_never_returned_takes_effect_once_and_not_before_it_was_made():
    for at, seen in [((2, None), (1, None)), ((0, None), (1, 0))]:
        history = [op(0, "write", 1, at=at)] + [
            op(1, "read", at=(n, n + 0.5), gives=gives) for n, gives in enumerate(seen, 1)
        ]
        assert verdict(history, register_spec(0)) is Verdict.FAILED


def test_a_getter_may_wait_for_ever_at_an_empty_queue():
    history = [op(0, "get", at=(0, None)), op(1, "qsize", at=(1, 2), gives=0)]
    assert verdict(history, queue_spec()) is Verdict.PASSED


def test_a_getter_that_never_came_back_may_have_taken_the_item_in_front():
    history = [
        op(0, "put", "a", at=(0, 1)),
        op(0, "put", "b", at=(2, 3)),
        op(1, "get", at=(4, None)),
        op(0, "get", at=(5, 6), gives="b"),
    ]
    assert verdict(history, queue_spec()) is Verdict.PASSED
    assert verdict([history[0], history[1], history[3]], queue_spec()) is Verdict.FAILED


# --- what a judgement says ---


def test_a_history_of_nothing_passes():
    assert verdict([], register_spec()) is Verdict.PASSED


def test_a_passed_judgement_has_one_order_for_all_parts_that_keeps_to_time():
    history = [
        op(0, "put", "a", 1, at=(0, 5)),
        op(1, "put", "b", 1, at=(1, 2)),
        op(1, "get", "a", at=(3, 4), gives=1),
        op(2, "get", "b", at=(6, 7), gives=1),
    ]
    judgement = check_history(history, map_spec())
    assert judgement.witness == tuple(history)
    assert str(judgement).startswith("linearizable (map): 4 operations in order")


def test_a_failed_judgement_says_where_every_order_ends():
    history, spec = load(FOLDER / "not_linearizable" / "map.computed_twice.jsonl")
    judgement = check_history(history, spec, clock=lambda: 0.0)
    assert judgement.part == "k"
    assert (
        str(judgement)
        == """\
not linearizable (map, 'k'): no order explains these results; 4 configurations, 0.00 s
  client 0  [0, 2]  setdefault('k', 1) -> 1
  client 1  [1, 3]  setdefault('k', 2) -> 2
the longest order that works, of length 1:
  setdefault('k', 1) -> 1
  state {'k': 1}, in which
  setdefault('k', 2) -> 2 is wrong: it gives 1"""
    )
    assert [[str(o) for o in partial.order] for partial in judgement.longest] == [
        ["setdefault('k', 1) -> 1"],
        ["setdefault('k', 2) -> 2"],
    ]


def test_a_failed_judgement_leaves_out_what_came_after_the_failure():
    broken = [op(0, "write", 1, at=(0, 1)), op(1, "read", at=(2, 3), gives=2)]
    after = [op(2, "read", at=(n, n + 3), gives=1) for n in range(4, 50, 4)]
    overlapping = op(3, "write", 7, at=(2, 9))
    judgement = check_history([*after, overlapping, *broken], register_spec())
    assert {str(o) for o in judgement.prefix} == {
        "write(1) -> None",
        "read() -> 2",
        "write(7) pending",
    }


def test_a_judgement_that_ran_out_of_time_is_inconclusive_and_says_how_far_it_came():
    """2^20 orders of writes, none of which gives what is read in the end."""
    history = [op(n, "add", 2**n, at=(0, 1), gives=2**n) for n in range(20)]
    history += [op(0, "increment", 2**n, at=(0, 1)) for n in range(20)]
    history.append(op(0, "read", at=(2, 3), gives=-1))
    ticks = iter(range(10**9))
    judgement = check_history(history, lin.counter_spec(), seconds=50, clock=lambda: next(ticks))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.longest
    assert judgement.longest[0].order
    assert not judgement.witness
    assert "out of time" in str(judgement)


def test_a_part_that_fails_is_found_beside_one_that_takes_all_the_time():
    hard = [op(n, "append", "hard", 2**n, at=(0, 1)) for n in range(40)]
    hard.append(op(0, "get", "hard", at=(2, 3), gives=-1))
    wrong = op(0, "get", "easy", at=(0, 1), gives=9)
    ticks = iter(range(10**9))
    clock = lambda: next(ticks)  # noqa: E731  # the shortest clock there is
    assert verdict(hard, map_spec(0), seconds=50, clock=clock) is Verdict.INCONCLUSIVE
    judgement = check_history([*hard, wrong], map_spec(0), seconds=50, clock=clock)
    assert (judgement.verdict, judgement.part) == (Verdict.FAILED, "easy")


def test_a_specification_is_a_record_of_functions():
    def step(state, operation):
        match operation.name, operation.args:
            case "flip", ():
                yield state, not state

    switch = SequentialSpec(name="switch", initial=False, step=step)
    both = [op(0, "flip", at=(0, 2), gives=True), op(1, "flip", at=(1, 3), gives=False)]
    assert verdict(both, switch) is Verdict.PASSED
    assert verdict([both[0]], switch) is Verdict.FAILED


# --- what is refused ---


def test_a_claim_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="'atomic' is not linearizable, sequential"):
        check_history([], register_spec(), claim="atomic")


def test_an_operation_that_returns_before_its_call_is_refused():
    with pytest.raises(ValueError, match=r"read\(\) -> None returned at 1, called at 2"):
        op(0, "read", at=(2, 1))


def test_an_operation_that_the_specification_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"launch\(\) -> None: .* register has no such operation"):
        check_history([op(0, "launch", at=(0, 1))], register_spec())


def test_a_client_that_does_two_things_at_once_has_no_order_of_its_own():
    history = [op(0, "read", at=(0, 2)), op(0, "write", 1, at=(1, 3))]
    with pytest.raises(ValueError, match=r"client 0 called write\(1\) -> None at 1, when its read"):
        check_history(history, register_spec(), claim="sequential")


# --- files ---


def test_a_history_is_the_same_after_it_was_saved_and_loaded():
    history = [
        op("a", "put", ("key", 1), 2.5, at=(0, 1)),
        op("b", "pop", "k", at=(0.25, 3), gives=Raised("KeyError")),
        op(None, "get", True, at=(1, None)),
        op(0, "transaction", ("read", "x"), at=(1, 2), gives=(None,)),
    ]
    file = io.StringIO()
    save_history(history, file)
    assert load_history(io.StringIO(file.getvalue())) == history


def test_a_value_that_json_cannot_tell_from_another_is_refused():
    with pytest.raises(TypeError, match=r"a frozenset cannot be saved in a history: frozenset"):
        save_history([op(0, "put", frozenset(), at=(0, 1))], io.StringIO())


@pytest.mark.parametrize("line", ["{", "[]", '{"name": "read"}', '{"nam": "read", "called": 0}'])
def test_a_line_that_is_no_operation_is_named(line):
    with pytest.raises(ValueError, match="line 2 is no operation"):
        load_history(["\n", line])


@pytest.mark.parametrize("path", sorted((FOLDER / "jepsen").glob("*.log")), ids=lambda p: p.stem)
def test_a_log_of_jepsen_can_be_judged(path):
    with path.open(encoding="utf-8") as file:
        history = read_jepsen(file)
    spec = register_spec() if path.stem.startswith("etcd") else map_spec("")
    expected = Verdict.PASSED if path.stem.endswith("passes") else Verdict.FAILED
    assert verdict(history, spec) is expected


def test_a_log_of_jepsen_says_what_did_not_happen_and_what_nobody_knows():
    with (FOLDER / "jepsen" / "etcd_passes.log").open(encoding="utf-8") as file:
        history = read_jepsen(file)
    assert [(o.client, str(o), o.called, o.returned) for o in history] == [
        (0, "write(1) -> None", 1, 4),
        (1, "read() -> None", 2, 3),
        (2, "cas(1, 3) pending", 6, None),
        (1, "cas(0, 4) -> False", 7, 8),
        (4, "read() -> 3", 12, 13),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a line"], "line 1 is no event of a process: a line"),
        (["INFO jepsen.util - 0 :ok :read 1"], "line 1: process 0 did not begin this"),
        (["INFO jepsen.util - 0 :invoke :read nil"] * 2, "line 2: process 0 is not done yet"),
        (
            ["INFO jepsen.util - 0 :invoke :read nil", "INFO jepsen.util - 0 :lost :read nil"],
            "line 2: :lost is not :invoke, :ok, :fail or :info",
        ),
    ],
)
def test_a_log_that_cannot_be_is_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        read_jepsen(lines)
