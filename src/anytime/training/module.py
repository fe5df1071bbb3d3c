"""The Lightning module: any anytime model under any objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from anytime.model import AnytimeModel
from anytime.objectives import Objective
from anytime.training.schedules import Schedule

CHECK_EVERY = 50  # steps between looks at the loss on an accelerator, where each look waits for the device


class NonFiniteLoss(RuntimeError):
    """The loss or a weight became NaN or infinite."""


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for weights of two or more dimensions only, none for biases and norms."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class AnytimeModule(L.LightningModule):
    """Minimises `objective(model(images), target)`; logs the accuracy of every step on validation images.

    Args:
        model: Trained in place.
        objective: From logits `[T, B, K]` and labels to a loss.
        optimizer: Called with parameter groups, e.g. `functools.partial(torch.optim.SGD, lr=0.1)`.
        schedule: Factor of the learning rate over the progress of training; applied at every step.
        compile: Runs the model through `torch.compile`.
        channels_last: Keeps images and weights in channels-last memory format.
    """

    def __init__(
        self,
        model: AnytimeModel,
        objective: Objective,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        schedule: Schedule,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self._optimizer, self._schedule = optimizer, schedule
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            model.to(memory_format=torch.channels_last)
        self._compiled = [torch.compile(model) if compile else model]  # in a list: not a second submodule

    def forward(self, images: Tensor) -> Tensor:
        return self._compiled[0](images.contiguous(memory_format=self._memory_format)).float()

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(decay_groups(self))
        scheduler = LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        """The schedule at a step. The number of steps is not known at step 0, when Lightning has not seen the loader yet."""
        if not step:
            return self._schedule(0.0)
        assert self.trainer.max_epochs is not None
        return self._schedule(min(step / (self.trainer.num_training_batches * self.trainer.max_epochs), 1.0))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        loss = self.objective(self(images), target)
        if self.device.type == "cpu" or self.global_step % CHECK_EVERY == 0:
            self._check(loss)
        self._last_loss = loss.detach()
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(images))
        return loss

    def on_train_epoch_end(self) -> None:
        """Checkpoints are written after this, so none is written of a training that has failed."""
        self._check(self._last_loss)
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteLoss(f"{name} is not finite after step {self.global_step} ({self._epoch})")

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteLoss(f"the loss is {loss.item()} at step {self.global_step} ({self._epoch})")

    @property
    def _epoch(self) -> str:
        return f"epoch {self.current_epoch + 1} of {self.trainer.max_epochs}"

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, target = batch
        logits = self.model(images.contiguous(memory_format=self._memory_format)).float()
        loss = self.objective(logits, target)
        first = target[:, 0] if target.ndim == 2 else target  # of several label levels
        right = (logits[..., : self.model.levels[0]].argmax(2) == first).float().mean(1)
        values = {"val/loss": loss, "val/accuracy": right[-1]}
        values |= {f"val/accuracy_{t}": value for t, value in enumerate(right, 1)}
        self.log_dict(values, batch_size=len(images), sync_dist=True)
