"""Table 2 of Iuzzolino et al. (2021): how much networks make of many noisy glances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from anytime.analysis.robustness import mean_drop, persistent, transient
from anytime.analysis.statistics import interval, mean
from anytime.data.noise import Noise, create_noise
from anytime.models.cascaded.conversion import convert
from anytime.reporting.tables import Column, format_table
from anytime.studies.claims import Claim
from anytime.studies.facts import facts, recipes
from anytime.studies.iuzzolino2021 import published
from anytime.studies.iuzzolino2021.measured import folder_of, kept, network_of, some
from anytime.studies.iuzzolino2021.networks import pair
from anytime.studies.runner import Traces, TrainingRun
from anytime.studies.study import Result

NOISES: tuple[Noise, ...] = get_args(Noise)
LOSSY = ("focus", "occlusion", "perlin", "resolution")  # those from which the paper expects a benefit
NETWORKS = ("SerialCE x 9", "CascadedCE", "CascadedTD")
IMAGES, BATCHES = 2000, 10  # test images, and the groups of them whose differences give the intervals
DURATIONS = (1, 3, 5, 7, 9)  # of the disturbance, in steps; the paper leaves them open
SETTLING = 9  # steps until an answer has settled; with the published clock it counts from t = 0, so one more


def table_2_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD and CascadedCE trained with each noise on the training images, one seed."""
    return [run for noise in NOISES for run in pair(data, scale, seeds[:1], f" ({noise})", (f"--data.noise={noise}",))]


def table_2(traces: Traces, data: str) -> Result:
    """Accuracy under persistent noise, and what a transient disturbance costs."""
    first = f"CascadedTD ({NOISES[0]})"
    seed = next(iter(traces[first]))
    found: dict[str, dict[str, Tensor]] = {noise: _measured(traces, noise, seed) for noise in NOISES}
    networks = {name: traces[name] for noise in NOISES for name in (f"CascadedTD ({noise})", f"CascadedCE ({noise})")}
    numbers = facts(traces[first], paper=published.PAPER, table="2: persistent and transient noise")
    return noise_result(found, numbers | {"recipes": recipes(networks)})


def _measured(traces: Traces, noise: Noise, seed: int) -> dict[str, Tensor]:
    """By network and protocol, float64 `[batches]`: accuracy, drop and area."""
    found: dict[str, Tensor] = {}
    for kind in ("TD", "CE"):
        folder = folder_of(traces, f"Cascaded{kind} ({noise})", seed)
        found |= kept(folder / "noise.safetensors", partial(measured, folder, noise, kind))
    return found


@torch.no_grad()
def measured(folder: Path, noise: Noise, kind: str) -> dict[str, Tensor]:
    """The protocols on a trained network: as a cascade and, if it was trained with CE, also anew on each frame."""
    model, data, device = network_of(folder)
    images, labels = (torch.cat(each) for each in zip(*some(data, "test", IMAGES), strict=True))
    cascade: Any = model
    if kind == "CE":
        cascade = convert(model, "cascaded_resnet18", kernel="osd", statistics="shared").eval()  # type: ignore[arg-type]
    runs = {f"Cascaded{kind}": (cascade, False)} | ({"SerialCE x 9": (model, True)} if kind == "CE" else {})
    made = create_noise(noise, data.mean)
    found: dict[str, list[float]] = {f"{name}, {key}": [] for name in runs for key in ("accuracy", "drop", "area")}
    size = math.ceil(len(images) / BATCHES)
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        x, y = images[part].to(device), labels[part].to(device)
        keys = torch.arange(start, start + len(x), device=device)
        for name, (network, anew) in runs.items():
            settling = SETTLING + (getattr(cascade, "first", 1) == 0)
            given: dict[str, Any] = {"keys": keys, "anew": anew, "settling": settling}
            found[f"{name}, accuracy"].append(persistent(network, x, y, made, **given))
            drop, area = mean_drop(transient(network, x, y, made, DURATIONS, **given))
            found[f"{name}, drop"].append(drop)
            found[f"{name}, area"].append(area)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def _published_gain(noise: str, key: str, other: str) -> float:
    """What CascadedTD gains over another network in the paper: accuracy, or per cent that it loses less."""
    accuracies, drops = published.NOISES[noise]
    place, td = NETWORKS.index(other), NETWORKS.index("CascadedTD")
    return (accuracies[td] - accuracies[place]) / 100 if key == "accuracy" else drops[place] - drops[td]


def noise_result(found: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> Result:
    """Table 2 from what was measured with each noise; the intervals are over groups of images."""
    rows: list[dict[str, Any]] = []
    for noise, values in found.items():
        theirs = published.NOISES.get(noise)
        for place, name in enumerate(NETWORKS):
            accuracy, error = interval(values[f"{name}, accuracy"].tolist())
            drop, drop_error = interval(values[f"{name}, drop"].tolist())
            row = {"noise": noise, "network": name, "accuracy": accuracy, "accuracy_error": error, "drop": drop}
            row |= {"drop_error": drop_error, "area": mean(values[f"{name}, area"].tolist())}
            row |= {"paper_accuracy": theirs[0][place] / 100, "paper_drop": theirs[1][place]} if theirs else {}
            rows.append(row)
    claims = []
    for noise, values in found.items():
        for key, sign in (("accuracy", 1), ("drop", -1)):
            for other in NETWORKS[:2]:
                gains = sign * (values[f"CascadedTD, {key}"] - values[f"{other}, {key}"])
                gain, half = interval(gains.tolist())
                measured_ = {"gain": gain, "low": gain - half, "high": gain + half}
                if noise in LOSSY:
                    what = "is more accurate under persistent" if key == "accuracy" else "loses less by transient"
                    statement = f"CascadedTD {what} {noise} noise than {other}"
                    shows = None if math.isnan(half) else gain - half > 0
                    paper = {"shows": True, "gain": _published_gain(noise, key, other), "source": "table 2"}
                    claims.append(Claim(statement, shows, measured_, paper))
                else:
                    what = "is not more accurate under persistent" if key == "accuracy" else "does not lose less by transient"
                    statement = f"CascadedTD {what} {noise} than {other}"
                    shows = None if math.isnan(half) else gain - half <= 0
                    claims.append(Claim(statement, shows, measured_, "section 5 and appendix A.4"))
    columns = [Column("noise", "noise"), Column("network", "network"), Column("accuracy", "persistent", ".2%")]
    columns += [Column("accuracy_error", "+-", ".2%"), Column("paper_accuracy", "paper", ".2%")]
    columns += [Column("drop", "transient drop, %", ".2f"), Column("drop_error", "+-", ".2f")]
    columns += [Column("paper_drop", "paper", ".2f"), Column("area", "area, steps", ".3f")]
    extra = {"images": IMAGES, "durations": DURATIONS, "interval": f"95 %, over {BATCHES} groups of images", "rows": rows}
    return Result({**numbers, **extra}, format_table(rows, columns), claims=claims)
