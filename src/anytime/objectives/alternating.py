"""Objectives that amplify a different answer in every training step (Hu, Dey, Bagnell, Hebert 2017: AANN and its rivals)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from anytime.objectives.weighted import TINY, StepLoss, Weighted, process_mean
from anytime.objectives.weighting import Normalization, check_interval

CIFAR_EPOCH = 391  # steps: 50,000 images in batches of 128


class Alternating(Weighted):
    """L = sum_t B_t l_t + tau (sum_t B_t) l_j: in every training step one answer j is amplified; B are fixed weights.

    j is drawn from `probabilities`; in the first step it is the last answer. The draw depends only on the seed and the number
    of training steps, so that a resumed training repeats it. In eval mode L is the expected loss, with p_j instead of a draw,
    and nothing is counted or learned. A subclass defines `distribution`, and `learn` if it learns. Source: Hu et al. 2017,
    sections 3.2, 4.4 and appendix D.

    Args:
        weights: B, a scheme of `anytime.objectives.weighting` or one weight per answer.
        tau: Additional weight, as a share of the sum of all B.
        seed: Seed of the draws.
        normalize: Scale of B: "none" as they are, "sum" to 1, or "last" weight 1.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        loss: Replaces cross-entropy: a function `(logits [T, B, ...], target) -> [T]`, or its import path.

    Attributes:
        probabilities: `[T]`, those of the next draw; None before the first call.
        amplified: j of the last training step, counted from 1, as a tensor; None before it.

    Raises:
        ValueError: tau is negative or not finite, or the weights are wrong.
    """

    def __init__(
        self,
        weights: str | Sequence[float] = "sieve",
        tau: float = 0.5,
        seed: int = 0,
        normalize: Normalization = "none",
        label_smoothing: float = 0.0,
        loss: str | StepLoss | None = None,
    ) -> None:
        super().__init__(weights, label_smoothing, normalize, loss)
        check_interval("tau", tau, "[0, inf)")
        self.tau, self.seed = tau, seed
        self.steps = 0  # training steps so far
        self.values: Tensor | None = None  # what has been learned, [T]
        self.probabilities = None
        self.amplified: Tensor | None = None

    def distribution(self, weights: Tensor) -> Tensor:
        """Probabilities `[T]` of the next draw; `weights` are B."""
        raise NotImplementedError

    def learn(self, losses: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Learns from the losses `[T]` of a training step; `chosen` (`[T]`, one-hot) marks the amplified answer."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": self.values}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.values = state["steps"], state["values"]
        self.probabilities = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.losses(logits, target)
        weights = self.step_weights(losses)
        if self.values is not None:
            if len(self.values) != len(losses):
                raise ValueError(f"this objective has learned from {len(self.values)} answers, got {len(losses)}")
            self.values = self.values.to(losses)
        if self.probabilities is None or self.probabilities.shape != losses.shape:
            self.probabilities = self.distribution(weights)
        extra = self.probabilities.to(losses)
        if self.training:
            extra = self._draw(extra)
            with torch.no_grad():
                self.learn(losses, extra, weights)
                self.probabilities = self.distribution(weights)
            self.amplified = extra.argmax() + 1
            self.steps += 1
        return torch.dot(losses, weights + self.tau * weights.sum() * extra)

    def _draw(self, probabilities: Tensor) -> Tensor:
        """One-hot `[T]`; does not read values on an accelerator, which would wait for it."""
        answers = torch.arange(len(probabilities), device=probabilities.device)
        if self.steps == 0:
            chosen = answers[-1]
        else:
            uniform = random.Random(f"{self.seed} {self.steps}").random()
            cumulative = (probabilities * (answers <= answers[:, None])).sum(1)  # cumsum is not deterministic on CUDA
            chosen = (cumulative <= uniform * cumulative[-1]).sum().clamp(max=len(answers) - 1)
        return (answers == chosen).to(probabilities)


class AANN(Alternating):
    """p_t = B_t / sum B: answers are amplified in proportion to their fixed weights; with the sieve, half the time the last.

    In expectation this is the fixed weighting times 1 + tau; only single steps differ.
    """

    def distribution(self, weights: Tensor) -> Tensor:
        return weights / weights.sum()


class Milestone(Alternating):
    """p = 1/8 for the answers floor(T/4), floor(T/2), floor(3T/4) and T, the others share 1/2; uniform if T < 8.

    Where all steps cost the same, these are the answers of `anytime.analysis.curves.error_at_cost`.

    Args:
        indices: "code" amplifies the answers after the first three, as the authors' code does, which takes T/4, T/2 and 3T/4
            for indices from 0.

    Raises:
        ValueError: As `Alternating`, or `indices` is unknown.
    """

    def __init__(
        self,
        weights: str | Sequence[float] = "sieve",
        tau: float = 0.5,
        seed: int = 0,
        normalize: Normalization = "none",
        label_smoothing: float = 0.0,
        loss: str | StepLoss | None = None,
        indices: Literal["cost", "code"] = "cost",
    ) -> None:
        super().__init__(weights, tau, seed, normalize, label_smoothing, loss)
        if indices not in ("cost", "code"):
            raise ValueError(f"indices must be 'cost' or 'code', got {indices!r}")
        self.indices = indices

    def distribution(self, weights: Tensor) -> Tensor:
        steps, shift = len(weights), int(self.indices == "cost")
        if steps < 8:
            return torch.full_like(weights, 1 / steps)
        p = torch.full_like(weights, 0.5 / (steps - 4))
        p[[steps // 4 - shift, steps // 2 - shift, 3 * steps // 4 - shift, steps - 1]] = 0.125
        return p


def rewards(losses: Tensor, eta: float) -> Tensor:
    """r_t = max(-1, 1 - l_{t+1} / l_t), t < T; r_T = eta max_{t<T} r_t (eq. 4): how far an answer lags behind the next; `[T]`.

    The bound -1, where the next loss is twice as large, keeps one batch with l_t near 0 from deciding all further draws. The
    authors use no bound. Two losses of 0 give 0, and so does a single answer.
    """
    positive = losses.clamp(min=TINY)
    early = (1 - positive[1:] / positive[:-1]).clamp(min=-1)
    last = eta * early.max() if len(early) else losses.new_zeros(())
    return torch.cat([early, last[None]])


class Learned(Alternating):
    """p = (1 - gamma) v + gamma / T: v is learned from the rewards r_t = 1 - l_{t+1} / l_t, r_T = eta max_{t<T} r_t.

    Args:
        gamma: Share of the draws made uniformly at random.
        eta: Reward of the last answer, as a share of the largest reward before it.
        warmup: Training steps before learning starts; default: one epoch as in the published code, at most a tenth of the
            training (`set_length`), or the 391 steps of an epoch of CIFAR where no training says how long it is.

    Raises:
        ValueError: gamma or eta lies outside [0, 1], gamma is 0, with which nothing is learned, or warmup is negative.
    """

    gamma_interval = "(0, 1]"

    def __init__(
        self,
        weights: str | Sequence[float] = "sieve",
        tau: float = 0.5,
        gamma: float = 0.3,
        eta: float = 0.8,
        warmup: int | None = None,
        seed: int = 0,
        normalize: Normalization = "none",
        label_smoothing: float = 0.0,
        loss: str | StepLoss | None = None,
    ) -> None:
        super().__init__(weights, tau, seed, normalize, label_smoothing, loss)
        check_interval("gamma", gamma, self.gamma_interval)
        check_interval("eta", eta, "[0, 1]")
        if warmup is not None and warmup < 0:
            raise ValueError(f"warmup must be at least 0 steps, got {warmup!r}")
        self.gamma, self.eta = gamma, eta
        self.warmup, self._warmup_given = CIFAR_EPOCH if warmup is None else warmup, warmup is not None

    def set_length(self, epochs: int, epoch_steps: int) -> None:
        if not self._warmup_given:
            self.warmup = min(epoch_steps, epochs * epoch_steps // 10)

    def distribution(self, weights: Tensor) -> Tensor:
        uniform = torch.full_like(weights, 1 / len(weights))
        if self.values is None:
            return uniform
        return torch.lerp(self.simplex(self.values), uniform, self.gamma)

    def simplex(self, values: Tensor) -> Tensor:
        """v, which sums to 1, from the learned values."""
        return values

    def learn(self, losses: Tensor, chosen: Tensor, weights: Tensor) -> None:
        if self.steps >= max(self.warmup, 1):  # the answer of the first step is not drawn
            before = self.values if self.values is not None else self.start(weights)
            p = self.distribution(weights)
            self.values = self.update(before, rewards(process_mean(losses), self.eta), chosen / p)

    def start(self, weights: Tensor) -> Tensor:
        """Initial `values`."""
        return torch.full_like(weights, 1 / len(weights))

    def update(self, values: Tensor, rewards: Tensor, chosen: Tensor) -> Tensor:
        """`values` after a step; `chosen` is 1 / p_j for the amplified answer j and 0 for the others."""
        raise NotImplementedError

    def _exponentiated(self, values: Tensor, gains: Tensor) -> Tensor:
        """v_t exp(gain_t), normalised, then mixed with the uniform distribution at a share of 0.001 gamma."""
        v = torch.softmax(values.log() + gains, 0)
        return torch.lerp(v, torch.full_like(v, 1 / len(v)), 0.001 * self.gamma)


class EXP3(Learned):
    """v_j <- v_j exp(gamma r_j / (T p_j)) for the amplified answer j, normalised; p = (1 - gamma) v + gamma / T.

    The bandit learner of Auer et al. 2002 (paper, appendix D.3), with the rewards r of `rewards`.
    """

    def update(self, values: Tensor, rewards: Tensor, chosen: Tensor) -> Tensor:
        return self._exponentiated(values, self.gamma * rewards * chosen / len(values))


class RWM(Learned):
    """v_t <- v_t exp(gamma r_t / 2) for all answers, normalised; p = (1 - gamma) v + gamma / T.

    Random weighted majority (Littlestone, Warmuth 1994; paper, appendix D.3), with the rewards r of `rewards`. The factor 1/2
    is that of the published code.
    """

    def update(self, values: Tensor, rewards: Tensor, chosen: Tensor) -> Tensor:
        return self._exponentiated(values, 0.5 * self.gamma * rewards)


class AVGL(Learned):
    """p_t proportional to max(0, a_t), a <- m a + (1 - m) r, an exponential average of the rewards; uniform if all are 0.

    The rewards r are those of `rewards` (paper, appendix D.3). The published code has a <- max(0, m a + r) from a = 1 / T
    instead, with gamma = 0.3: `rule="code"`.

    Args:
        gamma: Share of the draws made uniformly at random; 0 in the paper.
        momentum: m, in [0, 1).
        rule: Average as in the "paper" or in the published "code".
    """

    gamma_interval = "[0, 1]"

    def __init__(
        self,
        weights: str | Sequence[float] = "sieve",
        tau: float = 0.5,
        gamma: float = 0.0,
        eta: float = 0.8,
        momentum: float = 0.9,
        rule: Literal["paper", "code"] = "paper",
        warmup: int | None = None,
        seed: int = 0,
        normalize: Normalization = "none",
        label_smoothing: float = 0.0,
        loss: str | StepLoss | None = None,
    ) -> None:
        super().__init__(weights, tau, gamma, eta, warmup, seed, normalize, label_smoothing, loss)
        check_interval("momentum", momentum, "[0, 1)")
        if rule not in ("paper", "code"):
            raise ValueError(f"rule must be 'paper' or 'code', got {rule!r}")
        self.momentum, self.rule = momentum, rule

    def start(self, weights: Tensor) -> Tensor:
        return super().start(weights) if self.rule == "code" else torch.zeros_like(weights)

    def simplex(self, values: Tensor) -> Tensor:
        positive = values.clamp(min=0)
        total = positive.sum()
        return torch.where(total > 0, positive / total.clamp(min=TINY), 1 / len(values))

    def update(self, values: Tensor, rewards: Tensor, chosen: Tensor) -> Tensor:
        if self.rule == "code":
            return (self.momentum * values + rewards).clamp(min=0)
        return self.momentum * values + (1 - self.momentum) * rewards
