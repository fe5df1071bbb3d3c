"""Names from files neither command a terminal nor break a figure."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from anytime.cli import main
from anytime.model import create_model
from anytime.reporting import plots
from anytime.reporting.tables import Column, format_table
from anytime.saving import ModelInfo
from anytime.support.text import one_line, printable
from anytime.trace import Trace

CLEAR = "cat\x1b[2J\x1b]0;title\x07"


def test_printable() -> None:
    assert printable("Zürich – 猫 ok") == "Zürich – 猫 ok"
    assert printable(CLEAR) == r"cat\x1b[2J\x1b]0;title\x07"
    assert printable("a\nb\r\x9b\u202e\udcff") == r"a\nb\r\x9b\u202e\udcff"
    assert one_line(ValueError(f"two\n  lines {CLEAR}")) == r"two lines cat\x1b[2J\x1b]0;title\x07"
    assert one_line(KeyError.__new__(KeyError)) == "KeyError"


def test_tables_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert format_table([{"name": CLEAR}], [Column("name", "name")]).splitlines()[-1] == printable(CLEAR)
    assert main(["predict", CLEAR, "image.png"]) == 2
    assert main(["evaluate", "--device", CLEAR, "anytimenet_cifar10"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["models", "a." * 3000 + "b"], 2),
        (["exits", "a." * 3000 + "b"], 2),
        (["exits", "x" * 100_000], 2),
        (["exits", CLEAR], 2),
        (["exits", "torchvision:squeezenet1_0", "--classes", "10000000000"], 2),
        (["exits", "torchvision:squeezenet1_0", "--input-size", "3,99999999,99999999"], 1),
        (["datasets", "--root", "x" * 5000], 1),
        (["datasets", "--root", CLEAR], 0),
        (["train", "--model", "x" * 100_000, "--data", "digits"], 2),
        (["profile", "anytimenet_cifar10", "--batch", "x" * 100_000], 2),
    ],
    ids=lambda value: str(value)[:60].encode("unicode_escape").decode(),
)
def test_what_is_typed_ends_in_one_printable_sentence(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert err.count("\n") == (code > 0)
    assert len(err) < 1700


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("anytime.commands.models.run", lambda _: torch.empty(10**15))
    assert main(["models"]) == 1
    assert "can't allocate memory" in capsys.readouterr().err


def test_predict_prints_names_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = create_model("anytimenet", 2, blocks=(1, 1), scheme=((1, 1),), width=2)
    model.info = ModelInfo(input_size=(3, 8, 8), class_names=(CLEAR, f"{CLEAR}2"))
    model.save("model")
    Image.new("RGB", (8, 8)).save("\x1b[31mred.png", format="PNG")
    assert main(["predict", "model", "\x1b[31mred.png"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mred.png" in out
    assert r"cat\x1b[2J" in out


@pytest.mark.parametrize("name", [r"$\frac{1}$", "$", "a_b^c", r"\textbf{x}", "{", "#%&~"])
def test_figures_draw_any_name(name: str) -> None:
    labels = torch.arange(12) % 2
    logits = torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(0))
    macs = torch.tensor([1, 2])
    trace = Trace(logits=logits, labels=labels, macs=macs, contract_macs=macs, seconds=None, class_names=(name, f"{name}2"))
    for figure in (plots.per_class(trace), plots.compare({name: trace, f"{name}2": trace})):
        figure.savefig(io.BytesIO(), format="svg")
