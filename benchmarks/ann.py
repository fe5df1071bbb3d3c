"""ANN with n = 9, c = 32 at 32x32: the cost of 27 exits, in a training step and in a stream.

    python benchmarks/ann.py [--compile] [--out results/benchmarks/ann.json]

Training: forward, loss over all exits, backward, against the same network with one exit, and against heads that run one by
one. Streaming: all answers against only the units (`advance`), as a share of the units' time. Times are taken in turn in one
process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

from anytime import create_model
from anytime.models.ann.cifar import ANN
from anytime.objectives import Weighted
from anytime.support.allocator import keep_freed_memory

TRAINING_BAR, STREAMING_BAR = 1.15, 0.05


class OneByOne(nn.Module):
    """The same network, but each head runs separately as soon as its features are available."""

    def __init__(self, model: ANN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(list(self.model.stream(x)))


def training(batch_size: int, precision: str, options: Any) -> dict[str, Any]:
    """A training step with all exits, with naive heads, and with one exit."""
    arguments = {"units": options.units, "width": options.width}
    model: Any = create_model("ann", **arguments)
    networks: dict[str, nn.Module] = {
        "exits": model,
        "one_by_one": OneByOne(create_model("ann", **arguments)),  # type: ignore[arg-type]
        "one_exit": create_model("ann", **arguments, period=3 * options.units),
    }
    for network in networks.values():
        network.to(options.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x = torch.rand(batch_size, 3, 32, 32, device=options.device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(10, (batch_size,), device=options.device)
    objective = Weighted("sieve", normalize="sum")

    def step(network: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with harness.autocast(precision, options.device):
                loss = objective(network(x).float(), target)
            loss.backward()

        return run

    runs = {name: step(torch.compile(network) if options.compile else network) for name, network in networks.items()}
    seconds = harness.time_in_turns(runs, options.repeats, 2)
    return {
        "batch_size": batch_size,
        "precision": precision,
        "exits/one_exit": harness.ratio(seconds, "exits", "one_exit"),
        "one_by_one/one_exit": harness.ratio(seconds, "one_by_one", "one_exit"),
    }


def streaming(options: Any) -> dict[str, Any]:
    """All answers at batch 1 against only the units."""
    model: Any = create_model("ann", units=options.units, width=options.width).eval()
    model.to(options.device, memory_format=torch.channels_last)
    x = torch.rand(1, 3, 32, 32, device=options.device).contiguous(memory_format=torch.channels_last)
    wrap = harness.compile_steps if options.compile else (lambda function, steps: [function] * steps)
    steps, units = wrap(model.step, model.num_steps), wrap(model.advance, model.num_steps)

    def answers() -> None:
        state = model.initial_state(x)
        for step in steps:
            _, state = step(state)

    def only_units() -> None:
        state = model.initial_state(x)
        for unit in units:
            state = unit(state)

    with torch.inference_mode():
        seconds = harness.time_in_turns({"answers": answers, "units": only_units}, 5 * options.repeats)
    return {"answers/units": harness.ratio(seconds, "answers", "units")}


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--units", type=int, default=9)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--compile", action="store_true")
    parser.set_defaults(repeats=10)
    options = parser.parse_args()
    keep_freed_memory()
    rows = [training(batch, precision, options) for batch in options.batch_sizes for precision in options.precisions]
    for row in rows:
        exits, naive = row["exits/one_exit"]["median"], row["one_by_one/one_exit"]["median"]
        print(f"training, batch {row['batch_size']}, {row['precision']}: all exits / one exit {exits:.3f} "
              f"(bar {TRAINING_BAR}), heads one by one {naive:.3f}")  # fmt: skip
    stream = streaming(options)
    share = stream["answers/units"]["median"] - 1
    print(f"streaming, batch 1: an exit costs {share:.1%} of its unit (bar {STREAMING_BAR:.0%})")
    facts = {"units": options.units, "width": options.width, "compile": options.compile, "repeats": options.repeats}
    harness.write(options.out, harness.environment(options.device) | facts | {"training": rows, "streaming": stream})


if __name__ == "__main__":
    main()
