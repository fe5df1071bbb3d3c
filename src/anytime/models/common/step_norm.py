"""Batch norm with separate running statistics, and on demand affine maps, for each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.common.batch_norm import RUNNING, PartedBatchNorm

Statistics = Literal["per_step", "shared"]  # a cascade's running statistics
StepNorms = Callable[[int, int], "StepBatchNorm2d"]  # makes a norm from its channels and rows


class StepBatchNorm2d(PartedBatchNorm):
    """Batch norm with one affine map, and one row of running statistics per use.

    y = weight * (x - mu) / sqrt(var + eps) + bias, with mu and var of the batch in training and of row r in evaluation:
    a layer that runs several times for one answer sees different input statistics each time. `rows=1` is ordinary batch norm.
    Uses beyond the last row take the last row. The number of rows affects only evaluation, never training.

    Args:
        channels: C of `[B, C, H, W]`.
        rows: Number of uses with separate statistics.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics; None for plain means over batches.
        affine_rows: Number of uses with separate affine maps: weight and bias are `[affine_rows, C]`; None for one, `[C]`.
    """

    def __init__(
        self,
        channels: int,
        rows: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine_rows: int | None = None,
    ) -> None:
        super().__init__(channels, (rows, channels), rows, eps, momentum)
        if affine_rows is not None:
            for name in ("weight", "bias"):
                setattr(self, name, nn.Parameter(getattr(self, name).detach().repeat(affine_rows, 1)))

    @property
    def rows(self) -> int:
        """Number of uses with separate running statistics."""
        return 1 if self.running_mean is None else self.running_mean.shape[0]

    @property
    def uses(self) -> int:
        """Number of uses that differ: in running statistics, or in the affine map."""
        return max(self.rows, len(self.weight) if self.weight.ndim == 2 else 1)

    def affine_map(self, row: int) -> tuple[Tensor, Tensor]:
        """weight and bias of a use, `[C]`."""
        if self.weight.ndim == 1:
            return self.weight, self.bias
        row = min(row, len(self.weight) - 1)
        return self.weight[row], self.bias[row]

    def repeat_first_row(self, rows: int) -> None:
        """Gives the norm `rows` rows, all copies of its first."""
        for name in RUNNING:
            setattr(self, name, getattr(self, name)[:1].repeat(rows, 1))
        self.num_batches_tracked = self.num_batches_tracked.new_zeros(rows)

    def _momentum(self, row: int) -> float:
        if self.momentum is not None:
            return self.momentum
        self.num_batches_tracked[row] += 1
        return 1 / int(self.num_batches_tracked[row])

    def forward(self, input: Tensor, row: int = 0) -> Tensor:
        weight, bias = self.affine_map(row)
        row = min(row, self.rows - 1)
        self.check_values(input)
        if self.uses_batch and not self.updates:
            return F.batch_norm(input, None, None, weight, bias, True, 0.0, self.eps)
        momentum = self._momentum(row) if self.training else 0.0
        mean, var = self.running_mean[row], self.running_var[row]
        return F.batch_norm(input, mean, var, weight, bias, self.training, momentum, self.eps)

    def over_time(self, x: Tensor, rows: Sequence[int], copies: int = 1) -> Tensor:
        """Batch norm of n time steps that follow each other in the batch dimension: `[n * B, C, H, W]` to the same.

        Each time step is normalised by its own statistics: those of its B images in training, of its row in evaluation.

        Args:
            x: n groups of B images.
            rows: The row of each group, length n.
            copies: How many equal images each image stands for; this affects only the unbiased running variance.
        """
        rows = [min(row, self.uses - 1) for row in rows]
        if copies > 1 and self.uses_batch:
            return self._train_on_copies(x, rows[0], copies)
        if len(rows) == 1 or (not self.uses_batch and len(set(rows)) == 1):
            return self(x, rows[0])
        return torch.cat([self(part, row) for part, row in zip(x.chunk(len(rows)), rows, strict=True)])

    def _train_on_copies(self, x: Tensor, row: int, copies: int) -> Tensor:
        if self.updates:
            self._update_from_copies(x, min(row, self.rows - 1), copies)
        weight, bias = self.affine_map(row)
        single = x.numel() == x.shape[1]  # F.batch_norm rejects a single value per channel, so it gets two equal ones
        x = torch.cat([x, x]) if single else x
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)[: 1 if single else None]

    @torch.no_grad()
    def _update_from_copies(self, x: Tensor, row: int, copies: int) -> None:
        exact = x.float() if x.dtype in (torch.bfloat16, torch.half) else x
        var, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
        size, momentum = copies * x.numel() // x.shape[1], self._momentum(row)
        # Update through .data, as F.batch_norm does, so that autograd does not see an in-place change to buffers
        # still needed by an earlier use's backward.
        self.running_mean.data[row].lerp_(mean.to(self.running_mean), momentum)
        self.running_var.data[row].lerp_((var * (size / (size - 1))).to(self.running_var), momentum)

    def extra_repr(self) -> str:
        return f"{self.num_features}, rows={self.rows}, eps={self.eps}, momentum={self.momentum}"


def step_norms(eps: Any, momentum: Any, affine_rows: int | None = None) -> StepNorms:
    """What makes the batch norms of a network, given channels and rows of statistics.

    Raises:
        ValueError: `eps` is not above zero, or `momentum` does not lie in (0, 1].
    """
    for name, value, most, wanted in (
        ("norm_eps", eps, math.inf, "a number above zero"),
        ("norm_momentum", momentum, 1, "a number in (0, 1]"),
    ):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= most or value == math.inf:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return partial(StepBatchNorm2d, eps=float(eps), momentum=float(momentum), affine_rows=affine_rows)
