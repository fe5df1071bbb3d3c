"""What a search minimises: the error of all answers by cost, or a metric that the training logs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anytime.analysis.area import log_area
from anytime.cost import step_macs
from anytime.studies.logged import logged
from anytime.support.names import nearest
from anytime.training.build import build
from anytime.training.config import Config, UsageError
from anytime.training.logs import METRICS

ERROR = "error"
"""The average validation error over answers by cost, see `Metric`."""


class Metric:
    """Turns the validation of an epoch into one number.

    "error" is E = 1 - A, where A is the accuracy averaged over budgets m with log m uniform in [L, H] (`log_area`), L is the
    cost of the first answer of one network, and H twice that of its last answer. These budgets stay the same for networks
    of other costs, so E compares them. Any other name is that of a column which the training logs.

    Args:
        config: A configuration. Its network, which sets L and H, is built here; missing data are downloaded if it says so.
        name: "error", "val/loss", "val/accuracy" or "val/accuracy_T".

    Attributes:
        larger_is_better: Whether it is maximised.
        root: The folder of the first set's data.

    Raises:
        UsageError: Nothing has this name, there are no validation images, or the network is no classifier but accuracies are
            needed.
        ValueError, OSError: As `anytime.training.build.build`.
    """

    def __init__(self, config: Config, name: str = ERROR) -> None:
        self.name, self.larger_is_better = name, "accuracy" in name
        self._costs: dict[str, list[int]] = {}
        macs, self._classes, task, self.root = self._measured(config)
        steps = range(1, len(macs) + 1)
        classified = [ERROR, "val/accuracy", *(f"val/accuracy_{t}" for t in steps)] if task == "classification" else []
        if name not in (valid := [*classified, "val/loss"]):
            raise UsageError(f"--metric {name!r} does not exist for this recipe{nearest(name, valid)}")
        self._low, self._high = macs[0], 2 * macs[-1]

    def _measured(self, config: Config) -> tuple[list[int], int, str, Path]:
        """Cumulative MACs of the answers, number of classes of the first label level, task, folder of the data."""
        lightning = logging.getLogger("lightning.pytorch")
        level = lightning.level
        lightning.setLevel(logging.WARNING)  # it would list the hardware
        try:
            job = build(config)
        finally:
            lightning.setLevel(level)
        if not job.data.val_dataloader():
            raise UsageError("a search needs validation images, but the recipe leaves none; give --data.validation 0.1")
        macs = self._costs[_network(config)] = step_macs(job.model, job.data.input_size)
        return macs, job.model.levels[0], job.model.info.task, job.data.root

    def value(self, config: Config, row: Mapping[str, float], source: Path = METRICS) -> float:
        """The metric of one epoch.

        Args:
            config: The configuration that is trained; a network of other arguments is built to count its MACs.
            row: What was logged after the epoch.
            source: The file of the row, for messages.

        Raises:
            ValueError: A column is missing, or an accuracy is not in 0..1.
        """
        if self.name != ERROR:
            return _number(row, self.name, source)
        if (network := _network(config)) not in self._costs:
            self._measured(config)
        macs = self._costs[network]
        accuracies = [_number(row, f"val/accuracy_{t}", source) for t in range(1, len(macs) + 1)]
        return 1 - log_area(macs, accuracies, self._low, self._high, 1 / self._classes)

    def last(self, config: Config, run: Path) -> float | None:
        """The metric after the last validation that a run directory holds; None if there is none."""
        rows = validated(run)
        return self.value(config, rows[max(rows)], run / METRICS) if rows else None

    def is_possible(self, value: float) -> bool:
        """Whether it can have this value: a finite one, and if it is an accuracy or an error, in 0..1."""
        return math.isfinite(value) and (self.name == "val/loss" or -1e-6 <= value <= 1 + 1e-6)

    def __str__(self) -> str:
        return "average validation error over answers by cost" if self.name == ERROR else self.name

    def text(self, value: float) -> str:
        """A value as it is printed."""
        return f"{value:.2%}" if self.name == ERROR or "accuracy" in self.name else f"{value:.4g}"


def _network(config: Config) -> str:
    """Names what decides the cost of a network: its arguments, and the images."""
    data: Any = config["data"]
    return json.dumps([config["model"], data["class_path"], data["init_args"]], sort_keys=True, default=str)


def _number(row: Mapping[str, float], name: str, source: Path) -> float:
    try:
        number = row[name]
    except KeyError:
        raise ValueError(f"{source} is damaged: a row of the validation has no {name}") from None
    if "accuracy" in name and not 0 <= number <= 1:
        raise ValueError(f"{source} is damaged: {name} is {number}, not in 0..1")
    return number


def validated(run: Path) -> dict[int, dict[str, float]]:
    """What a run directory has logged after each validation so far, by epoch from 0; a training may be writing there.

    Raises:
        ValueError: The table is damaged, or longer than any of a training.
    """
    try:
        return dict(logged(run, "val/loss", "epoch"))
    except OSError:  # not there yet; replaced meanwhile
        return {}
