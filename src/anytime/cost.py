"""The cost of each step: MACs counted on the executed operators, and seconds measured on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anytime.model import AnytimeModel, eval_mode

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts FLOPs including those of attention, which torch's fused inference kernel would hide."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which the run-time does not need

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _flops(function: Callable[[], object]) -> int:
    with flop_counter() as counter:
        function()
    return counter.get_total_flops()


def _example(model: AnytimeModel, input_size: tuple[int, int, int], batch_size: int) -> torch.Tensor:
    reference = next(model.parameters())
    if len(input_size) != 3:
        raise ValueError(f"input_size must be (channels, height, width), got {input_size!r}")
    return torch.zeros(batch_size, *input_size, device=reference.device, dtype=reference.dtype)


def step_macs(model: AnytimeModel, input_size: tuple[int, int, int], contract: bool = False) -> list[int]:
    """Cumulative multiply-adds (FLOPs / 2) of one image after each step, length T.

    Counted in eval mode on the operators that run: convolutions and matrix products, as `torch.utils.flop_counter` does.

    Args:
        input_size: (channels, height, width).
        contract: False: the interruptible cost, of the stream up to step t. True: the contract cost, of computing only
            answer t because the budget is known in advance (`model(x, step=t)`).
    """
    x = _example(model, input_size, 1)
    with torch.no_grad(), eval_mode(model):
        if contract:
            return [_flops(lambda t=t: model(x, step=t)) // 2 for t in range(1, model.num_steps + 1)]  # type: ignore[misc]
        stream, total, costs = model.stream(x), 0, []
        for _ in range(model.num_steps):
            total += _flops(lambda: next(stream)) // 2
            costs.append(total)
        return costs


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
    input_size: tuple[int, int, int],
    batch_size: int = 1,
    repeats: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> StepSeconds:
    """Measures the stream: cumulative seconds after each step for one batch, on the model's device.

    Args:
        input_size: (channels, height, width).
        batch_size: Images per batch.
        repeats: Number of measured streams.
        warmup: Number of streams run before the measurement.
        clock: Returns seconds; replaced in tests.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats!r}")
    x = _example(model, input_size, batch_size)
    streams: list[list[float]] = []
    with torch.inference_mode(), eval_mode(model):
        for _ in range(warmup + repeats):
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
