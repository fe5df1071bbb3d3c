"""Timing for the benchmarks: several functions in turns, medians with spread, ratios from one run."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from anytime.cost import hardware
from anytime.version import __version__


def time_in_turns(functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each function, `repeats` times, in turns, so that a change of the machine's speed touches all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> dict[str, float]:
    """Median, 10th and 90th percentile over the turns of seconds[name] / seconds[to]."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]
    deciles = statistics.quantiles(ratios, n=10)
    return {"median": statistics.median(ratios), "p10": deciles[0], "p90": deciles[-1]}


def compile_steps(step: Callable[[Any], Any], count: int) -> list[Callable[[Any], Any]]:
    """`count` compiled copies of `step(state)`, one for each step of a stream, which sees states of its own.

    A function per step, each with its own code object: `torch.compile` keeps graphs per code object, and would try the guards
    of all steps before it finds the right one. Guards on modules are left out, since nothing changes them here.
    """

    def call(state: Any) -> Any:
        return step(state)

    options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    names = [f"step_{t}" for t in range(1, count + 1)]
    own = [FunctionType(call.__code__.replace(co_name=n), call.__globals__, n, None, call.__closure__) for n in names]
    return [torch.compile(function, options=options) for function in own]


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {
        "hardware": hardware(torch.device(device)), "torch": torch.__version__, "anytime": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="timed turns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser


def write(out: Path | None, results: dict[str, Any]) -> None:
    """Writes the results as JSON if a file is named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {out}")
