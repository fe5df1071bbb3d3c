"""The loss over several label levels: every answer learns the class and its superclasses."""

from __future__ import annotations

from collections.abc import Sequence

from anytime.objectives.weighted import Weighted, require_classes
from anytime.objectives.weighting import Normalization, normalized


class Hierarchical(Weighted):
    """L = sum_t w_t sum_d v_d CE(logits_{t,d}, y_d) over answers t = 1..T and label levels d = 1..D, fine to coarse.

    Logits `[T, B, K_1 + ... + K_D]` hold the levels side by side, targets are `[B, D]`; with one level and labels `[B]` this
    is `Weighted`. All weights are 1 in the paper. Source: Lee, Shin 2018, eq. 2.

    Args:
        weights: w, a scheme of `anytime.objectives.weighting` or one weight per answer.
        level_weights: v, one weight per level; default all 1.
        label_smoothing: Share of the target spread over all classes of a level, in [0, 1).
        normalize: Scale of w: "none" as it is, "sum" to 1, or "last" weight 1.
        levels: K_1, ..., K_D; `anytime train` takes them from the data set.

    Raises:
        ValueError: Weights are negative or all zero, or not one for each level; (when called) logits or labels do not fit the
            levels, or the sizes of several label levels are unknown.

    Example:
        >>> import torch
        >>> from anytime.objectives import Hierarchical
        >>> objective = Hierarchical(levels=(4, 2))
        >>> logits, target = torch.zeros(3, 5, 6), torch.zeros(5, 2, dtype=torch.long)
        >>> bool(objective(logits, target).isclose(3 * torch.tensor(4.0 * 2.0).log()))
        True
    """

    def __init__(
        self,
        weights: str | Sequence[float] = "constant",
        level_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        normalize: Normalization = "none",
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weights, label_smoothing, normalize)
        self.level_weights = None if level_weights is None else normalized(level_weights, "none")
        if levels is not None:
            self.set_levels(levels)

    def set_levels(self, levels: Sequence[int]) -> None:
        """Sets the number of classes of each label level.

        Raises:
            ValueError: There is no level, a level is empty, the levels differ from those set before, or there is not one
                weight for each.
        """
        sizes = tuple(levels)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"levels must be at least 1 class each, got {levels!r}")
        require_classes(sum(sizes), len(sizes))
        if self.levels not in (None, sizes):
            raise ValueError(f"levels are {self.levels} for this objective, but the data set has {sizes}; leave them out")
        if self.level_weights is not None and len(self.level_weights) != len(sizes):
            raise ValueError(f"level_weights needs one weight for each of {len(sizes)} levels, got {self.level_weights}")
        self.levels = sizes
