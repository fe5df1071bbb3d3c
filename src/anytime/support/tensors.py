"""What tensors hold: shape, type and range in words; what can be saved plainly; numbers too small to be multiplied quickly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MANY = 1e-3  # share of denormal values: on many processors one costs as much as a hundred others
_BITS = {  # by type: integers of the same width, the bits without the sign, the smallest normal number
    torch.float32: (torch.int32, 0x7FFF_FFFF, 0x0080_0000),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x0080),
    torch.float64: (torch.int64, 0x7FFF_FFFF_FFFF_FFFF, 0x0010_0000_0000_0000),
}


def described(x: Tensor | np.ndarray, shape_first: bool = True) -> str:
    """`"[1, 3, 8, 8] torch.float32 from 0 to 255"`; the range is that of the finite values, and the others are counted."""
    layout = unusual_layout(x) if isinstance(x, Tensor) else None
    shape, kind = "[...]" if layout == "nested" else str(list(x.shape)), str(x.dtype)
    text = f"{shape} {kind}" if shape_first else f"{kind} {shape}"
    if not has_range(x):
        return f"{text} ({layout})" if layout else text
    values = x.detach().double() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, np.float64, order="C"))
    finite = values[values.isfinite()]
    missing = values.numel() - finite.numel()
    text += f" from {finite.min().item():g} to {finite.max().item():g}" if finite.numel() else ""
    return text + (f", {missing} of {values.numel()} NaN or infinite" if missing else "")


def has_range(x: Tensor | np.ndarray) -> bool:
    """Whether a tensor or array holds real numbers, each in its place in memory."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "biuf"
    return unusual_layout(x) is None and not (x.is_complex() or x.is_quantized)


def unusual_layout(x: Tensor) -> str | None:
    """`"sparse_coo"`, `"nested"` or `"meta"`; None for a tensor that has each of its values in memory."""
    if x.layout is not torch.strided:
        return str(x.layout).removeprefix("torch.")
    return "nested" if x.is_nested else "meta" if x.is_meta else None


def check_plain(state: Mapping[str, Any]) -> None:
    """Raises ValueError if a state dict holds anything but torch's own dense tensors, as a quantised network's does."""
    for name, value in state.items():
        if type(value) not in (Tensor, nn.Parameter) or value.is_quantized or value.layout is not torch.strided:
            quantised = isinstance(value, Tensor) and value.is_quantized
            kind = "a quantised tensor" if quantised else f"a {type(value).__name__}"
            kind = f"a tensor of layout {value.layout}" if type(value) is Tensor and not quantised else kind
            raise ValueError(
                f"{name} is {kind}, which cannot be saved without pickle: save the network before it is quantised or made "
                "sparse, and quantise what is loaded"
            )


def denormal_share(tensors: Iterable[Tensor]) -> float:
    """Share of values w with 0 < |w| < the smallest normal number, among all values of floating-point tensors.

    The bits are compared, so the result is the same whether or not this thread flushes denormals. Half precision does not
    count: its values are computed in single precision, where they are normal.
    """
    found = total = 0
    for tensor in tensors:
        if tensor.is_floating_point():
            total += tensor.numel()
        if tensor.dtype in _BITS:
            whole, mask, smallest = _BITS[tensor.dtype]
            bits = tensor.detach().contiguous().view(whole) & mask
            found += int(((bits > 0) & (bits < smallest)).sum())
    return found / total if total else 0.0


def denormal_warning(tensors: Iterable[Tensor], source: str) -> str | None:
    """A sentence if many values are denormal, else None. `source` says whose values they are."""
    share = denormal_share(tensors)
    if share < MANY:
        return None
    return (
        f"{source}: {share:.1%} of the values are denormal (below 1.2e-38), which makes many processors slow: call "
        "torch.set_flush_denormal(True) in each thread that computes, or set them to 0"
    )
