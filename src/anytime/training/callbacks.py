"""Callbacks: epochs of the loaders, a progress bar, and a clean end on Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import lightning as L
from tqdm import tqdm


class Interrupted(Exception):
    """Training was interrupted by the user; a checkpoint has been written."""


class SetEpoch(L.Callback):
    """Tells the training loader which epoch it is, so that its order is a function of seed and epoch alone."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        if loader is not None and hasattr(loader, "set_epoch"):
            loader.set_epoch(trainer.current_epoch)


class SaveOnInterrupt(L.Callback):
    """On Ctrl-C the current step is finished, a checkpoint is written to `path`, then `Interrupted` is raised.

    A second Ctrl-C stops at once.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked = False
        self._previous: Any = None

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.asked:
            trainer.save_checkpoint(self.path)
            raise Interrupted

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class Progress(L.Callback):
    """One bar for the whole training, with the loss and the newest validation accuracy of the last step."""

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
            shown = {
                name: f"{trainer.callback_metrics[key]:.3f}" for key, name in names.items() if key in trainer.callback_metrics
            }
            self._bar.set_postfix(epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}", **shown, refresh=False)
            self._bar.update()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
