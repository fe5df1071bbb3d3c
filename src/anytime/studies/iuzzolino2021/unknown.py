"""Figure 7 of Iuzzolino et al. (2021): does the time course tell images of unknown classes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from anytime.analysis.ood import FORMS, INPUTS, detection, fit_detector, score
from anytime.analysis.statistics import interval, mean, standard_error
from anytime.data import ImageData, create_data
from anytime.reporting.plots import BLUE, GREY
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, figure_title
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.figures import first_time
from anytime.studies.iuzzolino2021.measured import folder_of, kept_trace, network_of, some
from anytime.studies.iuzzolino2021.networks import pair
from anytime.studies.runner import Traces, TrainingRun, on_validation
from anytime.studies.study import Result
from anytime.support.digest import weights_digest
from anytime.support.owned import state_of
from anytime.trace import Trace, record

VALIDATION = "CascadedTD (validation)"
SIDE = {"size": 32}
SETS: dict[str, dict[str, Any]] = {"CIFAR100": {}, "SVHN": {}, "TinyImageNet": SIDE, "GTSRB": SIDE, "Digits": {}}
IMAGES = 2000  # of each set to fit a detector, and as many to test it
SEM = "over sets and seeds"
Part = Literal["fit", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
Both = Mapping[str, Trace]
"""Traces "fit" and "test"."""


def figure_7_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD, recorded on the validation images as well."""
    return [
        TrainingRun(run.name, run.recipe, run.flags, run.seed, {**run.views, VALIDATION: on_validation})
        for run in pair(data, scale, seeds)
        if "CascadedTD" in run.views
    ]


