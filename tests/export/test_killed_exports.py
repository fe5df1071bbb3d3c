"""The real command `anytime export`, killed in its middle, and twice at the same time: the folder holds one whole export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anytime
from anytime.cli import main
from anytime.saving import ModelInfo

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")]

KILLED = """
import os, signal, sys

def hook(event, arguments):
    if event == EVENT and str(arguments[0]).endswith(FILE):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
from anytime.cli import main
main()
"""
MOMENTS = {
    "while the steps are made": ("open", "/step_1.onnx"),
    "before the new export is moved": ("os.rename", ".part"),
    "between the graphs": ("os.rename", ".export.next/step_2.onnx"),
    "before the manifest": ("os.rename", ".export.next/manifest.json"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small model of two steps."""
    model = anytime.create_model("anytimenet", 3, blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=2, in_channels=1)
    model.info = ModelInfo(input_size=(1, 8, 8))
    model.save(tmp_path / "run")
    return tmp_path / "run"


def batch_of(folder: Path) -> int | None:
    """The batch size of the export in a folder, which answers."""
    export: Any = anytime.load(folder)
    assert export(torch.rand(2, 1, 8, 8)).shape == (2, 2, 3)
    size: int | None = export.manifest.batch
    return size


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_export_leaves_the_old_one_or_the_next_completes_it(moment: str, run: Path, tmp_path: Path) -> None:
    event, file = MOMENTS[moment]
    export = ["export", str(run), "--out", str(tmp_path / "out")]
    assert main(export) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    code = KILLED.replace("EVENT", repr(event)).replace("FILE", repr(file))
    again = [*export, "--overwrite", "--batch", "dynamic"]
    assert subprocess.run([sys.executable, "-c", code, *again], capture_output=True).returncode == -9
    if ".export.next" in file:
        with pytest.raises(ValueError, match="the same command again completes it"):
            anytime.load(tmp_path / "out")
    else:
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != ".lock"} == before
        assert batch_of(tmp_path / "out") == 1
    assert main(again) == 0
    assert batch_of(tmp_path / "out") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "step_1.onnx", "step_2.onnx"]


def test_of_two_exports_into_one_new_folder_one_wins(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "anytime", "export", str(run), "--out", str(tmp_path / "out"), "--batch"]
    both = [
        subprocess.Popen([*command, batch], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for batch in ("1", "dynamic")
    ]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    winner = codes.index(0)
    assert codes[1 - winner] in (1, 2), errors
    assert "out exists; give another folder" in errors[1 - winner]
    assert errors[1 - winner].count("\n") == 1
    assert batch_of(tmp_path / "out") == [1, None][winner]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "step_1.onnx", "step_2.onnx"]
