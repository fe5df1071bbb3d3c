"""An exported folder of two steps, written by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE, WIDE = (3, 8, 8), 256


def frame(*shape: int) -> Any:
    """A camera's frame of noise."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def graph(step: int, operators: int = 0, **kinds: Any) -> Any:
    """Step 1 makes 4 logits from images, and hands on their mean; step 2 adds the mean of `operators` large products."""
    import numpy as np
    import onnx
    from onnx import helper

    float32, numbers = onnx.TensorProto.FLOAT, np.random.default_rng(step)
    values = {"weight": numbers.standard_normal((192 if step == 1 else 4, 4), np.float32)}
    source = ("images", [1, *SIZE]) if step == 1 else ("input_0", [1, 4])
    nodes = [helper.make_node("Flatten", [source[0]], ["flat"], axis=1)]
    nodes.append(helper.make_node("MatMul", ["flat", "weight"], ["logits"], **kinds))
    last = "logits"
    if operators:
        values["wide"] = numbers.standard_normal((WIDE, WIDE), np.float32) / 16
        nodes.append(helper.make_node("ReduceMax", [source[0]], ["largest"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["wide", "largest"], ["m0"]))
        nodes += [helper.make_node("MatMul", [f"m{i}", "wide"], [f"m{i + 1}"]) for i in range(operators)]
        nodes += [helper.make_node("Tanh", [f"m{operators}"], ["end"])]
        nodes += [helper.make_node("ReduceMean", ["end"], ["mean"], keepdims=0)]
        nodes += [helper.make_node("Add", ["logits", "mean"], ["sum"])]
        last = "sum"
    nodes.append(helper.make_node("Identity", [last], ["answer"]))
    made = [helper.make_tensor_value_info("answer", float32, [1, 4])]
    if step == 1:
        nodes.append(helper.make_node("Tanh", ["logits"], ["state_0"]))
        made.append(helper.make_tensor_value_info("state_0", float32, [1, 4]))
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    given = [helper.make_tensor_value_info(source[0], float32, source[1])]
    body = helper.make_graph(nodes, "step", given, made, constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def written(folder: Path, files: list[bytes], change: Callable[[Any], Any] = lambda manifest: None) -> Path:
    """An exported folder of two steps, with a manifest that was changed."""
    images = {"name": "images", "shape": [1, *SIZE], "dtype": "float32", "from": "images"}
    state = {"name": "input_0", "shape": [1, 4], "dtype": "float32", "from": {"step": 1, "output": "state_0"}}
    answer, made = ({"name": name, "shape": [1, 4], "dtype": "float32"} for name in ("answer", "state_0"))
    steps = [
        {"file": f"step_{t}.onnx", "sha256": hashlib.sha256(data).hexdigest(), "macs": 10**9 * t, "difference": 0.0}
        | {"inputs": [images if t == 1 else state], "outputs": [answer, made] if t == 1 else [answer]}
        for t, data in enumerate(files, 1)
    ]
    size = {"channels": 3, "height": 8, "width": 8, "layout": "NCHW", "range": [0, 1], "mean": [0.0] * 3, "std": [1.0] * 3}
    saved = {"stop": {"kind": "confidence", "threshold": [0.0, "inf"]}, "combine": {"kind": "caching"}, "facts": {}}
    metadata = {"class_names": ["ape", "bee", "cat", "dog"], "margin": 1.25, "fitted": {"first": saved}}
    manifest: dict[str, Any] = {"kind": "anytime export", "format": 1, "engine": "onnx", "precision": "float32", "batch": 1}
    manifest |= {"model": "mine", "parameters": 48, "levels": [4], "input": size, "check": {"tolerance": 1e-4, "images": {}}}
    manifest |= {"steps": steps, "metadata": metadata}
    change(manifest)
    folder.mkdir(exist_ok=True)
    for t, data in enumerate(files, 1):
        (folder / f"step_{t}.onnx").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
