"""Models that can follow images which change while the network computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from anytime.model import AnytimeModel, State


class FrameModel(AnytimeModel):
    """An anytime model that takes one image for all steps, or frames: a new image for every step.

    A subclass defines `observe` and `all_answers` in addition to `initial_state` and `step`.

    Attributes:
        follows_frames: Whether the state takes new images for ever, as `Predictor.watch` needs.
    """

    follows_frames = True

    def observe(self, state: State, x: Tensor) -> State:
        """The state after the image has changed to `x` `[B, C, H, W]`, before the next step.

        Raises:
            ValueError: The new images have another shape than the first, or the model cannot follow them.
        """
        raise NotImplementedError

    def all_answers(self, x: Tensor, frames: int) -> Tensor:
        """T answers `[T, B, K]` to the static images `x` (`frames=0`), or one to each frame in `x` `[frames * B, C, H, W]`."""
        raise NotImplementedError

    def first_frame(self, x: Tensor) -> State:
        """The state before the first step if other images follow `x`."""
        return self.initial_state(x)

    def stream(self, x: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """The answers `[B, K]`, one by one: T to an image batch, or one to each frame of an iterable of batches."""
        return super().stream(x) if isinstance(x, Tensor) and x.ndim != 5 else self._watch(iter(x))

    def _watch(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        state = None
        for frame in frames:
            state = self.first_frame(frame) if state is None else self.observe(state, frame)
            logits, state = self.step(state)
            yield logits

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, or with `step` = 1..T only that answer, `[B, K]`, at its contract cost.

        Args:
            x: Images `[B, C, H, W]`, or frames `[T, B, C, H, W]`, each seen for one step.
            step: The only answer wanted, for static images.
        """
        if step is not None:
            return super().forward(x, step)
        if x.ndim != 5:
            return self.all_answers(x, 0)
        if not len(x):
            raise ValueError(f"there are no frames: got {list(x.shape)}")
        return self.all_answers(x.flatten(0, 1), len(x))
