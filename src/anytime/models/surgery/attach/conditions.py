"""Whether a network does the same for every batch, precision and layout, with gradients, and in train mode."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytime.cost import flop_counter
from anytime.model import eval_mode
from anytime.models.surgery.attach.attributes import read_as_well
from anytime.models.surgery.attach.calls import Call, TraceError
from anytime.models.surgery.attach.compare import Difference, differences
from anytime.models.surgery.attach.stored import stored_tensors
from anytime.models.surgery.attach.trace import MORE, CallTracer
from anytime.models.surgery.attach.unseen import other_chance_kept
from anytime.support.limits import imagined

OTHER_IN_TRAINING = "it does something else in train mode than in eval mode, which only a submodule may do"
ASKED = "it must ask the batch size as x.shape[0], not make a plain number of it, as len(x), int(...) and loops over images do"


_REGISTRIES = frozenset(vars(nn.Module()))  # of parameters, buffers, submodules and hooks, and the mode


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes, buffers, attributes and random states are as they were.

    Lists, dictionaries and sets in attributes hold what they held. Modules with a `train` of their own, which may change their
    weights, have these back as well.
    """
    slots = [(m._buffers, dict(m._buffers)) for m in module.modules()]
    buffers = [(buffer, buffer.clone()) for _, held in slots for buffer in held.values() if buffer is not None]
    attributes = [(vars(m), {k: v for k, v in vars(m).items() if k not in _REGISTRIES}) for m in module.modules()]
    values = [value for _, kept in attributes for value in kept.values()]
    tables = [(t, t.clone(), None if t.is_inference() else t._version) for t in values if isinstance(t, Tensor)]
    containers = [(each, each.copy()) for each in values if type(each) in (list, dict, set)]
    own = [m for m in module.modules() if type(m).train is not nn.Module.train]
    weights = [(weight, weight.detach().clone()) for m in own for weight in m.parameters()]
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.is_cuda})
    with eval_mode(module), other_chance_kept(), torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for slot, held in slots:
                slot.clear()
                slot.update(held)
            for buffer, saved in buffers:
                if not buffer.is_inference():  # which nothing changes out of inference mode
                    (buffer.detach_() if buffer.grad_fn is not None else buffer).copy_(saved)
            for now, kept in attributes:
                for name in now.keys() - kept.keys() - _REGISTRIES:
                    del now[name]
                now.update(kept)
            for table, saved, version in tables:
                if version is not None and table._version != version:
                    table.copy_(saved)
            for container, items in containers:
                container.clear()
                container.extend(items) if isinstance(container, list) else container.update(items)
            for weight, saved in weights:
                if not torch.equal(weight, saved):  # changed through `.data`, it would have the same version
                    weight.copy_(saved)


LARGER = ((7 * 32, 7 * 32), (32, 64))  # pixels that the sides of other images have more: windows and strides still fit
FEWER = {2520: (60, 12, 4), 2519: (59, 11, 3)}  # images of other batches, if a network cannot take that many


class Condition(NamedTuple):
    """What a network is run with, apart from two images in its own precision, without gradients."""

    batch: int = 2
    dtype: torch.dtype | None = None
    channels_last: bool = False
    gradients: bool = False
    larger: tuple[int, int] = (0, 0)  # pixels that each side has more, or fewer below 0

    @property
    def differences(self) -> list[Condition]:
        """Conditions that each differ from the default in one way."""
        default = Condition()
        return [default._replace(**{k: v}) for k, v in self._asdict().items() if v != getattr(default, k)]

    @property
    def problem(self) -> str:
        """Why a call that does something else in this condition cannot be opened."""
        if self.batch != 2:
            return f"what it does depends on the size of the batch: {ASKED}"
        if self.dtype is not None:
            return f"it does something else in {str(self.dtype).removeprefix('torch.')}"
        if self.channels_last:
            return "it does something else for images in the channels_last layout"
        return "it does something else with gradients than without them"


