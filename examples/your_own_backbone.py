"""Exits on your own backbone
==========================

A custom network becomes an anytime network: exits on its stages, the same weights, an answer at a deadline.

python examples/your_own_backbone.py
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import anytime

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--out", type=Path, default=Path("runs/your_own_backbone.png"), help="the figure (default: runs/your_own_backbone.png)"
)
options = parser.parse_args()


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


torch.set_num_threads(1)  # a second thread would wait for whichever core is taken away
network = Mine()  # trained, in real life
model = anytime.attach_exits(network, exits=2, num_classes=10, input_size=64).eval()
print("exits after", model.exits, "and at the end; MACs", anytime.step_macs(model, 64))

image = torch.rand(1, 3, 64, 64)
assert torch.equal(model(image)[-1], network(image))  # the last answer is the network's own

profile = anytime.profile(model, image, batch_sizes=[1], repeats=200)
predictor = anytime.Predictor(model, profile)
whole = profile.at(1).reached[-1].p99  # seconds until the last answer, but for one run of a hundred
budgets = [whole * share for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)]
predictor(image)  # the first call is slower
answers = [predictor(image, deadline=budget) for budget in budgets]
for budget, answer in zip(budgets, answers, strict=True):
    what = f"step {answer.step} of {model.num_steps} says class {int(answer.label)}" if answer.step > 0 else "no step fits"
    print(f"within {1e3 * budget:.2f} ms: {what}, after {1e3 * answer.elapsed:.2f} ms")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.add_subplot(xlabel="deadline in ms", ylabel="ms until the answer")
axes.plot([1e3 * b for b in budgets], [1e3 * b for b in budgets], "--", color="grey", label="the deadline")
for step in (-1, *range(1, model.num_steps + 1)):
    there = [(1e3 * b, 1e3 * a.elapsed) for b, a in zip(budgets, answers, strict=True) if a.step == step]
    if there:
        axes.plot(*zip(*there, strict=True), "o", label=f"step {step}" if step > 0 else "the prior")
figure.legend(loc="outside upper right", ncols=5)

options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/your_own_backbone.png'
