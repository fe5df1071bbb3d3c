"""Any model with cascade heads: each head sees the answer before its own (Zero-Time-Waste)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, require_classifier
from anytime.models.common.around import Around, build_around
from anytime.registry import register_model


class ZeroTimeWaste(Around):
    """F_t = f_t + W_t softmax(F_{t-1}), f_t the answers of any classifier, F_1 = f_1.

    If head t of that model ends with a linear layer, this is the same layer on its features and the probabilities of the
    answer before, side by side. F_{t-1} gets no gradient from F_t. W starts at zero, so the answers are at first those of the
    model. The paper trains only heads, on a frozen network (`HeadsOnly`): W and the heads of the model. Weights of the
    model itself also load. The features and class weights that `record` keeps are those of f_t, without W_t.
    `anytime.combine.fit_geometric` then fits the ensemble of the answers so far.

    Args:
        model: Computes f_t. Its normalisation moves to this model: its own buffers mean and std become the identity.

    Raises:
        ValueError: The model is no classifier.

    Source: Wołczyk et al., NeurIPS 2021 (zero time waste). The published code of 2023 passes on normalised logits instead of
    probabilities, and leaves out the last answer, which here has a W like all but the first.
    """

    def __init__(self, model: AnytimeModel) -> None:
        require_classifier(model, "zero_time_waste")
        super().__init__(model)
        size = (self.num_classes, self.num_classes)
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(size)) for _ in range(self.num_steps - 1))  # W_2, ..., W_T
        self.register_load_state_dict_pre_hook(_take_inside)

    def changed(self, output: Tensor, previous: Tensor | None, step: int) -> Tensor:
        if previous is None:
            return output
        probabilities = torch.cat([level.softmax(1) for level in previous.detach().split(self.levels, 1)], 1)
        return output + torch.einsum("bj,kj->bk", probabilities, self.heads[step - 2])


def _take_inside(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights of the model inside, by their own names, become those of the whole: its normalisation, and W as it is."""
    assert isinstance(model, ZeroTimeWaste)
    own: Mapping[str, Tensor] = model.state_dict()
    inside = {f"{prefix}{name}" for name in model.model.state_dict()}
    if {name for name in state if name.startswith(prefix)} != inside:
        return
    normalization = (f"{prefix}mean", f"{prefix}std")
    given = {name: state.pop(name) for name in inside}
    state.update({name: given[name] for name in normalization})
    state.update({f"{prefix}model.{name.removeprefix(prefix)}": v for name, v in given.items() if name not in normalization})
    state.update({f"{prefix}{name}": value for name, value in own.items() if f"{prefix}{name}" not in state})


@register_model
def zero_time_waste(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    base: str = "msdnet",
    arguments: dict[str, Any] | None = None,
) -> ZeroTimeWaste:
    """Any model with cascade heads (Zero-Time-Waste of Wołczyk et al. 2021): each answer also sees the one before.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        base: Name or import path of the model whose heads are chained.
        arguments: Its arguments, e.g. {"exits": 7}.
    """
    return build_around(ZeroTimeWaste, num_classes, in_channels, base, arguments)
