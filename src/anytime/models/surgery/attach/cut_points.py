"""Where a network can be cut, what it has cost by then, and which of the places a number of exits takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from anytime.cost import flop_counter
from anytime.models.surgery.attach.graph import Network, preserved, read_network
from anytime.support.names import nearest

Spread = Literal["macs", "latency"]
InputSize = tuple[int, int, int]


@dataclass(frozen=True)
class Cut:
    """A place where one tensor is all that the rest of a network needs.

    Attributes:
        name: The layer (or the outermost container) whose output it is.
        macs: Multiply-adds of one image up to here.
        shape: Of the tensor, without the batch: (C, H, W) or (H, W, C), (tokens, C), (C,).
        channels_last: Whether the shape is (H, W, C).
        seconds: Measured time of one image up to here; None where nothing was measured.
        aliases: All names by which it is known.
    """

    name: str
    macs: int
    shape: tuple[int, ...]
    channels_last: bool = False
    seconds: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[int, ...]:
        """The shape as heads get it: the channels of images in front."""
        return (self.shape[2], *self.shape[:2]) if self.channels_last else self.shape


class Survey(NamedTuple):
    """A network, the places where it can be cut in order, and what the whole costs (`end`, named "output")."""

    network: Network
    cuts: tuple[Cut, ...]
    nodes: tuple[fx.Node, ...]
    end: Cut


def example(backbone: nn.Module, input_size: Sequence[int], batch: int) -> Tensor:
    """Random images `[batch, C, H, W]` in the network's dtype, on its device, the same in every call.

    Raises:
        ValueError: `input_size` is no (channels, height, width).
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size must be (channels, height, width), got {tuple(input_size)}")
    x = torch.rand(batch, *input_size, generator=torch.Generator().manual_seed(0))
    reference = next((p for p in backbone.parameters() if p.is_floating_point()), x)
    return x.to(reference)


def _reads(module: nn.Module) -> tuple[bool, int] | None:
    """Whether a layer expects the channels last, and how many; None if it does not tell."""
    if isinstance(module, nn.Conv2d):
        return False, module.in_channels
    if isinstance(module, _BatchNorm):
        return False, module.num_features
    if isinstance(module, nn.GroupNorm):
        return False, module.num_channels
    if isinstance(module, nn.LayerNorm | nn.Linear):
        width = module.in_features if isinstance(module, nn.Linear) else module.normalized_shape[-1]
        return not type(module).__name__.endswith("2d"), width  # timm's and torchvision's LayerNorm2d norm (C, H, W) over C
    return None


class Layouts:
    """Learns where the channels of a tensor are from the first layer after it that reads so many channels."""

    def __init__(self) -> None:
        self.found: dict[int, bool] = {}
        self.seen: list[Tensor] = []

    def see(self, h: Tensor) -> None:
        """The next tensor whose layout is wanted."""
        self.seen.append(h)

    def _hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        told = _reads(module)
        if told is None:
            return
        last, width = told
        for index in reversed(range(len(self.seen))):
            h = self.seen[index]
            if index in self.found or not isinstance(h, Tensor) or h.ndim != 4:
                break  # earlier ones are settled, or never will be
            if h.shape[3 if last else 1] == width:
                self.found[index] = last

    def of(self, index: int) -> bool:
        """Of a tensor whose reader did not tell: as the one before, if that has the same shape."""
        h = self.seen[index]
        if h.ndim != 4 or index in self.found:
            return h.ndim == 4 and self.found[index]
        return index > 0 and self.seen[index - 1].shape == h.shape and self.of(index - 1)


@contextmanager
def layouts() -> Iterator[Layouts]:
    """Watches the layers that run inside."""
    watch = Layouts()
    handle = register_module_forward_pre_hook(watch._hook)
    try:
        yield watch
    finally:
        handle.remove()


