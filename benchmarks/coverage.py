"""Which networks get exits: the smallest of each module of timm, of each family of torchvision and of Hugging Face.

    python benchmarks/coverage.py [--networks "timm:coat*"] [--limit 180] [--out results/backbones/coverage.json]

Each network gets three exits in a process of its own, on one thread, with random weights. The file is written after each one,
and networks that it already holds are not measured again.
A row holds the images' size, the parameters, where the exits are, their shares of the cost, the MACs of the plain network, the
largest difference of the last answer from the plain network's on two images, relative to its largest logit (at least 1), and
the warning or the error. Shares are wanted in 0.15 to 0.5 for the first exit and 0.45 to 0.85 for the second. Images have 128
pixels where the network takes any size, else its own size.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import glob
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WANTED = ((0.15, 0.5), (0.45, 0.85))
SMALL = 128  # pixels
TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn"),
    *("vit_b_32", "wide_resnet50_2"),
)
HUGGING_FACE = (
    *("beit", "convnext", "cvt", "deit", "dinov2", "efficientnet", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit"),
    *("poolformer", "pvt", "regnet", "resnet", "swin", "vit"),
)
LARGER = ("large", "huge", "giant", "xlarge", "_xl", "so400m", "152", "200", "269", "350", "420")  # never the smallest


def smallest() -> Iterator[str]:
    """The smallest model, by its parameters, of each module of timm."""
    import timm
    import torch
    from timm.models import _registry

    for module, names in sorted(_registry._module_to_models.items()):
        listed = sorted(name for name in names if timm.is_model(name))
        sizes = {}
        for name in [name for name in listed if not any(part in name for part in LARGER)] or listed:
            with torch.device("meta"):
                try:
                    sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
                except (RuntimeError, NotImplementedError):  # it reads values while it is built
                    print(f"timm:{name} of {module} cannot be built without memory: not considered", file=sys.stderr)
        if sizes:
            yield f"timm:{min(sizes, key=lambda name: (sizes[name], name))}"


def own_size(name: str) -> tuple[int, int, int] | None:
    """The only size of images that a network takes, or None."""
    library, _, rest = name.partition(":")
    if library == "timm":
        import timm

        own = timm.models.get_pretrained_cfg(rest)
        return tuple(own.input_size) if own is not None and own.fixed_input_size else None
    return None


def measure(name: str) -> dict[str, Any]:
    """The row of one network."""
    import torch

    import anytime
    from anytime.models.surgery.backbones import build_backbone

    torch.set_num_threads(1)
    own = own_size(name)
    sizes = [own] if own else [(3, SMALL, SMALL), (3, 224, 224), (3, 256, 256), (3, 299, 299)]
    row: dict[str, Any] = {"name": name, "attaches": False}
    for size in sizes:
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                network = build_backbone(name, 10, size).network.eval()
                plain = copy.deepcopy(network)
                row |= {"input_size": size, "parameters": sum(p.numel() for p in network.parameters())}
                with torch.inference_mode():
                    plain(torch.rand(1, *size))
        except Exception as error:
            row["error"] = f"the network itself: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        row.pop("error", None)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = anytime.attach_exits(network, exits=3, input_size=size).eval()
            row |= {"attaches": True, "seconds": round(time.perf_counter() - start, 1), "exits": model.exits}
            row["warnings"] = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
            row["macs"] = _macs(plain, size)
            row["shares"] = [round(cut.macs / row["macs"], 4) for cut in model.cuts]
            row["step_macs"] = anytime.step_macs(model, size)
            row["in_range"] = all(low <= share <= high for share, (low, high) in zip(row["shares"], WANTED, strict=True))
            x = torch.rand(2, *size)
            with torch.inference_mode():
                expected = plain(model.normalize(x))
                expected = getattr(expected, "logits", expected)
                actual = model(x)[-1]
                scale = expected.abs().max().clamp(min=1)
                row["difference"] = float((actual - expected).abs().max() / scale)
                state = model.initial_state(x)
                elements = []
                for _ in model.cuts:
                    _, state = model.step(state)
                    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
                    elements.append([list(leaf.shape[1:]) for leaf in leaves])
                row["state"] = elements
        except Exception as error:
            row |= {"attaches": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
        break
    return row


def _macs(network: Any, size: tuple[int, int, int]) -> int:
    import torch

    from anytime.cost import flop_counter

    with torch.no_grad(), flop_counter() as counter:
        network(torch.rand(1, *size))
    return counter.get_total_flops() // 2


def in_its_own_process(name: str, limit: float) -> dict[str, Any]:
    """The row of one network, measured in a process that ends after `limit` seconds; it starts with everything imported."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(measure(name)))
    process.start()
    theirs.close()
    try:
        row: dict[str, Any] = ours.recv() if ours.poll(limit) else {"error": f"no answer after {limit:g} seconds"}
    except EOFError:
        row = {"error": "the process ended without an answer"}
    process.kill()
    process.join()
    return {"name": name, "attaches": False} | row


def summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many networks there are, get exits, and get them where they are wanted."""
    attached = [row for row in rows if row["attaches"]]
    return {"networks": len(rows), "attached": len(attached), "in_range": sum(row["in_range"] for row in attached)}


def write(out: Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the file with one row a line."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    out.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["*"], metavar="PATTERN", help="e.g. 'timm:coat*' 'hf:*'")
    parser.add_argument("--limit", type=float, default=180.0, metavar="SECONDS", help="for each network (default: 180)")
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    import harness
    import torch

    import anytime  # noqa: F401, the processes start with it

    torch.set_num_threads(1)

    wanted = options.networks
    if any(glob.has_magic(pattern) for pattern in wanted):
        names = [f"torchvision:{name}" for name in TORCHVISION] + [f"hf:{name}" for name in HUGGING_FACE] + list(smallest())
        wanted = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in options.networks)]
    known = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out and options.out.is_file() else []
    rows = known
    for name in [name for name in wanted if name not in {row["name"] for row in known}]:
        rows.append(in_its_own_process(name, options.limit))
        row = rows[-1]
        print(name, row.get("shares"), row.get("error", ""), flush=True)
        head = {"command": "python benchmarks/coverage.py", **harness.environment("cpu"), **summary(rows)}
        if options.out:
            write(options.out, head, rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
