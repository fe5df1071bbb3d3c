"""`anytime predict DIR --stream`: a film, followed by a network that keeps its state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import anytime
from anytime.cli import main
from anytime.data import read_image


@pytest.fixture
def film(tmp_path, monkeypatch) -> list[Path]:
    """Four frames, a cascade `cascade` that follows them, and a network `plain` that cannot."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, kind in (("cascade", "cascaded_resnet18"), ("plain", "serial_resnet18")):
        model = anytime.create_model(kind, 3, width=4)
        model.info.class_names, model.info.input_size = ("cat", "dog", "frog"), (3, 16, 16)
        model.save(name)
    Path("film").mkdir()
    for number in range(4):
        gradient = Image.linear_gradient("L").resize((20, 30)).rotate(90 * number, expand=True)
        gradient.convert("RGB").save(f"film/{number}.png")
    return sorted(Path("film").iterdir())


@pytest.mark.parametrize("updates", [1, 3])
def test_stream_follows_a_folder(film, updates, capsys):
    flags = [] if updates == 1 else ["--updates", str(updates)]
    assert main(["predict", "cascade", "film", "--stream", "--top", "2", *flags]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    model = anytime.load("cascade").eval()
    frames = [read_image(path, (3, 16, 16))[None] for path in film]
    with torch.no_grad():
        answers = torch.stack([*model.stream(frame for frame in frames for _ in range(updates))])[updates - 1 :: updates]
    assert len(lines) == 4
    for number, (line, logits) in enumerate(zip(lines, answers, strict=True)):
        value, label = logits[0].softmax(0).max(0)
        words = rf" +{number + 1} +[\d.]+ ms  {model.info.class_names[int(label)]} \({float(value):.0%}".replace("%", " %")
        assert re.match(words, line)
        assert line.endswith(f"  {number}.png")
    changes = int((answers.argmax(2).diff(dim=0) != 0).sum())
    each = "1 update" if updates == 1 else "3 updates"
    assert re.fullmatch(rf"4 frames, {each} each: mean [\d.]+ ms a frame, {changes} changes of the answer", last)


def test_stream_follows_images_as_named(film, capsys):
    assert main(["predict", "cascade", "film/2.png", "film/0.png", "--stream"]) == 0
    assert [line.rpartition("  ")[2] for line in capsys.readouterr().out.splitlines()[:2]] == ["2.png", "0.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cascade", "film", "--stream", "--updates", "0"], 2, "--updates must be at least 1 for each frame, got 0"),
        (["cascade", "film", "--updates", "2"], 2, "--updates 2 are the steps of --stream"),
        (["cascade", "film", "film", "--stream"], 2, "--stream needs one folder, or the images of one film, got film film"),
        (["cascade", "film", "--stream", "--deadline", "5ms"], 2, "leave out --deadline"),
        (["cascade", "film", "--stream", "--camera-like"], 2, "leave out --camera-like"),
        (["cascade", "film", "--stream", "--stop", "confidence=0.9"], 2, "leave out --stop"),
        (["cascade", "film", "--stream", "--plot", "a.png"], 2, "the time course of one image, got a folder"),
        (["cascade", "film"], 2, "film is a folder: name its images, or add --camera-like or --stream"),
        (["cascade", "empty", "--stream"], 1, "there are no images in empty"),
        (["cascade", "films", "--stream"], 1, "the frames of one film in films, and there are folders in it: one"),
        (["plain", "film", "--stream"], 1, "cannot take new frames for ever"),
        (["cascade", "film", "--stream", "--combine", "product"], 1, "combine='last', not 'product'"),
    ],
)
@pytest.mark.usefixtures("film")
def test_what_stream_refuses(arguments, code, message, capsys):
    Path("empty").mkdir()
    Path("films/one").mkdir(parents=True)
    assert main(["predict", *arguments]) == code
    assert message in capsys.readouterr().err
