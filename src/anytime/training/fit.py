"""`fit` trains a model on a data set into a run directory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch.optim import Optimizer

from anytime.data import ImageData
from anytime.data.record import RECORD, ImageRecord, read_record
from anytime.model import AnytimeModel
from anytime.objectives import Objective
from anytime.saving import save_trained
from anytime.support.text import one_line
from anytime.support.trust import is_untrusted, source_name
from anytime.training.callbacks import Checkpoints, Progress, Reproducible, signals_restored
from anytime.training.checkpoints import WholeFiles, first_difference, read_checkpoint
from anytime.training.convolutions import small_maps
from anytime.training.logs import LoggerName, check_logger, loggers
from anytime.training.machine import memory_warning, precision_warning, usable_precision
from anytime.training.means import moving_average
from anytime.training.module import AnytimeModule, decay_groups
from anytime.training.origin import seen_before
from anytime.training.regimes.base import Joint, Regime
from anytime.training.resumed import first_oddity, kept_entries
from anytime.training.schedules import Schedule

CHECKPOINT = "checkpoints/last.ckpt"
_LAUNCHED = (  # environment variables of torchrun, Lightning, Slurm, MPI and LSF
    *("WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "LSB_JOBID"),
)


@dataclass
class Settings:
    """Settings of a training that do not depend on the model or the data.

    Args:
        epochs: Passes over the training images.
        seed: Seed of initial weights, order of images and augmentation.
        deterministic: Uses only deterministic algorithms: the same seed gives bit-identical weights on the same machine.
        precision: Lightning's names, e.g. "32-true" or "bf16-mixed"; on a CPU without bfloat16 instructions "32-true" instead.
        channels_last: Channels-last memory format; faster for convolutions on most devices.
        compile: Runs the model through `torch.compile` (a minute of compilation, then faster steps); "blocks": compiles each
            block by itself, for deep networks and several passes, which take much longer to compile as one graph.
        normalize: Sets the model's mean and standard deviation from the training images; false leaves the identity.
        accelerator: "auto", "cpu", "gpu", ...
        devices: Devices per node; under `torchrun`, the number of processes per node.
        num_nodes: Number of nodes.
        strategy: Lightning's strategy, e.g. "auto" or "ddp".
        gradient_clip: Maximum norm of the gradient; null: not clipped. The default keeps the sums of many losses
            finite (docs/losses.md says what was measured); gradients of one loss are about as long.
        bias_lr: Learning rate of biases and norms, as a multiple of that of the other weights.
        average: Decay d of the moving average of weights and of batch norm's statistics, a <- d_n a + (1 - d_n) w after step
            n + 1, d_n = min(d, (1 + n) / (10 + n)). The average is what is validated and saved; null: the weights themselves.
        accumulate: Batches per optimizer step, whose gradients are averaged; schedules count optimizer steps.
        validate_every: Epochs between validations.
        progress: Shows a progress bar.
        logger: Where metrics go besides metrics/metrics.csv: "tensorboard", "wandb" (Weights & Biases) or "csv" (nowhere);
            "auto": TensorBoard if it is installed.
        weights: Run directory or pretrained model with the same network, to start from its weights; default: random weights.
    """

    epochs: int = 10
    seed: int = 0
    deterministic: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    channels_last: bool = False
    compile: bool | Literal["blocks"] = False
    normalize: bool = True
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    gradient_clip: float | None = 2.0
    bias_lr: float = 1.0
    average: float | None = None
    accumulate: int = 1
    validate_every: int = 1
    progress: bool = True
    logger: LoggerName = "auto"
    weights: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "num_nodes", "validate_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        check_logger(self.logger)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0..{2**32 - 1}, got {self.seed!r}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be above 0, got {self.gradient_clip!r}")
        if not 0 < self.bias_lr < math.inf:
            raise ValueError(f"bias_lr must be above 0 and finite, got {self.bias_lr!r}")
        if self.average is not None and not 0 < self.average < 1:
            raise ValueError(f"average must lie strictly between 0 and 1, got {self.average!r}")


def hardware_arguments(settings: Settings, partial: bool = False) -> dict[str, Any]:
    """The arguments of `L.Trainer` that decide where and how it computes; under `torchrun`, on the processes it has started.

    With `partial` some steps leave parameters without a gradient, for which DDP needs another strategy.

    Raises:
        ValueError: There are fewer cores or GPUs than `devices`; an untrusted file asks for other nodes, which nobody started.
    """
    devices, num_nodes = settings.devices, settings.num_nodes
    if num_nodes > 1 and is_untrusted() and not any(name in os.environ for name in _LAUNCHED):
        raise ValueError(
            f"num_nodes is {num_nodes}, but no other node seems to have been started, and this one would wait for it; "
            f"start it by torchrun, or use --trust if you trust {source_name()}"
        )
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if devices == "auto" and local is not None and world is not None:
        devices, num_nodes = int(local), int(world) // int(local)
    elif str(devices).isdigit():
        gpus = torch.cuda.device_count() if settings.accelerator != "cpu" else 0
        available = gpus or os.cpu_count() or 1  # Lightning would start any number of processes on a CPU
        if int(devices) > available:
            kind = "GPUs" if gpus else "cores"
            raise ValueError(f"devices must be at most {available}, the {kind} of this machine, got {devices!r}")
    strategy = settings.strategy
    if partial and strategy in ("auto", "ddp") and (num_nodes > 1 or devices not in ("auto", 1, "1")):
        strategy = "ddp_find_unused_parameters_true"
    return {
        "accelerator": settings.accelerator,
        "precision": usable_precision(settings.precision, settings.accelerator),
        "deterministic": settings.deterministic,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
    }


def fit(
    model: AnytimeModel,
    data: ImageData,
    objective: Objective,
    optimizer: Callable[[Iterable[Any]], Optimizer],
    schedule: Schedule,
    settings: Settings,
    run: str | os.PathLike[str],
    *,
    resume: bool = False,
    callbacks: Iterable[Callback] = (),
    regime: Regime | None = None,
) -> L.Trainer:
    """Trains `model` in place; checkpoints, metrics and the finished model go to the directory `run`.

    A checkpoint is written after every epoch, on Ctrl-C and on SIGTERM. It holds only plain tensors and numbers. With `resume`
    training resumes from it; order of images and augmentation are functions of seed, epoch and image, so with
    `settings.deterministic` the weights are bit-identical to those of an uninterrupted training.

    Args:
        model, objective, optimizer, schedule, regime: As for `AnytimeModule`; the model is in eval mode afterwards.
        data: Training and validation images.
        settings: How to train.
        run: The run directory.
        resume: Resume from its checkpoint.
        callbacks: Further Lightning callbacks.

    Raises:
        NonFiniteLoss: The loss became NaN or infinite; the last checkpoint was written before that.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
        FileNotFoundError, ValueError: `resume` is set, but the checkpoint is missing, damaged or incomplete.
        ValueError: The regime cannot train this model, or it could not be saved afterwards.
        OSError: The disk is full; the previous checkpoint is intact.
    """
    model.check_saveable()
    run = Path(run)
    checkpoint = run / CHECKPOINT
    checkpoints = Checkpoints(checkpoint)
    saved: dict[str, Any] = read_checkpoint(checkpoint) if resume else {"global_step": 0}
    record = _resumed_record(data, run) if resume else _record_after_others(data, model, settings)
    regime = Joint() if regime is None else regime
    regime.check(model, settings.epochs)
    regime.check_objective(objective)
    how = (settings.compile, settings.channels_last, regime, settings.bias_lr)
    module = AnytimeModule(model, objective, optimizer, schedule, *how)
    for part in ("state_dict", *(["current_model_state"] if settings.average else [])) if resume else ():
        if difference := first_difference(saved.get(part, {}), module.state_dict()):
            raise ValueError(f"{checkpoint} does not fit the configuration: {difference}")
    if resume:
        entries = kept_entries(optimizer, decay_groups(module))
        if odd := first_oddity(saved, *module.new_optimizer(), entries):
            raise ValueError(f"{checkpoint} does not fit the configuration: {odd}")
    used = usable_precision(settings.precision, settings.accelerator)
    for sentence in (
        precision_warning(settings.precision, settings.accelerator),
        memory_warning(module, data, used, settings.accelerator),
    ):
        if sentence is not None:
            warnings.warn(sentence, stacklevel=2)
    more = [WeightAveraging(avg_fn=moving_average(settings.average))] if settings.average else []
    shown = [Progress()] if settings.progress else []
    trainer = L.Trainer(
        **hardware_arguments(settings, regime.partial),
        default_root_dir=run,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.gradient_clip,
        accumulate_grad_batches=settings.accumulate,
        use_distributed_sampler=False,
        check_val_every_n_epoch=settings.validate_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        logger=loggers(run, saved["global_step"], settings.logger),
        log_every_n_steps=10,
        limit_val_batches=1.0 if data.val_dataloader() else 0,
        plugins=[WholeFiles()],
        callbacks=[Reproducible(settings.seed), *more, checkpoints, *shown, *callbacks],
    )
    if trainer.is_global_zero and (record is not None or not resume):
        (record or data.make_record()).save(run / RECORD)
    try:
        with warnings.catch_warnings(), signals_restored(), small_maps(model):
            warnings.filterwarnings("ignore", r"Found .* module\(s\) in eval mode")  # a frozen trunk
            trainer.fit(module, datamodule=regime.data(module, data), ckpt_path=str(checkpoint) if resume else None)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        if not resume or checkpoints.begun:
            raise
        raise ValueError(f"checkpoint {checkpoint} is incomplete, so training cannot be resumed from it: {error!r}") from error
    except (ValueError, RuntimeError) as error:  # of Lightning and torch, which name no file
        if not resume or checkpoints.begun or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"training cannot be resumed from checkpoint {checkpoint}: {one_line(error)}") from error
    finally:
        regime.release(model)
    model.eval()
    if trainer.is_global_zero:
        save_trained(model, run)
    return trainer


def _resumed_record(data: ImageData, run: Path) -> ImageRecord | None:
    """The record of a run that is resumed, with the files that have changed since; `data` follows it. None: an old run."""
    if data.record is None and (recorded := read_record(run)) is not None:
        data.use_record(recorded)
    if (before := data.record) is None:
        return None
    if (record := before.renewed(data.split("train"))) is not before:
        data.use_record(record)
    return record


def _record_after_others(data: ImageData, model: AnytimeModel, settings: Settings) -> ImageRecord | None:
    """The record of a training from weights of runs that saw images; `data` follows it. None if it starts from no such run."""
    if not (earlier := seen_before(settings.weights, model.info.recipe, data)):
        return None
    data.use_record(record := data.make_record().following(*earlier))
    return record
