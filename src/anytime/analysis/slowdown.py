"""How much of what a stopping rule saves can be taken away by images that were changed a little to keep the network unsure.

Source: Hong, Kaya, Modoranu, Dumitras, A Panda? No, It's a Sloth: Slowdown Attacks on Adaptive Multi-Exit Neural Network
Inference, ICLR 2021 (DeepSloth).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anytime.model import AnytimeModel, Deployed, eval_mode
from anytime.support.precision import own_precision
from anytime.trace import Trace, labelled

__all__ = ["Slowdown", "StopRule", "delayed", "delayed_batches", "slowdown"]

EPSILON = 8 / 255
"""Largest change of a pixel, of 1: hardly visible."""


def delayed(
    model: AnytimeModel, x: Tensor, epsilon: float = EPSILON, iterations: int = 20, size: float | None = None
) -> Tensor:
    """Images at most `epsilon` from x in every pixel, in [0, 1], for which the early answers are as unsure as could be found.

    Projected gradient descent on each image's L(x') = sum_{t<T} CE(uniform, softmax(z_t(x'))), from x:
    x' <- clip(x' - size * sign(dL / dx')), clipped to both bounds; of all x', the one of least L is kept. The last answer is
    left out, because every rule stops there. The attacker knows the weights.

    Args:
        model: The network; neither its weights nor its gradients nor its mode change.
        x: Images `[B, C, H, W]` in [0, 1].
        epsilon: L-infinity bound, above 0 and at most 1.
        iterations: At least 1; the published attack takes 30.
        size: The size of a step, above 0. Default: 2.5 * epsilon / iterations, which reaches the bound from
            anywhere within it.

    Returns:
        `[B, C, H, W]`, of the precision of the model.

    Raises:
        ValueError: A number is out of range, images do not lie in [0, 1], or the model has a single answer, is no classifier,
            or is an export.
    """
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be above 0 and at most 1, the range of a pixel, got {epsilon!r}")
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if not whole or iterations < 1 or (size is not None and not 0 < size < math.inf):
        raise ValueError(f"iterations must be at least 1 and size above 0, got iterations={iterations!r}, size={size!r}")
    if not x.is_floating_point() or not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"images must be of floating point and lie in [0, 1], got {x.dtype} from {x.min():g} to {x.max():g}")
    if isinstance(model, Deployed):
        raise ValueError("an export has no gradients; attack the model that it was made from")
    if model.num_steps < 2 or model.info.task != "classification":
        raise ValueError(
            f"only a classifier of at least 2 answers stops early, got task {model.info.task!r} and {model.num_steps} answers"
        )
    step = 2.5 * epsilon / iterations if size is None else size
    parameter = next(model.parameters())
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(model), own_precision(parameter.device):
        clean = x.detach().to(parameter).clone()  # a copy, because tensors of inference mode have no gradients
        low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
        found, least = clean, torch.full((len(clean),), math.inf, device=clean.device)
        now = clean
        for iteration in range(iterations + 1):
            now = now.detach().requires_grad_(iteration < iterations)
            losses = -model(now)[:-1].float().log_softmax(2).mean(2).sum(0)
            better = losses.detach() < least
            least = torch.where(better, losses.detach(), least)
            found = torch.where(better.view(-1, *[1] * (clean.ndim - 1)), now.detach(), found)
            if iteration < iterations:
                [gradient] = torch.autograd.grad(losses.sum(), [now])
                now = torch.minimum(torch.maximum(now.detach() - step * gradient.sign(), low), high)
    return found


def delayed_batches(
    model: AnytimeModel,
    data: Iterable[Sequence[Tensor]],
    epsilon: float = EPSILON,
    iterations: int = 20,
    size: float | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `(delayed(model, images), labels)` of batches `(images, labels)`: what `anytime.record` takes as data."""
    for images, labels in data:
        yield delayed(model, images, epsilon, iterations, size), labels


class StopRule(Protocol):
    """What is asked of a rule of `anytime.stopping`."""

    def stops(self, trace: Trace, probabilities: Tensor) -> Tensor:
        """Index 0..T-1 of the step after which each sample stops, int64 `[N]`."""


@dataclass(frozen=True)
class Slowdown:
    """What a rule saves of the MACs of all steps, and its accuracy, on images as they are and on delayed ones.

    Attributes:
        saved: 1 - mean(MACs at the stop) / MACs of all steps, on images as they are.
        saved_attacked: The same on the delayed images.
        accuracy: Share of right answers at the stop, of the images that have a label.
        accuracy_attacked: The same on the delayed images.
    """

    saved: float
    saved_attacked: float
    accuracy: float
    accuracy_attacked: float

    @property
    def lost(self) -> float:
        """1 - saved_attacked / saved: the share of the saved cost that is lost, 1 if all is; nan if nothing was saved."""
        return 1 - self.saved_attacked / self.saved if self.saved > 0 else math.nan


def slowdown(clean: Trace, attacked: Trace, rule: StopRule) -> Slowdown:
    """What the delayed images cost a rule that reads each step's own answer.

    Args:
        clean: The answers to images as they are.
        attacked: The answers of the same network to the same images, delayed.
        rule: A rule of `anytime.stopping`, chosen on other images.

    Raises:
        ValueError: The traces are not of the same network and images, or as `rule.stops`.

    Example:
        clean = anytime.record(model, data)
        attacked = anytime.record(model, delayed_batches(model, data))
        slowdown(clean, attacked, anytime.stopping.Confidence(0.9)).lost
    """
    if clean.macs.tolist() != attacked.macs.tolist() or not torch.equal(clean.labels, attacked.labels):
        raise ValueError(
            "both traces must be of one network and the same images in the same order, "
            f"got {clean.num_steps} and {attacked.num_steps} steps, {clean.num_samples} and {attacked.num_samples} images"
        )
    (saved, right), (saved_attacked, right_attacked) = (_outcome(trace, rule) for trace in (clean, attacked))
    return Slowdown(saved, saved_attacked, right, right_attacked)


def _outcome(trace: Trace, rule: StopRule) -> tuple[float, float]:
    """The saved share of the MACs of all steps, and the accuracy."""
    spent = trace.macs[rule.stops(trace, trace.logits.softmax(2))].double().mean()
    known = labelled(trace)
    stops = rule.stops(known, known.logits.softmax(2))
    right = known.logits.argmax(2).gather(0, stops[None])[0] == known.labels
    return float(1 - spent / trace.macs[-1]), float(right.double().mean())
