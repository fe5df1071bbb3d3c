"""The tensors that a network keeps, and in which memory of a trace there is more than shapes tell."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))  # whose code is not a network's


def stored_tensors(network: nn.Module) -> dict[int, tuple[Tensor, str]]:
    """Parameters, buffers and tensors kept as attributes, by identity, with their names."""
    found: dict[int, tuple[Tensor, str]] = {}
    for path, module in network.named_modules():
        for kept in (module._parameters, module._buffers, vars(module)):
            for name, tensor in kept.items():
                if isinstance(tensor, Tensor):
                    found.setdefault(id(tensor), (tensor, f"{path}.{name}".removeprefix(".")))
    return found


def in_precision_of(network: nn.Module, x: Tensor) -> Tensor:
    """A tensor in the precision of a network's first weight; as it is for a network without weights."""
    return x.to(next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), x.dtype))


class Memory:
    """Where tensors lie: views share memory, so what is written through one of them is in all of them.

    Args:
        stored: The tensors that the network keeps.
    """

    def __init__(self, stored: Iterable[Tensor]) -> None:
        self.stored = {place for tensor in stored if (place := memory_of(tensor)) is not None}
        self.filled: set[int] = set()  # with what does not come from shapes

    def keeps(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of the tensors is part of one that the network keeps."""
        return any(memory_of(tensor) in self.stored for tensor in tensors)

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Notes that the tensors hold more than shapes tell from now on."""
        self.filled.update(place for tensor in tensors if (place := memory_of(tensor)) is not None)


def memory_of(tensor: Tensor) -> int | None:
    """What two tensors have in common that share memory; None for a kind without."""
    try:
        with torch._C.DisableTorchFunction():
            return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def who_asks() -> str | None:
    """The file of what calls the caller, if it is a network's code, or a block of autocast, and not torch's own."""
    file = sys._getframe(2).f_code.co_filename
    return Path(file).name if not file.startswith(OWN) or Path(file).name == "autocast_mode.py" else None


def is_asked_by_a_network() -> bool:
    """Whether what calls the caller is not torch's own code."""
    return not sys._getframe(2).f_code.co_filename.startswith(OWN)


def where() -> str:
    """The line of the network's code that runs now, as \"(net.py, line 7)\"."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OWN):
        frame = frame.f_back
    return f"({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
