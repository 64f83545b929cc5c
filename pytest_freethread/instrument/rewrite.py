"""The rewriting of a module's functions: every access to what threads may share gets its probe.

Only the insides of functions change, since only they run again once a module is loaded. Order of
evaluation, positions in the source, exceptions and the lifetime of temporary objects stay exactly
as they were:

- an access wraps the expression it is made on (`a.b` → `read(a, …).b`), so the load is native;
- an access that needs two values at one moment keeps the first one in a temporary variable, which
  is overwritten as soon as it was passed on: `E[k]` → `(t := E)[item_read(t, (t := site), k)]`. A
  plain local name needs no temporary. In comprehensions and class bodies a temporary would belong
  to somebody else: there an item is loaded by `getitem(*item_pair(E, k, …))`, and a call that
  would need one goes `through` another;
- a method call on a container is announced when its arguments are there: before the call, if no
  argument announces anything itself, else around the last argument;
- a variable is announced in front of its load: `global_read(…) and x`;
- an augmented assignment is taken apart into its load, its operation and its store;
- a generator announces a token of its own at its beginning and after each `yield`, so that there
  is a moment at which it runs; a generator expression does so where it takes its next element;
- a container's method that is looked up without a call becomes something that announces each call.

Not announced: containers that an operator reads (`a + b`; but `==` is) or a format shows; a
generator's `close` and `throw`; names bound by `except … as`, `def`, `class`, `import a.b` or a
match pattern, even if they are global or captured; attributes that a class pattern reads;
comprehension variables that a lambda captures; a global's load if only another module rebinds it
(as `module.name = …`).
"""

from __future__ import annotations

import ast
import builtins
import operator
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar, cast

