"""What noise and streams of frames cost: noise against a forward pass, frames layer by layer, and `watch` beside its updates.

    python benchmarks/noise.py [--repeats 20] [--out results/benchmarks/noise.json]

Each noise acts on a batch of 128 uint8 images of 32x32, as in training, against a forward pass of ResNet-18 (width 64, max-
pool) on the same batch: at most 5 %. A stream of 9 frames at batch 32 through the cascaded ResNet-18, all times of a block
in one batch, against step by step: at least 1.8 times as fast, which is for accelerators, as both compute the same MACs.
`watch` at batch 1, with a model whose steps only return precomputed logits, minus the bare loop over them: at most 50
microseconds a frame. All are ratios or differences of pairs in turn, on a CPU in the process's own time, which other
processes hardly lengthen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from typing import Any, get_args

import harness
import torch
from torch import Tensor, nn

from anytime import Predictor, create_model
from anytime.data import hashing
from anytime.data.noise import Noise, create_noise
from anytime.model import AnytimeModel
from anytime.support.allocator import keep_freed_memory

NOISE, STREAM, WATCH = 0.05, 1.8, 50e-6  # bars
FILL = (0.4914, 0.4822, 0.4465)


class Follower(AnytimeModel):
    """Follows frames by steps that cost nothing; it holds a network, because a predictor looks at all modules of a model."""

    follows_frames = True

    def __init__(self) -> None:
        super().__init__(10)
        self.num_steps, self.logits = 9, torch.randn(1, 10)
        self.network: nn.Module = create_model("cascaded_resnet18", width=4)

    def initial_state(self, x: Tensor) -> int:
        return 0

    def first_frame(self, x: Tensor) -> int:
        return 0

    def observe(self, state: int, x: Tensor) -> int:
        return state

    def step(self, state: int) -> tuple[Tensor, int]:
        return self.logits, state + 1


def in_turns(functions: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each function in turn: of the process on a CPU, on a GPU of the wall clock until it is idle."""
    if torch.device(device).type == "cuda":
        return harness.time_in_turns(functions, repeats)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(2 + repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name] += [time.process_time() - start] * (turn > 1)
    return seconds


@torch.inference_mode()
def noises(options: Any) -> dict[str, dict[str, float]]:
    """The share of a forward pass that each noise takes."""
    model = create_model("cascaded_resnet18", kernel="instant", pool=True, width=options.width).eval().to(options.device)
    images = torch.randint(256, (128, 3, 32, 32), dtype=torch.uint8, device=options.device)
    keys = hashing.keys(torch.arange(128), 0).to(options.device)
    x = images.float() / 255
    functions: dict[str, Callable[[], Any]] = {"forward": lambda: model(x)}
    for name in get_args(Noise):
        functions[name] = partial(create_noise(name, FILL), images, keys)
    seconds = in_turns(functions, options.repeats, options.device)
    return {name: harness.ratio(seconds, name, "forward") for name in get_args(Noise)}


@torch.inference_mode()
def stream(options: Any) -> dict[str, float]:
    """The seconds of 9 frames at batch 32 step by step, divided by those layer by layer."""
    model = create_model("cascaded_resnet18", pool=True, width=options.width).eval().to(options.device)
    frames = torch.rand(9, 32, 3, 32, 32, device=options.device)
    functions = {"layers": lambda: model(frames), "steps": lambda: [*model.stream(iter(frames))]}
    return harness.ratio(in_turns(functions, options.repeats, options.device), "steps", "layers")


def watch(repeats: int, frames: int = 1000) -> dict[str, float]:
    """Seconds of `watch` for a frame beside the steps: median, 10th and 90th percentile."""
    model, x = Follower().eval(), torch.rand(1, 3, 32, 32)

    def bare() -> None:
        with torch.inference_mode():
            state = model.first_frame(x)
            for _ in range(frames):
                _, state = model.step(model.observe(state, x))

    def watched() -> None:
        for _ in zip(range(frames), Predictor(model).watch(repeat(x)), strict=False):
            pass

    seconds = in_turns({"watch": watched, "bare": bare}, repeats, "cpu")
    extra = [(a - b) / frames for a, b in zip(seconds["watch"], seconds["bare"], strict=True)]
    deciles = statistics.quantiles(extra, n=10)
    return {"median": statistics.median(extra), "p10": deciles[0], "p90": deciles[-1]}


def main() -> None:
    """Prints the numbers beside their bars and writes them as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--width", type=int, default=64)
    parser.set_defaults(repeats=20)
    options = parser.parse_args()
    keep_freed_memory()
    shares, faster, extra = noises(options), stream(options), watch(options.repeats)
    for name, share in shares.items():
        print(f"{name}: {share['median']:.2%} of a forward pass of 128 images (bar {NOISE:.0%})")
    print(f"9 frames at batch 32, layer by layer: {faster['median']:.2f} times as fast as step by step (bar {STREAM:g})")
    print(f"watch: {extra['median'] * 1e6:.0f} microseconds a frame beside its updates (bar {WATCH * 1e6:.0f})")
    bars = {"noise": NOISE, "stream": STREAM, "watch": WATCH}
    facts = {"width": options.width, "threads": torch.get_num_threads(), "repeats": options.repeats, "bars": bars}
    found = {"noise": shares, "stream": faster, "watch_seconds": extra}
    harness.write(options.out, harness.environment(options.device) | facts | found)


if __name__ == "__main__":
    main()
