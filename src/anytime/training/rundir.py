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
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anytime.cost import hardware
from anytime.support.files import atomic_write
from anytime.training.config import SECTIONS, Config, UsageError, read_recipe
from anytime.version import __version__

FORMAT = 1
CONFIG = "config.yaml"
STATE = "run.json"


@rank_zero_only
def create_run(path: Path, config: Config, overwrite: bool, dry: bool = False) -> None:
    """Makes a new run directory with its configuration, in the main process; `dry` only checks whether this is possible.

    Raises:
        UsageError: It exists and `overwrite` is not set, or the existing directory is not a run directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not (path / STATE).is_file():
            reason = f"{path} exists and is not a run directory ({STATE} is missing), so it is not overwritten"
            raise UsageError(f"{reason}; give another --run")
        if not overwrite:
            raise UsageError(f"{path} exists; give another --run, --resume {path} to continue, or --overwrite to replace it")
    if dry:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # a kill never leaves half a run directory
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


@rank_zero_only
def set_state(path: Path, state: str) -> None:
    """Records the run's state (`started`, `interrupted`, `failed`, `finished`), date and machine, in the main process."""
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
    """Resolved configuration and state of a run directory.

    Raises:
        UsageError: There is no such directory.
        FileNotFoundError: It is incomplete.
        ValueError: A file is damaged, or from another version.
    """
    if not path.is_dir():
        raise UsageError(f"there is no run directory {path}")
    for name in (STATE, CONFIG):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is not a complete run directory: {name} is missing")
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / STATE} is damaged: {error}") from error
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version of anytime ({__version__}) reads format {FORMAT}")
    if not isinstance(state.get("state"), str):
        raise ValueError(f"{path / STATE} is damaged: the state of the run is missing")
    try:
        config = read_recipe(path / CONFIG)
    except UsageError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if missing := [section for section in SECTIONS if section not in config and section != "regime"]:  # added later
        raise ValueError(f"{path / CONFIG} is damaged: {missing[0]} is missing")
    return config, state
