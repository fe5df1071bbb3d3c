"""Reads files that may be missing, damaged or hostile; errors name the file."""

import csv
import io
import lzma
import os
import pickle
import pickletools
import re
import socket
import ssl
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar
from urllib.error import HTTPError, URLError

import numpy as np
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive

from anytime.data.mat_files import check_mat, check_unpacked

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

ARCHIVE_ERRORS = (EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What unpacking a damaged archive raises."""

NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror)
"""What a download that cannot be made raises; other errors of the system, such as a full disk, say what they concern."""

_READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    *ARCHIVE_ERRORS,
    AssertionError,
    SyntaxError,  # raised by PIL for a broken PNG
    RuntimeError,  # raised by torch for sizes that do not fit; includes NotImplementedError and RecursionError
    MemoryError,  # sizes that a damaged header states
    OverflowError,
    csv.Error,
    Image.DecompressionBombError,
    MatReadError,
    pickle.UnpicklingError,
    struct.error,
)


@contextmanager
def errors_naming(path: str | PathLike[str]) -> Iterator[None]:
    """Turns every failure to read a file into an error that names it.

    Raises:
        FileNotFoundError: The file is missing.
        PermissionError: The file may not be read.
        ValueError: The content is invalid, or it is not an ordinary file (a reader would wait on a pipe for ever).
    """
    try:
        if os.path.exists(path) and stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise ValueError("it is a pipe, a socket or a device, not an ordinary file")
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {path}") from error
    except PermissionError:
        raise
    except _READ_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or in an unexpected format: {detail}") from error


def absent(folder: Path) -> str:
    """`"there is no folder photos (/home/me/photos)"`; a relative path is followed by its absolute form."""
    return f"there is no folder {folder}" + ("" if folder.is_absolute() else f" ({folder.absolute()})")


def check_labels(labels: Tensor, number: int, source: str | PathLike[str]) -> None:
    """Raises ValueError unless all `labels` are whole numbers in `[0, number)`."""
    if labels.is_floating_point():
        raise ValueError(f"{source}: labels must be whole numbers, got {labels.dtype}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < number):
        wrong = labels[(labels < 0) | (labels >= number)][0]
        raise ValueError(f"{source}: label {int(wrong)} is outside 0..{number - 1}")


class _Kind:
    """Stands for a numpy.dtype in a pickle: numbers of a fixed size."""

    __slots__ = ("order", "text")

    def __init__(self, text: Any) -> None:
        if not (isinstance(text, str) and re.fullmatch("b1|[iu][1248]|f[248]", text)):
            raise pickle.UnpicklingError(f"it holds an array of {text!r}, not of numbers")
        self.text, self.order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("|", "=", "<", ">"):
            raise pickle.UnpicklingError(f"it holds an array in the byte order {state[1]!r}")
        self.order = state[1]


class _Array:
    """Stands for a numpy.ndarray in a pickle; numpy's own would take a file's bytes for addresses of objects."""

    __slots__ = ("by_columns", "content", "kind", "shape")

    def __init__(self) -> None:
        self.shape, self.kind, self.by_columns, self.content = (0,), _Kind("u1"), False, b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.by_columns, self.content = state
        if not isinstance(self.kind, _Kind) or not isinstance(self.content, (bytes, str)):
            raise pickle.UnpicklingError("it holds an array without its type or its bytes")

    def array(self) -> np.ndarray:
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content  # of Python 2
        flat = np.frombuffer(content, np.dtype(self.kind.order + self.kind.text))
        return flat.reshape(self.shape, order="F" if self.by_columns else "C").copy()


class _Call:
    """Calls one of the functions below; a pickle can neither change it nor reach what it calls."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any) -> Any:
        match self._name, arguments:
            case "dtype", (text, *_):
                return _Kind(text)
            case "_reconstruct", _:
                return _Array()
            case "encode", (str(text), "latin1" | "latin-1"):
                return text.encode("latin1")
        raise pickle.UnpicklingError(f"it calls {self._name} with other arguments than an array needs")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it changes {self._name}")


class _ArraysOnly(pickle.Unpickler):
    """Builds only arrays of numbers and plain containers, without numpy's help, so that a file cannot run code."""

    _allowed = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> _Call:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it would run {module}.{name}, which no data file needs")
        return _Call(name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a pickled dictionary of numpy arrays and plain containers (CIFAR's Python 2 batches) without running code.

    Raises ValueError if the file is damaged or would build anything else.
    """
    with errors_naming(path):
        data = path.read_bytes()
        for code, argument, _ in pickletools.genops(data):  # the unpickler makes room for the highest number
            if "PUT" in code.name and not 0 <= int(argument or 0) <= len(data):
                raise ValueError(f"it numbers a value {argument}")
        # Under latin1, Python 2 strings, including the arrays' bytes, keep their values.
        try:
            content: Any = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
        except AttributeError as error:  # of values that the pickle takes for others
            raise ValueError(str(error)) from error
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
        if sum(len(value.content) for value in content.values() if isinstance(value, _Array)) > len(data):
            raise ValueError("its arrays need more bytes than the file has")
        return {key: value.array() if isinstance(value, _Array) else value for key, value in content.items()}


def read_array(path: str | PathLike[str]) -> np.ndarray:
    """The one array of an .npy file; raises ValueError if it is damaged, of another kind or not of numbers or text."""
    with errors_naming(path), open(path, "rb") as file:
        _check_magic(file, ".npy")
        with _no_objects():
            return np.load(file, allow_pickle=False)


def read_arrays(path: str | PathLike[str], *names: str) -> list[np.ndarray]:
    """The arrays `names` of an .npz file; raises ValueError if it lacks one, and as `read_array`."""
    with errors_naming(path), open(path, "rb") as file:
        _check_magic(file, ".npz")
        with np.load(file, allow_pickle=False) as arrays, _no_objects():
            if missing := [name for name in names if name not in arrays]:
                raise ValueError(f"it holds no {', '.join(missing)}")
            entries = [entry for entry in arrays.zip.infolist() if entry.filename.removesuffix(".npy") in names]
            check_unpacked(os.stat(path).st_size, sum(entry.file_size for entry in entries))
            found = [arrays[name] for name in names]  # bytes, where an entry of the archive is no array
            if other := [name for name, array in zip(names, found, strict=True) if not isinstance(array, np.ndarray)]:
                raise ValueError(f"its {', '.join(other)} must be an array")
            return found


_MAGIC = {".npy": (b"\x93NUMPY",), ".npz": (b"PK\x03\x04", b"PK\x05\x06")}


def _check_magic(file: BinaryIO, kind: str) -> None:
    """Raises ValueError if a file, which stays at its beginning, is not of one of numpy's kinds."""
    start = file.read(6)
    file.seek(0)
    if not start.startswith(_MAGIC[kind]):
        other = next((other for other, magic in _MAGIC.items() if start.startswith(magic)), None)
        given = f"not an {other} file" if other else "and its beginning is not"
        raise ValueError(f"it must be an {kind} file of numpy, {given}")


@contextmanager
def _no_objects() -> Iterator[None]:
    """Says what numpy says with advice to run the code of a file."""
    try:
        yield
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError("it holds Python objects, which could run code, not numbers") from error
        raise


def read_mat(path: Path, *names: str) -> list[Any]:
    """The variables `names` of a MATLAB file: arrays without dimensions of length 1 (but at least 1-d)."""
    with errors_naming(path):
        check_mat(path)
        content = loadmat(path, squeeze_me=True, variable_names=names)
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


def in_threads(read: Callable[[_Item], _Result], items: Sequence[_Item], chunk: int = 256) -> list[_Result]:
    """`list(map(read, items))` in 8 threads, each of which takes `chunk` items at a time."""
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    with ThreadPoolExecutor(8) as pool:
        return [result for results in pool.map(lambda chunk: list(map(read, chunk)), chunks) for result in results]


@contextmanager
def downloading(url: str) -> Iterator[None]:
    """Turns every failure of a download into a RuntimeError that names its address."""
    try:
        yield
    except (RuntimeError, *NETWORK_ERRORS, *ARCHIVE_ERRORS) as error:  # RuntimeError: torchvision's, for a wrong checksum
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise RuntimeError(f"{url}: {reason or type(error).__name__}") from error


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
            with downloading(url):
                download_and_extract_archive(url, folder, Path(folder, "new"), md5=md5)
        Path(folder, "new", inside).rename(target)
