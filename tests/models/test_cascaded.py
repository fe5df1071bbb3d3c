"""Cascaded and serial networks against a plain simulation that runs every block at every step, with queues as state."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anytime import convert, create_model, step_macs
from anytime.models.cascaded.conversion import calibrate
from anytime.models.cascaded.residual import ResidualNet
from anytime.models.cascaded.resnet import CascadedResNet
from anytime.testing import _randomise, check_anytime_model

CONTRACT_ARGUMENTS = {
    "cascaded_resnet18": {"width": 8},
    "cascaded_resnet34": {"width": 8},
    "cascaded_resnet50": {"width": 8},
    "serial_resnet18": {"width": 8},
    "serial_resnet34": {"width": 8},
    "serial_resnet50": {"width": 8},
}

SMALL = {"num_classes": 5, "width": 4}


def make(name: str = "cascaded_resnet18", **arguments) -> ResidualNet:
    torch.manual_seed(0)
    model = create_model(name, **SMALL | arguments)
    with torch.no_grad():
        _randomise(model)
    return model.double()


class Norms:
    """Batch norm with separate statistics for every layer and time, stored outside the model."""

    def __init__(self, model: ResidualNet, steps: int) -> None:
        self.training, self.stats = model.training, {}
        for name, module in model.named_modules():
            if hasattr(module, "running_mean"):
                lag = model.kernel.lag  # all inputs before it are equal and empty
                rows = torch.tensor([0 if t < lag else min(t, module.rows - 1) for t in range(steps)])
                self.stats[module] = name, module.running_mean[rows].clone(), module.running_var[rows].clone()

    def __call__(self, norm, x: Tensor, time: int) -> Tensor:
        _, mean, var = self.stats[norm]
        return F.batch_norm(x, mean[time], var[time], norm.weight, norm.bias, self.training, 0.1, norm.eps)


def residual(block, z: Tensor, time: int, norms: Norms) -> Tensor:
    for i, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
        z = norms(norm, conv(F.relu(z) if i else z), time)
    return z


def simulate(model: CascadedResNet, frames: Sequence[Tensor], weights: Sequence[float]) -> tuple[list[Tensor], Norms]:
    """Logits at t = 0, 1, ...; nothing is skipped. `weights` of the delay reach as far as the simulation."""
    norms = Norms(model, len(frames))
    history: list[list[Tensor]] = [[] for _ in range(len(model.blocks) + 1)]

    def delayed(k: int) -> Tensor:
        return sum(w * r for w, r in zip(weights, reversed(history[k]), strict=False))

    conv, norm, relu, pool = model.stem
    logits = []
    for time, frame in enumerate(frames):
        history[0].append(pool(relu(norms(norm, conv(model.normalize(frame)), time))))
        z = delayed(0)
        for k, block in enumerate(model.blocks, 1):
            history[k].append(residual(block, z, time, norms))
            z = F.relu(delayed(k) + block.shortcut(z))
        head = model.heads[min(time, len(model.heads) - 1)]
        logits.append(head(z.mean((2, 3))))
    return logits, norms


OSD, EWS = (0.0, 1.0), tuple(0.2 * 0.8**s for s in range(40))


@pytest.mark.parametrize("layout", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    ("kernel", "weights", "steps", "first"),
    [("osd", OSD, 9, 1), ("instant", (1.0,), 2, 0), ("ews", EWS, 6, 0), ((0.5, 0.25, 0.25), (0.5, 0.25, 0.25), 19, 0), 
     ((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5), 26, 2)],
    ids=["osd", "instant", "ews", "taps", "lagging-taps"],
)  # fmt: skip
def test_answers_are_those_of_the_simulation(layout, kernel, weights, steps, first) -> None:
    model = make(kernel=kernel, alpha=0.8, num_steps=steps, layout=layout).eval()
    x = torch.rand(2, 3, 13, 18, dtype=torch.float64)
    expected = torch.stack(simulate(model, [x] * (first + steps), weights)[0][first:])
    assert (model(x) - expected).abs().max() < 1e-12
    assert (torch.stack(list(model.stream(x))) - expected).abs().max() < 1e-12
    for step in range(1, steps + 1):
        assert (model(x, step=step) - expected[step - 1]).abs().max() < 1e-12


@pytest.mark.parametrize(("kernel", "weights", "first"), [("osd", OSD, 1), ("ews", EWS, 0), ((0.5, 0, 0.5), (0.5, 0, 0.5), 0)])
def test_frames(kernel, weights, first) -> None:
    """A frame seen now arrives with the next answer; repeating one image as frames gives that image's answers."""
    model = make(kernel=kernel, alpha=0.8).eval()
    frames = torch.rand(12, 2, 3, 9, 8, dtype=torch.float64)
    expected = torch.stack(simulate(model, [*frames, *frames[:first]], weights)[0][first:])
    assert (model(frames) - expected).abs().max() < 1e-12
    assert (torch.stack(list(model.stream(iter(frames)))) - expected).abs().max() < 1e-12
    if kernel == "osd":
        still = frames[:1].expand(9, -1, -1, -1, -1)
        assert (model(still) - model(still[0])).abs().max() < 1e-12


