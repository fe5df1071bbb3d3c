"""Train a small AnytimeNet on the embedded handwritten digits (about a minute on 2 cores), measure it,
write a report, and answer held-out images under growing deadlines. Needs no download. A second demo uses the trained model of
the first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from anytime.commands.parser import Parser
from anytime.data import create_data
from anytime.model import AnytimeModel
from anytime.pretrained import load
from anytime.reporting import plots
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.evaluation import write_results
from anytime.reporting.report import Section
from anytime.reporting.tables import format_table
from anytime.runtime import Predictor, profile
from anytime.support.files import atomic_write
from anytime.support.folders import PAGE
from anytime.support.locks import only_writer
from anytime.support.owned import check_own
from anytime.support.text import printable
from anytime.trace import Trace, record
from anytime.training.config import Config, parse
from anytime.training.launch import resume_training, start_training
from anytime.training.rundir import read_run

SHOWN = ("step", "macs", "share_of_macs", "accuracy", "confidence", "true_class_probability", "seconds")
COLUMNS = tuple(column for column in STEP_COLUMNS if column.key in SHOWN)


def run(arguments: Sequence[str]) -> int:
    parser = Parser("demo", __doc__)
    parser.add_argument("--run", type=Path, default="runs/demo", metavar="DIR", help="where to write (default: runs/demo)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    parser.add_argument("--overwrite", action="store_true", help="train again even if DIR holds a run, and replace it")
    options = parser.parse_args(arguments)
    folder, epochs = options.run, options.epochs
    if epochs < 1:
        parser.error(f"--epochs must be at least 1, got {epochs}")
    flags = f"--model anytimenet --data digits --data.batch_size 64 --epochs {epochs} --validate_every {epochs}"
    print(f"1. training: anytime train {flags}", flush=True)
    config = parse(flags.split())
    earlier = "" if options.overwrite else _earlier(folder, config)
    if earlier == "finished":
        print(printable(f"   an earlier demo has done that in {folder}; --overwrite trains again"), flush=True)
    elif earlier:
        resume_training(folder)
    else:
        start_training(config, folder, options.overwrite)
    model = load(folder)
    data = create_data("digits")
    data.setup("test")
    meta = {"dataset": "Digits", "part": "test", "recipe": model.info.recipe}
    trace = record(model, data.test_dataloader(), meta=meta)
    images = torch.cat([images for images, _ in data.test_dataloader()])
    shown = _latest_correct(trace)
    with only_writer(folder, "a demo"):
        result = write_results(trace, folder, "test", [_growing_answers(trace, images, shown)])
    print(f"\n2. every step on {trace.num_samples} held-out images (cumulative; {trace.meta['hardware']})")
    print(format_table(result.numbers["steps"], COLUMNS))
    print("   confidence = mean max softmax; p(correct class) = the measure of Kim et al. (2020), eq. 5")
    print("\n3. the same images under growing deadlines")
    _answer_under_deadlines(model, trace, images, shown)
    print(f"\nwrote {result.report} (open it in a browser), {folder}/figures/", flush=True)
    page = _live_page(model, folder)
    print(
        f"\nnext:\n{page}"
        f"  anytime evaluate {folder}\n"
        f"  anytime train --model anytimenet_baseline --data digits --epochs {epochs}\n"
        f"  anytime evaluate runs/anytimenet_baseline_Digits\n"
        f"  anytime compare {folder} runs/anytimenet_baseline_Digits\n"
        "  anytime models\n"
        "  anytime predict fast_cifar10 YOUR_PHOTO.png --deadline 5ms"
    )
    return 0


def _live_page(model: AnytimeModel, folder: Path) -> str:
    """Writes the live page beside the report; the command that does it, where something is missing for it."""
    from anytime.export.html.web_engine import kept_engine

    engine = kept_engine()
    if engine is None or any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        return f"  anytime export {folder} --html {folder / PAGE} --download   # a page on which it answers live\n"
    from anytime.export.html.examples import measured_accuracies, test_images
    from anytime.export.html.page import write_page

    with only_writer(folder, "a demo"):
        check_own(folder / PAGE)
        examples, accuracies = test_images(model, None, False, folder), measured_accuracies(model, str(folder))
        with atomic_write(folder / PAGE) as part:
            write_page(model, part, engine, folder.resolve().name, examples, accuracies)
            check_own(folder / PAGE)  # the export takes long
    print(f"wrote {folder / PAGE} (the network answers there, live)")
    return ""


def _earlier(folder: Path, config: Config) -> str:
    """The state of an earlier demo in a run directory; empty if it holds none."""
    try:
        earlier, state = read_run(folder)
    except (OSError, ValueError):
        return ""
    return state["state"] if config | earlier == config else ""  # older versions had fewer settings


def _latest_correct(trace: Trace, count: int = 3) -> list[int]:
    """The images whose answer becomes correct latest and stays correct; they make the best demo."""
    correct = trace.logits.argmax(2) == trace.labels
    steps = correct.flip(0).long().cumprod(0).sum(0)  # number of last steps with the correct answer
    return steps.where(steps > 0, trace.num_steps + 1).argsort(stable=True)[:count].tolist()


def _growing_answers(trace: Trace, images: Tensor, shown: list[int]) -> Section:
    """A section of the report with the probabilities of the shown images after each step."""
    figures = {}
    for index in shown:
        label, names = int(trace.labels[index]), trace.class_names
        probabilities, seconds = trace.logits[:, index].softmax(1), trace.seconds
        figures[f"Image {index}, a {names[label]}: probabilities after each step"] = plots.growing_answer(
            images[index], probabilities, names, macs=trace.macs, seconds=seconds, label=label
        )
    return Section("Answers that grow", "Held-out images whose answer became correct late and stayed so.", figures=figures)


def _answer_under_deadlines(model: AnytimeModel, trace: Trace, images: Tensor, shown: list[int]) -> None:
    measured = profile(model, images, repeats=50, progress=sys.stderr.isatty(), contract=False)
    predictor = Predictor(model, measured, quantile="p90")
    reached = [latency.p90 for latency in measured.at(1).reached]
    deadlines = [0.5 * reached[0], 2 * reached[0], *(1.3 * seconds for seconds in reached[2::2])]
    for index in shown:
        print(f"   image {index}, a {trace.class_names[int(trace.labels[index])]}:")
        for deadline in deadlines:
            answer = predictor(images[index : index + 1], deadline)
            print(f"     deadline {deadline * 1e3:6.2f} ms: ", end="")
            if answer.step < 1:
                print("no step fits, so the answer is the prior: all digits are equally likely")
                continue
            name, p = trace.class_names[int(answer.label)], float(answer.confidence)
            missed = "  (missed: the machine was slower than measured)" if answer.missed else ""
            print(f"step {answer.step}/{model.num_steps} after {answer.elapsed * 1e3:5.2f} ms: {name} ({p:.0%}){missed}")
