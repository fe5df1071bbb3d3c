"""The label level that a model answers after each step, and its answer in words: "bird (96 %)", then "albatross (91 %)"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from anytime.analysis.taxonomy import level_accuracies
from anytime.model import AnytimeModel
from anytime.trace import Trace

__all__ = ["LevelChoice", "answer_text", "choose_levels", "chosen_accuracy", "highest_target"]


@dataclass(frozen=True)
class LevelChoice:
    """The label level d_t of the answer after step t = 1..T; 0 is the finest.

    `choose_levels` chooses it on validation data; `save_to` stores it in `model.info`, which `model.save` writes to
    `config.json`.

    Attributes:
        sizes: Number of classes of each level, fine to coarse.
        steps: d_t, length T.
        target: The accuracy that every step had to reach.
        accuracy: The accuracy of each step at its level, on the validation data.

    Raises:
        ValueError: If a level does not exist, or there is not one accuracy per step.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    target: float
    accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("sizes", "steps", "accuracy"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.steps or not all(0 <= level < len(self.sizes) for level in self.steps):
            raise ValueError(f"steps must be label levels in 0..{len(self.sizes) - 1}, got {self.steps}")
        if len(self.accuracy) != len(self.steps):
            raise ValueError(f"accuracy must hold {len(self.steps)} values, one per step, got {self.accuracy}")

    def level(self, step: int) -> int:
        """d_t of step t = 1..T."""
        if not 1 <= step <= len(self.steps):
            raise ValueError(f"step must lie in 1..{len(self.steps)}, got {step!r}")
        return self.steps[step - 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LevelChoice:
        """The inverse of `to_dict`; raises ValueError if a value is missing, unknown or wrong."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"this is not a choice of label levels: {dict(values)!r} ({error})") from None

    def save_to(self, model: AnytimeModel) -> None:
        """Stores the choice in `model.info`; raises ValueError if the model has other levels or another number of steps."""
        self._check(model)
        model.info.answer_levels = self.to_dict()

    @classmethod
    def saved_in(cls, model: AnytimeModel) -> LevelChoice | None:
        """The choice stored in `model.info`, or None; raises ValueError if it is damaged or does not fit the model."""
        if model.info.answer_levels is None:
            return None
        choice = cls.from_dict(model.info.answer_levels)
        choice._check(model)
        return choice

    def _check(self, model: AnytimeModel) -> None:
        if (self.sizes, len(self.steps)) != (model.levels, model.num_steps):
            chosen = f"{len(self.steps)} steps and label levels {self.sizes}"
            raise ValueError(f"levels were chosen for {chosen}, but the model has {model.num_steps} and {model.levels}")


def choose_levels(trace: Trace, target: float) -> LevelChoice:
    """d_t = the finest label level with accuracy_{t,d} >= target, in (0, 1], for each step t (Lee, Shin 2018, section 3.3).

    `trace` holds the answers on a validation split. Raises ValueError if the target is out of range, or some step does not
    reach it at any level; the message names the nearest.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target must be an accuracy in (0, 1], got {target!r}")
    accuracies, sizes = level_accuracies(trace), trace.levels or (trace.num_classes,)
    steps = []
    for step, reached in enumerate(accuracies, 1):
        fitting = (reached >= target).nonzero().flatten()
        if not len(fitting):
            nearest = int(reached.argmax())
            raise ValueError(
                f"no label level reaches an accuracy of {target:.4g} at step {step}: the nearest is level {nearest} of "
                f"{sizes[nearest]} classes with {float(reached[nearest]):.4g}; every step can reach "
                f"{highest_target(trace):.4g}"
            )
        steps.append(int(fitting[0]))
    chosen = accuracies.gather(1, torch.tensor(steps)[:, None])[:, 0]
    return LevelChoice(sizes, tuple(steps), target, tuple(chosen.tolist()))


def highest_target(trace: Trace) -> float:
    """min_t max_d accuracy_{t,d}: the highest accuracy that every step reaches at some label level.

    With only the first level it is the worst accuracy of any step: 31.2 % on CUB in the paper, against 47.5 % with a level
    chosen for each step.
    """
    return float(level_accuracies(trace).amax(1).min())


def chosen_accuracy(trace: Trace, choice: LevelChoice) -> Tensor:
    """Accuracy of each step at the level chosen for it, such as on test data, float64 `[T]`.

    Raises ValueError if the trace has other label levels or another number of steps.
    """
    sizes = trace.levels or (trace.num_classes,)
    if choice.sizes != sizes or len(choice.steps) != trace.num_steps:
        chosen = f"{len(choice.steps)} steps and levels {choice.sizes}"
        raise ValueError(f"the choice is for {chosen}, the trace has {trace.num_steps} and {sizes}")
    return level_accuracies(trace).gather(1, torch.tensor(choice.steps)[:, None])[:, 0]


def answer_text(
    levels: Sequence[Tensor], class_names: Sequence[str], step: int, choice: LevelChoice | None = None, top: int = 1
) -> str:
    """The answer of one step for one image in words: the `top` classes of its label level, the most probable first.

    Args:
        levels: Probabilities `[K_d]` of each label level, fine to coarse.
        class_names: Names of the classes of all levels, one level after another.
        step: 1..T.
        choice: Says which level to answer; None: the finest.
        top: Number of classes.

    Raises:
        ValueError: If the levels do not fit the names or the choice, or the step lies outside 1..T.

    Example:
        >>> import torch
        >>> from anytime.stopping.levels import LevelChoice, answer_text
        >>> choice = LevelChoice((3, 2), (1, 0), 0.9, (0.95, 0.92))
        >>> names = ["albatross", "gull", "frog", "bird", "amphibian"]
        >>> answer_text([torch.tensor([0.5, 0.46, 0.04]), torch.tensor([0.96, 0.04])], names, 1, choice)
        'bird (96 %)'
        >>> answer_text([torch.tensor([0.91, 0.06, 0.03]), torch.tensor([0.97, 0.03])], names, 2, choice)
        'albatross (91 %)'
    """
    sizes = tuple(len(level) for level in levels)
    if sum(sizes) != len(class_names) or (choice is not None and choice.sizes != sizes):
        wanted = f"{len(class_names)} names" + ("" if choice is None else f" and were chosen from {choice.sizes}")
        raise ValueError(f"label levels of {sizes} classes do not fit: there are {wanted}")
    level = 0 if choice is None else choice.level(step)
    names = class_names[sum(sizes[:level]) :]
    best = levels[level].topk(min(top, sizes[level]))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return ", ".join(f"{names[k]} ({100 * p:.0f} %)" for p, k in pairs)
