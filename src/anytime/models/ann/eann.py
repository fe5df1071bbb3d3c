"""EANN: a sequence of anytime networks of growing depth, one after the other (Hu, Dey, Bagnell, Hebert, 2017, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, create_model, eval_mode
from anytime.models.ann.chain import AnytimeChain, ChainState
from anytime.registry import register_model

ReportBy = Literal["depth", "validation"]
Place = tuple[int, int]  # (member, exit), both from 0

PAPER: tuple[dict[str, Any], ...] = tuple(
    {"model": "ann", "arguments": {"units": n, "width": 32, "period": 3 if n == 25 else 1}} for n in (1, 3, 7, 13, 25)
)
"""The members of the paper's experiment (section 4.6): b is about 2; n = 25 has an exit after every third unit."""


def reported_exits(exits: Sequence[Sequence[int]], errors: Sequence[Sequence[float]] | None = None) -> list[Place]:
    """Whose answer holds after each exit of each network, in the order in which they run: (network, exit), from 0.

    By depth: an exit's own answer if it is deeper than the whole network before, else that network's last. With `errors`: the
    answer with the smallest error so far, of equal ones the earlier.

    Args:
        exits: The depth of each exit of each network, growing within a network.
        errors: The validation error of each exit of each network.

    Example:
        >>> reported_exits([[1], [1, 2]])
        [(0, 0), (0, 0), (1, 1)]
        >>> reported_exits([[1], [1, 2]], [[0.5], [0.4, 0.6]])
        [(0, 0), (1, 0), (1, 0)]
    """
    places: list[Place] = []
    for network, depths in enumerate(exits):
        before = exits[network - 1][-1] if network else 0
        for exit, depth in enumerate(depths):
            if not places:
                better = True
            elif errors is None:
                better = depth > before
            else:
                held_network, held_exit = places[-1]
                better = errors[network][exit] < errors[held_network][held_exit]
            places.append((network, exit) if better else places[-1])
    return places


class EANNState(NamedTuple):
    """`images` are what every network starts from, `features` those of the running network's last exit.

    `held` are the features of the exit whose answer is reported, `answer` that answer if it has been read.
    """

    step: int
    images: Tensor
    features: Tensor
    held: Tensor
    answer: Tensor | None


class EANN(AnytimeModel):
    """Networks of growing depth, run one after the other; the answer is the best so far by depth or by validation error.

    In network j at its exit of depth i: that exit's answer if i > depth of network j - 1, else the last answer of network
    j - 1. Depth is the number of units up to the exit, as in the paper. (Counted in MACs the rule would be the same for the
    paper's networks; where widening units are cheaper, it would trust some exits of equal depth.) `rule="validation"` reports
    whichever exit, of all that have run, has the smallest validation error.

    Every exit of every network is a step, T in all, also where the answer is held: so the sequence can be interrupted after
    every unit, and the average error over steps counts how long an answer holds. At a held answer no head runs.
    An answer alone (`forward(x, step=t)`) costs the one network it comes from, up to its exit.

    Members are trained on their own. They share no weights, so that trained as one each would learn from its reported exits
    alone, which the paper proposes at the end of section 4.6; parameters on which no reported answer depends are frozen.
    Each member normalises images by its own `mean` and `std`, after those of the sequence, which are the identity unless set.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        members: At least two networks, each dearer than the one before, and deeper where depth decides.
        rule: `"depth"` or `"validation"`.
        validation_errors: For `"validation"` the errors of each member's exits, 0 to 1.

    Attributes:
        sources: For each step the (member, exit), both from 0, whose answer is reported.

    Raises:
        ValueError: Too few members, members that disagree in classes or channels, or do not grow; errors that do not fit.

    Source: Hu, Dey, Bagnell, Hebert, 2017, sections 3.3 and 4.6.
    """

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        members: Sequence[AnytimeChain],
        rule: ReportBy = "depth",
        validation_errors: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if rule not in ("depth", "validation"):
            raise ValueError(f"rule must be 'depth' or 'validation', got {rule!r}")
        if len(members) < 2:
            raise ValueError(f"members must be at least 2 networks, got {len(members)}")
        for place, member in enumerate(members):
            if not isinstance(member, AnytimeChain):
                kinds = "networks of units with exits (ann, ann_resnet50, ...)"
                raise ValueError(f"members must be {kinds}, members[{place}] is {type(member).__name__}")
            for what, has, wanted in (
                ("num_classes", member.levels, self.levels),
                ("in_channels", member.in_channels, in_channels),
            ):
                if has != wanted:
                    raise ValueError(f"members must agree in {what}: members[{place}] has {has}, the sequence {wanted}")
        _check_growth(members, rule)
        exits = [member.exits for member in members]
        if (rule == "validation") != (validation_errors is not None):
            raise ValueError(f"rule='validation' needs validation_errors, no other rule takes them; got rule={rule!r}")
        if validation_errors is not None:
            _check_errors(validation_errors, exits)
        self.sources = tuple(reported_exits(exits, validation_errors))
        self.num_steps = len(self.sources)
        self._places = [(member, exit) for member, depths in enumerate(exits) for exit in range(len(depths))]
        self._smallest = max(member._smallest for member in members)
        self.members = nn.ModuleList(members)
        for place, member in enumerate(members):
            _freeze_unused(member, {exit for source, exit in self.sources if source == place})

    def _member(self, place: int) -> AnytimeChain:
        member = self.members[place]
        assert isinstance(member, AnytimeChain)
        return member

    def initial_state(self, x: Tensor) -> EANNState:
        self.check_input(x, self._smallest)
        images = self.normalize(x)
        return EANNState(0, images, images, images, None)

    def advance(self, state: EANNState) -> EANNState:
        """The state one exit further, without its answer: units alone."""
        if state.step >= self.num_steps:
            raise ValueError(f"all {self.num_steps} steps are done")
        place, exit = self._places[state.step]
        member = self._member(place)
        after = member.advance(ChainState(exit, state.features) if exit else member.initial_state(state.images))
        new = self.sources[state.step] == (place, exit)
        held, answer = (after.features, None) if new else (state.held, state.answer)
        return EANNState(state.step + 1, state.images, after.features, held, answer)

    def read(self, state: EANNState) -> Tensor:
        """The answer `[B, K]` of a state after at least one step: at most one head."""
        if state.step < 1:
            raise ValueError("there is no answer before the first step: advance first")
        if state.answer is not None:
            return state.answer
        place, exit = self.sources[state.step - 1]
        return self._member(place).read(ChainState(exit + 1, state.held))

    def step(self, state: EANNState) -> tuple[Tensor, EANNState]:
        after = self.advance(state)
        answer = self.read(after)
        return answer, after._replace(answer=answer)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The network that step `step` reports, up to the exit whose answer it is, and that exit's head."""
        place, exit = self.sources[step - 1]
        return self._member(place).answer(self.initial_state(x).images, exit + 1)


