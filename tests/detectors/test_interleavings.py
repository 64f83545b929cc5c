"""What is said of an execution, from steps typed by hand: no threads, no probes."""

from dataclasses import fields, replace

import pytest

from pytest_freethread.detectors import interleavings
from pytest_freethread.records import (
    ControlledExecution,
    Failure,
    Holding,
    Pause,
    Place,
    Step,
    Thrown,
    Waiting,
)

FIELDS = [field.name for field in fields(ControlledExecution)]
COUNTER, LOCK, OTHER_LOCK, ITEMS = range(4)


def place(line, source, function="Counter.increment", file="counter.py"):
    return Place(file=file, line=line, function=function, source=source)


def read(thread, line, value="0", *, key="value", held=(), text=None, function="Counter.increment"):
    return Step(
        thread=thread,
        place=place(line, f"self.{key}", function),
        op="attribute read",
        location=COUNTER,
        label="Counter",
        key=key,
        write=False,
        before=value,
        after=None,
        held=held,
        line=text or f"temp = self.{key}",
    )


def write(thread, line, before="0", after="1", **rest):
    step = read(thread, line, before, text=rest.pop("text", "self.value = temp + 1"), **rest)
    return step._replace(op="attribute write", write=True, after=after)


def on_items(thread, line, source, op, **changes):
    step = read(thread, line, None, text=source)._replace(
        place=place(line, source), op=op, location=ITEMS, label="list", key=None
    )
    return step._replace(write=op.endswith("write"), **changes)


def lock(thread, line, op, location=LOCK, source="self.lock"):
    return Step(
        *(thread, place(line, source), op, location, "Lock", None, True, None, None, ()),
        "with self.lock:",
    )


def execution(*trace, outcome="ended", **known):
    """What the judges look at is given; all else is empty."""
    known |= {"trace": trace, "outcome": outcome, "steps": len(trace)}
    return ControlledExecution(**dict.fromkeys(FIELDS, ()) | {"holds": None} | known)


def told(happened, *failures):
    """The finding of an execution whose invariant did not hold, or that failed otherwise."""
    symptom = interleavings.symptom(happened, failures)
    if symptom is None:
        symptom = interleavings.Symptom(kind="invariant", message="It is 1.", failure=None)
    return interleavings.finding(symptom, happened, SCHEDULE)


SCHEDULE = interleavings.Schedule(
    token="ft1:0x1",
    names=("Counter.increment", "Counter.increment"),
    found=(1, "RandomWalk", 0.001),
    reproduced=(10, 10),
)


def raised(error, thread=0, phase="body"):
    return Failure(exception=error, phase=phase, thread=thread, round=0, text=str(error.args[0]))


def preempted(steps, thread, **changes):
    pause = Pause(
        steps=steps, thread=thread, ready=True, ended=False, operation="", source="", by=None
    )
    return pause._replace(**changes)


# --- lost updates ---------------------------------------------------------------------------------


def test_both_read_before_either_writes():
    finding = told(execution(read(0, 7), read(1, 7), write(1, 8), write(0, 8, "1")))
    assert finding.message == (
        "Lost update on Counter.value: both threads read it before either wrote it back."
    )
    broken = finding.evidence.violation
    assert (broken.look, broken.change, broken.act) == (0, 2, 3)
    assert broken.overwrites
    assert (broken.released, broken.late) == (None, None)
    assert finding.evidence.repair == (
        "hold one lock from the read (counter.py:7) to the write (counter.py:8)."
    )


def test_a_write_without_a_look_between_read_and_write():
    finding = told(execution(read(0, 7), write(1, 20, function="Counter.reset"), write(0, 8, "1")))
    assert finding.message == (
        "Lost update on Counter.value: thread 1 wrote it after thread 0 had read it, and thread 0 "
        "wrote it back."
    )
    assert finding.evidence.repair.endswith(", and for the change (counter.py:20).")


def test_one_of_three_threads_is_not_concerned():
    finding = told(
        execution(read(2, 7), read(0, 7), write(2, 8), write(0, 8, "1"), read(1, 7), write(1, 8))
    )
    assert "threads 0 and 2 read it before" in finding.message


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param((read(0, 7), write(0, 8), read(1, 7), write(1, 8)), id="one after the other"),
        pytest.param((read(0, 7), read(1, 7), read(0, 7), read(1, 7)), id="nobody writes"),
        pytest.param((write(0, 8), write(1, 8), write(0, 8)), id="nobody reads"),
        pytest.param((read(0, 7), write(1, 8), read(0, 7), write(0, 8)), id="it is read again"),
        pytest.param((read(0, 7), write(0, 8), write(0, 8)), id="one thread alone"),
        pytest.param(
            (read(0, 7), write(1, 8, key="other"), write(0, 8)), id="another attribute is written"
        ),
        pytest.param(
            (read(0, 7), write(1, 8, "1", "1"), write(0, 8)), id="the write changes nothing"
        ),
        pytest.param(
            (read(0, 7, function="log"), write(1, 20), write(0, 30, function="close")),
            id="the write need not come from the read",
        ),
    ],
)
def test_what_is_no_lost_update_keeps_what_broke_as_its_message(trace):
    finding = told(execution(*trace))
    assert finding.message == "It is 1."
    assert finding.evidence.violation is None
    assert finding.evidence.repair is None


