"""One set of weights under other dynamics: conversion between residual networks, and calibration of their statistics."""

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

    The last answers of both agree if both have settled. The relative takes the arguments of `model`, except for `changes` and
    for `num_steps`, which is the relative's default. Statistics that all time steps shared may be a mixture: a warning then
    says to call `calibrate`.

    Args:
        model: A trained network made by `create_model`.
        name: Name of the relative, e.g. `"serial_resnet18"`; default: the model's own.
        **changes: Arguments that differ, e.g. `kernel="ews"`.

    Raises:
        ValueError: The weights do not fit (separate heads where a shared one is needed, another width, missing statistics),
            or `name` is not a cascaded or serial residual network.
    """
    model.check_saveable()
    name = name or model.config["model"]
    known = inspect.signature(find_factory(name)).parameters
    arguments = {k: v for k, v in model.config["arguments"].items() if k in known and k != "num_steps"}
    relative = create_model(name, **arguments | changes)
    if not isinstance(relative, ResidualNet):
        raise ValueError(f"{name!r} is not a relative of {model.config['model']!r}: only residual networks can be converted")
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
def calibrate(model: AnytimeModel, batches: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]]) -> None:
    """Re-estimates the running statistics under the model's own dynamics: their mean over batches of images.

    A row that several time steps share gets the mean over these as well. With `statistics="shared"`, the default under
    smoothing, this is a compromise between early and settled inputs; the last answer then differs from the settled network's,
    so a warning is issued. Call `convert(model, statistics="per_step")` first to give every step a separate row. The weights
    do not change.

    Args:
        model: The network whose running statistics are replaced.
        batches: Training images `[B, C, H, W]` in [0, 1], or pairs that start with them, as data loaders yield them; a few
            thousand are enough. Give them as training saw them, augmented alike, by
            `data.loader(data.split("train"), train=True)`: crops padded with black have other statistics than whole images.

    Raises:
        ValueError: There are no batches, or the model has no such batch norms.
    """
    norms = [module for module in model.modules() if isinstance(module, StepBatchNorm2d)]
    if not norms:
        raise ValueError(f"calibrate is for networks with StepBatchNorm2d, this {type(model).__name__} has none")
    if isinstance(model, ResidualNet) and model.dynamics.mixed:
        warnings.warn(
            "statistics='shared': a row gets the mean over all steps, so the last answer differs from the settled network's: "
            "call convert(model, statistics='per_step') before calibrate to give each step its own",
            stacklevel=3,
        )
    seen, momenta = False, [norm.momentum for norm in norms]
    with eval_mode(model):
        model.train()
        try:
            for norm in norms:
                norm.momentum = None
                norm.num_batches_tracked.zero_()
            for batch in batches:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
                seen = True
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise ValueError("calibrate needs at least one batch of images, got none")
