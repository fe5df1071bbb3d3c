"""EANN: anytime networks of growing depth, run one after the other (Hu, Dey, Bagnell, Hebert, 2017, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, eval_mode
from anytime.models.ann.chain import AnytimeChain, ChainState
from anytime.models.common.members import build_member
from anytime.models.common.steps import require_step_left
from anytime.registry import variant

ReportBy = Literal["depth", "validation"]
ExitPlace = tuple[int, int]  # (member, exit), both from 0

PAPER: tuple[dict[str, Any], ...] = tuple(
    {"model": "ann", "arguments": {"units": n, "width": 32, "period": 3 if n == 25 else 1}} for n in (1, 3, 7, 13, 25)
)
"""The members of the paper's experiment (section 4.6): b is about 2; n = 25 has an exit after every third unit."""


def reported_exits(exits: Sequence[Sequence[int]], errors: Sequence[Sequence[float]] | None = None) -> list[ExitPlace]:
    """Whose answer is reported after each exit of each network, in the order in which they run: (network, exit), from 0.

    By depth: an exit's own answer if it is deeper than the whole previous network, otherwise that network's last answer. With
    `errors`: the answer with the smallest error so far, the earlier of equal ones.

    Args:
        exits: The depth of each exit of each network, growing within a network.
        errors: The validation error of each exit of each network.

    Example:
        >>> from anytime.models.ann.eann import reported_exits
        >>> reported_exits([[1], [1, 2]])
        [(0, 0), (0, 0), (1, 1)]
        >>> reported_exits([[1], [1, 2]], [[0.5], [0.4, 0.6]])
        [(0, 0), (1, 0), (1, 0)]
    """
    places: list[ExitPlace] = []
    best = math.inf  # the reported exit's error
    for network, depths in enumerate(exits):
        before = exits[network - 1][-1] if network else 0
        for exit, depth in enumerate(depths):
            better = depth > before if errors is None else errors[network][exit] < best
            if better or not places:
                places.append((network, exit))
                best = math.inf if errors is None else errors[network][exit]
            else:
                places.append(places[-1])
    return places


class EANNState(NamedTuple):
    """`images` are what every network starts from, `features` those of the running network's last exit.

    `reported` are the features of the exit whose answer is reported, `answer` is that answer once it has been read.
    """

    step: int
    images: Tensor
    features: Tensor
    reported: Tensor
    answer: Tensor | None


class EANN(AnytimeModel):
    """Networks of growing depth, run one after the other; the answer is the best so far by depth or by validation error.

    In network j at its exit of depth i: that exit's answer if i > depth of network j - 1, otherwise the last answer of network
    j - 1. Depth is the number of units up to the exit, as in the paper. (Depth in MACs would give the same rule for the
    paper's networks; if widening units are cheaper, it would trust some exits of equal depth.) `rule="validation"` reports
    the exit with the smallest validation error among all that have run.

    Every exit of every network is a step, T in all, even if the answer stays the same: the sequence can be interrupted after
    every unit, and the average error over steps accounts for how long an answer lasts. No head runs for an unchanged answer.
    A single answer (`forward(x, step=t)`) costs only the network it comes from, up to its exit.

    Members are trained separately. They share no weights, so in joint training each would learn only from its reported exits,
    as the paper proposes at the end of section 4.6; parameters on which no reported answer depends are frozen.
    Each member normalises images by its own `mean` and `std`, after those of the sequence, which are the identity unless set.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        members: Configurations of the networks in order, {"model": NAME, "arguments": {...}}, of ann and its relatives;
            classes and channels are those of the sequence. Default: the paper's, n = 1, 3, 7, 13 and 25 of width 32.
        rule: "depth": an exit reports its own answer once it is deeper than the network before; "validation": the exit with
            the smallest validation error so far.
        validation_errors: For "validation" the errors of the exits of each member, 0 to 1.

    Attributes:
        sources: For each step the (member, exit), both from 0, whose answer is reported.

    Raises:
        ValueError: Fewer than two members, members that disagree in classes or channels or do not grow in cost (and in depth
            if it decides), errors that do not fit.

    Source: Hu, Dey, Bagnell, Hebert, 2017, sections 3.3 and 4.6.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        members: tuple[dict[str, Any], ...] = PAPER,
        rule: ReportBy = "depth",
        validation_errors: tuple[tuple[float, ...], ...] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if rule not in ("depth", "validation"):
            raise ValueError(f"rule must be 'depth' or 'validation', got {rule!r}")
        if len(members) < 2:
            raise ValueError(f"members must be at least 2 networks, got {len(members)}")
        networks = [_build_member(place, member, num_classes, in_channels) for place, member in enumerate(members)]
        _check_growth(networks, rule)
        exits = [network.exits for network in networks]
        if (rule == "validation") != (validation_errors is not None):
            raise ValueError(f"rule='validation' needs validation_errors, no other rule takes them; got rule={rule!r}")
        if validation_errors is not None:
            _check_errors(validation_errors, exits)
        self.sources = tuple(reported_exits(exits, validation_errors))
        self.num_steps = len(self.sources)
        self._places = [(member, exit) for member, depths in enumerate(exits) for exit in range(len(depths))]
        self.smallest = max(network.smallest for network in networks)
        self.members = nn.ModuleList(networks)
        for place, network in enumerate(networks):
            _freeze_unused(network, {exit for source, exit in self.sources if source == place})

    def _member(self, place: int) -> AnytimeChain:
        member = self.members[place]
        assert isinstance(member, AnytimeChain)
        return member

    def initial_state(self, x: Tensor) -> EANNState:
        self.check_input(x, self.smallest)
        images = self.normalize(x)
        return EANNState(0, images, images, images, None)

    def advance(self, state: EANNState) -> EANNState:
        """The state one exit further, without its answer: only units run."""
        require_step_left(state.step, self.num_steps)
        place, exit = self._places[state.step]
        member = self._member(place)
        after = member.advance(ChainState(exit, state.features) if exit else member.initial_state(state.images))
        if self.sources[state.step] == (place, exit):
            state = state._replace(reported=after.features, answer=None)
        return state._replace(step=state.step + 1, features=after.features)

    def read(self, state: EANNState) -> Tensor:
        """The answer `[B, K]` of a state after at least one step: at most one head runs."""
        if state.step < 1:
            raise ValueError("there is no answer before the first step: advance first")
        if state.answer is not None:
            return state.answer
        place, exit = self.sources[state.step - 1]
        return self._member(place).read(ChainState(exit + 1, state.reported))

    def step(self, state: EANNState) -> tuple[Tensor, EANNState]:
        after = self.advance(state)
        answer = self.read(after)
        return answer, after._replace(answer=answer)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The answer of step `step`: runs the network it comes from up to its exit, and that exit's head."""
        place, exit = self.sources[step - 1]
        return self._member(place).answer(self.initial_state(x).images, exit + 1)

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, EANNState]:
        """Runs the network that the answer comes from, and if that is another one, the one that continues."""
        self.check_step(step)
        images, here, source = self.initial_state(x).images, self._places[step - 1], self.sources[step - 1]
        features: dict[ExitPlace, Tensor] = {}
        for place, last in {source[0]: source[1], here[0]: here[1]}.items():
            member = self._member(place)
            state = member.initial_state(images)
            for exit in range(last + 1):
                state = member.advance(state)
                features[place, exit] = state.features
        after = EANNState(step, images, features[here], features[source], None)
        answer = self.read(after)
        return answer, after._replace(answer=answer)


