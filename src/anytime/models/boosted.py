"""Any model with additive answers: each step corrects the sum of the earlier ones (BoostNet)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anytime.model import AnytimeModel, create_model
from anytime.models.common.additive import BoostedState, add_to, added_up, check_shrink
from anytime.registry import register_model


class Boosted(AnytimeModel):
    """F_t = f_t + shrink F_{t-1}, f_t the answers of any model: in training, step t learns what F_{t-1} gets wrong.

    In training F_{t-1} gets no gradient from F_t, only from its own loss; in evaluation it is an ordinary sum. A single answer
    t needs all f up to it, so its contract cost is that of the stream.

    Args:
        model: Computes f_t. Its normalisation moves to this model: its own buffers mean and std become the identity.
        shrink: How much of the previous answer stays, in (0, 1].

    Raises:
        ValueError: `shrink` outside (0, 1].

    Source: Yu, Li, Hua, Shi, AAAI 2023 (boosted dynamic neural networks). They also rescale the gradients of the heads
    (`GradientRescaling`), and some networks of the published code have shrink = 0.5.
    """

    def __init__(self, model: AnytimeModel, shrink: float = 1.0) -> None:
        check_shrink(shrink)
        super().__init__(model.levels, model.in_channels)
        self.num_steps, self.shrink = model.num_steps, shrink
        self.own_normalization = model.own_normalization
        self.mean.copy_(model.mean)
        self.std.copy_(model.std)
        model.set_normalization([0.0] * model.in_channels, [1.0] * model.in_channels)
        self.model = model

    def initial_state(self, x: Tensor) -> BoostedState:
        self.check_input(x)
        return BoostedState(self.model.initial_state(self.normalize(x)), None)

    def step(self, state: BoostedState) -> tuple[Tensor, BoostedState]:
        output, inner = self.model.step(state.inner)
        total = add_to(state.total, output, self.shrink, self.training)
        return total, BoostedState(inner, total)

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        if step is not None:
            return super().forward(x, step)
        self.check_input(x)
        return added_up(self.model(self.normalize(x)), self.shrink, self.training)


@register_model
def boosted(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    base: str = "anytimenet",
    arguments: dict[str, Any] | None = None,
    shrink: float = 1.0,
) -> Boosted:
    """Any model with additive answers (BoostNet): each step adds to the sum of the earlier ones.

    For `attach`, its argument `additive` does the same and keeps the backbone's parameter names.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        base: Name or import path of the model whose answers are added up.
        arguments: Its arguments, e.g. {"width": 8}.
        shrink: How much of the previous answer stays, in (0, 1].
    """
    levels = num_classes if isinstance(num_classes, int) else tuple(num_classes)
    model = create_model(base, levels, in_channels=in_channels, **(arguments or {}))
    added = Boosted(model, shrink)
    settled = {key: value for key, value in model.config["arguments"].items() if key not in ("num_classes", "in_channels")}
    added.settled_arguments = {"arguments": settled}
    return added
