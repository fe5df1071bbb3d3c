"""Requests under deadlines by the real clock: AnytimeNet on CIFAR-10 test images against the plain network.

    python benchmarks/deadlines.py [--requests 2000] [--load] [--out results/benchmarks/deadlines.json]

For each deadline of a sweep, every request is one image at batch 1. A request is a miss if its answer comes after the
deadline, or if there is none but the prior; a miss counts as wrong. Overshoot is how far after the deadline the answer came.
The plain network is the last answer from scratch (BASELINE's graph with these weights): one answer, which cannot be stopped.
`--load` keeps one core busy meanwhile, `--quantile` says which quantile of a step's time must fit.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any

import harness
import torch

import anytime
from anytime.allocator import keep_freed_memory
from anytime.data import create_data
from anytime.runtime import Predictor, Profile, profile

SIZE = (3, 32, 32)
BAR = 0.005  # miss rate, idle, for every deadline above the first step's p99


def burn(stop: Any) -> None:
    """Keeps one core busy."""
    while not stop.is_set():
        sum(range(10_000))


def serve(predictor: Predictor, images: torch.Tensor, labels: torch.Tensor, deadline: float) -> dict[str, Any]:
    """Answers every image within the deadline, one after the other."""
    steps, overshoot, right, misses = [], [], 0, 0
    for image, label in zip(images.split(1), labels.tolist(), strict=True):
        answer = predictor(image, deadline)
        missed = answer.missed or answer.step < 1
        misses += missed
        right += not missed and int(answer.label) == label
        steps.append(answer.step)
        overshoot.append(max(answer.elapsed - deadline, 0.0))
    ranked = sorted(overshoot)
    return {
        "deadline": deadline, "miss_rate": misses / len(images), "accuracy": right / len(images),
        "mean_step": statistics.mean(steps), "overshoot_p50": ranked[len(ranked) // 2],
        "overshoot_p99": ranked[int(0.99 * len(ranked))], "overshoot_max": ranked[-1],
    }  # fmt: skip


def plain(model: anytime.AnytimeModel, images: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, bool]]:
    """Seconds and correctness of the plain network's one answer to every image."""
    results = []
    with torch.inference_mode():
        for image, label in zip(images.split(1), labels.tolist(), strict=True):
            start = time.monotonic()
            answer = int(model(image, step=model.num_steps).argmax())
            results.append((time.monotonic() - start, answer == label))
    return results


def sweep(measured: Profile, points: int = 10) -> list[float]:
    """Deadlines from just above the first step's p99 to one and a half times the whole stream's."""
    batch = measured.at(1)
    low, high = 1.1 * batch.steps[0].p99, 1.5 * batch.reached[-1].p99
    return [low * (high / low) ** (k / (points - 1)) for k in range(points)]


def main() -> None:
    """Prints a line per deadline and writes them as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--requests", type=int, default=2000, help="requests per deadline")
    parser.add_argument("--load", action="store_true", help="keep one core busy")
    parser.add_argument("--quantile", default="p99", help="of a step's seconds")
    options = parser.parse_args()
    keep_freed_memory()
    model = anytime.load("anytimenet_cifar10")
    data = create_data("cifar10")
    data.setup("test")
    images, labels = (torch.cat(parts)[: options.requests] for parts in zip(*data.test_dataloader(), strict=True))
    measured = profile(model, SIZE, repeats=1000)
    stop = multiprocessing.Event()
    burner = multiprocessing.Process(target=burn, args=(stop,), daemon=True)
    if options.load:
        burner.start()
    predictor = Predictor(model, measured, quantile=options.quantile)
    once = plain(model, images, labels)
    rows = []
    for deadline in sweep(measured):
        row = serve(predictor, images, labels, deadline)
        row["plain_miss_rate"] = sum(seconds > deadline for seconds, _ in once) / len(once)
        row["plain_accuracy"] = sum(right and seconds <= deadline for seconds, right in once) / len(once)
        rows.append(row)
        print(
            f"deadline {1e3 * deadline:6.2f} ms  misses {row['miss_rate']:6.2%} (bar {BAR:.1%})  "
            f"accuracy {row['accuracy']:6.2%} at mean step {row['mean_step']:.2f}   "
            f"plain: misses {row['plain_miss_rate']:7.2%}  accuracy {row['plain_accuracy']:6.2%}   "
            f"overshoot max {1e3 * row['overshoot_max']:.2f} ms",
            flush=True,
        )
    stop.set()
    longest = max(step.p999 for step in measured.at(1).steps)
    print(f"longest step's p99.9: {1e3 * longest:.2f} ms")
    facts = {
        "requests": options.requests,
        "load": options.load,
        "quantile": options.quantile,
        "longest_step_p999": longest,
        "dataset": "CIFAR10 test",
    }
    harness.write(options.out, {"rows": rows, **facts, **harness.environment("cpu")})


if __name__ == "__main__":
    main()
