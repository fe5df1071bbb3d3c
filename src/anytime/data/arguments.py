"""The values that the arguments of data sets may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from anytime.data.augment import Flip, Padding
from anytime.data.noise import Noise
from anytime.support.names import nearest

CropFlip = Literal["none", "crop", "flip", "crop+flip"]
Augment = Literal["standard", CropFlip]
SplitBy = Literal["names", "positions"]
_CHOICES: dict[str, tuple[Any, ...]] = {
    "augment": get_args(Augment),
    "crop_padding": get_args(Padding),
    "noise": (None, *get_args(Noise)),
    "split_by": get_args(SplitBy),
    "flip": get_args(Flip),
}


def check_arguments(options: Mapping[str, Any], numbers: Mapping[str, int | None], workers: int, validation: float) -> None:
    """Raises ValueError if an argument of a data set is out of range.

    Args:
        options: Arguments that have a few values, by name.
        numbers: Arguments that are at least 1 or None, by name.
        workers: A number of processes.
        validation: A share below 1, or a number of images.
    """
    for name, option in options.items():
        if option not in _CHOICES[name]:
            raise ValueError(f"unknown {name} {option!r}{nearest(str(option), map(str, _CHOICES[name]))}")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not 0 <= workers <= 512:
        raise ValueError(f"workers must be in 0..512, got {workers}")
    if not (0 <= validation < 1 or (validation >= 1 and validation == int(validation))):
        raise ValueError(f"validation must be a share in [0, 1) or a number of images, got {validation}")
