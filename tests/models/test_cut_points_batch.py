"""Networks that ask the batch size early and use it late can be cut between."""

from __future__ import annotations

from collections.abc import Callable

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
        elif self.asks == "negative":
            b = x.size(-4)
        elif self.asks == "negative shape":
            b = x.shape[-4]
        elif self.asks == "elements":
            b = x.numel() // (x.shape[1] * x.shape[2] * x.shape[3])
        h = self.stem(x)
        if self.asks == "later":
            b = h.shape[0]
        h = self.body(h)
        if self.asks == "image":
            b = x.shape[0]
        elif self.asks == "arithmetic":
            return self.fc(h.view(x.size(0) * 2, -1).view(x.size(0), -1))
        elif self.asks == "zeros":
            return self.fc(h.flatten(1) + torch.zeros(x.shape[0], 1))
        return self.fc(h.view(b, -1))


ASKS = ["size", "keyword", "shape", "whole", "negative", "negative shape", "elements", "later", "image", "arithmetic", "zeros"]


@pytest.mark.parametrize("asks", ASKS)
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


PLAIN_NUMBERS: dict[str, Callable[[Tensor], int]] = {
    "len": len,
    "int": lambda x: int(x.shape[0]),
    "loop": lambda x: sum(1 for _ in x),
}
USES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "view": lambda h, b: h.view(b, -1),
    "zeros": lambda h, b: torch.cat([h.flatten(1), torch.zeros(b, 1)], 1)[:, :256],
    "zeros that broadcast": lambda h, b: h.flatten(1) + torch.zeros(b, 1),
    "expand": lambda h, b: h.flatten(1) + torch.zeros(1, 1).expand(b, -1),
    "images": lambda h, b: torch.stack([h[i].flatten() for i in range(b)]),
    "mean": lambda h, b: h.flatten(1) / b,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("asks", PLAIN_NUMBERS)
def test_a_batch_size_that_became_a_plain_number_is_an_error(asks: str, use: str) -> None:
    class Plain(Shapes):
        def forward(self, x: Tensor) -> Tensor:
            b = PLAIN_NUMBERS[asks](x)
            return self.fc(USES[use](self.body(self.stem(x)), b))

    with pytest.raises(ValueError, match=r"must ask the batch size as x\.shape\[0\], not make a plain number of it"):
        attach_exits(Plain("plain"), ["stem"], input_size=SIZE)


def test_a_plain_batch_size_that_only_decides_is_none() -> None:
    class Checks(Shapes):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[0] > 0
            return super().forward(x)

    network = Checks("size")
    model = attach_exits(network, ["stem"], input_size=SIZE).eval()
    for batch in (1, 2, 5):
        x = torch.rand(batch, *SIZE)
        assert torch.equal(model(x)[-1], network(x))


def test_stages_that_lose_rows_are_an_error() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    nn.init.zeros_(network[1].weight)  # all rows are equal
    stages = [lambda net, x: x.flatten(1), lambda net, h: net[1](h)[:1]]
    with pytest.raises(ValueError, match=r"gives: for a batch of 2, they give \[1, 5\], not \[2, 5\]"):
        attach_exits(network, stages=stages, input_size=SIZE)
