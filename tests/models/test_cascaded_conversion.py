"""Statistics and heads record the delays they were trained under; a relative that cannot use them rejects them."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime import calibrate, convert, create_model
from anytime.model import select_samples
from anytime.models.cascaded.residual import ResidualNet
from anytime.testing import _randomise

BOTH = (0.5, 0.5)  # its blocks have as many rows as under a one-step delay


def make(name: str = "cascaded_resnet18", seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    arguments = {"num_classes": 5, "width": 4} | arguments
    model = create_model(name, **{key: value for key, value in arguments.items() if value is not None})
    with torch.no_grad():
        return _randomise(model).double().eval()


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def first_norm(model: ResidualNet, block: int) -> Any:
    return model.blocks[block].norms[0]


def test_rows_of_another_kernel_are_never_matched_by_index() -> None:
    source, x = make(), images(2, 3, 9, 8)
    for kernel in (BOTH, (0.0, 0.3, 0.7), (0.0, 0.0, 1.0)):
        other = convert(source, kernel=kernel)
        for block in (0, 3, 7):
            settled = first_norm(source, block).running_mean[-1]
            assert all(torch.equal(row, settled) for row in first_norm(other, block).running_mean), kernel
        assert (other(x)[-1] - source(x)[-1]).abs().max() < 1e-12
    back = convert(convert(source, kernel=BOTH), kernel="osd")
    assert torch.equal(first_norm(back, 3).running_mean[0], first_norm(source, 3).running_mean[-1])


def test_dense_networks_behave_alike() -> None:
    source, other = (make("cascaded_densenet", width=None, layers=(2, 1), growth=3, kernel=kernel) for kernel in ("osd", BOTH))
    other.load_state_dict(source.state_dict())
    settled = source.network.norm.running_mean[-1]
    assert all(torch.equal(row, settled) for row in other.network.norm.running_mean)
    x = images(2, 3, 8, 8)
    assert (other(x)[-1] - source(x)[-1]).abs().max() < 1e-12


def test_statistics_of_smoothing_fit_no_delay() -> None:
    smooth = make(kernel="ews", statistics="per_step", num_steps=6)
    for changes in ({"kernel": "osd"}, {"alpha": 0.8, "statistics": "per_step"}, {"statistics": "shared"}):
        with pytest.raises(ValueError, match=r"statistics of 6 uses under smoothing \(alpha 0.9\).* settled network"):
            convert(smooth, **{"num_steps": 6} | changes)
    longer = convert(smooth, num_steps=8, statistics="per_step")
    assert torch.equal(first_norm(longer, 2).running_mean[5], first_norm(longer, 2).running_mean[7])


@pytest.mark.parametrize(("trained", "used"), [(2, 9), (3, 9), (9, 2), (9, 1), (1, 9)])
def test_the_same_kernel_keeps_the_rows_of_its_times(trained: int, used: int) -> None:
    source, x = make(num_steps=trained), images(2, 3, 9, 8)
    other = make(seed=1, num_steps=used)
    other.load_state_dict(source.state_dict())
    both = min(trained, used)
    assert (other(x)[:both] - source(x)[:both]).abs().max() < 1e-12


@pytest.mark.parametrize("arguments", [{"kernel": "ews", "num_steps": 5}, {"statistics": "shared", "num_steps": 5}], ids=str)
def test_a_mixture_over_time_is_not_converted_without_a_warning(arguments: dict[str, Any]) -> None:
    mixed, x = make(**arguments), images(2, 3, 9, 8)
    mixed.train()(images(2, 3, 9, 8))
    for name, changes in (("serial_resnet18", {}), (None, {"kernel": BOTH, "statistics": "per_step"})):
        with pytest.warns(UserWarning, match="shared by all time steps under .* call anytime.calibrate") as caught:
            other = convert(mixed.eval(), name, **changes)
        assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="shared by all time steps"):
        make("serial_resnet18").load_state_dict(mixed.state_dict())
    same = convert(mixed, num_steps=7, **{"statistics": "per_step"})  # each time has the same row as before
    assert (same(x)[:5] - mixed(x)[:5]).abs().max() < 1e-12
    calibrate(other, [x])


def test_a_new_network_with_one_row_is_converted() -> None:
    convert(create_model("cascaded_resnet18", width=4, kernel="ews"), "serial_resnet18")
    dense, smooth = (create_model("cascaded_densenet", layers=(2, 1), growth=3, kernel=kernel) for kernel in ("osd", "ews"))
    dense.load_state_dict(smooth.state_dict())
    smooth.train()(torch.rand(2, 3, 8, 8))
    with pytest.warns(UserWarning, match="shared by all time steps under smoothing"):
        dense.load_state_dict(smooth.state_dict())


def test_short_networks_have_no_settled_statistics() -> None:
    short = make(num_steps=3)
    for name, changes in (("serial_resnet18", {}), (None, {"kernel": "instant"}), (None, {"statistics": "shared"})):
        with pytest.raises(ValueError, match="those of the settled network are not among them"):
            convert(short, name, **changes)


def test_separate_heads_belong_to_their_times() -> None:
    published = make(heads="separate", clock="published")
    for name, changes in (
        ("cascaded_resnet18", {"clock": "asymptotic"}),
        ("serial_resnet18", {"form": "published", "clock": "asymptotic"}),
        ("cascaded_resnet18", {"kernel": BOTH, "num_steps": 9, "clock": "published"}),
    ):
        with pytest.raises(ValueError, match=r"separate heads of .* from t = 0 on cannot answer to"):
            convert(published, name, **changes)
    serial = convert(published, "serial_resnet18", form="published", clock="published")
    x = images(2, 3, 9, 8)
    assert (serial(x)[-1] - published(x)[-1]).abs().max() < 1e-12


def test_weights_without_a_record_belong_to_a_one_step_delay() -> None:
    source = make()
    state = source.state_dict()
    del state["dynamics_text"]
    same, other = make(seed=1), make(seed=1, kernel=BOTH)
    same.load_state_dict(state)
    x = images(2, 3, 9, 8)
    assert torch.equal(same(x), source(x))
    other.load_state_dict(state)
    assert (other(x)[-1] - source(x)[-1]).abs().max() < 1e-12
    short = make(num_steps=3).state_dict()
    del short["dynamics_text"]
    with pytest.raises(ValueError, match="no record of the delays they were made under"):
        same.load_state_dict(short)


def test_a_change_of_precision_keeps_the_record() -> None:
    source = make(kernel=(0.0, 0.3, 0.7)).bfloat16()
    again = make(seed=1, kernel=(0.0, 0.3, 0.7)).bfloat16()
    again.load_state_dict(source.state_dict())
    assert torch.equal(first_norm(again, 2).running_var, first_norm(source, 2).running_var)
    assert convert(source, kernel="instant").heads[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", ["osd", "ews"])
@pytest.mark.parametrize("statistics", ["shared", "per_step"])
def test_calibration_is_the_mean_over_batches_and_steps(kernel: str, statistics: str) -> None:
    """Two batches give the midpoint between the results of each alone."""
    model = make(kernel=kernel, statistics=statistics, num_steps=5)
    a, b = images(4, 3, 9, 8), 0.2 * images(4, 3, 9, 8).flip(0) + 0.7
    running = []
    for batches in ([a], [b], [a, (b, torch.zeros(4))]):
        mixed = statistics == "shared"
        with pytest.warns(UserWarning, match="convert\\(model, statistics='per_step'\\)") if mixed else nullcontext():
            calibrate(model, batches)
        running.append([buffer.clone() for name, buffer in model.named_buffers() if "running" in name])
    for one, other, both in zip(*running, strict=True):
        assert (both - (one + other) / 2).abs().max() < 1e-10
    assert model.stem[1].momentum == 0.1
    if not mixed:
        with pytest.raises(ValueError, match="at least one batch"):
            calibrate(model, [])
    with pytest.raises(ValueError, match="this Linear has none"):
        calibrate(torch.nn.Linear(2, 2), [a])


@pytest.mark.parametrize("kernel", ["osd", "ews", (0.0, 0.3, 0.7)])
def test_in_training_each_frame_is_normalised_by_its_own_statistics(kernel: Any) -> None:
    model = make(kernel=kernel).train()
    frames = images(7, 4, 3, 9, 8) * torch.linspace(0.1, 1, 7, dtype=torch.float64)[:, None, None, None, None]
    states = []
    for answer in (lambda: model(frames), lambda: torch.stack(list(model.stream(iter(frames))))):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        states.append((answer(), model.stem[1].running_mean.clone()))
        model.load_state_dict(before)
    assert (states[0][0] - states[1][0]).abs().max() < 1e-10
    assert (states[0][1] - states[1][1]).abs().max() < 1e-12


@pytest.mark.parametrize("clock", ["asymptotic", "published"])
def test_images_that_change_now_and_then(clock: str) -> None:
    """Calling `observe` only when the image changes equals `stream` over all frames, under both clocks."""
    model = make(clock=clock)
    a, b = images(2, 2, 3, 9, 8)
    frames = [a] * 6 + [b] * 6 + [a] * 3
    expected = list(model.stream(iter(frames)))
    state = model.initial_state(a)
    for time, frame in enumerate(frames):
        if time and frame is not frames[time - 1]:
            state = model.observe(model.observe(state, 1 - frame), frame)  # if two arrive before one step, the later counts
        logits, state = model.step(state)
        assert (logits - expected[time]).abs().max() < 1e-12, time


def test_frames_in_one_tensor() -> None:
    model, frames = make(), images(4, 2, 3, 9, 8)
    assert (torch.stack(list(model.stream(frames))) - model(frames)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="a SerialResNet answers to one image"):
        make("serial_resnet18")(frames)
    with pytest.raises(TypeError, match="images must be a floating-point tensor in \\[0, 1\\], got str"):
        list(model.stream([frames[0], "a"]))


def test_a_new_image_must_have_the_shape_of_the_first() -> None:
    model, x = make(), images(2, 3, 8, 8)
    for steps in (0, 1, 3):
        state = model.initial_state(x)
        for _ in range(steps):
            _, state = model.step(state)
        for wrong in (images(2, 3, 9, 9), images(1, 3, 8, 8), images(3, 3, 8, 8)):
            with pytest.raises(ValueError, match=re.escape(f"has shape {list(wrong.shape)}, the first had [2, 3, 8, 8]")):
                model.observe(state, wrong)
        _, one = model.step(model.observe(select_samples(state, torch.tensor([1])), x[:1]))  # a batch that has shrunk
        assert len(one.inputs[0]) == 1


def trained_serially(**arguments: Any) -> ResidualNet:
    torch.manual_seed(0)
    model = create_model("serial_resnet18", num_classes=5, width=4, **arguments).double()
    for _ in range(3):
        model(images(8, 3, 9, 8))
    return model.eval()


def test_a_serial_network_learns_the_settled_statistics_of_its_last_block() -> None:
    """The published clock stops one step before they are needed; they are those that the asymptotic clock learns."""
    published = trained_serially(form="published", clock="published")
    asymptotic = trained_serially(form="published")
    assert (published.blocks[7].norms[1].running_mean[1] != 0).all()
    for name, wanted in asymptotic.named_buffers():
        if "running" in name:
            torch.testing.assert_close(published.get_buffer(name), wanted, rtol=0, atol=1e-12)
    x = images(2, 3, 9, 8)
    converted = convert(published, clock="asymptotic")
    assert (converted(x) - asymptotic(x)).abs().max() < 1e-12
    settled = convert(published, "cascaded_resnet18", clock="asymptotic")
    assert (settled(x)[-1] - asymptotic(x)[-1]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("arguments", "block"),
    [({"clock": "published"}, 8), ({"num_steps": 3}, 3), ({"form": "published", "clock": "published", "num_steps": 4}, 4)],
)
def test_a_block_that_never_ran_is_not_converted(arguments: dict[str, Any], block: int) -> None:
    model = trained_serially(**arguments)
    for name, changes in (("serial_resnet18", {}), ("cascaded_resnet18", {}), ("cascaded_resnet18", {"kernel": "ews"})):
        with pytest.raises(ValueError, match=f"block {block} never ran on its settled input in training"):
            convert(model, name, clock="asymptotic", **changes)
    same = create_model("serial_resnet18", num_classes=5, width=4, **arguments).double().eval()
    same.load_state_dict(model.state_dict())
    x = images(2, 3, 9, 8)
    assert torch.equal(same(x), model(x))


@pytest.mark.parametrize("clock", ["asymptotic", "published"])
def test_a_short_serial_network_stops_after_its_steps(clock: str) -> None:
    model = make("serial_resnet18", num_steps=3, clock=clock)
    state = model.initial_state(images(2, 3, 9, 8))
    for _ in range(3):
        _, state = model.step(state)
    with pytest.raises(ValueError, match="all 3 steps are done"):
        model.step(state)


def test_untrained_networks_are_converted() -> None:
    convert(create_model("serial_resnet18", width=4, clock="published"), clock="asymptotic")


def test_loaded_weights_share_no_memory() -> None:
    """Not even if they become the model's own: later training must change each row and head separately."""
    model = make(heads="separate")
    model.load_state_dict(make("serial_resnet18").state_dict(), assign=True)
    assert len({head.weight.data_ptr() for head in model.heads}) == 9
    assert all(buffer.is_contiguous() for buffer in model.buffers())


def test_conversion_does_not_change_pooling() -> None:
    with pytest.raises(ValueError, match="pool=True would make another function of these weights: the network does not pool"):
        convert(make(), pool=True)
    assert convert(make(), pool=False).stem.pools is False


def test_only_relatives_are_converted() -> None:
    with pytest.raises(ValueError, match="'ann' is not a relative of 'cascaded_resnet18': only residual networks"):
        convert(make(), "ann")
    from anytime.models.cascaded.resnet import CascadedResNet

    with pytest.raises(ValueError, match="built without create_model"):
        convert(CascadedResNet(width=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": "0.5"}, r"alpha must lie in \[0, 1\), got '0.5'"),
        ({"kernel": 0.5}, "kernel must be 'instant', 'osd', 'ews' or a list of weights, .* got 0.5"),
        ({"num_steps": 2.5}, "num_steps must be a whole number, got 2.5"),
        ({"width": 2.5}, "width must be a whole number, got 2.5"),
        ({"pool": "no"}, "pool must be one of True, False, None, got 'no'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("cascaded_resnet18", **{"width": 4} | arguments)
    if "num_steps" in arguments:
        with pytest.raises(ValueError, match=message):
            create_model("serial_resnet18", width=4, **arguments)
