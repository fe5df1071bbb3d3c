"""Noise that changes from step to step: how much a network that keeps its state can make of many bad glances.

Both protocols are those of Iuzzolino, Mozer, Bengio, NeurIPS 2021, Table 2. They run a model on streams of frames, each seen
for one step. A cascaded network keeps its state from frame to frame, and is computed block by block, all times in one batch.
The baseline (the paper's SerialCE x 9) answers every frame anew, by its last answer: a whole pass for one update of a cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.needs import require_count
from anytime.data.augment import Augmentation
from anytime.data.noise import frames
from anytime.model import AnytimeModel, eval_mode
from anytime.support.arrays import as_labels, as_tensor
from anytime.support.units import is_list

__all__ = ["Transient", "mean_drop", "persistent", "transient"]

WINDOW = 20  # steps over which asymptotic accuracy is averaged


@dataclass(frozen=True)
class Transient:
    """Accuracy before, during and after a disturbance.

    With N = d + S steps from the first noisy frame on, where S is the number of steps in which the answer settles again:

        drop = 100 / (N A_clean) sum_t (A_clean - A_t),   area = sum_t (A_clean - A_t).

    The paper names only "drop in integrated performance": this formula is ours.

    Attributes:
        clean: A_clean, the accuracy on clean frames before the disturbance, in [0, 1].
        accuracy: A_t from the first noisy frame on, float64 `[N]`.
    """

    clean: float
    accuracy: Tensor

    @property
    def area(self) -> float:
        """The accuracy lost, summed over steps."""
        return float((self.clean - self.accuracy).sum())

    @property
    def drop(self) -> float:
        """The share of the accuracy that is lost on average, in per cent; NaN if nothing was right before."""
        return 100 * self.area / (len(self.accuracy) * self.clean) if self.clean else float("nan")


def persistent(
    model: AnytimeModel,
    images: Tensor,
    labels: Tensor,
    noise: Augmentation,
    keys: Tensor | None = None,
    window: int = WINDOW,
    anew: bool = False,
    settling: int | None = None,
) -> float:
    """Asymptotic accuracy under fresh noise at every step: the mean over the last `window` of S + `window` steps, in [0, 1].

    Args:
        model: Put into eval mode meanwhile.
        images: `[B, C, H, W]` in [0, 1]; call it once for each batch.
        labels: int64 `[B]`.
        noise: A noise of `data.noise.create_noise`.
        keys: int64 `[B]`: decide each sample's noise; default 0..B-1.
        window: Steps averaged; the paper gives no number.
        anew: Whether the model answers each frame anew by its last answer, as the baseline does.
        settling: S, the steps until the answer to a still image has settled; default: T. With the published clock it is T + 1.

    Raises:
        ValueError: `window` or `settling` is no whole number of at least 1, the labels or keys are not one for each image, or
            the model cannot follow frames.
    """
    labels, keys, before = _checked(model, images, labels, keys, anew, settling)
    require_count(window, "window")
    noisy = frames(noise, images, keys, before + window)
    noisy = noisy[before:] if anew else noisy  # the baseline sees what the window of the cascade sees
    return float(_accuracy(_answers(model, noisy, anew), labels)[-window:].mean())


def transient(
    model: AnytimeModel,
    images: Tensor,
    labels: Tensor,
    noise: Augmentation,
    durations: Sequence[int] = tuple(range(1, 10)),
    keys: Tensor | None = None,
    anew: bool = False,
    settling: int | None = None,
) -> list[Transient]:
    """What a disturbance of each duration costs: clean frames until the answer has settled, fresh noise, clean frames again.

    The paper leaves the durations open. `persistent` documents the other arguments.

    Raises:
        ValueError: A duration is no whole number of at least 1, there is none, or as for `persistent`.
    """
    labels, keys, before = _checked(model, images, labels, keys, anew, settling)
    if not is_list(durations) or not len(durations):
        raise ValueError(f"durations must be a list of one or more numbers of steps, got {durations!r}")
    for duration in durations:
        require_count(duration, "a duration")
    noisy = frames(noise, images, keys, max(durations))
    still = images.expand(before, *images.shape)
    if anew:  # the answer to a frame does not depend on the others
        accuracy = _accuracy(_answers(model, torch.cat([images[None], noisy]), anew), labels)
        rest = accuracy[:1].expand(before)
        return [Transient(float(accuracy[0]), torch.cat([accuracy[1 : 1 + d], rest])) for d in durations]
    found = []
    for duration in durations:
        accuracy = _accuracy(_answers(model, torch.cat([still, noisy[:duration], still]), anew), labels)
        found.append(Transient(float(accuracy[before - 1]), accuracy[before:]))
    return found


def mean_drop(found: Sequence[Transient]) -> tuple[float, float]:
    """The drop in per cent and the area in steps, each the mean over the durations."""
    return sum(one.drop for one in found) / len(found), sum(one.area for one in found) / len(found)


def _checked(
    model: AnytimeModel, images: Tensor, labels: Tensor, keys: Tensor | None, anew: bool, settling: int | None
) -> tuple[Tensor, Tensor, int]:
    """Labels and keys beside the images, and S; raises ValueError if something does not fit."""
    before = model.num_steps if settling is None else settling
    require_count(before, "settling")
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor [B, C, H, W], got {type(images).__name__}")
    if not anew and not getattr(model, "follows_frames", False):
        raise ValueError(f"the state of this {type(model).__name__} cannot take new frames for ever: call with anew=True")
    labels = as_labels(labels).to(images.device)
    keys = (torch.arange(len(images)) if keys is None else as_tensor(keys, "keys")).to(images.device)
    for name, given in (("labels", labels), ("keys", keys)):
        if list(given.shape) != [len(images)]:
            raise ValueError(f"{name} must be one for each of {len(images)} images, got {list(given.shape)}")
    return labels, keys, before


@torch.inference_mode()
def _answers(model: AnytimeModel, stream: Tensor, anew: bool) -> Tensor:
    """One answer `[T, B, K]` to each frame `[T, B, C, H, W]`."""
    with eval_mode(model):
        if not anew:
            return model(stream)
        return torch.stack([model(frame, step=model.num_steps) for frame in stream])


def _accuracy(answers: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers at each step, float64 `[T]`."""
    return (answers.argmax(2) == labels).double().mean(1)