def test_of_several_patterns_the_one_around_the_preemption_is_told():
    trace = (
        *(read(0, 5, key="first"), read(1, 5, key="first"), write(1, 6, key="first")),
        *(write(0, 6, key="first"), read(0, 7), read(1, 7), write(1, 8), write(0, 8)),
    )
    for steps, name in ((1, "Counter.first"), (5, "Counter.value")):
        finding = told(execution(*trace, pauses=(preempted(steps, 0),)))
        assert finding.message.startswith(f"Lost update on {name}:")
        assert finding.evidence.preemptions == 1


def test_the_lock_that_is_let_go_of_in_between_is_named():
    look, act = read(0, 7, held=(LOCK,)), write(0, 8, "1", held=(LOCK,))
    trace = (lock(0, 6, "acquire"), look, read(1, 7), write(1, 8, held=(LOCK,)), act)
    (finding, half) = (
        told(execution(*trace)),
        told(execution(*trace[:1], look._replace(held=()), *trace[2:])),
    )
    assert finding.evidence.violation.released == "self.lock"
    assert half.evidence.violation.released is None
    assert half.evidence.violation.late == "self.lock"
    assert finding.evidence.repair.startswith("hold self.lock from")


# --- check-then-act -------------------------------------------------------------------------------


def test_a_check_whose_answer_is_old():
    check = read(0, 7, "None", text="if self.value is None:")
    other = read(1, 7, "None", text="if self.value is None:")
    finding = told(execution(check, other, write(1, 8, "None", "1"), write(0, 8, "1", "2")))
    assert finding.message == (
        "Check-then-act on Counter.value: both threads looked at it before either changed it."
    )


def test_a_container_that_was_looked_at_and_changed():
    look = on_items(0, 7, "self.items", "container read")._replace(line="while self.items:")
    trace = (
        *(read(0, 7, key="items"), look, on_items(1, 8, "self.items.pop()", "container write")),
        on_items(0, 8, "self.items.pop()", "container write"),
    )
    finding = told(execution(*trace), raised(IndexError("pop from empty list")))
    assert finding.message == (
        "Check-then-act on Counter.items: thread 0 looked at it, thread 1 changed it, and thread 0 "
        "acted on what it had seen."
    )
    assert finding.kind == "exception"
    assert not finding.evidence.violation.overwrites


def test_a_use_after_a_change_counts_where_it_raises():
    trace = read(0, 7, "True"), write(1, 20, "True", "False", text="self.value = False"), read(0, 9)
    finding = told(execution(*trace), raised(ValueError("closed")))
    assert finding.message.endswith("thread 1 changed it, and thread 0 used it all the same.")
    assert told(execution(*trace)).message == "It is 1."
    assert told(execution(*trace), raised(ValueError("closed"), thread=1)).message == (
        "ValueError: closed"
    )


def test_what_is_checked_again_is_no_old_answer():
    check = read(0, 7, text="while self.value < 2:")
    trace = check, write(1, 20), check, write(0, 8, "1", "2")
    assert told(execution(*trace)).evidence.violation is None


# --- names ----------------------------------------------------------------------------------------


def named(step):
    (move,) = told(execution(step)).evidence.moves
    return move.target


def test_locations_are_named_as_in_the_source():
    key = {"key": "'k'", "label": "dict"}
    item = on_items(0, 7, "", "item read")._replace(**key)
    assert named(read(0, 7)) == "Counter.value"
    assert named(item._replace(place=place(7, "'k' not in cache"))) == "cache['k']"
    assert named(item._replace(place=place(7, "cache['k']"))) == "cache['k']"
    assert named(item._replace(place=place(7, "cache.get('k')"))) == "cache['k']"
    assert named(on_items(0, 7, "len(rows[0])", "container read")) == "rows[0]"
    assert named(item._replace(op="global read", label="app.state", key="total")) == "state.total"
    assert named(item._replace(op="cell read", label="cell", key="n")) == "n"
    assert named(lock(0, 7, "acquire", source="with LOCK:")) == "LOCK"


