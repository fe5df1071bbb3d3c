"""Figures 3 and 4 of Iuzzolino, Mozer, Bengio, "Improving Anytime Prediction with Parallel Cascaded Networks and a
Temporal-Difference Loss", NeurIPS 2021.

The time t of an answer counts as in the paper: an image enters at t = 0, and with a one-step delay the first answer that has
seen it comes at t = 1. Networks at CPU scale answer at t = 1..9, those at full scale, by the published clock, at t = 0..8.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime.analysis.curves import accuracy
from anytime.analysis.speed_accuracy import THRESHOLDS, mean_curve, speed_accuracy
from anytime.analysis.statistics import difference, standard_error
from anytime.models.cascaded.conversion import convert
from anytime.models.cascaded.serial import serial_resnet18
from anytime.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from anytime.reporting.tables import Column, format_table
from anytime.studies import figures
from anytime.studies.runner import Run, Traces, View, find_recipe
from anytime.studies.study import Item, Result, Study, facts
from anytime.trace import Trace
from anytime.training.config import read_recipe

PAPER = (
    "Iuzzolino, Mozer, Bengio, Improving Anytime Prediction with Parallel Cascaded Networks and a Temporal-Difference Loss, "
    "NeurIPS 2021"
)

PUBLISHED_CURVES_SOURCE = "figure 4, read off the drawing to about 0.3 %; width 64, 120 epochs, answers at t = 0..8"
PUBLISHED_CURVES: dict[str, dict[str, list[float]]] = {  # per cent at mean stop times 1..8
    "cifar10": {
        "CascadedTD": [10.7, 48.4, 78.0, 91.2, 91.6, 91.6, 91.6, 91.6],
        "CascadedTD-MultiHead": [10.7, 39.7, 69.6, 83.8, 89.5, 89.7, 89.9, 90.1],
        "CascadedCE": [10.1, 10.1, 10.3, 11, 34, 62, 77.8, 91.8],
        "SerialTD": [16.9, 37.0, 59.0, 73.8, 83.5, 87.1, 87.1, 87.4],
        "SerialTD-MultiHead": [11.8, 34.2, 59, 80.9, 90.2, 90.3, 90.6, 90.7],
        "SerialCE": [10, 10, 10, 22, 55.8, 77.6, 91.2, 91.8],
    },
    "cifar100": {
        "CascadedTD": [2.9, 23.8, 49.6, 60.3, 63.7, 64.8, 64.9, 64.9],
        "CascadedTD-MultiHead": [1.6, 20.5, 36.6, 50.2, 60.3, 64.5, 64.8, 64.8],
        "CascadedCE": [1.1, 1.2, 2.8, 13.7, 27.0, 44.7, 60.6, 65.9],
        "SerialTD": [2.2, 12.3, 21.4, 30.7, 39.9, 49.0, 57.7, 59.3],
        "SerialTD-MultiHead": [2, 12.8, 28.6, 42.6, 54, 59.7, 60.3, 60.2],
        "SerialCE": [1, 1, 1, 1, 1, 1, 66.0, 65.9],
    },
    "tinyimagenet": {
        "CascadedTD": [1.2, 14.8, 26.8, 36.1, 43.6, 49.4, 53.9, 55.0],
        "CascadedTD-MultiHead": [1.1, 13.3, 23.0, 31.1, 39.0, 45.9, 51.4, 53.1],
        "CascadedCE": [0.6, 0.6, 0.7, 8.0, 15.4, 23, 41.5, 56.0],
        "SerialTD": [1.8, 11.5, 21.3, 30.6, 38.3, 43.9, 45.7, 44.8],
        "SerialTD-MultiHead": [1.5, 10.2, 19.3, 26.9, 33.6, 40.3, 46, 49.8],
        "SerialCE": [0.5, 0.5, 0.5, 0.5, 1, 5.0, 52, 56],
    },
}

PUBLISHED_LAMBDA_SOURCE = {
    "cifar10": "figure 4, read off the drawing, lambda = 0 alone",
    "cifar100": "the published code's notebook, one seed, lr 0.01, weight decay 5e-4 for lambda 0 and 1, else 1e-3",
    "tinyimagenet": "figure 4, read off the drawing, lambda = 0 alone",
    "terriers": "the published code's figure, one seed",
}
PUBLISHED_LAMBDA: dict[str, dict[float, float]] = {  # accuracy at t = 8
    "cifar10": {0.0: 0.916},
    "cifar100": {0.0: 0.6309, 0.25: 0.6493, 0.5: 0.6335, 0.9: 0.6223, 1.0: 0.5814},
    "tinyimagenet": {0.0: 0.55},
    "terriers": {
        0.0: 0.672,
        0.1: 0.679,
        0.25: 0.682,
        0.5: 0.685,
        0.55: 0.691,
        0.75: 0.675,
        0.83: 0.668,
        0.9: 0.659,
        1.0: 0.632,
    },
}

RECIPES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {  # of CascadedTD, and flags over it
    "cpu": {
        "cifar10": ("iuzzolino2021_cifar10_cpu.yaml", ()),
        "cifar100": ("iuzzolino2021_cifar10_cpu.yaml", ("--data=CIFAR100",)),
    },
    "full": {
        "cifar10": ("iuzzolino2021_cifar10.yaml", ()),
        "cifar100": ("iuzzolino2021_cifar100.yaml", ()),
        "tinyimagenet": ("iuzzolino2021_tinyimagenet.yaml", ()),
        "terriers": ("iuzzolino2021_terriers.yaml", ()),
    },
}
LAMBDAS = (0.0, 0.25, 0.5, 0.83, 1.0)
TIMES = tuple(range(1, 9))
COLOURS = {  # of the networks of figure 4, in their order
    "CascadedTD": BLUE,
    "CascadedTD-MultiHead": SKY,
    "CascadedCE": "#000000",
    "SerialTD": RED,
    "SerialTD-MultiHead": ORANGE,
    "SerialCE": GREY,
    "SerialTD(0)": PURPLE,
    "SerialTD(0)-MultiHead": GREEN,
}
EVERYWHERE, MEAN = "at every mean stop time", "on average over mean stop times"
BEFORE = f"{EVERYWHERE} before the asymptote"
CLAIMS = (  # the last three compare dynamics and heads at lambda = 0, where the paper compares lambda too
    ("CascadedTD", "SerialTD-MultiHead", EVERYWHERE),
    ("CascadedTD", "CascadedCE", BEFORE),
    ("SerialTD", "SerialCE", BEFORE),
    ("SerialTD-MultiHead", "SerialTD", MEAN),
    ("CascadedTD", "CascadedTD-MultiHead", MEAN),
    ("CascadedTD", "SerialTD(0)-MultiHead", EVERYWHERE),
    ("CascadedTD", "SerialTD(0)", EVERYWHERE),
    ("SerialTD(0)-MultiHead", "SerialTD(0)", MEAN),
)


def cascaded_td(lam: float) -> str:
    """The name of CascadedTD with this lambda; without a number it is the paper's, lambda = 0."""
    return f"CascadedTD({lam:g})" if lam else "CascadedTD"