def figure_7(traces: Traces, data: str) -> Result:
    """AUROC and false positives of detectors that read the last answer or all of them."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    images: dict[str, dict[str, int]] = {}
    for seed, test in traces["CascadedTD"].items():
        known = {"fit": traces[VALIDATION][seed], "test": test}
        images["known"] = {part: trace.num_samples for part, trace in known.items()}
        for name, unknown in unknown_traces(folder_of(traces, "CascadedTD", seed), test.meta["dataset"]).items():
            found.setdefault(name, {})[seed] = detections(known, unknown, 2 - first_time(test))
            images[name] = {part: trace.num_samples for part, trace in unknown.items()}
    numbers = facts(traces["CascadedTD"], paper=published.PAPER, figure="7: images of unknown classes")
    there = {name: _there(name) for name in found if name in SETS}
    return unknown_result(found, numbers | {"images_by_set": images, "splits_that_are_there": there})


def _there(name: str) -> dict[str, Any]:
    """The sizes of the splits from which images are taken, as they are on this machine, and the official ones."""
    data: ImageData = create_data(name, **SETS[name])
    data.setup()
    official = None if data.official is None else dict(zip(("train", "test"), data.official, strict=False))
    return {"train": len(data.split("train")), "test": len(data.split("test")), "official": official}


def unknown_traces(folder: Path, trained_on: str) -> dict[str, dict[str, Trace]]:
    """The answers of a trained network to images of each set that is at hand, and to uniform noise."""
    model, own, device = network_of(folder)
    size, weights = own.input_size, weights_digest(model.state_dict())

    def images(name: str, part: Part) -> Iterator[Tensor]:
        if name == "noise":
            generator = torch.Generator().manual_seed(PARTS.index(part))
            yield from (torch.rand(min(500, IMAGES), *size, generator=generator) for _ in range(-(-IMAGES // 500)))
            return
        data: ImageData = create_data(name, **SETS[name])
        for batch, _ in some(data, "train" if part == "fit" else "test", IMAGES):
            x = F.interpolate(batch, size[1:], mode="bilinear", antialias=True).clamp(0, 1)
            yield x.expand(-1, size[0], -1, -1) if x.shape[1] == 1 else x if size[0] == 3 else x.mean(1, keepdim=True)

    def answered(name: str, part: Part) -> Trace:
        read = [*images(name, part)]  # before the inference mode of `record`, in which not all readers work
        meta = {"trained_on": state_of(folder).get("hardware", "unknown")}  # which marks a trace of a study
        return record(model, read, labels=None, progress=False, seconds=False, device=device, meta=meta)

    there = [name for name, given in SETS.items() if name != trained_on and create_data(name, **given).found()]
    return {
        name: {
            part: kept_trace(
                folder / f"trace-unknown-{name.lower()}-{part}.safetensors",
                partial(answered, name, part),
                weights,
            )
            for part in PARTS
        }
        for name in (*there, "noise")
    }


def detections(known: Both, unknown: Both, first: int) -> dict[str, dict[str, float]]:
    """AUROC and FPR at 95 % TPR by what is read and its form; "baseline" is the last max-softmax itself."""
    base = detection(score(known["test"]), score(unknown["test"]))
    found = {"baseline, last": {"auroc": base.auroc, "fpr95": base.fpr95}}
    for form in FORMS:
        for inputs in INPUTS:
            detector = fit_detector(known["fit"], unknown["fit"], inputs, form, first=first)
            one = detection(detector(known["test"]), detector(unknown["test"]))
            found[f"{inputs}, {form}"] = {"auroc": one.auroc, "fpr95": one.fpr95}
    return found


def unknown_result(found: Mapping[str, Mapping[int, Mapping[str, Mapping[str, float]]]], numbers: Mapping[str, Any]) -> Result:
    """Figure 7 from the detections by set, seed and detector; standard errors and intervals are over sets and seeds."""
    flat = [by_detector for by_seed in found.values() for by_detector in by_seed.values()]
    names = list(flat[0])
    rows: list[dict[str, Any]] = []
    errors = {key: standard_error([[each[name][key] for name in names] for each in flat]) for key in ("auroc", "fpr95")}
    for place, name in enumerate(names):
        row: dict[str, Any] = {"reads": name}
        for key in ("auroc", "fpr95"):
            row |= {key: mean([each[name][key] for each in flat]), f"{key}_error": errors[key][place]}
        rows.append(row)
    claims = []
    for inputs in INPUTS:
        gains = [each[f"{inputs}, trace"]["auroc"] - each[f"{inputs}, last"]["auroc"] for each in flat]
        gain, half = interval(gains)
        statement = f"the whole course of the {inputs} detects unknown classes better than the last step (AUROC)"
        counted = {"gain": gain, "low": gain - half, "high": gain + half, "gains": gains}
        shows = None if len(gains) < 2 else gain - half > 0
        claims.append(Claim(statement, shows, counted, "figure 7, without numbers in the text"))
    columns = [Column("reads", "reads"), Column("auroc", "AUROC", ".3f"), Column("auroc_error", "SEM", ".3f")]
    columns += [Column("fpr95", "FPR at 95 % TPR", ".3f"), Column("fpr95_error", "SEM", ".3f")]
    extra = {
        "sets": list(found),
        "errors": f"SEM {SEM}, without the level of each (Cousineau, Morey)",
        "rows": rows,
        "by_set": found,
    }
    return Result({**numbers, **extra}, format_table(rows, columns), _drawn(rows, figure_title(numbers)), claims)


def _drawn(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    by_name = {row["reads"]: row for row in rows}
    with figures.panels(7.4, 3.2, 2) as (figure, grid):
        for axes, key in zip(grid, ("auroc", "fpr95"), strict=True):
            for shift, form, colour in ((-0.2, "last", GREY), (0.2, "trace", BLUE)):
                places = [place + shift for place in range(len(INPUTS))]
                values = [by_name[f"{inputs}, {form}"] for inputs in INPUTS]
                heights, bars = ([value[column] for value in values] for column in (key, f"{key}_error"))
                name = "last step" if form == "last" else "all steps"
                axes.bar(places, heights, 0.38, yerr=bars, color=colour, capsize=2, label=name)
            axes.axhline(by_name["baseline, last"][key], color="#000000", linestyle=":", label="baseline")
            axes.set_xticks(range(len(INPUTS)), [inputs.replace("_", "\n") for inputs in INPUTS])
            axes.set_ylabel({"auroc": "AUROC", "fpr95": "FPR at 95 % TPR"}[key])
        grid[0].set_title(title)
        grid[1].set_title(f"bars: ± 1 SEM {SEM}")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
