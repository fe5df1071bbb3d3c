"""Models on disk and on the hub: `config.json` and `model.safetensors`, loaded without executing pickled code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download

from anytime.registry import build_model
from anytime.support.documents import check_written, parse_json, read_limited
from anytime.support.files import atomic_write
from anytime.support.folders import REPLACEMENT
from anytime.support.hub_card import hub_card
from anytime.support.limits import UNFIT, AllocationLimit, check_image, check_numbers, check_steps
from anytime.support.locks import only_writer
from anytime.support.model_files import CONFIG, CONFIG_BYTES, WEIGHTS, config_file, read_weights, write_model
from anytime.support.owned import check_room_for_model
from anytime.support.tensor_files import HEADER
from anytime.support.tensors import check_plain, denormal_warning
from anytime.support.text import one_line
from anytime.support.trust import UntrustedName, is_remembered, names_from, remember

FORMAT = 1
CARD = "README.md"
CONFIG_VALUES = 5_000_000  # of names: 20 networks with 20,000 classes each
Task = Literal["classification", "regression", "dense"]
TASKS: tuple[Task, ...] = get_args(Task)
_TYPES = {  # of the tensors in a file
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


@dataclass(slots=True)  # so that a misspelt attribute is an error instead of lost
class ModelInfo:
    """What is known about a model besides its weights; `config.json` holds it under "metadata".

    Attributes:
        data: Name of the data set that the model was trained on.
        input_size: (channels, height, width) of its images.
        resize_ratio: Images are resized to this multiple of `input_size` and then cropped; 1 only covers.
        stretched: Images are resized to `input_size` whole, whatever their aspect, and not cropped.
        class_names: Names of all classes; those of several label levels one level after the other.
        task: What the outputs are: logits `[B, K]`, values `[B, K]`, or a map for each of K classes or values, `[B, K, ...]`.
        recipe: The configuration that trained the model.
        result: What was measured, in words.
        rules: Fitted stopping rules by name, see `anytime.stopping.save_rule`.
        answer_levels: Which label level is answered after each step, see `anytime.stopping.LevelChoice`.
        members: What is known about each network of a sequence.
        other: Entries that this version does not know; they are saved again as they are.
        trusted: Whether the names in `recipe` may be imported: not if they come from an untrusted file. Not saved.
    """

    data: str | None = None
    input_size: tuple[int, int, int] | None = None
    resize_ratio: float = field(default=1.0, metadata={"key": "margin"})
    stretched: bool = False
    class_names: tuple[str, ...] = ()
    task: Task = "classification"
    recipe: dict[str, Any] = field(default_factory=dict)
    result: str = ""
    rules: dict[str, Any] = field(default_factory=dict, metadata={"key": "fitted"})
    answer_levels: dict[str, Any] | None = None
    members: list[dict[str, Any]] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)
    trusted: bool = field(default=True, compare=False, metadata={"saved": False})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; attributes at their defaults are left out."""
        values = dict(self.other)
        for entry in fields(self):
            value = getattr(self, entry.name)
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            if entry.name != "other" and entry.metadata.get("saved", True) and value != default:
                values[entry.metadata.get("key", entry.name)] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; untrusted, because the values may come from any file.

        Raises:
            ValueError: An entry has the wrong type or an impossible value; the message names it.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"metadata is {values!r}, not an object")
        names = {entry.metadata.get("key", entry.name): entry for entry in fields(cls) if entry.name in _KINDS}
        known: dict[str, Any] = {}
        for key, value in values.items():
            if key in names and value is not None:
                name = names[key].name
                if not isinstance(value, _KINDS[name]):
                    raise ValueError(f"metadata.{key} is {value!r}, not {_KINDS[name][0].__name__}")
                known[name] = tuple(value) if isinstance(value, list) and name != "members" else value
        info = cls(**known, other={key: value for key, value in values.items() if key not in names}, trusted=False)
        if info.task not in TASKS:
            raise ValueError(f"metadata.task is {info.task!r}, not one of {', '.join(TASKS)}")
        size, ratio = info.input_size, info.resize_ratio
        if size is not None and not (len(size) == 3 and all(type(n) is int and 0 < n <= 100_000 for n in size)):
            raise ValueError(f"metadata.input_size is {[*size]!r}, not (channels, height, width)")
        if not (math.isfinite(ratio) and 0 < ratio <= 100):
            raise ValueError(f"metadata.margin is {ratio!r}, not a ratio above 0")
        if not all(isinstance(name, str) for name in info.class_names):
            raise ValueError("metadata.class_names holds values that are not text")
        return info


