"""Traces: a model's answer to every sample of a data set at every step, and the cost of each step.

A trace is recorded once and stored; every metric, curve and figure is a pure function of traces.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anytime.cost import hardware, step_macs, step_seconds
from anytime.model import AnytimeModel, eval_mode
from anytime.support.digest import weights_digest
from anytime.support.documents import parse_json
from anytime.support.limits import UNFIT
from anytime.support.precision import own_precision
from anytime.support.tensor_files import read_tensors, write_tensors
from anytime.support.text import one_line
from anytime.support.units import ImageSize, image_size

_FORMAT = "anytime-trace"
_VERSION = 1
_TENSORS = ("logits", "labels", "macs", "contract_macs", "seconds", "features", "class_weights")


@dataclass(frozen=True, eq=False)
class Trace:
    """The answers of T steps to N samples over K classes, with two costs that are never mixed.

    Attributes:
        logits: float32 `[T, N, K]`.
        labels: int64 `[N]`, or `[N, D]` if `meta["levels"]` lists the sizes of D label levels, side by side in K (`level`).
        macs: int64 `[T]`, interruptible cost: multiply-adds per sample of the stream up to each step.
        contract_macs: int64 `[T]`, contract cost: multiply-adds of the cheapest way to compute only that answer.
        seconds: float64 `[T]`, cumulative median seconds of a stream over `meta["seconds_batch"]` samples.
        class_names: K names.
        features: float32 `[T, N, F]`, the inputs of the last linear layer.
        class_weights: float32 `[K, F]`, or `[T, K, F]` if every step has its own last layer.
        meta: JSON-able facts: model, dataset, split, input_size, hardware, torch, date, seconds_low, seconds_high, ...

    Raises:
        ValueError: A shape, type or range contradicts the above.
    """

    logits: Tensor
    labels: Tensor
    macs: Tensor
    contract_macs: Tensor | None
    seconds: Tensor | None
    class_names: tuple[str, ...]
    features: Tensor | None = None
    class_weights: Tensor | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logits.ndim != 3 or self.logits.dtype != torch.float32 or 0 in self.logits.shape:
            raise ValueError(f"logits must be float32 [T, N, K] and not empty, got {_describe(self.logits)}")
        if not all(bool(step.logsumexp(1).isfinite().all()) for step in self.logits):
            raise ValueError("logits contain NaN or infinity: no probabilities can be computed from them")
        steps, samples, classes = self.logits.shape
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.class_names) != classes:
            raise ValueError(f"logits have {classes} classes but {len(self.class_names)} class_names were given")
        _check_labels(self.labels, self.levels or (classes,), samples)
        for name, dtype in (("macs", torch.int64), ("contract_macs", torch.int64), ("seconds", torch.float64)):
            cost = getattr(self, name)
            if cost is None and name != "macs":
                continue
            if cost.shape != (steps,) or cost.dtype != dtype or not bool(cost.isfinite().all() and (cost > 0).all()):
                got = f"{_describe(cost)}: {cost.tolist()}"
                raise ValueError(f"{name} must be {dtype} [{steps}] and positive, got {got}")
        if bool((self.macs.diff() <= 0).any()):
            raise ValueError(f"macs are cumulative and must grow at every step, got {self.macs.tolist()}")
        if self.levels and (self.labels.ndim != 2 or sum(self.levels) != classes):
            raise ValueError(
                f"label levels of {self.levels} classes do not fit {classes} classes and {_describe(self.labels)}"
            )
        for name in ("seconds_low", "seconds_high"):
            if len(self.meta.get(name, [0] * steps)) != steps:
                raise ValueError(f"meta[{name!r}] must hold {steps} values, got {self.meta[name]!r}")
        width = None if self.features is None else self.features.shape[-1]
        if self.features is not None and self.features.shape != (steps, samples, width):
            raise ValueError(f"features must be [{steps}, {samples}, F], got {_describe(self.features)}")
        if self.class_weights is not None:
            rows, columns = self.class_weights.shape[:-1], self.class_weights.shape[-1:]
            if rows not in ((classes,), (steps, classes)) or (width is not None and columns != (width,)):
                wanted = f"[{classes}, {width or 'F'}] or [{steps}, {classes}, {width or 'F'}]"
                raise ValueError(f"class_weights must be {wanted}, got {_describe(self.class_weights)}")

    @property
    def num_steps(self) -> int:
        """T."""
        return self.logits.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.logits.shape[1]

    @property
    def num_classes(self) -> int:
        """K, over all label levels."""
        return self.logits.shape[2]

    @property
    def levels(self) -> tuple[int, ...]:
        """The sizes of the label levels, side by side in K; empty for plain labels `[N]`."""
        return tuple(self.meta.get("levels") or ())

    def level(self, index: int) -> Trace:
        """The trace of one label level: its columns of the logits, names and class weights, and its labels `[N]`.

        Raises:
            ValueError: The trace has no label level `index`.
        """
        if not 0 <= index < len(self.levels):
            raise ValueError(f"no label level {index}: this trace has {len(self.levels)} label levels {self.levels}")
        columns = slice(sum(self.levels[:index]), sum(self.levels[: index + 1]))
        return replace(
            self,
            logits=self.logits[..., columns],
            labels=self.labels[:, index],
            class_names=self.class_names[columns],
            class_weights=None if self.class_weights is None else self.class_weights[..., columns, :],
            meta={key: value for key, value in self.meta.items() if key != "levels"} | {"level": index},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file atomically, creating missing folders.

        Raises:
            ValueError: JSON cannot represent `meta`.
            OSError: The disk is full.
        """
        tensors = {name: value.contiguous() for name in _TENSORS if (value := getattr(self, name)) is not None}
        try:
            header = json.dumps({"class_names": self.class_names, "meta": dict(self.meta)})
        except TypeError as error:
            raise ValueError(f"the meta of a trace must be JSON: {error}") from None
        metadata = {"format": _FORMAT, "version": str(_VERSION), "trace": header, "crc32": _crc32(header, tensors)}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Reads a file that `save` wrote; executes nothing from it.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated, altered, not a trace, or has another format version.
        """
        tensors, metadata = read_tensors(path, "a trace")
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} is a safetensors file but not a trace; anytime.record writes traces")
        if (version := metadata.get("version")) != str(_VERSION):
            raise ValueError(f"{path} has trace format version {version}; this version of anytime reads {_VERSION}")
        header = metadata.get("trace", "")
        if metadata.get("crc32") != _crc32(header, tensors):
            raise ValueError(f"{path} is damaged: its content does not match the checksum {metadata.get('crc32')}")
        facts = parse_json(header, path, nodes=10_000_000)  # the group of each image
        fields = {name: tensors.get(name) for name in _TENSORS}
        try:
            return cls(**fields, class_names=tuple(facts["class_names"]), meta=facts["meta"])  # type: ignore[arg-type]
        except UNFIT as error:
            raise ValueError(f"{path} is damaged: {one_line(error)}") from error


def record(
    model: AnytimeModel,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str | None = None,
    input_size: ImageSize | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    seconds: bool = True,
    seconds_batch: int = 1,
    meta: Mapping[str, Any] | None = None,
) -> Trace:
    """Runs `model` over `loader` in eval mode and in its own precision; records all answers, their costs and the hardware.

    Args:
        model: An anytime model, `[B, C, H, W] -> [T, B, K]`. Its training flags are restored afterwards.
        loader: Batches `(images, labels)`; labels `[B]`, or `[B, D]` for a model with D label levels. An attribute `groups`,
            as the loaders of data sets have it, is kept in the trace: the group of each sample, or None.
        device: Device to run on; the model is moved there. Default: the device of its parameters.
        input_size: `(channels, height, width)` for the costs, or the side of square colour images. Default: that of the first
            batch.
        class_names: K names. Default: `model.info.class_names`, or else "0", "1", ...
        progress: Whether to show progress bars on stderr.
        seconds: Whether to measure the latency of a stream as well.
        seconds_batch: The batch size of that measurement.
        meta: Facts to add to, or override, those recorded here (model, input_size, hardware, date, ...).

    Raises:
        ValueError: The loader is empty, labels lie outside 0..K-1, or the logits do not have the shape the model claims.
    """
    place = next(model.parameters()).device if device is None else torch.device(device)
    steps, classes = model.num_steps, model.num_classes
    model.to(place)
    precision = next(model.parameters()).dtype
    answers: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.inference_mode(), eval_mode(model), own_precision(place):
        for images, target in tqdm(loader, desc="recording", unit="batch", disable=not progress, leave=False):
            input_size = image_size(input_size or tuple(images.shape[1:]))
            target = target if target.is_floating_point() else target.long()
            _check_labels(target, model.levels, len(images), f"batch {len(labels)}: ")
            images = images.to(place, precision if images.is_floating_point() else images.dtype, non_blocking=True)
            logits = model(images)
            if logits.shape != (steps, len(images), classes):
                wanted = f"[{steps}, {len(images)}, {classes}]"
                raise ValueError(f"batch {len(labels)}: the model returned {_describe(logits)} instead of {wanted}")
            answers.append(logits.float().cpu())
            labels.append(target.cpu())
        if not answers or input_size is None:
            raise ValueError("the loader is empty: nothing to record")
        macs, contract = (step_macs(model, input_size, contract=contract, progress=progress) for contract in (False, True))
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None  # busy cores, before the steps are timed
        timing = step_seconds(model, input_size, batch_size=seconds_batch, progress=progress) if seconds else None
    facts: dict[str, Any] = {
        "model": model.config.get("model", type(model).__name__),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": weights_digest(model.state_dict()),
        "input_size": list(image_size(input_size)),
        "hardware": hardware(place),
        "torch": torch.__version__,
        "load": load,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if hasattr(loader, "groups"):
        facts["groups"] = None if loader.groups is None else torch.as_tensor(loader.groups).tolist()
    if labels[0].ndim == 2:
        facts["levels"] = list(model.levels)
    if timing is not None:
        facts |= {"seconds_batch": seconds_batch, "seconds_low": timing.low, "seconds_high": timing.high}
    return Trace(
        logits=torch.cat(answers, dim=1),
        labels=torch.cat(labels),
        macs=torch.tensor(macs, dtype=torch.int64),
        contract_macs=torch.tensor(contract, dtype=torch.int64),
        seconds=None if timing is None else torch.tensor(timing.median, dtype=torch.float64),
        class_names=tuple(class_names or model.info.class_names or map(str, range(classes))),
        meta=facts | dict(meta or {}),
    )


def require_one_level(trace: Trace) -> None:
    """Raises ValueError if the trace has several label levels: its logits are then not one distribution."""
    if trace.levels:
        sizes, last = trace.levels, len(trace.levels) - 1
        raise ValueError(
            f"this trace has {len(sizes)} label levels of {sizes} classes; pick one: trace.level(0) to trace.level({last})"
        )


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _check_labels(labels: Tensor, levels: tuple[int, ...], samples: int, where: str = "") -> None:
    """Raises ValueError unless labels are int64 `[N]` in 0..K-1, or `[N, D]` with column d in 0..levels[d]-1."""
    wanted = (samples,) if len(levels) == 1 and labels.ndim == 1 else (samples, len(levels))
    if labels.dtype != torch.int64 or labels.shape != wanted:
        raise ValueError(f"{where}labels must be torch.int64 {list(wanted)}, got {_describe(labels)}")
    for column, size in zip(labels.reshape(samples, -1).T, levels, strict=True):
        low, high = int(column.min()), int(column.max())
        if low < 0 or high >= size:
            raise ValueError(f"{where}labels must lie in 0..{size - 1} for {size} classes, got values from {low} to {high}")


def _crc32(header: str, tensors: Mapping[str, Tensor]) -> str:
    checksum = zlib.crc32(header.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
