"""Running statistics for each time step in the batch norms of an ordinary network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from anytime.models.common.batch_norm import RUNNING
from anytime.models.common.delay_kernels import Kernel, Smoothing
from anytime.models.common.step_norm import Statistics, StepBatchNorm2d
from anytime.models.surgery.delays.plan import DelayPlan


def use_step_norms(network: nn.Module, statistics: Statistics | None, kernel: Kernel) -> list[StepBatchNorm2d]:
    """Replaces each `nn.BatchNorm2d` of a network by a `StepBatchNorm2d` with its weights and statistics, at first in one row.

    Args:
        network: Its other modules stay, as do subclasses and norms without weights, running statistics or momentum.
        statistics: `"shared"` replaces nothing; None means per step, but shared under smoothing.
        kernel: The kernel of the delays.

    Raises:
        ValueError: `statistics` is unknown, or `"per_step"` and there are no such norms.
    """
    if statistics not in (None, "per_step", "shared"):
        raise ValueError(f"statistics must be 'per_step' or 'shared', got {statistics!r}")
    if statistics == "shared" or (statistics is None and isinstance(kernel, Smoothing)):
        return []
    replaced: dict[nn.Module, StepBatchNorm2d] = {}
    for parent in list(network.modules()):
        for name, norm in parent._modules.items():
            if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None:
                replaced[norm] = replaced.get(norm) or _step_norm(norm)
                setattr(parent, name, replaced[norm])
    if statistics and not replaced:
        raise ValueError(
            "statistics='per_step' needs torch.nn.BatchNorm2d with weights, running statistics and momentum, but "
            f"{type(network).__name__} has none: use 'shared'"
        )
    return list(replaced.values())


def _step_norm(norm: nn.BatchNorm2d) -> StepBatchNorm2d:
    new = StepBatchNorm2d(norm.num_features, 1, norm.eps, norm.momentum)
    new.weight, new.bias = norm.weight, norm.bias
    for name in RUNNING:
        setattr(new, name, getattr(norm, name).detach()[None].clone())
    new.num_batches_tracked = new.num_batches_tracked.to(new.running_mean.device)
    new.register_load_state_dict_pre_hook(_replicate)
    return new.train(norm.training)


def set_rows(norms: Iterable[StepBatchNorm2d], plans: Iterable[DelayPlan], stop: int, root: nn.Module) -> None:
    """Gives each norm one row for each distinct time of its input before the answer at `stop`, all copies of its first row."""
    rows = dict.fromkeys(norms, 1)
    for plan in plans:
        for i in plan.order:
            op = plan.ops[i]
            module = root.get_submodule(op.target) if op.kind == "call_module" else None
            if module in rows:
                rows[module] = max(rows[module], plan.times(i, 0, stop).stop)
    for norm, count in rows.items():
        norm.repeat_first_row(count)


def _replicate(norm: StepBatchNorm2d, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Makes an ordinary batch norm's state dict fit: every row starts as its statistics."""
    state.pop(f"{prefix}num_batches_tracked", None)
    for name in RUNNING:
        given = state.get(prefix + name)
        if given is not None and given.ndim == 1:
            state[prefix + name] = given.repeat(norm.rows, 1)
