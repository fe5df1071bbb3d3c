"""MSDNet: dense layers at several scales at once, so that there is a coarse map to answer from early (Huang et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.models.common.layers import check_depth, he_init, require_counts, require_whole
from anytime.models.common.steps import require_step_left
from anytime.models.msdnet.layers import HeadKind, MSDNetLayout, ScaleLayer, build_head, build_stem
from anytime.models.msdnet.plan import Map, Mode, channel_counts, exit_layers, finest_scales, plan
from anytime.registry import variant


class MSDNetState(NamedTuple):
    """`maps` are the latest of each scale that later exits read, the coarsest last (before the first step, the images)."""

    step: int
    maps: tuple[Tensor, ...]


class MSDNet(AnytimeModel):
    """Dense layers over S scales; logits_t = head_t(coarsest map after the layer of exit t).

    h_{0,s}: the stem, a convolution for each scale, of stride 2 from the second on.
    h_{l,s} = [h_{l-1,s}, down(h_{l-1,s-1}), normal(h_{l-1,s})] (`ScaleLayer`): a layer adds `growth` times the scale's factor
    channels. After every ceil(L / S) layers the finest scale is dropped, and of n times their factor channels the others keep
    floor(reduction n) times their factor.

    Evaluation is lazy: a step runs only the maps that its exit needs and no earlier one has made (`plan`), and no map is made
    twice. So an early answer costs less than by the published counts, which include maps that only later answers need;
    the last costs the same. A single answer also leaves out the earlier heads. `forward` runs layer by layer.

    Departures from the published PyTorch code: convolutions are drawn from He's distribution, as in the authors' Lua code (the
    PyTorch code's initialisation reaches no convolution). The first convolution has no bias, which batch norm would cancel.
    Maps on which no answer depends do not exist. A head averages over all pixels that its second convolution leaves, which is
    their 2 x 2 pooling at 32 and 224 pixels.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        exits: T.
        base: Layer of the first exit.
        step: Layers from exit to exit ("even"), or by how much these grow ("lin_grow": 1 + step, 1 + 2 step, ...).
        mode: "even" or "lin_grow".
        width: Channels of the stem, times the factor of the scale.
        growth: Channels that a layer adds, times the factor of the scale.
        factors: One for each scale, the finest first: of channels, growth and bottlenecks.
        reduction: Share of the channels that is left where a scale is dropped, in (0, 1].
        head: "conv", two conv3x3 of stride 2, mean, linear; or "linear", mean, linear (Lee and Shin 2018).
        head_width: Channels of the convolutions in a head; None: those of its map.
        layout: "cifar" (conv3x3 stem) or "imagenet" (conv7x7 of stride 2 and max-pooling).

    Attributes:
        exits: The layers with an exit.

    Raises:
        ValueError: An exit without a layer or a map of its own, a number below 1, growth that cannot be halved, an unknown
            mode, head or layout.

    Source: Huang, Chen, Li, Wu, van der Maaten, Weinberger, ICLR 2018 (multi-scale dense networks).
    """

    keeps_features = True

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        exits: int = 11,
        base: int = 4,
        step: int = 2,
        mode: Mode = "even",
        width: int = 16,
        growth: int = 6,
        factors: tuple[int, ...] = (1, 2, 4),
        reduction: float = 0.5,
        head: HeadKind = "conv",
        head_width: int | None = 128,
        layout: MSDNetLayout = "cifar",
    ) -> None:
        super().__init__(num_classes, in_channels)
        for name, given, known in (("mode", mode, Mode), ("head", head, HeadKind), ("layout", layout, MSDNetLayout)):
            options = get_args(known)
            if given not in options:
                raise ValueError(f"{name} must be {options[0]!r} or {options[1]!r}, got {given!r}")
        _check_numbers(exits, base, step, mode, width, growth, factors, reduction, head_width)
        self.exits = exit_layers(exits, base, step, mode)
        self.num_steps, self.scales = exits, len(factors)
        self.plan = plan(self.exits, self.scales)
        self.smallest = 2 ** (self.scales - 1) * (1 if layout == "cifar" else 4)  # pixels: leaves one at the coarsest scale
        self.stem = build_stem(in_channels, [width * factor for factor in factors], layout)
        finest = finest_scales(self.exits[-1], self.scales)
        counts = channel_counts(width, growth, reduction, finest)
        self.layers = nn.ModuleList(nn.ModuleList() for _ in range(self.exits[-1]))
        for layer, scale in sorted(place for places in self.plan.layered for place in places):
            count, factor = counts[layer - 1], factors[scale]
            finer = (count * factors[scale - 1], factors[scale - 1]) if scale > finest[layer - 1] else None
            squeezed = counts[layer] * factor if finest[layer] > finest[layer - 1] else None
            self.layers[layer - 1].append(ScaleLayer(count * factor, growth * factor, factor, finer, squeezed))  # type: ignore[operator]
        channels = [counts[layer] * factors[-1] for layer in self.exits]
        self.heads = nn.ModuleList(build_head(c, self.num_classes, head, head_width or c) for c in channels)
        he_init(self)

    def initial_state(self, x: Tensor) -> MSDNetState:
        self.check_input(x, self.smallest)
        return MSDNetState(0, (self.normalize(x),))

    def advance(self, state: MSDNetState) -> MSDNetState:
        """The state one exit further, without its answer."""
        require_step_left(state.step, self.num_steps)
        maps = self._by_scale(state.maps) if state.step else self._stem_maps(state.maps[0])
        self._run(self.plan.lazy[state.step], maps)
        return MSDNetState(state.step + 1, tuple(maps[s] for s in range(self.plan.kept[state.step], self.scales)))

    def read(self, state: MSDNetState) -> Tensor:
        """The answer `[B, K]` of a state after at least one step."""
        if state.step < 1:
            raise ValueError("there is no answer before the first step: advance first")
        return self.heads[state.step - 1](state.maps[-1])

    def step(self, state: MSDNetState) -> tuple[Tensor, MSDNetState]:
        after = self.advance(state)
        return self.read(after), after

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, or with `step` = 1..T only that answer, `[B, K]`, at its contract cost."""
        if step is not None:
            return super().forward(x, step)
        return torch.stack([head(h) for head, h in zip(self.heads, self._exit_maps(x), strict=True)])

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        """The coarsest map at each exit."""
        return list(self._exit_maps(x))

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        """All answers `[T, B, K]` from `trunk_features`."""
        return torch.stack([head(h) for head, h in zip(self.heads, features, strict=True)])

    def _exit_maps(self, x: Tensor) -> Iterator[Tensor]:
        """The coarsest map at each exit, layer by layer."""
        maps = self._stem_maps(self.initial_state(x).maps[0])
        for places in self.plan.layered:
            self._run(places, maps)
            yield maps[self.scales - 1]

    def _by_scale(self, maps: Sequence[Tensor]) -> dict[int, Tensor]:
        """The maps of a state; the last is that of the coarsest scale."""
        return dict(enumerate(maps, self.scales - len(maps)))

    def _stem_maps(self, h: Tensor) -> dict[int, Tensor]:
        maps = {}
        for scale, stem in enumerate(self.stem):
            maps[scale] = h = stem(h)
        return maps

    def _run(self, places: Sequence[Map], maps: dict[int, Tensor]) -> None:
        """Replaces the map of each place's scale by the next one, in order."""
        for layer, scale in places:
            block = self.layers[layer - 1][scale - self.scales]  # type: ignore[index]
            maps[scale] = block(maps[scale], maps.get(scale - 1))


def _check_numbers(
    exits: int,
    base: int,
    step: int,
    mode: Mode,
    width: int,
    growth: int,
    factors: Sequence[int],
    reduction: float,
    head_width: int | None,
) -> None:
    require_whole(base=base, step=step)
    require_counts(exits=exits, width=width, growth=growth, **({} if head_width is None else {"head_width": head_width}))
    if isinstance(factors, str) or not isinstance(factors, Sequence):
        raise ValueError(f"factors must be a whole number for each scale, got {factors!r}")
    for factor in factors:
        require_whole(factors=factor)
    if isinstance(reduction, bool) or not isinstance(reduction, float | int):
        raise ValueError(f"reduction must be a number, got {reduction!r}")
    if min(base, step) < 1:
        raise ValueError(f"every exit needs a layer of its own: base and step must be at least 1, got {base!r} and {step!r}")
    if not factors or min(factors) < 1:
        raise ValueError(f"factors must be at least 1 for every scale, got {tuple(factors)}")
    layers = base + (exits - 1) * (step if mode == "even" else 1) + (0 if mode == "even" else step * exits * (exits - 1) // 2)
    check_depth("layers at all scales", [layers * len(factors)])
    if odd := [factor for factor in factors[1:] if growth * factor % 2]:
        raise ValueError(
            "growth times factor must be even at all scales but the first, where two branches make half of the channels each, "
            f"got growth={growth} and a factor of {odd[0]}"
        )
    if not 0 < reduction <= 1:
        raise ValueError(f"reduction must lie in (0, 1], got {reduction!r}")


msdnet = variant(
    MSDNet,
    "msdnet",
    "MSDNet of Huang et al. 2018 for 32x32 images: 11 exits in 24 layers at 3 scales; mode lin_grow for budgeted batches.",
)
msdnet_step4 = variant(
    MSDNet,
    "msdnet_step4",
    "MSDNet of Huang et al. 2018 for 224x224 images: 5 exits, after every 4th of 20 layers at 4 scales; 1.4 G MACs.",
    fixed={"mode": "even", "layout": "imagenet"},
    num_classes=1000,
    exits=5,
    base=4,
    step=4,
    width=32,
    growth=16,
    factors=(1, 2, 4, 4),
    head_width=None,
)
msdnet_step6 = variant(
    MSDNet,
    "msdnet_step6",
    "MSDNet of Huang et al. 2018 for 224x224 images: 5 exits, after every 6th of 30 layers at 4 scales; 2.7 G MACs.",
    fixed={"mode": "even", "layout": "imagenet"},
    num_classes=1000,
    exits=5,
    base=6,
    step=6,
    width=32,
    growth=16,
    factors=(1, 2, 4, 4),
    head_width=None,
)
msdnet_step7 = variant(
    MSDNet,
    "msdnet_step7",
    "MSDNet of Huang et al. 2018 for 224x224 images: 5 exits, after every 7th of 35 layers at 4 scales; 3.2 G MACs.",
    fixed={"mode": "even", "layout": "imagenet"},
    num_classes=1000,
    exits=5,
    base=7,
    step=7,
    width=32,
    growth=16,
    factors=(1, 2, 4, 4),
    head_width=None,
)
