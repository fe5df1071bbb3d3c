"""Stanford Cars, in the layout of the official archives that torchvision uses."""

import torch

from anytime.data.decoding import read_images
from anytime.data.files import errors_naming, read_mat
from anytime.data.names import Names
from anytime.data.resized import ResizedData
from anytime.data.split import Split


class StanfordCars(ResizedData):
    """Stanford Cars: 196 models of cars, 8,144 + 8,041 images, cropped to the car and resized.

    Reads `stanford_cars/devkit/{cars_meta,cars_train_annos}.mat`, `stanford_cars/cars_test_annos_withlabels.mat`,
    `stanford_cars/cars_train` and `stanford_cars/cars_test`. The official site is gone, so nothing is downloaded.
    Takes the arguments of `ResizedData`.
    """

    title = "Stanford Cars"
    homepage = "https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html"
    license = "non-commercial research"
    citation = "Krause et al. 2013"
    official = (8_144, 8_041, 196)
    files = ("stanford_cars/devkit",)
    stretched = True

    def read_names(self) -> list[list[str]]:
        (names,) = read_mat(self.find("stanford_cars/devkit/cars_meta.mat"), "class_names")
        return [[str(name) for name in names]]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        tables = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
        path = self.find(f"stanford_cars/{tables[split]}")
        folder = self.find(f"stanford_cars/cars_{split}")
        (rows,) = read_mat(path, "annotations")
        with errors_naming(path):
            corners = [[int(row[f"bbox_{edge}"]) for edge in ("x1", "y1", "x2", "y2")] for row in rows]
            if any(row["class"] % 1 != 0 for row in rows):  # true for NaN as well
                raise ValueError("a class is not a whole number")
            targets = torch.tensor([int(row["class"]) for row in rows]) - 1  # MATLAB counts classes and pixels from 1
            paths = [folder / str(row["fname"]) for row in rows]
        boxes = [(left - 1, upper - 1, right, lower) for left, upper, right, lower in corners]
        images = Names.of(file.name for file in paths)
        return Split(read_images(paths, self.input_size, boxes), targets, path, names=images)
