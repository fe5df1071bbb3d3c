"""The base of all data sets."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning import LightningDataModule
from torch import Tensor

from anytime.data.arguments import Augment, CropFlip, SplitBy, check_arguments
from anytime.data.augment import Flip, Padding, compose, crop_and_flip
from anytime.data.batches import Batches, Loader
from anytime.data.files import ARCHIVE_ERRORS, NETWORK_ERRORS, absent, check_labels
from anytime.data.names import composed
from anytime.data.noise import Noise, create_noise
from anytime.data.record import ImageRecord
from anytime.data.split import Split
from anytime.data.splits import choose_classes, hold_out, hold_out_by_lot, stratified_order
from anytime.data.statistics import channel_statistics
from anytime.data.stream import LazyImages, StreamedBatches
from anytime.data.taxonomy import LabelLevels, read_taxonomy
from anytime.support.text import one_line

IN_MEMORY = {"noise": None, "crop_padding": "zeros", "crop_pixels": None, "flip": "random"}  # what streamed sets cannot change


def default_root() -> Path:
    """The folder that holds data: `$ANYTIME_DATA`, or `~/.cache/anytime/data` if that is not set."""
    return Path(os.environ.get("ANYTIME_DATA") or Path.home() / ".cache" / "anytime" / "data")


class ImageData(LightningDataModule, ABC):
    """Images with class labels in training, validation and test splits.

    To define a custom data set, subclass this and implement `read_names` and `read`; also implement `fetch` and set the
    class attributes below where they apply.

    Args:
        root: Folder that holds the data; default `$ANYTIME_DATA` or `~/.cache/anytime/data`.
        download: Download missing files.
        classes: Use only these classes: names or patterns such as `"*terrier*"`; labels are renumbered in the data set's
            order.
        validation: Share (below 1) or number of training images to hold out for validation; 0 for none.
        split_seed: Decides which images are held out, and which are used under `limit`.
        split_by: How to hold out images: by `"names"`, a hash of each image's name (or content, if it has no name), so that
            adding or removing other images does not move it and the share is met approximately; or by `"positions"` in the
            list of all images, as in versions without this argument. In official sets the share is met exactly, stratified by
            class, and those in one file are always split by positions.
        batch_size: Training images per batch and process.
        eval_batch_size: Validation and test images per batch and process.
        augment: Augmentation of training images: `"standard"` is the data set's usual one, the others are explicit. `crop`
            is a random crop after padding with black by an eighth of the image size (for large streamed images a random
            resized crop), `flip` mirrors half of the images left to right.
        crop_padding: `"zeros"` pads with black, `"reflect"` mirrors the image (sets in memory).
        crop_pixels: Pixels of padding, instead of an eighth of the image size (sets in memory).
        flip: Which images are mirrored: `"random"`, or `"alternating"`: a random half in the first epoch, the other half in
            the next, and so on, so that two epochs show both sides of every image (sets in memory).
        noise: Noise applied to every training image after augmentation, see `anytime.data.noise` (sets in memory); removed
            pixels show the mean colour.
        seed: Seed of the order and augmentation of training images.
        workers: Number of processes that read streamed images; images in memory need none.
        limit: Train on only this many images, stratified by class.
        taxonomy: File with a tree whose leaves are the classes: targets become `[N, D]`, fine to coarse. For its formats
            see `anytime.data.taxonomy.read_taxonomy`: CSV, paths, or WordNet's `data.noun`.
        label_levels: D, the number of levels of a taxonomy; default: all that distinguish classes.

    Attributes:
        input_size: (channels, height, width).
        class_names: In label order, available after `setup`. Several label levels follow one another.
        num_classes: Number of outputs that a model needs: the length of `class_names`.
        levels: Number of classes of each label level; empty if there is only one level.
        record: Which images are in which part, if a run has recorded it (`use_record`); it takes precedence.
        divided: The parts that were split off here, before classes are chosen.

    Raises:
        ValueError: An argument is invalid; from `setup`: files are damaged or labels are wrong.
        FileNotFoundError: From `setup`: files are missing.
    """

    title: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    license: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    official: ClassVar[tuple[int, int, int] | None] = None
    """The official numbers of training images, test images and classes."""
    files: ClassVar[tuple[str, ...]] = ()
    """Paths under the root; if one exists, the data set is there. Empty if it needs no files."""
    standard_augment: ClassVar[CropFlip] = "crop+flip"
    options: tuple[str, str] = ("--data.root", "--data.download true")
    """The command-line options that name the folder and download missing files; error messages refer to them."""

    input_size: tuple[int, int, int] = (3, 32, 32)
    resize_ratio: float = 1.0
    """Test images are resized to this multiple of the target size before their centre is cropped."""
    stretched: bool = False
    """Whether test images are resized to the target size whole, whatever their aspect; `resize_ratio` is then unused."""

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
        split_by: SplitBy = "names",
        crop_pixels: int | None = None,
        flip: Flip = "random",
    ) -> None:
        super().__init__()
        check_arguments(
            {"augment": augment, "crop_padding": crop_padding, "noise": noise, "split_by": split_by, "flip": flip},
            {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "limit": limit, "crop_pixels": crop_pixels},
            workers,
            validation,
        )
        if label_levels is not None and (taxonomy is None or label_levels < 2):
            raise ValueError(
                f"label_levels must be 2 or more with a taxonomy, got {label_levels!r} with taxonomy={taxonomy!r}"
            )
        self.root = Path(root).expanduser() if root is not None else default_root()
        self.taxonomy, self.label_levels = taxonomy, label_levels
        self.download, self.classes = download, classes
        self.validation, self.split_seed, self.limit = validation, split_seed, limit
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.augment = self.standard_augment if augment == "standard" else augment
        self.crop_padding: Padding = crop_padding
        self.crop_pixels, self.flip = crop_pixels, flip
        self.noise = noise
        self.seed, self.workers = seed, workers
        self.split_by = split_by
        self.record: ImageRecord | None = None
        self.divided: dict[str, Split] = {}
        self.levels: tuple[int, ...] = ()
        self.class_names: list[str]
        self.num_classes: int
        self._names: list[list[str]] = []
        self._taxonomy_levels: LabelLevels | None = None
        self._used_labels: list[Tensor] = []
        self._splits: dict[str, Split] = {}

    @abstractmethod
    def read_names(self) -> list[list[str]]:
        """Class names in label order, one list per label level."""

    @abstractmethod
    def read(self, split: str) -> Split | None:
        """Reads all images of `"train"`, `"validation"` or `"test"`.

        Only `"validation"` may give `None`: it is then held out from the training images.
        """

    def fetch(self) -> None:
        """Downloads missing files."""

    def find(self, *candidates: str) -> Path:
        """The first of these paths under the root that exists.

        Raises:
            FileNotFoundError: None of them exists; the message says what to do.
        """
        for candidate in candidates:
            if (path := self.root / candidate).exists():
                return path
        root, download = self.options
        looked = f"looked in {self.root}" if self.root.is_dir() else absent(self.root)
        cure = "put it there" if type(self).fetch is ImageData.fetch else f"download it ({download}), or put it there yourself"
        raise FileNotFoundError(
            f"{self.title or type(self).__name__}: no {' or '.join(candidates)}; {looked}; {cure}, "
            f"or give another folder with {root} or ANYTIME_DATA" + (f" (source: {self.homepage})" if self.homepage else "")
        )

    @classmethod
    def found(cls, root: str | os.PathLike[str] | None = None) -> bool:
        """Whether the data set is under `root`, judging by file names only."""
        folder = Path(root).expanduser() if root is not None else default_root()
        return not cls.files or any((folder / name).exists() for name in cls.files)

    def prepare_data(self) -> None:
        """Downloads missing files if `download` is set."""
        if self.download:
            try:
                self.fetch()
            except (RuntimeError, *NETWORK_ERRORS, *ARCHIVE_ERRORS) as error:
                put = f", or put {' or '.join(self.files)} into {self.root} yourself" if self.files else ""
                reason = f"the download failed: {one_line(error)}; try again{put}"
                raise ValueError(f"{self.title or type(self).__name__}: {reason}") from error

    def setup(self, stage: str | None = None) -> None:
        """Reads the splits that `stage` needs (`None`: all), once."""
        if self.trainer is None:
            self.prepare_data()
        if stage in (None, "fit", "validate"):
            self.split("train")
        if stage in (None, "test", "predict"):
            self.split("test")

    def train_dataloader(self) -> Loader:
        """Batches in random order, augmented."""
        return self.loader(self.split("train"), train=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of held-out training images, or an empty list if none are held out."""
        validation = self.split("validation")
        return self.loader(validation, train=False) if len(validation) else []

    def test_dataloader(self) -> Loader:
        """Batches of test images in the order of the data set."""
        return self.loader(self.split("test"), train=False)

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training images, in [0, 1]; for streamed sets over a sample of 1,024."""
        return self._statistics[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, computed like `mean`; raises ValueError if it is 0."""
        if 0 in (std := self._statistics[1]):
            constant = f"channel {std.index(0)} of the training images is {self.mean[std.index(0)]:.3g} everywhere"
            source = self.split("train").source
            raise ValueError(f"{source}: {constant}, so its std is 0; normalize=false leaves the images as they are")
        return std

    def split(self, name: str) -> Split:
        """`"train"`, `"validation"` or `"test"`, after choosing classes, holding out images and applying the limit."""
        if not self._used_labels:
            self._choose_classes()
        if name == "test" and name not in self._splits:
            self._splits["test"] = self._not_trained(self._read_required("test"), is_test=True)
        elif name not in self._splits:
            train, validation = self._read_required("train"), self._read_classes("validation")
            if validation is None:
                train, validation = self.divide(train, self.validation, "validation")
            unused = train[torch.arange(0)]
            if self.record is not None:
                train = self.record.trained(train)
            elif self.limit is not None and self.limit < len(train):
                order = stratified_order(train.labels, self.split_seed)
                train, unused = train[order[: self.limit].sort().values], train[order[self.limit :]]
            self._splits |= {"train": train, "validation": self._not_trained(validation), "unused": unused}
        return self._splits[name]

    def divide(self, split: Split, amount: float, part: str) -> tuple[Split, Split]:
        """Splits off a share (below 1) or number of images as `part`, `"validation"` or `"test"`; returns rest and part."""
        if not amount:
            indices = torch.arange(len(split)), torch.arange(0)
        elif self.record is not None:
            indices = self.record.divide(split, part, split.lots(self.split_seed, part), amount)
        elif self.by_positions or (self.official and split.names is None and split.groups is None):
            indices = hold_out(split.labels, amount, self.split_seed, split.groups)
        else:
            lots = split.lots(self.split_seed, part)
            indices = hold_out_by_lot(split.labels, amount, self.split_seed, lots, split.groups, exact=bool(self.official))
        rest, self.divided[part] = (split[chosen] for chosen in indices)
        return rest, self.divided[part]

    @property
    def by_positions(self) -> bool:
        """Whether images are held out by their positions in the list of all images."""
        return self.split_by == "positions" and self.record is None

    def use_record(self, record: ImageRecord) -> None:
        """Splits the images as a run has recorded it; images that it was trained on are left out of the other parts."""
        self.record = record
        self._splits.clear()

    def make_record(self) -> ImageRecord:
        """A record of the images in each part that was split here, by name and content.

        The contents of streamed official sets are not read, because their names are enough.
        """
        self.split("train")
        parts = [(part, self._splits[part]) for part in ("train", "validation", "unused")]
        if "test" in self.divided:
            parts.append(("test", self.divided["test"]))
        return ImageRecord.of(parts, not (self.official and isinstance(parts[0][1].images, LazyImages)), self._official_name)

    @property
    def _official_name(self) -> str:
        return type(self).__name__ if self.official else ""

    def _not_trained(self, split: Split, is_test: bool = False) -> Split:
        return split if self.record is None else self.record.not_trained(split, self._official_name, is_test)

    def loader(self, split: Split, train: bool) -> Loader:
        """Batches of a split: in random order and augmented if `train`, otherwise as they are, with their groups."""
        loader = self._batches(split, train)
        if not train and loader.world_size == 1:
            loader.groups = split.groups
        return loader

    def _batches(self, split: Split, train: bool) -> Loader:
        device, rank, world_size = torch.device("cpu"), 0, 1
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        size = self.batch_size if train else self.eval_batch_size
        crop, flip = train and "crop" in self.augment, train and "flip" in self.augment
        order: dict[str, Any] = {"shuffle": train, "seed": self.seed, "rank": rank, "world_size": world_size}
        images = split.images
        if isinstance(images, LazyImages):
            if other := [name for name, usual in IN_MEMORY.items() if getattr(self, name) != usual]:
                raise ValueError(f"{type(self).__name__} is read image by image: {other[0]} is for sets in memory")
            order |= {"crop": crop, "flip": flip, "workers": self.workers, "device": device, "resize_ratio": self.resize_ratio}
            return StreamedBatches(images, split.targets, size, self.input_size, **order)
        pixels = self.crop_pixels or max(1, self.input_size[-1] // 8)
        alternate = flip and self.flip == "alternating"
        augment = crop_and_flip(pixels if crop else 0, flip and not alternate, self.crop_padding)
        if train and self.noise is not None:
            augment = compose([augment, create_noise(self.noise, self.mean)])
        return Batches(images.to(device), split.targets.to(device), size, augment=augment, alternate=alternate, **order)

    def _choose_classes(self) -> None:
        """Sets the class names and which original labels of each level are used."""
        names = [list(map(composed, level)) for level in self.read_names()]
        if self.taxonomy is not None:
            if len(names) > 1:
                raise ValueError(f"these labels already have {len(names)} levels; leave out taxonomy={self.taxonomy!r}")
            self._taxonomy_levels = read_taxonomy(self.taxonomy, names[0]).levels(names[0], self.label_levels)
            names = [list(level) for level in self._taxonomy_levels.names]
        self._names = names
        used = [torch.arange(len(level)) for level in names]
        if self.classes is not None:
            used[0] = torch.tensor(choose_classes(names[0], self.classes))
            if len(names) > 1:
                targets = cast(Split, self._read_checked("train")).targets
                used[1:] = [level.unique() for level in targets[torch.isin(targets[:, 0], used[0])].T[1:]]
        self._used_labels = used
        levels = [[level[i] for i in labels.tolist()] for level, labels in zip(names, used, strict=True)]
        self.class_names = [name for level in levels for name in level]
        self.num_classes = len(self.class_names)
        self.levels = tuple(map(len, levels)) if len(levels) > 1 else ()

    def _read_checked(self, name: str) -> Split | None:
        """Reads a split, checks image size and labels, and adds the levels of the taxonomy."""
        split = self.read(name)
        if split is None:
            return None
        if isinstance(split.images, Tensor) and split.images.dtype != torch.uint8:
            raise ValueError(f"{split.source}: images must be uint8, got {split.images.dtype}")
        if isinstance(split.images, Tensor) and split.images.shape[1:] != self.input_size:
            raise ValueError(f"{split.source}: images are {list(split.images.shape[1:])}, not {list(self.input_size)}")
        if self._taxonomy_levels is not None:
            check_labels(split.labels, len(self._names[0]), split.source)
            split = replace(split, targets=self._taxonomy_levels.targets(split.targets))
        for names, labels in zip(self._names, split.levels, strict=True):
            check_labels(labels, len(names), split.source)
        return split

    def _read_classes(self, name: str) -> Split | None:
        """Reads the images of the chosen classes and renumbers their labels."""
        split = self._read_checked(name)
        if split is None or self.classes is None:
            return split
        split = split[torch.isin(split.labels, self._used_labels[0]).nonzero().flatten()]
        pairs = zip(self._used_labels, split.levels, strict=True)
        levels = [torch.searchsorted(used, labels.contiguous()) for used, labels in pairs]
        return replace(split, targets=torch.stack(levels, 1).view(split.targets.shape))

    def _read_required(self, name: str) -> Split:
        split = self._read_classes(name)
        if split is None:
            raise ValueError(f"{type(self).__name__}.read({name!r}) returned None; only 'validation' may be None")
        if not len(split):
            raise ValueError(f"{split.source}: no {name} images of the chosen classes")
        return split

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        images = self.split("train").images
        return channel_statistics(self.sample(1024) if isinstance(images, LazyImages) else images)

    def sample(self, count: int) -> Tensor:
        """Some training images as they are evaluated, stratified by class: uint8 `[N, C, H, W]`, N at most `count`."""
        split = self.split("train")
        rows = stratified_order(split.labels, self.split_seed)[:count]
        if not isinstance(split.images, LazyImages):
            return split.images[rows]
        how: dict[str, Any] = {"workers": self.workers, "resize_ratio": self.resize_ratio}
        loader = StreamedBatches(split.images[rows], split.targets[rows], 128, self.input_size, **how)
        return torch.cat([batch for batch, _ in loader]).mul_(255).round_().to(torch.uint8)
