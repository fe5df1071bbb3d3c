"""Batch norm with statistics of its own for each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RUNNING = ("running_mean", "running_var")


class StepBatchNorm2d(nn.Module):
    """Batch norm with one affine map and one row of running statistics per use.

    y = weight * (x - mu) / sqrt(var + eps) + bias, with mu and var of the batch in training and of row r in evaluation:
    a layer that runs several times for one answer sees different input statistics each time. `rows=1` is ordinary batch norm.
    Uses beyond the last row take the last row. Training never depends on the number of rows, only evaluation does.

    Args:
        channels: C of `[B, C, H, W]`.
        rows: Number of uses with statistics of their own.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics.
    """

    def __init__(self, channels: int, rows: int = 1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.updates: list[int] | None = None  # of each row so far, where running statistics are to be plain means
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(rows, channels))
        self.register_buffer("running_var", torch.ones(rows, channels))

    @property
    def rows(self) -> int:
        """Number of uses with running statistics of their own."""
        return self.running_mean.shape[0]

    def _momentum(self, row: int) -> float:
        if self.updates is None:
            return self.momentum
        self.updates[row] += 1
        return 1 / self.updates[row]

    def forward(self, x: Tensor, row: int = 0) -> Tensor:
        row = min(row, self.rows - 1)
        momentum = self._momentum(row) if self.training else 0.0
        mean, var = self.running_mean[row], self.running_var[row]
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, momentum, self.eps)

    def over_time(self, x: Tensor, rows: Sequence[int], copies: int = 1) -> Tensor:
        """Batch norm of n time steps that lie one after the other in the batch: `[n * B, C, H, W]` to the same.

        Each time step is normalised by its own statistics: in training of its B images alone, in evaluation of its row.

        Args:
            x: n groups of B images.
            rows: The row of each group, length n.
            copies: Each image stands for this many equal ones; only the unbiased running variance knows the difference.
        """
        rows = [min(row, self.rows - 1) for row in rows]
        if copies > 1 and self.training:
            return self._of_copies(x, rows[0], copies)
        if len(rows) == 1 or (not self.training and len(set(rows)) == 1):
            return self(x, rows[0])
        return torch.cat([self(part, row) for part, row in zip(x.chunk(len(rows)), rows, strict=True)])

    def _of_copies(self, x: Tensor, row: int, copies: int) -> Tensor:
        with torch.no_grad():
            exact = x.float() if x.dtype in (torch.bfloat16, torch.half) else x
            var, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
            size, momentum = copies * x.numel() // x.shape[1], self._momentum(row)
            # .data: as in batch_norm itself, the update is no change that other uses, waiting for their backward, mind.
            self.running_mean.data[row].lerp_(mean.to(self.running_mean), momentum)
            self.running_var.data[row].lerp_((var * (size / (size - 1))).to(self.running_var), momentum)
        alone = x.numel() == x.shape[1]  # one value per channel, which batch norm refuses: two equal ones instead
        x = torch.cat([x, x]) if alone else x
        return F.batch_norm(x, None, None, self.weight, self.bias, True, self.momentum, self.eps)[: 1 if alone else None]

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, rows={self.rows}, eps={self.eps}, momentum={self.momentum}"


Statistics = Literal["per_step", "shared"]
