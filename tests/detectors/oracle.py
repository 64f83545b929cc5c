"""A machine so simple that it is surely right, and what is true of a program on it.

A program is a list of threads, a thread a list of operations: tuples such as `("write", "x")`. All
variables are 0 at first and 1 once written. `("if", "x", n)` reads x and skips the next n
operations where it is 0; `("try", "L", n)` and `("pop", "Q", n)` skip where the lock is taken or
the queue empty. Threads that some operation starts wait for that.
"""

from __future__ import annotations

from typing import NamedTuple

from pytest_freethread.detectors import order, races

PLAIN = {"read": races.READ, "if": races.READ, "write": races.WRITE}
WHOLE = {
    "push": races.WHOLE | races.ATOMIC | races.WRITE,
    "pop": races.WHOLE | races.ATOMIC | races.WRITE,
    "size": races.WHOLE | races.ATOMIC,
    "step": races.WHOLE,
}
ITEM = {
    "look up": races.ITEM,
    "store": races.ITEM | races.WRITE,
    "get": races.ITEM | races.ATOMIC,
    "setdefault": races.ITEM | races.ATOMIC | races.WRITE,
}
SYNCHRONISATION = {
    "acquire": order.LOCK_EFFECTS["acquire"],
    "release": order.LOCK_EFFECTS["release"],
    "set": order.EFFECTS["set"],
    "wait": order.EFFECTS["wait"],
    "up": order.EFFECTS["release"],
    "down": order.EFFECTS["acquire"],
    "end": order.EFFECTS["end"],
    "join": order.EFFECTS["join"],
    "try": order.LOCK_EFFECTS["acquire"],
}


class Step(NamedTuple):
    """What was done; `site` is the same for the same operation of the program."""

    thread: int
    site: int
    op: tuple
    done: bool  # False for an attempt that failed


class Machine:
    """A state of a program; `copy` to go on in several ways."""

    def __init__(self, program):
        self.program = program
        self.pcs = [0] * len(program)
        self.started = set(range(len(program))) - {
            op[1] for ops in program for op in ops if op[0] == "start"
        }
        self.values = {}
        self.owners = {}

    def copy(self):
        other = Machine.__new__(Machine)
        other.program = self.program
        other.pcs = list(self.pcs)
        other.started = set(self.started)
        other.values = dict(self.values)
        other.owners = dict(self.owners)
        return other

    def key(self):
        values = frozenset((name, value) for name, value in self.values.items() if value)
        return (
            tuple(self.pcs),
            frozenset(self.started),
            values,
            frozenset(self.owners.items()),
        )

    def next_op(self, thread):
        ops, pc = self.program[thread], self.pcs[thread]
        if thread not in self.started or pc > len(ops):
            return None
        return ops[pc] if pc < len(ops) else ("end", f"thread {thread}")

    def ended(self, thread):
        return self.pcs[thread] > len(self.program[thread])

    def can(self, thread):
        match self.next_op(thread):
            case None:
                return False
            case "acquire", lock, *_:
                return lock not in self.owners
            case (("wait" | "down"), name, *_):
                return self.values.get(name, 0) > 0
            case "join", other, *_:
                return self.ended(other)
        return True

    def ready(self):
        return [thread for thread in range(len(self.program)) if self.can(thread)]

    def step(self, thread):
        op = self.next_op(thread)
        pc = self.pcs[thread]
        self.pcs[thread] += 1
        name = op[1]
        value = self.values.get(name, 0)
        done = True
        match op[0]:
            case "write" | "set" | "store":
                self.values[name] = 1
            case "push" | "up":
                self.values[name] = value + 1
            case "down":
                self.values[name] = value - 1
            case "acquire":
                self.owners[name] = thread
            case "release":
                del self.owners[name]
            case "start":
                self.started.add(name)
            case "if":
                self.pcs[thread] += 0 if value else op[2]
            case "pop":
                done = value > 0
                self.values[name] = max(0, value - 1)
                self.pcs[thread] += 0 if done else op[2]
            case "try":
                done = name not in self.owners
                if done:
                    self.owners[name] = thread
                else:
                    self.pcs[thread] += op[2]
        return Step(thread, 100 * thread + pc, op, done)


def any_run(program, random):
    """One schedule, drawn: its steps, and the machine where it could not go on."""
    machine, steps = Machine(program), []
    while ready := machine.ready():
        steps.append(machine.step(random.choice(ready)))
    return steps, machine


