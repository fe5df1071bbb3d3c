"""Names of images: many in one array, and one number per name."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC), in which all spellings of one name are equal."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, eq=False)
class Names:
    """N strings in one array, which worker processes share.

    A process that reads a Python list writes to the reference count of each string, so the system copies all of its pages.

    Attributes:
        text: uint8, all strings one after the other, as the file system encodes them.
        ends: int64 `[M]`, where each string ends.
        rows: int64 `[N]`, indices of the strings in use.
    """

    text: Tensor
    ends: Tensor
    rows: Tensor

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The array of some strings."""
        encoded = [os.fsencode(name) for name in names]
        ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
        text = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8))
        return cls(text, ends, torch.arange(len(encoded)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        row = int(self.rows[index])
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.text[start : int(self.ends[row])].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        text, ends = self.text.numpy().tobytes(), [0, *self.ends.tolist()]
        return (os.fsdecode(text[ends[row] : ends[row + 1]]) for row in self.rows.tolist())

    def select(self, indices: Tensor) -> Names:
        """Some of the strings; shares the array."""
        return Names(self.text, self.ends, self.rows[indices])


def lots(names: Iterable[str], seed: int, part: str) -> Tensor:
    """One number in [0, 1) for each name, a function of that name, the seed and the part: float64 `[N]`.

    It is BLAKE2b of the composed name, divided by 2**64: the same on every machine and independent of the other names.
    """
    prefix = f"{seed}/{part}/".encode()
    digests = [hashlib.blake2b(prefix + os.fsencode(composed(name)), digest_size=8).digest() for name in names]
    return torch.tensor([int.from_bytes(digest, "big") / 2**64 for digest in digests], dtype=torch.float64)


def content_number(content: bytes | memoryview) -> int:
    """The first 64 bits of BLAKE2b of some bytes, as a signed number."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
