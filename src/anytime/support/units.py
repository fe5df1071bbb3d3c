"""Quantities as users give and read them: seconds, sizes of images, MACs, budgets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from operator import index
from typing import Any, Literal

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_LONGEST = 1e9  # seconds, about 32 years; beyond it a deadline is none
_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def real_number(given: Any, wanted: str) -> float:
    """A number, or a numpy or torch scalar, as a float; numbers beyond the range of float become infinite.

    Args:
        given: What the user gave.
        wanted: The beginning of the error: `"until must be a time of the clock in seconds"`.

    Raises:
        ValueError: It is NaN.
        TypeError: It is a bool, or no real number.
    """
    value = given.item() if getattr(given, "ndim", None) == 0 else given
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{wanted}, got {given!r}")
    try:
        number = float(value)
    except OverflowError:
        return math.inf if given > 0 else -math.inf
    if math.isnan(number):
        raise ValueError(f"{wanted}, got {given!r}")
    return number


def deadline_seconds(given: Any, name: str = "deadline") -> float | None:
    """Seconds until a deadline: a number, a numpy or torch scalar, or text with a unit (`"5ms"`, `"0.2s"`, `"800us"`).

    0 and below, -inf included, is a deadline that has passed. None, inf and anything above 1e9 is no deadline: None.

    Args:
        given: What the user gave.
        name: Its name in error messages.

    Raises:
        ValueError: It is NaN, or text that is not a number with one of these units.
        TypeError: It is a bool or of another type.
    """
    if given is None:
        return None
    wanted = f"{name} must be a number of seconds, or text with a unit like '5ms', '0.2s' or '800us'"
    if isinstance(given, str):
        match = re.fullmatch(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(s|ms|us)\s*", given)
        if not match:
            raise ValueError(f"{wanted}, got {given!r}")
        seconds = float(match[1]) * _UNITS[match[2]]
    else:
        seconds = real_number(given, wanted)
    return None if seconds > _LONGEST else seconds


def guard_seconds(given: Any) -> float:
    """Seconds to keep free before a deadline: a number, a scalar or text as for `deadline_seconds`; at most 1e9.

    Raises:
        ValueError: It is below 0, NaN, or text that is not a number with a unit.
        TypeError: It is None, a bool or of another type.
    """
    seconds = deadline_seconds(given, "guard")
    if given is None:
        raise TypeError("guard must be at least 0 seconds, got None")
    if seconds is not None and seconds < 0:
        raise ValueError(f"guard must be at least 0 seconds, got {given!r}")
    return _LONGEST if seconds is None else seconds


def typed_seconds(text: str, name: str = "deadline") -> float | None:
    """`deadline_seconds` of what was typed on a command line: `0.005` is a number there, and `5ms` is text."""
    try:
        return deadline_seconds(float(text), name)
    except ValueError:
        return deadline_seconds(text, name)


def is_list(given: Any) -> bool:
    """Whether something holds values in order: no text, bytes, mapping, set or scalar, whose elements mean something else."""
    if isinstance(given, str | bytes | bytearray | memoryview | Mapping | Set):
        return False
    return isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0


ImageSize = int | str | Sequence[int]  # see `image_size`


def image_size(given: ImageSize) -> tuple[int, int, int]:
    """(channels, height, width) as given, or of square colour images from their side: 224 is (3, 224, 224).

    Args:
        given: Three whole numbers or one, or text of them: `"3,224,224"`, `"224"`.

    Raises:
        ValueError: It is none of these, or a number is below 1.
    """
    parts: Any = given.split(",") if isinstance(given, str) else given if is_list(given) else [given]
    try:
        numbers = [int(part) if isinstance(part, str) else index(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    numbers = [3, *numbers * 2] if len(numbers) == 1 else numbers
    if len(numbers) != 3 or min(numbers) < 1 or given is True:
        raise ValueError(f"input_size must be (channels, height, width), or 224 for square colour images, got {given!r}")
    return numbers[0], numbers[1], numbers[2]


def macs_text(macs: float) -> str:
    """MACs with four significant digits and k, M, G or T: `"12.24 M"`."""
    power = 0
    while macs >= 999.95 and power < 4:
        macs, power = macs / 1000, power + 1
    return f"{macs:#.4g} {' kMGT'[power]}" if power else f"{macs:.0f}"


def ms_text(seconds: float) -> str:
    """Seconds as milliseconds with three significant digits: 0.00123 gives `"1.23"`, -2 gives `"-2,000"`."""
    return f"{seconds * 1e3:#.3g}" if abs(seconds) < 0.0995 else f"{seconds * 1e3:,.0f}"


def parse_budget(text: str, whole: float) -> tuple[float, Literal["macs", "seconds"]]:
    """A mean cost from `"50%"` (of `whole` MACs), `"40M"` (MACs) or `"2ms"`: the amount and its unit, "macs" or "seconds".

    Raises:
        ValueError: The text is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[kMGT])\s*", text)
    if match:
        amount = float(match[1])
        return (amount / 100 * whole if match[2] == "%" else amount * _COUNTS[match[2]]), "macs"
    if re.search(r"[0-9]\s*(s|ms|us)\s*$", text) and (seconds := deadline_seconds(text, "--budget") or 0.0) > 0:
        return seconds, "seconds"
    raise ValueError(f"--budget must be a mean cost like 50%, 40M (MACs) or 2ms, got {text!r}")
