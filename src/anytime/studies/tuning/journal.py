"""The journal of a search, Optuna's file. It may come from a stranger, or a kill may have cut its last line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anytime.studies.tuning.metric import Metric
from anytime.studies.tuning.space import Space, distributions
from anytime.support.documents import parse_json, read_limited
from anytime.support.folders import check_no_link, check_ordinary
from anytime.support.owned import NotOurs
from anytime.support.text import one_line, quoted
from anytime.training.config import UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

STUDY = "anytime"  # the name of the study in the journal
BYTES = 2**26
_BEGINS = b'{"op_code":0'  # as Optuna writes the study
_ATTRIBUTE, _CREATE, _PARAMETER = 2, 4, 5  # and one of the user's attributes, a set, and a value of a set


class _OneWriter:
    """No lock of Optuna's own: the lock of the folder is held."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_study(path: Path, metric: Metric, pruner: BasePruner, space: Space, wanted: Mapping[str, Any]) -> Study:
    """The study in a journal, which is made if it is missing; the caller holds the lock of its folder.

    Only sets of the space are accepted. A last line that is not complete is cut off, and so is a last set that is not.

    Args:
        path: The journal.
        metric: What is searched for.
        pruner: Ends poor trainings.
        space: The options and their values.
        wanted: What is searched, as JSON; another search is not continued.

    Raises:
        UsageError: It is the journal of another search.
        NotOurs: It is no journal.
        ValueError: It is damaged, a link or a pipe.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    if os.path.lexists(path):
        _mend(path, len(space), wanted)
    direction: Literal["maximize", "minimize"] = "maximize" if metric.larger_is_better else "minimize"
    lock: Any = _OneWriter()
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock))
        if storage.get_all_studies():  # creating it once more would write another line
            study = optuna.load_study(study_name=STUDY, storage=storage, pruner=pruner)
        else:
            study = optuna.create_study(study_name=STUDY, storage=storage, direction=direction, pruner=pruner)
        trials, found = study.trials, study.user_attrs.get("search")
        directions = [each.name.lower() for each in study.directions]
    except OSError:
        raise
    except Exception as error:  # of several kinds, where Optuna reads what it did not write
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    if found is None and not trials:
        study.set_user_attr("search", found := dict(wanted))
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not say what is searched; give another --runs")
    _check_search(path, found, wanted)
    if directions != [direction]:
        raise ValueError(f"{path} is damaged: it does not {direction} one number")
    options = distributions(space)
    for trial in trials:
        if trial.state.name == "WAITING" or not _is_of(trial, options):
            raise ValueError(f"{path} is damaged: its set {trial.number} is none of the space; give another --runs")
        values: list[float] = trial.values or []
        if trial.state.name == "COMPLETE" and not (len(values) == 1 and metric.is_possible(values[0])):
            raise ValueError(f"{path} is damaged: the metric of its set {trial.number} is {quoted(values)}")
    return study


def _is_of(trial: FrozenTrial, options: Mapping[str, BaseDistribution]) -> bool:
    """Whether a set has a value of each option and no others."""
    try:
        return trial.distributions == options and all(
            part._contains(part.to_internal_repr(trial.params[key])) for key, part in options.items()
        )
    except ValueError:  # of NaN
        return False


def _check_search(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UsageError if what the journal searches is not what is wanted."""
    if keys := [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]:
        listed = f"{keys[0]} {quoted(found.get(keys[0]))} (wanted {quoted(wanted.get(keys[0]))})"
        raise UsageError(f"{path.parent} holds a search with {listed}; choose another --runs")


def _mend(path: Path, options: int, wanted: Mapping[str, Any]) -> None:
    """Cuts off what a kill or a full disk has left at the end of this search's journal; raises as `open_study`."""
    check_no_link(path)
    check_ordinary(path)
    text = read_limited(path, BYTES)
    if not (text.startswith(_BEGINS) or _BEGINS.startswith(text)):
        raise NotOurs(f"{path} is not the journal of a search, which has that name; move it away")
    *lines, torn = text.split(b"\n")
    end = len(text) - len(torn)
    opened: int | None = None  # where the last entries begin that make a set and give it values
    place = values = 0
    for number, line in enumerate(lines, 1):
        log = parse_json(line, f"line {number} of {path}")
        kind = log.get("op_code") if isinstance(log, dict) else None
        if kind is None:
            raise ValueError(f"line {number} of {path} is damaged: it is no entry of a journal")
        if number == 1 and log.get("study_name") != STUDY:
            raise NotOurs(f"{path} is the journal of another program; move it away")
        if kind == _ATTRIBUTE and isinstance(found := (log.get("user_attr") or {}).get("search"), dict):
            _check_search(path, found, wanted)
        if kind == _CREATE:
            opened, values = place, 0
        elif kind == _PARAMETER:
            values += 1
        else:
            opened = None
        place += len(line) + 1
    if opened is not None and values < options:
        end = opened
    if end < len(text):
        os.truncate(path, end)
