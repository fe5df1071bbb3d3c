"""The cascaded DenseNet: new features arrive late (Iuzzolino, Mozer, Bengio, NeurIPS 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytime.models.cascaded.statistics import KEY, Dynamics, convert_state
from anytime.models.common.delay_kernels import make_kernel
from anytime.models.common.layers import check_depth, he_init
from anytime.models.common.step_norm import StepNorms, step_norms
from anytime.models.surgery.delays.model import DelayedNetwork
from anytime.registry import variant


class DenseLayer(nn.Module):
    """[new(z), z], new = BN-ReLU-conv1x1-BN-ReLU-conv3x3: `growth` new channels, placed before the old ones."""

    def __init__(self, channels: int, growth: int, rows: int, norms: StepNorms) -> None:
        super().__init__()
        self.new = nn.Sequential(
            norms(channels, rows),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            norms(4 * growth, rows),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self.new(z), z], 1)


class DenseNet(nn.Sequential):
    """Conv3x3, blocks of dense layers with transitions (BN-ReLU-conv1x1-average pooling) between them, BN-ReLU-GAP-linear.

    `CascadedDenseNet` documents the arguments except for these.

    Args:
        rows: Rows of running statistics of a batch norm, as a function of the number of dense layers before it.
        norms: Makes a batch norm from its channels and rows.

    Raises:
        ValueError: There are no layers, or growth or reduction is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        layers: Sequence[int],
        growth: int,
        reduction: float,
        rows: Callable[[int], int],
        norms: StepNorms,
    ) -> None:
        if not layers or min(layers) < 1:
            raise ValueError(f"layers must be at least 1 in every block, got {layers!r}")
        check_depth("layers", layers)
        if growth < 1 or not 0 < reduction <= 1:
            raise ValueError(f"growth must be at least 1 and reduction lie in (0, 1], got {growth!r} and {reduction!r}")
        super().__init__()
        channels, before = 2 * growth, 0
        self.delays: dict[str, int] = {}  # number of dense layers before each batch norm
        self.stem = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        for block, count in enumerate(layers):
            if block:
                reduced = int(channels * reduction)
                norm = norms(channels, rows(before))
                conv = nn.Conv2d(channels, reduced, 1, bias=False)
                self.delays[f"transition{block}.0"] = before
                self.add_module(f"transition{block}", nn.Sequential(norm, nn.ReLU(), conv, nn.AvgPool2d(2)))
                channels = reduced
            dense = [DenseLayer(channels + i * growth, growth, rows(before + i), norms) for i in range(count)]
            self.add_module(f"block{block}", nn.Sequential(*dense))
            self.delays |= {f"block{block}.{i}.new.{norm}": before + i for i in range(count) for norm in (0, 3)}
            channels, before = channels + count * growth, before + count
        self.norm, self.delays["norm"] = norms(channels, rows(before)), before
        self.act, self.pool, self.flatten = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        he_init(self)


class CascadedDenseNet(DelayedNetwork):
    """A DenseNet whose new features arrive late: z[t, k+1] = [D(new_k(z[., k]))[t], z[t, k]].

    Stem, transitions and head are not delayed, so the answer at t = 0 has seen the image. With K dense layers under a one-step
    delay, the answer at t = K is that of the network itself: K + 1 answers. Layer k = 1..K sees k distinct inputs, so all
    answers take K (K + 1) / 2 evaluations of layers instead of K (K + 1).

    Each batch norm has running statistics for each time step, as many as its input has distinct states; later steps take the
    last. With smoothing, as without delay (the ordinary network), it has one row: that of the settled network, to which every
    state dict is converted when it is loaded.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        layers: Dense layers of each block.
        growth: New channels of each layer; the stem has twice as many.
        reduction: Share of the channels that a transition between two blocks keeps, in (0, 1].
        kernel: "osd" (one-step delay), "ews" (smoothing), "instant" (no delay), or the weights of a tapped delay line.
        alpha: Weight of the previous output under smoothing, in [0, 1).
        num_steps: T; default: until the answer has settled (with smoothing 70).
        norm_eps: Added to the variance of every batch norm. The authors' code means 1e-5 but runs with 0.1, because it passes
            its arguments shifted by one.
        norm_momentum: Weight of the newest batch in the running statistics. The authors' code means 0.1 but runs with 1: its
            statistics are those of the last training batch.

    Source: the code published with Iuzzolino, Mozer, Bengio, NeurIPS 2021, which does not run; the paper has no results.
    """

    head_names = ("network.head",)

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        layers: tuple[int, ...] = (6, 12, 24, 16),
        growth: int = 16,
        reduction: float = 0.5,
        kernel: Literal["osd", "ews", "instant"] | tuple[float, ...] = "osd",
        alpha: float = 0.9,
        num_steps: int | None = None,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        memory = make_kernel(kernel, alpha).memory

        def rows(before: int) -> int:
            settled = before * memory if memory < math.inf else 0
            return 1 + int(settled if num_steps is None else min(settled, max(num_steps - 1, 0)))

        classes = num_classes if isinstance(num_classes, int) else sum(num_classes)
        network = DenseNet(classes, in_channels, layers, growth, reduction, rows, step_norms(norm_eps, norm_momentum))
        branches = [f"block{block}.{i}.new" for block, count in enumerate(layers) for i in range(count)]
        super().__init__(network, branches, kernel, alpha, num_steps, num_classes, in_channels)
        self.dynamics = Dynamics.of(self.kernel, 0 < memory < math.inf, self.first)
        self.delays = {f"network.{name}": before for name, before in network.delays.items()}
        self.register_buffer(KEY, self.dynamics.tensor())
        self.register_load_state_dict_pre_hook(_fit_state)


def _fit_state(model: CascadedDenseNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    convert_state(model, state, prefix, model.dynamics, model.delays)


cascaded_densenet = variant(
    CascadedDenseNet,
    "cascaded_densenet",
    "Cascaded DenseNet (after Iuzzolino et al. 2021): 58 dense layers, 59 answers at t = 0..58.",
)
