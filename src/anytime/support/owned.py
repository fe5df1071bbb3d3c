"""Which files this library may replace or remove: those that it wrote, known by what they hold, not only by their names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from anytime.support.documents import parse_json, read_limited
from anytime.support.files import check_no_file_above
from anytime.support.folders import CONFIG, LOSSES, MANIFEST, PAGE, REPORTS, STATE, WEIGHTS, holds_only_own
from anytime.support.limits import UNFIT
from anytime.support.text import quoted

_BYTES, _VALUES = 2**27, 10_000_000
_SOFTWARE = b"tEXtSoftware\0"
SET = "# a set of values of a search\n"  # begins its recipe
MARK = {"Software": "anytime"}
"""What `savefig` writes into the PNG files of this library as `metadata`."""


class NotOurs(ValueError):
    """A file or folder would be replaced or mixed with another that this library did not write."""


def check_own(*paths: Path) -> None:
    """Raises NotOurs if one of the files exists and this library did not write it: then it is not replaced.

    Raises ValueError if one of its parents is no folder, so that it cannot be written.
    """
    for path in paths:
        check_no_file_above(path)
        if os.path.isdir(path):
            raise NotOurs(f"{path} is a folder, where a file is to be written; move it away")
        if os.path.lexists(path) and not is_own(path):
            raise NotOurs(f"{path} was not written by this library, so it is not replaced; move it away")


def check_contents(folder: Path, contents: Mapping[str, Collection[str]]) -> None:
    """Raises NotOurs if a file of `contents` is there with another SHA-256 than those listed, so that it is not replaced."""
    for name, digests in contents.items():
        path = folder / name
        if os.path.lexists(path) and digest_of_file(path) not in digests:
            raise NotOurs(f"{path} is not a graph of the export in {folder}, so it is not replaced; move it away")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file; empty if it is missing, a link, a folder or a pipe."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_own(path: Path) -> bool:
    """Whether a file holds what this library writes under its name; a name that it never writes is not its own.

    A file without content, empty or of zeros, is nobody's work: a machine that loses its power leaves such.
    """
    known = next((own for pattern, own in _OWN.items() if fnmatch(path.name, pattern)), None)
    if known is None or not path.is_file():
        return False
    try:
        return known(path) or _is_empty(path)
    except (OSError, *UNFIT):
        return False


def only_own_in(folder: Path) -> bool:
    """Whether this library wrote all files in a folder, at any depth, so that it may be removed."""
    files = (Path(path, name) for path, _, names in os.walk(folder) for name in names)
    return holds_only_own(folder) and not any(looks_foreign(file) for file in files)


def looks_foreign(path: Path) -> bool:
    """Whether a file has a name that this library writes, but another content."""
    return any(fnmatch(path.name, pattern) for pattern in _OWN) and not is_own(path)


def state_of(folder: Path) -> dict[str, Any]:
    """The state of a run as this library writes it; empty if a folder holds none."""
    return _object(folder / STATE, "format", "anytime", "state")


def check_room_for_model(folder: Path, config: dict[str, Any]) -> None:
    """Raises NotOurs if a folder holds what a model would be mixed with.

    That is an export, a training that has not finished, or the finished run of another network.

    Args:
        folder: The folder.
        config: Name and arguments of the model that would be saved.
    """
    if (folder / MANIFEST).is_file() and is_own(folder / MANIFEST):
        raise NotOurs(f"{folder} holds an export, beside which no model is saved; give another folder")
    if not (state := state_of(folder)):
        return
    if state["state"] != "finished":
        raise NotOurs(f"{folder} holds a training that has not finished, so no model is saved there; give another folder")
    if (there := _object(folder / CONFIG, "model", "arguments")) and not _same(there, config):
        named = quoted(there["model"])
        raise NotOurs(f"{folder} is the run of another network, {named}, which is not replaced; give another folder")


def check_room_for_export(folder: Path) -> None:
    """Raises NotOurs if a folder holds a model or a training, with which an export would be mixed."""
    if name := next((name for name in (CONFIG, WEIGHTS, STATE) if os.path.lexists(folder / name)), None):
        raise NotOurs(f"{folder} holds {name}, beside which no export is written; give another folder")


def _same(there: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether two configurations name the same network."""
    one, other = (json.dumps([given.get(key) for key in ("model", "arguments")], sort_keys=True) for given in (there, config))
    return one == other


