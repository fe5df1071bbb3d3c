"""The rows of the leaderboard: from traces, or as an earlier table holds them, so that they need not be trained again."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from anytime.analysis.curves import accuracy
from anytime.analysis.statistics import BySeed, costs_of, first_trace
from anytime.cost import step_macs
from anytime.studies.leaderboard.networks import Network
from anytime.studies.runner import TrainingRun, current_path, effective
from anytime.studies.timing import build
from anytime.support.documents import parse_json, read_limited
from anytime.support.limits import UNFIT
from anytime.support.text import one_line
from anytime.support.trust import UntrustedName, names_from
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
        accuracy: The accuracy of each answer.
        date: When its answers were recorded.
        training_seconds: Those of the whole training; None if it was interrupted. So is `images_per_second`.
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
        recipe: All that affects its training but the seed, by flag, as one types it.
        macs: Cumulative, of each answer.
        trainings: One of each seed.
    """

    network: str
    model: str
    arguments: Mapping[str, Any]
    recipe: Mapping[str, str]
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
    """What an earlier table holds that stays.

    Attributes:
        names: Names of the trainings that need not be run.
        images: On which its answers were judged; None if there is no such table.
        rows: Rows by network.
        dropped: Networks whose rows do not stay, because they have changed or are no longer on the leaderboard.
    """

    names: Collection[str] = frozenset()
    images: JudgedOn | None = None
    rows: Mapping[str, Row] = field(default_factory=dict)
    dropped: Sequence[str] = ()


def images_of_trace(by_seed: BySeed) -> JudgedOn:
    """The images of a trace of one network."""
    trace = first_trace(by_seed)
    meta = trace.meta
    return JudgedOn(meta["dataset"], meta["part"], trace.num_samples, trace.num_classes, list(meta["input_size"]))


def row_of(net: Network, by_seed: BySeed, folders: Mapping[int, Path]) -> Row:
    """The row of a network from its traces; how long its trainings took is in their folders.

    Raises:
        ValueError: The network is no longer what was trained.
    """
    trace, trainings, source = first_trace(by_seed), [], f"the trace of {net.name}"
    for seed, one in by_seed.items():
        state = read_run(folders[seed])[1].get("training") if seed in folders else None
        time = {"training_seconds": state["seconds"], "images_per_second": state["images_per_second"]} if state else {}
        meta = one.meta
        where = (meta["trained_on"], meta["hardware"], meta["date"][:10])
        trainings.append(Training(seed, accuracy(one).tolist(), *where, **time))
    with names_from(source):
        recipe = recipe_of(trace.meta["recipe"])
    arguments, parameters = trace.meta["model_arguments"], trace.meta["parameters"]
    row = Row(net.name, recipe["model"], arguments, recipe, parameters, costs_of(by_seed, "macs"), trainings)
    if not is_current(row, images_of_trace(by_seed), source):
        places = ", ".join(map(str, folders.values())) or source
        raise ValueError(f"{net.name} has changed since it was trained in {places}: remove that, and it is trained again")
    return row


def recipe_of(config: Config) -> dict[str, str]:
    """All of a configuration that affects the result of a training but the seed, by flag, as one types it."""
    values = {key: value for key, value in effective(config).items() if key not in _BESIDE}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def kept_rows(path: Path, runs: Sequence[TrainingRun]) -> EarlierRows:
    """What the table at `path` holds of the networks of these trainings; all seeds of a row stay.

    A row stays if its network still has as many parameters and costs as many MACs.

    Raises:
        ValueError: The file is damaged, or a row had another recipe than its network's trainings here.
    """
    if not path.is_file() or not read_limited(path, _BYTES).strip(b"\0"):
        return EarlierRows()
    images, rows = read_table(path)
    kept, dropped, names = dict[str, Row](), [], set[str]()
    for name, row in tqdm(rows.items(), desc="checking the earlier rows", unit="row", disable=None, leave=False):
        own = [run for run in runs if name in run.views]
        if own and (difference := _difference(row.recipe, own[0])):
            raise ValueError(
                f"{path} has a row of {name} that was trained otherwise: {difference}; give another --out and --runs"
            )
        if not own or not is_current(row, images, str(path)):
            dropped.append(name)
            continue
        kept[name], seeds = row, {training.seed for training in row.trainings}
        names |= {run.name for run in own if run.seed in seeds}
    return EarlierRows(names, images, kept, dropped)


