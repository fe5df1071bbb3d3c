"""Milliseconds of every network under the same conditions: one image, one thread, one after the other in many rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from anytime.cost import step_seconds
from anytime.model import create_model
from anytime.support.limits import AllocationLimit
from anytime.support.trust import names_from
from anytime.trace import Trace
from anytime.training.foreign import check_offline

ROUNDS = 15
MOST_NUMBERS, MOST_TENSORS = 2**27, 100_000  # of a network that is timed, many times more than the leaderboard allows


def one_thread_seconds(traces: Mapping[str, Trace], rounds: int = ROUNDS) -> dict[str, Sequence[float]]:
    """Cumulative median seconds of each answer to one image on one thread of this CPU, by name, `[T]`.

    The networks are built anew from the arguments in their traces, because time does not depend on weights. Names in traces
    are looked up, never imported, and nothing is downloaded. Each round times all networks, so other work on the machine
    slows all alike.

    Args:
        traces: A trace of each network.
        rounds: Timed streams of each network, at least 1; one more warms up.
    """
    threads, measured = torch.get_num_threads(), {name: list[list[float]]() for name in traces}
    networks = {}
    for name, trace in traces.items():
        arguments = dict(trace.meta["model_arguments"])
        arguments |= {"pretrained": False} if "pretrained" in arguments else {}
        source = f"the trace of {name}"
        check_offline([trace.meta["model"], arguments], source)
        with names_from(source), AllocationLimit(MOST_NUMBERS, MOST_TENSORS, source):
            networks[name] = create_model(trace.meta["model"], arguments.pop("num_classes"), **arguments).eval()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, network in networks.items():
                size = tuple(traces[name].meta["input_size"])
                measured[name].append(step_seconds(network, size, repeats=1, warmup=0).median)
    finally:
        torch.set_num_threads(threads)
    return {name: torch.tensor(found[1:], dtype=torch.float64).median(0).values.tolist() for name, found in measured.items()}
