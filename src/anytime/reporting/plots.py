"""Figures of traces, ready for a paper: each function returns a matplotlib `Figure` and does not touch pyplot.

Costs are MACs per sample unless the axis is in ms; a stream's answer holds until the next one, so lines are steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from torch import Tensor

from anytime.analysis import calibration as calibrate
from anytime.analysis import curves
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.drawing import BLACK, BLUE, GREEN, GREY, GRID, INK, ORANGE, PALE, PURPLE, RED, SKY, WHITE, say
from anytime.support.text import printable
from anytime.support.units import macs_text, ms_text
from anytime.trace import Trace

__all__ = ["calibration", "compare", "growing_answer", "per_class", "speed_accuracy", "steps"]

COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX*"
PanelCost = Literal["macs", "seconds"]
DASHES = (0, (4, 3))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 160,
    "text.parse_math": False,  # names of classes and runs may hold dollar signs
}
_PANELS = 8
_COLUMNS = {column.key: column for column in STEP_COLUMNS}  # a page says of a point what its table says
_styled = matplotlib.rc_context(STYLE)  # a decorator: figures are drawn in this style


@_styled
def steps(trace: Trace, cost: PanelCost | None = None) -> Figure:
    """Accuracy, max softmax and probability of the correct class over the cost of the stream (Kim et al. 2020, Fig. 3).

    One panel over interruptible MACs and, if the trace holds seconds, one over measured milliseconds. In the shaded area on
    the left there is no answer yet.

    Args:
        trace: The answers.
        cost: The only panel to draw. Default: both.
    """
    lines = (
        ("accuracy", "accuracy", curves.accuracy(trace), BLUE, "-", "o"),
        ("confidence", "confidence (max softmax)", curves.confidence(trace), RED, "--", "s"),
        ("true_class_probability", "p(correct class)", curves.true_class_probability(trace), GREEN, ":", "D"),
    )
    figure, panels = _cost_panels([trace], "mean over samples", cost)
    for axes, cost in panels:
        x = _cost(trace, cost)
        for key, label, values, colour, style, marker in lines:
            line = _hold(axes, x, values, label=label, color=colour, linestyle=style, marker=marker)
            say(line, [f"{at}: {label} {_text(key, y)}" for at, y in zip(_steps(trace, cost), values.tolist(), strict=True)])
        axes.axvspan(0, float(x[0]), color=PALE, zorder=0, label="no answer yet")
        axes.set_xlim(0, float(x[-1]) * 1.06)
    return _legend_above(figure)


@_styled
def speed_accuracy(trace: Trace, rules: Mapping[str, Sequence[tuple[float, float]]] | None = None) -> Figure:
    """Accuracy over mean MACs: stopping each sample at a confidence threshold, against stopping all samples at one step.

    Args:
        trace: The answers.
        rules: Mean MACs and accuracy of other stopping rules on the same answers, one line each.
    """
    curve, fixed = curves.threshold_curve(trace), curves.accuracy(trace)
    figure = Figure(figsize=(4.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    line, points = (curve.macs.tolist(), curve.accuracy.tolist()), (trace.macs.tolist(), fixed.tolist())
    unseen: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": "none"}
    (drawn,) = axes.plot(*line, color=BLUE, label="each sample stops at a confidence threshold", zorder=3, **unseen)
    stops = zip(curve.thresholds.tolist(), *line, strict=True)
    say(drawn, [f"confidence threshold {h:.3f}, {macs_text(x)} MACs on average: {_accuracy(y)}" for h, x, y in stops])
    for index, (name, reached) in enumerate((rules or {}).items()):
        ordered = sorted(reached)
        colour, marker = COLOURS[2 + index % (len(COLOURS) - 2)], MARKERS[index % len(MARKERS)]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "label": _label(name), "zorder": 3.5}
        (drawn,) = axes.plot(*zip(*ordered, strict=True), **look)
        say(drawn, [f"{name}, {macs_text(x)} MACs on average: {_accuracy(y)}" for x, y in ordered])
    (drawn,) = axes.plot(*points, color=RED, linestyle="", marker="s", label="all samples stop at one step", zorder=4)
    say(drawn, [f"all samples stop at {at}: {_accuracy(y)}" for at, y in zip(_steps(trace, "macs"), points[1], strict=True)])
    for step, (x, y) in enumerate(zip(*points, strict=True), 1):
        axes.annotate(str(step), (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7, color=RED)
    axes.axhline(float(fixed[-1]), color=GREY, linewidth=0.9, linestyle=DASHES, label="all steps for all samples")
    axes.margins(y=0.12)
    axes.set_xlim(left=0)
    _macs_axis(axes, "mean")
    _percent_axis(axes, "accuracy")
    return _legend_above(figure)


@_styled
def calibration(trace: Trace, bins: int = 15) -> Figure:
    """Reliability diagrams (Guo et al. 2017): accuracy per bin of max softmax, one panel per step, with the ECE.

    A bar is darker the more samples are in its bin; bars below the diagonal are overconfident.
    """
    reliable = calibrate.reliability(trace, bins)
    shown = _spread(trace.num_steps)
    figure, grid = _small_multiples(len(shown), "confidence (max softmax)", "accuracy")
    left = [index / bins for index in range(bins)]
    for axes, t in zip(grid, shown, strict=True):
        weight = (reliable.counts[t] / reliable.counts[t].max()).sqrt()
        colours = [(*to_rgb(BLUE), 0.2 + 0.8 * float(w)) for w in weight]
        height = reliable.accuracy[t].nan_to_num().tolist()
        bars = axes.bar(left, height, 1 / bins, align="edge", color=colours, edgecolor=WHITE, linewidth=0.5)
        for bar, low, y, count in zip(bars, left, height, reliable.counts[t].tolist(), strict=True):
            if count:
                say(bar, [f"step {t + 1}, confidence {low:.2f} to {low + 1 / bins:.2f}: {_accuracy(y)} of {count:,} samples"])
        axes.set_title(f"step {t + 1}: ECE {float(reliable.ece[t]):.3f}")
        _square(axes, 0)
    return figure


@_styled
def per_class(trace: Trace, confidence: str = "true") -> Figure:
    """Mean confidence against accuracy, one dot per class and one panel per step, with Pearson's r (Kim et al. 2020, Fig. 4).

    Args:
        trace: The answers.
        confidence: "true" for the probability of the correct class, as in the paper, or "max" for max softmax.
    """
    classes = calibrate.per_class(trace, confidence)  # type: ignore[arg-type]
    shown = _spread(trace.num_steps)
    name = "p(correct class)" if confidence == "true" else "confidence (max softmax)"
    figure, grid = _small_multiples(len(shown), f"{name}, class mean", "accuracy of the class")
    smallest = torch.stack([classes.confidence[shown], classes.accuracy[shown]]).nan_to_num(1).min()
    for axes, t in zip(grid, shown, strict=True):
        size = 22 if trace.num_classes <= 20 else 10
        x, y = classes.confidence[t].tolist(), classes.accuracy[t].tolist()
        dots = axes.scatter(x, y, s=size, color=BLUE, alpha=0.75, linewidths=0.4, edgecolors=WHITE, clip_on=False, zorder=3)
        there = (
            each for each in zip(trace.class_names, x, y, strict=True) if not math.isnan(each[2])
        )  # the others have no dot
        say(dots, [f"step {t + 1}, {known}: {name} {p:.3f}, {_accuracy(a)}" for known, p, a in there])
        r = float(classes.pearson[t])
        axes.set_title(f"step {t + 1}" if math.isnan(r) else f"step {t + 1}: r = {r:.2f}")
        _square(axes, min(0.9, math.floor(10 * float(smallest)) / 10))
    return figure


@_styled
def compare(traces: Mapping[str, Trace], cost: PanelCost | None = None) -> Figure:
    """Accuracy over interruptible MACs and over measured milliseconds side by side, one step line per trace.

    Traces without seconds are missing from the second panel, which is omitted if no trace has any.

    Args:
        traces: Traces by name.
        cost: The only panel to draw. Default: both.

    Raises:
        ValueError: `traces` is empty.
    """
    if not traces:
        raise ValueError("there is no trace to compare")
    figure, panels = _cost_panels(list(traces.values()), "accuracy", cost)
    for axes, cost in panels:
        spent = {name: _cost(trace, cost) for name, trace in traces.items() if cost == "macs" or trace.seconds is not None}
        end = max(float(x[-1]) for x in spent.values()) * 1.06
        for index, (name, trace) in enumerate(traces.items()):
            if name in spent:
                look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
                accuracy = curves.accuracy(trace)
                line = _hold(axes, spent[name], accuracy, until=end, label=_label(name), **look)
                found = zip(_steps(trace, cost), accuracy.tolist(), strict=True)
                say(line, [f"{name}, {at}: {_accuracy(y)}" for at, y in found])
        axes.set_xlim(0, end)
    return _legend_above(figure)


@_styled
def growing_answer(
    image: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str],
    *,
    macs: Sequence[int] | Tensor | None = None,
    seconds: Sequence[float] | Tensor | None = None,
    label: int | None = None,
    top: int = 5,
) -> Figure:
    """One image and the probabilities of its most likely classes, step by step.

    Args:
        image: `[C, H, W]` in [0, 1], C = 1 or 3.
        probabilities: `[T, K]`.
        class_names: K names.
        macs: Cumulative MACs `[T]` for the titles.
        seconds: Cumulative seconds `[T]` for the titles.
        label: The true class; its bar is green and its name bold.
        top: Number of classes: those with the largest probability at any step, including the true one.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != len(class_names):
        raise ValueError(f"probabilities must be [T, {len(class_names)}], got {list(probabilities.shape)}")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image must be [1, H, W] or [3, H, W], got {list(image.shape)}")
    peak = probabilities.amax(0)
    if label is not None:
        peak = peak.clone().index_fill_(0, torch.tensor([label]), 2.0)
    top_classes = peak.topk(min(top, len(class_names))).indices
    likely: list[int] = top_classes[probabilities[-1, top_classes].argsort(descending=True)].tolist()
    shown = _spread(len(probabilities), 7)
    height = 0.26 * len(likely)
    width = min(2 * height, height * image.shape[2] / image.shape[1])
    names = 0.08 * max(len(class_names[k]) for k in likely)
    figure = Figure(figsize=(width + names + 0.4 + 1.05 * len(shown), height + 0.9), layout="constrained")
    grid = figure.subplots(1, 1 + len(shown), width_ratios=[width, *[0.95] * len(shown)], squeeze=False)[0]
    pixels = image.permute(1, 2, 0).clamp(0, 1).squeeze(-1).numpy()
    grid[0].imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grid[0].set_axis_off()
    for axes, t in zip(grid[1:], shown, strict=True):
        best = int(probabilities[t].argmax())
        colours = [GREEN if k == label else RED if k == best and label is not None else SKY for k in likely]
        bars = axes.barh(range(len(likely)), probabilities[t, likely].tolist(), color=colours, height=0.72)
        for bar, k in zip(bars, likely, strict=True):
            say(bar, [f"step {t + 1}, {class_names[k]}: {float(probabilities[t, k]):.2%}"])
        axes.set(xlim=(0, 1), xticks=[0, 1], xticklabels=["0", "1"], ylim=(len(likely) - 0.5, -0.5))
        axes.set_yticks(
            range(len(likely)), [printable(class_names[k]) for k in likely] if t == shown[0] else [""] * len(likely)
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        costs = [f"{macs_text(float(macs[t]))} MACs"] if macs is not None else []
        costs += [f"{ms_text(float(seconds[t]))} ms"] if seconds is not None else []
        axes.set_title("\n".join([f"step {t + 1}", *costs]), fontsize=7.5)
    for text, k in zip(grid[1].get_yticklabels(), likely, strict=True):
        text.set_fontweight("bold" if k == label else "normal")
    figure.supxlabel("probability", fontsize=8)
    return figure


def file_kind(path: Path) -> str:
    """The file format that a name ends with, such as "png" for "curve.PNG"."""
    return path.suffix.removeprefix(".").lower()


def file_kinds() -> list[str]:
    """File formats that a figure can be saved in, as extensions without the dot."""
    return sorted(Figure().canvas.get_supported_filetypes())


def _cost(trace: Trace, cost: PanelCost) -> Tensor:
    """`[T]` in the unit of the axis: MACs, or milliseconds."""
    return curves.costs(trace, cost).double() * (1e3 if cost == "seconds" else 1)


def panel_costs(traces: Iterable[Trace]) -> tuple[PanelCost, ...]:
    """The costs over which traces are drawn, a panel each."""
    return ("macs", "seconds") if any(trace.seconds is not None for trace in traces) else ("macs",)


def _cost_panels(traces: Sequence[Trace], label: str, only: PanelCost | None) -> tuple[Figure, list[tuple[Axes, PanelCost]]]:
    costs = (only,) if only else panel_costs(traces)
    figure = Figure(figsize=(7.2 if len(costs) > 1 else 4.2, 3.0), layout="constrained")
    grid = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    _percent_axis(grid[0], label)
    for axes, cost in zip(grid, costs, strict=True):
        if cost == "macs":
            _macs_axis(axes, "cumulative")
        else:
            batches = sorted({int(trace.meta.get("seconds_batch", 1)) for trace in traces if trace.seconds is not None})
            axes.set_xlabel(f"cumulative median ms, batch of {' or '.join(map(str, batches))}")
            axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, list(zip(grid, costs, strict=True))


def _steps(trace: Trace, cost: PanelCost) -> list[str]:
    """What a page calls each step, such as `step 2, 1.200 M MACs`."""
    unit = {"macs": "MACs", "seconds": "ms"}[cost]
    return [f"step {t}, {_text(cost, value)} {unit}" for t, value in enumerate(curves.costs(trace, cost).tolist(), 1)]


def _text(key: str, value: float) -> str:
    return _COLUMNS[key].text({key: value})


def _accuracy(value: float) -> str:
    return f"accuracy {_text('accuracy', value)}"


def _label(name: str) -> str:
    """A name as the label of a line; matplotlib leaves out of its legend what begins with an underscore."""
    return printable(f" {name}" if name.startswith("_") else name)


def _macs_axis(axes: Axes, statistic: str) -> None:
    axes.set_xlabel(f"{statistic} MACs per sample (interruptible)")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter())


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}%"))


