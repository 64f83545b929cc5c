"""A model machine: programs of a few operations, interpreted one step at a time, without threads.

A body is a generator function that takes the machine and yields operations; the value of each comes
back from `yield`. What a body will do next is announced before it happens, as in a real execution.
"""

from pytest_freethread.scheduling import Pending


class Thing:
    """An object of the program: a cell, a dict, a list, a lock, …"""

    def __init__(self, value=None):
        self.value = value
        self.waiters = []


class Operation:
    def __init__(self, obj, key, write, act, able=None, *, site=None):
        self.obj = obj
        self.key = key
        self.write = write
        self.act = act
        self.able = able
        self.site = site
        self.until = None  # when it can be made, if nobody else can run before


class Machine:
    """One execution of a program.

    Args:
        bodies: what the first threads do.
        state: name → initial value; a dict or a list is copied, None makes a lock, an int after
            `sem:` a semaphore.
        announced: whether a thread says at once what it will do first; otherwise it does so in a
            first step that touches nothing.
    """

    def __init__(self, bodies, state, announced=True):
        self.things = {
            name: Thing(value.copy() if isinstance(value, dict | list) else value)
            for name, value in state.items()
        }
        self.bodies = bodies
        self.state = state
        self.announced = announced
        self.threads = []  # thread objects, whose value says whether they have ended
        self.generators = []
        self.operations = []
        self.pending = []
        self.results = []
        self.trace = []
        self.running = None
        self.names = []  # who started it, and as its how many-th child: does not depend on the order
        for body in bodies:
            self.spawn(body)

    def spawn(self, body):
        thread = Thing(False)
        parent = () if self.running is None else self.names[self.running]  # () for the first
        children = sum(name[:-1] == parent for name in self.names)
        self.names.append((*parent, children))
        self.threads.append(thread)
        self.generators.append(self.whole(body, thread, joinable=bool(parent)))
        self.operations.append(None)
        self.pending.append(None)
        self.results.append(None)
        if self.announced:
            self.advance(len(self.threads) - 1, None)
        return thread

    def whole(self, body, thread, joinable):
        result = yield from body(self)
        self.results[self.threads.index(thread)] = result
        if joinable:
            yield Operation(thread, None, True, lambda: setattr(thread, "value", True), site=-1)

    def advance(self, index, value):
        generator = self.generators[index]
        try:
            operation = generator.send(value)
        except StopIteration:
            self.operations[index] = self.generators[index] = self.pending[index] = None
            return
        site = operation.site
        if site is None:
            while generator.gi_yieldfrom is not None:
                site, generator = generator.gi_frame.f_lineno, generator.gi_yieldfrom
            site = generator.gi_frame.f_lineno
        self.operations[index] = operation
        self.pending[index] = Pending(operation.obj, operation.key, operation.write, site)

    def enabled(self):
        awake, sleepers = [], []
        for index, generator in enumerate(self.generators):
            operation = self.operations[index]
            if generator is None or (operation and operation.able and not operation.able()):
                continue
            if operation and operation.until is not None:
                sleepers.append((operation.until, index))
            else:
                awake.append(index)
        return awake or [index for until, index in sorted(sleepers) if until == min(sleepers)[0]]

    def run(self, scheduler, steps=100_000):
        """Run until nobody can; returns what came out."""
        current = None
        while (enabled := self.enabled()) and len(self.trace) < steps:
            current = scheduler.choose(enabled, current, self.pending)
            assert current in enabled
            self.step(current)
        return self.outcome()

    def step(self, index):
        self.running = index
        operation = self.operations[index]
        self.trace.append((index, self.pending[index]))
        self.advance(index, operation.act() if operation is not None else None)

    def outcome(self):
        named = sorted(
            zip(self.names, self.generators, self.results, strict=True), key=lambda n: n[0]
        )
        stuck = tuple(name for name, generator, _ in named if generator is not None)
        results = tuple((name, result) for name, _, result in named)
        state = tuple((name, freeze(thing.value)) for name, thing in self.things.items())
        return ("deadlock" if stuck else "end", stuck, state, results)

    # operations

    def read(self, name, **at):
        thing = self.things[name]
        return Operation(thing, None, False, lambda: thing.value, **at)

    def write(self, name, value, **at):
        thing = self.things[name]
        return Operation(thing, None, True, lambda: setattr(thing, "value", value), **at)

    def get(self, name, key, **at):
        thing = self.things[name]
        return Operation(thing, key, False, lambda: thing.value.get(key), **at)

    def put_item(self, name, key, value, **at):
        thing = self.things[name]
        return Operation(thing, key, True, lambda: thing.value.__setitem__(key, value), **at)

    def delete(self, name, key, **at):
        thing = self.things[name]
        return Operation(thing, key, True, lambda: thing.value.pop(key, None), **at)

    def contains(self, name, key, **at):
        thing = self.things[name]
        return Operation(thing, key, False, lambda: key in thing.value, **at)

    def snapshot(self, name, **at):
        thing = self.things[name]
        return Operation(thing, None, False, lambda: freeze(thing.value), **at)

    def append(self, name, value, **at):
        thing = self.things[name]
        return Operation(thing, None, True, lambda: thing.value.append(value), **at)

    def pop(self, name, **at):
        thing = self.things[name]
        return Operation(
            thing, None, True, lambda: thing.value.pop() if thing.value else None, **at
        )

    def lock(self, name, **at):
        thing = self.things[name]
        return Operation(
            thing, None, True, lambda: setattr(thing, "value", True),
            lambda: not thing.value, **at,
        )  # fmt: skip

    def unlock(self, name, **at):
        thing = self.things[name]
        return Operation(thing, None, True, lambda: setattr(thing, "value", None), **at)

    def acquire(self, name, **at):
        thing = self.things[name]
        return Operation(
            thing, None, True, lambda: setattr(thing, "value", thing.value - 1),
            lambda: thing.value > 0, **at,
        )  # fmt: skip

    def release(self, name, **at):
        thing = self.things[name]
        return Operation(thing, None, True, lambda: setattr(thing, "value", thing.value + 1), **at)

    def wait(self, condition, lock, site=None):
        """To wait: enlist, let go of the lock, sleep until notified, take the lock."""
        thing = self.things[condition]
        ticket = [False]
        at = [{"site": None if site is None else site * 10 + i} for i in range(4)]
        yield Operation(thing, None, True, lambda: thing.waiters.append(ticket), **at[0])
        yield self.unlock(lock, **at[1])
        yield Operation(thing, None, True, lambda: None, lambda: ticket[0], **at[2])
        yield self.lock(lock, **at[3])

    def notify(self, condition, count=1, **at):
        thing = self.things[condition]

        def act():
            for ticket in thing.waiters[:count]:
                ticket[0] = True
            del thing.waiters[:count]

        return Operation(thing, None, True, act, **at)

    def put(self, name, value, **at):
        thing = self.things[name]
        return Operation(thing, None, True, lambda: thing.value.append(value), **at)

    def take(self, name, **at):
        thing = self.things[name]
        return Operation(
            thing, None, True, lambda: thing.value.pop(0), lambda: bool(thing.value), **at
        )

    def sleep(self, seconds, site=None):
        """To sleep: say until when, then wake up once nobody else can run. Time is a number."""
        clock = self.things["clock"]
        until = []
        at = [{"site": None if site is None else site * 10 + i} for i in range(2)]
        yield Operation(clock, None, True, lambda: until.append(clock.value + seconds), **at[0])
        wake_up = Operation(clock, None, True, lambda: setattr(clock, "value", until[0]), **at[1])
        wake_up.until = until[0]
        yield wake_up

    def start(self, body, **at):
        # The object exists before the thread does, so that starting it can be announced.
        return Operation(Thing(), None, True, lambda: self.spawn(body), **at)

    def join(self, thread, **at):
        return Operation(thread, None, True, lambda: None, lambda: thread.value, **at)


