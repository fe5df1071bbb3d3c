"""AnytimeNet at 32x32: all 7 answers of a stream against BASELINE's one answer, and against 7 sub-networks from scratch.

    python benchmarks/anytimenet.py [--repeats 50] [--device cuda] [--out results/benchmarks/anytimenet.json]

MACs: the stream costs 1.191x BASELINE and 1/3.32 of the sub-networks. Times are taken in turn in one process, in float32,
channels_last and eval mode; glibc's allocator is set to keep freed memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from torch import Tensor

from anytime import create_model, step_macs
from anytime.model import AnytimeModel
from anytime.support.allocator import keep_freed_memory

BARS = {128: 1.25, 1: 1.4}  # stream / baseline, at most; and at least 2.5x faster than from scratch
SIZE = (3, 32, 32)


def candidates(model: AnytimeModel, baseline: AnytimeModel, x: Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    """What to time; compiled, a stream is one graph per step (so that it can stop), "whole" is all answers in one graph."""
    wrap: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
    steps = harness.compile_steps(model.step, model.num_steps) if compiled else [model.step] * model.num_steps
    contract = [wrap(lambda x, t=t: model(x, step=t)) for t in range(1, model.num_steps + 1)]
    whole = wrap(lambda x: baseline(x)[0])

    def stream() -> list[Tensor]:
        state, answers = model.initial_state(x), []
        for step in steps:
            logits, state = step(state)
            answers.append(logits)
        return answers

    timed = {"stream": stream, "baseline": lambda: whole(x), "scratch": lambda: [answer(x) for answer in contract]}
    if compiled:
        every = wrap(lambda x: model(x))
        timed["whole"] = lambda: every(x)
    return timed


def main() -> None:
    """Prints one line per batch size and mode, and writes all as JSON."""
    options = harness.parser(__doc__ or "").parse_args()
    keep_freed_memory()
    torch._dynamo.config.recompile_limit = 32  # one graph per step of the sub-networks
    model, baseline = create_model("anytimenet").eval(), create_model("anytimenet_baseline").eval()
    for network in (model, baseline):
        network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    full = step_macs(baseline, SIZE)[-1]
    macs = {"stream": step_macs(model, SIZE)[-1] / full, "scratch": sum(step_macs(model, SIZE, contract=True)) / full}
    print(f"MACs: stream / baseline {macs['stream']:.3f}, scratch / stream {macs['scratch'] / macs['stream']:.2f}")
    rows = []
    for compiled in (False, True):
        for batch in BARS:
            x = torch.rand(batch, *SIZE, device=options.device).contiguous(memory_format=torch.channels_last)
            repeats = options.repeats if batch > 1 else 4 * options.repeats
            with torch.inference_mode():
                seconds = harness.time_in_turns(candidates(model, baseline, x, compiled), repeats)
            row = {
                "batch": batch, "mode": "compiled" if compiled else "eager", "bar": BARS[batch],
                "stream_to_baseline": harness.ratio(seconds, "stream", "baseline"),
                "scratch_to_stream": harness.ratio(seconds, "scratch", "stream"),
                "milliseconds": harness.milliseconds(seconds),
            }  # fmt: skip
            if compiled:
                row["whole_to_baseline"] = harness.ratio(seconds, "whole", "baseline")
                print(f"all answers in one graph / baseline {row['whole_to_baseline']['median']:.3f}, batch {batch}")
            rows.append(row)
            over, under = row["stream_to_baseline"], row["scratch_to_stream"]
            print(
                f"batch {batch:>3} {row['mode']:<8} stream / baseline {over['median']:.3f} [{over['p10']:.3f}, "
                f"{over['p90']:.3f}] (bar {BARS[batch]})   scratch / stream {under['median']:.2f} (bar 2.5)   "
                + ", ".join(f"{name} {ms:.2f} ms" for name, ms in row["milliseconds"].items()),
                flush=True,
            )
    harness.write(options.out, {"macs": macs, "rows": rows, "repeats": options.repeats, **harness.environment(options.device)})


if __name__ == "__main__":
    main()
