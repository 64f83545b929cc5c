"""Each construct announces exactly what it is about to access, in order."""

import itertools
import sys
import threading
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from types import MappingProxyType, SimpleNamespace

import pytest

from pytest_freethread.instrument import probes, swap


class Holder:
    """Unlike a `SimpleNamespace`, it can be referred to weakly."""


class Forgetful:
    def access(self, obj, key, op, site):  # noqa: ARG002 - the sink's signature
        return obj


def thing(**fields):
    return SimpleNamespace(**fields)


# --- attributes


def test_a_load_is_a_read_and_a_store_is_a_write(announced):
    source = """
        def f(o):
            o.a = o.a
            del o.a
    """
    assert announced(source, thing(a=1)) == [
        ("attribute read", "o.a", "a"),
        ("attribute write", "o.a", "a"),
        ("attribute write", "o.a", "a"),
    ]


def test_an_augmented_assignment_reads_evaluates_and_writes(announced):
    source = """
        def f(o):
            o.a += o.b
            o.b = 0
    """
    assert announced(source, thing(a=1, b=2)) == [
        ("attribute read", "o.a", "a"),
        ("attribute read", "o.b", "b"),
        ("attribute write", "o.a", "a"),
        ("attribute write", "o.b", "b"),
    ]


def test_names_that_nobody_stores_are_silent(announced):
    source = """
        class C:
            constant = 1
            def method(self): return self.constant
        def f():
            return C().method()
    """
    assert announced(source) == []


def test_a_private_name_is_announced_as_it_is_stored(announced):
    source = """
        class _C:
            def __init__(self): self.__x = 0
            def bump(self):
                def inner(): self.__x += 1
                inner()
        def f(): _C().bump()
    """
    assert {key for _, _, key in announced(source)} == {"_C__x"}


def test_every_kind_of_target_is_announced_right_before_its_store(announced):
    source = """
        def f(o):
            o.a, (o.b, *o.c) = 1, [2, 3]
            for o.a in (5,): pass
            with o.manager as o.b: pass
            o.a = o.b = 7
            o.c: int = 8
    """

    class Manager:
        def __enter__(self):
            return 6

        def __exit__(self, *error):
            pass

    writes = [key for op, _, key in announced(source, thing(manager=Manager())) if "write" in op]
    assert writes == ["a", "b", "c", "a", "b", "a", "b", "c"]


def test_a_property_runs_as_code(announced):
    source = """
        class C:
            def __init__(self): self._x = 0
            @property
            def x(self): return self._x
            @x.setter
            def x(self, value): self._x = value
        def f():
            c = C()
            c.x += 1
    """
    assert [key for _, _, key in announced(source)] == ["_x", "_x", "_x"]


def test_slots_are_attributes(announced):
    source = """
        class C:
            __slots__ = ("x",)
        def f():
            c = C()
            c.x = 1
            return c.x
    """
    assert announced(source) == [("attribute write", "c.x", "x"), ("attribute read", "c.x", "x")]


def test_a_class_attribute_is_announced_on_the_class_that_has_it(make_module, listening):
    module = make_module("""
        class Base: total = 0
        class Sub(Base): pass
        def f():
            Base.total += 1
            return Sub.total, Sub().total
    """)
    recorder = listening(module, "f")
    assert [op for op, _, _ in recorder.heard] == [
        *("attribute read", "attribute write", "attribute read", "attribute read")
    ]
    assert recorder.objects == [module.Base] * 4


def test_an_attribute_of_a_module_is_an_item_of_its_dict(make_module, listening):
    module = make_module("""
        import types
        other = types.ModuleType("other")
        def f():
            other.x = 1
            return other.x
    """)
    recorder = listening(module, "f")
    assert recorder.heard == [("item write", "other.x", "x"), ("item read", "other.x", "x")]
    assert recorder.objects == [vars(module.other)] * 2


