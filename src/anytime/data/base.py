"""The base of all data sets."""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from lightning import LightningDataModule
from torch import Tensor

from anytime.data.augment import Padding, compose, crop_and_flip
from anytime.data.batches import Batches, Loader
from anytime.data.files import check_labels
from anytime.data.noise import Noise, create_noise
from anytime.data.splits import choose_classes, hold_out, stratified_order
from anytime.data.stream import LazyImages, StreamedBatches
from anytime.data.taxonomy import LabelLevels, read_taxonomy

Choice = Literal["none", "crop", "flip", "crop+flip"]
Augment = Literal["standard", "none", "crop", "flip", "crop+flip"]


def default_root() -> Path:
    """Where data lie: the folder named by `ANYTIME_DATA`, otherwise `~/.cache/anytime/data`."""
    return Path(os.environ.get("ANYTIME_DATA") or Path.home() / ".cache" / "anytime" / "data")


@dataclass(frozen=True)
class Split:
    """Images of a data set with their labels, as a reader returns them.

    Args:
        images: uint8 `[N, C, H, W]`, or files to be read when they are needed.
        targets: int64 `[N]`, or `[N, D]` for D label levels.
        source: the file or folder that errors name.
        groups: int64 `[N]`, numbers of groups that a validation split must not divide.
    """

    images: Tensor | LazyImages
    targets: Tensor
    source: str | os.PathLike[str]
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor) -> Split:
        groups = None if self.groups is None else self.groups[indices]
        return Split(self.images[indices], self.targets[indices], self.source, groups)

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """The labels of each level, int64 `[N]`."""
        return (self.targets,) if self.targets.ndim == 1 else self.targets.unbind(1)

    @property
    def labels(self) -> Tensor:
        """The labels of the first level, int64 `[N]`."""
        return self.levels[0]


