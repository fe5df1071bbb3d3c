"""Exported steps against eager torch and against the plain network in the same engine, at batch 1, and deadlines that cancel.

    OMP_NUM_THREADS=1 python benchmarks/engines.py [--engine onnx] [--precision float32] [--repeats 50] [--out engines.json]

The precision is that of the export, in every engine: OpenVINO by itself would take bfloat16 on processors with AMX.

* speed: all answers, by the steps of the export and by eager steps, in turn; weights are random, times do not depend on them.
* plain: all answers of a backbone with exits, and the first, against the plain backbone exported to the same engine. For
  AnytimeNet the plain network is BASELINE, its last step as a network of its own. `earlyon`, which is eager, gets the same
  network, cuts and heads, if it is installed.
* own: seconds of a whole call beyond those of the bare steps, per step, of `anytime` and `anytime-edge`, without a deadline
  and with a hard one; also with a tiny network, where neither noise nor cold caches hide them.
* deadlines: a packaged model on CIFAR-10 test images, hard (steps are cancelled), without a profile (every step is risked) and
  cautious (steps must fit) in turn: misses, accuracy and overshoot; `--load` keeps one core busy. A miss counts as wrong.

The accuracy of a trained backbone with exits against the plain network in the same engine is measured by
`deadlines.py --network EXPORT --plain EXPORT`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import backbones
import deadlines
import harness
import torch
from torch import Tensor

import anytime
from anytime.data import create_data
from anytime.model import AnytimeModel
from anytime.runtime import Predictor, profile
from anytime.support.allocator import keep_freed_memory

KINDS = ("hard", "no profile", "cautious")
PARTS = ("speed", "plain", "own", "deadlines")
ATTACHED = {"torchvision:resnet18": "ResNet-18", "torchvision:mobilenet_v3_large": "MobileNetV3"}
FASTER = {"AnytimeNet": 2.5, "MobileNetV3": 2.3, "ResNet-18": 1.7, "IS-ResNeXt": 3.0}  # eager / ONNX Runtime at least
FULL, FIRST, BASELINE = 1.05, 2.5, 1.28  # all answers / plain at most, plain / first at least, 7 answers / BASELINE at most
OWN = 30e-6  # seconds of the run-time itself per step, at most
TINY, TINY_SIDE, TINY_REPEATS = {"units": 2, "width": 2}, 8, 40  # an ANN of 6 answers; so many times the other repeats
MISSES = {"idle": 0.001, "loaded": 0.005}


class Plain(AnytimeModel):
    """A network with one answer, so that it can be exported to the same engine."""

    num_steps = 1
    own_normalization = True

    def __init__(self, model: Any) -> None:
        super().__init__(model.num_classes, in_channels=model.in_channels)
        self.network = model.backbone
        self.set_normalization(model.mean.tolist(), model.std.tolist())

    def initial_state(self, x: Tensor) -> Tensor:
        return self.normalize(x)

    def step(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(state), state


def networks(exits: int, size: int) -> dict[str, tuple[AnytimeModel, int]]:
    """The networks of the table and the side of their images."""
    made: dict[str, tuple[AnytimeModel, int]] = {"AnytimeNet": (anytime.create_model("anytimenet"), 32)}
    lite = {"timm:tf_efficientnet_lite0": "EfficientNet-Lite0"} if find_spec("timm") else {}
    for backbone, name in (ATTACHED | lite).items():
        made[name] = attached(backbone, exits, size), size
    made["IS-ResNeXt"] = anytime.create_model("isresnext"), 32
    return {name: (model.eval(), side) for name, (model, side) in made.items()}


def attached(backbone: str, exits: int, size: int) -> AnytimeModel:
    """A backbone with exits, of `earlyon`'s own kind of heads."""
    return anytime.attach_exits(backbone, exits, backbones.CLASSES, input_size=(3, size, size), head="linear").eval()


def stream(model: AnytimeModel, x: Tensor, steps: int | None = None) -> Callable[[], Any]:
    """The first `steps` answers, one after the other."""

    def run() -> Any:
        state = model.initial_state(x)
        for _ in range(steps or model.num_steps):
            answer, state = model.step(state)
        return answer

    return run


