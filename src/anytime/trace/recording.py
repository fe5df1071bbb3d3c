"""Recording: what a model answers to every sample of a data set, what each step costs, and what happens inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anytime.cost import hardware, step_macs, step_seconds
from anytime.model import AnytimeModel, Deployed, eval_mode
from anytime.support import arrays
from anytime.support.digest import weights_digest
from anytime.support.inside import LastLinear, watching
from anytime.support.precision import own_precision
from anytime.support.units import ImageSize, image_size
from anytime.trace.trace import Trace


def record(
    model: AnytimeModel,
    data: Iterable[Tensor | Sequence[Tensor]],
    *,
    features: bool = False,
    labels: arrays.Array | Literal["data"] | None = "data",
    layers: Sequence[str] = (),
    samples: int | None = None,
    device: torch.device | str | None = None,
    input_size: ImageSize | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    seconds: bool = True,
    seconds_batch: int = 1,
    meta: Mapping[str, Any] | None = None,
) -> Trace:
    """Runs a model over data in eval mode and in its own precision; records all answers, their costs and the hardware.

    Features and activations are kept in memory; their size is printed on stderr after the first batch (with `progress`). They
    come from the stream, step by step; without them `forward` gives the answers.

    Args:
        model: An anytime model, `[B, C, H, W] -> [T, B, K]`, or `[T, B, K, ...]` if `model.info.task` is "dense". Its training
            flags are restored afterwards.
        data: Batches `(images, labels)`; labels `[B]`, or `[B, D]` for a model with D label levels. Those outside 0..K-1 are
            recorded as absent, with a warning unless they are -1; in batches of images only, all are. For other tasks: batches
            `(images, targets)`. An attribute `groups`, as the loaders of data sets have it, is kept in the trace: the group of
            each sample, or None.
        features: Whether to keep the input f_t of the last linear layer of each step, and its weights W_t. Then logits_t is
            W_t f_t plus a bias, up to a factor that a model applies afterwards. Where a step adds to the answer before, as in
            `boosted`, `attach` with `additive`, `zero_time_waste` and the means over views of `fast_views`, that part is left
            out. Separate layers of label levels count as one: their inputs lie side by side. A step that only repeats an
            answer has its features.
        labels: "data": those of the batches. None: they are unknown, such as where images are of other classes than the
            model's, whatever the batches hold. Or the labels `[N]` of all samples.
        layers: Names of modules, as in `model.named_modules()`, whose newest output after each step is kept, `[N, T, ...]`,
            nan before the first run. Of several runs in a step the last counts, of a tuple the first tensor.
        samples: Records only so many samples, the first.
        device: Device to run on; the model is moved there. Default: the device of its parameters.
        input_size: `(channels, height, width)` for the costs, or the side of square colour images. Default: that of the first
            batch.
        class_names: K names. Default: `model.info.class_names`, or else "0", "1", ...
        progress: Whether to show progress bars on stderr.
        seconds: Whether to measure the latency of a stream as well.
        seconds_batch: The batch size of that measurement.
        meta: Facts to add to, or override, those recorded here (model, input_size, hardware, date, ...).

    Raises:
        ValueError: There is nothing to record, labels are a text other than "data", not whole numbers or not as many as
            samples, the answers do not have the shape the model claims, they come from no linear layer, or there is no such
            layer.
    """
    if isinstance(labels, str) and labels != "data":
        raise ValueError(f'labels must be "data", None or the labels of all samples, got {labels!r}')
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples!r}")
    place = next(model.parameters()).device if device is None else torch.device(device)
    steps, classes, task = model.num_steps, model.num_classes, model.info.task
    form = arrays.OUTPUTS[task]
    model.to(place)
    precision = next(model.parameters()).dtype
    inside = _Watched(model, features, layers)
    answers: list[Tensor] = []
    targets: list[Tensor | None] = []
    count = 0
    with torch.inference_mode(), eval_mode(model), own_precision(place), inside.watched():
        for batch in tqdm(data, desc="recording", unit="batch", disable=not progress, leave=False):
            images, target = _parts(batch, labels, None if samples is None else samples - count)
            where = f"batch {len(targets)}: "
            input_size = image_size(input_size or tuple(images.shape[1:]))
            if task == "classification":
                target = _labels(target, model.levels, len(images))
                arrays.check_label_form(target, model.levels, len(images), where)
            images = images.to(place, precision if images.is_floating_point() else images.dtype, non_blocking=True)
            outputs = inside(images) if inside.wanted else model(images)
            if outputs.shape[:3] != (steps, len(images), classes) or outputs.ndim not in form.dimensions:
                wanted = f"[{steps}, {len(images)}, {classes}{', ...' if task == 'dense' else ''}]"
                raise ValueError(f"{where}the model returned {arrays.described(outputs)} instead of {wanted}")
            if task != "classification" and target is not None:
                arrays.check_targets(target, outputs, task, where)
            if not answers and inside.wanted and progress:
                tqdm.write(inside.size(_number(data, len(images), samples)), file=sys.stderr)
            answers.append(outputs.float().cpu())
            targets.append(None if target is None else target.cpu())
            count += len(images)
            if count == samples:
                break
        if not answers or input_size is None:
            raise ValueError("the loader is empty: nothing to record")
        macs, contract = (step_macs(model, input_size, contract=contract, progress=progress) for contract in (False, True))
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None  # busy cores, before the steps are timed
        timing = step_seconds(model, input_size, batch_size=seconds_batch, progress=progress) if seconds else None
    facts: dict[str, Any] = {
        "model": model.config.get("model", type(model).__name__),
        "parameters": model.parameter_count if isinstance(model, Deployed) else sum(p.numel() for p in model.parameters()),
        "weights": weights_digest(model.state_dict()),
        "input_size": list(image_size(input_size)),
        "hardware": hardware(place),
        "load": load,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if hasattr(data, "groups"):
        facts["groups"] = data.groups if data.groups is None or samples is None else data.groups[:count]
    known = [target for target in targets if target is not None]
    recorded = torch.cat(known) if len(known) == len(targets) else None
    if task != "classification":
        answered, facts["task"] = torch.full((count,), -1), task
    else:
        assert recorded is not None
        answered = arrays.known_labels(_given(labels, count, samples, recorded), model.levels)
        if answered.ndim == 2:
            facts["levels"] = list(model.levels)
    if timing is not None:
        facts |= {"seconds_batch": seconds_batch, "seconds_low": timing.low, "seconds_high": timing.high}
    return Trace(
        outputs=torch.cat(answers, dim=1),
        labels=answered,
        macs=torch.tensor(macs, dtype=torch.int64),
        contract_macs=torch.tensor(contract, dtype=torch.int64),
        seconds=None if timing is None else torch.tensor(timing.median, dtype=torch.float64),
        class_names=class_names or tuple(model.info.class_names or map(str, range(classes))),  # type: ignore[arg-type]
        features=inside.all_features(),
        class_weights=[weights.clone() for weights in inside.weights] or None,
        meta=facts | dict(meta or {}),
        activations=inside.all_activations(),
        targets=recorded if task != "classification" else None,
    )


class _Watched:
    """Runs batches step by step and keeps what happens inside, if that is wanted."""

    def __init__(self, model: AnytimeModel, features: bool, layers: Sequence[str]) -> None:
        self.model, self.features = model, features
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        self.wanted = features or bool(self.layers)
        self.rows: list[list[Tensor]] = []  # [batches][steps]
        self.weights: list[Tensor] = []
        self.outputs: list[dict[str, Tensor]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, layers are followed."""
        with watching(self.model, self.layers) as self.watch:
            yield

    def __call__(self, images: Tensor) -> Tensor:
        """All answers `[T, B, K]`."""
        self.watch.begin(len(images))
        answers: list[Tensor] = []
        rows: list[Tensor] = []
        with LastLinear(self.model.levels) if self.features else nullcontext() as last:
            for step, logits in enumerate(self.model.stream(images), 1):
                answers.append(logits)
                self.watch.end_step()
                if last is not None:
                    repeated = step > 1 and torch.equal(logits, answers[-2])
                    x, weights = last.read(len(images), step) if not repeated or last.found else (rows[-1], self.weights[-1])
                    rows.append(x.detach().to("cpu", torch.float32, copy=True))
                    if len(self.weights) < step:
                        self.weights.append(weights.detach().to("cpu", torch.float32, copy=True))
        self.rows.append(rows)
        self.outputs.append(self.watch.read())
        return torch.stack(answers)

    def size(self, samples: int | None) -> str:
        """How much `samples` samples take, judged by the first batch."""
        first = len(self.rows[0][0]) if self.features else len(next(iter(self.outputs[0].values())))
        parts = {"features": sum(row.nbytes for row in self.rows[0])} if self.features else {}
        parts |= {name: output.nbytes for name, output in self.outputs[0].items()}
        known, number = ("", 1000) if samples is None else (f"{samples:,} samples", samples)
        sizes = ", ".join(f"{name} {size / first * number / 1e6:,.1f} MB" for name, size in parts.items())
        return f"recording {known or 'every 1,000 samples'} takes {sizes} of memory"

    def all_features(self) -> list[Tensor] | None:
        """T tensors `[N, F_t]`."""
        return [torch.cat(rows) for rows in zip(*self.rows, strict=True)] if self.features else None

    def all_activations(self) -> dict[str, Tensor]:
        """By layer, `[N, T, ...]`."""
        return {name: torch.cat([outputs[name] for outputs in self.outputs]) for name in self.layers}