def conditions(dtype: torch.dtype) -> list[Condition]:
    """Few conditions that differ in several ways; the larger batches are one that many numbers divide, and one less."""
    other = [kind for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16) if kind is not dtype]
    return [
        Condition(1, other[0], gradients=True),
        Condition(2520, other[1], channels_last=True),
        Condition(2519, other[2]),
    ]


def trace_network(network: nn.Module, x: Tensor) -> Call:
    """What a network does to the images x, in eval mode; calls that differ in other conditions have a `problem`.

    Where only other sizes of images change what a call does, it is `fixed`. The other conditions are traced without computing.

    Raises:
        ValueError: Its forward cannot be written as a graph.
    """
    try:
        with preserved(network):
            with flop_counter() as counter:
                evaluation = (in_eval := CallTracer(network, False, counter.get_total_flops)).run(x.clone())
            if evaluation.problem:
                raise TraceError(evaluation.problem)
            network.train()
            train = (in_train := CallTracer(network, True, lambda: 0)).run(x.clone())
            if in_train.returned is not in_eval.returned:
                name = in_train.returned.__name__
                raise TraceError(f"it does not return one new tensor in train mode, but a {name}{MORE}")
        for difference in differences(evaluation, train, OTHER_IN_TRAINING):
            difference.note()
        read_as_well(evaluation, train, network, False)
        if not evaluation.problem:
            _Trials(network, x, evaluation).run()
        if evaluation.problem:
            raise TraceError(evaluation.problem)
    except Exception as error:
        raise ValueError(
            f"the forward of {type(network).__name__} cannot be traced: {' '.join(str(error).split()) or repr(error)}; change "
            "that, put it into a submodule, or give the network as a list of modules, or its parts as stages=[f1, f2, ...], "
            "each a function f(backbone, h) -> h"
        ) from error
    return evaluation


