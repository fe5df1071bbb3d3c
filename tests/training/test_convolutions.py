"""Convolutions on small maps as matrix products: equal to torch's, and only where they are faster."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anytime import create_model
from anytime.training import convolutions
from anytime.training.convolutions import Window, arranged, pays, sees_all, small_maps, weight_gradient
from anytime.training.regimes.base import Joint


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize(("padding", "dilation"), [((1, 1), (1, 1)), ((0, 0), (1, 1)), ((2, 1), (2, 1)), ((4, 0), (1, 1))])
@pytest.mark.parametrize("size", [(5, 4), (3, 6)])
def test_weight_gradient_equals_torch(kernel, stride, padding, dilation, size):
    window = Window(kernel, stride, padding, dilation)
    x, weight = draw(2, 3, *size), draw(4, 3, *kernel).requires_grad_()
    y = F.conv2d(x, weight, None, *window[1:])
    assert window.outputs(x) == list(y.shape[2:])
    gradient = draw(*y.shape)
    y.backward(gradient)
    torch.testing.assert_close(weight_gradient(x, gradient, window), weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_a_map_of_two_pixels_is_one_matrix_product(size):
    x, weight = draw(3, 5, size, size), draw(4, 5, 3, 3)
    y = (x.permute(0, 2, 3, 1).flatten(1) @ arranged(weight, size).T).view(3, size, size, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1), rtol=1e-12, atol=1e-12)


def gradients(model: nn.Module, x: torch.Tensor, changed: bool) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        if changed:
            with small_maps(model):
                y = model(x)
                assert any("_conv_forward" in vars(module) for module in model.modules())
        else:
            y = model(x)
    y.float().square().mean().backward()
    return [y.detach().float(), x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize(("size", "count"), [(2, 16), (1, 16), (2, 3), (4, 8), (7, 4)])
def test_gradients_agree_within_the_rounding_of_bfloat16(size, count, monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST_CHANNELS", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 8, 3, 1, 1, bias=False), nn.Conv2d(8, 4, 1))
    x = torch.randn(count, 8, size, size)
    called = []
    plain = weight_gradient
    monkeypatch.setattr(convolutions, "weight_gradient", lambda *given: called.append(1) or plain(*given))
    ours, torchs = gradients(model, x, True), gradients(model, x, False)
    assert len(called) == 3
    assert not any("_conv_forward" in vars(module) for module in model.modules())
    for a, b in zip(ours, torchs, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 0.02 * b.norm()


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (4, 2), (1, 1), (5, 1)])
def test_the_compiler_knows_shapes_and_strides(size, stride):
    x = torch.randn(17, 5, size, size, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    how = ([stride, stride], [1, 1], [1, 1])
    torch.library.opcheck(convolutions._convolution, (x, weight, *how), test_utils=tests)
    gradient = F.conv2d(x, weight, None, stride, 1).detach()
    for needed in (True, False):
        given = (gradient, x.detach(), weight.detach(), *how, needed)
        torch.library.opcheck(convolutions._convolution_backward, given, test_utils=tests)


def test_no_gradient_for_what_needs_none():
    x, weight = torch.randn(2, 5, 3, 3), torch.randn(4, 5, 3, 3, requires_grad=True)
    convolutions._convolution(x, weight, [1, 1], [1, 1], [1, 1]).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), weight)[0]
    assert x.grad is None
    torch.testing.assert_close(weight.grad, expected)


def test_gradients_of_gradients():
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    how = ([1, 1], [1, 1], [1, 1])
    penalties = []
    for function in (lambda: convolutions._convolution(x, weight, *how), lambda: F.conv2d(x, weight, padding=1)):
        inner = torch.autograd.grad(function().pow(2).sum(), [x, weight], create_graph=True)
        penalties.append(torch.autograd.grad(sum(g.pow(2).sum() for g in inner), [x, weight]))
    for a, b in zip(*penalties, strict=True):
        torch.testing.assert_close(a, b)


def test_only_plain_convolutions_in_bfloat16_are_changed(monkeypatch):
    monkeypatch.setattr(convolutions, "weight_gradient", lambda *given: pytest.fail("torch's own is right here"))
    model = nn.Sequential(
        nn.Conv2d(512, 512, 3, padding=1, groups=2), nn.Conv2d(512, 512, 3, padding="same"),
        nn.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"),
    )  # fmt: skip
    with small_maps(model):
        assert not any("_conv_forward" in vars(module) for module in model)
    conv = nn.Conv2d(512, 512, 3, padding=1)
    with small_maps(conv):
        conv(torch.rand(2, 512, 2, 2)).sum().backward()  # float32
        with torch.autocast("cpu", torch.bfloat16):
            conv(torch.rand(2, 512, 9, 9)).sum().backward()  # a large map
            assert not conv.requires_grad_(False)(torch.rand(2, 512, 2, 2)).requires_grad


def test_the_rule_depends_on_shapes_only():
    same = Window((3, 3), (1, 1), (1, 1), (1, 1))
    half = same._replace(stride=(2, 2))
    few, many = torch.empty(64, 64, 3, 3), torch.empty(256, 256, 3, 3)
    assert pays(torch.empty(1, 256, 7, 7), many, same)
    assert not pays(torch.empty(1, 256, 8, 8), many, same)
    assert pays(torch.empty(1, 256, 14, 14), many, half)
    assert pays(torch.empty(64, 64, 4, 4), few, same)
    assert not pays(torch.empty(32, 64, 4, 4), few, same)
    assert sees_all(torch.empty(16, 1, 2, 2), same)
    assert not sees_all(torch.empty(15, 1, 2, 2), same)
    assert not sees_all(torch.empty(16, 1, 2, 2), half)
    assert not sees_all(torch.empty(16, 1, 3, 3), same)


def test_a_cascaded_network_on_maps_down_to_two_pixels(monkeypatch):
    called = []
    plain = weight_gradient
    monkeypatch.setattr(convolutions, "weight_gradient", lambda *given: called.append(1) or plain(*given))
    model = create_model("cascaded_resnet18", width=64, pool=True).to(memory_format=torch.channels_last)
    with small_maps(model), torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(2, 3, 32, 32)).float().sum().backward()
    assert called
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_training_uses_it(exits, train, tmp_path):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            seen.append(any("_conv_forward" in vars(m) for m in module.model.modules()))

    model = exits()
    train(model, Joint(), tmp_path, epochs=1, callbacks=[Watch()])
    assert seen
    assert all(seen)
    assert not any("_conv_forward" in vars(m) for m in model.modules())
