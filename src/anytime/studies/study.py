"""What a study is: the trainings behind each table and figure of a paper, and how their traces become numbers and a figure."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from anytime.studies.runner import Run, Traces
from anytime.support.files import atomic_write
from anytime.support.names import nearest
from anytime.trace import Trace

NAMES = ("hu2017", "iuzzolino2021", "lee2018", "backbones")
"""The studies, each a module of this package with a `STUDY`."""


@dataclass(frozen=True)
class Result:
    """A table or figure of ours: plain numbers for JSON, the same to read, and a drawing if the paper has one."""

    numbers: Mapping[str, Any]
    text: str
    figure: Figure | None = None

    def write(self, stem: Path) -> list[Path]:
        """Writes `stem.json` and `stem.png`; returns what was written."""
        written = [stem.with_name(f"{stem.name}.json")]
        with atomic_write(written[0]) as part:
            part.write_text(_text(plain(self.numbers)) + "\n", encoding="utf-8")
        if self.figure is not None:
            written.append(stem.with_name(f"{stem.name}.png"))
            self.figure.savefig(written[1], dpi=150)
        return written


@dataclass(frozen=True)
class Item:
    """One table or figure of a paper.

    Args:
        title: What it shows.
        runs: `(data, scale, seeds)` to the trainings that it needs.
        make: `(traces, data)` to the result.
    """

    title: str
    runs: Callable[[str, str, Sequence[int]], list[Run]]
    make: Callable[[Traces, str], Result]


@dataclass(frozen=True)
class Study:
    """A paper: its items by name ("figure 3", "table 1") and, by scale, the data sets and seeds; the first is the default.

    `fixed` are flags that a user cannot set for all trainings, for they are what the study compares, or what it goes by.
    """

    paper: str
    items: Mapping[str, Item]
    data: Mapping[str, Sequence[str]]
    seeds: Mapping[str, Sequence[int]]
    fixed: Sequence[str] = ()


def list_studies() -> list[str]:
    """Names of all studies."""
    return list(NAMES)


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        ValueError: There is none; names the nearest.
    """
    if name not in NAMES:
        raise ValueError(f"unknown study {name!r}{nearest(name, NAMES)}")
    return importlib.import_module(f"anytime.studies.{name}").STUDY


def facts(traces: Mapping[int, Trace]) -> dict[str, Any]:
    """What a published number has to carry, of one network by seeds: data set, recipe, seeds, epochs, hardware, date."""
    metas = [trace.meta for trace in traces.values()]
    recipe = {key: value for key, value in metas[0]["recipe"].items() if key not in ("seed", "progress")}
    given = {key: value for key, value in recipe["data"]["init_args"].items() if key not in ("root", "download")}
    return {
        "dataset": metas[0]["dataset"],
        "part": metas[0]["part"],
        "images": next(iter(traces.values())).num_samples,
        "seeds": list(traces),
        "epochs": recipe["epochs"],
        "trained_on": sorted({meta["trained_on"] for meta in metas}),
        "measured_on": sorted({meta["hardware"] for meta in metas}),
        "date": max(meta["date"] for meta in metas)[:10],
        "recipe": recipe | {"data": recipe["data"] | {"init_args": given}},
    }


def plain(value: Any) -> Any:
    """As JSON can say it: tensors as lists, six digits, null for what is no finite number."""
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
    """JSON with one line for each list of numbers."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {_text(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + _text(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
