"""Attributes of modules that a forward reads and assigns: what a graph holds as constants, and what it cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytime.models.surgery.attach.calls import Call

OWN = frozenset((*vars(nn.Module()), "training", "__dict__", "__class__"))  # what every module has
SIMPLE = (int, float, complex, bool, str, bytes, type(None))
NAMED = (FunctionType, BuiltinFunctionType, type)
ASSIGNED = "it assigns {name!r} in forward, which must be changed in place, as self.{name}.copy_(...) does"
CARRIED = "it keeps {name!r} from one call to the next, which must be a buffer that it changes in place"
IMMUTABLE = 1 << 8  # flag of classes that are written in C
AGAIN = "attach the exits again"


class Read(NamedTuple):
    """A plain attribute that a forward has read: its module (or an object that this holds), the path, its name and value."""

    module: Any
    path: str
    name: str
    value: Any


class Attributes:
    """Notes, while a network is traced, which attributes its calls read and assign.

    Args:
        paths: The network's modules, with their names in it.
        current: The call that runs now; None if nothing is to be noted.
    """

    def __init__(self, paths: dict[nn.Module, str], current: Callable[[], Call | None]) -> None:
        self.paths, self.current = paths, current
        self.readers: dict[tuple[int, str], list[Call]] = {}
        self.assigned: set[tuple[int, str]] = set()
        self.objects: dict[int, tuple[Any, str]] = {}  # configurations that modules hold, with their paths
        self.classes: dict[Any, Any] = {}  # theirs, with what reads an attribute of their own

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside this block reading and assigning an attribute of any module is noted."""
        kind: Any = nn.Module
        assign = kind.__setattr__

        def read(module: nn.Module, name: str) -> Any:
            value = object.__getattribute__(module, name)
            if name not in OWN and (call := self.current()) is not None:
                self._read(call, module, name, value)
            return value

        def write(module: nn.Module, name: str, value: Any) -> None:
            if name not in OWN and (call := self.current()) is not None and module in self.paths:
                self._write(call, module, name, value)
            assign(module, name, value)

        kind.__getattribute__, kind.__setattr__ = read, write
        try:
            yield
        finally:
            del kind.__getattribute__
            kind.__setattr__ = assign
            for known, own in self.classes.items():
                if own is None:
                    del known.__getattribute__
                else:
                    known.__getattribute__ = own
            self.classes.clear()

    def _read(self, call: Call, module: nn.Module, name: str, value: Any) -> None:
        key = id(module), name
        if key in self.assigned or isinstance(getattr(type(module), name, None), property) or module not in self.paths:
            return
        if is_plain(value):
            call.reads.append(Read(module, self.paths[module], name, copied(value)))
        elif not isinstance(value, Tensor):
            self._hold(value, f"{self.paths[module]}.{name}".removeprefix("."))
            return
        self.readers.setdefault(key, []).append(call)

    def _hold(self, thing: Any, path: str) -> None:
        """Notes which attributes of an object are read from now on, if it is a configuration: of a class with plain values."""
        kind: Any = type(thing)
        if id(thing) in self.objects or not any(is_plain(value) for value in getattr(thing, "__dict__", {}).values()):
            return
        if (
            isinstance(thing, nn.Module)
            or kind.__module__.partition(".")[0] in ("torch", "numpy")
            or kind.__flags__ & IMMUTABLE
        ):
            return
        self.objects[id(thing)] = thing, path
        original = kind.__getattribute__

        def read(known: Any, name: str) -> Any:
            value = original(known, name)
            call = self.current() if id(known) in self.objects else None
            if call is not None and is_plain(value) and name in object.__getattribute__(known, "__dict__"):
                call.reads.append(Read(known, self.objects[id(known)][1], name, copied(value)))
            return value

        if not any(known in self.classes for known in kind.__mro__):
            self.classes[kind] = vars(kind).get("__getattribute__")
            kind.__getattribute__ = read

    def _write(self, call: Call, module: nn.Module, name: str, value: Any) -> None:
        key = id(module), name
        own = vars(module)
        stored = own["_buffers"] | own["_parameters"]
        if (stored | own).get(name, self) is value:  # also what `self.n += 1` does to a tensor
            return
        if name in stored:
            call.problem = call.problem or ASSIGNED.format(name=name)
        elif key not in self.assigned:
            for reader in (call, *self.readers[key]) if key in self.readers else ():
                reader.problem = reader.problem or CARRIED.format(name=name)
        self.assigned.add(key)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, a function or a class, or holds only such: two of them can be compared."""
    if type(value) in (tuple, list, set, frozenset):
        return all(is_plain(part) for part in value)
    if type(value) is dict:
        return all(is_plain(part) for part in (*value, *value.values()))
    return type(value) in SIMPLE or isinstance(value, NAMED)


def copied(value: Any) -> Any:
    """A plain value that no one else can change."""
    if type(value) in (tuple, list):
        return type(value)(copied(part) for part in value)
    if type(value) is dict:
        return {key: copied(part) for key, part in value.items()}
    return set(value) if type(value) is set else value


def same_plain(one: Any, other: Any) -> bool:
    """Whether two plain values are equal and of one type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same_plain, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_plain(part, other[key]) for key, part in one.items())
    return one is other or bool(one == other)


class Watch:
    """Raises ValueError once something that was decided when exits were attached has been changed.

    Args:
        reads: The attributes that the cut modules have read.
        modules: The cut modules, whose own forward does not run any more, with their names.
    """

    def __init__(self, reads: Sequence[Read], modules: Sequence[tuple[nn.Module, str]]) -> None:
        self.reads = tuple({(id(read.module), read.name): read for read in reads}.values())
        opened = {id(module) for module, _ in modules}
        self.parts = tuple(
            (module, path, {name: part for name, part in module._modules.items() if id(part) in opened})
            for module, path in modules
        )

    def check(self) -> None:
        """Raises ValueError if an attribute has another value, or a cut module is another one."""
        if torch.compiler.is_compiling():
            return
        for module, path, name, value in self.reads:
            if not same_plain(now := getattr(module, name, None), value):
                raise ValueError(f"{_place(module, path)} was cut with {name} = {value!r}, and has {now!r} now: {AGAIN}")
        for module, path, parts in self.parts:
            for name, part in parts.items():
                if module._modules.get(name) is not part:
                    raise ValueError(f"{_place(module, path)} was cut, and has another {name!r} now: {AGAIN}")


def _place(module: nn.Module, path: str) -> str:
    return f"{type(module).__name__} {path!r}" if path else type(module).__name__
