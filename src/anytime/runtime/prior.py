"""What is answered before any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.runtime.answer import PRIOR, Answer
from anytime.support.tensors import described, has_range


class Priors:
    """The answers of a model before any step, in tensors of their own.

    Without a given prior all classes are equally likely; values and maps are NaN, because nothing is known about them.

    Args:
        model: The model.
        given: A tensor, array or list: probabilities `[K]`, all label levels side by side; in other tasks the output of one
            image, `[K, ...]`.

    Raises:
        ValueError: The prior has the wrong shape (that of maps is known at the first image), or is not probabilities that sum
            to 1 in each label level.
        TypeError: It does not hold real numbers.
    """

    def __init__(self, model: AnytimeModel, given: Any) -> None:
        self._levels: tuple[Tensor, ...] = ()
        self._output: Tensor | None = None
        self._maps = False  # whether the shape of an answer depends on the images
        self._shapes: dict[tuple[int, ...], torch.Size] = {}  # of the answers, by the shape of an image
        values, task = model.num_classes, model.info.task
        if task == "classification":
            sizes = model.levels
            uniform = tuple(torch.full((size,), 1 / size) for size in sizes)
            self._levels = uniform if given is None else probabilities(given, sizes)
        elif given is not None:
            wanted = f"prior must be the output of one image, [{values}{', ...' if task == 'dense' else ''}]"
            output = _numbers(given, wanted)
            if output.shape[:1] != (values,) or (output.ndim == 1) != (task == "regression"):
                raise ValueError(f"{wanted}, got {described(output)}")
            self._output, self._maps = output, task == "dense"
        elif task == "regression":
            self._output = torch.full((values,), torch.nan)
        else:
            self._maps = True

    def learn(self, x: Tensor, first_output: Callable[[Tensor], Tensor]) -> None:
        """Runs a step on the first image to learn the shape of its maps, unless that is known or not needed.

        So a predictor of maps without a profile takes a step more for the first images of each size.

        Raises:
            ValueError: The given prior is a map of another shape.
        """
        if not self._maps:
            return
        size = tuple(x.shape[1:])
        if size not in self._shapes:
            self._shapes[size] = first_output(x[:1]).shape[1:]
        if self._output is not None and self._output.shape != self._shapes[size]:
            wanted, given = list(self._shapes[size]), described(self._output)
            raise ValueError(f"prior must be the output of one image, {wanted} for images {list(size)}, got {given}")

    def answer(self, x: Tensor, elapsed: float, budget: float | None, given: Answer | None = None) -> Answer:
        """The answer for images before any step, or a given one instead.

        Raises:
            ValueError: The given answer is for another number of images, or of another shape.
            TypeError: It is no answer.
        """
        batch = len(x)
        levels = tuple(level.expand(batch, -1) for level in self._levels)
        if levels:
            outputs = torch.cat(levels, 1).log()
        else:
            output = torch.full(self._shapes[tuple(x.shape[1:])], torch.nan) if self._output is None else self._output
            outputs = output.expand(batch, *output.shape)
        if given is not None:
            if not isinstance(given, Answer):
                kind = type(given).__name__
                raise TypeError(
                    f"prior must be an answer, such as the last one, got {kind}; Predictor(prior=...) takes values"
                )
            own, wanted = ([list(t.shape) for t in each] for each in (given.levels or (given.outputs,), levels or (outputs,)))
            if own != wanted or bool(given.levels) != bool(levels):
                raise ValueError(f"prior must be an answer for as many images, {wanted}, got {own}")
            levels, outputs = given.levels, given.outputs
        steps, macs = torch.full((batch,), PRIOR), torch.zeros(batch, dtype=torch.int64)
        return Answer(tuple(level.clone() for level in levels), steps, elapsed, budget, macs, outputs=outputs.clone())


def probabilities(given: Any, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """A copy of the given probabilities `[K]` as those of each label level, float32 `[K_d]`, on the host.

    Args:
        given: A tensor, array or list, all label levels side by side.
        sizes: The number of classes K_d of each level.

    Raises:
        ValueError: There are more or fewer, one is negative or NaN, or those of a level do not sum to 1.
        TypeError: They are no real numbers.
    """
    each = f" in each of the levels {tuple(sizes)}" if len(sizes) > 1 else ""
    wanted = f"prior must be {sum(sizes)} probabilities that sum to 1{each}"
    values = _numbers(given, wanted)
    if values.shape != (sum(sizes),) or not bool((values >= 0).all()):
        raise ValueError(f"{wanted}, got {described(values)}")
    levels = values.split(list(sizes))
    sums = [float(level.sum()) for level in levels]
    if not all(abs(total - 1) <= 1e-3 for total in sums):
        raise ValueError(f"{wanted}, got sums of {', '.join(f'{total:g}' for total in sums)}")
    return tuple(level.clone() for level in levels)


def _numbers(given: Any, wanted: str) -> Tensor:
    """A copy of real numbers as float32, on the host; `wanted` is the beginning of the error."""
    try:
        values = torch.as_tensor(np.array(given, order="C") if isinstance(given, np.ndarray) else given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{wanted}, got {given!r}") from None
    if values.dtype == torch.bool or not has_range(values):
        raise TypeError(f"{wanted}, got {described(values)}")
    return values.as_subclass(Tensor).to("cpu", torch.float32, copy=True)
