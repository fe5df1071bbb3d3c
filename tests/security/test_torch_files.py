"""Small files in torch's format that would take gigabytes or hours to read, and honest ones that resemble them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime.models.surgery.weights import read_weights
from anytime.training.checkpoints import read_checkpoint

SIZE = b"J" + (2**31 - 1).to_bytes(4, "little")
BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n" + SIZE + b"\x85R."


def encoded(codec: bytes, times: int) -> bytes:
    """A pickle that encodes one byte several times."""
    name = b"X" + len(codec).to_bytes(4, "little") + codec
    start = b"X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02" + b"c_codecs\nencode\n" * (times + 1) + start + (name + b"\x86R") * times + b"."


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")


def old(path: Path, content: bytes) -> None:
    """As torch wrote before version 1.6: a magic number, a version, facts, the content and the keys of its tensors."""
    magic = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(magic) + content + pickle.dumps([], 2))


@pytest.mark.parametrize("write", [zipped, old])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BYTEARRAY, "bytearray"),
        (encoded(b"hex", 32), "hex"),
        (encoded(b"HEX-codec", 32), "hex"),
        (encoded(b"idna", 1), "idna"),
    ],
)
@pytest.mark.parametrize("read", [read_weights, read_checkpoint])
def test_pickles_that_swell(
    write: Callable[..., None], content: bytes, message: str, read: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    write(tmp_path / "w.pt", content)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ValueError, match=message if write is zipped or read is read_weights else "not a zip file"):
        read(tmp_path / "w.pt")


def test_a_compressed_pickle(tmp_path: Path) -> None:
    zipped(tmp_path / "w.pt", b"\x80\x02X" + (10**7).to_bytes(4, "little") + b"a" * 10**7 + b".", zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"its parts claim 10,000,0\d\d bytes, more than the file has"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1).expand(10**5, 10**5), "repeat few values 10,000,000,000 times"),
        (torch.ones(3).to_sparse(), "sparse"),
        (torch.ones(10**9, device="meta"), "have no values"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_without_values(tensor: torch.Tensor, message: str, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"w.pt cannot be used: .*{message}"):
        read_weights(tmp_path / "w.pt")


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    zipped(tmp_path / "w.pt", b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\n" + SIZE + b"\x85Rs.")
    with pytest.raises(ValueError, match=r"its tensors claim 8,589,934,588 bytes, more than the file has"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("zip_file", [False, True])
def test_honest_files(zip_file: bool, tmp_path: Path) -> None:
    """Tied and expanded weights, parts of larger tensors, and bytes beside the weights."""
    weight = torch.randn(300, 400)
    state = {
        "a": weight,
        "tied": weight,
        "half": weight[:150],
        "bf": weight.bfloat16(),
        "mean": torch.ones(1).expand(1000, 1000),
    }
    state |= {"empty": torch.empty(0), "bytearray": torch.ones(1), "_codecs": torch.ones(1), "hex.weight": torch.ones(1)}
    torch.save({"state_dict": state, "note": b"\xff bytes"}, tmp_path / "w.pt", _use_new_zipfile_serialization=zip_file)
    found = read_weights(tmp_path / "w.pt").tensors
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
