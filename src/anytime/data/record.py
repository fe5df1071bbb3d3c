"""Which images a run trained on, by name and content, so that they are never tested on."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anytime.data.names import Names, composed
from anytime.data.split import Split
from anytime.support.files import atomic_write
from anytime.support.folders import check_file
from anytime.support.owned import check_own
from anytime.support.tensor_files import read_tensors, write_tensors

PARTS = ("train", "validation", "test", "unused", "earlier")
"""Training images beyond `limit` are unused; earlier ones trained the runs from whose weights this run started."""

RECORD = "images.safetensors"
"""Name of the file in a run directory."""

_FORMAT = "anytime-images-1"
_TRAIN, _EARLIER = PARTS.index("train"), PARTS.index("earlier")


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """The images of a run.

    Args:
        names: One name per image in composed form, relative to the folder of the data.
        contents: int64 `[N]`, see `Split.contents`; 0 where it was not read.
        parts: uint8 `[N]`, indices into `PARTS`.
        official: The official set that the images belong to, such as `GTSRB`, or empty. The names of earlier images begin
            with theirs, `GTSRB/00001/00003_00004.ppm`, or are empty.
    """

    names: Names
    contents: Tensor
    parts: Tensor
    official: str = ""

    @classmethod
    def of(cls, parts: Iterable[tuple[str, Split]], read_contents: bool = True, official: str = "") -> ImageRecord:
        """The record of some parts; without `read_contents` only of their names."""
        names: list[str] = []
        contents, numbers = [], []
        for part, split in parts:
            names += map(composed, split.keys)
            contents.append(split.contents if read_contents else torch.zeros(len(split), dtype=torch.int64))
            numbers.append(torch.full((len(split),), PARTS.index(part), dtype=torch.uint8))
        return cls(Names.of(names), torch.cat(contents), torch.cat(numbers), official)

    def __len__(self) -> int:
        return len(self.parts)

    def count(self, part: str) -> int:
        """Number of images of a part."""
        return int((self.parts == PARTS.index(part)).sum())

    def following(self, *earlier: ImageRecord) -> ImageRecord:
        """This record with the training images of `earlier`, the records of runs from whose weights the training starts."""
        result = self
        for other in earlier:
            rows = ((other.parts == _TRAIN) | (other.parts == _EARLIER)).nonzero().flatten()
            prefix = f"{other.official}/" if other.official else None
            known = zip(other.names.select(rows), (other.parts[rows] == _EARLIER).tolist(), strict=True)
            names = [name if is_earlier else f"{prefix}{name}" if prefix else "" for name, is_earlier in known]
            result = result._with_earlier(names, other.contents[rows])
        return result

    def renewed(self, split: Split) -> ImageRecord:
        """This record with what its training images show now, if their files have changed; a warning says how many have."""
        rows = self.rows(split)
        before = torch.where((rows >= 0) & (self.parts[rows] == _TRAIN), self.contents[rows], 0)
        if not before.any():
            return self
        changed = (before != 0) & ((now := split.contents) != before)
        if not changed.any():
            return self
        warnings.warn(
            f"{split.source}: {int(changed.sum())} of {self.count('train')} training images of this run have changed since it "
            "began; what they show now counts as trained on",
            stacklevel=3,
        )
        return self._with_earlier([""] * int(changed.sum()), now[changed])

    def _with_earlier(self, names: list[str], contents: Tensor) -> ImageRecord:
        parts = torch.full((len(contents),), _EARLIER, dtype=torch.uint8)
        all_names, all_contents = Names.of([*self.names, *names]), torch.cat([self.contents, contents])
        return ImageRecord(all_names, all_contents, torch.cat([self.parts, parts]), self.official)

    def rows(self, split: Split) -> Tensor:
        """The row of each image in the record, found by name or else by content, int64 `[N]`; -1 if it is not recorded.

        Images with the same name or content have separate rows.
        """
        free: dict[str, list[int]] = defaultdict(list)
        for row, (name, part) in enumerate(zip(self.names, self.parts.tolist(), strict=True)):
            if part != _EARLIER:
                free[name].append(row)
        for rows in free.values():
            rows.reverse()
        found = torch.tensor([free[key].pop() if free.get(key := composed(name)) else -1 for name in split.keys])
        unknown = (found < 0).nonzero().flatten()
        if len(unknown):
            left = {row for rows in free.values() for row in rows}
            by_content = {number: row for row, number in enumerate(self.contents.tolist()) if number and row in left}
            found[unknown] = torch.tensor([by_content.pop(number, -1) for number in split[unknown].contents.tolist()])
        return found

    def divide(self, split: Split, part: str, lots: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Indices of the images that are not in `part`, and of those that are.

        A new image is in `part` if its group is or, if its group is not recorded, if its lot is below `share`.

        Args:
            split: The images.
            part: One of `PARTS`.
            lots: See `Split.lots`.
            share: The share of new images that belongs to the part; if it is 1 or more, the recorded share.
        """
        rows = self.rows(split)
        known = rows >= 0
        if share >= 1:
            share = self.count(part) / max(len(self) - self.count("earlier"), 1)
        held_out = torch.where(known, self.parts[rows] == PARTS.index(part), lots < share)
        if split.groups is not None:
            held_out |= torch.isin(split.groups, split.groups[known & held_out])
            held_out &= ~torch.isin(split.groups, split.groups[known & ~held_out])
        facts = {"gone": self.count(part) - int((known & held_out).sum()), "new": int((~known & held_out).sum())}
        if any(facts.values()):
            text = ", ".join(f"{number} {what}" for what, number in facts.items() if number)
            warnings.warn(f"{split.source}: of the {self.count(part)} {part} images of this run: {text}", stacklevel=3)
        return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()

    def trained(self, split: Split) -> Split:
        """The images that were trained on, in the order of the record; a warning says how many are gone."""
        rows = self.rows(split)
        used = (rows >= 0) & (self.parts[rows] == _TRAIN)
        if gone := self.count("train") - int(used.sum()):
            warnings.warn(
                f"{split.source}: {gone} of {self.count('train')} training images of this run are gone", stacklevel=3
            )
        indices = used.nonzero().flatten()
        return split[indices[rows[indices].argsort()]]

    def not_trained(self, split: Split, official: str = "", is_test: bool = False) -> Split:
        """The images that were not trained on, nor others of their group; a warning says how many were.

        Images are known by content. Of an `official` set, whose own parts never overlap, only the training images of earlier
        runs count; those of the same set are known by name, at any size, and none of them is among its test images.
        """
        earlier, trained = self.parts == _EARLIER, self.parts == _TRAIN
        names: set[str] = set()
        if official:
            own = torch.tensor([name.startswith(f"{official}/") for name in self.names], dtype=torch.bool) & earlier
            names = set() if is_test else set(self.names.select(own.nonzero().flatten()))
            earlier, trained = earlier & ~own, torch.zeros_like(trained)
        known = self.contents[earlier | trained]
        known = known[known != 0]
        seen = torch.isin(split.contents, known) if len(known) else torch.zeros(len(split), dtype=torch.bool)
        if names:
            seen |= torch.tensor([f"{official}/{composed(key)}" in names for key in split.keys], dtype=torch.bool)
        if split.groups is not None:
            seen |= torch.isin(split.groups, split.groups[seen])
        if seen.any():
            what = "their content" if split.groups is None else "their content or on others of their groups"
            text = f"{int(seen.sum())} of {len(split)} images are left out, because this run was trained on {what}"
            warnings.warn(f"{split.source}: {text}", stacklevel=3)
        return split[(~seen).nonzero().flatten()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file for `load`; raises OSError if the disk is full."""
        tensors = {"text": self.names.text, "ends": self.names.ends, "contents": self.contents, "parts": self.parts}
        write_tensors(path, tensors, {"format": _FORMAT, "official": self.official})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageRecord:
        """Reads a file that `save` wrote; executes nothing from it.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: It is damaged or not a record.
        """
        tensors, metadata = read_tensors(path, "a record of images")
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}; this version of anytime reads {_FORMAT}")
        kinds = {"text": torch.uint8, "ends": torch.int64, "contents": torch.int64, "parts": torch.uint8}
        if {name: tensor.dtype for name, tensor in tensors.items()} != kinds:
            raise ValueError(f"{path} is damaged: it holds {', '.join(sorted(tensors))}, not {', '.join(kinds)}")
        text, ends, contents, parts = (tensors[name].flatten() for name in kinds)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        if (starts.diff() < 0).any() or starts[-1] != len(text) or not len(ends) == len(contents) == len(parts):
            raise ValueError(f"{path} is damaged: names, contents and parts do not belong together")
        if len(parts) and int(parts.max()) >= len(PARTS):
            raise ValueError(f"{path} is damaged: there is no part {int(parts.max())}")
        return cls(Names(text, ends, torch.arange(len(ends))), contents, parts, metadata.get("official", ""))


def read_record(run: Path | None) -> ImageRecord | None:
    """The record of a run directory, or None if it has none."""
    if run is None:
        return None
    check_file(run / RECORD)
    return ImageRecord.load(run / RECORD) if (run / RECORD).is_file() else None


def copy_record(run: Path, out: Path) -> None:
    """Copies the record of a run, if it has one, to a folder with the same model; one that is whole there stays.

    Raises:
        ValueError: The record of the run is damaged, or another file has its name in `out`.
        OSError: The disk is full.
    """
    if read_record(run) is None:
        return
    try:
        found = read_record(out)
    except ValueError:
        found = None
    if found is None:
        replace_record(run, out)


def replace_record(run: Path, out: Path) -> None:
    """Makes the record of a folder that of the run whose model it holds now; without one of the run, the folder has none.

    Raises:
        ValueError: The record of the run is damaged, or another file has its name in `out`.
        OSError: The disk is full.
    """
    check_own(out / RECORD)
    if read_record(run) is None:
        (out / RECORD).unlink(missing_ok=True)
        return
    with atomic_write(out / RECORD) as part:
        shutil.copyfile(run / RECORD, part)
