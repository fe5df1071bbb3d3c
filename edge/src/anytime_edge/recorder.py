"""The flight recorder: what was decided about each answer, in a file of bounded size that `anytime replay` reads."""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from anytime_edge.answer import Answer

if sys.platform != "win32":
    import fcntl

KIND, FORMAT, MOST_BYTES, PAGE = "anytime flight", 1, 2**25, 32


class FlightRecorder:
    """Writes a line of JSON for each answer, `PAGE` at a time; `flush()`, or the end of the process, writes those that wait.

    At `MOST_BYTES` the file becomes FILE.1, replacing the one before. A line that describes the predictor comes first. One
    recorder writes to a file, until it is closed or deleted.

    Args:
        path: A new file, or an earlier flight, to which this one is added.
        facts: What describes the predictor.

    Raises:
        ValueError: The file holds something else, or another recorder writes to it.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self._path, self._facts, self._held = Path(os.path.realpath(path)), dict(facts), -1
        self._old, self._only = (self._path.with_name(name) for name in (f"{self._path.name}.1", f".{self._path.name}.lock"))
        self.renew()
        _open.add(self)
        for file in (self._path, self._old):
            if file.exists() and not _is_flight(file):
                raise ValueError(f"{file} exists and is no flight of this library, so nothing is written to it")
        try:
            self._take()
        except BlockingIOError as error:
            raise ValueError(str(error)) from error

    def renew(self) -> None:
        """Begins a flight of its own, as in a forked process: what waits belongs to the other one, as does the file's lock."""
        self._lock, self._flight, self._described = threading.Lock(), os.urandom(4).hex(), False
        self._waiting: deque[tuple[float, Answer, Sequence[float], Sequence[Any]]] = deque()
        self._free()

    def note(self, answer: Answer, seconds: Sequence[float], seen: Sequence[Any]) -> None:
        """Takes an answer, the seconds of each of its steps, and their probabilities `[1, K]` (None if not finite)."""
        self._waiting.append((time.time(), answer, tuple(seconds), tuple(seen)))
        if len(self._waiting) >= PAGE:
            self.flush()

    def flush(self) -> None:
        """Writes the answers that wait."""
        with self._lock:
            page = [self._waiting.popleft() for _ in range(len(self._waiting))]  # other threads may append meanwhile
            if page:
                try:
                    self._write(_lines(self._flight, page))
                except OSError as error:
                    warnings.warn(f"{len(page)} answers were not recorded: {error}", stacklevel=3)

    def close(self) -> None:
        """Writes the answers that wait, and leaves the file to other recorders."""
        self.flush()
        with suppress(OSError):
            if self._held >= 0 and self._is_lock() and os.fstat(self._held).st_size == 0:
                self._only.unlink()
        self._free()

    def __del__(self) -> None:
        if hasattr(self, "_waiting"):
            self.close()

    def _free(self) -> None:
        held, self._held = self._held, -1
        if held >= 0:
            os.close(held)

    def _is_lock(self) -> bool:
        """Whether the lock that is held is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self._held), os.stat(self._only))
        except FileNotFoundError:
            return False

    def _take(self) -> None:
        """Locks `.NAME.lock`, as `anytime` does, if it can be made; raises BlockingIOError if another one holds it."""
        while self._held < 0 and sys.platform != "win32":
            try:
                self._held = os.open(self._only, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._free()
                message = f"another recorder writes to {self._path}; close() that one, or give another file"
                raise BlockingIOError(message) from None
            except OSError:  # none can be made there
                return self._free()
            if not self._is_lock():  # its last owner has just removed it
                self._free()

    def _write(self, lines: list[str]) -> None:
        self._take()
        if self._path.exists() and self._path.stat().st_size >= MOST_BYTES:
            os.replace(self._path, self._old)
        with self._path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if not (self._described and end):
                lines.insert(0, json.dumps({"kind": KIND, "format": FORMAT, "flight": self._flight, **self._facts}))
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a kill left half a line
                    lines.insert(0, "")
            left = memoryview(("\n".join(lines) + "\n").encode())
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
        self._described = True


_open: weakref.WeakSet[FlightRecorder] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for recorder in list(_open):
        recorder.close()


def _renew_all() -> None:
    for recorder in list(_open):
        recorder.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def _is_flight(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline(2**20)
    return not line or line.startswith(f'{{"kind": "{KIND}"'.encode())


def _lines(flight: str, page: Sequence[tuple[float, Answer, Sequence[float], Sequence[Any]]]) -> list[str]:
    """A line for each answer; of each step's probabilities the two largest, the entropy and the label."""
    rows = [p for _, _, _, seen in page for p in seen if p is not None]
    texts = iter(_seen(np.concatenate(rows))) if rows else iter(())
    lines = []
    for at, answer, seconds, seen in page:
        deadline = "null" if answer.deadline is None else f"{max(answer.deadline, -1e9):.9g}"
        missed = "true" if answer.missed else "false"
        times, known = ",".join([f"{s:.4g}" for s in seconds]), ",".join(["null" if p is None else next(texts) for p in seen])
        lines.append(
            f'{{"flight":"{flight}","at":{at:.4f},"deadline":{deadline},"step":{answer.step},"reason":"{answer.reason}",'
            f'"elapsed":{answer.elapsed:.6g},"missed":{missed},"seconds":[{times}],"seen":[{known}]}}'
        )
    return lines


def _seen(p: np.ndarray) -> list[str]:
    two = np.sort(np.concatenate([p, np.zeros_like(p[:, :1])], 1), 1)[:, :-3:-1].tolist()
    entropy = -(p * np.log(np.maximum(p, np.float32(1e-38)))).sum(1)
    return [f"[{a:.7g},{b:.7g},{h:.6g},{k}]" for (a, b), h, k in zip(two, entropy.tolist(), p.argmax(1).tolist(), strict=True)]