# -- the trainings -----------------------------------------------------------------------------------------------------


def _serial(recipe: Path) -> dict[str, Any]:
    """The arguments of a serial network that matches the recipe's cascaded one.

    Under the published clock the paper's form of the serial network would end before its last block has run: with that clock
    goes the published form.
    """
    known = inspect.signature(serial_resnet18).parameters
    given = {key: value for key, value in read_recipe(recipe)["model"]["init_args"].items() if key in known}
    return given | {"form": "published" if given.get("clock") == "published" else "paper"}


def _runs(data: str, scale: str, seeds: Sequence[int], networks: Mapping[str, tuple[str, ...]]) -> list[Run]:
    """One training for each seed and network; `networks` are their flags by name."""
    file, flags = RECIPES[scale][data]
    recipe = find_recipe(file)
    serial = _serial(recipe)
    views: dict[str, View | None] = {  # the same weights under both dynamics, with ordinary batch norm
        "CascadedCE": functools.partial(convert, name="cascaded_resnet18", kernel="osd", statistics="shared"),
        "SerialCE": functools.partial(convert, name="serial_resnet18", form=serial["form"]),
    }
    runs = []
    for seed in seeds:
        for name, more in networks.items():
            if name.startswith("Serial"):
                given = [f"--model.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in serial.items()]
                more = ("--model=serial_resnet18", *given, *more)
            slug = name.lower().replace("(", "_").replace(")", "").replace("-", "_")
            answers = views if name == "CE" else {name: None}
            runs.append(Run(f"{data}_{scale}_{slug}_seed{seed}", recipe, (*flags, *more), seed, answers))
    return runs


def figure_3_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """CascadedTD over lambda."""
    return _runs(data, scale, seeds, {cascaded_td(lam): (f"--objective.lam={lam:g}",) for lam in LAMBDAS})


def figure_4_runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
    """The six networks of the paper, two of which share their weights, and SerialTD with the lambda of CascadedTD."""
    heads = "--model.heads=separate"
    networks = {
        "CascadedTD": ("--objective.lam=0",),
        "CascadedTD-MultiHead": ("--objective.lam=0", heads),
        "SerialTD": ("--objective.lam=1",),
        "SerialTD-MultiHead": ("--objective.lam=1", heads),
        "SerialTD(0)": ("--objective.lam=0",),
        "SerialTD(0)-MultiHead": ("--objective.lam=0", heads),
        "CE": ("--model.kernel=instant", "--objective=Weighted", "--objective.weights=final_only"),
    }
    return _runs(data, scale, seeds, networks)


# -- the figures -------------------------------------------------------------------------------------------------------


def first_time(trace: Trace) -> int:
    """t of the first answer."""
    return 0 if trace.meta["model_arguments"]["clock"] == "published" else 1


def figure_3(traces: Traces, data: str) -> Result:
    """Accuracy of CascadedTD's last answer over lambda."""
    stored = {lam: traces[cascaded_td(lam)] for lam in LAMBDAS}
    steps = {lam: [accuracy(trace).tolist() for trace in by_seed.values()] for lam, by_seed in stored.items()}
    last = {lam: [values[-1] for values in by_seed] for lam, by_seed in steps.items()}
    errors = dict(zip(LAMBDAS, standard_error([*zip(*last.values(), strict=True)]), strict=True))
    means = {lam: _mean(values) for lam, values in last.items()}
    theirs = PUBLISHED_LAMBDA.get(data, {})
    rivals = {lam: value for lam, value in means.items() if lam != 1}
    nearest, best = min(rivals, key=rivals.__getitem__), max(rivals, key=rivals.__getitem__)
    claims = [
        {
            "claim": "lambda = 1 is the worst at the asymptote",
            "shows": means[1.0] < rivals[nearest],
            **_numbers(last[nearest], last[1.0], f"of lambda = {nearest:g}, the next worst"),
            "best": {"lambda": best, "gain": means[best] - means[1.0]},
            "paper": {"shows": True, "source": "caption of figure 3; for terriers the published code's figure"},
        },
        {
            "claim": "lambda = 0 is above lambda = 1 at the asymptote",
            "shows": means[0.0] > means[1.0],
            **_numbers(last[0.0], last[1.0], "of lambda = 0"),
            "paper": {"shows": True, "source": "figure 3"},
        },
    ]
    rows = [
        {"lambda": lam, "accuracy": means[lam], "sem": errors[lam], "by_seed": last[lam], "paper": theirs.get(lam)}
        for lam in LAMBDAS
    ]
    numbers = {
        "paper": PAPER,
        "figure": "3: accuracy at the asymptote over lambda",
        "published": PUBLISHED_LAMBDA_SOURCE.get(data),
        **facts(stored[0.0]),
        "first_time": first_time(next(iter(stored[0.0].values()))),
        "rows": rows,
        "all_published": theirs,
        "accuracy_by_step": {f"{lam:g}": _means(values) for lam, values in steps.items()},
        "claims": claims,
    }
    columns = [Column("lambda", "lambda", "g"), Column("accuracy", "accuracy", ".2%"), Column("sem", "SEM", ".2%")]
    text = format_table(rows, [*columns, Column("paper", "paper", ".1%")]) + "\n\n" + _told(claims)
    title = f"CascadedTD, {numbers['dataset']}, n = {len(last[0.0])}"
    drawn = figures.points(means, errors, theirs, title, "λ", "accuracy at the asymptote")
    return Result(numbers, text, drawn)


def figure_4(traces: Traces, data: str) -> Result:
    """Accuracy over the mean time, MACs and ms at which networks stop by confidence."""
    curves, networks, at, last = {}, {}, {}, {}
    common: dict[str, Any] = {}
    for name in COLOURS:
        stored = traces[name]
        each = [speed_accuracy(trace, first_time(trace)) for trace in stored.values()]
        any_trace = next(iter(stored.values()))
        common = common or facts(stored)  # of CascadedTD, the first
        curves[name] = mean_curve(each)
        at[name] = [curve.at(TIMES) for curve in each]
        last[name] = [float(accuracy(trace)[-1]) for trace in stored.values()]
        networks[name] = {
            "model": any_trace.meta["model"],
            "arguments": any_trace.meta["model_arguments"],
            "objective": any_trace.meta["recipe"]["objective"],
            "parameters": any_trace.meta["parameters"],
            "macs": any_trace.macs,
            "seconds": _means([trace.seconds.tolist() for trace in stored.values() if trace.seconds is not None]),
        }
    asymptote = first_time(any_trace) + any_trace.num_steps - 1
    names, seeds = list(curves), range(len(common["seeds"]))
    errors = [standard_error([[at[name][seed][i] for name in names] for seed in seeds]) for i in range(len(TIMES))]
    ours = {name: curve.at(TIMES) for name, curve in curves.items()}
    theirs = {name: [value / 100 for value in row] for name, row in PUBLISHED_CURVES.get(data, {}).items()}
    rows = {
        name: {
            "accuracy": ours[name],
            "sem": [at_time[index] for at_time in errors],
            "paper": theirs.get(name),
            "asymptote": _mean(last[name]),
            "asymptote_by_seed": last[name],
        }
        for index, name in enumerate(names)
    }
    claims = [
        {"claim": f"{better} above {worse} {where}"}
        | (_compared(ours, better, worse, where, asymptote) or {})
        | {"asymptote": _numbers(last[better], last[worse], f"of {better}")}
        | {"paper": _compared(theirs, better, worse, where, TIMES[-1])}
        for better, worse, where in CLAIMS
    ]
    claims += _asymptotes(last, theirs, asymptote)
    numbers = {
        "paper": PAPER,
        "figure": "4: speed-accuracy trade-off by a threshold on confidence",
        "published": PUBLISHED_CURVES_SOURCE,
        **common,
        "clock": f"answers at t = {asymptote - any_trace.num_steps + 1}..{asymptote}",
        "networks": networks,
        "mean_stop_times": TIMES,
        "rows": rows,
        "claims": claims,
        "thresholds": THRESHOLDS,
        "curves": {name: vars(curve) for name, curve in curves.items()},
    }
    title = f"{common['dataset']}, n = {len(common['seeds'])}"
    drawn = figures.speed_accuracy(curves, COLOURS, {name: (TIMES, row) for name, row in theirs.items()}, title)
    return Result(numbers, f"{_table(rows)}\n\n{_told(claims)}", drawn)


# -- what must show ----------------------------------------------------------------------------------------------------


def _compared(
    rows: Mapping[str, Sequence[float]], better: str, worse: str, where: str, asymptote: int
) -> dict[str, Any] | None:
    """Whether one network is above another, and by how much at each mean stop time; None where one was not published."""
    if better not in rows or worse not in rows:
        return None
    gains = [b - w for b, w in zip(rows[better], rows[worse], strict=True)]
    counted = [gain for t, gain in zip(TIMES, gains, strict=True) if where != BEFORE or t < asymptote]
    shows = _mean(counted) > 0 if where == MEAN else all(gain > 0 for gain in counted)
    return {"shows": shows, "gains": gains, "mean_gain": _mean(counted)}


def _asymptotes(
    last: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], asymptote: int
) -> list[dict[str, Any]]:
    numbers = _numbers(last["CascadedTD"], last["CascadedCE"], "of CascadedTD")
    gain, error = numbers["gain"], numbers["standard_error"]
    claim = "the asymptote of CascadedTD not below that of CascadedCE by more than two standard errors"
    paper = {"gain": theirs["CascadedTD"][-1] - theirs["CascadedCE"][-1]} if theirs else None
    claims = [{"claim": claim, "shows": None if error != error else gain > -2 * error, **numbers, "paper": paper}]
    if asymptote > TIMES[-1]:  # where both have settled; at t = 8 they have not
        same = _numbers(last["CascadedCE"], last["SerialCE"], "of CascadedCE")
        claims.append({"claim": "CascadedCE and SerialCE agree at the asymptote", "shows": abs(same["gain"]) < 5e-4, **same})
    return claims


