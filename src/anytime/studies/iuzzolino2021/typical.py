"""Table 1 of Iuzzolino et al. (2021): do networks decide sooner on typical images?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anytime.analysis.curves import answers
from anytime.analysis.latency import Selection, latency
from anytime.analysis.typicality import centrality, difference, typicality
from anytime.data import default_root
from anytime.data.side_data import SideData, read_cscores, read_human_consistency
from anytime.models.cascaded.conversion import convert
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, recipes
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.folds import Folded
from anytime.studies.iuzzolino2021.measured import CALIBRATED, STEPS, folder_of, kept, network_of, smoothed
from anytime.studies.iuzzolino2021.networks import pair
from anytime.studies.runner import Traces, TrainingRun
from anytime.studies.study import Result
from anytime.trace import record

FOLDS = 5  # the paper's are 10
DATA = "anytime.studies.iuzzolino2021.folds.CIFAR10Folds"
HELD_OUT = 4000  # images of each fold that are measured, of 10,000
THETA = 0.83  # the paper's threshold
SIDE_FILES = {"C-score": "cifar10-cscores-orig-order.npz", "human consistency": "cifar10h-counts.npy"}
MEASURES = ("centrality", *SIDE_FILES)
Measured = Mapping[str, Mapping[str, Tensor]]
"""By network, "TD" or "CE", of the same images: `rows` (positions in the official order), `centrality`, `labels` (of all
images of the split), `steps` and `reached` for our threshold, `paper_steps` and `paper_reached` for the paper's; whether the
last answer is right under smoothing, `right`, and in the settled network, `settled_right`; our `threshold` for each fold."""


def _label(fold: int) -> str:
    return f" (fold {fold + 1} of {FOLDS})"


def table_1_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD and CascadedCE without each fold of CIFAR-10's training images, one seed; no training on other data."""
    if data != "cifar10":
        return []
    flags = [[f"--data={DATA}", f"--data.fold={fold}", f"--data.folds={FOLDS}"] for fold in range(FOLDS)]
    return [run for fold in range(FOLDS) for run in pair(data, scale, seeds[:1], _label(fold), flags[fold])]


def table_1(traces: Traces, data: str) -> Result:
    """Rank correlations of typicality and speed, on images that a network has not seen."""
    first = f"CascadedTD{_label(0)}"
    seed = next(iter(traces[first]))
    parts: dict[str, list[dict[str, Tensor]]] = {"TD": [], "CE": []}
    tests: dict[str, dict[str, Tensor]] = {}
    for kind, found in parts.items():
        for fold in range(FOLDS):
            folder = folder_of(traces, f"Cascaded{kind}{_label(fold)}", seed)
            how = partial(measured, folder, "validation")
            found.append(kept(folder / "typicality-validation.safetensors", how, CALIBRATED))
        folder = folder_of(traces, f"Cascaded{kind}{_label(0)}", seed)
        tests[kind] = kept(folder / "typicality-test.safetensors", partial(measured, folder, "test"), CALIBRATED)
    pooled = {kind: {key: torch.cat([part[key] for part in found]) for key in found[0]} for kind, found in parts.items()}
    scores, missing = side_scores(default_root(), pooled["TD"]["labels"], tests["TD"]["labels"])
    networks = {name: traces[name] for fold in range(FOLDS) for name in (f"Cascaded{kind}{_label(fold)}" for kind in parts)}
    numbers = facts(traces[first], paper=published.PAPER, table="1: typicality and speed")
    numbers |= {"recipes": recipes(networks), "folds": FOLDS}
    return typicality_result(pooled, tests, scores, numbers, missing)


@torch.no_grad()
def measured(folder: Path, part: Literal["validation", "test"]) -> dict[str, Tensor]:
    """Latencies under smoothing, and centrality in the settled network, of images that the network was not trained on."""
    model, data, device = network_of(folder)
    data.setup()
    if isinstance(data, Folded) and part == "validation":
        rows, labels = data.held_out()
        rows, count = rows[:HELD_OUT], HELD_OUT
    else:
        rows = torch.arange(len(data.split(part)))
        labels, count = data.split(part).labels, len(rows)
    split = data.split(part)
    loader = data.loader(split[torch.arange(min(count, len(split)))], train=False)
    quiet: dict[str, Any] = {"progress": False, "seconds": False, "device": device}
    smooth = record(smoothed(model).eval(), loader, **quiet)
    settled = convert(model, "cascaded_resnet18", kernel="instant").eval()  # type: ignore[arg-type]
    whole = record(settled, loader, features=True, **quiet)
    found = {"rows": rows, "labels": labels.clone(), "centrality": centrality(whole)}
    found |= {name: answers(each)[-1] == each.labels for name, each in (("right", smooth), ("settled_right", whole))}
    ours, theirs = latency(smooth), latency(smooth, THETA)
    for name, chosen in (("", ours), ("paper_", theirs)):
        found |= {f"{name}steps": chosen.steps, f"{name}reached": chosen.reached}
    return found | {"threshold": torch.tensor([ours.threshold], dtype=torch.float64)}


