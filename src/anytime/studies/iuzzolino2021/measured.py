"""What is measured on trained networks beyond their answers to the test images; it is kept in the run directories."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytime.data import ImageData
from anytime.data.splits import stratified_order
from anytime.model import AnytimeModel
from anytime.models.cascaded.conversion import calibrate, convert
from anytime.pretrained import load
from anytime.reporting.evaluation import trained_on
from anytime.studies.runner import Traces
from anytime.support.model_files import digest_of
from anytime.support.tensor_files import read_tensors, write_tensors
from anytime.trace import Trace

CALIBRATION = 1024  # training images from which a smoothing network gets the statistics of each of its steps
CALIBRATED = f"on {CALIBRATION} training images, augmented as in training"
STEPS = 70  # of a smoothing network


@dataclass(frozen=True)
class Smoothed:
    """A view: the weights under smoothing (alpha 0.9, 70 steps), with statistics of each step under these dynamics.

    They are of training images as training sees them, like the statistics of the trained network: of images without the
    padding of the crops the last answer would be worse than the trained network's.
    """

    made: str = CALIBRATED

    def __call__(self, model: AnytimeModel) -> AnytimeModel:
        network: Any = convert(model, "cascaded_resnet18", kernel="ews", num_steps=STEPS, statistics="per_step")  # type: ignore[arg-type]
        data = trained_on(model)
        loader = data.loader(data.split("train"), train=True)
        calibrate(network, itertools.islice(loader, -(-CALIBRATION // loader.batch_size)))
        return network


smoothed = Smoothed()


def folder_of(traces: Traces, name: str, seed: int) -> Path:
    """The run directory of a network.

    Raises:
        ValueError: These traces are in no run directory.
    """
    folders = getattr(traces, "folders", None)
    if folders is None:
        raise ValueError(f"the traces of {name} are in no run directory, where more could be measured")
    return folders(name)[seed]


def kept(path: Path, measure: Callable[[], Mapping[str, Tensor]], made: str = "") -> dict[str, Tensor]:
    """The tensors of a file in a run directory, which is written first if it is missing.

    So it is if it was of other weights, or was `made` in another way.
    """
    weights = digest_of(path.parent)
    if path.is_file():
        found, facts = read_tensors(path, "a file of measurements")
        if facts.get("weights", weights) == weights and facts.get("made", "") == made:  # earlier files do not say
            return found
    facts = {"weights": weights, "made": made}
    write_tensors(path, {name: value.contiguous() for name, value in measure().items()}, facts)
    return read_tensors(path, "a file of measurements")[0]


def kept_trace(path: Path, record: Callable[[], Trace], weights: str) -> Trace:
    """The trace of a file, which is recorded and written first if it is missing, or was of other `weights` (their digest)."""
    if path.is_file() and (found := Trace.load(path)).meta.get("weights", weights) == weights:
        return found
    record().save(path)
    return Trace.load(path)


def network_of(folder: Path) -> tuple[AnytimeModel, ImageData, torch.device]:
    """The trained model, on a GPU if there is one, its data, and the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load(folder).eval()
    return model.to(device), trained_on(model), device


def some(data: ImageData, part: str, count: int) -> Any:
    """Batches of at most `count` images of a part, in equal shares of all classes."""
    data.setup()
    split = data.split(part)
    rows = stratified_order(split.labels, 0)[:count].sort().values
    return data.loader(split[rows], train=False)