def all_runs(program):
    """The steps of every schedule."""
    stack = [(Machine(program), ())]
    while stack:
        machine, steps = stack.pop()
        ready = machine.ready()
        if not ready:
            yield steps
        for thread in ready:
            other = machine.copy()
            stack.append((other, (*steps, other.step(thread))))


def reachable(program):
    """Every state once."""
    stack, seen = [Machine(program)], set()
    while stack:
        machine = stack.pop()
        if machine.key() in seen:
            continue
        seen.add(machine.key())
        yield machine
        for thread in machine.ready():
            other = machine.copy()
            other.step(thread)
            stack.append(other)


def clash(one, other):
    """Whether two operations race where they meet; said once more, without the judge's words."""
    if one is None or other is None or one[1] != other[1]:
        return False
    kinds = {one[0], other[0]}
    if kinds <= PLAIN.keys():
        return "write" in kinds
    if kinds <= ITEM.keys():
        return bool(kinds & {"store", "setdefault"}) and not kinds <= {"get", "setdefault"}
    return "step" in kinds and bool(kinds & {"push", "pop", "store", "setdefault"})


def real_races(program):
    """Pairs of sites that threads can stand before at the same moment, and that clash."""
    found = set()
    for machine in reachable(program):
        threads = range(len(program))
        for one in threads:
            for other in threads[one + 1 :]:
                if clash(machine.next_op(one), machine.next_op(other)):
                    found.add((100 * one + machine.pcs[one], 100 * other + machine.pcs[other]))
    return found


def tell(listener, steps):
    """Have a judge hear a run; yields what it answers to each access."""
    numbers = {}
    for thread, site, op, done in steps:
        kind, name = op[0], op[1]
        obj = numbers.setdefault(f"thread {name}" if kind == "join" else name, len(numbers))
        if kind in PLAIN:
            yield listener.access(thread, obj, "value", PLAIN[kind], site)
        elif kind in ITEM:
            yield listener.access(thread, obj, "key", ITEM[kind], site)
        elif kind in WHOLE:
            yield listener.access(thread, obj, None, WHOLE[kind], site)
        elif kind == "start":
            listener.fork(thread, name)
        else:
            effect = SYNCHRONISATION[kind] if done else order.ACQUIRE
            listener.synchronise(thread, obj, effect, site)


def judged(steps, threads):
    """What the judge of races says of a run: the clashes."""
    return [clash for found in tell(races.Races(threads), steps) for clash in found]


def sites(clash):
    return tuple(sorted((clash.earlier.site, clash.later.site)))


def drawn_program(random, *, threads=3, most=5, variables="xy", locks="KL", rich=True):
    """A small program whose locks are taken and released in pairs, nested, or left open."""

    def access():
        kind = random.choice(["read", "write"] * 2 + ["push", "step", "size", *ITEM] * rich)
        if kind in PLAIN:
            return (kind, random.choice(variables))
        if kind in ITEM:
            return (kind, "D")
        return (kind, random.choice("DQ") if kind in {"step", "size"} else "Q")

    def accesses():
        if not rich or random.random() < 0.6:
            return [access()]
        return [random.choice([("if", random.choice(variables), 1), ("pop", "Q", 1)]), access()]

    def block(budget, held):
        ops = []
        while budget > 0:
            free = [lock for lock in locks if lock not in held]
            roll = random.random()
            if roll < 0.3 and free and budget >= 3:
                lock = random.choice(free)
                inner = block(random.randint(1, budget - 2), [*held, lock])
                if rich and random.random() < 0.25:
                    new = [("try", lock, len(inner) + 1), *inner, ("release", lock)]
                else:
                    new = [("acquire", lock), *inner, ("release", lock)]
            elif roll < 0.4 and rich:
                new = [random.choice([("set", "E"), ("wait", "E"), ("up", "S"), ("down", "S")])]
            else:
                new = accesses()
            ops += new
            budget -= len(new)
        return ops

    program = [block(random.randint(1, most), []) for _ in range(threads)]
    if rich and random.random() < 0.4:
        first = program[0]
        at = random.randint(0, len(first))
        if not any(op[0] in {"if", "pop", "try"} for op in first):
            first.insert(at, ("start", threads - 1))
            if random.random() < 0.5:
                first.insert(random.randint(at + 1, len(first)), ("join", threads - 1))
    return program


def pair(one, other):
    return tuple(sorted((one.site, other.site)))
