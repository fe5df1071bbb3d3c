"""Files of the user with names that this library writes: every command says so in one sentence and leaves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

import anytime
from anytime.cli import main
from anytime.model import create_model
from anytime.saving import save_trained
from anytime.studies.study import Result
from anytime.support.owned import NotOurs, is_own
from anytime.training.rundir import set_state

RULE = ["--stop", "confidence", "--budget", "80%"]
TRAIN = ["train", "--model", "anytimenet", "--data", "digits", "--run", "tiny", "--overwrite"]
FILES = [  # the command, the file that it would replace, its exit code
    *((["evaluate", "tiny"], f"tiny/{name}", 1) for name in ("trace-test.safetensors", "metrics-test.json", "report.html")),
    (["evaluate", "tiny"], "tiny/figures/steps.png", 1),
    (["evaluate", "tiny", "--part", "validation"], "tiny/report-validation.html", 1),
    (["evaluate", "tiny", "--out", "there", "--overwrite"], "there/report.html", 1),
    (["evaluate", "tiny", "--out", "there"], "there/figures/steps.png", 1),
    (["profile", "tiny", "--repeats", "1"], "tiny/profile.json", 2),
    (["compare", "tiny"], "runs/compare.png", 1),
    *((["fit", "tiny", *RULE, "--out", "there"], f"there/{name}", 1) for name in ("config.json", "images.safetensors")),
    (["fit", "tiny", *RULE, "--out", "there"], "there/model.safetensors", 1),
    *((TRAIN, f"tiny/{name}", 1) for name in ("config.json", "config.yaml", "images.safetensors")),
    (["evaluate", "tiny"], "tiny/.lock", 1),
    (["fit", "tiny", *RULE, "--out", "there"], "there/.lock", 1),
]


def everything() -> dict[str, bytes | None]:
    """What is below the working directory, without the traces that `fit` records first."""
    found = {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}
    return {str(path): data for path, data in found.items() if path.name != "trace-validation.safetensors"}


def place(path: str, kind: str) -> None:
    """Something of the user at a path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
        (file / "notes.txt").write_text("mine")
    elif kind == "link":
        Path("mine").write_text("mine")
        file.symlink_to(Path("mine").absolute())
    else:
        file.write_text('{"model_type": "bert", "format": "mine"}' if path.endswith(".json") else "# mine")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize(("command", "file", "code"), FILES)
def test_files_of_the_user_stay(run, command, file, code, kind, capsys) -> None:
    place(file, kind)
    before = everything()
    capsys.readouterr()
    assert main(command) in (code, 2)  # 2: a training finds no run directory
    error = capsys.readouterr().err.rpartition("\r")[2]
    assert error.startswith(f"anytime {command[0]}: error: ")
    assert error.count("\n") == 1
    assert everything() == before


@pytest.mark.parametrize(
    "command",
    [
        *(["evaluate", "tiny", "--out", out] for out in ("notes", "notes/there")),
        *(["fit", "tiny", *RULE, "--out", out] for out in ("notes", "notes/there")),
        *(["export", "tiny", "--out", out] for out in ("notes", "notes/there")),
        *(["train", "--model", "anytimenet", "--data", "digits", "--run", out] for out in ("notes", "notes/there")),
        ["profile", "tiny", "--out", "notes/profile.json"],
        ["compare", "tiny", "--out", "notes/compare.png"],
        ["predict", "tiny", "image.png", "--plot", "notes/plot.png"],
        ["demo", "--run", "notes/demo"],
        ["study", "kim2020", "--out", "notes"],
    ],
)
def test_a_file_is_no_folder(run, command, capsys, monkeypatch) -> None:
    """Said before anything is measured or trained."""
    for work in ("anytime.commands.profile._measure", "anytime.commands.study.run_all", "anytime.training.launch.build"):
        monkeypatch.setattr(work, lambda *_: pytest.fail("the work was begun"))
    Path("notes").write_text("mine")
    Image.new("L", (8, 8)).save("image.png")
    before = everything()
    capsys.readouterr()
    assert main(command) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith(f"anytime {command[0]}: error: notes ")
    assert "not a folder, so nothing can be written into it" in error or "notes exists" in error
    assert error.count("\n") == 1
    assert everything() == before


