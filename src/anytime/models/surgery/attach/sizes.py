"""What a graph gives for images of other sizes: which counts belong to a sample, and where the channels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anytime.models.surgery.attach.conditions import LARGER, imagined_copy
from anytime.models.surgery.attach.cut_points import Cut, walk
from anytime.models.surgery.attach.graph import FlatGraph
from anytime.models.surgery.attach.state import Kept, Place
from anytime.support.limits import imagined

BATCHES = (2, 3)
OF_IMAGES = (nn.Conv2d, nn.ConvTranspose2d, _BatchNorm, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Shapes(NamedTuple):
    """For batches of two and of three images of another size: the shapes of all tensors, and the numbers."""

    two: Mapping[fx.Node, Any]
    three: Mapping[fx.Node, Any]

    def keep(self, kept: Kept) -> bool:
        """Whether a value is kept rightly: with as many entries for each sample where the batch is said to be."""
        two, three = self.two[kept.node], self.three[kept.node]
        if kept.shape is None:
            if kept.times == 0:
                return bool(two == three)
            each = two / 2
            return bool(each == three / 3 and (each == 1 or not kept.implied))
        if kept.dim is None:
            return bool(two == three)
        each, rest = two[kept.dim] / 2, (two[: kept.dim], two[kept.dim + 1 :])
        if each != three[kept.dim] / 3 or rest != (three[: kept.dim], three[kept.dim + 1 :]):
            return False
        return each % 1 == 0 and (each == 1) == (kept.times == 1)

    def same_width(self, kept: Kept, cut: Cut) -> bool:
        """Whether what a head reads has as many channels, of images the first dimension, else the last."""
        shape, dim = self.two[kept.node], kept.dim or 0
        each = (*([shape[dim] // 2] if kept.times != 1 else []), *shape[:dim], *shape[dim + 1 :])
        channels = 0 if len(each) == 3 and not cut.channels_last else -1
        return bool(each[channels] == cut.shape[channels])


def channels_last(backbone: nn.Module, shapes: Shapes | None, cut: Cut, kept: Kept) -> bool:
    """Where the channels are in what a head reads: they are as many for images of all sizes.

    Without another size, a layer that gives images tells if the sides do not.
    """
    if not kept.as_it_is or len(cut.shape) != 3:
        return cut.channels_last
    if shapes is not None:
        same = [now == before for now, before in zip(shapes.two[kept.node][1:], cut.shape, strict=True)]
        return same[2] if same[0] != same[2] and not same[1] else cut.channels_last
    layer = backbone.get_submodule(str(kept.node.target)) if kept.node.op == "call_module" else None
    return cut.channels_last and not (cut.shape[0] == cut.shape[2] and isinstance(layer, OF_IMAGES))


def other_shapes(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> Shapes | None:
    """The shapes for images that are not square, or larger ones; None if the graph takes neither."""
    for larger in reversed(LARGER):
        with suppress(Exception):
            found = []
            for batch in BATCHES:
                network = imagined_copy(backbone, None, torch.device("meta"), torch.device("meta")).eval()
                sides = [n + more for n, more in zip(x.shape[2:], larger, strict=True)]
                with imagined(), torch.device("meta"), torch.no_grad():
                    images = torch.zeros(batch, x.shape[1], *sides, dtype=x.dtype)
                    found.append({node: _shape(value) for node, value in walk(network, flat, images)})
            return Shapes(*found)
    return None


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


def fit(shapes: Shapes, places: Sequence[Place], cuts: Sequence[Cut]) -> bool:
    """Whether all places also keep what they must for another size, and heads read as many channels there."""
    kept = all(shapes.keep(kept) for place in places for kept in place.kept)
    return kept and all(shapes.same_width(place.kept[0], cut) for place, cut in zip(places, cuts, strict=True))