def freeze(value):
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value


class Script:
    """A scheduler that follows a list, then takes the first thread that can run."""

    def __init__(self, choices):
        self.choices = choices
        self.step = 0
        self.options = []

    def choose(self, enabled, current, pending):
        del current, pending
        step = self.step
        self.step += 1
        self.options.append(enabled)
        return self.choices[step] if step < len(self.choices) else enabled[0]


def brute_force(program, most=None):
    """Every interleaving of a program, naively: each outcome, and each class of equivalent traces.

    Returns:
        outcomes, classes and the number of interleavings; None if there are more than `most`.
    """
    outcomes, classes = set(), set()
    todo = [[]]
    count = 0
    while todo:
        choices = todo.pop()
        script = Script(choices)
        machine = program()
        outcomes.add(machine.run(script))
        classes.add(trace_class(machine))
        count += 1
        if most is not None and count > most:
            return None
        taken = [thread for thread, _ in machine.trace]
        for step in range(len(choices), len(taken)):
            todo += [[*taken[:step], other] for other in script.options[step][1:]]
    return outcomes, classes, count


def trace_class(machine):
    """What equivalent interleavings have in common: the order of dependent operations."""
    counts = {}
    users = {}
    order = set()
    for index, operation in machine.trace:
        thread = machine.names[index]
        counts[thread] = number = counts.get(thread, -1) + 1
        if operation is not None:
            earlier = users.setdefault(id(operation.obj), [])
            for other, its_number, first in earlier:
                if other != thread and conflict(first, operation):
                    order.add((other, its_number, thread, number))
            earlier.append((thread, number, operation))
    return frozenset(order), tuple(sorted(counts.items()))


def conflict(a, b):
    """Written down once more, so that the strategies are not measured by their own ruler."""
    if a.obj is not b.obj:
        return False
    if not (a.write or b.write):
        return False
    return a.key is None or b.key is None or a.key == b.key


def explore(program, scheduler, most=1_000_000):
    """All executions that a scheduler wants, as pairs of outcome and trace."""
    runs = []
    while len(runs) < most and scheduler.begin():
        machine = program()
        runs.append((machine.run(scheduler), machine))
        scheduler.end()
    return runs
