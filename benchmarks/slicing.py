"""IS-ResNeXt of the paper at 32x32 (K = 6, W = 96, C = 18, L = 15): six answers for little more than the cost of one.

    python benchmarks/slicing.py [--compile] [--out results/benchmarks/slicing.json]

Inference: all K answers of a stream against one pass of the full sub-network, and against K sub-networks from scratch (MACs:
1.0001x and 1/3.08x). Training: a step of IS-ResNeXt against the dense ResNeXt of the same widths (K = 1), and against the K
passes of I-ResNeXt, and these against the sandwich recipe (the thinnest, the full and two other sub-networks). Times are taken
in turn in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

from anytime import create_model
from anytime.objectives import Weighted
from anytime.support.allocator import keep_freed_memory
from anytime.training import AnytimeModule, Sandwich
from anytime.training.schedules import Constant

BARS = {"stream/full": 1.15, "scratch/stream": 2.3, "sliced/dense": 1.2}


def inference(model: Any, batch_size: int, precision: str, options: Any) -> dict[str, Any]:
    """All answers by streaming, only the last, and each from scratch."""
    model.eval()
    x = torch.rand(batch_size, 3, 32, 32, device=options.device).contiguous(memory_format=torch.channels_last)
    wrap: Callable[[Any], Any] = torch.compile if options.compile else lambda function: function
    steps = harness.compile_steps(model.step, model.num_steps) if options.compile else [model.step] * model.num_steps
    contract = [wrap(lambda x, t=t: model(x, step=t)) for t in range(1, model.num_steps + 1)]

    def stream() -> None:
        state = model.initial_state(x)
        for step in steps:
            _, state = step(state)

    runs = {"stream": stream, "full": lambda: contract[-1](x), "scratch": lambda: [answer(x) for answer in contract]}
    with torch.inference_mode(), harness.autocast(precision, options.device):
        seconds = harness.time_in_turns(runs, options.repeats * (1 if batch_size > 1 else 5))
    return {
        "batch_size": batch_size,
        "precision": precision,
        "stream/full": harness.ratio(seconds, "stream", "full"),
        "scratch/stream": harness.ratio(seconds, "scratch", "stream"),
    }


def training(networks: dict[str, nn.Module], batch_size: int, precision: str, options: Any) -> dict[str, Any]:
    """A step of training: forward, the sum of all losses, backward."""
    x = torch.rand(batch_size, 3, 32, 32, device=options.device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(10, (batch_size,), device=options.device)
    objective = Weighted("constant")

    def step(network: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with harness.autocast(precision, options.device):
                loss = objective(network(x).float(), target)
            loss.backward()

        return run

    for network in networks.values():
        network.train()
    runs = {name: step(torch.compile(network) if options.compile else network) for name, network in networks.items()}
    regime, model = Sandwich(), networks["iresnext"]
    module: Any = AnytimeModule(model, objective, torch.optim.SGD, Constant(), options.compile, regime=regime)  # type: ignore[arg-type]

    def sandwich() -> None:
        with harness.autocast(precision, options.device):
            loss = regime.loss(module, x, target)
        loss.backward()

    seconds = harness.time_in_turns(runs | {"sandwich": sandwich}, options.repeats, 2)
    return {
        "batch_size": batch_size,
        "precision": precision,
        "sliced/dense": harness.ratio(seconds, "isresnext", "dense"),
        "passes/sliced": harness.ratio(seconds, "iresnext", "isresnext"),
        "sandwich/passes": harness.ratio(seconds, "sandwich", "iresnext"),
    }


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--blocks", type=int, default=5, help="blocks at each of three scales")
    parser.add_argument("--compile", action="store_true", help="takes minutes per precision, 20 for the K passes of I-ResNeXt")
    parser.add_argument("--only", choices=["inference", "training"], help="run only this half")
    parser.set_defaults(repeats=10)
    options = parser.parse_args()
    keep_freed_memory()
    torch._dynamo.config.recompile_limit = 32  # one graph per sub-network
    widths = {"blocks": (options.blocks,) * 3, "width": 96, "cardinality": 18}
    networks: dict[str, nn.Module] = {
        "isresnext": create_model("isresnext", **widths, steps=6),
        "dense": create_model("isresnext", **widths, steps=1),
        "iresnext": create_model("iresnext", **widths, steps=6),
    }
    for network in networks.values():
        network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    answers, steps = [], []
    for precision in options.precisions:
        for batch in options.batch_sizes if options.only != "training" else ():
            row = inference(networks["isresnext"], batch, precision, options)
            answers.append(row)
            print(f"inference, batch {batch}, {precision}: stream / full {row['stream/full']['median']:.3f} "
                  f"(bar {BARS['stream/full']}), scratch / stream {row['scratch/stream']['median']:.2f} "
                  f"(bar {BARS['scratch/stream']})", flush=True)  # fmt: skip
        if options.only == "inference":
            continue
        row = training(networks, max(options.batch_sizes), precision, options)
        steps.append(row)
        sliced, passes = row["sliced/dense"]["median"], row["passes/sliced"]["median"]
        print(f"training, batch {row['batch_size']}, {precision}: IS-ResNeXt / dense {sliced:.3f} "
              f"(bar {BARS['sliced/dense']}), I-ResNeXt / IS-ResNeXt {passes:.2f} (bar 4), "
              f"sandwich / K passes {row['sandwich/passes']['median']:.2f}", flush=True)  # fmt: skip
    facts = {"blocks": options.blocks, "compile": options.compile, "repeats": options.repeats}
    harness.write(options.out, harness.environment(options.device) | facts | {"inference": answers, "training": steps})


if __name__ == "__main__":
    main()
