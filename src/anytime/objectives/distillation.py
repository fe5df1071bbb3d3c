"""Self-distillation: answers learn from the last one, or from the mean of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime.objectives.weighted import StepLoss, Weighted, full_precision, require_classes
from anytime.objectives.weighting import Normalization, check_interval

Teacher = Literal["last", "mean"]


class SelfDistillation(Weighted):
    """L = sum_t w_t l_t with l_T = CE_T and l_t = (1 - alpha) CE_t + alpha tau^2 KL(p_T || p_t) for t < T.

    p = softmax(logits / tau); with several label levels, CE and KL are sums over the levels. The last answer teaches and gets
    no gradient from the others; tau^2 keeps the gradient's scale. KL is summed over classes and averaged over the batch.
    Source: Li et al., ICCV 2019 (one-for-all knowledge distillation), whose published code also averages KL over classes, so
    that alpha weighs K times less there; Phuong, Lampert, ICCV 2019.

    Args:
        alpha: Share of the teacher, in [0, 1]; 0 is `Weighted`.
        temperature: tau, above 0.
        weights: w, a scheme of `anytime.objectives.weighting` or one weight per answer.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        normalize: Scale of the weights: "none" as they are, "sum" to 1, or "last" weight 1.
        loss: Replaces cross-entropy: a function `(logits [T, B, K], target) -> [T]`, or its import path.
        teacher: "last" answer or "mean" of all, which gets no gradient.

    Raises:
        ValueError: alpha or temperature is out of range, the teacher is neither, or the weights are wrong.

    Example:
        >>> import torch
        >>> from anytime.objectives import SelfDistillation
        >>> logits = torch.zeros(2, 3, 4)  # answers that agree have nothing to learn from each other
        >>> objective = SelfDistillation(alpha=1.0)
        >>> objective.losses(logits, torch.zeros(3, dtype=torch.long))[0].item()
        0.0
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 1.0,
        weights: str | Sequence[float] = "constant",
        label_smoothing: float = 0.0,
        normalize: Normalization = "none",
        loss: str | StepLoss | None = None,
        teacher: Teacher = "last",
    ) -> None:
        super().__init__(weights, label_smoothing, normalize, loss)
        if teacher not in get_args(Teacher):
            raise ValueError(f"teacher must be 'last' or 'mean', got {teacher!r}")
        check_interval("alpha", alpha, "[0, 1]")
        check_interval("temperature", temperature, "(0, inf)")
        self.alpha, self.temperature, self.teacher = alpha, temperature, teacher

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """One loss per answer, `[T]`, in float32 or better."""
        losses = super().losses(logits, target)
        if not self.alpha:
            return losses
        divergences = self._divergences(logits)
        taught = len(divergences)
        early = (1 - self.alpha) * losses[:taught] + self.alpha * self.temperature**2 * divergences
        return torch.cat([early, losses[taught:]])

    def _divergences(self, logits: Tensor) -> Tensor:
        """KL(teacher || p_t) of the answers that it teaches, summed over label levels; the teacher has no gradient."""
        if logits.ndim != 3:
            raise ValueError(f"distillation needs logits [T, B, K] of classes, got {list(logits.shape)}; alpha=0 is without")
        sizes = self.levels or (logits.shape[-1],)
        require_classes(logits.shape[-1], len(sizes))
        if sum(sizes) != logits.shape[-1]:
            raise ValueError(f"the label levels {sizes} need {sum(sizes)} logits, got {logits.shape[-1]}")
        weights = self.level_weights or [1.0] * len(sizes)
        taught = len(logits) if self.teacher == "mean" and len(logits) > 1 else len(logits) - 1
        divergences = logits.new_zeros(taught, dtype=torch.promote_types(logits.dtype, torch.float32))
        for weight, level in zip(weights, full_precision(logits).split(sizes, -1), strict=True):
            teacher = (level[-1] if self.teacher == "last" else level.mean(0)).detach()
            log_p = (level[:taught] / self.temperature).log_softmax(-1)
            log_q = (teacher / self.temperature).log_softmax(-1).expand_as(log_p)
            each = F.kl_div(log_p, log_q, reduction="none", log_target=True)
            divergences = divergences + weight * each.sum(-1).mean(1)
        return divergences
