"""A backbone with exits against the plain backbone and against the library `earlyon`, at 224x224 and batch 1.

    pip install earlyon
    python benchmarks/backbones.py [--repeats 50] [--exits 4] [--head linear] [--compiled] [--out backbones.json]

All answers of a stream, by `model.step`, against one pass of the plain network in the same memory format; the time to the
first answer; and heads-only training from stored features against joint training. Images are in [0, 1], and each candidate
normalises them as ours does. A head is a mean over the positions and a linear layer, `earlyon`'s own kind; `--head mixed`
takes the default of `attach_exits` here, five small operations instead of two. `earlyon` 0.3 (forward hooks that raise an
exception to stop) gets the same network, cut at the same layers, with the same heads; it reads each exit's confidence as a
number, so our steps do that as well when compared. Its thresholds open and close its exits. Weights are random: times do
not depend on them. With --compiled each step is compiled, and so is the plain network; `earlyon` cannot be compiled.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor, nn

import anytime
from anytime.models.surgery.attach.model import AttachedExits
from anytime.support.allocator import keep_freed_memory

BACKBONES = ("torchvision:resnet18", "torchvision:mobilenet_v3_large")
SIZE, CLASSES = (3, 224, 224), 10
FULL, FIRST, HEADS_ONLY = 1.02, 2.5, 5.0  # bars: full / plain at most; full / first answer, joint / cached at least


def streamed(model: AttachedExits, x: Tensor, steps: int, read: bool, calls: list[Any]) -> Callable[[], None]:
    """The first `steps` answers, one after the other; with `read`, the confidence of each is read as a number."""

    def run() -> None:
        state = model.initial_state(x)
        for call in calls[:steps]:
            logits, state = call(state)
            if read:
                logits.softmax(1).amax().item()

    return run


def peer(model: AttachedExits, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The same with `earlyon`, once for each exit to stop at; empty if it is not installed."""
    try:
        from earlyon.models import custom_ee
    except ImportError:
        return {}
    wrapper = custom_ee(copy.deepcopy(model.backbone), list(model.exits), CLASSES, input_shape=(1, *SIZE))  # hooks stay on it
    for name, head in zip(list(wrapper.exit_heads), model.heads, strict=True):
        wrapper.exit_heads[name] = copy.deepcopy(head)
    wrapper.eval()
    last = model.num_steps

    def run(stop: int) -> Any:
        wrapper.config.confidence_thresholds = [0.0 if t == stop else 1.0 for t in range(1, last)]
        return wrapper(model.normalize(x))

    for stop in range(1, last + 1):
        if (taken := run(stop).exit_taken) != (stop - 1 if stop < last else -1):
            raise RuntimeError(f"earlyon should have stopped at answer {stop}, but took exit {taken}")
    return {f"earlyon_{stop}": functools.partial(run, stop) for stop in range(1, last + 1)}


def inference(name: str, exits: int, head: str, repeats: int, compiled: bool) -> dict[str, Any]:
    """Times of one backbone, taken in turn, and their ratios."""
    model = anytime.attach_exits(name, exits, CLASSES, input_size=SIZE, head=head).eval().to(memory_format=torch.channels_last)
    x = torch.rand(1, *SIZE).contiguous(memory_format=torch.channels_last)
    backbone: nn.Module = model.backbone
    calls = harness.compile_steps(model.step, exits) if compiled else [model.step] * exits

    def whole(x: Tensor) -> Tensor:
        return backbone(model.normalize(x))

    once = torch.compile(whole) if compiled else whole
    functions = {"plain": lambda: once(x), "full": streamed(model, x, exits, False, calls)}
    functions |= {f"answer_{t}": streamed(model, x, t, True, calls) for t in range(1, exits + 1)}
    functions |= {} if compiled else peer(model, x)
    with torch.inference_mode():
        seconds = harness.time_in_turns(functions, repeats, warmup=5)
    macs = anytime.step_macs(model, SIZE)
    own = anytime.step_macs(model, SIZE, contract=True)[-1]
    row: dict[str, Any] = {
        "backbone": name, "exits": model.exits, "head": head, "mode": "compiled" if compiled else "eager", "macs": macs,
        "heads_macs": macs[-1] - own, "full_to_plain": harness.ratio(seconds, "full", "plain"),
        "full_to_first": harness.ratio(seconds, f"answer_{exits}", "answer_1"),
        "milliseconds": harness.milliseconds(seconds),
    }  # fmt: skip
    if "earlyon_1" in seconds:
        row["earlyon_to_ours"] = [harness.ratio(seconds, f"earlyon_{t}", f"answer_{t}") for t in range(1, exits + 1)]
        row["earlyon_to_plain"] = harness.ratio(seconds, f"earlyon_{exits}", "plain")
    return row


