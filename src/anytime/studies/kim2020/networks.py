"""The two networks of Kim et al. (2020) and their trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anytime.model import AnytimeModel, create_model
from anytime.studies.runner import TrainingRun, find_recipe, one_per_seed, slug

ANYTIMENET, BASELINE = "AnytimeNet", "BASELINE"
FLAGS: Mapping[str, tuple[str, ...]] = {ANYTIMENET: (), BASELINE: ("--model=anytimenet_baseline",)}
MODELS = {ANYTIMENET: "anytimenet", BASELINE: "anytimenet_baseline"}

_SIGNS = ("--data=GTSRB", "--data.size=32", "--data.validation=0", "--data.batch_size=128")
_SHORT = "--epochs=2"
SCALES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {  # recipe of AnytimeNet and flags over it, by data set
    "cpu": {"cifar10": ("kim2020_cifar10_cpu.yaml", ()), "gtsrb": ("kim2020_cifar10_cpu.yaml", _SIGNS)},
    "fast": {
        "cifar10": ("kim2020_cifar10_cpu.yaml", (_SHORT, "--data.flip=alternating")),
        "gtsrb": ("kim2020_cifar10_cpu.yaml", (*_SIGNS, _SHORT)),
    },
    "full": {
        "cifar10": ("kim2020_anytimenet_cifar10.yaml", ()),
        "gtsrb": ("kim2020_anytimenet_gtsrb.yaml", ()),
        "stanfordcars": ("kim2020_anytimenet_stanfordcars.yaml", ()),
    },
}


class Images(NamedTuple):
    """What a cost depends on: classes, pixels of a side, and the number of test images."""

    classes: int
    pixels: int
    tests: int

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return 3, self.pixels, self.pixels


IMAGES = {  # signs and cars at the size of the full recipes
    "cifar10": Images(10, 32, 10_000),
    "gtsrb": Images(43, 48, 12_630),
    "stanfordcars": Images(196, 48, 8_041),
}


def untrained_network(name: str, data: str) -> AnytimeModel:
    """One of the two networks with initial weights: costs do not depend on the weights."""
    return create_model(MODELS[name], IMAGES[data].classes).eval()


def _runs(names: Sequence[str], data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    file, flags = SCALES[scale][data]
    networks = {slug(name): ((*flags, *FLAGS[name]), {name: None}) for name in names}
    return one_per_seed(f"{data}_{scale}", find_recipe(file), seeds, networks)


def figure_3_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """AnytimeNet and BASELINE."""
    return _runs([ANYTIMENET, BASELINE], data, scale, seeds)


def figure_4_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """AnytimeNet."""
    return _runs([ANYTIMENET], data, scale, seeds)
