"""The operations of one run of a network, written down: what each reads and gives, and what becomes of numbers and values."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._jit_internal import boolean_dispatched
from torch.overrides import TorchFunctionMode

from anytime.models.surgery.attach.attributes import Attributes
from anytime.models.surgery.attach.calls import Call, Operation, Value, leaves_of, map_leaves
from anytime.models.surgery.attach.numbers import Number, TrainingFlag, plain_arguments
from anytime.models.surgery.attach.questions import HOOKED, LAYOUT, PLAIN, RAGGED, RANDOM, SHARING, SIZES, VALUES
from anytime.models.surgery.attach.stored import Memory, memory_of, stored_tensors, where

CONTEXTS = "it switches gradients or autocast on or off in forward, which only a submodule may do"
ASSIGNED_DATA = "it assigns to .{name} of a tensor in forward, which must be changed in place, as copy_(...) does"
READS = "it decides by the values of a tensor, or makes Python numbers of them {where}"
RAGGED_SIZE = "it asks the size of a tensor whose size depends on values {where}"
ASKS = "it asks whether autocast or inference mode is on {where}"
HOOK = "it puts a hook on a tensor in forward, which only a submodule may do {where}"
CONSTANT = (
    "it makes a constant tensor in forward, which must be a buffer, or calls a torch.jit function, which must be plain Python"
)


class _Known(NamedTuple):
    """A tensor or number with its value, and how many things were known before it."""

    thing: Any
    value: Value
    age: int


def contexts() -> tuple[bool, ...]:
    """Whether inference mode and autocast are on."""
    return (torch._C.is_inference_mode_enabled(), *(torch._C.is_autocast_enabled(device) for device in ("cpu", "cuda")))


class OperationTracer(TorchFunctionMode):
    """Writes down what functions of torch do in the current call; torch calls `__torch_function__` for each."""

    def __init__(self, network: nn.Module, training: bool, macs: Callable[[], int]) -> None:
        super().__init__()
        self.network, self.training, self.macs = network, training, macs
        self.names = {module: name for name, module in network.named_modules()}
        self.stored = stored_tensors(network)
        self.memory = Memory(tensor for tensor, _ in self.stored.values())
        self.known: dict[int, _Known] = {}  # by identity, with the object itself, so that no identity is used twice
        self.changed: list[dict[int, _Known]] = []  # per open call: values of older tensors before it changed them
        self.oldest: list[int] = []  # per open call: how many values were known before it
        self.paused, self.thread = False, threading.get_ident()
        self.contexts: tuple[bool, ...] = ()
        self.chance: tuple[Any, ...] = ()
        self.images = Value(True)
        self.example: Tensor
        self.images_device: torch.device
        self.current: Call
        self.attributes = Attributes(self.names, lambda: self.current if self._listens() else None)

    def _listens(self) -> bool:
        return not self.paused and threading.get_ident() == self.thread

    def _problem(self, problem: str) -> None:
        """Notes why the current call cannot be opened, unless it is known."""
        if not self.current.problem:
            self.current.problem = problem.format(where=where()) if "{where}" in problem else problem

    def _alias(self, tensor: Tensor, value: Value) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self._know(tensor.view_as(tensor), value)

    def _know(self, thing: Any, value: Value) -> Any:
        before = self.known.get(id(thing))
        self.known[id(thing)] = _Known(thing, value, len(self.known) if before is None else before.age)
        return thing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._listens():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._property(func, args)
        if name == "__set__":
            self.current.problem = self.current.problem or ASSIGNED_DATA.format(name=func.__self__.__name__)
            return func(*args, **kwargs)
        if name in HOOKED:
            self._problem(HOOK)
        if name == "_set_grad_enabled":
            self.current.problem = self.current.problem or CONTEXTS
        if name in LAYOUT:
            self.current.asked_layout = True
        if name == "_set_grad_enabled" or name in PLAIN:
            return func(*plain_arguments(args), **plain_arguments(kwargs))
        if name in ("size", "numel", "nelement") and isinstance(args[0], Tensor):
            return self._sizes("call_method", name, args, kwargs)
        if name in SIZES or name in VALUES:
            return self._plain_value(func, args, kwargs)
        method = getattr(Tensor, name, None) == func
        kind = "call_method" if method else "call_function"
        if isinstance(func, FunctionType) and func in boolean_dispatched:  # a local function, which no file can name
            func = boolean_dispatched[func]["if_false"]
        target = {"__getitem__": operator.getitem, "__setitem__": operator.setitem}.get(name, name if method else func)
        return self._record(kind if isinstance(target, str) else "call_function", target, func, args, kwargs)

    def _property(self, getter: Any, args: Any) -> Any:
        name = getter.__self__.__name__
        if name == "shape":
            return self._sizes("call_function", getattr, (args[0], "shape"), {})
        if name == "dtype" and args[0].dtype is self.example.dtype:
            self.current.asked.add(args[0].dtype)
        if name in SIZES:
            return self._plain_value(getter, args, {})
        if name in PLAIN or not isinstance(value := getter(*args), Tensor):
            return getter(*args)
        return self._record("call_function", getattr, lambda *_: value, (args[0], name), {})

    def _plain_value(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What Python makes of a tensor's values or sizes: a graph would hold it as a constant."""
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        read = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in SHARING or (name not in SIZES and any(self._has_content(tensor) for tensor in read)):
            self._problem(READS)
        result = func(*plain_arguments(args), **plain_arguments(kwargs))
        if any(self._value(tensor).dependent for tensor in read):
            self.decided((name, repr(result)))
        return result

    def _has_content(self, tensor: Tensor) -> bool:
        return self._value(tensor).content or memory_of(tensor) in self.memory.filled

    def _sizes(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Sizes of a tensor as numbers; those of a weight are plain ones."""
        with torch._C.DisableTorchFunction():
            result = getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else args[0].shape
        value = self._value(args[0])
        if value.ragged:
            self._problem(RAGGED_SIZE)
        if not value.dependent:
            return result
        asked = self._append(kind, target, args, kwargs, Value(True, True))
        if isinstance(result, int):
            return self._know(Number(result), asked)
        numbers = []
        for i, size in enumerate(result):
            value = self._append("call_function", operator.getitem, (asked, i), {}, Value(True, True))
            numbers.append(self._know(Number(size), value))
        return torch.Size(numbers)

    def decided(self, decision: tuple[Any, ...]) -> None:
        """Notes that another size may take another way."""
        self.current.fixed = True
        self.current.decisions.append(decision)

    def divided(self, remainder: int) -> None:
        """Notes what a division has left, which must not depend on the batch."""
        self.current.remainders.append(remainder)

    def arithmetic(self, function: Any, numbers: tuple[Any, ...]) -> Any:
        """The result of arithmetic with numbers, written down."""
        result = function(*(int.__add__(number, 0) for number in numbers))
        if any(isinstance(number, Number) and id(number) not in self.known for number in numbers):
            return result
        return self._know(Number(result), self._append("call_function", function, numbers, {}, Value(True, True)))

    def _append(self, kind: str, target: Any, args: Any, kwargs: Any, value: Value) -> Value:
        given = (self._arguments(tuple(args)), self._arguments(kwargs))
        operation = Operation(kind, target, *given, value)
        value.maker = operation
        self.current.items.append(operation)
        return value

    def _record(self, kind: str, target: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if contexts() != self.contexts:
            self.current.problem = CONTEXTS
        tensors = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        given = (self._arguments(tuple(args)), self._arguments(kwargs))
        versions = [tensor._version for tensor in tensors]
        result = func(*plain_arguments(args), **plain_arguments(kwargs))
        dependent = any(isinstance(leaf, Value) and leaf.dependent for leaf in leaves_of(given))
        changed = {id(t) for t, version in zip(tensors, versions, strict=True) if t._version != version}
        name = getattr(func, "__name__", "")
        if name.endswith("_"):  # _foreach_add_ and others change lists of tensors without a new version
            changed |= {id(leaf) for leaf in leaves_of(result)} & {id(tensor) for tensor in tensors}
        values = [leaf for leaf in leaves_of(given) if isinstance(leaf, Value)]
        content = name.startswith(RANDOM) or any(map(self._has_content, tensors))
        ragged = content and (name in RAGGED or any(v.ragged for v in values) or _by_mask(name, tensors))
        written = [tensor for tensor in tensors if id(tensor) in changed]
        changes = self.memory.keeps(written)
        if content:
            self.memory.fill(written)
        operation = Operation(kind, target, *given, Value(dependent or changes, False, None, content, ragged), changes)
        operation.result.maker = operation
        self.current.items.append(operation)
        if isinstance(result, Tensor):
            return self._result(result, operation.result, changed, tensors)
        if isinstance(result, tuple | list):
            parts = []
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    value = Value(operation.result.dependent, False, None, content, ragged)
                    taken = Operation("call_function", operator.getitem, (operation.result, i), {}, value)
                    taken.result.maker = taken
                    self.current.items.append(taken)
                    part = self._result(part, taken.result, changed, tensors)
                elif part is not None and content:
                    self._problem(READS)
                parts.append(part)
            return type(result)(parts) if type(result) in (tuple, list) else type(result)(tuple(parts))
        if result is not None and content:
            self._problem(READS)
        return result

    def _result(self, tensor: Tensor, value: Value, changed: set[int], given: Sequence[Tensor]) -> Tensor:
        if id(tensor) in changed:
            self._remember(tensor)
            return self._know(tensor, value)
        if any(tensor is argument for argument in given):
            return self._alias(tensor, value)
        return self._know(tensor, value)

    def _remember(self, tensor: Tensor) -> None:
        """Keeps the value of a tensor that is older than the current call, which changes it in place."""
        entry = self.known.get(id(tensor))
        if entry is not None and entry.age < self.oldest[-1]:
            self.changed[-1].setdefault(id(tensor), entry)

    # -- arguments -----------------------------------------------------------------------------------------------------

    def _arguments(self, given: Any) -> Any:
        return map_leaves(self._argument, given)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self._value(leaf)
        if isinstance(leaf, Number):
            return self.known[id(leaf)].value if id(leaf) in self.known else int.__add__(leaf, 0)
        if isinstance(leaf, TrainingFlag):
            return self._attribute(leaf.path)
        if isinstance(leaf, np.generic):  # a number, which torch takes like one of Python
            return leaf.item()
        if isinstance(leaf, np.ndarray):
            self._problem(CONSTANT)
        if isinstance(leaf, torch.device) and leaf == self.images_device:
            return self._of_images("device")
        if isinstance(leaf, torch.dtype) and leaf in self.current.asked:
            return self._of_images("dtype")
        return leaf

    def _of_images(self, name: str) -> Value:
        """The device or dtype of the images, which the network may be moved to after the trace."""
        key = f"images.{name}"
        if key not in self.current.attributes:
            self.current.attributes[key] = self._append("call_function", getattr, (self.example, name), {}, Value(False, True))
        return self.current.attributes[key]

    def _value(self, tensor: Tensor) -> Value:
        if id(tensor) in self.known:
            return self.known[id(tensor)].value
        name = self._stored_name(tensor)
        if name is None:
            self.current.problem = self.current.problem or CONSTANT
            self._know(tensor, Value(False))
            return self.known[id(tensor)].value
        return self._attribute(name)

    def _stored_name(self, tensor: Tensor) -> str | None:
        name = self.stored.get(id(tensor), (None, None))[1]
        return None if name is None else self.attributes.name_of(tensor, name)

    def _attribute(self, path: str) -> Value:
        if path not in self.current.attributes:
            operation = Operation("get_attr", path, (), {}, Value(False))
            operation.result.maker = operation
            self.current.items.append(operation)
            self.current.attributes[path] = operation.result
        return self.current.attributes[path]


def _by_mask(name: str, tensors: Sequence[Tensor]) -> bool:
    """Whether an operation takes what a mask shows, or asks where one does."""
    masks = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:])
    return (name == "__getitem__" and masks) or (name == "where" and len(tensors) == 1)
