"""The journal of a search, Optuna's file. It may come from a stranger, or a kill may have cut its last line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anytime.studies.tuning.metric import Metric
from anytime.studies.tuning.space import Space, distributions
from anytime.support.documents import TooLarge, parse_json, read_limited
from anytime.support.files import atomic_write
from anytime.support.folders import check_no_link
from anytime.support.owned import NotOurs
from anytime.support.text import one_line, quoted
from anytime.support.trust import is_consented
from anytime.training.config import UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

STUDY = "anytime"  # the name of the study in the journal
BYTES = 2**26
WORK = 2 * 10**9  # values that Optuna copies while it reads a journal, all of a set for each of its entries
_BEGINS = b'{"op_code":0'  # as Optuna writes the study
_ATTRIBUTE, _CREATE, _PARAMETER = 2, 4, 5  # and one of the user's attributes, a set, and a value of a set
_NOTE, _ENDS = 3, (6, 7)  # and a note of its dashboard, and the end of a set or the metric after an epoch


class _OneWriter:
    """No lock of Optuna's own: the lock of the folder is held."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_study(path: Path, metric: Metric, pruner: BasePruner, space: Space, wanted: Mapping[str, Any]) -> Study:
    """The study in a journal, which is made if it is missing; the caller holds the lock of its folder.

    Only sets of the space are accepted. A last line that is not complete is cut off, and so is a last set that is not. A file
    that is not the journal of this search is not changed.

    Args:
        path: The journal.
        metric: What is searched for.
        pruner: Ends poor trainings.
        space: The options and their values.
        wanted: What is searched, as JSON; another search is not continued.

    Raises:
        UsageError: It is the journal of another search.
        NotOurs: It is no journal of a search.
        ValueError: It is damaged, a link or a pipe.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    def storage(file: Path) -> JournalStorage:
        lock: Any = _OneWriter()
        return JournalStorage(JournalFileBackend(str(file), lock))

    direction: Literal["maximize", "minimize"] = "maximize" if metric.larger_is_better else "minimize"
    if os.path.lexists(path):
        _mend(path, space, wanted)
    else:
        with atomic_write(path, replace=False) as part:  # so it always says what is searched
            made = optuna.create_study(study_name=STUDY, storage=storage(part), direction=direction)
            made.set_user_attr("search", dict(wanted))
    try:
        study = optuna.load_study(study_name=STUDY, storage=storage(path), pruner=pruner)
        trials, directions = study.trials, [each.name.lower() for each in study.directions]
    except OSError:
        raise
    except Exception as error:  # of several kinds, where Optuna reads what it did not write
        raise ValueError(f"{path} is damaged: Optuna cannot read it ({type(error).__name__}: {one_line(error)})") from error
    if directions != [direction]:
        raise ValueError(f"{path} is damaged: it does not {direction} one number")
    options = distributions(space)
    for trial in trials:
        if not _is_of(trial, options):
            raise ValueError(f"{path} is damaged: its set {trial.number} is none of this search; give another --runs")
        values: list[float] = trial.values or []
        if trial.state.name == "COMPLETE" and not (len(values) == 1 and metric.is_possible(values[0])):
            raise ValueError(f"{path} is damaged: the metric of its set {trial.number} is {quoted(values)}")
    return study


def _is_of(trial: FrozenTrial, options: Mapping[str, BaseDistribution]) -> bool:
    """Whether a set has a value of each option, numbers after its epochs and at its end, and no more."""
    steps, numbers = trial.intermediate_values, (*trial.intermediate_values.values(), *(trial.values or ()))
    try:
        return (
            trial.state.name != "WAITING"
            and not trial.system_attrs
            and trial.distributions == options
            and all(part._contains(part.to_internal_repr(trial.params[key])) for key, part in options.items())
            and all(isinstance(step, int) for step in steps)
            and all(isinstance(number, float) or math.isfinite(number) for number in numbers)
        )
    except (ValueError, TypeError, OverflowError):  # of NaN as a value, of texts, of 10^400
        return False


def _check_search(path: Path, attributes: Any, wanted: Mapping[str, Any]) -> None:
    """Raises NotOurs if a user's attributes do not say what is searched, UsageError if it is not what is wanted."""
    found = attributes.get("search") if isinstance(attributes, dict) else None
    if not isinstance(found, dict):
        raise NotOurs(f"{path} does not say what is searched; give another --runs")
    if keys := [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]:
        listed = f"{keys[0]} {quoted(found.get(keys[0]))} (wanted {quoted(wanted.get(keys[0]))})"
        raise UsageError(f"{path.parent} holds a search with {listed}; choose another --runs")


def _mend(path: Path, space: Space, wanted: Mapping[str, Any]) -> None:
    """Cuts off what a kill or a full disk has left at the end of this search's journal; raises as `open_study`."""
    check_no_link(path)
    text = read_limited(path, BYTES)
    if not text.startswith(_BEGINS):
        raise NotOurs(f"{path} is not the journal of a search, which has that name; move it away")
    *lines, _ = text.split(b"\n")
    if len(lines) < 2:  # both are written before the file gets its name
        raise NotOurs(f"{path} does not say what is searched; give another --runs")
    place = opened = sets = first = notes = work = 0
    missing: list[str] = []  # what the last set, which begins at `opened`, does not have yet
    for number, line in enumerate(lines, 1):
        log = parse_json(line, f"line {number} of {path}")
        kind = log.get("op_code") if isinstance(log, dict) else None
        if number == 1:
            if log.get("study_name") != STUDY:
                raise NotOurs(f"{path} is the journal of another program; move it away")
        elif number == 2:
            _check_search(path, log.get("user_attr") if kind == _ATTRIBUTE else None, wanted)
        elif kind == _CREATE and not missing:
            opened, missing, sets, first = place, [*space], sets + 1, number
        elif kind == _PARAMETER and log.get("trial_id") == sets - 1 and log.get("param_name") in missing:
            missing.remove(log["param_name"])
        elif kind == _NOTE and not missing:
            notes += 1
        elif missing or kind not in _ENDS or log.get("trial_id") != sets - 1:
            raise ValueError(f"line {number} of {path} is damaged: a search writes no such entry there")
        work += number - first + notes
        if work > WORK and not is_consented():
            raise TooLarge(f"{path} has more entries in its sets than any search; use --trust if it is yours")
        place += len(line) + 1
    end = opened if missing else place
    if end < len(text):
        os.truncate(path, end)
