"""Starts or resumes a training in a run directory, as `anytime train` does."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from anytime.saving import remember_model
from anytime.support.allocator import keep_freed_memory
from anytime.support.trust import is_untrusted, remember
from anytime.training.build import TrainingJob, build
from anytime.training.callbacks import Interrupted
from anytime.training.checkpoints import read_checkpoint
from anytime.training.config import SECTIONS, Config, UsageError, flatten, parse
from anytime.training.fit import CHECKPOINT
from anytime.training.foreign import check_foreign
from anytime.training.module import NonFiniteLoss
from anytime.training.rundir import (
    CONFIG,
    check_new,
    finish_replacement,
    in_training,
    is_main_process,
    names_of_run,
    new_run,
    read_run,
    set_state,
    write_config,
    writing,
)

CHANGEABLE = ("optimizer.lr", "gradient_clip", "progress")  # options that a resumed run may be given


class Stopped(RuntimeError):
    """Training ended early; the message gives the reason in one sentence, `exit_code` is that of the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def default_run(config: Config) -> Path:
    """`runs/MODEL_DATA`, e.g. `runs/anytimenet_CIFAR10`."""
    return Path("runs") / "_".join(config[key]["class_path"].rpartition(".")[2] for key in ("model", "data"))


def start_training(config: Config, run: Path | None = None, overwrite: bool = False) -> Path:
    """Trains from a resolved configuration into a new run directory; returns it.

    Errors in the configuration and the data are raised before the directory is touched. With `overwrite`, an earlier run
    there is replaced only when the training has finished.
    """
    _set_up_process()
    run = run or default_run(config)
    check_new(run, overwrite)
    job = build(config)
    with new_run(run, job.config, overwrite) as folder:
        if is_main_process():
            remember(folder / CONFIG, (folder / CONFIG).read_text(encoding="utf-8"))
        return _train(run, folder, job, resume=False)


def resume_training(run: Path, trust: bool = False, flags: Sequence[str] = ()) -> Path:
    """Resumes a run from its last checkpoint, or from the beginning if it has none yet.

    Args:
        run: The run directory.
        trust: Whether to import the custom classes that its configuration names. A run that was started here and has not
            changed needs no such consent.
        flags: Options among `CHANGEABLE` to continue with, as `anytime train` takes them; `run.json` records them.
    """
    _set_up_process()
    if other := {flag.partition("=")[0] for flag in flags if flag.startswith("--")} - {f"--{key}" for key in CHANGEABLE}:
        known = " and ".join((", ".join(f"--{key}" for key in CHANGEABLE[:-1]), f"--{CHANGEABLE[-1]}"))
        raise UsageError(f"--resume {run} can change only {known}; leave out {min(other)}")
    if not run.is_dir():
        raise UsageError(f"there is no run directory {run}")
    with writing(run):
        if is_main_process():
            finish_replacement(run)  # if it was killed in the middle of that
        folder = in_training(run)
        with names_of_run(folder, trust):
            written, state = read_run(folder)
            config = _resumed_config(folder, written, flags)
            if is_untrusted():
                check_foreign(config, folder / CONFIG)
            if state["state"] == "finished":
                raise UsageError(f"{run} is finished; `anytime evaluate {run}` measures it")
            begun = (folder / CHECKPOINT).is_file()
            job = build(config, begun, folder if begun else None)
            if flags:
                _change(folder, config, flags, trust)
            return _train(run, folder, job, resume=begun)


def _resumed_config(folder: Path, written: Config, flags: Sequence[str]) -> Config:
    """The configuration of a run that is resumed, every argument with its type; `flags` are over those of the file.

    Arguments that the file lacks stay out, because a run of an earlier version was trained without them.
    """
    try:
        config = parse([], [folder / CONFIG])
    except UsageError as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error}") from error
    config = parse(flags, [folder / CONFIG]) if flags else config
    known = flatten(written).keys() | {flag.removeprefix("--").partition("=")[0] for flag in flags}
    for section in written.keys() & set(SECTIONS):
        given = config[section]["init_args"]
        config[section]["init_args"] = {name: value for name, value in given.items() if f"{section}.{name}" in known}
    return config


