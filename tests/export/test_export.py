"""Exported folders: the same answers, whatever a state holds, and everything that takes a model takes them."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import anytime
from anytime.cli import main
from anytime.export.capture import _adaptive_max_pool
from anytime.export.check import TOLERANCES, compare
from anytime.runtime.engines.base import Cancelled
from anytime.runtime.engines.exported import ExportedModel, ExportedSteps
from anytime.stopping import Confidence, Fitted, save_rule

SIZE = (3, 8, 6)


class Tricky(anytime.AnytimeModel):
    """A state with numbers, None, the images, one tensor twice, one that passes through, and one that nobody reads."""

    num_steps = 3

    def __init__(self) -> None:
        super().__init__((4, 2))
        self.convolutions = nn.ModuleList(nn.Conv2d(3 if t == 0 else 5, 5, 3, padding=1) for t in range(3))
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 6)

    def initial_state(self, x: Tensor) -> dict[str, Any]:
        self.check_input(x)
        normal = self.normalize(x)
        return {"t": 0, "images": x, "maps": normal, "again": normal, "first": None, "sum": x.new_zeros(x.shape[0], 6)}

    def step(self, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        t: int = state["t"]
        maps = self.norm(self.convolutions[t](state["maps"])).relu()
        first = maps.mean((2, 3)) if state["first"] is None else state["first"]
        total = (
            state["sum"] + self.head(maps.amax((2, 3)) + (first if t == 2 else 0)) + state["images"].mean((1, 2, 3))[:, None]
        )
        unread = {"counts": maps.new_full(maps.shape[:1], t), "unread": maps * 2}
        return total, {**state, "t": t + 1, "maps": maps, "again": maps, "first": first, "sum": total, **unread}


class Sized(anytime.AnytimeModel):
    """The second step takes the size of the batch from images that it does not read otherwise."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(4, in_channels=1)
        self.head = nn.Linear(16, 4)

    def initial_state(self, x: Tensor) -> tuple[int, Tensor, Tensor]:
        self.check_input(x)
        return 0, self.normalize(x), x

    def step(self, state: tuple[int, Tensor, Tensor]) -> tuple[Tensor, tuple[int, Tensor, Tensor]]:
        step, images, maps = state
        flat = maps.relu().view(images.shape[0], -1) + maps.new_zeros(images.shape[0], 1)
        return self.head(flat), (step + 1, images, maps * 2 - 1)


