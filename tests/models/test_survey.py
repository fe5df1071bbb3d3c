"""What a survey of a network learns by running it: where the channels are, and how long each part takes."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from anytime.models.surgery.attach.cut_points import list_cuts

SIZE = (3, 8, 8)


def test_channels_of_networks_that_norm_at_the_end_of_a_block() -> None:
    """Swin V2: attention first, as a function, then the norm; and what an identity passes on is the same tensor."""
    sizes: Any = {"patch_size": [2, 2], "depths": [1, 1], "num_heads": [1, 2], "window_size": [2, 2]}
    kinds: Any = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    swin = SwinTransformer(embed_dim=8, num_classes=5, stochastic_depth_prob=0, **sizes, **kinds)
    swin.features.insert(1, nn.Identity())
    found = {cut.aliases[0]: (cut.shape, cut.channels_last) for cut in list_cuts(swin, (3, 16, 16), measure=False)}
    assert {name: found[f"features.{name}"] for name in range(5)} == {
        **{0: ((8, 8, 8), True), 1: ((8, 8, 8), True), 2: ((8, 8, 8), True)},
        **{3: ((4, 4, 16), True), 4: ((4, 4, 16), True)},
    }


@pytest.mark.parametrize("held", [9, 25, 26, 40])
def test_a_run_that_is_held_up_moves_no_place(held: int) -> None:
    """Medians of whole runs would count all later places as late, if enough runs are held up; here a part of one run is."""
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Flatten(), nn.Linear(192, 5))

    def measured(late: float) -> list[float | None]:
        readings = count()

        def clock() -> float:
            reading = next(readings)
            return reading + (late if reading >= held else 0.0)

        return [cut.seconds for cut in list_cuts(network, SIZE, clock=clock)]

    torch.manual_seed(0)
    assert measured(1000.0) == measured(0.0)
