"""Which places a number of exits takes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import groupby, pairwise
from typing import Literal

from torch import nn

from anytime.models.surgery.attach.calls import Call
from anytime.models.surgery.attach.cut_points import Cut, Survey
from anytime.support.names import nearest

Spread = Literal["macs", "latency"]
LOAD = 0.3  # what doubling the state is worth, where a place at the edge of its range costs 1
ROUNDS = 12  # how often a network is surveyed again with more modules opened


def find_cuts(backbone: nn.Module, surveyed: Survey, exits: Sequence[str]) -> tuple[Survey, list[int]]:
    """The positions in a survey's cuts of exits given by name; the survey is another one if modules had to be opened.

    Raises:
        ValueError: A name that is not a place to cut (the message names the nearest), one given twice, or out of order.
    """
    shallow = surveyed
    for _ in range(ROUNDS):
        known = {name: i for i, cut in enumerate(surveyed.cuts) for name in cut.aliases}
        missing = [name for name in exits if name not in known]
        calls = [call for call in surveyed.flat.whole.values() if any(name.startswith(f"{call.path}.") for name in missing)]
        if not calls or surveyed.open is None:
            break
        surveyed = surveyed.open(calls)
    for name in missing:
        raise ValueError(f"the network cannot be cut at {name!r}{_neighbours(backbone, shallow, name, known)}")
    places = [known[name] for name in exits]
    for (before, first), (after, second) in pairwise(zip(exits, places, strict=True)):
        if first == second:
            raise ValueError(f"exits name the same place twice: {before!r} and {after!r}")
        if first > second:
            raise ValueError(f"exits must be in the order of the network, but {before!r} comes after {after!r}")
    return surveyed, places


def _neighbours(backbone: nn.Module, surveyed: Survey, name: str, known: dict[str, int]) -> str:
    """The end of an error message: the places before and after a layer that is not one, in execution order."""
    if name not in dict(backbone.named_modules()):
        return f": it has no such layer{nearest(name, known)}"
    order = {node: i for i, node in enumerate(surveyed.flat.graph.nodes)}
    targets = {i: f"{node.target}." for node, i in order.items() if node.op == "call_module"}
    runs = [i for i, target in targets.items() if target.startswith(f"{name}.") or f"{name}.".startswith(target)]
    if not runs:
        return f": its forward does not call it{nearest(name, known)}"
    places = [(order[place.node], cut.name) for place, cut in zip(surveyed.places, surveyed.cuts, strict=True)]
    before = [f"{cut!r} before it" for i, cut in places if i < runs[0]][-1:]
    after = [f"{cut!r} after it" for i, cut in places if i >= runs[-1]][:1]
    why = (
        "what is needed later cannot be kept for each sample, is overwritten, or is in another precision than the images, or "
    )
    why += "nothing is left to compute"
    return f" ({why}); nearest: {', '.join(before + after)}"


def shares(surveyed: Survey, spread: Spread) -> list[float]:
    """The share of the whole cost at each cut.

    Raises:
        ValueError: An unknown spread, or seconds that were not measured.
    """
    if spread not in ("macs", "latency"):
        raise ValueError(f"spread must be 'macs' or 'latency', got {spread!r}")
    end = surveyed.end

    def share(cut: Cut) -> float:
        if spread == "macs":
            return cut.macs / end.macs
        if cut.seconds is None or not end.seconds:
            raise ValueError("a spread over latency needs measured seconds: survey(..., measure=True)")
        return cut.seconds / end.seconds

    return [share(cut) for cut in surveyed.cuts]


def _targets(exits: int, first: float | None) -> tuple[list[float], float]:
    """The wanted shares, and how far a share may be from its own: half way to the next."""
    if exits < 1:
        raise ValueError(f"exits counts the network's own answer, so it must be at least 1, got {exits}")
    if first is not None and (not 0 < first < 1 or exits < 2):
        raise ValueError(f"first is the share of the first of 2 or more exits, between 0 and 1; got {first} for {exits}")
    f = 1 / exits if first is None else first
    step = (1 - f) / max(exits - 1, 1)
    return [f + step * k for k in range(exits - 1)], step / 2


def _eligible(cuts: Sequence[Cut], single: bool) -> list[int]:
    """Keeps one of the places at equal MACs: with the smallest state, and of these the last before the tensor is flattened.

    The pixels of an image as tokens (N, C) still count, but neither (C, N) nor one vector.
    """
    found = []
    for _, group in groupby(range(len(cuts)), key=lambda i: cuts[i].macs):
        equal = [i for i in group if cuts[i].tensors == 1 or not single]
        least = min((cuts[i].tensors for i in equal), default=0)
        equal = [i for i in equal if cuts[i].tensors == least]
        if not equal:
            continue
        first = cuts[equal[0]].head_shape
        tokens = [i for i in equal if len(first) == 3 and len(cuts[i].shape) == 2 and cuts[i].shape[1] == first[0]]
        same = [i for i in equal if len(cuts[i].shape) == len(first)]
        found.append(max(same[-1:] + [i for i in tokens if cuts[i].shape[0] != first[0]]))
    return found


def choose_cuts(surveyed: Survey, exits: int, spread: Spread = "macs", first: float | None = None) -> list[int]:
    """The positions in `surveyed.cuts` of n - 1 exits whose shares of the whole cost are as near as possible to k / n.

    The target of exit k = 1..n-1 is the share k / n, or with `first` = f the share f + (1 - f) (k - 1) / (n - 1); the n-th
    answer is the network's own. The choice minimises the sum of squared differences. Among places at equal MACs only the
    last is eligible (after norm, activation and pooling, but before the tensor is flattened).

    Places where one tensor is all that is needed later are taken if they bring every exit within half a step of its target.
    Otherwise all places count, and a larger state counts against a place (`LOAD`).

    Args:
        surveyed: The network's survey.
        exits: n, the number of answers including the network's own.
        spread: Shares of MACs, or of the measured seconds.
        first: Share of the first exit.

    Raises:
        ValueError: n < 1, more exits than places, `first` not between 0 and 1 or without an exit.
    """
    cuts, places = surveyed.cuts, _eligible(surveyed.cuts, False)
    if not 1 <= exits <= len(places) + 1:
        most = f"1..{len(places) + 1} for this network (the last is its own end)"
        raise ValueError(f"exits must lie in {most}, got {exits}{_stays_whole(surveyed)}")
    targets, width = _targets(exits, first)
    share = shares(surveyed, spread)
    single = _eligible(cuts, True)
    if len(single) >= exits - 1:
        chosen = _best(single, [share[i] for i in single], [0.0] * len(single), targets, width)
        if all(abs(share[i] - target) <= width for i, target in zip(chosen, targets, strict=True)):
            return chosen
    return _best(places, [share[i] for i in places], [LOAD * math.log2(cuts[i].load) for i in places], targets, width)


def _stays_whole(surveyed: Survey) -> str:
    """Why the part that computes most stays whole, if more exits could be in it."""
    parts = [call for above in surveyed.flat.opened for call in above.calls if call.problem and call.items]
    largest = max(parts, key=lambda call: call.macs[1] - call.macs[0], default=None)
    if largest is None:
        return ""
    name = f"{type(largest.module).__name__} {largest.path!r}"
    return f"; {name} stays whole, because {largest.problem}: put what does this into a part of {name}"


def _best(places: list[int], share: list[float], extra: list[float], targets: list[float], width: float) -> list[int]:
    """The places, in order, with the least sum of squared differences in units of `width`, plus what each costs extra."""

    @cache
    def best(k: int, start: int) -> tuple[float, tuple[int, ...]]:
        if k == len(targets):
            return 0.0, ()
        options = []
        for place in range(start, len(share) - (len(targets) - k - 1)):
            rest, chosen = best(k + 1, place + 1)
            options.append((((share[place] - targets[k]) / width) ** 2 + extra[place] + rest, (place, *chosen)))
        return min(options)

    return [places[place] for place in best(0, 0)[1]]


def place_exits(surveyed: Survey, exits: int, spread: Spread = "macs", first: float | None = None) -> tuple[Survey, list[int]]:
    """The choice of `choose_cuts`; where it misses a target by more than half a step, the modules around it are opened.

    Warns if a target is still missed, with the shares that were found.

    Raises:
        ValueError: As `choose_cuts`.
    """
    targets, width = _targets(exits, first)
    tried: set[Call] = set()
    for _ in range(ROUNDS):
        few = exits > len(_eligible(surveyed.cuts, False)) + 1
        chosen = [] if few else choose_cuts(surveyed, exits, spread, first)
        share = shares(surveyed, spread)
        missed = [t for k, t in enumerate(targets) if few or abs(share[chosen[k]] - t) > width]
        calls = {call for target in missed for call in _around(surveyed, target, width)} - tried
        if not calls or surveyed.open is None:
            break
        tried |= calls
        surveyed = surveyed.open(calls)
    chosen = choose_cuts(surveyed, exits, spread, first)
    share = shares(surveyed, spread)
    for k, (place, target) in enumerate(zip(chosen, targets, strict=True)):
        if abs(share[place] - target) > width:
            warnings.warn(
                f"exit {k + 1} is at {share[place]:.0%} of the cost, after {surveyed.cuts[place].name!r}: the network has no "
                f"place between {target - width:.0%} and {target + width:.0%}",
                stacklevel=4,
            )
    return surveyed, chosen


def _around(surveyed: Survey, target: float, width: float) -> list[Call]:
    """The modules to open for a place near a share of the cost: the one that computes then, and what computes then in it."""
    calls, found = list(surveyed.flat.whole.values()), []
    at, least = target * surveyed.flat.macs, width * surveyed.flat.macs
    while around := [call for call in calls if call.macs[0] <= at <= call.macs[1] and call.items and not call.problem]:
        found.append(around[0])
        calls = [inner for inner in around[0].calls if inner.macs[1] - inner.macs[0] > least]
    return found
