"""MATLAB files of unknown origin: what they claim to hold is compared with their bytes before scipy makes room for it.

The format is level 5 of "MAT-File Format" (MathWorks): elements of a type, a length and data. A matrix is flags with its
class, dimensions, a name, and its numbers or the matrices in its cells.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _OBJECT, _CHARACTERS = 1, 2, 3, 4
_NUMBERS = range(6, 16)  # classes, each number of which takes a byte at least
_START = 4096  # bytes that hold flags, dimensions and name of a matrix
_MOST_NESTED, _DEPTH = 2**26, 50  # bytes and levels of cells and structures
_RATIO, _SMALL = 100, 2**24  # of what is unpacked to what is packed, beyond some bytes


def check_unpacked(packed: int, unpacked: int) -> None:
    """Raises ValueError if so many bytes are no data set's that was packed into so few."""
    if unpacked > _RATIO * packed + _SMALL:
        raise ValueError(f"it unpacks {packed:,} bytes to {unpacked:,}")


def check_mat(path: Path) -> None:
    """Raises ValueError if a file of level 5 claims to hold more than its bytes can; other files are left to scipy."""
    with path.open("rb") as file:
        header = file.read(128)
        if len(header) < 128 or header[126:] not in (b"IM", b"MI"):
            return
        order = "<" if header[126:] == b"IM" else ">"
        size, unpacked = path.stat().st_size, 0
        while file.tell() + 8 <= size:
            kind, length = struct.unpack(f"{order}2I", file.read(8))
            end = file.tell() + length
            if end > size:
                raise ValueError(f"it ends within an element of {length:,} bytes")
            unpacked += _check_variable(file, kind, length, order)
            check_unpacked(size, unpacked)
            file.seek(end)


def _check_variable(file: BinaryIO, kind: int, length: int, order: str) -> int:
    """The unpacked bytes of a variable."""
    if kind == _MATRIX:
        data = file.read(min(length, _MOST_NESTED))
        start, whole = data[:_START], length
    elif kind == _COMPRESSED:
        data = file.read(min(length, _MOST_NESTED))
        unpacked = zlib.decompressobj().decompress(data, _START + 8)
        if len(unpacked) < 8:
            raise ValueError("it holds an empty variable")
        _, whole = struct.unpack(f"{order}2I", unpacked[:8])
        check_unpacked(length, whole)
        start = unpacked[8:]
    else:
        return 0
    if whole and _class_of(memoryview(start), order) not in (_CELL, _STRUCT, _OBJECT):
        _check_matrix(memoryview(start), order, whole)
    elif whole > _MOST_NESTED:
        raise ValueError(f"it holds cells of {whole:,} bytes, more than {_MOST_NESTED:,}")
    else:
        data = data if kind == _MATRIX else zlib.decompressobj().decompress(data, whole + 8)[8:]
        _check_matrix(memoryview(data), order, whole)
    return int(whole)


def _class_of(data: memoryview, order: str) -> int:
    return int(struct.unpack(f"{order}I", _next(_elements(data, order))[:4])[0] & 0xFF)


def _check_matrix(data: memoryview, order: str, whole: int) -> None:
    """Checks a matrix of `whole` bytes, of which `data` are the first, and those in its cells."""
    pending = [(data, whole, 1)]
    while pending:
        data, whole, depth = pending.pop()
        if not whole:
            continue
        if depth > _DEPTH:
            raise ValueError(f"its cells are nested more than {_DEPTH} deep")
        elements, kind = _elements(data, order), _class_of(data, order)
        _next(elements)  # the flags
        sizes = _next(elements)
        count = math.prod(struct.unpack(f"{order}{len(sizes) // 4}i", sizes))
        _next(elements)  # the name
        if kind in (_STRUCT, _OBJECT):
            if kind == _OBJECT:
                _next(elements)
            width, names = _next(elements), _next(elements)
            count *= len(names) // max(1, struct.unpack(f"{order}i", width[:4])[0])
        nested = kind in (_CELL, _STRUCT, _OBJECT)
        if not (nested or kind == _CHARACTERS or kind in _NUMBERS):
            raise ValueError(f"it holds a matrix of the kind {kind}, which no data set has")
        if not 0 <= count <= whole // (8 if nested else 1):
            raise ValueError(f"it claims {count:,} values in {whole:,} bytes")
        if nested:
            pending += [(inner, len(inner), depth + 1) for inner in elements]


def _elements(data: memoryview, order: str) -> Iterator[memoryview]:
    """The bytes of each element; the last may be cut short."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(f"{order}2I", data, at)
        if small := kind >> 16:  # the data lie in the tag
            yield data[at + 4 : at + 4 + small]
            at += 8
        else:
            yield data[at + 8 : at + 8 + length]
            at += 8 + length + -length % 8


def _next(elements: Iterator[memoryview]) -> memoryview:
    if (found := next(elements, None)) is None:
        raise ValueError("it ends within a matrix")
    return found
