"""Exits on a backbone, trained in six ways under one recipe, against the plain network: one table for each backbone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.statistics import difference
from anytime.model import AnytimeModel
from anytime.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from anytime.reporting.tables import Column, format_table
from anytime.studies.executors.subprocess import train_in_passing
from anytime.studies.figures import Line, error_lines
from anytime.studies.runner import Run, Traces, View, find_recipe
from anytime.studies.study import Item, Result, Study, facts
from anytime.support.units import macs_text, ms_text

SOURCE = (
    "Training of exits on a backbone: heads only (Kaya et al. 2019), jointly, mixed (Kubaty et al. 2024), with gradients "
    "rescaled and by self-distillation (Li et al. 2019), and BoostNet's additive answers (Yu et al. 2023)"
)
BACKBONES = {"resnet20": "ResNet20", "mobilenet": "SmallMobileNet"}
EPOCHS = {"resnet20": 8, "mobilenet": 4}
OVER: dict[str, tuple[str, ...]] = {
    "resnet20": (),
    "mobilenet": ("--precision=32-true",),  # its depthwise convolutions take twice as long in bfloat16 on a CPU with AMX
}
EXITS = 4
PLAIN, HEADS_ONLY, JOINT = "plain network", "heads only", "joint"
MIXED, RESCALED, DISTILLED, BOOSTED = "mixed", "gradient rescaling", "self-distillation", "BoostNet"
FLAGS: dict[str, tuple[str, ...]] = {
    PLAIN: ("--model.exits=1",),
    JOINT: (),
    MIXED: ("--regime=Mixed",),  # half of the epochs for the backbone
    RESCALED: ("--regime=GradientRescaling",),
    DISTILLED: ("--objective=SelfDistillation", "--objective.normalize=sum"),
    BOOSTED: ("--regime=GradientRescaling", "--model.additive=true"),
}
COLOURS = {PLAIN: "#000000", HEADS_ONLY: GREY, JOINT: BLUE, MIXED: ORANGE, RESCALED: GREEN, DISTILLED: PURPLE, BOOSTED: RED}


def heads_only(model: AnytimeModel) -> AnytimeModel:
    """Exits on a plain network that stays as it is: their heads are fitted to its features, kept in memory.

    By the network's recipe, but with Adam and a rate of 0.001, as Kaya et al. (2019) fit heads alone.
    """
    from anytime.training.build import build
    from anytime.training.config import resolve_recipe

    recipe: dict[str, Any] = resolve_recipe(copy.deepcopy(model.info.recipe))
    recipe["model"]["init_args"]["exits"] = EXITS
    regime = {"class_path": "HeadsOnly", "init_args": {"views": 2, "memory": 8.0}}
    optimizer = {"class_path": "Adam", "init_args": {"lr": 0.001}}
    recipe |= resolve_recipe({"regime": regime, "optimizer": optimizer})
    recipe["compile"] = False  # heads alone are a matter of seconds
    parts = build(recipe, filled_later=True)
    new = {name: value for name, value in parts.model.state_dict().items() if name.startswith("heads.")}
    parts.model.load_state_dict(model.state_dict() | new)
    train_in_passing(parts)
    return parts.model


def trainings(backbone: str, data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """One training for each seed and way, the plain network first; heads only are made of it."""
    recipe = find_recipe(f"backbones_cifar10_{scale}.yaml")
    network = f"--model.backbone=anytime.models.surgery.small_networks.{BACKBONES[backbone]}"
    common = (network, f"--epochs={EPOCHS[backbone]}", *OVER[backbone])
    runs = []
    for seed in seeds:
        for name, flags in FLAGS.items():
            views: dict[str, View | None] = {_key(backbone, name): None}
            if name == PLAIN:
                views[_key(backbone, HEADS_ONLY)] = heads_only
            slug = name.replace(" ", "_").replace("-", "_").lower()
            half = (f"--regime.backbone_epochs={EPOCHS[backbone] // 2}",) if name == MIXED else ()
            run = f"{data}_{scale}_{backbone}_{slug}_seed{seed}"
            runs.append(Run(run, recipe, (*common, *flags, *half), seed, views))
    return runs


def _key(backbone: str, name: str) -> str:
    return f"{backbone}: {name}"


def table(backbone: str, traces: Traces, data: str) -> Result:
    """Accuracy of each answer, by way of training, and what the exits cost."""
    names = [PLAIN, HEADS_ONLY, *(name for name in FLAGS if name != PLAIN)]
    stored = {name: traces[_key(backbone, name)] for name in names}
    by_seed = {name: [accuracy(trace).tolist() for trace in each.values()] for name, each in stored.items()}
    means = {name: [sum(column) / len(column) for column in zip(*rows, strict=True)] for name, rows in by_seed.items()}
    exits = next(iter(stored[JOINT].values()))
    whole = next(iter(stored[PLAIN].values()))
    rows: list[dict[str, Any]] = []
    for name in names:
        trace = next(iter(stored[name].values()))
        answers = {f"answer_{EXITS - len(means[name]) + t}": value for t, value in enumerate(means[name], 1)}
        rows.append({"trained": name, **answers, "macs": int(trace.macs[-1]), "by_seed": by_seed[name]})
        if trace.seconds is not None:
            rows[-1]["seconds"] = float(trace.seconds[-1])
    claims = [_claim(by_seed, left, right, step) for left, right, step in CLAIMS]
    numbers = {
        "source": SOURCE,
        "backbone": BACKBONES[backbone],
        **facts(stored[PLAIN]),
        "exits": exits.meta["model_arguments"]["exits"],
        "macs": exits.macs,
        "plain_macs": whole.macs,
        "rows": rows,
        "claims": claims,
    }
    columns = [Column("trained", "trained")]
    columns += [Column(f"answer_{t}", f"answer {t} ({macs_text(int(exits.macs[t - 1]))})", ".2%") for t in range(1, EXITS + 1)]
    columns += [Column("macs", "MACs", macs_text), Column("seconds", "median ms", ms_text)]
    said = {True: "yes", False: "NO", None: "unknown"}
    told = "\n".join(f"{said[claim['shows']]:<8} {claim['claim']} ({claim['gain']:+.2%})" for claim in claims)
    lines = [
        Line(name, trace.macs.tolist(), [1 - value for value in means[name]], COLOURS[name], dashed=name == HEADS_ONLY)
        for name in names
        for trace in [next(iter(stored[name].values()))]
    ]
    title = f"{BACKBONES[backbone]}, {numbers['dataset']}, n = {len(by_seed[PLAIN])}"
    return Result(numbers, f"{format_table(rows, columns)}\n\n{told}", error_lines({"MACs of the stream": lines}, title))


CLAIMS = (
    (MIXED, JOINT, EXITS),
    (JOINT, HEADS_ONLY, 1),
    (MIXED, HEADS_ONLY, 1),
    (RESCALED, JOINT, EXITS),
    (DISTILLED, JOINT, 1),
    (BOOSTED, RESCALED, 1),
    (JOINT, PLAIN, EXITS),
)
"""Which way should be above which, at which answer: what the papers say of their methods, and joint training above all."""


def _claim(by_seed: Mapping[str, Sequence[Sequence[float]]], left: str, right: str, answer: int) -> dict[str, Any]:
    place = answer - 1 - EXITS  # from the end: the plain network has one answer
    gain, error = difference([row[place] for row in by_seed[left]], [row[place] for row in by_seed[right]])
    where = "last" if answer == EXITS else "first"
    return {
        "claim": f"{left} above {right} at the {where} answer",
        "shows": gain > 0,
        "gain": gain,
        "standard_error": error,
    }


STUDY = Study(
    paper=SOURCE,
    items={
        f"table {name}": Item(
            f"accuracy of each answer of a {network} with exits, by way of training",
            functools.partial(trainings, name),
            functools.partial(table, name),
        )
        for name, network in BACKBONES.items()
    },
    data={"cpu": ("cifar10",)},
    seeds={"cpu": (0, 1, 2)},
)
