"""Frames followed by a network that keeps its state, against a network that starts anew on each frame."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from anytime.cost import hardware
from anytime.model import AnytimeModel
from anytime.runtime.answer import Answer
from anytime.runtime.predictor import Predictor
from anytime.support.files import atomic_write

WARMUP = 3  # timed frames that do not count


@dataclass(frozen=True)
class Gain:
    """Accuracy over all frames, in [0, 1], and what following the frames gains.

    Attributes:
        step: The step of the network that starts anew; 0 if not even its first fits.
        accuracy: Its accuracy after this step; None if it has no answer.
        gain: The accuracy of the network that follows minus this; None if it has no answer.
        low, high: Its 95 % interval by bootstrap over films; None if it has no answer.
    """

    step: int
    accuracy: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AtUpdates:
    """What a network that follows frames does with a number of updates for each.

    Attributes:
        updates: Steps for each frame.
        accuracy: Share of frames whose answer is right when the next frame comes, in [0, 1].
        seconds: Median time of a frame at batch 1.
        equal_updates: The network that starts anew after as many steps, at most all it has.
        equal_time: The same after the deepest step that its median times let it reach in `seconds`.
    """

    updates: int
    accuracy: float
    seconds: float
    equal_updates: Gain
    equal_time: Gain


@dataclass(frozen=True)
class Watched:
    """The comparison of a network that follows frames with one that starts anew on each.

    Attributes:
        rows: One for each number of updates.
        anew_accuracy: Accuracy of each step of the network that starts anew, over the same frames.
        anew_seconds: Median seconds from a frame to each of its steps, at batch 1.
        films, frames: Number of films, and frames of each.
        hardware: What the times were measured on, with torch's version.
    """

    rows: tuple[AtUpdates, ...]
    anew_accuracy: tuple[float, ...]
    anew_seconds: tuple[float, ...]
    films: int
    frames: int
    hardware: str

    def write(self, path: str | os.PathLike[str], **facts: object) -> None:
        """Writes the comparison as JSON, after `facts` such as the data set and the recipe."""
        with atomic_write(path) as part:
            part.write_text(json.dumps({**facts, **asdict(self)}, indent=1) + "\n", encoding="utf-8")


def compare_with_anew(
    model: AnytimeModel,
    anew: AnytimeModel,
    films: Tensor,
    labels: Tensor,
    updates: Sequence[int] = (1, 2, 3),
    timed: int = 50,
    resamples: int = 1000,
    clock: Callable[[], float] = time.monotonic,
) -> Watched:
    """Accuracy of `Predictor(model).watch(films, u)` for each u, against `anew` at equal updates and at equal time.

    A frame counts as right if the newest answer when the next frame comes is. The network that starts anew has answered this
    frame only; the one that follows has also seen the frames before it, which may show something else. Times are those of a
    frame at batch 1, both networks in turn, so that the machine's load is the same for both.

    Args:
        model: A network that can follow frames, such as a cascaded one.
        anew: Any network, such as the serial one with the same weights.
        films: N films of F frames each, `[F, N, C, H, W]` in [0, 1], on the device of both.
        labels: What each frame shows, int64 `[F, N]`.
        updates: Steps for each frame; each number is a row of the result.
        timed: Frames that are timed, after 3 that are not; they begin again where the films end.
        resamples: Bootstrap samples of the films.
        clock: Returns seconds; replaced in tests.

    Raises:
        ValueError: The model cannot follow frames, there are no frames or fewer than 2 films, the labels are not one for each
            frame, or the networks have other classes.
    """
    if films.ndim != 5 or not len(films) or films.shape[1] < 2:
        raise ValueError(f"films must be [F, N, C, H, W], at least 1 frame of at least 2 films, got {list(films.shape)}")
    if labels.shape != films.shape[:2]:
        raise ValueError(f"labels must be one for each frame, {list(films.shape[:2])}, got {list(labels.shape)}")
    if model.levels != anew.levels:
        raise ValueError(f"both networks need the same classes, got {model.levels} and {anew.levels}")
    following, starting = (Predictor(network, clock=clock) for network in (model, anew))
    right = {number: _right(following.watch(films, number), labels) for number in updates}
    by_step = _right_by_step(starting, films, labels)  # [T, F, N]
    seconds, anew_seconds = _times(following, starting, films[:, :1], updates, timed)
    rows = []
    for number in updates:
        in_time = sum(spent <= seconds[number] for spent in anew_seconds)
        gains = [_gain(right[number], by_step, step, resamples) for step in (min(number, len(by_step)), in_time)]
        rows.append(AtUpdates(number, float(right[number].mean()), seconds[number], *gains))
    place = f"{hardware(films.device)}, torch {torch.__version__}"
    accuracy = tuple(by_step.mean((1, 2)).tolist())
    return Watched(tuple(rows), accuracy, tuple(anew_seconds), films.shape[1], len(films), place)


def _right(answers: Iterable[Answer], labels: Tensor) -> Tensor:
    """Whether each answer is right, float64 `[F, N]`."""
    return torch.stack([answer.label == label.cpu() for answer, label in zip(answers, labels, strict=True)]).double()


def _right_by_step(predictor: Predictor, films: Tensor, labels: Tensor) -> Tensor:
    """Whether the answer of each step is right, float64 `[T, F, N]`."""
    frames = [[answer.label == label.cpu() for answer in predictor.stream(x)] for x, label in zip(films, labels, strict=True)]
    return torch.stack([torch.stack(steps) for steps in frames], 1).double()


def _times(
    following: Predictor, starting: Predictor, film: Tensor, updates: Sequence[int], timed: int
) -> tuple[dict[int, float], list[float]]:
    """Median seconds of a frame for each number of updates, and from a frame to each step of the other network."""
    watching = {number: following.watch(cycle(film), number) for number in updates}
    spent: dict[int, list[float]] = {number: [] for number in updates}
    steps: list[list[float]] = []
    for turn, frame in enumerate(islice(cycle(film), WARMUP + timed)):
        for number, answers in watching.items():
            elapsed = next(answers).elapsed
            spent[number] += [elapsed] * (turn >= WARMUP)
        elapsed_by_step = [answer.elapsed for answer in starting.stream(frame)]
        steps += [elapsed_by_step] * (turn >= WARMUP)
    return {n: statistics.median(each) for n, each in spent.items()}, [*map(statistics.median, zip(*steps, strict=True))]


def _gain(right: Tensor, by_step: Tensor, step: int, resamples: int) -> Gain:
    """What following gains over a step 1..T, paired by film; nothing is known at step 0."""
    if not step:
        return Gain(0)
    anew = by_step[step - 1]
    films = (right - anew).mean(0)  # [N]
    draws = torch.randint(len(films), (resamples, len(films)), generator=torch.Generator().manual_seed(0))
    low, high = films[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Gain(step, float(anew.mean()), float(films.mean()), low, high)
