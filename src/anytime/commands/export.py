"""Write a trained model as one graph per step for another engine, with a manifest.json that says how they are connected. Every
answer is compared with the model's before the folder appears. `anytime predict`, `profile`, `evaluate` and `fit` take the
folder as they take the run.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anytime.commands.parser import Parser
from anytime.model import AnytimeModel
from anytime.pretrained import load
from anytime.reporting.tables import Column, format_table
from anytime.support.text import one_line, printable, quoted
from anytime.support.units import image_size, macs_text

if TYPE_CHECKING:
    from anytime.export.quantize import Calibration

ENGINES, PRECISIONS, BATCHES = ("onnx", "openvino", "aoti", "executorch"), ("float32", "bfloat16", "int8"), ("1", "dynamic")
PRECISIONS_OF = {"onnx": ("float32", "int8"), "openvino": PRECISIONS, "aoti": ("float32",), "executorch": ("float32",)}
JUDGED = 1_000  # validation images, besides those that set the ranges
LOSSES = (
    Column("step", "step"),
    Column("accuracy", "right", ".2%"),
    Column("accuracy_int8", "in INT8", ".2%"),
    Column("milliseconds", "ms", ".3f"),
    Column("milliseconds_int8", "in INT8", ".3f"),
)
IMAGES = {"random": "random images"}
COLUMNS = (
    Column("step", "step"),
    Column("file", "file"),
    Column("bytes", "MB", lambda size: f"{size / 1e6:.2f}"),
    Column("inputs", "takes"),
    Column("outputs", "makes"),
    Column("macs", "MACs so far", macs_text),
    Column("difference", "differs by", ".1e"),
)


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "export",
        __doc__,
        "  anytime export fast_cifar10 --engine onnx\n  anytime export fast_cifar10 --html page.html --download\n"
        "  anytime export runs/demo --batch dynamic --out exports/demo",
    )
    parser.add_model("run")
    engines = "onnx: ONNX Runtime (default); openvino; aoti: AOTInductor, compiled for this processor; executorch"
    parser.add_argument("--engine", choices=ENGINES, default="onnx", help=engines)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="what it computes in (default: float32); openvino also has bfloat16 and int8, onnx int8",
    )
    batch = "1, or dynamic for graphs that take any number of images at a time (default: 1)"
    parser.add_argument("--batch", choices=BATCHES, default="1", help=batch)
    parser.add_argument("--input-size", metavar="C,H,W", help="size of the images, where the run does not say it")
    parser.add_argument("--out", type=Path, help="the folder to make (default: the run directory's name and the engine's)")
    loss = "of int8: the accepted loss of accuracy on validation images, of any step, e.g. 1%% or 0.01 (default: 1%%)"
    parser.add_argument("--max-loss", metavar="SHARE", help=loss)
    whole = "also write all steps as one graph, whose finished answers can be read while it runs"
    parser.add_argument("--one-graph", action="store_true", help=whole)
    page = "write this file instead of a folder: a page on which the model answers in a browser, offline"
    parser.add_argument("--html", type=Path, metavar="PAGE", help=page)
    engine = "of --html: onnxruntime-web as npm packs it, or its folder (default: what --download has fetched)"
    parser.add_argument("--onnxruntime-web", type=Path, metavar="FILE", help=engine)
    parser.add_data_folder("the data, and with --html the page's engine, if they are missing")
    parser.add_overwrite("the export of --out, or the page of --html")
    options = parser.parse_args(arguments)
    parser.check_model(options.run)
    try:
        size = None if options.input_size is None else image_size(options.input_size)
        max_loss = _share(options.max_loss or "1%")
    except ValueError as error:
        parser.error(str(error))
    if options.precision not in (known := PRECISIONS_OF[options.engine]):
        parser.error(
            f"precision of the engine {options.engine!r} must be one of {', '.join(known)}, got {options.precision!r}"
        )
    if options.one_graph and (options.engine, options.precision) != ("onnx", "float32"):
        parser.error(f"--one-graph is for the engine onnx in float32, got {options.engine} in {options.precision}")
    if options.html is not None:
        return _write_page(parser, options, size)
    if options.onnxruntime_web is not None:
        parser.error("--onnxruntime-web is for --html")
    if options.precision != "int8" and (options.max_loss or options.root or options.download):
        parser.error("--max-loss, --root and --download are for --precision int8 or --html")
    from anytime.export.folder import check_replaceable, export_model
    from anytime.reporting.evaluation import output_folder

    folder = output_folder(options.run)
    out = options.out or Path(os.path.relpath(f"{folder.resolve()}-{options.engine}"))
    try:
        check_replaceable(out, options.overwrite)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error).replace("overwrite=True", "--overwrite"))
    model = load(options.run, options.trust)
    calibration = _calibration(model, options, folder, max_loss) if options.precision == "int8" else None
    made = export_model(
        model,
        out,
        options.engine,
        precision=options.precision,
        batch=options.batch if options.batch == "dynamic" else int(options.batch),
        input_size=size,
        calibration=calibration,
        one_graph=options.one_graph,
        accepted=lambda rows: print(format_table([vars(row) for row in rows], LOSSES)),
        run=folder,
        overwrite=options.overwrite,
        progress=sys.stderr.isatty(),
    )
    rows = [
        {
            "step": t,
            "file": step.file,
            "bytes": (out / step.file).stat().st_size,
            "inputs": len(step.inputs),
            "outputs": len(step.outputs),
            "macs": step.macs,
            "difference": step.difference,
        }
        for t, step in enumerate(made.manifest.steps, 1)
    ]
    print(format_table(rows, COLUMNS))
    images = " and ".join(f"{count} {IMAGES.get(kind, kind)}" for kind, count in made.manifest.checked.items())
    print(f"compared with the model on {images}; at most {made.manifest.tolerance:g} of the largest logit is accepted")
    print(printable(f"wrote {out}; use it as a run: anytime predict {out} IMAGE, or anytime.load({str(out)!r})"))
    return 0


def _write_page(parser: Parser, options: Any, size: tuple[int, int, int] | None) -> int:
    """Writes the page of `--html`, with test images and accuracies where they can be found."""
    defaults = (
        ("engine", "onnx"),
        ("precision", "float32"),
        ("batch", "1"),
        ("out", None),
        ("max_loss", None),
        ("one_graph", False),
    )
    for name, usual in defaults:
        if getattr(options, name) != usual:
            parser.error(f"--html writes a page in float32 for one image at a time: leave out --{name.replace('_', '-')}")
    parser.check_free(options.html, "--html", options.overwrite)
    from anytime.export.html.examples import measured_accuracies, test_images
    from anytime.export.html.page import LARGE, write_page
    from anytime.export.html.web_engine import web_engine
    from anytime.reporting.evaluation import output_folder

    engine = web_engine(options.onnxruntime_web, options.download)
    model = load(options.run, options.trust)
    if size is not None:
        model.info.input_size = size
    examples = None
    try:
        examples = test_images(model, options.root, options.download, output_folder(options.run))
    except (OSError, ValueError, RuntimeError) as error:
        warnings.warn(f"the page has no test images to choose from: {one_line(error)}", stacklevel=2)
    accuracies, name = measured_accuracies(model, options.run), output_folder(options.run).resolve().name
    made = write_page(
        model, options.html, engine, name, examples, accuracies, progress=sys.stderr.isatty(), replace=options.overwrite
    )
    if made.size > LARGE:
        warnings.warn(f"the page has {made.size / 1e6:.0f} MB, which phones may not open", stacklevel=2)
    if made.left_out:
        rules = ", ".join(map(quoted, made.left_out))
        warnings.warn(f"the page leaves out rules that look at more than probabilities: {rules}", stacklevel=2)
    rows = [{"part": part, "bytes": count} for part, count in made.parts.items()]
    print(format_table(rows, (Column("part", "part"), Column("bytes", "MB", lambda size: f"{size / 1e6:.2f}"))))
    print(f"probabilities differ from the model's by at most {made.difference:.1e}")
    print(printable(f"wrote {options.html}, {made.size / 1e6:.2f} MB; open it in a browser, also without a network"))
    return 0


def _share(text: str) -> float:
    """A share of 1 from "1%" or "0.01"; ValueError if it is none."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--max-loss must be a share such as 1% or 0.01, got {text!r}")
    return share


def _calibration(model: AnytimeModel, options: Any, folder: Path, max_loss: float) -> Calibration:
    """Validation images of the model's data set."""
    from anytime.export.quantize import CALIBRATED, Calibration
    from anytime.reporting.evaluation import images_of, trained_on

    data = trained_on(model, options.root, options.download, folder)
    data.prepare_data()
    images, labels, wanted = list[Tensor](), list[Tensor](), CALIBRATED + JUDGED
    for batch, targets in images_of(data, "validation"):
        images.append(batch)
        labels.append(targets if targets.ndim == 1 else targets[:, 0])
        if sum(map(len, images)) >= wanted:
            break
    return Calibration(torch.cat(images)[:wanted], torch.cat(labels)[:wanted], max_loss)