def _hold(axes: Axes, x: Tensor, y: Tensor, *, until: float | None = None, **look: Any) -> Artist:
    """A step line: each value holds until the next, and the last until the end."""
    end = float(x[-1]) * 1.06 if until is None else until
    values = [*y.tolist(), float(y[-1])]
    (line,) = axes.plot([*x.tolist(), end], values, drawstyle="steps-post", markevery=range(len(x)), **look)
    return line


def _legend_above(figure: Figure) -> Figure:
    """Adds one row if it fits, else as many equal columns as fit; at 8 points a letter is about 0.068 inches wide."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    widths = [0.068 * (len(label) + 6) for label in labels]
    room = figure.get_figwidth()
    columns = len(labels) if sum(widths) <= room else max(1, int(room / max(widths)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    return figure


def _spread(count: int, panels: int = _PANELS) -> list[int]:
    """At most `panels` of the steps 0..count-1, evenly spaced, including both ends."""
    if count <= panels:
        return list(range(count))
    return [round(index * (count - 1) / (panels - 1)) for index in range(panels)]


def _small_multiples(count: int, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """`count` panels with shared, labelled axes in at most two rows."""
    columns = count if count <= 4 else math.ceil(count / 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.5 + 1.75 * columns, 0.5 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[max(0, count - columns) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    return figure, grid[:count]


def _square(axes: Axes, low: float) -> None:
    """Makes the panel square, with both axes from `low` to 1 and the diagonal."""
    ticks = [low, (low + 1) / 2, 1]
    labels = [f"{tick:.3g}" for tick in ticks]
    axes.plot([low, 1], [low, 1], color=GREY, linewidth=0.9, linestyle=DASHES, zorder=1.5)
    axes.set(xlim=(low, 1), ylim=(low, 1), aspect="equal")
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
