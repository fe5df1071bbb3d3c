"""Exports as programs of ExecuTorch, whose loading needs consent because nothing can check them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytime
from anytime.cli import main
from anytime.runtime.engines import executorch

SIZE = (3, 8, 8)
needed = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs the extra executorch")
quiet = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)  # of ExecuTorch


class Two(anytime.AnytimeModel):
    """Batch norm and heads by rows of a table, as fixed for each step; the second step takes a transposed tensor."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(4)
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)])
        self.rows: Tensor
        self.register_buffer("rows", torch.rand(2, 6) + 0.5)
        self.heads = nn.Parameter(torch.randn(2, 4, 6))

    def initial_state(self, x: Tensor) -> dict[str, Any]:
        self.check_input(x)
        return {"t": 0, "map": x, "unused": x}

    def step(self, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        t: int = state["t"]
        y = self.convs[t](state["map"])
        y = nn.functional.batch_norm(y, self.rows[t] - 0.5, self.rows[t], self.rows[1 - t], self.rows[t]).relu()
        return nn.functional.linear(y.mean((2, 3)), self.heads[t]), {**state, "t": t + 1, "map": y.transpose(2, 3)}


@pytest.fixture
def model() -> anytime.AnytimeModel:
    torch.manual_seed(0)
    return Two().eval()


def test_it_is_named_where_it_is_missing(model: anytime.AnytimeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise executorch.PackageNotFoundError(name)

    monkeypatch.setattr(executorch, "version", missing)
    with pytest.raises(
        ImportError, match=r"the engine 'executorch' needs executorch: pip install 'anytime-nets\[executorch\]'"
    ):
        anytime.export_model(model, tmp_path / "out", "executorch", input_size=SIZE)
    assert not (tmp_path / "out").exists()


@needed
@quiet
def test_a_program_gives_the_answers_of_the_model_and_needs_consent_elsewhere(
    model: anytime.AnytimeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, x = anytime.export_model(model, tmp_path / "out", "executorch", input_size=SIZE), torch.rand(5, *SIZE)
    torch.testing.assert_close(export(x), model(x).detach(), atol=1e-5, rtol=0)
    first = next(export.stream(x[:1]))
    kept = first.clone()
    export(x)
    assert torch.equal(first, kept), "the answer is no view of what the next run overwrites"
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda n: export(x[n : n + 1]), [*range(5)] * 4)]
    for n, answer in enumerate(answers):
        torch.testing.assert_close(answer, model(x[n % 5 : n % 5 + 1]).detach(), atol=1e-5, rtol=0)
    measured = anytime.profile(export, SIZE, repeats=1, warmup=0)
    assert measured.interrupt == "step"
    assert anytime.Predictor(export, measured)(x[:1], deadline=60).step == 2
    (tmp_path / "copy").mkdir()
    for path in (tmp_path / "out").iterdir():
        shutil.copy(path, tmp_path / "copy")
    assert main(["profile", str(tmp_path / "copy")]) == 2
    says = "copy holds programs that cannot be checked of the engine 'executorch': loading them may run any code"
    assert says in capsys.readouterr().err
    assert anytime.load(tmp_path / "copy", trust=True).num_steps == 2
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    manifest["steps"][0]["outputs"][1]["shape"][1] = manifest["steps"][1]["inputs"][0]["shape"][1] = 5
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="inputs or outputs"):
        anytime.load(tmp_path / "copy", trust=True)
    (tmp_path / "out" / "step_2.pte").write_bytes((tmp_path / "out" / "step_1.pte").read_bytes())
    with pytest.raises(ValueError, match=r"step_2.pte is damaged: SHA-256"):
        anytime.load(tmp_path / "out")


@needed
@quiet
def test_its_memory_is_planned_for_one_batch_size(model: anytime.AnytimeModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the engine 'executorch' plans its memory for one batch size: export with batch=1"):
        anytime.export_model(model, tmp_path / "out", "executorch", batch="dynamic", input_size=SIZE)


@needed
@quiet
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["anytimenet_cifar10", "fast_cifar10", "isresnext", "ann", "torchvision:resnet18", "torchvision:mobilenet_v3_small"],
)
def test_networks_that_people_deploy(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if ":" in name:
        model = anytime.attach_exits(name, 3, num_classes=10, input_size=(3, 64, 64)).eval()
    else:
        small = {
            "ann": {"units": 3, "width": 8},
            "isresnext": {"blocks": (1, 1, 1), "width": 24, "steps": 3, "cardinality": 6},
        }
        model = anytime.create_model(name, 10, **small[name]).eval() if name in small else anytime.load(name)
    export = anytime.export_model(model, tmp_path / "out", "executorch", input_size=model.info.input_size or 32)
    x = torch.rand(2, *export.manifest.input_size)
    torch.testing.assert_close(export(x).softmax(-1), model(x).detach().softmax(-1), atol=1e-4, rtol=0)