class _Trials:
    """Traces a network in other conditions, and compares."""

    def __init__(self, network: nn.Module, x: Tensor, evaluation: Call) -> None:
        self.network, self.x, self.evaluation = network, x, evaluation

    def run(self) -> None:
        """Notes in the calls of the evaluation what other conditions change."""
        *first, last = conditions(self.x.dtype)
        for condition in first:
            if not self.evaluation.problem:
                self._try(condition)
        sizes = () if self.evaluation.fixed else LARGER
        for larger in sizes[:1]:
            with suppress(Exception):
                if not self._differences(last._replace(larger=larger), None):
                    self._sizes(sizes[1:])
                    return
        if not self.evaluation.problem:
            self._try(last)
        self._sizes(sizes)

    def _sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Compares for other sizes; a network that takes none of them is cut for its own."""
        taken = len(sizes) < len(LARGER)
        for larger in sizes:
            with suppress(Exception):
                for difference in self._compare(Condition(larger=larger), None):
                    difference.note()
                taken = True
        self.evaluation.fixed |= not taken
        if not self.evaluation.fixed:  # half as large: what a list is cut to by a size may be all of it for larger ones
            with suppress(Exception):
                height, width = self.x.shape[2:]
                for difference in self._compare(Condition(larger=(height // 2 - height, width // 2 - width)), None):
                    difference.note()

    def _try(self, condition: Condition) -> None:
        """Notes what differs in a condition; in each of its parts if the network fails in it or cannot be cut for it."""
        parts = condition.differences
        try:
            found = self._compare(condition, condition.problem)
        except Exception:
            for part in parts if len(parts) > 1 else self._fewer(condition):
                self._try(part)
            return
        if len(parts) > 1 and any(difference.problem for difference in found):
            for part in parts:
                if not self.evaluation.problem:
                    self._try(part)
            found = [difference for difference in found if not difference.call.unproven]
        for difference in found:
            if len(parts) == 1 and condition.dtype and difference.problem == condition.problem:
                difference.call.unproven.add(condition.dtype)  # it can be opened, but not be converted afterwards
            else:
                difference.note()

    def _fewer(self, condition: Condition) -> list[Condition]:
        """The same with fewer images, of as many as the network takes."""
        for batch in FEWER.get(condition.batch, ()):
            with suppress(Exception):
                self._trace(condition._replace(batch=batch))
                return [condition._replace(batch=batch)]
        return []

    def _compare(self, condition: Condition, why: str | None) -> list[Difference]:
        """The differences in a condition, for which the network runs on tensors without values if it can.

        Those of the meta device are quick, but convolutions there do not keep the layout. Where they fail or differ, slower
        ones that say they are on the network's own device decide, and for a network that reads values or cannot be copied the
        network itself.
        """
        asks_layout = condition.channels_last and self.evaluation.asks_layout
        with suppress(Exception):
            if not self._differences(condition, why) and not asks_layout:
                return []
        return differences(self.evaluation, self._trace(condition), why, condition.batch != 2)

    def _differences(self, condition: Condition, why: str | None) -> list[Difference]:
        """Those on the meta device."""
        imagined = self._imagined(condition, torch.device("meta"), "meta")
        return differences(self.evaluation, imagined, why, condition.batch != 2)

    def _trace(self, condition: Condition) -> Call:
        from torch._subclasses import fake_tensor as fake  # slow to import, and seldom needed

        unknown = fake.DataDependentOutputException, fake.DynamicOutputShapeException, fake.UnsupportedFakeTensorException
        log = logging.getLogger(fake.__name__)
        level = log.level
        log.setLevel(logging.CRITICAL)  # a condition that the network cannot take is no error
        try:
            return self._imagined(condition, fake.FakeTensorMode(allow_non_fake_inputs=True), self.x.device)
        except (*unknown, NotImplementedError):
            return self._real(condition._replace(batch=min(condition.batch, 9), dtype=None))
        finally:
            log.setLevel(level)

    def _imagined(self, condition: Condition, mode: Any, device: torch.device | str) -> Call:
        """A trace that computes shapes only: inside `mode`, tensors have no values."""
        network = imagined_copy(self.network, condition.dtype, mode, device)
        for weight in network.parameters() if condition.gradients else ():
            weight.requires_grad = weight.is_floating_point()  # also one that is frozen now
        with imagined(), mode, torch.set_grad_enabled(condition.gradients):
            found = CallTracer(network, False, lambda: 0).run(self._images(condition, device))
        read_as_well(self.evaluation, found, self.network, condition.larger != (0, 0))
        return found

    def _real(self, condition: Condition) -> Call:
        with preserved(self.network), torch.set_grad_enabled(condition.gradients):
            found = CallTracer(self.network, False, lambda: 0).run(self._images(condition, self.x.device))
        read_as_well(self.evaluation, found, self.network, condition.larger != (0, 0))
        return found

    def _images(self, condition: Condition, device: torch.device | str) -> Tensor:
        sides = zip(self.x.shape[2:], condition.larger, strict=True)
        shape = condition.batch, self.x.shape[1], *(n + more for n, more in sides)
        images = torch.zeros(shape, dtype=condition.dtype or self.x.dtype, device=device)
        return images.contiguous(memory_format=torch.channels_last) if condition.channels_last else images


def imagined_copy(network: nn.Module, dtype: torch.dtype | None, mode: Any, device: torch.device | str) -> nn.Module:
    """A network whose tensors have shapes only, in another precision.

    Raises:
        NotImplementedError: It cannot be copied.
    """
    with imagined(), mode:
        stored = stored_tensors(network).items()
        memo: dict[int, Any] = {key: _imagine(kept, dtype, device) for key, (kept, _) in stored}
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:
        raise NotImplementedError("the network cannot be copied") from error


def _imagine(kept: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """A tensor of the same form."""
    kind = dtype if dtype is not None and kept.is_floating_point() else kept.dtype
    made = torch.empty_strided(kept.shape, kept.stride(), dtype=kind, device=device)
    return nn.Parameter(made, kept.requires_grad) if isinstance(kept, nn.Parameter) else made
