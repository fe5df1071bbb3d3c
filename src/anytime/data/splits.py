"""Stratified splits of a data set, and classes chosen by name; functions of labels and a seed only."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from anytime.data import hashing


class UnknownClass(ValueError):
    """The data set lacks a requested class."""

    exit_code = 2


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Orders samples so that every prefix of the order is stratified.

    Sample number r of the n samples of its class (counted in a random order) is placed at (r + 1/2) / n, and classes
    of equal size are in random order. Among the first m of N samples, each class therefore has its share, rounded up
    or down to within one sample.

    Args:
        labels: int64 `[N]`.
        seed: Seed of the random order.

    Returns:
        A permutation, int64 `[N]`.
    """
    shuffled = hashing.permutation(len(labels), seed)
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
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise ValueError(f"the amount to hold out is a share below 1 or a whole number, got {amount}")
    total = len(labels)
    wanted = min(round(amount * total), total - 1) if amount < 1 else int(amount)
    if wanted >= total:
        raise ValueError(f"cannot hold out {wanted} of {total} images; leave some to train on")
    if groups is None:
        held_out = torch.zeros(total, dtype=torch.bool)
        held_out[stratified_order(labels, seed)[:wanted]] = True
    else:
        _, group = torch.unique(groups, return_inverse=True)
        number = int(group.max()) + 1
        label = torch.empty(number, dtype=torch.int64).scatter_(0, group, labels)
        order = stratified_order(label, seed)
        size = torch.bincount(group, minlength=number)[order]
        chosen = torch.zeros(number, dtype=torch.bool)
        chosen[order[size.cumsum(0) - size / 2 < wanted]] = True
        held_out = chosen[group]
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def choose_classes(names: Sequence[str], wanted: str | Sequence[str | int]) -> list[int]:
    """The classes with the given names, in label order.

    Args:
        names: All class names.
        wanted: A name, a pattern with `*`, `?` or `[...]`, or a list of these; case does not matter.

    Raises:
        UnknownClass: A name or pattern matches no class; the message gives the nearest names.
    """
    folded = [name.casefold() for name in names]
    chosen: set[int] = set()
    patterns = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if not patterns:
        raise UnknownClass("classes is an empty list; leave it out to use all classes")
    for pattern in patterns:
        key = pattern.casefold()
        matches = [i for i, name in enumerate(folded) if name == key or fnmatchcase(name, key)]
        if not matches:
            near = difflib.get_close_matches(key.strip("*?"), folded, n=3, cutoff=0.5)
            nearest = [names[folded.index(name)] for name in near] or list(names[:3])
            raise UnknownClass(f"no class matches {pattern!r}; nearest of the {len(names)} names: {nearest}")
        chosen.update(matches)
    return sorted(chosen)
