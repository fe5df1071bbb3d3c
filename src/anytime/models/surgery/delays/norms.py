"""Running statistics of their own for each time step, in the batch norms of an ordinary network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from anytime.models.common.delay_kernels import Kernel, Smoothing
from anytime.models.common.step_norm import RUNNING, Statistics, StepBatchNorm2d
from anytime.models.surgery.delays.plan import Plan


def with_rows(network: nn.Module, statistics: Statistics | None, kernel: Kernel) -> list[StepBatchNorm2d]:
    """Replaces each `nn.BatchNorm2d` of a network by a `StepBatchNorm2d` with its weights and statistics, so far in one row.

    Args:
        network: Of other modules and subclasses none is replaced, nor norms without weights, running statistics or momentum.
        statistics: `"shared"`: none is; None: as it is without smoothing.
        kernel: Of the delays.

    Raises:
        ValueError: Unknown statistics, or `"per_step"` without such norms.
    """
    if statistics not in (None, "per_step", "shared"):
        raise ValueError(f"statistics must be 'per_step' or 'shared', got {statistics!r}")
    if statistics == "shared" or (statistics is None and isinstance(kernel, Smoothing)):
        return []
    found: dict[nn.Module, StepBatchNorm2d] = {}
    for parent in list(network.modules()):
        for name, norm in parent._modules.items():
            if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None:
                found[norm] = found.get(norm) or _like(norm)
                setattr(parent, name, found[norm])
    if statistics and not found:
        raise ValueError(
            "statistics='per_step' needs torch.nn.BatchNorm2d with weights, running statistics and momentum, but "
            f"{type(network).__name__} has none: use 'shared'"
        )
    return list(found.values())


def _like(norm: nn.BatchNorm2d) -> StepBatchNorm2d:
    new = StepBatchNorm2d(norm.num_features, 1, norm.eps, norm.momentum)  # type: ignore[arg-type]
    new.weight, new.bias = norm.weight, norm.bias
    for name in RUNNING:
        setattr(new, name, getattr(norm, name).detach()[None].clone())
    new.register_load_state_dict_pre_hook(_replicate)
    return new.train(norm.training)


def set_rows(norms: Iterable[StepBatchNorm2d], plans: Iterable[Plan], stop: int, root: nn.Module) -> None:
    """Gives each norm as many rows as its input has distinct times before the answer at `stop`, all as its first."""
    rows = dict.fromkeys(norms, 1)
    for plan in plans:
        for i in plan.order:
            op = plan.ops[i]
            module = root.get_submodule(op.target) if op.kind == "call_module" else None
            if module in rows:
                rows[module] = max(rows[module], plan.times(i, 0, stop).stop)
    for norm, count in rows.items():
        for name in RUNNING:
            setattr(norm, name, getattr(norm, name)[:1].repeat(count, 1))


def _replicate(norm: StepBatchNorm2d, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Makes the state dict of an ordinary batch norm fit: every row begins with its statistics."""
    state.pop(f"{prefix}num_batches_tracked", None)
    for name in RUNNING:
        given = state.get(prefix + name)
        if given is not None and given.ndim == 1:
            state[prefix + name] = given.repeat(norm.rows, 1)
