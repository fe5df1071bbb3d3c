"""What this machine can do for a training: the precision that its processor has, and whether its memory suffices."""

from __future__ import annotations

import copy
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from anytime.data import ImageData
from anytime.model import AnytimeModel
from anytime.training.module import AnytimeModule

SLOWER = "1.8 to 2.2 times"  # float32 over bfloat16, results/benchmarks/training.json
PROBED = (2, 3)  # images of the two batches that are tried
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMORY = Path("/proc/meminfo")


def on_cpu(accelerator: str) -> bool:
    """Whether a training with this accelerator computes on the CPU."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; without them torch emulates it, more slowly than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def usable_precision(precision: str, accelerator: str) -> str:
    """The precision, or float32 where the CPU has no instructions for bfloat16."""
    return "32-true" if precision.startswith("bf16") and on_cpu(accelerator) and not has_bfloat16() else precision


def precision_warning(precision: str, accelerator: str) -> str | None:
    """What a user should know of `usable_precision`; None if it changes nothing."""
    if usable_precision(precision, accelerator) == precision:
        return None
    return (
        f"this processor has no bfloat16 instructions, so precision is 32-true and not {precision}; a training step takes "
        f"{SLOWER} as long as on a processor that has them"
    )


def free_memory(accelerator: str) -> int | None:
    """Bytes that a training may still take, at most; None where this system does not say."""
    if not on_cpu(accelerator):
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    try:
        lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        return min(free, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no limit
        return free


def step_memory(module: AnytimeModule, data: ImageData, precision: str) -> int | None:
    """Bytes of a training step: what the backward pass needs of the forward pass, gradients and the weights' moving sums.

    The forward pass is tried on two and on three images with a copy of the model; random numbers and statistics stay as they
    are. The rest follows a straight line over the images of a batch.

    Returns:
        Bytes for a whole batch, without what the operators need themselves; None if the model cannot compute two images.
    """
    model = copy.deepcopy(module.model).train()
    for part in model.modules():  # a user's hooks see only the training
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    try:
        fewer, more = (_saved_bytes(model, module, data.input_size, images, precision) for images in PROBED)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return None
    per_image = (more - fewer) // (PROBED[1] - PROBED[0])
    return fewer + (data.batch_size - PROBED[0]) * per_image + 2 * weights


def _saved_bytes(model: AnytimeModel, module: AnytimeModule, size: Sequence[int], images: int, precision: str) -> int:
    """Bytes that autograd keeps of a forward pass, without parameters and buffers."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal saved
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            saved += storage.nbytes()
        return tensor

    x = module.to_memory_format(torch.rand(images, *size, generator=torch.Generator().manual_seed(0)))
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    autocast = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        module.regime.forward(model)(x)
    return saved


def memory_warning(module: AnytimeModule, data: ImageData, precision: str, accelerator: str) -> str | None:
    """A sentence if a training step takes more memory than is free; None if it fits or nobody knows."""
    free = free_memory(accelerator)
    needed = step_memory(module, data, precision) if free is not None else None
    if free is None or needed is None or needed <= free:
        return None
    return (
        f"a training step takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free, so the training may be killed; "
        f"make --data.batch_size smaller than {data.batch_size} (--accumulate keeps the number of images per optimizer step)"
    )
