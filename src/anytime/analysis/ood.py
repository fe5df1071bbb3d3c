"""Does the time course tell images of unknown classes? Scores, a small network on the course, AUROC and FPR at 95 % TPR.

All scores are larger for images of known classes (in-distribution), which count as positive.

Source: Iuzzolino, Mozer, Bengio 2021, section 5.1 and Fig. 7 (METACOG-OOD); energy: Liu, Wang, Owens, Li 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.analysis.needs import require_steps
from anytime.data.splits import hold_out
from anytime.support.arrays import as_tensor
from anytime.support.names import nearest
from anytime.trace import Trace, require_one_level

__all__ = [
    "Detection",
    "Detector",
    "detection",
    "detector_inputs",
    "energy",
    "fit_detector",
    "max_softmax",
    "negative_entropy",
    "score",
]

Form = Literal["last", "trace"]
FORMS: tuple[Form, ...] = get_args(Form)
_BATCH = 256
_PATIENCE = 10  # epochs without improvement


def max_softmax(logits: Tensor) -> Tensor:
    """max_k softmax(z)_k, `[T, N]`."""
    return logits.softmax(2).amax(2)


def energy(logits: Tensor) -> Tensor:
    """log sum_k exp z_k, the negative energy, `[T, N]`."""
    return logits.logsumexp(2)


def negative_entropy(logits: Tensor) -> Tensor:
    """sum_k p_k log p_k, p = softmax(z), in nats, `[T, N]`."""
    return -torch.special.entr(logits.softmax(2)).sum(2)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_softmax": max_softmax,
    "energy": energy,
    "entropy": negative_entropy,
}
"""Scores without training, larger for known classes."""

INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_softmax": lambda logits: max_softmax(logits)[..., None],
    "entropy": lambda logits: -negative_entropy(logits)[..., None],
    "posterior": lambda logits: logits.softmax(2),
    "logits": lambda logits: logits,
}
"""What a detector reads of each step, `[T, N, F]`: the four representations of the paper."""


def score(trace: Trace, name: str = "max_softmax", form: Form = "last", first: int = 1) -> Tensor:
    """A score without training, float64 `[N]`: of the last step, or its mean over the steps.

    The mean over the steps rewards images whose course was sure early, which the last step does not tell.

    Args:
        trace: The answers; labels are not needed.
        name: "max_softmax", "energy" or "entropy" (its negative).
        form: "last" or "trace".
        first: First step of the trace form, from 1; steps that have not seen the image tell nothing.

    Raises:
        ValueError: An unknown name or form, a trace of several label levels, or of one step in the trace form.
    """
    _check_form(form)
    if name not in SCORES:
        raise ValueError(f"unknown score {name!r}{nearest(name, SCORES)}")
    return SCORES[name](_logits(trace, form, first)).mean(0)


@dataclass(frozen=True)
class Detection:
    """How well scores tell in-distribution samples (positive) from others.

    Attributes:
        auroc: Area under the ROC curve: the probability that a positive sample has the larger score (ties count half).
        fpr95: Smallest share of the other samples that are taken for positive where at least 95 % of the positive ones are.
        known, unknown: Numbers of samples.
    """

    auroc: float
    fpr95: float
    known: int
    unknown: int


def detection(known: Tensor, unknown: Tensor, tpr: float = 0.95) -> Detection:
    """AUROC and FPR at 95 % TPR (ODIN's convention: in-distribution samples are positive), by torchmetrics.

    Args:
        known: Scores of in-distribution samples, `[N]`.
        unknown: Scores of other samples, `[M]`.
        tpr: True positive rate at which false positives are counted.

    Raises:
        ValueError: There are no scores on one side, or they are NaN.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_roc

    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1], got {tpr!r}")
    known, unknown = as_tensor(known, "scores"), as_tensor(unknown, "scores")
    if known.ndim != 1 or unknown.ndim != 1 or not len(known) or not len(unknown):
        raise ValueError(f"detection needs scores on both sides, got {list(known.shape)} and {list(unknown.shape)}")
    scores = torch.cat([known, unknown]).double()
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are NaN or infinite")
    # torchmetrics applies a sigmoid to scores outside [0, 1], which would make many equal; ranks keep their order
    ranks = scores.unique(return_inverse=True)[1].double()
    ranks = ranks / max(float(ranks.max()), 1.0)
    positive = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).long()
    false, true, _ = binary_roc(ranks, positive)
    return Detection(float(binary_auroc(ranks, positive)), float(false[true >= tpr - 1e-6].min()), len(known), len(unknown))


