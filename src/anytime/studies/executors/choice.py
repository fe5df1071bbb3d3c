"""Where the trainings of a study run, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from anytime.studies.executors.local import Local
from anytime.studies.executors.ray import OnRay
from anytime.training.config import Config, UsageError


class Executor(Protocol):
    """Runs trainings in processes of their own, several at once.

    Attributes:
        workers: How many run at once.
    """

    workers: int

    def train(self, arguments: Sequence[str], log: Path, config: Config) -> int:
        """Runs `anytime train ARGUMENTS` and waits for it; called from several threads.

        Args:
            arguments: Those of `anytime train`.
            log: The file to which the output is appended.
            config: What they resolve to; it says which devices the training needs.

        Returns:
            The exit code; the negative number of a signal that killed the process.
        """
        ...

    def interrupt(self) -> None:
        """Interrupts what runs, as Ctrl-C does: each training writes a checkpoint and ends; a second time, it ends at once."""
        ...


def find_executor(text: str) -> Executor:
    """The executor `local:N`, N trainings at once on this machine, or `ray[:ADDRESS]`, a Ray cluster.

    Raises:
        UsageError: There is no such executor.
        ImportError, ValueError: As `OnRay`.
    """
    kind, _, rest = text.partition(":")
    if kind == "local" and rest.isascii() and rest.isdigit() and int(rest) > 0:
        return Local(int(rest))
    if kind == "ray":
        return OnRay(rest or None)
    raise UsageError(f"an executor is local:N, N trainings at once on this machine, or ray[:ADDRESS], got {text!r}")
