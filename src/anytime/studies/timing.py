"""The networks of a table built anew, and their milliseconds under the same conditions: one image, one thread, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from anytime.cost import step_seconds
from anytime.model import AnytimeModel, create_model
from anytime.support.limits import AllocationLimit
from anytime.support.trust import names_from
from anytime.training.foreign import check_offline

ROUNDS = 15
MOST_NUMBERS, MOST_TENSORS = 2**27, 100_000  # of a network, many times more than the leaderboard allows


def build(model: str, arguments: Mapping[str, Any], source: str) -> AnytimeModel:
    """A network with new weights from the arguments in a file: names are looked up, never imported; nothing is downloaded."""
    given = {**arguments, **({"pretrained": False} if "pretrained" in arguments else {})}
    check_offline([model, given], source)
    with names_from(source), AllocationLimit(MOST_NUMBERS, MOST_TENSORS, source):
        return create_model(model, given.pop("num_classes"), **given).eval()


def one_thread_seconds(
    networks: Mapping[str, AnytimeModel], input_size: Sequence[int], rounds: int = ROUNDS
) -> dict[str, Sequence[float]]:
    """Cumulative median seconds of each answer to one image on one thread of this CPU, by name, `[T]`.

    Each round times all networks, so other work on the machine slows all alike.

    Args:
        networks: The networks; their weights do not matter.
        input_size: (channels, height, width).
        rounds: Timed streams of each network, at least 1; one more warms up.
    """
    threads, measured = torch.get_num_threads(), {name: list[list[float]]() for name in networks}
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, network in networks.items():
                measured[name].append(step_seconds(network, tuple(input_size), repeats=1, warmup=0).median)
    finally:
        torch.set_num_threads(threads)
    return {name: torch.tensor(found[1:], dtype=torch.float64).median(0).values.tolist() for name, found in measured.items()}
