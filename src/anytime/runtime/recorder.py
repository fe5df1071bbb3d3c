"""The flight recorder: what was decided about each answer, in a file of bounded size that `anytime replay` reads."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import AnytimeModel
from anytime.runtime.answer import Answer
from anytime.runtime.execution import Execution
from anytime.runtime.forks import renew_after_fork
from anytime.runtime.interrupts import OPERATOR, STEP
from anytime.runtime.plan import Plan, known_macs
from anytime.runtime.profile import Profile
from anytime.stopping import Rule
from anytime.support.folders import check_ordinary
from anytime.support.locks import FileLock

KIND, FORMAT = "anytime flight", 2
MOST_BYTES = 2**25  # of a file, of which there are two
PAGE = 32  # answers that are written at a time
Log = list[tuple[float, Tensor | None]]
"""The seconds of each step, and its probabilities `[1, K]`: None if they are not finite, or of several images."""
_Noted = tuple[float, Answer, Log | None, float | None]


def flight_facts(
    model: AnytimeModel,
    profile: Profile | None,
    plan: Plan,
    rule: Rule | None,
    combiner: Combiner,
    guard: float,
    cancels: bool,
) -> dict[str, Any]:
    """What a flight says about a predictor: enough to decide again. `plan` has the quantile and the median of each step."""
    steps = None if profile is None else [plan.step(t, 1) for t in range(len(profile.macs))]
    known = {"run_time": "anytime", "model": model.config.get("model", type(model).__name__), "guard": guard}
    known["steps"] = model.num_steps
    known |= {"interrupt": OPERATOR if cancels else STEP, "stop": rule and rule.to_dict(), "combine": combiner.to_dict()}
    return known | {"macs": known_macs(model, profile), "plan": steps}


def seen(run: Execution) -> Tensor | None:
    """The newest probabilities `[1, K]` of a run, of the first label level; None if not finite, or of several images."""
    gathered = getattr(run, "gathered", None)
    if gathered is None or gathered.finite is not None or not gathered.sizes or len(gathered.outputs) != 1:
        return None
    return gathered.levels[0]


class FlightRecorder:
    """Writes a line of JSON for each answer, `PAGE` at a time; `flush()`, or the end of the process, writes those that wait.

    At `MOST_BYTES` the file becomes FILE.1, replacing the one before. A line that describes the predictor comes first. If the
    file cannot be written, a warning says how many answers were lost: no call ever fails.

    One recorder writes to a file, until it is closed or deleted. A copy, or the one of a forked process, writes once the file
    is free; until then, warnings say how many of its answers were lost.

    Args:
        path: A new file, or an earlier flight, to which this one is added.
        facts: What describes the predictor.

    Raises:
        ValueError: The file holds something else, or another recorder writes to it.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self._path, self._facts = Path(os.path.realpath(path)), dict(facts)
        self._start()
        for file in (self._path, self._old):
            check_ordinary(file)
            if file.exists() and not is_flight(file):
                raise ValueError(f"{file} exists and is no flight of this library, so nothing is written to it")
        try:
            self._take()
        except BlockingIOError as error:
            raise ValueError(str(error)) from error

    def _start(self) -> None:
        self._old, self._only = self._path.with_name(f"{self._path.name}.1"), FileLock(self._path)
        self.renew()
        renew_after_fork(self)
        _open.add(self)

    def renew(self) -> None:
        """Begins a flight of its own, as in a forked process: what waits belongs to the other one, as does the file's lock."""
        self._lock, self._flight, self._described = threading.Lock(), os.urandom(4).hex(), False
        self._waiting: deque[_Noted] = deque()
        self._only.free(remove=False)

    def note(self, answer: Answer, log: Log | None, kept: float | None = None) -> None:
        """Takes an answer and what is known about its steps; None: it is a contract answer.

        With hard deadlines, its newest step was to be cancelled `kept` seconds before the deadline; None: it was not started.
        """
        self._waiting.append((time.time(), answer, log and log[:], kept))
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
        self._only.free()

    def _take(self) -> None:
        if not self._only.take():
            raise BlockingIOError(f"another recorder writes to {self._path}; close() that one, or give another file")

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

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_facts": self._facts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __del__(self) -> None:
        if hasattr(self, "_waiting"):
            self.close()


_open: weakref.WeakSet[FlightRecorder] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for recorder in list(_open):
        recorder.close()


def is_flight(path: Path) -> bool:
    """Whether a file is empty or begins as a flight does."""
    with path.open("rb") as file:
        line = file.readline(2**20)
    return not line or line.startswith(f'{{"kind": "{KIND}"'.encode())


def _lines(flight: str, page: Sequence[_Noted]) -> list[str]:
    """A line for each answer; of each step's probabilities the two largest, the entropy and the label."""
    rows = [p for _, _, log, _ in page for _, p in log or () if p is not None]
    texts = iter(_texts(torch.cat(rows))) if rows else iter(())
    lines = []
    for at, answer, log, kept in page:
        deadline = "null" if answer.deadline is None else f"{max(answer.deadline, -1e9):.12g}"
        steps, apart = log or (), ',"contract":true' if log is None else ""
        times = ",".join([f"{seconds:.9g}" for seconds, _ in steps])
        known = ",".join(["null" if p is None else next(texts) for _, p in steps])
        if (images := len(answer.steps)) > 1:
            apart += f',"images":{images}'
        missed, stop = "true" if answer.missed else "false", "null" if kept is None else f"{kept:.12g}"
        lines.append(
            f'{{"flight":"{flight}","at":{at:.4f},"deadline":{deadline},"step":{answer.step},"reason":"{answer.reason}",'
            f'"elapsed":{answer.elapsed:.12g},"missed":{missed},"kept":{stop},"seconds":[{times}],"seen":[{known}]{apart}}}'
        )
    return lines


def _texts(p: Tensor) -> list[str]:
    first, label = p.max(1, keepdim=True)  # faster than topk
    columns = torch.cat([first, p.scatter(1, label, 0.0).amax(1, keepdim=True), torch.special.entr(p).sum(1, keepdim=True)], 1)
    pairs = zip(columns.tolist(), label[:, 0].tolist(), strict=True)
    return [f"[{a:.9g},{b:.9g},{h:.9g},{k}]" for (a, b, h), k in pairs]
