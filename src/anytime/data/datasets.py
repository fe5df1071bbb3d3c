"""The table of data sets, and look-up by name."""

import os
from dataclasses import dataclass
from typing import Any

from anytime.data.base import ImageData
from anytime.support.names import import_subclass, nearest

_NAMES = """
Digits MNIST FashionMNIST CIFAR10 CIFAR100 SVHN GTSRB StanfordCars TinyImageNet CUB200 LSUN ImageNet ImageFolder
""".split()  # noqa: SIM905
"""Classes of `anytime.data`."""


@dataclass(frozen=True)
class Description:
    """One row of the table of data sets; numbers are the official ones, `None` if they depend on the files."""

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
    return list(_NAMES)


def resolve(name: str) -> str:
    """The import path of the class that `name` stands for; takes and raises what `create_data` does."""
    known = {known.casefold(): known for known in _NAMES}
    key = name.casefold().replace("-", "").replace("_", "")
    if key in known:
        return f"anytime.data.{known[key]}"
    if "." not in name:
        suggestion = nearest(key, known).partition("; valid")[0]
        raise ValueError(
            f"unknown data set {name!r}{suggestion}; valid: {', '.join(_NAMES)}, "
            "or the import path of a custom class, 'package.module.Class'"
        )
    import_subclass(name, ImageData, "data set")
    return name


def create_data(name: str, **arguments: Any) -> ImageData:
    """Creates a data set.

    Args:
        name: One of `list_datasets()`; case, hyphens and underscores do not matter. Or the import path of a subclass of
            `ImageData`.
        **arguments: Arguments of its constructor.

    Raises:
        ValueError: There is no data set of this name; the message suggests the nearest one.
    """
    return import_subclass(resolve(name), ImageData, "data set")(**arguments)


def describe(root: str | os.PathLike[str] | None = None) -> list[Description]:
    """One row per data set; `found` tells whether it is under `root` (default as in `ImageData`)."""
    rows = []
    for name in _NAMES:
        dataset = import_subclass(resolve(name), ImageData, "data set")
        train, test, classes = dataset.official or (None, None, None)
        facts = {key: getattr(dataset, key) for key in ("title", "input_size", "license", "homepage", "citation")}
        found = dataset.official is not None and dataset.found(root)
        rows.append(Description(name, train=train, test=test, classes=classes, found=found, **facts))
    return rows
