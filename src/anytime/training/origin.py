"""The images that a trained model has seen, told from its directory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from anytime.data import ImageData, create_data
from anytime.data.files import absent
from anytime.data.record import RECORD, ImageRecord, read_record
from anytime.pretrained import list_pretrained, pretrained_folder
from anytime.saving import CONFIG, WEIGHTS, ModelInfo, named_by, read_config
from anytime.support.model_files import config_file
from anytime.support.text import one_line
from anytime.support.trust import is_remembered, names_from


def data_of(
    info: ModelInfo, root: str | os.PathLike[str] | None = None, download: bool = False, run: Path | None = None
) -> ImageData:
    """The data set that a model was trained on, with the arguments of the recipe that `anytime train` stores in its `info`.

    `root` replaces the recipe's folder of the data. The images are split as recorded in the directory `run`; without a record,
    they are split by name, or for models of versions that kept no record, by position, as in training. Raises ValueError if
    the model holds no recipe, and UntrustedName if an untrusted recipe names an import path.
    """
    recipe = info.recipe
    if not recipe:
        raise ValueError("this model does not say what it was trained on (no recipe in its config.json)")
    given = recipe.get("data")
    if not isinstance(given, dict) or not isinstance(given.get("class_path"), str):
        raise ValueError(f"the recipe in this model's config.json names no data set: data is {given!r}")
    if not isinstance(given.get("init_args", {}), dict):
        raise ValueError(f"the recipe in this model's config.json is damaged: data.init_args is {given['init_args']!r}")
    arguments = dict(given.get("init_args", {}))
    arguments["root"] = root if root is not None else arguments.get("root")
    arguments["download"] = download or (info.trusted and arguments.get("download", False))
    option = "--root"
    with names_from("the model's config.json", trust=info.trusted):
        data = _created(given["class_path"], arguments)
        if root is None and not data.root.is_dir():
            if not data.official and arguments["root"] is not None:
                raise FileNotFoundError(f"{absent(data.root)}, where this model's images were; give their folder with --root")
            if arguments["root"] is not None:
                option = f"--root ({absent(data.root)}, where the recipe has them)"
            data = _created(given["class_path"], {**arguments, "root": None})
    data.options = (option, "--download")
    if (record_of_run := read_record(run)) is not None:
        data.use_record(record_of_run)
    elif "split_by" not in arguments:
        data.split_by = "positions"
    return data


def _created(name: str, arguments: Mapping[str, Any]) -> ImageData:
    """The data set of a recipe; raises ValueError if an argument has the wrong type."""
    try:
        return create_data(name, **arguments)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"the recipe in this model's config.json makes no {name}: {one_line(error)}") from error


def seen_before(weights: str | None, recipe: Mapping[str, Any], data: ImageData) -> list[ImageRecord]:
    """Records of the models from whose weights a training on `data` starts.

    Args:
        weights: A run directory or a pretrained model.
        recipe: The recipe of the training, whose `model.pretrained` may be a file in a run directory.
        data: The images that it trains on.
    """
    folders = []
    if weights is not None:
        packaged = not Path(weights).is_dir() and weights in list_pretrained()
        folders.append(pretrained_folder(weights) if packaged else Path(weights))
    file = recipe.get("model", {}).get("init_args", {}).get("pretrained")
    if isinstance(file, str | os.PathLike):
        folder = Path(file).parent
        folders.append(folder.parent if folder.name == "checkpoints" else folder)
    return [record for folder in folders if (record := _seen_by(folder, data)) is not None]


def _seen_by(folder: Path, data: ImageData) -> ImageRecord | None:
    """The record in a folder, or else what its recipe says; None if that has nothing in common with `data`."""
    if (record := read_record(folder)) is not None:
        return record
    if not (config_file(folder).is_file() and (folder / WEIGHTS).is_file()):
        return None
    config = read_config(folder)
    trusted = is_remembered(folder / CONFIG, named_by(config))
    info = replace(ModelInfo.from_dict(config.get("metadata", {})), trusted=trusted)
    if not info.recipe or info.data != type(data).__name__:
        return None
    try:
        return data_of(info, data.root if data.official else None).make_record()
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{folder} has no {RECORD}, so the images that it was trained on are unknown, and some validation or test images "
            f"may be among them ({one_line(error)})",
            stacklevel=2,
        )
        return None