def timed(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function in turn, as a predictor runs them."""
    torch.set_flush_denormal(True)
    try:
        with torch.inference_mode():
            return harness.time_in_turns(functions, repeats, warmup=5)
    finally:
        torch.set_flush_denormal(False)


def speed(name: str, model: AnytimeModel, export: AnytimeModel, side: int, repeats: int) -> dict[str, Any]:
    """All answers by the export and by eager torch."""
    x = torch.rand(1, 3, side, side)
    layout = x.contiguous(memory_format=torch.channels_last)
    seconds = timed({"eager": stream(model, layout), "engine": stream(export, x)}, repeats)
    found = {"eager_to_engine": harness.ratio(seconds, "eager", "engine"), "milliseconds": harness.milliseconds(seconds)}
    return {"network": name, "bar": FASTER.get(name), **found}


def against_plain(
    name: str, export: AnytimeModel, plain: AnytimeModel, side: int, repeats: int, peer: Mapping[str, Callable[[], Any]]
) -> dict[str, Any]:
    """All answers, and the first, against the plain network in the same engine."""
    x = torch.rand(1, 3, side, side)
    functions = {"plain": stream(plain, x), "full": stream(export, x), "first": stream(export, x, 1), **peer}
    seconds = timed(functions, repeats)
    row: dict[str, Any] = {"network": name, "full_to_plain": harness.ratio(seconds, "full", "plain")}
    row |= {"plain_to_first": harness.ratio(seconds, "plain", "first"), "milliseconds": harness.milliseconds(seconds)}
    if peer:
        row["earlyon_to_ours"] = harness.ratio(seconds, [*peer][-1], "full")
    return row


def own_time(export: Any, side: int, folder: Path, repeats: int) -> dict[str, float]:
    """Median seconds per step of a whole call beyond the bare steps, of both run-times."""
    x = torch.rand(1, 3, side, side)
    predictor = Predictor(export)
    functions: dict[str, Callable[[], Any]] = {"bare": stream(export, x), "anytime": lambda: predictor(x)}
    functions["anytime, hard"] = lambda: predictor(x, deadline=60)
    try:
        sys.path.insert(0, str(Path(__file__).parents[1] / "edge/src"))
        import anytime_edge

        edge, array = anytime_edge.Predictor(folder), x.numpy()
        functions["anytime_edge"] = lambda: edge(array)
        functions["anytime_edge, hard"] = lambda: edge(array, deadline=60)
    except (ImportError, ValueError):  # ONNX Runtime is missing, or the export is for another engine
        pass
    seconds = timed(functions, repeats)
    differences = {name: [a - b for a, b in zip(seconds[name], seconds["bare"], strict=True)] for name in functions}
    return {name: statistics.median(each) / export.num_steps for name, each in differences.items() if name != "bare"}


def under_deadlines(export: Any, requests: int, points: int, load: bool) -> dict[str, Any]:
    """Three kinds of predictors in turn, at each deadline of a sweep above the first step's p99."""
    data = create_data("cifar10")
    data.setup("test")
    images, labels = (torch.cat(parts)[:requests] for parts in zip(*data.test_dataloader(), strict=True))
    measured = profile(export, 32, repeats=1000)
    kinds = {
        "hard": Predictor(export, measured),
        "no profile": Predictor(export),
        "cautious": Predictor(export, measured, interrupt="step"),
    }
    stop = multiprocessing.Event()
    burner = multiprocessing.Process(target=deadlines.burn, args=(stop,), daemon=True)
    if load:
        burner.start()
    rows = []
    for deadline in deadlines.sweep(measured, points):
        rows.append({"deadline": deadline, **deadlines.serve_in_turn(kinds, images, labels, deadline)})
    stop.set()
    longest = max(row.p99 for row in measured.batches[1].operators)
    return {"load": load, "requests": requests, "longest_operator_p99": longest, "rows": rows}


def main() -> None:
    """Prints a line per row of the table and writes all as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--engine", default="onnx", choices=("onnx", "openvino", "aoti", "executorch"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--networks", nargs="+", help="only these of the table (default: all)")
    parser.add_argument("--exits", type=int, default=4, help="answers of the attached networks")
    parser.add_argument("--size", type=int, default=224, help="side of their images")
    parser.add_argument("--trained", default="anytimenet_cifar10", help="the packaged model under deadlines")
    parser.add_argument("--requests", type=int, default=2000, help="requests per deadline and kind")
    parser.add_argument("--points", type=int, default=10, help="deadlines")
    parser.add_argument("--load", action="store_true", help="keep one core busy under deadlines")
    options = parser.parse_args()
    keep_freed_memory()
    how = {"precision": options.precision}
    results: dict[str, Any] = {"engine": options.engine, **how, **harness.environment("cpu")}
    with TemporaryDirectory() as place:

        def export(model: AnytimeModel, name: str, side: int) -> Any:
            return anytime.export_model(model, Path(place, name), options.engine, input_size=side, **how)

        chosen = networks(options.exits, options.size)
        if set(options.parts) & {"speed", "plain", "own"}:
            _compare(options, chosen, export, place, results)
        if "deadlines" in options.parts:
            model = anytime.load(options.trained)
            results["network"] = options.trained
            found = under_deadlines(export(model, "trained", 32), options.requests, options.points, options.load)
            results["deadlines"] = found
            bar = MISSES["loaded" if options.load else "idle"]
            print(f"longest operator's p99 {1e3 * found['longest_operator_p99']:.2f} ms; misses at most {bar:.1%}")
            for row in found["rows"]:
                parts = [
                    f"{kind}: misses {row[kind]['miss_rate']:.2%}, accuracy {row[kind]['accuracy']:.2%}, overshoot p99 "
                    f"{1e3 * row[kind]['overshoot_p99']:.2f} ms"
                    for kind in KINDS
                ]
                print(f"deadline {1e3 * row['deadline']:6.2f} ms  " + "   ".join(parts))
        harness.write(options.out, results)


def _compare(options: Any, chosen: Mapping[str, Any], export: Callable[..., Any], place: str, results: dict[str, Any]) -> None:
    """The rows that need no data."""
    shown = f"{options.engine} {options.precision}"

    def own(name: str, made: AnytimeModel, side: int, repeats: int) -> None:
        found = own_time(made, side, Path(place, name), repeats)
        results.setdefault("own", {})[name] = found
        times = "; ".join(f"{kind} {1e6 * value:.0f}" for kind, value in found.items())
        print(f"{shown} {name}: own microseconds per step: {times} (bar {1e6 * OWN:.0f})", flush=True)

    if "own" in options.parts and not options.networks:
        tiny = export(anytime.create_model("ann", **TINY).eval(), "tiny", TINY_SIDE)
        own("tiny", tiny, TINY_SIDE, TINY_REPEATS * options.repeats)
    for name, (model, side) in chosen.items():
        if options.networks and name not in options.networks:
            continue
        made = export(model, name, side)
        if "speed" in options.parts:
            row = speed(name, model, made, side, options.repeats)
            results.setdefault("speed", []).append(row)
            print(f"{shown} {name}: eager / engine {row['eager_to_engine']['median']:.2f} (bar {row['bar']})", flush=True)
        if "plain" in options.parts and name != "IS-ResNeXt":
            single = anytime.create_model("anytimenet_baseline").eval() if name == "AnytimeNet" else Plain(model).eval()
            same = name != "AnytimeNet" and options.size == backbones.SIZE[1]
            peer = backbones.peer(model, torch.rand(1, 3, side, side)) if same else {}
            row = against_plain(name, made, export(single, f"{name}-plain", side), side, options.repeats, peer)
            results.setdefault("plain", []).append(row)
            most = BASELINE if name == "AnytimeNet" else FULL
            full, first = row["full_to_plain"]["median"], row["plain_to_first"]["median"]
            print(f"{shown} {name}: full / plain {full:.2f} (bar {most}), plain / first {first:.2f} (bar {FIRST})", flush=True)
        if "own" in options.parts:
            own(name, made, side, options.repeats)


if __name__ == "__main__":
    main()
