"""Folders of images: which files are images, and which folders are classes or splits."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anytime.data.decoding import is_image
from anytime.data.files import in_threads
from anytime.data.folder_names import are_parts_of_an_export, are_pieces, is_hidden, means, split_names
from anytime.data.names import composed


@dataclass(frozen=True)
class Layout:
    """The folders that hold the class folders of each split; a flat layout has only `train`, which holds all images."""

    train: Path
    validation: Path | None = None
    test: Path | None = None
    flat: bool = False


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

    Splits are called `train` or `training`; `val`, `valid` or `validation`; `test` or `testing`, in any case, also with words
    that say nothing more or that all of them have, see `split_names`. A folder of such a name that holds images directly,
    among other classes, is a class. A split unpacked into a folder of its own name (`train/train/cat`) is that inner folder.

    Raises:
        FileNotFoundError: There are splits, but none to train on.
        ValueError: It can be read in two ways, or what it holds is no classes.
    """
    kinds = _kinds(root)
    parts = split_names(list(kinds))
    splits, others = list(parts), [folder for folder in kinds if folder not in parts]
    nested = [folder for folder in splits if kinds[folder] == "classes"]
    if (nested and others) or (len(splits) > 1 and not nested):
        cure = "move or rename folders so that only one reading remains"
        raise ValueError(
            f"{root} can be read in two ways: as splits {_listed(splits)}"
            f"{f' beside other folders {_listed(others)}' if others else ', whose images are in no class folders'}, or as the "
            f"classes {_listed(list(kinds))}; {cure}"
        )
    if not nested:
        _check_classes(root, kinds)
        return Layout(root, flat=True)
    for part in parts.values():
        if len(same := [folder for folder in splits if parts[folder] == part]) > 1:
            raise ValueError(f"{root} can be read in two ways: both {_listed(same)} mean the {part} split; keep one")
    named = {part: _unwrapped(folder, part) for folder, part in parts.items()}
    for folder, part in split_names(subfolders(root)).items():
        named.setdefault(part, folder)  # an empty split; whoever reads it says so
    if "train" not in named:
        raise FileNotFoundError(f"{root} holds {_listed(splits)}, but no folder 'train' of training images")
    for folder in splits:
        if kinds[folder] == "images":
            raise ValueError(
                f"{folder} holds images, but no class folders, so their labels are unknown; put the images of each class into "
                "a folder of its own, or move it away"
            )
    _check_classes(named["train"], _kinds(named["train"]))
    return Layout(named["train"], named.get("validation"), named.get("test"))


def _unwrapped(folder: Path, part: str) -> Path:
    """The class folders of a split: `folder`, or the folder that it was unpacked into once more."""
    if not any(means(inner.name, part) for inner in subfolders(folder)):
        return folder
    kinds = list(_kinds(folder).items())
    again = len(kinds) == 1 and kinds[0][1] == "classes" and means(kinds[0][0].name, part)
    return _unwrapped(kinds[0][0], part) if again else folder


def _check_classes(folder: Path, kinds: Mapping[Path, str]) -> None:
    """Raises ValueError if the folders with images in `folder` are no classes; warns if all hold only folders of images."""
    if not kinds:
        return  # whoever reads it says so
    classes, names = list(kinds), [inner.name for inner in kinds]
    deep = {
        outer: [inner for inner in subfolders(outer) if _kind(inner)] for outer, kind in kinds.items() if kind == "classes"
    }
    for outer, inside in deep.items():
        if (splits := split_names(inside)) and (len(splits) == len(inside) or any(_kind(i) == "classes" for i in splits)):
            raise ValueError(
                f"{folder} can be read in two ways: as the classes {_listed(classes)}, or {outer.name!r} holds the splits "
                f"{_listed(list(splits))}; name that folder by --data.root, or keep the splits above the classes"
            )
        if again := {inner.name for inner in inside} & set(names) - {outer.name}:
            raise ValueError(
                f"{folder} can be read in two ways: {outer.name!r} is a class, or it holds further images of the class "
                f"{min(again)!r}; move it away, or name it by --data.root"
            )
    each_class = "the images of each class belong into a folder of their own"
    if len(classes) == 1:
        inside = deep.get(classes[0], [])
        if len(inside) > 1:
            raise ValueError(
                f"{folder} holds one folder with images, {names[0]!r}, which holds {_listed(inside)}; if these are the "
                f"classes, name {classes[0]} by --data.root, or in a split, move them up"
            )
        raise ValueError(
            f"{folder} holds images only in {names[0]!r}, but a classifier needs two classes or more; {each_class}"
        )
    if are_parts_of_an_export(names):
        raise ValueError(
            f"{folder} holds {_listed(classes)}, which are no classes but parts of a set for detection or segmentation; "
            f"{each_class} (if these are your classes, rename them)"
        )
    if are_pieces(names):
        raise ValueError(
            f"{folder} holds {_listed(classes)}, which are no classes but pieces of one set; {each_class} (if these are your "
            "classes, rename them)"
        )
    if len(deep) == len(classes) and all(len(inside) > 1 and not _holds_images(outer) for outer, inside in deep.items()):
        warnings.warn(
            f"{folder}: the classes are {_listed(classes)}, not the folders inside them, such as {_listed(deep[classes[0]])}; "
            "if these are the classes, put all of them into one folder",
            stacklevel=2,
        )


def _listed(folders: Sequence[Path]) -> str:
    names = [repr(folder.name) for folder in folders[:4]]
    return ", ".join(names) + (f" and {len(folders) - 4} more" if len(folders) > 4 else "")


def _kinds(folder: Path) -> dict[Path, str]:
    """The folders in `folder` that hold images, with their kinds."""
    return {inner: kind for inner in subfolders(folder) if (kind := _kind(inner))}


def _kind(folder: Path) -> Literal["classes", "images", ""]:
    """Whether a folder holds folders of images, or only images; empty if it holds none."""
    if any(_is_image_file(path) for inside in subfolders(folder) for path in _visible_files(inside)):
        return "classes"
    return "images" if _holds_images(folder) else ""


def _holds_images(folder: Path) -> bool:
    """Whether a folder holds images directly."""
    return next(_direct_images(folder), None) is not None


def count_direct_images(folder: Path) -> int:
    """Number of images that lie directly in a folder, not in its folders."""
    return sum(1 for _ in _direct_images(folder))


def _direct_images(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.path for entry in entries if not is_hidden(entry.name) and _is_image_file(entry.path))
