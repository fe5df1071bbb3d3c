"""Stop-time metacognition: a small recurrent network predicts from the answers whether the newest is already the final one.

Source: the first version of Iuzzolino, Mozer, Bengio 2021 (arXiv 2102.09808v1); the final paper leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.combine import Combiner
from anytime.model import State
from anytime.stopping.choose import Answers, Outcome
from anytime.stopping.learned import GruRule
from anytime.stopping.rules import Verdict
from anytime.trace import Trace

_BATCH = 256
_LEAST = 1e-9  # probabilities below count as this
_SCALE = 4  # brings log p near 1


@dataclass(frozen=True)
class FinalAnswer(GruRule, kind="final_answer"):
    """h_t = GRU(log p_t / 4, h_{t-1}), stops where sigmoid(w · h_t + b) > θ: the answer is predicted to be the final one.

    log p_t is the logits up to a shift. See `metacognition`.

    Args:
        steps: T.
        weights: GRU weights `[3H, K]` and `[3H, H]`, biases `[3H]` and `[3H]`, then w `[1, H]` and b `[1]`, nested sequences.
        threshold: θ in [0, 1]; 1 never stops.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold!r}")
        object.__setattr__(self, "threshold", float(self.threshold))

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        classes = len(self.weights[0][0])
        if probabilities.shape[1] != classes:
            raise ValueError(f"this rule was fitted to {classes} classes, the answer has {probabilities.shape[1]}")
        output, hidden = self.output(_inputs(probabilities), state)
        return output.sigmoid() > self.threshold, hidden


def metacognition(
    trace: Trace,
    threshold: float = 0.5,
    units: int = 32,
    epochs: int = 30,
    lr: float = 0.01,
    seed: int = 0,
    combiner: Combiner | None = None,
) -> Outcome:
    """Trains `FinalAnswer`: the target at step t < T is whether argmax p_t = argmax p_T, right or wrong.

    Binary cross-entropy, averaged over steps; Adam in batches of 256. It stops for constancy, not for accuracy.

    Args:
        trace: The answers on a validation split.
        threshold: θ of the rule.
        units: H.
        epochs: Passes over the samples.
        lr: Learning rate.
        seed: Draws the initial weights and the order of the samples.
        combiner: How answers are made from several steps; default `Last()`.

    Raises:
        ValueError: The trace has only one step, several label levels or no labels, or the threshold is out of range.
    """
    answers, steps = Answers.of(trace, combiner), trace.num_steps
    if steps < 2:
        raise ValueError("a trace of one step leaves nothing to learn: there is no earlier step to stop at")
    labels = answers.probabilities.argmax(2)
    target = (labels[:-1] == labels[-1]).float()
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sequence = _inputs(answers.probabilities[:-1]).clone()
        gru, head = nn.GRU(sequence.shape[2], units), nn.Linear(units, 1)
        parameters = [*gru.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=lr)
        for _ in range(epochs):
            for chosen in torch.randperm(sequence.shape[1]).split(_BATCH):
                output = head(gru(sequence[:, chosen])[0])[..., 0]
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(output, target[:, chosen]).backward()
                optimizer.step()
    return answers.outcome(FinalAnswer(steps, [parameter.tolist() for parameter in parameters], threshold))


def metacognition_curve(
    rule: FinalAnswer, trace: Trace, thresholds: Sequence[float], combiner: Combiner | None = None
) -> list[Outcome]:
    """Accuracy and cost of the rule at several thresholds on a trace that it was not fitted to.

    `reporting.plots.speed_accuracy(trace, {"metacognition": [(o.macs, o.accuracy) for o in outcomes]})` draws them.
    """
    answers = Answers.of(trace, combiner)
    return [answers.outcome(replace(rule, threshold=threshold)) for threshold in thresholds]


def _inputs(probabilities: Tensor) -> Tensor:
    """log p / 4, float32; an answer of NaN counts as even odds of all classes."""
    even = 1 / probabilities.shape[-1]
    return probabilities.nan_to_num(even).clamp(min=_LEAST).log().float() / _SCALE
