"""Any model with additive answers: each step corrects the sum of the earlier ones (BoostNet)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anytime.model import AnytimeModel
from anytime.models.common.additive import add_to, check_shrink
from anytime.models.common.around import Around, build_around
from anytime.registry import register_model


class Boosted(Around):
    """F_t = f_t + shrink F_{t-1}, f_t the answers of any model: in training, step t learns what F_{t-1} gets wrong.

    In training F_{t-1} gets no gradient from F_t, only from its own loss; in evaluation it is an ordinary sum. A single answer
    t needs all f up to it, so its contract cost is that of the stream. The features and class weights that `record` keeps are
    those of f_t.

    Args:
        model: Computes f_t. Its normalisation moves to this model: its own buffers mean and std become the identity.
        shrink: How much of the previous answer stays, in (0, 1].

    Raises:
        ValueError: `shrink` outside (0, 1].

    Source: Yu, Li, Hua, Huang, Shi, AAAI 2023 (boosted dynamic neural networks). They also rescale the gradients of the heads
    (`GradientRescaling`), and some networks of the published code have shrink = 0.5.
    """

    def __init__(self, model: AnytimeModel, shrink: float = 1.0) -> None:
        check_shrink(shrink)
        super().__init__(model)
        self.shrink = shrink

    def changed(self, output: Tensor, previous: Tensor | None, step: int) -> Tensor:
        return add_to(previous, output, self.shrink, self.training)


@register_model
def boosted(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    base: str = "anytimenet",
    arguments: dict[str, Any] | None = None,
    shrink: float = 1.0,
) -> Boosted:
    """Any model with additive answers (BoostNet of Yu et al. 2023): each step adds to the sum of the earlier ones.

    For `attach`, its argument `additive` does the same and keeps the backbone's parameter names.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        base: Name or import path of the model whose answers are added up.
        arguments: Its arguments, e.g. {"width": 8}.
        shrink: How much of the previous answer stays, in (0, 1].
    """
    return build_around(lambda model: Boosted(model, shrink), num_classes, in_channels, base, arguments)
