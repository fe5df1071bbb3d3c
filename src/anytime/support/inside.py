"""What happens inside a network while it answers: the linear layer that an answer comes from, and outputs of named layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from anytime.support.names import nearest

_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}


class LastLinear(TorchFunctionMode):
    """Notes what goes into linear layers; `read` gives input and weights of the last one of an answer.

    Args:
        levels: The numbers of columns of the answer's label levels, whose layers may be separate.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if func is F.linear:
            x, weight = (*args, *(given[name] for name in ("input", "weight") if name in given))[:2]
            self._note(x, weight, result)
        elif func in _PRODUCTS and len(args) == 2 and args[1].ndim >= 2:
            self._note(args[0], args[1].mT, result)
        return result

    def _note(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        columns, width = weight.shape[-2:]
        if columns in (*self.levels, sum(self.levels)) and weight.numel() == columns * width:
            rows = result.numel() // max(columns, 1)
            if x.numel() == rows * width:
                self.found.append((x.reshape(rows, width), weight.reshape(columns, width)))

    def read(self, samples: int, step: int) -> tuple[Tensor, Tensor]:
        """Input `[samples, F]` and weights `[K, F]` of the last linear layer since the last call.

        Separate layers of D label levels count as one: their inputs lie side by side, and a weight is 0 where a level does not
        read the input.

        Raises:
            ValueError: No linear layer gave an answer of K values to each sample.
        """
        found, self.found = [pair for pair in self.found if len(pair[0]) == samples], []
        if found and len(found[-1][1]) == sum(self.levels):
            return found[-1]
        parts = found[-len(self.levels) :]
        if tuple(len(weight) for _, weight in parts) == self.levels:
            return torch.cat([x for x, _ in parts], 1), torch.block_diag(*(weight for _, weight in parts))
        raise ValueError(
            f"the answer of step {step} does not come from a linear layer of {sum(self.levels)} outputs, so it has no features"
        )


class LayerOutputs:
    """The newest output of each named layer for the batch that runs now; see `watching`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.newest: dict[str, Tensor] = {}
        self.steps: dict[str, list[Tensor | None]] = {name: [] for name in names}
        self.samples = 0

    def begin(self, samples: int) -> None:
        """Before the first step of a batch."""
        self.samples, self.newest = samples, {}
        self.steps = {name: [] for name in self.steps}

    def end_step(self) -> None:
        """After each step."""
        for name, outputs in self.steps.items():
            outputs.append(self.newest.get(name))

    def read(self) -> dict[str, Tensor]:
        """The outputs of all layers after all steps, float32 `[samples, T, ...]` on the host; nan before a layer's first run.

        Raises:
            ValueError: A layer did not run, or its output changes its size.
        """
        return {name: _over_time(name, outputs) for name, outputs in self.steps.items()}


def _over_time(name: str, outputs: Sequence[Tensor | None]) -> Tensor:
    ran = [output for output in outputs if output is not None]
    if not ran:
        raise ValueError(
            f"layer {name!r} gave no output for each image while the network answered: name a module that is called by itself"
        )
    if len(shapes := {tuple(output.shape[1:]) for output in ran}) > 1:
        one, other = sorted(shapes)[:2]
        raise ValueError(f"the output of layer {name!r} changes its size over the steps, from {list(one)} to {list(other)}")
    empty = torch.full_like(ran[0], torch.nan)
    return torch.stack([empty if output is None else output for output in outputs], 1)


@contextmanager
def watching(network: nn.Module, names: Sequence[str]) -> Iterator[LayerOutputs]:
    """Within it, `LayerOutputs` follows the modules called `names`; of a tuple it takes the first tensor.

    Raises:
        ValueError: There is no module of that name.
    """
    outputs = LayerOutputs(names)
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules or not name:
            raise ValueError(f"there is no layer {name!r}{nearest(name, [known for known in modules if known])}")

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor) and first.shape[:1] == (outputs.samples,):
                outputs.newest[name] = first.float().cpu().clone()

        return note

    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
