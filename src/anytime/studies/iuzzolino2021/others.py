"""Other networks with skip connections as cascades: the paper says that it can be done, and shows residual networks only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import EngFormatter

from anytime.analysis.curves import accuracy
from anytime.analysis.statistics import first_trace, interval, mean, means, per_seed
from anytime.model import AnytimeModel, create_model
from anytime.reporting.plots import BLUE
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, figure_title
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.figures import step_costs
from anytime.studies.iuzzolino2021.networks import CE
from anytime.studies.runner import Traces, TrainingRun, View, find_recipe, one_per_seed, slug
from anytime.studies.study import Result
from anytime.support.units import macs_text
from anytime.trace import Trace

RECIPES = {"DenseNet": "cascaded_densenet_cifar10_cpu.yaml", "ViT": "cascaded_vit_cifar10_cpu.yaml"}
SCALES: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"DenseNet": (), "ViT": ()},
    "fast": {"DenseNet": ("--model.growth=6", "--epochs=4"), "ViT": ("--epochs=4",)},
    "full": {
        "DenseNet": ("--model.layers=[6,12,24,16]", "--model.growth=16", "--epochs=120"),
        "ViT": ("--model.layers=6", "--model.width=192", "--epochs=120"),
    },
}
DATA = {"cifar10": (), "cifar100": ("--data=CIFAR100",)}
LOSSES = {"TD": ("--objective.lam=0",), "CE": CE}


def with_delays(model: AnytimeModel) -> AnytimeModel:
    """The weights of a network without delays under a one-step delay."""
    model.check_saveable()
    arguments = {key: value for key, value in model.config["arguments"].items() if key not in ("kernel", "num_steps")}
    cascade = create_model(model.config["model"], **arguments, kernel="osd")
    like = next(model.parameters())
    cascade.to(like.device, like.dtype).load_state_dict(model.state_dict())
    cascade.info = model.info
    return cascade


def network_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """A DenseNet and a vision transformer, each trained with TD as a cascade and with CE without delays."""
    if data not in DATA:
        return []
    runs = []
    for name, recipe in RECIPES.items():
        networks: dict[str, tuple[tuple[str, ...], Mapping[str, View | None]]] = {
            slug(f"{name} {loss}"): (
                (*DATA[data], *SCALES[scale][name], *flags),
                {f"{name}, {loss}": with_delays if loss == "CE" else None},
            )
            for loss, flags in LOSSES.items()
        }
        runs += one_per_seed(f"{data}_{scale}", find_recipe(recipe), seeds, networks)
    return runs


def network_table(traces: Traces, data: str) -> Result:
    """Accuracy over time of each cascade, beside its last answer, which is that of the ordinary network."""
    stored = {f"{name}, {loss}": traces[f"{name}, {loss}"] for name in RECIPES for loss in LOSSES}
    numbers = facts(next(iter(stored.values())), paper=published.PAPER, table="cascades of other networks")
    recipes = {name: first_trace(by_seed).meta["recipe"] for name, by_seed in stored.items()}
    return network_result(stored, numbers | {"recipes": recipes})


def network_result(stored: Mapping[str, Mapping[int, Trace]], numbers: Mapping[str, Any]) -> Result:
    """The table from the traces by network and seed."""
    by_step = {name: per_seed(accuracy, by_seed) for name, by_seed in stored.items()}
    costs = {name: step_costs(first_trace(by_seed), first=0) for name, by_seed in stored.items()}
    rows = []
    for name, values in by_step.items():
        course = means(values)
        for t, macs, ms, value in zip(*costs[name].values(), course, strict=True):
            share = value / course[-1] if course[-1] else math.nan
            rows.append({"network": name, "t": t, "macs": macs, "ms": ms, "accuracy": value, "of_own_serial": share})
    claims = []
    for name in dict.fromkeys(key.partition(",")[0] for key in stored):
        td, ce = by_step[f"{name}, TD"], by_step[f"{name}, CE"]
        early = [[mean(values[:-1]) for values in rows_] for rows_ in (td, ce)]
        gain, half = interval([a - b for a, b in zip(*early, strict=True)])
        measured = {"gain": gain, "low": gain - half, "high": gain + half, "by_seed": early}
        shows = gain > 0 if math.isnan(half) else gain - half > 0
        note = "one seed, so without an interval" if math.isnan(half) else ""
        statement = f"a cascaded {name} is more accurate before its last answer with TD than with CE"
        claims.append(Claim(statement, shows, measured, note=note))
        last, last_half = interval([a[-1] - b[-1] for a, b in zip(td, ce, strict=True)])
        text = f"the last answer of the {name} is no worse with TD than with CE"
        bounds = {"gain": last, "low": last - last_half, "high": last + last_half}
        claims.append(Claim(text, last >= 0 if math.isnan(last_half) else last + last_half >= 0, bounds, note=note))
    columns = [Column("network", "network"), Column("t", "t"), Column("macs", "MACs", macs_text), Column("ms", "ms", ".2f")]
    columns += [Column("accuracy", "accuracy", ".2%"), Column("of_own_serial", "of its own serial self's", ".1%")]
    shown = [label for label in ("t", "MACs", "ms") if all(None not in cost[label] for cost in costs.values())]
    kinds = [*dict.fromkeys(key.partition(",")[0] for key in stored)]
    with figures.panels(0.8 + 3.0 * len(shown), 3.2, len(shown), share_y=True) as (figure, grid):
        for axes, label in zip(grid, shown, strict=True):
            for name, values in by_step.items():
                kind, _, loss = name.partition(", ")
                colour, line = BLUE if loss == "TD" else "#000000", ("-", "--")[kinds.index(kind)]
                axes.plot(costs[name][label], means(values), line, color=colour, marker="o", markersize=4, label=name)
            axes.set(xlabel=label, xlim=(0, None))
            axes.xaxis.set_major_formatter(EngFormatter())
        grid[0].set(ylabel="accuracy", title=figure_title(numbers))
        grid[0].legend(loc="best")
    return Result({**numbers, "rows": rows, "by_seed": by_step}, format_table(rows, columns), figure, claims)
