"""One training in a process of its own: its memory is given back, its output is a file, and Ctrl-C ends it cleanly.

And small ones here, of which nothing is kept but the model.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from anytime.support.allocator import keep_freed_memory

if TYPE_CHECKING:
    from anytime.training.build import TrainingJob


class TrainingStopped(RuntimeError):
    """A training of a study failed; `log` is the file with its output."""

    exit_code = 1

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


def log_end(log: Path, lines: int = 15) -> list[str]:
    """The last lines of a log; of a progress bar, which overwrites its line, the last state."""
    text = log.read_bytes().decode(errors="replace").rstrip()
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")[-lines:]]


def train_apart(arguments: Sequence[str], log: Path) -> int:
    """Runs `anytime train ARGUMENTS` in a process of its own that appends to `log`; returns its exit code.

    Ctrl-C (and a request to terminate) is passed on: the training writes a checkpoint and ends, then this raises
    KeyboardInterrupt. A second Ctrl-C ends it at once.

    Raises:
        TrainingStopped: Another process is at work on this training.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "anytime", "train", *arguments]
    with log.open("ab") as file, _termination_is_interruption():
        _claim(file, log)
        # A process group of its own: the terminal's Ctrl-C comes here, and is passed on once.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0)
        interruption: KeyboardInterrupt | None = None
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt as error:
                interruption = error
                process.send_signal(signal.SIGINT)
    if interruption is not None:
        raise interruption
    return process.returncode


def _claim(file: IO[bytes], log: Path) -> None:
    """Locks the log. The training inherits the lock, so it lasts as long as the training, even if this process is killed."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainingStopped(f"another process is at work on this training: it writes {log}; wait for its end", log) from None
    except OSError:  # a file system without locks
        return


@contextlib.contextmanager
def _termination_is_interruption() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    changed = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def train_in_passing(parts: TrainingJob) -> None:
    """Trains `parts.model` here, in some minutes; no run directory is left, and an interrupted one starts anew.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    from anytime.training.callbacks import Interrupted
    from anytime.training.module import NonFiniteLoss

    if not torch.cuda.is_available():
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        try:
            parts.fit(folder)
        except Interrupted as error:
            raise KeyboardInterrupt from error
        except NonFiniteLoss as error:
            raise ValueError(f"a training in passing failed: {error}") from error
