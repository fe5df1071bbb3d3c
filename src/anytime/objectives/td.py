"""TD(lambda): every answer learns to predict later answers and, at the end, the truth (Iuzzolino et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime.objectives.weighted import Objective, check_labels, full_precision, require_classes, step_losses
from anytime.support.names import nearest


def _check_lam(lam: float) -> None:
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam!r}")


@torch.no_grad()
def td_targets(predictions: Tensor, truth: Tensor, lam: float) -> Tensor:
    """y_t = (1 - lam) sum_{i=1..T-t} lam^(i-1) p_{t+i} + lam^(T-t) y_true for t = 1..T (eq. 2), with 0^0 = 1.

    Computed by the recursion y_T = y_true, y_t = (1 - lam) p_{t+1} + lam y_{t+1}. The target is the next prediction if
    lam = 0, the truth if lam = 1. No gradient flows through targets.

    Args:
        predictions: p `[T, B, ...]`; the first is not a target of any answer.
        truth: y_true `[B, ...]`, with the shape and dtype of one prediction.
        lam: lambda, in [0, 1].

    Returns:
        `[T, B, ...]`; for lam = 1 a view of `truth`.

    Raises:
        ValueError: lam lies outside [0, 1], or the shape of the truth is not that of a prediction.
    """
    _check_lam(lam)
    if predictions.shape[1:] != truth.shape:
        raise ValueError(f"the truth must be {list(predictions.shape[1:])}, like a prediction, got {list(truth.shape)}")
    if lam == 1:
        return truth.expand_as(predictions)
    if lam == 0:
        return torch.cat([predictions[1:], truth[None]])
    targets = torch.empty_like(predictions)
    targets[-1] = truth
    for t in range(len(targets) - 2, -1, -1):
        torch.lerp(predictions[t + 1], targets[t + 1], lam, out=targets[t])
    return targets


class Outputs:
    """A kind of answers: how they become predictions, targets and losses. Subclass it for other kinds."""

    def predict(self, answers: Tensor) -> Tensor:
        """The predictions p `[T, B, ...]` of answers `[T, B, ...]`."""
        raise NotImplementedError

    def truth(self, answers: Tensor, target: Any) -> Tensor:
        """y_true `[B, ...]`, with the shape and dtype of one prediction; raises ValueError if the target does not fit."""
        raise NotImplementedError

    def losses(self, answers: Tensor, targets: Tensor, target: Any) -> Tensor:
        """The loss of each answer, `[T]`, from answers and TD targets `[T, B, ...]`; `target` as given to the objective."""
        raise NotImplementedError

    def true_losses(self, answers: Tensor, target: Any) -> Tensor:
        """`losses` if every TD target is the truth."""
        return self.losses(answers, self.truth(answers, target).expand_as(answers), target)


class Classification(Outputs):
    """p = softmax(a), y_true = one-hot label, loss_t = mean over the batch of -sum_c y_tc log p_tc.

    Answers are logits a `[T, B, K]`, the target is labels `[B]`. The logarithm is a log-softmax, exact for any logits.
    """

    def predict(self, answers: Tensor) -> Tensor:
        return answers.softmax(-1)

    def truth(self, answers: Tensor, target: Tensor) -> Tensor:
        if answers.ndim > 3:
            raise ValueError(f"logits must be [T, B, K], got {list(answers.shape)}; heat-maps need outputs='heat_maps'")
        batch, classes = answers.shape[-2:]
        require_classes(classes)
        check_labels(target, batch, classes)
        return F.one_hot(target.long(), classes).to(answers.dtype)

    def losses(self, answers: Tensor, targets: Tensor, target: Tensor) -> Tensor:
        return -(targets * answers.log_softmax(-1)).sum(-1).mean(1)

    def true_losses(self, answers: Tensor, target: Tensor) -> Tensor:
        require_classes(answers.shape[-1])
        return step_losses(answers, target)


class HeatMaps(Outputs):
    """p = a, loss_t = mean over joints j of 1/2 mean over images and pixels of (w_bj (a_t - y_t))^2.

    Answers are heat-maps a `[T, B, J, H, W]`, used without a softmax even as targets of earlier answers (the published code
    applied one there, and only there). The target is the true heat-maps `[B, J, H, W]`, or a pair of these and weights w
    `[B, J]`, e.g. 0 for invisible joints.
    """

    def predict(self, answers: Tensor) -> Tensor:
        return answers

    def truth(self, answers: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        maps, weights = (target, None) if isinstance(target, Tensor) else target
        if answers.ndim != 5 or maps.shape != answers.shape[1:]:
            raise ValueError(f"true heat-maps must be [B, J, H, W] = {list(answers.shape[1:])}, got {list(maps.shape)}")
        if weights is not None and weights.shape != maps.shape[:2]:
            raise ValueError(f"weights must be [B, J] = {list(maps.shape[:2])}, got {list(weights.shape)}")
        return maps.to(answers.dtype)

    def losses(self, answers: Tensor, targets: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        error = answers - targets
        if not isinstance(target, Tensor):
            error = error * target[1].to(error.dtype)[:, :, None, None]
        return 0.5 * error.square().flatten(1).mean(1)


OUTPUTS: dict[str, type[Outputs]] = {"classification": Classification, "heat_maps": HeatMaps}


class TDLambda(Objective):
    """L = sum_{t=1..T} H(y_t, p_t), y_t = (1 - lam) p_{t+1} + lam y_{t+1}, y_T = y_true; the targets y are constants.

    H is the cross-entropy, averaged over the batch, and p_t the softmax of answer t, unless `outputs` replaces both. lam is
    how far ahead an answer looks: 0 (default) to the next answer; 1 to the truth, so that L is the sum of the cross-entropies
    of all answers. The gradient of L with respect to the logits of answer t is (p_t - y_t) / B. The loss is computed in
    float32 or better, whatever autocast does. Source: Iuzzolino, Mozer, Bengio 2021, eq. 2 and the text below it.

    Args:
        lam: lambda, in [0, 1].
        reduction: `"sum"` of the answers' losses as in the paper, or their `"mean"`, whose size does not grow with T.
        skip: Number of first answers left out of the loss; 1 for the published clock, whose first answer sees no image yet.
            Targets only look ahead, so those of the other answers do not change.
        outputs: The kind of answers: `"classification"`, `"heat_maps"`, or an object of a custom `Outputs` class.

    Raises:
        ValueError: lam lies outside [0, 1], reduction or outputs are unknown, skip is negative or (when called) at least T.
    """

    def __init__(
        self,
        lam: float = 0.0,
        reduction: Literal["sum", "mean"] = "sum",
        skip: int = 0,
        outputs: str | Outputs = "classification",
    ) -> None:
        super().__init__()
        _check_lam(lam)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        if not isinstance(skip, int) or skip < 0:
            raise ValueError(f"skip must be a whole number and at least 0, got {skip!r}")
        if isinstance(outputs, str):
            if outputs not in OUTPUTS:
                raise ValueError(f"unknown outputs {outputs!r}{nearest(outputs, OUTPUTS)}")
            outputs = OUTPUTS[outputs]()
        elif not isinstance(outputs, Outputs):
            raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}, or an Outputs object, got {outputs!r}")
        self.lam, self.reduction, self.skip, self.outputs = lam, reduction, skip, outputs

    def set_levels(self, levels: Sequence[int]) -> None:
        if isinstance(self.outputs, Classification):
            require_classes(sum(levels), len(levels))
        if (number := len(levels)) > 1 and isinstance(self.outputs, Classification):
            raise ValueError(f"TDLambda takes one level of labels, the data set has {number}; choose one, e.g. labels=fine")

    def check(self, steps: int) -> None:
        if self.skip >= steps:
            raise ValueError(f"skip must be below the number of answers, {steps}, got {self.skip}")

    def forward(self, logits: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if logits.ndim < 3:
            raise ValueError(f"answers must be [T, B, ...], for all steps, got {list(logits.shape)}")
        self.check(len(logits))
        answers = full_precision(logits[self.skip :])
        if self.lam == 1:
            losses = self.outputs.true_losses(answers, target)
        else:
            with torch.no_grad():
                truth = self.outputs.truth(answers, target)
                targets = td_targets(self.outputs.predict(answers), truth, self.lam)
            losses = self.outputs.losses(answers, targets, target)
        return losses.sum() if self.reduction == "sum" else losses.mean()


class IncrementalTD:
    """The gradient of `TDLambda(lam)` for classification, accumulated answer by answer while the network still runs.

    With p_{T+1} = y_true and delta_k = p_{k+1} - p_k the gradient is -1/B sum_k e_k^T delta_k, where e_k = lam e_{k-1} +
    da_k/dw is the eligibility trace of the logits a_k `[B, K]` (Sutton 1988). Each term is added to `.grad` as soon as
    p_{k+1} is known; no answer waits for the end of the sequence, whose length need not be known. This is exactly the
    gradient of the batch form (reduction "sum") if no weight changes before `finish`.

    Cost, with P parameters: for lam > 0 the trace holds B K P numbers and each `observe` is one backward pass of B K vectors,
    so this suits small networks and few classes. For lam = 0 there is no trace: the last answer's graph is kept until the next
    one, and each `observe` is one ordinary backward pass. Unless the state is detached between steps, each pass goes back to
    the first step and autograd keeps the graphs of all steps: T (T + 1) / 2 steps of backward instead of T, so the batch form
    is cheaper. With a detached state (gradients through one step only) each pass is one step; memory does not grow with T.

    Example:
        >>> import torch
        >>> from anytime.objectives import IncrementalTD
        >>> model = torch.nn.Linear(3, 2)
        >>> td = IncrementalTD(model.parameters(), lam=0.5)
        >>> for x in torch.randn(4, 8, 3):
        ...     td.observe(model(x))
        >>> td.finish(torch.zeros(8, dtype=torch.int64))
        >>> model.weight.grad.shape
        torch.Size([2, 3])

    Args:
        parameters: Parameters whose `.grad` is added to.
        lam: lambda, in [0, 1].

    Raises:
        ValueError: lam lies outside [0, 1]; from `observe`: the logits have no graph or a new shape; from `finish`: no answer
            was observed, or the labels do not fit.
    """

    def __init__(self, parameters: Iterable[Tensor], lam: float = 0.0) -> None:
        _check_lam(lam)
        self.lam = lam
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._prediction: Tensor | None = None
        self._logits: Tensor | None = None
        self._trace: list[Tensor | None] = [None] * len(self._parameters)

    def observe(self, logits: Tensor) -> None:
        """Takes the next answer's logits `[B, K]` with their graph, and adds the term of the previous answer."""
        if not logits.requires_grad:
            raise ValueError("logits carry no graph: compute them from the parameters, with gradients enabled")
        prediction = full_precision(logits.detach()).softmax(-1)
        if self._prediction is not None:
            if prediction.shape != self._prediction.shape:
                raise ValueError(f"logits must be {list(self._prediction.shape)} as before, got {list(prediction.shape)}")
            self._add(prediction)
        self._prediction = prediction
        if self.lam == 0:
            self._logits = logits
        else:
            self._extend_trace(logits)

    def finish(self, target: Tensor) -> None:
        """Adds the last term, from the labels `[B]`; the next `observe` starts a new sequence."""
        if self._prediction is None:
            raise ValueError("call observe at least once before finish")
        self._add(Classification().truth(self._prediction, target))
        self._prediction = self._logits = None
        self._trace = [None] * len(self._parameters)

    def _extend_trace(self, logits: Tensor) -> None:
        """e <- lam e + da/dw, `[B K, *shape]` for each parameter."""
        rows = torch.eye(logits.numel(), dtype=logits.dtype, device=logits.device).view(-1, *logits.shape)
        jacobians = torch.autograd.grad(
            logits, self._parameters, rows, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        for i, (trace, jacobian) in enumerate(zip(self._trace, jacobians, strict=True)):
            if trace is None or jacobian is None:
                self._trace[i] = jacobian if trace is None else self.lam * trace
            else:  # not in place: Jacobians of different parameters may share memory
                self._trace[i] = torch.add(jacobian, trace, alpha=self.lam)

    def _add(self, following: Tensor) -> None:
        """Adds -1/B e^T (following - prediction) to the gradients."""
        assert self._prediction is not None
        terms: Sequence[Tensor | None]
        error = (self._prediction - following) / len(following)
        if self._logits is not None:
            seed = error.to(self._logits.dtype)
            terms = torch.autograd.grad(self._logits, self._parameters, seed, retain_graph=True, allow_unused=True)
        else:
            with torch.autocast(error.device.type, enabled=False):  # autocast would multiply in half precision
                terms = [e if e is None else torch.tensordot(error.flatten().to(e.dtype), e, 1) for e in self._trace]
        for parameter, term in zip(self._parameters, terms, strict=True):
            if term is not None:
                parameter.grad = term.clone() if parameter.grad is None else parameter.grad.add_(term)
