"""One run of a network, written down: every operation, every call of a module, and where each value comes from."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from anytime.models.surgery.attach.attributes import ASSIGNED, Attributes
from anytime.models.surgery.attach.calls import Call, Operation, TraceError, Value, leaves_of, map_leaves, same_tensor
from anytime.models.surgery.attach.numbers import Number, TrainingFlag, plain_arguments
from anytime.models.surgery.attach.questions import LAYOUT, PLAIN, VALUES

CONTEXTS = "it switches gradients or autocast on or off in forward, which only a submodule may do"
ASSIGNED_DATA = "it assigns to .{name} of a tensor in forward, which must be changed in place, as copy_(...) does"
ONE_AT_A_TIME = threading.RLock()  # a trace changes how every module is called
CONSTANT = "it makes a constant tensor in forward, which must be a buffer"


class _Known(NamedTuple):
    """A tensor or number with its value, and how many things were known before it."""

    thing: Any
    value: Value
    age: int


def contexts() -> tuple[bool, ...]:
    """Whether inference mode and autocast are on."""
    return (torch.is_inference_mode_enabled(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")))


def is_layer(module: nn.Module) -> bool:
    """Whether a module is never opened: a layer of torch, one without parts, or one with hooks."""
    own = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(own or hooked or next(module.children(), None) is None)


class CallTracer(TorchFunctionMode):
    """Writes down one run of `network` on x; all values are computed, so conditions on shapes are decided by x.

    Torch calls `__torch_function__` for each function while the mode is on; `nn.Module.__call__` is replaced meanwhile.
    """

    def __init__(self, network: nn.Module, training: bool, macs: Callable[[], int]) -> None:
        super().__init__()
        self.network, self.training, self.macs = network, training, macs
        self.names = {module: name for name, module in network.named_modules()}
        self.stored = stored_tensors(network)
        self.known: dict[int, _Known] = {}  # by identity, with the object itself, so that no identity is used twice
        self.changed: list[dict[int, _Known]] = []  # per open call: values of older tensors before it changed them
        self.oldest: list[int] = []  # per open call: how many values were known before it
        self.paused, self.thread = False, threading.get_ident()
        self.contexts: tuple[bool, ...] = ()
        self.images = Value(True)
        self.current: Call
        self.attributes = Attributes(self.names, lambda: self.current if self._listens() else None)

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, x: Tensor) -> Call:
        """The call of the whole network; its result is the `Value` of the logits."""
        self._know(x, self.images)
        self.example, self.images_device = x, x.device
        root = Call(self.network, "", (self.images,), {})
        original: Any = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._listens() or module not in self.names or module is self.network:
                return original(module, *args, **kwargs)
            return self._call(original, module, args, kwargs)

        with ONE_AT_A_TIME:
            nn.Module.__call__, Number.recorder = call, self  # type: ignore[method-assign]
            try:
                with self, self.attributes.noted():
                    self.contexts = contexts()
                    result = self._open(root, lambda: original(self.network, x))
            finally:
                nn.Module.__call__, Number.recorder = original, None  # type: ignore[method-assign]
        root.macs = (0, self.macs())
        logits = logits_of(result)
        if not isinstance(logits, Tensor) or logits is x:
            raise TraceError("it does not return one new tensor")
        self.current = root
        root.result = self._value(logits)
        if root.problem:
            raise TraceError(root.problem)
        return root

    def _listens(self) -> bool:
        return not self.paused and threading.get_ident() == self.thread

    def _open(self, call: Call, function: Callable[[], Any]) -> Any:
        """Runs a call with its operations written down in it."""
        above = getattr(self, "current", None)
        flag = TrainingFlag(self.training)
        flag.path = f"{call.path}.training".removeprefix(".")
        before, call.module.__dict__["training"] = call.module.training, flag
        self.current = call
        self.changed.append({})
        self.oldest.append(len(self.known))
        buffers = dict(call.module._buffers)
        try:
            result = function()
            if contexts() != self.contexts:
                call.problem = CONTEXTS
            for name, buffer in call.module._buffers.items():
                if buffer is not buffers.get(name):
                    call.problem = call.problem or ASSIGNED.format(name=name)
            return self._adopt(call, result)
        finally:
            call.module.__dict__["training"] = before
            self.oldest.pop()
            for key, entry in self.changed.pop().items():
                self.known[key] = entry
            if above is not None:
                self.current = above

    def _call(self, original: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(module, self.names[module], self._arguments(args), self._arguments(kwargs))
        if contexts() != self.contexts:
            self.current.problem = CONTEXTS
        self.current.items.append(call)
        start = self.macs()
        if is_layer(module):
            with self._pause():
                result = original(module, *plain_arguments(args), **plain_arguments(kwargs))
            result = self._adopt(call, result)
        else:
            result = self._open(call, lambda: original(module, *args, **kwargs))
        call.macs = (start, self.macs())
        return result

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self.paused = True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.paused = False

    def _adopt(self, call: Call, result: Any) -> Any:
        """What a call returned, where every tensor is an object of its own; sets the call's result."""
        if call.module is self.network:
            return result
        followed = not is_layer(call.module)
        leaves, spec = pytree.tree_flatten(result)
        values: list[Any] = []
        for i, leaf in enumerate(leaves):
            value: Any = leaf
            if isinstance(leaf, Tensor):
                leaves[i], value = self._returned(call, leaf, followed)
            elif isinstance(leaf, int) and not isinstance(leaf, bool):
                entry = self.known.get(id(leaf)) if isinstance(leaf, Number) else None
                if followed and entry is not None:
                    value = entry.value
                elif not followed:
                    value = Value(True, True, call)
                    leaves[i] = self._know(Number(leaf), value)
            values.append(value)
        call.result = pytree.tree_unflatten(values, spec)
        return pytree.tree_unflatten(leaves, spec)

    def _returned(self, call: Call, tensor: Tensor, followed: bool) -> tuple[Tensor, Value]:
        """A returned tensor as an object that no one else holds, and its value."""
        entry = self.known.get(id(tensor))
        if not followed:
            value = Value(True, maker=call)
            return (self._know if entry is None else self._alias)(tensor, value), value
        if entry is None:
            if self._stored_name(tensor) is None:
                call.problem = call.problem or CONSTANT
            value = self._value(tensor)
            return self._alias(tensor, value), value
        if entry.age >= self.oldest[-1]:
            return tensor, entry.value
        value = entry.value
        if id(tensor) not in self.changed[-1]:  # an older tensor itself, which may be another one in train mode
            same = Operation("call_function", same_tensor, (value,), {}, Value(value.dependent))
            call.items.append(same)
            value = same.result
        return self._alias(tensor, value), value

    def _alias(self, tensor: Tensor, value: Value) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self._know(tensor.view_as(tensor), value)

    def _know(self, thing: Any, value: Value) -> Any:
        before = self.known.get(id(thing))
        self.known[id(thing)] = _Known(thing, value, len(self.known) if before is None else before.age)
        return thing

    # -- operations ----------------------------------------------------------------------------------------------------

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
        if name == "_set_grad_enabled":
            self.current.problem = self.current.problem or CONTEXTS
        if name in LAYOUT:
            self.current.asked_layout = True
        if name == "_set_grad_enabled" or name in PLAIN:
            return func(*plain_arguments(args), **plain_arguments(kwargs))
        if name in ("size", "numel", "nelement") and isinstance(args[0], Tensor):
            return self._sizes("call_method", name, args, kwargs)
        if name == "__len__":
            self.current.fixed = True
            return func(*args)
        if name in VALUES:
            read = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
            if any(self._value(tensor).dependent for tensor in read):
                self.current.problem = self.current.problem or "it decides by the values of a tensor"
            return func(*args, **kwargs)
        method = getattr(Tensor, name, None) == func
        kind = "call_method" if method else "call_function"
        target = {"__getitem__": operator.getitem, "__setitem__": operator.setitem}.get(name, name if method else func)
        return self._record(kind if isinstance(target, str) else "call_function", target, func, args, kwargs)

    def _property(self, getter: Any, args: Any) -> Any:
        name = getter.__self__.__name__
        if name == "shape":
            return self._sizes("call_function", getattr, (args[0], "shape"), {})
        if name == "dtype" and args[0].dtype is self.example.dtype:
            self.current.asked.add(args[0].dtype)
        if name in PLAIN or not isinstance(value := getter(*args), Tensor):
            return getter(*args)
        return self._record("call_function", getattr, lambda *_: value, (args[0], name), {})

    def _sizes(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Sizes of a tensor as numbers; those of a weight are plain ones."""
        with torch._C.DisableTorchFunction():
            result = getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else args[0].shape
        if not self._value(args[0]).dependent:
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
        operation = Operation(kind, target, *given, Value(dependent))
        operation.result.maker = operation
        self.current.items.append(operation)
        if isinstance(result, Tensor):
            return self._result(result, operation.result, changed, tensors)
        if isinstance(result, tuple | list):
            parts = []
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    taken = Operation("call_function", operator.getitem, (operation.result, i), {}, Value(dependent))
                    taken.result.maker = taken
                    self.current.items.append(taken)
                    part = self._result(part, taken.result, changed, tensors)
                parts.append(part)
            return type(result)(parts) if type(result) in (tuple, list) else type(result)(tuple(parts))
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
        if leaf == self.images_device and isinstance(leaf, torch.device):
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
        return self.stored.get(id(tensor), (None, None))[1]

    def _attribute(self, path: str) -> Value:
        if path not in self.current.attributes:
            operation = Operation("get_attr", path, (), {}, Value(False))
            operation.result.maker = operation
            self.current.items.append(operation)
            self.current.attributes[path] = operation.result
        return self.current.attributes[path]


def logits_of(output: Any) -> Any:
    """The logits in what a classifier returns: the tensor itself, or an object's `logits`."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


def stored_tensors(network: nn.Module) -> dict[int, tuple[Tensor, str]]:
    """Parameters, buffers and tensors kept as attributes, by identity, with their names."""
    found: dict[int, tuple[Tensor, str]] = {}
    for path, module in network.named_modules():
        for kept in (module._parameters, module._buffers, vars(module)):
            for name, tensor in kept.items():
                if isinstance(tensor, Tensor):
                    found.setdefault(id(tensor), (tensor, f"{path}.{name}".removeprefix(".")))
    return found
