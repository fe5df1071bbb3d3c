"""Arrays of any code as the tensors of a trace, with sentences for what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from anytime.support.text import quoted
from anytime.support.units import is_list

_LARGE = 10**12  # more than any number of seconds, busy cores or images
Array = Any  # a numpy array, a torch tensor, or nested sequences of numbers


class Form(NamedTuple):
    """The outputs of a task: what they are called, their shape, and how many dimensions that may have."""

    name: str
    shape: str
    dimensions: range


OUTPUTS = {
    "classification": Form("logits", "[T, N, K]", range(3, 4)),
    "regression": Form("outputs", "[T, N, K]", range(3, 4)),
    "dense": Form("outputs", "[T, N, K, ...]", range(4, 100)),
}


def described(tensor: Tensor) -> str:
    """`"torch.float32 [3, 4]"`."""
    return f"{tensor.dtype} {list(tensor.shape)}"


def as_tensor(values: Array, name: str) -> Tensor:
    """A copy on the host without a gradient; raises ValueError if it holds no numbers."""
    if isinstance(values, Tensor):
        return torch.empty_like(values, device="cpu", requires_grad=False).copy_(values.detach())
    try:
        return torch.from_numpy(numpy.array(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {type(values).__name__}: {error}") from None


def as_tensors(values: Iterable[Array] | None, name: str) -> list[Tensor] | None:
    """`as_tensor` of each."""
    return None if values is None else [as_tensor(part, name) for part in values]


def check_outputs(outputs: Tensor, task: str, levels: Sequence[int]) -> None:
    """Raises ValueError unless outputs have the form of the task, which must be known, and values that mean something."""
    if task not in OUTPUTS:
        raise ValueError(f"meta['task'] must be one of {', '.join(OUTPUTS)}, got {task!r}")
    form = OUTPUTS[task]
    if outputs.ndim not in form.dimensions or outputs.dtype != torch.float32 or 0 in outputs.shape:
        raise ValueError(f"{form.name} must be float32 {form.shape} and not empty, got {described(outputs)}")
    if task == "classification":
        if not all(bool(step.logsumexp(1).isfinite().all()) for step in outputs):
            raise ValueError("logits contain NaN or infinity: no probabilities can be computed from them")
        return
    if levels:
        raise ValueError(f"label levels belong to classification, but the task is {task!r}")
    if not all(bool(step.isfinite().all()) for step in outputs):
        raise ValueError("outputs contain NaN or infinity")


def as_names(names: Any, classes: int, task: str) -> tuple[str, ...]:
    """The names of K classes; raises ValueError unless there is a list of as many."""
    if not is_list(names):
        raise ValueError(f"class_names must be a list of {classes} names, got {names!r}")
    listed = tuple(names)
    if len(listed) != classes:
        raise ValueError(f"{OUTPUTS[task].name} have {classes} classes but {len(listed)} class_names were given")
    return listed


def check_targets(targets: Any, outputs: Tensor, task: str, where: str = "") -> None:
    """Raises ValueError unless targets belong to the outputs `[T, N, K, ...]` of a task other than classification.

    They have the form of an answer `[N, K, ...]`, without K if that is 1. For maps they may be whole numbers `[N, ...]`
    instead, the class of each pixel.
    """
    shape = outputs.shape[1:]
    allowed = [shape] if shape[1] > 1 else [shape, shape[:1] + shape[2:]]
    pixels = f", or whole numbers {[shape[0], *shape[2:]]}, a class for each pixel" if task == "dense" else ""
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"{where}targets must be a tensor {list(shape)}, like an answer{pixels}, got {type(targets).__name__}"
        )
    if pixels and not targets.is_floating_point() and not targets.is_complex():
        allowed.append(shape[:1] + shape[2:])
    if targets.shape not in allowed:
        raise ValueError(f"{where}targets must be {list(shape)}, like an answer{pixels}, got {described(targets)}")


def as_groups(groups: Any, samples: int) -> list[Any]:
    """The group of each sample as a list; raises ValueError unless there is a number or a name for each."""
    listed = groups.tolist() if hasattr(groups, "tolist") else groups
    if not is_list(listed):
        raise ValueError(f"meta['groups'] must hold a number or a name for each sample, got {groups!r}")
    if len(listed := list(listed)) != samples:
        raise ValueError(f"meta['groups'] must hold one group for each of {samples} samples, got {len(listed)}")
    known = [group.item() if isinstance(group, (Tensor, numpy.generic)) and group.ndim == 0 else group for group in listed]
    strange = next((g for g in known if not isinstance(g, str | int | float) or g != g), None)  # NaN differs from itself
    if strange is not None or None in known:
        raise ValueError(f"meta['groups'] must hold a number or a name for each sample, got {strange!r}")
    return known


def numbered(groups: Sequence[Any]) -> Tensor:
    """Numbers 0, 1, ... of groups, in the order of their numbers or names, int64 `[N]`."""
    order = sorted(set(groups), key=lambda group: (isinstance(group, str), group))
    numbers = {group: number for number, group in enumerate(order)}
    return torch.tensor([numbers[group] for group in groups], dtype=torch.int64)


def by_step(given: Tensor | Sequence[Tensor], name: str, steps: int, rows: int) -> tuple[Tensor, ...]:
    """T tensors `[rows, F_t]` from as many, from `[T, rows, F]`, or from one `[rows, F]` for every step."""
    if isinstance(given, Tensor):
        parts = (given,) * steps if given.ndim == 2 else given.unbind(0) if given.ndim else ()
    else:
        parts = tuple(given)
    if len(parts) != steps or not all(part.ndim == 2 and len(part) == rows for part in parts):
        got = described(given) if isinstance(given, Tensor) else [list(part.shape) for part in parts]
        raise ValueError(f"{name} must be {steps} tensors [{rows}, F_t], one for each step, got {got}")
    return parts


def as_outputs(logits: Array | Sequence[Array]) -> Tensor:
    """Logits float32 `[T, N, K]` from one array or T arrays `[N, K]`; raises ValueError if they cannot be logits."""
    if isinstance(logits, (list, tuple)) and logits and hasattr(logits[0], "dtype"):
        parts = [as_tensor(part, "logits") for part in logits]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(
                f"logits of all steps must have the same shape [N, K], got {[list(part.shape) for part in parts]}"
            )
        values = torch.stack(parts)
    else:
        values = as_tensor(logits, "logits")
    if not values.is_floating_point() or values.ndim != 3:
        raise ValueError(f"logits must be floating-point [T, N, K], got {described(values)}")
    outputs = values.float()
    if outputs.numel() and outputs.shape[2] > 1 and bool((outputs >= 0).all() and ((outputs.sum(2) - 1).abs() < 1e-3).all()):
        raise ValueError("these are probabilities, which sum to 1, not logits; give their logarithms")
    return outputs


def as_labels(labels: Array) -> Tensor:
    """Labels int64 `[N]` or `[N, D]`; raises ValueError if they are no whole numbers."""
    values = as_tensor(labels, "labels")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool or values.ndim not in (1, 2):
        raise ValueError(f"labels must be whole numbers [N], got {described(values)}")
    return values.long()


def as_vector(values: Array, name: str, dtype: torch.dtype) -> Tensor:
    """Costs as int64 or float64; raises ValueError where whole numbers are needed and others were given."""
    numbers = as_tensor(values, name)
    if not dtype.is_floating_point and numbers.is_floating_point() and bool((numbers != numbers.round()).any()):
        raise ValueError(f"{name} must be whole numbers of multiply-adds, got {numbers.tolist()}")
    return numbers.to(dtype)


def known_labels(labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """The labels with -1 for those outside the classes; a warning says how many that are, besides those that are -1.

    Args:
        labels: int64 `[N]` or `[N, D]`.
        sizes: The number of classes of each level.
    """
    if labels.dtype != torch.int64 or labels.ndim not in (1, 2) or labels.reshape(len(labels), -1).shape[1] != len(sizes):
        return labels  # of a wrong form, which the trace says
    outside = (labels < 0) | (labels >= torch.tensor(sizes if labels.ndim == 2 else sizes[0]))
    if strange := int((outside & (labels != -1)).sum()):
        ranges = " and ".join(f"0..{size - 1}" for size in sizes)
        warnings.warn(f"{strange} of {labels.numel()} labels lie outside {ranges} and count as absent", stacklevel=3)
    return labels.masked_fill(outside, -1)


def check_label_form(labels: Tensor, levels: tuple[int, ...], samples: int, where: str = "") -> None:
    """Raises ValueError unless labels are int64 `[N]`, or `[N, D]` for D levels."""
    wanted = (samples,) if len(levels) == 1 and labels.ndim == 1 else (samples, len(levels))
    if labels.dtype != torch.int64 or labels.shape != wanted:
        raise ValueError(f"{where}labels must be torch.int64 {list(wanted)}, got {described(labels)}")


def check_labels(labels: Tensor, levels: tuple[int, ...], samples: int) -> None:
    """Raises ValueError unless labels are int64 `[N]` in -1..K-1, or `[N, D]` with column d in -1..levels[d]-1."""
    check_label_form(labels, levels, samples)
    for column, size in zip(labels.reshape(samples, -1).T, levels, strict=True):
        low, high = int(column.min()), int(column.max())
        if low < -1 or high >= size:
            given = f"got values from {low} to {high}"
            raise ValueError(f"labels must lie in 0..{size - 1} for {size} classes, or be -1 if absent, {given}")


def check_conditions(meta: Mapping[str, Any], steps: int) -> None:
    """Raises ValueError unless what `meta` says of a measurement has the right form, where it says it."""
    for name in ("seconds_low", "seconds_high"):
        if (values := meta.get(name)) is None:
            continue
        numbers = [value for value in values if _is_number(value)] if isinstance(values, list | tuple) else []
        if len(numbers) != steps or len(values) != steps:
            raise ValueError(f"meta[{name!r}] must hold {steps} values, got {quoted(values)}")
    batch = meta.get("seconds_batch", 1)
    if type(batch) is not int or not 1 <= batch < _LARGE:
        raise ValueError(f"meta['seconds_batch'] must be a number of images, got {quoted(batch)}")
    for name in ("hardware", "load", "torch", "date"):
        if not (meta.get(name) is None or isinstance(meta[name], str) or _is_number(meta[name])):
            raise ValueError(f"meta[{name!r}] must be a text or a number, got {quoted(meta[name])}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGE < value < _LARGE
