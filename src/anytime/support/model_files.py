"""The two files of a saved model, replaced together: after a kill at any moment, the earlier pair or the new one is there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import safetensors
import safetensors.torch

from anytime.support.digest import weights_digest
from anytime.support.documents import read_limited
from anytime.support.files import atomic_write
from anytime.support.folders import CONFIG, WEIGHTS, check_file
from anytime.support.limits import UNFIT
from anytime.support.owned import NotOurs, check_own
from anytime.support.tensor_files import check_length
from anytime.support.text import one_line

CONFIG_BYTES = 2**25  # of names: 20 networks with 20,000 classes each
_WAITING = ".config.json.{}.next"  # with the SHA-256 of the weights that it waits for


def write_model(folder: Path, weights: bytes, config: bytes) -> None:
    """Replaces both files; the caller holds the lock of the folder.

    Both are complete before the first is replaced. The configuration waits under a name with the digest of the weights, so
    that `config_file` finds it from the moment when these are in their place.

    Raises:
        NotOurs: One of the files is there, and not of a model of this library.
        OSError: The disk is full; the earlier model is intact.
    """
    _check_own(folder, weights)
    _finish(folder)
    waiting = folder / _WAITING.format(hashlib.sha256(weights).hexdigest())
    try:
        with atomic_write(folder / WEIGHTS) as part:
            _write(part, weights)
            with atomic_write(waiting) as other:
                _write(other, config)
    except Exception:  # not of Ctrl-C, which may come when the weights are in their place
        waiting.unlink(missing_ok=True)
        raise
    os.replace(waiting, folder / CONFIG)


def read_weights(folder: Path) -> bytes:
    """The bytes of the weights.

    Raises:
        FileNotFoundError: They are missing.
        ValueError: The file leads out of the folder, is a pipe, or is longer than its header says.
    """
    path = folder / WEIGHTS
    check_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no trained model: {WEIGHTS} is missing")
    try:
        check_length(path)
    except UNFIT as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    return path.read_bytes()


def digest_of(folder: Path) -> str:
    """SHA-256 of the file of the weights in a folder; empty if there is none."""
    path = folder / WEIGHTS
    check_file(path)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_of(folder: Path) -> str | None:
    """`weights_digest` of the weights in a folder, which a trace names that was recorded with them; None if there are none.

    Raises:
        ValueError: The file leads out of the folder, is a pipe, or is damaged.
    """
    if not (folder / WEIGHTS).is_file():
        return None
    try:
        return weights_digest(safetensors.torch.load(read_weights(folder)))
    except (safetensors.SafetensorError, *UNFIT) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {one_line(error)}") from error


def config_file(folder: Path) -> Path:
    """The configuration of the weights in a folder: `config.json`, or the one that waited for them when a save was killed.

    Raises:
        ValueError: One of the files leads out of the folder, or is a pipe, see `check_file`.
    """
    path = folder / CONFIG
    check_file(path)
    if next(folder.glob(_WAITING.format("*")), None) is None:
        return path
    if not (digest := digest_of(folder)):
        return path
    waiting = folder / _WAITING.format(digest)
    check_file(waiting)
    known = path.is_file() and digest.encode() in read_limited(path, CONFIG_BYTES)
    return waiting if waiting.is_file() and not known else path


def _check_own(folder: Path, weights: bytes) -> None:
    """Raises NotOurs if files that this library did not write would be replaced; the same weights may be there."""
    check_own(found := config_file(folder))
    path = folder / WEIGHTS
    if found.exists() or not os.path.lexists(path):
        return
    check_file(path)
    if not path.is_file() or path.read_bytes() != weights:
        raise NotOurs(f"{path} has no {CONFIG} of this library beside it, so it is not replaced; move it away")


def _finish(folder: Path) -> None:
    """Completes the pair of a save that was killed, and removes configurations whose weights never came."""
    if (found := config_file(folder)).name != CONFIG:
        os.replace(found, folder / CONFIG)
    for waiting in folder.glob(_WAITING.format("*")):
        waiting.unlink()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
