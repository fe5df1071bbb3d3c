"""What is answered before any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.runtime.answer import PRIOR, Answer


class Priors:
    """The answers of a model before any step, in tensors of their own.

    Without a given prior all classes are equally likely; values and maps are NaN, because nothing is known about them.

    Args:
        model: The model.
        given: Probabilities `[K]`, all label levels side by side; in other tasks the output of one image, `[K, ...]`.

    Raises:
        ValueError: The prior has the wrong length, or is not probabilities that sum to 1 in each label level.
    """

    def __init__(self, model: AnytimeModel, given: Tensor | None) -> None:
        self._levels: tuple[Tensor, ...] = ()
        self._output: Tensor | None = None
        self._shapes: dict[tuple[int, ...], torch.Size] = {}  # of the answers, by the shape of an image
        values, task = model.num_classes, model.info.task
        if task == "classification":
            self._levels = _levels(model.levels, given)
        elif given is not None:
            if given.shape[:1] != (values,) or (task == "regression" and given.ndim > 1):
                wanted = f"[{values}{', ...' if task == 'dense' else ''}]"
                raise ValueError(f"prior must be the output of one image, {wanted}, got {list(given.shape)}")
            self._output = given.detach().cpu().float().clone()
        elif task == "regression":
            self._output = torch.full((values,), torch.nan)

    def learn(self, x: Tensor, first_output: Callable[[Tensor], Tensor]) -> None:
        """Runs a step on the first image to learn the shape of its maps, unless that is known or not needed.

        So a predictor of maps without a profile takes a step more for the first images of each size.
        """
        if not self._levels and self._output is None and x.shape[1:] not in self._shapes:
            self._shapes[tuple(x.shape[1:])] = first_output(x[:1]).shape[1:]

    def answer(self, x: Tensor, elapsed: float, budget: float | None, given: Answer | None = None) -> Answer:
        """The answer for images before any step, or a given one instead.

        Raises:
            ValueError: The given answer is for another number of images, or of another shape.
        """
        batch = len(x)
        levels = tuple(level.expand(batch, -1) for level in self._levels)
        if levels:
            outputs = torch.cat(levels, 1).log()
        else:
            output = torch.full(self._shapes[tuple(x.shape[1:])], torch.nan) if self._output is None else self._output
            outputs = output.expand(batch, *output.shape)
        if given is not None:
            own, wanted = ([list(t.shape) for t in each] for each in (given.levels or (given.outputs,), levels or (outputs,)))
            if own != wanted or bool(given.levels) != bool(levels):
                raise ValueError(f"prior must be an answer for as many images, {wanted}, got {own}")
            levels, outputs = given.levels, given.outputs
        steps, macs = torch.full((batch,), PRIOR), torch.zeros(batch, dtype=torch.int64)
        return Answer(tuple(level.clone() for level in levels), steps, elapsed, budget, macs, outputs=outputs.clone())


def _levels(sizes: Sequence[int], prior: Tensor | None) -> tuple[Tensor, ...]:
    """A copy of the prior `[K_d]` of each label level; uniform if none is given."""
    if prior is None:
        return tuple(torch.full((size,), 1 / size) for size in sizes)
    levels = prior.split(list(sizes)) if prior.shape == (sum(sizes),) else ()
    if not levels or not all(torch.isclose(level.sum(), torch.tensor(1.0), atol=1e-3) for level in levels):
        each = f" in each of the levels {tuple(sizes)}" if len(sizes) > 1 else ""
        raise ValueError(f"prior must be {sum(sizes)} probabilities that sum to 1{each}, got {list(prior.shape)}")
    return tuple(level.detach().clone() for level in levels)
