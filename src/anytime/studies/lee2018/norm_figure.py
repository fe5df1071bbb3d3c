"""Drawing of the study of Lee and Shin 2018: what each branch weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anytime.reporting.plots import STYLE


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
