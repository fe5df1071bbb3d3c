"""Combiners: one answer from the outputs of several steps, step by step or over a whole trace."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from anytime.model import State
from anytime.support.names import nearest
from anytime.support.tagged import Tagged
from anytime.trace import Trace, labelled

__all__ = [
    "Caching",
    "Combiner",
    "Geometric",
    "Last",
    "Mixture",
    "Product",
    "Temperature",
    "combiner",
    "fit_geometric",
    "fit_temperatures",
]

_LEAST_LOG_P = -100.0  # near the smallest number of float32, exp(-103)


class Combiner(Tagged):
    """Probabilities after step t from the logits z_1 .. z_t of one label level.

    `update` is pure: it takes a state and returns the next. A state is a pytree of tensors with the batch in dimension 0
    (and of plain numbers), so `anytime.select_samples` compacts it. Logits are float32 or float64. A sample whose logits are
    NaN or infinite at a step keeps its state; its probabilities are then NaN or unchanged.

    Attributes:
        num_steps: T if the combiner was made for networks of T steps; None if it fits any.
    """

    per_step: ClassVar[str | None] = None  # name of the argument that holds one number above zero for each step

    def __post_init__(self) -> None:
        if self.per_step and (values := getattr(self, self.per_step)) is not None:
            try:
                numbers = tuple(float(value) for value in values)
            except (TypeError, ValueError):  # a single number, or no numbers
                numbers = ()
            if not numbers or not all(0 < number < math.inf for number in numbers):
                raise ValueError(f"{self.per_step} must be finite and above zero, one per step, got {values!r}")
            object.__setattr__(self, self.per_step, numbers)

    @property
    def num_steps(self) -> int | None:
        values = getattr(self, self.per_step) if self.per_step else None
        return None if values is None else len(values)

    def start(self, num_steps: int) -> State:
        """The state before the first step of a network of `num_steps` steps.

        Raises:
            ValueError: The combiner was made for a different number of steps.
        """
        if self.num_steps not in (None, num_steps):
            raise ValueError(f"this {self.kind!r} combiner was made for {self.num_steps} steps, the model has {num_steps}")
        return None

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        """Probabilities `[B, K]` from the logits `[B, K]` of step 1..T and the state before it; also the state after it."""
        raise NotImplementedError

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities `[T, N, K]` of all steps from the logits `[T, N, K]` of a trace."""
        state, answers = self.start(len(logits)), []
        for step, values in enumerate(logits, start=1):
            probabilities, state = self.update(state, values, step)
            answers.append(probabilities)
        return torch.stack(answers)


@dataclass(frozen=True)
class Last(Combiner, kind="last"):
    """p_t = softmax(z_t): the newest answer only."""

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        return logits.softmax(1), None


@dataclass(frozen=True)
class Caching(Combiner, kind="caching"):
    """p_t = softmax(z_s), where s <= t is the step with the largest max softmax, the earliest of equals.

    Confidence never falls. A Shallow-Deep Network answers like this if no exit was confident enough (Kaya et al. 2019); it is
    the baseline CA of Jazbec et al. 2023.
    """

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        probabilities = logits.softmax(1)
        if state is not None:
            no_surer = probabilities.amax(1, keepdim=True) <= state.amax(1, keepdim=True)  # false where either is NaN
            probabilities = torch.where(no_surer | probabilities.isnan(), state, probabilities)
        return probabilities, probabilities


@dataclass(frozen=True)
class Product(Combiner, kind="product"):
    """p_t(y) ∝ prod_{i <= t} max(z_i(y), 0)^w_i: a product of experts, in log space (Jazbec et al. 2023).

    A class that one step rules out (logit <= 0) stays out, so the answer narrows and the probability of the true class
    hardly ever falls. If all classes are out, p_t = softmax(z_t).

    Args:
        weights: w_i > 0, one per step. None: i / T, as in the paper.
    """

    weights: Sequence[float] | None = None
    per_step = "weights"

    def start(self, num_steps: int) -> State:
        super().start(num_steps)
        return num_steps, None

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        num_steps, total = state
        weight = step / num_steps if self.weights is None else self.weights[step - 1]
        finite = logits.amax(1, keepdim=True).abs() < math.inf
        expert = torch.where(finite, logits, 1.0).relu_().log_()  # an expert of 1 for every class changes nothing
        total = expert.mul_(weight) if total is None else torch.add(total, expert, alpha=weight)
        product = total.softmax(1)  # nan where every class is out
        return torch.where(product.isnan(), logits.softmax(1), product), (num_steps, total)


