"""What a tensor of zeros hides when exits are attached is found: the check gives every tensor ordinary values meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import anytime


class Gated(nn.Module):
    """Two layers, and a gate that begins at `start` and lets nothing of the second one through as long as that is zero."""

    def __init__(self, start: float, kind: str) -> None:
        super().__init__()
        gate = torch.full((8, 1, 1), start)
        if kind == "parameter":
            self.gate = nn.Parameter(gate)
        elif kind == "frozen":
            self.gate = nn.Parameter(gate, requires_grad=False)
        else:
            self.register_buffer("gate", gate)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.fc((x + self.gate * self.second(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["buffer", "parameter", "frozen"])
@pytest.mark.parametrize("start", [0.0, 1e-6, -1e-6])
def test_stages_that_forget_what_a_closed_gate_hides_are_found(kind: str, start: float) -> None:
    network = Gated(start, kind)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stages = [lambda net, x: net.norm(net.first(x)).relu(), lambda net, x: net.fc(x.mean((2, 3)))]
    with pytest.raises(ValueError, match="do not give what Gated gives"):
        anytime.attach_exits(network, stages=stages, input_size=8)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Logarithm(nn.Module):
    """Fails, or gives no number, with a shift other than its own."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.raises = raises
        self.register_buffer("shift", torch.zeros(()))
        self.first, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.raises and float(self.shift) != 0:
            raise RuntimeError("another shift")
        return self.fc(self.first(x).mean((2, 3))) + torch.log(0.1 - self.shift)


@pytest.mark.parametrize("raises", [True, False])
def test_a_network_that_takes_only_weights_like_its_own_is_checked_with_them(raises: bool) -> None:
    network = Logarithm(raises).eval()
    right = [lambda net, x: net.first(x), lambda net, x: net.fc(x.mean((2, 3))) + torch.log(0.1 - net.shift)]
    model = anytime.attach_exits(network, stages=right, input_size=8).eval()
    assert float(network.shift) == 0
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x)[-1], network(x))
    wrong = [right[0], lambda net, x: net.fc(x.mean((2, 3)))]
    with pytest.raises(ValueError, match="do not give what Logarithm gives"):
        anytime.attach_exits(network, stages=wrong, input_size=8)