def test_a_disturbance_costs_only_what_it_changes() -> None:
    """Settled, disturbed for one step, settled again: no block runs on an unchanged input."""
    model = make().eval()
    a, b = torch.rand(2, 1, 3, 9, 8, dtype=torch.float64)
    runs: list[int] = []
    for k, block in enumerate(model.blocks, 1):
        block.convs[0].register_forward_hook(lambda *_, k=k: runs.append(k))
    seen = [*[a] * 11, b, *[a] * 11]
    state, answers, counts = model.initial_state(a), [], []
    for now, frame in enumerate(seen):
        if now and frame is not seen[now - 1]:
            state = model.observe(state, frame)
        runs.clear()
        logits, state = model.step(state)
        answers.append(logits)
        counts.append(len(runs))
    expected = simulate(model, [*seen, a], OSD)[0][1:]
    assert max((x - y).abs().max() for x, y in zip(answers, expected, strict=True)) < 1e-12
    assert counts == [0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_published_clock_is_one_step_early() -> None:
    model, late = make(clock="published").eval(), make().eval()
    late.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    expected = torch.stack(simulate(model, [x] * 9, OSD)[0])
    assert (model(x) - expected).abs().max() < 1e-12
    assert (torch.stack(list(model.stream(x))) - expected).abs().max() < 1e-12
    assert (model(x)[1:] - late(x)[:-1]).abs().max() < 1e-12
    assert torch.equal(model(x)[0], model.heads[0].bias.expand(2, 5))
    frames = torch.rand(9, 2, 3, 9, 8, dtype=torch.float64)
    expected = torch.stack(simulate(model, frames, OSD)[0])
    assert (model(frames) - expected).abs().max() < 1e-12
    assert (torch.stack(list(model.stream(frames.unbind()))) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("clock", ["asymptotic", "published"])
@pytest.mark.parametrize("heads", ["shared", "separate"])
@pytest.mark.parametrize("layout", ["cifar", "imagenet"])
def test_training_is_that_of_the_simulation(clock: str, heads: str, layout: str) -> None:
    """Three steps of SGD: logits, gradients, weights and every row of running statistics agree."""
    model = make(clock=clock, heads=heads, layout=layout).train()
    plain = copy.deepcopy(model)
    first = 0 if clock == "published" else 1
    for step in range(3):
        torch.manual_seed(step)
        x = torch.rand(3, 3, *((17, 18) if layout == "cifar" else (40, 33)), dtype=torch.float64)
        push = torch.randn(9, 3, 5, dtype=torch.float64)
        fast = model(x)
        heads_at = copy.copy(plain.heads)
        if first:
            plain.heads = torch.nn.ModuleList([heads_at[0], *heads_at])
        logits, norms = simulate(plain, [x] * (9 + first), OSD)
        plain.heads = heads_at
        slow = torch.stack(logits[first:])
        assert (fast - slow).abs().max() < 1e-10
        for net, out in ((model, fast), (plain, slow)):
            net.zero_grad()
            (out * push).sum().backward()
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() < 1e-10 * max(1, q.grad.abs().max()), name
        with torch.no_grad():
            for net in (model, plain):
                for p in net.parameters():
                    p -= 1e-3 * p.grad
            for module, (name, mean, var) in norms.stats.items():
                own = model.get_submodule(name)
                rows = range(1) if name.startswith("stem") else range(own.rows)
                for row in rows:
                    assert (own.running_mean[row] - mean[row]).abs().max() < 1e-12, (name, row)
                    assert (own.running_var[row] - var[row]).abs().max() < 1e-12, (name, row)
                module.running_mean.copy_(mean[: own.rows])
                module.running_var.copy_(var[: own.rows])


@pytest.mark.parametrize("clock", ["asymptotic", "published"])
@pytest.mark.parametrize("form", ["paper", "published"])
def test_serial_dynamics(form: str, clock: str) -> None:
    """Spec 2.5: which residuals take part at which step, written as a loop over all blocks at every step."""
    model = make("serial_resnet18", form=form, clock=clock).eval()
    x = torch.rand(2, 3, 13, 18, dtype=torch.float64)
    conv, norm, relu, pool = model.stem
    h = pool(relu(norm(conv(model.normalize(x)), 0)))
    stale, settled = [torch.zeros_like(h)], [h]
    for block in model.blocks:
        shortcut = block.shortcut(settled[-1])
        stale.append(F.relu(block.residual(stale[-1], (0,)) + shortcut))
        settled.append(F.relu(block.residual(settled[-1], (1,)) + shortcut))
    expected = []
    for time in range(model.first, model.first + 9):
        late = form == "published" and time < 9
        z, done = (stale[time], time) if late or not time else (settled[time - 1], time - 1)
        for block in model.blocks[done:] if time else ():
            z = F.relu(block.shortcut(z))
        expected.append(model.heads[0](z.mean((2, 3)) if time else z.new_zeros(2, 32)))
    assert (model(x) - torch.stack(expected)).abs().max() < 1e-12
    assert (torch.stack(list(model.stream(x))) - torch.stack(expected)).abs().max() < 1e-12
    for step in range(1, 10):
        assert (model(x, step=step) - expected[step - 1]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "arguments",
    [{"clock": "published"}, {"heads": "separate"}, {"kernel": "ews", "num_steps": 5}, {"kernel": "instant"}, 
     {"kernel": (0.25, 0.75), "num_steps": 9}, {"layout": "imagenet"}, {"num_steps": 4}],
    ids=str,
)  # fmt: skip
def test_contract_of_variants(arguments) -> None:
    check_anytime_model(create_model("cascaded_resnet18", num_classes=3, width=6, **arguments), (3, 16, 12), batch_size=2)


@pytest.mark.parametrize("more", [{"heads": "separate"}, {"clock": "published"}], ids=str)
def test_contract_of_serial_variants(more) -> None:
    check_anytime_model(
        create_model("serial_resnet18", num_classes=3, width=6, form="published", **more), (3, 16, 12), batch_size=2
    )


def test_parameters_and_work() -> None:
    """Spec 2.1 and 12.2: parameters, MACs of a block, block evaluations."""
    model = create_model("cascaded_resnet18", pool=True)
    assert sum(p.numel() for p in model.parameters()) == 11_172_170
    assert sum(p.numel() for p in create_model("serial_resnet18", num_classes=100).parameters()) == 11_218_340
    stem, read = 1_769_472, 5120
    blocks = [18_874_368, 18_874_368, 14_155_776, 18_874_368, 14_155_776, 18_874_368, 14_155_776, 18_874_368]
    projections = [0, 0, 524_288, 0, 524_288, 0, 524_288, 0]
    contract = step_macs(create_model("serial_resnet18", pool=True), (3, 32, 32), contract=True)
    assert contract[-1] == stem + sum(blocks) + sum(projections) + read == 140_186_624
    assert step_macs(model, (3, 32, 32), contract=True)[-1] == contract[-1]
    stream = step_macs(model, (3, 32, 32))
    exact = stem + sum(k * (f + s) for k, (f, s) in enumerate(zip(blocks, projections, strict=True), 1)) + 9 * read
    empty = stream[0] - stem - sum(projections) - read  # F_k(0), the same for all images
    assert stream[-1] == exact + empty
    assert empty < 0.06 * exact
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model.eval()(torch.rand(8, 3, 32, 32))
    assert counter.get_total_flops() // 2 == 8 * exact + empty


def test_relatives_share_their_weights() -> None:
    """Spec 2.6 and 3: the settled answers agree in every direction, whichever network was trained."""
    x = torch.rand(2, 3, 13, 18, dtype=torch.float64)
    cascaded = make().eval()
    settled = cascaded(x)[-1]
    for name, arguments in (
        ("serial_resnet18", {}),
        ("serial_resnet18", {"form": "published"}),
        ("cascaded_resnet18", {"kernel": "instant"}),
        ("cascaded_resnet18", {"heads": "separate"}),
        ("cascaded_resnet18", {"statistics": "shared"}),
        ("cascaded_resnet18", {"kernel": "ews", "alpha": 0.0}),
    ):
        other = convert(cascaded, name, **arguments).double().eval()
        assert (other(x)[-1] - settled).abs().max() < 1e-12, (name, arguments)
    serial = make("serial_resnet18").eval()
    again = convert(serial, "cascaded_resnet18").double().eval()
    assert (again(x)[-1] - serial(x)[-1]).abs().max() < 1e-12
    stale = convert(convert(serial, "serial_resnet18", form="published").eval(), "cascaded_resnet18").double()
    assert (stale(x)[-1] - serial(x)[-1]).abs().max() < 1e-12
    assert (stale(x)[:8] - convert(serial, "serial_resnet18", form="published").double()(x)[:8]).abs().max() > 1e-6


def test_ordinary_batch_norm_is_replicated() -> None:
    model, state = make(), {}
    for key, value in make("serial_resnet18").state_dict().items():
        running = key.endswith(("running_mean", "running_var"))
        state[key] = value[0] if running else value  # as nn.BatchNorm2d stores it
        if key.endswith("running_mean"):
            state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(3)
    model.load_state_dict(state)
    norm = model.blocks[4].norms[1]
    assert norm.rows == 6
    assert all(torch.equal(row, state["blocks.4.norms.1.running_mean"]) for row in norm.running_mean)


@pytest.mark.parametrize(("clock", "count"), [("asymptotic", 36), ("published", 35)])
def test_evaluations_of_blocks(clock: str, count: int) -> None:
    """Spec: K (K + 1) / 2, one fewer under the published clock; a plain simulation has 72. `stream` runs as many."""
    model, images = make(clock=clock).eval(), []
    for block in model.blocks:
        block.convs[0].register_forward_pre_hook(lambda _, given: images.append(len(given[0])))
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for answers in (lambda: model(x), lambda: list(model.stream(x))):
        images.clear()
        answers()
        assert sum(images) == 2 * count


def test_impossible_conversions_are_rejected() -> None:
    separate = make(heads="separate")
    with pytest.raises(ValueError, match="9 separate heads cannot become 1"):
        convert(separate, heads="shared")
    with pytest.raises(ValueError, match=r"has statistics of 2 uses .*, but 70 are .*settled network are not among them"):
        convert(make(num_steps=2), kernel="ews", statistics="per_step")
    with pytest.raises(ValueError, match="the weights of this cascaded_resnet18 do not fit: size mismatch"):
        convert(make(), width=5)


def test_smoothing_settles_at_the_serial_answer() -> None:
    """Spec 3 and 13.6: with the settled statistics it comes close; calibration gives each step separate statistics."""
    cascaded = make().eval()
    x = torch.rand(8, 3, 13, 18, dtype=torch.float64)
    smooth = convert(cascaded, kernel="ews", num_steps=120).double().eval()
    off = (smooth(x) - cascaded(x)[-1]).norm(dim=(1, 2)) / cascaded(x)[-1].norm()
    assert off[119] < off[20] / 100 < off[0] / 100
    own = convert(cascaded, kernel="ews", num_steps=120, statistics="per_step").double().eval()
    assert (own(x) - smooth(x)).abs().max() < 1e-10  # every step has the settled row
    calibrate(own, [x])
    first, second = own.blocks[3].norms[0].running_mean[:2]
    assert (first - second).abs().max() > 1e-6
    calibrate(settled := convert(cascaded, "serial_resnet18").double().eval(), [x])
    near = (own(x) - settled(x)[-1]).norm(dim=(1, 2)) / settled(x)[-1].norm()
    assert near[119] < 0.01


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cascaded_resnet18", {"alpha": 1.0}, r"alpha must lie in \[0, 1\), got 1.0"),
        ("cascaded_resnet18", {"alpha": -0.1}, r"alpha must lie in \[0, 1\), got -0.1"),
        ("cascaded_resnet18", {"kernel": "ema"}, "kernel must be 'instant', 'osd', 'ews' or a list of weights, got 'ema'"),
        ("cascaded_resnet18", {"kernel": (0, 0)}, r"must be finite numbers and not all 0, got \(0, 0\)"),
        ("cascaded_resnet18", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ("cascaded_resnet18", {"heads": "many"}, "heads must be one of 'shared', 'separate', got 'many'"),
        ("cascaded_resnet18", {"statistics": "own"}, "statistics must be one of 'per_step', 'shared', None, got 'own'"),
        ("cascaded_resnet18", {"clock": "wall"}, "clock must be one of 'asymptotic', 'published', got 'wall'"),
        ("serial_resnet18", {"clock": "wall"}, "clock must be one of 'asymptotic', 'published', got 'wall'"),
        ("serial_resnet18", {"form": "code"}, "form must be one of 'paper', 'published', got 'code'"),
        ("serial_resnet18", {"num_steps": 10}, r"num_steps of a serial network of 8 blocks must lie in 1..9, got 10"),
        ("serial_resnet18", {"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_bad_arguments(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)


def test_bad_frames_and_steps() -> None:
    model = make(heads="separate").eval()
    frames = torch.rand(10, 2, 3, 9, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="9 separate heads answer 9 times, not 10"):
        model(frames)
    with pytest.raises(ValueError, match="9 separate heads answer 9 times, not 10"):
        list(model.stream(iter(frames)))
    with pytest.raises(ValueError, match=r"a frame has shape \[2, 3, 9, 7\], the first had \[2, 3, 9, 8\]"):
        list(model.stream([frames[0], frames[1, ..., :7]]))
    with pytest.raises(ValueError, match="a SerialResNet answers to one image"):
        list(make("serial_resnet18").eval().stream(iter(frames)))
    with pytest.raises(ValueError, match="there are no frames"):
        model(frames[:0])


def test_a_kernel_that_does_not_sum_to_1_warns() -> None:
    with pytest.warns(UserWarning, match=r"sum to 0.75, not to 1: .* got \(0.5, 0.25\)"):
        create_model("cascaded_resnet18", kernel=(0.5, 0.25), width=2)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_is_preserved(layout: torch.memory_format) -> None:
    """Otherwise every block's first convolution would copy its input into the format of its weights."""
    model = create_model("cascaded_resnet18", **SMALL).eval().to(memory_format=layout)  # type: ignore[call-overload]
    same: list[bool] = []
    for block in model.blocks:
        block.convs[0].register_forward_pre_hook(lambda _, given: same.append(given[0].is_contiguous(memory_format=layout)))
    x = torch.rand(2, 3, 32, 32).contiguous(memory_format=layout)
    with torch.inference_mode():
        model(x)
        list(model.stream(x))
    assert len(same) == 8 + 36
    assert all(same)
