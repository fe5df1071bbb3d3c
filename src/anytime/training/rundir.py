"""The run directory: everything about one trained model. One process at a time writes to it."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anytime.cost import hardware
from anytime.data.record import RECORD
from anytime.saving import CONFIG as MODEL_CONFIG
from anytime.saving import CONFIG_BYTES, WEIGHTS
from anytime.support.documents import parse_json, read_limited
from anytime.support.files import atomic_write, check_no_file_above, make_folder, part_of, remove_folder, remove_leftovers
from anytime.support.folders import LOCK, OWN, REPLACEMENT, STATE, STUDY_TRACES, check_folder
from anytime.support.locks import only_writer
from anytime.support.owned import check_own, looks_foreign, only_own_in, state_of
from anytime.support.trace_files import is_study_trace
from anytime.support.trust import is_declared, is_remembered, names_from
from anytime.training.config import SECTIONS, Config, UsageError, read_recipe
from anytime.version import __version__

FORMAT = 1
CONFIG = "config.yaml"
STATE_BYTES = 2**24  # far beyond any


def is_main_process() -> bool:
    """Whether this process, of those that train together, writes files and prints."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def writing(path: Path) -> AbstractContextManager[None]:
    """Holds the lock of a run directory that is trained, in the main process; raises InUse if another process writes there."""
    return only_writer(path, "a training", brief=False) if is_main_process() else nullcontext()


def check_new(path: Path, overwrite: bool) -> None:
    """Raises an error if no new run can be made at `path`.

    Raises:
        UsageError: It exists and `overwrite` is not set, or it is not a run directory of this library.
        NotOurs: It holds a file of the user that would be replaced.
        InUse: Another process writes there.
    """
    if not is_main_process():
        return
    check_no_file_above(path)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UsageError(f"{path} exists and is not a directory; give another --run")
    with writing(path):
        _check_replaceable(path, overwrite)


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Raises UsageError or NotOurs, as `check_new` does, if a folder holds what a new run may not replace."""
    if not _entries(path):
        return
    if not state_of(path):
        what = "not of this library" if (path / STATE).is_file() else "missing"
        reason = f"{path} exists and is not a run directory ({STATE} is {what}), so it is not overwritten"
        raise UsageError(f"{reason}; give another --run")
    if not overwrite:
        raise UsageError(f"{path} exists; give another --run, --resume {path} to continue, or --overwrite to replace it")
    check_own(*(path / name for name in (CONFIG, MODEL_CONFIG, RECORD)))


@contextmanager
def new_run(path: Path, config: Config, overwrite: bool) -> Iterator[Path]:
    """Makes a run directory and holds its lock while inside; yields the folder to train in.

    That is `path` itself, or its folder `replacement` if a run is overwritten: the earlier model stays intact until
    `finish_replacement`.

    Raises as `check_new` does.
    """
    check_new(path, overwrite)
    if not is_main_process():
        yield path
    elif path.exists():
        with writing(path):
            _check_replaceable(path, overwrite)  # what is there now
            finish_replacement(path)  # if it was killed in the middle of that
            yield create_run(path, config)
    else:
        create_run(path, config)
        with writing(path):
            yield path


@rank_zero_only
def write_config(path: Path, config: Config) -> None:
    """Writes the configuration of a run directory, in the main process."""
    with atomic_write(path / CONFIG) as part:
        part.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def create_run(path: Path, config: Config) -> Path:
    """Makes a run directory with its configuration at `path`, or in its folder `replacement` if files are there.

    Returns that folder. A kill never leaves half of one.
    """
    if _entries(path):
        path = path / REPLACEMENT
        if os.path.lexists(path):  # of an earlier training that was to replace it
            if not (path.is_dir() and only_own_in(path)):
                raise UsageError(f"{path} holds files that this library did not write, so it is not replaced; move it away")
            remove_folder(path)
    make_folder(path.parent)
    remove_leftovers(path.parent.glob(f".{glob.escape(path.name)}.*.part"))
    part = part_of(path)
    part.mkdir()
    try:
        write_config(part, config)
        set_state(part, "started")
        if path.exists():  # empty but for the lock
            for name in (CONFIG, STATE):
                os.replace(part / name, path / name)
        else:
            part.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise UsageError(f"{path} exists: another process has just made it; give another --run") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def in_training(path: Path) -> Path:
    """The folder of the current training of a run directory: its replacement, if it has one."""
    return path / REPLACEMENT if (path / REPLACEMENT / STATE).is_file() else path


def finish_replacement(path: Path) -> None:
    """Puts a finished replacement into its run directory; removes the earlier run's files, but none of the user's.

    It may be repeated after a kill at any moment.
    """
    new = path / REPLACEMENT
    if new.is_dir() and not (new / STATE).exists() and only_own_in(new):  # killed while it was removed
        remove_folder(new)
    if state_of(new).get("state") != "finished":
        return
    files = sorted(file for file in _own_files(new) if (new / file).is_file())
    for file in files:
        if any((path / part).is_symlink() or (new / part).is_symlink() for part in (file, *file.parents[:-1])):
            raise ValueError(f"{path / file} leads through a link, and nothing is written through links")
    files.sort(key=lambda file: (str(file) == STATE) - (str(file) == WEIGHTS))  # the weights first, the state last
    if Path(WEIGHTS) in files:  # none has been moved yet
        for file in _own_files(path) - set(files):
            (path / file).unlink()
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / file, path / file)
    if only_own_in(new):
        remove_folder(new)
    for folder in ("figures/validation", "figures", "metrics", "tensorboard"):
        with suppress(OSError):  # not there, or not empty
            (path / folder).rmdir()


def _own_files(folder: Path) -> set[Path]:
    """The files of this library in a run directory, relative to it; a file that only has such a name is the user's."""
    found = [file for pattern in OWN for file in folder.glob(pattern) if not looks_foreign(file)]
    found += [file for pattern in STUDY_TRACES for file in folder.glob(pattern) if is_study_trace(file)]
    return {file.relative_to(folder) for file in found}


