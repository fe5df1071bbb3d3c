"""Serial residual networks, the counterpart of cascaded ones: each block completes its work before the next one starts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime.models.cascaded.residual import (
    STAGES,
    Clock,
    Heads,
    ResidualBlock,
    ResidualNet,
    StemLayout,
    check_choice,
    check_count,
)
from anytime.models.cascaded.statistics import Dynamics
from anytime.models.common.layers import pooled
from anytime.models.common.steps import require_step_left
from anytime.registry import variant

Form = Literal["paper", "published"]


class SerialState(NamedTuple):
    """The state of a serial network between two steps.

    Attributes:
        time: t of the next answer.
        active: a_t; at first the image.
        shortcut: S_t(a_t).
        stale: s_{t+1} (published form).
    """

    time: int
    active: Tensor
    shortcut: Tensor | None
    stale: Tensor | None


class SerialResNet(ResidualNet):
    """A residual network that answers after every block: blocks that have not run yet only pass on their shortcut.

    a_1 = stem(x), a_{k+1} = ReLU(F_k(a_k) + S_k(a_k)); logits[t] = head(GAP(C_K(...C_t(a_t)))), C_k(v) = ReLU(S_k(v)): t - 1
    blocks are active at step t, each completely, and the answer at t = K + 1 is that of the ordinary network, and so of a
    cascaded network with the same weights. With separate heads it resembles a shallow-deep network (SDN).

    `form="published"` computes instead what the authors' code does: at step t block t takes part as well, with the residual of
    its input at step t - 1, s_{k+1} = ReLU(F_k(s_k) + S_k(a_k)), s_1 = 0; logits[t] = head(GAP(C_K(...C_{t+1}(s_{t+1})))), at
    t = K + 1 as above.

    Each batch norm sees only one input, so it has one row of statistics; in the published form two, the stale one first.

    The asymptotic clock is t = 1..T. The published one is t = 0..T-1: its first answer knows no image, and in the paper's form
    the last block never runs.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        depth: 18, 34, 50, 101 or 152.
        heads: "shared" by all steps, or "separate".
        num_steps: T; default: all.
        width: Channels of the first stage.
        layout: Stem for "cifar", "tinyimagenet" or "imagenet".
        pool: Max-pooling after the stem; default: only for "imagenet". The authors' code always pools.
        form: "paper": t - 1 blocks are active at step t; "published": the authors' code, a block more with a stale residual.
        clock: "asymptotic", or "published": one step earlier, as the authors' code counts.
        norm_eps: Added to the variance of every batch norm.
        norm_momentum: Weight of the newest batch in the running statistics.

    Source: Iuzzolino, Mozer, Bengio, NeurIPS 2021, section 3 (SerialTD, SerialCE).
    """

    follows_frames = False

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        depth: int = 18,
        heads: Heads = "shared",
        num_steps: int | None = None,
        width: int = 64,
        layout: StemLayout = "cifar",
        pool: bool | None = None,
        form: Form = "paper",
        clock: Clock = "asymptotic",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        check_choice("form", form, ("paper", "published"))
        check_choice("clock", clock, ("asymptotic", "published"))
        most = sum(STAGES.get(depth, ())) + 1
        num_steps = most if num_steps is None else num_steps
        check_count("num_steps", num_steps)
        if num_steps > most:
            raise ValueError(f"num_steps of a serial network of {most - 1} blocks must lie in 1..{most}, got {num_steps!r}")
        self.first = 0 if clock == "published" else 1
        published = form == "published"
        dynamics = Dynamics(per_step=published, first=self.first)
        rows, net = 1 + published, (width, layout, pool, norm_eps, norm_momentum)
        super().__init__(num_classes, in_channels, depth, num_steps, lambda _: rows, dynamics, heads, *net)
        self.published = published

    def settles(self, block: int) -> bool:
        return block <= self.first + self.num_steps - 2

    def initial_state(self, x: Tensor) -> SerialState:
        self.check_input(x)
        return SerialState(self.first, self.normalize(x), None, None)

    def step(self, state: SerialState) -> tuple[Tensor, SerialState]:
        require_step_left(state.time - self.first, self.num_steps)
        after = self._activate(state)
        return self._pass_on(after), after

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, SerialState]:
        """Runs the active blocks up to `step`; only then the shortcuts of the others."""
        self.check_step(step)
        state = self.initial_state(x)
        for _ in range(step):
            state = self._activate(state)
        return self._pass_on(state), state

    def _activate(self, state: SerialState) -> SerialState:
        """The state one step later: one more block has run."""
        time, a, s, stale = state
        if time == 0:
            return state._replace(time=1)
        a = self.stem(a) if time == 1 else self.blocks[time - 2](self.blocks[time - 2].residual(a, (1,)), s)
        if time <= len(self.blocks):
            s = self.blocks[time - 1].shortcut(a)
            stale = self._next_stale(self.blocks[time - 1], stale, a, s)
        return SerialState(time + 1, a, s, stale)

    def _pass_on(self, after: SerialState) -> Tensor:
        """The answer `[B, K]` of the step that ended in `after`: what the blocks that have not run pass on."""
        time, a, s, stale = after.time - 1, *after[1:]
        if time == 0:
            return self._logits(a.new_zeros(1, a.shape[0], self._top_channels), 0)[0]
        v = a
        if time <= len(self.blocks):
            v = stale if stale is not None else self.blocks[time - 1](None, s)
            for later in self.blocks[time:]:
                v = later(None, later.shortcut(v))
        return self._logits(pooled(v)[None], time - self.first)[0]

    def _next_stale(self, block: ResidualBlock, stale: Tensor | None, a: Tensor, s: Tensor) -> Tensor | None:
        """s_{k+1} = ReLU(F_k(s_k) + S_k(a_k)), s_1 = 0; None in the paper's form."""
        if not self.published:
            return None
        return block(block.empty(a, a.shape[0]) if stale is None else block.residual(stale, (0,)), s)

    def observe(self, state: Any, x: Tensor) -> Any:
        raise ValueError(
            f"a {type(self).__name__} answers to one image: its blocks run only once and cannot follow new frames"
        )

    def all_answers(self, x: Tensor, frames: int) -> Tensor:
        return self.observe(None, x) if frames else self._answers(x, 0, self.num_steps)

    def answer(self, x: Tensor, step: int) -> Tensor:
        return self._answers(x, step - 1, step)[0]

    def _answers(self, x: Tensor, skip: int, steps: int) -> Tensor:
        """Answers number `skip`..`steps`-1, `[steps - skip, B, K]`, block by block, all shortcuts of a block in one batch."""
        self.check_input(x)
        wanted = range(self.first + skip, self.first + steps)
        a = self.stem(self.normalize(x)) if wanted.stop > 1 else x  # t = 0 knows no image
        stale: Tensor | None = None
        carried: list[Tensor] = []  # activations of the answers wanted from earlier times
        for k, block in enumerate(self.blocks, 1):
            if k >= wanted.stop:
                carried = [_carry(block, v) for v in carried]
                continue
            if block.projection is None:
                s = a
            else:
                *passed, s = block.shortcut(torch.cat([*carried, a])).split(x.shape[0])
                carried = [F.relu(v) for v in passed]
            stale = self._next_stale(block, stale, a, s)
            if k in wanted:
                carried.append(F.relu(s) if stale is None else stale)
            if k + 1 < wanted.stop:
                a = F.relu(block.residual(a, (1,)) + s)
            elif self.training and self.published:
                with torch.no_grad():  # the published code also updates statistics with this residual, which comes too late
                    block.residual(a, (1,))
        if len(self.blocks) + 1 in wanted:
            carried.append(a)
        dark = [x.new_zeros(x.shape[0], self._top_channels)] if 0 in wanted else []
        return self._logits(torch.stack([*dark, *(pooled(v) for v in carried)]), skip)


def _carry(block: ResidualBlock, v: Tensor) -> Tensor:
    """The output of a block that has not run: ReLU(S(v)), v itself if the shortcut is the identity, since v >= 0."""
    return v if block.projection is None else F.relu(block.projection(v))


serial_resnet18, serial_resnet34, serial_resnet50 = (
    variant(
        SerialResNet,
        f"serial_resnet{depth}",
        f"Serial ResNet-{depth}: one block after the other, {answers} answers; "
        f"shares its weights with cascaded_resnet{depth}.",
        fixed={"depth": depth},
    )
    for depth, answers in ((18, 9), (34, 17), (50, 17))
)
