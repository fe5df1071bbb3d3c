"""LSUN scenes, in the official LMDB layout."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anytime.data.base import Split
from anytime.data.decoding import open_image
from anytime.data.files import errors_naming
from anytime.data.names import Names
from anytime.data.sets.folders import StreamedData
from anytime.data.stream import LazyImages
from anytime.support.folders import check_ordinary

_SLACK = 2**16  # bytes at the end that may be free pages, which are never written
LSUN_NAMES = """bedroom bridge church_outdoor classroom conference_room dining_room kitchen living_room restaurant
tower""".split()  # noqa: SIM905


def _open(path: Path) -> Any:
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError as error:
        raise ImportError("LSUN is stored in LMDB files; install lmdb to read them: pip install lmdb") from error
    check_ordinary(path / "data.mdb")
    with _reading(path):
        database = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
        length = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
        found = os.path.getsize(path / "data.mdb")
        if found + _SLACK < length:  # reading beyond the end would kill the process
            raise ValueError(f"data.mdb has {found:,} bytes of {length:,}; it was not copied or downloaded to its end")
        return database


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns every failure to read a database into an error that names it, see `errors_naming`."""
    with errors_naming(path):
        try:
            yield
        except importlib.import_module("lmdb").Error as error:
            raise ValueError(str(error)) from error


class _Databases:
    """Reads the image of a row from several databases, which each process opens for itself."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.keys: list[np.ndarray] = []
        for path in paths:
            with _open(path) as database, _reading(path), database.begin() as transaction:
                self.keys.append(np.array(list(transaction.cursor().iternext(values=False)), dtype=bytes))
        self.ends = np.cumsum([len(keys) for keys in self.keys])
        self._opened: dict[tuple[int, int], Any] = {}

    def names(self) -> Iterator[str]:
        """Name of the database and key of each image."""
        for path, keys in zip(self.paths, self.keys, strict=True):
            yield from (f"{path.name}/{key.decode(errors='replace')}" for key in keys)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def __call__(self, row: int) -> Image.Image:
        number = int(np.searchsorted(self.ends, row, side="right"))
        key = bytes(self.keys[number][row - self.ends[number]])
        mine = os.getpid(), number
        if mine not in self._opened:
            self._opened[mine] = _open(self.paths[number])
        with _reading(self.paths[number]), self._opened[mine].begin() as transaction:
            content = transaction.get(key)
            if content is None:
                raise ValueError(f"it holds no image {key.decode(errors='replace')}, although it lists one")
        return open_image(content, name=f"{self.paths[number]}, image {key.decode(errors='replace')}")


class LSUN(StreamedData):
    """LSUN: 10 kinds of scenes, about 10 million images for training; streamed by workers. Needs `pip install lmdb`.

    Reads `{class}_train_lmdb` and `{class}_val_lmdb` in `lsun` or in the root, only for the classes in use. Labels of
    the official test images were never published, so the official validation images, 300 per class, are the test
    split. Takes the arguments of `StreamedData`.
    """

    title = "LSUN"
    homepage = "https://www.yf.io/p/lsun"
    license = "research"
    citation = "Yu et al. 2015"
    official = (9_895_373, 3_000, 10)
    files = tuple(f"{folder}{name}_train_lmdb" for folder in ("lsun/", "") for name in LSUN_NAMES)

    def read_names(self) -> list[list[str]]:
        return [LSUN_NAMES]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        used = self._used_labels[0]
        names = [f"{LSUN_NAMES[label]}_{'train' if split == 'train' else 'val'}_lmdb" for label in used]
        read = _Databases([self.find(f"lsun/{name}", name) for name in names])
        targets = used.repeat_interleave(torch.tensor([len(keys) for keys in read.keys]))
        images = LazyImages(read, torch.arange(len(targets)))
        return Split(images, targets, self.root, names=Names.of(read.names()))