def _macs(member: AnytimeChain, side: int) -> int:
    """Of the convolutions up to the last exit, for one square image. (`anytime.cost` would import sympy with every load.)"""
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
    """Each member costs more than the one before; by depth it also has more units, or none of its answers would count."""
    side = max(16, *(member._smallest for member in members))  # costs grow alike with the size
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
    """Freezes the parameters of a member on which the answers of the exits `used` do not depend."""
    unused: list[nn.Module] = []
    for exit, (first, last) in enumerate(pairwise((0, *member.exits))):
        learns = exit in used if member.regime == "no_grad" else any(exit <= later for later in used)
        if not learns:
            unused += [*member.units[first:last], *([member.stem] if exit == 0 else [])]
        if exit not in used:
            unused.append(member.norms[exit])
    first = 0
    for heads in member.heads:
        exits = range(first, first := first + len(heads.weight))  # type: ignore[arg-type]
        if not used.intersection(exits):
            unused.append(heads)
    for module in unused:
        module.requires_grad_(False)


@register_model
def eann(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    members: tuple[dict[str, Any], ...] = PAPER,
    rule: ReportBy = "depth",
    validation_errors: tuple[tuple[float, ...], ...] | None = None,
) -> EANN:
    """EANN of Hu et al. 2017: anytime networks of growing depth run one after the other.

    `anytime.chain_networks` makes one of trained networks.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        members: Configurations of the networks in order, {"model": NAME, "arguments": {...}}, of ann and its relatives;
            classes and channels are those of the sequence. Default: the paper's, n = 1, 3, 7, 13 and 25 of width 32.
        rule: "depth": an exit reports its own answer once it is deeper than the network before; "validation": the exit with
            the smallest validation error so far.
        validation_errors: For "validation" the errors of the exits of each member, 0 to 1.
    """
    built: list[Any] = []
    for place, member in enumerate(members):
        if not isinstance(member, Mapping) or "model" not in member or member.keys() - {"model", "arguments"}:
            raise ValueError(
                f"members[{place}] must be {{'model': NAME, 'arguments': {{...}}}}, got {member!r}; "
                "trained networks are combined by anytime.chain_networks"
            )
        given: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels} | dict(member.get("arguments") or {})
        built.append(create_model(member["model"], **given))
    return EANN(num_classes, in_channels, built, rule, validation_errors)