def test_a_training_removes_no_file_of_the_user(run) -> None:
    Path(run, "report.html").write_text("<html>my own report</html>")
    assert main([*TRAIN, "--data.limit=40", "--epochs=1", "--progress=false", "--model.width=2"]) == 0
    assert Path(run, "report.html").read_text() == "<html>my own report</html>"
    assert not Path(run, "metrics-test.json").exists()


def test_what_commands_write_is_known_as_ours(run) -> None:
    assert main(["profile", run, "--repeats", "1"]) == 0
    assert main(["compare", run]) == 0
    own = [*Path(run).rglob("*.png"), *Path(run).glob("*.json"), *Path(run).glob("*.html"), Path("runs/compare.png")]
    own += [Path(run, name) for name in ("config.yaml", "images.safetensors", "trace-test.safetensors")]
    assert len(own) > 10
    assert [path for path in own if not is_own(path)] == []
    drawing = Path(run, "figures/steps.png")
    drawing.write_bytes(drawing.read_bytes().replace(b"Software\0anytime", b"Software\0Matplotlib"))  # of an earlier version
    assert is_own(drawing)
    Path(run, "report.html").unlink()
    assert not is_own(drawing)


@pytest.mark.parametrize("content", [b"", bytes(100), bytes(10_000)])
def test_files_without_content_are_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.html").write_bytes(content)
    assert is_own(tmp_path / "report.html")
    (tmp_path / "report.html").write_bytes(content + b"x")
    assert not is_own(tmp_path / "report.html")


def test_results_of_a_study_replace_only_those_of_one(tmp_path: Path) -> None:
    result = Result({"x": 1}, "table")
    (tmp_path / "table_1.json").write_text('{"x": 2}')
    with pytest.raises(NotOurs, match="was not written by this library, so it is not replaced; move it away"):
        result.write(tmp_path / "table_1", "anytime study")
    assert (tmp_path / "table_1.json").read_text() == '{"x": 2}'
    for _ in range(2):
        result.write(tmp_path / "table_2", "anytime study")


@pytest.fixture
def small() -> anytime.AnytimeModel:
    return create_model("anytimenet", 3, blocks=(1, 1), scheme=((1, 1),), width=2, in_channels=1)


SAVE: dict[str, Callable[[anytime.AnytimeModel, Path], object]] = {
    "save": lambda model, folder: model.save(folder),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
}


@pytest.mark.parametrize("way", SAVE)
def test_no_model_is_saved_over_what_is_not_one(small, way: str, tmp_path: Path) -> None:
    other = create_model("anytimenet", 5, blocks=(1, 1), scheme=((1, 1),), width=2, in_channels=1)
    for name in ("started", "interrupted", "failed", "finished"):
        set_state(tmp_path / name, name)
    save_trained(other, tmp_path / "finished")
    for name in ("model.safetensors", "config.json"):
        place(str(tmp_path / f"mine {name}" / name), "file")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder in tmp_path.iterdir():
        with pytest.raises(NotOurs, match=r"give another folder|move it away"):
            SAVE[way](small, folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("state", ["started", "interrupted", "failed"])
def test_fit_mixes_no_model_into_a_training(run, state: str, refused) -> None:
    Path("other/checkpoints").mkdir(parents=True)
    Path("other/checkpoints/last.ckpt").write_text("weights")
    Path("other/config.yaml").write_text(yaml.safe_dump({"model": {}}))
    set_state(Path("other"), state)
    shutil.copy(Path(run, "trace-test.safetensors"), Path(run, "trace-validation.safetensors"))
    before = everything()
    message = refused(["fit", run, *RULE, "--out", "other"], 1)
    assert "other holds a training that has not finished, so no model is saved there; give another folder" in message
    assert everything() == before


@pytest.mark.parametrize("beside", ["checkpoints/last.ckpt", "manifest.json"])
def test_a_save_that_was_killed_before_its_configuration_is_read(small, beside: str, tmp_path: Path) -> None:
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text('{"name": "my web app"}')
    small.save(tmp_path)
    digest = json.loads((tmp_path / "config.json").read_text())["sha256"]
    (tmp_path / "config.json").rename(tmp_path / f".config.json.{digest}.next")
    assert anytime.load(tmp_path).num_classes == 3
    small.save(tmp_path)
    assert (tmp_path / "config.json").is_file()
