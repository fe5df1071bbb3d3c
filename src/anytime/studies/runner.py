"""Runs the trainings of a study: finished ones are skipped, unfinished ones resumed, and every trace is recorded once."""

from __future__ import annotations

import contextvars
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from anytime.model import AnytimeModel
from anytime.pretrained import load
from anytime.reporting.evaluation import images_of, trained_on
from anytime.studies.executors.choice import Executor
from anytime.studies.executors.subprocess import TrainingStopped, interruptions_to, train_in_subprocess
from anytime.support.folders import check_file
from anytime.support.model_files import weights_of
from anytime.support.names import import_object
from anytime.support.owned import state_of
from anytime.support.trace_files import trace_meta
from anytime.support.trust import is_consented, typed_paths
from anytime.trace import Trace, record
from anytime.training.build import build
from anytime.training.config import SECTIONS, Config, UsageError, find, flatten, parse
from anytime.training.rundir import CONFIG, in_training, names_of_run, read_run

RunStatus = Literal["start", "resume", "finished"]
Traces = Mapping[str, Mapping[int, Trace]]
"""The traces of a study's networks, by name, then by seed."""
View = Callable[[AnytimeModel], AnytimeModel]
"""Turns a trained model into the network whose answers are recorded."""


def on_validation(model: AnytimeModel) -> AnytimeModel:
    """The unchanged model, recorded on the validation images: for what a figure has to choose."""
    return model


RUN_WEIGHTS = "run_weights"  # in the facts of a trace: the digest of the trained weights, which a view may change
MADE = "made"  # likewise: the `made` of a view that has one, the way in which it made its network
RESUMES = 2  # of a training whose process is killed again and again
_WITHOUT_EFFECT = ("progress", "logger", "data.root", "data.download", "data.workers")  # on the result of a training


@dataclass(frozen=True)
class TrainingRun:
    """One training, `anytime train --config RECIPE FLAGS --seed SEED`, and the networks that are recorded from it.

    Args:
        name: Name of the run directory.
        recipe: The recipe file.
        flags: Flags over the recipe, as on the command line.
        seed: Seed over the recipe.
        views: The recorded networks by name: a view of the trained model, or None for the model itself.
        trust: Whether the training may import the custom classes that the recipe names.
        over: Recipes over the recipe and below the flags.
    """

    name: str
    recipe: Path
    flags: tuple[str, ...]
    seed: int
    views: Mapping[str, View | None] = field(compare=False)
    trust: bool = field(default=False, compare=False)
    over: tuple[Path, ...] = ()

    def config(self) -> Config:
        """The resolved configuration."""
        return parse([*self.flags, f"--seed={self.seed}"], [self.recipe, *self.over])

    def arguments(self, folder: Path, status: RunStatus) -> list[str]:
        """The arguments of `anytime train` that start or resume it in `folder`."""
        run = str(folder / self.name)
        if status == "resume":
            return ["--resume", run, *(["--trust"] if is_consented() else [])]
        trust = ["--trust"] if self.trust else []
        recipes = [word for recipe in (self.recipe, *self.over) for word in ("--config", str(recipe))]
        return [*recipes, *self.flags, f"--seed={self.seed}", "--run", run, *trust]


def slug(name: str) -> str:
    """The name of a network as part of a file's name."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def one_per_seed(
    prefix: str, recipe: Path, seeds: Sequence[int], networks: Mapping[str, tuple[Sequence[str], Mapping[str, View | None]]]
) -> list[TrainingRun]:
    """One training `PREFIX_NAME_seedSEED` per seed and network; `networks` holds flags over the recipe and views by name."""
    return [
        TrainingRun(f"{prefix}_{name}_seed{seed}", recipe, tuple(flags), seed, views)
        for seed in seeds
        for name, (flags, views) in networks.items()
    ]


def find_recipe(name: str) -> Path:
    """The path of a recipe of the library, `recipes/NAME`, relative to the current directory if it lies below it.

    Raises:
        FileNotFoundError: This installation does not have it.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if (path := folder / name).is_file():
            return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    raise FileNotFoundError(
        f"this installation of anytime has no recipe {name}; find it in the folder recipes of the repository"
    )


def run_status(run: TrainingRun, folder: Path) -> RunStatus:
    """Whether a training must be started or resumed, or is finished.

    Raises:
        UsageError: Its flags are invalid, or its directory holds a training with another configuration.
        UntrustedName: The configuration there names an import path that is not in the flags, and nobody has consented to it.
        FileNotFoundError, ValueError: Its directory is not a run directory, or is damaged.
    """
    path, wanted = folder / run.name, effective(run.config())
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return "start"
    with names_of_run(path, typed=typed_paths(run.flags)):
        _, state = read_run(path)
        found = effective(parse([], [path / CONFIG]))
    keys = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if keys:
        listed = ", ".join(f"{key} {found.get(key)!r} (wanted {wanted.get(key)!r})" for key in keys)
        raise UsageError(f"{path} holds a training with {listed}; choose another --runs or remove it")
    return "finished" if state["state"] == "finished" else "resume"


