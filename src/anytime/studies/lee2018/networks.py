"""The trainings behind the figures of Lee and Shin (2018)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from anytime.model import AnytimeModel
from anytime.models.slicing.sliced import SlicedModel, branch_l1_norms
from anytime.studies.runner import TrainingRun, View, find_recipe, on_validation, one_per_seed, slug

INCLUSIVE, SHARED, PLAIN, SHALLOW, SPARSE = "I-ResNeXt", "I-ResNeXt, shared BN", "ResNeXt", "ResNeXt with exits", "IS-ResNeXt"
SANDWICH = "I-ResNeXt, sandwich"
DEEP = "I-ResNeXt-65"  # the I-ResNeXt of figure 4 at full scale; that of the ablation has 29 layers
HIERARCHICAL = "IS-ResNeXt, label levels"
VALIDATION = f"{HIERARCHICAL}, on validation"


def thin_alone(k: int, of: int) -> str:
    """The name of thin sub-network k of `of`, trained alone."""
    return PLAIN if k == of else f"ResNeXt, {k} of {of} branches"


def shallow_alone(blocks: int) -> str:
    """The name of the shallow sub-network with this number of blocks, trained alone."""
    return f"ResNeXt, {blocks} blocks"


@dataclass(frozen=True)
class Scale:
    """The networks at one scale."""

    data: Mapping[str, tuple[str, tuple[str, ...]]]  # recipe and flags, by data set
    ablation: tuple[str, ...]  # flags of the I-ResNeXt of figure 3
    blocks: tuple[int, ...]  # its blocks per feature-map size
    width: int  # its W
    cardinality: int  # its C, which equals its K
    thin: tuple[int, ...]  # thin sub-networks also trained alone, besides the full one
    shallow: tuple[int, ...]  # numbers of blocks of the shallow sub-networks also trained alone
    sparse: tuple[str, ...]  # flags of IS-ResNeXt
    samples: int  # random sub-networks in each step of the sandwich recipe, besides the thinnest and the full one
    deep: bool  # whether figure 4 uses the recipe's own I-ResNeXt instead of that of figure 3
    levels: tuple[str, tuple[str, ...]]  # recipe and flags of figure 5, which needs the two label levels of CIFAR-100


_FULL_CIFAR100 = ("--data=CIFAR100", "--data.validation=0.1", "--data.batch_size=64")

_CPU = Scale(
    data={
        "cifar10": ("lee2018_cifar10_cpu.yaml", ()),
        "cifar100": ("lee2018_cifar10_cpu.yaml", ("--data=CIFAR100", "--data.validation=0.1", "--data.batch_size=128")),
    },
    ablation=(),
    blocks=(2, 2, 2),
    width=32,
    cardinality=4,
    thin=(1,),
    shallow=(2,),
    sparse=("--model.blocks=[2,2,2]", "--model.width=48", "--model.steps=4", "--model.cardinality=8"),
    samples=1,
    deep=False,
    levels=("hierarchical_cifar100.yaml", ()),
)
_FAST = ("--epochs=2", "--data.flip=alternating")

SCALES = {
    "cpu": _CPU,
    "fast": replace(
        _CPU,
        data={name: (recipe, (*flags, *_FAST)) for name, (recipe, flags) in _CPU.data.items()},
        levels=(_CPU.levels[0], (*_CPU.levels[1], *_FAST)),
    ),
    "full": Scale(
        data={"cifar10": ("lee2018_cifar10.yaml", ()), "cifar100": ("lee2018_cifar10.yaml", _FULL_CIFAR100)},
        ablation=("--model=iresnext29",),
        blocks=(3, 3, 3),
        width=64,
        cardinality=8,
        thin=tuple(range(1, 8)),
        shallow=tuple(range(2, 9)),
        sparse=(),
        samples=2,
        deep=True,
        levels=(
            "lee2018_cifar10.yaml",
            (
                *("--model=isresnext", *_FULL_CIFAR100, "--data.labels=both"),
                *("--objective=Hierarchical", "--objective.weights=constant"),
            ),
        ),
    ),
}


def with_norms(model: AnytimeModel) -> AnytimeModel:
    """The model with the l1 norms of its branches among its arguments, so that traces, which hold no weights, have them."""
    assert isinstance(model, SlicedModel)
    norms = {"branch_l1_norms": branch_l1_norms(model).tolist()}
    model.config = model.config | {"arguments": model.config["arguments"] | norms}
    return model


def _first(blocks: Sequence[int], count: int) -> list[int]:
    """The first `count` blocks, per feature-map size."""
    taken: list[int] = []
    for n in blocks:
        taken.append(min(n, count - sum(taken)))
    return [n for n in taken if n]


def _flags(scale: Scale) -> dict[str, tuple[str, ...]]:
    """The flags of each network over the recipe of its scale."""
    exits = [f"blocks.{index}" for index in range(1, sum(scale.blocks) - 1)]
    options = {"blocks": scale.blocks, "width": scale.width, "cardinality": scale.cardinality}
    module = "anytime.studies.lee2018.resnext"
    alone: dict[str, tuple[str, ...]] = {PLAIN: ()}
    alone |= {thin_alone(k, scale.cardinality): (f"--model.cardinality={k}",) for k in scale.thin}
    alone |= {shallow_alone(n): (f"--model.blocks={json.dumps(_first(scale.blocks, n))}",) for n in scale.shallow}
    return {
        INCLUSIVE: scale.ablation,
        SHARED: (*scale.ablation, "--model.batch_norm=shared"),
        DEEP: (),
        SANDWICH: (*(() if scale.deep else scale.ablation), "--regime=Sandwich", f"--regime.samples={scale.samples}"),
        SPARSE: ("--model=isresnext", *scale.sparse),
        SHALLOW: (
            *("--model=attach", f"--model.backbone={module}.Backbone", f"--model.head={module}.Classifier"),
            *(f"--model.exits={json.dumps(exits)}", f"--model.options={json.dumps(options)}"),
        ),
    } | {name: (*scale.ablation, "--model.steps=1", *more) for name, more in alone.items()}


def _networks(figure: str, scale: Scale) -> list[str]:
    """The networks of a figure in order of training."""
    thin, shallow = [thin_alone(k, scale.cardinality) for k in scale.thin], [shallow_alone(count) for count in scale.shallow]
    return {
        "figure 3a": [INCLUSIVE, SHARED],
        "figure 3b": [INCLUSIVE, PLAIN],
        "figure 3c": [INCLUSIVE, SHALLOW, thin[0], shallow[0], PLAIN, *thin[1:], *shallow[1:]],
        "figure 4": [DEEP if scale.deep else INCLUSIVE, SPARSE, SANDWICH],
    }[figure]


def runs_of(figure: str, data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """One training per seed and network of figure 3 or 4."""
    here = SCALES[scale]
    file, flags = here.data[data]
    views: dict[str, View | None] = dict.fromkeys((INCLUSIVE, PLAIN), with_norms)
    more = _flags(here)
    networks = {slug(name): ((*flags, *more[name]), {name: views.get(name)}) for name in _networks(figure, here)}
    return one_per_seed(f"{data}_{scale}", find_recipe(file), seeds, networks)


def figure_5_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """IS-ResNeXt with two label levels; no training on CIFAR-10, which has one level."""
    if data != "cifar100":
        return []
    file, flags = SCALES[scale].levels
    networks = {slug(HIERARCHICAL): (flags, {HIERARCHICAL: None, VALIDATION: on_validation})}
    return one_per_seed(f"{data}_{scale}", find_recipe(file), seeds, networks)
