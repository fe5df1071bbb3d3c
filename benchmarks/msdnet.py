"""MSDNet with 7 exits at 32x32: a training step against a written-out one, and a stream against one full pass.

    python benchmarks/msdnet.py [--batch-size 64] [--out results/benchmarks/msdnet.json]

Training is forward, cross-entropy of every answer, backward and SGD, all in bfloat16. `ours` is what `anytime train
--precision bf16-mixed --channels_last true --compile true` computes; `eager` is the same without --compile. `every map` runs
all maps of all scales eagerly, layer by layer, in both memory formats; of 7 exits together each of them is needed, so it saves
nothing to leave some out. Times are taken in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

from anytime import create_model
from anytime.models.msdnet.layers import ScaleLayer
from anytime.models.msdnet.model import MSDNet
from anytime.models.msdnet.plan import channel_counts, finest_scales
from anytime.support.allocator import keep_freed_memory
from training import step

TRAINING_BAR, STREAMING_BAR = 1.3, 1.05


class EveryMap(nn.Module):
    """The network of `model` with the same parts, and parts of its own for the maps that `model` leaves out."""

    def __init__(self, model: MSDNet) -> None:
        super().__init__()
        given, layers = model.config["arguments"], model.exits[-1]
        factors, growth, self.model = given["factors"], given["growth"], model
        finest = finest_scales(layers, model.scales)
        counts = channel_counts(given["width"], growth, given["reduction"], finest)
        self.more = nn.ModuleDict()
        self.rows: list[dict[int, Callable[[Tensor, Tensor | None], Tensor]]] = []
        there = {place for places in model.plan.layered for place in places}
        for layer in range(1, layers + 1):
            row: dict[int, Callable[[Tensor, Tensor | None], Tensor]] = {}
            for scale in range(finest[layer], model.scales):
                if (layer, scale) in there:
                    row[scale] = model.layers[layer - 1][scale - model.scales]  # type: ignore[index]
                    continue
                count, factor = counts[layer - 1], factors[scale]
                finer = (count * factors[scale - 1], factors[scale - 1]) if scale > finest[layer - 1] else None
                squeezed = counts[layer] * factor if finest[layer] > finest[layer - 1] else None
                made = ScaleLayer(count * factor, growth * factor, factor, finer, squeezed)
                row[scale] = self.more[f"{layer}_{scale}"] = made
            self.rows.append(row)

    def forward(self, x: Tensor) -> Tensor:
        maps, answers, h = dict[int, Tensor](), list[Tensor](), self.model.normalize(x)
        for scale, stem in enumerate(self.model.stem):
            maps[scale] = h = stem(h)
        for layer, row in enumerate(self.rows, 1):
            maps = {scale: part(maps[scale], maps.get(scale - 1)) for scale, part in row.items()}
            if layer in self.model.exits:
                answers.append(self.model.heads[len(answers)](maps[self.model.scales - 1]))
        return torch.stack(answers)


def training(batch_size: int, exits: int, repeats: int) -> dict[str, Any]:
    """Images a second of each way to train, and the ratios of their seconds to ours."""
    x, target = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    last, plain = torch.channels_last, torch.contiguous_format
    made: dict[str, tuple[nn.Module, torch.memory_format, bool]] = {}
    for way, memory in (("ours", last), ("eager", last), ("every map", plain), ("every map, channels-last", last)):
        torch.manual_seed(0)
        model: Any = create_model("msdnet", exits=exits)
        network = EveryMap(model) if way.startswith("every") else model
        made[way] = network.to(memory_format=memory).train(), memory, way in ("ours", "eager")
    steps = {}
    for way, (network, memory, ours) in made.items():
        called: Any = torch.compile(network) if way == "ours" else network
        steps[way] = step(called, x.contiguous(memory_format=memory), target, "bf16", ours)
    seconds = harness.time_in_turns(steps, repeats, 3)
    return {
        "batch_size": batch_size,
        "images_per_second": {way: batch_size / ms * 1e3 for way, ms in harness.milliseconds(seconds).items()},
        "seconds over ours": {way: harness.ratio(seconds, way, "ours") for way in steps if way != "ours"},
    }


def streaming(batch_size: int, exits: int, repeats: int) -> dict[str, Any]:
    """All answers one after the other over one full pass, in float32."""
    model = create_model("msdnet", exits=exits).eval().to(memory_format=torch.channels_last)
    x = torch.rand(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        ways = {"stream": lambda: [*model.stream(x)], "full pass": lambda: model(x)}
        seconds = harness.time_in_turns(ways, repeats)
    return {"batch_size": batch_size, "stream over full pass": harness.ratio(seconds, "stream", "full pass")}


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--exits", type=int, default=7)
    parser.set_defaults(repeats=20)
    options = parser.parse_args()
    keep_freed_memory()
    found = {"training": training(options.batch_size, options.exits, options.repeats)}
    for way, row in found["training"]["seconds over ours"].items():
        print(f"training: {way} / ours {row['median']:.2f} (bar of every map: {TRAINING_BAR})", flush=True)
    found["streaming"] = streaming(options.batch_size, options.exits, options.repeats)
    print(f"stream / full pass {found['streaming']['stream over full pass']['median']:.3f} (bar {STREAMING_BAR})")
    facts = {"threads": torch.get_num_threads(), "exits": options.exits, "repeats": options.repeats}
    harness.write(options.out, harness.environment(options.device) | facts | found)


if __name__ == "__main__":
    main()
