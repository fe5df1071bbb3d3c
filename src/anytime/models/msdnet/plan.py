"""Where MSDNet has exits, scales and channels, and which maps run for which exit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

Mode = Literal["even", "lin_grow"]


class Map(NamedTuple):
    """Where a map belongs: the layer that makes it (from 1; 0 is the stem) and its scale (0 is the finest)."""

    layer: int
    scale: int


class MapOrder(NamedTuple):
    """What runs for each exit; over all exits, each map once.

    Attributes:
        lazy: The maps that the exit needs and no earlier one has made, in an order in which they can run.
        layered: The maps of the layers after the previous exit up to this one, layer by layer.
        kept: The finest scale that later exits read.
    """

    lazy: tuple[tuple[Map, ...], ...]
    layered: tuple[tuple[Map, ...], ...]
    kept: tuple[int, ...]


def exit_layers(exits: int, base: int, step: int, mode: Mode) -> tuple[int, ...]:
    """The layers with an exit: the first is `base`; the spans after it are `step` ("even") or 1 + step, 1 + 2 step, ...

    Example:
        >>> from anytime.models.msdnet.plan import exit_layers
        >>> exit_layers(4, 4, 2, "even")
        (4, 6, 8, 10)
        >>> exit_layers(4, 1, 1, "lin_grow")
        (1, 3, 6, 10)
    """
    return tuple(accumulate([base, *(step if mode == "even" else step * i + 1 for i in range(1, exits))]))


def finest_scales(layers: int, scales: int) -> tuple[int, ...]:
    """The finest scale after each of the layers 0..L; after every ceil(L / scales) layers the next one drops it.

    Example:
        >>> from anytime.models.msdnet.plan import finest_scales
        >>> finest_scales(5, 3)
        (0, 0, 0, 1, 1, 2)
    """
    interval = math.ceil(layers / scales)
    return 0, *((layer - 1) // interval for layer in range(1, layers + 1))


def plan(exits: Sequence[int], scales: int) -> MapOrder:
    """Which maps run for which exit.

    An exit at layer e reads the coarsest of S scales. What layer l computes at scale s (0 is the finest) gets there in layer
    l + S - 1 - s, so the exit needs it only if that is at most e. These maps form diagonals; the exit runs those diagonals
    that no earlier exit has run. A map that the last exit does not need does not exist.

    Args:
        exits: The layers with an exit, rising.
        scales: S.
    """
    finest = finest_scales(exits[-1], scales)
    after: list[int] = []
    lazy: list[tuple[Map, ...]] = []
    for first, last in pairwise((0, *exits)):
        diagonals = range(first + 2 - scales, last + 2 - scales)  # the layer at which each crosses scale 0
        crossed = (Map(start + scale, scale) for start in diagonals for scale in range(scales))
        lazy.append(tuple(place for place in crossed if place.layer >= 1 and place.scale >= finest[place.layer]))
        following = [min(max(last + 2 - scales + scale, 0), exits[-1]) for scale in range(scales)]  # next layer of each scale
        after.append(next(scale for scale in range(scales) if scale >= finest[following[scale]]))
    existing = {place for places in lazy for place in places}
    layered = [
        tuple(place for layer in range(first + 1, last + 1) for place in _descending(layer, scales) if place in existing)
        for first, last in pairwise((0, *exits))
    ]
    return MapOrder(tuple(lazy), tuple(layered), tuple(after))


def _descending(layer: int, scales: int) -> Iterator[Map]:
    """The places of a layer, the coarsest first: each then finds the finer map of the layer before, not yet replaced."""
    return (Map(layer, scale) for scale in reversed(range(scales)))


def channel_counts(width: int, growth: int, reduction: float, finest: Sequence[int]) -> list[int]:
    """n of layers 0..L; a scale has n times its factor channels.

    Raises:
        ValueError: A reduction leaves no channel.
    """
    counts = [width]
    for layer, (before, after) in enumerate(pairwise(finest), 1):
        count = counts[-1] + growth
        counts.append(math.floor(reduction * count) if after > before else count)
        if counts[-1] < 1:
            raise ValueError(
                f"reduction leaves the exits from layer {layer} on without a map: it must be at least 1 / {count}, one of the "
                f"{count} channels there, got {reduction!r}"
            )
    return counts
