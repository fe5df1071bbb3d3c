"""A search: Optuna proposes sets of options, each is trained in a process of its own, and poor ones are ended early."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from anytime.studies.executors.subprocess import TrainingStopped, log_end, train_in_subprocess
from anytime.studies.runner import TrainingRun, effective, run_status, time_text, train_one
from anytime.studies.tuning.drawing import draw
from anytime.studies.tuning.journal import open_study
from anytime.studies.tuning.metric import Metric, validated
from anytime.studies.tuning.space import Space, Value, as_flags, as_recipe, check_space, distributions
from anytime.support.files import atomic_write
from anytime.support.folders import LOCK, PART, check_no_link
from anytime.support.locks import only_writer
from anytime.support.owned import MARK, SET, check_own, state_of
from anytime.support.text import one_line
from anytime.training.config import Config, UsageError, resolve_recipe
from anytime.training.logs import METRICS

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

JOURNAL, BEST, FIGURE = "journal.log", "best.yaml", "search.png"
FIRST = 5  # trainings before any is ended early

Train = Callable[[Sequence[str], Path, Callable[[], int]], int]
"""As `train_in_subprocess`."""


@dataclass(frozen=True)
class Search:
    """What is searched, and where.

    Args:
        recipe: The recipe file.
        source: The file of the space, for messages.
        space: The options to choose and their values.
        flags: Options over the recipe, the same for all trainings.
        folder: Where the journal, the run directories, the figure and the best recipe go.
        metric: See `Metric`.
        trust: Whether the trainings may import the custom classes that the recipe or the space names.
    """

    recipe: Path
    source: Path
    space: Space
    flags: tuple[str, ...]
    folder: Path
    metric: str
    trust: bool = False

    def run(self, trials: int, train: Train = train_in_subprocess, say: Callable[[str], None] = print) -> str:
        """Trains until `trials` sets have been tried, those of an interrupted search included; writes the best recipe and a
        figure.

        A set whose training fails, e.g. because its loss is not finite, counts as tried. The sets depend only on the seed of
        the recipe and on the results before, so an interrupted search tries the same sets as one that was not.

        Args:
            trials: How many sets.
            train: Runs `anytime train`.
            say: Called with each line of progress.

        Returns:
            The best set, as a sentence.

        Raises:
            UsageError: The recipe or the space is wrong, or the folder holds another search or files of others.
            UntrustedName: The space or a run names an import path, and the user has not consented to it.
            InUse: Another process searches in the folder.
            TrainingStopped: A training was ended from outside.
            ValueError: No training has finished, the data are missing, or a file in the folder is damaged, foreign or a link.
        """
        config = check_space(self.space, self.source, self.flags, self.recipe)
        self._check_folder()
        metric = Metric(config, self.metric)
        with only_writer(self.folder, "a search", brief=False), _quiet():
            study = self._open(config, metric)
            for trial in self._trials(study, trials, config["seed"]):
                line = self._try(study, trial, metric, config, train)
                say(f"[{trial.number + 1}/{max(trials, trial.number + 1)}] {_name(trial.number)}: {line}")
            if not any(trial.state.name == "COMPLETE" for trial in study.trials):
                raise ValueError(f"none of the {len(study.trials)} trainings has finished; {self.folder / 'logs'} says why")
            return self._write(study, metric, config)

    def _training(self, number: int, values: Mapping[str, Value], config: Config) -> TrainingRun:
        """The training of a set, which is written as a recipe beside its log; `config` is that of another set.

        Raises:
            UsageError: The values do not go together.
            ValueError: The folder of the logs is a link.
        """
        name = _name(number)
        check_no_link(self.folder / name)
        chosen = resolve_recipe(as_recipe(values, config))
        path = self._logs() / f"{name}.yaml"
        check_own(path)
        with atomic_write(path) as part:
            part.write_text(SET + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return TrainingRun(name, self.recipe, self.flags, config["seed"], {}, self.trust, (path,))

    def _logs(self) -> Path:
        check_no_link(path := self.folder / "logs")
        return path

    def _check_folder(self) -> None:
        check_own(self.folder / BEST, self.folder / FIGURE)
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        if JOURNAL not in names and not all(name == LOCK or PART.fullmatch(name) for name in names):  # a kill may leave these
            raise UsageError(f"{self.folder} holds files but no search; give another --runs")

    def _open(self, config: Config, metric: Metric) -> Study:
        """The study in the journal; raises as `open_study`."""
        import optuna

        given = {**effective(config), "data.root": os.path.realpath(metric.root)}
        given = {key: value for key, value in given.items() if key not in self.space}
        space = {f"space {key}": asdict(part) for key, part in self.space.items()}
        wanted = json.loads(json.dumps(given | space | {"metric": self.metric}, default=str))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=config["epochs"] // 3)
        return open_study(self.folder / JOURNAL, metric, pruner, self.space, wanted)

    def _trials(self, study: Study, trials: int, seed: int) -> Iterator[Trial]:
        """The sets to try: first those that an earlier search has left, then new ones."""
        import optuna

        for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            yield optuna.trial.Trial(study, left._trial_id)
        while (number := len(study.get_trials(deepcopy=False))) < trials:
            generator = np.random.SeedSequence([seed, number]).generate_state(1)[0]
            study.sampler = optuna.samplers.TPESampler(seed=int(generator))
            yield study.ask(distributions(self.space))

    def _try(self, study: Study, trial: Trial, metric: Metric, first: Config, train: Train) -> str:
        """Trains with a set and tells the study what came of it; returns that as a sentence."""
        from optuna.trial import TrialState

        written = _written(trial.params)
        try:
            run = self._training(trial.number, trial.params, first)
            config = run.config()
            metric.value(config, _Zeros())  # builds a network of other arguments, to count its MACs
        except UsageError as error:  # two values that do not go together
            study.tell(trial, state=TrialState.FAIL)
            return f"{written}: {one_line(error)}"
        folder, log = self.folder / run.name, self._logs() / f"{run.name}.log"
        reported = set(study.trials[trial.number].intermediate_values)
        pruned = False

        def interruptions() -> int:
            nonlocal pruned
            for epoch, row in validated(folder).items():
                if epoch not in reported and epoch + 1 < config["epochs"]:
                    reported.add(epoch)
                    trial.report(metric.value(config, row, folder / METRICS), epoch)
                    pruned = pruned or trial.should_prune()
            return int(pruned)

        status, code, spent = run_status(run, self.folder), 0, 0.0
        if status != "finished":
            code, spent = train_one(run, self.folder, status, lambda words, file: train(words, file, interruptions))
        if code and pruned:
            study.tell(trial, state=TrialState.PRUNED)
            return f"{written}: ended after {time_text(spent)}, worse than the median"
        if code == 2 or (code == 1 and state_of(folder).get("state") == "failed"):
            study.tell(trial, state=TrialState.FAIL)
            return f"{written}: failed, {log_end(log, 1)[-1]}"
        if code:
            raise TrainingStopped(f"the training {run.name} ended with exit code {code}, see {log}", log)
        value = metric.last(config, folder)
        if value is None or not math.isfinite(value):
            study.tell(trial, state=TrialState.FAIL)
            return f"{written}: failed, {metric} is {'missing' if value is None else 'not finite'}"
        study.tell(trial, value)
        best = f"best {metric.text(study.best_value)} ({_name(study.best_trial.number)})"
        return f"{written}: {metric} {metric.text(value)}, {best}"

    def _write(self, study: Study, metric: Metric, first: Config) -> str:
        """Writes the best set as a recipe, and the figure; returns which set that is. Raises ValueError as `_checked`."""
        best = study.best_trial
        done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        config = {trial.number: self._checked(trial, metric, first) for trial in done}[best.number]
        words = f"the best of {len(study.trials)} sets is {_name(best.number)}, {metric} {metric.text(study.best_value)}"
        check_own(self.folder / BEST, self.folder / FIGURE)
        with atomic_write(self.folder / BEST) as part:
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            part.write_text(f"# chosen on validation: {words}\n{text}", encoding="utf-8")
        figure = draw(study.trials, self.space, str(metric), max if metric.larger_is_better else min)
        with atomic_write(self.folder / FIGURE) as part:
            figure.savefig(part, format="png", dpi=150, metadata=MARK)
        return f"{words}: {_written(best.params)}"

    def _checked(self, trial: FrozenTrial, metric: Metric, first: Config) -> Config:
        """The configuration of a set that was trained; raises ValueError if its run does not have its number."""
        run = self._training(trial.number, trial.params, first)
        config, folder, said = run.config(), self.folder / run.name, float(trial.values[0])
        value = metric.last(config, folder) if run_status(run, self.folder) == "finished" else None
        if value is None or not math.isclose(value, said, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(
                f"{self.folder / JOURNAL} says that {metric} of {run.name} is {metric.text(said)}, but {folder / METRICS} "
                f"says {'nothing' if value is None else metric.text(value)}; one of them was changed, so choose another --runs"
            )
        return config


class _Zeros(dict[str, float]):
    """A row in which every metric is 0."""

    def __missing__(self, key: str) -> float:
        return 0.0


def _written(values: Mapping[str, Value]) -> str:
    """A set as it is printed; `as_flags` holds all digits."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return ", ".join(flag.removeprefix("--") for flag in as_flags(shown))


def _name(number: int) -> str:
    return f"trial_{number:03}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, Optuna prints no line of its own for each trial."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
