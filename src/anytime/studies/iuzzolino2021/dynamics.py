"""Figures 2 and 5 of Iuzzolino et al. (2021): which images are decided first, and mistakes within the family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.ticker import EngFormatter
from torch import Tensor

from anytime.analysis.curves import answers
from anytime.analysis.latency import Extremes, extremes, latency
from anytime.analysis.statistics import first_trace, mean
from anytime.analysis.taxonomy import compliance, compliance_courses
from anytime.data.sets.cifar import CIFAR100_SUPERCLASS
from anytime.reporting.dynamics import gallery
from anytime.reporting.plots import BLUE
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, figure_title, recipes
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.figures import first_time, step_costs
from anytime.studies.iuzzolino2021.measured import CALIBRATED, folder_of, network_of, smoothed
from anytime.studies.iuzzolino2021.networks import pair
from anytime.studies.runner import Traces, TrainingRun
from anytime.studies.study import Result
from anytime.trace import Trace

SMOOTHING = " (smoothing)"
SHOWN = 6  # fastest and slowest images of each class
CLASSES = 10  # in the gallery
NETWORKS = {"CascadedTD": BLUE, "CascadedCE": "#000000"}
COMPLIANT = 0.35  # what CascadedTD has after 2 steps in the paper, and CascadedCE after 8


def figure_2_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD and CascadedCE, recorded under smoothing."""
    return pair(data, scale, seeds, views={SMOOTHING: smoothed})


def figure_2(traces: Traces, data: str) -> Result:
    """The fastest and slowest test images of each class; the drawing is of CascadedTD, first seed."""
    rows = list[dict[str, Any]]()
    chosen = dict[str, tuple[Trace, Extremes]]()
    for name in NETWORKS:
        for seed, trace in traces[f"{name}{SMOOTHING}"].items():
            found = extremes(trace, latency(trace), SHOWN)
            right = answers(trace)[-1] == trace.labels
            share = {
                which: float(right[torch.tensor([i for each in lists for i in each])].double().mean())
                for which, lists in (("fastest", found.fastest), ("slowest", found.slowest))
            }
            steps = found.latency.steps[found.latency.reached].double()
            rows.append(
                {"network": name, "seed": seed, "accuracy": float(right.double().mean())}
                | {"threshold": found.latency.threshold, "never": found.latency.never, "latency": float(steps.mean())}
                | {"shown": sum(map(len, found.fastest))}
                | {"fastest_right": share["fastest"], "slowest_right": share["slowest"]}
            )
            chosen.setdefault(name, (trace, found))
    claims = [sooner_is_right(name, [row for row in rows if row["network"] == name]) for name in NETWORKS]
    stored = traces[f"CascadedTD{SMOOTHING}"]
    numbers = facts(stored, paper=published.PAPER, figure="2: images that are decided first and last") | {
        "recipes": recipes({name: traces[f"{name}{SMOOTHING}"] for name in NETWORKS}),
        "calibrated": CALIBRATED,
        "class_names": first_trace(stored).class_names,
        "rows": rows,
        "images_of_class": {name: {"fastest": found.fastest, "slowest": found.slowest} for name, (_, found) in chosen.items()},
    }
    columns = [Column("network", "network"), Column("seed", "seed"), Column("accuracy", "last answer", ".2%")]
    columns += [Column("threshold", "threshold", ".3f")]
    columns += [Column("never", "never", ".1%"), Column("latency", "mean latency", ".1f")]
    columns += [Column("fastest_right", "fastest right", ".1%"), Column("slowest_right", "slowest right", ".1%")]
    trace, found = chosen["CascadedTD"]
    images = _images(traces, next(iter(stored)))
    drawn = None if images is None else gallery(trace, images, found, range(min(CLASSES, trace.num_classes)))
    return Result(numbers, format_table(rows, columns), drawn, claims)


def sooner_is_right(name: str, rows: Sequence[Mapping[str, Any]]) -> Claim:
    """The gain of the share of right answers, fastest - slowest, over all seeds.

    Its 95 % interval takes the images as independent.

    Source: Newcombe 1998 (Statistics in Medicine 17), method 10, from Wilson's intervals of both shares.
    """
    from scipy.stats import binomtest

    shown = sum(row["shown"] for row in rows)
    fast, slow = (sum(row[key] * row["shown"] for row in rows) / shown for key in ("fastest_right", "slowest_right"))
    of_fast, of_slow = (binomtest(round(p * shown), shown).proportion_ci(method="wilson") for p in (fast, slow))
    low = fast - slow - math.hypot(fast - of_fast.low, of_slow.high - slow)
    high = fast - slow + math.hypot(of_fast.high - fast, slow - of_slow.low)
    statement = f"{name} is right about the images it decides first more often than about those it decides last"
    measured = {"gain": fast - slow, "low": low, "high": high, "images": shown}
    return Claim(statement, low > 0, measured, "figure 2, which shows images only")


