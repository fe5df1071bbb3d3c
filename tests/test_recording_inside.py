"""`record` with features, layers and unknown labels, over every registered model."""

from __future__ import annotations

import ast
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, create_model
from anytime.registry import list_models
from anytime.trace import Trace, record

QUIET: dict[str, Any] = {"progress": False, "seconds": False}
SIZE = (3, 8, 8)


def small_arguments() -> dict[str, dict[str, Any]]:
    """As in tests/test_contract.py: what the tests of the families say."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((Path(__file__).parent / "models").glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONTRACT_ARGUMENTS":
                found |= ast.literal_eval(node.value)
    return found


ARGUMENTS = small_arguments()


def batches(samples: int = 5, size: tuple[int, int, int] = SIZE, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    images = torch.rand(samples, *size, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(samples) % 3
    return [(images[:3], labels[:3]), (images[3:], labels[3:])]


def affine(logits: Tensor, product: Tensor, added: Tensor | None) -> float:
    """The largest residual of logits = a * product + c * added + b_k, by least squares over a and c, given the biases b_k."""
    centred = [value.double() - value.double().mean(0) for value in (logits, product, added) if value is not None]
    columns = torch.stack([value.flatten() for value in centred[1:]], 1)
    if not columns.any():
        return float(centred[0].abs().max())
    fitted = columns @ torch.linalg.lstsq(columns, centred[0].flatten()[:, None], driver="gelsd").solution
    return float((centred[0].flatten() - fitted[:, 0]).abs().max())


@pytest.mark.parametrize("name", list_models())
def test_features_and_class_weights_give_the_answers(name, monkeypatch):
    """logits_t = a W_t f_t + b, plus what a model adds of logits_{t-1}, as `record` says: for every registered model."""
    monkeypatch.setattr("anytime.trace.recording.step_macs", lambda model, *_, **__: list(range(1, model.num_steps + 1)))
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, **ARGUMENTS.get(name, {}))
    for module in model.modules():
        if isinstance(module, nn.Linear):  # biases that differ, and no zero initialisation
            nn.init.normal_(module.weight, std=0.5)
    with torch.no_grad():
        for parameter in model.parameters():  # in a list, too: whatever starts the same everywhere, such as at zero
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.5 if parameter.ndim > 1 else 0.1)
    side = 28 if name.endswith("lenet") else 8
    data = batches(6, (model.in_channels, side, side))
    trace = record(model, data, features=True, **QUIET)
    assert trace.features is not None
    assert trace.class_weights is not None
    plain = torch.cat([model.eval()(images).detach() for images, _ in data], 1)
    scale = plain.abs().max()
    assert torch.allclose(trace.logits, plain, atol=1e-4 * float(scale))
    for t, (f, w) in enumerate(zip(trace.features, trace.class_weights, strict=True)):
        assert w.shape == (7, f.shape[1])
        added = {
            "boosted": lambda z, t: z,
            "zero_time_waste": lambda z, t: z.softmax(1) @ model.heads[t - 1].detach().T,
            "fast_views": lambda z, t: z if t >= 3 else None,  # the mean over views
        }
        rest = added[name](trace.logits[t - 1], t) if t and name in added else None
        assert affine(trace.logits[t], f @ w.T, rest) < 1e-3 * float(scale)
        assert rest is None or affine(trace.logits[t], f @ w.T, None) > 1e-3 * float(scale)


class Two(AnytimeModel):
    """Two steps; two label levels with separate layers, or one layer."""

    num_steps = 2

    def __init__(self, num_classes: Any = (3, 2), separate: bool = True) -> None:
        super().__init__(num_classes)
        self.layer = nn.Linear(192, 4)
        sizes = self.levels if separate else (self.num_classes,)
        self.heads = nn.ModuleList(nn.Linear(4, size) for size in sizes)
        self.shift = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        return (0, self.normalize(x).flatten(1))

    def step(self, state: Any) -> Any:
        t, h = state
        h = self.layer(h) if t == 0 else self.shift(h)
        parts = [head(h + index) for index, head in enumerate(self.heads)]
        return torch.cat(parts, 1), (t + 1, h)


def test_later_changes_of_the_weights_do_not_reach_the_trace():
    model = Two(3)
    trace = record(model, batches(), features=True, **QUIET)
    before = trace.class_weights[0].clone()
    with torch.no_grad():
        model.heads[0].weight.zero_()
    assert torch.equal(trace.class_weights[0], before)
    (
        nn.Linear(4, 1)(trace.features[0]) * nn.Linear(4, 3)(trace.class_weights[0]).sum()
    ).sum().backward()  # may be learned from


def test_separate_layers_of_levels_lie_side_by_side():
    model = Two()
    data = [(images, torch.stack([labels, labels % 2], 1)) for images, labels in batches()]
    trace = record(model, data, features=True, **QUIET)
    bias = torch.cat([head.bias for head in model.heads]).detach()
    for t in range(2):
        assert trace.features[t].shape == (5, 8)
        assert torch.allclose(trace.features[t] @ trace.class_weights[t].T + bias, trace.logits[t], atol=1e-5)
    for d, head in enumerate(model.heads):
        level = trace.level(d)
        assert torch.equal(level.class_weights[1], head.weight.detach())
        assert torch.allclose(level.features[1] @ head.weight.T + head.bias, level.logits[1], atol=1e-5)
    shared = record(Two(separate=False), data, features=True, **QUIET)
    assert shared.features[0].shape == (5, 4)
    assert shared.level(1).class_weights[0].shape == (2, 4)


def test_layers_over_time():
    model = Two(3)
    data = batches()
    trace = record(model, data, layers=["layer", "shift", "heads.0"], **QUIET)
    first = torch.cat([model.layer(images.flatten(1)) for images, _ in data]).detach()
    assert trace.activations["layer"].shape == (5, 2, 4)
    assert torch.allclose(trace.activations["layer"], first[:, None].expand(5, 2, 4), atol=1e-6)  # the newest output stays
    assert trace.activations["shift"][:, 0].isnan().all()  # it runs first in step 2
    assert torch.allclose(trace.activations["shift"][:, 1], model.shift(first), atol=1e-5)
    assert torch.allclose(trace.activations["heads.0"].transpose(0, 1), trace.logits, atol=1e-6)
    assert trace.features is None
    assert not any(module._forward_hooks for module in model.modules())
    assert record(model, data, layers="layer", samples=2, **QUIET).activations["layer"].shape == (2, 2, 4)


def test_the_trace_is_saved_with_it(tmp_path):
    trace = record(Two(3), batches(), features=True, layers=["layer"], **QUIET)
    trace.save(tmp_path / "trace")
    again = Trace.load(tmp_path / "trace")
    assert all(torch.equal(a, b) for a, b in zip(trace.features, again.features, strict=True))
    assert torch.equal(trace.activations["layer"], again.activations["layer"])


def test_unknown_labels():
    model, data = Two(3), batches()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record(model, data, labels=None, **QUIET).labels.tolist() == [-1] * 5
        assert record(model, [images for images, _ in data], **QUIET).labels.tolist() == [-1] * 5
        assert record(model, [[images] for images, _ in data], **QUIET).labels.tolist() == [-1] * 5
        other = [(images, torch.tensor([90.5] * len(images))) for images, _ in data]  # no labels of this model at all
        assert record(model, other, labels=None, **QUIET).labels.tolist() == [-1] * 5
        assert record(model, data, labels=[2, 1, 0, -1, 2], **QUIET).labels.tolist() == [2, 1, 0, -1, 2]
        assert record(Two(), data, labels=None, **QUIET).labels.tolist() == [[-1, -1]] * 5
    far = [(images, labels + 90) for images, labels in data]
    with pytest.warns(UserWarning, match=r"5 of 5 labels lie outside 0..2 and count as absent"):
        assert record(model, far, **QUIET).labels.tolist() == [-1] * 5
    with pytest.raises(ValueError, match="there are 4 labels, but 5 samples"):
        record(model, data, labels=[0, 1, 2, 0], **QUIET)
    for text in ("Data", "train", ""):
        with pytest.raises(ValueError, match=f'labels must be "data", None or the labels of all samples, got {text!r}'):
            record(model, data, labels=text, **QUIET)
    with pytest.raises(ValueError, match="got 3 parts"):
        record(model, [(images, labels, labels) for images, labels in data], **QUIET)


def test_only_the_first_samples():
    class Grouped(list):
        groups = [0, 0, 1, 1, 2]  # noqa: RUF012

    model, data = Two(3), Grouped(batches())
    trace, whole = record(model, data, features=True, samples=4, **QUIET), record(model, data, features=True, **QUIET)
    assert trace.labels.tolist() == [0, 1, 2, 0]
    assert torch.allclose(trace.logits, whole.logits[:, :4], atol=1e-6)
    assert trace.meta["groups"] == [0, 0, 1, 1]
    assert record(model, data, samples=9, **QUIET).num_samples == 5
    assert record(model, data, labels=[0, 1, 2, 0, 1], samples=2, **QUIET).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        record(model, data, samples=0, **QUIET)


def test_the_size_is_said(capsys):
    record(Two(3), batches(), features=True, layers=["layer"], seconds=False)
    said = "recording 6 samples takes features 0.0 MB, layer 0.0 MB of memory"  # two batches of at most three
    assert said in capsys.readouterr().err
    record(Two(3), iter(batches()), layers=["layer"], seconds=False)
    assert "recording every 1,000 samples takes layer 0.0 MB of memory" in capsys.readouterr().err
    record(Two(3), batches(), seconds=False)
    assert "takes" not in capsys.readouterr().err


class Convolved(Two):
    """An answer without a linear layer, and a layer whose output grows."""

    def __init__(self) -> None:
        super().__init__(3)
        self.conv = nn.Conv2d(3, 3, 1)

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        return (0, self.normalize(x))

    def step(self, state: Any) -> Any:
        t, x = state
        return self.conv(x[:, :, : 4 * (t + 1)]).mean((2, 3)), (t + 1, x)


def test_what_cannot_be_kept_is_said():
    with pytest.raises(ValueError, match="the answer of step 1 does not come from a linear layer of 3 outputs"):
        record(Convolved(), batches(), features=True, **QUIET)
    with pytest.raises(ValueError, match="there is no layer 'convv'; did you mean 'conv'"):
        record(Convolved(), batches(), layers=["convv"], **QUIET)
    with pytest.raises(ValueError, match=r"layer 'conv' changes its size over the steps, from \[3, 4, 8\] to \[3, 8, 8\]"):
        record(Convolved(), batches(), layers=["conv"], **QUIET)
    with pytest.raises(ValueError, match="layer 'unused' gave no output for each image"):
        record(Two(3), batches(), layers=["unused"], **QUIET)


def test_other_tasks_without_targets():
    model = Two(3)
    model.info = replace(model.info, task="regression")
    trace = record(model, [images for images, _ in batches()], features=True, **QUIET)
    assert trace.targets is None
    assert torch.allclose(trace.features[1] @ trace.class_weights[1].T + model.heads[0].bias, trace.outputs[1], atol=1e-5)
