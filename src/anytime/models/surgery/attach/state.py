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


def _kept(node: fx.Node, alone: Sequence[Any], batch: Any, proven: bool) -> Kept | None:
    """How a value is kept, from its values for N images by themselves and for the batch of them; None if it cannot be.

    Where several entries belong to each sample, the images must show that they follow each other in the batch. What is kept
    once for all samples must be the same for each. If that is `proven`, only shapes are compared.
    """
    one, count = alone[0], len(alone)
    if not isinstance(one, Tensor):
        plain = all(isinstance(number, int | float) and not isinstance(number, bool) for number in (*alone, batch))
        if not plain or any(number != one for number in alone):
            return None
        if batch == one:
            return Kept(node, None, None, 0)
        return Kept(node, None, None, int(one)) if batch == count * one else None
    if one.is_sparse or any(h.shape != one.shape for h in alone) or one.ndim != batch.ndim:
        return None
    moved = [d for d in range(one.ndim) if one.shape[d] != batch.shape[d]]
    if not moved:
        return Kept(node, tuple(one.shape), None) if proven or all(torch.equal(h, batch) for h in alone) else None
    d = moved[0]
    times = one.shape[d]
    if len(moved) > 1 or batch.shape[d] != count * times:
        return None
    if not (proven or _in_order(batch.movedim(d, 0), [h.movedim(d, 0) for h in alone])):
        return None
    shape = [size for i, size in enumerate(one.shape) if i != d]
    return Kept(node, tuple(shape) if times == 1 else (times, *shape), d, times)


def _in_order(batch: Tensor, alone: Sequence[Tensor]) -> bool:
    """Whether a batch `[N times, ...]` holds the entries `[times, ...]` of one image after those of another, and no other way.

    The batch may also lie within an image's entries, as in `x.repeat(heads, 1)`. It must differ from what that would give by
    more than from the images by themselves.
    """
    expected = torch.stack(tuple(alone))
    actual = batch.reshape(expected.shape)
    error = _distance(actual, expected)
    exact = not expected.is_floating_point()
    if error > (0 if exact else CLOSE * max(_size(expected), 1.0)):
        return False
    noise = 0.0 if exact else 64 * torch.finfo(expected.dtype).eps * _size(expected)
    different = [_distance(h, expected[0]) for h in expected[1:]]
    if error > max(noise, 0.1 * max(different)):
        return False
    times = expected.shape[1]
    for outer in (n for n in range(2, times + 1) if times % n == 0):
        mixed = expected.unflatten(1, (outer, -1)).transpose(0, 1).reshape(expected.shape)
        if _distance(actual, mixed) <= max(noise, 10 * error):
            return False
    return True


def _distance(one: Tensor, other: Tensor) -> float:
    if not one.numel():
        return 0.0
    if not one.is_floating_point():
        return float((one != other).any())
    return float((one - other).abs().max())


def _size(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def find_places(
    graph: fx.Graph,
    candidates: Sequence[fx.Node],
    alone: Sequence[Mapping[fx.Node, Any]],
    batch: Mapping[fx.Node, Any],
    changed: Mapping[fx.Node, int],
    macs: Mapping[fx.Node, int],
    proven: bool = False,
) -> list[Place]:
    """The candidates after which everything alive can be kept, with the tensor that heads read.

    That is the living tensor (in the images' precision, with 1 to 3 dimensions besides the batch) into which most of the cost
    so far has gone; among equals the one made last.

    Args:
        graph: The network.
        candidates: Operations after which a cut would be.
        alone: The values of all operations for each of several images by itself.
        batch: For the batch of them.
        changed: For tensors that later operations write into, the position of the last that does.
        macs: Multiply-adds up to each operation.
        proven: Whether the samples' places in the batch are known to be right, and only shapes are compared.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    carried = is_carried(graph, changed)
    last, costs = last_uses(graph, carried), _costs(graph, macs)
    found: dict[fx.Node, Kept | None] = {}
    precision = batch[next(iter(graph.nodes))].dtype  # of the images, in which heads compute
    places = []
    for place in (node for node in candidates if node in carried):
        at = order[place]
        alive = [node for node in carried if order[node] <= at < last[node]]
        for node in alive:
            if node not in found:
                found[node] = _kept(node, [values[node] for values in alone], batch[node], proven)
        kept = [found[node] for node in alive]
        if any(k is None or changed.get(k.node, -1) > at for k in kept):
            continue
        sure = [k for k in kept if k is not None]
        readable = [k for k in sure if k.dim is not None and 1 <= len(k.shape or ()) <= 3 and batch[k.node].dtype is precision]
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
