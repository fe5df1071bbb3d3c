"""Trained models: those inside the package by name, others by directory."""

from __future__ import annotations

import os
from pathlib import Path

from anytime.model import CONFIG, AnytimeModel, read_model
from anytime.support.names import nearest

_FOLDER = Path(__file__).parent / "weights"


def list_pretrained() -> list[str]:
    """Names of the trained models inside the package."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{CONFIG}"))


def pretrained_folder(name: str) -> Path:
    """The folder of a trained model inside the package: weights, configuration and model card."""
    return _FOLDER / name


def load(path_or_name: str | os.PathLike[str]) -> AnytimeModel:
    """A trained model from a run directory or by name, in eval mode on the CPU; executes no pickled code.

    Args:
        path_or_name: A directory written by `anytime train` or `model.save`, or a name of `list_pretrained()`.

    Raises:
        ValueError: Neither a directory nor a known name, or a damaged file.
        FileNotFoundError: The directory holds no finished model.

    Example:
        >>> load("anytimenet_cifar10").num_steps
        7
    """
    path = Path(path_or_name)
    if path.is_dir():
        if not (path / CONFIG).is_file() and (path / "checkpoints").is_dir():
            raise FileNotFoundError(f"{path}: the training has not finished; go on with `anytime train --resume {path}`")
        return read_model(path)
    name = os.fspath(path_or_name)
    if name in list_pretrained():
        return read_model(_FOLDER / name)
    raise ValueError(f"there is no directory and no pretrained model {name!r}{nearest(name, list_pretrained())}")
