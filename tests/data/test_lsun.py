"""LSUN, read from databases that a stand-in for lmdb imitates: whole, truncated and damaged ones."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from anytime.data import LSUN


def save(path, colour, size=(20, 16), box=None):
    """Saves a black image with a box of one colour (by default the whole image)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    image.paste(colour, box or (0, 0, *size))
    image.save(path, quality=100)


def read(data):
    """Images and targets of the first training batch and the first test batch."""
    data.setup()
    batches = [next(iter(loader)) for loader in (data.train_dataloader(), data.test_dataloader())]
    assert all(images.shape[1:] == data.input_size for images, _ in batches)
    return [item for batch in batches for item in batch]


class FakeDatabase:
    """The part of lmdb that LSUN needs, reading a folder of files."""

    last = 0  # page
    errors = 0  # of the next reads

    def __init__(self, path, **options):
        self.files = {file.name.encode(): file.read_bytes() for file in sorted(Path(path).glob("*.webp"))}
        Path(path, "data.mdb").touch()

    def info(self):
        return {"last_pgno": self.last}

    def stat(self):
        return {"psize": 4096}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    begin = cursor = lambda self: self

    def iternext(self, values):
        if self.errors:
            raise FakeError("MDB_CORRUPTED: Located page was wrong type")
        return iter(self.files)

    def get(self, key):
        return self.files.get(key)


class FakeError(Exception):
    pass


def test_lsun(tmp_path, monkeypatch):
    for number, name in enumerate(["bridge", "tower"]):
        for split in ("train", "val"):
            for image in range(number + 2):
                save(tmp_path / f"lsun/{name}_{split}_lmdb/{image}.webp", (0, 90 * number, 0))
    fake = SimpleNamespace(open=FakeDatabase, Error=FakeError)
    monkeypatch.setitem(sys.modules, "lmdb", fake)
    data = LSUN(root=tmp_path, size=16, validation=0, classes=["bridge", "tower"])
    images, targets, _, test_targets = read(data)
    assert test_targets.tolist() == [0, 0, 1, 1, 1]
    assert torch.allclose(images[:, 1].amax((1, 2)) * 255, targets * 90.0, atol=3)
    for what, value, message in (("last", 100, "data.mdb has 0 bytes of 413,696"), ("errors", 1, "MDB_CORRUPTED")):
        with monkeypatch.context() as patch:
            patch.setattr(FakeDatabase, what, value)
            with pytest.raises(ValueError, match=f"bridge_train_lmdb is damaged .*{message}"):
                LSUN(root=tmp_path, classes=["bridge"]).setup()
    (file := tmp_path / "lsun/bridge_train_lmdb/data.mdb").unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"data\.mdb is a pipe, a socket or a device"):
        LSUN(root=tmp_path, classes=["bridge"]).setup()
    file.unlink()
    monkeypatch.setattr(FakeDatabase, "get", lambda *_: None)
    with pytest.raises(ValueError, match=r"train_lmdb is damaged .* it holds no image 0\.webp, although it lists one"):
        read(LSUN(root=tmp_path, size=16, validation=0, classes=["bridge"]))
    with pytest.raises(FileNotFoundError, match="bedroom_train_lmdb"):
        LSUN(root=tmp_path).setup()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match="pip install lmdb"):
        LSUN(root=tmp_path, classes="tower").setup()
