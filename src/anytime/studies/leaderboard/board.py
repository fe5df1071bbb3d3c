"""The table and figure of the leaderboard; networks that are not trained yet are named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, PercentFormatter

from anytime.analysis.area import log_area
from anytime.analysis.statistics import mean, means
from anytime.cost import hardware
from anytime.reporting.tables import Column, format_table
from anytime.studies.figures import panels
from anytime.studies.leaderboard.networks import MOST_PARAMETERS, MOST_SECONDS, NETWORKS, Network
from anytime.studies.leaderboard.rows import EarlierRows, Row, images_of_trace, row_of
from anytime.studies.runner import StoredTraces, Traces
from anytime.studies.study import Result
from anytime.studies.timing import ROUNDS, build, one_thread_seconds
from anytime.support.units import macs_text, ms_text

LOW, HIGH = 1e6, 2e8  # MACs between which the area is taken


def leaderboard(traces: Traces, data: str, kept: EarlierRows | None = None) -> Result:
    """Every trained network: accuracy over MACs and milliseconds, area, training time, and where static networks are better.

    Args:
        traces: Those of the trainings that are here.
        data: The data set.
        kept: Rows of an earlier table, for the other trainings.

    Raises:
        ValueError: No network is trained yet, or the earlier rows are of other images.
    """
    kept = kept or EarlierRows()
    found = [row for net in NETWORKS if (row := _row(net, traces, kept.rows.get(net.name)))]
    missing = [net.name for net in NETWORKS if net.name not in {row.network for row in found}]
    if not found:
        raise ValueError("the leaderboard has no row: none of its networks is trained yet")
    judged = [images_of_trace(traces[name]) for name in list(traces)[:1]]
    judged += [kept.images] if kept.images and kept.rows else []
    images = judged[0]
    if judged[-1] != images:
        other = judged[-1]
        what = f"{images.dataset} ({images.images} images of {images.classes} classes)"
        raise ValueError(
            f"these trainings are of {what}, the earlier table of {other.dataset} ({other.images} images of {other.classes} "
            "classes); give another --out"
        )
    networks = {row.network: build(row.model, row.arguments, f"the row of {row.network}") for row in found}
    seconds = one_thread_seconds(networks, images.input_size)
    lines = [_line(row, seconds[row.network], images.classes) for row in found]
    best = [(line["macs"][-1], line["accuracy"][-1]) for line in lines if line["static"]]
    for line in lines:
        if not line["static"] and best:
            line["below_static"] = _beaten(line["macs"], line["accuracy"], best)
    lines.sort(key=lambda line: -line["area"])
    trainings = [training for row in found for training in row.trainings]
    numbers = asdict(images) | {
        "seeds": sorted({training.seed for training in trainings}),
        "epochs": sorted({int(row.recipe["epochs"]) for row in found}),
        "trained_on": sorted({training.trained_on for training in trainings}),
        "measured_on": sorted({training.measured_on for training in trainings}),
        "date": max(training.date for training in trainings),
        "source": "recipes/leaderboard_cifar10.yaml for all networks; `flags` are what each has over it",
        "most_parameters": MOST_PARAMETERS,
        "most_training_seconds_at_fast_scale": MOST_SECONDS,
        "area": {"formula": "1 / ln(high / low) * integral of accuracy(macs) dmacs / macs", "low": LOW, "high": HIGH},
        "milliseconds": f"batch 1, 1 thread, median of {ROUNDS} rounds over all networks",
        "timed_on": hardware(torch.device("cpu")).rpartition(",")[0] + ", 1 thread",
        "not_trained_yet": missing,
        "rows": lines,
    }
    several = sorted({len(row.trainings) for row in found})
    title = f"{images.dataset}, n = {' to '.join(map(str, several[:: max(1, len(several) - 1)]))}"
    return Result(numbers, _text(lines, missing, numbers["timed_on"]), _drawn(lines, title))


def _row(net: Network, traces: Traces, kept: Row | None) -> Row | None:
    """The row of a network: its trainings that are here, and of the others those that were kept; None if there are none."""
    if net.name not in traces:
        return kept
    folders = traces.folders(net.name) if isinstance(traces, StoredTraces) else {}
    row = row_of(net, traces[net.name], folders)
    return row.with_trainings_of(kept) if kept else row


def _line(row: Row, seconds: Sequence[float], classes: int) -> dict[str, Any]:
    """A row as JSON holds it: what was measured, and means over seeds."""
    net = next(net for net in NETWORKS if net.name == row.network)
    found = [training.accuracy for training in row.trainings]
    areas = [log_area(row.macs, values, LOW, HIGH, 1 / classes) for values in found]
    more = {"seconds": seconds, "accuracy": means(found), "area": mean(areas)}
    for key in ("training_seconds", "images_per_second"):
        here = [training for training in row.trainings if training.trained_on == row.trainings[0].trained_on]
        known = [value for training in here if (value := getattr(training, key)) is not None]
        more |= {key: mean(known)} if known else {}
    return asdict(row) | {"flags": net.flags, "static": net.static} | more


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
        line["seeds"] = len(row["trainings"])
        line["minutes"] = row["training_seconds"] / 60 if "training_seconds" in row else None
        line["over"] = "over 15 min" if over else None
        for place, t in ends.items():
            line[place] = f"{row['accuracy'][t]:.1%} at {macs_text(row['macs'][t])}, {ms_text(row['seconds'][t])} ms"
        lines.append(line)
    columns = [Column("network", "network"), Column("area", "area", ".4f"), Column("parameters", "parameters", _millions)]
    columns += [Column("seeds", "seeds"), Column("answers", "answers")]
    columns += [Column(place, f"{place} answer") for place in ("first", "middle", "last")]
    columns += [Column("below_static", "below static"), Column("minutes", "training min", ".1f")]
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
