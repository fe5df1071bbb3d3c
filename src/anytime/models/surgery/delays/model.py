"""Propagation delays on any network with skip connections (Iuzzolino, Mozer, Bengio, NeurIPS 2021)."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from anytime.model import AnytimeModel, eval_mode
from anytime.models.common.delay_kernels import Kernels, Smoothing, make_kernel
from anytime.models.common.step_norm import Statistics, StepBatchNorm2d
from anytime.models.surgery.delays.graph import evaluate, trace
from anytime.models.surgery.delays.norms import set_rows, with_rows
from anytime.models.surgery.delays.plan import DelayState, Plan, Series

CHUNK = 256  # images that an operation sees at once where no gradients are wanted, so that memory stays bounded
REHEARSED = 1009  # images of the rehearsal, a number that no other dimension has by chance

# What treats every image alone, wherever it lies in the batch; all else runs once for each time.
ALONE = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, nn.LayerNorm, nn.GroupNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.Identity, nn.Dropout, nn.Dropout2d),
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # likewise, in eval mode
ELEMENTWISE = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.add, torch.sub, torch.mul),
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.gelu, F.silu, F.sigmoid, F.tanh),
    *("add", "sub", "mul", "relu", "sigmoid", "tanh"),
}

Setting = tuple[torch.Size, torch.dtype, bool, torch.dtype | None]  # size and type of images, train mode, type of autocast


class DelayedNetwork(AnytimeModel):
    """A network whose branches arrive late, while its skip connections are instantaneous.

    Wherever the network uses the output r of a branch it now gets D(r)[t] = sum_s kappa_s r[t - s], with r = 0 before t = 0;
    all else is computed at every t from what it gets at that t. So x + f(x) gives x at once, and f of what x was one step
    before (one-step delay).

    Clock: the first answer is the first that has seen the image. That is the one of t = 0, which skip connections alone give,
    unless every way from the image to the answer is delayed (then t is the lag of the shortest). An operation settles when its
    input has; a delay as long as its memory later. By default the last answer is the settled one: after as many steps as the
    longest chain of branches has, times the memory of the kernel. It is that of the network itself, if the weights of the
    kernel sum to 1.

    Work: nothing is evaluated twice on the same input, nor before an answer needs it: the branch of a one-step delay, all that
    leads to nothing else included, is evaluated in the step in which it arrives. `forward` goes operation by operation: those
    known to treat every image alone (convolutions, linear maps, norms in evaluation, attention with the batch first, ...) see
    all their times in one batch, any other (batch norm in training) runs once for each time, so that nothing needs to be known
    of it. Without gradients, times go in chunks, so that memory is bounded.

    The network is traced by torch.fx once in train and once in eval mode. Its own modules are used, under `network.` in the
    state dict, with their weights; activations that work in place are switched to working out of place. Modules whose
    `forward` takes a `row` (`StepBatchNorm2d`) get the time t of their input. What does not depend on the image but on
    parameters alone is evaluated wherever it is used.

    Batch norm (`statistics="per_step"`): each `nn.BatchNorm2d` becomes a `StepBatchNorm2d` with its weights, and with running
    statistics of its own for each distinct time of its input; later times take the last. In training each time is normalised
    by its own batch, so that statistics shared by all are a mixture which fits none. At first every row is that of the
    network, and the answers are the same; the state dict of an ordinary network is loaded into every row. Norms inside of
    leaves keep one row. Others stay: `BatchNorm1d`, `BatchNorm3d`, subclasses, those without weights, running statistics or
    momentum.

    Args:
        network: From images to logits, or to maps `[B, ...]`.
        branches: Names of the modules whose output is delayed; default: the branches of all blocks x + f(x), that is of the
            sums whose terms lead back to one tensor on separate ways: the shortest is the skip, the others are branches.
        kernel: `"osd"`, `"ews"`, `"instant"`, or the weights of a tapped delay line.
        alpha: Of smoothing.
        num_steps: T; default: until the answer has settled (with smoothing 70).
        num_classes: K of the logits, or the sizes of several label levels; of maps, their channels.
        in_channels: Channels of the images.
        leaves: Names of modules that run as one operation, because torch.fx cannot look into them.
        statistics: Running statistics of batch norm `"shared"` by all times, or `"per_step"`; None: per step where there are
            such norms, but with smoothing shared.

    Attributes:
        branches: Names of the delayed branches.
        first: t of the first answer.

    Raises:
        ValueError: Unknown branches, none found, a network that cannot be traced, steps beyond the settled answer, no norm
            whose statistics could be per step.
        TypeError: No network.

    Source: Iuzzolino, Mozer, Bengio, NeurIPS 2021, section 2.
    """

    def __init__(
        self,
        network: nn.Module,
        branches: Sequence[str] | None = None,
        kernel: Kernels = "osd",
        alpha: float = 0.9,
        num_steps: int | None = None,
        num_classes: int | Sequence[int] = 10,
        in_channels: int = 3,
        leaves: Sequence[str] = (),
        statistics: Statistics | None = "shared",
    ) -> None:
        super().__init__(num_classes, in_channels)
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {network!r}")
        if num_steps is not None and not isinstance(num_steps, int):
            raise ValueError(f"num_steps must be a whole number, got {num_steps!r}")
        self.own_normalization = False
        self.kernel = make_kernel(kernel, alpha)
        self.arrival = self.kernel.after(self.kernel.lag)
        norms = with_rows(network, statistics, self.kernel)
        with eval_mode(network):
            self._traced = {False: trace(network, branches, leaves, "eval_")}
            network.train()
            self._traced[True] = trace(network, branches, leaves, "train_")
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                setattr(module, "inplace", False)  # noqa: B010, for the type checker
        self.network = network
        for name, constant in chain(*(traced.constants.items() for traced in self._traced.values())):
            self.register_buffer(name, constant, persistent=False)
        self._plans = {  # by train mode, and whether the images move
            (mode, moving): Plan(traced, self.kernel, moving=moving)
            for mode, traced in self._traced.items()
            for moving in (False, True)
        }
        self._shapes: dict[Setting, list[tuple[torch.Size, torch.dtype]]] = {}  # of the delays, by the size of the images
        plan = self._plans[False, False]
        self.branches, self.first = self._traced[False].branches, plan.first
        limit = plan.settled[plan.output] + 1 - self.first
        if num_steps is None:
            num_steps = 70 if limit == math.inf else int(limit)
        if not 1 <= num_steps <= limit:
            raise ValueError(f"num_steps must lie in 1..{limit}, for then the answer has settled, got {num_steps!r}")
        self.num_steps = num_steps
        set_rows(norms, (self._plans[mode, False] for mode in self._traced), self.first + num_steps, self)

    # -- step by step --------------------------------------------------------------------------------------------------

    def initial_state(self, x: Tensor) -> DelayState:
        self.check_input(x)
        x = self.normalize(x)
        return DelayState(0, 0, (x,), (), tuple(self._zeros(x, len(x)).values()))

    def step(self, state: DelayState) -> tuple[Tensor, DelayState]:
        if not state.moving and state.time >= self.first + self.num_steps:
            raise ValueError(f"all {self.num_steps} steps are done")
        plan = self._plans[self.training, bool(state.moving)]
        kept = zip(plan.kept(state.time), state.values, strict=True)
        series = {i: Series(first, list(parts)) for (i, first), parts in kept}
        for image in state.images:
            new = Series(max(state.time - self.first, 0), [image])
            series[0] = series[0].followed_by(new) if 0 in series else new
        stop = max(state.time, self.first) + 1
        zeros = dict(zip(plan.delays, state.zeros, strict=False))
        answers = self._advance(plan, series, zeros, state.time, stop)
        values = tuple(tuple(series[i].parts) for i, _ in plan.kept(stop))
        images = state.images if state.moving else ()
        return answers[-1], DelayState(stop, state.moving, images, values, state.zeros if stop < plan.dark else ())

    def stream(self, x: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """The answers `[B, K]`, one by one: T to an image batch, or one to each frame of an iterable of batches."""
        return super().stream(x) if isinstance(x, Tensor) and x.ndim != 5 else self._watch(iter(x))

    def _watch(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        state = None
        for frame in frames:
            state = self.initial_state(frame)._replace(moving=1) if state is None else self.observe(state, frame)
            logits, state = self.step(state)
            yield logits

    def observe(self, state: DelayState, x: Tensor) -> DelayState:
        """The state in which the image has changed to `x` `[B, C, H, W]` before the next step.

        Raises:
            ValueError: Images of another shape or type than before; a still image, of which steps have been done.
        """
        if not state.images:
            raise ValueError(
                f"a still image has been answered to up to t = {state.time - 1}, so that what new ones need is gone: give the "
                "frames to stream, or start from initial_state(x)._replace(moving=1)"
            )
        self.check_input(x)
        before, x = state.images[0], self.normalize(x)
        if x.shape != before.shape:
            raise ValueError(f"a frame has shape {list(x.shape)}, the first had {list(before.shape)}")
        if x.dtype != before.dtype:
            raise ValueError(f"a frame has type {x.dtype}, the first had {before.dtype}")
        return state._replace(moving=1, images=(x,))

    # -- operation by operation ----------------------------------------------------------------------------------------

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, or with `step` = 1..T that answer alone, `[B, K]`, at its contract cost.

        Args:
            x: Images `[B, C, H, W]`, or frames `[T, B, C, H, W]`, each seen for one step.
            step: The one answer that is wanted (of a static image).
        """
        if step is not None:
            return super().forward(x, step)
        if x.ndim != 5:
            return self._answers(self._plans[self.training, False], x, 1, self.num_steps)
        if not len(x):
            raise ValueError(f"there are no frames: got {list(x.shape)}")
        return self._answers(self._plans[self.training, True], x.flatten(0, 1), len(x), len(x))

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The answer of step 1..T alone: an operation runs at those times only that can still reach it."""
        plan = Plan(self._traced[self.training], self.kernel, self.first + step - 1)
        return self._answers(plan, x, 1, step)[0]

    def _answers(self, plan: Plan, x: Tensor, frames: int, steps: int) -> Tensor:
        self.check_input(x)
        batch, stop = len(x) // frames, self.first + steps
        x = self.normalize(x)
        zeros = self._zeros(x, batch)
        series = {0: Series(0, list(x.split(batch)), x)}
        size = stop if torch.is_grad_enabled() else max(CHUNK // batch, 1)
        answers: list[Tensor] = []
        for start in range(0, stop, size):
            answers += self._advance(plan, series, zeros, start, min(start + size, stop))
        return torch.stack(answers)

    def _advance(self, plan: Plan, series: dict[int, Series], zeros: dict[int, Tensor], start: int, stop: int) -> list[Tensor]:
        """The answers at times start..stop-1. `series` holds the values needed for them, and afterwards for the next ones."""

        def forget(j: int) -> None:
            oldest = plan.oldest(j, stop)
            if oldest is None:
                series.pop(j, None)
            elif j in series:
                series[j].since(max(oldest, series[j].first))

        for i in plan.order:
            times = plan.times(i, start, stop)
            if times:
                new = self._arrive(plan, i, times, series, zeros) if plan.ops[i].delay else self._run(plan, i, times, series)
                series[i] = series[i].followed_by(new) if i in series else new
            for j in plan.last[i]:
                forget(j)
        settled = plan.settled[plan.output]
        answers = [series[plan.output].at(min(t, settled)) for t in range(max(start, plan.start), stop)]
        forget(plan.output)
        return answers

    def _arrive(self, plan: Plan, i: int, times: range, series: dict[int, Series], zeros: dict[int, Tensor]) -> Series:
        """What the delay i gives at `times`."""
        (j,) = plan.ops[i].inputs
        settled, arrived = plan.settled[j], Series(times.start, [])
        earlier = series.get(i, arrived)
        for t in times:
            if t < self.kernel.lag:
                out = zeros[i]
            elif isinstance(self.kernel, Smoothing):
                before = (arrived if t > times.start else earlier).at(t - 1) if t else None
                out, _ = self.kernel.arrive(series[j].at(min(t, settled)), () if before is None else (before,))
            else:
                sent = [series[j].at(min(s, settled)) for s in range(t - self.kernel.lag, max(t - plan.span[i], 0) - 1, -1)]
                out, _ = self.arrival.arrive(sent[0], tuple(sent[1:]))
            arrived.parts.append(out)
        return arrived

    def _run(self, plan: Plan, i: int, times: range, series: dict[int, Series]) -> Series:
        """What the operation i gives at `times`: in one call where that is known to be the same, else one by one."""
        op = plan.ops[i]
        whole = self._at_once(plan, i, times, series) if len(times) > 1 and op.plain else None
        if whole is None:
            parts = []
            for t in times:
                given = {j: series[j].at(min(t, plan.settled[j])) for j in op.sources}
                given |= {j: series[j].parts[-1] for j in op.inputs if j not in given}  # the size is that of any time
                parts.append(evaluate(plan.ops, i, given, self, t))
            return Series(times.start, parts)
        leaves, spec = pytree.tree_flatten(whole)
        cut = [leaf.chunk(len(times)) if isinstance(leaf, Tensor) else [leaf] * len(times) for leaf in leaves]
        return Series(times.start, [pytree.tree_unflatten(list(part), spec) for part in zip(*cut, strict=True)], whole)

    def _at_once(self, plan: Plan, i: int, times: range, series: dict[int, Series]) -> Any:
        """What the operation i gives at `times`, one after the other in the batch; None where that may not be the same."""
        op = plan.ops[i]
        module = self.get_submodule(op.target) if op.kind == "call_module" else None
        alone = (
            type(module) in ALONE
            or isinstance(module, StepBatchNorm2d)
            or (type(module) in NORMS and not module.training and module.running_mean is not None)  # type: ignore[union-attr]
            or (type(module) is nn.MultiheadAttention and module.batch_first)
        )
        picks = op.target is operator.getitem and isinstance(op.args[1], int)  # one of several outputs
        light = module is None and (picks or op.target in ELEMENTWISE)  # not worth a copy of its input
        if not alone and not light:
            return None
        given = {j: series[j].together([min(t, plan.settled[j]) for t in times], copies=alone) for j in op.inputs}
        if any(value is None for value in given.values()):
            return None
        if picks and not all(isinstance(value, tuple) for value in given.values()):
            return None  # of a tensor it would be one image
        if light and not picks and len({(value.ndim, value.shape[:1]) for value in given.values()}) > 1:
            return None  # broadcasting
        if isinstance(module, StepBatchNorm2d):
            return module.over_time(given[op.inputs[0]], times)
        return evaluate(plan.ops, i, given, self)

    # -- before anything arrives ---------------------------------------------------------------------------------------

    def _zeros(self, x: Tensor, batch: int) -> dict[int, Tensor]:
        """What each delay gives to normalised images before anything has arrived: zeros, which take no memory."""
        kind = x.device.type
        cast = torch.is_autocast_enabled(kind) if torch.amp.is_autocast_available(kind) else False
        key = (x.shape[1:], x.dtype, self.training, torch.get_autocast_dtype(kind) if cast else None)
        if key not in self._shapes:
            rehearse = torch.compiler.disable(self._rehearse)  # here, for the compiler takes a second to import
            with ThreadPoolExecutor(1) as pool:  # a thread is free of this one's modes, such as the counting of FLOPs
                self._shapes[key] = pool.submit(rehearse, x.device, key).result()
        plan = self._plans[self.training, False]
        if not plan.dark:
            return {}
        shapes = zip(plan.delays, self._shapes[key], strict=True)
        return {i: x.new_zeros((), dtype=dtype).expand(batch, *shape) for i, (shape, dtype) in shapes}

    @torch.no_grad()
    def _rehearse(self, device: torch.device, key: Setting) -> list[tuple[torch.Size, torch.dtype]]:
        """The shapes and types of what the delays give to images of a size, found by a run of a copy without data, under the
        caller's autocast (`cast`), which belongs to a thread."""
        size, dtype, training, cast = key
        plan = self._plans[training, False]
        memo: dict[int, Any] = {id(kept): kept for kept in (self._traced, self._plans)}
        autocast = torch.autocast(device.type, cast) if cast else nullcontext()
        values: dict[int, Any] = {}
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), autocast:
                tensors = chain(self.parameters(), self.buffers())
                memo |= {id(tensor): torch.empty_like(tensor) for tensor in tensors}
                copied = copy.deepcopy(self, memo).train()  # in eval mode, attention takes a way that needs data
                values[0] = torch.empty(REHEARSED, *size, dtype=dtype, device=device)
                for i, op in enumerate(plan.ops):
                    if (plan.late[i] < math.inf and i) or op.target is torch._assert:
                        values[i] = evaluate(plan.ops, i, values, copied, hooks=False)
        except Exception as error:
            raise ValueError(f"the network cannot run on images {list(size)}: {error}") from error
        kept = {i for time in range(1, self.first + self.num_steps) for i, _ in plan.kept(time)}
        for i in {*kept, *plan.delays, plan.output}:
            for leaf in pytree.tree_leaves(values[i]):
                if isinstance(leaf, Tensor) and leaf.shape[:1] != (REHEARSED,):
                    raise ValueError(
                        f"{plan.ops[i].name} gives {list(leaf.shape)} for {REHEARSED} images: what is "
                        "delayed or kept from step to step must have the batch in dimension 0"
                    )
        answer = values[plan.output]
        if not isinstance(answer, Tensor) or (answer.ndim == 2 and answer.shape[1] != self.num_classes):
            gives = f"{answer.shape[1]} logits" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            raise ValueError(
                f"the network gives {gives}, expected a tensor [B, {self.num_classes}] (num_classes) or maps [B, ...]"
            )
        return [(values[i].shape[1:], values[i].dtype) for i in plan.delays]


def add_delays(
    network: nn.Module,
    branches: Sequence[str] | None = None,
    kernel: Kernels = "osd",
    alpha: float = 0.9,
    num_steps: int | None = None,
    *,
    num_classes: int | Sequence[int],
    in_channels: int = 3,
    leaves: Sequence[str] = (),
    statistics: Statistics | None = "shared",
) -> DelayedNetwork:
    """Puts propagation delays on a network with skip connections: it then answers at once, and better with every step.

    The network keeps its weights. Images are in [0, 1]: `set_normalization` says what it was trained on. See `DelayedNetwork`
    for the arguments; `num_classes` is what the network gives.

    Example:
        >>> from torchvision.models import resnet18
        >>> model = add_delays(resnet18(), num_classes=1000)
        >>> model.num_steps, model.branches[:2]
        (9, ('layer1.0.bn2', 'layer1.1.bn2'))
    """
    return DelayedNetwork(network, branches, kernel, alpha, num_steps, num_classes, in_channels, leaves, statistics)
