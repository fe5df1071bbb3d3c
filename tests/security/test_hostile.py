"""Damaged and hostile files: each ends in one sentence and the documented exit code, in little time and memory."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import yaml
from PIL import Image

from anytime.cli import main
from anytime.model import create_model
from anytime.saving import CONFIG, WEIGHTS, ModelInfo
from anytime.support.trace_files import _crc32
from anytime.trace import record

RECIPE: dict[str, Any] = {"model": {"class_path": "anytimenet"}, "data": {"class_path": "Digits", "init_args": {"limit": 40}}}
DEEP = "[" * 5000 + "]" * 5000
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
Edit = Callable[[Path], object]


@pytest.fixture(scope="session")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small trained model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = create_model("anytimenet", 3, blocks=(1, 1), scheme=((1, 1),), width=2, in_channels=1)
    model.info = ModelInfo(data="Digits", input_size=(1, 8, 8), class_names=("a", "b", "c"), recipe=RECIPE)
    model.save(folder)
    trace = record(model, [(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)], input_size=(1, 8, 8), progress=False)
    trace.save(folder / "trace-test.safetensors")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(model_bytes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name, content in model_bytes.items():
        (tmp_path / "run" / name).write_bytes(content)
    Image.new("L", (8, 8)).save("image.png")
    return tmp_path / "run"


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], codes: tuple[int, ...] = (1, 2)) -> str:
    """The one sentence that a command ends in."""
    code = main(arguments)
    captured = capsys.readouterr()
    assert code in codes, captured.out + captured.err
    sentences = [line for line in captured.err.splitlines() if f"anytime {arguments[0]}: error: " in line]
    assert len(sentences) == 1, captured.err
    assert "Traceback" not in captured.err
    assert len(sentences[0]) < 2000
    return sentences[0]


# -- config.json -------------------------------------------------------------------------------------------------------


def set_config(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not ...}))

    return edit


def set_arguments(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        set_config(arguments=config["arguments"] | changes)(folder)

    return edit


def set_metadata(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        set_config(metadata=config["metadata"] | changes)(folder)

    return edit


def write(name: str, content: str | bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


CONFIGS: dict[str, Edit] = {
    "empty": write(CONFIG, ""),
    "not JSON": write(CONFIG, "{"),
    "a list": write(CONFIG, "[]"),
    "a number": write(CONFIG, "1"),
    "null": write(CONFIG, "null"),
    "not UTF-8": write(CONFIG, b"\xff\xfe{}"),
    "zeros": write(CONFIG, b"\0" * 100),
    "nested too deeply": write(CONFIG, f'{{"format": 1, "model": {DEEP}}}'),
    "nested too deeply in arguments": write(
        CONFIG, f'{{"format": 1, "model": "ann", "sha256": "", "arguments": {{"a": {DEEP}}}}}'
    ),
    "another format": set_config(format=2),
    "no model": set_config(model=...),
    "no checksum": set_config(sha256=...),
    "model is a number": set_config(model=3),
    "model is a list": set_config(model=["anytimenet"]),
    "arguments are a list": set_config(arguments=[1]),
    "unknown model": set_config(model="anytimnet"),
    "empty model": set_config(model=""),
    "dots": set_config(model="..."),
    "path of a module": set_config(model="os.path"),
    "a module that acts when imported": set_config(model="antigravity.fly"),
    "our own main": set_config(model="anytime.__main__.main"),
    "unknown argument": set_arguments(widht=3),
    "width 0": set_arguments(width=0),
    "width -1": set_arguments(width=-1),
    "width is text": set_arguments(width="wide"),
    "width is NaN": set_arguments(width=float("nan")),
    "a width of 10**9": set_arguments(width=10**9),
    "10**7 classes": set_arguments(num_classes=10**7),
    "10**7 blocks": set_arguments(blocks=[10**7, 1], scheme=[[10**7, 1]]),
    "another width": set_arguments(width=3),
    "metadata is a list": set_config(metadata=[]),
    "metadata is text": set_config(metadata="trained"),
    "class names are a number": set_metadata(class_names=3),
    "class names are numbers": set_metadata(class_names=[1, 2, 3]),
    "class names are too few": set_metadata(class_names=["a", "b"]),
    "class names are too many": set_metadata(class_names=[*"abcd"]),
    "input size is text": set_metadata(input_size="1x8x8"),
    "input size has two numbers": set_metadata(input_size=[8, 8]),
    "input size is huge": set_metadata(input_size=[1, 10**9, 10**9]),
    "input size is negative": set_metadata(input_size=[1, -8, 8]),
    "margin is NaN": set_metadata(margin=float("nan")),
    "margin is negative": set_metadata(margin=-1.0),
    "rules are a list": set_metadata(fitted=[1]),
    "levels are damaged": set_metadata(answer_levels={"sizes": 3}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    CONFIGS[kind](folder)
    sentence = fails(["predict", "run", "image.png", "--deadline", "1s"], capsys)
    assert "run" in sentence or kind in ("input size is huge", "levels are damaged")
    assert "antigravity" not in sys.modules


# -- model.safetensors -------------------------------------------------------------------------------------------------


def set_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """With the right checksum, so that only their content is wrong."""

    def edit(folder: Path) -> None:
        tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        change(tensors)
        put(safetensors.torch.save(tensors))(folder)

    return edit


def put(content: bytes) -> Edit:
    def edit(folder: Path) -> None:
        import hashlib

        (folder / WEIGHTS).write_bytes(content)
        set_config(sha256=hashlib.sha256(content).hexdigest())(folder)

    return edit


def truncated(folder: Path) -> None:
    put((folder / WEIGHTS).read_bytes()[:-7])(folder)


def flipped(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


LONG = json.dumps({"__metadata__": {"a": "a" * 3_000_000}}).encode()
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
WEIGHT_FILES: dict[str, Edit] = {
    "missing": lambda folder: (folder / WEIGHTS).unlink(),
    "empty": put(b""),
    "zeros": put(b"\0" * 1000),
    "text": put(b"weights"),
    "pickled": lambda folder: torch.save({"a": torch.ones(2)}, folder / WEIGHTS),
    "truncated": truncated,
    "one bit flipped": flipped,
    "header longer than the file": put(struct.pack("<Q", 10**15) + b"{}"),
    "header names terabytes": put(struct.pack("<Q", len(HEADER)) + HEADER),
    "a header of megabytes": put(struct.pack("<Q", len(LONG)) + LONG),
    "a tensor less": set_weights(lambda t: t.pop("mean")),
    "a tensor more": set_weights(lambda t: t.update(other=torch.ones(1))),
    "another shape": set_weights(lambda t: t.update(mean=torch.zeros(2))),
    "NaN": set_weights(lambda t: t.update(mean=torch.full((1,), torch.nan))),
    "infinity": set_weights(lambda t: t.update({k: v / 0 for k, v in t.items() if k.endswith("weight")})),
    "std of 0": set_weights(lambda t: t.update(std=torch.zeros(1))),
    "negative std": set_weights(lambda t: t.update(std=-torch.ones(1))),
    "a directory": lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
    "a FIFO": lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)),
}


@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_weights(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    WEIGHT_FILES[kind](folder)
    assert "run" in fails(["predict", "run", "image.png"], capsys)


# -- recipes -----------------------------------------------------------------------------------------------------------

RECIPES: dict[str, str | bytes] = {
    "empty": "",
    "a list": "- 1",
    "a number": "3",
    "not UTF-8": b"model: \xff",
    "NUL": b"model: \0",
    "tabs": "model:\n\t- a",
    "nested too deeply": f"model: {DEEP}",
    "mappings nested too deeply": "{a: " * 3000 + "1" + "}" * 3000,
    "aliases that expand": BOMB,
    "merge keys that expand": "x0: &x0 {a: 1}\n"
    + "".join(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}]}}\n" for i in range(1, 9)),
    "a mapping that holds itself": "model: &a {<<: *a}",
    "a number of base 60": f"model: {'1:' * 50_000}1",
    "a seed of 4,816 digits": yaml.safe_dump(RECIPE) + f"seed: 0x{'f' * 4000}",
    "a tag that runs code": "model: !!python/object/apply:os.system ['touch executed']",
    "another tag": "model: !!python/name:os.system",
    "bytes": "epochs: !!binary eA==",
    "bytes as a key": "model: {class_path: attach, init_args: {options: {a: {!!binary eA==: 1}}}}",
    "a set": "model: !!set {a}",
    "pairs": "data: {class_path: digits, init_args: !!pairs [a: 1]}",
    "a date": "seed: !!timestamp 2026-01-01",
    "another node": yaml.safe_dump(RECIPE | {"num_nodes": 2}),
    "unknown key": yaml.safe_dump(RECIPE | {"modle": 1}),
    "unknown model": yaml.safe_dump(RECIPE | {"model": "anytimnet"}),
    "model is a list": yaml.safe_dump(RECIPE | {"model": [1]}),
    "extra key": yaml.safe_dump(RECIPE | {"model": {"class_path": "anytimenet", "extra": 1}}),
    "arguments are a list": yaml.safe_dump(RECIPE | {"model": {"class_path": "anytimenet", "init_args": [1]}}),
    "unknown argument": yaml.safe_dump(RECIPE | {"model": {"class_path": "anytimenet", "init_args": {"widht": 1}}}),
    "number of classes": yaml.safe_dump(RECIPE | {"model": {"class_path": "anytimenet", "init_args": {"num_classes": 1}}}),
    "epochs 0": yaml.safe_dump(RECIPE | {"epochs": 0}),
    "epochs are text": yaml.safe_dump(RECIPE | {"epochs": "many"}),
    "epochs are NaN": yaml.safe_dump(RECIPE | {"epochs": float("nan")}),
    "10**6 devices": yaml.safe_dump(RECIPE | {"accelerator": "cpu", "devices": 10**6}),
    "unknown accelerator": yaml.safe_dump(RECIPE | {"accelerator": "abacus"}),
    "unknown precision": yaml.safe_dump(RECIPE | {"precision": "3"}),
    "unknown data": yaml.safe_dump(RECIPE | {"data": "Digitz"}),
    "data that are not there": yaml.safe_dump(
        RECIPE | {"data": {"class_path": "CIFAR10", "init_args": {"root": "/no/such/folder"}}}
    ),
    "a class of the standard library": yaml.safe_dump(RECIPE | {"optimizer": "subprocess.Popen"}),
    "an import path": yaml.safe_dump(RECIPE | {"objective": "antigravity.fly"}),
}


NAMED = ("bytes", "bytes as a key", "a set", "pairs", "a date", "another node")  # a value of which only the file is known


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = RECIPES[kind]
    Path("recipe.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    sentence = fails(["train", "--config", "recipe.yaml", "--run", "new"], capsys)
    assert "recipe.yaml" in sentence or kind not in NAMED
    assert not Path("new").exists()
    assert not Path("executed").exists()
    assert "antigravity" not in sys.modules


# -- images ------------------------------------------------------------------------------------------------------------


def png(content: bytes) -> Edit:
    return lambda folder: (folder.parent / "bad.png").write_bytes(content)


def image_with(**options: Any) -> bytes:
    import io

    stream = io.BytesIO()
    Image.new(**options).save(stream, format="PNG")
    return stream.getvalue()


IMAGES: dict[str, Edit] = {
    "missing": lambda folder: None,
    "empty": png(b""),
    "text": png(b"not an image"),
    "truncated": png(image_with(mode="L", size=(64, 64))[:40]),
    "a header only": png(image_with(mode="L", size=(64, 64))[:20]),
    "a directory": lambda folder: (folder.parent / "bad.png").mkdir(),
    "a FIFO": lambda folder: os.mkfifo(folder.parent / "bad.png"),
    "EPS, which calls a program": png(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"),
    "a decompression bomb": png(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)
        + b"\0" * 4
    ),
    "a broken link": lambda folder: (folder.parent / "bad.png").symlink_to("nowhere"),
    "a numpy file": lambda folder: np.save(folder.parent / "bad.png", np.ones(3)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    IMAGES[kind](folder)
    if kind == "a numpy file":
        (folder.parent / "bad.png.npy").rename("bad.png")
    assert "bad.png" in fails(["predict", "run", "bad.png"], capsys)


# -- traces and profiles -----------------------------------------------------------------------------------------------


def set_trace(change: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "trace-test.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return edit


TRACES: dict[str, Edit] = {
    "missing": lambda folder: (folder / "trace-test.safetensors").unlink(),
    "empty": set_trace(lambda content: b""),
    "zeros": set_trace(lambda content: b"\0" * 500),
    "truncated": set_trace(lambda content: content[:-9]),
    "one bit flipped": set_trace(lambda content: content[:-3] + bytes([content[-3] ^ 4]) + content[-2:]),
    "the header flipped": set_trace(lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:]),
    "other tensors": set_trace(lambda content: safetensors.torch.save({"a": torch.ones(2)})),
    "a model": lambda folder: (folder / "trace-test.safetensors").write_bytes((folder / WEIGHTS).read_bytes()),
    "pickled": lambda folder: torch.save({"logits": torch.ones(2)}, folder / "trace-test.safetensors"),
}


def set_facts(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Other facts in the header, with the right checksum."""

    def edit(folder: Path) -> None:
        path = folder / "trace-test.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = change(json.loads(metadata["trace"]))
        text = text if isinstance(text, str) else json.dumps(text)
        metadata |= {"trace": text, "crc32": _crc32(text, tensors)}
        path.write_bytes(safetensors.torch.save(tensors, metadata))

    return edit


