"""The flight recorder: what was decided about each answer, in a file of bounded size that `anytime replay` reads."""

from __future__ import annotations

import atexit
import errno
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

KIND, FORMAT, MOST_BYTES, PAGE = "anytime flight", 2, 2**25, 32
Noted = tuple[float, Answer, Sequence[tuple[float, Any]], float | None]


class InUse(BlockingIOError, ValueError):
    """Another recorder writes to the file."""


class FlightRecorder:
    """Writes a line of JSON for each answer, `PAGE` at a time; `flush()`, or the end of the process, writes those that wait.

    At `MOST_BYTES` the file becomes FILE.1, replacing the one before. A line that describes the predictor comes first. One
    recorder writes to a file, until it is closed or deleted; its copy in a forked process writes nothing.

    Args:
        path: A new file, or an earlier flight, to which this one is added.
        facts: What describes the predictor.

    Raises:
        ValueError: The file holds something else, or another recorder writes to it.
    """

    _process, _held = -1, -1

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self._path, self._process, self._lock = Path(os.path.realpath(path)), os.getpid(), threading.Lock()
        self._old, self._only = (self._path.with_name(name) for name in (f"{self._path.name}.1", f".{self._path.name}.lock"))
        self._flight, self._described, self._waiting = os.urandom(4).hex(), False, deque[Noted]()
        finite = json.loads(json.dumps(facts, default=float), parse_constant=str)  # JSON has no inf
        self._head = json.dumps({"kind": KIND, "format": FORMAT, "flight": self._flight, **finite})
        _open.add(self)
        for file in (self._path, self._old):
            if file.exists() and not (file.is_file() and _is_flight(file)):
                raise ValueError(f"{file} exists and is no flight of this library, so nothing is written to it")
        self._take()

    def note(self, answer: Answer, steps: Sequence[tuple[float, Any]], kept: float | None = None) -> None:
        """Takes an answer, and of each of its steps the seconds and the probabilities `[1, K]` (None if not finite).

        Its newest step was to be cancelled `kept` seconds before the deadline; None: it was not started.
        """
        self._waiting.append((time.time(), answer, tuple(steps), kept))
        if len(self._waiting) >= PAGE:
            self.flush()

    def flush(self) -> None:
        """Writes the answers that wait."""
        with self._lock:
            page = [self._waiting.popleft() for _ in range(len(self._waiting))]  # other threads may append meanwhile
            try:
                if page and os.getpid() == self._process:
                    self._write(_lines(self._flight, page))
            except OSError as error:
                warnings.warn(f"{len(page)} answers were not recorded: {error}", stacklevel=3)

    def close(self) -> None:
        """Writes the answers that wait, and leaves the file to other recorders."""
        if os.getpid() == self._process:
            self.flush()
            if self._has_lock() and os.fstat(self._held).st_size == 0:
                self._only.unlink(missing_ok=True)
            self.free()

    __del__ = close

    def free(self) -> None:
        """Lets go of the lock, as a forked process does at once, whose parent then holds it alone."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _has_lock(self) -> bool:
        """Whether a lock is held, and is still the file of that name."""
        with suppress(OSError):
            return self._held >= 0 and os.path.samestat(os.fstat(self._held), os.stat(self._only))
        return False

    def _take(self) -> None:
        """Locks `.NAME.lock`, as `anytime` does, if it can be made; raises InUse if another one holds it."""
        while sys.platform != "win32" and not self._has_lock():  # its last owner may just have removed it
            self.free()
            try:
                self._held = os.open(self._only, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.free()
                if isinstance(error, BlockingIOError):
                    raise InUse(f"another recorder writes to {self._path}; close() that one, or give another file") from None
                return  # none can be made there

    def _write(self, lines: list[str]) -> None:
        self._take()
        if self._path.exists() and self._path.stat().st_size >= MOST_BYTES:
            os.replace(self._path, self._old)
        with self._path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if not (self._described and end):
                lines.insert(0, self._head)
            file.seek(max(end - 1, 0))
            if file.read(1) not in (b"", b"\n"):  # a kill left half a line
                lines.insert(0, "")
            data = ("\n".join(lines) + "\n").encode()
            if file.write(data) < len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._described = True


_open: weakref.WeakSet[FlightRecorder] = weakref.WeakSet()


def _each(method: str) -> None:
    for recorder in list(_open):
        getattr(recorder, method)()


atexit.register(_each, "close")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _each("free"))


def _is_flight(path: Path) -> bool:
    with path.open("rb") as file:
        return not (line := file.readline(2**20)) or line.startswith(f'{{"kind": "{KIND}"'.encode())


def _lines(flight: str, page: Sequence[Noted]) -> list[str]:
    """A line for each answer; of each step's probabilities the two largest, the entropy and the label."""
    rows = [p for _, _, steps, _ in page for _, p in steps if p is not None]
    facts = iter(_facts(np.concatenate(rows)) if rows else ())
    lines = []
    for at, answer, steps, kept in page:
        deadline = answer.deadline if answer.deadline is None else max(answer.deadline, -1e9)
        known = {"flight": flight, "at": round(at, 4), "deadline": deadline, "step": answer.step, "reason": answer.reason}
        known |= {"elapsed": answer.elapsed, "missed": answer.missed, "seconds": [round(seconds, 8) for seconds, _ in steps]}
        lines.append(json.dumps({**known, "kept": kept, "seen": [None if p is None else next(facts) for _, p in steps]}))
    return lines


def _facts(p: np.ndarray) -> list[list[float]]:
    two = np.sort(np.concatenate([p, np.zeros_like(p[:, :1])], 1), 1)[:, :-3:-1]
    entropy = -(p * np.log(np.maximum(p, np.float32(1e-38)))).sum(1, keepdims=True)
    numbers = np.concatenate([two, entropy], 1).astype(float).round(10).tolist()
    return [[*row, label] for row, label in zip(numbers, p.argmax(1).tolist(), strict=True)]
