"""Whether an export answers as its model does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.runtime.engines.exported import ExportedModel
from anytime.runtime.engines.whole import WholeRun

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "int8": 1.0}  # by precision; int8 is judged by its accuracy
RANDOM = 4


@dataclass(frozen=True)
class ExportCheck:
    """How far the answers of an export are from the model's.

    Attributes:
        differences: The largest of each step, relative to the largest logit (at least 1).
        images: How many images of each kind were compared.
    """

    differences: tuple[float, ...]
    images: dict[str, int]


def compare(
    model: AnytimeModel, exported: ExportedModel, images: Tensor | None = None, tolerance: float | None = None
) -> ExportCheck:
    """Compares all answers on random images, on photographs and on given ones; one by one and in a batch.

    Args:
        model: The model, in eval mode, on the CPU and in float32.
        exported: Its export.
        images: Further images `[N, C, H, W]` in [0, 1].
        tolerance: The accepted difference; default: that of the precision.

    Raises:
        ValueError: An answer differs by more than the tolerance; the message names the step.
    """
    kinds = {"random": torch.rand(RANDOM, *exported.manifest.input_size, generator=torch.Generator().manual_seed(1))}
    if exported.in_channels in (1, 3):
        kinds["photographs"] = _photographs(exported)
    if images is not None:
        kinds["given"] = images.detach().to("cpu", torch.float32)
    x = torch.cat([*kinds.values()])
    tolerance = TOLERANCES[exported.manifest.precision] if tolerance is None else tolerance
    with torch.inference_mode():
        batches = [x, x[:1]] if exported.manifest.batch is None else [x]
        worst = torch.zeros(model.num_steps)
        for batch in batches:
            for t, (own, expected) in enumerate(zip(exported.stream(batch), model.stream(batch), strict=True)):
                if own.shape != expected.shape:
                    raise ValueError(f"step {t + 1} of the export answers {list(own.shape)}, the model {list(expected.shape)}")
                difference = (own - expected).abs().max() / expected.abs().max().clamp(min=1)
                if not difference <= tolerance:  # NaN is a difference
                    raise ValueError(
                        f"step {t + 1} of the export differs from the model by {difference:.2g}, more than {tolerance:g}"
                    )
                worst[t] = torch.maximum(worst[t], difference)
    return ExportCheck(tuple(worst.tolist()), {kind: len(some) for kind, some in kinds.items()})


def check_whole(model: AnytimeModel, run: WholeRun) -> None:
    """Raises ValueError if the graph of all steps answers otherwise than the model, to a random image."""
    x = torch.rand(1, *run.input_size, generator=torch.Generator().manual_seed(2))
    run.start(x)
    with torch.inference_mode():
        pairs = list(zip(run.wait(), model.stream(x), strict=True))
    for t, (own, expected) in enumerate(pairs, 1):
        difference = (own - expected).abs().max() / expected.abs().max().clamp(min=1)
        if not difference <= TOLERANCES["float32"]:
            raise ValueError(f"answer {t} of the graph of all steps differs from the model by {difference:.2g}")


def _photographs(exported: ExportedModel) -> Tensor:
    """The two photographs of scikit-learn, each whole and both its halves, at the size of the images."""
    from sklearn.datasets import load_sample_images

    frames = load_sample_images().images
    views = [view for f in frames for view in (f, f[:, : f.shape[1] // 2], f[:, f.shape[1] // 2 :])]
    return torch.cat([exported.prepare(view.copy()) for view in views])
