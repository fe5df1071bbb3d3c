"""Checkpoint files: written whole or not at all, read without executing pickled code."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from anytime.support.files import atomic_write


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint files; a full disk or a kill at any moment leaves the previous one as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # first, for torch says nothing of a full disk
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
    """A checkpoint on the CPU: tensors and plain values only.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or holds other things.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"checkpoint {path} is damaged: {str(error).splitlines()[0]}") from error
