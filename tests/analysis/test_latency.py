"""Selection latency from a trace, the threshold for a share of never-selected samples, and the galleries."""

from dataclasses import replace

import pytest
import torch

from anytime.analysis.latency import extremes, latency, selected, threshold_for
from anytime.reporting import dynamics
from anytime.trace import Trace


def random_trace(samples: int = 200, steps: int = 5, classes: int = 3, seed: int = 0) -> Trace:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(steps, samples, classes, generator=generator).cumsum(0) * 2
    return Trace(
        logits=logits,
        labels=torch.arange(samples) % classes,
        macs=torch.arange(1, steps + 1) * 10,
        contract_macs=None,
        seconds=None,
        class_names=("ant", "bee", "cat")[:classes],
    )


def by_definition(probabilities: torch.Tensor, threshold: float) -> list[int]:
    """0 where there is no latency."""
    steps, samples, classes = probabilities.shape
    found = []
    for n in range(samples):
        stays = [
            t
            for t in range(steps)
            if any(all(probabilities[s, n, k] > threshold for s in range(t, steps)) for k in range(classes))
        ]
        found.append(min(stays) + 1 if stays else 0)
    return found


def test_selected_by_definition():
    probabilities = random_trace(40).logits.softmax(2)
    for threshold in (0.0, 0.4, 0.8, 0.99):
        steps, reached, classes = selected(probabilities, threshold)
        for n in range(40):
            stayed = (probabilities[steps[n] - 1 :, n] > threshold).all(0)
            if not reached[n]:
                assert classes[n] == -1
                continue
            assert stayed[classes[n]]
            assert probabilities[-1, n, classes[n]] == probabilities[-1, n, stayed].max()
        wanted = by_definition(probabilities, threshold)
        assert reached.tolist() == [w > 0 for w in wanted]
        assert steps.tolist() == [w or 5 for w in wanted]


@pytest.mark.parametrize("never", [0.0, 0.1, 0.35, 0.9])
def test_threshold_leaves_the_wanted_share(never):
    trace = random_trace()
    threshold = threshold_for(trace, never)
    last = trace.logits[-1].double().softmax(1).amax(1)
    assert int((last <= threshold).sum()) == round(never * 200)
    measured = latency(trace, never=never)
    assert measured.never == pytest.approx(never)
    assert measured.threshold == threshold
    assert (measured.steps[~measured.reached] == 5).all()  # ties at the end
    assert (measured.classes[~measured.reached] == -1).all()
    there = measured.reached
    if threshold >= 0.5:  # only one class can be above it
        assert torch.equal(measured.classes[there], trace.logits[-1].argmax(1)[there])


def test_the_class_is_the_one_that_stayed_above_the_threshold():
    """Another class may be above it at the end, even higher, but not for as long."""
    course = torch.tensor([[[0.45, 0.2, 0.35]], [[0.41, 0.2, 0.39]], [[0.41, 0.17, 0.42]]])
    trace = replace(random_trace(1, 3), outputs=course.log())
    found = latency(trace, 0.4)
    assert (found.steps.item(), found.classes.item()) == (1, 0)
    both = latency(trace, 0.3)  # both of them stay from the first step on
    assert (both.steps.item(), both.classes.item()) == (1, 2)


def test_threshold_of_equal_values_is_the_nearest_possible():
    trace = random_trace(10)
    logits = torch.zeros(5, 10, 3)
    logits[:, :4, 0], logits[:, 4:, 0] = 1.0, 60.0  # of six samples the probability is exactly 1
    same = replace(trace, outputs=logits)
    assert latency(same, never=0.1).never == 0.0
    assert latency(same, never=0.3).never == 0.4
    assert latency(same, never=0.9).never == 0.4  # 1 would be as near, but no threshold below 1 leaves all out


def test_labels_are_not_needed():
    trace = replace(random_trace(), labels=torch.full((200,), -1))
    assert latency(trace, 0.8).threshold == 0.8
    with pytest.raises(ValueError, match="none of the 200 samples of this trace has a label"):
        extremes(trace, latency(trace))


