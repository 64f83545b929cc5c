"""Each construct announces exactly what it is about to access, in order."""

import sys
import threading
from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace

import pytest

from pytest_freethread.instrument import probes, swap


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
        ("c[5]", defaultdict(list), ("item write", 5)),
        ("c[5]", defaultdict(list, {5: 1}), ("item read", 5)),
        ("c.append(1)", [], ("container write", None)),
        ("c.append(1)", deque(), ("container write", None)),
        ("c.get(1)", {}, ("item read", 1)),
        ("c.pop(1, 2)", {}, ("item write", 1)),
        ("c.setdefault(1, 2)", {}, ("item write", 1)),
        ("c.update(a=1)", {}, ("container write", None)),
        ("c.move_to_end(1)", OrderedDict({1: 1}), ("container write", None)),
        ("c.add(1)", set(), ("item write", 1)),
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
    ],
)
def test_one_operation_on_a_container(announced, expression, container, expected):
    source = f"""
        import bisect, heapq
        from heapq import heappop
        def f(c): return {expression}
    """
    heard = [(op, key) for op, _, key in announced(source, container)]
    assert heard == ([] if expected is None else [expected])


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
    assert [op for op, _, _ in recorder.heard] == ["iteration step"] * 3
    assert all(obj is container for obj in recorder.objects)


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
    assert [key for _, _, key in announced(source)] == list("ababbaabba")


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
