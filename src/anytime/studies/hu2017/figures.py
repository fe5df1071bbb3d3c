"""Figures 2 to 4 of Hu et al. (2017): errors and losses over units, errors over the cost, probabilities over the training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from tqdm.auto import tqdm

from anytime.analysis.inflation import expected_inflation
from anytime.analysis.optimal import Exits
from anytime.analysis.statistics import first_trace, means
from anytime.objectives import step_losses
from anytime.objectives.weighting import normalized, sieve
from anytime.pretrained import load
from anytime.reporting.evaluation import trained_on
from anytime.reporting.plots import BLUE, COLOURS, DASHES, GREEN, GREY, RED
from anytime.studies.claims import Claim
from anytime.studies.figures import panels
from anytime.studies.hu2017.networks import PERIOD_WIDTH, Base, Setting, TrainedNet, run_folders
from anytime.studies.hu2017.published import PAPER
from anytime.studies.hu2017.strategies import eann_exits, opt_plus_exits, rivals
from anytime.studies.hu2017.tables import heading, measure, measure_optimal
from anytime.studies.logged import logged
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.documents import parse_json, read_limited
from anytime.support.files import atomic_write
from anytime.support.folders import LOSSES, check_file
from anytime.support.model_files import weights_of
from anytime.support.owned import check_own
from anytime.support.text import one_line
from anytime.training.logs import METRICS as METRICS_FILE


def training_losses(run: Path) -> list[float]:
    """-mean log softmax(z_t)_label of each exit over the unaugmented training images, in nats; cached in the run directory.

    Losses of other weights, and those of earlier versions, which did not say, are measured again.

    Raises:
        NotOurs: The file of the cache holds something else.
        ValueError: The run's model is damaged, or the cache is a pipe or a link out of the directory.
        UntrustedName: The run was not trained here, and its recipe names an import path.
    """
    path = run / LOSSES
    check_file(path)
    check_own(path)
    weights = weights_of(run)
    if path.is_file() and (content := read_limited(path, 2**24).strip(b"\0")):  # else its machine lost its power
        stored = parse_json(content, path)
        if isinstance(stored, dict) and stored["weights"] == weights:
            return [float(loss) for loss in stored["losses"]]
    model = load(run)
    data = trained_on(model, run=run)
    data.augment = "none"
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
    with atomic_write(path) as part:
        part.write_text(json.dumps({"weights": weights, "losses": (total / images).tolist()}) + "\n", encoding="utf-8")
    return (total / images).tolist()


def figure_2(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """Errors and training losses of weight schemes over the exits."""
    base = scale.chosen
    schemes = [net for net in networks if net.exit is None]
    errors = {net.method: measure(traces, net).exits for net in schemes}
    errors["optimal"] = measure_optimal(traces, base).exits
    losses: dict[str, list[float]] = {}
    for net in schemes:
        if net.method != "midfeat" and (folders := run_folders(traces, net)):
            losses[net.method] = means([training_losses(folder) for folder in folders.values()])
    claims = []
    if {"sieve", "half-end"} <= losses.keys():
        lower = [s < h for s, h in zip(losses["sieve"], losses["half-end"], strict=True)]
        claims.append(
            Claim(
                "the training loss is smaller with sieve than with half-end at almost all exits: at least 3/4",
                sum(lower) >= 0.75 * len(lower),
                {"smaller_at": [exit for exit, is_lower in enumerate(lower, 1) if is_lower]},
            )
        )
    numbers = heading("figure 2a to d: errors and training losses over units", traces, networks[0], data) | {
        "units": base.exits,
        "errors": errors,
        "training_losses": losses,
    }
    names = list(errors)  # a network has the same colour in all panels
    with panels(11 if losses else 7.6, 3.6, 3 if losses else 2) as (figure, grid):
        _over_units(grid[0], base.exits, errors, names, f"{base}, {numbers['dataset']}")
        _over_units(grid[1], base.exits[-4:], {name: row[-4:] for name, row in errors.items()}, names, "the end")
        for axes in grid[:2]:
            axes.set_ylabel("test error")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if losses:
            _over_units(grid[2], base.exits, losses, names, "training images")
            grid[2].set_ylabel("cross-entropy (nats)")
            grid[2].set_yscale("log")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=6)
    return Result(numbers, f"{len(errors)} networks, {len(losses)} of them with training losses", figure, claims)


def figure_2f(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """The sieve's weights of 15 exits, the last of which is 1."""
    weights = normalized(sieve(15), "last")
    with panels(5, 3) as (figure, [axes]):
        axes.stem(range(1, 16), weights, basefmt=" ")
        axes.set_xlabel("exit")
        axes.set_ylabel("weight of its loss")
    text = "\n".join(f"exit {exit:>2}: {weight:.4f}" for exit, weight in enumerate(weights, 1))
    return Result({"paper": PAPER, "figure": "2f: the sieve's weights of 15 exits", "weights": weights}, text, figure)


