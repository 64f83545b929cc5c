"""Probes go into live functions and come out again, whatever happens in between."""

import functools
import gc
import importlib.util
import json
import os
import pathlib
import py_compile
import subprocess
import sys
import textwrap
import threading
import types

import pytest

from pytest_freethread.instrument import effects, probes, swap
from pytest_freethread.instrument.rewrite import rewrite

ZOO = """
    import abc, contextlib, dataclasses, enum, functools

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args): return function(*args)
        return wrapper

    @decorate
    def decorated(o): o.x = 1

    @functools.lru_cache
    def cached(o): o.x = 1

    @functools.singledispatch
    def dispatched(o): o.x = 1

    @contextlib.contextmanager
    def managed(o):
        o.x = 1
        yield

    def in_with(o):
        with managed(o): pass

    class C(abc.ABC):
        def method(self, o): o.x = 1
        @staticmethod
        def static(o): o.x = 1
        @classmethod
        def classed(cls, o): o.x = 1
        @property
        def prop(self): return lambda o: self.method(o)
        @functools.cached_property
        def lazy(self): return functools.partial(self.method)
        class Inner:
            def method(self, o, C=None): o.x = 1

    class Color(enum.Enum):
        RED = 1
        def paint(self, o): o.x = self.value

    @dataclasses.dataclass
    class Data:
        y: int = 0
        def method(self, o): o.x = 1

    one, other = (lambda o: setattr(o, "x", 1)), (lambda o: setattr(o, "x", 1))

    def outer():
        def closure(o): o.x = 1
        return closure
    closure = outer()

    def generator(o):
        o.x = 1
        yield
    def defaults(o, f=lambda o: setattr(o, "x", 1)): f(o)
    class Meta(type):
        def __call__(cls, o): o.x = 1
    class Made(metaclass=Meta): pass
"""

CALLS = [
    *("decorated(o)", "cached(o)", "dispatched(o)", "in_with(o)", "one(o)", "other(o)"),
    *("C().method(o)", "C.static(o)", "C.classed(o)", "C().prop(o)", "C().lazy(o)"),
    *("C.Inner().method(o)", "Color.RED.paint(o)", "Data().method(o)", "closure(o)", "outer()(o)"),
    *("list(generator(o))", "defaults(o)", "Made(o)"),
]


class Writes:
    def __init__(self):
        self.heard = []

    def access(self, obj, key, op, site):  # noqa: ARG002
        if op == effects.ATTRIBUTE_WRITE:
            self.heard.append(key)
        return obj


def codes():
    return {
        id(thing): (thing, thing.__code__)
        for thing in gc.get_objects()
        if type(thing) is types.FunctionType
    }


@pytest.mark.parametrize("call", CALLS)
def test_every_kind_of_function_is_reached(make_module, call):
    module = make_module(ZOO)
    sink = Writes()
    with swap.instrumented([module]) as coverage:
        probes.listen(sink)
        try:
            eval(call, vars(module), {"o": type("O", (), {})()})
        finally:
            probes.listen(None)
    assert "x" in sink.heard
    assert {reason for _, reason in coverage.left_out} == {"made by exec: no source"}


def test_every_function_gets_back_the_code_object_that_it_had(make_module):
    module = make_module(ZOO)
    before = codes()
    methods = module.C.method, json.decoder.JSONDecoder.decode
    known = [method.__code__ for method in methods]
    with swap.instrumented([module, json.decoder, functools]):
        assert all(m.__code__ is not code for m, code in zip(methods, known, strict=True))
    assert [method.__code__ for method in methods] == known
    assert all(f.__code__ is code for f, code in before.values())


def test_functions_made_meanwhile_lose_their_probes_too(make_module):
    module = make_module(ZOO)
    with swap.instrumented([module]):
        made = module.outer()
        assert made.__code__ != module.closure.__code__ or made.__code__ is module.closure.__code__
        inside = made.__code__
    assert made.__code__ is not inside
    assert made.__code__ == module.closure.__code__


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_block_restores(make_module, error):
    module = make_module(ZOO)
    before = module.C.method.__code__
    with pytest.raises(error), swap.instrumented([module]):
        assert module.C.method.__code__ is not before
        raise error
    assert module.C.method.__code__ is before


