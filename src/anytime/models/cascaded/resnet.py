"""Cascaded residual networks: all blocks update in parallel (Iuzzolino, Mozer, Bengio, NeurIPS 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from anytime.models.common.delay_kernels import DelayLine, Smoothing, make_kernel
from anytime.models.common.layers import pooled
from anytime.models.common.step_norm import Statistics
from anytime.registry import variant

CHUNK = 64  # images that a block processes at once under smoothing, which has many time steps


class CascadeState(NamedTuple):
    """The state of a cascade between two steps.

    Attributes:
        time: t of the next answer.
        age: Time of the last answer, counted anew when the image changes.
        shape: Shape of an image.
        images: Images that have not entered yet, each with the time at which its features arrive.
        stem: Output of the stem; with `temporal_affine` that of its convolution.
        stem_line: What the stem has sent and has not arrived yet.
        inputs: Input z of each block, and the top features.
        residuals: Last residual of each block.
        lines: Residuals of each block that have not arrived yet.
        shortcuts: Projected shortcut of each block.
    """

    time: int
    age: int
    shape: tuple[int, ...]
    images: tuple[tuple[int, Tensor], ...]
    stem: Tensor | None
    stem_line: DelayLine
    inputs: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]
    lines: tuple[DelayLine, ...]
    shortcuts: tuple[Tensor | None, ...]


class CascadedResNet(ResidualNet):
    """A residual network whose residual branches arrive late, while shortcuts are instantaneous.

    z[t, 1] = D(stem(x))[t], z[t, k+1] = ReLU(D(F_k(z[., k]))[t] + S_k(z[t, k])), logits[t] = head(GAP(z[t, K+1])), with the
    delay D(r)[t] = sum_s kappa_s r[t - s]. So all K blocks can update in parallel, and shortcuts bring a first answer at once.
    Under a one-step delay the input of block k is constant from t = k on, and the answer at t = K + 1 is that of the ordinary
    (serial) network.

    Work (static image, one-step delay): a block is evaluated only on its distinct inputs, K (K + 1) / 2 block evaluations
    instead of K (K + 1). `forward` goes layer by layer, all time steps of a block in one batch; `stream` goes step by step and
    never runs a block whose input is stable. F_k(0), a block's output before its first input has arrived, is the same for all
    images and computed once a batch.

    Batch norm (`statistics="per_step"`): one affine map, and separate statistics for each time step. Block k has k + 1 rows,
    since its input is constant from t = k on; later steps take the last row. At the same t, smoothing (`"ews"`) sees other
    inputs than a one-step delay, so its default is `"shared"`: the row of the settled network, to which every state dict is
    converted when it is loaded. With `"per_step"`, `anytime.calibrate` estimates separate rows.

    The asymptotic clock gives the answers of t = 1..T, the first that have seen the image. The published one gives t = 0..T-1:
    its first answer knows no image, and its last is one update short of the asymptote.

    With `temporal_affine` every batch norm, also that of the stem, has an affine map for each of the times 0..K; later times
    take the last. Then a block gives another output at each time although its input is the same, and nothing settles before
    the last map: `forward` computes all T K block evaluations, and no serial network has the same answers.

    Depths 101 and 152 have no name of their own: `create_model("anytime.models.cascaded.resnet.CascadedResNet", depth=101)`.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        depth: 18, 34, 50, 101 or 152.
        kernel: "osd" (one-step delay), "ews" (smoothing), "instant" (no delay), or the weights of a tapped delay line.
        alpha: Weight of the previous output under smoothing, in [0, 1).
        heads: "shared" by all steps, or "separate".
        num_steps: T; default: until the answer has settled (with smoothing 70).
        width: Channels of the first stage.
        layout: Stem for "cifar", "tinyimagenet" or "imagenet".
        pool: Max-pooling after the stem; default: only for "imagenet". The authors' code always pools.
        statistics: Running statistics "per_step" or "shared" by all; default: per step, with smoothing shared.
        clock: "asymptotic", or "published": one step earlier, as the authors' code counts.
        norm_eps: Added to the variance of every batch norm. The authors' code means 1e-5 but runs with 0.1, because it passes
            its arguments shifted by one.
        norm_momentum: Weight of the newest batch in the running statistics. The authors' code means 0.1 but runs with 1: its
            statistics are those of the last training batch.
        temporal_affine: Whether each time has its own affine map, an option of the authors' code that the paper never uses.

    Source: Iuzzolino, Mozer, Bengio, "Improving Anytime Prediction with Parallel Cascaded Networks and a Temporal-Difference
    Loss", NeurIPS 2021, section 2.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        depth: int = 18,
        kernel: Literal["osd", "ews", "instant"] | tuple[float, ...] = "osd",
        alpha: float = 0.9,
        heads: Heads = "shared",
        num_steps: int | None = None,
        width: int = 64,
        layout: StemLayout = "cifar",
        pool: bool | None = None,
        statistics: Statistics | None = None,
        clock: Clock = "asymptotic",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        temporal_affine: bool = False,
    ) -> None:
        delay = make_kernel(kernel, alpha)
        lag, memory = delay.lag, delay.memory
        blocks = sum(STAGES.get(depth, ()))
        if num_steps is None:
            num_steps = 70 if memory == math.inf else int(memory) * (blocks + 1) + 1 - lag
        check_count("num_steps", num_steps)
        check_choice("statistics", statistics, ("per_step", "shared", None))
        check_choice("clock", clock, ("asymptotic", "published"))
        check_choice("temporal_affine", temporal_affine, (True, False))
        first = 0 if clock == "published" else lag
        last = first + num_steps - 1 - (lag if clock == "asymptotic" else 0)  # time of the last residual with a row
        if statistics is None:
            statistics = "shared" if memory == math.inf else "per_step"

        def rows(block: int) -> int:
            settled = last if temporal_affine else block * memory
            return 1 if statistics == "shared" else int(min(settled, max(last, 0))) + 1

        affine_rows = min(blocks, max(last, 0)) + 1 if temporal_affine else None
        dynamics = Dynamics.of(delay, statistics == "per_step", first)
        form = width, layout, pool, norm_eps, norm_momentum, affine_rows
        super().__init__(num_classes, in_channels, depth, num_steps, rows, dynamics, heads, *form)
        self.kernel, self.first, self.temporal_affine = delay, first, temporal_affine
        self.follows_frames = len(self.heads) == 1  # separate heads end with their last step
        self.late = min(lag, 1)  # a branch is evaluated when its output arrives, if that is later than its input
        self.branch_kernel = delay.after(self.late)
        self.arrival = delay.after(lag)

    def _settled(self, block: int) -> float:
        """The time from which the input of block 1..K+1 is constant, if the image is."""
        return block * self.kernel.memory

    # -- step by step --------------------------------------------------------------------------------------------------

    def initial_state(self, x: Tensor) -> CascadeState:
        self.check_input(x)
        images = ((self.kernel.lag, self.normalize(x)),)
        return CascadeState(self.first, -1, tuple(x.shape[1:]), images, None, (), (), (), (), ())

    def observe(self, state: CascadeState, x: Tensor) -> CascadeState:
        self.check_input(x)
        before = [len(state.images[0][1] if state.stem is None else state.stem), *state.shape]
        if list(x.shape) != before:
            raise ValueError(f"a frame has shape {list(x.shape)}, the first had {before}")
        arrives = state.time + self.kernel.lag - self.first
        waiting = tuple(image for image in state.images if image[0] < arrives)  # an image not yet seen is replaced
        return state._replace(images=(*waiting, (arrives, self.normalize(x))))

    def step(self, state: CascadeState) -> tuple[Tensor, CascadeState]:
        answer = state.time - self.first
        if state.time < self.kernel.lag:  # published clock: nothing has arrived anywhere
            first = state.images[0][1]
            empty = first.new_zeros(1, first.shape[0], self._top_channels)
            return self._logits(empty, answer)[0], state._replace(time=state.time + 1)
        state = self._tick(state)
        return self._logits(pooled(state.inputs[-1])[None], answer)[0], state

    def _tick(self, state: CascadeState) -> CascadeState:
        time, before = state.time, state.age
        age, stem, stem_line, images = before + 1, state.stem, state.stem_line, state.images
        if images and images[0][0] <= time:
            run_stem = self.stem.convolve if self.temporal_affine else self.stem
            age, stem, images = self.kernel.lag, run_stem(images[0][1]), images[1:]
        assert stem is not None
        sent = stem
        if self.temporal_affine:  # every step is as that of a new image
            age, sent = self.kernel.lag, self.stem.finish(stem, (time - self.kernel.lag,))
        if age <= self._settled(1):
            z, stem_line = self.arrival.arrive(sent, stem_line)
        else:
            z = state.inputs[0]
        entered, after = z, []
        for k, block in enumerate(self.blocks, 1):
            settled = self._settled(k)
            line = state.lines[k - 1] if state.inputs else ()
            shortcut = state.shortcuts[k - 1] if state.inputs else None
            if age > self._settled(k + 1):
                z, r = state.inputs[k], state.residuals[k - 1]
            else:
                if self.late and not state.inputs:  # what arrives first is the block's output before it had an input
                    r = block.empty(z, z.shape[0]).expand(z.shape[0], -1, -1, -1)
                    line = (r,) * (self.kernel.lag - 1)
                elif (before if self.late else age) <= settled:
                    r = block.residual(state.inputs[k - 1] if self.late else z, (time - self.late,))
                else:
                    r = state.residuals[k - 1]
                out, line = self.branch_kernel.arrive(r, line)
                if shortcut is None or age <= settled:
                    shortcut = block.shortcut(z)
                z = block(out, shortcut)
            after.append((z, r, line, shortcut if block.projection is not None else None))
        outputs, *rest = zip(*after, strict=True)
        return CascadeState(time + 1, age, state.shape, images, stem, stem_line, (entered, *outputs), *rest)

    # -- layer by layer ------------------------------------------------------------------------------------------------

    def all_answers(self, x: Tensor, frames: int) -> Tensor:
        return self._layers(x, frames or 1, frames or self.num_steps)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """Only the answer of step 1..T: a block runs only on inputs that can still reach it. The settled answer is an ordinary
        pass through the network."""
        return self._layers(x, 1, step, step - 1)[0]

    def _layers(self, x: Tensor, frames: int, steps: int, skip: int = 0) -> Tensor:
        """Answers number `skip`..`steps`-1 `[steps - skip, B, K]` to `frames` (1: a static image) in the batch dimension."""
        self.check_input(x)
        lag, batch = self.kernel.lag, x.shape[0] // frames
        start, end = max(self.first + skip, lag), self.first + steps - 1
        dark = max(min(lag, self.first + steps) - (self.first + skip), 0)  # answers before anything has arrived
        tops: list[Tensor] = []
        if end >= lag:
            moving = frames > 1 or self.temporal_affine
            stem = self._stems(x, frames, steps if self.training else end - lag + 1)
            arrived = stem[: batch * (end - lag + 1)] if moving else stem
            if isinstance(self.kernel, Smoothing):
                tops = list(self._smoothed(arrived, moving, end, batch))[skip:]
            else:
                tops = self._delayed(arrived, moving, start, end, batch)
        features = [x.new_zeros(batch, self._top_channels)] * dark + [pooled(top) for top in tops]
        return self._logits(torch.stack(features), skip)

    def _stems(self, x: Tensor, frames: int, times: int) -> Tensor:
        """Outputs of the stem for `frames` in the batch; with `temporal_affine` those of an image at `times` times."""
        images = self.normalize(x)
        if not self.temporal_affine:
            return self.stem(images, frames)
        convolved = self.stem.convolve(images)
        if frames == 1:
            return self.stem.finish(convolved.repeat(times, 1, 1, 1), range(times))
        return self.stem.finish(convolved, range(frames))

    def _delayed(self, stem: Tensor, moving: bool, start: int, end: int, batch: int) -> list[Tensor]:
        """The top features `[B, C, H, W]` at times start..end under a kernel of finite length.

        A pass from the top down finds the times at which each block's input is needed; a pass from the bottom up computes
        them, all times of a block in one batch. Times after a block's input has settled map to the time at which it did.
        """
        lag, memory = self.kernel.lag, int(self.kernel.memory)

        def at(time: int, k: int) -> int:
            return time if moving else min(time, int(self._settled(k)))

        blocks = list(self.blocks)
        low, high = [at(start, len(blocks) + 1)], [at(end, len(blocks) + 1)]
        for k in range(len(blocks), 0, -1):
            low.insert(0, at(max(low[0] - memory, lag), k))
            high.insert(0, at(high[0], k))
        stems = stem.split(batch)
        parts = []
        for time in range(low[0], high[0] + 1):
            seen = [stems[min(n, len(stems) - 1)] for n in range(time - lag, -1, -1)]
            parts.append(self.arrival.arrive(seen[0], tuple(seen[1:]))[0])
        z = torch.cat(parts) if len(parts) > 1 else parts[0]

        def run_block(k: int, block: ResidualBlock, z: Tensor) -> Tensor:
            times = range(at(max(low[k] - memory, lag), k), at(high[k] - lag, k) + 1)  # of the residuals needed
            part = z[(times.start - low[k - 1]) * batch : (times.stop - low[k - 1]) * batch]
            part = z if len(part) == len(z) else part  # a slice's gradient would be a second large map
            r = block.residual(part, times).split(batch) if times else ()
            empty: Any = block.empty(z, batch) if max(low[k] - memory, 0) < lag else None
            if self.training and self.first < lag and times.stop - 1 < at(end, k):
                with torch.no_grad():  # the published code also updates statistics with this residual, which comes too late
                    block.residual(z[-batch:], (at(end, k),))
            s = block.shortcut(z).split(batch)
            parts = []
            for time in range(low[k], high[k] + 1):
                earlier = range(time - lag, max(time - memory, 0) - 1, -1)
                values = [empty if tau < lag else r[at(tau, k) - times.start] for tau in earlier]
                out, _ = self.arrival.arrive(values[0], tuple(values[1:]))
                parts.append(out + s[at(time, k) - low[k - 1]])
            return F.relu_(torch.cat(parts) if len(parts) > 1 else parts[0])

        for k, block in enumerate(blocks, 1):  # in a function, which frees its intermediate tensors
            z = run_block(k, block, z)
        tops = z.split(batch)
        return [tops[at(time, len(blocks) + 1) - low[-1]] for time in range(start, end + 1)]

    def _smoothed(self, stem: Tensor, moving: bool, end: int, batch: int) -> Iterator[Tensor]:
        """The top features `[B, C, H, W]` at times 0..end under smoothing, one chunk of time after the other."""
        alpha = self.kernel.alpha  # type: ignore[union-attr]
        size = end + 1 if torch.is_grad_enabled() else max(CHUNK // batch, 1)
        stems = stem.split(batch)
        lines: list[DelayLine] = [()] * (len(self.blocks) + 1)
        for start in range(0, end + 1, size):
            times = range(start, min(start + size, end + 1))
            if moving:
                z, lines[0] = self._scan(torch.cat(stems[times.start : times.stop]), len(times), lines[0])
            else:
                z = torch.cat([(1 - alpha ** (time + 1)) * stem for time in times])
            for k, block in enumerate(self.blocks, 1):
                r, lines[k] = self._scan(block.residual(z, times), len(times), lines[k])
                z = F.relu_(r + block.shortcut(z))
            yield from z.split(batch)

    def _scan(self, r: Tensor, steps: int, line: DelayLine) -> tuple[Tensor, DelayLine]:
        """Applies the kernel to `steps` time steps that follow each other in the batch."""
        arrived = []
        for part in r.chunk(steps):
            out, line = self.kernel.arrive(part, line)
            arrived.append(out)
        return torch.cat(arrived), line


cascaded_resnet18, cascaded_resnet34, cascaded_resnet50 = (
    variant(
        CascadedResNet,
        f"cascaded_resnet{depth}",
        f"Cascaded ResNet-{depth}: {facts}, the last that of the ordinary network.",
        fixed={"depth": depth},
    )
    for depth, facts in (
        (18, "8 basic blocks, 11,172,170 parameters, 9 answers"),
        (34, "16 basic blocks, 17 answers"),
        (50, "16 bottleneck blocks, 17 answers"),
    )
)
