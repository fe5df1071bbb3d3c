"""Tables 1 and 2 of Kim et al. (2020): blocks that run, counted on the running network, and what a block costs.

Neither depends on weights, so no network is trained.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from anytime.cost import hardware, step_macs, step_seconds
from anytime.models.anytimenet import AnytimeNet
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.kim2020 import published
from anytime.studies.kim2020.networks import ANYTIMENET, BASELINE, IMAGES, untrained_network
from anytime.studies.runner import Traces
from anytime.studies.study import Result
from anytime.support.units import macs_text

BATCH, REPEATS = 50, 7  # images in a timed stream, and timed streams of each network


def executed(model: AnytimeNet, pixels: int = 32) -> list[tuple[int, ...]]:
    """Calls of IN, of each section's blocks and of OUT up to and including each step, `[T][sections + 2]`.

    Counted by hooks while the network streams an image of `pixels` x `pixels`.
    """
    sections = [list(section) for section in model.sections]  # type: ignore[call-overload]
    parts: list[list[nn.Module]] = [[model.stem], *sections, [model.head]]
    counts = [0] * len(parts)

    def called(part: int, *_: object) -> None:
        counts[part] += 1

    hooks = [m.register_forward_hook(partial(called, part)) for part, modules in enumerate(parts) for m in modules]
    try:
        with torch.inference_mode():
            return [tuple(counts) for _ in model.stream(torch.zeros(1, model.in_channels, pixels, pixels))]
    finally:
        for hook in hooks:
            hook.remove()


def _counts(data: str) -> dict[str, list[tuple[int, ...]]]:
    models = {name: untrained_network(name, data) for name in (ANYTIMENET, BASELINE)}
    return {name: executed(model, IMAGES[data].pixels) for name, model in models.items()}  # type: ignore[arg-type]


def table_1(traces: Traces, data: str) -> Result:
    """Blocks executed up to and including each iteration."""
    counts = _counts(data)
    [baseline] = counts[BASELINE]
    rows: list[dict[str, Any]] = []
    for iteration, (ours, theirs) in enumerate(zip(counts[ANYTIMENET], published.TABLE_1, strict=True), 1):
        row = {"iteration": f"iteration {iteration}", **dict(zip(published.PARTS, ours, strict=True)), "total": sum(ours)}
        rows.append(row | {"paper": dict(zip(published.PARTS, theirs, strict=True)), "paper_total": sum(theirs)})
    rows.append({"iteration": BASELINE, **dict(zip(published.PARTS, baseline, strict=True)), "total": sum(baseline)})
    same = [ours == theirs for ours, theirs in zip(counts[ANYTIMENET], published.TABLE_1, strict=True)]
    again = sum(counts[ANYTIMENET][-1]) - sum(baseline)
    claims = [
        Claim("every count equals the paper's", all(same), {"equal_iterations": sum(same)}, "table I"),
        Claim("blocks of the first section never run again", counts[ANYTIMENET][-1][1] == baseline[1], paper="section III-B3"),
    ]
    numbers = {
        "paper": published.PAPER,
        "table": "1: cumulative block count executed by each iteration",
        "input_size": IMAGES[data].size,
        "rows": rows,
        "runs_beyond_baseline": again,
    }
    columns = [Column("iteration", "executed by"), *(Column(part, part) for part in published.PARTS)]
    columns += [Column("total", "total"), Column("paper_total", "the paper's")]
    return Result(numbers, format_table(rows, columns), claims=claims)


def table_2(traces: Traces, data: str) -> Result:
    """Average cost of the blocks up to and including each iteration: MACs, and seconds measured here."""
    images, counts = IMAGES[data], _counts(data)
    models = {name: untrained_network(name, data) for name in counts}
    macs = {name: step_macs(model, images.size) for name, model in models.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in models}
    for repeat in range(REPEATS + 1):  # in turn, so that the machine's load is the same for both
        for name, model in models.items():
            timed = step_seconds(model, images.size, BATCH, repeats=1, warmup=0)
            times[name] += [timed.median] if repeat else []  # the first warms up
    streams = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in times.items()}
    seconds = {name: (rows.median(0).values * images.tests / BATCH).tolist() for name, rows in streams.items()}
    rows: list[dict[str, Any]] = []
    for name, blocks in ((name, [sum(row) for row in rows]) for name, rows in counts.items()):
        for t, count in enumerate(blocks):
            label = f"iteration {t + 1}" if name == ANYTIMENET else name
            row = {"iteration": label, "blocks": count, "macs": macs[name][t] / count}
            rows.append(row | {"seconds": seconds[name][t] / count})
    last, baseline = rows[-2:]
    both = zip((last, baseline), published.TABLE_2[data], strict=True)
    for row, theirs in both:
        row["paper_seconds"] = theirs
    ratio, paper_ratio = last["seconds"] / baseline["seconds"], published.TABLE_2[data][0] / published.TABLE_2[data][1]
    iterations = rows[:-1]
    falls = {kind: [b[kind] / a[kind] - 1 for a, b in pairwise(iterations)] for kind in ("macs", "seconds")}
    whole = (streams[ANYTIMENET][:, -1] / streams[BASELINE][:, -1]).median()
    claims = [
        Claim(
            "an average block of AnytimeNet takes less time than one of BASELINE",
            ratio < 1,
            {"time_ratio": ratio, "mac_ratio": last["macs"] / baseline["macs"]},
            {"shows": True, "time_ratio": paper_ratio},
        ),
        Claim(
            "the average time of a block falls from the first iteration to the last",
            last["seconds"] < rows[0]["seconds"],
            {"relative_changes": falls["seconds"]},
            "section III-B3",
        ),
        Claim(
            "the average MACs of a block fall from the first iteration to the last",
            last["macs"] < rows[0]["macs"],
            {"relative_changes": falls["macs"]},
            note="blocks of all sections have equal MACs, except those that widen and IN and OUT, which have fewer",
        ),
    ]
    numbers = {
        "paper": published.PAPER,
        "table": "2: average cost of a block, over all blocks executed by each iteration",
        "published": published.TABLE_2_SOURCE,
        "input_size": images.size,
        "test_images": images.tests,
        "measured_on": hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "seconds": f"for all test images: {images.tests} / {BATCH} times the median of {REPEATS} streams of {BATCH} images",
        "rows": rows,
        "whole_time_over_baseline": float(whole),
        "whole_macs_over_baseline": macs[ANYTIMENET][-1] / macs[BASELINE][-1],
    }
    columns = [Column("iteration", "executed by"), Column("blocks", "blocks"), Column("macs", "MACs a block", _mean_macs)]
    columns += [Column("seconds", "seconds a block", ".3f"), Column("paper_seconds", "the paper's", ".3f")]
    sentence = f"an average block takes {ratio:.2f} of BASELINE's time, the paper's {paper_ratio:.2f}"
    return Result(numbers, f"{format_table(rows, columns)}\n\n{sentence}", claims=claims)


def _mean_macs(value: float) -> str:
    return macs_text(round(value))
