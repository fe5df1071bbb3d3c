"""The Lightning module: trains any anytime model under any objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from anytime.model import AnytimeModel
from anytime.objectives import Objective
from anytime.training.means import SampleMeans
from anytime.training.regimes.base import Joint, Regime
from anytime.training.schedules import Schedule

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
SHAPES = 64  # graphs per kind of block: shapes, passes, train and eval mode
CHECK_EVERY = 50  # steps between checks of the loss on an accelerator, where each check waits for the device


class NonFiniteLoss(RuntimeError):
    """The loss or a weight became NaN or infinite."""


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weight decay only for weights of two or more dimensions, not for biases and norms of any shape."""
    norms = {id(p) for part in module.modules() if isinstance(part, NORMS) for p in part.parameters(recurse=False)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in norms]
    known = {id(p) for p in decayed}
    return [{"params": decayed}, {"params": [p for p in parameters if id(p) not in known], "weight_decay": 0.0}]


def compile_blocks(model: nn.Module) -> None:
    """Compiles each block in the model's lists of modules by itself, in place.

    Blocks of one kind and shape share a graph, so compile time grows with the number of their shapes, not with depth or the
    number of passes through the network.

    Raises:
        ValueError: The model has no list of modules (`torch.nn.ModuleList`, `torch.nn.Sequential`).
    """

    def find(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if not isinstance(module, nn.ModuleList | nn.Sequential) or isinstance(child, nn.ModuleList | nn.Sequential):
                yield from find(child)
            elif any(True for _ in child.children()):  # a single layer gains nothing
                yield child

    blocks = list(find(model))
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no list of blocks to compile; compile the whole model: compile=True")
    from torch._dynamo import config  # imported here because the compiler takes a second to load

    config.recompile_limit = max(config.recompile_limit, SHAPES)
    for block in blocks:
        block.compile(dynamic=False)


class AnytimeModule(L.LightningModule):
    """Minimises `objective(model(images), target)`, or the regime's loss; logs each step's accuracy on validation images.

    Of a model that is no classifier it logs only the loss.

    Args:
        model: Trained in place.
        objective: Maps logits `[T, B, K]` and labels to a loss.
        optimizer: Called with parameter groups, e.g. `functools.partial(torch.optim.SGD, lr=0.1)`.
        schedule: Factor of the learning rate over the progress of training; applied at every step.
        compile: Runs the model through `torch.compile`; `"blocks"`: see `compile_blocks`.
        channels_last: Keeps images and weights in channels-last memory format.
        regime: What a training step computes; joint training by default.
        bias_lr: Learning rate of biases and norms, as a multiple of that of the other weights.
    """

    def __init__(
        self,
        model: AnytimeModel,
        objective: Objective,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        schedule: Schedule,
        compile: bool | Literal["blocks"] = False,
        channels_last: bool = False,
        regime: Regime | None = None,
        bias_lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.regime = Joint() if regime is None else regime
        self.regime.prepare(model)
        self._optimizer, self._schedule = optimizer, schedule
        self._bias_lr = bias_lr
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            model.to(memory_format=torch.channels_last)
        answers = self.regime.forward(model)
        if compile == "blocks":
            compile_blocks(model)
        self._compiled = [torch.compile(answers) if compile is True else answers]  # in a list: not a second submodule

    def to_memory_format(self, images: Tensor) -> Tensor:
        """The images in the memory format of the training."""
        return images.contiguous(memory_format=self._memory_format)

    def forward(self, images: Any, **how: Any) -> Tensor:
        """The regime's answers, in float32, from images or from whatever its loader yields instead."""
        return self._compiled[0](self.to_memory_format(images) if isinstance(images, Tensor) else images, **how).float()

    def new_optimizer(self) -> tuple[Optimizer, LambdaLR]:
        """The optimizer and its schedule, before the first step."""
        optimizer = self._optimizer(decay_groups(self))
        if self._bias_lr != 1:
            optimizer.param_groups[1]["lr"] *= self._bias_lr
        return optimizer, LambdaLR(optimizer, self._factor)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.new_optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _own_rates(self, optimizer: Optimizer) -> list[float]:
        """The learning rate of each group, as given; the second one holds biases and norms, see `decay_groups`."""
        rate = optimizer.defaults["lr"]
        return [rate * self._bias_lr if index == 1 else rate for index in range(len(optimizer.param_groups))]

    def _factor(self, step: int) -> float:
        """The schedule at a step; at step 0 Lightning has not seen the loader, so the number of steps is still unknown."""
        if not step:
            return self._schedule(0.0)
        assert self.trainer.max_epochs is not None
        start = 0
        for epochs in self.regime.phases(self.trainer.max_epochs):
            steps = self.steps_per_epoch * epochs
            if step < start + steps:
                return self._schedule((step - start) / steps)
            start += steps
        return self._schedule(1.0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one may accumulate fewer batches."""
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        assert self.trainer.max_epochs is not None
        batches = int(self.trainer.num_training_batches)
        self.objective.set_length(self.regime.objective_epochs(self.trainer.max_epochs), batches)
        self._losses = SampleMeans(1, self.device)
        for entry in self.trainer.lr_scheduler_configs:
            self._use_own_rate(cast(LambdaLR, entry.scheduler))

    def _use_own_rate(self, scheduler: LambdaLR) -> None:
        """Replaces the learning rates that a checkpoint has restored by those that the configuration says."""
        own = self._own_rates(scheduler.optimizer)
        now = [rate * self._factor(scheduler.last_epoch) for rate in own]
        for group, rate, first in zip(scheduler.optimizer.param_groups, now, own, strict=True):
            group.update(lr=rate, initial_lr=first)
        scheduler.base_lrs, scheduler._last_lr = [*own], [*now]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.regime.before_step(self)

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        loss = self.regime.loss(self, images, target)
        if self.device.type == "cpu" or self.global_step % CHECK_EVERY == 0:
            self._check(loss)
        self._last_loss = loss.detach()
        self._losses.add(self._last_loss[None], len(target))
        logged = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        self.log("train/loss_step", self._over_processes(self._last_loss, len(target)) if logged else self._last_loss)
        if logged:
            self._log_answers()
        return loss

    def _over_processes(self, mean: Tensor, samples: int) -> Tensor:
        means = SampleMeans(1, self.device)
        means.add(mean[None], samples)
        return means.over_processes(self.trainer.strategy)[0]

    def _log_answers(self) -> None:
        """Logs the sampling probability of each answer (AANN, EXP3, ...), and its weight if it changes (AdaLoss, SDNRamp)."""
        logged = {"probability": self.objective.probabilities, "weight": self.objective.answer_weights}
        for name, values in logged.items():
            if values is not None:
                self.log_dict({f"train/{name}_{t}": value for t, value in enumerate(values.tolist(), 1)})

    def on_train_epoch_end(self) -> None:
        """Runs before checkpoints are written, so none is written after a failure."""
        self._check(self._last_loss)
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteLoss(f"{name} is not finite after step {self.global_step} ({self._epoch})")
        self.log("train/loss_epoch", self._losses.over_processes(self.trainer.strategy)[0])
        self._losses = SampleMeans(1, self.device)

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteLoss(f"the loss is {loss.item()} at step {self.global_step} ({self._epoch})")

    @property
    def _epoch(self) -> str:
        return f"epoch {self.current_epoch + 1} of {self.trainer.max_epochs}"

    def on_validation_epoch_start(self) -> None:
        accuracies = self.model.num_steps if self.model.info.task == "classification" else 0
        self._validated = SampleMeans(1 + accuracies, self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, target = batch
        if not len(target):  # fewer images than processes
            return
        logits = self.model(self.to_memory_format(images)).float()
        loss = self.objective(logits, target)
        if self.model.info.task != "classification":
            self._validated.add(torch.stack([loss]), len(target))
            return
        labels = target[:, 0] if target.ndim == 2 else target  # the first of several label levels
        accuracy = (logits[..., : self.model.levels[0]].argmax(2) == labels).float().mean(1)
        self._validated.add(torch.stack([loss, *accuracy]), len(target))

    def on_validation_epoch_end(self) -> None:
        loss, *accuracy = self._validated.over_processes(self.trainer.strategy)
        values = {"val/loss": loss} | ({"val/accuracy": accuracy[-1]} if accuracy else {})
        self.log_dict(values | {f"val/accuracy_{t}": value for t, value in enumerate(accuracy, 1)})
