"""Loaders whose batches are a function of (seed, epoch) only, so that training can resume at any step."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from anytime.data import hashing
from anytime.data.augment import Augmentation, mirrored

Batch = tuple[Tensor, Tensor]
"""Images float32 `[B, C, H, W]` in [0, 1] and targets int64 `[B]`, or `[B, D]` for D label levels."""

_ORDER, _AUGMENT, _FIRST_MIRRORED = 1, 2, 3


class Loader(ABC):
    """The order of batches, whatever they are made from.

    With G = `batch_size * world_size`, global batch k of an epoch is `order[k * G : (k + 1) * G]`; each process takes
    its contiguous share. In training (`shuffle`) the order is a permutation given by (seed, epoch), and an incomplete
    last global batch is dropped unless it is the only one. Evaluation keeps the order and every sample, each in
    exactly one process; the shares of its last batch differ by at most one sample, and a process whose share is
    empty gets one batch fewer, or one empty batch if that is the only one.

    Iteration starts the epoch set by `set_epoch`, or the next one if the last was consumed entirely. After
    `load_state_dict` it resumes in mid-epoch, once.

    Args:
        size: Number of samples.
        batch_size: Samples per batch and process.
        shuffle: Training order; otherwise evaluation order.
        seed: Seed of the order and the augmentation.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        groups: int64 `[N]`, the group of each sample in the order of the batches, or None if each is independent. Not set if
            that is unknown or the order varies.
    """

    groups: Tensor | None

    def __init__(
        self, size: int, batch_size: int, *, shuffle: bool = False, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not size:
            raise ValueError("a loader needs at least one sample, got none")
        if shuffle and size < world_size:
            raise ValueError(f"{size} training samples cannot be shared by {world_size} processes")
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._batch = 0
        self._resuming = False

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size * self.world_size)
        return max(full + (not self.shuffle and self.rank < rest), 1)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration starts; a loaded position within this same epoch is kept."""
        if epoch != self.epoch or not self._resuming:
            self._batch = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were yielded so far."""
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration resume after the batches that had been yielded when `state` was taken."""
        self.epoch, self._batch = state["epoch"], state["batch"]
        self._resuming = True

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is decided before the first batch is requested, because Lightning calls iter() early.
        if self._batch >= len(self):
            self.epoch, self._batch = self.epoch + 1, 0
        elif not self._resuming:
            self._batch = 0
        self._resuming = False
        for batch in self._generate(self.epoch, self._batch):
            self._batch += 1
            yield batch

    def _order(self, epoch: int) -> Tensor:
        """All samples in the order of `epoch`, int64 `[size]` on the CPU."""
        if self.shuffle:
            return hashing.permutation(self.size, self.seed, _ORDER, epoch)
        return torch.arange(self.size)

    def _keys(self, indices: Tensor, epoch: int) -> Tensor:
        """The keys that determine the augmentation of each sample in `epoch`."""
        return hashing.keys(indices, self.seed, _AUGMENT, epoch)

    def _share(self, order: Tensor, batch: int) -> Tensor:
        """This process's share of global batch number `batch`."""
        samples = self.batch_size * self.world_size
        return order[batch * samples : (batch + 1) * samples].tensor_split(self.world_size)[self.rank]

    @abstractmethod
    def _generate(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's batches of `epoch`, starting with number `start`."""


class Batches(Loader):
    """Batches of a data set held in memory as uint8 on the training device and augmented there batch by batch.

    Args:
        images: uint8 `[N, C, H, W]`.
        targets: int64 `[N]`, or `[N, D]` for D label levels, on the same device.
        batch_size: Samples per batch and process.
        augment: Applied to every batch; `None` leaves the images as they are.
        alternate: Mirrors a random half of the images in the first epoch, the other half in the next, and so on.
        **order: Further arguments of `Loader`.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        augment: Augmentation | None = None,
        alternate: bool = False,
        **order: Any,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}")
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images but {len(targets)} targets")
        super().__init__(len(images), batch_size, **order)
        self.images, self.targets, self.augment, self.alternate = images, targets, augment, alternate

    def _generate(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order(epoch)
        keys = self._keys(order, epoch).to(self.images.device)
        order = order.to(self.images.device)  # once per epoch, so that no batch waits for a copy
        for batch in range(start, len(self)):
            indices = self._share(order, batch)
            images = self.images[indices]
            if self.augment:
                images = self.augment(images, self._share(keys, batch))
            if self.alternate:
                first = hashing.randint(hashing.keys(indices, self.seed), 2, _FIRST_MIRRORED)
                images = mirrored(images, (first + epoch) % 2)
            yield images.float().div_(255), self.targets[indices]
