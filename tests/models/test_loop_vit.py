"""The looped vision transformer: its cost, more loops than in training, images of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anytime
from anytime.cost import step_macs
from anytime.models.loop_vit import LoopViT, positions
from anytime.objectives import SelfDistillation

CONTRACT_ARGUMENTS = {"loop_vit": {"num_steps": 3, "width": 12, "expansion": 2}}
SMALL: dict[str, Any] = {"width": 12, "expansion": 2}


@pytest.mark.parametrize(("size", "patch", "layers"), [(32, 4, 1), (224, 16, 2)])
def test_costs(size: int, patch: int, layers: int) -> None:
    model = anytime.create_model("loop_vit", num_steps=3, patch=patch, layers=layers).to("meta")
    tokens, width = (size // patch) ** 2, 192
    embedding = tokens * 3 * patch**2 * width
    loop, head = layers * (12 * tokens * width**2 + 2 * tokens**2 * width), 10 * width
    assert step_macs(model, size) == [embedding + t * (loop + head) for t in (1, 2, 3)]
    assert step_macs(model, size, contract=True) == [embedding + t * loop + head for t in (1, 2, 3)]


def test_no_weight_belongs_to_a_loop() -> None:
    few, many = (anytime.create_model("loop_vit", num_steps=t, **SMALL) for t in (2, 9))
    many.load_state_dict(few.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.allclose(many(x)[:2], few(x), atol=1e-6)


def test_more_loops_than_in_training_and_they_are_saved(tmp_path: Path) -> None:
    model = anytime.create_model("loop_vit", num_steps=2, **SMALL)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        trained = model.eval()(x)
        model.num_steps = 5
        longer = model(x)
        assert longer.shape == (5, 2, 10)
        assert torch.equal(longer[:2], trained)
        model.save(tmp_path / "longer")
        again = anytime.load(tmp_path / "longer")
        assert again.num_steps == 5
        assert torch.equal(again(x), longer)


def test_a_profile_of_fewer_loops_is_said() -> None:
    model = anytime.create_model("loop_vit", num_steps=2, **SMALL).eval()
    x = torch.rand(1, 3, 8, 8)
    predictor = anytime.Predictor(model, anytime.profile(model, x, repeats=20))
    model.num_steps = 4
    with pytest.raises(ValueError, match="the model now has num_steps=4, but its profile only 2: measure it again"):
        list(predictor.stream(x))
    with pytest.raises(ValueError, match="the model now has num_steps=4"):
        predictor(x)
    model.num_steps = 1
    assert predictor(x).step == 1


def test_each_loop_is_the_block_on_its_last_output_and_the_image() -> None:
    model: Any = anytime.create_model("loop_vit", num_steps=3, **SMALL).eval()
    x, z = torch.rand(2, 3, 8, 8), 0
    e = model.embedding(x).flatten(2).transpose(1, 2) + positions(2, 2, 12)
    for answer in model(x):
        z = model.block(z + e)
        assert torch.allclose(answer, model.head.linear(model.head.norm(z).mean(1)), atol=1e-6)


def test_attention_is_its_formula() -> None:
    layer = LoopViT(width=12, expansion=2).block[0]
    h = torch.rand(2, 5, 12)
    q, k, v = layer.qkv(layer.norm1(h)).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.transpose(2, 3) / 4**0.5).softmax(3) @ v
    after = h + layer.out(mixed.transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(layer(h), after + layer.mlp(layer.norm2(after)), atol=1e-6)


def test_images_are_padded_with_their_mean_to_whole_patches() -> None:
    model = anytime.create_model("loop_vit", num_steps=1, **SMALL).eval()
    model.set_normalization([0.2, 0.4, 0.6], [0.5] * 3)
    x = torch.rand(1, 3, 9, 8)
    padded = model.mean[:, None, None].expand(1, 3, 12, 8).clone()
    padded[:, :, :9] = x
    assert torch.allclose(model(x), model(padded), atol=1e-6)


def test_positions_tell_all_patches_apart() -> None:
    places = positions(3, 4, 8)
    assert places.shape == (12, 8)
    row, column = torch.tensor([1.0, 1e-4]), torch.tensor([2.0, 2e-4])  # of patch 6
    assert torch.allclose(places[6], torch.cat([row.sin(), row.cos(), column.sin(), column.cos()]))
    assert torch.cdist(places, places).fill_diagonal_(1).min() > 0.5


def test_early_loops_learn_from_the_last() -> None:
    torch.manual_seed(0)
    model = anytime.create_model("loop_vit", num_steps=3, **SMALL)
    x, labels = torch.rand(8, 3, 8, 8), torch.arange(8)

    def distance() -> float:
        log_p = model(x).log_softmax(2)
        return F.kl_div(log_p[0], log_p[-1], log_target=True, reduction="batchmean").item()

    before, objective = distance(), SelfDistillation(alpha=1.0, weights=[1.0, 1.0, 0.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        objective(model(x), labels).backward()
        optimizer.step()
    assert distance() < before / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": 10_001}, "num_steps must add up to at most 10,000, got 10,001"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"width": 190}, "width must be a multiple of 4 and of heads=3, got 190"),
        ({"width": 24, "heads": 5}, "width must be a multiple of 4 and of heads=5, got 24"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopViT(**arguments)


@pytest.mark.parametrize("number", [0, True, 2.0])
def test_bad_numbers_of_loops_later(number: Any) -> None:
    model = LoopViT(**SMALL)
    with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1"):
        model.num_steps = number
    assert model.num_steps == 8
