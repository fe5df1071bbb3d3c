"""What the README says works, word for word."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from anytime.cli import main
from anytime.training.config import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = "--model.width 4 --data.limit 64 --data.batch_size 16 --epochs 1 --compile false --precision 32-true --progress false"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_two_commands_are_complete_and_what_ci_runs() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python3 -m venv ")]
    install = 'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[dev]"'
    assert commands == [f"{install} && .venv/bin/anytime demo", f"{install} && .venv/bin/pytest"]
    assert (ROOT / "constraints.txt").is_file()


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


def test_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = blocks("python")
    for _ in range(5):  # on a machine that is busy with other things, no step may fit
        names: dict[str, Any] = {}
        exec(compile(first, "README.md", "exec"), names)
        assert "474828352" in capsys.readouterr().out
        exec(compile(second, "README.md", "exec"), {})
        steps = names["answer"].step, int(capsys.readouterr().out.splitlines()[-1])
        if min(steps) >= 1:
            return
    pytest.fail(f"the README's lines print a prior: steps {steps}")


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["cascaded", "dynamics", "interchange", "slicing"])  # the others' code needs trained runs
def test_python_of_the_docs_runs(name: str) -> None:
    names: dict[str, object] = {}
    for code in blocks("python", page(name)):
        exec(compile(code, f"{name}.md", "exec"), names)


def test_commands_of_the_docs_are_understood() -> None:
    pages = [file.read_text(encoding="utf-8") for file in (ROOT / "docs").rglob("*.md")]
    shown = [[line for line in text.splitlines() if line.startswith("$ anytime train ")] for text in pages]
    assert sum(map(len, shown)) >= 4
    for lines in shown:
        runs = [words[words.index("--run") + 1] for words in map(str.split, lines)]
        assert len(runs) == len(set(runs)), f"a page trains into one run twice: {runs}"
    for flags in [line.split()[3:] for lines in shown for line in lines]:
        for option in ("--run", "--config"):
            place = flags.index(option) if option in flags else len(flags)
            value, flags = flags[place + 1 : place + 2], flags[:place] + flags[place + 2 :]
        parse(flags, [ROOT / name for name in value])


@pytest.mark.filterwarnings("ignore:the milliseconds were not measured under the same conditions")  # on a busy machine
def test_console_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    generator = torch.Generator().manual_seed(0)
    Image.fromarray(torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator).numpy()).save("photo.png")
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(40):
            pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / kind / f"{number}.png")
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path / "data"))
    records = torch.randint(256, (1_200, 3073), dtype=torch.uint8, generator=generator)  # six files, as of CIFAR-10
    records[:, 0] %= 10
    for name in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
        shown = records[:100] if name == "test_batch.bin" else records  # a packaged model answers all of them
        (folder / name).write_bytes(shown.numpy().tobytes())
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "resnet18.pt")
    texts = [*blocks("console"), *blocks("console", page("guarantees"))]  # whose rules are fitted to the README's run
    commands = [line[2:] for block in texts for line in block.splitlines() if line.startswith("$ anytime ")]
    assert len(commands) >= 8
    for command in commands:
        words = shlex.split(command.replace("~", str(tmp_path)), comments=True)[1:]
        tiny = TINY.split() if words[0] == "train" else []
        if "attach" in words:  # a backbone is as wide as it is
            tiny = tiny[2:]
        elif "recipes/fast_cifar10.yaml" in words:
            tiny = ["--model.widths=[4,4,4]", "--model.head_widths=[2,2]", *tiny[2:]]
        assert main([*words, *tiny]) == 0, (command, capsys.readouterr().err)
