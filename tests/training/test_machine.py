"""Precision and memory of the machine: what is used, and what a training says before it begins."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import anytime
from anytime.data import Digits
from anytime.objectives import Weighted
from anytime.training import Settings, fit, machine
from anytime.training.module import AnytimeModule
from anytime.training.schedules import Constant


def job(batch_size: int = 32) -> tuple[AnytimeModule, Digits]:
    torch.manual_seed(0)
    model = anytime.create_model("fast", in_channels=1, widths=(4, 4), head_widths=(2,))
    data = Digits(batch_size=batch_size)
    data.setup("fit")
    return AnytimeModule(model, Weighted(), partial(torch.optim.SGD, lr=0.1), Constant()), data


def train(run: Path, precision: str, batch_size: int = 64) -> list[str]:
    """The warnings of a training of one epoch."""
    module, data = job(batch_size)
    settings = Settings(epochs=1, precision=precision, accelerator="cpu", progress=False, logger="csv")  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module.model, data, Weighted(), partial(torch.optim.SGD, lr=0.1), Constant(), settings, run)
    return [str(warning.message) for warning in caught]


def test_without_bfloat16_instructions_it_trains_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda: False)
    said = [sentence for sentence in train(tmp_path / "a", "bf16-mixed") if "bfloat16" in sentence]
    assert said == [
        "this processor has no bfloat16 instructions, so precision is 32-true and not bf16-mixed; a training step takes "
        "1.8 to 2.2 times as long as on a processor that has them"
    ]
    assert not [sentence for sentence in train(tmp_path / "b", "32-true") if "bfloat16" in sentence]
    assert all(
        torch.equal(here, there)
        for here, there in zip(
            anytime.load(tmp_path / "a").state_dict().values(), anytime.load(tmp_path / "b").state_dict().values(), strict=True
        )
    )


def test_usable_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda: False)
    assert machine.usable_precision("bf16-true", "cpu") == "32-true"
    assert machine.usable_precision("bf16-mixed", "gpu") == "bf16-mixed"
    assert machine.usable_precision("64-true", "cpu") == "64-true"
    monkeypatch.setattr(machine, "has_bfloat16", lambda: True)
    assert machine.usable_precision("bf16-mixed", "cpu") == "bf16-mixed"


def test_bytes_of_a_step_are_those_that_autograd_keeps() -> None:
    module, data = job(batch_size=32)
    model = module.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    needed = machine.step_memory(module, data, "32-true")
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    kept: dict[int, torch.UntypedStorage] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict(keep_vars=True).values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(torch.rand(32, *data.input_size))
    assert needed == sum(storage.nbytes() for storage in kept.values()) + 2 * weights


def test_too_little_memory_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = job(64)
    needed = machine.step_memory(module, data, "32-true")
    assert needed is not None
    monkeypatch.setattr(machine, "free_memory", lambda accelerator: needed - 1)
    said = [sentence for sentence in train(tmp_path / "a", "32-true") if "GB" in sentence]
    assert said == [
        f"a training step takes about {needed / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are free, so the training may be "
        "killed; make --data.batch_size smaller than 64 (--accumulate keeps the number of images per optimizer step)"
    ]
    monkeypatch.setattr(machine, "free_memory", lambda accelerator: needed)
    assert not [sentence for sentence in train(tmp_path / "b", "32-true") if "GB" in sentence]


def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_MEMORY", memory)
    monkeypatch.setattr(machine, "_CGROUP", limit)
    assert machine.free_memory("cpu") is None
    memory.write_text("MemTotal:       10 kB\nMemAvailable:       8 kB\n")
    assert machine.free_memory("cpu") == 8192
    limit.write_text("max\n")
    assert machine.free_memory("cpu") == 8192
    limit.write_text("4096\n")
    assert machine.free_memory("cpu") == 4096


def test_a_model_that_cannot_compute_two_images_is_not_judged() -> None:
    module, data = job()
    module.model.groups[0] = nn.Linear(3, 3)
    assert machine.step_memory(module, data, "32-true") is None
