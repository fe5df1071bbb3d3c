"""Drawings of the study of Lee and Shin 2018: errors over branches or MACs, and what each branch weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from anytime.plots import DASHES, STYLE


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


def norm_lines(norms: Mapping[str, Sequence[float]], colours: Mapping[str, str], title: str) -> Figure:
    """Norms of the branches 1..C of one block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for name, values in norms.items():
            axes.plot(range(1, len(values) + 1), values, label=name, color=colours[name], marker="o")
        axes.set(xlabel="branch", ylabel="l1 norm of its last convolution", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
    return figure
