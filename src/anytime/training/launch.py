"""What `anytime train` does: a run directory from a configuration, started or resumed."""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anytime.support.allocator import keep_freed_memory
from anytime.training.build import Parts, build
from anytime.training.callbacks import Interrupted
from anytime.training.config import Config, UsageError
from anytime.training.fit import CHECKPOINT
from anytime.training.module import NonFiniteLoss
from anytime.training.rundir import create_run, read_run, set_state


class Stopped(RuntimeError):
    """Training ended early for a reason that is told in one sentence; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def default_run(config: Config) -> Path:
    """`runs/MODEL_DATA`, e.g. `runs/anytimenet_CIFAR10`."""
    return Path("runs") / "_".join(config[key]["class_path"].rpartition(".")[2] for key in ("model", "data"))


def start_training(config: Config, run: Path | None = None, overwrite: bool = False) -> Path:
    """Trains from a resolved configuration into a new run directory; returns it.

    Everything that can be wrong with the configuration or the data is found before the directory is touched.
    """
    _prepare()
    run = run or default_run(config)
    if is_main_process():
        create_run(run, config, overwrite, dry=True)
    parts = build(config)
    if is_main_process():
        create_run(run, parts.config, overwrite)
    return _train(run, parts, resume=False)


def resume_training(run: Path) -> Path:
    """Goes on from the last checkpoint of a run; one that had not got to its first checkpoint starts anew."""
    _prepare()
    config, state = read_run(run)
    if state["state"] == "finished":
        raise UsageError(f"{run} is finished; `anytime evaluate {run}` measures it")
    begun = (run / CHECKPOINT).is_file()
    return _train(run, build(config, filled_later=begun), resume=begun)


def is_main_process() -> bool:
    """Whether this is the process, of those that train together, that writes and prints."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def _train(run: Path, parts: Parts, resume: bool) -> Path:
    try:
        parts.fit(run, resume)
    except Interrupted as error:
        _note(run, "interrupted")
        raise Stopped(f"interrupted; a checkpoint is written: anytime train --resume {run}", 130) from error
    except SystemExit as error:  # Lightning's answer to KeyboardInterrupt
        _note(run, "interrupted")
        raise Stopped(f"interrupted at once; {_kept(run)}", 130) from error
    except NonFiniteLoss as error:
        _note(run, "failed")
        raise Stopped(f"{error}; {_kept(run)}; a smaller --optimizer.lr may help", 1) from error
    except OSError as error:
        _note(run, "failed")
        where = f": {error.filename}" if error.filename else ""
        raise Stopped(f"{error.strerror or error}{where}; {_kept(run)}; anytime train --resume {run}", 1) from error
    except BaseException:
        _note(run, "failed")
        raise
    if is_main_process():
        set_state(run, "finished")
    return run


def _kept(run: Path) -> str:
    checkpoint = run / CHECKPOINT
    return f"the last good checkpoint is {checkpoint}" if checkpoint.is_file() else "there is no checkpoint yet"


def _note(run: Path, state: str) -> None:
    if is_main_process():
        with contextlib.suppress(OSError):  # a full disk must not hide why the training ended
            set_state(run, state)


def _prepare() -> None:
    """Silences Lightning's advice, which is not about our users' commands; keeps freed memory where the CPU computes."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    for name in ("lightning.pytorch", "lightning.fabric", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
