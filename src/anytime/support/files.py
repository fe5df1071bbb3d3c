"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anytime.support.folders import EXPORTED, PART, holds_only_own

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, if they are missing; raises ValueError if a file is where one of them is to be."""
    check_no_file_above(folder / "file")
    folder.mkdir(parents=True, exist_ok=True)


def check_no_file_above(path: Path) -> None:
    """Raises ValueError if something that is no folder is where a parent of `path` is to be."""
    if blocked := next((parent for parent in path.parents if os.path.lexists(parent) and not parent.is_dir()), None):
        raise ValueError(f"{blocked} is not a folder, so nothing can be written into it; give another folder")


@contextmanager
def atomic_write(path: str | os.PathLike[str], replace: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it becomes `path` at the end, or is deleted after an error.

    Parts that killed processes left beside it are removed. An OSError names `path`.

    Args:
        path: The file.
        replace: Whether a file that is there at the end is replaced.

    Raises:
        ValueError: `path` is a folder, or one of its parents is none; without `replace`, something is there at the end.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, where a file is to be written; move it away")
    remove_leftovers(path.parent.glob(".*.part"))
    part = part_of(path)
    part.unlink(missing_ok=True)  # in a stranger's folder it may be a link
    try:
        yield part
        if replace:
            os.replace(part, path)
        else:
            _place(part, path)
    except FileExistsError as error:
        if replace:
            raise
        raise ValueError(f"{path} has appeared meanwhile, so it is not replaced; give another name") from error
    except OSError as error:
        files = [error.filename, error.filename2]  # a copy has two
        if error.errno is None or (error.filename is not None and str(part) not in map(str, files)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _place(part: Path, path: Path) -> None:
    """Makes a file the new `path`; raises FileExistsError if something is there."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.replace(part, path)


def part_of(path: Path) -> Path:
    """The temporary path to which this thread writes the new `path`; its name holds the host, the process and the thread."""
    return path.with_name(f".{path.name}.anytime-{_HOST}-{os.getpid()}-{threading.get_native_id()}.part")


def remove_folder(folder: Path) -> None:
    """Removes a folder. A kill leaves it whole or under the name of a part, for `remove_leftovers`."""
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    folder.rename(part)
    shutil.rmtree(part)


def remove_leftovers(parts: Iterable[Path]) -> None:
    """Removes the files and folders among `parts` that belong (see `part_of`) to a process of this host that has ended.

    A folder with other files than this library's stays.
    """
    for part in list(parts):
        match = PART.fullmatch(part.name)
        if match and match[1] == _HOST and _has_ended(int(match[2])):
            if part.is_dir() and not part.is_symlink():
                if holds_only_own(part, EXPORTED):
                    shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _has_ended(process: int) -> bool:
    if sys.platform == "win32":  # Windows has no harmless signal to ask with
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # a process of another user
        return False
    return False
