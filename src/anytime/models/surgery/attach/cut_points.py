"""Where a network can be cut, what it has cost by then, and which places a number of exits takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby, pairwise
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from anytime.cost import flop_counter
from anytime.models.surgery.attach.graph import FlatGraph, flatten_network, preserved
from anytime.support.names import nearest
from anytime.support.units import ImageSize, image_size

Spread = Literal["macs", "latency"]


@dataclass(frozen=True)
class Cut:
    """A place where one tensor is all that the rest of a network needs.

    Attributes:
        name: The layer (or the outermost container) whose output the tensor is.
        macs: Multiply-adds of one image up to here.
        shape: The tensor's shape without the batch: (C, H, W) or (H, W, C), (tokens, C), (C,).
        channels_last: Whether the shape is (H, W, C).
        seconds: Measured time of one image up to here; None if not measured.
        aliases: All names of this place.
    """

    name: str
    macs: int
    shape: tuple[int, ...]
    channels_last: bool = False
    seconds: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def head_shape(self) -> tuple[int, ...]:
        """The shape that heads read: the channels of images come first."""
        return (self.shape[2], *self.shape[:2]) if self.channels_last else self.shape


class Survey(NamedTuple):
    """A network's graph, the places where it can be cut in order, their nodes, and the whole network as `end`."""

    flat: FlatGraph
    cuts: tuple[Cut, ...]
    nodes: tuple[fx.Node, ...]
    end: Cut


def example_images(backbone: nn.Module, input_size: ImageSize, batch: int) -> Tensor:
    """The same random images `[batch, C, H, W]` in every call, in the network's dtype and on its device."""
    x = torch.rand(batch, *image_size(input_size), generator=torch.Generator().manual_seed(0))
    return x.to(next((p for p in backbone.parameters() if p.is_floating_point()), x))


def _expected_channels(module: nn.Module) -> tuple[bool, int] | None:
    """Whether a layer reads the channels last, and their number; None if the layer does not determine this."""
    for kind, channels in ((nn.Conv2d, "in_channels"), (_BatchNorm, "num_features"), (nn.GroupNorm, "num_channels")):
        if isinstance(module, kind):
            return False, getattr(module, channels)
    if isinstance(module, nn.LayerNorm | nn.Linear):
        width = module.in_features if isinstance(module, nn.Linear) else module.normalized_shape[-1]
        return not type(module).__name__.endswith("2d"), width  # timm's and torchvision's LayerNorm2d norm (C, H, W) over C
    return None


