"""Backbones by name: built, loaded with weights from a file, given a new classifier or other input channels."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from anytime.models.surgery.weights import load_weights, read_weights
from anytime.support.names import import_subclass, nearest
from anytime.support.text import one_line, quoted
from anytime.support.trust import weights_follow
from anytime.support.units import ImageSize, image_size

RESERVED = frozenset(  # options that our own arguments set, or that read files
    ("num_classes", "in_channels", "in_chans", "weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")
) | {"checkpoint_path", "cache_dir", "features_only"}
CLASSIFIERS = ("fc", "classifier", "head", "heads")  # names that torchvision, timm and most networks use


class BuiltBackbone(NamedTuple):
    """A network and the normalisation from its configuration, if there is one."""

    network: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def _torchvision(name: str, size: Sequence[int], classes: int | None, options: dict[str, Any]) -> BuiltBackbone:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}{nearest(name, known)}")
    if name.startswith("vit_"):
        options = {"image_size": size[-1]} | options
    if name in ("googlenet", "inception_v3"):  # their further classifiers answer only in train mode
        options = {"aux_logits": False} | options | ({"init_weights": True} if classes is not None else {})
    weights = models.get_model_weights(name).DEFAULT
    given = {"weights": weights} if classes is None else {"num_classes": classes}
    network = _with_channels(models.get_model(name, **given, **options), size[0], trained=classes is None)
    transforms = weights.transforms()
    return BuiltBackbone(network, transforms.mean, transforms.std) if size[0] == 3 else BuiltBackbone(network)


def _timm(name: str, size: Sequence[int], classes: int | None, options: dict[str, Any]) -> BuiltBackbone:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"timm:{name} needs timm: pip install 'anytime-nets[backbones]'") from error

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    own = timm.models.get_pretrained_cfg(name)
    if own is not None and own.fixed_input_size and tuple(own.input_size[1:]) != tuple(size[1:]):
        options = {"img_size": tuple(size[1:])} | options
    given = {"pretrained": True} if classes is None else {"num_classes": classes}
    network = timm.create_model(name, in_chans=size[0], **given, **options)
    config: Any = network.pretrained_cfg
    return BuiltBackbone(network, config["mean"], config["std"]) if len(config["mean"]) == size[0] else BuiltBackbone(network)


def _hf(name: str, size: Sequence[int], classes: int | None, options: dict[str, Any]) -> BuiltBackbone:
    from anytime.models.surgery.hugging_face import build_hugging_face

    network, mean, std = build_hugging_face(name, size, classes, options)
    return BuiltBackbone(network, mean, std) if mean is not None and len(mean) == size[0] else BuiltBackbone(network)


def _custom(name: str, size: Sequence[int], classes: int | None, options: dict[str, Any]) -> BuiltBackbone:
    if classes is None:
        raise ValueError(f"there are no weights to download for {name!r}; pretrained must be a file")
    kind = import_subclass(name, nn.Module, "backbone")
    takes = inspect.signature(kind).parameters
    given: dict[str, Any] = {"num_classes": classes, "in_channels": size[0]}
    network = kind(**{key: value for key, value in given.items() if key in takes}, **options)
    return BuiltBackbone(_with_channels(network, size[0]))


def _build(name: str, size: Sequence[int], classes: int | None, options: dict[str, Any]) -> BuiltBackbone:
    """An untrained backbone for `classes` classes, or if None, one with the weights and classes that its library downloads."""
    library, colon, rest = str(name).partition(":")
    builders = {"torchvision": _torchvision, "timm": _timm, "hf": _hf}
    if (colon and library not in builders) or (not colon and "." not in str(name)):
        raise ValueError(
            f"backbone must be 'torchvision:NAME', 'timm:NAME', 'hf:NAME' or the import path of a class, got {quoted(name)}"
        )
    try:
        return builders[library](rest, size, classes, options) if colon else _custom(name, size, classes, options)
    except (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError) as error:
        text = f"{error} is unknown" if isinstance(error, KeyError) else one_line(error)
        named = [f"{key}={quoted(value)}" for key, value in options.items() if re.search(rf"\b{re.escape(str(key))}\b", text)]
        given = f" with {named[0]}" if named else ""
        raise ValueError(f"{name} cannot be built for {(*size,)} images{given}: {text}") from error


def build_backbone(
    name: str,
    num_classes: int,
    input_size: ImageSize = 224,
    pretrained: bool | str | os.PathLike[str] = False,
    reset: bool = False,
    classifier: str | None = None,
    options: dict[str, Any] | None = None,
) -> BuiltBackbone:
    """A backbone by name, with the mean and standard deviation of its own configuration.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, `hf:NAME`, or the import path of a subclass of nn.Module, which is called with
            `num_classes` and `in_channels` where it takes them.
        num_classes: K of its logits.
        input_size: (channels, height, width), or the side of square colour images. Channels other than 3 replace the first
            convolution.
        pretrained: False; True: the weights that its library downloads; or a file with a state dict.
        reset: Accept weights of another class count; the classifier then keeps that count and must be replaced.
        classifier: Name of the layer that makes the logits, if it is not found.
        options: Further arguments of the network, e.g. `{"drop_path_rate": 0.1}`.

    Raises:
        ValueError: An unknown name or option, a file that does not fit, weights of another class count.
        ImportError: timm is not installed.
    """
    options, input_size = dict(options or {}), image_size(input_size)
    if taken := sorted(RESERVED & options.keys()):
        raise ValueError(f"options cannot hold {', '.join(taken)}: use num_classes, input_size and pretrained")
    if pretrained is False or weights_follow():
        return _build(name, input_size, num_classes, options)
    if pretrained is True:
        backbone = _build(name, input_size, None, options)
        layer = backbone.network.get_submodule(find_classifiers(backbone.network, classifier)[-1])
        _check_classes(f"the weights of {name}", layer.weight, num_classes, reset)
        return backbone
    backbone = _build(name, input_size, num_classes, options)
    weights, mean, std = read_weights(pretrained, backbone.network.state_dict())
    error = load_weights(backbone.network, weights)
    if error is not None:  # only now look for the classifier: it may be the only layer that does not fit
        key = f"{find_classifiers(backbone.network, classifier)[-1]}.weight"
        if key in weights:
            _check_classes(str(pretrained), weights[key], num_classes, reset)
            backbone = _build(name, input_size, len(weights[key]), options)
            error = load_weights(backbone.network, weights)
    if error is not None:
        raise ValueError(f"{pretrained} does not fit {name}: {error}")
    return backbone if mean is None else BuiltBackbone(backbone.network, mean, std)


def _check_classes(what: str, weight: Any, num_classes: int, reset: bool) -> None:
    if len(weight) != num_classes and not reset:
        raise ValueError(
            f"{what}: {len(weight)} classes, but num_classes={num_classes}; reset=True takes the weights and starts a new "
            "classifier"
        )


def find_classifiers(backbone: nn.Module, name: str | None = None) -> list[str]:
    """The names of the layers that make the logits: the last linear layer (or convolution) of the backbone's classifier.

    timm may report several, such as the two of a distilled DeiT.

    Args:
        backbone: The network. timm's networks report their classifier; in others `fc`, `classifier`, `head` and `heads` are
            tried.
        name: The layer's name, if it is none of these.

    Raises:
        ValueError: Not found; the message explains how to name it.
    """
    layers = {key: layer for key, layer in backbone.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    get_classifier: Any = getattr(backbone, "get_classifier", None)
    if name is None and get_classifier is not None:
        own = get_classifier()
        several = own if isinstance(own, tuple | list) else (own,)
        names = [key for key, layer in layers.items() if any(layer is classifier for classifier in several)]
    else:
        places = CLASSIFIERS if name is None else (name,)
        names = [key for key in layers if any(f"{key}.".startswith(f"{place}.") for place in places)][-1:]
    if not names:
        tried = repr(name) if name else f"any of {', '.join(CLASSIFIERS)}"
        raise ValueError(
            f"{type(backbone).__name__} has no linear layer in {tried} that could be its classifier; name it: "
            f"classifier={list(layers)[-1]!r}"
            if layers
            else f"{type(backbone).__name__} has no linear layer at all"
        )
    return names


def replace_classifier(backbone: nn.Module, num_classes: int, name: str | None = None) -> None:
    """Replaces a backbone's classifier in place: timm's by `reset_classifier`, others' by `find_classifiers`."""
    reset: Any = getattr(backbone, "reset_classifier", None)
    if reset is not None and (name is None or name in find_classifiers(backbone)):
        reset(num_classes)
        return
    (place,) = find_classifiers(backbone, name)
    old: Any = backbone.get_submodule(place)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, num_classes, old.bias is not None)
    else:
        new = _convolution(old, old.in_channels, num_classes)
    _replace(backbone, place, new.to(old.weight))


def _with_channels(network: nn.Module, channels: int, trained: bool = False) -> nn.Module:
    """The network with a new first convolution, if the old one reads another number of channels.

    If it is trained, each new channel gets an equal share of the old weights' sum over the channels (as timm does for one), so
    that grey images give the same answer.
    """
    convolutions = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    place, old = next(convolutions, ("", None))
    if old is not None and old.in_channels != channels:
        new = _convolution(old, channels, old.out_channels).to(old.weight)
        if trained and old.groups == 1:
            with torch.no_grad():
                new.weight.copy_(old.weight.sum(1, keepdim=True).expand_as(new.weight) / channels)
                if old.bias is not None and new.bias is not None:
                    new.bias.copy_(old.bias)
        _replace(network, place, new)
    return network


def _convolution(old: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    same: Any = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return nn.Conv2d(inputs, outputs, bias=old.bias is not None, **same)


def _replace(network: nn.Module, place: str, layer: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    layer.train(network.get_submodule(place).training)
    setattr(network.get_submodule(parent), name, layer)
