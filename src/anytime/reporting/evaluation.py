"""From a trained model to its trace, metrics, figures and report: what `anytime evaluate` does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from anytime.analysis.summary import summary
from anytime.data import ImageData, create_data
from anytime.data.batches import Loader
from anytime.model import AnytimeModel
from anytime.pretrained import load
from anytime.reporting import plots
from anytime.reporting.report import Section, write_report
from anytime.support.files import atomic_write
from anytime.trace import Trace, record


@dataclass(frozen=True)
class Evaluation:
    """The numbers of `analysis.summary` and the files that were written."""

    numbers: dict[str, Any]
    trace: Path
    metrics: Path
    report: Path


def output_folder(run: str | os.PathLike[str]) -> Path:
    """Where results about a run directory or a pretrained model go: the directory itself, or `runs/NAME`."""
    return Path(run) if Path(run).is_dir() else Path("runs") / os.fspath(run)


def trained_on(model: AnytimeModel, root: str | os.PathLike[str] | None = None, download: bool = False) -> ImageData:
    """The data set a model was trained on, with the recipe's arguments.

    Args:
        model: Trained by `anytime train`, which keeps its recipe in `model.info`.
        root: Folder of the data in place of the recipe's.
        download: Downloads what is missing there.

    Raises:
        ValueError: The model does not say what it was trained on.
    """
    recipe = model.info.recipe
    if not recipe:
        raise ValueError("this model does not say what it was trained on (no recipe in its config.json)")
    arguments = dict(recipe["data"].get("init_args", {}))
    arguments["root"] = root if root is not None else arguments.get("root")
    arguments["download"] = download or arguments.get("download", False)
    data = create_data(recipe["data"]["class_path"], **arguments)
    if data.root is not None and root is None and not data.root.is_dir():
        data = create_data(recipe["data"]["class_path"], **{**arguments, "root": None})
    return data


def images_of(data: ImageData, part: str) -> Loader:
    """Batches of the test (`part="test"`) or validation images of a data set.

    Raises:
        ValueError: No images are held out for validation.
    """
    data.setup("test" if part == "test" else "fit")
    loader = data.test_dataloader() if part == "test" else data.val_dataloader()
    if isinstance(loader, list):
        raise ValueError(f"{data.title or type(data).__name__} was trained with validation=0: there are no validation images")
    return loader


def evaluate_run(
    run: str | os.PathLike[str],
    part: str = "test",
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    out: Path | None = None,
    progress: bool = True,
    download: bool = False,
) -> Evaluation:
    """Records the trace of a trained model on the test or validation images, and writes all that follows from it.

    Args:
        run: A run directory or the name of a pretrained model.
        part: `"test"` or `"validation"`.
        root: Folder of the data, if not the recipe's.
        device: Where to run.
        out: Folder for the results; default: the run directory, or `runs/NAME`.
        progress: Shows a progress bar.
        download: Downloads data that are missing.
    """
    model = load(run)
    data = trained_on(model, root, download)
    data.prepare_data()
    loader = images_of(data, part)
    meta = {"dataset": type(data).__name__, "part": part, "recipe": model.info.recipe}
    trace = record(model, loader, device=device, input_size=data.input_size, progress=progress, meta=meta)
    return write_results(trace, out or output_folder(run), part)


def write_results(trace: Trace, folder: Path, part: str, sections: Sequence[Section] = ()) -> Evaluation:
    """Writes trace, metrics, figures and report of `part` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    level = trace.level(0) if trace.labels.ndim == 2 else trace
    report = "report.html" if part == "test" else f"report-{part}.html"
    result = Evaluation(summary(level), folder / f"trace-{part}.safetensors", folder / f"metrics-{part}.json", folder / report)
    trace.save(result.trace)
    with atomic_write(result.metrics) as whole:
        whole.write_text(json.dumps(result.numbers, indent=2) + "\n", encoding="utf-8")
    figures: dict[str, tuple[str, Figure]] = {
        "steps": ("Accuracy and confidence after each step, over the MACs spent so far", plots.steps(level)),
        "speed_accuracy": (
            "Accuracy over mean MACs when each sample stops at a confidence threshold",
            plots.speed_accuracy(level),
        ),
        "calibration": (
            "Calibration of each step: accuracy of the answers given with a confidence",
            plots.calibration(level),
        ),
        "per_class": (
            "Confidence against accuracy, one dot per class (Kim et al. 2020, Fig. 4)",
            plots.per_class(level),
        ),
    }
    drawn = folder / "figures" if part == "test" else folder / "figures" / part
    drawn.mkdir(parents=True, exist_ok=True)
    for name, (_, figure) in figures.items():
        figure.savefig(drawn / f"{name}.png", dpi=150)
    title = f"{trace.meta.get('model', 'model')} on {trace.meta.get('dataset', 'data')} ({part} images)"
    write_report(result.report, title, level, dict(figures.values()), sections)
    return result


def stored_traces(runs: Sequence[str], part: str = "test") -> dict[str, Trace]:
    """The traces that `evaluate_run` left behind, by the runs' names.

    Raises:
        FileNotFoundError: A run has not been evaluated; says how.
    """
    traces: dict[str, Trace] = {}
    for run in runs:
        path = output_folder(run) / f"trace-{part}.safetensors"
        if not path.is_file():
            option = "" if part == "test" else f" --part {part}"
            raise FileNotFoundError(f"{run} has not been evaluated: {path} is missing; run `anytime evaluate {run}{option}`")
        trace = Trace.load(path)
        name = output_folder(run).name
        traces[name if name not in traces else os.fspath(run)] = trace.level(0) if trace.labels.ndim == 2 else trace
    return traces


def find_trace(
    model: AnytimeModel, folder: Path, part: str, root: Path | None = None, device: str = "cpu", download: bool = False
) -> Trace:
    """The stored trace of a part of the model's data; recorded and stored first if there is none.

    Raises:
        ValueError: The trace is of another model; there are no validation images.
    """
    from anytime.trace import Trace, record

    path = folder / f"trace-{part}.safetensors"
    if path.is_file():
        trace = Trace.load(path)
        if trace.num_steps != model.num_steps or trace.num_classes != model.num_classes:
            raise ValueError(f"{path} is of another model; delete it, and it is recorded again")
    else:
        data = trained_on(model, root, download)
        data.prepare_data()
        data.setup("test" if part == "test" else "fit")
        loader = data.test_dataloader() if part == "test" else data.val_dataloader()
        if isinstance(loader, list):
            raise ValueError("the model was trained with validation=0: there are no images to fit a rule on")
        meta = {"dataset": type(data).__name__, "part": part, "recipe": model.info.recipe}
        trace = record(model, loader, device=device, input_size=data.input_size, meta=meta)
        model.cpu()
        trace.save(path)
    return trace
