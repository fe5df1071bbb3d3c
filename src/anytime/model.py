"""The contract: an anytime model is a sequence of steps over explicit state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anytime.registry import build_model, register_class
from anytime.saving import ModelInfo, SavedModel
from anytime.support.tensors import described
from anytime.support.units import image_size

State = Any  # a pytree of tensors with the batch in dimension 0, and of plain numbers


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with `function` applied to each of its tensors; numbers stay as they are."""
    return pytree.tree_map_only(Tensor, function, state)


def select_samples(state: State, index: Tensor) -> State:
    """Compaction: the state of only the samples `index` (int64 positions or a bool mask `[B]`), in their order."""
    return map_state(lambda tensor: tensor[index], state)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@runtime_checkable
class SplitStep(Protocol):
    """Optional: a model whose step has two halves, so that an answer that nobody reads costs no head.

    `step(state)` equals `after = advance(state); return read(after), after`, up to an answer kept in the state.
    """

    def advance(self, state: State) -> State:
        """The state after one more step, without its answer."""

    def read(self, state: State) -> Tensor:
        """The answer `[B, K]` of a state after at least one step."""


@runtime_checkable
class Trunk(Protocol):
    """Optional: a model whose heads can be trained from features; `head_answers(trunk_features(x))` equals `forward(x)`.

    Attributes:
        keeps_features: False if a part that learns lies within the trunk, so that features would become stale.
    """

    keeps_features: bool

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        """What the answers are computed from, the batch in dimension 0, from images `[B, C, H, W]` in [0, 1]."""

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        """All answers `[T, B, K]`."""


@runtime_checkable
class Deployed(Protocol):
    """Optional: a model whose steps another engine than torch computes, so its cost cannot be counted on torch's operators.

    Attributes:
        deployment: What its latencies depend on besides hardware and images: engine and version, precision, threads.
        parameter_count: The number of parameters of the model that was exported.
    """

    deployment: Mapping[str, Any]
    parameter_count: int

    def counted_macs(self, input_size: Sequence[int]) -> list[int]:
        """Cumulative MACs of one image after each step, counted at the export, length T.

        Raises:
            ValueError: The images of the export have another size.
        """


def _require_counts(name: str, given: Any, numbers: Sequence[Any]) -> None:
    """Raises ValueError, which repeats what was given, unless there are numbers, whole ones of at least 1."""
    if any(isinstance(number, bool) or not isinstance(number, int | np.integer) for number in numbers):
        raise ValueError(f"{name} must be a whole number, got {given!r}")
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name} must be at least 1, got {given!r}")


def levels_of(num_classes: int | Sequence[int]) -> tuple[int, ...]:
    """Sizes of the label levels; raises ValueError unless there are some, whole numbers of at least 1."""
    several = isinstance(num_classes, Sequence) and not isinstance(num_classes, str)
    levels: tuple[int, ...] = tuple(num_classes) if several else (num_classes,)  # type: ignore[arg-type, assignment]
    _require_counts("num_classes", num_classes, levels)
    return levels


