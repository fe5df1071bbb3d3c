"""Sets too large for memory: images are read, augmented and resized by worker processes when they are needed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from anytime.data.batches import Batch, Loader
from anytime.data.files import to_tensor


class LazyImages:
    """Images read one at a time.

    Args:
        read: returns the image of a row, RGB; has to survive pickling where workers are spawned.
        rows: int64 `[N]`, the rows of `read` that are used.
    """

    def __init__(self, read: Callable[[int], Image.Image], rows: Tensor) -> None:
        self.read, self.rows = read, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> "LazyImages":
        return LazyImages(self.read, self.rows[indices])

    def open(self, index: int) -> Image.Image:
        """Reads one image."""
        return self.read(int(self.rows[index]))


class _Prepared(Dataset[tuple[Tensor, Tensor] | Exception]):
    """Items are (sample, key): the random transform of a sample is a function of its key. A damaged image is an exception."""

    def __init__(self, files: LazyImages, targets: Tensor, transform: Callable[[Any], Any]) -> None:
        self.files, self.targets, self.transform = files, targets, transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor] | Exception:
        index, key = item
        try:
            image = self.files.open(index)
        except (ValueError, OSError) as error:
            return error  # raised by a worker, it would come with its whole traceback as its message
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            return to_tensor(self.transform(image)), self.targets[index]


def _batch(samples: list[Any]) -> Any:
    """The samples as a batch; the exception if one of them is."""
    damaged = [sample for sample in samples if isinstance(sample, Exception)]
    return damaged[0] if damaged else default_collate(samples)


class _Plan:
    """A batch sampler made of the batches from number `start` on."""

    def __init__(self, batch: Callable[[int], list[tuple[int, int]]], start: int, stop: int) -> None:
        self.batch, self.start, self.stop = batch, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, range(self.start, self.stop))


RESIZE_RATIO = 8 / 7
"""The usual one: 256 pixels for 224."""


def resize_and_crop(height: int, width: int, resize_ratio: float = RESIZE_RATIO) -> v2.Transform:
    """The view for testing: the shorter side resized to `resize_ratio` times the longer wanted one, the centre cut out."""
    return v2.Compose([v2.Resize(round(max(height, width) * resize_ratio)), v2.CenterCrop((height, width))])


class StreamedBatches(Loader):
    """Batches of images that are read when needed; order, sharding and resumption as in `Batches`.

    Args:
        files: N images.
        targets: int64 `[N]`, or `[N, D]` for D label levels.
        batch_size: samples a batch and process.
        input_size: (channels, height, width) of the images given out.
        shuffle: training order (see `Loader`); otherwise evaluation order.
        crop: a random resized crop instead of the centre.
        flip: mirror half of the images left to right.
        seed: of order and augmentation.
        rank: number of this process.
        world_size: number of processes.
        workers: processes that read; 0 reads in this one.
        device: where batches are put.
    """

    def __init__(
        self,
        files: LazyImages,
        targets: Tensor,
        batch_size: int,
        input_size: tuple[int, int, int],
        *,
        shuffle: bool = False,
        crop: bool = False,
        flip: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(len(files), batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        size = input_size[1:]
        view = v2.RandomResizedCrop(size) if crop else resize_and_crop(*size)
        transform = v2.Compose([view, v2.RandomHorizontalFlip()]) if flip else view
        self.images = _Prepared(files, targets, transform)
        self.targets, self.workers, self.device = targets, workers, torch.device(device)

    def _fetch(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order(epoch)
        keys = self._keys(order, epoch)

        def batch(number: int) -> list[tuple[int, int]]:
            return list(zip(self._share(order, number).tolist(), self._share(keys, number).tolist(), strict=True))

        loader = DataLoader(
            self.images,
            batch_sampler=_Plan(batch, start, len(self)),
            num_workers=self.workers,
            collate_fn=_batch,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that loading leaves the global stream alone
        )
        for found in loader:
            if isinstance(found, Exception):
                raise found
            images, targets = found
            images = images.to(self.device, non_blocking=True)
            yield images.float().div_(255), targets.to(self.device, non_blocking=True)
