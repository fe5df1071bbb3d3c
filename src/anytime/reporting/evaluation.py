"""From a trained model to its trace, metrics, figures and report: what `anytime evaluate` does."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from anytime.analysis.summary import summary
from anytime.data import ImageData
from anytime.data.batches import Loader
from anytime.data.names import composed
from anytime.data.record import RECORD
from anytime.model import AnytimeModel, require_classifier
from anytime.pretrained import load, pretrained_folder
from anytime.reporting import plots
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.report import Section, write_report
from anytime.support.digest import weights_digest
from anytime.support.files import atomic_write
from anytime.support.folders import FIGURES, check_file
from anytime.support.locks import only_writer
from anytime.support.model_files import weights_of
from anytime.support.owned import MARK, check_own
from anytime.trace import Trace, labelled, record
from anytime.training.config import UsageError
from anytime.training.origin import data_of


def output_folder(run: str | os.PathLike[str]) -> Path:
    """The folder for results about a run directory or a pretrained model: the directory itself, or `runs/NAME`."""
    return Path(run) if Path(run).is_dir() else Path("runs") / os.fspath(run)


def trained_on(
    model: AnytimeModel, root: str | os.PathLike[str] | None = None, download: bool = False, run: Path | None = None
) -> ImageData:
    """The data set that a model was trained on, see `anytime.training.origin.data_of`."""
    return data_of(model.info, root, download, run)


def images_of(data: ImageData, part: str) -> Loader:
    """Batches of the test (`part="test"`) or validation images of a data set; raises ValueError if the latter are missing."""
    data.setup("test" if part == "test" else "fit")
    loader = data.test_dataloader() if part == "test" else data.val_dataloader()
    if isinstance(loader, list):
        name = data.title or type(data).__name__
        without = "was trained with validation=0" if not data.validation else "has no validation images left"
        raise ValueError(f"the model {without}: there are no validation images of {name}")
    return loader


def records_traces(folder: Path) -> bool:
    """Whether `find_trace` has to record the trace of the validation or the test images."""
    return not all(_trace_path(folder, part).is_file() for part in ("validation", "test"))


def find_trace(
    model: AnytimeModel, folder: Path, part: str, root: Path | None = None, device: str = "cpu", download: bool = False
) -> Trace:
    """The trace of the model on a part of its data that is stored in `folder`; recorded and stored first if missing.

    Raises ValueError if the stored trace is of another model or of other weights, or there are no validation images.
    """
    require_classifier(model, "what is fitted to a trace")
    path = _trace_path(folder, part)
    if not path.is_file():
        trace = _recorded(model, trained_on(model, root, download, folder), part, device)
        model.cpu()
        check_own(path)
        trace.save(path)
        return trace
    trace = Trace.load(path)
    if trace.num_steps != model.num_steps or trace.num_classes != model.num_classes:
        raise ValueError(f"{path} is of another model; delete it to record it again")
    if not _recorded_with(trace, _digest(model)):
        raise ValueError(f"{path} was recorded with other weights; delete it, or record it again with `anytime evaluate`")
    return trace


def _recorded_with(trace: Trace, weights: str) -> bool:
    """Whether a trace is that of weights with this digest; old traces do not say."""
    return trace.meta.get("weights") in (None, weights)


def _digest(model: AnytimeModel) -> str:
    return weights_digest(model.state_dict())


def stored_traces(runs: Sequence[str], part: str = "test") -> dict[str, Trace]:
    """The traces stored by `evaluate_run`, by the runs' names.

    Raises:
        FileNotFoundError: A run has not been evaluated.
        ValueError: A trace was recorded with other weights than those of its run.
    """
    traces: dict[str, Trace] = {}
    for run in runs:
        folder = output_folder(run)
        path = _trace_path(folder, part)
        if not path.is_file():
            option = "" if part == "test" else f" --part {part}"
            raise FileNotFoundError(f"{run} has not been evaluated: {path} is missing; run `anytime evaluate {run}{option}`")
        trace, own = Trace.load(path), weights_of(folder if Path(run).is_dir() else pretrained_folder(run))
        if not (own is None or _recorded_with(trace, own) or _recorded_with(trace, _digest(load(run)))):  # of old files
            raise ValueError(f"{path} was recorded with other weights; record it again with `anytime evaluate {run}`")
        traces[folder.name if folder.name not in traces else os.fspath(run)] = _finest(trace)
    return traces


@dataclass(frozen=True)
class Evaluation:
    """The numbers of `analysis.summary`, with those of coarser label levels, and the files that were written."""

    numbers: dict[str, Any]
    trace: Path
    metrics: Path
    report: Path


def evaluate_run(
    run: str | os.PathLike[str],
    part: str = "test",
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    out: Path | None = None,
    progress: bool = True,
    download: bool = False,
    trust: bool = False,
    replace: bool = True,
) -> Evaluation:
    """Records the trace of a trained model on the test or validation images, and writes it with metrics, figures and report.

    Args:
        run: A run directory or the name of a pretrained model.
        part: `"test"` or `"validation"`.
        root: Folder of the data, instead of the recipe's.
        device: Where to run.
        out: Folder for the results; default: the run directory, or `runs/NAME`.
        progress: Shows a progress bar.
        download: Downloads missing data.
        trust: Whether import paths that the run names may be imported, see `anytime.load`.
        replace: Whether an evaluation that is there is replaced.

    Raises:
        NotOurs: A file with the name of a result is there, and no evaluation wrote it.
        UsageError: An evaluation is there, and is not to be replaced.
    """
    folder = out or output_folder(run)
    with only_writer(folder, "an evaluation"):
        check_own(*_results(folder, part))
        if not replace and (there := _results_in(folder, part)):
            raise UsageError(f"{there[0]} exists; give another --out, or --overwrite to replace it")
        model = load(run, trust)
        require_classifier(model, "an evaluation")
        trace = _recorded(model, trained_on(model, root, download, Path(run)), part, device, progress)
        return write_results(trace, folder, part)


def _results_in(folder: Path, part: str) -> list[Path]:
    """The results of an evaluation on `part` that a folder holds."""
    return [path for path in _results(folder, part) if os.path.lexists(path)]


def _results(folder: Path, part: str) -> list[Path]:
    figures = [_figures(folder, part) / name for name in FIGURES]
    return [_trace_path(folder, part), folder / f"metrics-{part}.json", folder / _report_name(part), *figures]


def write_results(trace: Trace, folder: Path, part: str, sections: Sequence[Section] = ()) -> Evaluation:
    """Writes trace, metrics, figures and report of `part` into `folder`; raises NotOurs as `evaluate_run`."""
    check_own(*_results(folder, part))
    path = _trace_path(folder, part)
    trace.save(path)  # first: what is wrong with labels must not cost the recording
    level, coarser = labelled(_finest(trace)), [trace.level(d) for d in range(1, len(trace.levels))]
    metrics, report = folder / f"metrics-{part}.json", folder / _report_name(part)
    numbers = summary(level)
    if coarser:
        numbers["coarser_levels"] = [{key: summary(other)[key] for key in ("classes", "steps")} for other in coarser]
    result = Evaluation(numbers, path, metrics, report)
    with atomic_write(result.metrics) as whole:
        whole.write_text(json.dumps(result.numbers, indent=2) + "\n", encoding="utf-8")
    captions: dict[Callable[..., Figure], str] = {
        plots.steps: "Accuracy and confidence after each step, over the MACs spent so far",
        plots.speed_accuracy: "Accuracy over mean MACs when each sample stops at a confidence threshold",
        plots.calibration: "Calibration of each step: accuracy of the answers given with a confidence",
        plots.per_class: "Confidence against accuracy, one dot per class (Kim et al. 2020, Fig. 4)",
    }
    figures: dict[str, Figure | Sequence[Figure]] = {}
    for draw, caption in captions.items():
        figures[caption] = figure = draw(level)
        with atomic_write(_figures(folder, part) / f"{draw.__name__}.png") as whole:
            figure.savefig(whole, format="png", dpi=150, metadata=MARK)
    figures[captions[plots.steps]] = [plots.steps(level, cost) for cost in plots.panel_costs([level])]
    title = f"{trace.meta.get('model', 'model')} on {trace.meta.get('dataset', 'data')} ({part} images)"
    levels = [
        Section(f"Every step, at the label level of {row['classes']} classes", rows=row["steps"], columns=STEP_COLUMNS)
        for row in numbers.get("coarser_levels", [])
    ]
    write_report(result.report, title, level, figures, [*levels, *sections])
    return result


def _recorded(model: AnytimeModel, data: ImageData, part: str, device: str | torch.device, progress: bool = True) -> Trace:
    data.prepare_data()
    loader = images_of(data, part)
    if data.record is None and part in data.divided and data.divided[part].names is not None:
        warnings.warn(
            f"no {RECORD} says which images this model was trained on; they are split by {data.split_by}, so if files were "
            f"added, removed or renamed since, some {part} images may have been trained on",
            stacklevel=2,
        )
    names, known = data.class_names, [composed(name) for name in model.info.class_names]
    if not data.official and known and names != known:
        other = next((pair for pair in zip(known, names, strict=False) if pair[0] != pair[1]), (len(known), len(names)))
        raise ValueError(f"the classes of {data.root} are not those of the model: {other[1]!r} where it has {other[0]!r}")
    meta: dict[str, Any] = {"dataset": type(data).__name__, "part": part, "recipe": model.info.recipe}
    return record(model, loader, device=device, input_size=data.input_size, progress=progress, meta=meta)


def _trace_path(folder: Path, part: str) -> Path:
    path = folder / f"trace-{part}.safetensors"
    check_file(path)
    return path


def _figures(folder: Path, part: str) -> Path:
    return folder / "figures" if part == "test" else folder / "figures" / part


def _report_name(part: str) -> str:
    return "report.html" if part == "test" else f"report-{part}.html"


def _finest(trace: Trace) -> Trace:
    return trace.level(0) if trace.labels.ndim == 2 else trace
