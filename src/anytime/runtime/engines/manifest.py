"""`manifest.json`: what an exported folder holds, and how its steps are connected."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from anytime.saving import CONFIG_BYTES, CONFIG_VALUES, ModelInfo, check_names
from anytime.support.documents import parse_json, read_limited
from anytime.support.folders import MANIFEST, check_file
from anytime.support.limits import MOST_STEPS
from anytime.support.text import quoted

KIND = "anytime export"
FORMAT = 1
IMAGES, ANSWER, BATCH = "images", "answer", "batch"
_FILE = (
    r"step_[1-9]\d{0,3}\.(onnx|pt2|pte)"  # of a step: only what `anytime export` writes: saving replaces files of this name
)
WHOLE = "step_0.onnx"  # all steps as one graph
NEXT = ".export.next"  # of an exported folder: the new export, while it replaces the earlier one
PRECISIONS = ("float32", "bfloat16", "int8")
TYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")


class Origin(NamedTuple):
    """Where the tensor of an input was made: the images (step 0), or an output of an earlier step 1..T."""

    step: int
    output: str = IMAGES


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph.

    Attributes:
        name: Its name in the graph.
        shape: Its sizes; the first is "batch" if the batch is dynamic.
        dtype: Its type, one of `TYPES`.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class StepFile:
    """The graph of one step.

    Attributes:
        file: Its name in the folder; steps that compute the same share one.
        sha256: The file's digest.
        inputs: In the order of the graph.
        sources: Where each input comes from.
        outputs: In the order of the graph: "answer" first. A tensor that only passes through a step is no output of it.
        macs: Cumulative MACs of one image.
        difference: The largest difference from the model at the export, relative to its largest logit (at least 1).
    """

    file: str
    sha256: str
    inputs: tuple[GraphValue, ...]
    sources: tuple[Origin, ...]
    outputs: tuple[GraphValue, ...]
    macs: int
    difference: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        inputs = [
            {**value.to_dict(), "from": {"step": source.step, "output": source.output} if source.step else IMAGES}
            for value, source in zip(self.inputs, self.sources, strict=True)
        ]
        outputs = [value.to_dict() for value in self.outputs]
        known = {"file": self.file, "sha256": self.sha256, "macs": self.macs, "difference": self.difference}
        return known | {"inputs": inputs, "outputs": outputs}


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        engine: The engine of its graphs, such as "onnx".
        precision: What it computes in, "float32", "bfloat16" or "int8"; images, answers and state are float32.
        batch: The batch size of its graphs; None: any.
        model: Registered name or class of the model that was exported.
        levels: The number of classes of each label level, as in `AnytimeModel`.
        input_size: (channels, height, width) of the images; in [0, 1], batch first.
        mean: What the graph of the first step subtracts from each channel.
        std: What it divides by.
        parameters: The number of parameters of the model.
        tolerance: How far each answer may differ from the model's, relative to its largest logit (at least 1).
        checked: How many images of each kind the export was compared on.
        steps: The graph of each step.
        info: Classes, task, recipe, fitted rules with their combiners, label levels of the answers.
        whole: All steps as one graph, with the answers "answer_1" to "answer_T"; None if there is none.
    """

    engine: str
    precision: str
    batch: int | None
    model: str
    levels: tuple[int, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    parameters: int
    tolerance: float
    checked: Mapping[str, int]
    steps: tuple[StepFile, ...]
    info: Mapping[str, Any]
    whole: StepFile | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        channels, height, width = self.input_size
        return {
            "kind": KIND,
            "format": FORMAT,
            "engine": self.engine,
            "precision": self.precision,
            "batch": self.batch or "dynamic",
            "model": self.model,
            "parameters": self.parameters,
            "levels": list(self.levels),
            "input": {
                "channels": channels,
                "height": height,
                "width": width,
                "layout": "NCHW",
                "range": [0, 1],
                "mean": list(self.mean),
                "std": list(self.std),
                "normalised_by": "the graph of step 1",
            },
            "check": {"tolerance": self.tolerance, "images": dict(self.checked)},
            "steps": [step.to_dict() for step in self.steps],
            **({} if self.whole is None else {"one_graph": self.whole.to_dict()}),
            "metadata": dict(self.info),
        }


def read_manifest(directory: Path, engines: Collection[str]) -> Manifest:
    """The manifest of an exported folder, checked.

    Args:
        directory: The folder.
        engines: The engines that this version knows.

    Raises:
        ValueError: The manifest is damaged, of another version or engine, or names files outside the folder; the message says
            which.
    """
    path = directory / MANIFEST
    check_file(path)
    data = parse_json(read_limited(path, CONFIG_BYTES), path, CONFIG_VALUES)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ValueError(f"{directory} holds neither a trained model nor an export: {path} is not of this library")
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} has format {data.get('format')!r}, this version of anytime reads format {FORMAT}")
    if not isinstance(data.get("engine"), str) or data["engine"] not in engines:
        raise ValueError(f"{path} is for the engine {data.get('engine')!r}, this version knows {', '.join(sorted(engines))}")
    try:
        made = _manifest(data)
        if fault := _fault(made):
            raise ValueError(fault)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged: {reason}") from error
    return made


