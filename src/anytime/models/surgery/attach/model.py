"""A backbone with exits as an anytime model: stages, heads and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.models.common.additive import BoostedState, add_to, added_up
from anytime.models.common.steps import require_step_left
from anytime.models.surgery.attach.cut_points import Cut
from anytime.models.surgery.attach.segments import Stage
from anytime.models.surgery.attach.stored import in_precision_of
from anytime.models.surgery.attach.watch import Watch, check_width


class AttachedState(NamedTuple):
    """`features`: the normalised images before the first step, then what is alive at the last cut, the logits at the end.

    That is one tensor, or several tensors and numbers, of which the first is the one that the head reads.
    """

    step: int
    features: Any


class AttachedExits(AnytimeModel):
    """h_t = stage_t(h_{t-1}), logits_t = head_t(h_t); the last stage ends with the backbone's own logits.

    The stages are the backbone's forward, cut once; they hold no weights. Where the rest needs several tensors, h_t holds
    all of them, and the head reads the one into which most of the cost has gone (`anytime.models.surgery.attach.state`).
    Normalised images are converted to the precision of the network, and what a head reads to that of the head. All weights
    belong to `backbone`, under its own names in the state dict (`backbone.layer1.0...`), or to the `heads`.
    `backbone` is the unchanged network: it can be loaded, trained, frozen, put into eval mode and taken out again by itself.
    Hooks that are put on a cut container later raise ValueError; those on the layers inside it run.
    Built by `attach_exits` or `create_model("attach")`.

    Args:
        backbone: Normalised images `[B, C, H, W]` to logits `[B, K]`.
        stages: T functions `f(backbone, h) -> h`; composed in order, they are the backbone.
        cuts: The T - 1 places between the stages.
        heads: One for each cut.
        num_classes: K, or the sizes of several label levels.
        in_channels: C.
        size: The only (height, width) that the stages are valid for, if the backbone's forward depends on it.
        new: Names of the backbone's layers that make its logits, if they are new; they then count as heads.
        tail: The stage from the last cut to the input of the new classifier and the one from there to the logits, where they
            can be separated.
        watch: What must stay as it is, because the stages were cut with it.

    Attributes:
        exits: The names of the cuts.
        keeps_features: Whether heads can be trained from `trunk_features` only.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[Stage],
        cuts: Sequence[Cut],
        heads: Sequence[nn.Module],
        num_classes: int | Sequence[int] = 10,
        in_channels: int = 3,
        size: tuple[int, int] | None = None,
        new: Sequence[str] = (),
        tail: tuple[Stage, Stage] | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.num_steps = len(stages)
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.stages, self.cuts, self.size = tuple(stages), tuple(cuts), size
        self.exits = tuple(cut.name for cut in cuts)
        self._tail, self._watch = tail, watch
        self.keeps_features = not new or tail is not None
        if new:
            self.head_names = ("heads", *(f"backbone.{name}" for name in new))

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        x = in_precision_of(self.backbone, self.normalize(x))
        if self._watch is not None:
            self._watch.check(x)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"this network was cut for images of {self.size[0]}x{self.size[1]} pixels, got {x.shape[2]}x{x.shape[3]}; "
                "build it with input_size=(channels, height, width)"
            )
        return AttachedState(0, x)

    def step(self, state: Any) -> tuple[Tensor, Any]:
        require_step_left(state.step, self.num_steps)
        h = self.stages[state.step](self.backbone, state.features)
        return self._answer(state.step, self._head_input(state.step, h)), AttachedState(state.step + 1, h)

    def _head_input(self, t: int, h: Any) -> Tensor:
        """The features as head t reads them: the main tensor, the channels of images first."""
        h = h[0] if isinstance(h, tuple) else h
        return h.permute(0, 3, 1, 2) if t < len(self.cuts) and self.cuts[t].channels_last else h

    def _answer(self, t: int, h: Tensor) -> Tensor:
        if t == len(self.cuts):
            check_width(h.shape[1], self.num_classes)
            return h
        return self.heads[t](h if torch.is_autocast_enabled(h.device.type) else in_precision_of(self.heads[t], h))

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, Any]:
        """Runs the stages up to `step` without the earlier heads."""
        self.check_step(step)
        h = self.initial_state(x).features
        for stage in self.stages[:step]:
            h = stage(self.backbone, h)
        return self._answer(step - 1, self._head_input(step - 1, h)), AttachedState(step, h)

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        """The T inputs of the heads, the batch in dimension 0; no head runs.

        The last one is the backbone's own logits, or the input of its classifier if that is new. With a frozen backbone in
        eval mode they are the same in every epoch, so `head_answers` can train from them only.
        """
        return self._features(self.initial_state(x).features)

    def _features(self, h: Any) -> list[Tensor]:
        features, stages = [], (*self.stages[:-1], self._tail[0]) if self._tail else self.stages
        for t, stage in enumerate(stages):
            h = stage(self.backbone, h)
            features.append(self._head_input(t, h))
        return features

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        """All answers `[T, B, K]` from `trunk_features`."""
        *read, last = features
        logits = last if self._tail is None else self._tail[1](self.backbone, last)
        return torch.stack([*(self._answer(t, h) for t, h in enumerate(read)), logits])

    def check_saveable(self) -> None:
        if not self.config:
            kind = type(self.backbone)
            raise ValueError(
                f"this {type(self).__name__} was built without create_model, so nothing says how to build it again; name its "
                f"class, anytime.create_model('attach', backbone='{kind.__module__}.{kind.__qualname__}', "
                "pretrained='weights.pt', ...), or call attach_exits in a custom function that is marked "
                "@anytime.register_model, and build the model by that function's name with create_model"
            )


class AdditiveExits(AttachedExits):
    """logits_t = head_t(h_t) + shrink logits_{t-1}: exits whose answers add up, see `anytime.models.boosted.Boosted`."""

    shrink = 1.0

    def initial_state(self, x: Tensor) -> BoostedState:
        return BoostedState(super().initial_state(x), None)

    def step(self, state: BoostedState) -> tuple[Tensor, BoostedState]:
        output, inner = super().step(state.inner)
        total = add_to(state.total, output, self.shrink, self.training)
        return total, BoostedState(inner, total)

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, BoostedState]:
        """Runs all stages and heads up to `step`, because an answer is a sum."""
        return AnytimeModel.jump(self, x, step)

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        return self._features(super().initial_state(x).features)

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        return added_up(super().head_answers(features), self.shrink, self.training)
