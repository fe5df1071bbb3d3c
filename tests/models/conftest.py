"""A plain simulation of a network with delayed branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor, nn


def _simulate(network: nn.Module, branches: Sequence[str], weights: Sequence[float], frames: Sequence[Tensor]) -> list[Tensor]:
    """The answers at t = 0, 1, ...; nothing is skipped. `weights` of the delay reach as far as the simulation."""
    lines: dict[str, list[Tensor]] = {name: [] for name in branches}
    time = 0

    def late(name: str) -> Any:
        def hook(module: nn.Module, _: Any, out: Any) -> Any:
            lines[name].append(out[0] if isinstance(out, tuple) else out)
            arrived = sum(w * r for w, r in zip(weights, reversed(lines[name]), strict=False))
            return (arrived, *out[1:]) if isinstance(out, tuple) else arrived

        return hook

    def take_row(module: nn.Module, args: Any) -> Any:
        return (*args, time)

    handles = [network.get_submodule(name).register_forward_hook(late(name)) for name in branches]
    handles += [m.register_forward_pre_hook(take_row) for m in network.modules() if hasattr(m, "rows")]
    answers = []
    for time, frame in enumerate(frames):  # noqa: B007, the hook reads it
        answers.append(network(frame))
    for handle in handles:
        handle.remove()
    return answers


@pytest.fixture(scope="session")
def simulate() -> Callable[..., list[Tensor]]:
    """`simulate(network, branches, weights, frames)`: the answers of the network whose branches are delayed, step by step."""
    return _simulate
