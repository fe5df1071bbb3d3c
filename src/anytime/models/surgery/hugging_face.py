"""Image classifiers of Hugging Face's transformers, built from a configuration; no code from a repository ever runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from anytime.support.names import nearest
from anytime.support.trust import UntrustedName, is_untrusted, weights_follow

SET_HERE = ("num_labels", "id2label", "label2id", "image_size", "num_channels")  # by num_classes and input_size
WRAPPER = "timm_wrapper"
FOREIGN = frozenset(  # entries that name other networks, files or code
    ("architecture", "auto_map", "backbone", "backbone_kwargs", "model_args", "use_kernels", "use_pretrained_backbone"),
)
NOT_KEPT = (
    *SET_HERE,
    "model_type",
    "transformers_version",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "_name_or_path",
)


class HuggingFace(NamedTuple):
    """A classifier whose output has `logits`, with the normalisation of its repository, if that has one."""

    network: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def build_hugging_face(name: str, size: Sequence[int], classes: int | None, options: dict[str, Any]) -> HuggingFace:
    """A classifier with random weights for `classes` classes; None: with the weights of its repository.

    Args:
        name: A model type such as "vit" (its default configuration), or a repository or folder with a config.json.
        size: (channels, height, width).
        classes: Number of classes.
        options: Entries of the configuration, e.g. `{"num_hidden_layers": 4}`.

    Raises:
        ValueError: Not a classifier of images, a repository that cannot be read, one that needs code of its own.
        ImportError: transformers is not installed.
    """
    try:
        from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig
    except ImportError as error:
        raise ImportError(f"hf:{name} needs transformers: pip install 'anytime-nets[hf]'") from error

    if taken := sorted(set(SET_HERE) & options.keys()):
        raise ValueError(f"options cannot hold {', '.join(taken)}: use num_classes and input_size")
    if name == WRAPPER:
        raise ValueError(f"hf:{WRAPPER} hands names to timm unchecked; use timm:NAME")
    _check_foreign(options)
    known = name in CONFIG_MAPPING
    if not known and weights_follow():
        raise ValueError(f"a saved model names the type of its network, such as hf:vit, but this one names hf:{name}")
    if known and classes is None:
        raise ValueError(f"hf:{name} is a type of networks and has no weights; name a repository, or a file of weights")
    try:
        if known:
            config = AutoConfig.for_model(name, **options)
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ValueError(f"transformers has no classifier of images of the type {config.model_type!r}")
        if config.model_type == WRAPPER:
            raise ValueError("it is a network of timm; use timm:NAME")
        kinds = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        kind: Any = kinds[0] if isinstance(kinds, tuple) else kinds
        if classes is None:
            network = kind.from_pretrained(name, config=config, use_safetensors=True)
        else:
            config.num_labels = classes
            if hasattr(config, "num_channels"):
                config.num_channels = size[0]
            if hasattr(config, "image_size"):
                config.image_size = size[1] if size[1] == size[2] else tuple(size[1:])
            network = kind(config)
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"hf:{name} cannot be built{nearest(name, list(CONFIG_MAPPING))}: {text[:300]}") from error
    return HuggingFace(network, *((None, None) if known else _normalization(name)))


def is_type(name: str) -> bool:
    """Whether a name such as "vit" is a type of networks that transformers lists, and no repository or folder."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return False
    return name in CONFIG_MAPPING


def _check_foreign(options: Any) -> None:
    """Raises UntrustedName if an untrusted file names, at any depth, what transformers may download, open or run."""
    if not is_untrusted():
        return
    for key, value in options.items() if isinstance(options, dict) else [("", inner) for inner in options]:
        code = str(key).endswith(("_implementation", "_implementation_internal")) and value not in ("eager", "sdpa", None)
        if code or (key in FOREIGN and value not in (None, False)):
            raise UntrustedName(
                f"the options hold {key} {value!r}, which transformers may download and run; if you trust this file, use "
                "trust=True, or --trust on the command line"
            )
        if isinstance(value, (dict, list, tuple)):
            _check_foreign(value)


def _normalization(name: str) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stored = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except OSError:
        return None, None
    return (stored.get("image_mean"), stored.get("image_std")) if stored.get("do_normalize", True) else ((0, 0, 0), (1, 1, 1))


def settled(network: nn.Module) -> dict[str, Any]:
    """The arguments that build a classifier of transformers again without its repository; empty for any other network."""
    config: Any = getattr(network, "config", None)
    if not type(network).__module__.startswith("transformers."):
        return {}
    kept = {key: value for key, value in config.to_diff_dict().items() if key not in NOT_KEPT}
    return {"backbone": f"hf:{config.model_type}", "options": kept}
