"""Rewritten code on disk, beside the bytecode that the import system keeps there.

To parse, rewrite and compile a large package takes seconds; to read what came of it, a tenth of
that. It is kept as the import system does it: in `__pycache__`, unless bytecode is not to be
written, and in silence where nothing can be. It is of one source, one version of the rewriting
and one interpreter, or else it is not used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import marshal
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_freethread.instrument.probes import Site

if TYPE_CHECKING:
    from types import CodeType

_KEY: Final = 8
"""How many bytes a key has."""


class Code(NamedTuple):
    """What the source of a module was compiled to.

    Attributes:
        plain: as it is.
        probed: with probes in; strings stand for constants and sites, as in `rewrite.py`.
        sites: where something is announced.
        stored: the names of attributes and rebound globals that its functions store.
    """

    plain: CodeType
    probed: CodeType
    sites: tuple[Site, ...]
    stored: frozenset[str]


def key(rewriting: str, file: str, raw: bytes) -> bytes:
    """What the code depends on: how it was rewritten, the name in its code objects, its source."""
    return importlib.util.source_hash(
        b"\0".join((_recipe(), rewriting.encode(), file.encode(), raw))
    )


def load(path: str, rewriting: str, expected: bytes) -> Code | None:
    """The code of a source file, if what is kept of it has that key."""
    try:
        content = _place(path, rewriting).read_bytes()
        if content[:_KEY] != expected:
            return None
        plain, probed, sites, stored = marshal.loads(content[_KEY:])  # noqa: S302 - as imports do
        return Code(plain, probed, tuple(map(Site._make, sites)), stored)
    except (OSError, NotImplementedError, EOFError, ValueError, TypeError):
        return None


def save(path: str, rewriting: str, expected: bytes, code: Code) -> None:
    """Keep the code of a source file, if that can be."""
    if sys.dont_write_bytecode:
        return
    sites = [tuple(site) for site in code.sites]
    content = expected + marshal.dumps((code.plain, code.probed, sites, code.stored))
    with contextlib.suppress(OSError, NotImplementedError):
        place = _place(path, rewriting)
        place.parent.mkdir(parents=True, exist_ok=True)
        made = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            made.write_bytes(content)
            made.replace(place)  # so that nobody reads half of it
        finally:
            made.unlink(missing_ok=True)


def _place(path: str, rewriting: str) -> Path:
    bytecode = Path(importlib.util.cache_from_source(path))
    return bytecode.with_name(f"{bytecode.stem}-freethread-{rewriting}{bytecode.suffix}")


@functools.cache
def _recipe() -> bytes:
    """Whatever else decides on the code: the rewriting's own source, the interpreter."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    interpreter = importlib.util.MAGIC_NUMBER, str(sys.flags.optimize).encode()
    return b"\0".join((*interpreter, *(each.read_bytes() for each in sources)))
