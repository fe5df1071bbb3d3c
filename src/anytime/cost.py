"""The cost of each step: MACs counted on the executed operators, and seconds measured on this machine."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from anytime.model import AnytimeModel, Deployed, eval_mode
from anytime.support.compare import clone, same
from anytime.support.flops import OuterProducts, UncountedProducts, extra_formulas
from anytime.support.precision import own_precision
from anytime.support.units import ImageSize, image_size

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


class _OneModule(nullcontext[None]):
    """Replaces torch's tracker of modules, whose hooks fail without gradients where a module is called with a weight."""

    parents = frozenset({"Global"})


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts FLOPs: what torch counts, and the products in `anytime.support.flops`.

    Attention is counted as products, which torch's fused inference kernel would hide. Warns once, by name, about every
    operator that looks like a matrix product, a transform or a solver and has no formula.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which the run-time does not need

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False, custom_mapping=extra_formulas())
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    uncounted = UncountedProducts(counter.flop_registry)
    try:
        with uncounted, counter, OuterProducts(counter):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if uncounted.names:
        warnings.warn(
            f"the cost counts {', '.join(sorted(uncounted.names))} as zero because no formula is known; register one with "
            "torch.utils.flop_counter.register_flop_formula",
            stacklevel=4,
        )


def _example(model: AnytimeModel, input_size: ImageSize, batch_size: int) -> torch.Tensor:
    reference = next(model.parameters())
    return torch.zeros(batch_size, *image_size(input_size), device=reference.device, dtype=reference.dtype)


def step_macs(model: AnytimeModel, input_size: ImageSize, contract: bool = False, progress: bool = False) -> list[int]:
    """Cumulative multiply-adds (FLOPs / 2) of one image after each step, length T.

    Counted in eval mode, in the model's own precision, on the operators that run, `initial_state` included: convolutions,
    matrix products (dense, sparse and quantised), recurrent layers, attention. Normalisation, activation, pooling, embedding
    and elementwise operators are free. Other operators that multiply, such as a solver, count as zero and are named in a
    warning. An export says what was counted on the model that it was made from, and its contract cost is that of the stream.

    Args:
        input_size: (channels, height, width), or the side of square colour images: 224.
        contract: False: the interruptible cost, of the stream up to step t. True: the contract cost, of computing only
            answer t because the budget is known in advance (`model(x, step=t)`).
        progress: Whether to show a progress bar on stderr.
    """
    if isinstance(model, Deployed):
        return model.counted_macs(image_size(input_size))
    x = _example(model, input_size, 1)
    totals = [0]
    with torch.no_grad(), eval_mode(model), own_precision(x.device), flop_counter() as counter:
        stream = None if contract else model.stream(x)
        steps = range(1, model.num_steps + 1)
        for t in tqdm(steps, desc="counting MACs", unit="step", disable=not progress, leave=False):
            if stream is None:
                model(x, step=t)
            else:
                next(stream)
            totals.append(counter.get_total_flops() // 2)
    return [after - before for before, after in pairwise(totals)] if contract else totals[1:]


def recomputed(model: AnytimeModel, x: Tensor) -> list[tuple[str, int, int]]:
    """Modules with own parameters that run again on an input that has not changed: (name, step, the step that ran it before).

    An input of zeros proves nothing: in a narrow network all ReLUs of a layer may be off at two steps.

    Args:
        x: Images `[B, C, H, W]` in [0, 1].
    """
    found: list[tuple[str, int, int]] = []
    seen: dict[str, list[tuple[int, Any]]] = {}
    now = 0

    def hook(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonzero = any(bool(x.any()) for x in args if isinstance(x, Tensor))
        before = seen.setdefault(name, [])
        found.extend((name, now, then) for then, inputs in before if nonzero and same(inputs, (args, kwargs)))
        before.append((now, clone((args, kwargs))))

    hooks = [
        module.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
        for name, module in model.named_modules()
        if module is not model and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad(), eval_mode(model), own_precision(x.device):
            state = model.initial_state(x)
            for now in range(1, model.num_steps + 1):  # noqa: B007, the hook reads it
                _, state = model.step(state)
    finally:
        for handle in hooks:
            handle.remove()
    return found


@dataclass(frozen=True)
class StepSeconds:
    """Cumulative seconds after each step, length T: median, 10th (`low`) and 90th (`high`) percentile over the repeats."""

    median: list[float]
    low: list[float]
    high: list[float]
    batch_size: int
    repeats: int


def step_seconds(
    model: AnytimeModel,
    input_size: ImageSize,
    batch_size: int = 1,
    repeats: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = False,
) -> StepSeconds:
    """Measures the stream: cumulative seconds after each step for one batch, on the model's device, in its own precision.

    Args:
        input_size: (channels, height, width), or the side of square colour images: 224.
        batch_size: Images per batch.
        repeats: Number of measured streams.
        warmup: Number of streams run before the measurement.
        clock: Returns seconds; replaced in tests.
        progress: Whether to show a progress bar on stderr.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats!r}")
    x = _example(model, input_size, batch_size)
    streams: list[list[float]] = []
    with torch.inference_mode(), eval_mode(model), own_precision(x.device):
        for _ in tqdm(range(warmup + repeats), desc="timing", unit="stream", disable=not progress, leave=False):
            start, seconds = clock(), []
            for _ in model.stream(x):
                if x.is_cuda:
                    torch.cuda.synchronize(x.device)
                seconds.append(clock() - start)
            streams.append(seconds)
    measured = torch.tensor(streams[warmup:], dtype=torch.float64)
    low, median, high = torch.quantile(measured, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=0).tolist()
    return StepSeconds(median, low, high, batch_size, repeats)


def hardware(device: torch.device) -> str:
    """The name of a device, e.g. `"AMD EPYC 7B13, 2 threads"` or `"NVIDIA H100 80GB HBM3"`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = cpu_info.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
        name += " with AMX" if any(line.startswith("flags") and "amx_bf16" in line for line in lines) else ""
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{name} ({device.type})"
