"""Image classifiers of Hugging Face's transformers, built from a configuration; no code from a repository ever runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from anytime.support.names import nearest
from anytime.support.text import one_line, quoted
from anytime.support.trust import UntrustedName, is_untrusted, source_name, weights_follow

SET_HERE = ("num_labels", "id2label", "label2id", "image_size", "num_channels")  # by num_classes and input_size
NOT_KEPT = (*SET_HERE, "model_type", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype")
WRAPPER = "timm_wrapper"
ATTENTION = ("eager", "sdpa", None)  # computed by torch; any other is a package or a kernel that transformers downloads


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
    known = name in CONFIG_MAPPING
    if known and CONFIG_MAPPING[name] not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise _unfit(name, f"transformers has no classifier of images of the type {name!r}")
    if known:
        _check_options(CONFIG_MAPPING[name], options)
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
        _check_parts(config, None if is_untrusted() else options.get("attn_implementation"))
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
    except UntrustedName:
        raise
    except Exception as error:  # its constructors may raise anything, such as an ImportError for a package that they need
        raise _unfit(name, one_line(error)[:300]) from error
    return HuggingFace(network, *((None, None) if known else _normalization(name)))


def is_type(name: str) -> bool:
    """Whether a name such as "vit" is a type of networks that transformers lists, and no repository or folder."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return False
    return name in CONFIG_MAPPING


def _unfit(name: str, reason: str) -> ValueError:
    from transformers import CONFIG_MAPPING

    return ValueError(f"hf:{name} cannot be built{'' if name in CONFIG_MAPPING else nearest(name, CONFIG_MAPPING)}: {reason}")


def _declared(kind: type) -> set[str]:
    """The settings that a class of configurations has of its own; transformers takes any other name as well."""
    from transformers import PretrainedConfig

    own = inspect.signature(kind).parameters.keys() - inspect.signature(PretrainedConfig).parameters.keys()
    return {name for name in own if not name.startswith("_")} - {"kwargs"}


def _derived(kind: Any) -> set[str]:
    """What configurations of a class also write, such as `stage_names`; earlier versions of this library saved it."""
    written = kind().to_diff_dict().keys() - NOT_KEPT
    return {name for name in written if not name.startswith("_")}


def _check_options(kind: Any, options: Mapping[str, Any], part: bool = False) -> None:
    """Raises UntrustedName if an untrusted file sets, at any depth, what its type does not declare, or what is no plain value.

    Anything else becomes an attribute of the configuration, by which transformers may download, open or run something.

    Args:
        kind: The class of the configuration.
        options: Its entries; those of a part of it are checked by the class of that part.
        part: Whether it is part of another configuration; its own `model_type` may then be named.
    """
    if not is_untrusted():
        return
    from transformers import PretrainedConfig

    settings, parts = _declared(kind) | _derived(kind), kind.sub_configs
    for key, value in options.items():
        if key in parts and isinstance(value, dict) and issubclass(parts[key], PretrainedConfig):
            _check_options(parts[key], value, part=True)
        elif not (
            (key in settings and _is_plain(value))
            or (key == "attn_implementation" and not part and value in ATTENTION)
            or (key == "model_type" and part and value == kind.model_type)
        ):
            raise UntrustedName(
                f"{source_name()}: the options hold {quoted(key)} {quoted(value)}, which a file may not set for "
                f"{kind.__name__}, because transformers may download and run what it names; if you trust this file, use "
                "trust=True, or --trust on the command line"
            )


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a word such as "gelu", or a list of such values."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and bool(re.fullmatch(r"\w+", value)))


def _check_parts(config: Any, typed: Any = None) -> None:
    """Raises ValueError if a configuration, or a part of it, asks for code of others: attention but torch's, or timm.

    `typed` is the attention that the user asks for.
    """
    if config.model_type == WRAPPER:
        raise ValueError("it is a network of timm; use timm:NAME")
    for key in ("_attn_implementation", "_attn_implementation_internal", "_experts_implementation_internal"):
        if (value := getattr(config, key, None)) not in (*ATTENTION, typed):
            raise ValueError(f"its configuration sets {key} to {quoted(value)}, which transformers may download and run")
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            _check_parts(part, typed)


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
    used = [getattr(module, "config", None) for module in network.modules()]
    options = {key: value for key, value in _kept(config, config.to_diff_dict(), used).items() if key not in SET_HERE}
    if config._attn_implementation == "eager":  # else the fastest that the type has, whose sums are rounded differently
        options["attn_implementation"] = "eager"
    return {"backbone": f"hf:{config.model_type}", "options": options}


def _kept(config: Any, stored: Mapping[str, Any], used: Sequence[Any]) -> dict[str, Any]:
    """The declared entries of a configuration, without parts that no module uses, such as the texts' half of CLIP."""
    parts = {key: getattr(config, key) for key in config.sub_configs}
    kept = {key: value for key, value in stored.items() if key in _declared(type(config)) - parts.keys()}
    for key, part in parts.items():
        if key in stored and any(part is one for one in used):
            kept[key] = _kept(part, stored[key], used)
    return kept
