"""Which label level a model answers after each step, and its answer in words: "bird (96 %)", later "pelagic bird (91 %)"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from anytime.analysis.taxonomy import _sizes, level_accuracies
from anytime.model import AnytimeModel
from anytime.trace import Trace


@dataclass(frozen=True)
class LevelChoice:
    """The label level d_t that is answered after step t = 1..T: 0 is the finest.

    `anytime.stopping.levels.choose_levels` chooses it on validation data. It is kept in `model.info`, so that `model.save`
    writes it into `config.json`.

    Attributes:
        sizes: Number of classes of each level, fine to coarse.
        steps: d_t, length T.
        target: The accuracy that each step was to reach.
        accuracy: The accuracy of each step at its level, on the data it was chosen on.

    Raises:
        ValueError: A level that does not exist, or not one accuracy for each step.
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
            raise ValueError(f"accuracy must hold {len(self.steps)} values, one for each step, got {self.accuracy}")

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
        """What `to_dict` described.

        Raises:
            ValueError: A value is missing, unknown or wrong.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"this is no choice of label levels: {dict(values)!r} ({error})") from None

    def keep(self, model: AnytimeModel) -> None:
        """Makes a model know the choice; `model.save` writes it.

        Raises:
            ValueError: The model has other levels, or another number of steps.
        """
        self._check(model)
        model.info.answer_levels = self.to_dict()

    @classmethod
    def kept(cls, model: AnytimeModel) -> LevelChoice | None:
        """The choice that a model knows; None if there is none.

        Raises:
            ValueError: It is damaged, or does not fit the model.
        """
        values = model.info.answer_levels
        if values is None:
            return None
        choice = cls.from_dict(values)
        choice._check(model)
        return choice

    def _check(self, model: AnytimeModel) -> None:
        if (self.sizes, len(self.steps)) != (model.levels, model.num_steps):
            chosen = f"{len(self.steps)} steps and label levels {self.sizes}"
            raise ValueError(f"levels were chosen for {chosen}, but the model has {model.num_steps} and {model.levels}")


def answer_text(
    levels: Sequence[Tensor],
    class_names: Sequence[str],
    step: int,
    choice: LevelChoice | None = None,
    top: int = 1,
) -> str:
    """The answer of one step about one image in words: the `top` classes of its label level, the most probable first.

    Args:
        levels: Probabilities `[K_d]` of each label level, fine to coarse.
        class_names: Of all levels, one after another.
        step: 1..T.
        choice: Says which level is answered; without one it is the finest.
        top: Number of classes.

    Raises:
        ValueError: Levels that do not fit the names or the choice, a step outside 1..T.

    Example:
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


def highest_target(trace: Trace) -> float:
    """min_t max_d accuracy_{t,d}: the highest accuracy that every step reaches at some label level.

    With all levels but the first left out it is the worst accuracy of any step: 31.2 % on CUB in the paper, and 47.5 % with
    a level chosen for each step.
    """
    return float(level_accuracies(trace).amax(1).min())


def choose_levels(trace: Trace, target: float) -> LevelChoice:
    """d_t = the finest label level with accuracy_{t,d} >= target, for each step t.

    Args:
        trace: The answers about a validation split.
        target: The accuracy that every step is to reach, in (0, 1].

    Raises:
        ValueError: A target out of range, or one that some step does not reach at any level; says how near it comes.

    Source: Lee, Shin 2018, section 3.3.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target must be an accuracy in (0, 1], got {target!r}")
    accuracies, sizes = level_accuracies(trace), _sizes(trace)
    steps = []
    for step, reached in enumerate(accuracies, 1):
        fitting = (reached >= target).nonzero().flatten()
        if not len(fitting):
            nearest = int(reached.argmax())
            raise ValueError(
                f"no label level reaches an accuracy of {target:.4g} at step {step}: nearest is level {nearest} of "
                f"{sizes[nearest]} classes with {float(reached[nearest]):.4g}; every step can reach "
                f"{highest_target(trace):.4g}"
            )
        steps.append(int(fitting[0]))
    chosen = accuracies.gather(1, torch.tensor(steps)[:, None])[:, 0]
    return LevelChoice(sizes, tuple(steps), target, tuple(chosen.tolist()))


def chosen_accuracy(trace: Trace, choice: LevelChoice) -> Tensor:
    """Accuracy of each step at the level chosen for it, float64 `[T]`, such as on test data.

    Raises:
        ValueError: The trace has other label levels, or another number of steps.
    """
    sizes = _sizes(trace)
    if choice.sizes != sizes or len(choice.steps) != trace.num_steps:
        chosen = f"{len(choice.steps)} steps and levels {choice.sizes}"
        raise ValueError(f"the choice is for {chosen}, the trace has {trace.num_steps} and {sizes}")
    return level_accuracies(trace).gather(1, torch.tensor(choice.steps)[:, None])[:, 0]