def test_access_by_name_is_announced_when_all_arguments_are_there(announced):
    source = """
        def f(o, name):
            setattr(o, name, getattr(o, "a", o.b) + 1)
            hasattr(o, "a"), vars(o)
            delattr(o, name)
            object.__setattr__(o, "b", o.a if hasattr(o, "a") else 0)
            o.b = 1
    """
    assert announced(source, thing(a=1, b=2), "a") == [
        ("attribute read", "o.b", "b"),
        ("attribute write", 'setattr(o, name, getattr(o, "a", o.b) + 1)', "a"),
        ("attribute read", 'hasattr(o, "a")', "a"),
        ("attribute read", "vars(o)", None),
        ("attribute write", "delattr(o, name)", "a"),
        ("attribute read", 'hasattr(o, "a")', "a"),
        ("attribute write", 'object.__setattr__(o, "b", o.a if hasattr(o, "a") else 0)', "b"),
        ("attribute write", "o.b", "b"),
    ]


# --- items and containers


def test_items_are_announced_with_their_key(announced):
    source = """
        def f(d, k):
            d[k] = d["a"]
            d[k] += 1
            del d[k]
    """
    assert announced(source, {"a": 1}, 7) == [
        ("item read", 'd["a"]', "a"),
        ("item write", "d[k]", 7),
        ("item read", "d[k]", 7),
        ("item write", "d[k]", 7),
        ("item write", "d[k]", 7),
    ]


@pytest.mark.parametrize(
    ("expression", "container", "expected"),
    [
        ("c[-1]", [1, 2], ("item read", 1)),
        ("c[0:1]", [1, 2], ("container read", None)),
        ("c.__setitem__(0, 5)", [1], ("item write", 0)),
        ("c[0]", (1,), None),
        ("c[0]", deque([1]), ("item read", 0)),
        ("c[5]", defaultdict(list), ("item addition", 5)),
        ("c[5]", defaultdict(list, {5: 1}), ("item read", 5)),
        ("c.append(1)", [], ("container write", None)),
        ("c.append(1)", deque(), ("container write", None)),
        ("c.get(1)", {}, ("item read", 1)),
        ("c.pop(1, 2)", {}, ("item write", 1)),
        ("c.setdefault(1, 2)", {}, ("item addition", 1)),
        ("c.update(a=1)", {}, ("container write", None)),
        ("c.move_to_end(1)", OrderedDict({1: 1}), ("container write", None)),
        ("c.add(1)", set(), ("item addition", 1)),
        ("c.copy()", {}, ("container read", None)),
        ("1 in c", {}, ("item read", 1)),
        ("1 not in c", [], ("container read", None)),
        ("'a' in c", "abc", None),
        ("0 < 1 in c", {}, ("container read", None)),
        ("len(c)", bytearray(), ("container read", None)),
        ("len(c.keys())", {}, ("container read", None)),
        ("not c", [], ("container read", None)),
        ("c and 1", {}, ("container read", None)),
        ("sorted(c)", {}, ("container read", None)),
        ("sorted(c)", "", None),
        ("[*c]", [], ("container read", None)),
        ("dict(**c)", {}, ("container read", None)),
        ("','.join(c)", [], ("container read", None)),
        ("heapq.heappush(c, 1)", [], ("container write", None)),
        ("heappop(c)", [1], ("container write", None)),
        ("bisect.insort(c, 1)", [], ("container write", None)),
        ("c.insert(0, 1)", [], ("container write", None)),
        ("c.sort()", [], ("container write", None)),
        ("c.__setitem__(slice(0, 0), (1,))", [], ("container write", None)),
        ("c.__delitem__(1)", {1: 1}, ("item write", 1)),
        ("c.update({1: 2})", {}, ("container write", None)),
        ("c.popitem()", {1: 1}, ("container write", None)),
        ("1 in c", defaultdict(list), ("item read", 1)),
        ("c.get(1)", defaultdict(list), ("item read", 1)),
        ("c[1]", Counter(), ("item read", 1)),
        ("c.popleft()", deque([1]), ("container write", None)),
        ("c.rotate(1)", deque([1]), ("container write", None)),
        ("c.symmetric_difference_update((1,))", set(), ("container write", None)),
        ("c <= {1}", set(), None),
        ("c == [1]", [], ("container read", None)),
        ("[1] != c", [], ("container read", None)),
        ("c == 1", [], None),
        ("c[0]", array("b", (1,)), ("item read", 0)),
        ("c.frombytes(b'1')", array("b"), ("container write", None)),
        ("c[0]", MappingProxyType({0: 1}), ("item read", 0)),
        ("0 in c", MappingProxyType({0: 1}), ("item read", 0)),
        ("c.keys()", MappingProxyType({0: 1}), None),
        ("c[0]", memoryview(bytearray(1)), ("container read", None)),
        ("c.tobytes()", memoryview(bytearray(1)), ("container read", None)),
        ("c.__setitem__(0, 1)", memoryview(bytearray(1)), ("container write", None)),
        ("sum(c)", [1], ("iteration step", None)),
        ("tuple(c)", {}, ("iteration step", None)),
        ("tuple(c)", [], ("container read", None)),
        ("list(c)", {}, ("container read", None)),
        ("list(c.items())", {}, ("container read", None)),
        ("max(c, default=0)", set(), ("iteration step", None)),
        ("any(c)", {}, ("iteration step", None)),
        ("list(enumerate(c))", {}, ("iteration step", None)),
        ("list(map(str, c))", {}, ("iteration step", None)),
        ("list(filter(None, c))", {}, ("iteration step", None)),
        ("dict(c)", {}, ("container read", None)),
        ("set(c)", {}, ("container read", None)),
        ("frozenset(c)", [], ("iteration step", None)),
        ("str(c)", [], ("container read", None)),
        ("c.union([])", set(), ("container read", None)),
    ],
)
def test_one_operation_on_a_container(announced, expression, container, expected):
    source = f"""
        import bisect, heapq
        from heapq import heappop
        def f(c): return {expression}
    """
    heard = {(op, key): None for op, _, key in announced(source, container)}
    assert list(heard) == ([] if expected is None else [expected])


