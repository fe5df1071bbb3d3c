"""Exported folders that OpenVINO computes: the files of ONNX Runtime, the same checks, and a precision that is pinned."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anytime

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
SIZE = (1, 4, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Makes an exported folder of one step, 3 logits from images by a matrix product."""
    helper = onnx.helper

    def make(precision: str = "float32", external: bool = False, columns: int = 3, engine: str = "openvino") -> Path:
        values = torch.rand(16, columns, generator=torch.Generator().manual_seed(0)).numpy()
        weight = onnx.numpy_helper.from_array(values, "weight")
        if external:
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value="/etc/passwd")
        nodes = [
            helper.make_node("Flatten", ["images"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["answer"]),
        ]
        given = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", *SIZE])
        made = helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, ["batch", columns])
        graph = helper.make_graph(nodes, "step", [given], [made], [weight])
        data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
        step = {"file": "step_1.onnx", "sha256": hashlib.sha256(data).hexdigest(), "macs": 48, "difference": 0.0}
        step["inputs"] = [{"name": "images", "shape": ["batch", *SIZE], "dtype": "float32", "from": "images"}]
        step["outputs"] = [{"name": "answer", "shape": ["batch", 3], "dtype": "float32"}]
        images = {"channels": 1, "height": 4, "width": 4, "layout": "NCHW", "range": [0, 1], "mean": [0.0], "std": [1.0]}
        known = {"kind": "anytime export", "format": 1, "engine": engine, "precision": precision, "batch": "dynamic"}
        known |= {"model": "mine", "parameters": 48, "levels": [3], "input": images, "metadata": {}, "steps": [step]}
        (tmp_path / "step_1.onnx").write_bytes(data)
        (tmp_path / "manifest.json").write_text(json.dumps({**known, "check": {"tolerance": 1e-4, "images": {}}}))
        return tmp_path

    return make


def test_the_answers_are_those_of_onnx_runtime(folder: Any) -> None:
    pytest.importorskip("onnxruntime")
    x = torch.rand(5, *SIZE)
    own = anytime.load(folder())
    assert own.deployment["engine"].startswith("openvino 20")
    torch.testing.assert_close(own(x), anytime.load(folder(engine="onnx"))(x), rtol=0, atol=1e-6)
    measured = anytime.profile(own, SIZE, repeats=2, warmup=0)
    assert (measured.interrupt, measured.batches[1].memory) == ("operator", ())
    assert anytime.Predictor(own, measured)(x[:1], deadline=60).step == 1


def test_the_precision_is_that_of_the_manifest(folder: Any) -> None:
    """OpenVINO would take bfloat16 by itself where the processor has it."""
    x = torch.rand(64, *SIZE)
    exact = anytime.load(folder())(x)
    expected = x.flatten(1) @ torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exact[0], expected, rtol=0, atol=1e-5)
    if "bf16" not in str(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")).lower():
        with pytest.raises(ValueError, match="is of bfloat16, and OpenVINO computes in f32 on this processor"):
            anytime.load(folder("bfloat16"))
        return
    rounded = anytime.load(folder("bfloat16"))
    assert rounded.deployment["dtype"] == "bfloat16"
    assert (rounded(x) - exact).abs().max() < 0.1


def test_what_is_wrong_is_said_before_the_engine_sees_it(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="in another file"):
        anytime.load(folder(external=True))
    with pytest.raises(ValueError, match="which are not those of the manifest"):
        anytime.load(folder(columns=4))
    with pytest.raises(ValueError, match=r"is of bfloat16, the engine 'onnx' has float32, int8"):
        anytime.load(folder("bfloat16", engine="onnx"))
    made = folder()
    (made / "step_1.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="is damaged: SHA-256"):
        anytime.load(made)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"the engine 'openvino' needs openvino: pip install 'anytime-nets\[engines\]'"):
        anytime.load(folder())


def test_denormal_numbers_of_the_caller_stay(folder: Any) -> None:
    torch.set_flush_denormal(False)
    anytime.load(folder())(torch.rand(1, *SIZE))
    assert sys.float_info.min * 0.5 != 0.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("count", [1, 2])
def test_a_forked_process_loads_it_anew(folder: Any, count: int, threads: Any) -> None:
    threads(count)
    own, x = anytime.load(folder()), torch.rand(1, *SIZE)
    expected = own(x)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        right = torch.allclose(own(x), expected)
        del own
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_signals_are_handled_after_exports_are_gone(folder: Any) -> None:
    """On Linux each `Core` changes the stack of signal handlers, and frees it at its end; the next signal would crash."""
    made = folder()
    if (child := os.fork()) == 0:
        signal.alarm(30)
        handled: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
        first, second = anytime.load(made), anytime.load(made)
        for one in (first, second):
            one(torch.rand(1, *SIZE))
        del one, first
        gc.collect()
        del second
        gc.collect()
        os.kill(os.getpid(), signal.SIGUSR1)
        os._exit(0 if handled == [signal.SIGUSR1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError], ids=lambda error: error.__name__)
@pytest.mark.parametrize("deadline", [None, 60])
def test_a_request_that_was_interrupted_is_not_used_again(
    folder: Any, error: type[BaseException], deadline: float | None
) -> None:
    """By Ctrl-C, or by what a handler of a signal raises: it may still compute."""
    export, x = anytime.load(folder()), torch.rand(1, *SIZE)
    predictor, made = anytime.Predictor(export), list[Any]()
    (graph,), right = export._graphs, predictor(x).outputs

    class Interrupted:
        def __init__(self, request: Any) -> None:
            self.request = request
            made.append(self)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.request, name)

        def wait(self) -> None:
            raise error

    graph._free[:] = [Interrupted(graph._free.pop())]
    with pytest.raises(error):
        predictor(x, deadline=deadline)
    assert len(made) == 1
    assert made[0] not in graph._free
    assert torch.equal(predictor(x, deadline=deadline).outputs, right)
