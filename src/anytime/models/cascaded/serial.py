"""Serial residual networks: the peer of cascaded ones, in which one block after the other completes its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime.models.cascaded.residual import STAGES, Block, Clock, Heads, Layout, ResidualNet, check_count
from anytime.models.cascaded.statistics import Dynamics
from anytime.models.common.layers import pooled
from anytime.registry import register_model

Form = Literal["paper", "published"]


class SerialState(NamedTuple):
    """`active` is a_t (at first the image), `shortcut` is S_t(a_t), `stale` (published form) is s_{t+1}."""

    time: int
    active: Tensor
    shortcut: Tensor | None
    stale: Tensor | None


class SerialResNet(ResidualNet):
    """A residual network that answers after every block: blocks that have not run yet pass on their shortcut alone.

    a_1 = stem(x), a_{k+1} = ReLU(F_k(a_k) + S_k(a_k)); logits[t] = head(GAP(C_K(...C_t(a_t)))), C_k(v) = ReLU(S_k(v)): t - 1
    blocks are active at step t, each completely, and the answer at t = K + 1 is that of the ordinary network: of a cascaded
    network with the same weights, too.

    `form="published"` is what the authors' code computes in place of it: at step t block t takes part as well, with the
    residual of its input at step t - 1, s_{k+1} = ReLU(F_k(s_k) + S_k(a_k)), s_1 = 0;
    logits[t] = head(GAP(C_K(...C_{t+1}(s_{t+1})))), at t = K + 1 as above.

    Every batch norm sees one input only, so it has one row of statistics; in the published form two, the stale one first.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        depth: 18, 34 or 50.
        heads: One read-out for all steps, or one for each (then it resembles a shallow-deep network, SDN).
        num_steps: T; default: all.
        width: Channels of the first stage.
        layout: The stem.
        pool: Max-pooling after the stem.
        form: `"paper"` or `"published"`.
        clock: `"asymptotic"`: t = 1..T. `"published"`: t = 0..T-1; the first answer knows no image, and in the paper's form
            the last block never runs.

    Source: Iuzzolino, Mozer, Bengio, NeurIPS 2021, section 3 (SerialTD, SerialCE).
    """

    def __init__(
        self,
        num_classes: int | Sequence[int] = 10,
        in_channels: int = 3,
        depth: int = 18,
        heads: Heads = "shared",
        num_steps: int | None = None,
        width: int = 64,
        layout: Layout = "cifar",
        pool: bool | None = None,
        form: Form = "paper",
        clock: Clock = "asymptotic",
    ) -> None:
        if form not in ("paper", "published"):
            raise ValueError(f"form must be 'paper' or 'published', got {form!r}")
        if clock not in ("asymptotic", "published"):
            raise ValueError(f"clock must be 'asymptotic' or 'published', got {clock!r}")
        most = sum(STAGES.get(depth, ())) + 1
        num_steps = most if num_steps is None else num_steps
        check_count("num_steps", num_steps)
        if num_steps > most:
            raise ValueError(f"num_steps of a serial network of {most - 1} blocks must lie in 1..{most}, got {num_steps!r}")
        self.first = 0 if clock == "published" else 1
        stale = form == "published"
        dynamics = Dynamics(per_step=stale, first=self.first)
        super().__init__(num_classes, in_channels, depth, num_steps, lambda _: 1 + stale, dynamics, heads, width, layout, pool)
        self.stale = stale

    def initial_state(self, x: Tensor) -> SerialState:
        self.check_input(x)
        return SerialState(self.first, self.normalize(x), None, None)

    def step(self, state: SerialState) -> tuple[Tensor, SerialState]:
        time, a, s, stale = state
        if time > len(self.blocks) + 1:
            raise ValueError(f"all {self.num_steps} steps are done")
        answer = time - self.first
        if time == 0:
            return self.read(a.new_zeros(1, len(a), self._top), answer)[0], state._replace(time=1)
        a = self.stem(a) if time == 1 else F.relu(self.blocks[time - 2].residual(a, (1,)) + s)
        if time <= len(self.blocks):
            block = self.blocks[time - 1]
            s = block.shortcut(a)
            stale = F.relu(self._stale(block, stale, a) + s) if self.stale else None
            v = stale if stale is not None else F.relu(s)
            for later in self.blocks[time:]:
                v = _carry(later, v)
        else:
            v = a
        return self.read(pooled(v)[None], answer)[0], SerialState(time + 1, a, s, stale)

    def _stale(self, block: Block, stale: Tensor | None, a: Tensor) -> Tensor:
        """F_k(s_k), s_1 = 0."""
        return block.empty(a, len(a)) if stale is None else block.residual(stale, (0,))

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, or with `step` = 1..T that answer alone, `[B, K]`, at its contract cost.

        Block by block, with all shortcuts of a block in one batch.
        """
        if x.ndim == 5:
            self.observe(None, x)  # which says that it answers to one image
        return self._answers(x, 0, self.num_steps) if step is None else super().forward(x, step)

    def answer(self, x: Tensor, step: int) -> Tensor:
        return self._answers(x, step - 1, step)[0]

    def _answers(self, x: Tensor, skip: int, steps: int) -> Tensor:
        """Answers number `skip`..`steps`-1, `[steps - skip, B, K]`."""
        self.check_input(x)
        wanted = range(self.first + skip, self.first + steps)
        a = self.stem(self.normalize(x)) if wanted.stop > 1 else x  # t = 0 knows no image
        stale: Tensor | None = None
        carried: list[Tensor] = []  # what answers wanted of earlier times have come to
        for k, block in enumerate(self.blocks, 1):
            if k >= wanted.stop:
                carried = [_carry(block, v) for v in carried]
                continue
            if block.projection is None:
                s = a
            else:
                *passed, s = block.shortcut(torch.cat([*carried, a])).split(len(x))
                carried = [F.relu(v) for v in passed]
            if not self.stale:
                carried += [F.relu(s)] if k in wanted else []
                a = F.relu(block.residual(a, (1,)) + s) if k + 1 < wanted.stop else a
                continue
            late = F.relu(self._stale(block, stale, a) + s)
            carried += [late] if k in wanted else []
            a = F.relu(block.residual(a, (1,)) + s) if k + 1 < wanted.stop else a
            stale = late
        if len(self.blocks) + 1 in wanted:
            carried.append(a)
        dark = [x.new_zeros(len(x), self._top)] if 0 in wanted else []
        return self.read(torch.stack([*dark, *(pooled(v) for v in carried)]), skip)


