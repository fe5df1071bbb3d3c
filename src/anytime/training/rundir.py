"""The run directory: everything about one trained model."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from anytime.cost import hardware
from anytime.support.files import atomic_write
from anytime.training.config import Config, UsageError, resolve_recipe
from anytime.version import __version__

FORMAT = 1
CONFIG = "config.yaml"
STATE = "run.json"


def create_run(path: Path, config: Config, overwrite: bool, dry: bool = False) -> None:
    """Makes a new run directory with its configuration; `dry` only checks that this can be done.

    Raises:
        UsageError: It exists and `overwrite` is not set, or what is there is not a run directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not (path / STATE).is_file():
            not_one = f"{path} exists and is not a run directory ({STATE} is missing), so it is not overwritten"
            raise UsageError(f"{not_one}; give another --run")
        if not overwrite:
            raise UsageError(f"{path} exists; give another --run, --resume {path} to go on, or --overwrite to replace it")
    if dry:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # so that no kill leaves half a run directory
    part.mkdir()
    try:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (part / CONFIG).write_text(text, encoding="utf-8")
        set_state(part, "started")
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def set_state(path: Path, state: str) -> None:
    """Notes where the run stands (`started`, `interrupted`, `failed`, `finished`), when and on what machine."""
    entry = {
        "format": FORMAT,
        "anytime": __version__,
        "torch": torch.__version__,
        "state": state,
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_write(path / STATE) as part:
        part.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")


def read_run(path: Path) -> tuple[Config, dict[str, Any]]:
    """Configuration (resolved) and state of a run directory.

    Raises:
        UsageError: There is no such directory.
        FileNotFoundError: It is only half written.
        ValueError: A file is damaged, or of another version.
    """
    if not path.is_dir():
        raise UsageError(f"there is no run directory {path}")
    for name in (STATE, CONFIG):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is not a run directory, or only half written: {name} is missing")
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ValueError(f"{path} has format {found!r}, this version of anytime ({__version__}) reads format {FORMAT}")
    if not isinstance(state.get("state"), str):
        raise ValueError(f"{path / STATE} is damaged: it does not say the state of the run")
    if not isinstance(config, dict):
        raise ValueError(f"{path / CONFIG} is damaged: expected a mapping")
    try:
        return resolve_recipe(config), state
    except UsageError as error:
        raise ValueError(f"{path / CONFIG} is damaged: {error}") from error
