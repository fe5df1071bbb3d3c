"""Files in torch's format: checks of what a small file would make its reader do."""

from __future__ import annotations

import mmap
import os
import pickletools
import re
import zipfile
from collections.abc import Iterable
from io import BytesIO
from typing import IO

import torch
from torch import Tensor

_SUSPECTS = (b"bytearray", b"_codecs")  # as torch's reader, which has no other way, needs them: in plain text
_SWELLING = {  # codecs whose results can be encoded again, or that take quadratic time
    *("hex", "hexcodec", "base64", "base64codec", "quopri", "quopricodec", "quotedprintable", "uu", "uucodec"),
    *("punycode", "idna"),
}
_OLD_PICKLES = 5  # in a file older than torch 1.6, before the values of its tensors
_EXPANDED = 2**26  # values of tensors that repeat fewer


def check_parts(path: str | os.PathLike[str]) -> None:
    """Checks the parts of a file that `torch.save` wrote; torch writes a CRC-32 of each, but does not compare it.

    Raises:
        ValueError: A byte has changed, the parts claim more bytes than the file has (torch compresses nothing), or reading
            its pickle would take far more memory than the file.
        zipfile.BadZipFile: It is no zip file, or a truncated one.
    """
    with zipfile.ZipFile(path) as parts:
        claimed = sum(part.file_size for part in parts.infolist())
        if claimed > os.path.getsize(path):
            raise ValueError(f"its parts claim {claimed:,} bytes, more than the file has")
        if changed := parts.testzip():
            raise ValueError(f"the checksum of {changed} differs")
        for name in parts.namelist():
            if name.endswith(".pkl"):
                content = parts.read(name)
                if any(suspect in content for suspect in _SUSPECTS):
                    _check_pickle(BytesIO(content))


def check_old_file(path: str | os.PathLike[str]) -> None:
    """Checks the pickles of a file that torch before version 1.6 wrote; raises ValueError as `check_parts`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(suspect) >= 0 for suspect in _SUSPECTS):
            for _ in range(_OLD_PICKLES):
                _check_pickle(file)


def check_tensors(tensors: Iterable[Tensor], path: str | os.PathLike[str]) -> None:
    """Raises ValueError if tensors read from a file are not dense, hold more than the file or repeat its values endlessly."""
    storages, expanded = {}, 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError("it holds tensors that are sparse or have no values")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            expanded += tensor.numel()
    if (claimed := sum(storages.values())) > os.path.getsize(path):
        raise ValueError(f"its tensors claim {claimed:,} bytes, more than the file has")
    if expanded > _EXPANDED:
        raise ValueError(f"its tensors repeat few values {expanded:,} times")


def _check_pickle(file: IO[bytes]) -> None:
    found, texts = set(), set()
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            found.add(str(argument).partition(" ")[2])
        elif isinstance(argument, str) and len(argument) < 100:
            texts.add(re.sub(r"[\W_]", "", argument.lower()))
    if "bytearray" in found:
        raise ValueError("it holds a bytearray, which may claim any size; save only tensors")
    if "encode" in found and (codec := min(texts & _SWELLING, default=None)):
        raise ValueError(f"it encodes bytes by {codec}, which may take any size; save only tensors")
