"""Links, pipes and folders where a run directory has files: nothing is read, written or deleted elsewhere, nobody waits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

import anytime
from anytime.cli import main
from anytime.data.record import RECORD
from anytime.runtime import Profile
from anytime.saving import CONFIG, WEIGHTS
from anytime.support.documents import TooLarge, check_text
from anytime.support.files import atomic_write, part_of
from anytime.support.folders import check_file, check_folder
from anytime.support.locks import only_writer
from anytime.support.trust import names_from, require_consent
from anytime.trace import Trace
from anytime.training.config import UsageError, parse, read_recipe
from anytime.training.logs import _take_rows

TINY = ["train", "--model", "anytimenet", "--model.blocks", "[1,1]", "--model.scheme", "[[1,1]]", "--model.width", "2"]
DIGITS = ["--epochs", "1", "--progress", "false", "--data", "digits", "--data.limit", "40"]
Make = Callable[[Path], object]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main([*TINY, *DIGITS, "--run", str(run)]) == 0
    Image.new("L", (8, 8)).save(run.parent / "image.png")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a trained run in the working directory, beside a folder that is none of its business."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    shutil.copy(trained.parent / "image.png", ".")
    Path("home").mkdir()
    Path("home/precious").write_text("precious")
    return Path("run")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def to(target: str) -> Make:
    return lambda path: path.symlink_to(Path(target).absolute())


KINDS: dict[str, Make] = {
    "pipe": os.mkfifo,
    "socket": listening,
    "device": to("/dev/zero"),
    "link": to("home/precious"),
    "dangling link": to("home/new"),
    "link to a folder": to("home"),
    "folder": lambda path: (path.mkdir(), (path / "mine.txt").touch()),
}
ENTRIES = {  # and a command that reads or writes them
    ".lock": ["evaluate", "run"],
    CONFIG: ["predict", "run", "image.png"],
    WEIGHTS: ["predict", "run", "image.png"],
    "config.yaml": ["train", "--resume", "run"],
    "run.json": ["train", "--resume", "run"],
    RECORD: ["evaluate", "run"],
    "trace-test.safetensors": ["compare", "run"],
    "trace-validation.safetensors": ["fit", "run", "--stop", "confidence", "--budget", "100%"],
    "checkpoints/last.ckpt": ["train", "--resume", "run"],
    "metrics/metrics.csv": ["train", "--resume", "run"],
    "metrics/hparams.yaml": ["train", "--resume", "run"],
    "tensorboard/hparams.yaml": ["train", "--resume", "run"],
    "figures/steps.png": ["evaluate", "run"],
    "report.html": ["evaluate", "run"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENTRIES)
def test_entries(run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "folder" and "/" in name:
        pytest.skip("is not lost, see test_no_folder_is_replaced")
    entry = run / name
    entry.parent.mkdir(exist_ok=True)
    entry.unlink(missing_ok=True)
    KINDS[kind](entry)
    assert main(ENTRIES[name]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count(": error: ") == 1, error
    assert "run/" in error or str(run) in error or "run holds no" in error
    assert sorted(os.listdir("home")) == ["precious"]
    assert Path("home/precious").read_text() == "precious"
    assert kind != "folder" or (entry / "mine.txt").exists()


def test_no_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html/mine.txt").touch()
    with pytest.raises(ValueError, match=r"report\.html is a folder"), atomic_write(tmp_path / "report.html") as part:
        part.write_text("x")
    assert (tmp_path / "report.html/mine.txt").exists()


def test_a_temporary_file_is_no_link(tmp_path: Path) -> None:
    """A stranger can guess the number of a process."""
    part_of(tmp_path / "report.html").symlink_to(tmp_path / "precious")
    with atomic_write(tmp_path / "report.html") as part:
        part.write_text("x")
    assert not (tmp_path / "precious").exists()
    assert (tmp_path / "report.html").read_text() == "x"


def test_leftovers_behind_links_stay(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.film.99999999.part").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/photos").symlink_to(tmp_path / "home")
    with only_writer(tmp_path / "run", "a test"):
        pass
    assert (tmp_path / "home/.film.99999999.part").exists()


def test_links_that_stay(tmp_path: Path) -> None:
    """Within the folder, and from the hub's cache to its blobs."""
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b/blobs").mkdir()
    (tmp_path / "models--a--b/blobs/abc").write_text("{}")
    (snapshot / CONFIG).symlink_to("../../blobs/abc")
    (snapshot / "run.json").symlink_to(CONFIG)
    check_file(snapshot / CONFIG)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/real.json").touch()
    (tmp_path / "run/run.json").symlink_to("real.json")
    (tmp_path / "run/my notes").symlink_to("/")  # the user's own
    check_folder(tmp_path / "run")
    (tmp_path / "run" / CONFIG).symlink_to("../models--a--b/blobs/abc")
    with pytest.raises(ValueError, match="leads out of its folder"):
        check_folder(tmp_path / "run")


