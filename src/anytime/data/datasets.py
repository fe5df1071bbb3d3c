"""The list of data sets, and finding one by its name."""

import difflib
import importlib
import os
from dataclasses import dataclass
from typing import Any

from anytime.data.base import ImageData
from anytime.data.sets.cars import StanfordCars
from anytime.data.sets.cifar import CIFAR10, CIFAR100
from anytime.data.sets.digits import Digits
from anytime.data.sets.folders import CUB200, ImageFolder, ImageNet
from anytime.data.sets.gtsrb import GTSRB
from anytime.data.sets.lsun import LSUN
from anytime.data.sets.mnist import MNIST, FashionMNIST
from anytime.data.sets.svhn import SVHN
from anytime.data.sets.tinyimagenet import TinyImageNet

_DATASETS: tuple[type[ImageData], ...] = (
    Digits,
    MNIST,
    FashionMNIST,
    CIFAR10,
    CIFAR100,
    SVHN,
    GTSRB,
    StanfordCars,
    TinyImageNet,
    CUB200,
    LSUN,
    ImageNet,
    ImageFolder,
)


@dataclass(frozen=True)
class Description:
    """One row of the table of data sets; numbers are the official ones, `None` where they depend on the files."""

    name: str
    title: str
    train: int | None
    test: int | None
    classes: int | None
    input_size: tuple[int, int, int]
    license: str
    homepage: str
    citation: str
    found: bool


def list_datasets() -> list[str]:
    """Names of all data sets."""
    return [dataset.__name__ for dataset in _DATASETS]


def _find(name: str) -> type[ImageData]:
    known = {dataset.__name__.casefold(): dataset for dataset in _DATASETS}
    key = name.casefold().replace("-", "").replace("_", "")
    if key in known:
        return known[key]
    if "." not in name:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0)
        raise ValueError(
            f"there is no data set {name!r}; the nearest name is {known[near[0]].__name__!r} "
            f"of {', '.join(list_datasets())}; a class of your own is named by its import path, 'package.module.Class'"
        )
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the data set {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ImageData)):
        raise ValueError(f"{name!r} is no subclass of anytime.data.ImageData")
    return found


def create_data(name: str, **arguments: Any) -> ImageData:
    """Makes a data set.

    Args:
        name: one of `list_datasets()`, in small or capital letters; or the import path of a subclass of `ImageData`.
        **arguments: of its constructor.

    Raises:
        ValueError: if there is none of this name; the message has the nearest one.
    """
    return _find(name)(**arguments)


def resolve(name: str) -> str:
    """The import path of the class that `name` (as in `create_data`) stands for.

    Raises:
        ValueError: if there is none of this name.
    """
    found = _find(name)
    return f"anytime.data.{found.__name__}" if found in _DATASETS else name


def describe(root: str | os.PathLike[str] | None = None) -> list[Description]:
    """One row for each data set; `found` says whether it lies under `root` (default as in `ImageData`)."""
    return [
        Description(
            name=dataset.__name__,
            title=dataset.title,
            train=dataset.official[0] if dataset.official else None,
            test=dataset.official[1] if dataset.official else None,
            classes=dataset.official_classes,
            input_size=dataset.input_size,
            license=dataset.license,
            homepage=dataset.homepage,
            citation=dataset.citation,
            found=dataset.official is not None and dataset.found(root),
        )
        for dataset in _DATASETS
    ]