def test_a_line_is_shown_where_it_says_what_was_touched():
    def shown(step, *others):
        return told(execution(step, *others)).evidence.moves[0].line

    assert shown(read(0, 7, text="temp = self.value  # look")) == "temp = self.value"
    assert shown(read(0, 7, text="total = (self.value")) == "self.value"
    assert shown(read(0, 7, text="self.value; close()")) == "self.value"
    assert shown(read(0, 7, text="def get(self): return self.value")) == "self.value"
    several = read(0, 7, text="print(self.value, self.other)")
    assert shown(several) == "print(self.value, self.other)"
    shared = write(1, 9), write(1, 10, key="other"), several._replace(key="other")
    assert shown(several, *shared) == "self.value"
    assert shown(lock(0, 7, "acquire")) == "acquires self.lock"
    over_lines = read(0, 7, text="x = (")._replace(place=place(7, "self\n    .value"))
    assert shown(over_lines) == "self .value"


# --- why a thread did not go on -------------------------------------------------------------------


def test_a_switch_is_a_preemption_only_where_the_thread_could_go_on():
    steps = read(0, 7), read(1, 7), write(1, 8), write(0, 8)
    waits = {"ready": False, "operation": "acquire", "source": "self.lock", "by": 1}
    ends = preempted(3, 1, ready=False, ended=True)

    def pauses(first, *thrown):
        evidence = told(execution(*steps, pauses=(first, ends), thrown=thrown)).evidence
        return evidence.preemptions, [move.pause for move in evidence.moves[:3]]

    assert pauses(preempted(1, 0)) == (1, ["preempted", None, "done"])
    assert pauses(preempted(1, 0, **waits)) == (
        0,
        ["waits for self.lock, held by thread 1", None, "done"],
    )
    joins = {"ready": False, "operation": "join", "by": 1}
    assert pauses(preempted(1, 0, **joins))[1][0] == "waits for thread 1 to end"
    gets = {"ready": False, "operation": "get", "source": "jobs.get()"}
    assert pauses(preempted(1, 0, **gets))[1][0] == "waits in jobs.get()"
    assert pauses(preempted(1, 0), Thrown("body", 1, KeyError("x")))[1][2] == "raises KeyError"


def test_a_thread_that_goes_on_itself_was_not_preempted():
    evidence = told(execution(read(0, 7), write(0, 8), pauses=(preempted(1, 0),))).evidence
    assert evidence.preemptions == 0
    assert [move.pause for move in evidence.moves] == [None, None]


# --- executions that do not end -------------------------------------------------------------------


def waiting(thread, lock=None, by=None, holds=(), **changes):
    return Waiting(
        **{
            "thread": thread,
            "name": f"body-{thread}",
            "daemon": False,
            "operation": "acquire",
            "kind": "Lock",
            "through": None,
            "place": place(10 + thread, f"self.lock_{lock}"),
            "lock": lock,
            "by": by,
            "taken": None,
            "holds": tuple(
                Holding(lock=each, kind="Lock", place=place(5, f"self.lock_{each}"))
                for each in holds
            ),
            "stack": (),
            **changes,
        }
    )


def stuck(*states, outcome="deadlock", trace=()):
    finding = told(execution(*trace, outcome=outcome, waiting=states))
    assert finding.kind == outcome
    return finding


def test_two_locks_in_two_orders():
    finding = stuck(waiting(0, lock=2, by=1, holds=(1,)), waiting(1, lock=1, by=0, holds=(2,)))
    assert finding.message == (
        "Deadlock: thread 0 and thread 1 each hold the lock that the other waits for."
    )
    assert "here: self.lock_1, then self.lock_2" in finding.evidence.repair
    assert [state.waits_for.name for state in finding.evidence.blocked] == [
        "self.lock_2",
        "self.lock_1",
    ]


def test_two_locks_of_one_name_have_no_order_by_name():
    def crossing(thread, wanted, had):
        held = Holding(lock=had, kind="Lock", place=place(5, "self.lock"))
        state = waiting(thread, lock=wanted, by=1 - thread, place=place(10, "self.lock"))
        return replace(state, holds=(held,))

    finding = stuck(crossing(0, wanted=2, had=1), crossing(1, wanted=1, had=2))
    assert "such as that of their objects' ids" in finding.evidence.repair


def test_a_thread_joins_one_that_waits_for_its_lock():
    joins = {"operation": "join", "kind": "Thread"}
    finding = stuck(waiting(0, by=1, holds=(1,), **joins), waiting(1, lock=1, by=0))
    assert finding.message == (
        "Deadlock: thread 0 waits for thread 1 to end; thread 1 waits for self.lock_1, held by "
        "thread 0."
    )