@pytest.mark.parametrize("read", [Trace.load, Profile.load, read_recipe, anytime.load])
def test_no_reader_waits_for_a_pipe(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe"):
        read(tmp_path / "pipe")


def test_a_checkpoint_that_expands(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (CONFIG, WEIGHTS):
        (run / name).unlink()
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"state": "interrupted"}))
    with zipfile.ZipFile(run / "checkpoints/last.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * 10**7)
    assert main(["train", "--resume", "run"]) == 1
    assert "claim 10,000,000 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("text", [f"step,loss\n0,{'1' * 200_000}\n", b"step\n\xff\n"])
def test_damaged_tables(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        _take_rows(tmp_path / "metrics.csv", 3)
    assert (tmp_path / "metrics.csv").exists()


def test_rows_without_a_place(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2\n-inf,2\nnan,2\n-1,1\n2,1,7\n")
    assert _take_rows(tmp_path / "metrics.csv", 3) == [{"step": 1.0, "loss": 2.0}]


EXPANDING = {
    "aliases": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "depth": "[" * 5000 + "]" * 5000,
    "length": "x" * 10**6,
    "a number of base 60": "1:" * 50_000 + "1",
    "a number of base 16": "0x" + "f" * 10_000,
}


@pytest.mark.parametrize("kind", EXPANDING)
def test_texts_that_expand(kind: str) -> None:
    """Values are read as YAML once more, by the parser of the options."""
    flags = ["--model", "anytimenet", *DIGITS, f"--model.blocks={EXPANDING[kind]}"]
    with pytest.raises(UsageError, match=r"--model\.blocks"):
        parse(flags)


WRAPPED: dict[str, Callable[[str], Any]] = {
    "a list": lambda text: [text],
    "a mapping": lambda text: {"a": text},
    "a text": lambda text: json.dumps({"a": text}),
    "a text in a list": lambda text: [{"a": [json.dumps([text])]}],
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", [kind for kind in EXPANDING if kind != "length"])
def test_inner_texts_that_expand(kind: str, wrap: str) -> None:
    with pytest.raises(TooLarge, match="options"):
        check_text(WRAPPED[wrap](EXPANDING[kind]), "options")


def test_many_texts_that_expand() -> None:
    many = [EXPANDING["aliases"][:170].rpartition("\n")[0] + f"\nz: {number}" for number in range(1000)]
    with pytest.raises(TooLarge, match=r"with more than 100,000 values"):
        check_text(many, "options")
    deep = "1:"
    for _ in range(7):
        deep = json.dumps([deep])
    with pytest.raises(TooLarge, match="deeper than 5"):
        check_text(deep, "options")
    check_text([["a: b", "x - y", "007"]] * 1000, "options")


def test_look_alikes_are_told_apart() -> None:
    with names_from("config.json"), pytest.raises(ValueError, match=r"'\\u0430nytime\.models\.Net'"):
        require_consent("\u0430nytime.models.Net", "model")  # a Cyrillic a


RECIPES = {
    "no data": {},
    "data are null": {"data": None},
    "a number as data": {"data": 3},
    "a number as name": {"data": {"class_path": 3}},
    "arguments are a number": {"data": {"class_path": "Digits", "init_args": 3}},
    "text as a number": {"data": {"class_path": "Digits", "init_args": {"limit": "x"}}},
    "a number as folder": {"data": {"class_path": "ImageFolder", "init_args": {"root": 3}}},
    "unknown argument": {"data": {"class_path": "Digits", "init_args": {"limits": 3}}},
    "a million workers": {"data": {"class_path": "Digits", "init_args": {"workers": 10**6}}},
    "a device as taxonomy": {"data": {"class_path": "Digits", "init_args": {"taxonomy": "/dev/zero"}}},
    "a folder of devices": {"data": {"class_path": "ImageFolder", "init_args": {"root": "/dev"}}},
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_of_a_model(run: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / CONFIG).read_text())
    metadata = config["metadata"] | {"recipe": {"seed": 0} | RECIPES[kind]}
    (run / CONFIG).write_text(json.dumps(config | {"metadata": metadata}))
    assert main(["evaluate", "run"]) in (1, 2)
    assert capsys.readouterr().err.count(": error: ") == 1


def test_names_in_the_report_and_on_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J<script>alert(1)</script>\u202e|"
    config = json.loads((run / CONFIG).read_text())
    metadata = config["metadata"] | {"class_names": [f"{evil}{k}" for k in range(10)], "result": evil, "data": evil}
    metadata["recipe"] = metadata["recipe"] | {evil: [evil]}
    (run / CONFIG).write_text(json.dumps(config | {"metadata": metadata}))
    assert main(["evaluate", "run"]) == 0
    assert main(["predict", "run", "image.png", "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    assert "\\x1b[2J<script>" in printed
    report = Path("run/report.html").read_text()
    assert "<script>alert" not in report
    assert "&lt;script&gt;" in report


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint64])
def test_weights_of_other_types(run: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = safetensors.torch.load((run / WEIGHTS).read_bytes())
    content = safetensors.torch.save(tensors | {"std": torch.ones(1).to(dtype)})
    (run / WEIGHTS).write_bytes(content)
    config = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps(config | {"sha256": hashlib.sha256(content).hexdigest()}))
    assert main(["predict", "run", "image.png"]) in (0, 1)
    assert capsys.readouterr().err.count(": error: ") <= 1


def test_a_damaged_record_is_not_copied(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "run", "--stop", "confidence", "--budget", "100%", "--name", "first"]) == 0
    (run / RECORD).write_bytes(b"a private key")
    assert main(["fit", "run", "--stop", "confidence", "--budget", "100%", "--out", "published"]) == 1
    assert "is damaged or is not a record of images" in capsys.readouterr().err
    assert not Path("published", RECORD).exists()
