"""Damaged profiles, checkpoints, folders of images and taxonomies: each ends in one sentence and the documented exit code."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import anytime
from anytime.cli import main
from anytime.model import create_model
from anytime.runtime import Profile

Edit = Callable[[Path], object]
TINY = ["--model", "anytimenet", "--model.blocks", "[1,1]", "--model.scheme", "[[1,1]]", "--model.width", "2", "--epochs", "1"]
DIGITS = ["--data", "digits", "--data.limit", "40", "--progress", "false"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], names: str = "") -> None:
    code = main(arguments)
    captured = capsys.readouterr()
    assert code in (1, 2), captured.out + captured.err
    sentences = [line for line in captured.err.splitlines() if f"anytime {arguments[0]}: error: " in line]
    assert len(sentences) == 1, captured.err
    assert names in sentences[0]
    assert len(sentences[0]) < 2000


# -- profiles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def profile_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = create_model("anytimenet", 3, blocks=(1, 1), scheme=((1, 1),), width=2, in_channels=1).eval()
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    anytime.profile(model, torch.rand(1, 1, 8, 8), batch_sizes=[1], repeats=3).save(file)
    return file.read_text()


def leaves(value: Any, change: Callable[[float], Any]) -> Any:
    """The same document with every float changed."""
    if isinstance(value, dict):
        return {key: leaves(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [leaves(item, change) for item in value]
    return change(value) if isinstance(value, float) else value


def without_first(document: dict[str, Any]) -> dict[str, Any]:
    return dict(list(document.items())[1:])


PROFILES: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "truncated": lambda text: text[:-20],
    "a list": lambda text: "[]",
    "a number": lambda text: "3",
    "an empty object": lambda text: "{}",
    "nested too deeply": lambda text: "[" * 10_000 + "]" * 10_000,
    "NaN": lambda text: json.dumps(leaves(json.loads(text), lambda _: float("nan"))),
    "negative": lambda text: json.dumps(leaves(json.loads(text), lambda value: -value)),
    "infinite": lambda text: json.dumps(leaves(json.loads(text), lambda _: float("inf"))),
    "texts": lambda text: json.dumps(leaves(json.loads(text), str)),
    "an entry less": lambda text: json.dumps(without_first(json.loads(text))),
    "null": lambda text: json.dumps(leaves(json.loads(text), lambda _: None)),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_profiles(profile_text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(PROFILES[kind](profile_text))
    with pytest.raises(ValueError, match=r"profile\.json"):
        Profile.load(tmp_path / "profile.json")


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that looks as if it had been interrupted after its only epoch."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *TINY, *DIGITS, "--run", str(run)]) == 0
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"state": "interrupted"}))
    for name in ("config.json", "model.safetensors"):
        (run / name).unlink()
    return run


def checkpoint(change: Callable[[bytes], bytes]) -> Edit:
    def edit(run: Path) -> None:
        file = run / "checkpoints/last.ckpt"
        file.write_bytes(change(file.read_bytes()))

    return edit


def flip(number: int) -> Edit:
    """One bit changed in the middle of a part of the file, the largest first."""

    def edit(run: Path) -> None:
        file = run / "checkpoints/last.ckpt"
        content = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            part = sorted(archive.infolist(), key=lambda info: -info.file_size)[number]
        name, extra = struct.unpack("<HH", content[part.header_offset + 26 : part.header_offset + 30])
        content[part.header_offset + 30 + name + extra + part.file_size // 2] ^= 8
        file.write_bytes(content)

    return edit


def with_object(run: Path) -> None:
    torch.save({"state_dict": Path("evil")}, run / "checkpoints/last.ckpt")


def a_part_less(run: Path) -> None:
    file = run / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, file)


def saved(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(run: Path) -> None:
        file = run / "checkpoints/last.ckpt"
        change(content := torch.load(file, weights_only=True))
        torch.save(content, file)

    return edit


def buffer(value: Callable[[], Any]) -> Edit:
    return saved(lambda content: content["optimizer_states"][0]["state"].update({0: {"momentum_buffer": value()}}))


def shared() -> list[Any]:
    """A list of 2**40 tensors."""
    value: list[Any] = [torch.ones(1)]
    for _ in range(40):
        value = [value, value]
    return value


def counted(**counts: Any) -> Edit:
    return saved(lambda content: content["loops"]["fit_loop"]["epoch_progress"]["current"].update(counts))


def grouped(**settings: Any) -> Edit:
    return saved(lambda content: content["optimizer_states"][0]["param_groups"][0].update(settings))


def an_archive(run: Path) -> None:
    with zipfile.ZipFile(run / "checkpoints/last.ckpt", "w") as file:
        file.writestr("data.pkl", b"cos\nsystem\n(S'touch executed'\ntR.")


CHECKPOINTS: dict[str, Edit] = {
    "empty": checkpoint(lambda content: b""),
    "zeros": checkpoint(lambda content: b"\0" * 1000),
    "truncated": checkpoint(lambda content: content[: len(content) // 2]),
    "a bit of the largest part": flip(0),
    "a bit of the second": flip(1),
    "a bit of the third": flip(2),
    "an object": with_object,
    "a part less": a_part_less,
    "a foreign archive": an_archive,
    "lists that share parts": buffer(shared),
    "lists that share parts elsewhere": saved(lambda content: content["callbacks"].update(a=shared())),
    "a tensor of one number": buffer(lambda: torch.ones(1).expand(10**12)),
    "sparse weights": saved(lambda c: c.update(state_dict={k: v.to_sparse() for k, v in c["state_dict"].items()})),
    "weights without numbers": saved(lambda c: c.update(state_dict={k: v.to("meta") for k, v in c["state_dict"].items()})),
    "negative epochs": counted(completed=-(10**9), ready=-(10**9), started=-(10**9), processed=-(10**9)),
    "negative steps": saved(
        lambda content: content["loops"]["fit_loop"]["epoch_loop.batch_progress"].update(total={"ready": -1})
    ),
    "epochs that are no number": counted(completed=float("nan")),
    "a method of the schedule": saved(lambda content: content["lr_schedulers"][0].update(get_lr=[1])),
    "another method": saved(lambda content: content["lr_schedulers"][0].update(step=[1])),
    "an unknown version": saved(lambda content: content.update({"pytorch-lightning_version": "x.y"})),
    "progress that is text": saved(lambda content: content["loops"]["fit_loop"]["epoch_progress"].update(total="ab")),
    "a learning rate that is text": grouped(lr="x"),
    "a learning rate that is NaN": grouped(lr=math.nan),
    "an endless first rate": grouped(initial_lr=math.inf),
    "a negative rate": grouped(lr=-0.1),
    "another momentum": grouped(momentum=0.5),
    "a weight decay that is text": grouped(weight_decay="x"),
    "a weight decay that is NaN": grouped(weight_decay=math.nan),
    "another kind of momentum": grouped(nesterov=1),
    "parameters twice": grouped(params=[0, 0]),
    "a group that is text": saved(lambda content: content["optimizer_states"][0].update(param_groups=["a", "b"])),
    "a group less": saved(lambda content: content["optimizer_states"][0]["param_groups"].pop()),
    "another node": lambda run: (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("num_nodes: 1", "num_nodes: 2").replace("strategy: auto", "strategy: ddp")
    ),
    "a run without state": lambda run: (run / "run.json").write_text("{}"),
    "a state that is text": lambda run: (run / "run.json").write_text('"finished"'),
    "a configuration that is text": lambda run: (run / "config.yaml").write_text("model"),
    "no configuration": lambda run: (run / "config.yaml").unlink(),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(
    interrupted: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(interrupted, "run")
    CHECKPOINTS[kind](Path("run"))
    fails(["train", "--resume", "run"], capsys, "run")
    assert not Path("executed").exists()


# -- folders and taxonomies --------------------------------------------------------------------------------------------


def images(folder: Path, *names: str, count: int = 3) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(folder / name / f"{number}.png")


def with_broken(folder: Path) -> None:
    images(folder, "a", "b")
    (folder / "a/0.png").write_bytes((folder / "a/1.png").read_bytes()[:40])


FOLDERS: dict[str, Edit] = {
    "missing": lambda folder: None,
    "empty": lambda folder: folder.mkdir(),
    "a file": lambda folder: folder.write_text("x"),
    "no images": lambda folder: (folder / "a").mkdir(parents=True),
    "one class": lambda folder: images(folder, "a"),
    "only hidden files": lambda folder: images(folder, ".a", ".b"),
    "a broken image": with_broken,
    "names that are not UTF-8": lambda folder: images(folder, "a", os.fsdecode(b"b\xff")),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FOLDERS[kind](tmp_path / "photos")
    data = ["--data", "ImageFolder", "--data.root", "photos", "--data.size", "8", "--progress", "false"]
    fails(["train", *TINY, *data, "--run", "run"], capsys, "photos")


TAXONOMIES: dict[str, str | bytes] = {
    "empty": "",
    "not UTF-8": b"0,\xff\n",
    "one class only": "0,even\n",
    "a class in two places": "".join(f"{k},{'even' if k % 2 == 0 else 'odd'}\n" for k in range(10)) + "3,even\n",
    "no levels": "".join(f"{k}\n" for k in range(10)),
    "levels of several lengths": "0,a,b\n" + "".join(f"{k},a\n" for k in range(1, 10)),
    "a cell of 200 kB": "".join(f"{k},{'x' * 200_000}\n" for k in range(10)),
    "5,000 levels": "".join(",".join([str(k), *(f"l{i}" for i in range(5000))]) + "\n" for k in range(10)),
    "NUL": "0,\0\n",
}


@pytest.mark.parametrize("kind", TAXONOMIES)
def test_taxonomies(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = TAXONOMIES[kind]
    Path("tree.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    fails(["train", *TINY, *DIGITS, "--data.taxonomy", "tree.csv", "--run", "run"], capsys)
