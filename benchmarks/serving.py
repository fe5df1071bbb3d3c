"""Scheduling policies of the server under overload, and what its requests cost.

    python benchmarks/serving.py record OUT        step times and answers of the packaged model, one thread
    python benchmarks/serving.py virtual RECORDED  policies under a virtual clock [--out FILE] [--figure FILE]
    python benchmarks/serving.py real RECORDED     the worker itself, one thread, policies in turn [--repeats 5] [--out FILE]

A load of 1 is one request in the time of a full answer at batch 1; arrivals are Poisson, deadlines multiples of that time. A
request without an answer in time counts as wrong. The model was trained on all training images, so the images are test images:
5,000 to 9,999, on which the policies were developed, are recorded by default, and 0 to 4,999 with `--images 0 5000`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

import anytime
from anytime.data import create_data
from anytime.server.costs import measure
from anytime.server.scheduler import POLICIES, Batch, Costs, Limits
from anytime.server.simulation import poisson, simulate, summary
from anytime.server.worker import Served, Worker
from anytime.support.allocator import keep_freed_memory

MODEL, SIZE, MAX_BATCH = "anytimenet_cifar10", (3, 32, 32), 16
LOADS = (0.5, 1.0, 2.0, 4.0)
DEADLINES = {"equal": (4.0,), "mixed": (1.5, 4.0, 12.0)}  # in times of a full answer
RESERVE = 1.1  # what the scheduler adds to the measured seconds
MARGIN = 0.05  # of a full answer's time


def record(first: int, last: int) -> dict[str, Any]:
    """Seconds of all batches in CPU time of one thread, and confidence and correctness of the answers to test images."""
    keep_freed_memory()
    torch.set_num_threads(1)
    model = anytime.load(MODEL).eval()
    costs = measure(model, SIZE, MAX_BATCH, repeats=20, clock=time.thread_time)
    data = create_data("cifar10")
    data.setup("test")
    images, labels = (torch.cat(parts)[first:last] for parts in zip(*data.test_dataloader(), strict=True))
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in images.split(250)], 1)
    confidence, predicted = logits.softmax(2).max(2)
    return {
        "model": MODEL, "dataset": f"CIFAR-10 test images {first} to {last - 1}",
        "jumps": costs.jumps, "steps": costs.steps, "clock": "CPU seconds of one thread",
        "confidence": [[round(value, 4) for value in row] for row in confidence.tolist()],
        "right": [[int(value) for value in row] for row in (predicted == labels).tolist()],
        **harness.environment("cpu"),
    }  # fmt: skip


def recorded_costs(recorded: dict[str, Any]) -> Costs:
    """The seconds of all batches."""
    tables = ({int(size): seconds for size, seconds in recorded[key].items()} for key in ("jumps", "steps"))
    return Costs(*tables)


def noisy(costs: Costs, seed: int) -> Callable[[Batch], float]:
    """What a batch takes: the measured seconds, and up to some 10 % more."""
    source = random.Random(seed)
    return lambda batch: costs.run(batch.first, batch.last, len(batch.keys)) * (1 + 0.04 * abs(source.gauss(0, 1)))


def virtual(
    recorded: dict[str, Any], policy: str, load: float, multiples: Sequence[float], requests: int, seed: int = 0
) -> dict[str, float]:
    """Shares in time and right of a policy under a load, with deadlines of some multiples of a full answer's time."""
    costs = recorded_costs(recorded)
    full = costs.run(0, costs.num_steps, 1)
    calls = poisson(requests, load / full, [full * multiple for multiple in multiples], len(recorded["right"][0]), seed)
    planned = Costs(costs.jumps, costs.steps, RESERVE)
    limits = Limits(MAX_BATCH, MARGIN * full)
    outcomes = simulate(calls, recorded["confidence"], planned, noisy(costs, seed + 1), limits, policy)
    right = [o.step > 0 and bool(recorded["right"][o.step - 1][c.image]) for o, c in zip(outcomes, calls, strict=True)]
    return summary(outcomes, right)


