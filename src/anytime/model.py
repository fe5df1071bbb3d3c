"""The contract: an anytime model is a sequence of steps over explicit state."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anytime.registry import create_model
from anytime.support.files import written_whole

State = Any  # a pytree of tensors with the batch in dimension 0, and of plain numbers

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with `function` applied to each of its tensors; numbers stay as they are."""
    return pytree.tree_map_only(Tensor, function, state)


def select_samples(state: State, index: Tensor) -> State:
    """Compaction: the state of the samples `index` (int64 positions or a bool mask `[B]`) alone, order preserved."""
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


class AnytimeModel(nn.Module, PyTorchModelHubMixin):
    """A network that answers after each of T steps: `logits_t, state_t = step(state_{t-1})`, `state_0 = initial_state(x)`.

    A subclass defines `num_steps`, `initial_state` and `step`; it may override `forward` by any schedule that gives the same
    numbers in eval mode, and `answer` by a cheaper way to one answer alone. The state is a value: a pytree of tensors with
    the batch in dimension 0, never kept in the module. `anytime.testing.check_anytime_model` proves all of it.

    Images `x` are `[B, C, H, W]` in [0, 1]; `normalize` subtracts the buffer `mean` and divides by the buffer `std`, which are
    saved with the weights. Answers are logits `[B, K]`; several label levels lie side by side in K, `levels` says their sizes.

    Args:
        num_classes: K, or the sizes of several label levels.
        in_channels: C, 3 for RGB and 1 for grey images.

    Attributes:
        num_steps: T, the number of answers of one full run.
        config: Name and arguments that build the model again (set by `create_model`).
        metadata: What is known of the trained model: data set, class names, input size, results. Saved with the weights.
    """

    num_steps: int

    def __init__(self, num_classes: int | Sequence[int] = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.levels: tuple[int, ...] = (num_classes,) if isinstance(num_classes, int) else tuple(num_classes)
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels!r}")
        self.num_classes = sum(self.levels)
        self.in_channels = in_channels
        self.config: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
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
        """All answers `[T, B, K]`, or with `step` = 1..T that answer alone, `[B, K]`, at its contract cost."""
        if step is not None:
            if not isinstance(step, int) or not 1 <= step <= self.num_steps:
                raise ValueError(f"step must lie in 1..{self.num_steps}, got {step!r}")
            return self.answer(x, step)
        state, answers = self.initial_state(x), []
        for _ in range(self.num_steps):
            logits, state = self.step(state)
            answers.append(logits)
        return torch.stack(answers)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The answer `[B, K]` of step 1..T alone, as cheaply as the architecture allows; equal to `forward(x)[step - 1]`."""
        state = self.initial_state(x)
        for _ in range(step):
            logits, state = self.step(state)
        return logits

    def check_input(self, x: Tensor, smallest: int = 1) -> None:
        """Refuses what is no batch of images for this model.

        Raises:
            ValueError: Wrong number of dimensions or channels, images smaller than `smallest` pixels, an empty batch.
            TypeError: Not a floating-point tensor.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"images must be a floating-point tensor in [0, 1], got {kind}")
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images must be [B, {self.in_channels}, H, W], got {list(x.shape)}")
        if min(x.shape[2:]) < smallest:
            raise ValueError(f"images must be at least {smallest}x{smallest} pixels, got {x.shape[2]}x{x.shape[3]}")
        if x.shape[0] < 1:
            raise ValueError(f"the batch is empty: got {list(x.shape)}")

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets the per-channel mean and standard deviation of the data, in units of [0, 1] images."""
        if len(mean) != self.in_channels or len(std) != self.in_channels or min(std) <= 0:
            raise ValueError(f"mean and std need {self.in_channels} values and std > 0, got {mean!r} and {std!r}")
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel; `[B, C, H, W]` to the same."""
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `model.safetensors` and `config.json` (enough to load without executing pickled code)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(directory)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> str | None:
        """As `save`; with `push_to_hub=True` the folder is uploaded, too (see `huggingface_hub.ModelHubMixin`)."""
        self.check_saveable()  # before the old files are touched
        return super().save_pretrained(save_directory, **arguments)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> AnytimeModel:
        """A model from a local folder or the Hugging Face hub, in eval mode; executes no pickled code.

        Args:
            pretrained_model_name_or_path: A folder written by `save`, or `owner/name` on the hub.
            **arguments: For the hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            if arguments:
                raise TypeError(f"a local folder takes no further arguments, got {', '.join(arguments)}")
            return read_model(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **arguments)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """What the hub shows beside the files: the network, its data and its recipe."""
        from anytime.reporting.card import hub_card  # here, for that module imports this one

        return ModelCard(hub_card(self))

    def check_saveable(self) -> None:
        """Refuses, with a ValueError, a model of which nothing says how to build it again."""
        if not self.config:
            raise ValueError(
                f"this {type(self).__name__} was built without create_model, so nothing says how to build it again; "
                "use anytime.create_model('package.module.Class', ...)"
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        self.check_saveable()
        tensors = {  # copies, since tied weights share memory, which safetensors refuses
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.state_dict().items()
        }
        weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
        config = {
            "format": FORMAT,
            **self.config,
            "metadata": self.metadata,
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        for name, data in ((WEIGHTS, weights), (CONFIG, text.encode())):
            with written_whole(save_directory / name) as part:
                part.write_bytes(data)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **arguments: Any,
    ) -> AnytimeModel:
        if arguments:
            raise TypeError(f"from_pretrained has no argument {min(arguments)!r}")
        directory = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[WEIGHTS, CONFIG],
        )
        return read_model(directory)


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a model directory, checked.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON, not a model's configuration, or of another version; the message names the file.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no trained model: {CONFIG} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f"{path} has format {found!r}, this version of anytime reads format {FORMAT}")
    missing = {"model", "arguments", "sha256"} - config.keys()
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    for key, kind in {"model": str, "arguments": dict, "sha256": str}.items():
        if not isinstance(config[key], kind):
            raise ValueError(f"{path} is damaged: {key} is {config[key]!r}")
    return config


def read_model(directory: str | os.PathLike[str]) -> AnytimeModel:
    """Reads a directory written by `AnytimeModel.save`, in eval mode on the CPU; executes no pickled code.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged (checksum), of another version, or does not fit the model it names.
    """
    directory = Path(directory)
    config = read_config(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no trained model: {WEIGHTS} is missing")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != config["sha256"]:
        raise ValueError(f"{path} is damaged: SHA-256 is {digest[:12]}..., {CONFIG} says {config['sha256'][:12]}...")
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        model = create_model(config["model"], **config["arguments"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / CONFIG} describes a model that cannot be built: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[:2][-1].strip()
        raise ValueError(f"{path} does not fit the model {config['model']!r} of {CONFIG}: {first}") from error
    model.metadata = config.get("metadata", {})
    return model.eval()
