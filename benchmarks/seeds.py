"""Trains a recipe with several seeds, reads the test images once for each, and says what the recipe reaches.

Trainings that are finished are taken as they are, interrupted ones are resumed. The test images are read when all are done.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import matplotlib.pyplot as plt

from anytime import create_model
from anytime.analysis.statistics import interval
from anytime.reporting.evaluation import evaluate_run
from anytime.training.config import Config, parse
from anytime.training.launch import claim, resume_training, start_training
from anytime.training.rundir import read_run

COMMIT = "commit.txt"  # in a run that was trained here without interruption: the commit that trained it
STATIC = "static networks, same recipe"


def settings(config: Config) -> Config:
    """What decides the numbers of a training. Another folder of images may hold other images."""
    given = {key: value for key, value in config["data"]["init_args"].items() if key != "download"}
    kept = {key: value for key, value in config.items() if key != "progress"}
    return kept | {"data": config["data"] | {"init_args": given}}


def trained(recipe: Path, options: Sequence[str], seed: int, run: Path) -> Path:
    """The finished run of one seed of a recipe with further options."""
    config = parse([*options, "--seed", str(seed)], [recipe])
    if not run.is_dir():
        start_training(config, run)
        (run / COMMIT).write_text(f"{harness.COMMIT}\n", encoding="utf-8")
    elif changed := [key for key, value in settings(config).items() if settings(read_run(run)[0]).get(key) != value]:
        raise SystemExit(f"{run} was trained with another {', '.join(changed)} than {recipe} with its options: move it away")
    elif read_run(run)[1]["state"] != "finished":
        resume_training(run)
    print(f"{run}: {claim(run)}", flush=True)
    return run


def row(run: Path, root: Path | None) -> dict[str, Any]:
    """Accuracy and MACs of each answer on the test images, and what the training took."""
    if (run / "metrics-test.json").is_file():
        numbers = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
    else:
        numbers = evaluate_run(str(run), "test", root).numbers
    config, state = read_run(run)
    accuracy = [step["accuracy"] for step in numbers["steps"]]
    falls = [here - there for i, here in enumerate(accuracy) for there in accuracy[i + 1 :]]
    return {
        "seed": config["seed"],
        "accuracy": accuracy,
        "macs": [step["macs"] for step in numbers["steps"]],
        "largest_fall": max([0.0, *falls]),
        "training": state.get("training"),
        "hardware": state["hardware"],
        "trained_with": state["anytime"],
        "trained_at": (run / COMMIT).read_text(encoding="utf-8").strip() if (run / COMMIT).is_file() else None,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean of each answer's accuracy over the seeds, and the half width of its 95 % interval (None for a single seed)."""
    answers = [interval(values) for values in zip(*(row["accuracy"] for row in rows), strict=True)]
    return [
        {"macs": macs, "accuracy": mean, "half_width": None if math.isnan(half_width) else half_width}
        for macs, (mean, half_width) in zip(rows[0]["macs"], answers, strict=True)
    ]


def told(answer: dict[str, Any]) -> str:
    within = "" if answer["half_width"] is None else f" +- {100 * answer['half_width']:.2f}"
    return f"{answer['macs'] / 1e6:.1f} M MACs: {100 * answer['accuracy']:.2f}{within} %"


def one_answer(recipe: Path, options: str) -> list[str]:
    """The options of a static network; ends the program if they make a network of several answers."""
    words = shlex.split(options)
    model = parse(words, [recipe])["model"]
    if (steps := create_model(model["class_path"], **model["init_args"]).num_steps) != 1:
        raise SystemExit(f"--static takes options of a network with one answer, {options!r} gives {steps}")
    return words


Curves = dict[tuple[str, str], list[dict[str, float]]]


def read_published(path: Path) -> Curves:
    """Published answers by name and kind, "exits" or "budgeted": the file says in percent and million MACs where they are."""
    curves: Curves = {}
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    for line in csv.DictReader(lines):
        point = {"macs": round(1e6 * float(line["million_macs"])), "accuracy": float(line["accuracy"]) / 100}
        curves.setdefault((line["curve"], line["kind"]), []).append(point)
    return curves


