"""MATLAB files of a few bytes that claim to hold gigabytes, and honest ones of every kind."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from anytime.data.files import read_mat

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
MANY = (20_000, 20_000)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, sizes: tuple[int, ...], rest: bytes = b"") -> bytes:
    dimensions = struct.pack(f"<{len(sizes)}i", *sizes)
    return element(14, element(6, struct.pack("<II", kind, 0)) + element(5, dimensions) + element(1, b"X") + rest)


def packed(data: bytes) -> bytes:
    data = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(data)) + data


def nested(levels: int) -> bytes:
    whole = matrix(9, (1, 1), element(2, b"1"))
    for _ in range(levels):
        whole = matrix(1, (1, 1), whole)
    return whole


FIELDS = element(5, struct.pack("<i", 8)) + element(1, b"a".ljust(8, b"\0"))
BOMBS = {
    "cells": (matrix(1, MANY), "it claims 400,000,000 values in 48 bytes"),
    "packed cells": (packed(matrix(1, MANY)), "it claims 400,000,000 values in 48 bytes"),
    "cells in a cell": (matrix(1, (1, 1), matrix(1, MANY)), "it claims 400,000,000 values in 48 bytes"),
    "structures": (matrix(2, MANY, FIELDS), "it claims 400,000,000 values in 80 bytes"),
    "text": (matrix(4, MANY, element(16, b"")), "it claims 400,000,000 values in 56 bytes"),
    "numbers": (matrix(9, MANY, element(2, b"")), "it claims 400,000,000 values in 56 bytes"),
    "less than none": (matrix(1, (-1, 5)), "it claims -5 values"),
    "packed zeros": (packed(struct.pack("<II", 14, 2**30) + bytes(10**6)), "it unpacks [0-9,]+ bytes to 1,073,741,824"),
    "many variables": (40 * packed(matrix(9, (1000, 1000), element(2, bytes(10**6)))), "it unpacks [0-9,]+ bytes to [0-9,]+"),
    "functions": (matrix(16, (1, 1)), "a matrix of the kind 16, which no data set has"),
    "a long element": (struct.pack("<II", 14, 2**31), "it ends within an element of 2,147,483,648 bytes"),
    "a short matrix": (element(14, element(6, bytes([9, 0, 0, 0, 0, 0, 0, 0]))), "it ends within a matrix"),
    "thousands of levels": (nested(2_000), "its cells are nested more than 50 deep"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_one_sentence_before_they_take_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = BOMBS[kind]
    (tmp_path / "a.mat").write_bytes(HEADER + content)
    monkeypatch.setattr("anytime.data.files.loadmat", lambda *_, **__: pytest.fail("scipy was given the file"))
    with pytest.raises(ValueError, match=rf"a\.mat is damaged or in an unexpected format: .*{message}"):
        read_mat(tmp_path / "a.mat", "X")


@pytest.mark.parametrize("compressed", [False, True])
def test_honest_files_are_read(compressed: bool, tmp_path: Path) -> None:
    images = np.arange(8 * 8 * 3 * 50, dtype=np.uint8).reshape(8, 8, 3, 50)
    rows = np.array([(1, "a"), (2, "bc")], dtype=[("class", object), ("name", object)])
    cells = np.array([["x", np.zeros((0, 0))], [np.ones(3), "y"]], dtype=object)
    values = {"images": images, "zeros": np.zeros((3000, 500)), "rows": rows, "cells": cells, "one": 3.5}
    savemat(tmp_path / "a.mat", values, do_compression=compressed)
    found = read_mat(tmp_path / "a.mat", *values)
    assert (found[0] == images).all()
    assert found[1].shape == (3000, 500)
    assert [row["name"] for row in found[2]] == ["a", "bc"]
    assert found[3][1, 1] == "y"
    assert found[4] == [3.5]
