"""DPOR against brute force on generated programs in Python, through probes, models and the kernel.

Every outcome that some order of the steps has is one that DPOR comes to, in no more executions.
"""

import random
import textwrap

import pytest

from pytest_freethread.execution.controlled import Controlled
from pytest_freethread.scheduling import DFS, DPOR

PROGRAMS = 248
MOST = 600  # executions by brute force; a larger program is passed over

STATE = """
    import threading

    class State:
        def __init__(self):
            self.x = self.y = 0
            self.d, self.l = {}, []
            self.a, self.b = threading.Lock(), threading.Lock()
            self.changed = threading.Condition()

    setup = State
"""
STATEMENTS = (
    "s.x = {n}",
    "s.x += {n}",
    "s.y = s.x",
    "s.d[{k}] = {n}",
    "s.d[{k}] = s.d.get({k}, 0) + 1",
    "s.y += {k} in s.d",
    "s.y = len(s.d)",
    "s.d.pop({k}, None)",
    "s.l.append({n})",
    "s.y += len(s.l)",
    "s.x = s.l[-1] if s.l else 0",
    "s.x = sum(s.l)",
)
BLOCKS = (
    "with s.a:\n    {0}",
    "with s.b:\n    {0}",
    "with s.a, s.b:\n    {0}",
    "with s.b, s.a:\n    {0}",
    "if {k} not in s.d:\n    s.d[{k}] = {n}\n    {0}",
    "with s.changed:\n    if not s.x:\n        s.changed.wait()\n    {0}",
    "with s.changed:\n    s.x = {n}\n    s.changed.notify()",
    "{0}",
    "{0}",
)


def generated(seed):
    """The source of a program: 2 or 3 threads, some statements each."""
    draw = random.Random(seed)
    threads = draw.choice((2, 2, 3))
    lines = [textwrap.dedent(STATE)]
    for thread in range(threads):
        lines.append(f"def body_{thread}(s):")
        for _ in range(draw.randint(1, 2 if threads == 2 else 1)):
            numbers = {"n": draw.randint(1, 3), "k": repr(draw.choice("pq"))}
            statement = draw.choice(STATEMENTS).format(**numbers)
            block = draw.choice(BLOCKS).format(statement, **numbers)
            lines.append(textwrap.indent(block, "    "))
    lines.append(f"threads = [{', '.join(f'body_{thread}' for thread in range(threads))}]")
    return "\n".join(lines)


def outcomes(control, module, make_scheduler):
    """What a program can come to, and after how many executions all of it was tried."""
    seen, states, executions = set(), [], 0
    scheduler = make_scheduler()

    def setup():
        states.append(module.setup())
        return states[-1]

    while scheduler.begin():
        execution = control.run(module.threads, scheduler.choose, setup=setup)
        scheduler.end()
        executions += 1
        if executions > MOST:
            return None, executions
        if execution.widened:
            scheduler, seen, executions = make_scheduler(), set(), 0
            continue
        state = states.pop()
        errors = tuple(type(each.exception).__name__ for each in execution.thrown)
        seen.add((execution.outcome, errors, state.x, state.y, str(state.d), str(state.l)))
    return seen, executions


@pytest.mark.parametrize("part", range(8))
def test_reduction_loses_no_outcome_of_a_generated_program(make_module, part):
    tried = 0
    sources = [generated(seed) for seed in range(part, PROGRAMS, 8)]
    modules = [make_module(source) for source in sources]
    with Controlled(modules) as control:
        for source, module in zip(sources, modules, strict=True):
            expected, executions = outcomes(control, module, DFS)
            if expected is None:
                continue
            tried += 1
            found, fewer = outcomes(control, module, DPOR)
            assert found == expected, source
            assert fewer <= executions, source
    assert tried >= 25  # of 31
