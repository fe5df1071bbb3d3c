"""Running batch-norm statistics of AnytimeNet on the digits: one row per use of a block, or one mixture for all its uses.

    python benchmarks/batch_norm.py [--seeds 0 1 2] [--epochs 8] [--out results/anytimenet_statistics/digits.json]

Accuracy and cross-entropy of each step on validation images. Training normalises by the batch, so both end with the same
weights; the output says whether they did.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import harness
import torch
from torch.nn import functional as F

import anytime
from anytime.analysis.curves import accuracy
from anytime.reporting.evaluation import images_of, trained_on
from anytime.training.config import parse
from anytime.training.launch import start_training

FLAGS = (
    *("--model=anytimenet", "--objective.weights=inverse_square", "--data=digits", "--data.batch_size=64"),
    *("--data.validation=0.25", "--progress=false"),
)


def measure(statistics: str, seed: int, epochs: int, folder: Path) -> tuple[anytime.AnytimeModel, list[float], list[float]]:
    """Trains one network; returns it, and accuracy and cross-entropy `[T]` on its validation images."""
    flags = [*FLAGS, f"--epochs={epochs}", f"--seed={seed}", f"--model.statistics={statistics}"]
    run = start_training(parse(flags), folder / f"{statistics}_seed{seed}")
    model = anytime.load(run)
    trace = anytime.record(model, images_of(trained_on(model, run=run), "validation"), progress=False, seconds=False)
    return model, accuracy(trace).tolist(), [F.cross_entropy(logits, trace.labels).item() for logits in trace.logits]


def main() -> None:
    """Prints a line per training and writes all as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each training")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "question": "running batch-norm statistics of blocks that run several times: one row per use, or one mixture",
        "dataset": "Digits, a quarter of the training images held out for validation",
        "recipe": f"anytime train {' '.join(FLAGS)}",
        "seeds": options.seeds,
        "epochs": options.epochs,
        **harness.environment("cpu"),
        "validation_accuracy": {},
        "validation_nll": {},
    }
    models: dict[str, list[anytime.AnytimeModel]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for statistics in ("per_use", "shared"):
            measured = [measure(statistics, seed, options.epochs, Path(folder)) for seed in options.seeds]
            models[statistics], accuracies, losses = map(list, zip(*measured, strict=True))
            results["validation_accuracy"][statistics], results["validation_nll"][statistics] = accuracies, losses
            for row in accuracies:
                print(statistics, *(f"{value:.1%}" for value in row))
    results["weights_equal"] = [
        all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in zip(*models.values(), strict=True)
    ]
    harness.write(options.out, results)


if __name__ == "__main__":
    main()
