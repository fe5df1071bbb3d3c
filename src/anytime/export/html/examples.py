"""What a page shows of a model's data: ten test images, and the accuracy of each step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.pretrained import list_pretrained, pretrained_folder
from anytime.reporting.evaluation import images_of, output_folder, trained_on
from anytime.saving import CARD
from anytime.support.digest import weights_digest
from anytime.support.documents import parse_json, read_limited
from anytime.support.folders import check_file
from anytime.support.limits import UNFIT

COUNT = 10


@dataclass(frozen=True)
class Examples:
    """Test images, uint8 `[N, C, H, W]`, and their labels."""

    images: Tensor
    labels: list[int]


@dataclass(frozen=True)
class Accuracies:
    """The accuracy of each step, and a sentence that says on what it was measured."""

    steps: list[float]
    source: str


def test_images(model: AnytimeModel, root: Path | None, download: bool, folder: Path) -> Examples:
    """The first test image of each class, in the order of the classes; with fewer than ten classes, as many of each.

    Args:
        model: Knows its data set.
        root: Folder of the data; None: the recipe's.
        download: Whether missing data are downloaded.
        folder: The run directory.

    Raises whatever the data set raises if it is missing or damaged, and ValueError if its images are of another size.
    """
    data = trained_on(model, root, download, folder)
    data.prepare_data()
    most, found = -(-COUNT // model.levels[0]), list[tuple[int, Tensor]]()
    for batch, targets in images_of(data, "test"):
        for image, label in zip(batch, (targets if targets.ndim == 1 else targets[:, 0]).tolist(), strict=True):
            if label >= 0 and sum(label == other for other, _ in found) < most and len(found) < COUNT:
                found.append((label, image))
        if len(found) == COUNT:
            break
    if not found:
        raise ValueError("no test image has a label")
    found.sort(key=lambda pair: pair[0])
    images = torch.stack([image for _, image in found]).mul(255).round().to(torch.uint8)
    return Examples(images, [label for label, _ in found])


def measured_accuracies(model: AnytimeModel, run: str) -> Accuracies | None:
    """What `anytime evaluate` has measured of this model, or what its card in the package says; None if neither is there.

    Raises:
        ValueError: What `anytime evaluate` has written is damaged, or a link that leads out of its folder, or a pipe.
    """
    metrics = output_folder(run) / "metrics-test.json"
    check_file(metrics)
    if metrics.is_file():
        numbers = parse_json(read_limited(metrics, 2**24), metrics)
        try:
            meta: dict[str, Any] = numbers["meta"]
            if meta.get("weights") == weights_digest(model.state_dict()):
                steps = [float(row["accuracy"]) for row in numbers["steps"]]
                if len(steps) != model.num_steps or not all(0 <= accuracy <= 1 for accuracy in steps):
                    raise ValueError(f"it must hold a share of 1 for each of {model.num_steps} steps, got {steps}")
                return Accuracies(steps, f"Measured on {numbers['samples']:,} test images of {meta.get('dataset')}.")
        except UNFIT as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{metrics} is damaged: {reason}; write it again with `anytime evaluate`") from error
    if run not in list_pretrained() or Path(run).is_dir():
        return None
    card = (pretrained_folder(run) / CARD).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in card.splitlines() if line.startswith("|")]
    place = rows[0].index("accuracy")
    measured = re.search(r"Measured on the [\d,]+ \w+ images of \w+", card)
    return Accuracies([float(row[place].rstrip("%")) / 100 for row in rows[2:]], f"{measured[0]}." if measured else "")
