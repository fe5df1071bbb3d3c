"""One run of a network, written down: every operation, every call of a module, and where each value comes from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anytime.models.surgery.attach.attributes import ASSIGNED, HOOKS
from anytime.models.surgery.attach.calls import Call, Operation, TraceError, Value, same_tensor
from anytime.models.surgery.attach.numbers import Number, TrainingFlag, plain_arguments
from anytime.models.surgery.attach.operations import ASKS, CONSTANT, CONTEXTS, OperationTracer, contexts
from anytime.models.surgery.attach.questions import SURROUNDINGS
from anytime.models.surgery.attach.stored import who_asks
from anytime.models.surgery.attach.unseen import DRAWS, other_chance, own_gradients

MORE = " (build it without further outputs, as with aux_logits=False in torchvision)"
ONE_AT_A_TIME = threading.RLock()  # a trace changes how every module is called


def is_layer(module: nn.Module) -> bool:
    """Whether a module is never opened: a layer of torch, one without parts, or one with hooks."""
    own = type(module).__module__.startswith("torch.nn.") and type(module) not in (nn.Sequential, nn.TransformerEncoder)
    hooked = any(vars(module)[kind] for kind in HOOKS)
    return bool(own or hooked or next(module.children(), None) is None)


class CallTracer(OperationTracer):
    """Writes down one run of `network` on x; all values are computed, so conditions on shapes are decided by x.

    Torch calls `__torch_function__` for each function while the mode is on; `nn.Module.__call__` is replaced meanwhile.
    """

    def run(self, x: Tensor) -> Call:
        """The call of the whole network, which may have a problem; its result is the `Value` of the logits."""
        self._know(x, self.images)
        self.example, self.images_device = x, x.device
        root = Call(self.network, "", (self.images,), {})
        if self.network._backward_hooks or self.network._backward_pre_hooks:
            raise TraceError("it has backward hooks, which only a submodule may have")
        original: Any = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._listens() or module not in self.names or module is self.network:
                return original(module, *args, **kwargs)
            return self._call(original, module, args, kwargs)

        with ONE_AT_A_TIME:
            nn.Module.__call__, Number.recorder = call, self  # type: ignore[method-assign]
            try:
                with self, self.attributes.noted(), self._watched(), own_gradients(self._unseen):
                    self.contexts, self.chance = contexts(), other_chance()
                    result = self._open(root, lambda: original(self.network, x))
                self.attributes.check(root.inside)
            finally:
                nn.Module.__call__, Number.recorder = original, None  # type: ignore[method-assign]
        root.macs = (0, self.macs())
        logits, self.returned = logits_of(result), type(result)
        if not isinstance(logits, Tensor) or logits is x:
            mode, what = "train" if self.training else "eval", "its images" if logits is x else f"a {type(logits).__name__}"
            more = MORE if self.training and logits is not x else ""
            raise TraceError(f"it does not return one new tensor in {mode} mode, but {what}{more}")
        self.current = root
        root.result = self._value(logits)
        return root

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes who asks in which block it runs."""
        before: dict[str, Any] = {name: getattr(torch, name) for name in SURROUNDINGS}

        def asking(function: Any) -> Any:
            def asked(*args: Any, **kwargs: Any) -> Any:
                if self._listens() and (by := who_asks()) is not None:
                    self._problem(CONTEXTS if by == "autocast_mode.py" else ASKS)
                return function(*args, **kwargs)

            return asked

        try:
            for name, function in before.items():
                setattr(torch, name, asking(function))
            yield
        finally:
            for name, function in before.items():
                setattr(torch, name, function)

    def _unseen(self, problem: str) -> None:
        if self._listens():
            self._problem(problem)

    def _look_for_draws(self) -> None:
        """Notes whether the current call has drawn random numbers that are not torch's since this was last asked."""
        now = other_chance()
        if now != self.chance:
            self._problem(DRAWS)
        self.chance = now

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
            self._look_for_draws()
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
        self._look_for_draws()
        start = self.macs()
        if is_layer(module):
            given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            versions = [tensor._version for tensor in given]
            with self._pause():
                result = original(module, *plain_arguments(args), **plain_arguments(kwargs))
            self.memory.fill(tensor for tensor, version in zip(given, versions, strict=True) if tensor._version != version)
            self.chance = other_chance()
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
            same = Operation("call_function", same_tensor, (value,), {}, replace(value))
            call.items.append(same)
            value = same.result
        return self._alias(tensor, value), value


def logits_of(output: Any) -> Any:
    """The logits in what a classifier returns: the tensor itself, or an object's `logits`."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)
