"""CIFAR-10 in k folds: every training image is held out by one network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anytime.data import CIFAR10, ImageData, Split
from anytime.data.splits import folds


class Folded(ImageData):
    """A data set whose validation images are one of k folds of the training images, stratified by class.

    Args:
        fold: Which one, from 0.
        folds: k.
        **kwargs: Arguments of the data set; `split_seed` decides the folds, `validation` counts for nothing.
    """

    def __init__(self, fold: int = 0, folds: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= fold < folds:
            raise ValueError(f"fold must lie in 0..{folds - 1}, got {fold!r}")
        self.fold, self.folds = fold, folds

    def rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the training and of the held-out images among all, given their labels."""
        return folds(labels, self.folds, self.split_seed)[self.fold]

    def divide(self, split: Split, amount: float, part: str) -> tuple[Split, Split]:
        if part != "validation" or self.record is not None:
            return super().divide(split, amount, part)
        rest, self.divided[part] = (split[chosen] for chosen in self.rows(split.labels))
        return rest, self.divided[part]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Positions of the held-out images in the official order, and the labels of all training images."""
        held_out = self.split("validation").labels
        labels = self._read_required("train").labels
        rows = self.rows(labels)[1]
        if not torch.equal(held_out, labels[rows]):
            raise ValueError(f"the validation images of {type(self).__name__} are not those of fold {self.fold}")
        return rows, labels


class CIFAR10Folds(Folded, CIFAR10):
    """CIFAR-10 with one of k folds as validation images."""
