"""Reads files that may be missing, damaged or hostile; errors name the file."""

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
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels; right and lower are the first pixels outside the box."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AssertionError,
    SyntaxError,  # raised by PIL for a broken PNG
    RuntimeError,  # raised by torch for sizes that do not fit; includes NotImplementedError
    Image.DecompressionBombError,
    MatReadError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def errors_naming(path: str | PathLike[str]) -> Iterator[None]:
    """Turns every failure to read a file into an error that names it.

    Raises:
        FileNotFoundError: The file is missing.
        PermissionError: The file may not be read.
        ValueError: The content is invalid.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {path}") from error
    except PermissionError:
        raise
    except _READ_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or in an unexpected format: {detail}") from error


def check_labels(labels: Tensor, number: int, source: str | PathLike[str]) -> None:
    """Raises ValueError unless all `labels` lie in `[0, number)`."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < number):
        wrong = labels[(labels < 0) | (labels >= number)][0]
        raise ValueError(f"{source}: label {int(wrong)} is outside 0..{number - 1}")


class _ArraysOnly(pickle.Unpickler):
    """Builds only numpy arrays and plain containers, so that a file cannot run code."""

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

    Raises ValueError if the file is damaged or would build anything else.
    """
    with errors_naming(path), open(path, "rb") as file:
        # Under latin1, Python 2 strings, including the arrays' bytes, keep their values.
        content: Any = _ArraysOnly(file, encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    return content


def read_mat(path: Path, *names: str) -> list[Any]:
    """The variables `names` of a MATLAB file: arrays without dimensions of length 1 (but at least 1-d)."""
    with errors_naming(path):
        content = loadmat(path, squeeze_me=True)
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"it holds no {', '.join(missing)}")
        return [np.atleast_1d(content[name]) for name in names]


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a text file, stripped."""
    with errors_naming(path):
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_table(path: Path, columns: Sequence[str], delimiter: str = ";") -> list[dict[str, str]]:
    """The rows of a CSV file; raises ValueError if one of `columns` is missing."""
    with errors_naming(path), open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
        if not rows or set(columns) - set(rows[0]) or any(row[c] is None for row in rows for c in columns):
            raise ValueError(f"it needs rows with the columns {', '.join(columns)}")
    return rows


def open_image(path: str | PathLike[str]) -> Image.Image:
    """Reads an image file as RGB; errors as in `errors_naming`."""
    with errors_naming(path), Image.open(path) as image:
        return to_channels(image, 3)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as grey (`channels=1`) or RGB (`channels=3`), 8 bits per channel, without transparency.

    Raises ValueError if the pixels have 32 bits, because their range is unknown.
    """
    if image.mode.startswith("I;16"):  # PIL would clip values above 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # PIL warns if a palette with transparency is converted to RGB directly
    return image.convert("L" if channels == 1 else "RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """The image as uint8 `[C, H, W]`."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def crop_and_resize(image: Image.Image, box: Box | None, size: tuple[int, int]) -> Image.Image:
    """Crops `image` to `box` (`None`: the whole image) and resizes it to `size` = (height, width), bilinear.

    Pixels entirely outside the box have no influence. Raises ValueError if the box contains no pixel of the image.
    """
    if box:
        left, upper, right, lower = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
        if left >= right or upper >= lower:
            raise ValueError(f"box {box} contains no pixel of the image of size {image.size}")
        x, y = floor(left), floor(upper)
        image = image.crop((x, y, ceil(right), ceil(lower)))
        box = left - x, upper - y, right - x, lower - y
    return image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)


def read_images(paths: Sequence[Path], input_size: tuple[int, int, int], boxes: Sequence[Box] | None = None) -> Tensor:
    """Reads image files, crops each to its box and resizes it, into one uint8 tensor `[N, C, H, W]`.

    Errors are those of `errors_naming`, also for a box outside its image.
    """

    def read(index: int) -> Image.Image:
        with Image.open(paths[index]) as image:
            return to_channels(image, input_size[0])

    return resize_images(read, paths, input_size, boxes)


def resize_images(
    read: Callable[[int], Image.Image], sources: Sequence[Path], input_size: tuple[int, int, int], boxes: Sequence[Box] | None
) -> Tensor:
    """Like `read_images`, for images that `read` returns by index; errors name their `sources`."""
    images = torch.empty((len(sources), *input_size), dtype=torch.uint8)

    def resize(index: int) -> None:
        with errors_naming(sources[index]):
            images[index] = to_tensor(crop_and_resize(read(index), boxes[index] if boxes else None, input_size[1:]))

    with ThreadPoolExecutor() as pool:  # image decoders release the GIL
        for _ in pool.map(resize, range(len(sources))):
            pass
    return images


def download_archives(archives: Mapping[str, str], target: Path, inside: str = ".") -> None:
    """Downloads and unpacks archives into the new folder `target`, which appears only when it is complete.

    Args:
        archives: MD5 sum of each URL.
        target: Folder to create; if it exists, nothing is done.
        inside: Folder inside the archives that becomes `target`.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        for url, md5 in archives.items():
            download_and_extract_archive(url, folder, Path(folder, "new"), md5=md5)
        Path(folder, "new", inside).rename(target)
