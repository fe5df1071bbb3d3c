"""How much of what stopping rules save is lost to images that were changed a little to delay the exits (DeepSloth's setting).

    python benchmarks/slowdown.py MODEL [MODEL ...] [--images 300] [--out results/slowdown/NAME.json]

A model is a run directory or the name of a pretrained one. Its test images are used from the first on: as many again as are
attacked choose the threshold of each rule that spends at most half of the MACs, the others are attacked.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import harness
import torch

import anytime
from anytime.analysis.slowdown import EPSILON, delayed, slowdown
from anytime.reporting.evaluation import trained_on
from anytime.stopping import Confidence, Entropy, MacBudget, Margin, Patience, Rule
from anytime.trace import Trace

BATCH = 50


def grid(trace: Trace) -> dict[str, list[Rule]]:
    """Candidates of each rule, from the most to the least cautious."""
    shares = [1 - share / 200 for share in range(200)]
    return {
        "confidence": [Confidence(share) for share in shares],
        "margin": [Margin(share) for share in shares],
        "entropy": [Entropy(2.3 * (1 - share)) for share in shares],
        "patience": [Patience(times) for times in range(trace.num_steps, 0, -1)],
        "MAC budget": [MacBudget(float(trace.macs[-1]) / 2)],
    }


def chosen(trace: Trace) -> dict[str, Rule]:
    """The most expensive candidate of each rule that spends at most half of the MACs of all steps."""
    rules: dict[str, Rule] = {}
    for name, candidates in grid(trace).items():
        for rule in candidates:
            rules[name] = rule
            if trace.macs[rule.stops(trace, trace.logits.softmax(2))].double().mean() <= trace.macs[-1] / 2:
                break
    return rules


def row(name: str, count: int, iterations: int) -> dict[str, Any]:
    """One model under each rule."""
    model = anytime.load(name).eval()
    data = trained_on(model)
    data.setup("test")
    split = data.split("test")
    parts = split[torch.arange(count)], split[torch.arange(count, 2 * count)]
    (calibration, labels), (images, targets) = ((part.images.float() / 255, part.targets) for part in parts)

    def recorded(x: torch.Tensor, y: torch.Tensor) -> Trace:
        batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
        return anytime.record(model, batches, seconds=False, progress=False)

    rules = chosen(recorded(calibration, labels))
    clean = recorded(images, targets)
    attacked = recorded(torch.cat([delayed(model, x, EPSILON, iterations) for x in images.split(BATCH)]), targets)
    outcomes = {key: slowdown(clean, attacked, rule) for key, rule in rules.items()}
    return {
        "model": name,
        "dataset": type(data).__name__,
        "images": len(images),
        "epsilon": EPSILON,
        "iterations": iterations,
        "rules": {key: {"rule": repr(rules[key]), **asdict(o), "lost": o.lost} for key, o in outcomes.items()},
    }


def main() -> None:
    """Prints a line per model and rule and writes all as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run directory or the name of a pretrained model")
    parser.add_argument("--images", type=int, default=300, help="how many test images are attacked")
    parser.add_argument("--iterations", type=int, default=20, help="gradient steps for each image")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(row(name, options.images, options.iterations))
        for rule, found in rows[-1]["rules"].items():
            saved = f"saves {found['saved']:.0%}, attacked {found['saved_attacked']:.0%}"
            print(f"{name}, {rule}: {saved}, {found['lost']:.0%} lost")
    harness.write(options.out, {**harness.environment("cpu"), "rows": rows})


if __name__ == "__main__":
    main()
