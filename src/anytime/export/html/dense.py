"""Bytes as the text of a script element: 8 bytes of UTF-8 for 7 of data, where base64 needs 4 for 3."""

from __future__ import annotations

import numpy as np

FORBIDDEN = (0, 13, 60)
"""NUL, carriage return and `<`, which HTML changes or reads as markup."""
FIRST = 0xA0  # of the characters of two bytes; those before it are control characters


def dense(data: bytes) -> str:
    """The data in symbols of 7 bits, the highest first, each as the character of its number.

    A forbidden symbol and the one after it are one character of two bytes: `FIRST + 128 i + next`, i the place in `FORBIDDEN`.
    The last symbols may hold more bits than there are data.

    Example:
        >>> from anytime.export.html.dense import dense
        >>> dense(b"abc")
        '0XL0'
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    rows = np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7)
    symbols = np.append(np.packbits(rows, axis=1)[:, 0] >> 1, np.uint8(0))  # a forbidden one at the end has one after it
    codes, kept, end = symbols.astype("<u2"), np.ones(len(symbols), bool), -1
    kept[-1] = False
    for place in np.flatnonzero(np.isin(symbols[:-1], FORBIDDEN)).tolist():
        if place > end:  # not taken by the one before it
            end = place + 1
            codes[place], kept[end] = FIRST + 128 * FORBIDDEN.index(int(symbols[place])) + int(symbols[end]), False
    return codes[kept].tobytes().decode("utf-16-le")