def with_meta(**facts: Any) -> Edit:
    return set_facts(lambda header: header | {"meta": header["meta"] | facts})


MANY = json.dumps({f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200)}).encode()
TRACES |= {
    "a header that is empty": set_facts(lambda header: ""),
    "a header that is a list": set_facts(lambda header: [1]),
    "a header nested too deeply": set_facts(lambda header: DEEP),
    "no class names": set_facts(lambda header: {"meta": header["meta"]}),
    "class names are a number": set_facts(lambda header: header | {"class_names": 3}),
    "no facts": set_facts(lambda header: {"class_names": header["class_names"]}),
    "facts are text": set_facts(lambda header: header | {"meta": "x"}),
    "levels are a number": with_meta(levels=3),
    "levels of other classes": with_meta(levels=[10**9]),
    "levels are text": with_meta(levels=["x"]),
    "seconds are a number": with_meta(seconds_low=3),
    "seconds are an object": with_meta(seconds_low=dict.fromkeys("ab", 1)),
    "a batch without end": with_meta(seconds_batch=float("inf")),
    "a batch is a text": with_meta(seconds_batch="abc"),
    "hardware is a list": with_meta(hardware=[{}]),
    "a load of 10^400": with_meta(load=10**400),
    "many tensors": set_trace(lambda content: struct.pack("<Q", len(MANY)) + MANY),
    "a type that is unknown": set_trace(
        lambda content: struct.pack("<Q", 59) + b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}      ' + b"\0"
    ),
}


@pytest.mark.parametrize("kind", TRACES)
def test_traces(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    TRACES[kind](folder)
    assert "trace-test" in fails(["compare", "run", "--out", "figure.png"], capsys, (1,))
