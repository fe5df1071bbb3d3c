"""Where a network can be cut, and what it has cost by then."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from anytime.cost import flop_counter
from anytime.models.surgery.attach.calls import Call
from anytime.models.surgery.attach.conditions import ASKED, preserved, trace_network
from anytime.models.surgery.attach.graph import FlatGraph, Opener, flatten, made_of_numbers, needed_later
from anytime.models.surgery.attach.state import Place, find_places
from anytime.models.surgery.attach.stored import memory_of, stored_tensors
from anytime.support.text import one_line
from anytime.support.trust import weights_follow


@dataclass(frozen=True)
class Cut:
    """A place where a network can be interrupted: a head reads one tensor, the rest of what is needed later is kept.

    Attributes:
        name: The layer (or the outermost container) after which the place is.
        macs: Multiply-adds of one image up to here.
        shape: The shape of the tensor that heads read, without the batch: (C, H, W) or (H, W, C), (tokens, C), (C,).
        channels_last: Whether the shape is (H, W, C).
        seconds: Measured time of one image up to here; None if not measured.
        aliases: All names of this place.
        tensors: How many tensors the network needs later, this one included.
        load: Their elements over those of the tensor that heads read.
    """

    name: str
    macs: int
    shape: tuple[int, ...]
    channels_last: bool = False
    seconds: float | None = None
    aliases: tuple[str, ...] = ()
    tensors: int = 1
    load: float = 1.0

    @property
    def head_shape(self) -> tuple[int, ...]:
        """The shape that heads read: the channels of images come first."""
        return (self.shape[2], *self.shape[:2]) if self.channels_last else self.shape


class Survey(NamedTuple):
    """A network's graph and where it can be cut.

    Attributes:
        flat: The graph.
        cuts: The places in order.
        places: What is alive at each.
        end: The whole network.
        changed: The tensors that later operations write into.
        open: Surveys the network again with further calls opened.
    """

    flat: FlatGraph
    cuts: tuple[Cut, ...]
    places: tuple[Place, ...]
    end: Cut
    changed: frozenset[fx.Node] = frozenset()
    open: Callable[[Collection[Call]], Survey] | None = None


def example_images(backbone: nn.Module, input_size: Sequence[int], batch: int) -> Tensor:
    """The same random images `[batch, C, H, W]` in every call, in the network's dtype and on its device."""
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size must be (channels, height, width), got {tuple(input_size)}")
    x = torch.rand(batch, *input_size, generator=torch.Generator().manual_seed(0))
    return x.to(next((p for p in backbone.parameters() if p.is_floating_point()), x))