class LayoutWatch:
    """Infers where the channels of `tensors` are from the first later layer that reads a matching number of channels.

    Watches all layers that run inside the context.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []  # in the order in which they were computed; append those of interest
        self._channels_last: dict[int, bool] = {}

    def __enter__(self) -> Self:
        self._handle = register_module_forward_pre_hook(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        expected = _expected_channels(module)
        if expected is None:
            return
        last, width = expected
        for index in reversed(range(len(self.tensors))):
            h = self.tensors[index]
            if index in self._channels_last or not isinstance(h, Tensor) or h.ndim != 4:
                break  # earlier ones are settled, or never will be
            if h.shape[3 if last else 1] == width:
                self._channels_last[index] = last

    def channels_last(self, index: int) -> bool:
        """Whether `tensors[index]` is [B, H, W, C]; if no layer determined it, as the previous tensor of the same shape."""
        h = self.tensors[index]
        if h.ndim != 4 or index in self._channels_last:
            return h.ndim == 4 and self._channels_last[index]
        return index > 0 and self.tensors[index - 1].shape == h.shape and self.channels_last(index - 1)


def _walk(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    """Runs a network node by node and yields each place of the chain with its value."""
    interpreter, chain = fx.Interpreter(backbone, graph=flat.graph), frozenset(flat.chain)
    interpreter.args_iter = iter((x,))
    for node in flat.graph.nodes:
        interpreter.env[node] = interpreter.run_node(node)
        if node in chain:
            yield node, interpreter.env[node]


def _unmodified(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> set[fx.Node]:
    """The places of the chain with a floating-point tensor `[B, ...]` that no later operation modifies in place."""
    versions: dict[fx.Node, tuple[Tensor, int]] = {}
    for node, value in _walk(backbone, flat, x):
        if isinstance(value, Tensor) and value.is_floating_point() and 2 <= value.ndim <= 4 and len(value) == len(x):
            versions[node] = (value, value._version)
    return {node for node, (value, version) in versions.items() if value._version == version}


def _seconds(
    backbone: nn.Module, flat: FlatGraph, x: Tensor, clock: Callable[[], float], repeats: int
) -> dict[fx.Node, float]:
    """Seconds from the start to each place of the chain: running sums of the parts' medians, after one warm-up run.

    The median is taken of each part rather than of the whole, because a stall makes a run late at all later places.
    """
    rows: list[dict[fx.Node, float]] = []
    for _ in range(repeats + 1):
        rows.append({})
        for node, _value in _walk(backbone, flat, x):
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            rows[-1][node] = clock()
    parts = [statistics.median(row[node] - row[before] for row in rows[1:]) for before, node in pairwise(flat.chain)]
    return dict(zip(flat.chain, accumulate(parts, initial=0.0), strict=True))


def survey(
    backbone: nn.Module,
    input_size: ImageSize,
    measure: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 9,
) -> Survey:
    """Finds where a network can be cut, with MACs (counted on the executed operators) and, on request, measured seconds.

    The network runs on examples in both modes; afterwards its modes, its buffers and the random states are as they were.

    Args:
        backbone: Images `[B, C, H, W]` to logits `[B, K]`.
        input_size: (channels, height, width), or the side of square colour images.
        measure: Whether to measure seconds, one image at a time on the network's device.
        clock: Returns seconds; replaced in tests.
        repeats: Measured runs.

    Raises:
        ValueError: The network cannot be traced, or changes its input in place.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> [(cut.name, cut.macs, cut.shape) for cut in survey(layers, (3, 8, 8)).cuts]
        [('0', 3888, (4, 6, 6)), ('1', 3888, (4, 6, 6)), ('2', 3888, (144,))]
    """
    two, one = example_images(backbone, input_size, 2), example_images(backbone, input_size, 1)
    flat = flatten_network(backbone, two)
    macs: dict[fx.Node, int] = {}
    tensors: dict[fx.Node, Any] = {}
    with preserved(backbone), flop_counter() as counter, LayoutWatch() as layouts:
        valid = _unmodified(backbone.train(), flat, two) & _unmodified(backbone.eval(), flat, two)
        counter.flop_counts.clear()
        for node, value in _walk(backbone, flat, one):
            macs[node], tensors[node] = counter.get_total_flops() // 2, value
            layouts.tensors.append(value)
    if flat.chain[0] not in valid:
        raise ValueError(f"{type(backbone).__name__} changes its input in place; let it work on a copy")
    with preserved(backbone):
        seconds = _seconds(backbone, flat, one, clock, repeats) if measure else {}
    end = flat.chain[-1]
    cuts = {
        node: Cut(names[-1], macs[node], tuple(tensors[node].shape[1:]), layouts.channels_last(i), seconds.get(node), names)
        for i, (node, names) in enumerate(flat.names.items(), 1)
        if node in valid and 0 < macs[node] < macs[end]
    }
    whole = Cut("output", macs[end], tuple(tensors[end].shape[1:]), seconds=seconds.get(end))
    return Survey(flat, tuple(cuts.values()), tuple(cuts), whole)


def find_cuts(backbone: nn.Module, surveyed: Survey, exits: Sequence[str]) -> list[int]:
    """The positions in `surveyed.cuts` of exits given by name.

    Raises:
        ValueError: A name that is not a place to cut (the message names the nearest), one given twice, or out of order.
    """
    known = {name: i for i, cut in enumerate(surveyed.cuts) for name in cut.aliases}
    for name in exits:
        if name not in known:
            raise ValueError(f"the network cannot be cut at {name!r}{_neighbours(backbone, surveyed, name, known)}")
    places = [known[name] for name in exits]
    for (before, first), (after, second) in pairwise(zip(exits, places, strict=True)):
        if first == second:
            raise ValueError(f"exits name the same place twice: {before!r} and {after!r}")
        if first > second:
            raise ValueError(f"exits must be in the order of the network, but {before!r} comes after {after!r}")
    return places


def _neighbours(backbone: nn.Module, surveyed: Survey, name: str, known: dict[str, int]) -> str:
    """The end of an error message: the places before and after a layer that is not one, in execution order."""
    if name not in dict(backbone.named_modules()):
        return f": it has no such layer{nearest(name, known)}"
    order = {node: i for i, node in enumerate(surveyed.flat.graph.nodes)}
    targets = {i: f"{node.target}." for node, i in order.items() if node.op == "call_module"}
    runs = [i for i, target in targets.items() if target.startswith(f"{name}.") or f"{name}.".startswith(target)]
    if not runs:
        return f": its forward does not call it{nearest(name, known)}"
    places = [(order[node], cut.name) for node, cut in zip(surveyed.nodes, surveyed.cuts, strict=True)]
    before = [f"{cut!r} before it" for i, cut in places if i < runs[0]][-1:]
    after = [f"{cut!r} after it" for i, cut in places if i >= runs[-1]][:1]
    why = "more than its output is needed later, or it is overwritten, or nothing is left to compute"
    return f" ({why}); nearest: {', '.join(before + after)}"


def choose_cuts(surveyed: Survey, exits: int, spread: Spread = "macs", first: float | None = None) -> list[int]:
    """The positions in `surveyed.cuts` of n - 1 exits whose shares of the whole cost are as near as possible to k / n.

    The target of exit k = 1..n-1 is the share k / n, or with `first` = f the share f + (1 - f) (k - 1) / (n - 1); the n-th
    answer is the network's own. The choice minimises the sum of squared differences. Among places at equal MACs only the
    last is eligible (after norm, activation and pooling, but before the tensor is flattened).

    Args:
        surveyed: The network's survey.
        exits: n, the number of answers including the network's own.
        spread: Shares of MACs, or of the measured seconds.
        first: Share of the first exit.

    Raises:
        ValueError: n < 1, more exits than places, `first` not between 0 and 1 or without an exit.
    """
    cuts, end = surveyed.cuts, surveyed.end
    equal = [list(group) for _, group in groupby(range(len(cuts)), key=lambda i: cuts[i].macs)]
    ends = [max(i for i in group if len(cuts[i].shape) == len(cuts[group[0]].shape)) for group in equal]
    if not 1 <= exits <= len(ends) + 1:
        raise ValueError(f"exits must lie in 1..{len(ends) + 1} for this network (the last is its own end), got {exits}")
    if first is not None and (not 0 < first < 1 or exits < 2):
        raise ValueError(f"first is the share of the first of 2 or more exits, between 0 and 1; got {first} for {exits}")
    if spread not in ("macs", "latency"):
        raise ValueError(f"spread must be 'macs' or 'latency', got {spread!r}")

    def share(cut: Cut) -> float:
        if spread == "macs":
            return cut.macs / end.macs
        if cut.seconds is None or not end.seconds:
            raise ValueError("a spread over latency needs measured seconds: survey(..., measure=True)")
        return cut.seconds / end.seconds

    shares = [share(cuts[i]) for i in ends]
    f = 1 / exits if first is None else first
    targets = [f + (1 - f) * k / (exits - 1) for k in range(exits - 1)]

    @cache
    def best(k: int, start: int) -> tuple[float, tuple[int, ...]]:
        """The least cost of the exits from k on, with places from `start` on, and these places."""
        if k == len(targets):
            return 0.0, ()
        options = []
        for place in range(start, len(shares) - (len(targets) - k - 1)):
            rest, places = best(k + 1, place + 1)
            options.append(((shares[place] - targets[k]) ** 2 + rest, (place, *places)))
        return min(options)

    return [ends[place] for place in best(0, 0)[1]]