def test_the_operation_is_announced_after_its_arguments(announced):
    source = """
        def f(o):
            o.items.append(o.x)
            o.table.get(o.x, o.y)
            o.x in o.table
            return [o.table.get(o.x) for _ in (1,)], [o.table[o.x] for _ in (1,)]
        def store(o): o.items = o.table = o.x = o.y = 0
    """
    heard = [text for _, text, _ in announced(source, thing(items=[], table={1: 1}, x=1, y=2))]
    assert heard == [
        *("o.items", "o.x", "o.items.append(o.x)"),
        *("o.table", "o.x", "o.y", "o.table.get(o.x, o.y)"),
        *("o.x", "o.table", "o.x in o.table"),
        *("o.table", "o.x", "o.table.get(o.x)"),
        *("o.table", "o.x", "o.table[o.x]"),
    ]


def test_an_augmented_assignment_to_a_list_changes_the_list(announced):
    source = """
        def f(o, other):
            o.items += [1]
            other += o.items
    """
    assert [(op, text) for op, text, _ in announced(source, thing(items=[]), [])] == [
        ("attribute read", "o.items"),
        ("container write", "o.items += [1]"),
        ("attribute write", "o.items"),
        ("attribute read", "o.items"),
        ("container write", "other += o.items"),
    ]


def test_a_subclass_that_overrides_an_operation_is_code(announced):
    source = """
        class Quiet(dict):
            def __getitem__(self, key): return key
        def f():
            q = Quiet()
            q[1]
            q[2] = 3
    """
    assert announced(source) == [("item write", "q[2]", 2)]


def test_a_name_that_only_looks_like_a_builtin_is_left_alone(announced):
    source = """
        def len(x): return 3
        def f(c): return len(c)
    """
    assert announced(source, []) == []


# --- iteration


