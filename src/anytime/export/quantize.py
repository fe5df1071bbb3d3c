"""INT8: the graph of each step with 8-bit weights and activations, calibrated on images, and what that costs in accuracy."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from anytime.model import AnytimeModel, require_classifier
from anytime.runtime.engines.exported import ExportedModel

CALIBRATED = 128  # images
TIMED = 20  # streams
_QUANTISED = {"onnx": ["Conv", "MatMul", "Gemm"], "openvino": ["Conv", "MatMul"]}  # by engine


@dataclass(frozen=True)
class Calibration:
    """What INT8 is made and judged by.

    Args:
        images: `[N, C, H, W]` in [0, 1], such as validation images. The first half, at most 128, sets the ranges of
            activations; the others measure the loss of accuracy.
        labels: The images' labels, int64 `[N]`; -1 where there is none. With several label levels, those of the first.
        max_loss: The largest loss of accuracy that any step may have, 0.01 for one point in a hundred.

    Raises:
        ValueError: There are fewer than 2 images, not as many labels, or the loss is no share.
    """

    images: Tensor
    labels: Tensor
    max_loss: float = 0.01

    def __post_init__(self) -> None:
        if len(self.images) < 2 or self.labels.shape != self.images.shape[:1]:
            given = f"{list(self.images.shape)} and {list(self.labels.shape)}"
            raise ValueError(f"calibration needs at least 2 images and a label for each, got {given}")
        if isinstance(self.max_loss, bool) or not 0 <= self.max_loss <= 1:
            raise ValueError(f"max_loss must be a share of the images in [0, 1], got {self.max_loss!r}")

    @property
    def ranges(self) -> Tensor:
        """The images that set the ranges."""
        return self.images[: min(CALIBRATED, len(self.images) // 2)]

    @property
    def judged(self) -> tuple[Tensor, Tensor]:
        """The other images with a label, and their labels."""
        rest = slice(len(self.ranges), None)
        known = self.labels[rest] >= 0
        return self.images[rest][known], self.labels[rest][known]


@dataclass(frozen=True)
class Int8Row:
    """Accuracy and median milliseconds of one step, in float32 and in INT8."""

    step: int
    accuracy: float
    accuracy_int8: float
    milliseconds: float
    milliseconds_int8: float


class _Reader:
    """Gives a quantiser the inputs of a step, image by image."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def quantised(exact: ExportedModel, folder: Path, images: Tensor) -> Iterator[bytes]:
    """The file of each step in INT8, by ONNX Runtime's static quantisation: QDQ, weights per channel, activations of 8 bits.

    Convolutions and matrix products are quantised, with ranges that the step's inputs have on the images; what lies between
    two steps stays float32. ONNX Runtime computes an operator in 8 bits if its output is quantised as well. OpenVINO needs
    only inputs and weights, and the output stays exact. There a linear layer of `[B, C]`, such as a head, stays float32:
    OpenVINO 2026.4 makes wrong numbers of the largest value of each map if it is quantised.

    Args:
        exact: The export in float32.
        folder: Where its files are.
        images: To calibrate on.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    states = [exact.initial_state(image) for image in images.split(1)]
    kinds: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    operators = _QUANTISED[engine := exact.manifest.engine]
    kinds |= {"quant_format": QuantFormat.QDQ, "per_channel": True, "op_types_to_quantize": operators}
    if engine == "openvino":
        kinds["extra_options"] = {"OpTypesToExcludeOutputQuantization": operators}
    for step in exact.manifest.steps:
        names = [value.name for value in step.inputs]
        rows = [{n: s[str(tuple(o))].numpy() for n, o in zip(names, step.sources, strict=True)} for s in states]
        with tempfile.TemporaryDirectory() as place, _silent():
            made = Path(place, "quantised.onnx")
            quantize_static(str(folder / step.file), str(made), _Reader(rows), **kinds)
            yield made.read_bytes()
        states = [exact.step(state)[1] for state in states]


@contextmanager
def _silent() -> Iterator[None]:
    """Hides what the quantiser advises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def loss_of(exact: ExportedModel, made: ExportedModel, calibration: Calibration) -> list[Int8Row]:
    """Accuracy on the images that set no range, and median times of both in turn, of each step."""
    require_classifier(exact, "INT8 is judged by accuracy, which")
    images, labels = calibration.judged
    if not len(images):
        raise ValueError("none of the images that are left to judge INT8 by has a label")
    right = [[0] * exact.num_steps for _ in range(2)]
    seconds: list[list[list[float]]] = [[[] for _ in range(exact.num_steps)] for _ in range(2)]
    with torch.inference_mode():
        for number, (image, label) in enumerate(zip(images.split(1), labels.tolist(), strict=True)):
            for which, model in enumerate((exact, made)):
                for t, (answer, took) in enumerate(_timed(model, image)):
                    right[which][t] += int(answer[0, : exact.levels[0]].argmax()) == label
                    if number < TIMED:
                        seconds[which][t].append(took)
    steps = zip(*([count / len(images) for count in each] for each in right), strict=True)
    times = zip(*([median(row) * 1e3 for row in each] for each in seconds), strict=True)
    return [Int8Row(t, *pair, *took) for t, (pair, took) in enumerate(zip(steps, times, strict=True), 1)]


def _timed(model: AnytimeModel, image: Tensor) -> Iterator[tuple[Tensor, float]]:
    state = model.initial_state(image)
    for _ in range(model.num_steps):
        start = time.perf_counter()
        answer, state = model.step(state)
        yield answer, time.perf_counter() - start


def check_loss(rows: Sequence[Int8Row], max_loss: float) -> None:
    """Raises ValueError if a step loses more accuracy than is accepted; the message names the worst."""
    worst = max(rows, key=lambda row: row.accuracy - row.accuracy_int8)
    loss = worst.accuracy - worst.accuracy_int8
    if loss > max_loss + 1e-12 or math.isnan(loss):
        raise ValueError(
            f"in INT8 step {worst.step} answers {worst.accuracy_int8:.2%} of the images right instead of "
            f"{worst.accuracy:.2%}, a loss of more than {max_loss:.2%}: accept more, or stay with float32"
        )
