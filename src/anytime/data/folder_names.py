"""What the names of folders mean in the image sets that people download: splits, litter, pieces of other exports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anytime.data.names import composed

_PARTS = {
    "train": ("train", "training", "trainset", "traindata"),
    "validation": ("val", "valid", "validation", "valset", "validset"),
    "test": ("test", "testing", "testset", "testdata"),
}
_PART = {word: part for part, words in _PARTS.items() for word in words}
_FILLERS = frozenset(("data", "dataset", "folder", "image", "images", "img", "imgs", "photos", "samples", "set", "split"))
_LITTER = frozenset(
    (
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology, QNAP
        *("lost+found", "__pycache__"),
    )
)
_EXPORT = frozenset(  # of detection and segmentation, where folders are no classes
    (
        *("image", "images", "img", "imgs", "jpg", "jpeg", "png", "jpegimages", "data", "raw"),
        *("label", "labels", "mask", "masks", "annotation", "annotations", "gt", "groundtruth", "visualization", "metadata"),
        *("segmentationclass", "segmentationobject", "bbox", "bboxes", "boxes", "ann", "anns"),
    )
)
_PIECE = frozenset(("image", "images", "img", "imgs", "batch", "chunk", "shard", "fold"))


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or an editor, such as `._a.jpg`, `.ipynb_checkpoints` or `@eaDir`."""
    return name.startswith(".") or name.casefold() in _LITTER


def _words(name: str) -> list[str]:
    """The words of a name: `TrainingSet_2` gives `["training", "set"]`."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", composed(name))
    return [word.casefold() for word in found]


def _reading(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a name may mean, and its other words; `("", ...)` if it means none or several."""
    words = _words(name)
    parts = [_PART[word] for word in words if word in _PART]
    rest = tuple(word for word in words if word not in _PART and word not in _FILLERS)
    return (parts[0] if len(parts) == 1 else ""), rest


def split_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The folders that are named like splits, with their part: `"train"`, `"validation"` or `"test"`.

    Such a name is `train`, with words that say nothing more (`Training Set`, `train2017`), or with others if another folder
    has the same ones for another part (`seg_train` beside `seg_test`).
    """
    read = {folder: reading for folder in folders if (reading := _reading(folder.name))[0]}
    paired = {rest for _, rest in read.values() if len({part for part, other in read.values() if other == rest}) > 1}
    return {folder: part for folder, (part, rest) in read.items() if not rest or rest in paired}


def means(name: str, part: str) -> bool:
    """Whether a name may mean a part, whatever its other words."""
    return _reading(name)[0] == part


def are_parts_of_an_export(names: Sequence[str]) -> bool:
    """Whether folders are named as in exports for detection or segmentation, such as `images` and `masks`."""
    return all(name.casefold() in _EXPORT for name in names)


def are_pieces(names: Sequence[str]) -> bool:
    """Whether folders are numbered pieces of one set, such as `images_001` and `images_002`, or `fold 1` and `fold 2`."""
    words = {tuple(_words(name)) for name in names}
    return len(names) > 1 and len(words) == 1 and not _PIECE.isdisjoint(words.pop())
