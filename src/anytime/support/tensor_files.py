"""Tensors with facts as text in one safetensors file, written whole and read without executing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anytime.support.documents import parse_json
from anytime.support.files import atomic_write
from anytime.support.folders import check_ordinary
from anytime.support.limits import UNFIT
from anytime.support.text import one_line

MOST = 100  # tensors in a file
SMALL = 2**26  # bytes that are read at once
HEADER = 2_000_000  # bytes of names and shapes of a model's tensors, of which some 15,000 fit


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


def check_length(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a large file is longer than its header says, or has no header: its bytes may take no space."""
    if (size := os.path.getsize(path)) <= SMALL:
        return
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER:
            raise ValueError(f"its header has more than {HEADER:,} bytes")
        facts = parse_json(file.read(length), "its header", 5_000_000)
    ends = [entry["data_offsets"][1] for name, entry in facts.items() if name != "__metadata__"]
    if size > (described := 8 + length + max(ends, default=0)):
        raise ValueError(f"it has {size:,} bytes, its header describes {described:,}")


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
