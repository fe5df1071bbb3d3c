"""The end-to-end example with real weights runs from training to deadlines, here on made-up images and weights."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).parents[1] / "examples/real_backbone.py"


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, on a data set in CIFAR-100's binary layout: superclass, class and pixels of each image."""
    (tmp_path / "cifar-100-binary").mkdir()
    for name, count in (("train.bin", 300), ("test.bin", 100)):
        classes = np.arange(count) % 100
        pixels = np.random.default_rng(0).integers(0, 256, (count, 3072))
        records = np.concatenate([classes[:, None] // 5, classes[:, None], pixels], 1).astype(np.uint8)
        records.tofile(tmp_path / "cifar-100-binary" / name)
    given = [str(EXAMPLE), "--quick", "--size", "32", "--images", "64", "--answers", "5"]
    given += ["--weights", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "out")]
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", given)


@pytest.mark.slow
@pytest.mark.usefixtures("arguments")
@pytest.mark.filterwarnings("default")  # of the exporter and of Lightning
def test_it_runs_from_the_weights_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.pth")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    table = json.loads((tmp_path / "out/deadlines.json").read_text())
    assert [len(table["medians"][name]) for name in ("exits", "plain")] == [3, 1]
    assert table["macs"] == sorted(table["macs"])
    assert len(table["rows"]) == 10
    assert {"exits", "plain", "exits, rule"} <= table["rows"][0].keys()
    assert "answer 3 of 3" in capsys.readouterr().out
    before = (tmp_path / "out/run/model.safetensors").stat().st_mtime_ns
    runpy.run_path(str(EXAMPLE), run_name="__main__")  # what was trained is loaded
    assert (tmp_path / "out/run/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.usefixtures("arguments")
def test_other_weights_are_an_error_of_one_sentence(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(SystemExit, match="does not hold the tensors of EfficientNet-Lite0"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert not (tmp_path / "out").exists()
