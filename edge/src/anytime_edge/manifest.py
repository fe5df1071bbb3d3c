"""What an exported folder holds: `manifest.json` and the ONNX files, checked before any library sees them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST, KIND, FORMAT, ENGINE = "manifest.json", "anytime export", 1, "onnx"
PRECISIONS = ("float32", "int8")
MOST_BYTES, MOST_STEPS, MOST_MACS, MOST_NODES = 2**24, 1_000, 10**12, 20_000
MOST_VALUES, MOST_TENSOR = 3 * 2048 * 4096, 2**30  # of an image, of a tensor
_FILE = re.compile(r"step_[1-9][0-9]{0,3}\.onnx", re.ASCII)
Shapes = tuple[tuple[str, tuple], ...]  # names and shapes of tensors
Origin = tuple[int, str]  # the images (0, "images"), or an output of a step 1..T

# of a message in the file, and the number of its field: what the field holds
_PARTS = {("file", 7): "graph", ("graph", 1): "node", ("graph", 5): "tensor", ("node", 5): "attribute"}
_PARTS |= {("attribute", 5): "tensor", ("attribute", 10): "tensor"}
_FOREIGN = {("file", 20): "a training", ("file", 25): "operators of its own", ("tensor", 13): "constants in another file"}
_FOREIGN |= {("attribute", 6): "a graph within an operator", ("attribute", 11): "graphs within an operator"}
_FOREIGN |= dict.fromkeys([("graph", 15), ("attribute", 22), ("attribute", 23)], "sparse constants")
_DOMAIN, _LOCATION = ("node", 7), ("tensor", 14)


class Step(NamedTuple):
    """The graph of one step: its file and digest, its inputs and outputs, where each input comes from, and cumulative MACs."""

    file: str
    sha256: str
    inputs: Shapes
    sources: tuple[Origin, ...]
    outputs: Shapes
    macs: int


class Manifest(NamedTuple):
    """What an exported folder holds; `digest` identifies its graphs, `metadata` has class names, rules and label levels.

    `last` is the last step that reads each value.
    """

    model: str
    precision: str
    levels: tuple[int, ...]
    input_size: tuple[int, ...]
    steps: tuple[Step, ...]
    digest: str
    metadata: Mapping[str, Any]
    last: Mapping[Origin, int]


def read_file(path: Path, most: int) -> bytes:
    """What a file of at most so many bytes holds; ValueError if it is missing, a link, or larger."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > most:
        raise ValueError(f"{path} is missing, a link, or larger than {most:,} bytes: {path.parent} is no exported folder")
    return path.read_bytes()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ValueError: It is missing, damaged, of another version or engine, or asks for more than a network of this library does.
    """
    path = directory / MANIFEST
    text = read_file(path, MOST_BYTES)
    try:
        data = json.loads(text)
        given = [data.get(key) for key in ("kind", "format", "engine")]
        _require(given == [KIND, FORMAT, ENGINE], f"it is {given}, and this version reads {[KIND, FORMAT, ENGINE]}")
        return _checked(data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} cannot be used: {reason}") from error


def _checked(data: Mapping[str, Any]) -> Manifest:
    size = tuple(data["input"][key] for key in ("channels", "height", "width"))
    levels, batch, count = tuple(data["levels"]), data["batch"], len(data["steps"])
    _require(all(map(_whole, (*size, *levels))) and levels, f"the input is {size} and the levels are {levels}")
    _require(math.prod(size) <= MOST_VALUES, f"its images have {math.prod(size):,} values, more than {MOST_VALUES:,}")
    _require(data["precision"] in PRECISIONS, f"its precision is {data['precision']!r}, not one of {', '.join(PRECISIONS)}")
    _require(batch in (1, "dynamic"), f"its batch is {batch!r}, neither 1 nor 'dynamic'")
    _require(1 <= count <= MOST_STEPS, f"it has {count:,} steps, not 1 to {MOST_STEPS:,}")
    known: dict[Origin, tuple] = {(0, "images"): ("batch" if batch == "dynamic" else 1, *size)}
    steps, last = list[Step](), dict[Origin, int]()
    for t, entry in enumerate(data["steps"], 1):
        steps.append(_step(f"step {t}", entry, known, sum(levels)))
        known |= {(t, name): shape for name, shape in steps[-1].outputs}
        last |= dict.fromkeys(steps[-1].sources, t)
    macs = [step.macs for step in steps]
    _require(macs == sorted(macs), f"MACs are cumulative and cannot fall, got {macs}")
    metadata = data.get("metadata", {})
    whole = all(isinstance(each[key], dict) for each in metadata.get("fitted", {}).values() for key in ("stop", "combine"))
    margin, chosen = metadata.get("margin", 1), (metadata.get("answer_levels") or {"steps": [0] * count})["steps"]
    _require(whole and 0 < margin <= 100 and math.prod(size) * max(margin, 1) ** 2 <= MOST_VALUES, f"its margin is {margin!r}")
    _require(len(chosen) == count and {*chosen} <= {*range(len(levels))}, f"it has {count} steps, and label levels {chosen}")
    names, classes = metadata.get("class_names") or [], sum(levels)
    every = isinstance(names, list) and (len(names) in (0, classes) or metadata.get("task") == "regression")
    _require(every, f"class_names has {len(names)} names, but the model has {classes} classes")
    digest = hashlib.sha256(json.dumps(data["steps"]).encode()).hexdigest()
    return Manifest(str(data["model"]), data["precision"], levels, size, tuple(steps), digest, metadata, last)


def _step(where: str, entry: Mapping[str, Any], known: Mapping[Origin, tuple], classes: int) -> Step:
    """A step whose inputs are images or outputs of earlier steps: those of `known`, with their shapes."""
    file, sha256, macs = (entry[key] for key in ("file", "sha256", "macs"))
    _require(isinstance(file, str) and _FILE.fullmatch(file), f"the file of {where} is {file!r}")
    _require(isinstance(sha256, str) and len(sha256) == 64, f"the SHA-256 of {where} is no digest")
    _require(_whole(macs, 0) and macs <= MOST_MACS, f"the MACs of {where} are {macs!r}")
    inputs, outputs = (tuple((value["name"], tuple(value["shape"])) for value in entry[key]) for key in ("inputs", "outputs"))
    origins = (value["from"] for value in entry["inputs"])
    sources = tuple((0, "images") if each == "images" else (each["step"], each["output"]) for each in origins)
    for name, (first, *shape) in (*inputs, *outputs):
        right = isinstance(name, str) and first == known[0, "images"][0] and all(_whole(n, 0) for n in shape)
        _require(right, f"{name!r} of {where} has the shape {[first, *shape]}")
        _require(math.prod(shape) <= MOST_TENSOR, f"{name!r} of {where} has more than {MOST_TENSOR:,} values")
    _require(outputs and outputs[0][0] == "answer", f"the first output of {where} is not its answer")
    _require(outputs[0][1][1:2] == (classes,), f"{where} does not answer for {classes} classes")
    for (_, given), source in zip(inputs, sources, strict=True):
        _require(known.get(source) == given, f"an input of {where} comes from {source}, which is not there")
    return Step(file, sha256, inputs, sources, outputs, macs)


def _whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**62


def _require(right: Any, wrong: str) -> None:
    if not right:
        raise ValueError(wrong)


def check_graph(data: bytes, source: str) -> None:
    """Raises ValueError unless an ONNX file holds all that it needs, and only plain operators of ONNX itself.

    No library is asked before: the fields of the file are walked here, and constants are passed over.
    """
    nodes, pending = 0, [("file", memoryview(data))]
    try:
        while pending:
            kind, part = pending.pop()
            for number, value in _fields(part):
                field = kind, number
                if field in _FOREIGN:
                    raise ValueError(f"{source} holds {_FOREIGN[field]}, which no export has")
                if field == _LOCATION and value != 0:
                    raise ValueError(f"{source} keeps a constant in another file; an export holds all in its own")
                if field == _DOMAIN and value not in (b"", b"ai.onnx"):
                    raise ValueError(f"{source} uses an operator of {bytes(memoryview(value))!r}, which is none of ONNX's own")
                if field in _PARTS:
                    pending.append((_PARTS[field], memoryview(value)))
                    nodes += _PARTS[field] == "node"
    except (LookupError, TypeError):
        raise ValueError(f"{source} is damaged: it is no ONNX file") from None
    if not 0 < nodes <= MOST_NODES:
        raise ValueError(f"{source} has {nodes:,} operators, not 1 to {MOST_NODES:,}")


def _fields(part: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message of protobuf: bytes, or a whole number; 0 for numbers of fixed size."""
    place = 0
    while place < len(part):
        key, place = _number(part, place)
        value: Any = 0
        if key & 7 == 2:
            size, start = _number(part, place)
            value, place = part[start : start + size], start + size
        elif key & 7 == 0:
            value, place = _number(part, place)
        else:
            place += {1: 8, 5: 4}[key & 7]
        if place > len(part) or key >= 2**32:  # other readers cut a longer key
            raise IndexError
        yield key >> 3, value


def _number(part: memoryview, start: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and the place after it."""
    value = 0
    for place in range(start, start + 10):
        value |= (part[place] & 127) << 7 * (place - start)
        if part[place] < 128:
            return value, place + 1
    raise IndexError
