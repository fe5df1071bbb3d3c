"""Timing for the benchmarks: several functions in turn, medians with spread, ratios within one run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from anytime.cost import hardware
from anytime.runtime.engines.pytorch import compile_copies
from anytime.version import __version__


def time_in_turns(functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each function, in turn, so that changes of the machine's speed affect all equally."""
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
    """Median, 10th and 90th percentile of seconds[name] / seconds[to] over the turns."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]
    deciles = statistics.quantiles(ratios, n=10)
    return {"median": statistics.median(ratios), "p10": deciles[0], "p90": deciles[-1]}


def milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Upper median of each function's times."""
    return {name: sorted(values)[len(values) // 2] * 1e3 for name, values in seconds.items()}


def autocast(precision: str, device: str) -> Any:
    """The context of a precision, "fp32" or "bf16"."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "bf16" else nullcontext()


def compile_steps(step: Callable[[Any], Any], count: int) -> list[Callable[[Any], Any]]:
    """`count` compiled copies of `step(state)`, one per step of a stream, without guards on modules: nothing changes them."""
    options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return compile_copies(step, [f"step_{t}" for t in range(1, count + 1)], options=options)


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on: hardware, versions, commit, date."""
    return {
        "hardware": hardware(torch.device(device)), "torch": torch.__version__, "anytime": __version__, "commit": COMMIT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def commit() -> str | None:
    """The commit of this repository, with "-dirty" if its files have been changed since; None outside of a clone."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


COMMIT = commit()  # at the start: a measurement takes hours, in which the repository may change


def parser(description: str) -> argparse.ArgumentParser:
    """The options common to all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="timed turns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser


def command() -> str:
    """The shell command of this process, from the root of the repository."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return f"OMP_NUM_THREADS={threads} {words}" if threads else words


def write(out: Path | None, results: dict[str, Any]) -> None:
    """Writes the results and the command that made them to a JSON file, if one is given."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"command": command(), **results}, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {out}")
