"""What others have measured about the images of a data set: C-scores of CIFAR and the human labels of CIFAR-10H.

C-scores (Jiang et al. 2021) belong to the training images of CIFAR-10 and CIFAR-100, human labels (Peterson et al. 2019,
CC BY-NC-SA 4.0) to the 10,000 test images of CIFAR-10, all in the official order of the images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from anytime.data.files import errors_naming, read_array, read_arrays
from anytime.support.arrays import as_labels

_LEAST_AGREEMENT = 0.95  # of the most frequent human answer with the label; in the official order it is 99.2 %


@dataclass(frozen=True, eq=False)
class SideData:
    """One number for each image of a split, in its official order; larger is more typical.

    Attributes:
        name: What the numbers are.
        split: "train" or "test".
        values: float64 `[N]`.
        labels: The class of each image as far as the file tells, int64 `[N]`.
        exact: Whether these are the labels; else they are the most frequent human answers.
    """

    name: str
    split: Literal["train", "test"]
    values: Tensor
    labels: Tensor
    exact: bool

    def of(self, labels: Tensor) -> Tensor:
        """The numbers of the images that have these labels, float64 `[N]`.

        Exact labels must be the same image by image. Of the most frequent human answers at least 95 % must be; a few images in
        another order can pass.

        Args:
            labels: int64 `[N]`, of all images of the split in the official order. A part of them is chosen afterwards.

        Raises:
            ValueError: There are more or fewer labels, or they belong to other images or to another order.
        """
        labels = as_labels(labels)
        if labels.shape != self.labels.shape:
            raise ValueError(
                f"{self.name} are known for {len(self.labels)} images, all of the {self.split} split, but there are "
                f"{len(labels)} labels"
            )
        same = self.labels == labels
        if self.exact and not bool(same.all()):
            at = int((~same).nonzero()[0])
            raise ValueError(
                f"{self.name} belong to other images: {int((~same).sum())} of {len(labels)} labels differ, the first at "
                f"position {at}, {int(self.labels[at])} instead of {int(labels[at])}; keep the official order"
            )
        agreement = float(same.double().mean())
        if agreement < _LEAST_AGREEMENT:
            raise ValueError(
                f"{self.name} belong to other images: people agree with {agreement:.1%} of the labels, in the official order "
                f"of the {self.split} split with at least {_LEAST_AGREEMENT:.0%}"
            )
        return self.values


def read_cscores(path: str | os.PathLike[str]) -> SideData:
    """The C-scores of CIFAR's training images: the estimated probability that a network not trained on an image is right.

    Args:
        path: `cifar10-cscores-orig-order.npz` or `cifar100-cscores-orig-order.npz`: arrays `labels` and `scores`, `[N]`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or has another form.
    """
    labels, scores = read_arrays(path, "labels", "scores")
    with errors_naming(path):
        if labels.ndim != 1 or labels.shape != scores.shape:
            raise ValueError(f"there must be as many labels as scores, got {list(labels.shape)} and {list(scores.shape)}")
        if labels.dtype.kind not in "iu" or scores.dtype.kind != "f" or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"labels must be whole numbers and scores in [0, 1], got {labels.dtype} and {scores.dtype}")
    tensors = torch.from_numpy(scores.astype(np.float64)), torch.from_numpy(labels.astype(np.int64))
    return SideData("C-scores", "train", *tensors, exact=True)


def read_human_consistency(path: str | os.PathLike[str]) -> SideData:
    """How far people agree on CIFAR-10's test images: sum_k p_k log p_k, the negative entropy of their answers, in nats.

    Iuzzolino et al. 2021 say that it is known for the training images; it is known only for the test images.

    Args:
        path: `cifar10h-counts.npy` or `cifar10h-probs.npy`: the number or share of answers by image and class, `[N, K]`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or has another form.
    """
    answers = read_array(path)
    with errors_naming(path):
        if answers.ndim != 2 or answers.dtype.kind not in "iuf":
            raise ValueError("answers must be numbers [N, K], by image and class")
        counts = torch.from_numpy(answers.astype(np.float64))
        total = counts.sum(1, keepdim=True)
        if not bool((counts >= 0).all() and (total > 0).all() and total.isfinite().all()):
            raise ValueError("answers must be at least 0, and an image must have at least one")
    ordered = counts.sort(dim=1).values  # equal counts of other classes would have entropies that differ by rounding
    consistency = -torch.special.entr(ordered / ordered.sum(1, keepdim=True)).sum(1)
    return SideData("the answers of people", "test", consistency, counts.argmax(1), exact=False)
