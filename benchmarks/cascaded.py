"""Cascaded ResNet-18: the exact schedules against a plain simulation that runs every block at every step.

Ratios within one run: a training step (forward, TD(0), backward) and the inference of all answers, against the simulation and
against one pass of the ordinary ResNet-18. Activation memory is what autograd keeps for the backward pass; peak memory is the
most memory allocated at any time beyond parameters and images.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime import create_model
from anytime.models.cascaded.residual import ResidualNet
from anytime.objectives import TDLambda
from anytime.support.allocator import keep_freed_memory


class Simulation(nn.Module):
    """The network of `model` as the published code runs it, with the same parameters.

    At every step t = 0..T-1 the stem and all blocks run; residuals wait in queues for one step, and batch norm has separate
    statistics for every step.
    """

    def __init__(self, model: ResidualNet) -> None:
        super().__init__()
        self.model = model
        for name, module in model.named_modules():
            if hasattr(module, "running_mean"):
                shape = (model.num_steps, module.running_mean.shape[1])
                rows = torch.arange(model.num_steps).clamp(max=len(module.running_mean) - 1)
                for kind in ("mean", "var"):
                    values = getattr(module, f"running_{kind}")[rows].clone()
                    assert values.shape == shape
                    self.register_buffer(f"{name}.{kind}".replace(".", "_"), values)
        self.names = {module: name.replace(".", "_") for name, module in model.named_modules()}

    def _norm(self, norm: nn.Module, x: Tensor, time: int) -> Tensor:
        name = self.names[norm]
        mean, var = getattr(self, f"{name}_mean")[time], getattr(self, f"{name}_var")[time]
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, self.training, 0.1, norm.eps)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, _, pool = self.model.stem
        blocks: list[Any] = list(self.model.blocks)
        queues: list[Tensor] = []
        answers = []
        for time in range(self.model.num_steps):
            waiting = [pool(F.relu(self._norm(norm, conv(self.model.normalize(x)), time)))]
            z = queues[0] if queues else torch.zeros_like(waiting[0])
            for k, block in enumerate(blocks, 1):
                r = self._norm(block.norms[0], block.convs[0](z), time)
                r = self._norm(block.norms[1], block.convs[1](F.relu(r)), time)
                waiting.append(r)
                z = F.relu((queues[k] if queues else torch.zeros_like(r)) + block.shortcut(z))
            answers.append(self.model.heads[0](z.mean((2, 3))))
            queues = waiting
        return torch.stack(answers)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of `run()`, excluding parameters."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    total = sum(saved.values())
    del out
    return total


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """The most bytes allocated at any time while `run` runs, beyond those allocated before."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def measure(batch_size: int, precision: str, options: Any) -> dict[str, Any]:
    """Ratios and seconds for one batch size and precision."""
    torch.manual_seed(0)
    arguments = {"pool": options.pool, "width": options.width}
    model = create_model("cascaded_resnet18", clock="published", **arguments).to(
        options.device, memory_format=torch.channels_last
    )
    plain = create_model("cascaded_resnet18", kernel="instant", **arguments).to(
        options.device, memory_format=torch.channels_last
    )
    simulation = Simulation(model).to(options.device)
    x = torch.rand(batch_size, 3, 32, 32, device=options.device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(10, (batch_size,), device=options.device)
    objective = TDLambda(0.0)
    networks: dict[str, nn.Module] = {"exact": model, "simulation": simulation, "plain": plain}
    runs = {name: torch.compile(network) if options.compile else network for name, network in networks.items()}

    def forward(name: str) -> Tensor:
        with harness.autocast(precision, options.device):
            return objective(runs[name](x).float(), target)

    def train(name: str) -> None:
        networks[name].train()
        forward(name).backward()
        for parameter in networks[name].parameters():
            parameter.grad = None

    def infer(name: str) -> None:
        networks[name].eval()
        with torch.no_grad(), harness.autocast(precision, options.device):
            runs[name](x)

    results: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
    for kind, function in (("training", train), ("inference", infer)):
        seconds = harness.time_in_turns({name: lambda n=name, f=function: f(n) for name in runs}, options.repeats, 2)  # type: ignore[misc]
        results[kind] = {
            "milliseconds": harness.milliseconds(seconds),
            "simulation/exact": harness.ratio(seconds, "simulation", "exact"),
            "exact/plain": harness.ratio(seconds, "exact", "plain"),
        }
    results["peak_megabytes"] = {
        kind: {name: peak_bytes(lambda n=name, f=function: f(n), options.device) / 1e6 for name in runs}  # type: ignore[misc]
        for kind, function in (("training", train), ("inference", infer))
    }
    for network in networks.values():
        network.train()
    results["activation_megabytes"] = {name: saved_bytes(lambda n=name: forward(n)) / 1e6 for name in runs}  # type: ignore[misc]
    return results


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--no-pool", dest="pool", action="store_false", help="leave out max-pooling after the stem")
    parser.add_argument("--compile", action="store_true", help="compile all three networks")
    parser.set_defaults(repeats=10)
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for batch_size in options.batch_sizes:
        for precision in options.precisions:
            row = measure(batch_size, precision, options)
            rows.append(row)
            ratios = [
                f"{kind}: simulation/exact {row[kind]['simulation/exact']['median']:.2f}, "
                f"exact/plain {row[kind]['exact/plain']['median']:.2f}, "
                "peak {exact:.0f} MB of {simulation:.0f} MB".format(**row["peak_megabytes"][kind])
                for kind in ("training", "inference")
            ]
            print(f"batch {batch_size}, {precision}: {', '.join(ratios)}")
    facts = {"width": options.width, "pool": options.pool, "compile": options.compile, "steps": 9, "repeats": options.repeats}
    harness.write(options.out, harness.environment(options.device) | facts | {"rows": rows})


if __name__ == "__main__":
    main()
