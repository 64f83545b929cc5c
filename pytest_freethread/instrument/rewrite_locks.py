"""The rewriting that costs least: probes on what may wait for a lock, and on nothing else.

`with x:` and `x.acquire`, `x.get`, `x.wait` … are announced as in `rewrite.py`; all other
code stays as it is, and as fast.
"""

from __future__ import annotations

import ast
from typing import Final, cast

from pytest_freethread.instrument import probes
from pytest_freethread.instrument.rewrite import Rewritten, _call, _constant, site_constant

WAITING_CALLS: Final = frozenset({"acquire", "wait", "wait_for", "get", "put", "join"})
"""Names of the methods that wait, of whatever threads meet at."""


def rewrite_locks(tree: ast.Module, _source: bytes, file: str) -> Rewritten:
    """Put probes on what may wait into all functions of a module, as `rewrite` does on all else."""
    rewriter = _Rewriter(file)
    rewriter.visit(tree)
    return Rewritten(tree=tree, sites=tuple(rewriter.sites), stored=frozenset())


class _Rewriter(ast.NodeTransformer):
    def __init__(self, file: str) -> None:
        self.sites: list[probes.Site] = []
        self._file = file
        self._qualified: tuple[str, ...] = ()
        self._in_function = False

    def _site(self, node: ast.expr, kind: probes.Kind, name: str | None = None) -> ast.Constant:
        number, function = len(self.sites), ".".join(self._qualified)
        self.sites.append(
            probes.Site(self._file, node.lineno, function, number, kind, ast.unparse(node), name)
        )
        return site_constant(number)

    def _within(self, node: ast.AST, name: str, *, function: bool) -> ast.AST:
        before = self._qualified, self._in_function
        inside = ("<locals>",) if self._in_function else ()
        self._qualified += (*inside, name)
        self._in_function = function
        self.generic_visit(node)
        self._qualified, self._in_function = before
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._within(node, node.name, function=False)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        return self._within(node, node.name, function=True)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - as `ast` calls them

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return self._within(node, "<lambda>", function=True)

    def visit_With(self, node: ast.With) -> ast.AST:
        if self._in_function:
            for item in node.items:
                expression = item.context_expr
                site = self._site(expression, "lock")
                visited = cast("ast.expr", self.visit(expression))
                item.context_expr = _call(probes.enter, visited, site, like=expression)
            node.body = [cast("ast.stmt", self.visit(statement)) for statement in node.body]
            return node
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if not self._in_function or node.attr not in WAITING_CALLS or _is_super(node.value):
            return self.generic_visit(node)
        site = self._site(node.value, "call", node.attr)
        owner = cast("ast.expr", self.visit(node.value))
        node.value = _call(probes.receiver, owner, _constant(node.attr), site, like=owner)
        return node


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )
