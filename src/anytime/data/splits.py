"""Stratified splits of a data set, and classes chosen by name; functions of labels and a seed only."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from anytime.data import hashing
from anytime.data.names import composed


class UnknownClass(ValueError):
    """The data set lacks a requested class."""

    exit_code = 2


def stratified_order(labels: Tensor, seed: int, lots: Tensor | None = None) -> Tensor:
    """Orders samples so that every prefix of the order is stratified.

    Sample number r of the n samples of its class (counted in a random order, or in the order of their lots) is placed at
    (r + 1/2) / n, and classes of equal size are in random order. Among the first m of N samples, each class therefore has its
    share, rounded up or down to within one sample.

    Args:
        labels: int64 `[N]`.
        seed: Seed of the random order.
        lots: One number per sample, `[N]`.

    Returns:
        A permutation, int64 `[N]`.
    """
    shuffled = hashing.permutation(len(labels), seed) if lots is None else torch.argsort(lots, stable=True)
    grouped = shuffled[torch.argsort(labels[shuffled], stable=True)]
    classes, counts = torch.unique_consecutive(labels[grouped], return_counts=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - first.repeat_interleave(counts)
    position = (rank + 0.5) / counts.repeat_interleave(counts)
    tie = hashing.permutation(len(classes), seed).repeat_interleave(counts)
    order = torch.argsort(tie, stable=True)
    return grouped[order[torch.argsort(position[order], stable=True)]]


def hold_out(labels: Tensor, amount: float, seed: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Splits samples in two, stratified by class.

    Args:
        labels: int64 `[N]`.
        amount: How many samples to hold out: a share if below 1, otherwise a number.
        seed: Seed of the split.
        groups: int64 `[N]`; samples of one group (of one class) stay together, so the amount is met as closely as
            whole groups allow.

    Returns:
        The remaining indices and the held-out indices, each in ascending order.

    Raises:
        ValueError: The amount is negative, above 1 but not an integer, or leaves nothing.
    """
    wanted = _wanted(amount, len(labels))
    if groups is not None:
        return _hold_out_groups(labels, wanted, seed, groups)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[stratified_order(labels, seed)[:wanted]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def hold_out_by_lot(
    labels: Tensor, amount: float, seed: int, lots: Tensor, groups: Tensor | None = None, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Splits samples in two by a number in [0, 1) that belongs to each sample.

    A share p holds out the samples whose lot is below p, independently of the other samples; their number is about p N. If
    there are none, the lowest is held out; if they are all of a class, its highest stays. A whole number n, or with `exact`
    the share's number, holds out the n lowest, stratified by class; then adding or removing a sample can move another one.

    Args:
        labels: int64 `[N]`.
        amount: As for `hold_out`.
        seed: Breaks ties between classes.
        lots: float64 `[N]`, the same for all samples of a group.
        groups: int64 `[N]`, see `hold_out`.
        exact: Whether to meet the number exactly, although one sample can then move another.

    Returns:
        The remaining indices and the held-out indices, each in ascending order.
    """
    wanted, exact = _wanted(amount, len(labels)), exact or amount >= 1
    if exact and groups is not None:
        return _hold_out_groups(labels, wanted, seed, groups, lots)
    if exact:
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        held_out[stratified_order(labels, seed, lots)[:wanted]] = True
    else:
        held_out = lots < amount
        if wanted and not held_out.any():
            held_out = lots == lots.min()
        total = torch.bincount(labels)
        emptied = (total > 0) & (torch.bincount(labels[held_out], minlength=len(total)) == total)
        for label in emptied.nonzero().flatten():
            of_class = labels == label
            held_out[of_class & (lots == lots[of_class].max())] = False
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _wanted(amount: float, total: int) -> int:
    """How many of `total` samples an amount means; raises ValueError as `hold_out` does."""
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise ValueError(f"the amount to hold out is a share below 1 or a whole number, got {amount}")
    wanted = min(round(amount * total), total - 1) if amount < 1 else int(amount)
    if wanted >= total:
        raise ValueError(f"cannot hold out {wanted} of {total} images; leave some to train on")
    return wanted


def _hold_out_groups(
    labels: Tensor, wanted: int, seed: int, groups: Tensor, lots: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _, group = torch.unique(groups, return_inverse=True)
    number = int(group.max()) + 1
    label = torch.empty(number, dtype=torch.int64).scatter_(0, group, labels)
    lot = None if lots is None else torch.empty(number, dtype=lots.dtype).scatter_(0, group, lots)
    order = stratified_order(label, seed, lot)
    size = torch.bincount(group, minlength=number)[order]
    chosen = torch.zeros(number, dtype=torch.bool)
    chosen[order[size.cumsum(0) - size / 2 < wanted]] = True
    held_out = chosen[group]
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def choose_classes(names: Sequence[str], wanted: str | Sequence[str | int]) -> list[int]:
    """The classes with the given names, in label order.

    Args:
        names: All class names.
        wanted: A name, a pattern with `*`, `?` or `[...]`, or a list of these. An exact match takes precedence, then
            a match that differs only in case, then the name in brackets (`[cat]`), then patterns, which ignore case.

    Raises:
        UnknownClass: A name or pattern matches no class; the message gives the nearest names.
    """
    names = [composed(name) for name in names]
    folded = [name.casefold() for name in names]
    chosen: set[int] = set()
    patterns = [composed(name) for name in ([wanted] if isinstance(wanted, str) else map(str, wanted))]
    if not patterns:
        raise UnknownClass("classes is an empty list; leave it out to use all classes")
    for pattern in patterns:
        key = pattern.casefold()
        matches = (
            [i for i, name in enumerate(names) if name == pattern]
            or [i for i, name in enumerate(folded) if name == key]
            or [i for i, name in enumerate(names) if pattern == f"[{name}]"]
            or [i for i, name in enumerate(folded) if fnmatchcase(name, key)]
        )
        if not matches:
            near = difflib.get_close_matches(key.strip("*?"), folded, n=3, cutoff=0.5)
            nearest = [names[folded.index(name)] for name in near] or list(names[:3])
            raise UnknownClass(f"no class matches {pattern!r}; nearest of the {len(names)} names: {nearest}")
        chosen.update(matches)
    return sorted(chosen)


def folds(labels: Tensor, k: int, seed: int = 0, groups: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """k splits into training and held-out samples: each sample is held out once, and each class in equal shares.

    Args:
        labels: int64 `[N]`.
        k: Number of folds, 2..N.
        seed: Seed of the random order.
        groups: int64 `[N]`; samples of one group (of one class) stay together.

    Returns:
        For each fold the remaining indices and the held-out indices, each in ascending order.

    Raises:
        ValueError: k is out of range, or the groups are too few or too uneven.
    """
    if not isinstance(k, int) or not 2 <= k <= len(labels):
        raise ValueError(f"the number of folds must lie in 2..{len(labels)}, the number of samples, got {k!r}")
    group = torch.arange(len(labels)) if groups is None else torch.unique(groups, return_inverse=True)[1]
    number = int(group.max()) + 1
    label = torch.empty(number, dtype=torch.int64).scatter_(0, group, labels)
    order = stratified_order(label, seed)
    size = torch.bincount(group, minlength=number)[order]
    middle = size.cumsum(0) - (size + 1) / 2
    fold = torch.empty(number, dtype=torch.int64)
    fold[order] = (middle * k / len(labels)).floor().long()
    of_sample = fold[group]
    if (filled := int(of_sample.unique().numel())) < k:
        raise ValueError(f"{number} groups of these sizes fill only {filled} of {k} folds")
    return [((of_sample != i).nonzero().flatten(), (of_sample == i).nonzero().flatten()) for i in range(k)]
