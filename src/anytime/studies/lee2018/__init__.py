"""Figures 3 to 5 of Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018: the trainings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anytime.model import AnytimeModel
from anytime.models.slicing.sliced import SlicedModel, branch_l1_norms
from anytime.studies.lee2018.figure_5 import HIERARCHICAL, VALIDATION, figure_5
from anytime.studies.lee2018.figures import (
    DEEP,
    INCLUSIVE,
    PAPER,
    PLAIN,
    SANDWICH,
    SHALLOW,
    SHARED,
    SPARSE,
    figure_3a,
    figure_3b,
    figure_3c,
    figure_4,
    shallow_alone,
    thin_alone,
)
from anytime.studies.runner import Run, View, find_recipe, on_validation
from anytime.studies.study import Item, Study


@dataclass(frozen=True)
class Scale:
    """The networks at one scale.

    Args:
        data: Recipe and flags by data set.
        ablation: Flags of the I-ResNeXt of figure 3.
        blocks: Its blocks at each scale.
        width: Its W.
        cardinality: Its C, which is also its K.
        thin: Sub-networks that are trained alone, too, besides the full one.
        shallow: Numbers of blocks whose sub-networks are trained alone, too.
        sparse: Flags of IS-ResNeXt.
        samples: Random sub-networks in each step of the sandwich recipe, besides the thinnest and the full one.
        deep: Whether the I-ResNeXt of figure 4 is another one, that of the recipe.
        levels: Recipe and flags of figure 5, which needs CIFAR-100's two label levels.
    """

    data: Mapping[str, tuple[str, tuple[str, ...]]]
    ablation: tuple[str, ...]
    blocks: tuple[int, ...]
    width: int
    cardinality: int
    thin: tuple[int, ...]
    shallow: tuple[int, ...]
    sparse: tuple[str, ...]
    samples: int
    deep: bool
    levels: tuple[str, tuple[str, ...]]


_FULL_CIFAR100 = ("--data=CIFAR100", "--data.validation=0.1", "--data.batch_size=64")


SCALES = {
    "cpu": Scale(
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
    """The model, whose traces say the l1 norms of its branches beside its arguments: they hold no weights."""
    assert isinstance(model, SlicedModel)
    norms = {"branch_l1_norms": branch_l1_norms(model).tolist()}
    model.config = model.config | {"arguments": model.config["arguments"] | norms}
    return model


def _first(blocks: Sequence[int], count: int) -> list[int]:
    """Blocks at each scale of the first `count` blocks."""
    kept: list[int] = []
    for n in blocks:
        kept.append(min(n, count - sum(kept)))
    return [n for n in kept if n]


def _flags(scale: Scale, name: str) -> tuple[str, ...]:
    """The flags of a network over the recipe of its scale."""
    if name == SPARSE:
        return ("--model=isresnext", *scale.sparse)
    if name == SHALLOW:
        exits = [f"blocks.{index}" for index in range(1, sum(scale.blocks) - 1)]
        options = {"blocks": scale.blocks, "width": scale.width, "cardinality": scale.cardinality}
        here = "anytime.studies.lee2018.shallow"
        return (
            "--model=attach",
            f"--model.backbone={here}.Backbone",
            f"--model.head={here}.Classifier",
            f"--model.exits={json.dumps(exits)}",
            f"--model.options={json.dumps(options)}",
        )
    more: dict[str, tuple[str, ...]] = {INCLUSIVE: (), SHARED: ("--model.batch_norm=shared",), PLAIN: ("--model.steps=1",)}
    more |= {thin_alone(k, scale.cardinality): ("--model.steps=1", f"--model.cardinality={k}") for k in scale.thin}
    for count in scale.shallow:
        kept = json.dumps(_first(scale.blocks, count))
        more[shallow_alone(count)] = ("--model.steps=1", f"--model.blocks={kept}")
    if name == SANDWICH:
        return (*(() if scale.deep else scale.ablation), "--regime=Sandwich", f"--regime.samples={scale.samples}")
    return () if name == DEEP else (*scale.ablation, *more[name])


def _runs(names: Sequence[str], data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """One training for each seed and network."""
    here = SCALES[scale]
    file, flags = here.data[data]
    views: dict[str, View | None] = dict.fromkeys((INCLUSIVE, PLAIN), with_norms)
    return [
        Run(
            f"{data}_{scale}_{re.sub(r'[^a-z0-9]+', '_', name.lower())}_seed{seed}",
            find_recipe(file),
            (*flags, *_flags(here, name)),
            seed,
            {name: views.get(name)},
        )
        for seed in seeds
        for name in names
    ]


def figure_3a_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """The same network with both kinds of batch norm."""
    return _runs([INCLUSIVE, SHARED], data, scale, seeds)


def figure_3b_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """I-ResNeXt, and its full sub-network trained alone."""
    return _runs([INCLUSIVE, PLAIN], data, scale, seeds)


def figure_3c_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """Thin and shallow sub-networks trained jointly, and some of them alone; the thinnest and the shallowest first."""
    here = SCALES[scale]
    alone = [thin_alone(k, here.cardinality) for k in here.thin], [shallow_alone(count) for count in here.shallow]
    rest = [*alone[0][1:], *alone[1][1:]]
    return _runs([INCLUSIVE, SHALLOW, alone[0][0], alone[1][0], PLAIN, *rest], data, scale, seeds)


def figure_4_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """Both architectures, and the first by the sandwich recipe, too."""
    return _runs([DEEP if SCALES[scale].deep else INCLUSIVE, SPARSE, SANDWICH], data, scale, seeds)


def figure_5_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """IS-ResNeXt with two label levels; of CIFAR-10, which has one, there is none."""
    if data != "cifar100":
        return []
    file, flags = SCALES[scale].levels
    recipe, views = find_recipe(file), {HIERARCHICAL: None, VALIDATION: on_validation}
    return [Run(f"{data}_{scale}_is_resnext_label_levels_seed{seed}", recipe, flags, seed, views) for seed in seeds]


STUDY = Study(
    paper=PAPER,
    items={
        "figure 3a": Item("errors with independent and with shared batch norm", figure_3a_runs, figure_3a),
        "figure 3b": Item("l1 norms of the branches", figure_3b_runs, figure_3b),
        "figure 3c": Item("thin and shallow sub-networks, trained jointly and alone", figure_3c_runs, figure_3c),
        "figure 4": Item(
            "errors of I-ResNeXt (also by the sandwich recipe) and IS-ResNeXt over MACs", figure_4_runs, figure_4
        ),
        "figure 5": Item("errors of IS-ResNeXt on fine and coarse labels (of CIFAR-100)", figure_5_runs, figure_5),
    },
    data={scale: list(here.data) for scale, here in SCALES.items()},
    seeds={"cpu": (0, 1, 2), "full": (0, 1, 2, 3, 4)},
)
