"""The examples run."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", [str(path)])
    monkeypatch.chdir(tmp_path)
    values = runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    if path.stem == "segmentation":
        background = float((values["truth"] == 0).double().mean())
        assert float(values["right"][-1]) > background + 0.1
        overlaps = values["overlaps"].tolist()  # of the figures, 0 if all is taken for background
        assert overlaps == sorted(overlaps)
        assert overlaps[-1] > 0.6
        assert (tmp_path / values["options"].out).stat().st_size > 1000
