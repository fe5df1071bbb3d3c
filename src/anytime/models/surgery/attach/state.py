"""What a network still needs after each of its places, and how that is kept as the state of a sample."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from anytime.models.surgery.attach.graph import made_of_numbers

CLOSE = 1e-3  # how far a sample by itself and in a batch may differ, relative to the largest value (at least 1)


class Kept(NamedTuple):
    """One value that is alive at a cut, as the state holds it.

    Attributes:
        node: The operation that gives it.
        shape: Its shape in the state, without the batch; None for a number.
        dim: Where the batch is in the network's own tensor; None: nowhere, since it is the same for all samples.
        times: How many entries of that dimension belong to each sample; for a number, how often the batch size is in it (0:
            it does not depend on it).
    """

    node: fx.Node
    shape: tuple[int, ...] | None
    dim: int | None = 0
    times: int = 1

    @property
    def as_it_is(self) -> bool:
        """Whether the network's own tensor has one entry for each sample in dimension 0."""
        return self.dim == 0 and self.times == 1

    @property
    def implied(self) -> bool:
        """Whether it is the batch size itself, which is not kept."""
        return self.shape is None and self.times == 1

    @property
    def size(self) -> int:
        """Elements of each sample."""
        return math.prod(self.shape or ())


class Place(NamedTuple):
    """A place to cut: the operation after which it is, and all that is alive there, the tensor that heads read first."""

    node: fx.Node
    kept: tuple[Kept, ...]

    @property
    def tensors(self) -> int:
        """How many tensors the state holds."""
        return sum(kept.shape is not None for kept in self.kept)

    @property
    def load(self) -> float:
        """Elements of the state over those of the tensor that heads read."""
        return sum(kept.size for kept in self.kept if kept.shape is not None) / max(self.kept[0].size, 1)


def is_carried(graph: fx.Graph, changed: Collection[fx.Node]) -> set[fx.Node]:
    """The operations whose results a state may have to hold; all others can be computed again at no cost.

    Computed again are values that do not depend on the images, and tensors that are made of numbers only (tables of
    positions), unless they are among `changed`: later operations write into these.
    """
    again = made_of_numbers(graph).difference(changed)
    return {node for node in graph.nodes if node.op != "output" and node.meta["dependent"] and node not in again}


def last_uses(graph: fx.Graph, carried: set[fx.Node]) -> dict[fx.Node, int]:
    """The position of the last operation that needs each value, also by way of what is computed again."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    last: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        users = (max(order[user], -1 if user in carried else last[user]) for user in node.users if not asks_kind(user))
        last[node] = max(users, default=-1)
    return last


def asks_kind(node: fx.Node) -> bool:
    """Whether an operation only asks a tensor's device or dtype."""
    return node.target is getattr and node.args[1] in ("device", "dtype")


def _kept(node: fx.Node, one: Any, two: Any) -> Kept | None:
    """How a value is kept, from its values for one image and for two, the first of which is the same; None if it cannot be."""
    if not isinstance(one, Tensor):
        plain = isinstance(one, int | float) and isinstance(two, int | float) and not isinstance(one, bool)
        if plain and one == two:
            return Kept(node, None, None, 0)
        return Kept(node, None, None, int(one)) if plain and two == 2 * one else None
    if one.ndim != two.ndim or one.is_sparse:
        return None
    moved = [d for d in range(one.ndim) if one.shape[d] != two.shape[d]]
    if not moved:
        return Kept(node, tuple(one.shape), None) if torch.equal(one, two) else None
    d = moved[0]
    times = one.shape[d]
    if len(moved) > 1 or two.shape[d] != 2 * times or not _close(two.narrow(d, 0, times), one):
        return None
    shape = [size for i, size in enumerate(one.shape) if i != d]
    return Kept(node, tuple(shape) if times == 1 else (times, *shape), d, times)


def _close(actual: Tensor, expected: Tensor) -> bool:
    if not actual.is_floating_point():
        return torch.equal(actual, expected)
    return bool((actual - expected).abs().max() <= CLOSE * expected.abs().max().clamp(min=1)) if actual.numel() else True


def find_places(
    graph: fx.Graph,
    candidates: Sequence[fx.Node],
    one: Mapping[fx.Node, Any],
    two: Mapping[fx.Node, Any],
    changed: Mapping[fx.Node, int],
    macs: Mapping[fx.Node, int],
) -> list[Place]:
    """The candidates after which everything alive can be kept, with the tensor that heads read.

    That is the living tensor (floating point, with 1 to 3 dimensions besides the batch) into which most of the cost so far has
    gone; among equals the one made last.

    Args:
        graph: The network.
        candidates: Operations after which a cut would be.
        one: The values of all operations for one image.
        two: For two images, of which the first is the same.
        changed: For tensors that later operations write into, the position of the last that does.
        macs: Multiply-adds up to each operation.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    carried = is_carried(graph, changed)
    last, costs = last_uses(graph, carried), _costs(graph, macs)
    found: dict[fx.Node, Kept | None] = {}
    places = []
    for place in (node for node in candidates if node in carried):
        at = order[place]
        alive = [node for node in carried if order[node] <= at < last[node]]
        for node in alive:
            if node not in found:
                found[node] = _kept(node, one[node], two[node])
        kept = [found[node] for node in alive]
        if any(k is None or changed.get(k.node, -1) > at for k in kept):
            continue
        sure = [k for k in kept if k is not None]
        readable = [k for k in sure if k.dim is not None and 1 <= len(k.shape or ()) <= 3 and one[k.node].is_floating_point()]
        if not readable:
            continue
        main = max(readable, key=lambda k: (costs[k.node], order[k.node]))
        rest = sorted((k for k in sure if k is not main), key=lambda k: order[k.node])
        places.append(Place(place, (main, *rest)))
    return places


def _costs(graph: fx.Graph, macs: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """Multiply-adds of all operations that each result depends on."""
    own, before, above = [], 0, dict[fx.Node, int]()
    for i, node in enumerate(graph.nodes):
        after = macs.get(node, before)
        own.append(after - before)
        before = after
        above[node] = 1 << i if own[-1] else 0
        for read in node.all_input_nodes:
            above[node] |= above[read]
    return {node: sum(own[i] for i in range(bits.bit_length()) if bits >> i & 1) for node, bits in above.items()}
