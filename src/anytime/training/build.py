"""From a resolved configuration to a training job: model, data, objective, optimizer, schedule, settings, regime."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from anytime.data import ImageData
from anytime.data.record import read_record
from anytime.model import AnytimeModel, create_model, eval_mode
from anytime.objectives import Objective
from anytime.pretrained import load
from anytime.saving import ModelInfo
from anytime.training.checkpoints import first_difference
from anytime.training.config import Config, UsageError, find
from anytime.training.fit import Settings, fit, hardware_arguments
from anytime.training.module import decay_groups
from anytime.training.regimes.base import Joint, Regime
from anytime.training.regimes.heads_only import HeadsOnly
from anytime.training.schedules import Schedule

SAMPLE = 5000  # training images that initial weights may depend on


@dataclass
class TrainingJob:
    """The arguments of `anytime.training.fit`, built from a configuration.

    Attributes:
        config: That configuration, with the arguments that were measured during the build.
    """

    model: AnytimeModel
    data: ImageData
    objective: Objective
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    settings: Settings
    regime: Regime = field(default_factory=Joint)
    config: Config = field(default_factory=dict)

    def fit(self, run: str | os.PathLike[str], resume: bool = False) -> L.Trainer:
        """Trains the model into the directory `run`, see `anytime.training.fit`."""
        parts = (self.model, self.data, self.objective, self.optimizer, self.schedule, self.settings)
        return fit(*parts, run, resume=resume, regime=self.regime)


def build(config: Config, filled_later: bool = False, run: Path | None = None) -> TrainingJob:
    """Builds a training job from a resolved configuration, after seeding; reads the data.

    Args:
        config: The configuration.
        filled_later: Whether all weights will come from elsewhere, such as a checkpoint: then no weights file is read.
        run: The run directory that is resumed; its record says which images are trained on.

    Raises:
        UsageError: An argument is out of range, or the hardware is not there.
        ValueError, FileNotFoundError, OSError: Data are missing or damaged.
    """

    def create(section: str, **more: Any) -> Any:
        return find(section, config[section]["class_path"])(**config[section]["init_args"], **more)

    try:
        settings = Settings(**{field.name: config[field.name] for field in fields(Settings) if field.name in config})
        L.Trainer(**hardware_arguments(settings), logger=False, enable_checkpointing=False, enable_progress_bar=False)
        objective, schedule, data = create("objective"), create("schedule"), create("data", seed=settings.seed)
        optimizer = functools.partial(find("optimizer", config["optimizer"]["class_path"]), **config["optimizer"]["init_args"])
        regime = create("regime") if "regime" in config else Joint()  # old runs have none
        optimizer(decay_groups(nn.Linear(1, 1)))  # raises for bad values now, before the data are read
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UsageError(str(error)) from error
    L.seed_everything(settings.seed, workers=True, verbose=False)
    if (record := read_record(run)) is not None:
        data.use_record(record)
    elif run is not None and "split_by" not in config["data"]["init_args"]:
        data.split_by = "positions"  # as when that run began
    data.setup("fit")
    name = config["model"]["class_path"]
    takes = inspect.signature(find("model", name)).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    size: dict[str, Any] = {"in_channels": data.input_size[0]} if open_ended or "in_channels" in takes else {}
    given = config["model"]["init_args"]
    if "input_size" in takes and given.get("input_size") is None:
        size["input_size"] = data.input_size
    if "pretrained" in takes and filled_later:
        size["pretrained"] = False
    try:
        random = not (given.get("pretrained") or settings.weights or filled_later)
        if random and (given.get("regime") == "midfeat" or ("pretrained" in takes and isinstance(regime, HeadsOnly))):
            pretrained = "--model.pretrained FILE (true: its library's download) or " if "pretrained" in takes else ""
            raise ValueError(f"heads need a trained network, but this one has no weights: give {pretrained}--weights RUN")
        if random and isinstance(regime, HeadsOnly) and not _names_weights(given):
            warnings.warn(
                f"the heads of {name} are trained on a trunk of random weights, which stays as it is; give --weights RUN to "
                "train them on a trained network",
                stacklevel=2,
            )
        objective.set_levels(data.levels or (data.num_classes,))
        model = create_model(name, data.levels or data.num_classes, **given | size)
        regime.check(model, settings.epochs)
        regime.check_objective(objective)
        objective.check(model.num_steps)
        with torch.no_grad(), eval_mode(model):
            model.step(model.initial_state(torch.zeros(1, *data.input_size)))  # raises for a wrong image size
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    measured = {key: value for key, value in model.measured_arguments.items() if key in given}
    config = config | {"model": config["model"] | {"init_args": given | measured}}  # not measured again on resuming
    if settings.weights is not None and not filled_later:
        _load_weights(model, settings.weights)
    if settings.normalize and not model.own_normalization and settings.weights is None:
        model.set_normalization(data.mean, data.std)
    if random:
        model.initialize_from(data.sample(SAMPLE) / 255)
    model.info = ModelInfo(
        data=type(data).__name__,
        input_size=data.input_size,
        resize_ratio=data.resize_ratio,
        stretched=data.stretched,
        class_names=tuple(data.class_names),
        task=model.info.task,
        recipe=config,
    )
    return TrainingJob(model, data, objective, optimizer, schedule, settings, regime, config)


def _names_weights(value: Any) -> bool:
    """Whether a model's arguments name weights, at any depth: those of a network inside it."""
    if isinstance(value, dict):
        return bool(value.get("pretrained")) or any(map(_names_weights, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_names_weights, value))


def _load_weights(model: AnytimeModel, name: str) -> None:
    """Copies the weights and the normalisation of a trained model with the same parts."""
    weights = load(name).state_dict()
    try:
        model.load_state_dict(weights)  # some models convert those of related networks: a cascaded one takes a serial one's
    except ValueError as error:
        raise UsageError(f"the weights of {name} do not fit: {error}") from error
    except RuntimeError as error:
        difference = first_difference(weights, model.state_dict())
        raise UsageError(f"the weights of {name} are those of another network: {difference}") from error
