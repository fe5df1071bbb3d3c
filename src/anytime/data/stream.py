"""Data sets too large for memory: worker processes read, augment and resize images on demand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from anytime.data.batches import Batch, Loader
from anytime.data.workers import outlive_signals, signals_held
from anytime.support.views import middle_view, to_tensor

RESIZE_RATIO = 8 / 7
"""The usual ratio: 256 pixels for 224."""


@dataclass(frozen=True)
class LazyImages:
    """Images read one at a time.

    Args:
        read: Returns the image of a row, RGB; must be picklable where workers are spawned. Its method `contents(rows)`, if
            it has one, gives one number for the content of each row.
        rows: int64 `[N]`, the rows of `read` in use.
    """

    read: Callable[[int], Image.Image]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> "LazyImages":
        return LazyImages(self.read, self.rows[indices])

    def contents(self) -> Tensor:
        """One number for the content of each image, int64 `[N]`; 0 where it cannot be told without reading the image."""
        read: Callable[[Tensor], Tensor] = getattr(self.read, "contents", torch.zeros_like)
        return read(self.rows)

    def open(self, index: int) -> Image.Image:
        """Reads one image."""
        return self.read(int(self.rows[index]))


class _TransformedImages(Dataset[tuple[Tensor, Tensor] | Exception]):
    """Indexed by (sample, key): the key determines the random transform. A damaged image gives an exception."""

    def __init__(self, files: LazyImages, targets: Tensor, transform: Callable[[Any], Any]) -> None:
        self.files, self.targets, self.transform = files, targets, transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor] | Exception:
        index, key = item
        try:
            image = self.files.open(index)
        except (ValueError, OSError) as error:
            return error  # raised in a worker, its message would become a whole traceback
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            return to_tensor(self.transform(image)), self.targets[index]


def _collate(samples: list[Any]) -> Any:
    """The samples as a batch, or the first exception among them; None if there are no samples."""
    if not samples:
        return None
    return next((sample for sample in samples if isinstance(sample, Exception)), None) or default_collate(samples)


class StreamedBatches(Loader):
    """Batches of images that are read on demand; order, sharding and resumption as in `Batches`.

    Args:
        files: N images.
        targets: int64 `[N]`, or `[N, D]` for D label levels.
        batch_size: Samples per batch and process.
        input_size: (channels, height, width) of the images in a batch.
        resize_ratio: The centre is that of the image whose shorter side is this multiple of the longer side of a batch's.
        crop: Whether to take a random resized crop instead of the centre.
        flip: Whether to mirror half of the images left to right.
        workers: Number of reading processes; 0 reads in this one.
        device: Device that batches are moved to.
        **order: Further arguments of `Loader`.
    """

    def __init__(
        self,
        files: LazyImages,
        targets: Tensor,
        batch_size: int,
        input_size: tuple[int, int, int],
        *,
        resize_ratio: float = RESIZE_RATIO,
        crop: bool = False,
        flip: bool = False,
        workers: int = 0,
        device: torch.device | str = "cpu",
        **order: Any,
    ) -> None:
        super().__init__(len(files), batch_size, **order)
        self.input_size = input_size
        size = input_size[1:]
        view = v2.RandomResizedCrop(size) if crop else partial(middle_view, size=size, resize_ratio=resize_ratio)
        transform = v2.Compose([view, v2.RandomHorizontalFlip()]) if flip else view
        self.images = _TransformedImages(files, targets, transform)
        self.targets, self.workers, self.device = targets, workers, torch.device(device)

    def _generate(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order(epoch)
        keys = self._keys(order, epoch)

        def items(batch: int) -> list[tuple[int, int]]:
            return list(zip(self._share(order, batch).tolist(), self._share(keys, batch).tolist(), strict=True))

        loader = DataLoader(
            self.images,
            batch_sampler=map(items, range(start, len(self))),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # a separate one, so that loading does not advance the global stream
        )
        with signals_held():
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            images, targets = batch or (torch.empty(0, *self.input_size, dtype=torch.uint8), self.targets[:0])
            images = images.to(self.device, non_blocking=True)
            yield images.float().div_(255), targets.to(self.device, non_blocking=True)
