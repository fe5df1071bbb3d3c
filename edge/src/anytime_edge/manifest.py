"""`manifest.json` of an exported folder, read and checked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST, KIND, FORMAT, ENGINE = "manifest.json", "anytime export", 1, "onnx"
PRECISIONS = ("float32", "int8")
MOST_BYTES, MOST_STEPS, MOST_MACS = 2**24, 1_000, 10**12
MOST_VALUES, MOST_TENSOR = 3 * 2048 * 4096, 2**30  # of an image, of a tensor
_FILE = re.compile(r"step_[1-9][0-9]{0,3}\.onnx", re.ASCII)
Origin = tuple[int, str]  # the images (0, "images"), or an output of a step 1..T


@dataclass(frozen=True)
class Step:
    """The graph of one step: its file and digest, names and shapes of its inputs and outputs, where each input comes from.

    `kept` is what later steps need of all that exists after it; `macs` are cumulative.
    """

    file: str
    sha256: str
    inputs: dict[str, tuple]
    sources: tuple[Origin, ...]
    outputs: dict[str, tuple]
    macs: int
    kept: frozenset[Origin] = frozenset()


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds; `digest` identifies its graphs, `metadata` has class names, rules and label levels."""

    model: str
    precision: str
    levels: tuple[int, ...]
    input_size: tuple[int, int, int]
    steps: tuple[Step, ...]
    digest: str
    metadata: Mapping[str, Any]

    @property
    def task(self) -> str:
        """classification, regression or dense."""
        return self.metadata.get("task", "classification")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ValueError: It is missing, damaged, of another version or engine, or asks for more than a network of this library does.
    """
    path = directory / MANIFEST
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{directory} is no exported folder: {path} is missing, a link, or larger than {MOST_BYTES:,} bytes")
    try:
        data = json.loads(path.read_bytes())
        if data.get("kind") != KIND or data.get("format") != FORMAT or data.get("engine") != ENGINE:
            given = [data.get(key) for key in ("kind", "format", "engine")]
            raise ValueError(f"it is {given}, and this version reads {[KIND, FORMAT, ENGINE]}")
        return _checked(data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} cannot be used: {reason}") from error


def _checked(data: Mapping[str, Any]) -> Manifest:
    size = tuple(data["input"][key] for key in ("channels", "height", "width"))
    levels, batch = tuple(data["levels"]), data["batch"]
    _require(all(map(_whole, (*size, *levels))) and levels, f"the input is {size} and the levels are {levels}")
    _require(math.prod(size) <= MOST_VALUES, f"its images have {math.prod(size):,} values, more than {MOST_VALUES:,}")
    _require(data["precision"] in PRECISIONS, f"its precision is {data['precision']!r}, not one of {', '.join(PRECISIONS)}")
    _require(batch in (1, "dynamic"), f"its batch is {batch!r}, neither 1 nor 'dynamic'")
    _require(1 <= len(data["steps"]) <= MOST_STEPS, f"it has {len(data['steps']):,} steps, not 1 to {MOST_STEPS:,}")
    first = "batch" if batch == "dynamic" else 1
    known: dict[Origin, tuple] = {(0, "images"): (first, *size)}
    steps = []
    for t, step in enumerate(data["steps"], 1):
        where = f"step {t}"
        _require(isinstance(step["file"], str) and _FILE.fullmatch(step["file"]), f"the file of {where} is {step['file']!r}")
        _require(isinstance(step["sha256"], str) and len(step["sha256"]) == 64, f"the SHA-256 of {where} is no digest")
        _require(_whole(step["macs"], 0) and step["macs"] <= MOST_MACS, f"the MACs of {where} are {step['macs']!r}")
        inputs, outputs = ({v["name"]: tuple(v["shape"]) for v in step[key]} for key in ("inputs", "outputs"))
        sources = tuple(_origin(value["from"]) for value in step["inputs"])
        for name, shape in (*inputs.items(), *outputs.items()):
            _require(
                isinstance(name, str) and shape[:1] == (first,) and all(_whole(n, 0) for n in shape[1:]), f"{where}: {shape}"
            )
            _require(math.prod(shape[1:]) <= MOST_TENSOR, f"{name!r} of {where} has more than {MOST_TENSOR:,} values")
        _require(next(iter(outputs), "") == "answer", f"the first output of {where} is not its answer")
        _require(outputs["answer"][1:2] == (sum(levels),), f"{where} does not answer for {sum(levels)} classes")
        for shape, source in zip(inputs.values(), sources, strict=True):
            _require(known.get(source) == shape, f"an input of {where} comes from {source}, which is not there")
        known |= {(t, name): shape for name, shape in outputs.items()}
        steps.append(Step(step["file"], step["sha256"], inputs, sources, outputs, step["macs"]))
    macs = [step.macs for step in steps]
    _require(macs == sorted(macs), f"MACs are cumulative and cannot fall, got {macs}")
    kept: frozenset[Origin] = frozenset()
    for t in range(len(steps) - 1, -1, -1):
        steps[t] = Step(**{**vars(steps[t]), "kept": frozenset(source for source in kept if source[0] <= t + 1)})
        kept = steps[t].kept | {*steps[t].sources}
    digest = hashlib.sha256(json.dumps(data["steps"]).encode()).hexdigest()
    metadata = data.get("metadata", {})
    rules = metadata.get("fitted", {}).values()
    whole = all(isinstance(each[key], dict) for each in rules for key in ("stop", "combine"))
    margin, chosen = metadata.get("margin", 1), metadata.get("answer_levels") or {"steps": [0] * len(steps)}
    _require(whole and 0 < margin <= 100 and math.prod(size) * max(margin, 1) ** 2 <= MOST_VALUES, f"its margin is {margin!r}")
    _require(len(chosen["steps"]) == len(steps), "its label levels are not those of its steps")
    _require({*chosen["steps"]} <= {*range(len(levels))}, f"it has no label levels {chosen['steps']}")
    _require(len(metadata.get("class_names") or levels) in (len(levels), sum(levels)), "it does not name each class")
    return Manifest(str(data["model"]), data["precision"], levels, size, tuple(steps), digest, metadata)


def _origin(value: Any) -> Origin:
    return (0, "images") if value == "images" else (value["step"], value["output"])


def _whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**62


def _require(right: Any, wrong: str) -> None:
    if not right:
        raise ValueError(wrong)
