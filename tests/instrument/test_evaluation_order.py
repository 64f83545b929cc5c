"""Programs drawn at random do the same, in the same order, with probes in and without."""

import itertools
import random
import re
import sys
import types

import pytest

from pytest_freethread.instrument import probes, swap

ADDRESS = re.compile(" at 0x[0-9a-fA-F]+")


class Log:
    """What the drawn programs act on: each operation leaves a line in the journal."""

    def __init__(self, name, journal):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "journal", journal)

    def __getattr__(self, key):
        if key.startswith("__") and key.endswith("__"):
            raise AttributeError(key)
        self.journal.append(f"{self.name}.{key}")
        if key == "bad":
            raise AttributeError("bad")
        return Log(f"{self.name}.{key}", self.journal)

    def __setattr__(self, key, value):
        self.journal.append(f"{self.name}.{key} = {show(value)}")

    def __delattr__(self, key):
        self.journal.append(f"del {self.name}.{key}")

    def __getitem__(self, key):
        self.journal.append(f"{self.name}[{show(key)}]")
        return Log(f"{self.name}[]", self.journal)

    def __setitem__(self, key, value):
        self.journal.append(f"{self.name}[{show(key)}] = {show(value)}")

    def __delitem__(self, key):
        self.journal.append(f"del {self.name}[{show(key)}]")

    def __contains__(self, key):
        self.journal.append(f"{show(key)} in {self.name}")
        return True

    def __iadd__(self, other):
        self.journal.append(f"{self.name} += {show(other)}")
        return self

    def __add__(self, other):
        self.journal.append(f"{self.name} + {show(other)}")
        return Log(f"({self.name}+)", self.journal)

    def __call__(self, *args, **keywords):
        self.journal.append(f"{self.name}({show(args)}, {show(keywords)})")
        return Log(f"{self.name}()", self.journal)

    def __bool__(self):
        self.journal.append(f"bool {self.name}")
        return len(self.name) % 2 == 0

    def __len__(self):
        self.journal.append(f"len {self.name}")
        return 3

    def __iter__(self):
        self.journal.append(f"iter {self.name}")
        return iter((1, Log(f"{self.name}'", self.journal)))

    def __enter__(self):
        self.journal.append(f"enter {self.name}")
        return self

    def __exit__(self, *error):
        self.journal.append(f"exit {self.name} {error[0]}")

    def __repr__(self):
        return self.name

    def __hash__(self):
        return 7

    def __eq__(self, other):
        return self is other


def show(value, depth=3):
    if isinstance(value, Log):
        return value.name
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        entries = [f"{show(k, depth - 1)}:{show(v, depth - 1)}" for k, v in value.items()]
    elif isinstance(value, slice):
        entries = [show(part, depth - 1) for part in (value.start, value.stop, value.step)]
    elif isinstance(value, (list, tuple, set)):
        entries = [show(entry, depth - 1) for entry in value]
        entries = sorted(entries) if isinstance(value, set) else entries
    elif isinstance(value, (int, str, type(None), float)):
        return repr(value)
    else:
        entries = []
    return f"{type(value).__name__}({','.join(entries)})"


