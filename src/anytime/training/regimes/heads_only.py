"""Training the heads on a frozen trunk, whose features can be computed once and kept in memory."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from torch import Tensor, nn

from anytime.data import ImageData
from anytime.data.batches import Loader
from anytime.model import AnytimeModel, Trunk
from anytime.training.regimes.base import Regime, TrainingModule
from anytime.training.regimes.freezing import find_heads, freeze_trunk

Cache = Literal["auto", "float16", "bfloat16", "float32", "none"]
GIB = 2**30


class HeadsOnly(Regime):
    """Only the heads learn. The trunk stays in eval mode: its weights and batch-norm statistics are fixed, its dropout is off.

    So the features of an image never change. For models with `trunk_features` and `head_answers` (`attach`) they are computed
    once and kept in memory if they fit, as one or several views of each image: view 0 is the image itself, view v > 0 is
    augmented as in epoch v; epoch e trains on view e mod `views`. Without the cache each epoch has its own augmentation, and
    costs one forward pass of the trunk. Validation images always pass through the whole model.

    Args:
        cache: Number format of the stored features: "float16", "bfloat16", "float32"; "auto": float16 if they fit, else none;
            "none".
        views: Number of stored views of each training image.
        memory: Limit on the features' size, in GiB.

    Raises:
        ValueError: No heads are found, features do not fit (the message gives their size) or are not finite in this format,
            or the trunk is put into train mode.
    """

    def __init__(self, cache: Cache = "auto", views: int = 1, memory: float = 4.0) -> None:
        if cache not in get_args(Cache):
            raise ValueError(f"cache must be one of {', '.join(get_args(Cache))}, got {cache!r}")
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
        cached = self.cache != "none" and _has_stable_features(module.model)
        return CachedFeatures(self, module, data) if cached else data

    def loss(self, module: TrainingModule, images: Any, target: Tensor) -> Tensor:
        if moving := [type(part).__name__ for part in self._trunk if part.training]:
            raise ValueError(
                f"the trunk is frozen, but {len(moving)} of its modules are in train mode (first: {moving[0]}), so batch-norm "
                "statistics drift and dropout is on; leave it in eval mode"
            )
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


class FeatureBatches(Loader):
    """Batches of features, in the order in which `like` yields the images.

    Args:
        features: Each `[views * N, ...]`; rows v N to (v + 1) N are view v of all images.
        targets: `[N]`, or `[N, D]` for D label levels, on the same device.
        like: The loader of the images.
    """

    def __init__(self, features: Sequence[Tensor], targets: Tensor, like: Loader) -> None:
        super().__init__(len(targets), like.batch_size, shuffle=like.shuffle, seed=like.seed)
        self.features, self.targets = features, targets

    def _generate(self, epoch: int, start: int) -> Iterator[Any]:
        views = len(self.features[0]) // self.size
        order = self._order(epoch).to(self.targets.device)
        for batch in range(start, len(self)):
            samples = self._share(order, batch)
            rows = samples + epoch % views * self.size
            yield [h[rows] for h in self.features], self.targets[samples]


class CachedFeatures(L.LightningDataModule):
    """The data, with batches of features for training.

    They are computed when the training asks for its batches: the model is then on its device, with its weights.

    Args:
        regime: Its format, number of views and memory limit apply; unless its cache is "auto", features must fit.
        module: The Lightning module; its model is a `Trunk` in eval mode.
        data: The images.

    Raises:
        ValueError: Features do not fit although they must, or are not finite in this format.
    """

    def __init__(self, regime: HeadsOnly, module: TrainingModule, data: ImageData) -> None:
        super().__init__()
        self._regime, self._module, self._data = regime, module, data
        self._format = "float16" if regime.cache == "auto" else regime.cache
        self._dtype: torch.dtype = getattr(torch, self._format)

    def prepare_data(self) -> None:
        self._data.prepare_data()

    def setup(self, stage: str) -> None:
        self._data.trainer = self.trainer
        self._data.setup(stage)

    def val_dataloader(self) -> Any:
        return self._data.val_dataloader()

    def train_dataloader(self) -> Loader:
        images = self._data.train_dataloader()
        obstacle = self._obstacle(images)
        if not obstacle:
            return self._compute(images)
        if self._regime.cache != "auto":
            raise ValueError(f"{obstacle}; use cache='none' or 'auto'")
        print(f"{obstacle}; every batch passes the trunk", file=sys.stderr)
        return images

    def _views_of(self, images: Loader) -> list[Loader]:
        """A loader of each view, in the order of the data set."""
        loaders = [self._data.loader(self._data.split("train"), train=False)]
        for view in range(1, self._regime.views):
            loader = copy.copy(images)
            loader.shuffle = False
            loader.set_epoch(view)
            loaders.append(loader)
        return loaders

    @torch.no_grad()
    def _features(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        precision = cast(L.Trainer, self.trainer).precision_plugin
        with precision.forward_context():
            images = self._module.to_memory_format(precision.convert_input(batch[0]))
            return cast(Trunk, self._module.model).trunk_features(images)

    def _obstacle(self, images: Loader) -> str:
        """Why the features cannot be kept; empty if they can."""
        if cast(L.Trainer, self.trainer).world_size > 1:
            return "features are kept only by a single process"
        first = self._features(next(iter(self._views_of(images)[0])))
        rows, row_bytes = images.size * self._regime.views, sum(h[0].numel() for h in first) * self._dtype.itemsize
        what = f"{rows:,} x {row_bytes:,} bytes of features in {self._format}, {rows * row_bytes / GIB:.3g} GiB"
        if rows * row_bytes / GIB > self._regime.memory:
            return f"{what}, do not fit into memory={self._regime.memory:g} GiB"
        print(f"keeping {what}", file=sys.stderr)
        return ""

    def _compute(self, images: Loader) -> FeatureBatches:
        features: list[Tensor] = []
        targets: list[Tensor] = []
        done = 0
        for view, loader in enumerate(self._views_of(images)):
            for batch in loader:
                computed = self._features(batch)
                if not features:
                    rows = images.size * self._regime.views
                    features = [h.new_empty(rows, *h.shape[1:], dtype=self._dtype) for h in computed]
                for stored, h in zip(features, computed, strict=True):
                    stored[done : done + len(h)] = h
                done += len(batch[1])
                if view == 0:
                    targets.append(batch[1])
        if not all(h.isfinite().all() for h in features):
            raise ValueError(f"features are too large for {self._format}, or not finite; use cache='bfloat16' or 'float32'")
        return FeatureBatches(features, torch.cat(targets), images)