def _object(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file if it has these keys; empty otherwise."""
    found = _json(path)
    return found if isinstance(found, dict) and found.keys() >= {*keys} else {}


def _json(path: Path) -> Any:
    """What a JSON file holds; None if it is damaged."""
    try:
        return parse_json(read_limited(path, _BYTES), path, _VALUES)
    except (OSError, *UNFIT):
        return None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2**12)


def _keys(*keys: str) -> Callable[[Path], bool]:
    return lambda path: bool(_object(path, *keys))


def _starts(*texts: bytes) -> Callable[[Path], bool]:
    """Whether the header of a file of tensors holds one of the texts; what follows it may be damaged."""

    def found(path: Path) -> bool:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _BYTES))
        return header.startswith(b"{") and any(text in header for text in texts)

    return found


def _is_drawn(path: Path) -> bool:
    """Whether a figure is of this library; of an earlier version if what was written with it is, because it had no mark."""
    software = _start(path).partition(_SOFTWARE)[2]
    if software.startswith(MARK["Software"].encode()):
        return True
    beside = [path.with_suffix(".json"), path.parents[1] / REPORTS[0], path.parents[2] / REPORTS[1]]
    return software.startswith(b"Matplotlib") and any(is_own(other) for other in beside if other.is_file())


def _is_report(path: Path) -> bool:
    text = read_limited(path, _BYTES)
    return text.startswith(b"<!DOCTYPE html>") and b"How it was measured</h2>" in text


def _is_page(path: Path) -> bool:
    return b'<meta name="generator" content="anytime live page">' in _start(path)


def _is_recipe(path: Path) -> bool:
    keys = re.findall(rb"^(model|data|objective|optimizer):", read_limited(path, _BYTES), re.MULTILINE)
    return len({*keys}) == 4


def _is_best(path: Path) -> bool:
    return _start(path).startswith(b"# chosen on validation: ") and _is_recipe(path)


def _is_set(path: Path) -> bool:
    return _start(path).startswith(SET.encode())


def _is_made_by_study(path: Path) -> bool:
    return str(_object(path, "command").get("command", "")).startswith("anytime study")


def _is_losses(path: Path) -> bool:
    found = _json(path)
    losses = found.get("losses") if isinstance(found, dict) and "weights" in found else found  # a list in earlier versions
    return isinstance(losses, list) and bool(losses) and all(isinstance(loss, float) for loss in losses)


def _is_empty(path: Path) -> bool:
    with path.open("rb") as file:
        return not any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b""))


_IS_CONFIG = _keys("format", "model", "arguments", "sha256")
_IS_TRACE = _starts(b'"anytime-trace"')
_OWN: dict[str, Callable[[Path], bool]] = {
    STATE: _keys("format", "anytime", "state"),
    "config.yaml": _is_recipe,
    "best.yaml": _is_best,
    "trial_*.yaml": _is_set,
    CONFIG: _IS_CONFIG,
    ".config.json.*.next": _IS_CONFIG,
    MANIFEST: _keys("kind", "format", "engine", "precision", "steps"),
    "profile.json": _keys("format", "model", "macs", "batches"),
    "images.safetensors": _starts(b'"anytime-images'),
    "trace-*.safetensors": _IS_TRACE,
    "metrics-*.json": _keys("steps", "average_error"),
    "report*.html": _is_report,
    PAGE: _is_page,
    LOSSES: _is_losses,
    "*.png": _is_drawn,
    "figure_*.json": _is_made_by_study,
    "table_*.json": _is_made_by_study,
}
