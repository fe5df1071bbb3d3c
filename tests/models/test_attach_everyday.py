"""What people do every day: half precision, configurations from files, other classifiers, encoders of torch, copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytime.models.surgery.attach.build import attach_exits
from anytime.runtime import Predictor, profile

SIZE = (3, 8, 8)


class Net(nn.Module):
    """Three layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x)).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(("kind", "before"), [(torch.bfloat16, True), (torch.float16, False)])
def test_a_network_in_another_precision_answers(kind: torch.dtype, before: bool) -> None:
    torch.manual_seed(0)
    network = Net().eval()
    model = attach_exits(network.to(kind) if before else network, exits=3, input_size=SIZE).eval()
    model.set_normalization([0.4] * 3, [0.3] * 3)
    network.to(kind)
    x = torch.rand(2, *SIZE)
    last = list(model.stream(x))[-1]
    assert last.dtype is kind
    assert torch.equal(last, network(((x - 0.4) / 0.3).to(kind)))
    assert torch.equal(model(x), model.head_answers(model.trunk_features(x)))
    images = x.to(kind)[:1]
    answer = Predictor(model, profile(model, images, repeats=2))(images)
    torch.testing.assert_close(answer.outputs, model(images)[-1].float())
