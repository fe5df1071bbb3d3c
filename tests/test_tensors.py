"""State dicts: what cannot be saved without pickle, and values too small to be multiplied quickly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anytime import create_model, load
from anytime.models.surgery.weights import read_weights
from anytime.support.tensors import check_plain, denormal_share, denormal_warning


class Special(Tensor):
    """A tensor of a kind that torch does not know, as libraries for quantisation make."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_state_is_named() -> None:
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    check_plain(network.state_dict())
    check_plain(dict(network.named_parameters()))
    dynamic = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, torch.qint8)
    with pytest.raises(
        ValueError, match=r"0\._packed_params\.\w+ is a \w+, which cannot be saved .*: save the network before"
    ):
        check_plain(dynamic.state_dict())
    quantised = torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)
    for value, kind in (
        (quantised, "a quantised tensor"),
        (torch.eye(2).to_sparse(), r"a tensor of layout torch\.sparse_coo"),
        (torch.rand(2).as_subclass(Special), "a Special"),
    ):
        with pytest.raises(ValueError, match=f"head is {kind}, which cannot be saved"):
            check_plain({"head": value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("flush", [False, True])
def test_share_of_denormals(dtype: torch.dtype, flush: bool) -> None:
    smallest = torch.finfo(dtype).tiny
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, smallest, -smallest, smallest / 2, -smallest / 64], dtype=dtype)
    torch.set_flush_denormal(flush)
    try:
        assert denormal_share([values]) == 2 / 8
        assert denormal_share([values.view(2, 4).mT, torch.zeros(8, dtype=dtype), torch.zeros(9, dtype=torch.int64)]) == 2 / 16
    finally:
        torch.set_flush_denormal(False)


def test_half_precision_has_none() -> None:
    assert denormal_share([torch.full((4,), 1e-7, dtype=torch.half)]) == 0
    assert denormal_share([]) == 0


def test_many_denormals_are_worth_a_sentence() -> None:
    weights = torch.ones(10_000)
    weights[:9] = 1e-39
    assert denormal_warning([weights], "w.pth") is None
    weights[:20] = 1e-39
    assert str(denormal_warning([weights], "w.pth")).startswith("w.pth: 0.2% of the values are denormal")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_saving_a_quantised_model_leaves_the_old_files(tmp_path: Path) -> None:
    model = create_model("anytimenet", blocks=(1,), scheme=None, width=4)
    model.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    quantised = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, torch.qint8)
    for save in (quantised.save, quantised.save_pretrained):
        with pytest.raises(ValueError, match=r"head\._packed_params\.\w+ is a \w+, which cannot be saved"):
            save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_loading_warns_of_denormals(tmp_path: Path) -> None:
    model = create_model("anytimenet", blocks=(1,), scheme=None, width=4)
    with torch.no_grad():
        model.stem.weight.fill_(1e-39)  # type: ignore[operator,union-attr]
    model.save(tmp_path)
    with pytest.warns(UserWarning, match=r"model\.safetensors: \d+\.\d% of the values are denormal"):
        load(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=r"weights\.pth: \d+\.\d% of the values are denormal"):
        read_weights(tmp_path / "weights.pth")