def side_scores(root: Path, train: Tensor, test: Tensor) -> tuple[dict[str, Tensor], list[str]]:
    """C-scores of the training and human consistency of the test images, and the files that are not under the data's folder.

    Args:
        root: The folder of the data.
        train, test: The labels of all images of each split, in the official order.
    """
    found, missing = dict[str, Tensor](), list[str]()
    readers: dict[str, Any] = {"C-score": (read_cscores, train), "human consistency": (read_human_consistency, test)}
    for name, file in SIDE_FILES.items():
        read, labels = readers[name]
        if (root / file).is_file():
            side: SideData = read(root / file)
            found[name] = side.of(labels[: len(side.values)])
        else:
            missing.append(str(root / file))
    return found, missing


def _rho(value: Tensor, speed: Selection) -> float:
    """Spearman's rho, nan if all images have the same latency, as where none reaches the threshold."""
    if bool((speed.steps == speed.steps[0]).all()):
        return math.nan
    return typicality(value, speed, resamples=1).tied.rho


def typicality_result(
    held_out: Measured, tests: Measured, scores: Mapping[str, Tensor], numbers: Mapping[str, Any], missing: Sequence[str]
) -> Result:
    """Table 1 from what was measured: on held-out training images, and human consistency on test images."""
    both = {"held-out training images": held_out, "test images": tests}
    images = {part: len(of["TD"]["rows"]) for part, of in both.items()}
    numbers = {**numbers, "part": "held-out training images; human consistency: test images", "images": images}
    rows: list[dict[str, Any]] = []
    claims = []
    for name in MEASURES:
        theirs = dict(zip(("CE", "TD"), published.TYPICALITY[name], strict=True))
        if name not in scores and name != "centrality":
            rows += [{"measure": name, "network": kind, "paper": theirs[kind]} for kind in ("CE", "TD")]
            continue
        of = tests if name == "human consistency" else held_out
        pairs = {}
        for kind in ("CE", "TD"):
            each = of[kind]
            value = each["centrality"] if name == "centrality" else scores[name][each["rows"]]
            speeds = {
                "": Selection(0.0, each["steps"], each["reached"], each["steps"]),
                "paper_": Selection(THETA, each["paper_steps"], each["paper_reached"], each["steps"]),
            }
            found = typicality(value, speeds[""], resamples=300)
            pairs[kind] = (value, -each["steps"].double())
            rows.append(
                {"measure": name, "network": kind, "rho": found.tied.rho, "low": found.tied.low, "high": found.tied.high}
                | {"p_value": found.tied.p_value, "without_never": found.reached.rho, "never": found.never}
                | {"rho_at_083": _rho(value, speeds["paper_"]), "never_at_083": speeds["paper_"].never}
                | {"images": found.tied.samples, "paper": theirs[kind]}
            )
        gap = difference(pairs["TD"], pairs["CE"], resamples=300)
        gained = {"difference": gap.difference, "low": gap.low, "high": gap.high, "p_value": gap.p_value}
        paper = {"difference": theirs["TD"] - theirs["CE"], "source": "table 1"}
        if name == "human consistency":
            statement = f"{name} goes with fast decisions alike in CascadedTD and CascadedCE: the interval holds 0"
            claims.append(Claim(statement, gap.low <= 0 <= gap.high, gained, paper | {"shows": True, "p_value": 0.29}))
        else:
            statement = f"{name} goes with fast decisions more in CascadedTD than in CascadedCE"
            claims.append(Claim(statement, gap.low > 0, gained, paper | {"shows": True}))
    columns = [Column("measure", "measure"), Column("network", "network"), Column("rho", "rho", ".3f")]
    columns += [Column("low", "95 % from", ".3f"), Column("high", "to", ".3f"), Column("paper", "paper", ".3f")]
    columns += [Column("without_never", "without never", ".3f"), Column("never", "never", ".1%")]
    columns += [Column("rho_at_083", "at theta 0.83", ".3f"), Column("never_at_083", "never", ".1%")]
    columns.append(Column("images", "images"))
    networks = [_network(kind, part, of[kind]) for part, of in both.items() for kind in ("CE", "TD")]
    shown = [Column("network", "network"), Column("part", "images"), Column("accuracy", "last answer", ".2%")]
    shown += [Column("settled_accuracy", "of the trained network", ".2%")]
    lacking = f"\n\nmissing: {', '.join(missing)}" if missing else ""
    text = f"{format_table(rows, columns)}{lacking}\n\nunder smoothing\n\n{format_table(networks, shown)}"
    theta = "for each network, what leaves 10 % of the measured images themselves without a class"
    extra = {"steps": STEPS, "calibrated": CALIBRATED, "threshold": theta, "networks": networks}
    extra |= {"measured_images_of_a_fold": HELD_OUT, "rows": rows, "missing": list(missing)}
    return Result({**numbers, **extra}, text, claims=claims)


def _network(kind: str, part: str, found: Mapping[str, Tensor]) -> dict[str, Any]:
    """How good the networks of a kind are under smoothing and as trained, and their thresholds, of each fold."""
    right = {"accuracy": found["right"], "settled_accuracy": found["settled_right"]}
    shares = {name: float(each.double().mean()) for name, each in right.items()}
    return {"network": kind, "part": part, "images": len(found["right"]), **shares, "thresholds": found["threshold"]}