class AnytimeModel(nn.Module, SavedModel):
    """A network that answers after each of T steps: `logits_t, state_t = step(state_{t-1})`, `state_0 = initial_state(x)`.

    A subclass defines `num_steps`, `initial_state` and `step`. It may override `forward` by any schedule that gives the same
    numbers in eval mode, `answer` by a cheaper way to a single answer, and `jump` by one to an answer that others follow. The
    state is a value: a pytree of tensors with the batch in dimension 0, never kept in the module.
    `anytime.testing.check_anytime_model` proves all of it.

    Images `x` are `[B, C, H, W]` in [0, 1]; `normalize` subtracts the buffer `mean` and divides by the buffer `std`, which are
    saved with the weights. Answers are logits `[B, K]`; several label levels lie side by side in K; `levels` holds their
    sizes. A model of another task sets `info.task`: "regression" answers K values `[B, K]`, "dense" K maps `[B, K, ...]`.

    Further members are optional: the attributes from `head_names` on, and the protocols `SplitStep`, `Trunk` and `Deployed`.

    Args:
        num_classes: K, or the sizes of several label levels.
        in_channels: C, 3 for RGB and 1 for grey images.

    Attributes:
        num_steps: T, the number of answers of one full run.
        config: Name and arguments that build the model again (set by `create_model`).
        info: What is known about the trained model: data set, class names, input size, results. Saved with the weights.
        head_names: Submodules that only answers depend on (regimes that freeze the trunk train only these). None: those
            called `head` or `heads`, here and in the models that this one is made of.
        own_normalization: Whether `mean` and `std` belong to the weights, so that no data set's values replace them.
        settled_arguments: Constructor arguments as they turned out, which replace those given when the model is saved: exits
            by name where a number was asked for, weights from no file.
        measured_arguments: The part of `settled_arguments` that depends on a clock; a resumed training keeps it.
    """

    head_names: Sequence[str] | None = None
    own_normalization: bool = False
    num_steps: int

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        register_class(cls)

    def __init__(self, num_classes: int | Sequence[int] = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.levels = levels_of(num_classes)
        _require_counts("in_channels", in_channels, [in_channels])
        self.num_classes = sum(self.levels)
        self.in_channels = in_channels
        self.config = {}
        self.info = ModelInfo()
        self.settled_arguments: dict[str, Any] = {}
        self.measured_arguments: dict[str, Any] = {}
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step, from images `[B, C, H, W]` in [0, 1]."""
        raise NotImplementedError

    def step(self, state: State) -> tuple[Tensor, State]:
        """Logits `[B, K]` after one more step, and the state after it. Leaves `state` itself as it was."""
        raise NotImplementedError

    def stream(self, x: Tensor) -> Iterator[Tensor]:
        """The T answers `[B, K]`, one by one; each `next()` pays only for its own step."""

        def answers(state: State) -> Iterator[Tensor]:
            for _ in range(self.num_steps):
                logits, state = self.step(state)
                yield logits

        return answers(self.initial_state(x))

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, or with `step` = 1..T only that answer, `[B, K]`, at its contract cost."""
        if step is not None:
            self.check_step(step)
            return self.answer(x, step)
        state, answers = self.initial_state(x), []
        for _ in range(self.num_steps):
            logits, state = self.step(state)
            answers.append(logits)
        return torch.stack(answers)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """Only the answer `[B, K]` of step 1..T, as cheaply as the architecture allows; equal to `forward(x)[step - 1]`."""
        return self.jump(x, step)[0]

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, State]:
        """The answer `[B, K]` of step 1..T, and a state that continues: `self.step(state)` gives the next answers.

        As cheap as an answer from which others follow can be. Runs all steps unless a family has a shorter way, without the
        earlier heads if the model is a `SplitStep`.

        Raises:
            ValueError: The step lies outside 1..T, or the images are none of this model's.
        """
        self.check_step(step)
        state = self.initial_state(x)
        for _ in range(step - 1):
            state = self.advance(state) if isinstance(self, SplitStep) else self.step(state)[1]
        return self.step(state)

    def check_step(self, step: int) -> None:
        """Raises ValueError unless `step` is a whole number in 1..T."""
        if not isinstance(step, int) or not 1 <= step <= self.num_steps:
            raise ValueError(f"step must lie in 1..{self.num_steps}, got {step!r}")

    def check_input(self, x: Tensor, smallest: int = 1) -> None:
        """Raises an error unless x is a batch of images for this model.

        Raises:
            ValueError: Wrong number of dimensions or channels, images smaller than `smallest` pixels, an empty batch.
            TypeError: Not a floating-point tensor.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"images must be a floating-point tensor in [0, 1], got {_no_images(x)}")
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images must be [B, {self.in_channels}, H, W], got {described(x)}")
        if min(x.shape[2:]) < smallest:
            raise ValueError(f"images must be at least {smallest}x{smallest} pixels, got {x.shape[2]}x{x.shape[3]}")
        if x.shape[0] < 1:
            raise ValueError(f"the batch is empty: got {list(x.shape)}")

    def initialize_from(self, images: Tensor) -> None:
        """Sets initial weights that depend on the data; called once, before the first step of a training from random weights.

        Does nothing unless a family overrides it.

        Args:
            images: Some training images, `[N, C, H, W]` in [0, 1]; `mean` and `std` are set already.
        """

    def prepare(self, frame: Any, bgr: bool = False) -> Tensor:
        """The frame of a camera as `[1, C, H, W]` float32 in [0, 1], of this model's input size and on its device.

        The same steps as for the files of `anytime predict` and the test images of a data set: grey and colour are converted
        into each other, the shorter side is resized to `info.resize_ratio` times the longer side of the input (bilinear), and
        the centre is cropped; or if the data set did so (`info.stretched`), the whole frame is resized.

        Args:
            frame: uint8 numpy array or torch tensor `(H, W, 3)`, `(3, H, W)`, `(H, W)`, `(H, W, 1)` or `(1, H, W)`, any size;
                or a PIL image.
            bgr: Colours come as blue, green, red, as from OpenCV; not for PIL images.

        Raises:
            TypeError: The frame is not uint8, and no PIL image.
            ValueError: It has another shape, or the model does not know its input size.

        Example:
            >>> import torch
            >>> from anytime import create_model
            >>> model = create_model("anytimenet")
            >>> model.info.input_size = (3, 32, 32)  # as after a training
            >>> model.prepare(torch.zeros(480, 640, 3, dtype=torch.uint8)).shape
            torch.Size([1, 3, 32, 32])
        """
        from anytime.support.views import frame_picture, middle_view, to_channels, to_tensor  # late: import PIL

        size = known_input_size(self)
        if size is None:
            raise ValueError("the model does not know the size of its images; say it: model.info.input_size = (3, 224, 224)")
        if size[0] not in (1, 3):
            raise ValueError(f"a frame has 1 (grey) or 3 (RGB) channels, the model takes images of {size[0]}")
        picture = to_channels(frame_picture(frame, bgr), size[0])
        image = middle_view(picture, size[1:], self.info.resize_ratio, self.info.stretched)
        return to_tensor(image).to(self.mean.device).float().div_(255)[None]

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets the per-channel mean and standard deviation of the data, in units of [0, 1] images."""
        shift, scale = (torch.as_tensor(values, dtype=torch.float32) for values in (mean, std))
        fits = len(mean) == len(std) == self.in_channels and bool((scale > 0).all())
        if not fits or not bool(shift.isfinite().all() & scale.isfinite().all()):
            raise ValueError(
                f"mean and std need {self.in_channels} values and std > 0, all finite in float32, got {mean!r} and {std!r}"
            )
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel; `[B, C, H, W]` to the same."""
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


def _no_images(x: Any) -> str:
    """What was given as images but is no floating-point tensor, and how to make images of it."""
    way = "model.prepare takes uint8 frames and PIL images"
    if isinstance(x, Tensor):
        return f"{described(x, shape_first=False)}; {way}"
    if not isinstance(x, np.ndarray):
        return f"{type(x).__name__}; {way}"
    if np.issubdtype(x.dtype, np.floating):
        way = f"make a tensor of them: torch.from_numpy({'x' if x.dtype == np.float32 else 'x.astype(np.float32)'})"
    return f"numpy.ndarray {described(x, shape_first=False)}; {way}"


def require_classifier(model: AnytimeModel, what: str) -> None:
    """Raises ValueError, a sentence that begins with `what`, unless the answers of a model are logits of classes."""
    if model.info.task != "classification":
        raise ValueError(f"{what} needs the logits of a classifier, and this model is of task {model.info.task!r}")


def known_input_size(model: AnytimeModel) -> tuple[int, int, int] | None:
    """(channels, height, width) of the images that a model was trained on or built for; None if it does not say."""
    size = model.info.input_size or model.config.get("arguments", {}).get("input_size")
    return None if size is None else image_size(size)


def create_model(name: str, num_classes: int | tuple[int, ...] = 10, **arguments: Any) -> AnytimeModel:
    """Builds a model by registered name or by import path of a user's own class (or function marked `register_model`).

    The name and all arguments (defaults included) are kept in `model.config`, so that a saved model can be built again.
    Entries of `model.settled_arguments` replace what was given, such as the names of exits where a number was asked for.

    Args:
        name: A name of `list_models()`, or `package.module.Class`.
        num_classes: Number of classes, K of the logits `[B, K]`.
        **arguments: Constructor arguments of the model, see `help(...)` of its function or `anytime models NAME`.

    Raises:
        ValueError: Unknown name or argument (the message names the nearest valid one), or an argument out of range.

    Example:
        >>> from anytime import create_model
        >>> create_model("anytimenet", width=8).num_steps
        7
    """
    model: AnytimeModel = build_model(name, num_classes, **arguments)
    return model
