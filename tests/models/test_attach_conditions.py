"""Networks that decide by the batch, the precision, the layout, gradients or their own attributes: refused, or watched."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytime
from anytime.model import create_model, select_samples
from anytime.models.surgery.attach import checks, cut_points
from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.model import AttachedExits
from anytime.saving import read_model

SIZE = (3, 8, 8)


class Masked(nn.Module):
    """Attention over four pixels, with a mask of bright pixels for each of two heads; `major` is the outer part of a batch."""

    def __init__(self, major: str) -> None:
        super().__init__()
        self.patches, self.major = nn.Conv2d(3, 8, 4, 4), major
        self.mix, self.fc = nn.ModuleList(nn.Linear(8, 24) for _ in range(3)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        b, n, _ = h.shape
        mask = nn.functional.max_pool2d((x > 0.5).float().amax(1, keepdim=True), 4).flatten(1) > 0
        heads = self.major == "heads"
        mask = mask.repeat(2, 1) if heads else mask.repeat_interleave(2, 0)
        for mix in self.mix:
            z = mix(h).view(b, n, 3, 2, 4).permute((2, 3, 0, 1, 4) if heads else (2, 0, 3, 1, 4)).reshape(3, 2 * b, n, 4)
            weights = (z[0] @ z[1].transpose(1, 2)).masked_fill(~mask[:, None], -9.0).softmax(2)
            y = weights @ z[2]
            y = y.view(2, b, n, 4).permute(1, 2, 0, 3) if heads else y.view(b, 2, n, 4).transpose(1, 2)
            h = h + y.reshape(b, n, 8)
        return self.fc(h.mean(1))


@pytest.mark.parametrize("major", ["heads", "samples"])
def test_a_batch_within_heads_is_not_one_of_samples(major: str) -> None:
    torch.manual_seed(0)
    late = pytest.warns(
        UserWarning, match=r"exit 2 is at 99% of the cost, after 'add_2'"
    )  # the mask lives until the last block
    with late if major == "heads" else nullcontext():
        model = attach_exits(Masked(major), exits=3, input_size=SIZE).eval()
    x = torch.rand(4, *SIZE)
    x[1, :, :4] *= 0.3
    x[2] *= 0.3
    answers = model(x)
    torch.testing.assert_close(answers[-1], model.backbone(x))
    state = model.initial_state(x)
    for answer in answers[1:]:
        _, state = model.step(state)
        kept, _ = model.step(select_samples(state, torch.tensor([2, 1])))
        torch.testing.assert_close(kept, answer[[2, 1]])


class Decides(nn.Module):
    """Decides `how` between two parts that can be cut."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.middle, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.how, self.scale, self.calls = how, 1.0, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = DECIDES[self.how](self, self.stem(x).relu())
        return self.fc(self.middle(h).relu().mean((2, 3)))


def assigned(net: Any, h: Tensor) -> Tensor:
    net.count = net.count + 1
    return h * net.count


def put(net: Any, h: Tensor) -> Tensor:
    net._buffers["count"] = net.count + 1
    return h * net.count


def data(net: Any, h: Tensor) -> Tensor:
    net.count.data = net.count + 1
    return h * net.count


def carried(net: Any, h: Tensor) -> Tensor:
    net.calls += 1
    return h * 2 if net.calls > 100 else h


def in_place(net: Any, h: Tensor) -> Tensor:
    net.count += 1
    return h * net.count


DECIDES: dict[str, Any] = {
    "batch": lambda net, h: h * 2 if h.shape[0] > 8 else h,
    "one batch": lambda net, h: h * 2 if h.shape[0] == 64 else h,
    "remainder": lambda net, h: h if h.shape[0] % 64 else h * 2,
    "quotient": lambda net, h: h if h.shape[0] // 4096 == 0 else h * 2,
    "length": lambda net, h: h * 2 if len(h) > 8 else h,
    "split": lambda net, h: torch.cat([part * 1 for part in h.split(8)]),
    "range": lambda net, h: torch.cat([h[i : i + 8] for i in range(0, h.shape[0], 8)]),
    "gradients": lambda net, h: h * 2 if torch.is_grad_enabled() else h,
    "requires_grad": lambda net, h: h * 2 if h.requires_grad else h,
    "layout": lambda net, h: h if h.is_contiguous() else h * 2,
    "stride": lambda net, h: h * (h.stride(1) / 64),
    "assigned": assigned,
    "put": put,
    "data": data,
    "carried": carried,
    "in place": in_place,
    "scale": lambda net, h: h * net.scale,
}
ASKED = r"size of the batch: it must ask the batch size as x\.shape\[0\]"
REFUSED = {
    **dict.fromkeys(("batch", "one batch", "remainder", "quotient", "length", "split", "range"), ASKED),
    "gradients": "with gradients",
    **{"requires_grad": "with gradients", "layout": "channels_last", "stride": "channels_last"},
    **dict.fromkeys(("assigned", "put"), "assigns 'count' in forward, which only a submodule may do"),
    **{"data": r"assigns to \.data of a tensor", "carried": "keeps 'calls' from one call to the next"},
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_a_graph_cannot_decide_again_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match=f"Decides cannot be traced: .*{REFUSED[how]}"):
        attach_exits(Decides(how), exits=2, input_size=SIZE)


