"""Maps that improve until the deadline
====================================

A segmentation network whose map improves until the deadline: coarse after the first step, with every pixel after the last.

python examples/segmentation.py [--steps 120] [--out runs/segmentation.png]

The pictures are made here: discs and squares in noise. Training is a plain PyTorch loop of a few seconds on a CPU.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import anytime
from anytime.objectives import Weighted, pixel_cross_entropy

SIZE = 32
CLASSES = ("background", "disc", "square")


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images `[N, 1, 32, 32]` in [0, 1] and the class of each pixel, int64 `[N, 32, 32]`."""
    ys, xs = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for kind in (1, 2, 1, 2):
        y, x, radius = (
            low + (high - low) * torch.rand(count, 1, 1, generator=generator) for low, high in ((3, 29), (3, 29), (3, 6))
        )
        dy, dx = ys - y, xs - x
        inside = (
            dy.square() + dx.square() < radius.square() if kind == 1 else torch.maximum(dy.abs(), dx.abs()) < 0.85 * radius
        )
        classes[inside] = kind
    images = torch.tensor([0.3, 0.75, 0.55])[classes][:, None]
    return (images + 0.15 * torch.randn(images.shape, generator=generator)).clamp(0, 1), classes


class CoarseToFine(anytime.AnytimeModel):
    """Step t sees the image at 1/8, 1/4, 1/2 and then full resolution, beside the features of the step before."""

    num_steps = 4

    def __init__(self, num_classes: int = len(CLASSES), width: int = 12) -> None:
        super().__init__(num_classes, in_channels=1)
        self.info.task = "dense"  # answers are maps [B, K, H, W]; their channels are classes
        self.convs = nn.ModuleList()
        for t in range(self.num_steps):
            given = 1 if t == 0 else 1 + width
            layers = [nn.Conv2d(given, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            self.convs.append(nn.Sequential(*layers))
        self.heads = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in range(self.num_steps))

    def initial_state(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        self.check_input(x, smallest=8)
        return self.normalize(x), x[:, :0], 0  # the image, no features yet, steps done

    def step(self, state: tuple[Tensor, Tensor, int]) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
        image, features, t = state
        size = [side >> (self.num_steps - 1 - t) for side in image.shape[2:]]
        seen = F.adaptive_avg_pool2d(image, size)
        if t:
            seen = torch.cat([seen, F.interpolate(features, size)], 1)
        features = self.convs[t](seen)
        maps = F.interpolate(self.heads[t](features), image.shape[2:], mode="bilinear")
        return maps, (image, features, t + 1)


def mean_overlap(maps: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of discs and of squares, averaged, `[T]`: all background gives 0, the truth 1."""
    each = []
    for kind in range(1, len(CLASSES)):
        found, there = maps == kind, truth == kind
        each.append((found & there).sum((1, 2, 3)) / (found | there).sum((1, 2, 3)))
    return torch.stack(each).double().mean(0)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=120, help="training steps (default: 120)")
parser.add_argument(
    "--out", type=Path, default=Path("runs/segmentation.png"), help="the figure (default: runs/segmentation.png)"
)
options = parser.parse_args()

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
model = CoarseToFine()
objective = Weighted("constant", loss=pixel_cross_entropy)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
model.train()
for _ in range(options.steps):
    images, classes = pictures(8, generator)
    optimizer.zero_grad()
    objective(model(images), classes).backward()
    optimizer.step()

trace = anytime.record(model.eval(), [pictures(50, generator) for _ in range(2)], class_names=CLASSES, progress=False)
maps, truth = trace.outputs.argmax(2), trace.targets
right = (maps == truth).double().mean((1, 2, 3))
overlaps = mean_overlap(maps, truth)
print(f"100 new pictures, of which {(truth == 0).double().mean():.1%} is background:")
for t, (macs, share, overlap) in enumerate(zip(trace.macs.tolist(), right.tolist(), overlaps.tolist(), strict=True), 1):
    print(f"step {t}: {macs / 1e6:5.2f} M multiply-adds, {share:.1%} of the pixels right, figures overlap by {overlap:.2f}")
if overlaps[-1] < 0.5 or (overlaps.diff() <= 0).any():
    print("these maps do not improve at every step: train longer, with more --steps")

image, classes = pictures(1, generator)
profile = anytime.profile(model, image, repeats=30)
predictor = anytime.Predictor(model, profile, quantile="p50")
budgets = [2 * reached.p50 + 2e-4 for reached in profile.at(1).reached]  # for one step, two, three, all
answers = [predictor(image, deadline=budget) for budget in budgets]
for budget, answer in zip(budgets, answers, strict=True):
    late = " (late: the processor was busy with something else)" if answer.missed else ""
    what = f"the map of step {answer.step}" if answer.step > 0 else "no map yet"
    print(f"deadline {budget * 1e3:.2f} ms: {what}, in {answer.elapsed * 1e3:.2f} ms{late}")

figure = Figure(figsize=(2 * (2 + len(answers)), 2.3), layout="constrained")
panels = figure.subplots(1, 2 + len(answers))
panels[0].imshow(image[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
panels[0].set_title("image", fontsize=9)
for axes, budget, answer in zip(panels[1:], budgets, answers, strict=False):
    shown = answer.outputs[0].argmax(0) if answer.step > 0 else torch.zeros(SIZE, SIZE)
    axes.imshow(shown.numpy(), vmin=0, vmax=len(CLASSES) - 1)
    axes.set_title(f"{budget * 1e3:.1f} ms: step {answer.step}", fontsize=9)
panels[-1].imshow(classes[0].numpy(), vmin=0, vmax=len(CLASSES) - 1)
panels[-1].set_title("truth", fontsize=9)
for axes in panels:
    axes.set_axis_off()
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/segmentation.png'