def _over_units(
    axes: Axes, units: Sequence[int], rows: Mapping[str, Sequence[float]], names: Sequence[str], title: str
) -> None:
    """Draws rows over units; the place of a row's name among `names` decides its colour."""
    for name, row in rows.items():
        index = names.index(name)
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linestyle": "-" if index < len(COLOURS) else DASHES}
        if name == "optimal":
            look = {"color": "#000000", "linestyle": "none", "marker": "*", "markersize": 9}
        known = [(unit, value) for unit, value in zip(units, row, strict=True) if not math.isnan(value)]
        axes.plot(*zip(*known, strict=True), label=name, **look)
    axes.set(xlabel="units", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def figure_2e(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """EANN over the cost, and over the cost divided by E[C], against OPT+."""
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
    numbers = heading("figure 2e: EANN and OPT+", traces, networks[0], data) | {
        "seed": seed,
        "mean_base": growth,
        "expected_inflation": inflation,
        "curves": {name: exits.step_curve() for name, (exits, _) in curves.items()},
        "cost_of_the_deepest": total,
    }
    with panels(4.6, 3.4) as (figure, [axes]):
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


def figure_3(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """The best error so far over the cost, by units per exit; first seed."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for units, periods in scale.periods.items():
        nets = {s: TrainedNet("sieve", Base(units, PERIOD_WIDTH, s)) for s in periods}
        curves[f"n={units}"] = {f"s={s}": Exits.of(first_trace(traces[net.name])).step_curve() for s, net in nets.items()}
    heads = heading("figure 3: error over cost by units per exit", traces, networks[0], data)
    with panels(0.6 + 3.6 * len(curves), 3.4, len(curves)) as (figure, grid):
        for axes, (name, by_period) in zip(grid, curves.items(), strict=True):
            for (period, curve), colour in zip(by_period.items(), COLOURS, strict=False):
                axes.plot(*curve, color=colour, label=period)
            _cost_axes(axes, f"{name} c={PERIOD_WIDTH}, {heads['dataset']}")
    return Result({**heads, "curves": curves}, f"{sum(map(len, curves.values()))} curves", figure)


def read_probabilities(run: Path) -> tuple[list[int], list[list[float]]]:
    """Training steps and the probability of every answer at each, from the metrics of a run.

    Raises:
        ValueError: The run logged none, or its table is damaged.
    """
    table = logged(run, "train/probability_1", "step")
    if not table:
        raise ValueError(f"{run / METRICS_FILE} holds no train/probability_1: the objective does not sample answers")
    names = [key for key in table[0][1] if key.startswith("train/probability_")]
    try:
        names.sort(key=lambda key: int(key.split("_")[1]))
        return [step for step, _ in table], [[row[name] for name in names] for _, row in table]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{run / METRICS_FILE} is damaged: {one_line(error)}") from error


def figure_4(traces: Traces, data: str, scale: Setting, networks: Sequence[TrainedNet]) -> Result:
    """The probability with which each exit is amplified, over the training; first seed."""
    logged = {}
    for net in networks:
        folders = run_folders(traces, net)
        if not folders:
            raise ValueError(f"figure 4 needs the metrics of run directories, and {net.name} has none")
        logged[net.method] = read_probabilities(next(iter(folders.values())))
    at_end = {method: rows[-1] for method, (_, rows) in logged.items()}
    claims = [
        Claim(
            f"{method} picks the last exit with more than half of the probability in the end",
            at_end[method][-1] > 0.5,
            {"probability": at_end[method][-1]},
            {"shows": True},
        )
        for method in ("EXP3", "RWM")
        if method in at_end
    ]
    if "AVGL" in at_end:
        average = means(logged["AVGL"][1])
        claims.append(
            Claim(
                "AVGL picks the last exit more often than any other, and less often than half, on average",
                average[-1] < 0.5 and average[-1] == max(average),
                {"probability": average[-1]},
                {"shows": True},
            )
        )
    numbers = heading("figure 4: probability of each exit over the training", traces, networks[0], data) | {
        "networks": [net.name for net in networks],
        "steps": {method: steps[:: max(1, len(steps) // 100)] for method, (steps, _) in logged.items()},
        "probabilities": {method: rows[:: max(1, len(rows) // 100)] for method, (_, rows) in logged.items()},
    }
    with panels(10.5, 3.2, len(logged)) as (figure, grid):
        shades = matplotlib.colormaps["viridis"]
        for axes, (method, (steps, rows)) in zip(grid, logged.items(), strict=True):
            exits = len(rows[0])
            colours = [shades(exit / max(1, exits - 1)) for exit in range(exits)]
            axes.stackplot(steps, *zip(*rows, strict=True), colors=colours, linewidth=0.3, edgecolor=GREY)
            axes.set(xlabel="training step", title=method)
            axes.set(xlim=(steps[0], max(steps[-1], steps[0] + 1)), ylim=(0, 1))
        grid[0].set_ylabel("probability, first exit below")
    return Result(numbers, "", figure, claims)