from pytest_freethread.instrument import probes
from pytest_freethread.instrument.effects import (
    ARGUMENT_READING_METHODS,
    LAZY_READERS,
    METHODS,
    READERS,
    SYNCHRONISERS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda"
_T = TypeVar("_T")
_Node = TypeVar("_Node", bound=ast.AST)

PREFIX: Final = "@freethread"
"""What the variables of the rewriting begin with; no source can name them."""

CONSTANTS: Final[dict[str, object]] = {
    f"{PREFIX}:{constant.__name__}": constant
    for constant in (
        *(probes.read, probes.write, probes.item_read, probes.item_write, probes.item_delete),
        probes.item_pair,
        *(probes.global_read, probes.global_write, probes.cell_read, probes.cell_write),
        *(probes.iterate, probes.walk, probes.delegate, probes.spread, probes.contains),
        *(probes.truth, probes.compared, probes.inplace, probes.bound, probes.namespace),
        *(probes.imports, probes.generator, probes.resumed, probes.resumed_at_steps),
        *(probes.receiver, probes.enter, probes.method, probes.late_method, probes.argument),
        *(probes.late_function, probes.late_raw, probes.through, probes.visible),
        *(slice, operator.getitem, builtins.globals),
    )
} | {
    f"{PREFIX}:LAST": probes.LAST,
    f"{PREFIX}:UNKNOWN": probes.UNKNOWN,
}
"""The strings in the rewritten code that stand for objects, and these objects."""

SITE: Final = f"{PREFIX}#"
"""What the strings begin with that stand for a site; its number in the module comes next."""

_TOKEN: Final = f"{PREFIX}0"
"""The variable in a generator's body that stands for the generator."""

_FOREIGN = {"@pytest_ar", "@py_builtins"}
_INPLACE = {
    ast.Add: "__iadd__",
    ast.Mult: "__imul__",
    ast.BitOr: "__ior__",
    ast.BitAnd: "__iand__",
    ast.Sub: "__isub__",
    ast.BitXor: "__ixor__",
}


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A module with its probes in.

    Attributes:
        tree: ready to be compiled; in the code, the strings in `CONSTANTS` are to be replaced, and
            those that begin with `SITE` by the index of that site.
        sites: where something is announced.
        stored: the names of attributes and rebound globals that its functions store.
    """

    tree: ast.Module
    sites: tuple[probes.Site, ...]
    stored: frozenset[str]


def rewrite(tree: ast.Module, source: bytes, file: str) -> Rewritten:
    """Put probes into all functions of a module, in place.

    Args:
        tree: the parsed module, with pytest's assertions already rewritten if they shall be.
        source: what it was parsed from, as bytes: positions in a tree count UTF-8.
        file: the path that its code objects name.
    """
    scopes = _Scopes(tree)
    rewriter = _Rewriter(scopes, source, file)
    rewriter.visit(tree)
    stored = frozenset(rewriter.stored | scopes.rebound_globals)
    return Rewritten(tree=tree, sites=tuple(rewriter.sites), stored=stored)


def mangle(name: str, class_name: str | None) -> str:
    """The name under which a class-private one is stored (language reference, 6.2.1)."""
    stripped = (class_name or "").lstrip("_")
    if not stripped or not name.startswith("__") or name.endswith("__") or "." in name:
        return name
    return f"_{stripped}{name}"


# --- walking --------------------------------------------------------------------------------------
# `ast` looks a visitor's method up by name for each node, and walks with generators within
# generators; on large packages that is more than half of all the time.

_NO_CHILDREN: Final = frozenset(
    (
        *("arg", "asname", "attr", "conversion", "ctx", "id", "is_async", "kwd_attrs", "level"),
        *("module", "op", "ops", "rest", "simple", "type_comment", "type_ignores"),
    )
)
"""Fields that hold no nodes, or nodes that nobody asks for: a context, an operator."""


class _ByType(dict[type[ast.AST], _T]):
    """What is to be found out once for each type of node."""

    def __init__(self, find: Callable[[type[ast.AST]], _T]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, kind: type[ast.AST]) -> _T:
        found = self[kind] = self._find(kind)
        return found


def _child_fields(kind: type[ast.AST]) -> tuple[str, ...]:
    fields = () if kind is ast.Constant else kind._fields
    return tuple(name for name in fields if name not in _NO_CHILDREN)


_CHILD_FIELDS: Final = _ByType(_child_fields)


def _children(node: ast.AST) -> list[ast.AST]:
    children: list[ast.AST] = []
    for name in _CHILD_FIELDS[type(node)]:
        value = getattr(node, name, None)
        if type(value) is list:
            children += [child for child in value if isinstance(child, ast.AST)]
        elif isinstance(value, ast.AST):
            children.append(value)
    return children


def locate(tree: ast.AST) -> None:
    """Give nodes that begin somewhere and end nowhere, as pytest's do, an end where they begin."""
    node: Any
    for node in ast.walk(tree):
        if getattr(node, "lineno", None) is not None and getattr(node, "end_lineno", None) is None:
            node.end_lineno, node.end_col_offset = node.lineno, node.col_offset


class _Visitor(ast.NodeVisitor):
    """As `ast.NodeVisitor`: a node is given to the method `visit_` of its type's name, if any."""

    _methods: ClassVar[_ByType[Callable[[Any, ast.AST], Any]]]

    def __init_subclass__(cls) -> None:
        cls._methods = _ByType(
            lambda kind: getattr(cls, f"visit_{kind.__name__}", cls.generic_visit)
        )

    def visit(self, node: ast.AST) -> Any:
        return self._methods[type(node)](self, node)

    def generic_visit(self, node: ast.AST) -> Any:
        for child in _children(node):
            self.visit(child)


# --- scopes ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Scope:
    """Where names are bound. `bound` counts the bindings; one within a loop counts twice."""

    kind: str
    parent: _Scope | None
    bound: Counter[str] = field(default_factory=Counter)
    globals: set[str] = field(default_factory=set)
    nonlocals: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    cells: set[str] = field(default_factory=set)
    spread_parameters: set[str] = field(default_factory=set)
    yields: bool = False

    def owner(self, name: str) -> _Scope:
        """The scope whose variable `name` is, seen from here."""
        scope = self
        while scope.parent is not None:
            if name in scope.globals:
                break
            visible = scope is self or scope.kind != "class"
            if visible and name in scope.bound and name not in scope.nonlocals:
                return scope
            scope = scope.parent
        while scope.parent is not None:
            scope = scope.parent
        return scope


class _Scopes(_Visitor):
    """The scopes of a module, and which of its variables are rebound where others can see it."""

    def __init__(self, tree: ast.Module) -> None:
        self.of: dict[ast.AST, _Scope] = {}
        self._scope = self.of[tree] = _Scope("module", None)
        self._all = [self._scope]
        self._loops = 0
        self._suspends = False
        for statement in tree.body:
            self.visit(statement)
        self.rebound_globals = {
            name
            for scope in self._all
            for name in scope.globals & scope.bound.keys()
            if scope.kind != "module"
        }
        for scope in self._all:
            for name in scope.used | scope.nonlocals:
                owner = scope.owner(name)
                rebound = name in scope.nonlocals or owner.bound[name] > 1
                if owner is not scope and owner.kind == "function" and rebound:
                    owner.cells.add(name)

    def _bind(self, name: str) -> None:
        self._scope.bound[name] += 1 + (self._loops > 0)

    def _within(self, node: ast.AST, kind: str) -> Iterator[None]:
        before = self._scope, self._loops, self._suspends
        self._scope, self._loops = _Scope(kind, self._scope), 0
        self.of[node] = self._scope
        self._all.append(self._scope)
        yield
        self._scope, self._loops, self._suspends = before

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def _function(self, node: _Function) -> None:
        arguments = node.args
        self._visit_all((*arguments.defaults, *arguments.kw_defaults))
        if not isinstance(node, ast.Lambda):
            self._visit_all(node.decorator_list)
            self._bind(node.name)
        for _ in self._within(node, "function"):
            for argument in _parameters(arguments):
                self._bind(argument.arg)
            for parameter in getattr(node, "type_params", ()):
                self._bind(parameter.name)
            for spread in (arguments.vararg, arguments.kwarg):
                if spread is not None:
                    self._scope.spread_parameters.add(spread.arg)
            self._suspends = isinstance(node, ast.FunctionDef)
            self._visit_all([node.body] if isinstance(node, ast.Lambda) else node.body)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all((*node.decorator_list, *node.bases, *node.keywords))
        self._bind(node.name)
        for _ in self._within(node, "class"):
            for parameter in getattr(node, "type_params", ()):
                self._bind(parameter.name)
            self._visit_all(node.body)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> None:
        self.visit(node.generators[0].iter)
        for _ in self._within(node, "comprehension"):
            for number, generator in enumerate(node.generators):
                self.visit(generator.target)
                self._visit_all(([generator.iter] if number else []) + generator.ifs)
            if isinstance(node, ast.DictComp):
                self._visit_all((node.key, node.value))
            else:
                self.visit(node.elt)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        inner = self._scope
        while self._scope.kind == "comprehension" and self._scope.parent is not None:
            self._scope = self._scope.parent
        self._bind(node.target.id)
        self._scope = inner

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While) -> None:
        self._loops += 1
        self.generic_visit(node)
        self._loops -= 1

    visit_For = visit_AsyncFor = visit_While = _loop  # noqa: N815

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._scope.used.add(node.id)
        else:
            self._bind(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._scope.used.add(node.target.id)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all((node.value, node.target))

    def _yield(self, node: ast.Yield | ast.YieldFrom) -> None:
        self._scope.yields = self._suspends
        self.generic_visit(node)

    visit_Yield = visit_YieldFrom = _yield  # noqa: N815

    def visit_Global(self, node: ast.Global) -> None:
        self._scope.globals.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self._scope.nonlocals.update(node.names)

    def visit_alias(self, node: ast.alias) -> None:
        self._bind(_bound_by(node))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name is not None:
            self._bind(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name is not None:
            self._bind(node.name)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs  # noqa: N815

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest is not None:
            self._bind(node.rest)
        self.generic_visit(node)

    def visit_TypeAlias(self, node: ast.AST) -> None:
        self._bind(cast("ast.Name", node.name).id)  # type: ignore[attr-defined] # since 3.12


def _parameters(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None)


def _bound_by(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


# --- making nodes ---------------------------------------------------------------------------------
# By position, since keywords cost a node more than all the rest.

_LOAD: Final = ast.Load()
_STORE: Final = ast.Store()


def _constant(value: object) -> ast.Constant:
    return ast.Constant(value)  # type: ignore[arg-type] # ints and strings


def site_constant(number: int) -> ast.Constant:
    """What stands for a site of the module, to be replaced in its code."""
    return _constant(f"{SITE}{number}")


def _load(name: str) -> ast.Name:
    return ast.Name(name, _LOAD)


def _store(name: str) -> ast.Name:
    return ast.Name(name, _STORE)


def _keep(name: str, value: ast.expr) -> ast.NamedExpr:
    return ast.NamedExpr(_store(name), value)


def _at(node: _Node, like: ast.AST) -> _Node:
    """Give a new node, and all that is new in it, the place of another one."""
    place: Any = like
    _place(node, (place.lineno, place.col_offset, place.end_lineno, place.end_col_offset))
    return node


def _place(node: Any, place: tuple[int, int, int | None, int | None]) -> None:
    node.lineno, node.col_offset, node.end_lineno, node.end_col_offset = place
    for name in _CHILD_FIELDS[type(node)]:
        value = getattr(node, name)
        for child in value if type(value) is list else (value,):
            if child is not None and not hasattr(child, "lineno"):
                _place(child, place)


def _call(probe: Callable[..., object], *arguments: ast.expr, like: ast.AST) -> ast.Call:
    function = _constant(f"{PREFIX}:{probe.__name__}")
    return _at(ast.Call(function, list(arguments), []), like)


def _assign(target: ast.expr, value: ast.expr, *, like: ast.AST) -> ast.Assign:
    return _at(ast.Assign([target], value), like)


def _root(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _binds(*nodes: ast.AST) -> bool:
    return any(isinstance(inner, ast.NamedExpr) for node in nodes for inner in ast.walk(node))


# --- the rewriting --------------------------------------------------------------------------------


class _Rewriter(_Visitor):
    def __init__(self, scopes: _Scopes, source: bytes, file: str) -> None:
        self.sites: list[probes.Site] = []
        self.stored: set[str] = set()
        self._scopes = scopes
        self._lines = source.splitlines(keepends=True)
        self._file = file
        self._scope = scopes._all[0]  # noqa: SLF001 - the two passes are one algorithm
        self._class_name: str | None = None
        self._qualified = ""
        self._ordinals: Counter[str] = Counter()
        self._temporaries = 0
        self._in_comprehension = 0
        self._in_old_fstring = 0
        self._consumed: set[ast.expr] = set()  # announced by what takes them, right there

    # --- sites and names

    def _site(self, node: ast.AST, kind: probes.Kind, name: str | None = None) -> ast.Constant:
        function, place = self._qualified, cast("ast.expr", node)
        ordinal = self._ordinals[function]
        self._ordinals[function] = ordinal + 1
        self.sites.append(
            probes.Site(self._file, place.lineno, function, ordinal, kind, self._text(place), name)
        )
        return site_constant(len(self.sites) - 1)

    def _text(self, node: ast.expr | ast.stmt) -> str:
        first, last, end = node.lineno - 1, node.end_lineno, node.end_col_offset
        if self._in_old_fstring or last is None or end is None or last > len(self._lines):
            return ast.unparse(node)
        if last == first + 1:
            source = self._lines[first][node.col_offset : end]
        else:
            lines = self._lines[first:last]
            lines[-1] = lines[-1][:end]
            lines[0] = lines[0][node.col_offset :]
            source = b"".join(lines)
        return " ".join(source.decode(errors="replace").split())

    def _mangled(self, name: str) -> str:
        return mangle(name, self._class_name)

    @property
    def _may_keep(self) -> bool:
        return self._scope.kind == "function" and not self._in_comprehension

    def _temporary(self) -> str:
        self._temporaries += 1
        return f"{PREFIX}{self._temporaries}"

    def _probed(self, name: str) -> str | None:
        """Whether a variable is a `"global"` or a `"cell"` to be announced."""
        owner = self._scope.owner(name)
        if owner.kind == "module":
            return "global" if name in self._scopes.rebound_globals else None
        return "cell" if name in owner.cells else None

    def _is_quiet(self, node: ast.expr) -> bool:
        """Whether evaluating it announces nothing, runs nothing and may happen twice."""
        if isinstance(node, ast.Name):
            return self._probed(node.id) is None
        return isinstance(node, ast.Constant)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in _CHILD_FIELDS[type(node)]:
            value = getattr(node, name, None)
            if type(value) is list:
                if value and isinstance(value[0], ast.AST):
                    value[:] = self._all(value)
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def _expression(self, node: ast.expr) -> ast.expr:
        return cast("ast.expr", self.visit(node))

    def _all(self, nodes: Iterable[_Node]) -> list[_Node]:
        result: list[_Node] = []
        for node in nodes:
            visited = self.visit(node)
            result.extend(visited if isinstance(visited, list) else [visited])
        return result

    # --- scopes

    def _entered(self, node: ast.AST, *names: str) -> Iterator[None]:
        before = self._scope, self._class_name, self._qualified, self._temporaries
        comprehension = self._in_comprehension
        self._scope = self._scopes.of[node]
        self._qualified = ".".join(filter(None, (self._qualified, *names)))
        self._temporaries = 0
        yield
        self._scope, self._class_name, self._qualified, self._temporaries = before
        self._in_comprehension = comprehension

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self._find_functions(node.body)
        return node

    def _find_descriptors(self, node: ast.ClassDef) -> None:
        """Whatever is made in a class may store itself into instances, as a cached property."""
        for statement in node.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                plain = all(_named(each) in _PLAIN_DECORATORS for each in statement.decorator_list)
                names = [] if plain else [statement.name]
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                names = [each.id for each in statement.targets if isinstance(each, ast.Name)]
            else:
                continue
            self.stored.update(mangle(name, node.name) for name in names)

    def _find_functions(self, nodes: Iterable[ast.AST]) -> None:
        """Walk over code that does not run again, down to the functions in it."""
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._find_functions((*node.decorator_list, node.args))
                self._body(node)
            elif isinstance(node, ast.Lambda):
                self._find_functions((node.args,))
                self._body(node)
            elif isinstance(node, ast.ClassDef):
                self._find_functions((*node.decorator_list, *node.bases, *node.keywords))
                self._find_descriptors(node)
                for _ in self._entered(node, node.name):
                    self._class_name = node.name
                    self._find_functions(node.body)
            elif node in self._scopes.of:
                for _ in self._entered(node):
                    self._in_comprehension += 1
                    self._find_functions(_children(node))
            else:
                self._find_functions(_children(node))

    def _body(self, node: _Function) -> None:
        name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
        for _ in self._entered(node, name):
            if isinstance(node, ast.Lambda):
                node.body = self._expression(node.body)
            else:
                docstring = (
                    node.body[:1] if ast.get_docstring(node, clean=False) is not None else []
                )
                rest = node.body[len(docstring) :]
                begun = [self._begun(rest[0])] if self._scope.yields else []
                node.body = docstring + begun + self._all(rest)

    def _inner_function(self, node: _Function) -> _Function:
        node.args.defaults = self._all(node.args.defaults)
        node.args.kw_defaults = [
            None if default is None else self._expression(default)
            for default in node.args.kw_defaults
        ]
        if not isinstance(node, ast.Lambda):
            node.decorator_list = self._all(node.decorator_list)
        qualified = self._qualified
        if self._scope.kind != "class":
            self._qualified += ".<locals>"
        self._body(node)
        self._qualified = qualified
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _inner_function  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.decorator_list = self._all(node.decorator_list)
        node.bases = self._all(node.bases)
        node.keywords = self._all(node.keywords)
        self._find_descriptors(node)
        inside = ("<locals>",) if self._scope.kind != "class" else ()
        for _ in self._entered(node, *inside, node.name):
            self._class_name = node.name
            docstring = node.body[:1] if ast.get_docstring(node, clean=False) is not None else []
            node.body = docstring + self._all(node.body[len(docstring) :])
        return node

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> ast.expr:
        self._in_comprehension += 1
        first = node.generators[0]
        first.iter = self._iterated(first.iter)
        shared = isinstance(node, ast.GeneratorExp) and node not in self._consumed
        if shared and not first.is_async:
            site = self._site(node, "iterate")
            first.iter = _call(probes.resumed_at_steps, first.iter, site, like=first.iter)
        for _ in self._entered(node):
            for number, generator in enumerate(node.generators):
                generator.target = self._expression(generator.target)
                if number:
                    generator.iter = self._iterated(generator.iter)
                generator.ifs = [self._tested(condition) for condition in generator.ifs]
            if isinstance(node, ast.DictComp):
                node.key, node.value = self._expression(node.key), self._expression(node.value)
            else:
                node.elt = self._expression(node.elt)
        self._in_comprehension -= 1
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        # Before 3.12 the positions within an f-string are not those in the file.
        self._in_old_fstring += sys.version_info < (3, 12)
        self.generic_visit(node)
        self._in_old_fstring -= sys.version_info < (3, 12)
        return node

    # --- what stays as it is: annotations, type parameters, patterns

    def visit_TypeAlias(self, node: ast.AST) -> ast.AST:
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.match_case:
        if node.guard is not None:
            node.guard = self._tested(node.guard)
        node.body = self._all(node.body)
        return node

    # --- attributes

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.ctx, ast.Load):
            return self._attribute_load(node)
        key = self._mangled(node.attr)
        self.stored.add(key)
        kind: probes.Kind = "write" if isinstance(node.ctx, ast.Store) else "delete"
        site = self._site(node, kind, key)
        owner = self._expression(node.value)
        named = _constant(None if key == "__dict__" else key)
        node.value = _call(probes.write, owner, named, site, like=node.value)
        return node

    def _attribute_load(self, node: ast.Attribute) -> ast.expr:
        if _root(node) in _FOREIGN:
            return node
        key = self._mangled(node.attr)
        silent = (key.startswith("__") and key.endswith("__")) or self._is_super(node.value)
        site = _constant(0) if silent else self._site(node, "read", key)
        value = self._expression(node.value)
        if key == "__dict__":
            value = _call(probes.namespace, value, like=value)
        if not silent:
            probe = probes.receiver if key in SYNCHRONISERS else probes.read
            value = _call(probe, value, _constant(key), site, like=value)
        node.value = value
        if key not in METHODS or self._is_super(node.value):
            return node
        site = self._site(node, "call", key)
        return _call(probes.bound, node, _constant(key), site, like=node)

    @staticmethod
    def _is_super(node: ast.expr) -> bool:
        """`super()` finds what the class has, and the compiler wants to see it as it is."""
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "super"
        )

    # --- items

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if _root(node) in _FOREIGN:
            return node
        if isinstance(node.value, _FRESH):
            return cast("ast.expr", self.generic_visit(node))
        self._consumed.add(node.value)
        kind, probe, method = _ITEM_PROBES[type(node.ctx)]
        site: ast.expr = self._site(node, kind)
        if self._is_quiet(node.value):
            owner = announced = node.value
        elif self._may_keep:
            # Not reserved: what is in it is used up before anything else can be evaluated.
            temporary = f"{PREFIX}{self._temporaries + 1}"
            owner = _keep(temporary, self._expression(node.value))
            announced, site = _load(temporary), _keep(temporary, site)
        elif isinstance(node.ctx, ast.Load):
            pair = (self._expression(node.value), self._key(node.slice), site)
            both = ast.Starred(value=_call(probes.item_pair, *pair, like=node), ctx=_LOAD)
            return _call(operator.getitem, both, like=node)
        else:
            whole = (self._expression(node.value), _constant(method), site, _constant(None))
            node.value = _call(probes.method, *whole, like=node.value)
            node.slice = self._expression(node.slice)
            return node
        node.value = _at(owner, node.value)
        node.slice = _call(probe, announced, site, self._key(node.slice), like=node.slice)
        return node

    def _key(self, node: ast.expr) -> ast.expr:
        """What stands between the brackets, as a value."""
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            values = [_constant(None) if part is None else self._expression(part) for part in parts]
            return _call(slice, *values, like=node)
        if isinstance(node, ast.Tuple) and any(isinstance(e, ast.Slice) for e in node.elts):
            node.elts = [self._key(element) for element in node.elts]
            return node
        return self._expression(node)

    # --- variables

    def visit_Name(self, node: ast.Name) -> ast.expr:
        scope = self._probed(node.id)
        if scope is None or not isinstance(node.ctx, ast.Load):
            return node
        key = self._mangled(node.id)
        site = self._site(node, "read", key)
        probe = probes.global_read if scope == "global" else probes.cell_read
        announced = _call(probe, self._holder(node.id, node), _constant(key), site, like=node)
        return _at(ast.BoolOp(op=ast.And(), values=[announced, node]), node)

    def _holder(self, name: str, like: ast.AST) -> ast.expr:
        """An expression for what holds a variable: the module's dict, or a closure of its cell."""
        if self._probed(name) == "global":
            return _call(builtins.globals, like=like)
        arguments = ast.arguments(
            posonlyargs=[], args=[], vararg=ast.arg(arg=PREFIX), kwonlyargs=[], kw_defaults=[],
            kwarg=None, defaults=[],
        )  # fmt: skip
        return _at(ast.Lambda(args=arguments, body=_load(name)), like)

    def _bound(
        self, name: str, value: ast.expr, like: ast.expr | ast.stmt, kind: probes.Kind = "write"
    ) -> ast.expr:
        """`value`, with the binding of `name` to it announced if it is worth it."""
        scope = self._probed(name)
        if scope is None:
            return value
        key = self._mangled(name)
        site = self._site(like, kind, key)
        probe = probes.global_write if scope == "global" else probes.cell_write
        return _call(probe, value, self._holder(name, like), _constant(key), site, like=like)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.NamedExpr:
        node.value = self._bound(node.target.id, self._expression(node.value), node)
        return node

    def _binds_probed(self, target: ast.expr) -> bool:
        if isinstance(target, (ast.Tuple, ast.List)):
            return any(self._binds_probed(element) for element in target.elts)
        if isinstance(target, ast.Starred):
            return self._binds_probed(target.value)
        return isinstance(target, ast.Name) and self._probed(target.id) is not None

    def _bind(self, target: ast.expr, value: ast.expr, like: ast.stmt) -> list[ast.stmt]:
        """Statements for `target = value`, one store after the other as the interpreter does it."""
        if isinstance(target, ast.Name):
            return [_assign(target, self._bound(target.id, value, target), like=like)]
        if not self._binds_probed(target):
            return [_assign(self._expression(target), value, like=like)]
        assert isinstance(target, (ast.Tuple, ast.List))
        before = self._temporaries
        elements, kept = target.elts, [self._temporary() for _ in target.elts]
        target.elts = [
            _at(ast.Starred(value=_store(name), ctx=_STORE), target)
            if isinstance(element, ast.Starred)
            else _at(_store(name), target)
            for name, element in zip(kept, elements, strict=True)
        ]
        statements: list[ast.stmt] = [_assign(target, value, like=like)]
        for name, element in zip(kept, elements, strict=True):
            inner = element.value if isinstance(element, ast.Starred) else element
            statements += [*self._bind(inner, _load(name), like), _clear(name, like=like)]
        self._temporaries = before
        return statements

    # --- statements

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | list[ast.stmt]:
        unpacked = any(isinstance(target, (ast.Tuple, ast.List)) for target in node.targets)
        if unpacked and not isinstance(node.value, (*_FRESH, ast.Tuple)):
            node.value = self._spread(node.value, "unpack")
        else:
            node.value = self._expression(node.value)
        if not any(self._binds_probed(target) for target in node.targets):
            node.targets = self._all(node.targets)
            return node
        if len(node.targets) == 1:
            return self._bind(node.targets[0], node.value, node)
        before, name = self._temporaries, self._temporary()
        statements: list[ast.stmt] = [_assign(_store(name), node.value, like=node)]
        for target in node.targets:
            statements += self._bind(target, _load(name), node)
        self._temporaries = before
        return [*statements, _clear(name, like=node)]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        if node.value is not None:
            node.value = self._expression(node.value)
            if isinstance(node.target, ast.Name):
                node.value = self._bound(node.target.id, node.value, node)
            else:
                node.target = cast("ast.Attribute | ast.Subscript", self.visit(node.target))
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt | list[ast.stmt]:
        target = node.target
        if isinstance(target, ast.Name) and self._probed(target.id) is None:
            node.value = self._changing(target.id, node)
            return node
        if not self._may_keep:  # a class body: one announcement has to do
            if not isinstance(target, ast.Name):
                node.target = cast("ast.Attribute | ast.Subscript", self.visit(target))
            node.value = self._expression(node.value)
            return node
        before, result = self._temporaries, self._temporary()
        if isinstance(target, ast.Name):
            load, setup = self._expression(_at(_load(target.id), target)), list[ast.stmt]()
        else:
            load, store, setup = self._update(target, node, result)
        operation = ast.AugAssign(target=_store(result), op=node.op, value=node.value)
        operation.value = self._changing(result, node)
        if isinstance(target, ast.Name):
            store = target
            cleared = ast.Tuple(elts=[_load(result), _keep(result, _constant(None))], ctx=_LOAD)
            first = ast.Subscript(value=cleared, slice=_constant(0), ctx=_LOAD)
            value = self._bound(target.id, first, node, "update")
        else:
            value = _load(result)
        self._temporaries = before
        return [
            *setup,
            _assign(_store(result), load, like=node),
            _at(operation, node),
            _assign(store, value, like=node),
        ]

    def _update(
        self, target: ast.Attribute | ast.Subscript, node: ast.AugAssign, result: str
    ) -> tuple[ast.expr, ast.expr, list[ast.stmt]]:
        """The load and the store of `target op= …`, and what evaluates its parts before, once.

        The store is the last to use the temporaries, and overwrites them as it is evaluated.
        """
        setup: list[ast.stmt] = []
        kept: list[str] = []

        def once(part: ast.expr, value: Callable[[ast.expr], ast.expr]) -> Callable[[], ast.expr]:
            if self._is_quiet(part) and not _binds(node.value):
                if isinstance(part, ast.Name):
                    return lambda: _at(_load(part.id), part)
                return lambda: part
            name = self._temporary()
            kept.append(name)
            setup.append(_assign(_store(name), value(part), like=node))
            return lambda: _at(_load(name), part)

        owner = once(target.value, self._expression)
        if isinstance(target, ast.Attribute):
            key = self._mangled(target.attr)
            self.stored.add(key)
            read, write = self._site(target, "read", key), self._site(target, "update", key)
            announced = _call(probes.read, owner(), _constant(key), read, like=target.value)
            load: ast.expr = ast.Attribute(value=announced, attr=target.attr, ctx=_LOAD)
            clear = _clearing((result, *kept), write)
            announced = _call(probes.write, owner(), _constant(key), clear, like=target.value)
            store: ast.expr = ast.Attribute(value=announced, attr=target.attr, ctx=_STORE)
        else:
            index = once(target.slice, self._key)
            read, write = self._site(target, "read"), self._site(target, "update")
            announced = _call(probes.item_read, owner(), read, index(), like=target.slice)
            load = ast.Subscript(value=owner(), slice=announced, ctx=_LOAD)
            clear = _clearing((result, *kept), _constant(None))
            announced = _call(probes.item_write, owner(), write, index(), clear, like=target.slice)
            store = ast.Subscript(value=owner(), slice=announced, ctx=_STORE)
        return _at(load, target), _at(store, target), setup

    def _changing(self, name: str, node: ast.AugAssign) -> ast.expr:
        """The right side of `name op= …`, announcing that a mutable container changes in place."""
        value, operation = node.value, _INPLACE.get(type(node.op))
        if operation is None or isinstance(value, (ast.Constant, ast.JoinedStr)):
            return self._expression(value)
        site = self._site(node, "update")
        return _call(
            probes.inplace, _load(name), _constant(operation), site, self._expression(value),
            like=value,
        )  # fmt: skip

    def visit_Delete(self, node: ast.Delete) -> list[ast.stmt]:
        statements: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Name) and self._probed(target.id) is not None:
                announced = self._bound(target.id, _constant(None), target, "delete")
                statements.append(_at(ast.Expr(value=announced), node))
            single = ast.Delete(targets=[self._expression(target)])
            statements.append(_at(single, node))
        return statements

    def _import(self, node: ast.Import | ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        before, statements = self._temporaries, list[ast.stmt]()
        imported = (
            [(alias.name, 0) for alias in node.names]
            if isinstance(node, ast.Import)
            else [(node.module or "", node.level)]
        )
        announced = [
            _call(
                probes.imports, _call(builtins.globals, like=node), _constant(name),
                _constant(level), self._site(node, "call", name), like=node,
            )
            for name, level in imported
        ]  # fmt: skip
        for alias in node.names:
            name = _bound_by(alias)
            if self._probed(name) is None or (alias.asname is None and "." in alias.name):
                continue
            alias.asname = self._temporary()
            statements += self._bind(_at(_store(name), node), _load(alias.asname), node)
            statements.append(_clear(alias.asname, like=node))
        self._temporaries = before
        calls = [_at(ast.Expr(value=call), node) for call in announced]
        return [*calls, node, *statements]

    visit_Import = visit_ImportFrom = _import  # noqa: N815

    def _for(self, node: ast.For | ast.AsyncFor) -> ast.stmt:
        if isinstance(node, ast.For):
            node.iter = self._iterated(node.iter)
        else:
            node.iter = self._expression(node.iter)
        binding: list[ast.stmt] = []
        if self._binds_probed(node.target):
            before, name = self._temporaries, self._temporary()
            binding = [*self._bind(node.target, _load(name), node), _clear(name, like=node)]
            node.target, self._temporaries = _at(_store(name), node.target), before
        else:
            node.target = self._expression(node.target)
        node.body = binding + self._all(node.body)
        node.orelse = self._all(node.orelse)
        return node

    visit_For = visit_AsyncFor = _for  # noqa: N815

    def _with(self, node: ast.With | ast.AsyncWith) -> ast.stmt:
        for number, item in enumerate(node.items):
            site = self._site(item.context_expr, "lock")
            entered = self._expression(item.context_expr)
            item.context_expr = _call(probes.enter, entered, site, like=entered)
            if item.optional_vars is None:
                continue
            if self._binds_probed(item.optional_vars):
                before, name = self._temporaries, self._temporary()
                binding = self._bind(item.optional_vars, _load(name), node)
                binding.append(_clear(name, like=node))
                item.optional_vars, self._temporaries = _at(_store(name), node), before
                rest, node.items = node.items[number + 1 :], node.items[: number + 1]
                if rest:
                    inner = type(node)(items=rest, body=node.body)
                    node.body = [*binding, self._with(_at(inner, node))]
                else:
                    node.body = binding + self._all(node.body)
                return node
            item.optional_vars = self._expression(item.optional_vars)
        node.body = self._all(node.body)
        return node

    visit_With = visit_AsyncWith = _with  # noqa: N815

    # --- iteration, membership, truth

    def _iterated(self, node: ast.expr) -> ast.expr:
        if _is_fresh(node):
            return self._expression(node)
        site = self._site(node, "iterate")
        probe = probes.walk if _calls(node, {"iter", "reversed"}) else probes.iterate
        return _call(probe, self._expression(node), site, like=node)

    def _spread(self, node: ast.expr, how: str, name: str | None = None) -> ast.expr:
        own = isinstance(node, ast.Name) and node.id in self._scope.spread_parameters
        if own or _is_fresh(node):
            return self._expression(node)
        site = self._site(node, "read", name)
        return _call(probes.spread, self._expression(node), _constant(how), site, like=node)

    def visit_YieldFrom(self, node: ast.YieldFrom) -> ast.YieldFrom:
        if _is_fresh(node.value):
            node.value = self._expression(node.value)
        else:
            site = self._site(node.value, "iterate")
            node.value = _call(probes.delegate, self._expression(node.value), site, like=node.value)
        return node

    def visit_Yield(self, node: ast.Yield) -> ast.expr:
        if node.value is not None:
            node.value = self._expression(node.value)
        if not self._scope.yields:
            return node
        return _call(probes.resumed, _load(_TOKEN), self._site(node, "iterate"), node, like=node)

    def _begun(self, first: ast.stmt) -> ast.stmt:
        """What goes before the first statement of a generator."""
        token = _keep(_TOKEN, _call(probes.generator, like=first))
        site = self._site(first, "iterate")
        call = _call(probes.resumed, token, site, _constant(None), like=first)
        return _at(ast.Expr(value=call), first)

    def visit_Starred(self, node: ast.Starred) -> ast.Starred:
        if isinstance(node.ctx, ast.Load):
            node.value = self._spread(node.value, "*")
        else:
            node.value = self._expression(node.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        values = []
        for number, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
            if key is None:
                values.append(self._spread(value, "**"))
            else:
                node.keys[number] = self._expression(key)
                values.append(self._expression(value))
        node.values = values
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        if node.arg is None:
            node.value = self._spread(node.value, "**")
        else:
            node.value = self._expression(node.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.Compare:
        if any(_root(operand) in _FOREIGN for operand in node.comparators):
            return node
        key: ast.expr = _constant(f"{PREFIX}:UNKNOWN")
        before, temporary = self._temporaries, None
        announced: tuple[type[ast.cmpop], ...] = ast.In, ast.NotIn
        probe: Callable[..., object] = probes.contains
        fresh: tuple[type[ast.AST], ...] = (*_FRESH, ast.Tuple)
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
            if any(map(_is_scalar, (node.left, *node.comparators))):
                return cast("ast.Compare", self.generic_visit(node))
            announced, probe, fresh = (ast.Eq, ast.NotEq), probes.compared, ()
        self._consumed.update(node.comparators)
        left = self._expression(node.left)
        if len(node.ops) == 1 and isinstance(node.ops[0], announced):
            if self._is_quiet(node.left) and not _binds(*node.comparators):
                key = node.left
            elif self._may_keep:
                temporary = self._temporary()
                left, key = _at(_keep(temporary, left), left), _load(temporary)
        node.left = left
        for number, (operation, operand) in enumerate(zip(node.ops, node.comparators, strict=True)):
            visited = self._expression(operand)
            if isinstance(operation, announced) and not isinstance(operand, fresh):
                name = "__contains__" if probe is probes.contains else "__eq__"
                site: ast.expr = self._site(node, "read", name)
                site = _keep(temporary, site) if temporary else site
                visited = _call(probe, visited, key, site, like=operand)
            node.comparators[number] = visited
        self._temporaries = before
        return node

    def _tested(self, node: ast.expr) -> ast.expr:
        """An expression whose truth is asked for."""
        if isinstance(node, ast.BoolOp):
            node.values = [self._tested(value) for value in node.values]
            return node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            node.operand = self._tested(node.operand)
            return node
        asks = isinstance(
            node, (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.NamedExpr, ast.Await)
        )
        plain = (
            not asks
            or _root(node) in _FOREIGN
            or (isinstance(node, ast.Name) and node.id == "__debug__")
            or _calls(node, _NEVER_SHARED)
        )
        if plain:
            return self._expression(node)
        site = self._site(node, "read")
        return _call(probes.truth, self._expression(node), site, like=node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.BoolOp:
        tested = [self._tested(value) for value in node.values[:-1]]
        node.values = [*tested, self._expression(node.values[-1])]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.UnaryOp:
        if isinstance(node.op, ast.Not):
            node.operand = self._tested(node.operand)
        else:
            node.operand = self._expression(node.operand)
        return node

    def visit_If(self, node: ast.If | ast.While) -> ast.stmt:
        node.test = self._tested(node.test)
        node.body = self._all(node.body)
        node.orelse = self._all(node.orelse)
        return node

    visit_While = visit_If  # noqa: N815

    def visit_IfExp(self, node: ast.IfExp) -> ast.IfExp:
        node.test = self._tested(node.test)
        node.body, node.orelse = self._expression(node.body), self._expression(node.orelse)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        node.test = self._tested(node.test)
        if node.msg is not None:
            node.msg = self._expression(node.msg)
        return node

    # --- calls

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if _root(node.func) in _FOREIGN:
            return node
        function = node.func
        name = None
        if isinstance(function, ast.Name):
            name = function.id
        elif isinstance(function, ast.Attribute):
            name = function.attr
            if name in ARGUMENT_READING_METHODS:
                self._consumed.update(node.args)
            if name in probes.RAW and len(node.args) >= 1 and not _has_starred(node):
                return self._raw_call(node, function)
            if name in _CONTAINER_METHODS:
                return self._method_call(node, function)
        if name in READERS:
            self._consumed.update(node.args)
        spread = _has_starred(node)
        if isinstance(function, ast.Name) and self._is_quiet(function):
            if name in {"locals", "vars", "dir"} and not node.args and not node.keywords:
                visible = (_at(_load(name), node), _constant(name), node)
                return _call(probes.visible, *visible, like=node)
            if name in probes.BY_NAME and len(node.args) >= 2 and not spread:
                return self._function_call(node, name, key=1)
            if name in READERS | LAZY_READERS | {"next", "vars"} and node.args:
                return self._reading_call(node, name)
        found_in = function.value if isinstance(function, ast.Attribute) else function
        known = name in probes.FIRST_ARGUMENT_FUNCTIONS and self._is_quiet(found_in)
        if known and name is not None and node.args and not spread:
            return self._function_call(node, name)
        return cast("ast.expr", self.generic_visit(node))

    def _reading_call(self, node: ast.Call, name: str) -> ast.Call:
        if name == "vars" and node in self._consumed:
            node.args = [_call(probes.namespace, *self._all(node.args), like=node)]
            return node
        reading = node.args[:1]
        if name in {"min", "max"} and len(node.args) > 1:
            reading = []
        elif name in {"map", "filter"}:
            reading = node.args[1:]
        elif name == "zip":
            reading = node.args
        arguments = []
        for argument in node.args:
            if argument not in reading or isinstance(argument, ast.Starred) or _is_fresh(argument):
                arguments.append(self._expression(argument))
                continue
            site = self._site(node, "read" if name != "next" else "iterate", name)
            values = (_load(name), _constant(name), site, self._expression(argument))
            arguments.append(_call(probes.argument, *values, like=argument))
        node.args = arguments
        node.keywords = self._all(node.keywords)
        return node

    def _function_call(self, node: ast.Call, name: str, key: int | None = None) -> ast.expr:
        """A call of a function in C that accesses its first argument."""
        if probes.BY_NAME.get(name, 0) & 1 and isinstance(node.args[1], ast.Constant):
            self.stored.add(str(node.args[1].value))
        site = self._site(node, "call", name)
        if not self._may_keep:
            node.func = _call(
                probes.through, self._expression(node.func), _constant(name), site, like=node.func
            )
            return cast("ast.expr", self._visit_arguments(node))
        again = _copy(node.func)
        node.func = self._expression(node.func)
        return self._late(node, probes.late_function, name, site, obj=0, key=key, extra=(again,))

    def _raw_call(self, node: ast.Call, function: ast.Attribute) -> ast.expr:
        """`object.__setattr__(obj, name, value)` or `super().__setattr__(name, value)`."""
        if not self._may_keep:
            return cast("ast.expr", self.generic_visit(node))
        named = 0 if self._is_super(function.value) else 1
        if len(node.args) <= named:
            return cast("ast.expr", self.generic_visit(node))
        name = function.attr
        if probes.RAW[name] & 1 and isinstance(node.args[named], ast.Constant):
            self.stored.add(str(cast("ast.Constant", node.args[named]).value))
        site = self._site(node, "call", name)
        if named:
            node.func = self._expression(function)
            return self._late(node, probes.late_raw, name, site, obj=0, key=1)
        return self._late(node, probes.late_raw, name, site, obj=None, key=0)

    def _method_call(self, node: ast.Call, function: ast.Attribute) -> ast.expr:
        name = self._mangled(function.attr)
        if isinstance(function.value, (*_FRESH, ast.Tuple)) or self._is_super(function.value):
            function.value = self._expression(function.value)
            return self._visit_arguments(node)
        self._consumed.add(function.value)
        site = self._site(node, "call", name)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        reads = name in ARGUMENT_READING_METHODS and bool(values)
        key = 0 if node.args and not isinstance(node.args[0], ast.Starred) else None
        if not reads and all(self._is_quiet(value) for value in values) and not _spreads(node):
            key_ = _constant(None) if key is None else _copy(node.args[0])
            owner = (self._expression(function.value), _constant(name), site, key_)
            function.value = _call(probes.method, *owner, like=function.value)
            return node
        if self._may_keep and not (reads and name not in METHODS):
            return self._late(node, probes.late_method, name, site, obj=None, key=key)
        owner = (self._expression(function.value), _constant(name), site, _constant(None))
        function.value = _call(probes.receiver, *owner[:3], like=function.value)
        if name in METHODS:
            node.func = _call(probes.through, function, _constant(name), site, like=function)
        return self._visit_arguments(node)

    def _visit_arguments(self, node: ast.Call) -> ast.Call:
        node.args = [self._argument(node, argument) for argument in node.args]
        node.keywords = self._all(node.keywords)
        return node

    def _argument(self, call: ast.Call, node: ast.expr) -> ast.expr:
        method = call.func.attr if isinstance(call.func, ast.Attribute) else None
        if method in ARGUMENT_READING_METHODS and not isinstance(node, ast.Starred):
            receiver = cast("ast.Attribute", call.func).value
            text = isinstance(receiver, (ast.Constant, ast.JoinedStr))
            return self._spread(node, "join" if text else "extend", method)
        return self._expression(node)

    def _late(
        self,
        node: ast.Call,
        probe: Callable[..., object],
        name: str,
        site: ast.Constant,
        *,
        obj: int | None,
        key: int | None,
        extra: tuple[ast.expr, ...] = (),
    ) -> ast.Call:
        """A call announced around its last argument, when all its values are there.

        Args:
            node: the call; its function is visited already, unless the receiver is announced.
            probe: what announces it.
            name: of the method or function.
            site: the constant that names the site.
            obj: which argument the access is on; None for the receiver of the method.
            key: which argument names the item or attribute; None if there is none.
            extra: what else the probe is given.
        """
        before = self._temporaries
        count = len(node.args) + len(node.keywords)
        rebinds = _binds(*node.args, *node.keywords)
        kept: list[str] = []
        roles: dict[str, ast.expr] = {"obj": _constant(None), "key": _constant(None)}

        def keep(role: str, original: ast.expr, visited: ast.expr) -> ast.expr:
            if self._is_quiet(original) and not rebinds:
                roles[role] = _copy(original)
                return visited
            kept.append(self._temporary())
            roles[role] = _load(kept[-1])
            return _at(_keep(kept[-1], visited), original)

        if obj is None:
            function = cast("ast.Attribute", node.func)
            owner = self._expression(function.value)
            if not self._is_super(function.value) or probe is not probes.late_raw:
                owner_ = (owner, _constant(name), site)
                called = _call(probes.receiver, *owner_, like=function.value)
                kept.append(self._temporary())
                roles["obj"] = _load(kept[-1])
                function.value = _at(_keep(kept[-1], called), function.value)
            else:
                function.value = keep("obj", function.value, owner)
        for number in range(count):
            holder: ast.keyword | None = None
            if number < len(node.args):
                original = node.args[number]
            else:
                holder = node.keywords[number - len(node.args)]
                original = holder.value
            inner = original.value if isinstance(original, ast.Starred) else original
            if holder is not None and holder.arg is None:
                visited = self._spread(inner, "**")
            elif isinstance(original, ast.Starred):
                visited = self._spread(inner, "*")
            else:
                visited = self._argument(node, inner)
            role = "obj" if number == obj else "key" if number == key else None
            if number == count - 1:
                if role is not None:
                    roles[role] = _constant(f"{PREFIX}:LAST")
                constants: list[ast.expr] = [_constant(name), _constant(site.value)]
                for position, temporary in enumerate(kept):
                    constants[position] = _keep(temporary, constants[position])
                visited = _call(
                    probe, roles["obj"], roles["key"], *constants, *extra, visited, like=inner
                )
            elif role is not None:
                visited = keep(role, original, visited)
            if isinstance(original, ast.Starred):
                original.value = visited
            elif holder is not None:
                holder.value = visited
            else:
                node.args[number] = visited
        self._temporaries = before
        return node


_ITEM_PROBES: Final[dict[type, tuple[probes.Kind, Callable[..., object], str]]] = {
    ast.Load: ("read", probes.item_read, "__getitem__"),
    ast.Store: ("write", probes.item_write, "__setitem__"),
    ast.Del: ("delete", probes.item_delete, "__delitem__"),
}
_CONTAINER_METHODS: Final = METHODS | SYNCHRONISERS | ARGUMENT_READING_METHODS
_FRESH: Final = (
    *(ast.Constant, ast.JoinedStr, ast.List, ast.Dict, ast.Set),
    *(ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.Lambda),
)
"""Expressions whose value is new or cannot change: nobody else can access it."""
_FRESH_ITERATORS: Final = {"range", "enumerate", "zip", "map", "filter", "sorted"}
_PLAIN_DECORATORS: Final = {
    *("property", "setter", "getter", "deleter", "staticmethod", "classmethod", "abstractmethod"),
    *("override", "overload", "final"),
}
_SCALARS: Final = {"len", "type", "id", "hash", "str", "repr", "int", "float", "bool", "abs"}
_NEVER_SHARED: Final = READERS | {"isinstance", "issubclass", "hasattr", "callable", "bool"}


def _copy(node: _Node) -> _Node:
    """Another node with the same parts, where the former is about to be changed."""
    return _at(type(node)(*(getattr(node, name) for name in node._fields)), node)


def _clear(name: str, *, like: ast.AST) -> ast.Assign:
    return _assign(_store(name), _constant(None), like=like)


def _clearing(names: Iterable[str], value: ast.expr) -> ast.expr:
    for name in names:
        value = _keep(name, value)
    return value


def _calls(node: ast.expr, names: Container[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _named(decorator: ast.expr) -> str | None:
    if isinstance(decorator, ast.Attribute):
        return decorator.attr
    return decorator.id if isinstance(decorator, ast.Name) else None


def _is_fresh(node: ast.expr) -> bool:
    return isinstance(node, (*_FRESH, ast.Tuple)) or _calls(node, _FRESH_ITERATORS)


def _is_scalar(node: ast.expr) -> bool:
    return isinstance(node, (ast.Constant, ast.JoinedStr)) or _calls(node, _SCALARS)


def _has_starred(node: ast.Call) -> bool:
    return any(isinstance(argument, ast.Starred) for argument in node.args)


def _spreads(node: ast.Call) -> bool:
    return _has_starred(node) or any(keyword.arg is None for keyword in node.keywords)