def _change(folder: Path, config: Config, flags: Sequence[str], trust: bool) -> None:
    """Records that a run is resumed with other options."""
    path, given = folder / CHECKPOINT, flatten(config)
    step = read_checkpoint(path)["global_step"] if path.is_file() else 0
    names = [key for key in CHANGEABLE if any(flag.partition("=")[0] == f"--{key}" for flag in flags)]
    set_state(folder, "started", {"step": step} | {key: given[key] for key in names})
    write_config(folder, config)
    if trust and is_main_process():
        remember(folder / CONFIG, (folder / CONFIG).read_text(encoding="utf-8"))


def _train(run: Path, folder: Path, job: TrainingJob, resume: bool) -> Path:
    """Trains into `folder`, which is `run` or its replacement."""
    start = time.monotonic()
    try:
        trainer = job.fit(folder, resume)
    except BaseException as error:
        interrupted = isinstance(error, Interrupted | SystemExit)  # Lightning turns KeyboardInterrupt into SystemExit
        with contextlib.suppress(OSError):  # a full disk must not hide why the training ended
            set_state(folder, "interrupted" if interrupted else "failed")
        if reason := _reason(error, run, folder / CHECKPOINT):
            raise Stopped(reason, 130 if interrupted else 1) from error
        raise
    set_state(folder, "finished", training=None if resume else _measured(job, trainer, time.monotonic() - start))
    if is_main_process():
        finish_replacement(run)
        remember_model(run)
    return run


def _measured(job: TrainingJob, trainer: L.Trainer, seconds: float) -> dict[str, Any]:
    """How long a whole training took, and the validation accuracy of each answer at its end."""
    names = [f"val/accuracy_{t}" for t in range(1, job.model.num_steps + 1)]
    values, epochs = trainer.callback_metrics, job.settings.epochs
    measured = epochs % job.settings.validate_every == 0  # else they are those of an earlier epoch
    return {
        "seconds": round(seconds, 3),
        "images_per_second": round(epochs * len(job.data.split("train")) / seconds, 1),
        "validation_accuracy": [round(float(values[name]), 4) for name in names if measured and name in values],
    }


def claim(run: Path) -> str:
    """What a training that was never interrupted took and reached, as one line; empty for any other."""
    _, state = read_run(run)
    if not (training := state.get("training")):
        return ""
    minutes, seconds = divmod(round(training["seconds"]), 60)
    hardware = state["hardware"].removesuffix(", 1 threads") + ", 1 thread" * state["hardware"].endswith(", 1 threads")
    line = f"trained in {minutes}:{seconds:02} min on {hardware}: {training['images_per_second']:.0f} images/s"
    if accuracy := training["validation_accuracy"]:
        line += f"; validation accuracy {', '.join(f'{100 * value:.1f}' for value in accuracy)} % (one run)"
    return line


def _reason(error: BaseException, run: Path, checkpoint: Path) -> str:
    """Why a training ended, and how to continue; empty for errors that nobody expected."""
    resume = f"anytime train --resume {run}"
    last = f"the last good checkpoint is {checkpoint}" if checkpoint.is_file() else "there is no checkpoint yet"
    match error:
        case Interrupted():
            return f"interrupted; checkpoint saved; resume with: {resume}"
        case SystemExit():
            return f"interrupted immediately; {last}"
        case NonFiniteLoss():
            return f"{error}; {last}; a smaller learning rate may help: {resume} --optimizer.lr RATE"
        case OSError():
            where = f": {error.filename}" if error.filename else ""
            return f"{error.strerror or error}{where}; {last}; resume with: {resume}"
    return ""


def _set_up_process() -> None:
    """Silences Lightning's advice, which does not concern our commands; keeps freed memory if the CPU computes."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    for name in ("lightning.pytorch", "lightning.fabric", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
