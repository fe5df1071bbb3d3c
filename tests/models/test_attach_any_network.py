"""Networks whose state is more than one tensor: two branches, tables, numbers, windows."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime.model import select_samples
from anytime.models.surgery.attach.build import attach_exits
from anytime.testing import check_anytime_model

SIZE = (3, 8, 8)


class Mix(nn.Module):
    """Two branches in, two branches out."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 2, 2)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        fine, coarse = branches
        branches[0] = self.fine(fine).relu()
        return [branches[0], self.coarse(coarse).relu() + self.down(fine)]


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 2, 2)
        self.blocks = nn.ModuleList(Mix() for _ in range(3))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.fine(x), self.coarse(x)]
        for block in self.blocks:
            branches = block(branches)
        return self.fc(torch.cat([h.mean((2, 3)) for h in branches], 1))


class Turns(nn.Module):
    """Tokens turned by a table of angles, in windows of 4 tokens for which the batch grows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor, table: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        return tokens + self.mix(self.norm(tokens * table)), size


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(Turns() for _ in range(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x)
        batch, _, height, width = h.shape
        windows = h.flatten(2).transpose(1, 2).reshape(batch * height * width // 4, 4, 4)
        table = torch.arange(4, device=x.device, dtype=x.dtype)[:, None].cos()
        size = (height, width)
        for block in self.blocks:
            windows, size = block(windows, table, size=size)
        return self.fc(windows.reshape(batch, size[0] * size[1], 4).mean(1))


def test_two_branches_that_a_block_replaces_in_its_list() -> None:
    torch.manual_seed(0)
    network = TwoBranches().eval()
    model = attach_exits(network, exits=3, input_size=SIZE).eval()
    x = torch.rand(3, *SIZE)
    assert torch.equal(model(x)[-1], network(x))
    _, state = model.step(model.initial_state(x))
    assert [tuple(h.shape) for h in state.features] == [(3, 6, 4, 4), (3, 4, 8, 8)]  # heads read the one that cost more
    check_anytime_model(model, SIZE)


def test_tables_are_no_part_of_the_state_and_windows_belong_to_their_sample() -> None:
    torch.manual_seed(0)
    network = Tokens().eval()
    model = attach_exits(network, exits=["blocks.0", "blocks.2"], input_size=SIZE).eval()
    x = torch.rand(3, *SIZE)
    _, state = model.step(model.initial_state(x))
    windows, *numbers = state.features
    assert windows.shape == (3, 16, 4, 4)
    assert numbers == [8, 8]
    rest, _ = model.step(select_samples(state, torch.tensor([2, 0])))
    torch.testing.assert_close(rest, model(x)[1, [2, 0]])
    check_anytime_model(model, SIZE)
    larger = torch.rand(2, 3, 12, 8)
    assert torch.equal(model(larger)[-1], network(larger))


def test_a_network_without_a_place_near_a_share_says_so() -> None:
    layers = [nn.Conv2d(3, 2, 1), nn.Conv2d(2, 64, 3, padding=1), nn.Conv2d(64, 2, 1), nn.Flatten(), nn.Linear(128, 5)]
    with pytest.warns(UserWarning, match="of the cost") as caught:
        attach_exits(layers, exits=3, input_size=SIZE)
    assert [str(warning.message) for warning in caught] == [
        "exit 1 is at 0% of the cost, after '0': the network has no place between 17% and 50%",
        "exit 2 is at 89% of the cost, after '1': the network has no place between 50% and 83%",
    ]


def test_modules_are_opened_where_their_boundaries_are_too_far_apart() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))

        def forward(self, h: Tensor) -> Tensor:
            first = h
            for layer in self.layers:
                h = layer(h).relu()
            return h + first

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Wide(), nn.Flatten(), nn.Linear(256, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = attach_exits(network, exits=3, input_size=SIZE)
    assert model.exits == ("1.relu_1", "1.relu_3")
    assert attach_exits(network, exits=["1.relu_1"], input_size=SIZE).exits == ("1.relu_1",)
    check_anytime_model(model, SIZE)


NETWORKS: dict[str, dict[str, Any]] = {  # each failed, or had no exit between 2 % and 98 % of its cost
    "coat_lite_tiny": {},
    "pit_ti_224": {},
    "vit_tiny_patch16_dinov3_qkvb": {"depth": 4},
    "xcit_nano_12_p8_224": {"depth": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, img_size=32, **NETWORKS[name]).eval()
    model = attach_exits(network, exits=3, input_size=(3, 32, 32)).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        answers, expected = torch.stack(list(model.stream(x))), network(x)
        torch.testing.assert_close(answers[-1], expected, atol=1e-5, rtol=0)
        _, state = model.step(model.initial_state(x))
        alone, _ = model.step(select_samples(state, torch.tensor([1])))
        torch.testing.assert_close(alone, answers[1, 1:], atol=1e-5, rtol=0)


class Rows(nn.Module):
    """Depends on the size of its images by a loop, by the key of a table or by the pieces of a split."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), how
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(self.a(x).relu()).relu()
        if self.how == "range":
            h = sum(h[:, :, i] for i in range(h.shape[2]))
        elif self.how == "table":
            h = h.mean(2) * {"16": 1.0}.get(str(h.shape[2]), 2.0)
        elif self.how == "split":
            h = sum(part.amax(2) for part in h.split(4, dim=2))
        else:
            h = h.mean(2)
        return self.fc(h.mean(2))


@pytest.mark.parametrize("how", ["range", "table", "split", "any size"])
def test_a_size_that_a_network_uses_silently_is_kept(how: str) -> None:
    torch.manual_seed(0)
    network = Rows(how).eval()
    model = attach_exits(network, exits=2, input_size=16).eval()
    assert torch.equal(model(x := torch.rand(2, 3, 16, 16))[-1], network(x))
    larger = torch.rand(2, 3, 24, 24)
    if how == "any size":
        assert torch.allclose(model(larger)[-1], network(larger), atol=1e-6)
    else:
        with pytest.raises(ValueError, match="16x16"):
            model(larger)