def test_a_queue_that_nobody_fills():
    gets = {"operation": "wake up", "kind": "Condition", "through": "Queue.get"}
    finding = stuck(waiting(0, **gets), outcome="lost-wakeup")
    assert finding.message == (
        "Lost wake-up: thread 0 waits in Queue.get, and nobody is left to wake it."
    )
    assert finding.evidence.repair is None


def test_a_notification_that_came_too_early():
    state = waiting(0, operation="wake up", kind="Condition")
    source = "self.condition"
    early = lock(1, 9, "notify", source=f"{source}.notify()")
    late = lock(0, 7, "wait", source=f"{source}.wait()")
    finding = stuck(state, outcome="lost-wakeup", trace=(early, late))
    assert finding.message == (
        "Lost wake-up: thread 1 notified self.condition before thread 0 waited for it, and nobody "
        "is left to do so again."
    )
    other = stuck(state, outcome="lost-wakeup", trace=(late, early))
    assert "thread 0 waits in Condition.wait" in other.message


def test_a_notification_that_woke_another_thread_was_not_lost():
    state = waiting(0, operation="wake up", kind="Condition")
    other = replace(state, thread=2)
    steps = [
        lock(t, 9, op, source=f"self.condition.{op}()")
        for t, op in ((2, "wait"), (1, "notify"), (2, "wake up"), (0, "wait"), (2, "wait"))
    ]
    finding = stuck(state, other, outcome="lost-wakeup", trace=steps)
    assert finding.message == (
        "Lost wake-up: threads 0 and 2 wait in Condition.wait, and nobody is left to wake them."
    )
    assert finding.evidence.repair.startswith("`notify_all`")


def test_an_answer_that_is_old_after_a_wait_is_asked_for_again():
    look = on_items(0, 7, "self.items", "container read")._replace(line="if not self.items:")
    take = on_items(1, 9, "self.items.pop()", "container write")
    wake = lock(0, 8, "wake up", source="self.condition.wait()")
    trace = look, on_items(2, 5, "self.items.append(1)", "container write"), take, wake
    finding = told(
        execution(*trace, take._replace(thread=0)), raised(IndexError("pop from empty list"))
    )
    assert finding.message == (
        "Check-then-act on self.items: thread 0 looked at it, thread 1 changed it, and thread 0 "
        "acted on what it had seen."
    )
    assert finding.evidence.repair == "look again after each wait, with `while` (counter.py:7)."


def test_a_loop_that_looks_again_uses_no_old_answer():
    check = read(0, 7, "False", text="if self.value:")
    trace = check, write(1, 20, "False", "True"), check._replace(before="True")
    assert told(execution(*trace), raised(ValueError("no"))).message == "ValueError: no"


def test_locks_in_a_container_are_told_apart():
    def crossing(thread, wanted, had):
        held = Holding(lock=had, kind="Lock", place=place(5, f"self.locks[{had}]"))
        state = waiting(thread, lock=wanted, by=1 - thread, place=place(9, f"self.locks[{wanted}]"))
        return replace(state, holds=(held,))

    finding = stuck(crossing(0, wanted=2, had=1), crossing(1, wanted=1, had=2))
    assert "here: self.locks[1], then self.locks[2]" in finding.evidence.repair


def test_a_livelock_says_where_it_goes_round():
    again = (read(0, 7), read(1, 9), read(1, 8)) * 100
    finding = told(execution(read(0, 1), *again, outcome="livelock", changed=0))
    assert finding.message == (
        "Livelock: nothing changes after 0 steps, and nothing ends; thread 0 goes round in "
        "counter.py:7; thread 1 goes round in counter.py:8, counter.py:9."
    )


def test_a_livelock_that_changes_something_has_no_end():
    again = (write(0, 7, "1", "2"), write(1, 9, "2", "1")) * 100
    finding = told(execution(read(0, 1), *again, outcome="livelock", changed=200))
    assert finding.message == (
        "Livelock: no end after 201 steps; thread 0 goes round in counter.py:7; thread 1 goes "
        "round in counter.py:9."
    )


def test_a_livelock_in_which_nothing_comes_again_says_so_much_only():
    once = [read(0, line) for line in range(1, 400)]
    assert told(execution(*once, outcome="livelock", changed=399)).message == (
        "Livelock: no end after 399 steps."
    )


def test_the_call_names_the_bodies():
    assert told(execution()).evidence.call == (
        'replay("ft1:0x1", Counter.increment, threads=2, ...)'
    )