class ImageData(LightningDataModule, ABC):
    """Images with class labels, in training, validation and test parts.

    A data set of one's own subclasses this and implements `read_names` and `read`; it may set the class attributes
    below and implement `fetch`.

    Args:
        root: folder that holds the data; default `$ANYTIME_DATA` or `~/.cache/anytime/data`.
        download: download what is missing.
        classes: use only these classes: names or patterns such as `"*terrier*"`; labels are numbered anew in the
            order of the data set.
        validation: share (below 1) or number of training images held out for validation, stratified by class;
            0 for none.
        split_seed: which images are held out, and which are used under `limit`.
        batch_size: training images a batch and process.
        eval_batch_size: validation and test images a batch and process.
        augment: of training images: `"standard"` is what is usual for the data set, the rest is explicit. `crop` is a
            random crop after padding with black by an eighth of the image size (of large streamed images a random
            resized crop), `flip` mirrors half of the images left to right.
        crop_padding: `"zeros"` pads with black, `"reflect"` mirrors the image (sets in memory).
        noise: put on every training image after that, see `anytime.data.noise` (sets in memory); what is removed shows the
            mean colour.
        seed: of the order and augmentation of training images.
        workers: processes that read streamed images; images in memory need none.
        limit: train on this many images only, stratified by class.
        taxonomy: file with a tree of which the classes are the leaves: targets become `[N, D]`, fine to coarse. For what it
            may hold see `anytime.data.taxonomy.read_taxonomy`: CSV, paths, or WordNet's `data.noun`.
        label_levels: D, of a taxonomy; default: as many as tell something apart.

    Attributes:
        input_size: (channels, height, width).
        class_names: in label order, available after `setup`. Several label levels stand one after another.
        num_classes: number of outputs that a model needs: the length of `class_names`.
        levels: number of classes of each label level; empty where there is only one level.

    Raises:
        ValueError: for arguments that make no sense, and from `setup` for damaged files and wrong labels.
        FileNotFoundError: from `setup`, for missing files.
    """

    title: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    license: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    official: ClassVar[tuple[int, int] | None] = None
    """Official numbers of training and test images."""
    official_classes: ClassVar[int | None] = None
    files: ClassVar[tuple[str, ...]] = ()
    """Paths under the root of which one shows that the data set is there; empty if it needs no files."""
    standard_augment: ClassVar[Choice] = "crop+flip"

    input_size: tuple[int, int, int] = (3, 32, 32)
    resize_ratio: float = 1.0
    """Test images are resized to this many times the wanted size before their centre is cut out."""

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        download: bool = False,
        classes: list[str | int] | str | None = None,
        validation: float | int = 0.1,
        split_seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        augment: Augment = "standard",
        seed: int = 0,
        workers: int = 0,
        limit: int | None = None,
        crop_padding: Padding = "zeros",
        noise: Noise | None = None,
        taxonomy: str | None = None,
        label_levels: int | None = None,
    ) -> None:
        super().__init__()
        if augment not in get_args(Augment):
            near = difflib.get_close_matches(str(augment), get_args(Augment), n=1, cutoff=0)
            raise ValueError(f"augment must be one of {get_args(Augment)}, got {augment!r}; did you mean {near[0]!r}?")
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "limit": limit}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        if not (0 <= validation < 1 or (validation >= 1 and validation == int(validation))):
            raise ValueError(f"validation must be a share in [0, 1) or a number of images, got {validation}")
        if crop_padding not in get_args(Padding):
            raise ValueError(f"crop_padding must be one of {get_args(Padding)}, got {crop_padding!r}")
        if noise is not None and noise not in get_args(Noise):
            raise ValueError(f"noise must be one of {get_args(Noise)}, got {noise!r}")
        if label_levels is not None and (taxonomy is None or label_levels < 2):
            raise ValueError(f"label_levels is at least 2, of a taxonomy, got {label_levels!r} with taxonomy={taxonomy!r}")
        self.root = Path(root).expanduser() if root is not None else default_root()
        self.taxonomy, self.label_levels = taxonomy, label_levels
        self.download, self.classes = download, classes
        self.validation, self.split_seed, self.limit = validation, split_seed, limit
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.augment = self.standard_augment if augment == "standard" else augment
        self.crop_padding: Padding = crop_padding
        self.noise = noise
        self.seed, self.workers = seed, workers
        self.levels: tuple[int, ...] = ()
        self.class_names: list[str]
        self.num_classes: int
        self._names: list[list[str]] = []
        self._coarser: LabelLevels | None = None
        self._kept: list[Tensor] = []
        self._parts: dict[str, Split] = {}

    # What a data set implements

    @abstractmethod
    def read_names(self) -> list[list[str]]:
        """Class names in label order, one list for each label level."""

    @abstractmethod
    def read(self, part: str) -> Split | None:
        """Reads all images of `"train"`, `"validation"` or `"test"`.

        Only `"validation"` may be `None`: then it is held out from the training images.
        """

    def fetch(self) -> None:
        """Downloads what is missing."""

    def find(self, *candidates: str) -> Path:
        """The first of some paths under the root that exists.

        Raises:
            FileNotFoundError: if none does; says what to do about it.
        """
        for candidate in candidates:
            if (path := self.root / candidate).exists():
                return path
        looked = f"looked in {self.root}" if self.root.is_dir() else f"there is no folder {self.root}"
        able = type(self).fetch is not ImageData.fetch
        cure = (
            "download it (--data.download true; of evaluate and fit --download), or put it there yourself"
            if able
            else "put it there"
        )
        raise FileNotFoundError(
            f"{self.title or type(self).__name__}: no {' or '.join(candidates)}; {looked}; {cure}, "
            f"or name another folder by --data.root (--root) or ANYTIME_DATA"
            + (f" (source: {self.homepage})" if self.homepage else "")
        )

    @classmethod
    def found(cls, root: str | os.PathLike[str] | None = None) -> bool:
        """Whether the data set lies under `root`, as far as names of files tell."""
        folder = Path(root).expanduser() if root is not None else default_root()
        return not cls.files or any((folder / name).exists() for name in cls.files)

    # What Lightning, and everybody else, calls

    def prepare_data(self) -> None:
        """Downloads missing files if `download` is set."""
        if self.download:
            self.fetch()

    def setup(self, stage: str | None = None) -> None:
        """Reads the parts that `stage` needs (`None`: all), once."""
        if self.trainer is None:
            self.prepare_data()
        if stage in (None, "fit", "validate"):
            self._part("train")
        if stage in (None, "test", "predict"):
            self._part("test")

    def train_dataloader(self) -> Loader:
        """Batches in random order, augmented."""
        return self._loader(self._part("train"), train=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of held-out training images, or an empty list if none are held out."""
        part = self._part("validation")
        return self._loader(part, train=False) if len(part) else []

    def test_dataloader(self) -> Loader:
        """Batches of test images in the order of the data set."""
        return self._loader(self._part("test"), train=False)

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training images, in [0, 1]; of streamed sets over a sample of 1,024."""
        return self._statistics[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, as `mean`."""
        return self._statistics[1]

    # How the parts are made

    def _part(self, name: str) -> Split:
        """`"train"`, `"validation"` or `"test"` with classes chosen, held-out images removed and the limit applied."""
        if not self._kept:
            self._choose()
        if name == "test" and name not in self._parts:
            self._parts["test"] = self._required("test")
        elif name not in self._parts:
            train, validation = self._required("train"), self._selected("validation")
            if validation is None:
                stay, held = hold_out(train.labels, self.validation, self.split_seed, train.groups)
                train, validation = train[stay], train[held]
            if self.limit is not None and self.limit < len(train):
                train = train[stratified_order(train.labels, self.split_seed)[: self.limit].sort().values]
            self._parts |= {"train": train, "validation": validation}
        return self._parts[name]

    def _choose(self) -> None:
        """Finds the class names, and which original labels of each level are used."""
        names = self.read_names()
        if self.taxonomy is not None:
            if len(names) > 1:
                raise ValueError(f"these labels have {len(names)} levels of their own, leave out taxonomy={self.taxonomy!r}")
            self._coarser = read_taxonomy(self.taxonomy, names[0]).levels(names[0], self.label_levels)
            names = [list(level) for level in self._coarser.names]
        self._names = names
        kept = [torch.arange(len(level)) for level in names]
        if self.classes is not None:
            kept[0] = torch.tensor(choose_classes(names[0], self.classes))
            if len(names) > 1:
                targets = cast(Split, self._checked("train")).targets
                kept[1:] = [level.unique() for level in targets[torch.isin(targets[:, 0], kept[0])].T[1:]]
        self._kept = kept
        levels = [[level[i] for i in keep.tolist()] for level, keep in zip(names, kept, strict=True)]
        self.class_names = [name for level in levels for name in level]
        self.num_classes = len(self.class_names)
        self.levels = tuple(map(len, levels)) if len(levels) > 1 else ()

    def _checked(self, name: str) -> Split | None:
        part = self.read(name)
        if part is None:
            return None
        if isinstance(part.images, Tensor) and part.images.shape[1:] != self.input_size:
            raise ValueError(f"{part.source}: images are {list(part.images.shape[1:])}, not {list(self.input_size)}")
        if self._coarser is not None:
            check_labels(part.labels, len(self._names[0]), part.source)
            part = replace(part, targets=self._coarser.targets(part.targets))
        for names, labels in zip(self._names, part.levels, strict=True):
            check_labels(labels, len(names), part.source)
        return part

    def _selected(self, name: str) -> Split | None:
        part = self._checked(name)
        if part is None or self.classes is None:
            return part
        part = part[torch.isin(part.labels, self._kept[0]).nonzero().flatten()]
        levels = [torch.searchsorted(k, c.contiguous()) for k, c in zip(self._kept, part.levels, strict=True)]
        return replace(part, targets=torch.stack(levels, 1).view(part.targets.shape))

    def _required(self, name: str) -> Split:
        part = self._selected(name)
        if part is None:
            raise ValueError(f"{type(self).__name__}.read({name!r}) returned None; only 'validation' may be left out")
        if not len(part):
            raise ValueError(f"{part.source}: no {name} images of the classes wanted")
        return part

    def _loader(self, part: Split, train: bool) -> Loader:
        device, rank, world_size = torch.device("cpu"), 0, 1
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        size = self.batch_size if train else self.eval_batch_size
        crop, flip = train and "crop" in self.augment, train and "flip" in self.augment
        place: dict[str, Any] = {"shuffle": train, "seed": self.seed, "rank": rank, "world_size": world_size}
        images = part.images
        if isinstance(images, LazyImages):
            if self.noise is not None or self.crop_padding != "zeros":
                raise ValueError(
                    f"{type(self).__name__} is read image by image: noise and crop_padding are for sets in memory, "
                    f"got {self.noise!r} and {self.crop_padding!r}"
                )
            place |= {"crop": crop, "flip": flip, "workers": self.workers, "device": device}
            return StreamedBatches(images, part.targets, size, self.input_size, **place)
        parts = [crop_and_flip(max(1, self.input_size[-1] // 8) if crop else 0, flip, self.crop_padding)]
        if train and self.noise is not None:
            parts.append(create_noise(self.noise, self.mean))
        augment = compose(parts)
        return Batches(images.to(device), part.targets.to(device), size, augment=augment, **place)

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        part = self._part("train")
        images = part.images
        if isinstance(images, LazyImages):
            rows = stratified_order(part.labels, self.split_seed)[:1024]
            loader = StreamedBatches(images[rows], part.targets[rows], 128, self.input_size, workers=self.workers)
            images = torch.cat([batch for batch, _ in loader]).mul_(255).round_().to(torch.uint8)
        # From exact counts of the 256 values, so that the numbers are the same everywhere.
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
        share = counts / counts.sum(1, keepdim=True)
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ values
        variance = (share * (values - mean[:, None]) ** 2).sum(1)
        return mean.tolist(), variance.sqrt().tolist()