def _difference(recipe: Mapping[str, Any], run: TrainingRun) -> str:
    """How a row was trained otherwise than this run would be; empty if it was not.

    Settings that the library has no more do not count, nor those that it did not have then, unless this run sets them.
    """
    wanted = recipe_of(run.config())
    asked = {flag.removeprefix("--").partition("=")[0] for flag in run.flags}
    asked |= {key for file in (run.recipe, *run.over) for key in flatten(read_recipe(file))}
    keys = [key for key in wanted if key in recipe or key in asked]
    with names_from("an earlier table"):
        found = {key: current_path(recipe.get(key)) for key in keys}
    return ", ".join(f"{key} {found[key]} (here {wanted[key]})" for key in keys if found[key] != wanted[key])


def is_current(row: Row, images: JudgedOn, source: str) -> bool:
    """Whether the network of a row is today what it was; `source` is where the row is from.

    Raises:
        ValueError: Nothing can be built from the arguments in the row.
    """
    try:
        size, macs = _counts(row.model, json.dumps(row.arguments), tuple(images.input_size), source)
    except UntrustedName:
        raise
    except UNFIT as error:
        raise ValueError(f"the network {row.network} in {source} cannot be built: {one_line(error)[:300]}") from error
    return size == row.parameters and macs == list(row.macs)


@functools.cache
def _counts(model: str, arguments: str, input_size: tuple[int, ...], source: str) -> tuple[int, list[int]]:
    """Parameters and cumulative MACs of a network."""
    network = build(model, json.loads(arguments), source)
    return sum(p.numel() for p in network.parameters()), step_macs(network, input_size)


def read_table(path: Path) -> tuple[JudgedOn, dict[str, Row]]:
    """The images and the rows of a table, by network.

    Raises:
        ValueError: The file is damaged, or of an earlier version.
    """
    try:
        table = parse_json(read_limited(path, _BYTES), path)
        facts = _text(table["dataset"]), _text(table["part"]), index(table["images"]), index(table["classes"])
        images = JudgedOn(*facts, [index(value) for value in table["input_size"]])
        rows = [_read_row(found) for found in table["rows"]]
        if min(images.images, images.classes) < 1 or len({row.network for row in rows}) < len(rows):
            raise ValueError("it is of no images, or has two rows of a network")
    except UNFIT as error:
        how = f"no {error}" if isinstance(error, KeyError) else one_line(error)[:300]
        raise ValueError(
            f"{path} cannot be read as a table of the leaderboard, or is of an earlier version ({how}): move it away"
        ) from error
    return images, {row.network: row for row in rows}


def _read_row(found: Mapping[str, Any]) -> Row:
    macs, trainings = [index(value) for value in found["macs"]], [_read_training(one) for one in found["trainings"]]
    name, recipe = _text(found["network"]), {key: _text(value) for key, value in found["recipe"].items()}
    if not macs or not trainings or any(len(training.accuracy) != len(macs) for training in trainings):
        raise ValueError(f"the row of {name} lacks answers or trainings")
    if len({training.seed for training in trainings}) < len(trainings):
        raise ValueError(f"the row of {name} has two trainings of a seed")
    if recipe["model"] != found["model"]:
        raise ValueError(f"the row of {name} was trained as {recipe['model']}, not as {found['model']}")
    return Row(name, recipe["model"], dict(found["arguments"]), recipe, index(found["parameters"]), macs, trainings)


def _read_training(found: Mapping[str, Any]) -> Training:
    values, speeds = found["accuracy"], [found["training_seconds"], found["images_per_second"]]
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise ValueError(f"an accuracy is outside 0..1: {values}")
    if not all(value is None or (type(value) in (int, float) and 0 < value < math.inf) for value in speeds):
        raise ValueError(f"a time is not above 0: {speeds}")
    trained_on, measured_on, date = (_text(found[key]) for key in ("trained_on", "measured_on", "date"))
    return Training(index(found["seed"]), values, trained_on, measured_on, date, *speeds)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
