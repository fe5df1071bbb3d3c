"""A fair comparison of two methods
================================

Two ways to weight the losses of the same network, over several seeds: the difference of each answer, with its interval.

python examples/fair_comparison.py [--seeds 5] [--epochs 6]

Both methods start from the same weights and see the same images in the same order, so each seed gives a pair. The interval
over seeds says what another training would give. The interval over images says what other images would give for them.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import anytime
from anytime.analysis import curves
from anytime.analysis.paired import paired
from anytime.analysis.statistics import interval
from anytime.objectives import Weighted

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=5, help="trainings of each method, at least 2 (default: 5)")
parser.add_argument("--epochs", type=int, default=6, help="passes over the images (default: 6)")
parser.add_argument(
    "--out", type=Path, default=Path("runs/fair_comparison.png"), help="the figure (default: runs/fair_comparison.png)"
)
options = parser.parse_args()

METHODS = {"equal weights": Weighted("constant", normalize="sum"), "sieve": Weighted("sieve", normalize="sum")}
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16  # [1797, 1, 8, 8] in [0, 1]
labels = torch.from_numpy(digits.target).long()
train, test = slice(0, 900), slice(900, None)


def trained(objective: Weighted, seed: int) -> anytime.Trace:
    """The answers to the test images after one training; all that is random depends only on the seed."""
    torch.manual_seed(seed)
    model = anytime.create_model("ann", in_channels=1, units=2, width=8)
    model.set_normalization(images[train].mean((0, 2, 3)).tolist(), images[train].std((0, 2, 3)).tolist())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = [order for _ in range(options.epochs) for order in torch.randperm(900).split(50)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=len(batches))
    for chosen in batches:
        optimizer.zero_grad()
        objective(model(images[chosen]), labels[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
    return anytime.record(model.eval(), [(images[test], labels[test])], progress=False)


traces = {name: [trained(objective, seed) for seed in range(options.seeds)] for name, objective in METHODS.items()}
accuracies = {name: torch.stack([curves.accuracy(trace) for trace in of_seeds]) for name, of_seeds in traces.items()}
one, other = METHODS
macs = traces[one][0].macs.tolist()
print(f"accuracy in per cent over {options.seeds} seeds, mean and half width of the 95 % interval")
differences = []
for t, cost in enumerate(macs):
    (a, da), (b, db) = (interval((100 * accuracies[name][:, t]).tolist()) for name in METHODS)
    differences.append(interval((100 * (accuracies[one] - accuracies[other])[:, t]).tolist()))
    by_seed = "{:+.1f} ± {:.1f}".format(*differences[-1])
    print(
        f"answer {t + 1}, {cost / 1e6:.2f} M MACs: {one} {a:.1f} ± {da:.1f}, {other} {b:.1f} ± {db:.1f}, difference {by_seed}"
    )

result = paired(traces[one][0], traces[other][0], budget=macs[-1])
print(
    f"seed 0, last answer, over images: difference {100 * result.difference:+.1f}, between {100 * result.low:+.1f} and",
    end=" ",
)
print(f"{100 * result.high:+.1f} (95 %), p = {result.p_value:.2g} (McNemar)")

figure = Figure(figsize=(8, 3), layout="constrained")
left, right = figure.subplots(1, 2)
for name, values in accuracies.items():
    centre, half = zip(*(interval((100 * column).tolist()) for column in values.T), strict=True)
    left.errorbar([cost / 1e6 for cost in macs], centre, half, marker="o", capsize=3, label=name)
right.errorbar([cost / 1e6 for cost in macs], *zip(*differences, strict=True), marker="o", capsize=3, color="black")
right.axhline(0, color="grey", linestyle="--")
left.set(xlabel="million multiply-adds", ylabel="accuracy in %")
right.set(xlabel="million multiply-adds", ylabel=f"{one} - {other}, points")
figure.legend(loc="outside upper left", ncols=2)

options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/fair_comparison.png'
