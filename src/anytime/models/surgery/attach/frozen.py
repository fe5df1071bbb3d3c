"""What a Python value is now, in a form that shows later whether it, or anything inside it, has changed."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from re import Pattern
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

NUMBERS = (int, float, complex, bool, str, bytes, type(None))
SIMPLE = (
    *(*NUMBERS, FunctionType, BuiltinFunctionType, type, Enum, ModuleType, slice, range, type(Ellipsis), Pattern, PurePath),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
MOST_BYTES = 1 << 16  # of an array that is compared by value
IMMUTABLE = 1 << 8  # flag of classes that are written in C
MOST_SHOWN = 200  # letters of a value in a message


class Unknown(Exception):
    """A value of which nobody can tell whether it has changed; the message is its type."""


class Absence(Enum):
    """Stands for the value of an attribute that is not there."""

    ABSENT = "nothing"


ABSENT = Absence.ABSENT


class Same(NamedTuple):
    """An object that must stay the same one."""

    thing: Any


class Frozen(NamedTuple):
    """A value that consists of others, those that its class holds among them; the kind of a method is `Same`."""

    kind: type
    parts: tuple[Any, ...]


class Again(NamedTuple):
    """A thing that a value holds once more, such as the one around it, by the order in which it holds things first."""

    order: int


def frozen(value: Any, seen: dict[int, int] | None = None) -> Any:
    """A value as it is now.

    Args:
        value: Anything.
        seen: The order of the things that the value around it holds, by identity.

    Raises:
        Unknown: It is, or holds, a thing that can change without a trace, such as a generator of random numbers.
    """
    seen = {} if seen is None else seen
    kind: Any = type(value)
    if id(value) in seen:
        return Again(seen[id(value)])
    if kind is MethodType:
        own = getattr(type(value.__self__), value.__name__, None) is value.__func__
        return Frozen(Same, (value.__qualname__ if own else value.__func__, Same(value.__self__)))
    if isinstance(value, type):
        seen[id(value)] = len(seen)
        return Frozen(type, (value, *_of_class(value, seen)))
    if isinstance(value, SIMPLE) and not (isinstance(value, NUMBERS) and vars_of(value)):
        return value
    if isinstance(value, nn.Module | Tensor):
        return Same(value)
    if isinstance(value, np.ndarray | np.generic):
        if value.nbytes > MOST_BYTES or value.dtype.hasobject:
            raise Unknown(kind.__name__)
        return Frozen(kind, (value.dtype.str, value.shape, value.tobytes()))
    if not isinstance(value, tuple):  # equal constants of a file are one tuple
        seen[id(value)] = len(seen)
    if isinstance(value, functools.partial):
        inside: tuple[Any, ...] = (value.func, value.args, value.keywords)
    elif isinstance(value, Mapping):
        inside = _items(value)
    elif isinstance(value, tuple | list | deque):
        inside = tuple(value)
    elif isinstance(value, set | frozenset):
        inside = tuple(sorted(value, key=repr))
    elif not hasattr(value, "__dict__") and not hasattr(kind, "__slots__"):
        raise Unknown(kind.__name__)
    else:
        inside = ()
    more = {} if kind in (tuple, list, dict, set, frozenset) else vars_of(value)
    if isinstance(value, Mapping) and not isinstance(value, dict):  # it keeps its items there, and caches
        more = {name: part for name, part in more.items() if name[0] != "_"}
    parts = tuple(frozen(part, seen) for part in (*inside, *more, *more.values()))
    return Frozen(kind, (*parts, *_of_class(kind, seen, more)))


def _items(value: Mapping[Any, Any]) -> tuple[Any, ...]:
    """The keys and values, in order."""
    try:
        return tuple(part for item in value.items() for part in item)
    except Exception as error:  # a value that a configuration lacks
        raise Unknown(type(value).__name__) from error


def _of_class(kind: type, seen: dict[int, int], hidden: Collection[str] = ()) -> tuple[Any, ...]:
    """The names and values that a class holds for its objects, apart from those `hidden` by an object's own."""
    found: dict[str, Any] = {}
    for part in () if issubclass(kind, nn.Module | Enum | tuple) else kind.__mro__:
        for name, value in () if is_of_others(part) else vars(part).items():
            if name[:2] != "__" and name not in found and name not in hidden and not hasattr(type(value), "__get__"):
                with suppress(Unknown):
                    found[name] = frozen(value, seen)
    return (*found, *found.values())


def is_of_others(kind: type) -> bool:
    """Whether a class belongs to torch or NumPy, or is written in C, so that nobody changes it."""
    return kind.__module__.partition(".")[0] in ("torch", "numpy") or bool(kind.__flags__ & IMMUTABLE)


def is_data(thing: Any, name: str) -> bool:
    """Whether an attribute of an object is one of its own, or of its class, and no method or property."""
    if name in object.__getattribute__(thing, "__dict__"):
        return True
    known = next((vars(kind)[name] for kind in type(thing).__mro__ if name in vars(kind)), property())
    return name[:2] != "__" and (isinstance(known, MemberDescriptorType) or not hasattr(type(known), "__get__"))


def vars_of(value: Any) -> dict[str, Any]:
    """The attributes of an object itself, those in slots among them."""
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    found = {name: object.__getattribute__(value, name) for name in slots if hasattr(value, name) and name[:2] != "__"}
    return found | dict(getattr(value, "__dict__", {}))


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def same(one: Any, other: Any) -> bool:
    """Whether two frozen values are equal and of one type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Same):
        return one.thing is other.thing
    if isinstance(one, Frozen):
        alike = one.kind is other.kind and len(one.parts) == len(other.parts)
        return alike and all(map(same, one.parts, other.parts))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other or bool(one == other)


def text(value: Any) -> str:
    """A frozen value as a message shows it."""
    shown = _text(value)
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}..."


def _text(value: Any) -> str:
    if isinstance(value, Same):
        return f"a {type(value.thing).__name__}"
    if value is ABSENT:
        return "nothing"
    if isinstance(value, Again):
        return "..."
    if not isinstance(value, Frozen):
        return repr(value)
    if value.kind is Same:
        return str(getattr(value.parts[0], "__qualname__", value.parts[0]))
    parts = [part.__name__ if isinstance(part, type) else _text(part) for part in value.parts]
    if value.kind is dict:
        return "{" + ", ".join(f"{key}: {part}" for key, part in zip(parts[::2], parts[1::2], strict=True)) + "}"
    if value.kind is type:
        return f"{parts[0]}({', '.join(parts[1:])})" if parts[1:] else repr(value.parts[0])
    inside = ", ".join(parts)
    if value.kind in (list, tuple):
        return f"[{inside}]" if value.kind is list else f"({inside})"
    return f"{value.kind.__name__}({inside})"
