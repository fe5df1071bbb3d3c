"""Weights of a given network from a file: what wraps them is taken off, and what is wrong with them is one sentence."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from anytime.support.limits import UNFIT
from anytime.support.tensors import denormal_warning
from anytime.support.torch_files import check_old_file, check_parts, check_tensors

PREFIXES = ("module.", "_orig_mod.", "model.")  # of data parallelism, of torch.compile, of a trainer
ZIP = b"PK\x03\x04"  # torch's format starts so; before version 1.6 it was another
STARTS = (ZIP, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 ")
COUNT = "num_batches_tracked"  # of a batch norm; only `momentum=None` reads it


class Weights(NamedTuple):
    """A backbone's state dict with the normalisation stored beside it, if there is one."""

    tensors: dict[str, Tensor]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def read_weights(path: str | os.PathLike[str], own: Collection[str] = ()) -> Weights:
    """A state dict from a file (safetensors, or torch's format read without executing pickled code), whatever its suffix.

    The dict may lie under "state_dict" or "model", and its names may begin with `module.`, `_orig_mod.` or `model.`. From a
    model with exits, only the backbone and its normalisation are read.

    Args:
        path: The file.
        own: The names that the network itself uses; prefixes are taken off until one of them appears.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a file of weights, a truncated one, one in which a byte has changed (if its format has checksums), one
            with pickled objects, no state dict in it, NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}")
    stored = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} does not hold a state dict")
    try:
        check_tensors(stored.values(), path)
    except UNFIT as error:  # of tensors that only wrap others
        raise ValueError(f"{path} cannot be used: {error}") from error
    for name, value in stored.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{path} cannot be used: {name} holds NaN or infinity")
    if slow := denormal_warning(stored.values(), str(path)):
        warnings.warn(slow, stacklevel=3)
    stored = _without_prefixes(stored, own)
    inner = {key.removeprefix("backbone."): value for key, value in stored.items() if key.startswith("backbone.")}
    others = {key for key in stored if not key.startswith(("backbone.", "heads."))}
    if not inner or others != {"mean", "std"}:  # not a model with exits; a network may have a part called backbone
        return Weights(stored)
    return Weights(inner, stored["mean"].tolist(), stored["std"].tolist())


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    try:
        if not start.startswith(STARTS) and (path.suffix == ".safetensors" or start[8:9] == b"{"):
            return safetensors.torch.load_file(path)
        if start.startswith(ZIP):
            check_parts(path)
        elif start.startswith(STARTS):
            check_old_file(path)
        with path.open("rb") as file:  # by a path, torch would go by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    except Exception as error:  # a damaged pickle can make its reader raise anything
        text = " ".join(str(error).split())
        if found := re.search(r"GLOBAL (\S+)", text):
            raise ValueError(
                f"{path} holds pickled objects ({found[1]}), which could run code: save only the weights, with "
                "torch.save(network.state_dict(), ...)"
            ) from error
        if start.startswith(STARTS) or isinstance(error, EOFError):
            raise ValueError(f"{path} is truncated or damaged: {text[:200] or type(error).__name__}") from error
        raise ValueError(f"{path} is not a file of weights: {text[:200]}") from error


def _without_prefixes(stored: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The state dict without the prefixes that all its names have, until one of them is the network's own."""
    names = {name: value for name, value in stored.items() if name != "n_averaged"}  # of torch's AveragedModel
    if len(names) < len(stored) and not all(name.startswith("module.") for name in names):
        names = dict(stored)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in names)), None):
        if any(name in own for name in names):
            break
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Loads all weights and returns None, or loads none and returns the first that does not fit.

    A batch norm's count of batches may be missing: it then stays as it is.
    """
    state = network.state_dict()
    own = {key: [*value.shape] for key, value in state.items()}
    weights = {key: value for key, value in state.items() if key.endswith(COUNT)} | dict(weights)
    given = {key: [*value.shape] for key, value in weights.items()}
    errors = [f"size mismatch for {k}: {given[k]}, wanted {own[k]}" for k in own if k in given and given[k] != own[k]]
    errors += [f"missing key {key}" for key in own if key not in given]
    errors += [f"unexpected key {key}" for key in given if key not in own]
    if errors:
        return errors[0]
    network.load_state_dict(weights)
    return None
