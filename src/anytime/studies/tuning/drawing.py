"""The figure of a search: what was tried, and how the metric depends on each option."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anytime.reporting.plots import BLUE, GREY
from anytime.studies.figures import panels
from anytime.studies.tuning.space import Choices, Space, Value

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LABEL = 28  # characters of a choice, and of a line of the metric's name


def draw(trials: Sequence[FrozenTrial], space: Space, metric: str, better: Callable[..., Any]) -> Figure:
    """The metric over the number of the set, with the best so far, and over each option.

    Finished trainings are dots; those that were ended early are crosses at their last value.

    Args:
        trials: What has been tried; at least one has finished.
        space: The options.
        metric: Its name.
        better: `min` or `max`.
    """
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    ended = [trial for trial in trials if trial.state.name == "PRUNED" and trial.intermediate_values]
    with panels(0.6 + 2.7 * (1 + len(space)), 2.9, 1 + len(space), share_y=True) as (figure, grid):
        _dots(grid[0], [trial.number for trial in done], [trial.number for trial in ended], done, ended)
        best = list(accumulate((trial.value for trial in done), better))
        grid[0].plot([trial.number for trial in done], best, color=BLUE, drawstyle="steps-post", linewidth=1)
        grid[0].set(xlabel="set", ylabel=textwrap.fill(metric, LABEL), title="chosen on validation")
        grid[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes, (key, part) in zip(grid[1:], space.items(), strict=True):
            x, x_ended = ([trial.params[key] for trial in group] for group in (done, ended))
            if isinstance(part, Choices):
                names = [_text(value) for value in part.values]
                x, x_ended = ([names.index(_text(value)) for value in values] for values in (x, x_ended))
                axes.set_xticks(range(len(names)), [name[:LABEL] for name in names])
                axes.margins(x=0.2)
            elif part.kind == "log":
                ends = part.low, math.sqrt(part.low * part.high), part.high
                axes.set(xscale="log", xlim=(part.low, part.high))
                axes.set_xticks(ends, [f"{end:.2g}" for end in ends])
                axes.minorticks_off()
            _dots(axes, x, x_ended, done, ended)
            axes.set_xlabel(key)
    return figure


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _dots(
    axes: Axes, x: Sequence[float], x_ended: Sequence[float], done: Sequence[FrozenTrial], ended: Sequence[FrozenTrial]
) -> None:
    values: list[Any] = [trial.value for trial in done]
    last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in ended]
    axes.plot(x_ended, last, color=GREY, marker="x", markersize=4, linestyle="none", alpha=0.7)
    axes.plot(x, values, color=BLUE, marker="o", markersize=4, linestyle="none")
