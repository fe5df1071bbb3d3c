"""Stanford Cars, in the layout of the official archives that torchvision uses."""

from typing import Any

import torch

from anytime.data.base import ImageData, Split
from anytime.data.files import errors_naming, read_images, read_mat


class StanfordCars(ImageData):
    """Stanford Cars: 196 models of cars, 8,144 + 8,041 images, cropped to the car and resized.

    Reads `stanford_cars/devkit/{cars_meta,cars_train_annos}.mat`, `stanford_cars/cars_test_annos_withlabels.mat`,
    `stanford_cars/cars_train` and `stanford_cars/cars_test`. The official site is gone, so nothing is downloaded.

    Args:
        size: height and width of images in pixels.
        **kwargs: arguments of `ImageData`.
    """

    title = "Stanford Cars"
    homepage = "https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html"
    license = "non-commercial research"
    citation = "Krause et al. 2013"
    official = (8_144, 8_041)
    official_classes = 196
    files = ("stanford_cars/devkit",)
    input_size = (3, 48, 48)

    def __init__(self, size: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_size = (3, size, size)

    def read_names(self) -> list[list[str]]:
        (names,) = read_mat(self.find("stanford_cars/devkit/cars_meta.mat"), "class_names")
        return [[str(name) for name in names]]

    def read(self, part: str) -> Split | None:
        if part == "validation":
            return None
        tables = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
        path = self.find(f"stanford_cars/{tables[part]}")
        folder = self.find(f"stanford_cars/cars_{part}")
        (rows,) = read_mat(path, "annotations")
        with errors_naming(path):
            corners = [[int(row[f"bbox_{edge}"]) for edge in ("x1", "y1", "x2", "y2")] for row in rows]
            targets = torch.tensor([int(row["class"]) for row in rows]) - 1  # MATLAB counts from 1, classes and pixels
            paths = [folder / str(row["fname"]) for row in rows]
        boxes = [(left - 1, upper - 1, right, lower) for left, upper, right, lower in corners]
        return Split(read_images(paths, self.input_size, boxes), targets, path)
