"""A chain of units with an exit after every s-th of them, which all ANN models are (Hu, Dey, Bagnell, Hebert, 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.models.common.layers import he_init, pooled
from anytime.models.common.steps import require_step_left

GradientFlow = Literal["joint", "no_grad", "midfeat"]


class ExitHeads(nn.Module):
    """y_e = W_e z_e + b_e for all exits e of one width: one batched product instead of many small ones.

    Args:
        exits: E, the number of heads.
        channels: C of the pooled features.
        classes: K of the logits.
    """

    def __init__(self, exits: int, channels: int, classes: int) -> None:
        super().__init__()
        bound = channels**-0.5  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(exits, classes, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(exits * classes).uniform_(-bound, bound))  # flat: biases are not decayed

    def forward(self, features: Tensor, exit: int | None = None) -> Tensor:
        """Logits `[E, B, K]` from `[E, B, C]`, or with `exit` = 0..E-1 only those of that head, `[B, K]` from `[B, C]`."""
        bias = self.bias.view(self.weight.shape[:2])
        if exit is not None:
            return F.linear(features, self.weight[exit], bias[exit])
        return torch.baddbmm(bias[:, None], features, self.weight.transpose(1, 2))

    def extra_repr(self) -> str:
        exits, classes, channels = self.weight.shape
        return f"exits={exits}, channels={channels}, classes={classes}"


class ChainState(NamedTuple):
    """`features` are the output of the last exit's unit (before the first step, the normalised images)."""

    step: int
    features: Tensor


class AnytimeChain(AnytimeModel):
    """h_0 = stem(x), h_i = unit_i(h_{i-1}); an exit after each of the units L, L - s, L - 2s, ...

    Exit: logits = linear(global average pooling(relu(norm(h_i)))), each with its own weights; `norm` is the identity or batch
    norm. A step runs the units up to the next exit, each once, and that exit's head. `advance` and `read` are the two halves
    of a step: to answer only when interrupted, advance and read once (lazy exits).

    The gradient flow (paper, section 4.2) changes no parameter names: `"joint"` trains everything by every exit; `"no_grad"`
    stops the gradient behind every exit, so that units learn only from the next exit (stage-wise greedy); `"midfeat"` freezes
    stem and units, including their batch statistics, and fits only the heads to already trained features.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        stem: Builds the module from images to h_0.
        units: The L units in order.
        channels: Channels of each unit's output.
        period: s, units per exit.
        regime: What the exits train: "joint", "no_grad" or "midfeat".
        head_norm: Whether batch norm precedes each head.
        smallest: Smallest height and width of the images.

    Raises:
        ValueError: A period below 1 or above L, or an unknown regime.
    """

    head_names = ("norms", "heads")

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        stem: Callable[[], nn.Module],
        units: Iterable[nn.Module],
        channels: Sequence[int],
        period: int,
        regime: GradientFlow = "joint",
        head_norm: bool = False,
        smallest: int = 1,
    ) -> None:
        super().__init__(num_classes, in_channels)
        depth = len(channels)
        if not 1 <= period <= depth:
            raise ValueError(f"period must lie in 1..{depth}, the number of units, got {period!r}")
        if regime not in ("joint", "no_grad", "midfeat"):
            raise ValueError(f"regime must be 'joint', 'no_grad' or 'midfeat', got {regime!r}")
        self.exits = tuple(range((depth - 1) % period + 1, depth + 1, period))  # units 1..L with an exit
        self.num_steps = len(self.exits)
        self.regime, self.smallest = regime, smallest
        self.stem = stem()
        self.units = nn.ModuleList(units)
        widths = [channels[unit - 1] for unit in self.exits]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if head_norm else nn.Identity() for width in widths)
        groups = [(width, len(list(same))) for width, same in groupby(widths)]
        self.heads = nn.ModuleList(ExitHeads(count, width, self.num_classes) for width, count in groups)
        self.head_places = [(group, place) for group, (_, count) in enumerate(groups) for place in range(count)]  # of exits
        he_init(self)
        if regime == "midfeat":
            for trunk in (self.stem, self.units):
                trunk.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> AnytimeChain:
        """As in any module, but a frozen trunk stays in eval mode: its features and batch statistics must not change."""
        super().train(mode)
        if self.regime == "midfeat":
            self.stem.eval()
            self.units.eval()
        return self

    def _run(self, first: int, last: int, h: Tensor) -> Tensor:
        """Runs units `first + 1` to `last`; before unit 1, the stem."""
        if first == 0:
            h = self.stem(h)
        for unit in range(first, last):
            h = self.units[unit](h)
        return h

    def _pool(self, h: Tensor, exit: int) -> Tensor:
        return pooled(F.relu(self.norms[exit](h)))

    def _head(self, h: Tensor, exit: int) -> Tensor:
        group, place = self.head_places[exit]
        return self.heads[group](self._pool(h, exit), place)

    def initial_state(self, x: Tensor) -> ChainState:
        self.check_input(x, self.smallest)
        return ChainState(0, self.normalize(x))

    def advance(self, state: ChainState) -> ChainState:
        """The state one exit further, without its answer: only units run."""
        require_step_left(state.step, self.num_steps)
        features = state.features
        if state.step and self.regime == "no_grad":
            features = features.detach()
        first = self.exits[state.step - 1] if state.step else 0
        return ChainState(state.step + 1, self._run(first, self.exits[state.step], features))

    def read(self, state: ChainState) -> Tensor:
        """The answer `[B, K]` of a state after at least one step: one head runs."""
        if state.step < 1:
            raise ValueError("there is no answer before the first step: advance first")
        return self._head(state.features, state.step - 1)

    def step(self, state: ChainState) -> tuple[Tensor, ChainState]:
        after = self.advance(state)
        return self.read(after), after

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The answer of step `step`: runs the units up to its exit, and only its head."""
        return self._head(self._run(0, self.exits[step - 1], self.initial_state(x).features), step - 1)

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, the heads of one width at once; or with `step` = 1..T only that answer, `[B, K]`."""
        if step is not None:
            return super().forward(x, step)
        h, features = self.initial_state(x).features, []
        for exit, (first, last) in enumerate(pairwise((0, *self.exits))):
            h = self._run(first, last, h)
            features.append(self._pool(h, exit))
            if self.regime == "no_grad":
                h = h.detach()
        remaining = iter(features)
        grouped = [torch.stack([*islice(remaining, len(heads.weight))]) for heads in self.heads]  # type: ignore[arg-type]
        return torch.cat([heads(group) for heads, group in zip(self.heads, grouped, strict=True)])
