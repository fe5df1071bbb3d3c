"""A library that an export holds is code: no door loads a stranger's without consent, and consent is to these very bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import anytime
from anytime.cli import main
from anytime.model import AnytimeModel, create_model
from anytime.pretrained import chain_networks
from anytime.runtime.engines.exported import ENGINES, load_export, remember_code, write_manifest
from anytime.runtime.engines.manifest import GraphValue, Manifest, Origin, StepFile, read_manifest
from anytime.saving import ModelInfo
from anytime.studies.runner import record_views
from anytime.support.trust import UntrustedName
from anytime.training.build import _load_weights

SIZE = (1, 8, 8)


class Executed(Exception):
    """The engine was given a library."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def executed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The libraries that the engine was given."""
    seen = list[bytes]()

    def load(path: str) -> None:
        seen.append(Path(path).read_bytes())
        raise Executed

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return seen


def exported(name: str, library: bytes = b"code", file: str = "step_1.pt2", engine: str = "aoti") -> Path:
    """An exported folder of one step."""
    images, answer = GraphValue("images", (1, *SIZE), "float32"), GraphValue("answer", (1, 3), "float32")
    step = StepFile(file, hashlib.sha256(library).hexdigest(), (images,), (Origin(0),), (answer,), 48)
    Path(name).mkdir()
    Path(name, file).write_bytes(library)
    write_manifest(
        Path(name),
        Manifest(engine, "float32", 1, "mine", (3,), SIZE, (0.0,), (1.0,), 48, 1e-4, {}, (step,), {"data": "Digits"}),
    )
    return Path(name)


def manifest_of(folder: Path) -> Manifest:
    return read_manifest(folder, ENGINES)


def small() -> AnytimeModel:
    model = create_model("anytimenet", 3, blocks=(1, 1), scheme=((1, 1),), width=2, in_channels=1)
    model.info = ModelInfo(input_size=SIZE)
    return model


FIT = ["--stop", "confidence", "--budget", "50%"]
COMMANDS = {
    "predict": ["predict", "out", "image.png"],
    "profile": ["profile", "out"],
    "evaluate": ["evaluate", "out"],
    "fit": ["fit", "out", *FIT],
    "fit into": ["fit", "run", *FIT, "--out", "out"],
    "export": ["export", "out"],
    "serve": ["serve", "out", "--port", "0"],
}
CALLS: dict[str, Callable[[], Any]] = {
    "load": lambda: anytime.load("out"),
    "sequence": lambda: chain_networks(["out", "out"]),
    "train --weights": lambda: _load_weights(small(), "out"),
    "study": lambda: record_views(Path("out"), {}),
    "a copy of the manifest": lambda: load_export("out", own=replace(manifest_of(Path("out")), steps=())),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_executes_it(
    command: str, executed: list[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "serve":
        pytest.importorskip("uvicorn")
        monkeypatch.setattr("anytime.server.launch.listen", lambda *_: nullcontext())
    exported("out")
    small().save("run")
    Image.new("L", SIZE[1:]).save("image.png")
    assert main(COMMANDS[command]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out holds compiled libraries of the engine 'aoti': loading them may run any code; if you trust" in error
    assert executed == []


@pytest.mark.parametrize("call", CALLS)
def test_no_call_executes_it(call: str, executed: list[bytes]) -> None:
    exported("out")
    with pytest.raises(UntrustedName, match="out holds compiled libraries"):
        CALLS[call]()
    with pytest.raises(FileNotFoundError, match="holds no trained model"):
        AnytimeModel.from_pretrained("out")
    assert executed == []


@pytest.mark.parametrize(
    ("engine", "file", "error"),
    [
        ("onnx", "step_1.pt2", "step_1.pt2"),
        ("openvino", "step_1.pt2", "step_1.pt2"),
        ("aoti", "step_1.onnx", "holds compiled libraries"),
    ],
)
def test_another_name_makes_no_difference(engine: str, file: str, error: str, executed: list[bytes]) -> None:
    pytest.importorskip({"aoti": "onnx"}.get(engine, engine))
    exported("out", b"\x50\x4b\x03\x04 an archive", file, engine)
    with pytest.raises(ValueError, match=error):
        anytime.load("out")
    assert executed == []


def edited(**changes: Any) -> Callable[[], None]:
    def edit() -> None:
        path = Path("out/manifest.json")
        manifest = json.loads(path.read_text())
        manifest["steps"][0] |= changes
        path.write_text(json.dumps(manifest))

    return edit


def replaced() -> None:
    shutil.rmtree("out")
    exported("out", b"evil")


def linked() -> None:
    """A stranger's folder whose manifest is a copy, and whose library is a link to the user's own."""
    Path("out").rename("mine")
    remember_code(Path("mine"), manifest_of(Path("mine")))
    shutil.copytree("mine", "out")
    Path("out/step_1.pt2").unlink()
    Path("out/step_1.pt2").symlink_to(Path("mine/step_1.pt2").resolve())


def other_library() -> None:
    Path("out/step_1.pt2").write_bytes(b"evil")


def consent_inside() -> None:
    """The record of the consent lies in the folder, where a relative path of the state directory would find it."""
    shutil.move("state", "out/state")


AFTERWARDS: dict[str, Callable[[], None]] = {
    "other MACs": edited(macs=49),
    "another digest": edited(sha256=hashlib.sha256(b"evil").hexdigest()),
    "another file": edited(file="step_2.pt2"),
    "another library": other_library,
    "another folder": replaced,
    "a link to a library of one's own": linked,
    "a consent that lies in the folder": consent_inside,
}


@pytest.mark.parametrize("change", AFTERWARDS)
def test_consent_is_to_this_folder_and_these_bytes(
    change: str, executed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported("out")
    remember_code(Path("out"), manifest_of(Path("out")))
    with pytest.raises(ValueError, match="cannot be loaded by AOTInductor"):
        anytime.load("out")
    assert executed == [b"code"]
    AFTERWARDS[change]()
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    for state in (os.environ["XDG_STATE_HOME"], "out/state"):
        monkeypatch.setenv("XDG_STATE_HOME", state)
        with pytest.raises(ValueError, match=r"holds compiled libraries|is damaged: SHA-256|a link that leads out"):
            anytime.load("out")
    assert executed == [b"code"]


def test_consent_to_the_library_says_nothing_of_a_copy(executed: list[bytes]) -> None:
    exported("out")
    remember_code(Path("out"), manifest_of(Path("out")))
    shutil.copytree("out", "copy")
    Path("link").symlink_to("copy")
    for folder in ("copy", "link"):
        with pytest.raises(UntrustedName):
            anytime.load(folder)
    assert executed == []
    with pytest.raises(ValueError, match="cannot be loaded by AOTInductor"):
        anytime.load("copy", trust=True)
    with pytest.raises(UntrustedName):  # not remembered
        anytime.load("copy")


def test_an_export_knows_what_it_has_written_itself(executed: list[bytes]) -> None:
    own = manifest_of(exported("mine"))
    with pytest.raises(ValueError, match="cannot be loaded by AOTInductor"):
        load_export("mine", own=own)
    assert executed == [b"code"]
    exported("out", b"evil")
    with pytest.raises(UntrustedName):
        load_export("out", own=own)
    assert executed == [b"code"]
