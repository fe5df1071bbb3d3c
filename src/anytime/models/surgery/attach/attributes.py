"""Attributes of modules that a forward reads and assigns: what a graph holds as constants, and what it cannot hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, reduce
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from anytime.models.surgery.attach.calls import Call, leaves_of
from anytime.models.surgery.attach.frozen import ABSENT, SIMPLE, Same, Unknown, frozen, is_data, is_of_others, same, text
from anytime.models.surgery.attach.stored import is_asked_by_a_network

OWN = frozenset((*vars(nn.Module()), "training", "__dict__", "__class__", "_compiled_call_impl"))  # what every module has
METHODS = frozenset(known for known in vars(nn.Module).values() if isinstance(known, FunctionType))
ASSIGNED = "it assigns {name!r} in forward, which only a submodule may do"
KEPT = "it keeps a tensor as {name!r} in forward, which only a submodule may do"
CARRIED = "it keeps {name!r} from one call to the next, which must be a buffer that it changes in place"
BOTH = "it reads one tensor as {one!r} and as {other!r}, and nothing tells which of them it uses"
UNKNOWN = "it reads {name!r}, and nothing tells whether a {kind} has changed"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WHOLE = (*SIMPLE, tuple, list, dict, set, frozenset, deque, MethodType, partial)  # compared as a whole


class Read(NamedTuple):
    """An attribute that a forward has read: its module, or an object that this holds, the path, its name, the frozen value."""

    thing: Any
    path: str
    name: str
    value: Any

    def changed(self) -> str | None:
        """The text of its value now, if it is another one."""
        value = value_of(self.thing, self.name)
        if value is self.value:
            return None
        if isinstance(self.value, Same) and type(value) is type(self.value.thing):
            return None if value is self.value.thing else f"another {type(value).__name__}"
        try:
            now = frozen(value)
        except Unknown as error:
            return f"a {error}"
        return None if same(now, self.value) else text(now)


def value_of(thing: Any, name: str) -> Any:
    """The value of an attribute, `ABSENT` if there is none; for `__dict__`, what is not in every module's, or a mapping."""
    if name == "__dict__" and isinstance(thing, nn.Module | Mapping):
        return thing if isinstance(thing, Mapping) else {k: v for k, v in vars(thing).items() if not is_own(thing, k)}
    return getattr(thing, name, ABSENT)


def is_own(module: nn.Module, name: str) -> bool:
    """Whether an attribute is what every module has, or every `fx.GraphModule`, which is compared by its code."""
    return name in OWN or (name == "_wrapped_call" and isinstance(module, fx.GraphModule))


