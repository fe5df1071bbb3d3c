"""Several trainings at once on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from anytime.studies.executors.subprocess import train_in_subprocess
from anytime.training.config import Config


class Local:
    """Trainings in subprocesses of this machine, each with its share of the cores.

    OMP_NUM_THREADS is that share unless the user has set it. Sums over another number of threads differ in their last bits.

    Args:
        workers: How many run at once.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self._interruptions = workers, 0
        self._threads = str(max(1, (os.cpu_count() or 1) // workers))

    def train(self, arguments: Sequence[str], log: Path, config: Config) -> int:
        """See `Executor`."""
        return train_in_subprocess(arguments, log, lambda: self._interruptions, {"OMP_NUM_THREADS": self._threads})

    def interrupt(self) -> None:
        """See `Executor`."""
        self._interruptions += 1