def _carry(block: Block, v: Tensor) -> Tensor:
    """What a block that has not run passes on: ReLU(S(v)), v itself where the shortcut is the identity, since v >= 0."""
    return v if block.projection is None else F.relu(block.projection(v))


@register_model
def serial_resnet18(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    heads: Heads = "shared",
    num_steps: int | None = None,
    width: int = 64,
    layout: Layout = "cifar",
    pool: bool | None = None,
    form: Form = "paper",
    clock: Clock = "asymptotic",
) -> SerialResNet:
    """Serial ResNet-18: one block after the other, 9 answers; shares its weights with cascaded_resnet18.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        heads: "shared" by all steps, or "separate".
        num_steps: T; default: all.
        width: Channels of the first stage.
        layout: Stem for "cifar", "tinyimagenet" or "imagenet".
        pool: Max-pooling after the stem; default: for "imagenet" alone. The authors' code always pools.
        form: "paper": t - 1 blocks are active at step t; "published": the authors' code, a block more with a stale residual.
        clock: "asymptotic", or "published": one step earlier, as the authors' code counts.
    """
    return SerialResNet(num_classes, in_channels, 18, heads, num_steps, width, layout, pool, form, clock)


@register_model
def serial_resnet34(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    heads: Heads = "shared",
    num_steps: int | None = None,
    width: int = 64,
    layout: Layout = "cifar",
    pool: bool | None = None,
    form: Form = "paper",
    clock: Clock = "asymptotic",
) -> SerialResNet:
    """Serial ResNet-34: one block after the other, 17 answers; shares its weights with cascaded_resnet34.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        heads: "shared" by all steps, or "separate".
        num_steps: T; default: all.
        width: Channels of the first stage.
        layout: Stem for "cifar", "tinyimagenet" or "imagenet".
        pool: Max-pooling after the stem; default: for "imagenet" alone. The authors' code always pools.
        form: "paper": t - 1 blocks are active at step t; "published": the authors' code, a block more with a stale residual.
        clock: "asymptotic", or "published": one step earlier, as the authors' code counts.
    """
    return SerialResNet(num_classes, in_channels, 34, heads, num_steps, width, layout, pool, form, clock)


@register_model
def serial_resnet50(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    heads: Heads = "shared",
    num_steps: int | None = None,
    width: int = 64,
    layout: Layout = "cifar",
    pool: bool | None = None,
    form: Form = "paper",
    clock: Clock = "asymptotic",
) -> SerialResNet:
    """Serial ResNet-50: one block after the other, 17 answers; shares its weights with cascaded_resnet50.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        heads: "shared" by all steps, or "separate".
        num_steps: T; default: all.
        width: Channels of the first stage.
        layout: Stem for "cifar", "tinyimagenet" or "imagenet".
        pool: Max-pooling after the stem; default: for "imagenet" alone. The authors' code always pools.
        form: "paper": t - 1 blocks are active at step t; "published": the authors' code, a block more with a stale residual.
        clock: "asymptotic", or "published": one step earlier, as the authors' code counts.
    """
    return SerialResNet(num_classes, in_channels, 50, heads, num_steps, width, layout, pool, form, clock)