class Attributes:
    """Notes, while a network is traced, which attributes its calls read and assign.

    Args:
        paths: The network's modules, with their names in it.
        current: The call that runs now; None while nothing is noted.
    """

    def __init__(self, paths: dict[nn.Module, str], current: Callable[[], Call | None]) -> None:
        self.paths, self.current = paths, current
        self.readers: dict[tuple[int, str], list[Call]] = {}
        self.assigned: set[tuple[int, str]] = set()
        self.tensors: dict[int, tuple[str, bool]] = {}  # the names by which tensors were read last, and whether they are used
        self.objects: dict[int, tuple[Any, str]] = {}  # configurations that modules hold, with their paths
        self.classes: dict[tuple[Any, str], Any] = {}  # theirs, with their own ways to read an attribute

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside this block reading and assigning an attribute of any module is noted."""
        kind: Any = nn.Module
        assign, find = kind.__setattr__, kind.__getattr__

        def read(module: nn.Module, name: str) -> Any:
            value = object.__getattribute__(module, name)
            method = isinstance(value, MethodType) and value.__func__ in METHODS
            if not is_own(module, name) and not method and (call := self.current()) is not None:
                self._read(call, module, name, value)
            elif name == "__dict__" and is_asked_by_a_network() and (call := self.current()) is not None:
                self._read(call, module, name, value_of(module, name))
            return value

        def read_further(module: nn.Module, name: str) -> Any:  # weights, buffers and parts
            call = None if name in OWN or name[:2] == "__" else self.current()
            try:
                value = find(module, name)
            except AttributeError:
                if call is not None:
                    elsewhere = name if type(module).__getattr__ is read_further else "__dict__"  # it may look anywhere
                    self._read(call, module, elsewhere, value_of(module, elsewhere) if elsewhere == "__dict__" else ABSENT)
                raise
            if call is not None and (value is None or isinstance(value, Tensor)):
                self._read(call, module, name, value)
            return value

        def write(module: nn.Module, name: str, value: Any) -> None:
            if name not in OWN and (call := self.current()) is not None and module in self.paths:
                self._write(call, module, name, value)
            assign(module, name, value)

        kind.__getattribute__, kind.__getattr__, kind.__setattr__ = read, read_further, write
        try:
            yield
        finally:
            del kind.__getattribute__
            kind.__getattr__, kind.__setattr__ = find, assign
            for (known, way), own in self.classes.items():
                if own is None:
                    delattr(known, way)
                else:
                    setattr(known, way, own)
            self.classes.clear()

    def _read(self, call: Call, module: nn.Module, name: str, value: Any) -> None:
        key = id(module), name
        if key in self.assigned or isinstance(getattr(type(module), name, None), property) or module not in self.paths:
            return
        path = self.paths[module]
        if isinstance(value, Tensor):
            self._call_it(call, value, f"{path}.{name}".removeprefix("."))
        elif not isinstance(value, nn.Module):
            self._note(call, module, path, name, value)
            self.readers.setdefault(key, []).append(call)

    def _call_it(self, call: Call, tensor: Tensor, name: str) -> None:
        """Notes by which name a tensor has been read, which may have several of them."""
        before, used = self.tensors.get(id(tensor), (name, True))
        if before != name and not used:
            call.problem = call.problem or BOTH.format(one=before, other=name)
        self.tensors[id(tensor)] = name, False

    def name_of(self, tensor: Tensor, default: str) -> str:
        """The name by which a tensor that is used now was read last."""
        name, _ = self.tensors.get(id(tensor), (default, True))
        self.tensors[id(tensor)] = name, True
        return name

    def _note(self, call: Call, thing: Any, path: str, name: str, value: Any) -> None:
        try:
            held = name != "__dict__" and self._hold(value, f"{path}.{name}".removeprefix("."))
            with self._unheard():
                call.reads.append(Read(thing, path, name, Same(value) if held else frozen(value)))
        except Unknown as error:
            call.problem = call.problem or UNKNOWN.format(name=name, kind=error)

    def _hold(self, thing: Any, path: str) -> bool:
        """Notes which attributes of an object are read from now on; false if it must be compared as a whole."""
        kind: Any = type(thing)
        if id(thing) in self.objects:
            return True
        if isinstance(thing, WHOLE) or not hasattr(thing, "__dict__") or is_of_others(kind):
            return False
        self.objects[id(thing)] = thing, path
        original = kind.__getattribute__

        def read(known: Any, name: str) -> Any:
            call = self.current() if id(known) in self.objects else None
            try:
                value = original(known, name)
            except AttributeError:
                if call is not None and name[:2] != "__" and not hasattr(type(known), "__getattr__"):
                    self._note(call, known, self.objects[id(known)][1], name, ABSENT)
                raise
            whole = name == "__dict__" and is_asked_by_a_network()
            if call is not None and (whole or (is_data(known, name) and not isinstance(value, Tensor | nn.Module))):
                self._note(call, known, self.objects[id(known)][1], name, value_of(known, name) if whole else value)
            return value

        further: Any = getattr(kind, "__getattr__", None)

        def read_further(known: Any, name: str) -> Any:  # what it looks in for that does not count
            call = self.current() if id(known) in self.objects and name[:2] != "__" else None
            found: Any = ABSENT
            try:
                with self._unheard() if call is not None else nullcontext():
                    found = further(known, name)
            finally:
                if call is not None and not isinstance(found, Tensor | nn.Module):
                    self._note(call, known, self.objects[id(known)][1], name, found)
            return found

        self._replace(kind, "__getattribute__", read)
        if further is not None:
            self._replace(kind, "__getattr__", read_further)
        return True

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """Inside this block nothing is noted."""
        current, self.current = self.current, lambda: None
        try:
            yield
        finally:
            self.current = current

    def _replace(self, kind: Any, way: str, function: Callable[..., Any]) -> None:
        """Sets how the objects of a class read an attribute, once."""
        if not any((known, way) in self.classes for known in kind.__mro__):
            self.classes[kind, way] = vars(kind).get(way)
            setattr(kind, way, function)

    def check(self, calls: Iterable[Call]) -> None:
        """Notes which calls have read what is not as it was: it is kept from one call to the next."""
        for call in calls:
            for read in () if call.problem else call.reads:
                if (id(read.thing), read.name) not in self.assigned and read.changed() is not None:
                    call.problem = CARRIED.format(name=read.name)
                    break

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
        if any(isinstance(leaf, Tensor) for leaf in leaves_of(value)):
            call.problem = call.problem or KEPT.format(name=name)
        self.assigned.add(key)


def read_as_well(call: Call, other: Call, network: nn.Module, size: bool) -> None:
    """Adds what another trace has read to what a trace of the network has, with the values that the network has now.

    What only images of another `size` make a call read shows that it depends on the size.
    """
    found: dict[str, list[Read]] = {}
    for one in other.inside:
        found.setdefault(one.path, []).extend(one.reads)
    for one in call.inside:
        known = {(read.path, read.name) for read in one.reads}
        for read in found.get(one.path, ()):
            if (read.path, read.name) in known:
                continue
            known.add((read.path, read.name))
            one.fixed |= size
            with suppress(AttributeError, Unknown):
                thing = reduce(getattr, read.path.split("."), network) if read.path else network
                value = value_of(thing, read.name)
                value = Same(value) if isinstance(read.value, Same) else frozen(value)
                one.reads.append(Read(thing, read.path, read.name, value))
