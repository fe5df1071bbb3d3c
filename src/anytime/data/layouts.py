"""Folders of images: which files are images, and which folders are classes or splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anytime.data.decoding import is_image
from anytime.data.files import in_threads
from anytime.data.names import composed

_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_PART = {name: part for part, names in _NAMES.items() for name in names}


@dataclass(frozen=True)
class Layout:
    """The folders that hold the class folders of each split; a flat layout has only `train`, which holds all images."""

    train: Path
    validation: Path | None = None
    test: Path | None = None
    flat: bool = False


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or an editor, such as `._a.jpg`, `.ipynb_checkpoints` or `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder` in the order of their names, without links to a parent folder.

    Raises ValueError if a name is not UTF-8, because it cannot be written into a configuration.
    """
    above = {os.path.realpath(folder), *map(str, Path(os.path.realpath(folder)).parents)}
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    for name in inside:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{folder}: the name of the folder {os.fsencode(name)!r} is not UTF-8; rename it") from None
    return [folder / name for name in inside if os.path.realpath(folder / name) not in above]


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders of each class in `folder`, by the class's composed name, in order.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A name is not UTF-8.
    """
    found: dict[str, list[Path]] = {}
    for entry in subfolders(folder):
        found.setdefault(composed(entry.name), []).append(entry)
    if not found:
        raise FileNotFoundError(f"no folders in {folder}; it needs one folder of images for each class")
    return dict(sorted(found.items()))


def list_images(folder: Path) -> tuple[list[str], Counter[str]]:
    """Paths of all images below `folder`, and how many other files of each suffix there are."""
    files = sorted(_visible_files(folder))
    opens = in_threads(_is_image_file, files)
    others = Counter(Path(path).suffix.lower() for path, opened in zip(files, opens, strict=True) if not opened)
    return [path for path, opened in zip(files, opens, strict=True) if opened], others


def _is_image_file(path: str) -> bool:
    return os.path.isfile(path) and is_image(path)  # not a pipe, on which opening would wait for ever


def _visible_files(folder: Path) -> Iterator[str]:
    """All files below `folder` that are not hidden; links are followed, but each folder is read only once."""
    seen = {_identity(path) for path in (folder, *Path(os.path.realpath(folder)).parents)}
    for path, inside, files in os.walk(folder, onerror=_raise, followlinks=True):
        new = []
        for name in sorted(inside):
            if not is_hidden(name) and (identity := _identity(os.path.join(path, name))) not in seen:
                seen.add(identity)
                new.append(name)
        inside[:] = new
        yield from (os.path.join(path, name) for name in files if not is_hidden(name))


def _raise(error: OSError) -> None:
    raise error


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def find_layout(root: Path) -> Layout:
    """How `root` is arranged: class folders, or splits that hold class folders.

    Splits are called `train` or `training`; `val`, `valid` or `validation`; `test` or `testing`, in any case. A folder of
    such a name that holds images directly, among other classes, is a class.

    Raises:
        ValueError: It can be read in two ways.
    """
    kinds = {folder: kind for folder in subfolders(root) if (kind := _kind(folder))}
    named: dict[str, list[Path]] = {}
    for folder in kinds:
        if part := _PART.get(folder.name.casefold()):
            named.setdefault(part, []).append(folder)
    splits = [folder for folders in named.values() for folder in folders]
    others = [folder for folder in kinds if folder not in splits]
    nested = [folder for folder in splits if kinds[folder] == "classes"]
    if (nested and others) or (len(splits) > 1 and not nested):
        cure = "move or rename folders so that only one reading remains"
        raise ValueError(
            f"{root} can be read in two ways: as splits {_listed(splits)}"
            f"{f' beside other folders {_listed(others)}' if others else ', whose images are in no class folders'}, or as the "
            f"classes {_listed(list(kinds))}; {cure}"
        )
    if not nested:
        _check_flat(root, list(kinds))
        return Layout(root, flat=True)
    for part, folders in named.items():
        if len(folders) > 1:
            raise ValueError(f"{root} can be read in two ways: both {_listed(folders)} mean the {part} split; keep one")
    for folder in subfolders(root):
        if folder not in kinds and (part := _PART.get(folder.name.casefold())):
            named.setdefault(part, [folder])  # an empty split; whoever reads it says so
    if "train" not in named:
        raise FileNotFoundError(f"{root} holds {_listed(splits)}, but no folder 'train' of training images")
    return Layout(*(named.get(part, [None])[0] for part in ("train", "validation", "test")))  # type: ignore[arg-type]


def _check_flat(root: Path, classes: Sequence[Path]) -> None:
    """Raises ValueError if the folders of a class are splits."""
    for folder in classes:
        inside = [part for part in subfolders(folder) if part.name.casefold() in _PART and _kind(part)]
        if len({_PART[part.name.casefold()] for part in inside}) > 1:
            raise ValueError(
                f"{root} can be read in two ways: as the classes {_listed(classes)}, or {folder.name!r} holds the splits "
                f"{_listed(inside)}; name that folder by --data.root, or keep the splits above the classes"
            )


def _listed(folders: Sequence[Path]) -> str:
    names = [repr(folder.name) for folder in folders[:4]]
    return ", ".join(names) + (f" and {len(folders) - 4} more" if len(folders) > 4 else "")


def _kind(folder: Path) -> Literal["classes", "images", ""]:
    """Whether a folder holds folders of images, or only images; empty if it holds none."""
    inside = subfolders(folder)
    if any(_is_image_file(path) for subfolder in inside for path in _visible_files(subfolder)):
        return "classes"
    with os.scandir(folder) as entries:
        return "images" if any(not is_hidden(entry.name) and _is_image_file(entry.path) for entry in entries) else ""
