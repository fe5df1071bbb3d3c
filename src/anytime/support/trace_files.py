"""Traces as safetensors files.

Version 1 holds logits, labels and costs; features were `[T, N, F]`, class weights `[K, F]` or `[T, K, F]`. In version 2 those
of all steps lie side by side, with their widths in the header, and there may be outputs of other tasks, targets and
activations. A trace that needs nothing of version 2 is written as version 1.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from anytime.support.documents import parse_json
from anytime.support.limits import UNFIT
from anytime.support.tensor_files import MOST, read_metadata, read_tensors, write_tensors
from anytime.support.text import one_line

AnyTrace = TypeVar("AnyTrace")

_FORMAT = "anytime-trace"
_FIRST = {"logits", "labels", "macs", "contract_macs", "seconds"}  # what version 1 holds in the same form
_ACTIVATIONS = "activations."
_LAYERS = ("features", "class_weights")


def write_trace(path: str | os.PathLike[str], values: Mapping[str, Any], task: str) -> None:
    """Writes the fields of a trace, see `Trace.save`."""
    tensors: dict[str, Tensor] = {"logits" if task == "classification" else "outputs": values["outputs"]}
    tensors |= {name: values[name] for name in ("labels", "macs", "contract_macs", "seconds", "targets")}
    tensors |= {f"{_ACTIVATIONS}{name}": value for name, value in values["activations"].items()}
    facts = {"class_names": values["class_names"], "meta": dict(values["meta"])}
    for name in _LAYERS:
        if (parts := values[name]) is not None:
            tensors[name] = torch.cat(list(parts), dim=1)
            facts["widths"] = [part.shape[1] for part in parts]
    tensors = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    if len(tensors) > MOST:
        raise ValueError(
            f"a file holds at most {MOST} tensors, this trace has {len(tensors)}: keep activations of fewer layers"
        )
    try:
        header = json.dumps(facts)
    except TypeError as error:
        raise ValueError(f"the meta of a trace must be JSON: {error}") from None
    version = "1" if tensors.keys() <= _FIRST else "2"
    metadata = {"format": _FORMAT, "version": version, "trace": header, "crc32": _crc32(header, tensors)}
    write_tensors(path, tensors, metadata)


def read_trace(path: str | os.PathLike[str], build: Callable[..., AnyTrace]) -> AnyTrace:
    """Calls `build` with the fields of a trace in a file, see `Trace.load`."""
    tensors, metadata = read_tensors(path, "a trace")
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is a safetensors file but not a trace; anytime.record writes traces")
    if (version := metadata.get("version")) not in ("1", "2"):
        raise ValueError(f"{path} has trace format version {version}; this version of anytime reads 1 and 2")
    header = metadata.get("trace", "")
    if metadata.get("crc32") != _crc32(header, tensors):
        raise ValueError(f"{path} is damaged: its content does not match the checksum {metadata.get('crc32')}")
    facts = parse_json(header, path, nodes=10_000_000)  # the group of each image
    try:
        return build(**_fields(tensors, facts))
    except UNFIT as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error


def trace_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts about a trace in a file, whose tensors are not read; raises ValueError if the file is damaged."""
    try:
        facts = parse_json(read_metadata(path, "a trace").get("trace", ""), path, nodes=10_000_000)
        return dict(facts["meta"])
    except UNFIT as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error


def is_study_trace(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a trace that a study recorded, which says on what the network was trained."""
    try:
        return "trained_on" in trace_meta(path)
    except (OSError, ValueError):
        return False


def _fields(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    layers: dict[str, Any] = {name: tensors.get(name) for name in _LAYERS}
    if "widths" in facts:
        layers = {name: None if value is None else value.split(facts["widths"], 1) for name, value in layers.items()}
    activations = {name.removeprefix(_ACTIVATIONS): t for name, t in tensors.items() if name.startswith(_ACTIVATIONS)}
    return {
        "outputs": tensors["logits"] if "logits" in tensors else tensors["outputs"],
        **{name: tensors.get(name) for name in ("labels", "macs", "contract_macs", "seconds", "targets")},
        **layers,
        "class_names": tuple(facts["class_names"]),
        "meta": facts["meta"],
        "activations": activations,
    }


def _crc32(header: str, tensors: Mapping[str, Tensor]) -> str:
    checksum = zlib.crc32(header.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
