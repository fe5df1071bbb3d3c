"""States of requests that were computed in different batches, brought together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anytime.model import State, select_samples


class Seat(NamedTuple):
    """Where the state of a request lies: the state of a batch, and its position there."""

    state: State
    position: int


def gather(places: Sequence[Seat]) -> State:
    """The state of a batch of requests that have come to the same step, in their order.

    Raises:
        ValueError: The states have different forms or numbers, so they are not of the same step.
    """
    groups: list[tuple[State, list[int]]] = []
    for place in places:
        if groups and groups[-1][0] is place.state:
            groups[-1][1].append(place.position)
        else:
            groups.append((place.state, [place.position]))
    parts = [_selected(state, indices) for state, indices in groups]
    if len(parts) == 1:
        return parts[0]
    flat, forms = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    if any(form != forms[0] for form in forms):
        raise ValueError("states of different steps cannot be gathered in one batch")
    return pytree.tree_unflatten([_together(leaves) for leaves in zip(*flat, strict=True)], forms[0])


def _selected(state: State, indices: list[int]) -> State:
    sizes = {len(leaf) for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)}
    if sizes == {len(indices)} and indices == [*range(len(indices))]:
        return state
    device = next((leaf.device for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)), None)
    return select_samples(state, torch.tensor(indices, device=device))


def _together(leaves: Sequence[Any]) -> Any:
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return torch.cat(list(leaves))
    if any(isinstance(leaf, Tensor) or leaf != leaves[0] for leaf in leaves):
        raise ValueError("states of different steps cannot be gathered in one batch")
    return leaves[0]
