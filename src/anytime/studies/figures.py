"""Drawings of studies: ours solid, the paper's dashed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from anytime.analysis.speed_accuracy import SpeedAccuracy
from anytime.reporting.plots import BLUE, DASHES, GREY, STYLE

_PAPER: dict[str, Any] = {"linestyle": DASHES, "linewidth": 1.0, "alpha": 0.75}


def points(
    means: Mapping[float, float],
    errors: Mapping[float, float],
    published: Mapping[float, float],
    title: str,
    x: str,
    y: str,
) -> Figure:
    """Shares over one number that was varied, with standard errors; those of a single seed are not known (nan)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
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
    """Accuracy over the mean stop time, and over what it costs here: MACs and milliseconds."""
    with matplotlib.rc_context(STYLE):
        timed = all(curve.seconds is not None for curve in curves.values())
        figure = Figure(figsize=(10.5 if timed else 7.4, 3.9), layout="constrained")
        panels = figure.subplots(1, 3 if timed else 2, sharey=True)
        for name, curve in curves.items():
            look = {"color": colours[name], "label": name}
            panels[0].plot(curve.time.tolist(), curve.accuracy.tolist(), **look)
            panels[1].plot(curve.macs.tolist(), curve.accuracy.tolist(), **look)
            if timed and curve.seconds is not None:
                panels[2].plot((1e3 * curve.seconds).tolist(), curve.accuracy.tolist(), **look)
            if name in published:
                panels[0].plot(*published[name], color=colours[name], **_PAPER)
        panels[0].set(xlabel="mean stop time in (simulated) parallel steps", ylabel="accuracy", title=title)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].set_xlabel("mean MACs per sample (interruptible)")
        panels[1].xaxis.set_major_formatter(EngFormatter())
        if timed:
            panels[2].set_xlabel("mean median ms of a stream, batch of 1")
        for panel in panels:
            panel.set_xlim(left=0)
        handles, labels = panels[0].get_legend_handles_labels()
        if published:
            handles.append(Line2D([], [], color=GREY, **_PAPER))
            labels.append("the paper's")
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
    return figure


@dataclass(frozen=True)
class Line:
    """A line with markers at its points.

    Args:
        name: In the legend.
        x: Of the points.
        y: Of the points.
        colour: Of the line.
        dashed: Trained alone.
        published: The paper's: crosses without a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False
    published: bool = False


def error_lines(panels: Mapping[str, Sequence[Line]], title: str) -> Figure:
    """Errors in one panel for each label of the x-axis; where the label names MACs, in thousands and millions."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 3.7 * len(panels), 3.4), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, lines) in zip(grid, panels.items(), strict=True):
            for line in lines:
                style = "none" if line.published else DASHES if line.dashed else "-"
                marker = "x" if line.published else "o"
                axes.plot(line.x, line.y, label=line.name, color=line.colour, linestyle=style, marker=marker)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            if "MACs" in label:
                axes.xaxis.set_major_formatter(EngFormatter())
        grid[0].set(ylabel="error", title=title)
        grid[0].yaxis.set_major_formatter(PercentFormatter(1))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2 * len(panels))
    return figure