@pytest.mark.parametrize(
    "loop",
    [
        "for x in c: pass",
        "[x for x in c]",
        "sum(x for x in c)",
        "for x in c.items(): pass",
        "for i, x in enumerate(c): pass",
        "for x in zip(c, (1, 2)): pass",
        "for x in iter(c): pass",
        "for x in reversed(c): pass",
        "list(g(c))",
        "max(c)",
        "tuple(c)",
        "any(c)",
    ],
)
def test_a_loop_announces_each_step_and_the_end(make_module, listening, loop):
    module = make_module(f"""
        def g(c): yield from c
        def f(c):
            {loop}
    """)
    container = {"": 0, (): 1} if "sum" not in loop and "max" not in loop else {0: 0, 1: 1}
    recorder = listening(module, "f", container)
    steps = [
        obj
        for (op, _, _), obj in zip(recorder.heard, recorder.objects, strict=True)
        if op == "iteration step"
    ]
    assert len(steps) == 3
    assert all(obj is container for obj in steps)


def test_next_moves_the_iterator_and_reads_its_container(announced):
    source = """
        def f(c):
            it = iter(c)
            next(it)
    """
    heard = [op for op, _, _ in announced(source, [1])]
    assert heard == ["container write", "iteration step"]


def test_an_error_of_a_changed_container_comes_through(make_module, listening):
    module = make_module("""
        def f(d):
            for k in d: d[k + 1] = 0
    """)
    with pytest.raises(RuntimeError, match="changed size"):
        listening(module, "f", {1: 1})


# --- variables


def test_a_global_that_a_function_rebinds_is_an_item_of_the_module(make_module, listening):
    module = make_module("""
        total = 0
        constant = 1
        def f():
            global total
            total += constant
            total = total, total
            del total
    """)
    recorder = listening(module, "f")
    assert recorder.heard == [
        ("item read", "total", "total"),
        ("item write", "total += constant", "total"),
        ("item read", "total", "total"),
        ("item read", "total", "total"),
        ("item write", "total", "total"),
        ("item write", "total", "total"),
    ]
    assert all(obj is vars(module) for obj in recorder.objects)


def test_all_ways_to_bind_a_global(announced):
    source = """
        import contextlib
        def f():
            global a, b
            a = b = 1
            a, (b, *b) = 1, (2, 3)
            for a in (1,): pass
            with contextlib.nullcontext(2) as a, contextlib.nullcontext() as b: pass
            (b := 3)
            import sys as a
    """
    keys = [key for _, _, key in announced(source)]
    assert keys == [*"ababbaabb", "sys", "a"]


def test_a_cell_is_the_same_object_in_all_its_functions(make_module, listening):
    module = make_module("""
        def f():
            n = 0
            never_rebound = 5
            def inner():
                nonlocal n
                n += never_rebound
            inner()
            return n
    """)
    recorder = listening(module, "f")
    assert [(op, key) for op, _, key in recorder.heard] == [
        ("cell write", "n"),
        ("cell read", "n"),
        ("cell write", "n"),
        ("cell read", "n"),
    ]
    assert len({id(cell) for cell in recorder.objects}) == 1
    assert recorder.objects[0].cell_contents == 5


def test_a_captured_loop_variable_is_announced(announced):
    source = """
        def f():
            for i in (1, 2):
                g = lambda: i
            return g()
    """
    assert [op for op, _, _ in announced(source)] == ["cell write", "cell write", "cell read"]


# --- namespaces


@pytest.mark.parametrize(
    ("expression", "op", "key"),
    [
        ("o.__dict__['x']", "attribute read", "x"),
        ("vars(o)['x']", "attribute read", "x"),
        ("vars(o).get('x')", "attribute read", "x"),
        ("'x' in o.__dict__", "attribute read", "x"),
        ("o.__dict__.setdefault('x', 2)", "attribute write", "x"),
        ("o.__dict__.pop('x')", "attribute write", "x"),
        ("o.__dict__.update(x=2)", "attribute write", None),
        ("list(o.__dict__)", "attribute read", None),
        ("len(vars(o))", "attribute read", None),
        ("vars(o)", "attribute read", None),
        ("{**o.__dict__}", "attribute read", None),
        ("object.__getattribute__(o, 'x')", "attribute read", "x"),
        ("getattr(o, ''.join('x'))", "attribute read", "x"),
    ],
)
def test_an_attribute_is_the_same_by_whatever_way(make_module, listening, expression, op, key):
    module = make_module(f"""
        def f(o): return {expression}
        def store(o): o.x = 1
    """)
    o = Holder()
    o.x = 1
    recorder = listening(module, "f", o)
    assert [(name, where) for name, _, where in recorder.heard][-1:] == [(op, key)]
    assert recorder.objects[-1] is o


