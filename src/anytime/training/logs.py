"""Metrics always go to a CSV file, and as `--logger` says to TensorBoard or Weights & Biases."""

from __future__ import annotations

import csv
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anytime.support.folders import REPLACEMENT

METRICS = Path("metrics", "metrics.csv")
LoggerName = Literal["auto", "csv", "tensorboard", "wandb"]


def check_logger(name: LoggerName) -> None:
    """Raises ValueError if the package that a logger needs is not installed."""
    if name in ("tensorboard", "wandb") and find_spec(name) is None:
        raise ValueError(f"logger={name} needs the package {name}, which is not installed: pip install {name}")


def loggers(run: Path, step: int, name: LoggerName = "auto") -> list[Logger]:
    """The loggers of a training that starts at `step`; rows before it stay, rows from it on will be written again.

    Args:
        run: The run directory, or its replacement.
        step: The first step.
        name: "auto" is "tensorboard" if that is installed, else "csv".
    """
    rows = _take_rows(run / METRICS, step) or []
    table = CSVLogger(run, name=None, version=METRICS.parent.name, flush_logs_every_n_steps=1)
    for row in rows:
        table.experiment.log_metrics(row, int(row["step"]))
    table.save()
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        title = (run.parent if run.name == REPLACEMENT else run).resolve().name
        return [table, WandbLogger(name=title, project=os.environ.get("WANDB_PROJECT", "anytime"))]
    if name == "csv" or (name == "auto" and find_spec("tensorboard") is None):
        return [table]
    return [table, TensorBoardLogger(run, name=None, version="tensorboard", purge_step=step or None)]


@rank_zero_only
def _take_rows(path: Path, step: int) -> list[dict[str, float]]:
    """Removes a table that Lightning would not continue, and returns its rows before `step`."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; move it away") from error
    path.unlink()
    rows = []
    for row in table:
        try:
            numbers = {key: float(value) for key, value in row.items() if value}
        except (TypeError, ValueError):  # the last line of a run that was killed
            continue
        if 0 <= numbers.get("step", step) < step:
            rows.append(numbers)
    return rows
