"""What a checkpoint says of the optimizer and its schedule, compared with what the configuration builds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_RATES = ("lr", "initial_lr")
_FIXED = ("lr_lambdas", "_is_initial", "_get_lr_called_within_step")  # entries of a schedule that no step changes
_HALVES = (torch.bfloat16, torch.float16)  # of a training in another precision
_SQUARES = {  # sums and means of squares, maxima of sizes, and steps, by the optimizers of torch
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf"),
    *("row_var", "col_var", "variance", "step_size"),
}
_STEPS = ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")


def first_oddity(
    saved: Mapping[str, Any], optimizer: Optimizer, schedule: LRScheduler, entries: Mapping[int, Mapping[str, Any]]
) -> str:
    """The first value of a checkpoint that no training with this optimizer saves, as half a sentence; empty if there is none.

    Learning rates may be others, because a resumed training may be given another one: they agree with each other, and the
    training computes its own. All other settings are those of the configuration.

    Args:
        saved: The checkpoint, of unknown origin, see `read_checkpoint`.
        optimizer: A new optimizer.
        schedule: Its new schedule.
        entries: What the optimizer keeps of each parameter, see `kept_entries`.
    """
    for name, value in saved.get("state_dict", {}).items():
        if name.startswith("model.") and isinstance(value, Tensor) and not value.isfinite().all():
            return f"{name} holds NaN or infinity"
    for what in ("optimizer_states", "lr_schedulers"):
        if len(saved[what]) != 1:
            return f"{what} holds {len(saved[what])} entries, not 1"
    state, steps = saved["optimizer_states"][0], saved["global_step"]
    groups, wanted = state["param_groups"], optimizer.state_dict()["param_groups"]
    if odd := _odd_setting(groups, wanted):
        return odd
    rates = [group["initial_lr"] for group in groups]
    return (
        _odd_schedule(saved["lr_schedulers"][0], schedule.state_dict(), rates, steps)
        or _odd_entry(state["state"], entries, steps)
        or _odd_count(saved, steps)
    )


def kept_entries(optimizer: Callable[[Iterable[Any]], Optimizer], groups: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps of each parameter after a step, such as its momentum; empty if that is unknown.

    The step is made on zeros, so nothing is trained.

    Args:
        optimizer: Makes an optimizer of parameter groups.
        groups: Those of the training.
    """
    zeros = [group | {"params": [torch.zeros_like(p).requires_grad_() for p in group["params"]]} for group in groups]
    for parameter in (p for group in zeros for p in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    trial = optimizer(zeros)
    try:
        trial.step(lambda: 0.0)
    except (RuntimeError, TypeError, ValueError):  # it takes only other gradients, such as sparse ones
        return {}
    return trial.state_dict()["state"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _odd_setting(saved: list[Any], wanted: list[dict[str, Any]]) -> str:
    if len(saved) != len(wanted):
        return f"the optimizer has {len(saved)} groups of parameters, here {len(wanted)}"
    for number, (group, own) in enumerate(zip(saved, wanted, strict=True), 1):
        if not isinstance(group, dict):
            return f"group {number} of the optimizer is {group!a:.50}"
        for key in _RATES:
            if not _is_rate(rate := group.get(key)):
                return f"{key} of the optimizer's group {number} is {rate!a:.50}, not a number of at least 0"
        for key in sorted((own.keys() & group.keys()) - {*_RATES}):
            value, other = (list(v) if isinstance(v, tuple) else v for v in (group[key], own[key]))
            if not (value == other if _is_number(value) and _is_number(other) else repr(value) == repr(other)):
                return f"{key} of the optimizer's group {number} is {value!a:.50}, here {other!a:.50}"
    return ""


def _odd_schedule(saved: Mapping[str, Any], wanted: Mapping[str, Any], rates: list[Any], steps: int) -> str:
    for key in ("base_lrs", "_last_lr"):
        values = saved.get(key)
        if not isinstance(values, list) or len(values) != len(rates) or not all(map(_is_rate, values)):
            return f"{key} of the schedule is {values!a:.50}, not {len(rates)} numbers of at least 0"
    if saved["base_lrs"] != rates:
        return f"base_lrs of the schedule is {saved['base_lrs']!a:.50}, but initial_lr of the optimizer {rates!a:.50}"
    for key, value in {"last_epoch": steps, "_step_count": steps + 1}.items():
        if (found := saved.get(key)) != value or type(found) is not int:
            return f"{key} of the schedule is {found!a:.50} after {steps} steps"
    if unknown := saved.keys() - wanted.keys() - {"verbose"}:  # which older versions of torch had
        return f"the schedule has an entry {min(map(str, unknown))!a:.50}"
    for key in _FIXED:
        if key in saved and saved[key] != wanted.get(key):
            return f"{key} of the schedule is {saved[key]!a:.50}, here {wanted.get(key)!a:.50}"
    return ""


def _odd_entry(saved: Mapping[Any, Any], wanted: Mapping[int, Mapping[str, Any]], steps: int) -> str:
    if not wanted:
        return ""
    if not saved and steps and any(wanted.values()):
        return f"the optimizer's state is empty after {steps} steps"
    for index, found in saved.items():
        own = wanted.get(index)
        if own is None or not isinstance(found, dict) or found.keys() != own.keys():
            what = sorted(map(str, found)) if isinstance(found, dict) else found
            return f"the optimizer's state of parameter {index!a:.50} is {what!a:.100}, here {sorted(own or ())}"
        for key, value in own.items():
            if _form(found[key]) != _form(value):
                return f"{key} of the optimizer's state of parameter {index} is {_form(found[key])}, here {_form(value)}"
            if isinstance(value, Tensor) and (odd := _odd_moment(key, found[key], value)):
                return f"{key} of the optimizer's state of parameter {index} {odd}"
        count = found.get("step", 0)
        if isinstance(count, int | float | Tensor) and not 0 <= float(count) <= steps:
            return f"step of the optimizer's state of parameter {index} is {float(count):g} after {steps} steps"
    return ""


def _odd_moment(key: str, found: Tensor, own: Tensor) -> str:
    """What is wrong with the numbers that an optimizer keeps of a parameter, as half a sentence; empty if nothing is."""
    if found.dtype not in (own.dtype, *_HALVES):
        return f"is {found.dtype}, here {own.dtype}"
    if not found.isfinite().all():
        return "holds NaN or infinity"
    if key in _SQUARES and found.numel() and found.min() < 0:
        return f"holds {float(found.min()):g}, but is never negative"
    return ""


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{'numbers' if value.is_floating_point() else str(value.dtype)} of shape {[*value.shape]}"
    return type(value).__name__


def _odd_count(saved: Any, steps: int) -> str:
    for key in _STEPS:
        saved = saved.get(key) if isinstance(saved, dict) else None
    return f"global_step is {steps}, but the loop has made {saved!a:.50} steps" if saved != steps else ""
