"""Reading files that may be missing, damaged or hostile, with errors that name them."""

import csv
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil, floor
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels; right and lower are the first pixels outside."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AssertionError,
    SyntaxError,  # what PIL raises for a broken PNG
    RuntimeError,  # torch's, for sizes that do not fit; NotImplementedError is one of them
    Image.DecompressionBombError,
    MatReadError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def errors_naming(path: str | PathLike[str]) -> Iterator[None]:
    """Turns whatever goes wrong inside into an error that names the file.

    Raises:
        FileNotFoundError: if there is no such file.
        PermissionError: if it may not be read.
        ValueError: if its content is not what it should be.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {path}") from error
    except PermissionError:
        raise
    except _DAMAGE as error:
        detail = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or of another format: {detail}") from error


def check_labels(labels: Tensor, number: int, source: str | PathLike[str]) -> None:
    """Raises `ValueError` unless all `labels` lie in `[0, number)`."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < number):
        wrong = labels[(labels < 0) | (labels >= number)][0]
        raise ValueError(f"{source}: label {int(wrong)} is outside 0..{number - 1}")


def read_records(path: Path, header: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Reads a file of fixed-size records, `header` bytes followed by `pixels` bytes.

    Returns:
        uint8 `[N, header]` and uint8 `[N, pixels]`.

    Raises:
        ValueError: if the file is empty or its size is no multiple of the record's.
    """
    with errors_naming(path):
        data = np.fromfile(path, dtype=np.uint8)
        if not len(data) or len(data) % (header + pixels):
            raise ValueError(f"{len(data)} bytes are not whole records of {header + pixels}; it may be truncated")
    records = torch.from_numpy(data).view(-1, header + pixels)
    return records[:, :header], records[:, header:]


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers and nothing else, so that a file cannot run code."""

    _allowed = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which no data file needs; refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a pickled dictionary of numpy arrays and plain containers (CIFAR's Python 2 batches) without running code.

    Raises:
        ValueError: if the file is damaged or wants to build anything else.
    """

    def load(file: BinaryIO) -> Any:
        # latin1: how Python 2 strings, among them the arrays' bytes, keep their values.
        return _ArraysOnly(file, encoding="latin1").load()

    with errors_naming(path), open(path, "rb") as file:
        content = load(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    return content


def read_mat(path: Path, *names: str) -> list[Any]:
    """The variables `names` of a MATLAB file, arrays without dimensions of length 1 (but 1-d at least)."""
    with errors_naming(path):
        content = loadmat(path, squeeze_me=True)
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"it holds no {', '.join(missing)}")
        return [np.atleast_1d(content[name]) for name in names]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, stripped."""
    with errors_naming(path):
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_table(path: Path, columns: Sequence[str], delimiter: str = ";") -> list[dict[str, str]]:
    """The rows of a CSV file that must have `columns`."""
    with errors_naming(path), open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
        if not rows or set(columns) - set(rows[0]) or any(row[c] is None for row in rows for c in columns):
            raise ValueError(f"it needs rows with the columns {', '.join(columns)}")
    return rows


def open_image(path: str | PathLike[str], channels: int = 3) -> Image.Image:
    """Reads an image file as grey (`channels=1`) or RGB (`channels=3`).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read as an image; names the file.
    """
    with errors_naming(path), Image.open(path) as image:
        return to_channels(image, channels)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as grey (`channels=1`) or RGB (`channels=3`), 8 bits a channel, without transparency.

    Raises:
        ValueError: Pixels of 32 bits, whose range is not known.
    """
    if image.mode.startswith("I;16"):  # PIL would cut off what is above 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}), whose range is not known; save it with 8 or 16")
    if image.mode == "P":
        image = image.convert("RGBA")  # PIL warns where a palette with transparency goes to RGB directly
    return image.convert("L" if channels == 1 else "RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """uint8 `[C, H, W]`."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def crop_and_resize(image: Image.Image, box: Box | None, size: tuple[int, int]) -> Image.Image:
    """The part of `image` inside `box` (all of it if `None`), resized to `size` = (height, width), bilinear.

    Pixels wholly outside of the box have no influence.

    Raises:
        ValueError: if the box has no pixel of the image.
    """
    if box:
        left, upper, right, lower = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
        if left >= right or upper >= lower:
            raise ValueError(f"box {box} has no pixel of the image of size {image.size}")
        x, y = floor(left), floor(upper)
        image = image.crop((x, y, ceil(right), ceil(lower)))
        box = left - x, upper - y, right - x, lower - y
    return image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)


def read_images(paths: Sequence[Path], input_size: tuple[int, int, int], boxes: Sequence[Box] | None = None) -> Tensor:
    """Reads image files, each cropped to its box and resized, into one uint8 tensor `[N, C, H, W]`.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if one cannot be read, or its box lies outside of it; names the file.
    """
    images = torch.empty((len(paths), *input_size), dtype=torch.uint8)

    def read(index: int) -> None:
        image = open_image(paths[index], input_size[0])
        with errors_naming(paths[index]):
            images[index] = to_tensor(crop_and_resize(image, boxes[index] if boxes else None, input_size[1:]))

    in_parallel(read, range(len(paths)))
    return images


def in_parallel(function: Callable[[int], None], items: Sequence[int]) -> None:
    """Calls `function` on every item, in threads: image decoders release the GIL. The first error is raised."""
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(function, items):
            pass


def download_archives(archives: Mapping[str, str], target: Path, inside: str = ".") -> None:
    """Downloads and unpacks archives into the new folder `target`, which appears only when it is complete.

    Args:
        archives: addresses and MD5 sums.
        target: the folder to make; if it exists, nothing is done.
        inside: folder of the archives that becomes `target`.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        for url, md5 in archives.items():
            download_and_extract_archive(url, folder, Path(folder, "new"), md5=md5)
        Path(folder, "new", inside).rename(target)
