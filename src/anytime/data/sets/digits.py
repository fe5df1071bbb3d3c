"""Handwritten digits that come with scikit-learn."""

import torch

from anytime.data.base import ImageData, Split
from anytime.data.splits import hold_out

DIGITS = [str(digit) for digit in range(10)]


class Digits(ImageData):
    """1,797 handwritten digits, 8x8 grey, from scikit-learn: real data without a download.

    The 360 test images are a fixed stratified sample. Values 0..16 become `round(v * 255 / 16)`.
    """

    title = "Optical recognition of handwritten digits"
    homepage = "https://archive.ics.uci.edu/dataset/80"
    license = "CC BY 4.0; part of scikit-learn"
    citation = "Alpaydin & Kaynak 1998"
    official = (1437, 360, 10)
    standard_augment = "crop"
    input_size = (1, 8, 8)

    def read_names(self) -> list[list[str]]:
        return [DIGITS]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy((bunch.images * (255 / 16)).round().astype("uint8"))[:, None]
        whole = Split(images, torch.from_numpy(bunch.target.astype("int64")), "sklearn.datasets.load_digits")
        train, test = hold_out(whole.targets, 360, seed=0)
        return whole[test if split == "test" else train]
