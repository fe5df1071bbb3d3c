"""A learned stopping rule: a small recurrent network reads the answers of a stream and decides when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from anytime.analysis.curves import costs
from anytime.combine import Combiner
from anytime.model import State
from anytime.stopping.choose import Answers, Outcome, Spent, require_price
from anytime.stopping.rules import Rule, Verdict, two_largest
from anytime.trace import Trace

_FEATURES = 5
_BATCH = 512


@dataclass(frozen=True)
class GruRule(Rule):
    """A rule that reads o_t = w · h_t + b, h_t = GRU(f_t, h_{t-1}); a subclass says what f_t is and when to stop.

    Args:
        steps: T.
        weights: GRU weights `[3H, F]` and `[3H, H]`, biases `[3H]` and `[3H]`, then w `[1, H]` and b `[1]`, nested sequences.
    """

    steps: int
    weights: Sequence[Sequence] = field(repr=False)
    inputs: ClassVar[int | None] = None  # F, if it is always the same

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps!r}")
        tensors = tuple(torch.tensor(weight, dtype=torch.float32) for weight in self.weights)
        units = tensors[-2].shape[-1] if len(tensors) == 6 else 0
        inputs = self.inputs or (tensors[0].shape[-1] if tensors and tensors[0].ndim else 0)
        wanted = [(3 * units, inputs), (3 * units, units), (3 * units,), (3 * units,), (1, units), (1,)]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if shapes != wanted:
            raise ValueError(f"weights must have the shapes {wanted}, got {shapes}")
        object.__setattr__(self, "weights", tuple(_nested(tensor.tolist()) for tensor in tensors))
        object.__setattr__(self, "_tensors", {torch.device("cpu"): tensors})

    @property
    def num_steps(self) -> int | None:
        return self.steps

    def output(self, features: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """o_t `[B]` and h_t `[B, H]` from f_t `[B, F]` and h_{t-1}, None before the first step."""
        tensors: dict[torch.device, tuple[Tensor, ...]] = self._tensors  # type: ignore[attr-defined]
        device = features.device
        if device not in tensors:
            tensors[device] = tuple(tensor.to(device) for tensor in tensors[torch.device("cpu")])
        *gru, head, bias = tensors[device]
        if hidden is None:
            hidden = features.new_zeros(len(features), head.shape[1])
        hidden = torch.gru_cell(features, hidden, *gru)
        return torch.addmv(bias, hidden, head[0]), hidden


@dataclass(frozen=True)
class Recurrent(GruRule, kind="recurrent"):
    """h_t = GRU(f_t, h_{t-1}), stops where w · h_t + b > 0.

    f_t: the two largest probabilities, entropy / log K, whether the label is that of the previous step, and t / T. It costs
    some 30 microseconds a step, more than the other rules. See `learned_stop`.

    Args:
        steps: T.
        weights: GRU weights `[3H, 5]` and `[3H, H]`, biases `[3H]` and `[3H]`, then w `[1, H]` and b `[1]`, nested sequences.
    """

    inputs = _FEATURES

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        label, hidden = state or (None, None)
        features, label = _features(probabilities, label, step / self.steps)
        output, hidden = self.output(features, hidden)
        return output > 0, (label, hidden)


def learned_stop(
    trace: Trace,
    price: float,
    cost: Spent = "macs",
    units: int = 8,
    epochs: int = 30,
    seed: int = 0,
    combiner: Combiner | None = None,
) -> Outcome:
    """Trains `Recurrent` on a trace for E[correct - price * cost]: it predicts the gain of stopping now over continuing.

    w · h_t + b ≈ E[u_t - U_{t+1} | f_1 .. f_t] by least squares, u_t = correct_t - price * cost_t; U_{t+1} is the utility if
    the current rule decides from the next step on (regression for optimal stopping, Longstaff and Schwartz 2001). Adam; a few
    seconds for a few thousand samples.

    Args:
        trace: The answers on a validation split.
        price: Accuracy that a unit of cost is worth: 1e-9 per MAC, 20 per second, ...
        cost: "macs" (interruptible) or "seconds".
        units: H.
        epochs: Passes over the samples, in batches of 512.
        seed: Seed of the initial weights and of the order of the samples.
        combiner: How answers are made from several steps; default `Last()`.

    Raises:
        ValueError: If the price is negative, or the trace has only one step or does not hold that cost.
    """
    require_price(price)
    answers, steps = Answers.of(trace, combiner), trace.num_steps
    if steps < 2:
        raise ValueError("a trace of one step leaves nothing to learn: there is no earlier step to stop at")
    utility = answers.right.float() - (price * costs(trace, cost).double()).float()[:, None]
    inputs, label = [], None
    for step, probabilities in enumerate(answers.probabilities[:-1], start=1):
        features, label = _features(probabilities, label, step / steps)
        inputs.append(features)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sequence = torch.stack(inputs)
        gru, head = nn.GRUCell(_FEATURES, units), nn.Linear(units, 1)
        parameters = [*gru.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.03)
        for _ in range(epochs):
            for chosen in torch.randperm(answers.trace.num_samples).split(_BATCH):
                worth, hidden, predicted = utility[:, chosen], torch.zeros(len(chosen), units), []
                for features in sequence[:, chosen]:
                    hidden = gru(features, hidden)
                    predicted.append(head(hidden)[:, 0])
                later, gains = worth[-1], []
                for now, gain in zip(worth[:-1].flip(0), reversed(predicted), strict=True):
                    gains.append(now - later)
                    later = torch.where(gain.detach() > 0, now, later)
                loss = (torch.stack(predicted) - torch.stack(gains).flip(0)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return answers.outcome(Recurrent(steps, [parameter.tolist() for parameter in parameters]))


def _features(probabilities: Tensor, before: Tensor | None, time: float) -> tuple[Tensor, Tensor]:
    """f_t `[B, 5]` and the labels `[B, 1]` of one step, given those of the step before."""
    top, index = two_largest(probabilities)
    label = index[:, :1]
    entropy = torch.special.entr(probabilities).sum(1, keepdim=True) / math.log(max(probabilities.shape[1], 2))
    same = torch.zeros_like(entropy) if before is None else (label == before).to(entropy.dtype)
    return torch.cat([top, entropy, same, torch.full_like(entropy, time)], dim=1).float(), label


def _nested(value: list | float) -> tuple | float:
    return tuple(map(_nested, value)) if isinstance(value, list) else value
