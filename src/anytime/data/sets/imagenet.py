"""ImageNet, in torchvision's layout."""

from pathlib import Path
from zipfile import is_zipfile

import torch
from torchvision.datasets import ImageNet as OfficialImageNet

from anytime.data.base import Split
from anytime.data.files import errors_naming
from anytime.data.layouts import class_folders
from anytime.data.sets.folders import StreamedData, read_class_folders
from anytime.support.torch_files import check_old_file, check_parts


class ImageNet(StreamedData):
    """ImageNet (ILSVRC 2012): 1,281,167 images for training, 1,000 classes; streamed by workers.

    Reads torchvision's layout in `imagenet` or in the root: `train/WNID/*.JPEG`, `val/WNID/*.JPEG`, `meta.bin`. With
    `download`, it unpacks official archives that you have put into `imagenet`; their terms do not allow downloading them
    for you. Labels of the official test images were never published, so the 50,000 validation images are the test split. Takes
    the arguments of `StreamedData`.
    """

    title = "ImageNet"
    homepage = "https://image-net.org"
    license = "non-commercial research; registration needed"
    citation = "Russakovsky et al. 2015"
    official = (1_281_167, 50_000, 1000)
    files = ("imagenet/meta.bin", "meta.bin")

    def _folder(self, name: str) -> Path:
        return self.find(f"imagenet/{name}", name)

    def _wnids(self) -> list[str]:
        return list(class_folders(self._folder("train")))

    def read_names(self) -> list[list[str]]:
        path, wnids = self.find(*self.files), self._wnids()
        with errors_naming(path):
            (check_parts if is_zipfile(path) else check_old_file)(path)
            words = torch.load(path, weights_only=True)[0]
            names = [", ".join(words[wnid]) for wnid in wnids]
        return [[f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True)]]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        folder = self._folder("train" if split == "train" else "val")
        return read_class_folders(folder.parent, folder, self._wnids())

    def fetch(self) -> None:
        folder = self.root / "imagenet"
        for split in ("train", "val"):
            if not ((folder / split).is_dir() or (self.root / split).is_dir()):
                OfficialImageNet(folder, split)
