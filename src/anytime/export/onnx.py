"""The graph of a step as an ONNX file."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import torch

from anytime.export.capture import CapturedStep, names_of, quiet
from anytime.runtime.engines.graph_check import check_graph
from anytime.runtime.engines.manifest import BATCH, GraphValue, Origin
from anytime.runtime.engines.step_file import INSTALL
from anytime.support.text import one_line

SUFFIX = ".onnx"
_MOST = 2**31 - 1  # bytes of a file of this format


def require_engine() -> None:
    """Raises ImportError, in one sentence, unless what makes and runs ONNX files is installed."""
    _require("onnx", "onnxruntime")


def require_openvino() -> None:
    """Raises ImportError, in one sentence, unless what makes ONNX files and OpenVINO are installed."""
    _require("openvino", "openvino")


def _require(engine: str, runs: str) -> None:
    for name in ("onnx", "onnxscript", runs):
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f"the engine {engine!r} needs {error.name or name}: {INSTALL}") from error


def convert(step: CapturedStep, name: str) -> tuple[bytes, list[GraphValue], list[Origin], list[GraphValue]]:
    """An ONNX file, its inputs and where they come from, and its outputs.

    Args:
        step: The captured step.
        name: What to call it in errors.

    Raises:
        ValueError: ONNX has no counterpart of an operator, or the file would exceed 2 GB; the message names the operator.
    """
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(step.program, dynamo=True, verbose=False, optimize=True)
    except Exception as error:  # of several layers of the exporter
        raise ValueError(f"{name} cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None
    model = program.model
    graph = model.graph
    named = zip(names_of(step.sources), [*graph.inputs], step.sources, step.used, strict=True)
    inputs, sources = [], []
    for given, value, source, used in named:
        value.name = given
        if not used:
            graph.inputs.remove(value)
            continue
        inputs.append(_value(value))
        sources.append(source)
    for given, value in zip(step.outputs, graph.outputs, strict=True):
        value.name = given
    outputs = [_value(value) for value in graph.outputs]
    shapes: list[Any] = [value.shape for value in (*graph.inputs, *graph.outputs)]
    for shape in shapes:
        if not isinstance(shape[0], int):
            shape[0] = BATCH
    _forget_origin(model)
    size = sum(tensor.const_value.nbytes for tensor in graph.initializers.values() if tensor.const_value is not None)
    if size > _MOST:
        raise ValueError(f"{name} has {size:,} bytes of weights, more than the {_MOST:,} of one ONNX file")
    data = program.model_proto.SerializeToString(deterministic=True)
    check_graph(data, name)
    return data, inputs, sources, outputs


def _value(value: Any) -> GraphValue:
    sizes = tuple(size if isinstance(size, int) else BATCH if i == 0 else str(size) for i, size in enumerate(value.shape))
    return GraphValue(value.name, sizes, _NAMES.get(value.dtype.name, value.dtype.name.lower()))


_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


def _forget_origin(model: Any) -> None:
    """Removes what the exporter notes about the code that a graph came from, such as paths on this machine."""
    model.doc_string, graph = None, model.graph
    graph.doc_string, graph.name = None, "step"
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        values += node.outputs
    for part in (model, graph, *values):
        part.metadata_props.clear()


def _reason(error: BaseException) -> str:
    """The operator that has no counterpart, or else the first sentence of the innermost error."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(chain) < 20:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in chain:
        if found := re.search(r"No (?:ONNX function|decompositions?) (?:found|registered)[^\n]*?op='?([\w.]+)", str(one)):
            return f"ONNX has no counterpart of the operator {found[1]}"
    for one in reversed(chain):
        if found := re.search(r"\b(aten|torchvision|prims|quantized|[a-z_]\w*)(?:::|\.)\w+(?:\.\w+)?", str(one)):
            return f"the operator {found[0]} fails: {one_line(one)[:300]}"
    return one_line(chain[-1])[:300]
