"""What a survey learns by running a network: where the channels are, and how long each part takes."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from anytime.models.surgery.attach.cut_points import survey

SIZE = (3, 8, 8)


def test_channels_of_networks_that_norm_at_the_end_of_a_block() -> None:
    """Swin V2 runs attention, as a function, before the norm; and an identity passes the same tensor on."""
    sizes: Any = {"patch_size": [2, 2], "depths": [1, 1], "num_heads": [1, 2], "window_size": [2, 2]}
    kinds: Any = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    swin = SwinTransformer(embed_dim=8, num_classes=5, stochastic_depth_prob=0, **sizes, **kinds)
    swin.features.insert(1, nn.Identity())
    found = {cut.aliases[0]: (cut.shape, cut.channels_last) for cut in survey(swin, (3, 16, 16)).cuts}
    assert {name: found[f"features.{name}"] for name in range(5)} == {
        **{0: ((8, 8, 8), True), 1: ((8, 8, 8), True), 2: ((8, 8, 8), True)},
        **{3: ((4, 4, 16), True), 4: ((4, 4, 16), True)},
    }


@pytest.mark.parametrize("stalled", [9, 25, 26, 40])
def test_a_stalled_run_moves_no_place(stalled: int) -> None:
    """One part of one run stalls. With medians of whole runs, enough stalls would make all later places late."""
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Flatten(), nn.Linear(192, 5))

    def measured(late: float) -> list[float | None]:
        readings = count()

        def clock() -> float:
            reading = next(readings)
            return reading + (late if reading >= stalled else 0.0)

        return [cut.seconds for cut in survey(network, SIZE, measure=True, clock=clock).cuts]

    torch.manual_seed(0)
    assert measured(1000.0) == measured(0.0)
