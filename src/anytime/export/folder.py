"""A trained model as an exported folder: its steps captured, converted, compared with the model and written."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anytime.cost import step_macs
from anytime.data.record import RECORD, replace_record
from anytime.export import aoti, executorch
from anytime.export.capture import CapturedStep, capture, capture_all
from anytime.export.check import TOLERANCES, ExportCheck, check_whole, compare
from anytime.export.onnx import SUFFIX, convert, require_engine, require_openvino
from anytime.export.quantize import Calibration, Int8Row, check_loss, loss_of, quantised
from anytime.model import AnytimeModel, Deployed, known_input_size
from anytime.runtime.engines.exported import (
    ENGINES,
    ExportedModel,
    consent_text,
    load_export,
    remember_code,
    write_manifest,
)
from anytime.runtime.engines.manifest import MANIFEST, NEXT, WHOLE, GraphValue, Manifest, Origin, StepFile, read_manifest
from anytime.runtime.engines.whole import WholeRun
from anytime.saving import check_names
from anytime.support.files import check_no_file_above, make_folder, part_of, remove_leftovers
from anytime.support.folders import LOCK
from anytime.support.locks import only_writer
from anytime.support.owned import check_contents, check_own, check_room_for_export, digest_of_file, is_own
from anytime.support.trust import remember
from anytime.support.units import ImageSize, image_size

Converted = tuple[bytes, list[GraphValue], list[Origin], list[GraphValue]]
CONVERTERS: dict[str, tuple[Callable[[], None], Callable[[CapturedStep, str], Converted], str]] = {
    "onnx": (require_engine, convert, SUFFIX),
    "openvino": (require_openvino, convert, SUFFIX),  # reads the same files
    "aoti": (aoti.require_engine, aoti.convert, aoti.SUFFIX),
    "executorch": (executorch.require_engine, executorch.convert, executorch.SUFFIX),
}  # by engine: raises ImportError if it is not installed; makes a file of a step; how its name ends


def export_model(
    model: AnytimeModel,
    directory: str | os.PathLike[str],
    engine: str = "onnx",
    *,
    precision: str = "float32",
    batch: int | str = 1,
    input_size: ImageSize | None = None,
    images: Tensor | None = None,
    calibration: Calibration | None = None,
    accepted: Callable[[list[Int8Row]], None] | None = None,
    one_graph: bool = False,
    run: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ExportedModel:
    """Writes one graph per step and `manifest.json`; `anytime.load(directory)` is then the same model in another engine.

    Every answer is compared with the model's on random images and on photographs before the folder appears.

    Args:
        model: A trained model; it is not changed.
        directory: The folder to make.
        engine: "onnx" (ONNX Runtime), "openvino", "aoti" (AOTInductor, which compiles for this processor and this torch), or
            "executorch" (for small devices; batch 1).
        precision: What the engine computes in: "float32"; with OpenVINO also "bfloat16"; with OpenVINO and ONNX Runtime also
            "int8", made of the export in float32 and judged by `calibration`.
        batch: 1, or "dynamic" for graphs that take any number of images at a time.
        input_size: (channels, height, width), or the side of square colour images; default: what the model knows.
        images: Further images `[N, C, H, W]` in [0, 1] to compare on.
        calibration: For "int8": images and labels, and the accepted loss of accuracy.
        accepted: Called with accuracy and time of each step in float32 and "int8", before the loss is judged.
        one_graph: Also writes all steps as one graph, whose finished answers can be read while it runs (see `WholeRun`).
        run: The run directory of the model, whose record of the training images goes with the export.
        overwrite: Replaces the export that `directory` holds, with the rules that were fitted to it; other files stay.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ImportError: The engine is not installed; the message names the extra.
        ValueError: An argument is none of the above, a step cannot be exported (the message names the operator), or an answer
            differs from the model's.
        FileExistsError: The folder exists, from the beginning or at the end.
        NotOurs: A file in the folder has the name of a graph, or of the record.

    Example:
        >>> from anytime import Predictor, export_model, load
        >>> export_model(load("anytimenet_cifar10"), "exported")  # doctest: +SKIP
        >>> Predictor(load("exported"))(image, deadline="5ms")  # doctest: +SKIP
    """
    directory = Path(directory)
    if engine not in CONVERTERS:
        raise ValueError(f"engine must be one of {', '.join(CONVERTERS)}, got {engine!r}")
    if precision not in (known := ENGINES[engine].precisions):
        raise ValueError(f"precision of the engine {engine!r} must be one of {', '.join(known)}, got {precision!r}")
    if batch not in (1, "dynamic") or isinstance(batch, bool):
        raise ValueError(f"batch must be 1 or 'dynamic', got {batch!r}")
    if isinstance(model, Deployed):
        raise ValueError("this is an export already; export the model that it was made from")
    if (precision == "int8") != (calibration is not None):
        raise ValueError(f"calibration goes with precision='int8', and int8 needs it, got {precision!r}")
    if one_graph and (engine, precision) != ("onnx", "float32"):
        raise ValueError(f"one_graph is for the engine 'onnx' in float32, got {engine!r} in {precision!r}")
    check_names(model.info, model.num_classes)
    require, make, suffix = CONVERTERS[engine]
    require()
    if calibration:
        require_engine()  # whose quantiser makes INT8 for OpenVINO as well
    size = image_size(input_size) if input_size is not None else known_input_size(model)
    if size is None:
        raise ValueError("the model does not know the size of its images; give input_size=(channels, height, width)")
    check_replaceable(directory, overwrite)
    old = _graphs(directory, directory / NEXT)
    names = [f"step_{t}{suffix}" for t in range(1, model.num_steps + 1)] + [WHOLE] * one_graph
    check_contents(directory, {name: old.get(name, set()) for name in names})
    check_own(directory / RECORD)
    model = _plain_copy(model)
    with _new_folder(directory, overwrite) as part:
        dynamic = batch == "dynamic"
        steps: list[StepFile] = []
        example = torch.rand(2 if dynamic else 1, *size, generator=torch.Generator().manual_seed(0))
        macs = step_macs(model, size)
        captured = capture(model, example, dynamic)
        left = tqdm(range(model.num_steps, 0, -1), desc="exporting", unit="step", disable=not progress, leave=False)
        for t, step in zip(left, captured, strict=True):
            data, inputs, sources, outputs = make(step, f"step {t}")
            digest, file = hashlib.sha256(data).hexdigest(), f"step_{t}{suffix}"
            file = next((other.file for other in steps if other.sha256 == digest), file)
            (part / file).write_bytes(data)
            steps.append(StepFile(file, digest, tuple(inputs), tuple(sources), tuple(outputs), macs[t - 1]))
        whole = None
        if one_graph:
            data, inputs, sources, outputs = make(capture_all(model, example, dynamic), "the graph of all steps")
            (part / WHOLE).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            whole = StepFile(WHOLE, digest, tuple(inputs), tuple(sources), tuple(outputs), macs[-1])
        manifest = Manifest(
            engine=engine,
            precision="float32" if calibration else precision,
            batch=None if dynamic else 1,
            model=model.config.get("model", type(model).__name__),
            levels=model.levels,
            input_size=size,
            mean=tuple(model.mean.tolist()),
            std=tuple(model.std.tolist()),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            tolerance=TOLERANCES["float32" if calibration else precision],
            checked={},
            steps=tuple(reversed(steps)),
            info=replace(model.info, input_size=size).to_dict(),
            whole=whole,
        )
        write_manifest(part, manifest)
        exported = load_export(part, own=manifest)
        compared = compare(model, exported, images)
        manifest = _with(manifest, compared)
        if whole is not None:
            check_whole(model, WholeRun(exported))
        write_manifest(part, manifest)
        if calibration:
            _to_int8(model, part, calibration, accepted, images)
        if run is not None:
            replace_record(run, part)
        written = read_manifest(part, ENGINES)
    if model.info.trusted:
        remember(directory / MANIFEST, consent_text(written))
    remember_code(directory, written)
    return load_export(directory, own=written)


def _to_int8(
    model: AnytimeModel,
    part: Path,
    calibration: Calibration,
    accepted: Callable[[list[Int8Row]], None] | None,
    images: Tensor | None,
) -> None:
    """Replaces the export in a folder by one in INT8, unless that loses too much accuracy."""
    exact = load_export(part)
    steps, suffix = [], Path(exact.manifest.steps[0].file).suffix
    for t, data in enumerate([*quantised(exact, part, calibration.ranges)], 1):
        file = f"step_{t}{suffix}"
        (part / file).write_bytes(data)
        steps.append(replace(exact.manifest.steps[t - 1], file=file, sha256=hashlib.sha256(data).hexdigest()))
    manifest = replace(exact.manifest, precision="int8", tolerance=TOLERANCES["int8"], steps=tuple(steps))
    write_manifest(part, replace(manifest, engine="onnx"))
    reference = load_export(part)
    write_manifest(part, manifest)
    made = load_export(part)
    try:  # an engine that makes wrong numbers is found here, even if that costs no accuracy
        compare(reference, made, tolerance=TOLERANCES["bfloat16"])
    except ValueError as error:
        raise ValueError(f"{manifest.engine} computes INT8 otherwise than ONNX Runtime: {error}") from error
    rows = loss_of(exact, made, calibration)
    if accepted is not None:
        accepted(rows)
    check_loss(rows, calibration.max_loss)
    write_manifest(part, _with(manifest, compare(model, made, images)))


def _with(manifest: Manifest, compared: ExportCheck) -> Manifest:
    pairs = zip(manifest.steps, compared.differences, strict=True)
    steps = tuple(replace(step, difference=difference) for step, difference in pairs)
    return replace(manifest, steps=steps, checked=compared.images)


def _plain_copy(model: AnytimeModel) -> AnytimeModel:
    """The model on the CPU, in float32 and in eval mode."""
    copy: Any = deepcopy(model)
    return copy.to("cpu", torch.float32).eval()


def check_replaceable(directory: Path, overwrite: bool) -> None:
    """Raises an error unless a new export can be written to a folder.

    Raises:
        FileExistsError: It holds an export and `overwrite` is not set.
        ValueError: It is a file, lies below one, or is a folder that holds something else than an export.
    """
    check_no_file_above(directory)
    if not os.path.lexists(directory) or (directory.is_dir() and all(path.name == LOCK for path in directory.iterdir())):
        return
    if not (directory / MANIFEST).is_file():
        raise ValueError(f"{directory} exists and is no export, so it is not replaced; give another folder")
    check_room_for_export(directory)
    read_manifest(directory, ENGINES)
    if not overwrite:
        raise FileExistsError(f"{directory} exists; give another folder, or overwrite=True to replace it")


@contextmanager
def _new_folder(directory: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which becomes `directory` at the end, or is removed after an error.

    Of an earlier export there, only its manifest, graphs and record are replaced, not a file that only has the name of one.
    Traces and profiles of it are known to be of other graphs. Raises as `check_replaceable` does for what is there at the end.
    """
    part = part_of(directory)
    make_folder(directory.parent)
    remove_leftovers(directory.parent.glob(f".{glob.escape(directory.name)}.*.part"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        try:
            part.rename(directory)  # onto nothing or an empty folder
        except OSError:
            if not os.path.lexists(directory):
                raise
            with only_writer(directory, "an export"):
                check_replaceable(directory, overwrite)
                _replace(directory, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(directory: Path, part: Path) -> None:
    """Moves an export to a folder, in the place of the earlier one, after completing what a kill has left unfinished.

    First the new export is moved into the folder as a whole, where it stays until it is complete: after a kill the earlier or
    the new one can be loaded, or the next export there completes the new one.

    Raises:
        NotOurs: A file there has the name of a graph, or the folder holds something else by now.
    """
    check_room_for_export(directory)
    _complete(directory)
    old = _graphs(directory)
    names = {path.name for path in part.iterdir()} - {MANIFEST, RECORD}
    check_contents(directory, {name: old.get(name, set()) for name in names})
    check_own(directory / RECORD)
    part.rename(directory / NEXT)
    _complete(directory)


def _complete(directory: Path) -> None:
    """Moves the export that a folder holds in `NEXT`: graphs and record, and the manifest once the earlier graphs are gone."""
    new = directory / NEXT
    if new.is_symlink() or not new.is_dir():
        return
    old, graphs = (_graphs(folder) for folder in (directory, new))
    check_contents(directory, {name: old.get(name, set()) | digests for name, digests in graphs.items()})
    for name, digests in graphs.items():
        if digest_of_file(new / name) in digests:  # not moved yet
            os.replace(new / name, directory / name)
    if graphs:
        for name in old.keys() - graphs.keys():
            if digest_of_file(directory / name) in old[name]:
                (directory / name).unlink()
        replace_record(new, directory)
        os.replace(new / MANIFEST, directory / MANIFEST)
    if is_own(new / RECORD):  # needed until here, where a kill may have come before
        (new / RECORD).unlink()
    with suppress(OSError):  # it holds something else
        new.rmdir()


def _graphs(*folders: Path) -> dict[str, set[str]]:
    """The files of the graphs of the exports in folders, and their SHA-256."""
    graphs: dict[str, set[str]] = {}
    for folder in folders:
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder, ENGINES)
            for step in (*manifest.steps, manifest.whole):
                if step is not None:
                    graphs.setdefault(step.file, set()).add(step.sha256)
    return graphs
