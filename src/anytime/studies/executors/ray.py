"""Trainings on a Ray cluster, whose machines share a file system and have this library installed."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from anytime.studies.executors.subprocess import TrainingStopped, train_in_subprocess, wait_until_free
from anytime.support.cluster import connect
from anytime.training.config import Config

LOOK = 0.2  # seconds between checks for an interruption


class OnRay:
    """Runs each training in a subprocess of a Ray worker.

    A training needs one CPU, and on a cluster with GPUs as many of them as the recipe says: `devices`, "auto" meaning one,
    none with `accelerator: cpu`.

    Args:
        address: That of the cluster, as for `ray.init`; None: the running one, or else a new one on this machine.

    Attributes:
        workers: The GPUs of the cluster if it has any, or else its CPUs.

    Raises:
        ImportError: Ray is not installed.
        ValueError: The cluster cannot be reached.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray = ray = connect(address)
        resources = ray.cluster_resources()
        self._gpus = int(resources.get("GPU", 0))
        self.workers, self._interruptions = max(1, self._gpus or int(resources.get("CPU", 1))), 0
        self._start = ray.remote(max_retries=0)(_train)

    def train(self, arguments: Sequence[str], log: Path, config: Config) -> int:
        """See `Executor`. If the worker is killed, the training ends with it, and this returns -9 when it has ended."""
        wanted = 1 if config["devices"] == "auto" else int(config["devices"])
        gpus = 0 if config["accelerator"] == "cpu" else min(wanted, self._gpus)
        started = self._start.options(num_cpus=1, num_gpus=gpus).remote([*arguments], log.resolve(), os.getcwd())
        sent = 0
        while not self._ray.wait([started], timeout=LOOK)[0]:
            if sent < self._interruptions:
                sent += 1
                self._ray.cancel(started)  # KeyboardInterrupt there
        errors = self._ray.exceptions
        try:
            code = self._ray.get(started)
        except errors.TaskCancelledError:
            return 128 + signal.SIGINT
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
            wait_until_free(log)
            return -signal.SIGKILL
        if isinstance(code, str):
            raise TrainingStopped(code, log)
        return code

    def interrupt(self) -> None:
        """See `Executor`."""
        self._interruptions += 1


def _train(arguments: Sequence[str], log: Path, folder: str) -> int | str:
    """Runs on a worker: the exit code, or why the training could not be started."""
    os.chdir(folder)
    try:
        return train_in_subprocess(arguments, log)
    except (TrainingStopped, ValueError) as stopped:
        return str(stopped)
