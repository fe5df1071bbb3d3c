"""Atomic writes, and glibc set to keep freed memory."""

import errno
import platform
import sys
from pathlib import Path

import pytest

from anytime.support.allocator import keep_freed_memory
from anytime.support.files import atomic_write


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as part:
        part.write_text("old")

    def fail() -> None:
        with atomic_write(path) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_freed_memory_is_kept_only_with_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


@pytest.mark.parametrize("links", [True, False])
def test_what_appears_while_a_file_is_written_stays(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file system has no hard links."""

    def without(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr("os.link", without)
    path = tmp_path / "mine"
    with atomic_write(path, replace=False) as part:
        part.write_text("first")

    def again() -> None:
        with atomic_write(path, replace=False) as part:
            part.write_text("second")

    with pytest.raises(ValueError, match="mine has appeared meanwhile, so it is not replaced; give another name"):
        again()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine", "first")]
