"""onnxruntime-web, the engine of the page: found, checked against known digests, and kept compressed beside the data."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from anytime.data.base import default_root
from anytime.data.files import ARCHIVE_ERRORS, NETWORK_ERRORS
from anytime.support.files import atomic_write
from anytime.support.folders import check_ordinary
from anytime.support.text import one_line

VERSION = "1.22.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SCRIPT, GLUE, WASM = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
DIGESTS = {
    SCRIPT: "6ef726f355b791129f7ddf3f62e7877a16b9b777abe87004b8ab306e6b9cf265",
    GLUE: "30dd851d9c00622940500f71ddd2ff8820c5cb65270816080175b958705385a8",
    WASM: "71aef04959c5c1b6de461b6538e2058e306610034a85aad2742d0c7fd4533fe4",
}
_MOST = 2**26  # bytes of a file or of the download
_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": 2**24, "lc": 3, "lp": 0, "pb": 0}]  # as page/unpack.js expects


@dataclass(frozen=True)
class WebEngine:
    """The engine's two scripts, its program as raw LZMA, and the size of the program."""

    script: bytes
    glue: bytes
    program: bytes
    size: int


def web_engine(given: Path | None = None, download: bool = False) -> WebEngine:
    """The engine from a given place, from the folder of the data, or downloaded to that folder.

    Args:
        given: onnxruntime-web as npm packs it, or the folder that it unpacks to.
        download: Whether it may be downloaded, if it is in neither place.

    Raises:
        FileNotFoundError: It is not there, or the given place does not hold it.
        ValueError: A file is damaged, of another version, or a pipe or a device, or the download fails.
    """
    if given is None and (kept := kept_engine()) is not None:
        return kept
    if given is not None:
        files = _from_folder(given) if given.is_dir() else _from_archive(_read(given), str(given))
    elif download:
        files = _from_archive(_downloaded(), ADDRESS)
    else:
        raise FileNotFoundError(
            f"the page needs onnxruntime-web {VERSION}, which is not in {_folder()}: give --download to fetch it (20 MB), "
            f"or --onnxruntime-web with the file that `npm pack onnxruntime-web@{VERSION}` makes"
        )
    packed = lzma.compress(files[WASM], lzma.FORMAT_RAW, filters=_LZMA)
    for name, data in ((SCRIPT, files[SCRIPT]), (GLUE, files[GLUE]), (f"{WASM}.lzma", packed)):
        with atomic_write(_folder() / name) as part:
            part.write_bytes(data)
    return WebEngine(files[SCRIPT], files[GLUE], packed, len(files[WASM]))


def kept_engine() -> WebEngine | None:
    """The engine that an earlier export has kept; None if there is none, or it is damaged."""
    try:
        script, glue, packed = (_read(_folder() / name) for name in (SCRIPT, GLUE, f"{WASM}.lzma"))
        program = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(packed, _MOST)
        _check({SCRIPT: script, GLUE: glue, WASM: program}, "")
    except (OSError, ValueError, *ARCHIVE_ERRORS):
        return None
    return WebEngine(script, glue, packed, len(program))


def _folder() -> Path:
    return default_root() / f"onnxruntime-web-{VERSION}"


def _read(path: Path) -> bytes:
    check_ordinary(path)
    with path.open("rb") as file:
        return file.read(_MOST)


def _downloaded() -> bytes:
    try:
        with urllib.request.urlopen(ADDRESS, timeout=60) as response:
            return response.read(_MOST)
    except NETWORK_ERRORS as error:
        raise ValueError(
            f"onnxruntime-web: the download of {ADDRESS} failed: {one_line(error)}; try again, or give --onnxruntime-web"
        ) from error


def _from_folder(folder: Path) -> dict[str, bytes]:
    places = [place for place in (folder, folder / "dist", folder / "package" / "dist") if (place / WASM).is_file()]
    if not places:
        raise FileNotFoundError(f"{folder} does not hold onnxruntime-web {VERSION}: there is no dist/{WASM}")
    return _check({name: _read(places[0] / name) for name in DIGESTS}, str(folder))


def _from_archive(data: bytes, source: str) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            members = [archive.extractfile(f"package/dist/{name}") for name in DIGESTS]
            files = {name: member.read(_MOST) for name, member in zip(DIGESTS, members, strict=True) if member is not None}
    except (KeyError, OSError, *ARCHIVE_ERRORS) as error:
        raise ValueError(f"{source} is not onnxruntime-web as npm packs it: {error}") from error
    return _check(files, source)


def _check(files: dict[str, bytes], source: str) -> dict[str, bytes]:
    """Raises ValueError unless these are the files of this version."""
    for name, digest in DIGESTS.items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != digest:
            raise ValueError(
                f"{source}: {name} is not that of onnxruntime-web {VERSION}; get it with `npm pack onnxruntime-web@{VERSION}`"
            )
    return files
