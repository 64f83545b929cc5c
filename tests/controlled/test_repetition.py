"""What is repeated is not written down, and nothing is lost by that."""

import pytest
from choosers import stay

from pytest_freethread.execution import kernel, repetition
from pytest_freethread.execution.controlled import Controlled
from pytest_freethread.instrument.effects import ATTRIBUTE_READ, ATTRIBUTE_WRITE

ROUNDS = 2_000  # more than are expected at one go

PROGRAM = """
    import threading

    class State:
        def __init__(self):
            self.lock, self.other = threading.Lock(), threading.Lock()
            self.value = self.odd = 0
            self.items = {{"a": 0}}
            self.node = None

    class Node:
        def __init__(self, value):
            self.value = value

    def setup():
        return State()

    def body(state):
        for i in range({rounds}):
            {loop}
        state.odd += 1

    threads = [body, body]
"""

LOOPS = {
    "a lock": """
            with state.lock:
                state.value += 1
    """,
    "no lock": """
            state.value += 1
    """,
    "an item": """
            state.items["a"] = state.items["a"] + 1
    """,
    "a lock in a lock": """
            with state.lock:
                with state.other:
                    state.value += 1
                state.odd = 1
    """,
    "something else now and then": """
            with state.lock:
                state.value += 1
            if i % 97 == 5:
                state.odd = i
    """,
    "a lock now and then": """
            if i % 50 == 7:
                with state.lock:
                    state.value += 1
            else:
                state.value += 1
    """,
    "another key each time": """
            state.items[i] = state.value
            state.value = i
    """,
    "another object each time": """
            state.node = Node(i)
            state.value = state.node.value
    """,
    "a lock that is asked for": """
            if state.lock.acquire(timeout=5):
                state.value += 1
                state.lock.release()
    """,
    "a body that fails": """
            with state.lock:
                state.value += 1
                if i == 777:
                    raise KeyError(i)
    """,
}


def heard(module, **options):
    """All events of an execution in which whoever runs goes on, and the execution."""
    events = []
    with Controlled([module]) as controlled:
        for _ in range(2):  # at first it is not known yet what is shared
            events.clear()
            execution = controlled.run(
                module.threads,
                stay,
                setup=module.setup,
                max_steps=options.get("max_steps", 10**6),
                stays=True,
                hear=events.extend,
            )
    return events, execution


def at_length(events):
    """The same with everything that was repeated."""
    written = []
    for event in events:
        if event[3] == "again":
            block = repetition.repeated(written)
            assert event[1] % len(block) == 0
            written += list(block) * (event[1] // len(block))
        else:
            written.append(event)
    return written


@pytest.mark.parametrize("loop", LOOPS)
def test_an_execution_is_told_the_same_with_what_is_repeated(make_module, monkeypatch, loop):
    module = make_module(PROGRAM.format(rounds=ROUNDS, loop=LOOPS[loop].strip()))
    events, execution = heard(module)
    monkeypatch.setattr(kernel, "repeated", lambda _: None)
    all_events, plain = heard(module)
    assert not any(event[3] == "again" for event in all_events)
    assert at_length(events) == all_events
    assert execution.steps == plain.steps
    assert execution.schedule == plain.schedule
    assert execution.outcome == plain.outcome
    assert [repr(each) for each in execution.thrown] == [repr(each) for each in plain.thrown]


@pytest.mark.parametrize("loop", ["a lock", "no lock", "an item", "a lock in a lock"])
def test_what_is_repeated_is_not_written_down(make_module, loop):
    module = make_module(PROGRAM.format(rounds=ROUNDS, loop=LOOPS[loop].strip()))
    events, execution = heard(module)
    assert len(events) < execution.steps / 8


def test_a_loop_without_end_is_a_livelock(make_module):
    module = make_module(PROGRAM.format(rounds=10**9, loop=LOOPS["a lock"].strip()))
    _, execution = heard(module, max_steps=20_000)
    assert execution.outcome == "livelock"
    assert 20_000 <= execution.steps < 30_000


READ = 0, 1, "value", ATTRIBUTE_READ, 5
WRITE = 0, 1, "value", ATTRIBUTE_WRITE, 6
OTHERS = 1, 1, "value", ATTRIBUTE_WRITE, 6
END = 0, 1, None, "gone", -1
START = 0, 2, None, "fork", -1


@pytest.mark.parametrize(
    ("events", "block"),
    [
        ([READ, WRITE, READ, WRITE], [READ, WRITE]),
        ([WRITE, WRITE], [WRITE]),
        ([OTHERS, READ, WRITE, READ, WRITE], [READ, WRITE]),
        ([READ, WRITE, READ], None),
        ([WRITE], None),
        ([READ, READ, READ, READ], None),
        ([OTHERS, WRITE, OTHERS, WRITE], None),
        ([READ, WRITE, END, READ, WRITE, END], None),
        ([START, WRITE, START, WRITE], None),
    ],
)
def test_a_round_is_what_one_thread_did_twice_and_changed_something(events, block):
    assert repetition.repeated(events) == block


def test_who_has_a_lock_is_known_once_a_repetition_ends(make_module):
    module = make_module("""
        import threading

        class State:
            def __init__(self):
                self.lock, self.other = threading.Lock(), threading.Lock()
                self.value = 0

        setup = State

        def body(state):
            state.other.acquire()
            for i in range(1_000):
                with state.lock:
                    state.value += 1
                    if i == 500:
                        state.other.acquire()

        threads = [body]
    """)
    _, execution = heard(module)
    assert execution.outcome == "deadlock"
    (waiting,) = execution.waiting
    assert [each.place.source for each in waiting.holds] == [
        "state.other.acquire()",
        "state.lock",
    ]
    assert waiting.taken == waiting.holds[0].place
