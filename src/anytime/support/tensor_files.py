"""Tensors with facts as text in one safetensors file, written whole and read without executing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anytime.support.files import atomic_write
from anytime.support.folders import check_ordinary
from anytime.support.limits import UNFIT
from anytime.support.text import one_line

MOST = 100  # tensors in a file


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file for `read_tensors`, creating missing folders; raises OSError, such as for a full disk."""
    with atomic_write(path) as part:
        part.touch()
        mode = part.stat().st_mode  # the user's default for new files; safetensors makes its files private
        try:
            save_file(dict(tensors), part, metadata=dict(metadata))
        except SafetensorError as error:  # its text holds the number of an error of the system
            if not (found := re.search(r"os error (\d+)", str(error))):
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        part.chmod(mode)


def read_metadata(path: str | os.PathLike[str], kind: str) -> dict[str, str]:
    """Only the metadata; raises as `read_tensors`."""
    check_ordinary(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, *UNFIT) as error:
        raise ValueError(f"{path} is damaged or is not {kind}: {one_line(error)}") from None


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. `kind` says what it should hold, for the error.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is truncated, damaged or no safetensors file.
    """
    check_ordinary(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MOST:
                raise ValueError(f"it holds {len(names):,} tensors")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, *UNFIT) as error:
        raise ValueError(f"{path} is damaged or is not {kind}: {one_line(error)}") from None
