"""Files in torch's zip format."""

from __future__ import annotations

import os
import zipfile


def check_parts(path: str | os.PathLike[str]) -> None:
    """Checks the parts of a file that `torch.save` wrote; torch writes a CRC-32 of each, but does not compare it.

    Raises:
        ValueError: A byte has changed, or the parts claim more bytes than the file has (torch compresses nothing).
        zipfile.BadZipFile: It is no zip file, or a truncated one.
    """
    with zipfile.ZipFile(path) as parts:
        claimed = sum(part.file_size for part in parts.infolist())
        if claimed > os.path.getsize(path):
            raise ValueError(f"its parts claim {claimed:,} bytes, more than the file has")
        if changed := parts.testzip():
            raise ValueError(f"the checksum of {changed} differs")
