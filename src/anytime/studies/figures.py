"""Drawings of studies: our results solid, the paper's dashed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from anytime.analysis.curves import Cost
from anytime.analysis.speed_accuracy import GAP, SpeedAccuracy
from anytime.reporting.plots import BLUE, DASHES, GREY, STYLE

COST_LABELS: dict[Cost, str] = {"contract": "MACs of the sub-network alone", "macs": "MACs of the stream"}
_PAPER: dict[str, Any] = {"linestyle": DASHES, "linewidth": 1.0, "alpha": 0.75}


@contextlib.contextmanager
def panels(width: float, height: float, count: int = 1, share_y: bool = False) -> Iterator[tuple[Figure, list[Axes]]]:
    """A new figure, in inches, with `count` empty panels side by side; what is drawn inside `with` has the common style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, count, sharey=share_y, squeeze=False)[0])


def points(
    means: Mapping[float, float], errors: Mapping[float, float], published: Mapping[float, float], title: str, x: str, y: str
) -> Figure:
    """Shares over a number that was varied, with standard errors, which are unknown (nan) for a single seed."""
    with panels(4.2, 3.0) as (figure, [axes]):
        bars = [errors[value] for value in means]
        ours = "ours" if any(map(math.isnan, bars)) else "ours (± 1 SEM)"
        axes.errorbar(list(means), list(means.values()), bars, color=BLUE, marker="o", capsize=2.5, label=ours)
        if published:
            axes.plot(list(published), list(published.values()), color=BLUE, marker="x", label="the paper's", **_PAPER)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.margins(y=0.15)
        axes.legend(loc="best")
    return figure


def speed_accuracy(
    curves: Mapping[str, SpeedAccuracy],
    colours: Mapping[str, str],
    published: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
) -> Figure:
    """Accuracy over the mean stop time, and over its cost here: MACs and, where all curves have them, milliseconds.

    A line is interrupted between thresholds whose mean stop times are far apart (`GAP`).
    """
    timed = all(curve.seconds is not None for curve in curves.values())
    with panels(10.5 if timed else 7.4, 3.9, 3 if timed else 2, share_y=True) as (figure, grid):
        for name, curve in curves.items():
            gaps = ((curve.time.diff() > GAP).nonzero()[:, 0] + 1).tolist()
            spent = [curve.time, curve.macs, *([] if curve.seconds is None else [1e3 * curve.seconds])]
            for axes, x in zip(grid, spent, strict=False):
                broken = (numpy.insert(values.numpy(), gaps, math.nan) for values in (x, curve.accuracy))
                axes.plot(*broken, color=colours[name], label=name)
            if name in published:
                grid[0].plot(*published[name], color=colours[name], **_PAPER)
        grid[0].set(ylabel="accuracy", title=title)
        grid[0].yaxis.set_major_formatter(PercentFormatter(1))
        grid[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[1].xaxis.set_major_formatter(EngFormatter())
        costs = ("mean MACs per sample (interruptible)", "mean median ms of a stream, batch of 1")
        for axes, label in zip(grid, ("mean stop time in (simulated) parallel steps", *costs), strict=False):
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        handles, labels = grid[0].get_legend_handles_labels()
        if published:
            handles.append(Line2D([], [], color=GREY, **_PAPER))
            labels.append("the paper's")
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
    return figure


@dataclass(frozen=True)
class Curve:
    """A line with a marker at each point."""

    name: str  # in the legend
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False  # for sub-networks that were trained alone
    published: bool = False  # the paper's points: crosses without a line


def error_curves(by_label: Mapping[str, Sequence[Curve]], title: str) -> Figure:
    """Errors, one panel for each label of the x-axis; an axis of MACs has SI prefixes."""
    with panels(0.6 + 3.7 * len(by_label), 3.4, len(by_label), share_y=True) as (figure, grid):
        for axes, (label, curves) in zip(grid, by_label.items(), strict=True):
            for curve in curves:
                style = "none" if curve.published else DASHES if curve.dashed else "-"
                marker = "x" if curve.published else "o"
                axes.plot(curve.x, curve.y, label=curve.name, color=curve.colour, linestyle=style, marker=marker)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            if "MACs" in label:
                axes.xaxis.set_major_formatter(EngFormatter())
        grid[0].set(ylabel="error", title=title)
        grid[0].yaxis.set_major_formatter(PercentFormatter(1))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2 * len(grid))
    return figure
