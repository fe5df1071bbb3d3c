"""Exits on your own backbone
==========================

A custom network becomes an anytime network: exits on its stages, the same weights, an answer at a deadline.

python examples/your_own_backbone.py
"""

import torch
from torch import nn

import anytime


class Mine(nn.Module):
    """A small classifier; any that torch.fx can trace works."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.top = nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU())
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.top(self.middle(self.stem(x))).mean((2, 3)))


network = Mine()  # trained, in real life
model = anytime.attach_exits(network, exits=2, num_classes=10, input_size=64).eval()
print("exits after", model.exits, "and at the end; MACs", anytime.step_macs(model, 64))

image = torch.rand(1, 3, 64, 64)
assert torch.equal(model(image)[-1], network(image))  # the last answer is the network's own

predictor = anytime.Predictor(model, anytime.profile(model, image, batch_sizes=[1], repeats=50))
for deadline in ("5ms", "50ms"):
    answer = predictor(image, deadline=deadline)
    print(f"within {deadline}: step {answer.step} of {model.num_steps} says class {int(answer.label)}")
