"""Training the heads on a frozen trunk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn

from anytime.data import ImageData
from anytime.model import AnytimeModel, Trunk
from anytime.training.regimes.base import Regime, TrainingModule
from anytime.training.regimes.features import CachedFeatures, Precision
from anytime.training.regimes.freezing import find_heads, freeze_trunk, require_frozen


class HeadsOnly(Regime):
    """Only the heads learn. The trunk is in eval mode: it keeps its weights and batch-norm statistics, its dropout is off.

    So the features of an image never change. For models with `trunk_features` and `head_answers` (`attach`) they are computed
    once and kept in memory if they fit, as one or several views of each image: view 0 is the image itself, view v > 0 is
    augmented as in epoch v; epoch e trains on view e mod `views`. Without the cache each epoch has its own augmentation, and
    costs a forward pass of the trunk. Validation images always pass the whole model.

    Args:
        cache: Number format of the stored features: "float16", "bfloat16", "float32"; "auto": float16 if they fit, else none;
            "none".
        views: Number of stored views of each training image.
        memory: Limit on the features' size, in GiB.

    Raises:
        ValueError: No heads are found, features do not fit (the message gives their size) or are not finite in this format,
            or the trunk is put into train mode.
    """

    def __init__(
        self, cache: Literal["auto", "float16", "bfloat16", "float32", "none"] = "auto", views: int = 1, memory: float = 4.0
    ) -> None:
        formats = ("auto", "none", *get_args(Precision))
        if cache not in formats:
            raise ValueError(f"cache must be one of {', '.join(formats)}, got {cache!r}")
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views!r}")
        if not memory > 0:
            raise ValueError(f"memory must be above 0 GiB, got {memory!r}")
        self.cache, self.views, self.memory = cache, views, memory
        self._trunk: list[nn.Module] = []
        self._frozen: list[nn.Parameter] = []

    def check(self, model: AnytimeModel, epochs: int) -> None:
        find_heads(model)
        if self.cache not in ("auto", "none") and not _has_stable_features(model):
            raise ValueError(
                f"cache={self.cache!r} needs a model with trunk_features and head_answers, which {type(model).__name__} "
                "does not have; use cache='none'"
            )

    def prepare(self, model: AnytimeModel) -> None:
        self._trunk, self._frozen = freeze_trunk(model)

    def release(self, model: AnytimeModel) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._trunk, self._frozen = [], []

    def forward(self, model: AnytimeModel) -> Callable[..., Tensor]:
        return functools.partial(_frozen_answers, model) if _has_stable_features(model) else model

    def data(self, module: TrainingModule, data: ImageData) -> L.LightningDataModule:
        if self.cache == "none" or not _has_stable_features(module.model):
            return data
        precision: Precision = "float16" if self.cache == "auto" else self.cache
        return CachedFeatures(module, data, precision, self.views, self.memory, required=self.cache != "auto")

    def loss(self, module: TrainingModule, images: Any, target: Tensor) -> Tensor:
        require_frozen(self._trunk)
        return super().loss(module, images, target)


def _has_stable_features(model: AnytimeModel) -> bool:
    return isinstance(model, Trunk) and model.keeps_features


def _frozen_answers(model: AnytimeModel, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """All answers `[T, B, K]` from images, or from stored features."""
    assert isinstance(model, Trunk)
    if isinstance(inputs, Tensor):
        with torch.no_grad():
            features = model.trunk_features(inputs)
    else:
        features = [h.to(model.mean.dtype) for h in inputs]
    return model.head_answers(features)
