"""Stratified parts of a data set, and classes chosen by name; functions of labels and a seed only."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from anytime.data import hashing


class UnknownClass(ValueError):
    """Classes were asked for that the data set does not have."""

    exit_code = 2


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Orders samples so that every beginning of the order is stratified.

    Sample number r of the n of its class (counted in a random order) stands at place (r + 1/2) / n, classes of equal
    size in random order; so of the first m of N samples each class has its share, to the nearest sample or next to it.

    Args:
        labels: int64 `[N]`.
        seed: of the random order.

    Returns:
        A permutation, int64 `[N]`.
    """
    shuffled = hashing.permutation(len(labels), seed)
    grouped = shuffled[torch.argsort(labels[shuffled], stable=True)]
    classes, counts = torch.unique_consecutive(labels[grouped], return_counts=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - first.repeat_interleave(counts)
    place = (rank + 0.5) / counts.repeat_interleave(counts)
    tie = hashing.permutation(len(classes), seed).repeat_interleave(counts)
    order = torch.argsort(tie, stable=True)
    return grouped[order[torch.argsort(place[order], stable=True)]]


def hold_out(labels: Tensor, amount: float, seed: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Splits samples in two, stratified by class.

    Args:
        labels: int64 `[N]`.
        amount: held out: a share of the samples where below 1, otherwise a number of samples.
        seed: of the split.
        groups: int64 `[N]`; samples of one group (of one class) stay together, so the amount is met as nearly as
            whole groups allow.

    Returns:
        Indices that stay and indices held out, each in ascending order.

    Raises:
        ValueError: if the amount is negative, no whole number, or leaves nothing.
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise ValueError(f"images are held out as a share below 1 or a whole number, got {amount}")
    total = len(labels)
    wanted = min(round(amount * total), total - 1) if amount < 1 else int(amount)
    if wanted >= total:
        raise ValueError(f"cannot hold out {wanted} of {total} images; leave some to train on")
    if groups is None:
        held = torch.zeros(total, dtype=torch.bool)
        held[stratified_order(labels, seed)[:wanted]] = True
    else:
        _, group = torch.unique(groups, return_inverse=True)
        number = int(group.max()) + 1
        label = torch.empty(number, dtype=torch.int64).scatter_(0, group, labels)
        order = stratified_order(label, seed)
        size = torch.bincount(group, minlength=number)[order]
        held = torch.zeros(number, dtype=torch.bool)
        held[order[size.cumsum(0) - size / 2 < wanted]] = True
        held = held[group]
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def choose_classes(names: Sequence[str], wanted: str | Sequence[str | int]) -> list[int]:
    """The classes whose names are wanted, in label order.

    Args:
        names: all class names.
        wanted: a name, a pattern with `*`, `?` or `[...]`, or a list of these; case does not matter.

    Raises:
        UnknownClass: if one of them matches no class; the message has the nearest names.
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
