"""The last answer of trained networks on images of the training, validation and test set.

    python benchmarks/last_answers.py RUN [RUN ...] [--images 5000] [--out results/iuzzolino2021/last_answers_cifar10_cpu.json]

Accuracy and cross-entropy on the first training images, without augmentation, and on all validation and test images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor
from torch.nn import functional as F

import anytime
from anytime.reporting.evaluation import trained_on
from anytime.training.rundir import read_run


def measure(model: anytime.AnytimeModel, loader: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracy and cross-entropy of the last answer."""
    with torch.inference_mode():
        answers = [(model(images)[-1].float(), labels) for images, labels in loader]
    logits, labels = map(torch.cat, zip(*answers, strict=True))
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return {"images": len(labels), "accuracy": accuracy, "loss": F.cross_entropy(logits, labels).item()}


def row(run: Path, images: int) -> dict[str, Any]:
    """The recipe of a run, as far as the runs differ, and what its last answer is worth."""
    config, state = read_run(run)
    model = anytime.load(run).eval()
    data = trained_on(model, run=run)
    data.setup()
    train = data.split("train")
    parts = {"train": train[torch.arange(min(images, len(train)))]}
    parts |= {part: data.split(part) for part in ("validation", "test")}
    arguments = config["model"]["init_args"]
    return {
        "run": run.name,
        "objective": config["objective"],
        **{key: arguments.get(key) for key in ("heads", "pool")},
        "noise": config["data"]["init_args"]["noise"],
        "epochs": config["epochs"],
        "seed": config["seed"],
        "trained_on": state["hardware"],
        **{name: measure(model, data.loader(part, train=False)) for name, part in parts.items()},
    }


def main() -> None:
    """Prints a line per run and writes all as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--images", type=int, default=5000, help="how many training images")
    options = parser.parse_args()
    rows = []
    for run in options.runs:
        rows.append(row(run, options.images))
        print(run.name, *(f"{part} {rows[-1][part]['accuracy']:.2%}" for part in ("train", "validation", "test")))
    harness.write(options.out, {**harness.environment("cpu"), "rows": rows})


if __name__ == "__main__":
    main()