def check_names(info: ModelInfo, classes: int) -> None:
    """Raises ValueError if a model names other than all of its classes."""
    if info.task != "regression" and len(info.class_names) not in (0, classes):
        raise ValueError(f"class_names has {len(info.class_names)} names, but the model has {classes} classes")


_KINDS: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "input_size": (list, tuple),
    "resize_ratio": (float, int),
    "stretched": (bool,),
    "class_names": (list, tuple),
    "task": (str,),
    "recipe": (dict,),
    "result": (str,),
    "rules": (dict,),
    "answer_levels": (dict,),
    "members": (list,),
}


class SavedModel(PyTorchModelHubMixin):
    """The part of `AnytimeModel` that saves, loads and publishes.

    Attributes:
        config: Name and arguments that build the model again (set by `create_model`).
        info: What is known about the trained model: data set, class names, input size, results. Saved with the weights.
    """

    config: dict[str, Any]

    @property
    def info(self) -> ModelInfo:
        return cast(ModelInfo, self.__dict__["_info"])

    @info.setter
    def info(self, value: ModelInfo) -> None:
        if not isinstance(value, ModelInfo):
            raise TypeError(f"model.info must be an anytime.saving.ModelInfo, got a {type(value).__name__}")
        self.__dict__["_info"] = value

    def _set_metadata(self, value: Any) -> None:
        raise AttributeError(
            "model.metadata is not saved; set the attributes of model.info, such as model.info.data = 'CIFAR10'"
        )

    metadata = property(fset=_set_metadata, doc="The former name of `info`; setting it is an error.")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `model.safetensors` and `config.json`, enough to load without executing pickled code.

        An earlier model there is replaced; after a full disk or a kill it is still there, or the new one is.

        Raises:
            ValueError: The model cannot be built or loaded again, or the folder holds files that would be replaced and that
                this library did not write, an export, a training that has not finished, or the run of another network.
            InUse: Another process writes there, such as a training.
        """
        self.check_saveable()
        with only_writer(directory, "a save", nested=True):
            self.check_room(Path(directory))
            self._save_pretrained(Path(directory))

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **arguments: Any
    ) -> str | None:
        """Same as `save`, with a model card if there is none; `push_to_hub=True` also uploads both.

        Args:
            save_directory: The folder.
            repo_id, push_to_hub: Where to upload, by default to the name of the folder, and whether to.
            **arguments: Those of `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns the address of the commit on the hub, if there is one; raises as `save` does.
        """
        directory = Path(save_directory)
        self.save(directory)  # the hub's own way removes the old configuration first
        if not (directory / CARD).exists():
            with atomic_write(directory / CARD, replace=False) as part:
                self.generate_model_card(**(arguments.get("model_card_kwargs") or {})).save(part)
        return self.push_to_hub(repo_id or directory.name, **arguments) if push_to_hub else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *, trust: bool = False, **arguments: Any) -> Self:
        """A model from a local folder or the Hugging Face hub, in eval mode; executes no pickled code.

        Args:
            pretrained_model_name_or_path: A folder written by `save`, or `owner/name` on the hub.
            trust: Whether import paths that its configuration names may be imported, which can run any code.
            **arguments: For the hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            if arguments:
                raise TypeError(f"a local folder takes no further arguments, got {', '.join(arguments)}")
            found: Self = read_model(pretrained_model_name_or_path, trust)
            return found
        return super().from_pretrained(pretrained_model_name_or_path, trust=trust, **arguments)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """What the hub shows beside the files: the network, its data and its recipe."""
        return ModelCard(hub_card(self))

    def check_saveable(self) -> None:
        """Raises ValueError if no file can say how to build the model again, or it names other than all of its classes."""
        if not self.config:
            raise ValueError(
                f"this {type(self).__name__} was built without create_model, so nothing says how to build it again; "
                "use anytime.create_model('package.module.Class', ...)"
            )
        for argument, value in self.config["arguments"].items():
            check_written(f"{argument} of this {self.config['model']}", value)
        check_names(self.info, cast(Any, self).num_classes)

    def check_room(self, folder: Path) -> None:
        """Raises NotOurs if a folder holds what this model would be mixed with."""
        check_room_for_model(folder, self.config)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.check_saveable()
        state = cast(torch.nn.Module, self).state_dict()
        check_plain(state)
        tensors = {  # copies, because safetensors refuses tied weights, which share memory
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
        }
        weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
        config = {
            "format": FORMAT,
            **self.config,
            "metadata": self.info.to_dict(),
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_model(save_directory, weights, text.encode())

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
        trust: bool = False,
        **arguments: Any,
    ) -> Self:
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
        found: Self = read_model(directory, trust)
        return found


def save_trained(model: SavedModel, run: Path) -> None:
    """Saves the model of a training in its run directory, as `save` does: the training there is the model's own."""
    model.check_saveable()
    with only_writer(run, "a save", nested=True):
        model._save_pretrained(run)


def read_config(directory: Path, trust: bool = False) -> dict[str, Any]:
    """The `config.json` of a model directory, checked; if it is trusted, it may be of any size.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON, not a model's configuration, or of another version; the message names the file.
    """
    with names_from(directory / CONFIG, trust):
        path = config_file(directory)
        if not path.is_file():
            raise FileNotFoundError(f"{directory} holds no trained model: {CONFIG} is missing")
        config = parse_json(read_limited(path, CONFIG_BYTES), path, CONFIG_VALUES)
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


def named_by(config: Mapping[str, Any]) -> str:
    """The part of a `config.json` that can name import paths, as text: what a user consents to."""
    metadata = config.get("metadata")
    recipe = metadata.get("recipe") if isinstance(metadata, Mapping) else None
    return json.dumps([config.get("model"), config.get("arguments"), recipe], sort_keys=True)


def remember_model(directory: Path) -> None:
    """Remembers that the user consented to the names in a model directory that was written here."""
    remember(directory / CONFIG, named_by(read_config(directory)))


def read_model(directory: str | os.PathLike[str], trust: bool = False) -> Any:
    """Reads a directory written by `model.save`, in eval mode on the CPU; executes no pickled code.

    Args:
        directory: The directory.
        trust: Whether import paths that its configuration names may be imported, which can run any code.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged (checksum), of another version, or does not fit the model it names.
        UntrustedName: The configuration names an import path outside this library, and nobody has consented to it.
    """
    directory = Path(directory)
    config, data = _read_files(directory, trust)
    path = directory / WEIGHTS
    try:
        if int.from_bytes(data[:8], "little") > HEADER:
            raise ValueError(f"its header has more than {HEADER:,} bytes")
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, *UNFIT) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    remembered = is_remembered(directory / CONFIG, named_by(config))
    trusted = trust or remembered
    try:
        if not trusted:
            check_numbers(config["arguments"], tensors.values())
        elements, count = sum(tensor.numel() for tensor in tensors.values()), len(tensors)
        limit = AllocationLimit(4 * elements + 2**26, 50 * count + 10_000, CONFIG)  # room for probing with images
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        with names_from(directory / CONFIG, trust, loading=shapes, remembered=remembered), limit:
            model = build_model(config["model"], **config["arguments"])
            if not trusted:
                check_steps(model.num_steps)
    except UntrustedName:
        raise
    except (ImportError, *UNFIT) as error:  # ImportError: of a package that the model needs
        raise ValueError(f"{directory / CONFIG} describes a model that cannot be built: {one_line(error)}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise ValueError(f"{path} is damaged: {name} is {tensor.dtype}, a type that no network here has")
        if not tensor.isfinite().all():
            raise ValueError(f"{path} is damaged: {name} holds NaN or infinity")
        if name.rpartition(".")[2] == "std" and not (tensor > 0).all():
            raise ValueError(f"{path} is damaged: {name} holds {tensor.min():g}, but images are divided by it")
    if slow := denormal_warning(tensors.values(), str(path)):
        warnings.warn(slow, stacklevel=2)
    try:
        model.load_state_dict(tensors)
    except UNFIT as error:
        first = (str(error) or type(error).__name__).splitlines()[:2][-1].strip()
        raise ValueError(f"{path} does not fit the model {config['model']!r} of {CONFIG}: {first}") from error
    try:
        model.info = replace(ModelInfo.from_dict(config.get("metadata", {})), trusted=trusted)
        check_names(model.info, model.num_classes)
        if not trusted:
            check_image(model.info.input_size or (), model.info.resize_ratio)
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG} is damaged: {error}") from error
    return model.eval()


def _read_files(directory: Path, trust: bool) -> tuple[dict[str, Any], bytes]:
    """The configuration and the bytes of the weights that belong to it."""
    for _ in range(3):  # another process may be saving there
        config, data = read_config(directory, trust), read_weights(directory)
        digest = hashlib.sha256(data).hexdigest()
        if digest == config["sha256"]:
            return config, data
    if (directory / REPLACEMENT / CONFIG).is_file():  # see training.rundir.finish_replacement
        resume = f"anytime train --resume {directory}"
        raise ValueError(f"{directory} is half replaced by a later training; `{resume}` completes it")
    wanted = f"{CONFIG} says {config['sha256'][:12]}..."
    raise ValueError(f"{directory / WEIGHTS} is damaged: SHA-256 is {digest[:12]}..., {wanted}")
