"""Trained models: load one of the package by name or any other from its directory, and chain several into an EANN."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anytime.model import AnytimeModel, create_model, require_classifier
from anytime.models.ann.eann import EANN, ReportBy
from anytime.registry import find_loader
from anytime.saving import CONFIG, ModelInfo, read_model
from anytime.support.model_files import config_file
from anytime.support.names import nearest

_FOLDER = Path(__file__).parent / "weights"


def list_pretrained() -> list[str]:
    """Names of the trained models inside the package."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{CONFIG}"))


def pretrained_folder(name: str) -> Path:
    """The folder of a trained model inside the package: weights, configuration and model card."""
    return _FOLDER / name


def load(path_or_name: str | os.PathLike[str], trust: bool = False) -> AnytimeModel:
    """Loads a trained model by directory or name, in eval mode on the CPU; executes no pickled code.

    Args:
        path_or_name: A directory written by `anytime train`, `model.save` or `anytime export`, or a name of
            `list_pretrained()`. An export is computed by its engine, see `docs/engines.md`.
        trust: Whether import paths that the directory names (custom models, backbones, data sets) may be imported, which can
            run any code. Runs that were trained on this machine by this user are trusted anyway, as long as their
            configuration is unchanged.

    Raises:
        ValueError: Neither a directory nor a known name, or a damaged file.
        FileNotFoundError: The directory contains no finished model.
        UntrustedName: The directory names an import path outside this library, and nobody has consented to it.

    Example:
        >>> from anytime import load
        >>> load("anytimenet_cifar10").num_steps
        7
    """
    path = Path(path_or_name)
    if path.is_dir():
        if not config_file(path).is_file() and (path / "checkpoints").is_dir():
            raise FileNotFoundError(f"{path}: the training has not finished; continue it with `anytime train --resume {path}`")
        found: AnytimeModel = (_loader(path) or read_model)(path, trust)
        return found
    name = os.fspath(path_or_name)
    if name in list_pretrained():
        return read_model(_FOLDER / name)
    raise ValueError(f"there is no directory and no pretrained model {name!r}{nearest(name, list_pretrained())}")


def _loader(path: Path) -> Callable[..., AnytimeModel] | None:
    """What loads a folder that holds no trained model, but something else that can be loaded, such as an export."""
    return None if config_file(path).is_file() else find_loader(path)


def chain_networks(
    members: Sequence[str | os.PathLike[str]],
    rule: ReportBy = "depth",
    validation_errors: Sequence[Sequence[float]] | None = None,
) -> EANN:
    """Chains trained networks of growing depth into an EANN in eval mode; once saved, it loads without their directories.

    Each member keeps its weights and normalisation. `info` of the sequence contains what the members agree on, the data set of
    the last one (so that `anytime evaluate` finds it), and the full `info` of each member.

    Args:
        members: Run directories or pretrained names in order, each as `anytime.load` accepts it.
        rule: `"depth"` or `"validation"`, see `EANN`.
        validation_errors: For `"validation"`, errors of each member's exits, e.g. from traces of validation images:
            `[curves.error(trace).tolist() for trace in traces]`.

    Raises:
        ValueError: Members disagree in classes, class names or images, or `EANN` rejects them.
        FileNotFoundError: A directory contains no finished model.
    """
    if isinstance(members, str | os.PathLike):
        raise ValueError(f"members must be a list of directories or names, got {members!r}")
    if len(members) < 2:
        raise ValueError(f"members must be at least 2 networks, got {len(members)}")
    names, networks = [os.fspath(member) for member in members], [load(member) for member in members]
    infos = [network.info for network in networks]
    _agree("num_classes", names, [network.levels for network in networks])
    _agree("in_channels", names, [network.in_channels for network in networks])
    for network in networks:
        require_classifier(network, "an EANN")
    for what in ("input_size", "resize_ratio", "stretched"):
        _agree(what, names, [getattr(info, what) for info in infos])
    for k in range(networks[0].num_classes):
        _agree(f"the name of class {k}", names, [info.class_names[k] if info.class_names else None for info in infos])
    levels = networks[0].levels
    model = create_model(
        "eann",
        levels[0] if len(levels) == 1 else levels,
        in_channels=networks[0].in_channels,
        members=[network.config for network in networks],
        rule=rule,
        validation_errors=validation_errors,
    )
    assert isinstance(model, EANN)
    for member, network in zip(model.members, networks, strict=True):
        member.load_state_dict(network.state_dict())
    last = infos[-1]
    model.info = ModelInfo(
        data=last.data,
        input_size=next((info.input_size for info in infos if info.input_size), None),
        resize_ratio=last.resize_ratio,
        stretched=last.stretched,
        class_names=next((info.class_names for info in infos if info.class_names), ()),
        recipe={"data": last.recipe["data"]} if "data" in last.recipe else {},
        members=[{"name": name, **info.to_dict()} for name, info in zip(names, infos, strict=True)],
        trusted=all(info.trusted for info in infos),
    )
    return model.eval()


def _agree(what: str, names: Sequence[str], values: Sequence[Any]) -> None:
    """Raises ValueError if values differ; None means unknown and agrees with any value."""
    known = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    for name, value in known[1:]:
        if value != known[0][1]:
            raise ValueError(f"members must agree in {what}: {known[0][0]} has {known[0][1]!r}, {name} has {value!r}")
