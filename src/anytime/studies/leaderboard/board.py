"""The table and figure of the leaderboard, from traces; networks that are not trained yet are named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, PercentFormatter

from anytime.analysis.area import log_area
from anytime.analysis.curves import accuracy
from anytime.analysis.statistics import BySeed, costs_of, first_trace, mean, means, per_seed
from anytime.cost import hardware
from anytime.reporting.tables import Column, format_table
from anytime.studies.facts import facts, figure_title
from anytime.studies.figures import panels
from anytime.studies.leaderboard.networks import MOST_PARAMETERS, MOST_SECONDS, NETWORKS, Network
from anytime.studies.leaderboard.timing import ROUNDS, one_thread_seconds
from anytime.studies.runner import StoredTraces, Traces
from anytime.studies.study import Result
from anytime.support.units import macs_text, ms_text
from anytime.training.rundir import read_run

LOW, HIGH = 1e6, 2e8  # MACs between which the area is taken


def leaderboard(traces: Traces, data: str) -> Result:
    """Every trained network: accuracy over MACs and milliseconds, area, training time, and where static networks are better.

    Raises:
        ValueError: No network is trained yet.
    """
    trained = {net.name: traces[net.name] for net in NETWORKS if net.name in traces}
    missing = [net.name for net in NETWORKS if net.name not in traces]
    if not trained:
        raise ValueError("the leaderboard has no row: none of its networks is trained yet")
    seconds = one_thread_seconds({name: first_trace(by_seed) for name, by_seed in trained.items()})
    rows = [_row(net, trained[net.name], seconds[net.name]) for net in NETWORKS if net.name in trained]
    for row, times in zip(rows, (_training(traces, row["network"]) for row in rows), strict=True):
        row |= times
    best = [(row["macs"][-1], row["accuracy"][-1]) for row in rows if row["static"]]
    for row in rows:
        if not row["static"] and best:
            row["below_static"] = _beaten(row["macs"], row["accuracy"], best)
    rows.sort(key=lambda row: -row["area"])
    numbers = _heading(next(iter(trained.values()))) | {
        "source": "recipes/leaderboard_cifar10.yaml for all networks; `flags` are what each has over it",
        "most_parameters": MOST_PARAMETERS,
        "most_training_seconds_at_fast_scale": MOST_SECONDS,
        "area": {"formula": "1 / ln(high / low) * integral of accuracy(macs) dmacs / macs", "low": LOW, "high": HIGH},
        "milliseconds": f"batch 1, 1 thread, median of {ROUNDS} rounds over all networks",
        "timed_on": hardware(torch.device("cpu")).rpartition(",")[0] + ", 1 thread",
        "not_trained_yet": missing,
        "rows": rows,
    }
    return Result(numbers, _text(rows, missing, numbers["timed_on"]), _drawn(rows, figure_title(numbers)))


def _heading(by_seed: BySeed) -> dict[str, Any]:
    """Facts that hold for all rows: model and loss differ."""
    found = facts(by_seed)
    return found | {"recipe": {key: found["recipe"][key] for key in ("data",) if key in found["recipe"]}}


def _row(net: Network, by_seed: BySeed, seconds: Sequence[float]) -> dict[str, Any]:
    trace = first_trace(by_seed)
    macs, found = costs_of(by_seed, "macs"), per_seed(accuracy, by_seed)
    return {
        "network": net.name,
        "model": net.model,
        "arguments": net.arguments,
        "flags": net.flags,
        "static": net.static,
        "parameters": trace.meta["parameters"],
        "seeds": list(by_seed),
        "epochs": trace.meta["recipe"]["epochs"],
        "macs": macs,
        "seconds": seconds,
        "accuracy": means(found),
        "area": mean([log_area(macs, values, LOW, HIGH, 1 / trace.num_classes) for values in found]),
        "by_seed": found,
    }


def _training(traces: Traces, name: str) -> dict[str, Any]:
    """Mean training time and speed over seeds, of trainings that were never interrupted; empty if there are none."""
    folders: Mapping[int, Path] = traces.folders(name) if isinstance(traces, StoredTraces) else {}
    states = [read_run(folder)[1] for folder in folders.values()]
    known = [state["training"] for state in states if state.get("training")]
    if not known:
        return {}
    keys = {"seconds": "training_seconds", "images_per_second": "images_per_second"}
    found = {new: mean([training[key] for training in known]) for key, new in keys.items()}
    return {**found, "trained_on": sorted({state["hardware"] for state in states})}


def _beaten(macs: Sequence[float], values: Sequence[float], static: Sequence[tuple[float, float]]) -> int:
    """How many answers are less accurate than a static network of at most their cost."""
    best = [max((a for cost, a in static if cost <= spent), default=-math.inf) for spent in macs]
    return sum(value < other for value, other in zip(values, best, strict=True))


def _text(rows: Sequence[Mapping[str, Any]], missing: Sequence[str], machine: str) -> str:
    lines = []
    for row in rows:
        last = len(row["macs"]) - 1
        ends = {"first": 0, "middle": last // 2, "last": last} if last else {"last": 0}
        line: dict[str, Any] = {key: row.get(key) for key in ("area", "parameters", "below_static")}
        over = row.get("training_seconds", 0) > MOST_SECONDS
        line |= {"network": row["network"] + (" (static)" if row["static"] else ""), "answers": last + 1}
        line["minutes"] = row["training_seconds"] / 60 if "training_seconds" in row else None
        line["over"] = "over 15 min" if over else None
        for place, t in ends.items():
            line[place] = f"{row['accuracy'][t]:.1%} at {macs_text(row['macs'][t])}, {ms_text(row['seconds'][t])} ms"
        lines.append(line)
    columns = [Column("network", "network"), Column("area", "area", ".4f"), Column("parameters", "parameters", _millions)]
    columns += [Column("answers", "answers"), Column("first", "first answer"), Column("middle", "middle answer")]
    columns += [
        Column("last", "last answer"),
        Column("below_static", "below static"),
        Column("minutes", "training min", ".1f"),
    ]
    columns.append(Column("over", ""))
    notes = [
        f"area: mean accuracy for a budget of MACs whose logarithm is uniform between {macs_text(int(LOW))} and "
        f"{macs_text(int(HIGH))}; below static: answers that a static network of at most their MACs beats",
        f"milliseconds: batch 1, one thread, {machine}",
    ]
    if missing:
        notes.append(f"missing, because not trained yet: {', '.join(missing)}")
    return "\n".join([format_table(lines, columns), "", *notes])


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _drawn(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Accuracy over MACs and over milliseconds; static networks as crosses, and a dashed line through the best of them."""
    anytime = [row for row in rows if not row["static"]]
    static = [row for row in rows if row["static"]]
    palette = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    with panels(10.5, 4.8, 2, share_y=True) as (figure, grid):
        for axes, key, scale in zip(grid, ("macs", "seconds"), (1, 1e3), strict=True):
            for number, row in enumerate(anytime):
                x = [scale * value for value in row[key]]
                axes.plot(x, row["accuracy"], color=palette[number % 20], marker="o", markersize=3, label=row["network"])
            points = sorted((scale * row[key][-1], row["accuracy"][-1]) for row in static)
            best = [(x, y) for i, (x, y) in enumerate(points) if y > max((other for _, other in points[:i]), default=-1)]
            axes.plot(*zip(*points, strict=True), "kx", label="static networks") if points else None
            axes.step(*zip(*best, strict=True), "k--", where="post", linewidth=0.8) if best else None
            axes.set_xscale("log")
        grid[0].set(xlabel="MACs of the stream", ylabel="accuracy", title=title)
        grid[1].set_xlabel("median ms, batch of 1, one thread")
        grid[0].xaxis.set_major_formatter(EngFormatter())
        grid[1].xaxis.set_major_formatter(FormatStrFormatter("%g"))
        grid[0].yaxis.set_major_formatter(PercentFormatter(1))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure
