"""What is at a location, and what a reader calls it, for the trace of an execution.

Nothing here runs code of the user's (no `__repr__`, no `__eq__`, no property), and nothing of the
library's that is written in Python: that may have probes in it.
"""

from __future__ import annotations

import sys
from collections import deque
from enum import Enum
from types import CellType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, Final

from pytest_freethread.instrument.effects import ITEM_ADD, ITEM_WRITE
from pytest_freethread.instrument.shadows import SameKey
from pytest_freethread.interpreter import namespace_of

PLAIN: Final = frozenset({str, int, bytes, bool, float, type(None)})
_BY_IDENTITY: Final = (object.__hash__, Enum.__hash__)
_CONTAINERS: Final = frozenset({list, dict, set, tuple, frozenset, bytearray, deque})
_UNKNOWN: Final = object()
_LONGEST: Final = 40

_name_of_type: Final = type.__dict__["__name__"].__get__
_dict_of_type: Final = type.__dict__["__dict__"].__get__
_mro_of_type: Final = type.__dict__["__mro__"].__get__

MISSING: Final = "missing"
"""What stands for a value where there is none."""


def peek(obj: Any, key: Any, op: str) -> str | None:
    """What is at a location, shortly; None where that cannot be told."""
    kind = type(obj)
    if type(key) is SameKey:
        key = key.key
    if op.startswith("attribute"):
        return _attribute(obj, key)
    if op.startswith("item"):
        # Past what a subclass may have to say about it.
        if issubclass(kind, dict) and key is not None:
            return _short(dict.get(obj, key)) if dict.__contains__(obj, key) else MISSING
        if issubclass(kind, set) and key is not None:
            return "present" if set.__contains__(obj, key) else MISSING
        if kind is list and type(key) is int:
            return _short(obj[key]) if -len(obj) <= key < len(obj) else MISSING
    if kind is CellType:
        try:
            return _short(obj.cell_contents)
        except ValueError:
            return MISSING
    return _short(obj) if kind in _CONTAINERS else None


def described(obj: Any, key: Any, op: str, name: str | None) -> tuple[str, str, str | None]:
    """What a reader calls an operation and its location.

    Args:
        obj: the owner.
        key: as the probe gave it.
        op: what is done there.
        name: the variable at the site, for a closure's cell.

    Returns:
        The operation (a module's variable is a global, not an item); the owner: a class, a
        module, or an object's type; and the key: `value`, `'k'`, or None for the whole object.
    """
    label = str(_name_of_type(obj if issubclass(type(obj), type) else type(obj)))
    if type(obj) is CellType:
        return op, label, name
    if key is None:
        return op, label, None
    if op.startswith("attribute"):
        return op, label, str(key)
    if type(obj) is dict and type(key) is str:
        module = obj.get("__name__")
        found: Any = sys.modules.get(module) if type(module) is str else None
        if issubclass(type(found), ModuleType) and namespace_of(found) is obj:
            return op.replace("item", "global"), str(module), key
    return op, label, written(key)


def written(key: Any) -> str:
    """An item's key, as it was made comparable, in the source's words."""
    return _short(key.key) if type(key) is SameKey else repr(key)


def comparable(key: Any) -> Any:
    """A key that may be compared without running any code of the user's; None if it is none."""
    kind: Any = type(key)
    if kind in PLAIN:
        return key
    if kind.__hash__ is tuple.__hash__ and kind.__eq__ is tuple.__eq__:
        parts = tuple.__getitem__(key, slice(None))
        return parts if all(type(part) in PLAIN for part in parts) else None
    if kind.__hash__ in _BY_IDENTITY and kind.__eq__ is object.__eq__:
        return SameKey(key)
    if kind.__hash__ is int.__hash__ and kind.__eq__ is int.__eq__:
        return int.__int__(key)
    return None


def has(obj: Any, key: Any) -> bool:
    """Whether a dict or a set has a key that `comparable` made."""
    plain = key.key if type(key) is SameKey else key
    return (dict if isinstance(obj, dict) else set).__contains__(obj, plain)


def addition(obj: Any, key: Any) -> int:
    """What an addition is at the moment when it is made: a write, or in vain."""
    return ITEM_ADD if key is not None and has(obj, key) else ITEM_WRITE


def _attribute(obj: Any, key: Any) -> str | None:
    """An attribute of an instance, a slot, or a plain value of its class."""
    bases = [_dict_of_type(base) for base in _mro_of_type(type(obj))]
    for base in bases:
        found = base.get("__dict__")
        if type(found) in {GetSetDescriptorType, MemberDescriptorType}:
            value = _own(found.__get__(obj), key)
            if value is not _UNKNOWN:
                return _short(value)
            break
    for base in bases:
        found = base.get(key, _UNKNOWN)
        if type(found) is MemberDescriptorType:
            try:
                return _short(found.__get__(obj))
            except AttributeError:
                return MISSING
        if found is not _UNKNOWN:
            return _short(found) if type(found) in PLAIN else None
    return (
        None
        if issubclass(type(obj), type) or any("__getattr__" in base for base in bases)
        else MISSING
    )


def _own(names: Any, key: Any) -> Any:
    return (
        dict.get(names, key, _UNKNOWN)
        if issubclass(type(names), dict)
        else names.get(key, _UNKNOWN)
    )


def _short(value: Any) -> str:
    kind = type(value)
    if kind in PLAIN:
        return _cut(repr(value))
    if kind in _CONTAINERS:
        text = ""
        if len(value) <= 4 and all(type(each) in PLAIN for each in value):
            if kind in {set, frozenset} and value:
                text = f"{{{', '.join(sorted(map(repr, value)))}}}"  # their order is by chance
            elif kind is not dict or not value:
                text = repr(value)
        return text if text and len(text) <= _LONGEST else f"{kind.__name__} of {len(value)}"
    if issubclass(kind, Enum):
        return f"{_name_of_type(kind)}.{object.__getattribute__(value, '_name_')}"
    return f"<{_name_of_type(value if issubclass(kind, type) else kind)}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