def _parts(batch: Tensor | Sequence[Tensor], labels: Any, most: int | None) -> tuple[Tensor, Tensor | None]:
    """At most `most` images of a batch, and their labels or targets if they are to be taken from it."""
    parts = [batch] if isinstance(batch, Tensor) else list(batch)
    if not parts or len(parts) > 2:
        raise ValueError(f"a batch must be images, or images and labels, got {len(parts)} parts")
    images = parts[0][:most]
    return images, parts[1][:most] if len(parts) == 2 and isinstance(labels, str) else None


def _labels(target: Tensor | None, levels: Sequence[int], samples: int) -> Tensor:
    """int64 labels of a batch, -1 where there are none."""
    if target is None:
        return torch.full((samples,) if len(levels) == 1 else (samples, len(levels)), -1)
    return target if target.is_floating_point() else target.long()


def _given(labels: Any, count: int, samples: int | None, recorded: Tensor) -> Tensor:
    """The labels of all samples, from the caller or as they were recorded."""
    if labels is None or isinstance(labels, str):
        return recorded
    given = arrays.as_labels(labels)
    if len(given) < count or (samples is None and len(given) > count):
        raise ValueError(f"there are {len(given)} labels, but {count} samples")
    return given[:count]


def _number(data: Any, batch: int, samples: int | None) -> int | None:
    """The number of samples that will be recorded, None if the data do not tell."""
    whole = next((len(getattr(data, name)) for name in ("dataset", "targets") if hasattr(data, name)), None)
    if whole is None and hasattr(data, "__len__"):
        whole = len(data) * batch
    return whole if samples is None or whole is None else min(samples, whole)