def test_a_dict_that_was_taken_from_an_object_is_still_its_own(make_module, listening):
    module = make_module("""
        def f(o, plain):
            own = o.__dict__
            own["x"] = plain["x"]
            o.__dict__ = {}
            own["x"] = 2
    """)
    o, plain = Holder(), {"x": 1}
    own = vars(o)
    recorder = listening(module, "f", o, plain)
    assert recorder.heard == [
        ("item read", 'plain["x"]', "x"),
        ("attribute write", 'own["x"]', "x"),
        ("attribute write", "o.__dict__", None),
        ("item write", 'own["x"]', "x"),
    ]
    assert recorder.objects[1] is o
    assert recorder.objects[3] is own


def test_a_class_looked_into_by_its_dict_is_the_class(make_module, listening):
    module = make_module("""
        class C: x = 1
        def f():
            "x" in C.__dict__, vars(C)["x"], C.__dict__.get("x")
            C.x = 2
    """)
    recorder = listening(module, "f")
    assert [op for op, _, _ in recorder.heard] == ["attribute read"] * 3 + ["attribute write"]
    assert recorder.objects == [module.C] * 4


def test_a_descriptor_that_stores_into_the_instance_is_the_attribute(make_module, listening):
    module = make_module("""
        class lazy:
            def __init__(self, function): self.function = function
            def __get__(self, obj, owner):
                value = obj.__dict__[self.function.__name__] = self.function(obj)
                return value
        class C:
            @lazy
            def value(self): return 1
            made = lazy(lambda self: 2)
        def f(c):
            return c.value, c.value
    """)
    c = module.C()
    recorder = listening(module, "f", c)
    heard = [
        (op, key)
        for (op, _, key), o in zip(recorder.heard, recorder.objects, strict=True)
        if o is c
    ]
    assert heard == [
        ("attribute read", "value"),
        ("attribute write", "value"),
        ("attribute read", "value"),
    ]


def test_namespaces_are_forgotten_with_their_objects(make_module, listening):
    module = make_module("def f(o): o.__dict__['x'] = 1")

    class Looks(Forgetful):
        left = None

        def access(self, obj, key, op, site):  # noqa: ARG002 - the sink's signature
            Looks.left = len(probes._namespaces)
            return obj

    listening(module, "f", type("O", (), {})(), recorder=Looks())
    assert Looks.left == 1
    assert not probes._namespaces


# --- generators and iterators


def test_a_generator_announces_each_resumption_in_its_body(make_module, listening):
    module = make_module("""
        def g():
            got = yield 1
            yield got
        def f():
            it = g()
            next(it), it.send(5)
            for _ in it: pass
    """)
    recorder = listening(module, "f")
    assert [(op, text) for op, text, _ in recorder.heard] == [
        ("iterator write", "got = yield 1"),
        ("iterator write", "yield 1"),
        ("iterator write", "yield got"),
    ]
    assert len({id(obj) for obj in recorder.objects}) == 1
    assert type(recorder.objects[0]).__name__ == "generator"


def test_two_generators_of_a_function_are_two(make_module, listening):
    module = make_module("""
        def g(): yield
        def f(): return next(g()), next(g())
    """)
    recorder = listening(module, "f")
    assert len({id(obj) for obj in recorder.objects}) == 2