@dataclass(frozen=True, eq=False)
class Detector:
    """A small network with one hidden layer that maps the last answer, or all answers, to log odds of a known class.

    Attributes:
        network: Maps `[N, F]` to `[N, 1]`.
        inputs: What it reads of a step: a name of `INPUTS`.
        form: "last" or "trace".
        first: The first step that it reads in the trace form.
        num_steps, num_classes: T and K of the traces it was fitted to.
        mean, spread: Those of the inputs, `[F]`, by which it standardises them.
        epochs: Passes over the samples until the held-out loss was smallest; more may help if these are all.
    """

    network: nn.Module
    inputs: str
    form: Form
    first: int
    num_steps: int
    num_classes: int
    mean: Tensor
    spread: Tensor
    epochs: int

    def __call__(self, trace: Trace) -> Tensor:
        """log p / (1 - p), p the probability that a sample is of a known class, float64 `[N]`.

        Raises:
            ValueError: The trace has other steps or classes than those the detector was fitted to.
        """
        if (trace.num_steps, trace.num_classes) != (self.num_steps, self.num_classes):
            raise ValueError(
                f"the detector was fitted to {self.num_steps} steps and {self.num_classes} classes, the trace has "
                f"{trace.num_steps} and {trace.num_classes}"
            )
        with torch.inference_mode():
            x = (detector_inputs(trace, self.inputs, self.form, self.first) - self.mean) / self.spread
            return self.network(x.float())[:, 0].double()


def detector_inputs(trace: Trace, inputs: str = "logits", form: Form = "trace", first: int = 1) -> Tensor:
    """What a detector reads, float64 `[N, F]`: the last step, or the steps from `first` side by side.

    Raises:
        ValueError: As `score`, or a value is NaN or infinite.
    """
    _check_form(form)
    if inputs not in INPUTS:
        raise ValueError(f"unknown inputs {inputs!r}{nearest(inputs, INPUTS)}")
    values = INPUTS[inputs](_logits(trace, form, first)).transpose(0, 1).flatten(1)
    if bool((bad := ~values.isfinite().all(1)).any()):
        raise ValueError(f"a detector reads finite numbers, but of {int(bad.sum())} of {len(bad)} samples {inputs!r} are not")
    return values


def fit_detector(
    known: Trace,
    unknown: Trace,
    inputs: str = "logits",
    form: Form = "trace",
    *,
    first: int = 1,
    hidden: int = 256,
    epochs: int = 200,
    lr: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
) -> Detector:
    """METACOG-OOD: a ReLU layer of 256 units and a sigmoid, trained by Adam on binary cross-entropy; 1 is a known class.

    Inputs are standardised. Both sides count alike, however many samples they have. The weights with the smallest loss on
    held-out samples are kept; training ends after 10 epochs without a smaller one. The paper says only the hidden units.

    Args:
        known: Answers to images of the known classes that the network was not trained on, such as a validation split.
        unknown: Answers to images of other classes.
        inputs: "max_softmax", "entropy", "posterior" or "logits".
        form: "last" or "trace".
        first: First step of the trace form, from 1.
        hidden: Units of the hidden layer.
        epochs: Most passes over the samples, in batches of 256.
        lr: Learning rate.
        held_out: Share of the samples that decide when to stop.
        seed: Draws the weights, the order and the held-out samples.

    Raises:
        ValueError: The traces differ in steps or classes, a number is out of range, no loss is finite, or as
            `detector_inputs`.
    """
    for name, number in (("hidden", hidden), ("epochs", epochs)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, got {lr!r}")
    if (known.num_steps, known.num_classes) != (unknown.num_steps, unknown.num_classes):
        raise ValueError(
            f"both traces need the same steps and classes, got {known.num_steps} and {known.num_classes}, "
            f"{unknown.num_steps} and {unknown.num_classes}"
        )
    sides = [detector_inputs(trace, inputs, form, first) for trace in (known, unknown)]
    x, side = torch.cat(sides), torch.cat([torch.full((len(s),), i) for i, s in enumerate(sides)])
    train, kept = hold_out(side, held_out, seed)
    if min(int((side[part] == i).sum()) for part in (train, kept) for i in (0, 1)) < 1:
        raise ValueError(f"{len(sides[0])} and {len(sides[1])} samples are too few to hold out {held_out:g} of each")
    mean, spread = x[train].mean(0), x[train].std(0, correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    standard, target = ((x - mean) / spread).float(), 1 - side.float()
    weight = (0.5 / torch.bincount(side[train], minlength=2) * len(train)).float()[side]

    def loss(part: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(standard[part])[:, 0], target[part], weight[part])

    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr)
        best, chosen, state = math.inf, 0, {}
        for epoch in range(1, epochs + 1):
            for part in train[torch.randperm(len(train))].split(_BATCH):
                optimizer.zero_grad()
                loss(part).backward()
                optimizer.step()
            with torch.no_grad():
                now = float(loss(kept))
            if now < best:
                best, chosen, state = now, epoch, {name: value.clone() for name, value in network.state_dict().items()}
            elif epoch - chosen >= _PATIENCE:
                break
        if not state:
            raise ValueError(
                f"the detector's loss was never finite in {epoch} epochs; lr={lr!r} is too large for these inputs"
            )
        network.load_state_dict(state)
    return Detector(network.eval(), inputs, form, first, known.num_steps, known.num_classes, mean, spread, chosen)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}{nearest(form, FORMS)}")


def _logits(trace: Trace, form: Form, first: int) -> Tensor:
    """The logits that count, float64 `[t, N, K]`."""
    require_one_level(trace)
    if form == "last":
        return trace.logits[-1:].double()
    require_steps(trace, first + 1, f"the trace form from step {first}")
    if first < 1:
        raise ValueError(f"first must be at least 1, got {first!r}")
    return trace.logits[first - 1 :].double()
