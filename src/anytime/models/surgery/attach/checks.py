"""Whether stages are the network: what they give, and what they leave behind, also with other weights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anytime.models.surgery.attach.conditions import ASKED, preserved
from anytime.models.surgery.attach.segments import Stage
from anytime.models.surgery.attach.stored import memory_of
from anytime.models.surgery.attach.trace import logits_of
from anytime.support.text import one_line
from anytime.support.trust import weights_follow

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # else 1e-2: how far the stages may differ from the network
CHANGE = 0.05  # by how much weights are made smaller at least, and at most twice as much
LEAST = 1e-2  # of an ordinary weight: smaller ones hide what is done with them


class _Run(NamedTuple):
    """The logits, the buffers afterwards, and in train mode the gradient of each weight for one gradient of the logits."""

    logits: Tensor
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor | None]


def check_stages(backbone: nn.Module, stages: Sequence[Stage], x: Tensor) -> None:
    """Raises ValueError unless stages and backbone agree in eval mode, for one image, and in train mode with one seed.

    All weights and buffers are others than when the stages were cut, and none is zero or the same everywhere, which would
    hide what is done with it. Afterwards buffers must be what they are after the network's own forward. A saved model was
    checked before: when it is loaded, one image shows whether the backbone's code is still the same.
    """
    whole: Sequence[Any] = (nn.Module.__call__,)
    if weights_follow():
        _check(backbone, stages, False, x[:1], _run(backbone, whole, False, x[:1]))
        return
    left = []
    with _changed(backbone, ordinary=True):
        for training, batch in ((False, x), (False, x[:1]), (True, x)):
            try:
                expected = _run(backbone, whole, training, batch)
                finite = bool(torch.isfinite(expected.logits).all())
            except Exception:  # a network that takes only weights like its own
                finite = False
            if finite:
                _check(backbone, stages, training, batch, expected)
            else:
                left.append((training, batch))
    if left:
        with _changed(backbone, ordinary=False):
            for training, batch in left:
                _check(backbone, stages, training, batch, _run(backbone, whole, training, batch))


def safe_in_autocast(backbone: nn.Module, stages: Sequence[Stage], x: Tensor) -> bool:
    """Whether the stages give what the network gives while autocast is on."""
    kind = torch.bfloat16 if x.device.type == "cpu" else torch.float16
    try:
        with torch.autocast(x.device.type, kind):
            whole, cut = (_run(backbone, functions, False, x[:1]).logits for functions in ((nn.Module.__call__,), stages))
    except RuntimeError:  # neither does the network run in autocast, as encoders of torch that are given a mask
        return False
    return whole.dtype is cut.dtype and torch.equal(whole, cut)


def _run(backbone: nn.Module, functions: Sequence[Stage], training: bool, x: Tensor) -> _Run:
    with preserved(backbone):
        backbone.train(training)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        with torch.set_grad_enabled(training):
            logits = logits_of(reduce(lambda h, function: function(backbone, h), functions, x.clone()))
        buffers = {name: buffer.detach().clone() for name, buffer in backbone.named_buffers()}
        return _Run(logits.detach(), buffers, _gradients(backbone, logits) if logits.requires_grad else {})


def _gradients(backbone: nn.Module, logits: Tensor) -> dict[str, Tensor | None]:
    """None at all if the network has no gradients that can be asked for, as with `checkpoint(use_reentrant=True)`."""
    weights = {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}
    given = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    try:
        return dict(zip(weights, torch.autograd.grad(logits, list(weights.values()), given, allow_unused=True), strict=True))
    except RuntimeError:
        return {}


def _check(backbone: nn.Module, stages: Sequence[Stage], training: bool, x: Tensor, expected: _Run) -> None:
    name = type(backbone).__name__
    try:
        actual = _run(backbone, stages, training, x)
    except RuntimeError as error:
        raise ValueError(f"the stages do not do what {name} does: they fail with {one_line(error)!r}") from error
    if expected.logits.shape != actual.logits.shape:
        shapes = f"for a batch of {len(x)}, they give {list(actual.logits.shape)}, not {list(expected.logits.shape)}"
        raise ValueError(f"the stages do not give what {name} gives: {shapes}")
    mode = ("train" if training else "eval") + (" mode" if len(x) > 1 else " mode, for one image,")
    difference = _distance(expected.logits, actual.logits)
    if not difference <= TOLERANCE.get(x.dtype, 1e-2):
        raise ValueError(
            f"the stages do not give what {name} gives: in {mode} they differ by {difference:.1e}"
            + (f"; {ASKED}" if len(x) == 1 else "")
        )
    for key, buffer in expected.buffers.items():
        if not _distance(buffer, actual.buffers[key]) <= TOLERANCE.get(x.dtype, 1e-2):
            raise ValueError(f"the stages do not do what {name} does: in {mode} they leave other values in its buffer {key!r}")
    for key, gradient in expected.gradients.items():
        if not _alike(gradient, actual.gradients.get(key), expected.gradients):
            raise ValueError(f"the stages do not do what {name} does: in {mode} they give another gradient of {key!r}")


def _alike(one: Tensor | None, other: Tensor | None, gradients: Mapping[str, Tensor | None]) -> bool:
    """Whether two gradients of a weight differ by at most 1 %, of at least a thousandth of the largest one."""
    if one is None or other is None:
        left = one if other is None else other
        return left is None or not bool(left.any())
    if torch.equal(one, other):
        return True
    largest = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None and gradient.numel())
    own = float(one.abs().max())
    return not largest < float("inf") or float((one - other).abs().max()) <= 1e-2 * max(own, 1e-3 * largest)


def _distance(expected: Tensor, actual: Tensor) -> float:
    """The largest difference, relative to the largest value, at least 1; 0 for what is equal, even if it is not finite."""
    if expected.layout is not torch.strided:
        expected, actual = expected.to_dense(), actual.to_dense()
    if bool(((expected == actual) | ((expected != expected) & (actual != actual))).all()):
        return 0.0
    expected, actual = expected.double(), actual.double()
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1))


@contextmanager
def _changed(backbone: nn.Module, ordinary: bool) -> Iterator[None]:
    """Inside this block every parameter and buffer of floating point has other values, `ordinary` ones if asked."""
    stored = (*backbone.parameters(), *backbone.buffers())
    kept = [t for t in stored if t.is_floating_point() and t.layout is torch.strided and t.numel() and not t.is_inference()]
    tensors = {memory_of(t): t for t in reversed(kept) if 0 not in t.stride()}.values()  # the first of several views
    saved = [t.detach().clone() for t in tensors]
    chance = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for t in tensors:
                t.mul_(1 - CHANGE * (1 + torch.rand((), generator=chance).item()))
                if ordinary:
                    _make_ordinary(t, chance)
                elif isinstance(t, nn.Parameter):
                    t.add_(1e-3)  # some begin at zero
        yield
    finally:
        with torch.no_grad():
            for t, before in zip(tensors, saved, strict=True):
                t.copy_(before)


def _make_ordinary(t: Tensor, chance: torch.Generator) -> None:
    """Fills a tensor that is the same everywhere, or nearly zero, with s u / sqrt(n), u in [0.5, 1], or larger if it was.

    n are the values of a row, of which the values of a matrix make one. The sign s is the tensor's own; that of a matrix of
    zeros is random, so that sums stay small. Single zeros in a tensor become a tenth of its largest value.
    """
    values = t if bool(torch.isfinite(t.sum())) else t[torch.isfinite(t)]
    if not values.numel():
        return
    least, most = (float(value) for value in values.aminmax())
    largest, size = max(-least, most), (t.numel() / len(t)) ** -0.5 if t.ndim else 1.0
    if most - least > LEAST * largest > LEAST**2 * size:
        t.masked_fill_(t == 0, 0.1 * largest)
        return
    drawn = 0.5 * (1 + torch.rand(t.shape, generator=chance))
    if largest == 0 and t.ndim > 1:
        drawn *= torch.randint(0, 2, t.shape, generator=chance) * 2 - 1
    drawn = drawn.to(t) * max(size, largest) * (-1 if least < 0 else 1)
    t.copy_(torch.where(torch.isfinite(t), drawn, t))