def _images(traces: Traces, seed: int) -> Tensor | None:
    """The test images of the recorded traces; None if they are in no run directory."""
    if not hasattr(traces, "folders"):
        return None
    _, data, _ = network_of(folder_of(traces, f"CascadedTD{SMOOTHING}", seed))
    data.setup("test")
    return torch.cat([images for images, _ in data.loader(data.split("test"), train=False)])


def figure_5_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD and CascadedCE on CIFAR-100, which has superclasses; no training on other data."""
    return pair(data, scale, seeds) if data == "cifar100" else []


def figure_5(traces: Traces, data: str) -> Result:
    """Taxonomic compliance over the steps, with CIFAR-100's 20 superclasses."""
    return compliance_result({name: traces[name] for name in NETWORKS}, CIFAR100_SUPERCLASS)


def compliance_result(networks: Mapping[str, Mapping[int, Trace]], superclass: Sequence[int]) -> Result:
    """Figure 5 of the traces of CascadedTD and CascadedCE."""
    courses = compliance_courses(networks, superclass)
    first = first_time(first_trace(networks["CascadedTD"]))
    costs = {name: step_costs(first_trace(networks[name]), first) for name in courses}
    rows = [
        {"network": name, "time": t, "macs": macs, "ms": ms, "compliance": value, "error": error, "chance": chance}
        for name, course in courses.items()
        for t, macs, ms, value, error, chance in zip(
            *costs[name].values(), course.mean, course.error, course.chance, strict=True
        )
    ]
    reached = {name: _reached(course.mean, first) for name, course in courses.items()}
    at = 2 - first
    gain, low, high = _gain([*networks["CascadedTD"].values()], [*networks["CascadedCE"].values()], superclass, at)
    claims = [
        Claim(
            "after 2 steps, mistakes of CascadedTD stay in the right superclass more often than those of CascadedCE",
            None if math.isnan(low) else low > 0,
            {"gain": gain, "low": low, "high": high},
            {"shows": True, "CascadedTD": COMPLIANT, "source": "section 4.3 and figure 5"},
        ),
        Claim(
            f"CascadedTD reaches a compliance of {COMPLIANT:g} earlier than CascadedCE",
            _earlier(reached["CascadedTD"], reached["CascadedCE"]),
            {"time_of_first": reached},
            {"shows": True, "CascadedTD": 2, "CascadedCE": 8},
        ),
    ]
    numbers = facts(networks["CascadedTD"], paper=published.PAPER, figure="5: taxonomic compliance") | {
        "recipes": recipes(networks),
        "chance": "mean (n - 1) / (K - 1) over the mistakes, n classes in the superclass; the paper says 1/20",
        "rows": rows,
        "by_seed": {name: course.by_seed for name, course in courses.items()},
    }
    columns = [Column("network", "network"), Column("time", "t"), Column("macs", "MACs", ",d"), Column("ms", "ms", ".2f")]
    columns += [Column("compliance", "compliance", ".3f"), Column("error", "SEM", ".3f"), Column("chance", "chance", ".3f")]
    shown = [label for label in costs["CascadedTD"] if all(None not in cost[label] for cost in costs.values())]
    with figures.panels(0.8 + 3.0 * len(shown), 3.2, len(shown), share_y=True) as (drawn, grid):
        for axes, label in zip(grid, shown, strict=True):
            for name, course in courses.items():
                bars = None if any(map(math.isnan, course.error)) else course.error
                axes.errorbar(costs[name][label], course.mean, bars, color=NETWORKS[name], marker="o", capsize=2, label=name)
            chance = courses["CascadedTD"].chance
            axes.plot(costs["CascadedTD"][label], chance, color="#888888", linestyle=":", label="chance")
            axes.set(xlabel=label, xlim=(0, None))
            axes.xaxis.set_major_formatter(EngFormatter())
        grid[0].set(ylabel="taxonomic compliance", title=figure_title(numbers))
        grid[0].legend(loc="best")
    return Result(numbers, format_table(rows, columns), drawn, claims)


def _reached(values: Sequence[float], first: int) -> int | None:
    """The first t from which on the compliance is at least that of the paper's CascadedTD after 2 steps."""
    return next((first + i for i, value in enumerate(values) if value >= COMPLIANT), None)


def _earlier(one: int | None, other: int | None) -> bool | None:
    return None if one is None else other is None or one < other


def _gain(ours: Sequence[Trace], theirs: Sequence[Trace], superclass: Sequence[int], step: int) -> tuple[float, float, float]:
    """The mean difference of two compliances at a step, and its 95 % interval over mistakes, taken as independent."""
    pairs: list[Any] = [(compliance(a, superclass), compliance(b, superclass)) for a, b in zip(ours, theirs, strict=True)]
    gains = [float(a.value[step] - b.value[step]) for a, b in pairs]
    spread = [float(c.value[step] * (1 - c.value[step]) / c.errors[step]) for pair_ in pairs for c in pair_]
    half = 1.96 * math.sqrt(sum(spread)) / len(pairs)
    return mean(gains), mean(gains) - half, mean(gains) + half