def _unlike_images(two: Tensor) -> Tensor:
    """Three images: the first of two, and the other one made dark, as a whole and on one side."""
    first, other = two.split(1)
    side = other.clone()
    side[..., : max(side.shape[3] // 2, 1)] *= 0.2
    return torch.cat((first, 0.3 * other, side))


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
            if index in self._channels_last or h.ndim != 4:
                break  # earlier ones are settled, or never will be
            if h.shape[3 if last else 1] == width:
                self._channels_last[index] = last

    def channels_last(self, index: int) -> bool:
        """Whether `tensors[index]` is [B, H, W, C]; if no layer determined it, as the previous tensor of the same shape."""
        h = self.tensors[index]
        if h.ndim != 4 or index in self._channels_last:
            return h.ndim == 4 and self._channels_last[index]
        return index > 0 and self.tensors[index - 1].shape == h.shape and self.channels_last(index - 1)


class _Interpreter(fx.Interpreter):
    """Gives modules lists that they may change, as a network does."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return _thawed(super().fetch_args_kwargs_from_env(n))


def _thawed(given: Any) -> Any:
    if isinstance(given, list | tuple) and type(given) is not torch.Size and not hasattr(given, "_fields"):
        parts = [_thawed(part) for part in given]
        return parts if isinstance(given, list) else tuple(parts)
    return {key: _thawed(part) for key, part in given.items()} if isinstance(given, dict) else given


def walk(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    """Runs a network operation by operation and yields each with its value."""
    interpreter = _Interpreter(backbone, graph=flat.graph)
    interpreter.args_iter = iter((x,))
    for node in flat.graph.nodes:
        if node.op != "output":
            interpreter.env[node] = interpreter.run_node(node)
            yield node, interpreter.env[node]


def _walk_others(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    """As `walk`; raises ValueError if the graph, which was written with two images, fits only them."""
    problem, end = "", flat.graph.output_node().args[0]
    try:
        for node, value in walk(backbone, flat, x.clone()):
            yield node, value
            if node is end and len(value) != len(x):
                problem = f"it gives {len(value)} rows of logits"
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        problem = one_line(error)
    if problem:
        network = type(backbone).__name__
        raise ValueError(f"the forward of {network} traced with 2 images fails with {len(x)} ({problem}); {ASKED}")


def _values(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> dict[fx.Node, Any]:
    with preserved(backbone):
        return dict(_walk_others(backbone, flat, x))


def _changes(backbone: nn.Module, flat: FlatGraph, x: Tensor) -> dict[fx.Node, int]:
    """For each tensor that later operations write into, the position of the last that does; notes which nodes draw."""
    versions: dict[fx.Node, tuple[Tensor, int]] = {}
    sharing: dict[int, list[fx.Node]] = {}
    changed: dict[fx.Node, int] = {}
    own = {_storage(tensor) for tensor, _ in stored_tensors(backbone).values()}
    buffers: dict[fx.Node, tuple[Tensor, Tensor]] = {}  # those that the forward has read, with their values

    def writes(node: fx.Node, read: Tensor, version: int) -> bool:
        return read._version != version or (bool(node.meta.get("changes")) and _storage(read) in own)

    chance = _chance(x)
    for i, (node, value) in enumerate(walk(backbone, flat, x)):
        if (now := _chance(x)) != chance:
            node.meta["draws"], chance = True, now
        written = [read for read in node.all_input_nodes if read in versions and writes(node, *versions[read])]
        if node.op == "call_module":  # some of whose functions change buffers without a new version
            inside = {id(buffer) for buffer in backbone.get_submodule(str(node.target)).buffers()}
            for read, (buffer, before) in buffers.items():
                if id(buffer) in inside and not torch.equal(buffer, before):
                    before.copy_(buffer)
                    written.append(read)
        for read in written:
            for other in sharing[_storage(versions[read][0])]:
                changed[other] = i
                versions[other] = (versions[other][0], versions[other][0]._version)
        if isinstance(value, Tensor):
            versions[node] = (value, value._version)
            sharing.setdefault(_storage(value), []).append(node)
            if node.op == "get_attr" and not isinstance(value, nn.Parameter):
                buffers[node] = (value, value.clone())
    return changed


def _chance(x: Tensor) -> bytes:
    """The state of torch's random numbers, also of those where the images are: whoever draws one changes it."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]
    return b"".join(state.numpy().tobytes() for state in states)


def _follow(graph: fx.Graph, changed: dict[fx.Node, int]) -> None:
    """What is computed from tensors that the network keeps and changes is computed once, where the network does.

    So is what it draws, and so are tables that it makes and then writes into: the operation that writes gives no result that
    another one reads. What such a table is made of may be the same memory, in another precision or for one image, and counts
    as written with it.
    """
    tables = made_of_numbers(graph)
    for node in reversed(graph.nodes):
        if node.op not in ("call_function", "call_method") or node.meta["number"]:
            continue
        table = node in tables or not node.meta["dependent"]
        if node.meta.get("draws") or (table and node in changed):
            node.meta |= {"dependent": True, "once": True}
        for read in node.all_input_nodes if table and node in changed else ():
            if read.op != "get_attr" and not read.meta["number"] and (read in tables or not read.meta["dependent"]):
                changed[read] = max(changed[node], changed.get(read, -1))
    for node in graph.nodes:
        kept = any(i in changed if i.op == "get_attr" else i.meta.get("once") for i in node.all_input_nodes)
        if node.op != "output" and kept and not node.meta["number"]:
            node.meta |= {"dependent": True, "once": True}


def _storage(tensor: Tensor) -> int:
    place = memory_of(tensor)
    return id(tensor) if place is None else place


def _seconds(
    backbone: nn.Module, flat: FlatGraph, x: Tensor, clock: Callable[[], float], repeats: int
) -> dict[fx.Node, float]:
    """Seconds from the start to each named place: running sums of the parts' medians, after one warm-up run.

    The median is taken of each part rather than of the whole, because a stall makes a run late at all later places.
    """
    rows: list[dict[fx.Node, float]] = []
    timed = [flat.chain[0], *(node for node in flat.names if node.meta["dependent"])]
    wanted = set(timed)
    for _ in range(repeats + 1):
        rows.append({})
        for node, _value in walk(backbone, flat, x):
            if node in wanted:
                if x.is_cuda:
                    torch.cuda.synchronize(x.device)
                rows[-1][node] = clock()
    parts = [statistics.median(row[node] - row[before] for row in rows[1:]) for before, node in pairwise(timed)]
    return dict(zip(timed, accumulate(parts, initial=0.0), strict=True))


def survey(
    backbone: nn.Module,
    input_size: Sequence[int],
    measure: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 9,
) -> Survey:
    """Finds where a network can be cut, with MACs (counted on the executed operators) and, on request, measured seconds.

    The network runs on examples in both modes; afterwards its modes, its buffers and the random states are as they were.

    Args:
        backbone: Images `[B, C, H, W]` to logits `[B, K]`, or to an object with `logits`.
        input_size: (channels, height, width).
        measure: Whether to measure seconds, one image at a time on the network's device.
        clock: Returns seconds; replaced in tests.
        repeats: Measured runs.

    Raises:
        ValueError: The network cannot be traced, or changes its input in place.

    Example:
        >>> from torch import nn
        >>> from anytime.models.surgery.attach.cut_points import survey
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> [(cut.name, cut.macs, cut.shape) for cut in survey(layers, (3, 8, 8)).cuts]
        [('0', 3888, (4, 6, 6)), ('1', 3888, (4, 6, 6)), ('2', 3888, (144,))]
    """
    two = example_images(backbone, input_size, 2)
    root = trace_network(backbone, two)

    def opened(calls: Collection[Call]) -> Survey:
        found = _survey(backbone, flatten(root, calls), two, (clock, repeats) if measure else None)
        return found._replace(open=lambda more: opened({*calls, *more}))

    return opened(Opener().containers(root))


def _survey(backbone: nn.Module, flat: FlatGraph, two: Tensor, timing: tuple[Callable[[], float], int] | None) -> Survey:
    one = two[:1].clone()
    macs: dict[fx.Node, int] = {}
    values: dict[fx.Node, Any] = {}
    indices: dict[fx.Node, int] = {}
    with preserved(backbone):
        backbone.train()
        changed = _changes(backbone, flat, two.clone())
    with preserved(backbone):
        for node, last in _changes(backbone, flat, two.clone()).items():
            changed[node] = max(last, changed.get(node, -1))
    _follow(flat.graph, changed)
    flat = flat._replace(chain=tuple(needed_later(flat.graph)))
    with preserved(backbone), flop_counter() as counter, LayoutWatch() as layouts:
        for node, value in _walk_others(backbone, flat, one):
            macs[node], values[node] = counter.get_total_flops() // 2, value
            if isinstance(value, Tensor) and value.ndim == 4:
                indices[node] = len(layouts.tensors)
                layouts.tensors.append(value)
    proven = weights_follow()  # it was attached before it was saved
    images = two if proven else _unlike_images(two)
    alone = [values, *([values] if proven else (_values(backbone, flat, image) for image in images[1:].split(1)))]
    batch = _values(backbone, flat, images)
    if flat.chain[0] in changed:
        raise ValueError(f"{type(backbone).__name__} changes its input in place; let it work on a copy")
    with preserved(backbone):
        seconds = _seconds(backbone, flat, one, *timing) if timing else {}
    end: Any = flat.graph.output_node().args[0]
    inner = [node for node in flat.names if node.meta["dependent"] and 0 < macs[node] < macs[end]]
    places = find_places(flat.graph, inner, alone, batch, changed, macs, proven)
    cuts = []
    for place in places:
        main, names = place.kept[0], flat.names[place.node]
        windows = main.times > 1 and len(main.shape or ()) == 3
        last = windows or (main.as_it_is and main.node in indices and layouts.channels_last(indices[main.node]))
        at = macs[place.node], main.shape or (), last, seconds.get(place.node)
        cuts.append(Cut(names[-1], *at, names, place.tensors, place.load))
    whole = Cut("output", macs[end], tuple(values[end].shape[1:]), seconds=seconds.get(end))
    return Survey(flat, tuple(cuts), tuple(places), whole, frozenset(changed))