def beside(published: Curves, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each published exit the last answer of at most its MACs, and by how much that is more accurate; None if none is."""
    rows = []
    for (name, kind), points in published.items():
        for point in points if kind == "exits" else []:
            last = next((each["accuracy"] for each in reversed(answers) if each["macs"] <= point["macs"]), None)
            ahead = None if last is None else last - point["accuracy"]
            rows.append({"curve": name, **point, "here": last, "ahead": ahead})
    return rows


def draw(curves: dict[str, list[dict[str, Any]]], published: Curves, path: Path) -> None:
    """Accuracy over MACs, the 95 % interval as a bar; published answers are dashed, those under a mean budget dotted."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, kind), points in published.items():
        style, label = ("--", f"{name}, published") if kind == "exits" else (":", f"{name}, published, {kind}")
        macs, accuracy = ([point[key] for point in points] for key in ("macs", "accuracy"))
        axes.plot([each / 1e6 for each in macs], [100 * each for each in accuracy], style, label=label)
    for name, points in curves.items():
        accuracy = [100 * point["accuracy"] for point in points]
        bars = [100 * (point.get("half_width") or math.nan) for point in points]
        macs, style = [point["macs"] / 1e6 for point in points], "s" if name == STATIC else "o-"
        axes.errorbar(macs, accuracy, bars, fmt=style, capsize=3, label=name)
    axes.set(xlabel="million MACs per image", ylabel="test accuracy in %")
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--static", action="append", default=[], help="options that make a network of one answer; repeatable")
    parser.add_argument("--static-seeds", type=int, nargs="+", help="seeds of the static networks, if fewer")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--root", type=Path, help="folder of the data")
    parser.add_argument("--figure", type=Path, help="figure of accuracy over MACs")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="metrics files to draw beside it, named by folder")
    parser.add_argument("--published", type=Path, help="published answers to compare with, such as published_cifar100.csv")
    options = parser.parse_args()
    for name, seeds in (("--seeds", options.seeds), ("--static-seeds", options.static_seeds or [])):
        if len(set(seeds)) < len(seeds):
            parser.error(f"{name} names a seed twice: {' '.join(map(str, seeds))}")
    words = [one_answer(options.recipe, text) for text in options.static]
    runs = [trained(options.recipe, [], seed, options.runs / f"{options.recipe.stem}_seed{seed}") for seed in options.seeds]
    plain = [
        [
            trained(options.recipe, each, seed, options.runs / f"{options.recipe.stem}_static{number}_seed{seed}")
            for seed in options.static_seeds or options.seeds
        ]
        for number, each in enumerate(words, 1)
    ]
    rows = [row(run, options.root) for run in runs]
    answers = summary(rows)
    for number, answer in enumerate(answers, 1):
        print(f"answer {number}, {told(answer)}, n = {len(rows)}")
    static = []
    for text, group in zip(options.static, plain, strict=True):
        each = [row(run, options.root) for run in group]
        static.append({"options": text, **summary(each)[0], "seeds": each})
        print(f"static network, {told(static[-1])}, n = {len(each)}: {text}")
    published = {} if options.published is None else read_published(options.published)
    compared = beside(published, answers)
    for each in compared:
        ahead = "no answer by then" if each["ahead"] is None else f"here {100 * each['ahead']:+.2f} points"
        print(f"{each['curve']}, {each['macs'] / 1e6:.0f} M MACs: {100 * each['accuracy']:.2f} % published, {ahead}")
    facts = {"recipe": options.recipe.name, "answers": answers, "seeds": rows, "static": static, "published": compared}
    harness.write(options.out, harness.environment(options.device) | {key: value for key, value in facts.items() if value})
    if options.figure is not None:
        others = {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["steps"] for path in options.beside}
        draw({options.recipe.stem: answers} | others | ({STATIC: static} if static else {}), published, options.figure)


if __name__ == "__main__":
    main()
