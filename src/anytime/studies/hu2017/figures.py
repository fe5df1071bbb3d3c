"""Figures 2 to 4 of Hu et al. 2017: errors and training losses over units, steps over the cost, probabilities over epochs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from tqdm.auto import tqdm

from anytime.analysis.inflation import expected_inflation
from anytime.analysis.optimal import Exits
from anytime.data import create_data
from anytime.objectives import step_losses
from anytime.objectives.weighting import normalized, sieve
from anytime.pretrained import load
from anytime.reporting.plots import BLUE, COLOURS, DASHES, GREEN, GREY, RED, STYLE
from anytime.studies.hu2017.networks import Base, Network, Scale, run_folders
from anytime.studies.hu2017.published import PAPER
from anytime.studies.hu2017.strategies import eann_exits, opt_plus_exits, rivals
from anytime.studies.hu2017.tables import head, mean, measure, measure_optimal, told
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.files import atomic_write
from anytime.training.logs import METRICS as METRICS_FILE

LOSSES = "training-losses.json"


def training_losses(run: Path) -> list[float]:
    """-mean log softmax(z_t)_label of each exit over the training images, as they are, in nats; kept in the run directory."""
    if (run / LOSSES).is_file():
        return json.loads((run / LOSSES).read_text())
    model = load(run)
    recipe = model.info.recipe["data"]
    data = create_data(recipe["class_path"], **recipe["init_args"] | {"augment": "none"})
    data.setup("fit")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    total, images = torch.zeros(model.num_steps, dtype=torch.float64), 0
    with torch.inference_mode():
        for batch, target in tqdm(data.train_dataloader(), desc=f"training losses of {run.name}", unit="batch", leave=False):
            batch = batch.to(device, memory_format=torch.channels_last)
            losses = step_losses(model(batch).float(), target.to(device))
            total += len(target) * losses.double().cpu()
            images += len(target)
    with atomic_write(run / LOSSES) as part:
        part.write_text(json.dumps((total / images).tolist()) + "\n", encoding="utf-8")
    return (total / images).tolist()


def figure_2(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Errors and training losses of weight schemes over the exits."""
    base = scale.chosen
    schemes = [net for net in networks if net.exit is None]
    errors = {net.method: measure(traces, net).exits for net in schemes}
    errors["optimal"] = measure_optimal(traces, base).exits
    losses: dict[str, list[float]] = {}
    for net in schemes:
        if net.method != "midfeat" and (folders := run_folders(traces, net)):
            by_seed = [training_losses(folder) for folder in folders.values()]
            losses[net.method] = [mean(values) for values in zip(*by_seed, strict=True)]
    claims = []
    if {"sieve", "half-end"} <= losses.keys():
        lower = [s < h for s, h in zip(losses["sieve"], losses["half-end"], strict=True)]
        claims.append(
            {
                "claim": "the training loss is smaller with sieve than with half-end at almost all exits: at least 3/4",
                "shows": sum(lower) >= 0.75 * len(lower),
                "smaller_at": [exit for exit, is_lower in enumerate(lower, 1) if is_lower],
            }
        )
    numbers = {
        **head("figure 2a to d: errors and training losses over units", traces, networks[0], data),
        "units": base.exits,
        "errors": errors,
        "training_losses": losses,
        "claims": claims,
    }
    last = dict.fromkeys(range(max(0, len(base.exits) - 4), len(base.exits)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11 if losses else 7.6, 3.6), layout="constrained")
        panels = figure.subplots(1, 3 if losses else 2)
        names = list(errors)  # whose colours are the same in all panels
        end = {name: [row[i] for i in last] for name, row in errors.items()}
        _over_units(panels[0], base.exits, errors, names, f"{base}, {numbers['dataset']}")
        _over_units(panels[1], [base.exits[i] for i in last], end, names, "the end")
        for panel in panels[:2]:
            panel.set_ylabel("test error")
            panel.yaxis.set_major_formatter(PercentFormatter(1))
        if losses:
            _over_units(panels[2], base.exits, losses, names, "training images")
            panels[2].set_ylabel("cross-entropy (nats)")
            panels[2].set_yscale("log")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=6)
    return Result(numbers, f"{len(errors)} networks, {len(losses)} of them with training losses\n\n{told(claims)}", figure)


