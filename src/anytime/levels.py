"""Which label level a model answers after each step, and its answer in words: "bird (96 %)", later "pelagic bird (91 %)"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from anytime.model import AnytimeModel

_KEY = "answer_levels"


@dataclass(frozen=True)
class LevelChoice:
    """The label level d_t that is answered after step t = 1..T: 0 is the finest.

    `anytime.analysis.taxonomy.choose_levels` chooses it on validation data. It is kept in the metadata of a model, so that
    `model.save` writes it into `config.json`.

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
        model.metadata[_KEY] = self.to_dict()

    @classmethod
    def kept(cls, model: AnytimeModel) -> LevelChoice | None:
        """The choice that a model knows; None if there is none.

        Raises:
            ValueError: It is damaged, or does not fit the model.
        """
        values = model.metadata.get(_KEY)
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