@dataclass(frozen=True)
class Mixture(Combiner, kind="mixture"):
    """p_t = sum_{i <= t} w_i softmax(z_i) / sum_{i <= t} w_i.

    A step without finite logits counts as if it had repeated the mean before it; if there is none, as if it had been the first
    finite step.

    Args:
        weights: w_i > 0, one per step; with the cumulative MACs of the steps, deeper ones count more.
    """

    weights: Sequence[float]
    per_step = "weights"

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        weight, probabilities = self.weights[step - 1], logits.softmax(1)
        if state is None:
            return probabilities, (weight, probabilities)
        total, mean = state
        total = total + weight
        moved = torch.lerp(mean, probabilities, weight / total)  # NaN where either is
        mean = torch.where(probabilities.isnan(), mean, torch.where(mean.isnan(), probabilities, moved))
        return mean, (total, mean)


@dataclass(frozen=True)
class Temperature(Combiner, kind="temperature"):
    """Divides the logits of step t by its temperature τ_t before another combiner sees them (Guo et al. 2017).

    Args:
        temperatures: τ_t > 0, one per step; see `fit_temperatures`.
        combiner: Combines the divided logits.

    Raises:
        ValueError: The combiner is a product of experts, which temperatures do not change.
    """

    temperatures: Sequence[float]
    combiner: Combiner = Last()
    per_step = "temperatures"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.combiner, Product):
            raise ValueError("a product of max(logit, 0) does not change with temperature: use Product() without it")

    def start(self, num_steps: int) -> State:
        super().start(num_steps)
        return self.combiner.start(num_steps)

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        return self.combiner.update(state, logits / self.temperatures[step - 1], step)


@dataclass(frozen=True)
class Geometric(Combiner, kind="geometric"):
    """p_t(y) ∝ b_t(y) prod_{i <= t} softmax(z_i)(y)^w_ti: a weighted geometric mean of all answers so far (Zero-Time-Waste).

    A probability below exp(-100) = 4e-44, such as the 0 of a logit of -inf, counts as exp(-100). A step with a logit of NaN or
    inf, or with only -inf, has the probabilities NaN; for later ones it counts as 1 for every class.

    Args:
        weights: w_t, t numbers >= 0 for step t = 1..T.
        biases: b_t, K numbers > 0 for each step; see `fit_geometric`.

    Raises:
        ValueError: Another number of weights or biases, or one out of range; logits of another number of classes.

    Source: Wołczyk et al., NeurIPS 2021 (zero time waste). The published code leaves out the last answer.
    """

    weights: Sequence[Sequence[float]]
    biases: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        for name in ("weights", "biases"):
            try:
                rows = tuple(tuple(float(number) for number in row) for row in getattr(self, name))
            except (TypeError, ValueError):
                raise ValueError(f"{name} must be a row of numbers for each step, got {getattr(self, name)!r}") from None
            object.__setattr__(self, name, rows)
        widths, classes = [len(row) for row in self.weights], [len(row) for row in self.biases]
        if not widths or widths != [*range(1, len(widths) + 1)]:
            raise ValueError(f"weights must be t numbers for step t = 1, 2, ..., got rows of {widths}")
        if len(classes) != len(widths) or len(set(classes)) != 1 or not classes[0]:
            raise ValueError(f"biases must be {len(widths)} rows of one number per class, got rows of {classes}")
        if not all(0 <= number < math.inf for row in self.weights for number in row):
            raise ValueError(f"weights must be finite and at least zero, got {self.weights!r}")
        if not all(0 < number < math.inf for row in self.biases for number in row):
            raise ValueError("biases must be finite and above zero")

    @property
    def num_steps(self) -> int | None:
        return len(self.weights)

    def start(self, num_steps: int) -> State:
        super().start(num_steps)
        return ()

    def update(self, state: State, logits: Tensor, step: int) -> tuple[Tensor, State]:
        if logits.shape[1] != len(self.biases[0]):
            raise ValueError(
                f"this 'geometric' combiner was made for {len(self.biases[0])} classes, got {logits.shape[1]} logits"
            )
        finite = logits.amax(1, keepdim=True).isfinite()
        experts = (*state, _log_p(torch.where(finite, logits, 0.0), 1) * finite)
        total = logits.new_tensor(self.biases[step - 1]).log().expand_as(logits)
        for weight, expert in zip(self.weights[step - 1], experts, strict=True):
            total = torch.add(total, expert, alpha=weight)
        return torch.where(finite, total.softmax(1), math.nan), experts


def _log_p(logits: Tensor, dim: int) -> Tensor:
    """log softmax(z), at least `_LEAST_LOG_P`."""
    return logits.log_softmax(dim).clamp(min=_LEAST_LOG_P)


