"""From one kind of residual network to another: the same weights, other dynamics."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anytime.model import AnytimeModel, create_model, eval_mode
from anytime.models.cascaded.residual import ResidualNet
from anytime.models.common.step_norm import StepBatchNorm2d
from anytime.registry import find_factory


def convert(model: ResidualNet, name: str | None = None, **changes: Any) -> ResidualNet:
    """The trained weights in a relative: other dynamics, kernel, heads or number of steps.

    Its last answer is the same where both settle. The arguments are those of `model` but for `num_steps`, which is the
    relative's default, and for `changes`.

    Args:
        model: A trained network made by `create_model`.
        name: Name of the relative, e.g. `"serial_resnet18"`; default: that of the model.
        **changes: Arguments that differ, e.g. `kernel="ews"`.

    Raises:
        ValueError: The weights do not fit: separate heads where a shared one is wanted, another width, missing statistics;
            `name` is no cascaded or serial residual network.
    """
    model.check_saveable()
    name = name or model.config["model"]
    known = inspect.signature(find_factory(name)).parameters
    arguments = {k: v for k, v in model.config["arguments"].items() if k in known and k != "num_steps"}
    relative = create_model(name, **arguments | changes)
    if not isinstance(relative, ResidualNet):
        raise ValueError(f"{name!r} is no relative of {model.config['model']!r}: weights go between residual networks alone")
    if relative.stem.pools != model.stem.pools:
        has = "pools after its stem" if model.stem.pools else "does not pool after its stem"
        raise ValueError(f"pool={relative.stem.pools} would make another function of these weights: the network {has}")
    like = next(model.parameters())
    relative.to(like.device, like.dtype)
    try:
        relative.load_state_dict(model.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"the weights of this {model.config['model']} do not fit: {reason}") from error
    relative.info = replace(model.info)
    return relative.train(model.training)


@torch.no_grad()
def calibrate(model: AnytimeModel, batches: Iterable[Tensor]) -> None:
    """Estimates the running statistics anew: the mean, over batches of images, of those under the model's own dynamics.

    A row that several time steps share gets the mean over these, too: under a delay with `statistics="shared"`, which is
    smoothing's default, a compromise between early inputs and settled ones, with which the last answer is not the settled
    network's; of this it warns. `convert(model, statistics="per_step")` first gives every step of the model a row of its own.
    The weights stay as they are.

    Args:
        model: Its running statistics are replaced.
        batches: Training images `[B, C, H, W]` in [0, 1], or pairs whose first they are, as data loaders give them; some
            thousand images are enough.

    Raises:
        ValueError: No batches, or a model without such batch norms.
    """
    norms = [module for module in model.modules() if isinstance(module, StepBatchNorm2d)]
    if not norms:
        raise ValueError(f"calibrate is for networks with StepBatchNorm2d, this {type(model).__name__} has none")
    if isinstance(model, ResidualNet) and model.dynamics.mixed:
        warnings.warn(
            "statistics='shared': one row gets the mean over all steps, so that the last answer is not the settled network's; "
            "convert(model, statistics='per_step') before calibrate gives each step its own",
            stacklevel=3,
        )
    seen = False
    with eval_mode(model):
        model.train()
        try:
            for norm in norms:
                norm.updates = [0] * norm.rows
            for batch in batches:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
                seen = True
        finally:
            for norm in norms:
                norm.updates = None
    if not seen:
        raise ValueError("calibrate needs at least one batch of images, got none")
