"""A study: the trainings behind each table and figure of a paper, and how their traces become numbers and a figure."""

from __future__ import annotations

import functools
import importlib
import json
import math
import pkgutil
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure
from torch import Tensor

from anytime.studies.claims import Claim, format_claims
from anytime.studies.runner import TrainingRun
from anytime.support.files import atomic_write
from anytime.support.names import nearest
from anytime.support.owned import MARK, check_own


@dataclass(frozen=True)
class Result:
    """A table or figure as measured here: numbers for JSON, the same as text, a drawing if the paper has one, and claims.

    Claims end the JSON and the text; None if the paper makes none.
    """

    numbers: Mapping[str, Any]
    table: str
    figure: Figure | None = None
    claims: Sequence[Claim] | None = None

    @property
    def text(self) -> str:
        """The table and the claims, as printed."""
        return "\n\n".join(filter(None, (self.table, format_claims(self.claims or ()))))

    def write(self, stem: Path, command: str) -> list[Path]:
        """Writes `stem.json`, which names the command that made it, and `stem.png`; returns the files written.

        Raises:
            NotOurs: A file of that name is there, and no study wrote it.
        """
        written = [stem.with_name(f"{stem.name}.json")]
        check_own(*written, stem.with_name(f"{stem.name}.png"))
        claims = {} if self.claims is None else {"claims": self.claims}
        with atomic_write(written[0]) as part:
            part.write_text(_text(plain({"command": command, **self.numbers, **claims})) + "\n", encoding="utf-8")
        if self.figure is not None:
            written.append(stem.with_name(f"{stem.name}.png"))
            with atomic_write(written[1]) as part:
                self.figure.savefig(part, format="png", dpi=150, metadata=MARK)
        return written


class Earlier(Protocol):
    """What an earlier result holds that stays."""

    @property
    def names(self) -> Collection[str]:
        """Names of the trainings that need not be run."""

    @property
    def dropped(self) -> Sequence[str]:
        """Parts of it that do not stay."""


@dataclass(frozen=True)
class Item:
    """One table or figure of a paper.

    Args:
        title: What it shows.
        runs: `(data, scale, seeds)` to the trainings that it needs.
        make: `(traces, data)` to the result.
        partial: Whether `make` takes the traces of some of its trainings, and says which are missing.
        data: The data sets that it is of; empty for all of the study.
        kept: `(file, trainings)` to what the earlier result in the file holds of these trainings, so that they need not be
            run; `make` takes it as a third argument. None if a result holds too little for that.
    """

    title: str
    runs: Callable[[str, str, Sequence[int]], list[TrainingRun]]
    make: Callable[..., Result]
    partial: bool = False
    data: Sequence[str] = ()
    kept: Callable[[Path, Sequence[TrainingRun]], Earlier] | None = None


@dataclass(frozen=True)
class Study:
    """A paper whose tables and figures can be made again.

    Args:
        paper: The reference.
        items: Tables and figures by name: "figure 3", "table 1".
        data: Data sets by scale, the default first.
        seeds: Seeds by scale.
        fixed: Flags that users cannot set, because the study compares them or relies on them.
    """

    paper: str
    items: Mapping[str, Item]
    data: Mapping[str, Sequence[str]]
    seeds: Mapping[str, Sequence[int]]
    fixed: Sequence[str] = ()


@functools.cache
def _studies() -> dict[str, Study]:
    """The studies by name: every package beside this file that defines `STUDY`."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    packages = {name: importlib.import_module(f"anytime.studies.{name}") for name in names}
    return {name: package.STUDY for name, package in packages.items() if hasattr(package, "STUDY")}


def list_studies() -> list[str]:
    """Names of all studies."""
    return list(_studies())


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        ValueError: There is no study of this name; the message suggests the nearest.
    """
    if name not in _studies():
        raise ValueError(f"unknown study {name!r}{nearest(name, _studies())}")
    return _studies()[name]


def study_command(study: str, item: str, data: str, scale: str, seeds: Sequence[int], flags: Sequence[str] = ()) -> str:
    """The shell command that makes one item: `anytime study hu2017 --table 1 --data cifar10 --scale cpu --seeds 0`."""
    kind, number = item.split()
    words = ["anytime", "study", study, f"--{kind}", number, "--data", data, "--scale", scale, "--seeds", *map(str, seeds)]
    return shlex.join([*words, *flags])


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tensors and claims resolved, six digits, null for numbers that are not finite."""
    if isinstance(value, Claim):
        value = value.to_dict()
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _text(value: Any, indent: str = "") -> str:
    """JSON with one line per list of numbers."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {_text(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + _text(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
