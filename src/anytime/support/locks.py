"""One writer per folder: a lock that the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anytime.support.files import make_folder, remove_leftovers
from anytime.support.folders import FOLDERS, LOCK, check_folder
from anytime.support.owned import NotOurs
from anytime.support.text import printable

_OWN = re.compile(rb"([^\n]* \(process \d+\)\n(brief|long))?")  # what a killed process left; empty: before it wrote
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_held: dict[int, tuple[str, int]] = {}  # folder and thread, by the descriptor of the lock


class InUse(RuntimeError):
    """Another process writes to a folder."""

    exit_code = 1


@contextmanager
def only_writer(
    folder: str | os.PathLike[str], doing: str, brief: bool = True, nested: bool = False, writes: bool = True
) -> Iterator[None]:
    """Holds the lock of a folder while inside; creates the folder if it is missing, and removes what killed writers left.

    A brief writer waits for another brief one. It does not wait for a long one, and a long one waits for none. A folder whose
    file system has no locks is not locked.

    Args:
        folder: The folder.
        doing: What this process does there, such as "training", for the message of others.
        brief: Whether it is so short that others can wait for it.
        nested: Whether it may be a part of what the same thread does under this lock.
        writes: Whether it writes there in any case. If not, a folder that this process may not write to is not locked.

    Raises:
        InUse: Another process writes there.
        PermissionError: This process may not write there.
        ValueError: The folder holds links that lead out of it, or pipes, see `check_folder`; or a file `.lock` of others.
        OSError: The disk is full.
    """
    folder = Path(folder)
    new = not folder.exists()
    make_folder(folder)
    check_folder(folder)
    holder = (os.path.realpath(folder), threading.get_ident())
    if nested and holder in _held.values():
        yield
        return
    if not os.access(folder, os.W_OK):
        if writes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        yield
        return
    try:
        descriptor = _acquire(folder, doing, brief)
    except OSError:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise
    if descriptor is None:
        yield
        return
    _held[descriptor] = holder
    try:
        remove_leftovers(part for place in (folder, *(folder / name for name in FOLDERS)) for part in place.glob(".*.part"))
        yield
    finally:
        with suppress(OSError):  # Windows keeps files that are open
            (folder / LOCK).unlink()
        del _held[descriptor]
        os.close(descriptor)
        if new:
            with suppress(OSError):  # not empty: something was written
                folder.rmdir()


class FileLock:
    """One writer of a file: a lock on `.NAME.lock` beside it, which the kernel releases when the process ends.

    Where that file cannot be made or locked, there is no lock. A forked process has to `free` it with `remove=False`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.lock")
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether no other one holds it; returns at once."""
        while self._descriptor is None:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            except OSError:
                return True
            try:
                locked = _lock(descriptor)
            except OSError:
                os.close(descriptor)
                return True
            if locked and _is_at(descriptor, self._path):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
            if not locked:
                return False
        return True

    def free(self, remove: bool = True) -> None:
        """Leaves the file to others; `remove` says whether `.NAME.lock` is removed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):  # Windows keeps files that are open
            if remove and _is_at(descriptor, self._path) and os.fstat(descriptor).st_size == 0:
                self._path.unlink()
        os.close(descriptor)


def _acquire(folder: Path, doing: str, brief: bool) -> int | None:
    """The descriptor of the locked file; None if the file system has no locks."""
    path, told = folder / LOCK, False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            locked = _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _WITHOUT_LOCKS:
                raise
            warnings.warn(f"{folder} cannot be locked ({error.strerror}): let only one process write to it", stacklevel=4)
            return None
        if locked and _is_at(descriptor, path):
            if not _OWN.fullmatch(os.read(descriptor, 1000)):
                os.close(descriptor)
                raise NotOurs(f"{path} is not a lock of this library, which writes one of that name there; move it away")
            try:
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, f"{doing} (process {os.getpid()})\n{'brief' if brief else 'long'}".encode())
            except OSError as error:  # the disk is full
                with suppress(OSError):
                    path.unlink()
                os.close(descriptor)
                raise OSError(error.errno, error.strerror, str(path)) from error
            return descriptor
        os.close(descriptor)
        if locked:  # its last owner has just removed it
            continue
        with suppress(FileNotFoundError):
            who, _, how_long = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            who = printable(who)
            if not brief or how_long == "long":
                raise InUse(f"{folder} is in use: {who or 'another process'} writes there; wait until it ends, or stop it")
            if who and not told:  # its owner may have locked it and not yet written who it is
                print(f"waiting for {who} in {folder}", file=sys.stderr, flush=True)
                told = True
        time.sleep(0.05)


def _lock(descriptor: int) -> bool:
    """Whether the file is locked now by this process; returns at once."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far from the text, which others may read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _leave_to_parent() -> None:
    """Closes the locks in a forked child, which would otherwise hold them for longer than its parent lives."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
