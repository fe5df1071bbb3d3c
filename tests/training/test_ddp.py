"""Two processes under torchrun, gloo on the CPU, against one process with the same global batch."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anytime import load
from anytime.cli import main
from anytime.training.build import build
from anytime.training.config import parse

pytestmark = pytest.mark.slow


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "--", "anytime", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def losses(run: str) -> tuple[list[float], list[float]]:
    with Path(run, "metrics/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return tuple([float(row[key]) for row in rows if row[key]] for key in ("val/loss", "val/accuracy"))


@pytest.mark.parametrize(("kind", "tolerance"), [("without batch norm", 1e-4), ("anytimenet", 0.3)])
def test_two_processes_give_the_losses_of_one(tiny, own_net, tmp_path, monkeypatch, kind, tolerance):
    monkeypatch.chdir(tmp_path)
    if kind == "without batch norm":
        tiny = [f"--model={own_net}", *(flag for flag in tiny if not flag.startswith("--model"))]
    flags = [*tiny, "--data.augment", "crop", "--optimizer.lr", "0.02"]
    assert main(["train", *flags, "--run", "one"]) == 0
    result = torchrun("train", *flags, "--data.batch_size", "16", "--run", "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(" % (one run)\nwrote two\nnext: anytime evaluate two\n")
    assert result.stdout.count("\n") == 3
    (one, one_accuracy), (two, two_accuracy) = losses("one"), losses("two")
    assert len(one) == 3
    assert two == pytest.approx(one, abs=tolerance)
    assert two_accuracy == pytest.approx(one_accuracy, abs=1e-6 if tolerance < 1e-3 else 0.2)
    assert load("two").num_steps == 2
    assert not list(Path("two").rglob("*.part"))


@pytest.mark.parametrize("validation", [1, 5, 23])
def test_metrics_count_every_image_once(tiny, own_net, tmp_path, monkeypatch, validation):
    """Shares of unequal length, and of none: the metrics are those of one process on the trained network."""
    monkeypatch.chdir(tmp_path)
    rest = [flag for flag in tiny if not flag.startswith("--model")]
    flags = [f"--model={own_net}", *rest, "--epochs=1", f"--data.validation={validation}", "--data.eval_batch_size=3"]
    flags = [*flags, "--data.limit=41", "--data.batch_size=64"]  # one batch
    result = torchrun("train", *flags, "--data.batch_size=32", "--run", "two")  # 21 images here, 20 there
    assert result.returncode == 0, result.stderr
    job = build(parse(flags))
    model, objective, parts = load("two"), job.objective, list(job.data.val_dataloader())
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    assert len(labels) == validation
    with torch.inference_mode():
        logits = model(images)
        correct = (logits.argmax(2) == labels).float().mean(1).tolist()
        wanted = {"val/loss": objective(logits, labels).item(), "val/accuracy": correct[-1]}
        wanted |= {"val/accuracy_1": correct[0], "val/accuracy_2": correct[1]}
        images, labels = next(iter(job.data.train_dataloader()))
        wanted["train/loss_epoch"] = objective(job.model(images), labels).item()  # before its only step
    with Path("two/metrics/metrics.csv").open() as file:
        found = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("options", [(), ("-P",)])
def test_each_device_imports_what_is_typed_and_no_other_file_of_the_working_directory(tiny, own_net, tmp_path, options):
    """Lightning starts the second process as `python -m anytime` without `-P`."""
    payload = "from pathlib import Path\nPath('executed').touch()\nraise ImportError('payload')\n"
    for name in ("multiprocessing", "difflib", *(["anytime"] if options else [])):
        (tmp_path / f"{name}.py").write_text(payload)
    flags = [f"--model={own_net}", *(flag for flag in tiny if not flag.startswith("--model")), "--epochs=1", "--devices=2"]
    command = [sys.executable, *options, "-m", "anytime", "train", *flags, "--data.batch_size=16", "--run=two"]
    unset = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    result = subprocess.run(
        command, env=unset | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "executed").exists()
    assert load(tmp_path / "two").num_steps == 2


def test_wrong_usage_is_reported_under_torchrun(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = torchrun("train", *tiny, "--model.widht", "3")
    assert result.returncode != 0
    assert "anytimenet has no argument model.widht; did you mean 'width'?" in result.stderr
    assert not Path("runs").exists()