def _numbers(left: Sequence[float], right: Sequence[float], of: str) -> dict[str, Any]:
    gain, error = difference(left, right)
    return {"of": of, "gain": gain, "standard_error": error, "seeds": len(left)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [_mean(column) for column in zip(*rows, strict=True)]


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines: list[dict[str, Any]] = []
    for name, row in rows.items():
        lines.append({"name": name, "end": row["asymptote"], **dict(zip(map(str, TIMES), row["accuracy"], strict=True))})
        if row["paper"]:
            lines.append({"name": "  paper", **dict(zip(map(str, TIMES), row["paper"], strict=True))})
    columns = [Column(str(t), f"t = {t}", ".1%") for t in TIMES]
    return format_table(lines, [Column("name", "accuracy at mean stop time"), *columns, Column("end", "asymptote", ".2%")])


def _told(claims: Sequence[Mapping[str, Any]]) -> str:
    said = {True: "yes", False: "NO", None: "unknown"}
    return "\n".join(f"{said[claim['shows']]:<8} {claim['claim']}" for claim in claims)


STUDY = Study(
    paper=PAPER,
    items={
        "figure 3": Item("accuracy at the asymptote over lambda", figure_3_runs, figure_3),
        "figure 4": Item("speed-accuracy trade-off of six networks", figure_4_runs, figure_4),
    },
    data={scale: list(recipes) for scale, recipes in RECIPES.items()},
    seeds={"cpu": (0, 1, 2), "full": (0, 1, 2, 3, 4)},
)
