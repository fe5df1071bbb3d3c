"""Comparison of tensors and of pytrees that hold them, with errors that say by how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def clone(value: Any) -> Any:
    """A pytree with copies of its tensors."""
    return pytree.tree_map_only(Tensor, Tensor.clone, value)


def same(first: Any, second: Any) -> bool:
    """Whether two pytrees are equal bit by bit."""
    leaves, spec = pytree.tree_flatten(first)
    others, other_spec = pytree.tree_flatten(second)
    return spec == other_spec and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or bool(a == b)
        for a, b in zip(leaves, others, strict=True)
    )


def require(kept: bool, broken: str) -> None:
    """Raises AssertionError with the sentence `broken` unless `kept`."""
    if not kept:
        raise AssertionError(broken)


def require_answers(answers: Any, expected: list[int], maps: bool, what: str) -> None:
    """Raises AssertionError unless answers have the shape `expected`, with further dimensions if they are `maps`."""
    shape = list(answers.shape) if isinstance(answers, Tensor) else f"a {type(answers).__name__}"
    right = shape[: len(expected)] == expected and len(shape) > len(expected) if maps else shape == expected
    form = "T, B, K"[3 * (3 - len(expected)) :] + (", ..." if maps else "")
    wanted = ", ".join(map(str, expected)) + (", ..." if maps else "")
    require(right, f"{what} {shape}, expected [{form}] = [{wanted}].")


def are_probabilities(answers: Tensor, levels: Sequence[int]) -> bool:
    """Whether answers `[T, B, K]` of label levels of these sizes are never negative and sum to 1 in each."""
    parts = answers.split(list(levels), 2)
    return all(bool((part >= 0).all() and (part.sum(2) - 1).abs().max() <= 1e-6) for part in parts)


def require_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    """max |a - e| / max(1, max |e|) <= tolerance; NaN is never close.

    Raises:
        AssertionError: Shapes differ or values differ by more; the message begins with `what`.
    """
    require(actual.shape == expected.shape, f"{what}: shapes {list(actual.shape)} and {list(expected.shape)}.")
    difference = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    require(difference <= tolerance, f"{what} differ by {difference:.1e} (relative), allowed is {tolerance:.0e}.")


def require_batch(state: Any, batch: int, when: str) -> None:
    """Raises AssertionError unless a pytree holds only numbers, None, and tensors with `batch` entries in dimension 0."""
    for path, leaf in pytree.tree_flatten_with_path(state)[0]:
        where = f"state{pytree.keystr(path)} {when}"
        if isinstance(leaf, Tensor):
            require(leaf.shape[:1] == (batch,), f"{where} is {list(leaf.shape)} for a batch of {batch}.")
        else:
            plain = leaf is None or isinstance(leaf, int | float)
            require(plain, f"{where} is a {type(leaf).__name__}, neither a tensor nor a number.")
