"""`anytime demo`: the whole way once, on data that come with the library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anytime.commands.parser import Parser
from anytime.data import create_data
from anytime.pretrained import load
from anytime.reporting import plots
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.evaluation import write_results
from anytime.reporting.report import Section
from anytime.reporting.tables import format_table
from anytime.runtime import Predictor, profile
from anytime.trace import Trace, record
from anytime.training.config import Config, parse
from anytime.training.launch import start_training
from anytime.training.rundir import read_run

COLUMNS = tuple(
    column
    for column in STEP_COLUMNS
    if column.key in ("step", "macs", "share_of_macs", "accuracy", "confidence", "true_class_probability", "seconds")
)


def run(arguments: Sequence[str]) -> int:
    """Train AnytimeNet on handwritten digits in about a minute, and watch it answer under deadlines."""
    parser = Parser(
        "demo",
        "Train a small AnytimeNet on the embedded handwritten digits (about a minute on 2 cores), measure it,\n"
        "write a report, and answer held-out images under growing deadlines. Needs no download.",
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo"), metavar="DIR", help="where to write (default: runs/demo)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR even if it is not an earlier demo")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    run_demo(options.run, options.epochs, options.overwrite)
    return 0


def recipe(epochs: int) -> list[str]:
    """The flags of `anytime train` that the demo stands for."""
    return f"--model anytimenet --data digits --data.batch_size 64 --epochs {epochs} --validate_every {epochs}".split()


def run_demo(run: Path, epochs: int, overwrite: bool = False) -> None:
    """Trains, measures, reports, answers under deadlines; a former demo in `run` is replaced, other runs by `overwrite`."""
    flags = recipe(epochs)
    print(f"1. training: anytime train {' '.join(flags)}", flush=True)
    config = parse(flags)
    start_training(config, run, overwrite or _former_demo(run, config))
    model = load(run)
    data = create_data("digits")
    data.setup("test")
    meta = {"dataset": "Digits", "part": "test", "recipe": model.info.recipe}
    trace = record(model, data.test_dataloader(), meta=meta)
    images = torch.cat([images for images, _ in data.test_dataloader()])
    shown = _telling(trace)
    result = write_results(trace, run, "test", [_growing(trace, images, shown)])
    print(f"\n2. every step on {trace.num_samples} held-out images (cumulative; {trace.meta['hardware']})")
    print(format_table(result.numbers["steps"], COLUMNS))
    print("   confidence = mean max softmax; p(correct class) = the measure of Kim et al. (2020), eq. 5")
    print("\n3. the same images under growing deadlines")
    _answer(model, trace, images, shown)
    print(
        f"\nwrote {result.report} (open it in a browser), {run}/figures/\n\nnext:\n"
        f"  anytime evaluate {run}\n"
        f"  anytime train --model anytimenet_baseline --data digits --epochs {epochs}\n"
        f"  anytime evaluate runs/anytimenet_baseline_Digits\n"
        f"  anytime compare {run} runs/anytimenet_baseline_Digits\n"
        "  anytime models\n"
        "  anytime predict anytimenet_cifar10 YOUR_PHOTO.png --deadline 5ms"
    )


def _former_demo(run: Path, config: Config) -> bool:
    try:
        former, _ = read_run(run)
    except (OSError, ValueError):
        return False
    return former | {key: config[key] for key in ("epochs", "validate_every")} == config


def _telling(trace: Trace, count: int = 3) -> list[int]:
    """Images whose answer takes the longest to become right, and is right at the end: there is something to see."""
    right = trace.logits.argmax(2) == trace.labels
    settled = right.flip(0).long().cumprod(0).sum(0)  # steps, counted from the end, over which the answer is right
    settled = settled.where(settled > 0, trace.num_steps + 1)
    return settled.argsort(stable=True)[:count].tolist()


def _growing(trace: Trace, images: torch.Tensor, shown: list[int]) -> Section:
    seconds: Any = trace.seconds
    figures = {
        f"Image {index}, a {trace.class_names[int(trace.labels[index])]}: probabilities after each step": plots.growing_answer(
            images[index],
            trace.logits[:, index].softmax(1),
            trace.class_names,
            macs=trace.macs,
            seconds=seconds,
            label=int(trace.labels[index]),
        )
        for index in shown
    }
    return Section("Answers that grow", "Held-out images whose answer became right late, and stayed so.", figures=figures)


def _answer(model: Any, trace: Trace, images: torch.Tensor, shown: list[int]) -> None:
    measured = profile(model, images, repeats=50)
    predictor = Predictor(model, measured, quantile="p90")
    reached = [latency.p90 for latency in measured.at(1).reached]
    deadlines = [0.5 * reached[0], 2 * reached[0], *(1.3 * seconds for seconds in reached[2::2])]
    for index in shown:
        print(f"   image {index}, a {trace.class_names[int(trace.labels[index])]}:")
        for deadline in deadlines:
            answer = predictor(images[index : index + 1], deadline)
            print(f"     deadline {deadline * 1e3:6.2f} ms: ", end="")
            if answer.step < 1:
                print("no step fits, so the answer is the prior: every digit is as likely")
                continue
            name, p = trace.class_names[int(answer.label)], float(answer.confidence)
            missed = "  (missed: the machine was slower than measured)" if answer.missed else ""
            print(f"step {answer.step}/{model.num_steps} after {answer.elapsed * 1e3:5.2f} ms: {name} ({p:.0%}){missed}")
