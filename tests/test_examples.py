"""The examples run."""

import runpy
from pathlib import Path

import pytest

QUICK = {"fair_comparison": ["--seeds", "2", "--epochs", "1"], "time_course": ["--epochs", "1"]}
EXAMPLES = sorted(
    path for path in (Path(__file__).parents[1] / "examples").glob("*.py") if path.stem != "real_backbone"
)  # which has a test of its own


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", [str(path), *QUICK.get(path.stem, [])])
    monkeypatch.chdir(tmp_path)
    values = runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert (tmp_path / f"runs/{path.stem}.png").stat().st_size > 5_000
    if path.stem == "segmentation":
        background = float((values["truth"] == 0).double().mean())
        assert float(values["right"][-1]) > background + 0.1
        overlaps = values["overlaps"].tolist()  # of the figures, 0 if all is taken for background
        assert overlaps == sorted(overlaps)
        assert overlaps[-1] > 0.6


def test_each_has_its_figure_for_a_thumbnail() -> None:
    for path in (Path(__file__).parents[1] / "examples").glob("*.py"):
        *_, last = path.read_text(encoding="utf-8").splitlines()
        assert last == f"# sphinx_gallery_thumbnail_path = 'images/examples/{path.stem}.png'"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_gallery_has_what_it_printed_and_drew(path: Path) -> None:
    kept = Path(__file__).parents[1] / "docs/images/examples"
    assert (kept / f"{path.stem}.txt").read_text(encoding="utf-8").endswith(f"wrote runs/{path.stem}.png\n")
    assert (kept / f"{path.stem}.png").is_file()
