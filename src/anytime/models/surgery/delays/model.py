"""Propagation delays on any network with skip connections (Iuzzolino, Mozer, Bengio, NeurIPS 2021)."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from anytime.model import eval_mode
from anytime.models.common.delay_kernels import Kernels, Smoothing, make_kernel
from anytime.models.common.frames import FrameModel
from anytime.models.common.step_norm import Statistics, StepBatchNorm2d
from anytime.models.common.steps import require_step_left
from anytime.models.surgery.delays.graph import build_graph, evaluate
from anytime.models.surgery.delays.norms import set_rows, use_step_norms
from anytime.models.surgery.delays.plan import DelayPlan, DelayState, Series

CHUNK = 256  # images that an operation processes at once without gradients, so that memory stays bounded
PROBE_BATCH = 1009  # batch size of the shape probe: a prime no other dimension is likely to equal

# Modules that treat each image separately, wherever it lies in the batch; anything else runs once for each time.
PER_IMAGE = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, nn.LayerNorm, nn.GroupNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.Identity, nn.Dropout, nn.Dropout2d),
)
PER_IMAGE_IN_EVAL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ELEMENTWISE = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.add, torch.sub, torch.mul),
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.gelu, F.silu, F.sigmoid, F.tanh),
    *("add", "sub", "mul", "relu", "sigmoid", "tanh"),
}

ProbeKey = tuple[torch.Size, torch.dtype, bool, torch.dtype | None]  # size and type of images, train mode, autocast type


class DelayedNetwork(FrameModel):
    """A network whose branches arrive late, while its skip connections are instantaneous.

    Wherever the network uses the output r of a branch, it now gets D(r)[t] = sum_s kappa_s r[t - s], with r = 0 before t = 0;
    everything else is computed at each t from its inputs at that t. So x + f(x) gives x at once, and f of the x one step
    earlier (one-step delay).

    Clock: the first answer is the first that has seen the image: at t = 0, through skip connections only, unless every path
    from the image to the answer is delayed (then t is the lag of the shortest). An operation settles when its input has; a
    delay settles later by its memory. By default the last answer is the settled one, after as many steps as the longest chain
    of branches has, times the memory of the kernel. It is the network's own answer if the weights of the kernel sum to 1.

    Work: nothing is evaluated twice on the same input, nor before an answer needs it: the branch of a one-step delay, with
    everything that leads only to it, is evaluated in the step in which it arrives. `forward` goes operation by operation:
    those known to treat each image separately (convolutions, linear maps, norms in evaluation, attention with the batch first,
    ...) process all their times in one batch; any other (batch norm in training) runs once for each time, so nothing needs to
    be known about it. Without gradients, times go in chunks, so memory is bounded.

    torch.fx traces the network once in train and once in eval mode. Its own modules are used, under `network.` in the state
    dict, with their weights; in-place activations are switched to out of place. Modules whose `forward` takes a `row`
    (`StepBatchNorm2d`) get the time t of their input. Values that depend only on parameters are evaluated wherever needed.

    Batch norm (`statistics="per_step"`): each `nn.BatchNorm2d` becomes a `StepBatchNorm2d` with its weights, and with separate
    running statistics for each distinct time of its input; later times take the last. In training each time is normalised by
    its own batch, so statistics shared by all times are a mixture that fits none. At first every row is the network's, and the
    answers are the same; the state dict of an ordinary network is loaded into every row. Norms inside leaves keep one row.
    Others stay: `BatchNorm1d`, `BatchNorm3d`, subclasses, those without weights, running statistics or momentum.

    Args:
        network: A network from images to logits, or to maps `[B, ...]`.
        branches: Names of the modules whose output is delayed; default: the branches of all blocks x + f(x), that is, of the
            sums whose terms lead back to one tensor on separate paths: the shortest is the skip, the others are branches.
        kernel: `"osd"`, `"ews"`, `"instant"`, or the weights of a tapped delay line.
        alpha: Weight of the previous output under smoothing, in [0, 1).
        num_steps: T; default: until the answer has settled (with smoothing 70).
        num_classes: K of the logits, or the sizes of several label levels; for maps, their channels.
        in_channels: Channels of the images.
        leaves: Names of modules that run as one operation, because torch.fx cannot look into them.
        statistics: Running statistics of batch norm `"shared"` by all times, or `"per_step"`; None: per step where there are
            such norms, but shared under smoothing.

    Attributes:
        branches: Names of the delayed branches.
        first: t of the first answer.

    Raises:
        ValueError: Branches are unknown or none is found, the network cannot be traced, there are more steps than until the
            settled answer, or no norm's statistics can be per step.
        TypeError: `network` is not a network.

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
        norms = use_step_norms(network, statistics, self.kernel)
        with eval_mode(network):
            self._graphs = {False: build_graph(network, branches, leaves, "eval_")}
            network.train()
            self._graphs[True] = build_graph(network, branches, leaves, "train_")
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                setattr(module, "inplace", False)  # noqa: B010, for the type checker
        self.network = network
        for name, constant in chain(*(graph.constants.items() for graph in self._graphs.values())):
            self.register_buffer(name, constant, persistent=False)
        self._plans = {  # by train mode, and whether the images move
            (mode, moving): DelayPlan(graph, self.kernel, moving=moving)
            for mode, graph in self._graphs.items()
            for moving in (False, True)
        }
        self._shapes: dict[ProbeKey, list[tuple[torch.Size, torch.dtype]]] = {}  # shapes and types of the delays
        plan = self._plans[False, False]
        self.branches, self.first = self._graphs[False].branches, plan.first
        limit = plan.settled[plan.output] + 1 - self.first
        if num_steps is None:
            num_steps = 70 if limit == math.inf else int(limit)
        if not 1 <= num_steps <= limit:
            raise ValueError(f"num_steps must lie in 1..{limit}, when the answer has settled, got {num_steps!r}")
        self.num_steps = num_steps
        set_rows(norms, (self._plans[mode, False] for mode in self._graphs), self.first + num_steps, self)

    # -- step by step --------------------------------------------------------------------------------------------------

    def initial_state(self, x: Tensor) -> DelayState:
        self.check_input(x)
        x = self.normalize(x)
        return DelayState(0, 0, (x,), (), tuple(self._zeros(x, x.shape[0]).values()))

    def first_frame(self, x: Tensor) -> DelayState:
        return self.initial_state(x)._replace(moving=1)

    def step(self, state: DelayState) -> tuple[Tensor, DelayState]:
        if not state.moving:
            require_step_left(state.time - self.first, self.num_steps)
        plan = self._plans[self.training, bool(state.moving)]
        live = zip(plan.live(state.time), state.values, strict=True)
        series = {i: Series(oldest, list(parts)) for (i, oldest), parts in live}
        for image in state.images:
            new = Series(max(state.time - self.first, 0), [image])
            series[0] = series[0].followed_by(new) if 0 in series else new
        stop = max(state.time, self.first) + 1
        zeros = dict(zip(plan.delays, state.zeros, strict=False))
        answers = self._advance(plan, series, zeros, state.time, stop)
        values = tuple(tuple(series[i].parts) for i, _ in plan.live(stop))
        images = state.images if state.moving else ()
        return answers[-1], DelayState(stop, state.moving, images, values, state.zeros if stop < plan.zeros_until else ())

    def observe(self, state: DelayState, x: Tensor) -> DelayState:
        """The state after the image has changed to `x` `[B, C, H, W]`, before the next step.

        Raises:
            ValueError: The images have another shape or type than before, or steps with a still image have been done.
        """
        if not state.images:
            raise ValueError(
                f"a still image has been answered up to t = {state.time - 1}, so new ones lack the values they need: pass the "
                "frames to stream, or start from first_frame(x)"
            )
        self.check_input(x)
        before, x = state.images[0], self.normalize(x)
        if x.shape != before.shape:
            raise ValueError(f"a frame has shape {list(x.shape)}, the first had {list(before.shape)}")
        if x.dtype != before.dtype:
            raise ValueError(f"a frame has type {x.dtype}, the first had {before.dtype}")
        return state._replace(moving=1, images=(x,))

    # -- operation by operation ----------------------------------------------------------------------------------------

    def all_answers(self, x: Tensor, frames: int) -> Tensor:
        return self._answers(self._plans[self.training, frames > 0], x, frames or 1, frames or self.num_steps)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """Only the answer of step 1..T: an operation runs only at times that can still reach it."""
        plan = DelayPlan(self._graphs[self.training], self.kernel, self.first + step - 1)
        return self._answers(plan, x, 1, step)[0]

    def _answers(self, plan: DelayPlan, x: Tensor, frames: int, steps: int) -> Tensor:
        self.check_input(x)
        batch, stop = x.shape[0] // frames, self.first + steps
        x = self.normalize(x)
        zeros = self._zeros(x, batch)
        series = {0: Series(0, list(x.split(batch)), x)}
        size = stop if torch.is_grad_enabled() else max(CHUNK // batch, 1)
        answers: list[Tensor] = []
        for start in range(0, stop, size):
            answers += self._advance(plan, series, zeros, start, min(start + size, stop))
        return torch.stack(answers)

    def _advance(
        self, plan: DelayPlan, series: dict[int, Series], zeros: dict[int, Tensor], start: int, stop: int
    ) -> list[Tensor]:
        """The answers at times start..stop-1. `series` holds the values needed for them, and afterwards for the next ones."""

        def forget(j: int) -> None:
            oldest = plan.oldest(j, stop)
            if oldest is None:
                series.pop(j, None)
            elif j in series:
                series[j].forget_before(max(oldest, series[j].first))

        for i in plan.order:
            times = plan.times(i, start, stop)
            if times:
                delay = plan.ops[i].is_delay
                new = self._arrive(plan, i, times, series, zeros) if delay else self._run(plan, i, times, series)
                series[i] = series[i].followed_by(new) if i in series else new
            for j in plan.last[i]:
                forget(j)
        settled = plan.settled[plan.output]
        answers = [series[plan.output].at(min(t, settled)) for t in range(max(start, plan.start), stop)]
        forget(plan.output)
        return answers

    def _arrive(self, plan: DelayPlan, i: int, times: range, series: dict[int, Series], zeros: dict[int, Tensor]) -> Series:
        """The output of delay i at `times`."""
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

    def _run(self, plan: DelayPlan, i: int, times: range, series: dict[int, Series]) -> Series:
        """The output of operation i at `times`: from one call if that is known to be the same, otherwise one by one."""
        op = plan.ops[i]
        whole = self._at_once(plan, i, times, series) if len(times) > 1 and op.plain else None
        if whole is None:
            parts = []
            for t in times:
                given = {j: series[j].at(min(t, plan.settled[j])) for j in op.sources}
                given |= {j: series[j].parts[-1] for j in op.inputs if j not in given}  # its size is the same at all times
                parts.append(evaluate(plan.ops, i, given, self, t))
            return Series(times.start, parts)
        leaves, spec = pytree.tree_flatten(whole)
        chunks = [leaf.chunk(len(times)) if isinstance(leaf, Tensor) else [leaf] * len(times) for leaf in leaves]
        return Series(times.start, [pytree.tree_unflatten(list(part), spec) for part in zip(*chunks, strict=True)], whole)

    def _at_once(self, plan: DelayPlan, i: int, times: range, series: dict[int, Series]) -> Any:
        """The output of operation i at all `times`, which follow each other in the batch; None if that may not be the same."""
        op = plan.ops[i]
        module = self.get_submodule(op.target) if op.kind == "call_module" else None
        per_image = (
            type(module) in PER_IMAGE
            or isinstance(module, StepBatchNorm2d)
            or (type(module) in PER_IMAGE_IN_EVAL and not module.training and module.running_mean is not None)  # type: ignore[union-attr]
            or (type(module) is nn.MultiheadAttention and module.batch_first)
        )
        picks = op.target is operator.getitem and isinstance(op.args[1], int)  # one of several outputs
        light = module is None and (picks or op.target in ELEMENTWISE)  # not worth a copy of its input
        if not per_image and not light:
            return None
        given = {j: series[j].batched([min(t, plan.settled[j]) for t in times], copies=per_image) for j in op.inputs}
        if any(value is None for value in given.values()):
            return None
        if picks and not all(isinstance(value, tuple) for value in given.values()):
            return None  # indexing a tensor would pick one image
        if light and not picks and len({(value.ndim, value.shape[:1]) for value in given.values()}) > 1:
            return None  # broadcasting
        if isinstance(module, StepBatchNorm2d):
            return module.over_time(given[op.inputs[0]], times)
        return evaluate(plan.ops, i, given, self)

    # -- before anything arrives ---------------------------------------------------------------------------------------

    def _zeros(self, x: Tensor, batch: int) -> dict[int, Tensor]:
        """The output of each delay for normalised images before anything has arrived: zeros, which take no memory."""
        kind = x.device.type
        cast = torch.is_autocast_enabled(kind) if torch.amp.is_autocast_available(kind) else False
        key = (x.shape[1:], x.dtype, self.training, torch.get_autocast_dtype(kind) if cast else None)
        if key not in self._shapes:
            probe = torch.compiler.disable(self._probe)  # not a decorator: importing the compiler takes a second
            with ThreadPoolExecutor(1) as pool:  # a new thread has none of this one's modes, such as the FLOP counter's
                self._shapes[key] = pool.submit(probe, x.device, key).result()
        plan = self._plans[self.training, False]
        if not plan.zeros_until:
            return {}
        shapes = zip(plan.delays, self._shapes[key], strict=True)
        return {i: x.new_zeros((), dtype=dtype).expand(batch, *shape) for i, (shape, dtype) in shapes}

    @torch.no_grad()
    def _probe(self, device: torch.device, key: ProbeKey) -> list[tuple[torch.Size, torch.dtype]]:
        """The shapes and types of the delays' outputs, found by running a copy on fake tensors.

        The caller's autocast (`cast`) is set again, because it belongs to the caller's thread.
        """
        size, dtype, training, cast = key
        plan = self._plans[training, False]
        memo: dict[int, Any] = {id(shared): shared for shared in (self._graphs, self._plans)}
        autocast = torch.autocast(device.type, cast) if cast else nullcontext()
        values: dict[int, Any] = {}
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), autocast:
                tensors = chain(self.parameters(), self.buffers())
                memo |= {id(tensor): torch.empty_like(tensor) for tensor in tensors}
                copied = copy.deepcopy(self, memo).train()  # in eval mode, attention takes a path that needs data
                for norm in (module for module in copied.modules() if isinstance(module, _BatchNorm)):
                    norm.momentum = norm.momentum or 0.0  # without one, a norm reads its count of batches
                values[0] = torch.empty(PROBE_BATCH, *size, dtype=dtype, device=device)
                for i, op in enumerate(plan.ops):
                    if (plan.lag_to_answer[i] < math.inf and i) or op.target is torch._assert:
                        values[i] = evaluate(plan.ops, i, values, copied, hooks=False)
        except Exception as error:
            raise ValueError(f"the network cannot run on images {list(size)}: {error}") from error
        live = {i for time in range(1, self.first + self.num_steps) for i, _ in plan.live(time)}
        for i in {*live, *plan.delays, plan.output}:
            for leaf in pytree.tree_leaves(values[i]):
                if isinstance(leaf, Tensor) and leaf.shape[:1] != (PROBE_BATCH,):
                    raise ValueError(
                        f"{plan.ops[i].name} gives {list(leaf.shape)} for {PROBE_BATCH} images: tensors that are delayed or "
                        "stored from step to step must have the batch in dimension 0"
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

    The network keeps its weights. Images are in [0, 1]: `set_normalization` sets the normalisation it was trained with.
    `DelayedNetwork` documents the arguments; `num_classes` is the number of logits that the network gives.

    Example:
        >>> from torchvision.models import resnet18
        >>> from anytime import add_delays
        >>> model = add_delays(resnet18(), num_classes=1000)
        >>> model.num_steps, model.branches[:2]
        (9, ('layer1.0.bn2', 'layer1.1.bn2'))
    """
    return DelayedNetwork(network, branches, kernel, alpha, num_steps, num_classes, in_channels, leaves, statistics)