class Draw:
    """Source text of small programs, from a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, *choices):
        return self.random.choice(choices)

    def place(self, depth):
        """Something that can be stored to."""
        return self.one(
            lambda: f"{self.value(depth - 1)}.{self.name()}",
            lambda: f"{self.value(depth - 1)}[{self.key(depth - 1)}]",
            lambda: self.one("x", "y", "shared", "captured"),
            lambda: f"data[{self.value(depth - 1)}]",
        )()

    def name(self):
        return self.one("a", "b", "__private", "append", "get", "bad")

    def key(self, depth):
        return self.one(
            lambda: self.value(depth),
            lambda: f"{self.value(depth)}:{self.value(depth)}",
            lambda: f"{self.value(depth)}:, ...",
            lambda: str(self.random.randrange(-3, 4)),
        )()

    def value(self, depth):
        if depth <= 0:
            return self.one("o", "p", "x", "items", "data", "shared", "captured", "1", "'k'", "bag")
        v = lambda: self.value(depth - 1)  # noqa: E731
        return self.one(
            lambda: f"{v()}.{self.name()}",
            lambda: f"{v()}[{self.key(depth - 1)}]",
            lambda: f"{v()}({v()}, k={v()})",
            lambda: f"{v()}.{self.one('append', 'get', 'pop', 'setdefault', 'add')}({v()})",
            lambda: f"{v()}.{self.one('get', 'pop', 'insert', 'setdefault')}({v()}, {v()})",
            lambda: f"items.{self.one('append', 'remove', 'index', 'extend')}({v()})",
            lambda: f"data.{self.one('get', 'setdefault')}({v()}, {v()})",
            lambda: f"({v()} {self.one('in', 'not in', 'is', '==')} {v()})",
            lambda: f"({v()} < {v()} in {v()})",
            lambda: f"({v()} {self.one('and', 'or')} {v()})",
            lambda: f"(not {v()})",
            lambda: f"({v()} if {v()} else {v()})",
            lambda: f"(x := {v()})",
            lambda: f"(captured := {v()})",
            lambda: f"({v()} + {v()})",
            lambda: f"[{v()}, *{v()}]",
            lambda: "{" + f"{v()}: {v()}, **{{1: {v()}}}" + "}",
            lambda: f"[({v()}, i) for i in {self.quiet(depth - 1)} if {self.quiet(depth - 1)}]",
            lambda: f"{{i: {self.quiet(depth - 1)} for i in (1, 2)}}",
            lambda: f"(lambda z, x=0, captured=0: ({v()}, z))({v()})",
            lambda: f"f'{{{v()}!r:>{{1}}}}'" if sys.version_info >= (3, 12) else v(),
            lambda: f"{self.one('len', 'list', 'tuple', 'sum', 'sorted', 'bool')}({v()})",
            lambda: f"getattr({v()}, 'a', {v()})",
            lambda: f"setattr({v()}, 'b', {v()})",
            lambda: f"enumerate({v()})",
            lambda: f"log({v()}, *{v()}, k={v()})",
        )()

    def quiet(self, depth):
        """An expression that may stand in a comprehension: it binds nothing."""
        return self.value(depth).replace(":=", "==")

    def statement(self, depth):
        v = lambda: self.value(depth)  # noqa: E731
        place = lambda: self.place(depth)  # noqa: E731
        block = lambda: self.block(depth - 1)  # noqa: E731
        simple = (
            lambda: [f"{place()} = {v()}"],
            lambda: [f"{place()} = {place()} = {v()}"],
            lambda: [f"{place()}, {place()} = {v()}, {v()}"],
            lambda: [f"{place()}, ({place()}, *{place()}) = {v()}, [{v()}, {v()}, 1]"],
            lambda: [f"{place()}, {place()} = {v()}"],
            lambda: [f"{place()} += {v()}"],
            lambda: [f"{place()} |= {v()}"],
            lambda: [f"{self.value(1)}.a: {v()} = {v()}"],
            lambda: [f"del {self.value(1)}.a, {self.value(1)}[{self.key(1)}]"],
            lambda: [v()],
            lambda: [f"assert {v()}, {v()}"],
        )
        if depth <= 0:
            return self.one(*simple)()
        return self.one(
            *simple,
            *simple,
            lambda: [f"if {v()}:", *block(), "else:", *block()],
            lambda: [f"for {place()} in {v()}:", *block(), "  if tick(): break"],
            lambda: [f"with {v()} as {place()}, {v()} as {place()}:", *block()],
            lambda: ["try:", *block(), f"except {self.one('TypeError', 'KeyError')}:", *block()],
            lambda: ["def inner(x=0, y=0):", "  nonlocal captured", *block(), "inner()"],
            lambda: ["class Inner:", "  x = y = 0", *block()],
        )()

    def block(self, depth):
        body = [s for _ in range(self.random.randrange(1, 3)) for s in self.statement(depth)]
        return [f"  {line}" for line in body]

    def program(self):
        lines = []
        for _ in range(6):
            body = [f"  {line}" for line in self.statement(2)]
            lines += ["try:", *body, "except Exception as error:", "  note(error)"]
        return "\n".join(
            [
                "shared = 0",
                "def program(o, p, items, data, bag, log):",
                "  global shared",
                "  x = y = captured = 0",
                "  def reader(): return captured",
                *(f"  {line}" for line in lines),
                "  return (x, y, captured, shared, items, data, bag)",
            ]
        )


def outcome(module, journal):
    module.shared = 0

    def note(error):
        journal.append(f"{type(error).__name__}: {error}")
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            if code.co_filename == module.__file__:
                positions = list(code.co_positions())[traceback.tb_lasti // 2]
                journal.append(f"  in {code.co_qualname}, {positions}")
            traceback = traceback.tb_next

    module.note = note
    ticks = itertools.count()
    module.tick = lambda: next(ticks) % 3 == 2
    logs = [Log(name, journal) for name in ("o", "p", "log")]
    try:
        result = module.program(*logs[:2], [3, 1], {1: 2, "k": 0}, {1, "k"}, logs[2])
    except Exception as error:
        note(error)
    else:
        journal.append(show(result))
    return [ADDRESS.sub("", line) for line in journal]


class Nobody:
    def access(self, obj, key, op, site):  # noqa: ARG002 - the sink's signature
        return obj


def differences(seeds, folder):
    ran = 0
    for seed in seeds:
        source = Draw(seed).program()
        path = folder / f"drawn_{seed}.py"
        try:
            code = compile(source, str(path), "exec")
        except SyntaxError:
            continue
        path.write_text(source)
        module = types.ModuleType(f"drawn_{seed}")
        module.__file__ = str(path)
        exec(code, vars(module))
        expected = outcome(module, [])
        with swap.instrumented([module]) as coverage:
            assert coverage.left_out == (), source
            assert coverage.functions == 1
            silent = outcome(module, [])
            probes.listen(Nobody())
            try:
                probed = outcome(module, [])
            finally:
                probes.listen(None)
        assert silent == expected, f"seed {seed}, nobody listens\n{source}"
        assert probed == expected, f"seed {seed}\n{source}"
        ran += 1
    return ran


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_random_programs_have_the_same_effects_in_the_same_order(tmp_path):
    assert differences(range(150), tmp_path) > 75  # the others are no valid programs
