"""A training step on a CPU: the library's against torch's eager float32 and bfloat16, in one run.

A step is forward, cross-entropy of every answer, backward and SGD. `float32` and `bf16` are torch's own, in both memory
formats; `ours` is what `anytime train --precision bf16-mixed --channels_last true` computes. `simulation` is the cascaded
network as the published code runs it, and `plain` an ordinary ResNet-18, both in torch's bfloat16 and channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import harness
import torch
from cascaded import Simulation
from torch import Tensor, nn
from torch.nn import functional as F

from anytime import create_model
from anytime.support.allocator import keep_freed_memory
from anytime.training.convolutions import small_maps

CASCADED = {"clock": "published", "pool": True}
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "fast": ("fast", {}, 512),
    "anytimenet": ("anytimenet", {}, 128),
    "ann, n = 3": ("ann", {"units": 3}, 128),
    "cascaded ResNet-18, width 16": ("cascaded_resnet18", CASCADED | {"width": 16}, 128),
    "cascaded ResNet-18, width 64": ("cascaded_resnet18", CASCADED, 32),
    "isresnext": ("isresnext", {}, 64),
}


def step(network: nn.Module, x: Tensor, target: Tensor, precision: str, ours: bool) -> Callable[[], None]:
    """One training step of `network`, as a function."""
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=1e-6, momentum=0.9)

    def run() -> None:
        with small_maps(network) if ours else nullcontext():
            with harness.autocast(precision, "cpu"):
                answers = network(x)
            loss = torch.stack([F.cross_entropy(answer.float(), target) for answer in answers]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Images a second of each way to train one network, and the ratios to ours."""
    model_name, arguments, batch_size = NETWORKS[name]
    plain_format, fast_format = torch.contiguous_format, torch.channels_last
    ways = {
        "float32": ("fp32", plain_format, False), "float32, channels-last": ("fp32", fast_format, False),
        "bf16": ("bf16", plain_format, False), "bf16, channels-last": ("bf16", fast_format, False),
        "ours": ("bf16", fast_format, True),
    }  # fmt: skip
    x, target = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    steps = {}
    for way, (precision, memory, ours) in ways.items():
        torch.manual_seed(0)
        network = create_model(model_name, **arguments).to(memory_format=memory).train()
        steps[way] = step(network, x.contiguous(memory_format=memory), target, precision, ours)
    if model_name == "cascaded_resnet18":
        others = {"simulation": Simulation(create_model(model_name, **arguments))}  # type: ignore[arg-type]
        others["plain"] = create_model(model_name, pool=True, width=arguments.get("width", 64), kernel="instant")
        for way, network in others.items():
            network.to(memory_format=fast_format).train()
            steps[way] = step(network, x.contiguous(memory_format=fast_format), target, "bf16", False)
    seconds = harness.time_in_turns(steps, repeats, 2)
    return {
        "batch_size": batch_size,
        "images_per_second": {way: batch_size / ms * 1e3 for way, ms in harness.milliseconds(seconds).items()},
        "seconds over ours": {way: harness.ratio(seconds, way, "ours") for way in steps if way != "ours"},
    }


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.set_defaults(repeats=10)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = {}
    for name in options.networks:
        rows[name] = row = measure(name, options.repeats)
        ratios = ", ".join(f"{way} / ours {r['median']:.2f}" for way, r in row["seconds over ours"].items())
        print(f"{name}, batch {row['batch_size']}: {row['images_per_second']['ours']:.0f} images/s; {ratios}", flush=True)
    facts = {"threads": torch.get_num_threads(), "repeats": options.repeats}
    harness.write(options.out, harness.environment(options.device) | facts | {"networks": rows})


if __name__ == "__main__":
    main()