def effective(config: Config) -> dict[str, Any]:
    """All values of a configuration that affect the result of a training, by flag.

    The folder of the data is one of them, unless the set is official: then it has the same images in any folder.
    """
    names = {section: config[section]["class_path"] for section in SECTIONS}
    found = {key: current_path(value) for key, value in (names | flatten(config)).items() if key not in _WITHOUT_EFFECT}
    root = config["data"]["init_args"].get("root")
    if root is not None and not getattr(find("data", config["data"]["class_path"]), "official", None):
        found["data.root"] = os.path.realpath(os.path.expanduser(root))
    return found


def current_path(value: Any) -> Any:
    """A value of a configuration; an import path into this library as it is today, though the module has moved."""
    if not (isinstance(value, str) and value.startswith("anytime.")):
        return value
    try:
        found = import_object(value, "value")
    except ValueError:  # nothing has this name today
        return value
    return f"{found.__module__}.{found.__qualname__}"


class StoredTraces(Mapping[str, Mapping[int, Trace]]):
    """Traces in files, read on access, so that those of a whole study need not fit into memory."""

    def __init__(self, paths: Mapping[str, Mapping[int, Path]]) -> None:
        self._paths = paths

    def __getitem__(self, name: str) -> Mapping[int, Trace]:
        return {seed: Trace.load(path) for seed, path in self._paths[name].items()}

    def folders(self, name: str) -> dict[int, Path]:
        """The run directories of a network, by seed."""
        return {seed: path.parent for seed, path in self._paths[name].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def trace_path(path: Path, name: str, view: View | None = None) -> Path:
    """The file for the trace of a network in a run directory; `anytime evaluate` writes to other files."""
    return path / f"trace-{_part(view)}-{slug(name)}.safetensors"


def _part(view: View | None) -> Literal["test", "validation"]:
    return "validation" if view is on_validation else "test"


def record_views(path: Path, views: Mapping[str, View | None]) -> None:
    """Records views of the model of a finished run on the test images, and stores the traces in the run directory.

    The view `on_validation` is recorded on the validation images.
    """
    model = load(path)
    data = trained_on(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, Any] = {"dataset": type(data).__name__, "recipe": model.info.recipe}
    facts["trained_on"] = read_run(path)[1]["hardware"]
    facts[RUN_WEIGHTS] = weights_of(path)
    for name, view in views.items():
        network = (model if view is None else view(model)).eval()
        part = _part(view)
        meta = facts | {"part": part, "model_arguments": network.config["arguments"], MADE: getattr(view, MADE, None)}
        trace = record(network, images_of(data, part), device=device, input_size=data.input_size, meta=meta)
        trace.save(trace_path(path, name, view))


def _is_of(path: Path, view: View | None, weights: str | None) -> bool:
    """Whether a trace is there, of these weights of its run and of a view made like this; earlier traces do not say."""
    check_file(path)
    if not path.is_file():
        return False
    meta = trace_meta(path)
    if meta.get(MADE) != getattr(view, MADE, None):
        return False
    recorded = meta.get(RUN_WEIGHTS, meta.get("weights") if view in (None, on_validation) else None)
    return weights is None or recorded in (None, weights)


def with_all_views(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """One training of each name, with the views that any of them has."""
    found: dict[str, TrainingRun] = {}
    for run in runs:
        before = found[run.name].views if run.name in found else {}
        found[run.name] = replace(run, views={**before, **run.views})
    return list(found.values())


def train_one(
    run: TrainingRun, folder: Path, status: RunStatus, train: Callable[[Sequence[str], Path], int]
) -> tuple[int, float]:
    """Exit code and seconds of a training that is started or resumed.

    If its process is killed, it is resumed from its checkpoint, at most `RESUMES` times. An error, such as a loss that is not
    finite, would come again, so it is not repeated.

    Args:
        run: The training.
        folder: Where the run directories are.
        status: That of the training, not "finished".
        train: As for `run_all`; a negative exit code is the number of the signal that killed the process.
    """
    begin, code = time.monotonic(), 0
    for _ in range(1 + RESUMES):
        code = train(run.arguments(folder, status), folder / "logs" / f"{run.name}.log")
        state = state_of(in_training(folder / run.name)).get("state")
        if code < 0 and state == "finished":  # killed while it ended
            code = 0
        if code >= 0:
            break
        status = "start" if state is None else "resume"
    return code, time.monotonic() - begin


def train_at_once(
    runs: Sequence[TrainingRun],
    folder: Path,
    statuses: Mapping[str, RunStatus],
    executor: Executor,
    say: Callable[[str], None],
) -> dict[str, tuple[int, float]]:
    """Exit code and seconds of trainings by name, of which `executor.workers` run at the same time.

    Ctrl-C and requests to terminate interrupt all of them, and raise KeyboardInterrupt when they have ended. What they would
    download is downloaded before.

    Args:
        runs: The trainings, none of which is finished.
        folder: Where the run directories go.
        statuses: Whether each is started or resumed, by name.
        executor: Runs them.
        say: Called with each line of progress.

    Raises:
        TrainingStopped: Another process is running one of them; the others have ended by then.
        UsageError, ValueError, OSError: As `anytime.training.build.build`, where something has to be downloaded.
    """
    configs = {run.name: run.config() for run in runs}
    _download(configs.values())
    ended: dict[str, tuple[int, float]] = {}
    interrupted = threading.Event()

    def train(run: TrainingRun) -> None:
        if interrupted.is_set():
            return
        say(f"{run.name}: {statuses[run.name]}, see {folder / 'logs' / f'{run.name}.log'}")
        start = partial(executor.train, config=configs[run.name])
        code, spent = ended[run.name] = train_one(run, folder, statuses[run.name], start)
        what = f"ended with exit code {code}" if code else f"trained in {time_text(spent)}"
        say(f"{run.name}: {what}; {len(runs) - len(ended)} to train")

    def interrupt(*_: Any) -> None:
        interrupted.set()
        executor.interrupt()

    with interruptions_to(interrupt), ThreadPoolExecutor(executor.workers) as pool:
        futures = [pool.submit(contextvars.copy_context().run, train, run) for run in runs]
    if interrupted.is_set():
        raise KeyboardInterrupt
    for future in futures:
        future.result()
    return ended


def _download(configs: Iterable[Config]) -> None:
    """Downloads the data and the weights that trainings ask for, each once, so that no two of them do it at the same time."""
    seen = set[str]()
    for config in configs:
        asked = {"data": config["data"]["init_args"].get("download"), "model": config["model"]["init_args"].get("pretrained")}
        parts = {json.dumps(config[section], sort_keys=True, default=str) for section, wanted in asked.items() if wanted}
        if not parts <= seen:
            build(config)
            seen |= parts


def run_all(
    runs: Sequence[TrainingRun],
    folder: Path,
    train: Callable[[Sequence[str], Path], int] = train_in_subprocess,
    recorder: Callable[[Path, Mapping[str, View | None]], None] = record_views,
    say: Callable[[str], None] = print,
    executor: Executor | None = None,
) -> Traces:
    """Runs the missing trainings, and returns the traces of all.

    Finished trainings of the same configuration are skipped and unfinished ones resumed, so after an interruption the same
    call continues. If a training fails midway (e.g. non-finite loss), the remaining ones still run; the first error is
    re-raised at the end.

    Args:
        runs: The trainings; of several with the same name, one is run, and the views of all are recorded.
        folder: Where the run directories go; the output of each training is appended to `logs/NAME.log` there.
        train: Called with the arguments of `anytime train` and the log file; returns an exit code. A training whose process
            is killed is resumed, see `train_one`.
        recorder: Called with a finished run directory and the views whose traces are missing there.
        say: Called with each line of progress.
        executor: Runs several trainings at once instead of `train`, one after the other. Traces are recorded when all have
            ended, so nothing runs beside a recording.

    Raises:
        TrainingStopped: A training failed, or another process is running it.
        UsageError, FileNotFoundError, ValueError: As `run_status`, before any training starts.
    """
    runs = with_all_views(runs)
    statuses = {run.name: run_status(run, folder) for run in runs}
    unfinished = [run for run in runs if statuses[run.name] != "finished"]
    ended = {} if executor is None else train_at_once(unfinished, folder, statuses, executor, say)
    left = len(unfinished) - len(ended)
    seconds: list[float] = []
    paths: dict[str, dict[int, Path]] = {}
    failures: list[TrainingStopped] = []
    for number, run in enumerate(runs, 1):
        path, log = folder / run.name, folder / "logs" / f"{run.name}.log"
        head = f"[{number}/{len(runs)}] {run.name}"
        if (status := statuses[run.name]) == "finished":
            done = "finished before"
        else:
            if run.name not in ended:
                say(f"{head}: {status}, see {log}")
                ended[run.name] = train_one(run, folder, status, train)
                left -= 1
            code, spent = ended[run.name]
            if code:
                failures.append(TrainingStopped(f"the training {run.name} ended with exit code {code}, see {log}", log))
                if code != 1 or not path.is_dir() or read_run(path)[1]["state"] != "failed":
                    raise failures[-1]
                say(f"{head}: failed with exit code {code}, see {log}; {left} to train")
                continue
            seconds.append(spent)
            done = f"trained in {time_text(seconds[-1])}"
        stored = {name: trace_path(path, name, view) for name, view in run.views.items()}
        weights = weights_of(path)
        if missing := {name: view for name, view in run.views.items() if not _is_of(stored[name], view, weights)}:
            recorder(path, missing)
        for name, file in stored.items():
            paths.setdefault(name, {})[run.seed] = file
        rest = f", about {time_text(left * sum(seconds) / len(seconds))}" if seconds and left else ""
        say(f"{head}: {done}; {left} to train{rest}")
    if failures:
        raise failures[0]
    return StoredTraces(paths)


def time_text(seconds: float) -> str:
    """`"1.5 h"`, `"12 min"` or `"40 s"`."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"
