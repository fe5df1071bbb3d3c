"""Steps that an engine is told to end: an export of two steps, the second of many operators, written by hand."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anytime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE, WIDE, MANY = (1, 4, 4), 256, 60


def graph(operators: int) -> bytes:
    """3 logits from images; with `operators`, plus the mean of a matrix that takes as many products of 17 million MACs."""
    helper, numbers = onnx.helper, np.random.default_rng(0)
    nodes = [helper.make_node("Flatten", ["images"], ["flat"], axis=1)]
    nodes.append(helper.make_node("MatMul", ["flat", "weight"], ["logits" if operators else "answer"]))
    values = {"weight": numbers.standard_normal((16, 3), np.float32)}
    if operators:
        values["wide"] = numbers.standard_normal((WIDE, WIDE), np.float32) / 16
        nodes.append(helper.make_node("ReduceMax", ["images"], ["largest"], keepdims=0))  # so that nothing is constant
        nodes.append(helper.make_node("Mul", ["wide", "largest"], ["m0"]))
        nodes += [helper.make_node("MatMul", [f"m{i}", "wide"], [f"m{i + 1}"]) for i in range(operators)]
        nodes += [helper.make_node("Tanh", [f"m{operators}"], ["end"])]
        nodes += [helper.make_node("ReduceMean", ["end"], ["mean"], keepdims=0)]
        nodes += [helper.make_node("Add", ["logits", "mean"], ["answer"])]
    given, made = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, *SIZE]), ("answer", [1, 3]))
    )
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    step = helper.make_graph(nodes, "step", [given], [made], constants)
    return helper.make_model(step, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def export(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> anytime.AnytimeModel:
    pytest.importorskip({"onnx": "onnxruntime"}.get(request.param, request.param))
    folder, steps = tmp_path_factory.mktemp("export"), []
    for t, data in enumerate((graph(0), graph(MANY)), 1):
        (folder / f"step_{t}.onnx").write_bytes(data)
        inputs = [{"name": "images", "shape": [1, *SIZE], "dtype": "float32", "from": "images"}]
        outputs = [{"name": "answer", "shape": [1, 3], "dtype": "float32"}]
        known = {
            "file": f"step_{t}.onnx",
            "sha256": hashlib.sha256(data).hexdigest(),
            "macs": 48 + (t - 1) * MANY * WIDE**3,
            "difference": 0.0,
        }
        steps.append({**known, "inputs": inputs, "outputs": outputs})
    images = {"channels": 1, "height": 4, "width": 4, "layout": "NCHW", "range": [0, 1], "mean": [0.0], "std": [1.0]}
    known = {
        "kind": "anytime export",
        "format": 1,
        "engine": request.param,
        "precision": "float32",
        "batch": 1,
        "model": "mine",
    }
    rest = {"parameters": 0, "levels": [3], "input": images, "check": {"tolerance": 1e-4, "images": {}}, "metadata": {}}
    (folder / "manifest.json").write_text(json.dumps({**known, **rest, "steps": steps}))
    return anytime.load(folder)


def test_deadlines_and_interruptions_cancel_a_step(export: Any) -> None:
    x = torch.rand(1, *SIZE)
    right = dict(enumerate(export(x), 1))
    predictor, reasons = anytime.Predictor(export), set()
    for deadline in ("2ms", "5ms", "10ms", "20ms"):
        answer = predictor(x, deadline=deadline)
        *_, end = predictor.stream(x, deadline=deadline)
        with predictor.session(x) as session:
            while session.best().step < 1:
                time.sleep(1e-4)
            session.interrupt()
        reasons.add(session.best().reason)
        for one in (answer, end, session.best()):
            assert one.step == -1 or torch.equal(one.outputs, right[one.step])
        assert answer.reason == ("complete" if answer.step == 2 else "deadline")
    assert reasons <= {"interrupted", "complete"}
    assert torch.equal(predictor(x).outputs, right[2])  # the engine is as it was
    assert torch.equal(predictor(x, deadline=60).outputs, right[2])
    assert torch.equal(anytime.Predictor(export, interrupt="step")(x, deadline=60).outputs, right[2])


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_an_error_of_a_signals_handler_is_raised_although_the_step_was_cancelled(export: Any, kind: type[Exception]) -> None:
    """A handler runs in Python, so right after the engine's code, when the alarm may have rung."""
    x, (first, graph) = torch.rand(1, *SIZE), export._graphs
    predictor = anytime.Predictor(export)
    right = predictor(x).outputs

    class Interrupted:
        """A session of ONNX Runtime, or a request of OpenVINO."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def run(self, names: Any, given: Any, call: Any) -> Any:
            graph.cancel(call)
            raise kind("cancelled by the user")

        def wait(self) -> None:
            (call,) = calls
            graph.cancel(call)
            raise kind("cancelled by the user")

    calls, new = list[Any](), graph.call
    first.call = graph.call = lambda: calls.append(new()) or calls[-1]
    if hasattr(graph, "_free"):
        graph._free[:] = [Interrupted(graph._free.pop())]
    else:
        real, graph._session = graph._session, Interrupted(graph._session)
    with pytest.raises(kind, match="cancelled by the user"):
        predictor(x, deadline=60)
    if hasattr(graph, "_free"):
        assert graph._free == []  # it may still compute
    else:
        graph._session = real
    del first.call, graph.call
    assert torch.equal(predictor(x, deadline=60).outputs, right)


def test_a_profile_knows_the_longest_operator_and_the_memory(export: Any, tmp_path: Path) -> None:
    measured = anytime.profile(export, SIZE, repeats=15, warmup=0)
    operators, memory = measured.batches[1].operators, measured.batches[1].memory
    assert measured.interrupt == "operator"
    assert [row.n for row in operators] == [15, 15]
    assert operators[0].p50 < operators[1].p50
    assert memory == () or memory[1] > WIDE * WIDE * 4 > memory[0]  # older versions of ONNX Runtime do not say
    measured.save(tmp_path / "profile.json")
    assert anytime.Profile.load(tmp_path / "profile.json") == measured
    assert anytime.Predictor(export, measured)(torch.rand(1, *SIZE), deadline=60).step == 2