def test_bad_input(levels):
    trace = random_trace(steps=1)
    with pytest.raises(ValueError, match="a selection latency needs at least 2 steps, and this trace has 1"):
        latency(trace)
    with pytest.raises(ValueError, match="never is a share of the samples, at least 0 and below 1, got 1"):
        threshold_for(random_trace(), 1)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\), got 1.0"):
        latency(random_trace(), 1.0)
    with pytest.raises(ValueError, match=r"trace.level\(0\)"):
        latency(levels)
    with pytest.raises(ValueError, match="latencies of 200 samples, but the trace has 10"):
        extremes(random_trace(10), latency(random_trace()))
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, got 0"):
        extremes(random_trace(), latency(random_trace()), 0)


def test_extremes_are_ordered():
    trace = random_trace()
    measured = latency(trace, never=0.2)
    found = extremes(trace, measured, 4)
    mean = trace.logits.double().softmax(2).amax(2).mean(0)
    for k, (fast, slow) in enumerate(zip(found.fastest, found.slowest, strict=True)):
        mine = [n for n in range(200) if trace.labels[n] == k]
        key = {n: (not measured.reached[n], int(measured.steps[n]), -float(mean[n])) for n in mine}
        order = sorted(mine, key=key.__getitem__)
        assert fast == order[:4]
        assert slow == order[:-5:-1]
        assert not measured.reached[slow].any()
    without = extremes(trace, measured, 4, never=False)
    assert all(bool(measured.reached[slow].all()) for slow in without.slowest)


def test_gallery():
    trace = random_trace(12)
    found = extremes(trace, latency(trace, never=0.1), 2)
    figure = dynamics.gallery(trace, torch.rand(12, 3, 4, 4), found)
    figure.canvas.draw()
    assert len(figure.axes) == 3 * 5
    titles = [figure.axes[c].get_title() for c in (0, 1, 3, 4)]
    steps = ["never" if not found.latency.reached[i] else str(int(found.latency.steps[i])) for i in range(12)]
    assert titles == [steps[i] for i in found.fastest[0] + found.slowest[0]]
    one = dynamics.gallery(trace, (torch.rand(12, 1, 4, 4) * 255).byte(), found, classes=[1])
    assert one.axes[0].images[0].get_array().max() <= 1
    with pytest.raises(ValueError, match="an image for each of 12 samples, got 3 images"):
        dynamics.gallery(trace, torch.rand(3, 3, 4, 4), found)


def test_time_course():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]])
    figure = dynamics.time_course(probabilities, ["ant", "bee", "cat"], macs=[10, 30], seconds=[0.001, 0.004], top=2)
    figure.canvas.draw()
    step, macs, ms = figure.axes
    first = {line.get_label(): line for line in step.get_lines()}
    assert list(first) == ["bee", "ant"]  # by the last answer
    assert list(first["bee"].get_ydata()) == pytest.approx([0.3, 0.7, 0.7])
    assert list(first["bee"].get_xdata())[:2] == [1, 2]
    assert list(macs.get_lines()[0].get_xdata())[:2] == [10, 30]
    assert list(ms.get_lines()[0].get_xdata())[:2] == [1, 4]
    assert len(dynamics.time_course(probabilities, ["a", "b", "c"], macs=[1, 2]).axes) == 2
    assert len(dynamics.time_course(probabilities[:1], ["a", "b", "c"], macs=[1]).axes) == 2
    with pytest.raises(ValueError, match="probabilities of 2 answers, but 3 values of cumulative MACs"):
        dynamics.time_course(probabilities, ["a", "b", "c"], macs=[1, 2, 3])
    with pytest.raises(ValueError, match=r"must be \[T, 2\], got \[2, 3\]"):
        dynamics.time_course(probabilities, ["a", "b"], macs=[1, 2])