def figure_2f(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """The sieve's weights of 15 exits, the last of which is 1."""
    weights = normalized(sieve(15), "last")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.stem(range(1, 16), weights, basefmt=" ")
        axes.set_xlabel("exit")
        axes.set_ylabel("weight of its loss")
    text = "\n".join(f"exit {exit:>2}: {weight:.4f}" for exit, weight in enumerate(weights, 1))
    return Result({"paper": PAPER, "figure": "2f: the sieve's weights of 15 exits", "weights": weights}, text, figure)


def _over_units(
    axes: Axes, units: Sequence[int], rows: Mapping[str, Sequence[float]], names: Sequence[str], title: str
) -> None:
    """Draws rows over units, each in the colour of its name's place among `names`."""
    for name, row in rows.items():
        index = names.index(name)
        look: dict[str, Any] = {"linestyle": DASHES} if index >= len(COLOURS) else {}
        colour = "#000000" if name == "optimal" else COLOURS[index % len(COLOURS)]
        known = [(unit, value) for unit, value in zip(units, row, strict=True) if not math.isnan(value)]
        if name == "optimal":
            look = {"linestyle": "none", "marker": "*", "markersize": 9}
        axes.plot(*zip(*known, strict=True), color=colour, label=name, **look)
    axes.set(xlabel="units", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def figure_2e(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """EANN over the cost, as it is and divided by E[C], against OPT+."""
    seed = next(iter(traces[networks[0].name]))
    eann = eann_exits(traces, scale.members, seed)
    best, total = opt_plus_exits(traces, rivals(scale), seed)
    depths = [base.exits[-1] for base in scale.members]
    growth = (depths[-1] / depths[0]) ** (1 / (len(depths) - 1))
    inflation = expected_inflation(growth)
    curves = {
        "EANN": (eann, BLUE),
        f"EANN, cost / {inflation:.2f}": (Exits(eann.errors, tuple(cost / inflation for cost in eann.costs)), GREEN),
        "OPT+": (best, RED),
    }
    numbers = {
        **head("figure 2e: EANN and OPT+", traces, networks[0], data),
        "seed": seed,
        "mean_base": growth,
        "expected_inflation": inflation,
        "curves": {name: exits.step_curve() for name, (exits, _) in curves.items()},
        "cost_of_the_deepest": total,
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for name, (exits, colour) in curves.items():
            axes.plot(*exits.step_curve(), color=colour, label=name)
        _cost_axes(axes, str(numbers["dataset"]))
    return Result(numbers, f"b = {growth:.2f}, E[C] <= {inflation:.2f}", figure)


def _cost_axes(axes: Axes, title: str) -> None:
    axes.set(xlabel="MACs per image", ylabel="test error", title=title)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(left=0)
    axes.legend(loc="upper right")


def figure_3(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """The error held over the cost, by units per exit; first seed."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for units, periods in scale.periods.items():
        curves[f"n={units}"] = {}
        for s in periods:
            trace = next(iter(traces[Network("sieve", Base(units, scale.period_width, s)).name].values()))
            curves[f"n={units}"][f"s={s}"] = Exits.of(trace).step_curve()
    numbers = {**head("figure 3: error over cost by units per exit", traces, networks[0], data), "curves": curves}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 3.6 * len(curves), 3.4), layout="constrained")
        for index, (name, of_base) in enumerate(curves.items(), 1):
            axes = figure.add_subplot(1, len(curves), index)
            for (period, curve), colour in zip(of_base.items(), COLOURS, strict=False):
                axes.plot(*curve, color=colour, label=period)
            _cost_axes(axes, f"{name} c={scale.period_width}, {numbers['dataset']}")
    return Result(numbers, f"{sum(map(len, curves.values()))} curves", figure)


def read_probabilities(run: Path) -> tuple[list[int], list[list[float]]]:
    """Training steps, and at each the probability of every answer, from the metrics of a run.

    Raises:
        ValueError: The run has logged none.
    """
    with (run / METRICS_FILE).open(newline="", encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row.get("train/probability_1")]
    if not table:
        raise ValueError(f"{run / METRICS_FILE} holds no train/probability_1: it was trained by an objective without choices")
    names = sorted((key for key in table[0] if key.startswith("train/probability_")), key=lambda key: int(key.split("_")[1]))
    return [int(row["step"]) for row in table], [[float(row[name]) for name in names] for row in table]


def figure_4(traces: Traces, data: str, scale: Scale, networks: Sequence[Network]) -> Result:
    """Which exit is amplified, over the training; first seed."""
    found = {}
    for net in networks:
        folders = run_folders(traces, net)
        if not folders:
            raise ValueError(f"figure 4 reads the metrics of run directories, and there is none of {net.name}")
        found[net.method] = read_probabilities(next(iter(folders.values())))
    at_end = {method: rows[-1] for method, (_, rows) in found.items()}
    claims: list[dict[str, Any]] = [
        {
            "claim": f"{method} picks the last exit with more than half of the probability in the end",
            "shows": at_end[method][-1] > 0.5,
            "probability": at_end[method][-1],
            "paper": {"shows": True},
        }
        for method in ("EXP3", "RWM")
        if method in at_end
    ]
    if "AVGL" in at_end:
        average = mean([row[-1] for row in found["AVGL"][1]])
        claims.append(
            {
                "claim": "AVGL picks the last exit more often than any other, and less often than half, on average",
                "shows": average < 0.5
                and average == max(mean(list(column)) for column in zip(*found["AVGL"][1], strict=True)),
                "probability": average,
                "paper": {"shows": True},
            }
        )
    numbers = {
        **head("figure 4: probability of each exit over the training", traces, networks[0], data),
        "networks": [net.name for net in networks],
        "steps": {method: steps[:: max(1, len(steps) // 100)] for method, (steps, _) in found.items()},
        "probabilities": {method: rows[:: max(1, len(rows) // 100)] for method, (_, rows) in found.items()},
        "claims": claims,
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        shades = matplotlib.colormaps["viridis"]
        for index, (method, (steps, rows)) in enumerate(found.items(), 1):
            axes = figure.add_subplot(1, len(found), index)
            exits = len(rows[0])
            colours = [shades(exit / max(1, exits - 1)) for exit in range(exits)]
            axes.stackplot(steps, *zip(*rows, strict=True), colors=colours, linewidth=0.3, edgecolor=GREY)
            axes.set(xlabel="training step", ylabel="probability, first exit below" if index == 1 else "", title=method)
            axes.set(xlim=(steps[0], max(steps[-1], steps[0] + 1)), ylim=(0, 1))
    return Result(numbers, told(claims), figure)
