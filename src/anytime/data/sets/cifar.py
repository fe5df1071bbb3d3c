"""CIFAR-10 and CIFAR-100, in their official binary and Python (pickled) layouts."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor

from anytime.data.base import ImageData, Split
from anytime.data.files import check_labels, downloading, errors_naming, read_pickle
from anytime.data.taxonomy import LabelLevels

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

CIFAR100_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm""".split()  # noqa: SIM905

CIFAR100_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
vehicles_1 vehicles_2""".split()  # noqa: SIM905

_COARSE_LABELS = """
4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10
12 14 16 9 11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1
9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13""".split()  # noqa: SIM905

CIFAR100_SUPERCLASS = tuple(map(int, _COARSE_LABELS))
"""The coarse label of each fine label."""


def cifar100_levels() -> LabelLevels:
    """CIFAR-100's own two label levels: 100 classes, 5 in each of 20 superclasses."""
    return LabelLevels((tuple(CIFAR100_FINE), tuple(CIFAR100_COARSE)), (tuple(range(100)), CIFAR100_SUPERCLASS))


class _CIFAR(ImageData):
    """Reads both layouts, and prefers the binary one if both are present."""

    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
    license = "free for research; no formal licence"
    citation = "Krizhevsky 2009"
    batches: ClassVar[dict[str, list[str]]]
    """Names of the files of a split, without the suffix that they have in the binary layout."""
    columns: ClassVar[dict[str, int]]
    """Number of classes by label name in the pickled layout, in the order of the binary label bytes."""

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        folder = self.find(*self.files)
        binary = folder.name == self.files[0]
        read = self._read_binary if binary else self._read_pickled
        paths = [self.find(f"{folder.name}/{name}{'.bin' if binary else ''}") for name in self.batches[split]]
        pixels, labels = zip(*map(read, paths), strict=True)
        for path, columns in zip(paths, labels, strict=True):
            for column, number in zip(columns.T, self.columns.values(), strict=True):
                check_labels(column, number, path)
        return Split(torch.cat(pixels).view(-1, 3, 32, 32), self.choose_labels(torch.cat(labels)), folder)

    def choose_labels(self, labels: Tensor) -> Tensor:
        """The targets, given all label columns `[N, D]`."""
        return labels[:, 0]

    def _read_binary(self, path: Path) -> tuple[Tensor, Tensor]:
        record = len(self.columns) + 3072
        with errors_naming(path):
            data = np.fromfile(path, dtype=np.uint8)
            if not len(data) or len(data) % record:
                raise ValueError(f"{len(data)} bytes are not whole records of {record}; it may be truncated")
        labels, pixels = torch.from_numpy(data).view(-1, record).split([len(self.columns), 3072], dim=1)
        return pixels, labels.long()

    def _read_pickled(self, path: Path) -> tuple[Tensor, Tensor]:
        content = read_pickle(path)
        with errors_naming(path):
            pixels = torch.from_numpy(content["data"])
            labels = torch.tensor([content[name] for name in self.columns]).T
            if pixels.dtype != torch.uint8 or pixels.shape != (len(labels), 3072):
                raise ValueError(f"{len(labels)} labels but images of {pixels.dtype} {list(pixels.shape)}")
        return pixels, labels

    def fetch(self) -> None:
        if not (self.root / self.files[0]).exists():  # torchvision downloads the other layout
            kind = getattr(torchvision.datasets, self.title.replace("-", ""))
            with downloading(kind.url):
                kind(self.root, download=True)


class CIFAR10(_CIFAR):
    """CIFAR-10: 60,000 colour images of 32x32 in 10 classes; takes the arguments of `ImageData`.

    Reads `cifar-10-batches-bin` and `cifar-10-batches-py`.
    """

    title = "CIFAR-10"
    official = (50_000, 10_000, 10)
    files = ("cifar-10-batches-bin", "cifar-10-batches-py")
    batches: ClassVar = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    columns: ClassVar = {"labels": 10}

    def read_names(self) -> list[list[str]]:
        return [CIFAR10_NAMES]


class CIFAR100(_CIFAR):
    """CIFAR-100: 60,000 colour images of 32x32 in 100 fine classes of 20 coarse ones.

    Reads `cifar-100-binary` and `cifar-100-python`.

    Args:
        labels: `"fine"`, `"coarse"`, or `"both"`: targets `[N, 2]` (fine, coarse) and `levels = (100, 20)`.
        **kwargs: Arguments of `ImageData`. `classes` chooses by fine names unless labels are `"coarse"`.
    """

    title = "CIFAR-100"
    official = (50_000, 10_000, 100)
    files = ("cifar-100-binary", "cifar-100-python")
    batches: ClassVar = {"train": ["train"], "test": ["test"]}
    columns: ClassVar = {"coarse_labels": 20, "fine_labels": 100}

    def __init__(self, labels: Literal["fine", "coarse", "both"] = "fine", **kwargs: Any) -> None:
        if labels not in ("fine", "coarse", "both"):
            raise ValueError(f"labels must be 'fine', 'coarse' or 'both', got {labels!r}")
        super().__init__(**kwargs)
        self.labels = labels

    def read_names(self) -> list[list[str]]:
        names = {"fine": CIFAR100_FINE, "coarse": CIFAR100_COARSE}
        return list(names.values()) if self.labels == "both" else [names[self.labels]]

    def choose_labels(self, labels: Tensor) -> Tensor:
        coarse, fine = labels.T
        return {"fine": fine, "coarse": coarse, "both": torch.stack([fine, coarse], 1)}[self.labels].contiguous()
