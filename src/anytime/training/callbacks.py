"""Callbacks: randomness as a function of the step, checkpoints and a clean end on Ctrl-C or SIGTERM, a progress bar."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from tqdm import tqdm

from anytime.data import hashing

AGREE_EVERY = 10  # steps between asking all processes whether one was interrupted
SAME = 0.05
SIGNALS: dict[signal.Signals, Any] = {  # and what the second one does
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """Restores the handlers of `SIGNALS` on exit, whatever Lightning or a second signal left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """Training was interrupted by the user or by a scheduler; a checkpoint has been written."""


class Reproducible(L.Callback):
    """Reseeds all generators from (seed, rank, epoch, step), so that training can resume at any step.

    The loader's order depends on the epoch; torch's generators, used by dropout and noise, are seeded before every step.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if set_epoch := getattr(trainer.train_dataloader, "set_epoch", None):
            set_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        accumulated = trainer.accumulate_grad_batches
        step = torch.tensor(trainer.global_step * accumulated + batch_idx % accumulated)
        torch.manual_seed(int(hashing.keys(step, self.seed, trainer.global_rank)))


class Checkpoints(Checkpoint):
    """Writes a checkpoint to `path` after every epoch, and on Ctrl-C or SIGTERM, after which it raises `Interrupted`.

    It first finishes the current step, and the validation if that step is the last of its epoch. A second signal stops at
    once, unless it comes within `SAME` seconds: `timeout` signals a process and its group. If there are several processes,
    interrupting one is enough.

    Attributes:
        begun: Whether the training has begun, after everything was restored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted:  # within the sleep below
            return
        self._interrupted = True
        time.sleep(SAME)
        for number, second in SIGNALS.items():
            signal.signal(number, second)

    def _any_interrupted(self, trainer: L.Trainer) -> bool:
        several = trainer.world_size > 1
        return trainer.strategy.reduce_boolean_decision(self._interrupted, all=False) if several else self._interrupted

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._interrupt) for number in SIGNALS}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step and self._any_interrupted(trainer):  # since the last epoch was saved
            raise Interrupted

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # a checkpoint would lose the gradients accumulated so far
        if (trainer.world_size == 1 or trainer.global_step % AGREE_EVERY == 0) and self._any_interrupted(trainer):
            trainer.save_checkpoint(self.path)
            if not trainer.is_last_batch:
                raise Interrupted

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def teardown(self, *_: Any, **__: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    on_exception = teardown


class Progress(L.Callback):
    """One bar for the whole training, with the loss and the latest validation accuracy of the last step."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            every = 0.2 if sys.stderr.isatty() else 30.0  # seconds; a log file needs fewer lines
            total = int(trainer.estimated_stepping_batches)
            self._bar = tqdm(total=total, initial=trainer.global_step, desc="training", unit="step", mininterval=every)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._bar is not None:
            names = {"train/loss_step": "loss", "val/accuracy": "val_accuracy"}
            metrics = trainer.callback_metrics
            shown = {name: f"{metrics[key]:.3f}" for key, name in names.items() if key in metrics}
            self._bar.set_postfix(epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}", **shown, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def teardown(self, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_exception = teardown