@pytest.mark.parametrize(
    "use",
    [
        "for _ in it: pass",
        "[x for x in it]",
        "list(it)",
        "sum(it)",
        "a, b = it",
        "dict(zip(it, it))",
        "yield from it",
        "next(it), next(it), next(it, 0)",
        "step = it.__next__; step(), step()",
    ],
)
def test_a_shared_iterator_is_written_at_each_step(make_module, recorder, use):
    module = make_module(f"""
        def f(it):
            {use}
    """)
    it = itertools.islice(itertools.count(), 2)
    with swap.instrumented([module]):
        probes.listen(recorder)
        try:
            result = module.f(it)
            if use.startswith("yield"):
                list(result)
        finally:
            probes.listen(None)
    writes = [obj for obj in recorder.objects if obj is it]
    assert len(writes) >= 2
    assert next(it, None) is None


def test_a_generator_expression_that_is_handed_out_announces_its_steps(make_module, listening):
    module = make_module("""
        def f(c):
            it = (x for x in c)
            next(it)
            return sum(x for x in c)
    """)
    heard = [op for op, _, _ in listening(module, "f", (1, 2)).heard]
    assert heard == ["iterator write", "iterator write"]


def test_what_a_loop_yields_dies_when_it_did_before(make_module, listening):
    module = make_module("""
        import weakref
        class C: pass
        def g(log):
            for name in "ab":
                c = C()
                weakref.finalize(c, log.append, name)
                yield c
                del c
        def f(log):
            for c in map(lambda c: c, g(log)):
                del c
                log.append("body")
    """)
    plain, probed = [], []
    module.f(plain)
    listening(module, "f", probed, recorder=Forgetful())
    assert probed == plain


# --- methods looked up now and called later


def test_a_method_that_is_kept_announces_each_call(announced):
    source = """
        def f(c):
            add, get = c.append, c.__getitem__
            add(1), get(0), list(map(c.index, (1,)))
    """
    heard = [(op, key) for op, _, key in announced(source, [])]
    assert heard == [("container write", None), ("item read", 0), ("container read", None)]


def test_a_method_that_is_kept_is_like_the_real_one(make_module, listening):
    module = make_module("""
        def f(c, out): out.append(c.append)
    """)
    c, out = [], []
    listening(module, "f", c, out, recorder=Forgetful())
    (kept,) = out
    assert kept == c.append
    assert c.append == kept
    assert kept != [].append
    assert hash(kept) == hash(c.append)
    assert (repr(kept), kept.__name__, kept.__self__) == (repr(c.append), "append", c)
    assert kept.__doc__ == list.append.__doc__
    kept(3)
    assert c == [3]


# --- modules


def test_an_import_in_a_function_reads_or_writes_the_table_of_modules(announced):
    source = """
        import importlib, sys
        def f():
            import json, json.decoder as d
            from json import encoder
            importlib.import_module("json")
            __import__("json")
            sys.modules.pop("this", None)
            try: import this_is_no_module
            except ImportError: pass
            globals()["x"] = 1
    """
    assert [(op, key) for op, _, key in announced(source)] == [
        ("item read", "json"),
        ("item read", "json.decoder"),
        ("item read", "json"),
        ("item read", "json"),
        ("item read", "json"),
        ("item write", "this"),
        ("item write", "this_is_no_module"),
        ("item write", "x"),
    ]


def test_a_relative_import_is_of_the_whole_name(announced):
    source = """
        __package__, __spec__ = "email", None
        def f():
            from . import utils
            from .mime import text
            from .charset import Charset
    """
    assert [key for _, _, key in announced(source)] == ["email", "email.mime", "email.charset"]


# --- locks


def test_a_lock_can_be_replaced_where_it_is_used(make_module, listening, recorder):
    class Shadow:
        def __init__(self):
            self.calls = []

        def __enter__(self):
            self.calls.append("enter")

        def __exit__(self, *error):
            self.calls.append("exit")

        def acquire(self):
            self.calls.append("acquire")

        release = acquire

    module = make_module("""
        import threading
        lock = threading.Lock()
        rlock = threading.RLock()
        def f():
            with lock: pass
            lock.acquire()
            take = lock.acquire
            take()
            with rlock: pass
    """)
    shadow = Shadow()
    recorder.stand_ins = {id(module.lock): shadow, id(module.rlock): shadow}
    listening(module, "f")
    assert shadow.calls == ["enter", "exit", "acquire", "acquire", "enter", "exit"]
    assert not module.lock.locked()
    assert {op for op, _, _ in recorder.heard} == {"synchronisation"}


