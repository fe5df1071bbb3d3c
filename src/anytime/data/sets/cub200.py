"""CUB-200-2011, in the layout of the official archive."""

from anytime.data.base import Split
from anytime.data.files import download_archives, errors_naming, read_lines
from anytime.data.sets.folders import StreamedData, lazy_split


class CUB200(StreamedData):
    """CUB-200-2011: 200 species of birds, 5,994 images for training and 5,794 for testing; streamed by workers.

    Reads `CUB_200_2011`. Takes the arguments of `StreamedData`.
    """

    title = "CUB-200-2011"
    homepage = "https://www.vision.caltech.edu/datasets/cub_200_2011"
    license = "non-commercial research"
    citation = "Wah et al. 2011"
    official = (5_994, 5_794, 200)
    files = ("CUB_200_2011",)

    def _table(self, name: str) -> dict[str, str]:
        """A file of lines `number value`."""
        path = self.find(f"CUB_200_2011/{name}")
        rows = [line.split(maxsplit=1) for line in read_lines(path)]
        with errors_naming(path):
            return {number: value for number, value in rows}  # noqa: C416  dict(rows) would take pairs of characters

    def read_names(self) -> list[list[str]]:
        return [[name.partition(".")[2] or name for name in self._table("classes.txt").values()]]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        labels, is_train = self._table("image_class_labels.txt"), self._table("train_test_split.txt")
        images = self._table("images.txt")
        folder = self.find("CUB_200_2011/images")
        with errors_naming(folder.parent / "image_class_labels.txt"):
            chosen = [number for number in images if is_train[number] == ("1" if split == "train" else "0")]
            targets = [int(labels[number]) - 1 for number in chosen]
        return lazy_split(folder, [folder / images[number] for number in chosen], targets, folder.parent)

    def fetch(self) -> None:
        archives = {"https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"}
        download_archives(archives, self.root / self.files[0], inside=self.files[0])
