"""Runs the trainings of a study: what is finished is skipped, what is half done goes on, and every trace is recorded once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from anytime.model import AnytimeModel
from anytime.pretrained import load
from anytime.reporting.evaluation import images_of, trained_on
from anytime.studies.executors.subprocess import TrainingStopped, train_apart
from anytime.trace import Trace, record
from anytime.training.config import SECTIONS, Config, UsageError, flatten, parse
from anytime.training.rundir import CONFIG, read_run

Standing = Literal["start", "resume", "finished"]
Traces = Mapping[str, Mapping[int, Trace]]
"""What the networks of a study said: by name, then by seed."""
View = Callable[[AnytimeModel], AnytimeModel]


def on_validation(model: AnytimeModel) -> AnytimeModel:
    """The view that is the model as it is, asked about the validation images: for what a figure has to choose."""
    return model


_WHERE = ("progress", "data.root", "data.download", "data.workers")  # change where and how a training runs, not what comes out


@dataclass(frozen=True)
class Run:
    """One training, `anytime train --config RECIPE FLAGS --seed SEED`, and the networks whose answers it gives.

    Args:
        name: Of the run directory.
        recipe: The recipe file.
        flags: Over the recipe, as on the command line.
        seed: Over the recipe.
        views: By name, what is made of the trained model before its answers are recorded; None: the model as it is.
    """

    name: str
    recipe: Path
    flags: tuple[str, ...]
    seed: int
    views: Mapping[str, View | None] = field(compare=False)

    def config(self) -> Config:
        """The resolved configuration."""
        return parse([*self.flags, f"--seed={self.seed}"], [self.recipe])

    def arguments(self, folder: Path, stand: Standing) -> list[str]:
        """What follows `anytime train` to start or resume it in `folder`."""
        run = str(folder / self.name)
        if stand == "resume":
            return ["--resume", run]
        return ["--config", str(self.recipe), *self.flags, f"--seed={self.seed}", "--run", run]


def find_recipe(name: str) -> Path:
    """A recipe of the library, `recipes/NAME`, as short a path as leads there.

    Raises:
        FileNotFoundError: This installation does not have it.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if (path := folder / name).is_file():
            return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    raise FileNotFoundError(
        f"this installation of anytime has no recipe {name}; it is in the folder recipes of its repository"
    )


def standing(run: Run, folder: Path) -> Standing:
    """What is to be done for a run: start it, resume it, or nothing.

    Raises:
        UsageError: Its flags make no sense, or its directory holds a training by another configuration.
        FileNotFoundError, ValueError: Its directory is no run directory, or damaged.
    """
    path, wanted = folder / run.name, _flat(run.config())
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return "start"
    _, state = read_run(path)
    found = _flat(parse([], [path / CONFIG]))
    keys = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if keys:
        listed = ", ".join(f"{key} {found.get(key)!r} (wanted {wanted.get(key)!r})" for key in keys)
        raise UsageError(f"{path} holds a training with {listed}; give another --runs, or remove it")
    return "finished" if state["state"] == "finished" else "resume"


def _flat(config: Config) -> dict[str, Any]:
    """All values of a configuration that decide what comes out of a training, by their flags."""
    names = {section: config[section]["class_path"] for section in SECTIONS}
    return {key: value for key, value in (names | flatten(config)).items() if key not in _WHERE}


class StoredTraces(Mapping[str, Mapping[int, Trace]]):
    """Traces in files, read when they are asked for: all those of a study need not fit into memory."""

    def __init__(self, paths: Mapping[str, Mapping[int, Path]]) -> None:
        self._paths = paths

    def __getitem__(self, name: str) -> Mapping[int, Trace]:
        return {seed: Trace.load(path) for seed, path in self._paths[name].items()}

    def folders(self, name: str) -> dict[int, Path]:
        """The run directories of a network by seed."""
        return {seed: path.parent for seed, path in self._paths[name].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def trace_path(path: Path, name: str, view: View | None = None) -> Path:
    """Where in a run directory the answers of a network are, beside those that `anytime evaluate` keeps."""
    slug = re.sub(r"\W+", "_", name.lower()).strip("_")
    return path / f"trace-{_part(view)}-{slug}.safetensors"


def _part(view: View | None) -> Literal["test", "validation"]:
    return "validation" if view is on_validation else "test"


def record_views(path: Path, views: Mapping[str, View | None]) -> None:
    """Records what networks made of a finished run say about the test images, and stores it in the run directory.

    Those of the view `on_validation` are about the validation images.
    """
    model = load(path)
    data = trained_on(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"dataset": type(data).__name__, "recipe": model.info.recipe}
    facts["trained_on"] = read_run(path)[1]["hardware"]
    for name, view in views.items():
        network = (model if view is None else view(model)).eval()
        part = _part(view)
        meta = facts | {"part": part, "model_arguments": network.config["arguments"]}
        trace = record(network, images_of(data, part), device=device, input_size=data.input_size, meta=meta)
        trace.save(trace_path(path, name, view))


def run_all(
    runs: Sequence[Run],
    folder: Path,
    train: Callable[[Sequence[str], Path], int] = train_apart,
    recorder: Callable[[Path, Mapping[str, View | None]], None] = record_views,
    say: Callable[[str], None] = print,
) -> Traces:
    """Trains what is missing, one run after the other, and returns the traces of all.

    A finished training of the very same configuration is skipped, an unfinished one resumed. After an interruption the same
    call goes on where this one stopped. A training that failed in its course, say by a loss that is not finite, does not
    hinder the others: its failure is raised after them.

    Args:
        runs: Several of the same name count once.
        folder: Of the run directories; the output of each training is in `logs/NAME.log` there.
        train: Called with the arguments of `anytime train` and the log file; returns an exit code.
        recorder: Called with a finished run directory and the views whose traces are missing there.
        say: Called with each line of progress.

    Raises:
        TrainingStopped: Trainings failed (tells of the first), or another process is at work on one.
        UsageError, FileNotFoundError, ValueError: As `standing`, before anything is trained.
    """
    runs = list({run.name: run for run in runs}.values())
    todo = {run.name: standing(run, folder) for run in runs}
    left = sum(stand != "finished" for stand in todo.values())
    seconds: list[float] = []
    paths: dict[str, dict[int, Path]] = {}
    failed: list[TrainingStopped] = []
    for number, run in enumerate(runs, 1):
        path, log = folder / run.name, folder / "logs" / f"{run.name}.log"
        head = f"[{number}/{len(runs)}] {run.name}"
        if (stand := todo[run.name]) == "finished":
            done = "finished before"
        else:
            say(f"{head}: {stand}, see {log}")
            begin = time.monotonic()
            if code := train(run.arguments(folder, stand), log):
                failed.append(TrainingStopped(f"the training {run.name} ended with exit code {code}, see {log}", log))
                if code != 1 or not path.is_dir() or read_run(path)[1]["state"] != "failed":
                    raise failed[-1]
                left -= 1
                say(f"{head}: failed with exit code {code}, see {log}; {left} to train")
                continue
            seconds.append(time.monotonic() - begin)
            left -= 1
            done = f"trained in {_time(seconds[-1])}"
        stored = {name: trace_path(path, name, view) for name, view in run.views.items()}
        if missing := {name: view for name, view in run.views.items() if not stored[name].is_file()}:
            recorder(path, missing)
        for name, file in stored.items():
            paths.setdefault(name, {})[run.seed] = file
        rest = f", about {_time(left * sum(seconds) / len(seconds))}" if seconds and left else ""
        say(f"{head}: {done}; {left} to train{rest}")
    if failed:
        raise failed[0]
    return StoredTraces(paths)


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"
