"""A feed-forward network with an exit after some of its units, each with a head of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.models.common.layers import require_whole
from anytime.models.common.steps import require_step_left
from anytime.support.units import is_list


def check_exits(exits: Sequence[int], units: int) -> None:
    """Raises ValueError unless the early exits rise within 1..units - 1; the last answer follows the last unit."""
    if not is_list(exits):
        raise ValueError(f"exits must be a list of whole numbers, got {exits!r}")
    for exit in exits:
        require_whole(exits=exit)
    rising = all(before < after for before, after in zip((0, *exits), (*exits, units), strict=True))
    if not rising:
        raise ValueError(
            f"exits must rise within 1..{units - 1}, the units before the last that a head may follow, got {tuple(exits)}"
        )


class StageState(NamedTuple):
    """`features` are the output of the last exit's unit (before the first step, the normalised images)."""

    step: int
    features: Tensor


class Stages(AnytimeModel):
    """h_0 = stem(x), h_i = unit_i(h_{i-1}), logits_t = head_t(h_{e_t}) with e_1 < ... < e_T = L.

    A step runs the units up to the next exit, each once, and that exit's head. `advance` and `read` are the two halves of a
    step. A subclass makes `heads`, T modules from h to logits `[B, K]`.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        stem: From images to h_0.
        units: The L units in order.
        exits: The early exits e_1 .. e_{T-1}.
        smallest: Smallest height and width of the images.

    Raises:
        ValueError: The exits do not rise within 1..L - 1.
    """

    heads: nn.ModuleList

    def __init__(
        self,
        num_classes: int | Sequence[int],
        in_channels: int,
        stem: nn.Module,
        units: Iterable[nn.Module],
        exits: Sequence[int],
        smallest: int = 1,
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.stem, self.units, self.smallest = stem, nn.ModuleList(units), smallest
        check_exits(exits, len(self.units))
        self.exits = (*exits, len(self.units))
        self.num_steps = len(self.exits)

    def initial_state(self, x: Tensor) -> StageState:
        self.check_input(x, self.smallest)
        return StageState(0, self.normalize(x))

    def _run(self, first: int, last: int, h: Tensor) -> Tensor:
        """Runs units `first + 1` to `last`; before unit 1, the stem."""
        if first == 0:
            h = self.stem(h)
        for unit in self.units[first:last]:
            h = unit(h)
        return h

    def advance(self, state: StageState) -> StageState:
        """The state one exit further, without its answer: only units run."""
        require_step_left(state.step, self.num_steps)
        first = self.exits[state.step - 1] if state.step else 0
        return StageState(state.step + 1, self._run(first, self.exits[state.step], state.features))

    def read(self, state: StageState) -> Tensor:
        """The answer `[B, K]` of a state after at least one step: one head runs."""
        if state.step < 1:
            raise ValueError("there is no answer before the first step: advance first")
        return self.heads[state.step - 1](state.features)

    def step(self, state: StageState) -> tuple[Tensor, StageState]:
        after = self.advance(state)
        return self.read(after), after
