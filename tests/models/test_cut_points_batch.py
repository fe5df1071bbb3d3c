"""Networks that ask the batch size early and use it late can be cut between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.cut_points import survey

SIZE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return (h + self.conv(h)).relu()


def names(network: nn.Module) -> list[str]:
    return [cut.name for cut in survey(network, SIZE).cuts]


class Shapes(nn.Module):
    """The last place where the batch size is asked is `asks`, at the top, in a container or after a block."""

    def __init__(self, asks: str) -> None:
        super().__init__()
        self.stem, self.body, self.fc = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Sequential(Residual(4), Residual(4)),
            nn.Linear(256, 5),
        )
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        if self.asks == "size":
            b = x.size(0)
        elif self.asks == "keyword":
            b = x.size(dim=0)
        elif self.asks == "shape":
            b, _, _, _ = x.shape
        elif self.asks == "whole":
            b = x.size()[0]
        h = self.stem(x)
        if self.asks == "later":
            b = h.shape[0]
        h = self.body(h)
        if self.asks == "image":
            b = x.shape[0]
        elif self.asks == "arithmetic":
            return self.fc(h.view(x.size(0) * 2, -1).view(x.size(0), -1))
        return self.fc(h.view(b, -1))


@pytest.mark.parametrize("asks", ["size", "keyword", "shape", "whole", "later", "image", "arithmetic"])
def test_the_batch_size_is_asked_again_behind_every_cut(asks: str) -> None:
    network = Shapes(asks)
    found = names(network)
    assert {"stem", "body.0", "body"} <= set(found)
    model = attach_exits(network, ["stem", "body.0"], input_size=SIZE).eval()
    for batch in (1, 2, 5):
        x = torch.rand(batch, *SIZE)
        assert torch.equal(model(x)[-1], network(x))
        assert torch.equal(torch.stack(list(model.stream(x))), model(x))


def test_a_batch_that_is_not_the_first_dimension_is_the_first_of_the_state() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).permute(2, 0, 1)  # [pixels, B, C]
            count = tokens.shape[0]
            return self.fc(self.body(tokens).sum(0) / count)

    network = SequenceFirst()
    model = attach_exits(network, ["body"], input_size=SIZE).eval()
    x = torch.rand(3, *SIZE)
    _, state = model.step(model.initial_state(x))
    assert (state.features[0].shape, state.features[1:]) == ((3, 64, 4), (64,))
    torch.testing.assert_close(model(x)[-1], network(x))


class Body(nn.Module):
    def __init__(self, channels: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(4) for _ in range(3))
        self.channels = channels

    def forward(self, h: Tensor) -> Tensor:
        b, c = h.shape[0], h.shape[1] if self.channels is None else self.channels
        for block in self.blocks:
            h = block(h)
        return h.reshape(b, c, -1).mean(2)


def test_a_container_that_asks_its_batch_size_opens() -> None:
    stem, fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
    assert names(nn.Sequential(stem, Body(4), fc)) == ["0", "1.blocks.0", "1.blocks.1", "1.blocks.2", "1.reshape", "1"]
    assert "1.blocks.2" in names(nn.Sequential(stem, Body(None), fc))  # the number of channels, needed at its end, is kept
