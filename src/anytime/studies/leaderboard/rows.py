"""The rows of the leaderboard: from traces, or as an earlier table holds them, so that they need not be trained again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.statistics import BySeed, costs_of, first_trace
from anytime.cost import step_macs
from anytime.studies.leaderboard.networks import Network
from anytime.studies.leaderboard.timing import build
from anytime.studies.runner import TrainingRun, effective
from anytime.studies.study import plain
from anytime.support.documents import parse_json, read_limited
from anytime.support.limits import UNFIT
from anytime.support.trust import names_from
from anytime.training.config import Config, flatten, read_recipe
from anytime.training.rundir import read_run

_BYTES = 2**24  # of a table, some hundred times more than one has
_BESIDE = ("seed", "data.root")  # in a configuration, but not in the recipe of a row


@dataclass(frozen=True)
class JudgedOn:
    """On which images the answers of all rows were judged, and what a network has to know of them."""

    dataset: str
    part: str
    images: int
    classes: int
    input_size: Sequence[int]


@dataclass(frozen=True)
class Training:
    """What one training reached.

    Attributes:
        accuracy: Of each answer.
        training_seconds: Of the whole training; None if it was interrupted. So is `images_per_second`.
    """

    seed: int
    accuracy: Sequence[float]
    trained_on: str
    measured_on: str
    date: str
    training_seconds: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Row:
    """What was measured of one network; its time is measured anew for every table.

    Attributes:
        model: Its registered name or import path.
        arguments: All arguments of the model.
        recipe: All that affects its training, by flag.
        macs: Cumulative, of each answer.
        trainings: One of each seed.
    """

    network: str
    model: str
    arguments: Mapping[str, Any]
    recipe: Mapping[str, Any]
    parameters: int
    macs: Sequence[int]
    trainings: Sequence[Training]

    def with_trainings_of(self, other: Row) -> Row:
        """This row, and the trainings of the other whose seeds it lacks."""
        seeds = {training.seed for training in self.trainings}
        more = [training for training in other.trainings if training.seed not in seeds]
        return replace(self, trainings=sorted([*self.trainings, *more], key=lambda training: training.seed))


@dataclass(frozen=True)
class EarlierRows:
    """What an earlier table holds of trainings that this one needs too.

    Attributes:
        names: Names of these trainings.
        images: On which its answers were judged; None if there is no such table.
        rows: Rows by network, with those trainings only.
    """

    names: Collection[str] = frozenset()
    images: JudgedOn | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)


def images_of_trace(by_seed: BySeed) -> JudgedOn:
    """The images of a trace of one network."""
    trace = first_trace(by_seed)
    meta = trace.meta
    return JudgedOn(meta["dataset"], meta["part"], trace.num_samples, trace.num_classes, list(meta["input_size"]))


def row_of(net: Network, by_seed: BySeed, folders: Mapping[int, Path]) -> Row:
    """The row of a network from its traces; how long its trainings took is in their folders."""
    trace, trainings = first_trace(by_seed), []
    for seed, one in by_seed.items():
        state = read_run(folders[seed])[1].get("training") if seed in folders else None
        time = {"training_seconds": state["seconds"], "images_per_second": state["images_per_second"]} if state else {}
        meta = one.meta
        where = (meta["trained_on"], meta["hardware"], meta["date"][:10])
        trainings.append(Training(seed, accuracy(one).tolist(), *where, **time))
    with names_from(f"the trace of {net.name}"):
        recipe = recipe_of(trace.meta["recipe"])
    arguments, parameters = trace.meta["model_arguments"], trace.meta["parameters"]
    return Row(net.name, net.model, arguments, recipe, parameters, costs_of(by_seed, "macs"), trainings)


def recipe_of(config: Config) -> dict[str, Any]:
    """All of a configuration that affects the result of a training but the seed, by flag, as JSON holds it."""
    return plain({key: value for key, value in effective(config).items() if key not in _BESIDE})


def kept_rows(path: Path, runs: Sequence[TrainingRun]) -> EarlierRows:
    """What the table at `path` holds of these trainings, each of one network.

    A training is kept if it had the same recipe, and if its network still has as many parameters and costs as many MACs.

    Raises:
        ValueError: The file is damaged, or of an earlier version.
    """
    if not path.is_file():
        return EarlierRows()
    images, rows = read_table(path)
    kept: dict[str, Row] = {}
    names = set[str]()
    for run in runs:
        name = next(iter(run.views))
        row = rows.get(name)
        trainings = [training for training in row.trainings if training.seed == run.seed] if row else []
        if row is None or not trainings or not _same_recipe(row.recipe, run):
            continue
        if name not in kept and not _is_current(row, images, path):
            continue
        one = replace(row, trainings=trainings)
        kept[name] = kept[name].with_trainings_of(one) if name in kept else one
        names.add(run.name)
    return EarlierRows(names, images, kept)


def _same_recipe(recipe: Mapping[str, Any], run: TrainingRun) -> bool:
    """Whether a row was trained as this run would be.

    Settings that the library did not have when the row was made do not count, unless this run sets them.
    """
    wanted = recipe_of(run.config())
    new = wanted.keys() - recipe.keys()
    asked = {flag.removeprefix("--").partition("=")[0] for flag in run.flags}
    asked |= {key for file in (run.recipe, *run.over) for key in flatten(read_recipe(file))}
    return not new & asked and all(wanted.get(key) == value for key, value in recipe.items())


def _is_current(row: Row, images: JudgedOn, path: Path) -> bool:
    """Whether the network of a row is today what it was."""
    network = build(row.model, row.arguments, str(path))
    same_size = sum(p.numel() for p in network.parameters()) == row.parameters
    return same_size and step_macs(network, tuple(images.input_size)) == list(row.macs)


def read_table(path: Path) -> tuple[JudgedOn, dict[str, Row]]:
    """The images and the rows of a table, by network.

    Raises:
        ValueError: The file is damaged, or of an earlier version.
    """
    try:
        table = parse_json(read_limited(path, _BYTES), path)
        size = [int(value) for value in table["input_size"]]
        images = JudgedOn(table["dataset"], table["part"], int(table["images"]), int(table["classes"]), size)
        rows = [_read_row(found) for found in table["rows"]]
    except UNFIT as error:
        how = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not a table of the leaderboard ({how}); move it away, and its networks are trained again"
        ) from error
    return images, {row.network: row for row in rows}


def _read_row(found: Mapping[str, Any]) -> Row:
    macs, trainings = [int(value) for value in found["macs"]], [_read_training(one) for one in found["trainings"]]
    if not macs or not trainings or any(len(training.accuracy) != len(macs) for training in trainings):
        raise ValueError(f"the row of {found['network']} lacks answers or trainings")
    facts = dict(found["arguments"]), dict(found["recipe"]), int(found["parameters"])
    return Row(str(found["network"]), str(found["model"]), *facts, macs, trainings)


def _read_training(found: Mapping[str, Any]) -> Training:
    values = [float(value) for value in found["accuracy"]]
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"an accuracy is outside 0..1: {values}")
    seconds, speed = (None if found[key] is None else float(found[key]) for key in ("training_seconds", "images_per_second"))
    trained_on, measured_on, date = (str(found[key]) for key in ("trained_on", "measured_on", "date"))
    return Training(int(found["seed"]), values, trained_on, measured_on, date, seconds, speed)