def training(exits: int, batch: int, repeats: int) -> dict[str, Any]:
    """Images per second of ResNet-18, taken in turn: joint training steps, and heads-only steps from stored features."""
    model = anytime.attach_exits(BACKBONES[0], exits, CLASSES, input_size=SIZE).to(memory_format=torch.channels_last)
    x = torch.rand(batch, *SIZE).contiguous(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (batch,))
    objective = anytime.objectives.Weighted("constant")
    with torch.no_grad():
        features = model.eval().trunk_features(x)
    joint = torch.optim.SGD(model.parameters(), lr=1e-6)
    heads = torch.optim.SGD(model.heads.parameters(), lr=1e-6)

    def step(answers: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        objective(answers(), target).backward()
        optimizer.step()

    model.train()
    functions = {
        "joint": lambda: step(lambda: model(x), joint),
        "heads": lambda: step(lambda: model.head_answers(features), heads),
    }
    seconds = harness.time_in_turns(functions, repeats, warmup=1)
    rates = {key: batch / sorted(values)[len(values) // 2] for key, values in seconds.items()}
    size = sum(feature.nbytes for feature in features) // batch
    return {
        "batch": batch, "images_per_second": rates, "joint_to_heads": harness.ratio(seconds, "joint", "heads"),
        "stored_bytes_per_image": size,
    }  # fmt: skip


def main() -> None:
    """Prints one line per backbone and one for training, and writes all as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--exits", type=int, default=4, help="answers, including the network's own")
    parser.add_argument("--head", default="linear", help="kind of the exits' heads: linear, mixed, ...")
    parser.add_argument("--compiled", action="store_true", help="compile the steps and the plain network")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name in BACKBONES:
        row = inference(name, options.exits, options.head, options.repeats, options.compiled)
        rows.append(row)
        full, first = row["full_to_plain"], row["full_to_first"]
        print(
            f"{name} {row['mode']}: all {options.exits} answers / plain {full['median']:.3f} [{full['p10']:.3f}, "
            f"{full['p90']:.3f}] (bar {FULL}), heads {row['heads_macs'] / row['macs'][-1]:.3%} of the MACs; "
            f"full / first answer {first['median']:.2f} (bar {FIRST})"
        )
        if "earlyon_to_plain" in row:
            medians = ", ".join(f"{each['median']:.3f}" for each in row["earlyon_to_ours"])
            print(f"  earlyon / plain {row['earlyon_to_plain']['median']:.3f}; earlyon / ours, answer by answer: {medians}")
        print("  " + ", ".join(f"{key} {value:.2f} ms" for key, value in row["milliseconds"].items()), flush=True)
    trained = training(options.exits, batch=32, repeats=max(options.repeats // 10, 3))
    rates = trained["images_per_second"]
    print(
        f"training {BACKBONES[0]}: joint {rates['joint']:.1f} images/s, heads only {rates['heads']:.1f}, "
        f"{trained['joint_to_heads']['median']:.1f} times (bar {HEADS_ONLY})"
    )
    facts = {"rows": rows, "training": trained, "repeats": options.repeats, "threads": torch.get_num_threads()}
    harness.write(options.out, facts | harness.environment("cpu"))


if __name__ == "__main__":
    main()
