"""Street View House Numbers, the cropped digits (format 2)."""

from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import SVHN as OfficialSVHN
from torchvision.datasets.utils import download_url

from anytime.data.base import ImageData, Split
from anytime.data.files import downloading, errors_naming, read_mat
from anytime.data.sets.digits import DIGITS


class SVHN(ImageData):
    """SVHN: house numbers, 32x32 colour, 73,257 for training and 26,032 for testing.

    Reads `train_32x32.mat`, `test_32x32.mat` and `extra_32x32.mat` in `svhn` or in the root.

    Args:
        extra: Also train on the 531,131 easier extra images (1.6 GB more memory).
        **kwargs: Arguments of `ImageData`.
    """

    title = "SVHN"
    homepage = "http://ufldl.stanford.edu/housenumbers"
    license = "non-commercial use"
    citation = "Netzer et al. 2011"
    official = (73_257, 26_032, 10)
    files = ("svhn/train_32x32.mat", "train_32x32.mat")
    standard_augment = "crop"

    def __init__(self, extra: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = extra

    def read_names(self) -> list[list[str]]:
        return [DIGITS]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        names = ["train", "extra"] if split == "train" and self.extra else [split]
        images, targets = map(torch.cat, zip(*map(self._read_file, names), strict=True))
        return Split(images, targets, self.root)

    def _read_file(self, name: str) -> tuple[Tensor, Tensor]:
        path = self.find(f"svhn/{name}_32x32.mat", f"{name}_32x32.mat")
        pixels, labels = read_mat(path, "X", "y")
        with errors_naming(path):
            pixels = pixels.reshape(32, 32, 3, -1)  # a single image was squeezed
            if pixels.dtype != "uint8" or pixels.shape[-1] != len(labels):
                raise ValueError(f"{len(labels)} labels for images of {pixels.dtype} {list(pixels.shape)}")
            if not ((labels >= 1) & (labels <= 10) & (labels % 1 == 0)).all():
                raise ValueError(f"labels range from {labels.min()} to {labels.max()}, not whole numbers from 1 to 10")
        targets = torch.from_numpy(labels.astype("int64")) % 10  # the file labels a zero 10
        return torch.from_numpy(pixels).permute(3, 2, 0, 1).contiguous(), targets

    def fetch(self) -> None:
        folder = self.root if (self.root / self.files[1]).exists() else self.root / "svhn"
        for name in ["train", "test"] + ["extra"] * self.extra:
            url, file, md5 = OfficialSVHN.split_list[name]
            with downloading(url):
                download_url(url, folder, file, md5)
