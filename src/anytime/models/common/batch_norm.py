"""The base of our batch norms: torch's tools find them, and their running statistics are stored in several parts."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

RUNNING = ("running_mean", "running_var")


class PartedBatchNorm(_BatchNorm):
    """A `_BatchNorm` whose running statistics belong to several uses, each with its own count of batches.

    So `torch.optim.swa_utils.update_bn`, weight averaging, freezing and filters for weight decay treat it as any batch norm:
    `momentum=None` makes the running statistics plain means over batches, `track_running_stats=False` keeps them as they are,
    and eval mode uses them. After `torch.func.replace_all_batch_norm_modules_`, which takes them away, every batch has its own
    statistics. Only `convert_sync_batchnorm` is an error, because torch's synchronised norm has no parts.

    The counts, the buffer `num_batches_tracked`, are kept only with `momentum=None`, and not in the state dict.

    Args:
        channels: C of `weight` and `bias`, whose last dimension it is.
        shape: Shape of the running statistics.
        counts: Shape of the counts.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics; None for plain means.
    """

    def __init__(
        self, channels: int, shape: tuple[int, ...], counts: int, eps: float = 1e-5, momentum: float | None = 0.1
    ) -> None:
        super().__init__(channels, eps, momentum)
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.num_batches_tracked: torch.Tensor
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        self.register_buffer("num_batches_tracked", torch.zeros(counts, dtype=torch.int64), persistent=False)

    @property
    def num_features(self) -> int:
        """C.

        Raises:
            ValueError: `convert_sync_batchnorm` asks, of torch or timm; it has no other hook.
        """
        if sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            raise ValueError(
                f"{type(self).__name__} has separate statistics for each use, which SyncBatchNorm has not: train without "
                "sync_batchnorm, with larger batches in each process"
            )
        return self.weight.shape[-1]

    @num_features.setter
    def num_features(self, _: int) -> None:
        """Set by the constructor of the base; the weights say it."""

    @property
    def updates(self) -> bool:
        """Whether a batch changes the running statistics."""
        return self.training and self.track_running_stats

    @property
    def uses_batch(self) -> bool:
        """Whether a batch is normalised by its own statistics: in training, and without running statistics."""
        return self.training or self.running_mean is None

    def check_values(self, x: torch.Tensor) -> None:
        """Raises ValueError if a batch in training has a single value per channel: its variance is unknown."""
        if self.uses_batch and x.numel() == x.shape[1]:
            raise ValueError(
                f"batch norm in training needs more than one value per channel, got {list(x.shape)}: leave out a last batch "
                "of one image (drop_last=True), or use larger batches or images"
            )

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # the base would add num_batches_tracked to the state dict
