"""What an export may replace: an earlier export, never a file of the user, a model or a training."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import anytime
from anytime.cli import main
from anytime.data.names import Names
from anytime.data.record import RECORD, ImageRecord
from anytime.export.folder import _complete, _new_folder, _replace, check_replaceable
from anytime.runtime.engines.exported import write_manifest
from anytime.runtime.engines.manifest import GraphValue, Manifest, Origin, StepFile
from anytime.training.rundir import set_state

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE = (1, 4, 4)
CHANGES = ("replace", "rename", "unlink", "rmdir")


def graph(weight: float = 0.1) -> bytes:
    """An ONNX file: 3 logits from images, by a matrix product."""
    number, make = onnx.TensorProto.FLOAT, onnx.helper
    nodes = [
        make.make_node("Flatten", ["images"], ["flat"], axis=1),
        make.make_node("MatMul", ["flat", "weight"], ["answer"]),
    ]
    values = (
        [make.make_tensor_value_info("images", number, [1, *SIZE])],
        [make.make_tensor_value_info("answer", number, [1, 3])],
    )
    made = make.make_graph(nodes, "step", *values, [make.make_tensor("weight", number, [16, 3], [weight] * 48)])
    return make.make_model(made, opset_imports=[make.make_opsetid("", 18)], ir_version=9).SerializeToString()


def exported(folder: Path, macs: int = 48, steps: int = 1, weight: float = 0.1) -> Path:
    """A folder that `anytime export` could have written; its steps differ in their weights."""
    images, answer = GraphValue("images", (1, *SIZE), "float32"), GraphValue("answer", (1, 3), "float32")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for t in range(1, steps + 1):
        data = graph(weight * t)
        (folder / f"step_{t}.onnx").write_bytes(data)
        files.append(StepFile(f"step_{t}.onnx", hashlib.sha256(data).hexdigest(), (images,), (Origin(0),), (answer,), macs))
    manifest = Manifest("onnx", "float32", 1, "mine", (3,), SIZE, (0.0,), (1.0,), 48, 1e-4, {}, tuple(files), {})
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def model() -> anytime.AnytimeModel:
    """A network of two steps."""
    return anytime.create_model("anytimenet", 3, blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=2, in_channels=1)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def placed(path: Path, kind: str) -> None:
    """Something of the user at a path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        (path.parent.parent / "mine").write_text("mine")
        path.symlink_to(path.parent.parent / "mine")
    else:
        path.write_text("mine")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_has_the_name_of_a_graph_is_not_replaced(kind: str, model: anytime.AnytimeModel, tmp_path: Path) -> None:
    folder, export, part = (exported(tmp_path / name) for name in ("there", "export", "part"))
    (part / "step_1.onnx").rename(part / "step_2.onnx")
    (tmp_path / "docs").mkdir()
    placed(folder / "step_2.onnx", kind)
    placed(tmp_path / "docs/step_1.onnx", kind)
    before = content(tmp_path)
    for write in (
        lambda: anytime.export_model(model, folder, input_size=SIZE, overwrite=True),
        lambda: _replace(folder, part),
        lambda: anytime.load(export).save(tmp_path / "docs"),
    ):
        with pytest.raises(ValueError, match=r"step_[12]\.onnx is not a graph of the export in .*, so it is not replaced"):
            write()
    assert content(tmp_path) == before


def test_no_export_is_mixed_with_a_model_or_another_export(model: anytime.AnytimeModel, tmp_path: Path) -> None:
    export = anytime.load(exported(tmp_path / "export"))
    model.save(tmp_path / "model")
    set_state(tmp_path / "run", "interrupted")
    exported(tmp_path / "other", macs=49)
    before = content(tmp_path)
    for folder, what in {"model": "holds config.json", "run": "holds run.json", "other": "holds another export"}.items():
        with pytest.raises(ValueError, match=f"{folder} {what}, .* give another folder"):
            export.save(tmp_path / folder)
    with pytest.raises(ValueError, match="export holds an export, beside which no model is saved; give another folder"):
        model.save(tmp_path / "export")
    assert content(tmp_path) == before
    (tmp_path / "export/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds config\.json, beside which no export is written"):
        check_replaceable(tmp_path / "export", overwrite=True)


def test_fit_mixes_no_model_into_an_export(model: anytime.AnytimeModel, tmp_path: Path, capsys: Any) -> None:
    model.save(tmp_path / "model")
    exported(tmp_path / "export")
    before = content(tmp_path)
    fit = ["fit", str(tmp_path / "model"), "--stop", "confidence", "--budget", "50%", "--out", str(tmp_path / "export")]
    assert main(fit) == 1
    assert "export holds another model, which is not replaced; give another --out" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_rules_of_a_copy_of_an_export_are_kept(tmp_path: Path) -> None:
    from anytime.commands.fit import _saved_in

    export = anytime.load(exported(tmp_path / "export"))
    export.info.rules["first"] = {}
    export.save(tmp_path / "copy")
    assert list(_saved_in(tmp_path / "copy", anytime.load(tmp_path / "export"), False).info.rules) == ["first"]


