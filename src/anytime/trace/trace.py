"""The form of a trace, and what analyses ask of it."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from anytime.support import arrays
from anytime.support.trace_files import read_trace, write_trace
from anytime.support.trace_table import frame

if TYPE_CHECKING:
    from pandas import DataFrame

AnyClass = TypeVar("AnyClass", bound=type)


def _logits_are_outputs(kind: AnyClass) -> AnyClass:
    """Decorator: `logits=` is another name for `outputs=`, in the constructor and in `dataclasses.replace`."""
    build = kind.__init__  # type: ignore[misc]

    @functools.wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "logits" in kwargs:
            kwargs["outputs"] = kwargs.pop("logits")
        build(self, *args, **kwargs)

    kind.__init__ = __init__  # type: ignore[misc]
    return kind


@_logits_are_outputs
@dataclass(frozen=True, eq=False)
class Trace:
    """The answers of T steps to N samples, with two costs that are never mixed.

    Attributes:
        outputs: float32 `[T, N, K, ...]`. In classification they are logits `[T, N, K]` over K classes, also called `logits`.
        labels: int64 `[N]`, or `[N, D]` if `meta["levels"]` lists the sizes of D label levels, side by side in K (`level`).
            -1 where a label is absent or none of the classes: metrics that need labels leave such samples out (`labelled`).
        macs: int64 `[T]`, interruptible cost: multiply-adds per sample of the stream up to each step.
        contract_macs: int64 `[T]`, contract cost: multiply-adds of the cheapest way to compute only that answer.
        seconds: float64 `[T]`, cumulative median seconds of a stream over `meta["seconds_batch"]` samples.
        class_names: K names.
        features: T tensors `[N, F_t]`, the inputs of the last linear layer of each step. One tensor `[T, N, F]` is split.
        class_weights: T tensors `[K, F_t]`, its weights. One tensor `[T, K, F]` is split, `[K, F]` belongs to every step.
        meta: JSON-able facts: task, model, dataset, split, input_size, hardware, torch, date, seconds_low, seconds_high, ...
        activations: By layer name, each `[N, ...]`.
        targets: `[N, ...]`, what the outputs should be, if they are no logits `[T, N, K]`: values, or the class of each pixel.

    Raises:
        ValueError: A shape, type or range contradicts the above.
    """

    outputs: Tensor
    labels: Tensor
    macs: Tensor
    contract_macs: Tensor | None
    seconds: Tensor | None
    class_names: tuple[str, ...]
    features: Sequence[Tensor] | None = None
    class_weights: Sequence[Tensor] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        arrays.check_outputs(self.outputs, self.task, self.levels)
        steps, samples, classes = self.outputs.shape[:3]
        object.__setattr__(self, "class_names", arrays.as_names(self.class_names, classes, self.task))
        arrays.check_labels(self.labels, self.levels or (classes,), samples)
        for name, dtype in (("macs", torch.int64), ("contract_macs", torch.int64), ("seconds", torch.float64)):
            cost = getattr(self, name)
            if cost is None and name != "macs":
                continue
            if cost.shape != (steps,) or cost.dtype != dtype or not bool(cost.isfinite().all() and (cost > 0).all()):
                got = f"{arrays.described(cost)}: {cost.tolist()}"
                raise ValueError(f"{name} must be {dtype} [{steps}] and positive, got {got}")
        if bool((self.macs.diff() <= 0).any()):
            raise ValueError(f"macs are cumulative and must grow at every step, got {self.macs.tolist()}")
        if self.levels and (self.labels.ndim != 2 or sum(self.levels) != classes):
            raise ValueError(
                f"label levels of {self.levels} classes do not fit {classes} classes and {arrays.described(self.labels)}"
            )
        arrays.check_conditions(self.meta, steps)
        if self.meta.get("groups") is not None:
            groups = arrays.as_groups(self.meta["groups"], samples)
            object.__setattr__(self, "meta", {**self.meta, "groups": groups})
        for name, rows in (("features", samples), ("class_weights", classes)):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, arrays.by_step(given, name, steps, rows))
        if self.features is not None and self.class_weights is not None:
            widths, wanted = ([part.shape[1] for part in parts] for parts in (self.class_weights, self.features))
            if widths != wanted:
                raise ValueError(f"class_weights must be as wide as the features, {wanted}, got {widths}")
        samples_first = {**self.activations} if self.targets is None else {**self.activations, "targets": self.targets}
        for name, values in samples_first.items():
            if values.shape[:1] != (samples,):
                what = name if values is self.targets else f"activations[{name!r}]"
                raise ValueError(f"{what} must be [{samples}, ...], one row for each sample, got {arrays.described(values)}")
        if self.targets is not None and self.task != "classification":
            arrays.check_targets(self.targets, self.outputs, self.task)

    @property
    def task(self) -> str:
        """What the outputs are: "classification", "regression" or "dense"."""
        return self.meta.get("task", "classification")

    @property
    def logits(self) -> Tensor:
        """The outputs of a classifier, float32 `[T, N, K]`; raises ValueError if the task is another."""
        if self.task != "classification":
            raise ValueError(
                f"this trace is of task {self.task!r}: it has outputs and targets, but no logits, so no classes, "
                "probabilities or accuracy follow from it"
            )
        return self.outputs

    @property
    def num_steps(self) -> int:
        """T."""
        return self.outputs.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.outputs.shape[1]

    @property
    def num_classes(self) -> int:
        """K, over all label levels; in other tasks the number of values or maps of an answer."""
        return self.outputs.shape[2]

    @property
    def levels(self) -> tuple[int, ...]:
        """The sizes of the label levels, side by side in K; empty for plain labels `[N]`."""
        return tuple(self.meta.get("levels") or ())

    def level(self, index: int) -> Trace:
        """The trace of one label level: its columns of the logits, names and class weights, and its labels `[N]`.

        Features that only other levels weigh are left out.

        Raises:
            ValueError: The trace has no label level `index`.
        """
        if not 0 <= index < len(self.levels):
            raise ValueError(f"no label level {index}: this trace has {len(self.levels)} label levels {self.levels}")
        columns = slice(sum(self.levels[:index]), sum(self.levels[: index + 1]))
        weights, features = self.class_weights, self.features
        if weights is not None:
            read = [part[columns].any(0) | ~part.any(0) for part in weights]
            weights = [part[columns][:, own] for part, own in zip(weights, read, strict=True)]
            features = None if features is None else [part[:, own] for part, own in zip(features, read, strict=True)]
        return replace(
            self,
            outputs=self.logits[..., columns],
            labels=self.labels[:, index],
            class_names=self.class_names[columns],
            features=features,
            class_weights=weights,
            meta={key: value for key, value in self.meta.items() if key != "levels"} | {"level": index},
        )

    def select(self, samples: Tensor) -> Trace:
        """The trace of some samples, int64 positions or a bool mask `[N]`, in their order; also of their `meta["groups"]`."""
        groups, rows = self.meta.get("groups"), torch.arange(self.num_samples)[samples]
        return replace(
            self,
            outputs=self.outputs[:, samples],
            labels=self.labels[samples],
            features=None if self.features is None else [part[samples] for part in self.features],
            meta=self.meta if groups is None else {**self.meta, "groups": [groups[row] for row in rows.tolist()]},
            activations={name: values[samples] for name, values in self.activations.items()},
            targets=None if self.targets is None else self.targets[samples],
        )

    @classmethod
    def from_logits(
        cls,
        logits: arrays.Array | Sequence[arrays.Array],
        labels: arrays.Array,
        *,
        macs: arrays.Array,
        contract_macs: arrays.Array | None = None,
        seconds: arrays.Array | None = None,
        class_names: Sequence[str] | None = None,
        features: Sequence[arrays.Array] | None = None,
        class_weights: Sequence[arrays.Array] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Trace:
        """A trace of the logits of any code, from numpy or torch.

        Args:
            logits: `[T, N, K]`, or T arrays `[N, K]`, of any floating-point type; not probabilities.
            labels: Whole numbers `[N]`; -1, and with a warning all others outside 0..K-1, are absent.
            macs: Cumulative multiply-adds per sample after each step, `[T]`.
            contract_macs: Multiply-adds of each answer by itself, `[T]`.
            seconds: Cumulative seconds after each step, `[T]`.
            class_names: K names. Default: "0", "1", ...
            features: T arrays `[N, F_t]`.
            class_weights: T arrays `[K, F_t]`.
            meta: JSON-able facts; `{"levels": sizes}` for labels `[N, D]` of several levels.

        Raises:
            ValueError: A shape, type or range is wrong, or the logits are probabilities.

        Example:
            >>> import numpy
            >>> from anytime import Trace
            >>> Trace.from_logits(numpy.random.randn(3, 100, 10), numpy.arange(100) % 10, macs=[1e6, 3e6, 9e6]).num_steps
            3
        """
        facts = dict(meta or {})
        outputs, answers = arrays.as_outputs(logits), arrays.as_labels(labels)
        steps, samples, classes = outputs.shape
        if answers.shape[:1] != (samples,):
            turned = ", so swap the first two dimensions of the logits" if len(answers) == steps else ""
            raise ValueError(
                f"logits {list(outputs.shape)} are of {samples} samples, but there are {len(answers)} labels{turned}"
            )
        answers = arrays.known_labels(answers, tuple(facts.get("levels") or (classes,)))
        return cls(
            outputs=outputs,
            labels=answers,
            macs=arrays.as_vector(macs, "macs", torch.int64),
            contract_macs=None if contract_macs is None else arrays.as_vector(contract_macs, "contract_macs", torch.int64),
            seconds=None if seconds is None else arrays.as_vector(seconds, "seconds", torch.float64),
            class_names=arrays.as_names(class_names or tuple(map(str, range(classes))), classes, "classification"),
            features=arrays.as_tensors(features, "features"),
            class_weights=arrays.as_tensors(class_weights, "class_weights"),
            meta=facts,
        )

    def to_pandas(self) -> DataFrame:
        """A `pandas.DataFrame` with one row per sample and answer.

        Columns: sample (from 0), step (from 1), macs, contract_macs, seconds, group. A classifier has label (-1: absent),
        answer, correct (missing without a label) and confidence, with `_0`, `_1`, ... for several label levels. A regression
        has output_k and target_k.

        Raises:
            ImportError: pandas is not installed.
            ValueError: The outputs are maps, which are no values of a row.
        """
        return frame(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file atomically, creating missing folders.

        Raises:
            ValueError: JSON cannot represent `meta`, or there are activations of too many layers.
            OSError: The disk is full.
        """
        write_trace(path, {name: getattr(self, name) for name in self.__dataclass_fields__}, self.task)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Reads a file that `save` wrote; executes nothing from it.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated, altered, not a trace, or has another format version.
        """
        return read_trace(path, cls)


def require_one_level(trace: Trace) -> None:
    """Raises ValueError if the trace has several label levels: its logits are then not one distribution."""
    if trace.levels:
        sizes, last = trace.levels, len(trace.levels) - 1
        raise ValueError(
            f"this trace has {len(sizes)} label levels of {sizes} classes; pick one: trace.level(0) to trace.level({last})"
        )


def labelled(trace: Trace) -> Trace:
    """The samples of a classifier's trace that have a label; a warning and `meta["unlabelled"]` say how many have none.

    Raises:
        ValueError: No sample has a label, the trace has several label levels, or it is not of a classifier.
    """
    require_one_level(trace)
    classes, there = trace.logits.shape[2], trace.labels >= 0
    if bool(there.all()):
        return trace
    missing = int((~there).sum())
    if missing == trace.num_samples:
        raise ValueError(f"none of the {missing} samples of this trace has a label among its {classes} classes")
    warnings.warn(
        f"{missing} of {trace.num_samples} samples have no label among the {classes} classes and are left out", stacklevel=3
    )
    return replace(kept := trace.select(there), meta={**kept.meta, "unlabelled": missing})
