"""Checkpoint files: written whole or not at all, with checksums, read without executing pickled code."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch.optim.lr_scheduler import LRScheduler

from anytime.support.files import atomic_write
from anytime.support.folders import check_file
from anytime.support.text import one_line
from anytime.support.torch_files import check_parts

VALUES = 300_000  # of a checkpoint; more than the largest networks have, tensors and numbers together
_PARTS = {  # what a training is resumed from, by the way to it
    ("state_dict",): dict,
    ("global_step",): int,
    ("epoch",): int,
    ("loops", "fit_loop", "epoch_progress"): dict,
    ("loops", "fit_loop", "epoch_loop.batch_progress"): dict,
    ("optimizer_states", 0, "state"): dict,
    ("optimizer_states", 0, "param_groups"): list,
    ("lr_schedulers", 0, "base_lrs"): list,
    ("lr_schedulers", 0, "last_epoch"): int,
}


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files; after a full disk or a kill at any moment, the previous one is intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch itself would not report a full disk
        torch.save(checkpoint, buffer)
        try:
            with atomic_write(path) as part, part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(path)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint on the CPU: only tensors and plain values.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged or incomplete, or holds other objects.
    """
    check_file(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        check_parts(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        _check_values(checkpoint)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"checkpoint {path} is damaged: {one_line(error)}") from error
    for way, kind in _PARTS.items():
        part = checkpoint
        try:
            for key in way:
                part = part[key]
        except (KeyError, IndexError, TypeError):
            part = None
        if not isinstance(part, kind):
            raise ValueError(f"checkpoint {path} is incomplete: it has no {'/'.join(map(str, way))}")
    return checkpoint


def _check_values(checkpoint: Any) -> None:
    """Raises ValueError for values that no training saves, which would hang it or fail in the middle of it."""
    pending: list[tuple[Any, bool]] = [(checkpoint, False)]
    count = 0
    while pending:
        value, counts = pending.pop()
        count += 1
        if count > VALUES:  # lists that share their parts may hold 2**40
            raise ValueError(f"it holds more than {VALUES:,} values")
        if isinstance(value, dict):
            pending += [(item, counts or key == "loops") for key, item in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(item, counts) for item in value]
        elif counts and isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"it counts {value} steps or epochs")
        elif isinstance(value, torch.Tensor):
            dense = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
            if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"it holds a tensor {[*value.shape]} without all its numbers")
    states = checkpoint.get("lr_schedulers") if isinstance(checkpoint, dict) else None
    for state in states if isinstance(states, list) else ():
        if methods := [key for key in state if callable(getattr(LRScheduler, str(key), None))]:
            raise ValueError(f"it replaces the method {methods[0]} of a schedule")


def first_difference(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first tensor whose name or shape differs between two state dicts, as half a sentence; empty if there is none."""
    here, there = (
        {name: [*value.shape] for name, value in state.items() if hasattr(value, "shape")} for state in (wanted, saved)
    )
    for name in here | there:
        if here.get(name) != there.get(name):
            return f"{name} is {there.get(name, 'missing')}, here {here.get(name, 'missing')}"
    return ""
