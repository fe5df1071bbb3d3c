from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from anytime.analysis import curves
from anytime.reporting import plots
from anytime.trace import Trace


def make(steps: int = 3, classes: int = 4, timed: bool = True) -> Trace:
    generator = torch.Generator().manual_seed(steps)
    labels = torch.arange(40) % classes
    evidence = torch.linspace(0.5, 3, steps)[:, None, None] * torch.nn.functional.one_hot(labels, classes)
    return Trace(
        logits=torch.randn(steps, 40, classes, generator=generator) + evidence,
        labels=labels,
        macs=1_000_000 * torch.arange(1, steps + 1),
        contract_macs=None,
        seconds=torch.arange(1, steps + 1).double() / 1000 if timed else None,
        class_names=tuple(f"class {k}" for k in range(classes)),
    )


def draw(figure: Figure) -> Figure:
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("figure", [plots.steps, plots.speed_accuracy, plots.calibration, plots.per_class])
def test_figures_of_any_number_of_steps(figure, steps):
    panels = {plots.steps: 2, plots.speed_accuracy: 1}.get(figure, min(steps, 8))
    assert len(draw(figure(make(steps))).axes) == panels


def test_the_file_format_is_the_ending_in_any_case():
    for name, kind in (("a.png", "png"), ("a.PNG", "png"), ("b.x.Svg", "svg"), ("c", "")):
        assert plots.file_kind(Path(name)) == kind


def test_steps_hold_until_the_next_answer():
    trace = make()
    macs, milliseconds = draw(plots.steps(trace)).axes
    line = macs.get_lines()[0]
    assert line.get_drawstyle() == "steps-post"
    assert list(line.get_xdata())[:3] == [1e6, 2e6, 3e6]
    accuracy = curves.accuracy(trace).tolist()
    assert list(line.get_ydata()) == [*accuracy, accuracy[-1]]
    assert "MACs" in macs.get_xlabel()
    assert "interruptible" in macs.get_xlabel()
    assert list(milliseconds.get_lines()[0].get_xdata())[:3] == pytest.approx([1, 2, 3])
    assert len(draw(plots.steps(make(timed=False))).axes) == 1


def test_speed_accuracy_starts_and_ends_at_the_steps():
    trace = make()
    curve, points, _ = draw(plots.speed_accuracy(trace)).axes[0].get_lines()
    for index in (0, -1):
        assert curve.get_xdata()[index] == points.get_xdata()[index]
        assert curve.get_ydata()[index] == points.get_ydata()[index]


def test_compare_leaves_untimed_traces_out_of_the_second_panel():
    traces = {"fast": make(), "slow": make(5), "untimed": make(4, timed=False)}
    macs, milliseconds = draw(plots.compare(traces)).axes
    assert [len(axes.get_lines()) for axes in (macs, milliseconds)] == [3, 2]
    assert {line.get_xdata()[-1] for line in macs.get_lines()} == {5e6 * 1.06}
    assert len(draw(plots.compare({"untimed": traces["untimed"]})).axes) == 1
    with pytest.raises(ValueError, match="no trace"):
        plots.compare({})


def test_per_class_with_absent_classes_and_either_confidence():
    trace = make()
    draw(plots.per_class(replace(trace, labels=trace.labels.clamp(max=1)), "max"))
    with pytest.raises(ValueError, match="unknown confidence"):
        plots.per_class(trace, "entropy")


@pytest.mark.parametrize("channels", [1, 3])
def test_growing_answer(channels):
    probabilities = torch.tensor([[0.1, 0.2, 0.7, 0.0], [0.5, 0.2, 0.2, 0.1], [0.9, 0.05, 0.05, 0.0]])
    image = torch.rand(channels, 8, 12)
    figure = draw(
        plots.growing_answer(
            image,
            probabilities,
            ("ant", "bee", "cat", "dog"),
            macs=[1000, 2000, 3000],
            seconds=[0.001, 0.002, 0.003],
            label=3,
            top=3,
        )
    )
    assert len(figure.axes) == 4
    first = figure.axes[1]
    assert [name.get_text() for name in first.get_yticklabels()] == ["ant", "cat", "dog"]
    assert [bar.get_width() for bar in first.patches] == pytest.approx([0.1, 0.7, 0.0])
    assert first.get_title(loc="left") == "step 1\n1.000 k MACs\n1.00 ms"
    assert len(draw(plots.growing_answer(image, probabilities.repeat(4, 1), tuple("abcd"))).axes) == 8


def test_growing_answer_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"probabilities must be \[T, 2\], got \[3, 4\]"):
        plots.growing_answer(torch.rand(1, 8, 8), torch.rand(3, 4), ("a", "b"))
    with pytest.raises(ValueError, match=r"image must be .*got \[8, 8\]"):
        plots.growing_answer(torch.rand(8, 8), torch.rand(3, 2), ("a", "b"))
