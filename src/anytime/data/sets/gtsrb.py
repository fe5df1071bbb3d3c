"""German traffic signs: the official archives, or whole frames at 32x32 in one array."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anytime.data.decoding import Box, read_images, resize_images
from anytime.data.files import download_archives, errors_naming, read_arrays, read_table
from anytime.data.names import Names
from anytime.data.resized import ResizedData
from anytime.data.split import Split

GTSRB_NAMES = (
    """
speed limit 20 km/h, speed limit 30 km/h, speed limit 50 km/h, speed limit 60 km/h, speed limit 70 km/h,
speed limit 80 km/h, end of speed limit 80 km/h, speed limit 100 km/h, speed limit 120 km/h, no overtaking,
no overtaking by lorries, priority at next crossing, priority road, give way, stop, no vehicles, no lorries, no entry,
danger, bend to left, bend to right, double bend, uneven road, slippery road, road narrows, road works, traffic lights,
pedestrians, children, bicycles, ice or snow, wild animals, end of all restrictions, turn right ahead, turn left ahead,
ahead only, ahead or right only, ahead or left only, keep right, keep left, roundabout, end of no overtaking,
end of no overtaking by lorries""".replace("\n", " ")
    .strip()
    .split(", ")
)

_SITE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_ARCHIVES = {
    f"{_SITE}/GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
    f"{_SITE}/GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    f"{_SITE}/GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}
_ROI = "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2"


class GTSRB(ResizedData):
    """GTSRB: traffic signs in 43 classes, 39,209 for training and 12,630 for testing, cropped to the sign and resized.

    Reads the official archives, unpacked in `gtsrb` or in the root (`GTSRB/Final_Training/Images`,
    `GTSRB/Final_Test/Images`, `GT-final_test.csv`), or else `gtsrb32/{train,test}.npz`: whole frames resized to 32x32,
    with regions of interest as fractions; results on these are "GTSRB at 32x32". The frames of a track are almost
    identical, so validation holds out whole tracks. Takes the arguments of `ResizedData`.
    """

    title = "GTSRB"
    homepage = "https://benchmark.ini.rub.de"
    license = "free for research; cite the authors"
    citation = "Stallkamp et al. 2012"
    official = (39_209, 12_630, 43)
    files = ("gtsrb/GTSRB/Final_Training/Images", "GTSRB/Final_Training/Images", "gtsrb32/train.npz")
    standard_augment = "crop"
    stretched = True

    def read_names(self) -> list[list[str]]:
        return [GTSRB_NAMES]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        if self.find(*self.files).suffix == ".npz":
            return self._read_frames(self.find(f"gtsrb32/{split}.npz"))
        return self._read_official(split)

    def _read_official(self, split: str) -> Split:
        where = f"GTSRB/Final_{'Training' if split == 'train' else 'Test'}/Images"
        folder = self.find(f"gtsrb/{where}", where)
        if split == "train":
            tables = sorted(folder.glob("*/GT-*.csv"))
            if not tables:
                raise FileNotFoundError(f"{self.title}: no tables {folder}/*/GT-*.csv")
        else:
            name = "GT-final_test.csv"
            tables = [self.find(f"gtsrb/{name}", name, f"gtsrb/GTSRB/{name}", f"GTSRB/{name}", f"{where}/{name}")]
        paths: list[Path] = []
        boxes: list[Box] = []
        labels: list[int] = []
        for table in tables:
            rows = read_table(table, ["Filename", *_ROI, "ClassId"])
            with errors_naming(table):
                corners = [[int(row[column]) for column in _ROI] for row in rows]
                labels += [int(row["ClassId"]) for row in rows]
            boxes += [(left, upper, right + 1, lower + 1) for left, upper, right, lower in corners]
            paths += [(table.parent if split == "train" else folder) / row["Filename"] for row in rows]
        targets = torch.tensor(labels)
        groups = self._tracks([path.name for path in paths], targets, folder) if split == "train" else None
        names = Names.of(f"{label:05d}/{path.name}" for label, path in zip(labels, paths, strict=True))
        return Split(read_images(paths, self.input_size, boxes), targets, folder, groups, names)

    def _read_frames(self, path: Path) -> Split:
        frames, labels, roi, tracks = read_arrays(path, "images", "labels", "roi", "track")
        with errors_naming(path):
            names = [str(name) for name in tracks]
            if frames.dtype != np.uint8 or frames.ndim != 4 or not len(frames) == len(labels) == len(roi) == len(names):
                raise ValueError("images, labels, roi and track do not belong together")
            if not np.issubdtype(labels.dtype, np.integer) or not np.isfinite(roi).all():
                raise ValueError(f"labels must be whole numbers and roi finite, got labels of {labels.dtype}")
        targets = torch.from_numpy(labels.astype(np.int64))
        boxes = list(map(tuple, (roi * np.array(frames.shape[1:3][::-1] * 2)).tolist()))
        sources = [path] * len(frames)
        images = resize_images(lambda index: Image.fromarray(frames[index]), sources, self.input_size, boxes)
        # The names of test images are running numbers, not tracks.
        groups = self._tracks(names, targets, path) if path.stem == "train" else None
        known_by = Names.of(f"{label:05d}/{name}" for label, name in zip(targets.tolist(), names, strict=True))
        return Split(images, targets, path, groups, known_by)

    def _tracks(self, names: list[str], targets: torch.Tensor, source: Path) -> torch.Tensor:
        """Track numbers from file names `track_frame.ppm`; each class has its own count."""
        with errors_naming(source):
            return targets * 100_000 + torch.tensor([int(name.partition("_")[0]) for name in names])

    def fetch(self) -> None:
        if not self.found(self.root):
            download_archives(_ARCHIVES, self.root / "gtsrb")
