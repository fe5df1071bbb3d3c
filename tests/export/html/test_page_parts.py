"""What goes into a live page, and what stops one from being written."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript")

import anytime
from anytime.cli import main
from anytime.commands import demo
from anytime.export.html import page, web_engine
from anytime.export.html.dense import FIRST, FORBIDDEN, dense
from anytime.export.html.examples import Accuracies, measured_accuracies
from anytime.export.html.weights import EXACT, HALF, SCALED, Packed, Weight, _weight
from anytime.stopping import Confidence, Fitted, save_rule
from anytime.stopping.rules import MacBudget
from anytime.support.digest import weights_digest

FAKE = {name: name.encode() for name in web_engine.DIGESTS}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive as npm packs it, of other files, whose digests are the expected ones."""
    monkeypatch.setattr(web_engine, "DIGESTS", {name: hashlib.sha256(data).hexdigest() for name, data in FAKE.items()})
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path / "data"))
    return _archive(tmp_path / "engine.tgz", FAKE)


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A network of one step for the digits, with a rule that the page can follow and one that it cannot."""
    torch.manual_seed(0)
    model = anytime.create_model("fast_views", 10, in_channels=1, widths=(4,), head_widths=())
    recipe = {"data": {"class_path": "Digits", "init_args": {}}}
    model.info.data, model.info.input_size, model.info.recipe = "Digits", (1, 8, 8), recipe
    save_rule(model, "sure", Fitted(Confidence(0.5)))
    save_rule(model, "cheap", Fitted(MacBudget(5.0) | Confidence(0.5)))
    model.save(tmp_path / "run")
    return tmp_path / "run"


def test_dense_text_holds_every_byte() -> None:
    for data in (b"", b"\0", b"\0\0", bytes(range(256)), np.random.default_rng(0).bytes(20_000), b"\xff" * 7, b"\x34\x36"):
        text = dense(data)
        assert not {chr(code) for code in FORBIDDEN} & {*text}
        assert len(text.encode()) <= len(data) * 8 / 7 + 2
        symbols: list[int] = []
        for code in map(ord, text):
            symbols += [code] if code < 128 else [FORBIDDEN[(code - FIRST) // 128], (code - FIRST) % 128]
        bits = "".join(f"{symbol:07b}" for symbol in symbols)
        assert bytes(int(bits[i : i + 8], 2) for i in range(0, 8 * len(data), 8)) == data


def test_weights_are_stored_in_the_smallest_exact_form() -> None:
    draws = torch.Generator().manual_seed(0)
    half = torch.randn(4, 32, generator=draws).half().float()
    factors = torch.rand(4, 1, generator=draws) + 0.5
    weights = [_weight(half.numpy(), None), _weight((half * factors).numpy(), half), _weight((half * factors).numpy(), None)]
    assert [weight.form for weight in weights] == [HALF, SCALED, EXACT]
    for weight, expected in zip(weights, (half, half * factors, half * factors), strict=True):
        assert np.allclose(weight.unpacked(), expected.numpy().ravel(), rtol=3e-7, atol=0)
    packed = Packed({}, weights)
    assert [len(packed.halves()), len(packed.singles())] == [2 * 256, 4 * (4 + 128)]
    assert [weight.form for weight in packed.rounded().pool] == [HALF, SCALED, HALF]
    huge = Packed({}, [Weight(EXACT, np.full(64, 1e6, np.float32))])
    assert huge.rounded().pool[0].form == EXACT


def test_the_engine_comes_from_a_file_a_folder_or_the_network_once(engine: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"give --download to fetch it \(20 MB\), or --onnxruntime-web"):
        web_engine.web_engine()
    monkeypatch.setattr(web_engine, "ADDRESS", engine.as_uri())
    made = web_engine.web_engine(download=True)
    assert (made.script, made.glue, made.size) == (FAKE[web_engine.SCRIPT], FAKE[web_engine.GLUE], len(FAKE[web_engine.WASM]))
    assert lzma.decompress(made.program, lzma.FORMAT_RAW, filters=web_engine._LZMA) == FAKE[web_engine.WASM]
    engine.unlink()
    assert web_engine.web_engine() == web_engine.web_engine(download=True) == made
    kept = tmp_path / "data" / "onnxruntime-web-1.22.0" / f"{web_engine.WASM}.lzma"
    kept.write_bytes(kept.read_bytes()[:20])
    assert web_engine.kept_engine() is None
    folder = tmp_path / "unpacked" / "dist"
    folder.mkdir(parents=True)
    for name, data in FAKE.items():
        (folder / name).write_bytes(data)
    assert web_engine.web_engine(folder.parent) == made == web_engine.kept_engine()


def test_another_engine_is_an_error_of_one_sentence(engine: Path, tmp_path: Path, monkeypatch: Any) -> None:
    other = _archive(tmp_path / "other.tgz", {**FAKE, web_engine.WASM: b"else"})
    with pytest.raises(
        ValueError, match=rf"other\.tgz: {web_engine.WASM} is not that of onnxruntime-web 1\.22\.0; get it with"
    ):
        web_engine.web_engine(other)
    for data in (b"no archive", _archive(tmp_path / "less.tgz", {}).read_bytes(), engine.read_bytes()[:60]):
        (tmp_path / "bad.tgz").write_bytes(data)
        with pytest.raises(ValueError, match=r"bad\.tgz is not onnxruntime-web as npm packs it"):
            web_engine.web_engine(tmp_path / "bad.tgz")
    with pytest.raises(FileNotFoundError, match="does not hold onnxruntime-web"):
        web_engine.web_engine(tmp_path)
    monkeypatch.setattr(web_engine, "ADDRESS", (tmp_path / "missing.tgz").as_uri())
    with pytest.raises(
        ValueError, match=r"the download of file:.*missing\.tgz failed: .*; try again, or give --onnxruntime-web"
    ):
        web_engine.web_engine(download=True)
    assert web_engine.kept_engine() is None


def test_nobody_waits_for_a_pipe(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path / "data"))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / web_engine.WASM).touch()
    os.mkfifo(pipe := tmp_path / "dist" / web_engine.SCRIPT)
    for given in (tmp_path, pipe):
        with pytest.raises(ValueError, match=rf"{web_engine.SCRIPT} is a pipe, a socket or a device"):
            web_engine.web_engine(given)


def test_the_command_writes_one_file(run: Path, engine: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out, made = tmp_path / "site" / "page.html", list[Any]()
    export_model = page.export_model

    def export_once(model: Any, folder: Path, **options: Any) -> Any:
        made[:] = made or [export_model(model, tmp_path / "export", **options)]
        shutil.copytree(tmp_path / "export", folder)
        return made[0]

    monkeypatch.setattr(page, "export_model", export_once)
    arguments = ["export", str(run), "--html", str(out), "--onnxruntime-web", str(engine)]
    with pytest.warns(UserWarning, match="the page leaves out rules that look at more than probabilities: 'cheap'"):
        assert main(arguments) == 0
    assert f"wrote {out}, 0." in capsys.readouterr().out
    assert [*out.parent.iterdir()] == [out]
    text = out.read_bytes().decode()
    assert "{{" not in re.sub(r'<script type="application/octet-stream".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text.partition("<script")[0])
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert re.findall(r'\{"name": "([^"]*)", "stop"', text) == ["", "patience=2", "sure"]  # "cheap" is left out
    assert re.search(r'"labels": \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]', text)
    assert main(arguments) == 2
    assert f"{out} exists; give another --html, or --overwrite to replace it" in capsys.readouterr().err
    out.unlink()
    packed = page.pack
    monkeypatch.setattr(page, "pack", lambda *arguments: out.write_text("mine") and packed(*arguments))
    with pytest.warns(UserWarning, match="the page leaves out rules"):
        assert main([*arguments, "--overwrite"]) == 0
    assert out.read_bytes().decode() == text
    out.unlink()
    assert main(arguments) == 1
    assert "page.html has appeared meanwhile, so it is not replaced; give another name" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "x"], "leave out --out"),
        (["--batch", "dynamic"], "leave out --batch"),
        (["--one-graph"], "leave out --one-graph"),
        (["--engine", "openvino"], "leave out --engine"),
    ],
)
def test_options_of_folders_are_not_those_of_a_page(more: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", "fast_cifar10", "--html", str(tmp_path / "page.html"), *more]) == 2
    assert said in capsys.readouterr().err


def test_too_many_steps_values_and_channels_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    fake = web_engine.WebEngine(b"", b"", b"", 0)
    model = anytime.create_model("fast_views", 10, widths=(4,), head_widths=(), views=2)
    model.info.input_size = (3, 8, 8)
    monkeypatch.setattr(page, "MOST_STEPS", 1)
    with pytest.raises(ValueError, match=r"holds at most 1 steps, .* the model has 2, of up to 0\.0 MB each"):
        page.write_page(model, tmp_path / "page.html", fake, "many")
    model.info.task = "regression"
    with pytest.raises(ValueError, match="a live page needs the logits of a classifier"):
        page.write_page(model, tmp_path / "page.html", fake, "values")
    assert not [*tmp_path.iterdir()]


def test_accuracies_of_a_packaged_model_are_those_of_its_card() -> None:
    found = measured_accuracies(anytime.load("fast_cifar10"), "fast_cifar10")
    assert found is not None
    assert found.steps == [0.8153, 0.9227, 0.9323, 0.9408, 0.9406, 0.9419]
    assert found.source == "Measured on the 10,000 test images of CIFAR10."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"meta": None}, "'NoneType' object"),
        ({"meta": [1]}, "'list' object"),
        ({"steps": [{}]}, "'accuracy' is missing"),
        ({"steps": 4 * [{"accuracy": float("nan")}]}, r"a share of 1 for each of 4 steps, got \[nan, nan"),
        ({"steps": 2 * [{"accuracy": 0.5}]}, r"a share of 1 for each of 4 steps, got \[0.5, 0.5\]"),
        ({"samples": "many"}, "Cannot specify ','"),
    ],
)
def test_damaged_measurements_are_one_sentence(changes: dict[str, Any], said: str, run: Path) -> None:
    model, metrics = anytime.load(run), run / "metrics-test.json"
    meta = {"weights": weights_digest(model.state_dict()), "dataset": "Digits"}
    right = {"meta": meta, "steps": 4 * [{"accuracy": 0.5}], "samples": 9}
    metrics.write_text(json.dumps(right))
    assert measured_accuracies(model, str(run)) == Accuracies([0.5] * 4, "Measured on 9 test images of Digits.")
    metrics.write_text(json.dumps(right | changes))
    with pytest.raises(ValueError, match=f"metrics-test.json is damaged: .*{said}.*; write it again with `anytime evaluate`"):
        measured_accuracies(model, str(run))
    metrics.write_text("{}")
    with pytest.raises(ValueError, match=r"metrics-test.json is damaged: 'meta' is missing"):
        measured_accuracies(model, str(run))
    metrics.unlink()
    os.mkfifo(metrics)
    with pytest.raises(ValueError, match=r"metrics-test.json is a pipe"):
        measured_accuracies(model, str(run))


def test_the_demo_writes_a_page_where_the_engine_is(run: Path, engine: Path, monkeypatch: Any, capsys: Any) -> None:
    model, written = anytime.load(run), []
    assert demo._live_page(model, run).startswith(f"  anytime export {run} --html {run / 'live.html'} --download")
    web_engine.web_engine(engine)
    text = '<meta name="generator" content="anytime live page">'

    def write_page(*arguments: Any) -> None:
        written.append(arguments)
        arguments[1].write_text(text)

    monkeypatch.setattr(page, "write_page", write_page)
    assert demo._live_page(model, run) == demo._live_page(model, run) == ""
    assert [(arguments[3], len(arguments[4].labels)) for arguments in written] == 2 * [("run", 10)]
    assert (run / "live.html").read_text() == text
    monkeypatch.setattr(page, "write_page", lambda *_: (run / "live.html").write_text("mine"))
    for _ in ("meanwhile", "before"):
        with pytest.raises(ValueError, match=r"live\.html was not written by this library"):
            demo._live_page(model, run)
        assert (run / "live.html").read_text() == "mine"
