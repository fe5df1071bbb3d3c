"""Features of a frozen trunk, computed once and kept in memory: batches of features in place of batches of images."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import lightning as L
import torch
from torch import Tensor

from anytime.data import ImageData
from anytime.data.batches import Loader

if TYPE_CHECKING:
    from anytime.training.module import AnytimeModule

Precision = Literal["float16", "bfloat16", "float32"]
GIB = 2**30


@runtime_checkable
class Trunk(Protocol):
    """A model whose heads can be trained from features alone."""

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        """What the answers are made of, the batch in front, from images `[B, C, H, W]` in [0, 1]."""

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        """All answers `[T, B, K]`."""


def keeps_features(model: object) -> bool:
    """Whether heads of a model can be trained from features alone: not if a new classifier lies within its trunk."""
    return isinstance(model, Trunk) and getattr(model, "keeps_features", True)


class FeatureBatches(Loader):
    """Batches of features, in the order in which `like` gives out the images.

    Args:
        features: Each `[views * N, ...]`; rows v N to (v + 1) N are view v of all images.
        targets: `[N]`, or `[N, D]` for D label levels, on the same device.
        like: The loader of the images.
    """

    def __init__(self, features: Sequence[Tensor], targets: Tensor, like: Loader) -> None:
        super().__init__(len(targets), like.batch_size, shuffle=like.shuffle, seed=like.seed)
        self.features, self.targets = features, targets

    def _fetch(self, epoch: int, start: int) -> Iterator[Any]:
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
        module: The Lightning module that is trained.
        trunk: Its model, with a trunk in eval mode.
        data: The images.
        precision: Number format in which features are kept.
        views: Views of each image, see `HeadsOnly`.
        memory: GiB that they may take.
        required: Whether features that do not fit are an error; else the images are used.

    Raises:
        ValueError: Features that do not fit although required, or that are infinite in this format.
    """

    def __init__(
        self,
        module: AnytimeModule,
        trunk: Trunk,
        data: ImageData,
        precision: Precision,
        views: int,
        memory: float,
        required: bool,
    ) -> None:
        super().__init__()
        self._module, self._trunk, self._data = [module], trunk, data
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
        why = self._why_not(images)
        if why and self._required:
            raise ValueError(f"{why}; use cache='none' or 'auto'")
        if why:
            print(f"{why}; every batch passes the trunk", file=sys.stderr)
            return images
        return self._computed(images)

    def _views_of(self, images: Loader) -> list[Loader]:
        """A loader of each view, in the order of the data set."""
        loaders = [self._data._loader(self._data._part("train"), train=False)]
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
            return self._trunk.trunk_features(self._module[0].laid_out(precision.convert_input(batch[0])))

    def _why_not(self, images: Loader) -> str:
        """Why the features are not kept; empty if they are."""
        if cast(L.Trainer, self.trainer).world_size > 1:
            return "features are kept by a single process alone"
        first = self._features(next(iter(self._views_of(images)[0])))
        each = sum(h[0].numel() for h in first) * getattr(torch, self._precision).itemsize
        size = each * images.size * self._views / GIB
        what = f"{images.size * self._views:,} x {each:,} bytes of features in {self._precision}, {size:.3g} GiB"
        if size > self._memory:
            return f"{what}, do not fit into memory={self._memory:g} GiB"
        print(f"keeping {what}", file=sys.stderr)
        return ""

    def _computed(self, images: Loader) -> FeatureBatches:
        features: list[Tensor] = []
        targets: list[Tensor] = []
        done = 0
        for view, loader in enumerate(self._views_of(images)):
            for batch in loader:
                found = self._features(batch)
                if not features:
                    kind = getattr(torch, self._precision)
                    features = [h.new_empty(images.size * self._views, *h.shape[1:], dtype=kind) for h in found]
                for kept, h in zip(features, found, strict=True):
                    kept[done : done + len(h)] = h
                done += len(batch[1])
                if view == 0:
                    targets.append(batch[1])
        if not all(h.isfinite().all() for h in features):
            raise ValueError(f"features are too large for {self._precision}, or not finite; use cache='bfloat16' or 'float32'")
        return FeatureBatches(features, torch.cat(targets), images)
