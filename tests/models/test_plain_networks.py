"""Plain networks as models of a single answer: the sizes and costs that docs/backbones.md lists, and a trace of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import anytime
from anytime.analysis.summary import summary
from anytime.cost import flop_counter
from anytime.data import Digits
from anytime.models.fast import FastNet
from anytime.models.surgery.small_networks import ResNet20, SmallMobileNet
from anytime.support.units import macs_text
from anytime.testing import check_anytime_model

DOCS = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")


def dense(layers: tuple[int, ...]) -> nn.Module:
    """The network without the delays of its family, which it does not have."""
    model: Any = anytime.create_model("cascaded_densenet", kernel="instant", num_steps=1, growth=12, layers=layers)
    assert model.num_steps == 1
    return model.network


PLAIN: list[tuple[str, list[Callable[[], nn.Module]]]] = [  # the row's first cell, the networks that it lists
    ("ResNet-20, width 8, 16, 32", [partial(ResNet20, width=width) for width in (8, 16, 32)]),
    ("ResNet-56", [partial(anytime.create_model, "sdn_resnet56", exits=())]),
    ("DenseNet-BC, 40 and 100 layers", [partial(dense, layers) for layers in ((6, 6, 6), (16, 16, 16))]),
    ("MobileNetV2, 10 blocks, width 0.5 and 1", [partial(SmallMobileNet, width=width) for width in (0.5, 1.0)]),
    ("fast, without exits", [partial(anytime.create_model, "fast", head_widths=())]),
]


def macs(network: nn.Module) -> int:
    with torch.no_grad(), flop_counter() as counter:
        network.to("meta").eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("row", "networks"), PLAIN, ids=[row for row, _ in PLAIN])
def test_sizes_and_costs_in_the_docs(row: str, networks: list[Callable[[], nn.Module]]) -> None:
    cells = next(line for line in DOCS.splitlines() if line.startswith(f"| {row} |")).split("|")
    built = [network() for network in networks]
    sizes = [f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M" for network in built]
    assert cells[3:5] == [f" {', '.join(sizes)} ", f" {', '.join(macs_text(macs(network)) for network in built)} "]
    assert all(network.num_steps == 1 for network in built if isinstance(network, anytime.AnytimeModel))


def test_attach_with_one_exit_is_the_backbone() -> None:
    arguments = {"backbone": f"{SmallMobileNet.__module__}.ResNet20", "options": {"width": 2}, "input_size": 16}
    model: Any = anytime.create_model("attach", exits=1, **arguments)
    assert model.num_steps == 1
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.eval()(x)[0], model.backbone(x))


def test_dense_net_bc_100_is_the_published_size() -> None:
    assert sum(p.numel() for p in dense((16, 16, 16)).parameters()) == 769_162


def test_the_fast_network_without_exits_is_the_trunk_of_the_one_with() -> None:
    torch.manual_seed(0)
    full, plain = FastNet(widths=(4, 8, 8), head_widths=(2, 2)).eval(), FastNet(widths=(4, 8, 8), head_widths=()).eval()
    renamed = {key.replace("heads.2.", "heads.0."): value for key, value in full.state_dict().items()}
    plain.load_state_dict({key: value for key, value in renamed.items() if key in plain.state_dict()})
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(plain(x)[0], full(x)[-1])
    assert anytime.step_macs(plain, 16) == [anytime.step_macs(full, 16, contract=True)[-1]]
    check_anytime_model(plain, (3, 8, 8))


def test_a_plain_network_is_recorded_like_any_other() -> None:
    data = Digits(limit=60)
    data.setup("test")
    model = anytime.create_model("sdn_resnet56", in_channels=1, exits=(), blocks=1, width=2, input_size=8)
    trace = anytime.record(model, data.test_dataloader(), progress=False)
    assert trace.logits.shape[0] == 1
    assert trace.macs.tolist() == anytime.step_macs(model, data.input_size)
    assert summary(trace)["average_error"] == 1 - summary(trace)["accuracy"]