def _entries(path: Path) -> list[Path]:
    """What is in a folder besides a lock; nothing if there is none."""
    return [entry for entry in path.iterdir() if entry.name != LOCK] if path.exists() else []


@rank_zero_only
def set_state(path: Path, state: str, changed: Config | None = None, training: dict[str, Any] | None = None) -> None:
    """Records the run's state (`started`, `interrupted`, `failed`, `finished`), date and machine, in the main process.

    `changed` is added to the list of options that were changed when the run was resumed. `training` holds the seconds, images
    a second and validation accuracies of a training that was never interrupted.
    """
    changes = [*state_of(path).get("changed", []), *([changed] if changed else [])]
    entry = (
        {
            "format": FORMAT,
            "anytime": __version__,
            "torch": torch.__version__,
            "state": state,
            "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        | ({"changed": changes} if changes else {})
        | ({"training": training} if training else {})
    )
    with atomic_write(path / STATE) as part:
        part.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")


def names_of_run(path: Path, trust: bool = False, typed: Collection[str] = ()) -> AbstractContextManager[None]:
    """Inside, names come from the configuration of a run directory; see `names_from` for `trust` and `typed`.

    A run that was trained here and has not changed is remembered.
    """
    file = path / CONFIG
    remembered = file.is_file() and is_remembered(file, read_limited(file, CONFIG_BYTES).decode(errors="replace"))
    return names_from(file, trust, typed, remembered=remembered)


def read_run(path: Path) -> tuple[Config, dict[str, Any]]:
    """Resolved configuration and state of a run directory.

    Unless a source of names is declared (see `names_of_run`), import paths need the consent that is remembered.

    Raises:
        UntrustedName: It names an import path, and nobody has consented to it.
        UsageError: There is no such directory.
        FileNotFoundError: It is incomplete.
        ValueError: A file is damaged, or from another version.
    """
    if not path.is_dir():
        raise UsageError(f"there is no run directory {path}")
    check_folder(path)
    for name in (STATE, CONFIG):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} is not a complete run directory: {name} is missing")
    state = parse_json(read_limited(path / STATE, STATE_BYTES), path / STATE)
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version of anytime ({__version__}) reads format {FORMAT}")
    if not isinstance(state.get("state"), str):
        raise ValueError(f"{path / STATE} is damaged: the state of the run is missing")
    try:
        with nullcontext() if is_declared() else names_of_run(path):
            config = read_recipe(path / CONFIG)
    except UsageError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if missing := [section for section in SECTIONS if section not in config and section != "regime"]:  # added later
        raise ValueError(f"{path / CONFIG} is damaged: {missing[0]} is missing")
    return config, state
