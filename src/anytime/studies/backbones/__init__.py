"""Exits on a backbone, trained in six ways with one recipe, against the plain network: one table per backbone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.statistics import first_trace, gain, means, per_seed
from anytime.model import AnytimeModel
from anytime.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.executors.subprocess import retrain
from anytime.studies.facts import facts, figure_title
from anytime.studies.figures import COST_LABELS, Curve, error_curves
from anytime.studies.runner import Traces, TrainingRun, View, find_recipe, one_per_seed, slug
from anytime.studies.study import Item, Result, Study
from anytime.support.units import macs_text, ms_text

SOURCE = (
    "Training of exits on a backbone: heads only (Kaya et al. 2019), jointly, mixed (Kubaty et al. 2024), with gradients "
    "rescaled and by self-distillation (Li et al. 2019), and BoostNet's additive answers (Yu et al. 2023)"
)
BACKBONES = {"resnet20": "ResNet20", "mobilenet": "SmallMobileNet"}
EPOCHS = {"resnet20": 8, "mobilenet": 4}
NETWORK_FLAGS = {"mobilenet": ("--precision=32-true",)}  # bfloat16 doubles the time of depthwise convolutions on CPUs with AMX
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
    """Exits on a frozen plain network: only their heads are trained, on its features, which stay in memory.

    The recipe is the network's, but with Adam and a learning rate of 0.001, as Kaya et al. (2019) train heads only.
    """
    regime = {"class_path": "HeadsOnly", "init_args": {"views": 2, "memory": 8.0}}
    optimizer = {"class_path": "Adam", "init_args": {"lr": 0.001}}
    return retrain(model, {"exits": EXITS}, regime=regime, optimizer=optimizer, compile=False)  # compiling takes longer


def trainings(backbone: str, data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """One training per seed and way, the plain network first; "heads only" is a view of it."""
    network = f"--model.backbone=anytime.models.surgery.small_networks.{BACKBONES[backbone]}"
    common = (network, f"--epochs={EPOCHS[backbone]}", *NETWORK_FLAGS.get(backbone, ()))
    networks: dict[str, tuple[tuple[str, ...], dict[str, View | None]]] = {}
    for name, flags in FLAGS.items():
        half = (f"--regime.backbone_epochs={EPOCHS[backbone] // 2}",) if name == MIXED else ()
        networks[slug(name)] = ((*common, *flags, *half), {f"{backbone}: {name}": None})
    networks[slug(PLAIN)][1][f"{backbone}: {HEADS_ONLY}"] = heads_only
    recipe = find_recipe(f"backbones_cifar10_{scale}.yaml")
    return one_per_seed(f"{data}_{scale}_{backbone}", recipe, seeds, networks)


CLAIMS = (
    (MIXED, JOINT, EXITS),
    (JOINT, HEADS_ONLY, 1),
    (MIXED, HEADS_ONLY, 1),
    (RESCALED, JOINT, EXITS),
    (DISTILLED, JOINT, 1),
    (BOOSTED, RESCALED, 1),
    (JOINT, PLAIN, EXITS),
)
"""Which way should be above which, and at which answer: what the papers claim of their methods, and joint above plain."""


def table(backbone: str, traces: Traces, data: str) -> Result:
    """Accuracy of each answer for each way of training, and the cost of the exits."""
    names = [PLAIN, HEADS_ONLY, *(name for name in FLAGS if name != PLAIN)]
    stored = {name: traces[f"{backbone}: {name}"] for name in names}
    any_trace = {name: first_trace(by_seed) for name, by_seed in stored.items()}
    accuracies = {name: per_seed(accuracy, by_seed) for name, by_seed in stored.items()}
    mean_accuracy = {name: means(rows) for name, rows in accuracies.items()}
    exits = any_trace[JOINT]
    rows: list[dict[str, Any]] = []
    for name, trace in any_trace.items():
        values = mean_accuracy[name]
        answers = {f"answer_{EXITS - len(values) + t}": value for t, value in enumerate(values, 1)}
        rows.append({"trained": name, **answers, "macs": int(trace.macs[-1]), "by_seed": accuracies[name]})
        if trace.seconds is not None:
            rows[-1]["seconds"] = float(trace.seconds[-1])
    claims = [_claim(accuracies, better, worse, answer) for better, worse, answer in CLAIMS]
    numbers = facts(stored[PLAIN], source=SOURCE, backbone=BACKBONES[backbone]) | {
        "exits": exits.meta["model_arguments"]["exits"],
        "macs": exits.macs,
        "plain_macs": any_trace[PLAIN].macs,
        "rows": rows,
    }
    columns = [Column("trained", "trained")]
    columns += [Column(f"answer_{t}", f"answer {t} ({macs_text(int(exits.macs[t - 1]))})", ".2%") for t in range(1, EXITS + 1)]
    columns += [Column("macs", "MACs", macs_text), Column("seconds", "median ms", ms_text)]
    curves = [
        Curve(name, trace.macs.tolist(), [1 - value for value in mean_accuracy[name]], COLOURS[name], name == HEADS_ONLY)
        for name, trace in any_trace.items()
    ]
    drawn = error_curves({COST_LABELS["macs"]: curves}, f"{BACKBONES[backbone]}, {figure_title(numbers)}")
    return Result(numbers, format_table(rows, columns), drawn, claims)


def _claim(accuracies: Mapping[str, Sequence[Sequence[float]]], better: str, worse: str, answer: int) -> Claim:
    place = answer - 1 - EXITS  # from the end, because the plain network has a single answer
    measured = gain(*([row[place] for row in accuracies[name]] for name in (better, worse)))
    where = "last" if answer == EXITS else "first"
    statement = f"{better} above {worse} at the {where} answer"
    return Claim(statement, measured["gain"] > 0, measured)


STUDY = Study(
    paper=SOURCE,
    items={
        f"table {name}": Item(
            f"accuracy of each answer of a {network} with exits, for each way of training",
            functools.partial(trainings, name),
            functools.partial(table, name),
        )
        for name, network in BACKBONES.items()
    },
    data={"cpu": ("cifar10",)},
    seeds={"cpu": (0, 1, 2)},
)
