"""The graphs of an export without their weights, and the weights once, in float16 where that is as good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime.runtime.engines.exported import ExportedModel, load_export, write_manifest

FILE = "weights"  # what the graphs call the pool of weights
SMALLEST = 64  # numbers; tensors of fewer stay in their graph
EXACT, HALF, SCALED = "float32", "float16", "float16 times a factor of each row"


@dataclass(frozen=True)
class Weight:
    """A tensor of the pool.

    Attributes:
        form: How it is stored.
        values: What is stored: float32, or float16.
        factors: The factors of `SCALED`, float32, one for each row.
    """

    form: str
    values: np.ndarray
    factors: np.ndarray | None = None

    def unpacked(self) -> np.ndarray:
        """The tensor in float32."""
        values = self.values.astype(np.float32)
        return values if self.factors is None else (values.reshape(len(self.factors), -1) * self.factors[:, None]).ravel()


@dataclass(frozen=True)
class Packed:
    """An export as a page holds it.

    Attributes:
        files: The ONNX file of each graph without the tensors of the pool, by its name in the export.
        pool: The tensors; where a graph expects them, they lie one behind the other in float32.
    """

    files: dict[str, bytes]
    pool: list[Weight]

    def directory(self) -> list[dict[str, Any]]:
        """Form, number of values and number of rows of each tensor."""
        rows = [0 if weight.factors is None else len(weight.factors) for weight in self.pool]
        return [{"form": w.form, "size": w.values.size, "rows": n} for w, n in zip(self.pool, rows, strict=True)]

    def halves(self) -> bytes:
        """All float16 values: first the upper bytes, which compress, then the lower ones."""
        values = [w.values for w in self.pool if w.form != EXACT]
        return np.concatenate([np.empty(0, "<f2"), *values]).astype("<f2").view(np.uint8).reshape(-1, 2)[:, ::-1].T.tobytes()

    def singles(self) -> bytes:
        """All float32 values, those of each tensor or its factors."""
        parts = [w.values if w.form == EXACT else w.factors for w in self.pool if w.form != HALF]
        return np.concatenate([np.empty(0, "<f4"), *(part for part in parts if part is not None)]).astype("<f4").tobytes()

    def rounded(self) -> Packed:
        """The same with all tensors in float16 that fit its range."""
        with np.errstate(over="ignore"):
            pairs = [(w, w.values.astype(np.float16)) for w in self.pool]
        pool = [Weight(HALF, half) if w.form == EXACT and np.isfinite(half).all() else w for w, half in pairs]
        return replace(self, pool=pool)


def pack(export: ExportedModel, folder: Path, parameters: Mapping[str, Tensor]) -> Packed:
    """The export with each weight once, each in the smallest form that is exact or differs in the last bits of float32.

    An export multiplies a convolution's weights by the factors of the batch norm after it. If the parameter itself is exact in
    float16, it is stored with those factors.

    Args:
        export: In float32, with batch 1.
        folder: Where its files are.
        parameters: Those of the model, by name.
    """
    import onnx
    from onnx import numpy_helper

    files, pool, places = dict[str, bytes](), list[Weight](), dict[tuple[bytes, tuple[int, ...]], int]()
    end = 0
    for name in dict.fromkeys(step.file for step in export.manifest.steps):
        graph = onnx.load(folder / name, load_external_data=False)
        for tensor in graph.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or values.size < SMALLEST:
                continue
            key = hashlib.sha256(values.tobytes()).digest(), values.shape
            if key not in places:
                places[key], end = end, end + values.nbytes
                pool.append(_weight(values, parameters.get(tensor.name.removeprefix("model."))))
            for entry in ("raw_data", "float_data"):
                tensor.ClearField(entry)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for entry, value in (("location", FILE), ("offset", places[key]), ("length", values.nbytes)):
                tensor.external_data.add(key=entry, value=str(value))
        files[name] = graph.SerializeToString(deterministic=True)
    return Packed(files, pool)


def _weight(values: np.ndarray, parameter: Tensor | None) -> Weight:
    flat = values.ravel()
    if _is_half(flat):
        return Weight(HALF, flat.astype(np.float16))
    if parameter is not None and parameter.shape == values.shape and values.ndim > 1:
        own = parameter.detach().float().cpu().numpy().reshape(len(values), -1)
        rows, places = flat.reshape(own.shape), np.abs(own).argmax(1)[:, None]
        largest = np.take_along_axis(own, places, 1)
        factors = (np.take_along_axis(rows, places, 1) / np.where(largest == 0, 1, largest)).astype(np.float32)
        if _is_half(own) and np.allclose(own * factors, rows, rtol=1e-6, atol=0):
            return Weight(SCALED, own.ravel().astype(np.float16), factors[:, 0])
    return Weight(EXACT, flat)


def _is_half(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


def largest_difference(packed: Packed, export: ExportedModel, expected: Tensor, images: Tensor, folder: Path) -> float:
    """The largest difference of a probability from the expected ones `[T, N, K]`, if the engine computes with these weights.

    Args:
        packed: The graphs and weights.
        export: What they were made from.
        expected: The model's own, of the first label level.
        images: `[N, C, H, W]` in [0, 1].
        folder: A new folder, for the graphs with their weights.
    """
    import onnx

    folder.mkdir()
    pool = b"".join(weight.unpacked().astype("<f4").tobytes() for weight in packed.pool)
    (folder / FILE).write_bytes(pool)
    digests = {}
    for name, data in packed.files.items():
        graph = onnx.ModelProto.FromString(data)
        onnx.load_external_data_for_model(graph, str(folder))
        whole = graph.SerializeToString(deterministic=True)
        (folder / name).write_bytes(whole)
        digests[name] = hashlib.sha256(whole).hexdigest()
    steps = tuple(replace(step, sha256=digests[step.file]) for step in export.manifest.steps)
    write_manifest(folder, replace(export.manifest, steps=steps))
    with torch.inference_mode():
        answers = load_export(folder)(images)[..., : expected.shape[2]].softmax(2)
    return float((answers - expected).abs().max())
