"""Exports in INT8, judged by their accuracy, and exports with all steps as one graph."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import anytime
from anytime.export.quantize import Calibration, Int8Row, check_loss
from anytime.runtime.engines.whole import WholeRun


def random_weights(model: anytime.AnytimeModel) -> anytime.AnytimeModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.eval()


class Two(anytime.AnytimeModel):
    """Two convolutions, each with a head."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(4, in_channels=1)
        self.convolutions = nn.ModuleList([nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)])
        self.heads = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])

    def initial_state(self, x: Tensor) -> tuple[int, Tensor]:
        self.check_input(x)
        return 0, x

    def step(self, state: tuple[int, Tensor]) -> tuple[Tensor, tuple[int, Tensor]]:
        maps = self.convolutions[state[0]](state[1]).relu()
        return self.heads[state[0]](maps.amax((2, 3))), (state[0] + 1, maps)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_export_in_int8_is_judged_by_its_accuracy(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    model, x = random_weights(Two()), torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = model(x)[-1].argmax(1)
    seen: list[Any] = []
    settings: dict[str, Any] = {"precision": "int8", "input_size": (1, 8, 8), "accepted": seen.extend}
    made = anytime.export_model(model, tmp_path / "out", engine, calibration=Calibration(x, labels, 0.2), **settings)
    assert [row.step for row in seen] == [1, 2]
    assert seen[1].accuracy == 1 >= seen[1].accuracy_int8 >= 0.8
    assert (made.manifest.precision, made.deployment["dtype"]) == ("int8", "int8")
    difference = (made(x) - model(x).detach()).abs().max() / model(x).detach().abs().max()
    assert 1e-4 < difference < (0.1 if engine == "onnx" else 0.02)  # rounded, and not otherwise wrong
    assert b"QuantizeLinear" in (tmp_path / "out/step_1.onnx").read_bytes()
    wrong = [Int8Row(1, 0.9, 0.9, 1, 1), Int8Row(2, 0.95, 0.93, 1, 1)]
    check_loss(wrong, 0.02)
    with pytest.raises(
        ValueError, match=r"in INT8 step 2 answers 93.00% of the images right instead of 95.00%, a loss of more"
    ):
        check_loss(wrong, 0.01)
    for images, given, loss, message in (
        (x, labels[1:], 0.1, "at least 2 images and a label for each"),
        (x, labels, -1, r"max_loss must be a share of the images in \[0, 1\], got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration(images, given, loss)


def test_what_openvino_makes_wrong_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from anytime.runtime.engines.openvino import OpenvinoGraph

    run = OpenvinoGraph.run
    wrong = lambda self, *given: [out * (1 if self._precision == "float32" else 1.5) for out in run(self, *given)]  # noqa: E731
    monkeypatch.setattr(OpenvinoGraph, "run", wrong)
    x = torch.rand(4, 1, 8, 8)
    calibration = Calibration(x, torch.zeros(4, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="openvino computes INT8 otherwise than ONNX Runtime: step 1 of the export differs"):
        anytime.export_model(
            random_weights(Two()),
            tmp_path / "out",
            "openvino",
            precision="int8",
            calibration=calibration,
            input_size=(1, 8, 8),
        )


def test_all_steps_as_one_graph(tmp_path: Path) -> None:
    model, x = random_weights(Two()), torch.rand(1, 1, 8, 8)
    folder = tmp_path / "out"
    made = anytime.export_model(model, folder, input_size=(1, 8, 8), one_graph=True)
    run, expected = WholeRun(made), model(x).detach()
    for _ in range(2):
        run.start(x)
        torch.testing.assert_close(torch.stack(run.wait()), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    run.start(x)
    run.cancel()
    assert len(run.wait()) <= 2  # those that were there
    run.start(x)
    assert len(run.wait()) == 2  # the engine is as before
    with pytest.raises(ValueError, match=r"one image of \[1, 1, 8, 8\] at a time, after the one before, got \[2, 1, 8, 8\]"):
        run.start(torch.rand(2, 1, 8, 8))
    made.save(tmp_path / "copy")
    WholeRun(anytime.load(tmp_path / "copy")).start(x)
    anytime.export_model(model, folder, input_size=(1, 8, 8), overwrite=True)
    assert not (folder / "step_0.onnx").exists()
    with pytest.raises(ValueError, match="has no graph of all steps: make it with one_graph=True"):
        WholeRun(anytime.load(folder))
    path = tmp_path / "copy/manifest.json"
    text = path.read_text()
    for old, new, message in (
        ('"file": "step_0.onnx"', '"file": "step_1.onnx"', "the graph of all steps is"),
        ('"answer_2"', '"answer_3"', "does not make all answers of the images"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            anytime.load(tmp_path / "copy")


def test_an_answer_is_there_when_its_memory_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has written one answer, and half of the next."""
    run = object.__new__(WholeRun)
    run._answers = [torch.ones(1, 2).numpy(), torch.tensor([[1.0, math.nan]]).numpy(), torch.ones(1, 2).numpy()]
    run._done = threading.Event()
    assert [answer.tolist() for answer in run.answers()] == [[[1.0, 1.0]]]
