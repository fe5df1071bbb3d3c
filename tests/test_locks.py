"""One writer per folder, across threads, processes, kills and forks."""

import errno
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anytime.support.files import atomic_write, part_of
from anytime.support.locks import LOCK, InUse, only_writer

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def hold(folder: Path, held) -> None:
    with only_writer(folder, "another training", brief=False):
        held.set()
        time.sleep(600)


@needs_fork
def test_a_long_writer_is_not_waited_for_and_a_kill_releases_its_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held), daemon=True)
    process.start()
    held.wait()
    message = rf"{re.escape(str(tmp_path))} is in use: another training \(process {process.pid}\) writes there"
    for brief in (True, False):
        with pytest.raises(InUse, match=message), only_writer(tmp_path, "fit", brief):
            pass
    process.kill()
    process.join()
    assert (tmp_path / LOCK).exists()
    with only_writer(tmp_path, "fit"):
        assert (tmp_path / LOCK).read_text() == f"fit (process {os.getpid()})\nbrief"
    assert not list(tmp_path.iterdir())


def test_a_long_writer_does_not_wait_for_a_brief_one(tmp_path):
    with only_writer(tmp_path, "evaluate"), pytest.raises(InUse, match="evaluate"), only_writer(tmp_path, "train", False):
        pass


def test_brief_writers_take_turns(tmp_path, capsys):
    inside, most, count = [0], [0], [0]

    def add() -> None:
        for _ in range(5):
            with only_writer(tmp_path, "fit"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                before = count[0]
                time.sleep(0.001)
                count[0] = before + 1
                inside[0] -= 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert count == [20]
    assert f"waiting for fit (process {os.getpid()}) in {tmp_path}" in capsys.readouterr().err


@needs_fork
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    go_on = context.Event()
    with only_writer(tmp_path, "train", brief=False):
        child = context.Process(target=go_on.wait)
        child.start()
    try:
        with only_writer(tmp_path, "train", brief=False):
            pass
    finally:
        go_on.set()
        child.join()
    assert child.exitcode == 0


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path, "fit"):
        _ = 1 / 0
    with only_writer(tmp_path, "fit"):
        pass


def test_a_folder_is_made_and_removed_again_if_nothing_was_written(tmp_path):
    with only_writer(tmp_path / "new", "evaluate"):
        assert (tmp_path / "new" / LOCK).exists()
    assert not (tmp_path / "new").exists()
    with only_writer(tmp_path / "new", "evaluate"):
        (tmp_path / "new/trace").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trace"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unknown)
    message = r"cannot be locked \(.*\): let only one process write to it"
    with pytest.warns(UserWarning, match=message), only_writer(tmp_path, "fit"):
        (tmp_path / "written").touch()


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_next_writer_removes_what_killed_ones_left(tmp_path):
    gone = ended()

    def of(name: str, process: int = gone) -> Path:
        return tmp_path / part_of(Path(name)).name.replace(f"-{os.getpid()}-", f"-{process}-")

    left = [of("a.txt"), of("b.txt"), tmp_path / "checkpoints" / of("c").name]
    here = re.search(r"anytime-([0-9a-f]{8})", left[0].name)[1]
    kept = [
        of("d.txt", os.getppid()),
        tmp_path / ".notes.part",
        tmp_path / f".film.7.{gone}.part",  # a download of another program
        tmp_path / of("e").name[1:],
        tmp_path / of("f").name.replace(here, "0123abcd"),  # of another host, on a shared disk
    ]
    for path in [*left, *kept]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with atomic_write(tmp_path / "a.txt") as part:
        part.touch()
    assert [path.exists() for path in left] == [False, False, True]
    with only_writer(tmp_path, "fit"):
        pass
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_full_disk_names_the_lock_and_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", full)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match="No space left") as caught, only_writer(folder, "fit"):
            pass
        assert caught.value.filename == str(folder / LOCK)
        assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())