@pytest.mark.parametrize("how", ["batch", "gradients", "assigned"])
def test_a_part_that_decides_stays_whole(how: str) -> None:
    class Part(Decides):
        def forward(self, x: Tensor) -> Tensor:
            h = DECIDES[self.how](self, self.stem(x).relu())
            return self.middle(h).relu()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Part(how), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plain = copy.deepcopy(network)
    model = attach_exits(network, exits=["0", "1"], input_size=SIZE)
    for batch in (2, 9):
        x = torch.rand(batch, *SIZE)
        torch.testing.assert_close(model(x)[-1], plain(x))


def test_a_buffer_that_is_changed_in_place_is_updated() -> None:
    torch.manual_seed(0)
    network = Decides("in place")
    plain = copy.deepcopy(network)
    model = attach_exits(network, exits=2, input_size=SIZE)
    for _ in range(2):
        x = torch.rand(2, *SIZE)
        torch.testing.assert_close(model(x)[-1], plain(x))
    assert network.count == plain.count == 2


def test_an_attribute_that_was_cut_in_is_watched() -> None:
    network = Decides("scale")
    model = attach_exits(network, exits=2, input_size=SIZE)
    twin = copy.deepcopy(model)
    x = torch.rand(2, *SIZE)
    network.calls, network.scale = 5, 2.0  # the forward does not read the first
    with pytest.raises(ValueError, match=r"Decides was cut with scale = 1\.0, and has 2\.0 now: attach the exits again"):
        model(x)
    twin(x)
    twin.backbone.scale = 3.0
    with pytest.raises(ValueError, match=r"has 3\.0 now"):
        twin(x)
    network.scale = 1.0
    model(x)


def test_a_part_that_was_cut_is_watched() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(64, 5))
    model = attach_exits(layers, exits=["1.0"], input_size=SIZE)
    layers[1] = nn.Sequential(nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    with pytest.raises(ValueError, match="Sequential was cut, and has another '1' now"):
        model(torch.rand(2, *SIZE))


def test_a_configuration_that_was_read_is_watched() -> None:
    class Settings:
        def __init__(self) -> None:
            self.scale, self.labels = 1.0, "none"

    class Configured(Decides):
        def __init__(self) -> None:
            super().__init__("scale")
            self.config = Settings()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.middle(self.stem(x).relu() * self.config.scale).relu().mean((2, 3)))

    network = Configured()
    model = attach_exits(network, exits=2, input_size=SIZE)
    twin = copy.deepcopy(model)
    x = torch.rand(2, *SIZE)
    network.config.labels = "others"
    model(x)
    network.config.scale = 2.0
    assert "__getattribute__" not in vars(Settings)
    with pytest.raises(
        ValueError, match=r"Settings 'config' was cut with scale = 1\.0, and has 2\.0 now: attach the exits again"
    ):
        model(x)
    twin(x)


def test_blocks_that_return_a_dict() -> None:
    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, 4, 3, padding=1)

        def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
            h = self.conv(d["x"]).relu()
            return {"x": h, "skip": d["skip"] + h.mean((1, 2, 3))[:, None]}

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.fc = nn.ModuleList(Block(c) for c in (3, 4, 4, 4)), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            d = {"x": x, "skip": x.new_zeros(x.shape[0], 1)}
            for block in self.blocks:
                d = block(d)
            return self.fc(d["x"].mean((2, 3))) + d["skip"]

    torch.manual_seed(0)
    network = Network().eval()
    model = attach_exits(network, exits=3, input_size=SIZE).eval()
    x = torch.rand(3, *SIZE)
    assert torch.equal(model(x)[-1], network(x))


def test_loading_repeats_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"backbone": "torchvision:shufflenet_v2_x0_5", "exits": 2, "head": "linear", "input_size": (3, 96, 96)}
    model = create_model("attach", 5, **arguments)
    assert isinstance(model, AttachedExits)
    model.save(tmp_path / "model")
    runs: list[int] = []
    monkeypatch.setattr(cut_points, "_unlike_images", lambda two: pytest.fail("it is known where samples are"))
    original = checks.logits_of
    monkeypatch.setattr(checks, "logits_of", lambda output: runs.append(len(output)) or original(output))
    loaded = read_model(tmp_path / "model")
    assert isinstance(loaded, AttachedExits)
    assert max(runs) == 1  # one image
    x = torch.rand(3, 3, 96, 96)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert anytime.step_macs(loaded, (3, 96, 96)) == anytime.step_macs(model, (3, 96, 96))