class _Walk(fx.Interpreter):
    """Runs a network node by node and shows what each of the chain's nodes computes."""

    def __init__(self, backbone: nn.Module, network: Network, show: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(backbone, graph=network.graph)
        self.chain, self.show = frozenset(network.chain), show

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.chain:
            self.show(n, value)
        return value


def _untouched(backbone: nn.Module, network: Network, x: Tensor) -> set[fx.Node]:
    """The places of the chain with a floating-point tensor, the batch in front, that nothing later writes into."""
    versions: dict[fx.Node, tuple[Tensor, int]] = {}

    def show(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and 2 <= value.ndim <= 4 and len(value) == len(x):
            versions[node] = (value, value._version)

    _Walk(backbone, network, show).run(x)
    return {node for node, (value, version) in versions.items() if value._version == version}


def _seconds(
    backbone: nn.Module, network: Network, x: Tensor, clock: Callable[[], float], repeats: int
) -> dict[fx.Node, float]:
    """Seconds from the start until each place of the chain, the sum of the parts' medians, after one run that does not count.

    Of parts and not of the whole: a run that is held up once is late at all places that follow.
    """
    rows: list[dict[fx.Node, float]] = []

    def show(node: fx.Node, value: Any) -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        rows[-1][node] = clock()

    for _ in range(repeats + 1):
        rows.append({})
        _Walk(backbone, network, show).run(x)
    parts = [statistics.median(row[node] - row[before] for row in rows[1:]) for before, node in pairwise(network.chain)]
    return dict(zip(network.chain, accumulate(parts, initial=0.0), strict=True))


def survey(
    backbone: nn.Module,
    input_size: Sequence[int],
    measure: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 9,
) -> Survey:
    """Reads a network: where it can be cut, MACs (counted on the executed operators) and, if asked, measured seconds.

    The network runs on examples in both modes; its modes, buffers and the random numbers are afterwards as they were.

    Args:
        backbone: Images `[B, C, H, W]` to logits `[B, K]`.
        input_size: (channels, height, width).
        measure: Whether to measure seconds, one image at a time on the network's device.
        clock: Returns seconds; replaced in tests.
        repeats: Measured runs.

    Raises:
        ValueError: The network cannot be traced, or changes its input in place.
    """
    two, one = example(backbone, input_size, 2), example(backbone, input_size, 1)
    network = read_network(backbone, two)
    macs: dict[fx.Node, int] = {}
    tensors: dict[fx.Node, Any] = {}
    with preserved(backbone), flop_counter() as counter, layouts() as watch:
        good = _untouched(backbone.train(), network, two) & _untouched(backbone.eval(), network, two)
        counter.flop_counts.clear()

        def show(node: fx.Node, value: Any) -> None:
            macs[node], tensors[node] = counter.get_total_flops() // 2, value
            watch.see(value)

        _Walk(backbone, network, show).run(one)
    if network.chain[0] not in good:
        raise ValueError(f"{type(backbone).__name__} changes its input in place; let it work on a copy")
    with preserved(backbone):
        seconds = _seconds(backbone.eval(), network, one, clock, repeats) if measure else {}
    end = network.chain[-1]
    found = [
        (node, Cut(names[-1], macs[node], tuple(tensors[node].shape[1:]), watch.of(i), seconds.get(node), names))
        for i, (node, names) in enumerate(network.names.items(), 1)
        if node in good and 0 < macs[node] < macs[end]
    ]
    nodes, cuts = tuple(node for node, _ in found), tuple(cut for _, cut in found)
    return Survey(network, cuts, nodes, Cut("output", macs[end], tuple(tensors[end].shape[1:]), seconds=seconds.get(end)))


def list_cuts(
    backbone: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    measure: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Cut]:
    """The places where a network can be cut, in order; see `survey`.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> [(cut.name, cut.macs, cut.shape) for cut in list_cuts(layers, (3, 8, 8), measure=False)]
        [('0', 3888, (4, 6, 6)), ('1', 3888, (4, 6, 6)), ('2', 3888, (144,))]
    """
    return list(survey(backbone, input_size, measure, clock).cuts)


def find_cuts(backbone: nn.Module, found: Survey, exits: Sequence[str]) -> list[int]:
    """The positions in `found.cuts` of exits given by name.

    Raises:
        ValueError: A name that is no place to cut (the message names the nearest), one given twice, or out of order.
    """
    known = {name: i for i, cut in enumerate(found.cuts) for name in cut.aliases}
    for name in exits:
        if name not in known:
            raise ValueError(f"the network cannot be cut at {name!r}{_neighbours(backbone, found, name, known)}")
    places = [known[name] for name in exits]
    for (before, first), (after, second) in pairwise(zip(exits, places, strict=True)):
        if first == second:
            raise ValueError(f"exits name the same place twice: {before!r} and {after!r}")
        if first > second:
            raise ValueError(f"exits must be in the order of the network, but {before!r} comes after {after!r}")
    return places


def _neighbours(backbone: nn.Module, found: Survey, name: str, known: dict[str, int]) -> str:
    """The places before and after a layer that is none itself, in the order in which the network runs."""
    if name not in dict(backbone.named_modules()):
        return f": it has no such layer{nearest(name, known)}"
    order = {node: i for i, node in enumerate(found.network.graph.nodes)}
    targets = {i: f"{node.target}." for node, i in order.items() if node.op == "call_module"}
    runs = [i for i, target in targets.items() if target.startswith(f"{name}.") or f"{name}.".startswith(target)]
    if not runs:
        return f": its forward does not call it{nearest(name, known)}"
    places = [(order[node], cut.name) for node, cut in zip(found.nodes, found.cuts, strict=True)]
    before = [f"{cut!r} before it" for i, cut in places if i < runs[0]][-1:]
    after = [f"{cut!r} after it" for i, cut in places if i >= runs[-1]][:1]
    why = "more than its output is needed later, or it is overwritten, or nothing is left to compute"
    return f" ({why}); nearest: {', '.join(before + after)}"


def choose_cuts(found: Survey, exits: int, spread: Spread = "macs", first: float | None = None) -> list[int]:
    """The positions in `found.cuts` of n - 1 exits whose shares of the whole cost are as near as possible to k / n.

    Exit k = 1..n-1 is wanted at the share k / n, or with `first` = f at f + (1 - f) (k - 1) / (n - 1); the n-th answer is the
    network's own. The choice minimises the sum of squared differences. Of places at equal MACs only the last is taken (after
    norm, activation and pooling, but before the tensor is flattened).

    Args:
        found: What `survey` found.
        exits: n, the number of answers, the network's own included.
        spread: Shares of MACs, or of the measured seconds.
        first: Share of the first exit.

    Raises:
        ValueError: n < 1, more exits than places, `first` not between 0 and 1 or without an exit.
    """
    equal = [list(group) for _, group in groupby(range(len(found.cuts)), key=lambda i: found.cuts[i].macs)]
    ends = [max(i for i in group if len(found.cuts[i].shape) == len(found.cuts[group[0]].shape)) for group in equal]
    if not 1 <= exits <= len(ends) + 1:
        raise ValueError(f"exits must lie in 1..{len(ends) + 1} for this network (the last is its own end), got {exits}")
    if first is not None and (not 0 < first < 1 or exits < 2):
        raise ValueError(f"first is the share of the first of 2 or more exits, between 0 and 1; got {first} for {exits}")
    if spread not in ("macs", "latency"):
        raise ValueError(f"spread must be 'macs' or 'latency', got {spread!r}")

    def share(cut: Cut) -> float:
        if spread == "macs":
            return cut.macs / found.end.macs
        if cut.seconds is None or not found.end.seconds:
            raise ValueError("a spread over latency needs measured seconds: survey(..., measure=True)")
        return cut.seconds / found.end.seconds

    shares = [share(found.cuts[i]) for i in ends]
    f = 1 / exits if first is None else first
    wanted = [f + (1 - f) * k / (exits - 1) for k in range(exits - 1)]

    @cache
    def best(k: int, start: int) -> tuple[float, tuple[int, ...]]:
        """Least cost of the exits from k on, with places from `start` on."""
        if k == len(wanted):
            return 0.0, ()
        options = []
        for place in range(start, len(shares) - (len(wanted) - k - 1)):
            rest, places = best(k + 1, place + 1)
            options.append(((shares[place] - wanted[k]) ** 2 + rest, (place, *places)))
        return min(options)

    return [ends[place] for place in best(0, 0)[1]]
