"""Heads against their formulas, and which head is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.common.heads import HEADS, ClassTokenHead, ConvHead, LinearHead, MixedHead, TokenHead, build_head


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class OwnHead(nn.Linear):
    """A custom head."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(shape[0], num_classes)


def weighted(head: nn.Module) -> nn.Module:
    """In float64, with random weights."""
    generator = torch.Generator().manual_seed(1)
    for parameter in head.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return head.eval()


def test_heads_are_their_formulas() -> None:
    h, tokens = images(2, 3, 8, 8), images(2, 5, 3)
    linear: Any = weighted(LinearHead((3, 8, 8), 4))
    assert torch.allclose(linear(h), h.mean((2, 3)) @ linear.linear.weight.T + linear.linear.bias)
    assert torch.allclose(linear(tokens), linear.linear(tokens.mean(1)))
    assert torch.equal(linear(h[..., 0, 0]), linear.linear(h[..., 0, 0]))
    mixed: Any = weighted(MixedHead((3, 8, 8), 4))
    pooled = mixed.mix * F.max_pool2d(h, 2) + (1 - mixed.mix) * F.avg_pool2d(h, 2)  # kernel 8 // 4, as in the paper
    assert torch.allclose(mixed(h), mixed.linear(pooled.flatten(1)))
    conv: Any = weighted(ConvHead((3, 8, 8), 4))
    out = h
    for i in (0, 3):
        out = F.conv2d(out, conv.layers[i].weight, stride=2, padding=1)
        out = F.relu(conv.layers[i + 1](out))
    assert out.shape == (2, 128, 2, 2)
    assert torch.allclose(conv(h), conv.linear(out.mean((2, 3))))
    token: Any = weighted(TokenHead((5, 3), 4))
    assert torch.allclose(token(tokens), token.linear(token.norm(tokens).mean(1)))
    assert torch.allclose(token(h), token(h.permute(0, 2, 3, 1).reshape(2, 64, 3)))
    first: Any = weighted(ClassTokenHead((5, 3), 4))
    assert torch.allclose(first(tokens), first.linear(first.norm(tokens[:, 0])))


def test_mixed_head_limits_its_weights_and_does_not_mix_single_pixels() -> None:
    sides = {k: MixedHead((64, 56, 56), k).grid for k in (10, 100, 1000)} | {0: MixedHead((512, 14, 14), 1000).grid}
    assert sides == {10: (4, 4), 100: (4, 4), 1000: (2, 2), 0: (1, 1)}
    assert MixedHead((6, 3, 9), 5).grid == (3, 4)
    assert MixedHead((6, 2, 4), 5).mix is None
    assert MixedHead((6, 2, 4), 5)(torch.rand(2, 6, 8, 8)).shape == (2, 5)


def test_auto_chooses_by_shape() -> None:
    chosen = {shape: type(build_head("auto", shape, 5)) for shape in ((6, 4, 4), (7, 6), (6,))}
    assert chosen == {(6, 4, 4): MixedHead, (7, 6): TokenHead, (6,): LinearHead}
    assert type(build_head("auto", (6, 4, 4), 5, channels_last=True)) is TokenHead
    assert type(build_head(f"{OwnHead.__module__}.OwnHead", (6,), 5)) is OwnHead
    with pytest.raises(ValueError, match=r"OwnHead' must be built as .* for shape \(6, 4, 4\) and 5 classes it fails: "):
        build_head(OwnHead, (6, 4, 4), 5)
    with pytest.raises(ValueError, match=r"'<lambda>' must return logits \[2, 5\] for two features of \(6,\), got \[2, 6\]"):
        build_head(lambda shape, classes: nn.Linear(6, 6), (6,), 5)
    for kind in HEADS.values():
        shape = (7, 6) if kind in (TokenHead, ClassTokenHead) else (6, 4, 4)
        assert kind(shape, 5)(torch.rand(2, *shape)).shape == (2, 5)  # type: ignore[call-arg]
    for name in ("mixed", "conv"):
        with pytest.raises(ValueError, match=rf"a {name} head reads images \(C, H, W\), .* \(7, 6\)"):
            build_head(name, (7, 6), 5)