def test_an_interrupted_installation_restores(make_module, monkeypatch):
    module = make_module(ZOO)
    before = codes()
    swapped = []

    def interrupted(installed, function, original=swap._Installed.swap):
        if len(swapped) == 5:
            raise KeyboardInterrupt
        swapped.append(function)
        return original(installed, function)

    monkeypatch.setattr(swap._Installed, "swap", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap.instrumented([module]).install()
    assert len(swapped) == 5
    assert all(f.__code__ is code for f, code in before.values())


def test_an_interrupted_restoration_goes_on_to_the_end(make_module, monkeypatch):
    module = make_module(ZOO)
    before = module.C.method.__code__
    interruptions = [KeyboardInterrupt]

    def interrupted(installed, original=swap._Installed.put_back):
        if interruptions:
            raise interruptions.pop()
        original(installed)

    monkeypatch.setattr(swap._Installed, "put_back", interrupted)
    with pytest.raises(KeyboardInterrupt), swap.instrumented([module]):
        pass
    assert module.C.method.__code__ is before


def test_blocks_nest_and_overlap(make_module):
    one, two = make_module("def f(o): o.x = 1"), make_module("def f(o): o.y = 1")
    before = one.f.__code__, two.f.__code__
    first, second = swap.instrumented([one]), swap.instrumented([one, two])
    first.install()
    second.install()
    first.restore()
    first.restore()
    assert one.f.__code__ is not before[0]
    assert {"x", "y"} <= probes.stored_names
    second.restore()
    assert (one.f.__code__, two.f.__code__) == before
    assert not probes.stored_names


def test_a_second_installation_picks_up_what_was_made_since(make_module):
    module = make_module(ZOO)
    made_before = module.outer()
    installation = swap.instrumented([module])
    count = installation.install().functions
    try:
        made_since = types.FunctionType(made_before.__code__, vars(module))
        assert installation.install().functions >= count
        assert made_since.__code__ is made_before.__code__
    finally:
        installation.restore()


def test_a_changed_source_is_left_out_and_named(make_module):
    module = make_module("""
        def same(o): o.x = 1
        def changed(o): o.x = 1
    """)
    path = pathlib.Path(module.__file__)
    path.write_text(path.read_text().replace("changed(o): o.x = 1", "changed(o): o.x = 12"))
    with swap.instrumented([module]) as coverage:
        assert coverage.functions == 1
    assert [name for name, _ in coverage.left_out] == [f"{module.__name__}.changed"]
    assert "changed on disk" in coverage.left_out[0][1]


def test_modules_without_usable_source_are_named(make_module):
    gone = make_module("def f(): pass")
    pathlib.Path(gone.__file__).unlink()
    with swap.instrumented([sys, gone]) as coverage:
        assert coverage.functions == 0
    reasons = dict(coverage.left_out)
    assert reasons["sys"] == "no Python source"
    assert "No such file" in reasons[gone.__name__]


def test_lambdas_on_one_line_are_told_apart(make_module):
    module = make_module(
        "fs = [lambda o: o.a, lambda o: o.b, lambda o: o.a]\ndef g(o): o.a = o.b = 1"
    )
    o = types.SimpleNamespace(a="a", b="b")
    with swap.instrumented([module]) as coverage:
        assert coverage.functions == 4
        assert [f(o) for f in module.fs] == ["a", "b", "a"]


def test_a_traceback_is_as_without_probes(make_module):
    import traceback

    module = make_module("""
        def f(o):
            return [o.table[k] for k in (1,)], (o
                .missing
                .more)
        def store(o): o.table = o.missing = o.more = 1
    """)

    def shown(o):
        try:
            module.f(o)
        except Exception:  # the text is compared
            return traceback.format_exc()

    class Nobody:
        def access(self, obj, key, op, site):  # noqa: ARG002
            return obj

    for o in (types.SimpleNamespace(table={}), types.SimpleNamespace(table={1: 1})):
        plain = shown(o)
        with swap.instrumented([module]):
            probes.listen(Nobody())
            probed = shown(o)
            probes.listen(None)
        assert probed == plain


def test_rewritten_assertions_keep_their_explanations(pytester):
    pytester.makepyfile(
        listener="""
        from pytest_freethread.instrument import probes

        class Sink:
            def __init__(self): self.heard = []
            def access(self, obj, key, op, site):
                self.heard.append((op, key))
                return obj
        """
    )
    pytester.makepyfile("""
        # What pytest inserts must not seem to end before it begins, on line 1.

        import sys
        from listener import Sink
        from pytest_freethread.instrument import probes, swap

        class Counter:
            def __init__(self): self.value = 0
            def inc(self): self.value += 1

        def check(counter, table):
            assert counter.value in table and len(table) == 1
            assert counter.value == 2, f"but {table}"

        def test_it():
            sink = Sink()
            with swap.instrumented([sys.modules[__name__]]) as coverage:
                assert coverage.left_out == ()
                probes.listen(sink)
                try:
                    check(Counter(), {0: 1})
                finally:
                    probes.listen(None)
                    print(sink.heard)
    """)
    result = pytester.runpytest_subprocess("-p", "no:freethread")
    result.stdout.fnmatch_lines(
        [
            "E       AssertionError: but {0: 1}",
            "E       assert 0 == 2",
            "E        +  where 0 = <*Counter object at *>.value",
            "*(1, 'value'), (0, 'value'), (2, 0), (4, None), (0, 'value')*",
        ]
    )
    assert "@freethread" not in result.stdout.str()
    assert "probes.py" not in result.stdout.str()


def test_coverage_measures_the_same_lines(tmp_path):
    pytest.importorskip("coverage")
    (tmp_path / "subject.py").write_text(
        textwrap.dedent("""
        total = 0
        def work(o, n):
            global total
            for i in range(n):
                if i % 2:
                    o.items.append(
                        o.x)
                else:
                    o.x += i
                total += 1
            return [k for k in o.items
                    if k in o.table]
        def never(o):
            o.x = 1
    """)
    )
    (tmp_path / "main.py").write_text(
        textwrap.dedent("""
        import contextlib, sys, types, subject
        from pytest_freethread.instrument import probes, swap
        class Nobody:
            def access(self, obj, key, op, site): return obj
        probed = sys.argv[1] == "probed"
        with swap.instrumented([subject] if probed else []):
            probes.listen(Nobody())
            subject.work(types.SimpleNamespace(items=[], x=1, table={1: 1}), 3)
    """)
    )
    lines = []
    for how in ("plain", "probed"):
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
        run = [sys.executable, "-m", "coverage", "run", "--branch", "--include=subject.py"]
        subprocess.run([*run, "main.py", how], cwd=tmp_path, env=environment, check=True)
        report = [sys.executable, "-m", "coverage", "json", "-o", "-", "-q"]
        output = subprocess.run(report, cwd=tmp_path, check=True, capture_output=True).stdout
        measured = json.loads(output)["files"]["subject.py"]
        lines.append((measured["executed_lines"], measured.get("executed_branches")))
    assert lines[0] == lines[1]
    assert 10 in lines[0][0]


# --- what is left out, and said to be


def test_a_function_made_by_exec_is_named(make_module):
    module = make_module("exec('def made(o): o.x = 1')\nmake = eval('lambda o: o')")
    with swap.instrumented([module]) as coverage:
        names = dict(coverage.left_out)
    assert names == dict.fromkeys(
        (f"{module.__name__}.made", f"{module.__name__}.<lambda>"), "made by exec: no source"
    )


def test_the_functions_of_a_module_without_source_are_named(make_module):
    module = make_module("def f(o): o.x = 1\nclass C:\n    def m(self): self.x = 1")
    pathlib.Path(module.__file__).unlink()
    with swap.instrumented([module]) as coverage:
        names = {name for name, _ in coverage.left_out}
    assert {f"{module.__name__}.f", f"{module.__name__}.C.m"} <= names


def test_a_compiled_file_without_its_source_is_named(tmp_path):
    source, compiled = tmp_path / "sourceless.py", tmp_path / "sourceless.pyc"
    source.write_text("def f(o): o.x = 1")
    py_compile.compile(str(source), cfile=str(compiled), doraise=True)
    source.unlink()
    spec = importlib.util.spec_from_file_location("sourceless", compiled)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with swap.instrumented([module]) as coverage:
        assert coverage.functions == 0
        assert {name for name, _ in coverage.left_out} == {"sourceless", "sourceless.f"}


def test_functions_that_were_frozen_are_still_found(make_module):
    module = make_module("def f(o): o.x = 1")
    gc.freeze()
    try:
        with swap.instrumented([module]) as coverage:
            assert coverage.functions == 1
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_function_that_the_collector_has_cleared_is_left_as_it_is():
    def cleared(): ...  # its closure is gone, so it is shorter than that of its code

    def whole():
        return cleared

    before = cleared.__code__
    swap.give(cleared, whole.__code__)
    assert cleared.__code__ is before


def test_functions_are_found_once_threads_have_run(make_module):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    module = make_module(ZOO)
    with swap.instrumented([module]) as coverage:
        assert module.C.method.__code__ in swap._installed[module.__file__].compiled.probed.values()
        assert coverage.functions > 20


def test_a_module_inside_the_interpreter_gets_probes_from_its_source():
    before = importlib.util.resolve_name.__code__
    with swap.instrumented([importlib.util]) as coverage:
        assert coverage.left_out == ()
        probed = importlib.util.resolve_name.__code__
        assert probed is not before
        assert probed.co_filename == before.co_filename
    assert importlib.util.resolve_name.__code__ is before


# --- again and again


def test_the_same_module_again_costs_no_memory(make_module):
    module = make_module(ZOO)
    compiled = []
    for _ in range(5):
        with swap.instrumented([module, json.decoder]):
            module.outer()
            known = [len(each.compiled.known) for each in swap._installed.values()]
        compiled.append((len(probes.SITES), known, len(swap._cache)))
    assert compiled[0] == compiled[-1]


@pytest.mark.skipif(swap._FORGETS, reason="functions are immortal, and so is their code")
def test_code_that_is_gone_is_forgotten(make_module):
    module = make_module("def f(o): o.x = 1")
    for _ in range(5):
        with swap.instrumented([module]):
            (installed,) = swap._installed.values()
        module.__spec__.loader.exec_module(module)
        gc.collect()
    assert len(installed.compiled.known) <= 1


@pytest.fixture
def anew(monkeypatch):
    """Have a module looked at as a new session would; returns how many were rewritten."""
    rewritten = []

    def rewrite_counted(tree, source, file):
        rewritten.append(file)
        return rewrite(tree, source, file)

    def look(module):
        swap._cache.clear()
        before = len(rewritten)
        swap._compiled(module, rewrite_counted)
        return len(rewritten) - before

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield look
    swap._cache.clear()


def test_rewritten_code_is_kept_for_the_next_session(make_module, anew):
    module = make_module(ZOO)
    assert [anew(module), anew(module)] == [1, 0]
    pathlib.Path(module.__file__).write_text("def f(): pass")
    assert [anew(module), anew(module)] == [1, 0]


def test_what_was_kept_has_the_same_sites(make_module, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    module = make_module("def f(o): o.x = o.y\ndef g(o): return o.z")
    heard = []
    for _ in range(2):
        swap._cache.clear()
        before = len(probes.SITES)
        with swap.instrumented([module]):
            code = module.f.__code__
        heard.append((probes.SITES[before:], code.co_code))
        assert {each for each in code.co_consts if type(each) is int} >= {before, before + 1}
    assert heard[0] == heard[1]


def test_where_no_bytecode_is_written_nothing_is_kept(make_module, anew, monkeypatch):
    module = make_module(ZOO)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert [anew(module), anew(module)] == [1, 1]
    assert not list(pathlib.Path(module.__file__).parent.rglob("*-freethread-*"))


def test_what_was_kept_and_is_damaged_is_not_used(make_module, anew):
    module = make_module(ZOO)
    assert anew(module) == 1
    (kept,) = pathlib.Path(module.__file__).parent.rglob("*-freethread-*")
    kept.write_bytes(kept.read_bytes()[:100])
    assert [anew(module), anew(module)] == [1, 0]


def test_bytecode_that_may_be_of_another_source_is_not_used(make_module):
    module = make_module("def f(o): o.x = 1")
    raw = pathlib.Path(module.__file__).read_bytes()
    py_compile.compile(module.__file__, doraise=True)
    stamp = pathlib.Path(module.__file__).stat().st_mtime_ns, len(raw)
    assert swap._from_bytecode(module.__file__, raw, stamp) is None  # written a moment later
    long_ago = stamp[0] - 10**11, stamp[1]
    os.utime(module.__file__, ns=(long_ago[0], long_ago[0]))
    py_compile.compile(module.__file__, doraise=True)
    assert swap._from_bytecode(module.__file__, raw, long_ago) is not None
    assert swap._from_bytecode(module.__file__, raw + b"\n", long_ago) is None
    another_second = long_ago[0] - 10**9, long_ago[1]
    assert swap._from_bytecode(module.__file__, raw, another_second) is None