def fit_geometric(trace: Trace) -> Geometric:
    """The w >= 0 and b > 0 of each step with the least cross-entropy on a trace.

    The loss is convex in w and log b. For answers that are all right it has no minimum, so w stays below 50; log b has mean 0
    and stays within 10.

    Args:
        trace: The answers on a validation split, or on the training images of the heads.

    Raises:
        ValueError: The trace has several label levels, or no labels.

    Warns:
        UserWarning: The search for the weights of a step ended before their loss was the least.
    """
    from scipy.optimize import minimize

    trace = labelled(trace)
    experts, samples, classes = _log_p(trace.logits.double(), 2), trace.num_samples, trace.num_classes
    rows = torch.arange(samples)
    weights, biases = [], []

    def loss(parameters: Any, step: int) -> tuple[float, Any]:
        numbers = torch.from_numpy(parameters)
        log_p = (torch.einsum("t,tnk->nk", numbers[:step], experts[:step]) + numbers[step:]).log_softmax(1)
        excess = log_p.exp()
        excess[rows, trace.labels] -= 1
        slope = torch.cat([torch.einsum("nk,tnk->t", excess, experts[:step]), excess.sum(0)]) / samples
        return float(-log_p[rows, trace.labels].mean()), slope.numpy()

    for step in range(1, trace.num_steps + 1):
        start = torch.cat([torch.full((step,), 1 / step), torch.zeros(classes)]).double().numpy()
        bounds = [(0, 50)] * step + [(-10, 10)] * classes
        found = minimize(loss, start, (step,), "L-BFGS-B", jac=True, bounds=bounds, options={"gtol": 1e-6})
        if not found.success:
            warnings.warn(f"the weights of step {step} may not have the least cross-entropy: {found.message}", stacklevel=2)
        best = torch.from_numpy(found.x)
        weights.append(best[:step].tolist())
        biases.append((best[step:] - best[step:].mean()).exp().tolist())
    return Geometric(weights, biases)


def fit_temperatures(trace: Trace, combiner: Combiner | None = None) -> Temperature:
    """τ_t = argmin_τ mean_n -log softmax(z_t / τ)_label, independently for each step (Guo et al. 2017), within 1/50 .. 50.

    The loss is convex in 1 / τ, so its minimum is unique.

    Args:
        trace: The answers on a validation split.
        combiner: Combines the divided logits; default `Last()`.

    Raises:
        ValueError: The trace has several label levels, no labels, or labels with a logit of -inf, whose loss is infinite at
            every temperature.
    """
    from scipy.optimize import minimize_scalar

    trace = labelled(trace)

    def loss(log_temperature: float, logits: Tensor, right: Tensor) -> float:
        inverse = math.exp(-log_temperature)
        return float(((logits * inverse).logsumexp(1) - right * inverse).mean())

    options = {"method": "bounded", "bounds": (-math.log(50), math.log(50)), "options": {"xatol": 1e-6}}
    temperatures = []
    for number, step in enumerate(trace.logits, 1):
        logits = step.double()
        right = logits.gather(1, trace.labels[:, None])[:, 0]
        if excluded := int(right.isinf().sum()):
            raise ValueError(
                f"no temperature makes the loss of step {number} finite: {excluded} of {len(right)} labels have a "
                "logit of -inf"
            )
        temperatures.append(math.exp(minimize_scalar(loss, args=(logits, right), **options).x))
    return Temperature(temperatures, combiner or Last())


FITS: dict[str, Callable[[Trace], Combiner]] = {Temperature.kind: fit_temperatures, Geometric.kind: fit_geometric}
"""What fits a combiner to a trace, by its kind."""


def combiner(name: str, macs: Sequence[float] | None = None) -> Combiner:
    """A combiner by name: "last", "caching", "product" or "mixture"; the others are fitted (`FITS`).

    Args:
        name: The kind.
        macs: Cumulative MACs of the steps: the weights of "mixture".

    Raises:
        ValueError: The name is unknown, or `macs` is missing for "mixture".

    Example:
        >>> from anytime.combine import combiner
        >>> combiner("product")
        Product(weights=None)
    """
    if name == Mixture.kind:
        if macs is None:
            raise ValueError("'mixture' weighs the steps by their MACs: give macs=, or build Mixture(weights)")
        return Mixture(macs)
    if name in FITS:
        raise ValueError(f"{name!r} is fitted on a validation trace: use {FITS[name].__name__}(trace)")
    if name not in Combiner.kinds:
        raise ValueError(f"unknown combiner {name!r}{nearest(name, Combiner.kinds)}")
    return Combiner.kinds[name]()