def _manifest(data: Mapping[str, Any]) -> Manifest:
    images, check, info = data["input"], data["check"], ModelInfo.from_dict(data["metadata"])
    check_names(info, sum(data["levels"]))
    return Manifest(
        engine=data["engine"],
        precision=data["precision"],
        batch=None if data["batch"] == "dynamic" else data["batch"],
        model=data["model"],
        levels=tuple(data["levels"]),
        input_size=(images["channels"], images["height"], images["width"]),
        mean=tuple(images["mean"]),
        std=tuple(images["std"]),
        parameters=data["parameters"],
        tolerance=check["tolerance"],
        checked=dict(check["images"]),
        steps=tuple(_step(step) for step in data["steps"]),
        whole=None if data.get("one_graph") is None else _step(data["one_graph"]),
        info=info.to_dict(),
    )


def _step(data: Mapping[str, Any]) -> StepFile:
    sources = [entry["from"] for entry in data["inputs"]]
    return StepFile(
        file=data["file"],
        sha256=data["sha256"],
        inputs=tuple(_value(entry) for entry in data["inputs"]),
        sources=tuple(Origin(0) if s == IMAGES else Origin(s["step"], s["output"]) for s in sources),
        outputs=tuple(_value(entry) for entry in data["outputs"]),
        macs=data["macs"],
        difference=data["difference"],
    )


def _value(data: Mapping[str, Any]) -> GraphValue:
    return GraphValue(data["name"], tuple(data["shape"]), data["dtype"])


def _whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**62


def _fault(made: Manifest) -> str | None:
    """What is wrong with the values of a manifest."""
    if made.precision not in PRECISIONS:
        return f"precision is {made.precision!r}, not one of {', '.join(PRECISIONS)}"
    if not (made.batch is None or _whole(made.batch)):
        return f"batch is {made.batch!r}, neither a number nor 'dynamic'"
    if not isinstance(made.model, str) or not _whole(made.parameters, 0):
        return f"model is {made.model!r} and parameters {made.parameters!r}, not a name and a number"
    if not made.levels or not all(_whole(size) for size in made.levels):
        return f"levels is {list(made.levels)!r}, not numbers of classes"
    if not all(_whole(size) for size in made.input_size):
        return f"the input is {list(made.input_size)!r}, not channels, height and width"
    for name, values in (("mean", made.mean), ("std", made.std)):
        numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if len(values) != made.input_size[0] or not numbers or (name == "std" and min(values) <= 0):
            return f"{name} is {list(values)!r}, not {made.input_size[0]} numbers{' above 0' if name == 'std' else ''}"
    if not 1 <= len(made.steps) <= MOST_STEPS:
        return f"it has {len(made.steps):,} steps, not 1 to {MOST_STEPS:,}"
    macs = [step.macs for step in made.steps]
    if not all(_whole(cost, 0) for cost in macs) or macs != sorted(macs):
        return f"macs are cumulative and cannot fall, got {macs}"
    return _wrong_wires(made) or _wrong_whole(made)


def _wrong_whole(made: Manifest) -> str | None:
    """What is wrong with the graph of all steps."""
    if (whole := made.whole) is None:
        return None
    first = BATCH if made.batch is None else made.batch
    images = GraphValue(IMAGES, (first, *made.input_size), PRECISIONS[0])
    answers = [replace(step.outputs[0], name=f"{ANSWER}_{t}") for t, step in enumerate(made.steps, 1)]
    digest = isinstance(whole.sha256, str) and len(whole.sha256) == 64
    if whole.file != WHOLE or not digest or whole.macs != made.steps[-1].macs:
        return f"the graph of all steps is {quoted(whole.to_dict())}"
    if (list(whole.inputs), list(whole.sources), list(whole.outputs)) != ([images], [Origin(0)], answers):
        return "the graph of all steps does not make all answers of the images"
    return None


def _wrong_wires(made: Manifest) -> str | None:
    """What is wrong with the files of the steps, their values and their connections."""
    first: tuple[int | str, ...] = (BATCH if made.batch is None else made.batch,)
    known = {Origin(0): GraphValue(IMAGES, (*first, *made.input_size), PRECISIONS[0])}
    for t, step in enumerate(made.steps, 1):
        if not isinstance(step.file, str) or not re.fullmatch(_FILE, step.file, re.ASCII):
            return f"the file of step {t} is {quoted(step.file)}, not a name such as step_{t}.onnx"
        if not isinstance(step.sha256, str) or len(step.sha256) != 64:
            return f"the SHA-256 of step {t} is {step.sha256!r}"
        for value in (*step.inputs, *step.outputs):
            sizes = all(_whole(size, 0) for size in value.shape[1:])
            if not isinstance(value.name, str) or value.dtype not in TYPES or value.shape[:1] != first or not sizes:
                return f"step {t} has the value {value.to_dict()!r}"
        if len({value.name for value in step.outputs}) != len(step.outputs) or len(step.inputs) != len(step.sources):
            return f"step {t} has two outputs of one name"
        if not step.outputs or step.outputs[0].name != ANSWER or step.outputs[0].shape[1:2] != (sum(made.levels),):
            return f"the first output of step {t} is not its answer, for {sum(made.levels)} classes"
        for value, source in zip(step.inputs, step.sources, strict=True):
            given = known.get(source)
            if given is None or (given.shape, given.dtype) != (value.shape, value.dtype):
                return f"the input {value.name!r} of step {t} comes from {list(source)!r}, which has no such tensor"
        known |= {Origin(t, value.name): value for value in step.outputs}
    return None


def needed_after(steps: Sequence[StepFile]) -> list[set[Origin]]:
    """For each step, what later steps take that exists after it: all that has to be kept."""
    kept: list[set[Origin]] = [set() for _ in steps]
    for t in range(len(steps) - 1, 0, -1):
        kept[t - 1] = {source for source in {*kept[t], *steps[t].sources} if source.step <= t}
    return kept
