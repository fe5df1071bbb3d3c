"""Features of a frozen trunk, computed once and kept in memory: training on batches of features instead of images."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor

from anytime.data import ImageData
from anytime.data.batches import Loader
from anytime.model import Trunk
from anytime.training.regimes.base import TrainingModule

Precision = Literal["float16", "bfloat16", "float32"]
GIB = 2**30


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
        module: The Lightning module; its model is a `Trunk` in eval mode.
        data: The images.
        precision: Number format of the stored features.
        views: Views of each image, see `HeadsOnly`.
        memory: Limit on the features' size, in GiB.
        required: Whether features that do not fit are an error; otherwise the images are used.

    Raises:
        ValueError: Features that do not fit although required, or that are infinite in this format.
    """

    def __init__(
        self, module: TrainingModule, data: ImageData, precision: Precision, views: int, memory: float, required: bool
    ) -> None:
        super().__init__()
        self._module, self._data = module, data
        self._precision, self._views, self._memory, self._required = precision, views, memory, required

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
        if obstacle and self._required:
            raise ValueError(f"{obstacle}; use cache='none' or 'auto'")
        if obstacle:
            print(f"{obstacle}; every batch passes the trunk", file=sys.stderr)
            return images
        return self._compute(images)

    def _views_of(self, images: Loader) -> list[Loader]:
        """A loader of each view, in the order of the data set."""
        loaders = [self._data.loader(self._data.split("train"), train=False)]
        for view in range(1, self._views):
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
        each = sum(h[0].numel() for h in first) * getattr(torch, self._precision).itemsize
        size = each * images.size * self._views / GIB
        what = f"{images.size * self._views:,} x {each:,} bytes of features in {self._precision}, {size:.3g} GiB"
        if size > self._memory:
            return f"{what}, do not fit into memory={self._memory:g} GiB"
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
                    dtype = getattr(torch, self._precision)
                    features = [h.new_empty(images.size * self._views, *h.shape[1:], dtype=dtype) for h in computed]
                for stored, h in zip(features, computed, strict=True):
                    stored[done : done + len(h)] = h
                done += len(batch[1])
                if view == 0:
                    targets.append(batch[1])
        if not all(h.isfinite().all() for h in features):
            raise ValueError(f"features are too large for {self._precision}, or not finite; use cache='bfloat16' or 'float32'")
        return FeatureBatches(features, torch.cat(targets), images)