def loaded_macs(folder: Path) -> int:
    """MACs of the export that a folder holds; 0 if it says that the same command completes it."""
    with suppress(ValueError):
        return anytime.load(folder).manifest.steps[0].macs
    with pytest.raises(ValueError, match="was when `anytime export --overwrite` was stopped: the same command"):
        anytime.load(folder)
    return 0


def test_a_killed_replacement_leaves_an_export_or_says_how_to_complete_it(tmp_path: Path, killed: Any) -> None:
    """Beside files of the user, which stay. The earlier export has a step more, the new one another graph."""
    seen = []
    for number in range(1, 20):
        place = tmp_path / str(number)
        folder, part = exported(place / "export", steps=2), exported(place / "part", macs=49, weight=0.2)
        (folder / "step_3.onnx").write_text("mine")
        ended = not killed(number, place, lambda folder=folder, part=part: _replace(folder, part))  # type: ignore[misc]
        seen.append(loaded_macs(folder))
        shutil.rmtree(part, ignore_errors=True)
        _replace(folder, exported(part, macs=50))
        assert loaded_macs(folder) == 50
        assert set(content(folder)) == {f"{folder}/{name}" for name in ("manifest.json", "step_1.onnx", "step_3.onnx")}
        if ended:
            break
    assert seen == [48, 48, 0, 0, 0, 49, 49]


@pytest.mark.parametrize("number", range(1, 6))
def test_an_error_between_the_renames_loses_no_export(number: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Ctrl-C deleted the earlier export and the new one; the same export again completes it."""
    folder, left, moved = exported(tmp_path / "export", steps=2), [number], {name: getattr(os, name) for name in CHANGES}

    def stopping(name: str) -> Any:
        def change(*arguments: Any, **more: Any) -> Any:
            inside = str(arguments[-1]).startswith(str(folder)) and not str(arguments[-1]).endswith(".lock")
            left[0] -= inside
            if inside and left[0] == 0:
                raise KeyboardInterrupt
            return moved[name](*arguments, **more)

        return change

    with monkeypatch.context() as patched:
        for name in CHANGES:
            patched.setattr(os, name, stopping(name))
        with pytest.raises(KeyboardInterrupt), _new_folder(folder, True) as part:
            exported(part, macs=49, weight=0.2)
    assert loaded_macs(folder) in (0, 48, 49)
    with _new_folder(folder, True) as part:
        exported(part, macs=49, weight=0.2)
    assert loaded_macs(folder) == 49
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["export", "manifest.json", "step_1.onnx"]


def test_what_a_stranger_calls_an_unfinished_export_takes_no_files(tmp_path: Path) -> None:
    folder, other = exported(tmp_path / "export"), exported(tmp_path / "other", macs=49)
    (folder / ".export.next").symlink_to(other)
    before = content(tmp_path)
    with pytest.raises(OSError, match="directory"):
        _replace(folder, exported(tmp_path / "part", macs=50))
    shutil.rmtree(tmp_path / "part")
    assert content(tmp_path) == before


def put(path: Path, kind: str) -> None:
    """The export of another process, or a file or folder of the user."""
    if kind == "export":
        exported(path)
    elif kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").touch()


def export_while(path: Path, kind: str) -> None:
    with _new_folder(path, False) as part:
        exported(part, macs=50)
        put(path, kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("export", "export exists; give another"),
        ("file", "file is not a folder"),
        ("folder", "folder exists and is no"),
    ],
)
def test_what_appears_during_an_export_is_not_replaced(kind: str, message: str, tmp_path: Path) -> None:
    for place in ("before", "after"):
        (tmp_path / place).mkdir()
    put(tmp_path / "before" / kind, kind)
    with pytest.raises((ValueError, OSError), match=message):
        export_while(tmp_path / "after" / kind, kind)
    assert sorted(content(tmp_path / "after").values()) == sorted(content(tmp_path / "before").values())


def test_the_record_goes_with_the_export(tmp_path: Path, killed: Any) -> None:
    """It came after the export, so that of two at a time one had the record of the other; a kill at any moment loses none."""
    names = Names.of(["a.png"])
    records = [ImageRecord(names, torch.tensor([n]), torch.zeros(1, dtype=torch.uint8)) for n in (1, 2)]
    for number in range(1, 20):
        place = tmp_path / str(number)
        folder, part = exported(place / "export"), exported(place / "part", macs=49, weight=0.2)
        for record, where in zip(records, (folder, part), strict=True):
            record.save(where / RECORD)
        ended = not killed(number, place, lambda folder=folder, part=part: _replace(folder, part))  # type: ignore[misc]
        _complete(folder)
        replaced = loaded_macs(folder) == 49
        assert ImageRecord.load(folder / RECORD).contents.tolist() == [1 + replaced]
        if ended:
            break
    assert number > 5
    with _new_folder(folder, True) as part:
        exported(part, macs=50)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "step_1.onnx"]
