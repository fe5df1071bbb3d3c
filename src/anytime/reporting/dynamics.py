"""Figures of the time course: the answer to one image as it grows, and the images that are decided first and last."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from torch import Tensor

from anytime.analysis.latency import Extremes
from anytime.reporting.plots import COLOURS, GREY, MARKERS, STYLE
from anytime.trace import Trace

__all__ = ["gallery", "time_course"]

_styled = matplotlib.rc_context(STYLE)
_CELL = 0.42  # inches of an image in a gallery


@_styled
def time_course(
    probabilities: Tensor,
    class_names: Sequence[str],
    *,
    macs: Sequence[float],
    seconds: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    top: int = 5,
    title: str = "",
) -> Figure:
    """The probabilities of one image's most likely classes over steps, MACs and, if they were measured, milliseconds.

    Each answer holds until the next, so lines are steps.

    Args:
        probabilities: `[T, K]`, one row for each answer.
        class_names: K names.
        macs: Multiply-adds spent until each answer, `[T]`.
        seconds: Seconds until each answer, `[T]`.
        steps: The number of each step. Default: 1..T.
        top: Number of classes: those with the largest probability at any step.
        title: What the image is.

    Raises:
        ValueError: The numbers of answers or of classes differ.
    """
    if probabilities.ndim != 2 or not len(probabilities) or probabilities.shape[1] != len(class_names):
        raise ValueError(f"probabilities must be [T, {len(class_names)}], got {list(probabilities.shape)}")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top!r}")
    count = len(probabilities)
    numbers = list(range(1, count + 1)) if steps is None else list(steps)
    panels: list[tuple[str, list[float]]] = [("step", [*map(float, numbers)]), ("cumulative MACs", list(macs))]
    if seconds is not None:
        panels.append(("measured ms", [1e3 * value for value in seconds]))
    for name, values in panels:
        if len(values) != count:
            raise ValueError(f"there are probabilities of {count} answers, but {len(values)} values of {name}")
    likely = probabilities.amax(0).topk(min(top, len(class_names))).indices
    shown = likely[probabilities[-1, likely].argsort(descending=True, stable=True)].tolist()
    figure = Figure(figsize=(2.6 * len(panels), 2.9), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        end = values[-1] + (values[-1] - values[0] or values[-1]) * 0.08
        for index, k in enumerate(shown):
            course = probabilities[:, k].tolist()
            look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "label": class_names[k]}
            axes.plot([*values, end], [*course, course[-1]], drawstyle="steps-post", markevery=range(count), **look)
        axes.set(xlabel=name, ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=name == "step"))
        if name == "cumulative MACs":
            axes.xaxis.set_major_formatter(EngFormatter())
    figure.axes[0].set_ylabel("probability")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(shown), 5))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


@_styled
def gallery(trace: Trace, images: Sequence[Tensor] | Tensor, chosen: Extremes, classes: Sequence[int] | None = None) -> Figure:
    """The fastest (left) and slowest (right) images of each class, with their selection latency; "never" if there is none.

    Args:
        trace: The answers.
        images: `[C, H, W]` in [0, 1], or uint8, for each sample of the trace, in its order; C = 1 or 3.
        chosen: What `analysis.latency.extremes` returned.
        classes: The classes to show, one row each. Default: all that have an image.

    Raises:
        ValueError: The trace has another number of samples than images, or no class has an image.
    """
    if len(images) != trace.num_samples:
        raise ValueError(f"the gallery needs an image for each of {trace.num_samples} samples, got {len(images)} images")
    rows = [k for k in (range(trace.num_classes) if classes is None else classes) if chosen.fastest[k]]
    if not rows:
        raise ValueError(f"none of the {trace.num_classes} classes has an image to show")
    count = max(len(chosen.fastest[k]) for k in rows)
    figure = Figure(figsize=(1.2 + _CELL * (2 * count + 1), 0.5 + (_CELL + 0.14) * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2 * count + 1, squeeze=False)
    steps, reached = chosen.latency.steps.tolist(), chosen.latency.reached.tolist()
    for cells, k in zip(grid, rows, strict=True):
        for axes in cells:
            axes.set_axis_off()
        for start, samples in ((0, chosen.fastest[k]), (count + 1, chosen.slowest[k])):
            for axes, i in zip(cells[start:], samples, strict=False):
                image = torch.as_tensor(images[i])
                image = image.float() / 255 if image.dtype == torch.uint8 else image.float().clamp(0, 1)
                pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(str(steps[i]) if reached[i] else "never", fontsize=6, loc="center", pad=1)
        cells[0].text(-0.15, 0.5, trace.class_names[k], transform=cells[0].transAxes, ha="right", va="center", fontsize=7)
    figure.supxlabel(
        f"fastest (left) and slowest (right) images; above each its selection latency in steps, threshold "
        f"{chosen.latency.threshold:.3g}, never reached by {chosen.latency.never:.1%}",
        fontsize=7,
        color=GREY,
    )
    return figure
