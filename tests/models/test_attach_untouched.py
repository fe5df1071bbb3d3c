"""The network that gets exits is left as it was, with whatever it keeps for itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anytime import attach_exits

SIZE = (3, 16, 16)


class Blocks(nn.Module):
    """Three convolutions and a classifier; `between` is what else a network does with its features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.fc = nn.Linear(8, 4)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(self.a(x).relu())
        return self.fc(self.c(self.b(h).relu()).relu().mean((2, 3)))


class Scale(nn.Module):
    """A number for each size of images, in an attribute or in a buffer, made again only for another size."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.size: tuple[int, ...] | None = None
        self.register_buffer("scale", None) if buffer else setattr(self, "scale", None)

    def forward(self, h: Tensor) -> Tensor:
        if self.size != h.shape[-2:]:
            self.size, self.scale = h.shape[-2:], torch.tensor(math.log(h.shape[-1] * h.shape[-2]))
        return h * self.scale


class KeptByKey(Blocks):
    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.kept = Scale(buffer)

    def between(self, h: Tensor) -> Tensor:
        return self.kept(h)


class Merging(nn.Linear):
    """Adds low-rank weights in eval mode, as layers of LoRA do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.low, self.merged, self.seen = nn.Parameter(torch.randn(outputs, inputs)), False, {"calls": 0}

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.low if mode else self.low
            self.merged, self.seen["calls"] = not mode, self.seen["calls"] + 1
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.merged else nn.functional.linear(x, self.weight + self.low, self.bias)


class Merged(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.fc = Merging(8, 4)


def kept_by_key() -> nn.Module:
    return KeptByKey(buffer=False)


def kept_in_a_buffer() -> nn.Module:
    return KeptByKey(buffer=True)


@pytest.mark.parametrize("make", [kept_by_key, kept_in_a_buffer, Merged])
@pytest.mark.parametrize("used", [16, 32, None])
@pytest.mark.parametrize("training", [False, True])
def test_what_it_keeps_is_as_before(make: Callable[[], nn.Module], used: int | None, training: bool) -> None:
    torch.manual_seed(0)
    network, x = make().train(training), torch.rand(2, *SIZE)
    if used:
        with torch.inference_mode() if used == 32 else torch.no_grad():
            network(torch.rand(2, 3, used, used))
    twin = copy.deepcopy(network)
    model = attach_exits(network, exits=2, num_classes=4, input_size=SIZE)
    for (name, one), (_, other) in zip(network.named_modules(), twin.named_modules(), strict=True):
        plain = {k: v for k, v in vars(one).items() if k[0] != "_" and not isinstance(v, Tensor)}
        assert plain == {k: v for k, v in vars(other).items() if k in plain}, name
    for name, tensor in twin.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(network(x), twin(x))
        assert torch.allclose(model.eval()(x)[-1], twin.eval()(x), atol=1e-6)


def test_a_table_that_cannot_be_written_is_read_only(tmp_path: Path) -> None:
    class ReadOnly(Blocks):
        def between(self, h: Tensor) -> Tensor:
            return h * self.table

    np.arange(16, dtype=np.float32).tofile(tmp_path / "table")
    network = ReadOnly().eval()
    with pytest.warns(UserWarning, match="not writable"):
        network.table = torch.from_numpy(np.memmap(tmp_path / "table", np.float32, "r"))
    model, x = attach_exits(network, exits=2, num_classes=4, input_size=SIZE), torch.rand(2, *SIZE)
    assert torch.allclose(model.eval()(x)[-1], network(x), atol=1e-6)
