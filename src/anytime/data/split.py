"""The images of one split of a data set, and what identifies each of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.data.names import Names, content_number, lots
from anytime.data.stream import LazyImages


@dataclass(frozen=True)
class Split:
    """The images of one split of a data set with their labels, as a reader returns them.

    Args:
        images: uint8 `[N, C, H, W]`, or images to be read on demand.
        targets: int64 `[N]`, or `[N, D]` for D label levels.
        source: The file or folder, for error messages.
        groups: int64 `[N]`, numbers of groups, such as tracks of a camera, that a split must not divide.
        names: One name per image, such as its path relative to the folder of the data; it decides which part an image is in.
            Images without names are identified by their content.
    """

    images: Tensor | LazyImages
    targets: Tensor
    source: str | os.PathLike[str]
    groups: Tensor | None = None
    names: Names | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor) -> Split:
        groups = None if self.groups is None else self.groups[indices]
        names = None if self.names is None else self.names.select(indices)
        return Split(self.images[indices], self.targets[indices], self.source, groups, names)

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """The labels of each level, int64 `[N]`."""
        return (self.targets,) if self.targets.ndim == 1 else self.targets.unbind(1)

    @property
    def labels(self) -> Tensor:
        """The labels of the first level, int64 `[N]`."""
        return self.levels[0]

    @property
    def contents(self) -> Tensor:
        """One number for the content of each image, int64 `[N]`: of its file, or of its pixels if it is in memory."""
        if isinstance(self.images, LazyImages):
            return self.images.contents()
        return torch.tensor([content_number(image.numpy().tobytes()) for image in self.images], dtype=torch.int64)

    @property
    def keys(self) -> Iterable[str]:
        """The key of each image: its name, or else its content in hexadecimal."""
        return self.names if self.names is not None else [f"{number % 2**64:016x}" for number in self.contents.tolist()]

    def lots(self, seed: int, part: str) -> Tensor:
        """The number in [0, 1) that decides whether an image is in `part`, float64 `[N]`; a group shares one number."""
        known_by = self.keys if self.groups is None else [f"group {number}" for number in self.groups.tolist()]
        return lots(known_by, seed, part)
