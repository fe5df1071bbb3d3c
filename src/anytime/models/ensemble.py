"""Networks that share nothing, run one after the other; each answer is their mean so far."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.models.common.members import build_member
from anytime.models.common.steps import require_step_left
from anytime.registry import variant

SMALL: tuple[dict[str, Any], ...] = tuple({"model": "fast", "arguments": {"head_widths": ()}} for _ in range(3))
"""Three networks of `fast`, each with its last answer alone."""


class EnsembleState(NamedTuple):
    """The images, and the mean of the logits of the members that have run."""

    step: int
    images: Tensor
    mean: Tensor | None


class Ensemble(AnytimeModel):
    """logits_t = (z_1 + ... + z_t) / t, z_i the logits of member i: the geometric mean of their probabilities, normalised.

    In training mode logits_t = z_t, so that every member has a loss of its own and none learns to mend the others: with
    `Weighted`, members are trained as if alone, in one run; with `SelfDistillation(teacher="mean")` they also learn from
    their mean.

    Each member normalises images by its own `mean` and `std`, after those of the ensemble, which are the identity unless set.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        members: Configurations of networks with a single answer, {"model": NAME, "arguments": {...}}, in the order in which
            they run; classes and channels are those of the ensemble.

    Raises:
        ValueError: No members, one that is no such mapping, or one of several answers.

    Source: Lakshminarayanan, Pritzel, Blundell, NeurIPS 2017 (deep ensembles; they average probabilities).
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        members: tuple[dict[str, Any], ...] = SMALL,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if not isinstance(members, tuple | list) or not members:
            raise ValueError(f"members must be a list of at least 1 network, got {members!r}")
        self.members = nn.ModuleList(build_member(place, each, num_classes, in_channels) for place, each in enumerate(members))
        self.num_steps = len(members)
        for place, member in enumerate(self.members):
            if member.num_steps != 1:
                raise ValueError(f"members must have a single answer, members[{place}] has {member.num_steps}")

    def initialize_from(self, images: Tensor) -> None:
        for member in self.members:
            member.initialize_from(self.normalize(images))  # type: ignore[operator]

    def initial_state(self, x: Tensor) -> EnsembleState:
        self.check_input(x)
        return EnsembleState(0, self.normalize(x), None)

    def step(self, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        require_step_left(state.step, self.num_steps)
        own = self.members[state.step](state.images, step=1)
        mean = own if state.mean is None else state.mean + (own - state.mean) / (state.step + 1)
        return own if self.training else mean, EnsembleState(state.step + 1, state.images, mean)


ensemble = variant(
    Ensemble, "ensemble", "Networks that share nothing, run one after the other: each answer is their mean so far."
)