class Single(anytime.AnytimeModel):
    """One step, for grey images."""

    num_steps = 1

    def __init__(self) -> None:
        super().__init__(4, in_channels=1)
        self.head = nn.Linear(16, 4)

    def initial_state(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return x

    def step(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(state.flatten(1)), state


def random_weights(model: anytime.AnytimeModel) -> anytime.AnytimeModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    model.set_normalization([0.4] * model.in_channels, [0.3] * model.in_channels)
    return model.eval()


@pytest.fixture(scope="module")
def tricky() -> anytime.AnytimeModel:
    return random_weights(Tricky())


@pytest.fixture(scope="module")
def made(tricky: anytime.AnytimeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that takes any batch size."""
    folder = tmp_path_factory.mktemp("export") / "tricky"
    tricky.info.class_names = (*"abcd", "A", "B")
    anytime.export_model(tricky, folder, batch="dynamic", input_size=SIZE, images=torch.rand(2, *SIZE))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def export(made: Path) -> ExportedModel:
    loaded = anytime.load(made)
    assert isinstance(loaded, ExportedModel)
    return loaded


def test_answers_are_those_of_the_model(tricky: anytime.AnytimeModel, export: ExportedModel) -> None:
    for batch in (1, 2, 5):
        x = torch.rand(batch, *SIZE)
        expected = tricky(x).detach()
        for answers in (export(x), torch.stack([*export.stream(x)]), torch.stack([export(x, step=t) for t in (1, 2, 3)])):
            torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)
    assert (export.levels, export.num_classes, export.num_steps) == ((4, 2), 6, 3)
    assert export.info.class_names == ("a", "b", "c", "d", "A", "B")
    assert not export.training


def test_the_manifest_says_how_the_steps_are_connected(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["batch"] == "dynamic"
    assert manifest["input"]["mean"] == pytest.approx([0.4] * 3)
    assert manifest["check"]["images"] == {"random": 4, "photographs": 6, "given": 2}
    given = [[entry["from"] for entry in step["inputs"]] for step in manifest["steps"]]
    made_by = [[entry["name"] for entry in step["outputs"]] for step in manifest["steps"]]
    maps, first = made_by[0][1:]
    assert given[0] == ["images"]
    answer = {"step": 1, "output": "answer"}  # the sum is the answer
    assert sorted(given[1], key=str) == sorted(["images", answer, {"step": 1, "output": maps}], key=str)
    assert len(made_by[1]) == 2  # the answer and the maps: `first` passes through, and nothing else is read
    assert {"step": 1, "output": first} in given[2]
    assert "images" in given[2]
    assert made_by[2] == ["answer"]
    assert all(entry["shape"][0] == "batch" for step in manifest["steps"] for entry in step["inputs"] + step["outputs"])
    assert all(step["difference"] <= TOLERANCES["float32"] for step in manifest["steps"])


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_what_is_read_for_its_size_only_is_no_input(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    model, x = random_weights(Sized()), torch.rand(3, 1, 4, 4)
    export = anytime.export_model(model, tmp_path / "out", engine, batch="dynamic", input_size=(1, 4, 4))
    torch.testing.assert_close(export(x), model(x).detach(), rtol=0, atol=1e-4)
    assert len(export.manifest.steps[1].inputs) == 1


def test_states_keep_only_what_is_read_later(export: ExportedModel) -> None:
    state, sizes = export.initial_state(torch.rand(2, *SIZE)), []
    for _ in range(3):
        _, state = export.step(state)
        sizes.append(len(state) - 1)
    assert sizes == [4, 4, 0]  # images, answer, maps, first


def test_costs_are_the_models(tricky: anytime.AnytimeModel, export: ExportedModel) -> None:
    assert anytime.step_macs(export, SIZE) == anytime.step_macs(tricky, SIZE)
    with pytest.raises(ValueError, match="takes images of 3x8x6, so its cost for 3x9x9 is not known"):
        anytime.step_macs(export, (3, 9, 9))
    trace = anytime.record(export, [(torch.rand(2, *SIZE), torch.tensor([[0, 1], [1, 1]]))], progress=False, seconds=False)
    assert trace.macs.tolist() == anytime.step_macs(tricky, SIZE)
    assert trace.meta["parameters"] == sum(parameter.numel() for parameter in tricky.parameters())


def test_predictor_session_profile_and_compaction(tricky: anytime.AnytimeModel, export: ExportedModel) -> None:
    x = torch.rand(6, *SIZE)
    measured = anytime.profile(export, SIZE, batch_sizes=(6,), repeats=2, warmup=0)
    assert measured.fingerprint["engine"].startswith("onnxruntime ")
    confidence = tricky(x).detach()[0, :, :4].softmax(1).amax(1)
    rule = Confidence([float(confidence.median()), math.inf, math.inf])
    got, expected = anytime.Predictor(export, measured, stop=rule)(x), anytime.Predictor(tricky, stop=rule)(x)
    assert sorted(set(got.steps.tolist())) == [1, 3]
    assert torch.equal(got.steps, expected.steps)
    torch.testing.assert_close(got.outputs, expected.outputs, rtol=0, atol=1e-5)
    with anytime.Predictor(export).session(x) as session:
        torch.testing.assert_close(session.wait().outputs, tricky(x).detach()[-1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="compiled by its engine already"):
        anytime.profile(export, SIZE, compile=True)
    with pytest.raises(ValueError, match="profile is of another model"):
        anytime.Predictor(tricky, measured)


def test_copies_compute_the_same(export: ExportedModel) -> None:
    x = torch.rand(1, *SIZE)
    for other in (copy.deepcopy(export), pickle.loads(pickle.dumps(export))):
        assert torch.equal(other(x), export(x))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("count", [1, 2])
def test_a_forked_process_loads_the_graphs_again(made: Path, count: int, threads: Any) -> None:
    x = torch.rand(1, *SIZE)
    threads(count)
    export = anytime.load(made)
    expected = export(x)
    child = os.fork()
    if child == 0:  # threads of the parent, for which a graph's end would wait for ever, are not here
        right = torch.allclose(export(x), expected)
        del export
        gc.collect()
        os._exit(0 if right else 1)
    limit = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_a_call_can_be_cancelled_and_the_engine_used_again(export: ExportedModel) -> None:
    steps, x = ExportedSteps(export), torch.rand(1, *SIZE)
    call, state = steps.call(), steps.start(x, 1)
    expected, after = steps.step(1, state, 1, call)
    steps.cancel(call)  # between two steps: the next one must not start
    for given in (state, after):
        with pytest.raises(Cancelled, match=r"step_\d.onnx was cancelled"):
            steps.step(given["step"] + 1, given, 1, call)
    assert torch.equal(steps.step(1, state, 1, steps.call())[0], expected)


def test_rules_are_saved_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    export = anytime.load(folder)
    save_rule(export, "half", Fitted(Confidence(0.7)))
    export.save(folder)
    assert anytime.Predictor(anytime.load(folder), stop="half")._rule == Confidence(0.7)
    anytime.load(folder).save(tmp_path / "other")
    assert torch.equal(anytime.load(tmp_path / "other")(torch.ones(1, *SIZE)), export(torch.ones(1, *SIZE)))


def test_wrong_images_are_one_sentence(export: ExportedModel) -> None:
    with pytest.raises(ValueError, match=r"takes images of 3x8x6, got \[1, 3, 9, 6\]"):
        anytime.Predictor(export)(torch.rand(1, 3, 9, 6))
    with pytest.raises(TypeError, match="float32 on the CPU"):
        export(torch.rand(1, *SIZE).double())


def test_another_networks_answers_are_a_difference(export: ExportedModel, tricky: anytime.AnytimeModel) -> None:
    other = copy.deepcopy(tricky)
    with torch.no_grad():
        other.get_submodule("convolutions.1").weight.add_(0.1)  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match=r"step 2 of the export differs from the model by .*, more than 0.0001"):
        compare(other, export)
    other.norm.running_mean.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="step 1 of the export differs from the model by nan"):
        compare(other, export)


def test_graphs_of_one_image_take_any_batch_and_replace_only_exports(tmp_path: Path, capsys: Any) -> None:
    model, folder = random_weights(Single()), tmp_path / "single"
    model.info.input_size = (1, 4, 4)
    export = anytime.export_model(model, folder)
    x = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(export(x), model(x).detach(), rtol=0, atol=1e-5)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True to replace it"):
        anytime.export_model(model, folder)
    assert main(["export", "anytimenet_cifar10", "--out", str(folder)]) == 2
    assert "--overwrite to replace it" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is no export, so it is not replaced"):
        anytime.export_model(model, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "single"]
    with torch.no_grad():
        model.head.bias.add_(1)
    again = anytime.export_model(model, folder, overwrite=True)
    torch.testing.assert_close(again(x), export(x) + 1, rtol=0, atol=1e-5)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="this is an export already"):
        anytime.export_model(export, tmp_path / "again")


class Unknown(Single):
    """Its step has an operator that ONNX lacks."""

    def step(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(torch.special.airy_ai(state).flatten(1)), state


def test_an_operator_without_counterpart_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^step 1 cannot be exported to ONNX: .*aten.special_airy_ai"):
        anytime.export_model(random_weights(Unknown()), tmp_path / "unknown", input_size=(1, 4, 4))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("case", [(4, 4, 2, 2), (7, 5, 3, 2), (8, 8, 1, 1), (3, 3, 3, 3), (2, 3, 4, 5)])
def test_max_pools_to_a_grid_are_made_of_other_operators(case: tuple[int, int, int, int]) -> None:
    x, size = torch.randn(2, 3, *case[:2]), case[2:]
    assert torch.equal(_adaptive_max_pool(x, size)[0], nn.functional.adaptive_max_pool2d(x, size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "tensorrt"}, "engine must be one of onnx, openvino, aoti, executorch, got 'tensorrt'"),
        ({"precision": "int4"}, "precision of the engine 'onnx' must be one of float32, int8, got 'int4'"),
        ({"precision": "int8"}, "calibration goes with precision='int8', and int8 needs it, got 'int8'"),
        ({"engine": "openvino", "one_graph": True}, "one_graph is for the engine 'onnx' in float32"),
        ({"batch": 2}, "batch must be 1 or 'dynamic', got 2"),
        ({"batch": True}, "batch must be 1 or 'dynamic', got True"),
        ({}, "does not know the size of its images"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anytime.export_model(Single(), tmp_path / "out", **arguments)


def test_denormal_numbers_of_the_caller_stay(export: ExportedModel) -> None:
    """The engine sets its own treatment of them, in the thread that loads a graph."""
    torch.set_flush_denormal(False)
    copy.deepcopy(export)(torch.rand(1, *SIZE))
    assert sys.float_info.min * 0.5 != 0.0


def test_an_export_for_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, x = random_weights(Single()), torch.rand(1, 1, 4, 4)
    made = anytime.export_model(model, tmp_path / "out", "openvino", input_size=(1, 4, 4))
    assert (made.manifest.engine, made.manifest.precision, made.manifest.tolerance) == ("openvino", "float32", 1e-4)
    torch.testing.assert_close(made(x), model(x).detach(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="precision of the engine 'onnx' must be one of float32, int8, got 'bfloat16'"):
        anytime.export_model(model, tmp_path / "other", "onnx", precision="bfloat16", input_size=(1, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-loss", "1%"], "--max-loss, --root and --download are for --precision int8"),
        (["--precision", "int8", "--max-loss", "5"], "--max-loss must be a share such as 1% or 0.01, got '5'"),
        (["--precision", "int8", "--engine", "aoti"], "precision of the engine 'aoti' must be one of float32, got 'int8'"),
    ],
)
def test_wrong_words(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", "anytimenet_cifar10", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