def test_other_types_can_be_routed(make_module, listening, recorder):
    module = make_module("""
        import threading
        event = threading.Event()
        def f(): event.set()
    """)
    recorder.stand_ins[id(module.event)] = thing(set=lambda: None)
    probes.route(threading.Event)
    try:
        listening(module, "f")
    finally:
        probes._routed.discard(threading.Event)
    assert not module.event.is_set()


# --- what stays as it is


def test_nothing_is_announced_for_annotations_and_patterns(announced):
    source = """
        class P:
            __match_args__ = ("x",)
            def __init__(self): self.x = 1
            y = 2
        def f():
            def g(a: P.y = 3, *b: P.y) -> P.y: pass
            v: P.y = 4
            match P():
                case P(x=P.y) | P(1): return v
    """
    assert [text for _, text, _ in announced(source)] == ["self.x"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters")
def test_type_parameters_are_left_alone(announced):
    source = """
        class C[T: (int, str)]:
            def __init__[S](self, x: T, y: S): self.x = x
        type Alias[T] = dict[T, C.x]
        def f[T](a: T = 1):
            def g[S: T](b: S): return b
            return C[int](g(a), a).x
    """
    assert [key for _, _, key in announced(source)] == ["x", "x"]


def test_the_working_variables_are_invisible(make_module, listening):
    module = make_module("""
        def f(o, out):
            o.d[o.k] += 1
            out.append((sorted(locals()), sorted(vars()), dir()))
        def store(o): o.d = o.k = 0
    """)
    out = []
    listening(module, "f", thing(d={1: 1}, k=1), out)
    assert out == [(["o", "out"],) * 3]


def test_a_temporary_object_dies_when_it_did_before(make_module, listening):
    module = make_module("""
        import weakref
        class C(dict): pass
        def make(log):
            c = C({1: 2})
            weakref.finalize(c, log.append, "gone")
            c.x = 1
            return c
        def f(log):
            make(log)[1]
            log.append("item")
            make(log).x += 1
            log.append("attribute")
            make(log)[1] += 1
            log.append("both")
            make(log).get(log.count(5), log.count(6))
            log.append("late")
            log.count(7) in make(log)
            log.append("in")
    """)
    log = []
    listening(module, "f", log, recorder=Forgetful())
    assert log == [
        *("gone", "item", "gone", "attribute", "gone", "both"),
        *("gone", "late", "gone", "in"),
    ]


def test_without_a_sink_nothing_happens(make_module):
    module = make_module("""
        import threading
        lock = threading.Lock()
        n = 0
        def f(o):
            global n
            with lock: n += 1
            o.x = [o.x for _ in o.d if o.x in o.d]
            return n
    """)
    o = thing(x=1, d={1: 1})
    with swap.instrumented([module]):
        assert module.f(o) == 1
    assert o.x == [1]


def test_sites_name_place_and_order(make_module, listening):
    module = make_module("""
        class C:
            def m(self):
                self.a = 1
                return (lambda: self.a + self.a)()
        def f(): C().m()
    """)
    sites = listening(module, "f").sites
    assert [(site.function, site.ordinal, site.line) for site in sites] == [
        ("C.m", 0, 4),
        ("C.m.<locals>.<lambda>", 0, 5),
        ("C.m.<locals>.<lambda>", 1, 5),
    ]
    assert {site.file for site in sites} == {module.__file__}


def test_a_class_with_a_size_is_not_asked_for_it(announced):
    source = """
        class Sized(type):
            def __len__(cls):
                return len(cls.items)

        class Styles(metaclass=Sized):
            pass

        def f():
            Styles.items = ()
            return len(Styles)
    """
    assert announced(source) == [
        ("attribute write", "Styles.items", "items"),
        ("attribute read", "cls.items", "items"),
    ]
