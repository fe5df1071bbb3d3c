"""Run a training in a subprocess: memory is released, output is logged, Ctrl-C is forwarded, and it ends with its parent.

Small trainings run in this process and keep only the model.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from anytime.model import AnytimeModel
from anytime.support.allocator import keep_freed_memory
from anytime.support.folders import check_no_link, check_ordinary
from anytime.support.text import printable
from anytime.support.trust import names_from

CHILD = Path(__file__).with_name("child.py")
END = 2**16  # bytes of a log that are looked at
LOOK = 0.2  # seconds between checks for an interruption


class TrainingStopped(RuntimeError):
    """A training of a study failed; `log` is the file that holds its output."""

    exit_code = 1

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


def log_end(log: Path, lines: int = 15) -> list[str]:
    """The last lines of a log, printable; a progress bar, which overwrites its line, counts as one with its last state.

    Of a link or something that is no file there is one empty line.
    """
    if log.is_symlink() or not log.is_file():
        return [""]
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - END))
        text = file.read(END).decode(errors="replace").rstrip()
    return [printable(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")[-lines:]]


@contextlib.contextmanager
def explaining_stops() -> Iterator[None]:
    """Inside, a training that stops prints the end of its log to standard error, and Ctrl-C how to continue."""
    try:
        yield
    except TrainingStopped as stopped:
        if stopped.log.is_file():
            print(*log_end(stopped.log), sep="\n", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        raise


def _open_log(log: Path) -> IO[bytes]:
    """The log to append to; raises ValueError if it or its folder is a link, or it is a pipe or a device."""
    check_no_link(log.parent)
    check_no_link(log)
    check_ordinary(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666))


def train_in_subprocess(
    arguments: Sequence[str],
    log: Path,
    interruptions: Callable[[], int] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> int:
    """Runs `anytime train ARGUMENTS` in a subprocess that appends to `log`; returns its exit code.

    Ctrl-C and requests to terminate are forwarded: the training writes a checkpoint and ends, then this function raises
    KeyboardInterrupt. A second Ctrl-C ends the training at once. If this process is killed, the training is terminated.

    Args:
        arguments: Those of `anytime train`.
        log: The file for the output.
        interruptions: Asked while the training runs: how often it should have been interrupted by now, as by Ctrl-C. Such an
            interruption raises nothing here.
        defaults: Environment variables of the training that this process does not have.

    Returns:
        The exit code; the negative number of the signal that killed the training.

    Raises:
        TrainingStopped: Another process is running this training.
        ValueError: The log or its folder is a link, or the log is a pipe or a device.
    """
    command = [sys.executable, "-P", str(CHILD), str(os.getpid()), "train", *arguments]
    with _open_log(log) as file, interruptions_to(signal.default_int_handler):
        _lock(file, log)
        # In its own process group the training does not see the terminal's Ctrl-C; this process forwards it once.
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, **streams, process_group=0, env={**(defaults or {}), **os.environ})
        interruption: KeyboardInterrupt | None = None
        sent = 0
        while process.returncode is None:
            try:
                process.wait(None if interruptions is None else LOOK)
            except subprocess.TimeoutExpired:
                if interruptions is not None and sent < interruptions():
                    sent += 1
                    process.send_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                interruption = error
                process.send_signal(signal.SIGINT)
        if process.returncode < 0:
            _end_group(process.pid, file)
    if interruption is not None:
        raise interruption
    return process.returncode


def _lock(file: IO[bytes], log: Path) -> None:
    """Locks the log. The training inherits the lock and holds it until it ends, even if this process is killed."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainingStopped(f"another process is running this training and writes {log}; wait until it ends", log) from None
    except OSError:  # a file system without locks
        return


def wait_until_free(log: Path, seconds: float = 60.0) -> None:
    """Waits until no training holds the lock of its log any more, at most so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with _open_log(log) as file, contextlib.suppress(TrainingStopped):
            _lock(file, log)
            return
        time.sleep(LOOK)


def _end_group(leader: int, file: IO[bytes]) -> None:
    """Ends what a killed training has left, such as processes that read data, and frees the lock that they still hold."""
    if sys.platform == "win32":
        return
    import fcntl

    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def interruptions_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call the handler unless others handle them already; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    changed = [number for number in numbers if before[number] in (signal.SIG_DFL, signal.default_int_handler)]
    for number in changed:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


def retrain(model: AnytimeModel, arguments: Mapping[str, Any], **changes: Any) -> AnytimeModel:
    """A network like `model` but with changed arguments, started from its weights and trained by its recipe with changes.

    It is trained in this process. Meant for minutes, as it leaves no run directory and cannot be resumed.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        ValueError: The loss is not finite, or the recipe lacks a section.
        UntrustedName: The model is not trusted, and its recipe names an import path or uses the network.
    """
    from anytime.training.build import build
    from anytime.training.callbacks import Interrupted
    from anytime.training.config import SECTIONS, resolve_recipe
    from anytime.training.foreign import check_foreign
    from anytime.training.module import NonFiniteLoss

    source = "the model's config.json"
    with names_from(source, remembered=model.info.trusted), tempfile.TemporaryDirectory() as folder:
        recipe = resolve_recipe(copy.deepcopy(model.info.recipe) | changes)
        if missing := [section for section in SECTIONS if section not in recipe and section != "regime"]:
            raise ValueError(f"the recipe in {source} is damaged: {missing[0]} is missing")
        recipe["model"]["init_args"] |= arguments
        if not model.info.trusted:
            check_foreign(recipe, source)
        job = build(recipe, filled_later=True)
        job.model.load_state_dict(job.model.state_dict() | model.state_dict())
        if not torch.cuda.is_available():
            keep_freed_memory()
        try:
            job.fit(folder)
        except Interrupted as error:
            raise KeyboardInterrupt from error
        except NonFiniteLoss as error:
            raise ValueError(f"a training in this process failed: {error}") from error
    return job.model