def _build_member(place: int, member: Any, num_classes: int | tuple[int, ...], in_channels: int) -> AnytimeChain:
    network = build_member(
        place, member, num_classes, in_channels, "; trained networks are combined by anytime.chain_networks"
    )
    if not isinstance(network, AnytimeChain):
        kinds = "networks of units with exits (ann, ann_resnet50, ...)"
        raise ValueError(f"members must be {kinds}, members[{place}] is {type(network).__name__}")
    return network


def _macs(member: AnytimeChain, side: int) -> int:
    """MACs of the convolutions up to the last exit, for one square image.

    `anytime.cost` would import sympy with every load.
    """
    total = 0

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += output.numel() * conv.weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in member.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad(), eval_mode(member):
            member(member.mean.new_zeros(1, member.in_channels, side, side), step=member.num_steps)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _check_growth(members: Sequence[AnytimeChain], rule: ReportBy) -> None:
    """Raises ValueError unless each member costs more than the previous one and, by depth, has more units.

    Without more units, none of its answers would be reported.
    """
    side = max(16, *(member.smallest for member in members))  # all costs scale alike with the size
    macs = [_macs(member, side) for member in members]
    for place, (before, after) in enumerate(pairwise(members), 1):
        first, second = before.exits[-1], after.exits[-1]
        if rule == "depth" and second <= first:
            raise ValueError(
                f"members must grow in depth: members[{place}] has {second} units, members[{place - 1}] has {first}; "
                "rule='validation' compares networks of equal depth"
            )
        if macs[place] <= macs[place - 1]:
            costs = f"members[{place}] costs {macs[place]:,} MACs, members[{place - 1}] {macs[place - 1]:,}"
            raise ValueError(f"members must grow in cost: {costs} ({side}x{side} pixels)")


def _check_errors(errors: Sequence[Sequence[float]], exits: Sequence[Sequence[int]]) -> None:
    found, wanted = [len(row) for row in errors], [len(row) for row in exits]
    if found != wanted:
        raise ValueError(f"validation_errors must hold {wanted} values, one for each exit of each member, got {found}")
    if not all(0 <= error <= 1 for row in errors for error in row):
        raise ValueError(f"validation_errors must lie in 0..1, got {[list(row) for row in errors]}")


def _freeze_unused(member: AnytimeChain, used: set[int]) -> None:
    """Freezes the parameters of a member on which no answer of the exits `used` depends."""
    unused: list[nn.Module] = []
    for exit, (first, last) in enumerate(pairwise((0, *member.exits))):
        learns = exit in used if member.regime == "no_grad" else any(exit <= later for later in used)
        if not learns:
            unused += [*member.units[first:last], *([member.stem] if exit == 0 else [])]
        if exit not in used:
            unused.append(member.norms[exit])
    used_groups = {member.head_places[exit][0] for exit in used}
    unused += [heads for group, heads in enumerate(member.heads) if group not in used_groups]
    for module in unused:
        module.requires_grad_(False)


eann = variant(
    EANN,
    "eann",
    "EANN of Hu et al. 2017: anytime networks of growing depth run one after the other.\n\n"
    "`anytime.chain_networks` builds one from trained networks.",
)
