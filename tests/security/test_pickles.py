"""Pickled data sets: arrays of numbers are built from their bytes, nothing else is, and no work is done without end."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anytime.data.files import read_pickle

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"


def pickled(value: object) -> bytes:
    """The opcodes that build a value."""
    return pickle.dumps(value, 2)[2:-1]


def encoded(text: bytes, encoding: str = "latin1") -> bytes:
    return b"c_codecs\nencode\n(" + text + pickled(encoding) + b"tR"


def array_of(kind: bytes, content: bytes, shape: tuple[int, ...]) -> bytes:
    state = b"(K\x01" + pickled(shape) + kind + b"\x89" + content + b"t"
    return RECONSTRUCT + pickled((0,)) + pickled("b") + b"tR" + state + b"b"


def dtype_of(text: object, *state: object) -> bytes:
    return b"cnumpy\ndtype\n" + pickled((text, False, True)) + b"R" + pickled(state) + b"b"


ADDRESSES = encoded(pickled(struct.pack("<Q", 0x41).decode("latin1") * 10))


def nested(times: int, encoding: str) -> bytes:
    content = encoded(pickled("a"))
    for _ in range(times):
        content = encoded(content, encoding)
    return content


HOSTILE: dict[str, bytes] = {
    "addresses as numbers without objects": array_of(dtype_of("O8", 3, "|", None, None, None, 8, 8, 0), ADDRESSES, (10,)),
    "numbers that become objects": array_of(dtype_of("i8", 3, "|", None, ("a",), {"a": 1}, 8, 8, 63), b"K\x01", (1,)),
    "objects": pickled(np.array([{}, {}], dtype=object)),
    "records": pickled(np.zeros(2, "i4,i4")),
    "texts": pickled(np.array(["a", "b"])),
    "a type of a list": array_of(dtype_of([("a", "O")], 3, "|", None, None, None, 8, 8, 0), ADDRESSES, (10,)),
    "another shape": array_of(dtype_of("i8", 3, "<", None, None, None, -1, -1, 0), ADDRESSES, (10**12,)),
    "bytes that double": nested(40, "hex"),
    "a slow encoding": encoded(pickled("a" * 300_000 + "\u1234" * 300_000), "punycode"),
    "a changed function": b"c_codecs\nencode\n" + pickled({"__call__": 1}) + b"b",
    "a changed attribute": b"c_codecs\nencode\n" + pickled((None, {"_name": "dtype"})) + b"b",
    "an object of a function": b"cnumpy\ndtype\n" + pickled(("i8",)) + b"\x81",
    "a huge index": b"K\x01r\xff\xff\xff\xff",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles(kind: str, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(b"\x80\x02}" + pickled("data") + HOSTILE[kind] + b"s.")
    script = """
import resource, sys
from pathlib import Path
from anytime.data.files import read_pickle
try:
    read_pickle(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""
    if kind in ("addresses as numbers without objects", "a huge index"):  # which could end this process
        done = subprocess.run([sys.executable, "-c", script, "batch"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.startswith("batch is damaged or in an unexpected format: ")
        assert not done.stderr
    else:
        with pytest.raises(ValueError, match="is damaged or in an unexpected format") as caught:
            read_pickle(tmp_path / "batch")
        assert len(str(caught.value).removeprefix(str(tmp_path))) < 200


@pytest.mark.parametrize("kind", ["u1", "i2", "<f4", ">i8", "?"])
def test_arrays_of_numbers(kind: str, tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).astype(kind)
    for array in (values, np.asfortranarray(values)):
        for protocol in (2, 3, 4):
            (tmp_path / "batch").write_bytes(pickle.dumps({"data": array, "labels": [1, 2]}, protocol))
            content = read_pickle(tmp_path / "batch")
            assert content["data"].dtype == array.dtype
            np.testing.assert_array_equal(content["data"], array)
            assert content["labels"] == [1, 2]


def test_texts_of_python_2_are_bytes(tmp_path: Path) -> None:
    content = b"U\x03\x00\x80\xff"
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    (tmp_path / "batch").write_bytes(b"\x80\x02}U\x04data" + array_of(kind, content, (3,)) + b"s.")
    assert read_pickle(tmp_path / "batch")["data"].tolist() == [0, 128, 255]


def test_arrays_that_share_their_bytes_take_no_more_room_than_the_file(tmp_path: Path) -> None:
    text = struct.pack("<cI", b"X", 10_000) + b"a" * 10_000 + b"q\x63" + b"0"  # kept as number 99
    array = array_of(dtype_of("u1", 3, "|", None, None, None, -1, -1, 0), b"h\x63", (10_000,))
    for count, fits in ((1, True), (400, False)):
        items = b"".join(pickled(f"k{n}") + array + b"s" for n in range(count))
        (tmp_path / "batch").write_bytes(b"\x80\x02" + text + b"}" + items + b".")
        if fits:
            assert read_pickle(tmp_path / "batch")["k0"].tolist() == [97] * 10_000
        else:
            with pytest.raises(ValueError, match="its arrays need more bytes than the file has"):
                read_pickle(tmp_path / "batch")
