"""Exports as libraries that torch compiles, and whose loading executes what they hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytime
from anytime.cli import main
from anytime.runtime.engines.aoti import made_for
from anytime.support.trust import UntrustedName

SIZE = (3, 4, 4)


class Two(anytime.AnytimeModel):
    """The second step takes a transposed tensor; of the state, it needs not all."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(4)
        self.heads = nn.ModuleList([nn.Linear(48, 4), nn.Linear(48, 4)])

    def initial_state(self, x: Tensor) -> dict[str, Any]:
        self.check_input(x)
        return {"t": 0, "images": x, "turned": x}

    def step(self, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        t: int = state["t"]
        answer = self.heads[t](state["turned"].flatten(1)) + (state["turned"].transpose(2, 3) * t).amax((1, 2, 3))[:, None]
        return answer, {**state, "t": t + 1, "turned": (state["turned"] + 1).transpose(2, 3)}


@pytest.fixture
def model() -> anytime.AnytimeModel:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Keeps each program instead of compiling it, which takes half a minute; `place` is what a library says it is made for."""
    kept = SimpleNamespace(programs=[], place=made_for(), caches=set())

    def compiled(program: Any, package_path: str, inductor_configs: dict[str, Any]) -> None:
        assert inductor_configs["aot_inductor.metadata"] == made_for()
        assert inductor_configs.get("aot_inductor.precompile_headers") in (None, False), "headers lie in torch's own cache"
        cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert cache.parent == Path(package_path).parent, "compiled in a folder that no other user can write to"
        kept.caches.add(cache)
        kept.programs.append(program)
        Path(package_path).write_text(str(len(kept.programs) - 1))

    def loaded(path: str) -> Any:
        module = kept.programs[int(Path(path).read_text())].module()
        return SimpleNamespace(loader=SimpleNamespace(run=lambda x: list(module(*x)), get_metadata=lambda: kept.place))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", loaded)
    monkeypatch.setattr("anytime.export.aoti.require_engine", lambda: None)
    return kept


def test_a_library_takes_contiguous_tensors_and_only_those_it_uses(
    model: anytime.AnytimeModel, compiler: SimpleNamespace, tmp_path: Path
) -> None:
    export, x = anytime.export_model(model, tmp_path / "out", "aoti", batch="dynamic", input_size=SIZE), torch.rand(3, *SIZE)
    torch.testing.assert_close(export(x), model(x).detach())
    assert compiler.caches
    assert not any(cache.exists() for cache in compiler.caches)
    first, second = export.manifest.steps
    assert (first.file, [value.shape for value in second.inputs]) == ("step_1.pt2", [("batch", 3, 4, 4)])
    for program in compiler.programs:
        (given,) = (node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
        assert given.is_contiguous()
    measured = anytime.profile(export, SIZE, repeats=1, warmup=0)
    assert measured.interrupt == "step"
    assert anytime.Predictor(export, measured)(x[:1], deadline=60).step == 2
    with pytest.raises(ValueError, match="interrupt='operator' needs an engine that can cancel a step"):
        anytime.Predictor(export, measured, interrupt="operator")


def test_only_what_this_user_wrote_for_this_machine_is_executed(
    model: anytime.AnytimeModel, compiler: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model.info.trusted = False  # the names in its recipe, which its export does not import
    anytime.export_model(model, tmp_path / "out", "aoti", input_size=SIZE)
    assert not anytime.load(tmp_path / "out").info.trusted
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    compiled, compiler.programs = compiler.programs, []  # nothing can be loaded
    assert main(["profile", str(tmp_path / "copy")]) == 2
    assert (
        "copy holds compiled libraries of the engine 'aoti': loading them may run any code; if you" in capsys.readouterr().err
    )
    compiler.programs = compiled
    assert anytime.load(tmp_path / "copy", trust=True).num_steps == 2
    here = made_for()
    for other, message in (
        (
            {"anytime_instructions": "avx9 rvv"},
            "step_1.pt2 needs a processor with avx9, rvv; export the model again",
        ),
        ({"anytime_torch": "1.0"}, "step_1.pt2 is compiled for 1.0, and this is .*; export the model again"),
        ({"anytime_system": ""}, "step_1.pt2 is compiled for nothing known, and this is "),
    ):
        compiler.place = here | other
        with pytest.raises(ValueError, match=message):
            anytime.load(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    (tmp_path / "out" / "step_1.pt2").write_text("x")
    with pytest.raises(ValueError, match=r"step_1.pt2 is damaged: SHA-256"):
        anytime.load(tmp_path / "out")
    manifest["steps"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(UntrustedName, match="out holds compiled libraries"):
        anytime.load(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_what_torch_compiles_answers_as_the_model(model: anytime.AnytimeModel, batch: int | str, tmp_path: Path) -> None:
    export = anytime.export_model(model, tmp_path / "out", "aoti", batch=batch, input_size=SIZE)
    for count in (1, 3):
        x = torch.rand(count, *SIZE)
        torch.testing.assert_close(export(x), model(x).detach())