def real(
    model: anytime.AnytimeModel,
    images: Tensor,
    right: Sequence[Sequence[int]],
    policy: str,
    load: float,
    requests: int,
    seed: int,
) -> dict[str, float]:
    """Shares in time and right of a worker on the real clock, in this process; deadlines count from the scheduled arrival.

    The costs and the load are measured just before. An answer counts if it has been handed out by the deadline.
    """
    costs = measure(model, SIZE, MAX_BATCH, repeats=5)
    full = costs.run(0, costs.num_steps, 1)
    macs = [0] * model.num_steps, [0] * model.num_steps
    worker = Worker(model, costs, macs, Limits(MAX_BATCH, MARGIN * full), policy)
    calls, start = poisson(requests, load / full, [full * DEADLINES["equal"][0]], len(images), seed), time.monotonic() + 0.05
    told: list[list[tuple[float, int]]] = [[] for _ in calls]  # when, and the step

    def note(number: int, answer: Served | None, reason: str) -> None:
        told[number].append((time.monotonic() - start, answer.step if answer else 0))

    worker.start()
    for number, call in enumerate(calls):
        time.sleep(max(start + call.arrival - time.monotonic(), 0.0))
        due = start + call.arrival + call.deadline
        worker.submit(images[call.image][None], start + call.arrival, due, [partial(note, number)])
    while worker.live:
        time.sleep(full)
    worker.close()
    steps = [
        max((step for at, step in each if at <= call.arrival + call.deadline), default=0)
        for each, call in zip(told, calls, strict=True)
    ]
    good = sum(step > 0 and right[step - 1][call.image] for step, call in zip(steps, calls, strict=True))
    in_time = sum(step > 0 for step in steps)
    return {"in_time": in_time / requests, "accuracy": good / requests, "step": sum(steps) / requests, "full_seconds": full}


def in_turn(recorded: dict[str, Any], requests: int, repeats: int) -> list[dict[str, Any]]:
    """The median over `repeats` runs of each policy and load, policies alternating."""
    keep_freed_memory()
    torch.set_num_threads(1)
    model = anytime.load(MODEL).eval()
    first, last = map(int, re.findall(r"\d{1,}", recorded["dataset"].partition("images")[2]))
    data = create_data("cifar10")
    data.setup("test")
    images = torch.cat([part for part, _ in data.test_dataloader()])[first : last + 1]
    rows = []
    for load in LOADS:
        runs: dict[str, list[dict[str, float]]] = {policy: [] for policy in POLICIES}
        for repeat in range(repeats):
            for policy, done in runs.items():
                done.append(real(model, images, recorded["right"], policy, load, requests, repeat))
        for policy, done in runs.items():
            medians = {key: statistics.median(run[key] for run in done) for key in done[0]}
            rows.append({"deadlines": "equal", "load": load, "policy": policy, "repeats": repeats, **medians})
            print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['deadlines']:5} deadlines  load {row['load']:3.1f}  {row['policy']:8}  in time {row['in_time']:7.2%}  accuracy "
        f"{row['accuracy']:6.2%}  mean step {row['step']:.2f}"
    )


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy and share in time over load, a curve for each policy, a column for each kind of deadline."""
    import matplotlib.pyplot as plt

    kinds = [*dict.fromkeys(row["deadlines"] for row in rows)]
    figure, axes = plt.subplots(2, len(kinds), figsize=(4.5 * len(kinds), 6), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        for row, (key, label) in enumerate({"accuracy": "accuracy over all requests", "in_time": "answered in time"}.items()):
            for policy in dict.fromkeys(each["policy"] for each in rows):
                points = [(r["load"], 100 * r[key]) for r in rows if (r["policy"], r["deadlines"]) == (policy, kind)]
                axes[row, column].plot(*zip(*points, strict=True), marker="o", label=policy)
            axes[row, column].set(ylabel=f"{label} (%)", ylim=(0, 102))
        axes[0, column].set(title=f"{kind} deadlines", xscale="log")
        axes[1, column].set(xlabel="load (full answers at batch 1)", xticks=LOADS, xticklabels=LOADS)
        axes[1, column].minorticks_off()
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    """Records, or prints a line per policy, load and kind of deadline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "virtual", "real"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, nargs=2, default=(5000, 10_000), metavar=("FIRST", "STOP"))
    parser.add_argument("--requests", type=int, default=5000, help="requests of each run (default: 5000)")
    parser.add_argument("--repeats", type=int, default=5, help="real: runs of each policy and load (default: 5)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--figure", type=Path, help="figure of the results")
    options = parser.parse_args()
    if options.what == "record":
        options.file.write_text(json.dumps({"command": harness.command(), **record(*options.images)}) + "\n", encoding="utf-8")
        return
    recorded = json.loads(options.file.read_text(encoding="utf-8"))
    if options.what == "real":
        rows = in_turn(recorded, options.requests, options.repeats)
    else:
        rows = []
        for kind, load, policy in itertools.product(DEADLINES, LOADS, POLICIES):
            row = virtual(recorded, policy, load, DEADLINES[kind], options.requests)
            rows.append({"deadlines": kind, "load": load, "policy": policy, **row})
            print(_line(rows[-1]), flush=True)
    facts = {key: recorded[key] for key in ("model", "dataset", "clock", "hardware", "torch", "date")}
    harness.write(options.out, {"rows": rows, "requests": options.requests, "recorded": facts, **harness.environment("cpu")})
    if options.figure is not None:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
