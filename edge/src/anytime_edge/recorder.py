"""The flight recorder: what was decided about each answer, in a file of bounded size that `anytime replay` reads."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anytime_edge.answer import Answer

KIND, FORMAT, MOST_BYTES, PAGE = "anytime flight", 1, 2**25, 32


class FlightRecorder:
    """Writes a line of JSON for each answer, `PAGE` at a time; `flush()`, or the end of the process, writes those that wait.

    At `MOST_BYTES` the file becomes FILE.1, replacing the one before. A line that describes the predictor comes first.

    Args:
        path: A new file, or an earlier flight, to which this one is added.
        facts: What describes the predictor.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self._path, self._facts, self._lock = Path(path), dict(facts), threading.Lock()
        self._old = self._path.with_name(f"{self._path.name}.1")
        for file in (self._path, self._old):
            if file.exists() and not _is_flight(file):
                raise ValueError(f"{file} exists and is no flight of this library, so nothing is written to it")
        self._begin()
        _open.add(self)

    def _begin(self) -> None:
        self._process, self._flight, self._described = os.getpid(), os.urandom(4).hex(), False
        self._waiting: list[tuple[float, Answer, Sequence[float], Sequence[Any]]] = []

    def note(self, answer: Answer, seconds: Sequence[float], seen: Sequence[Any]) -> None:
        """Takes an answer, the seconds of each of its steps, and their probabilities `[1, K]` (None if not finite)."""
        if os.getpid() != self._process:
            self._begin()
        self._waiting.append((time.time(), answer, tuple(seconds), tuple(seen)))
        if len(self._waiting) >= PAGE:
            self.flush()

    def flush(self) -> None:
        """Writes the answers that wait."""
        with self._lock:
            page, self._waiting = (self._waiting, []) if os.getpid() == self._process else ([], [])
            if page:
                try:
                    self._write(_lines(self._flight, page))
                except OSError as error:
                    warnings.warn(f"{len(page)} answers were not recorded: {error}", stacklevel=3)

    def _write(self, lines: list[str]) -> None:
        if self._path.exists() and self._path.stat().st_size >= MOST_BYTES:
            os.replace(self._path, self._old)
            self._described = False
        if not self._described:
            lines.insert(0, json.dumps({"kind": KIND, "format": FORMAT, "flight": self._flight, **self._facts}))
            self._described = True
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


_open: weakref.WeakSet[FlightRecorder] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    for recorder in list(_open):
        recorder.flush()


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
        deadline = "null" if answer.deadline is None else f"{answer.deadline:.9g}"
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
