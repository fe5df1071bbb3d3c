"""Exits on any backbone: the network is cut once into stages, each followed by a head, and keeps its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, create_model, levels_of
from anytime.models.common.additive import check_shrink
from anytime.models.common.heads import Head, build_head
from anytime.models.surgery.attach import choice, cut_points
from anytime.models.surgery.attach.checks import check_stages, safe_in_autocast
from anytime.models.surgery.attach.choice import Spread
from anytime.models.surgery.attach.conditions import preserved
from anytime.models.surgery.attach.cut_points import Cut, Survey
from anytime.models.surgery.attach.model import AdditiveExits, AttachedExits
from anytime.models.surgery.attach.saved import check_saved
from anytime.models.surgery.attach.segments import Stage, split_graph
from anytime.models.surgery.attach.sizes import channels_last, fit, other_shapes
from anytime.models.surgery.attach.state import Kept, Place
from anytime.models.surgery.attach.trace import logits_of
from anytime.models.surgery.attach.watch import Watch
from anytime.models.surgery.backbones import build_backbone, find_classifiers, replace_classifier
from anytime.models.surgery.hugging_face import settled
from anytime.registry import register_model
from anytime.saving import Task
from anytime.support.names import import_subclass
from anytime.support.text import one_line
from anytime.support.trust import weights_follow
from anytime.support.units import ImageSize, image_size

TASKS = ("classification", "regression")


def _given_cuts(backbone: nn.Module, stages: Sequence[Stage], x: Tensor) -> list[Cut]:
    """The places between the stages that the user gave."""
    with preserved(backbone), cut_points.LayoutWatch() as layouts:
        for t, stage in enumerate(stages, 1):
            version, h = x._version, stage(backbone, x)
            if not isinstance(h, Tensor) or not 2 <= h.ndim <= 4 or len(h) != len(x):
                kind = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
                raise ValueError(f"stage {t} must return one tensor [B, ...] of 2 to 4 dimensions, got {kind}")
            if x._version != version:
                raise ValueError(f"stage {t} changes its input in place; let it work on a copy")
            layouts.tensors.append(h)
            x = h
    tensors = layouts.tensors[:-1]
    return [Cut(f"stage {t + 1}", 0, tuple(h.shape[1:]), layouts.channels_last(t)) for t, h in enumerate(tensors)]


def attach_exits(
    backbone: str | nn.Module | Sequence[nn.Module],
    exits: int | str | Sequence[str] = 4,
    num_classes: int | Sequence[int] | None = None,
    spread: Spread = "macs",
    first: float | None = None,
    head: Head = "auto",
    input_size: ImageSize = 224,
    stages: Sequence[Stage] | None = None,
    classifier: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    additive: bool = False,
    shrink: float = 1.0,
    reset: bool = False,
    pretrained: bool | str | Path = False,
    options: dict[str, Any] | None = None,
    task: str = "classification",
) -> AttachedExits:
    """Makes any classifier answer after each of several stages; the last answer is the classifier's own.

    The network is traced and cut once. The stages are then checked to give what the network gives, in eval and in train mode
    (on two random images, and on one; modes, running statistics and random states stay as they were). Images in [0, 1] are
    normalised by the buffers mean and std: the identity (see `set_normalization`), or for a backbone given by name the values
    of its own configuration.

    Args:
        backbone: A network from images `[B, C, H, W]` to logits `[B, K]`, which is used as it is and changed only if its
            classifier must be; a list of modules that run one after the other; or a name such as "timm:resnet50" or
            "torchvision:resnet18".
        exits: n answers including the network's own, n - 1 of them from heads at even shares of the cost; or the names of the
            layers after which heads sit, to which the network's own answer is added. `anytime exits` lists the places. Unused
            with `stages`.
        num_classes: K, or the sizes of several label levels; default: the network's own. Required for a name.
        spread: Even shares of "macs", or of "latency" measured here on the network's device: the longest step bounds how late
            an interruption takes effect.
        first: Share of the whole cost at the first exit; the others are even between it and 1. Only with a number of exits.
        head: "auto", "linear", "mixed", "conv", "token", "class_token" (see `anytime.models.common.heads`), the import path
            of a class, or a function that is called with (shape, num_classes).
        input_size: (channels, height, width) of the images, or the side of square colour images: they are counted and
            measured, and `prepare` makes frames of this size.
        stages: Instead of `exits`, for a network that cannot be traced: T functions `f(backbone, h) -> h` whose composition
            is its forward.
        classifier: Name of the layer that makes the logits, if it must be replaced and is not found.
        clock: Returns seconds; replaced in tests.
        additive: Each answer adds to the previous one (BoostNet).
        shrink: Factor of the previous answer in the sum, in (0, 1]. Only with `additive`.
        reset: Give the network a new classifier if it has another number of classes. It then counts as a head.
        pretrained: For a name: a file with the backbone's weights; True: those that its library downloads.
        options: For a name: further arguments of the backbone.
        task: What the K outputs are: the logits of a "classification", or the values of a "regression".

    Raises:
        ValueError: The network cannot be traced or is compiled; it has one output and the task is a classification; names are
            not places to cut, repeated or out of order; there are fewer places than exits; the number of classes differs
            without `reset`; the classifier is not found; heads do not give K logits; the stages are not the network.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from anytime import attach_exits
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
        >>> model = attach_exits(layers, exits=["1"], input_size=(3, 8, 8))
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 2, 10])
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("build the model outside torch.inference_mode(): inference tensors cannot be trained")
    exits = (exits,) if isinstance(exits, str) else exits
    input_size = image_size(input_size)
    if task not in TASKS:
        raise ValueError(f"task must be {' or '.join(map(repr, TASKS))}, got {task!r}")
    if isinstance(backbone, str):
        if stages is not None or not isinstance(head, str):
            raise ValueError(f"stages and custom heads need a network, not its name {backbone!r}")
        if num_classes is None:
            raise ValueError(f"{backbone!r} is a name, which needs num_classes")
        arguments: dict[str, Any] = {"spread": spread, "first": first, "head": head, "input_size": input_size}
        arguments |= {"classifier": classifier, "additive": additive, "shrink": shrink}
        arguments |= {"reset": reset, "pretrained": pretrained, "options": options, "task": task}
        exits = exits if isinstance(exits, int) else tuple(exits)
        classes: Any = num_classes
        model = create_model("attach", classes, in_channels=input_size[0], backbone=backbone, exits=exits, **arguments)
        assert isinstance(model, AttachedExits)
        return model
    if pretrained is not False or options:
        raise ValueError("pretrained and options need a backbone given by name; this one is already a network")
    network = _one_network(backbone)
    _check_network(network)
    check_shrink(shrink)
    if shrink != 1 and not additive:
        raise ValueError(f"shrink={shrink} needs additive=True: without it, answers do not add up")
    if not isinstance(exits, int) and first is not None:
        raise ValueError(f"first={first} needs a number of exits, but exits={list(exits)} names their places")
    if stages is not None and not isinstance(exits, int):
        raise ValueError(f"stages fix the exits, so exits={list(exits)} cannot be given as well")
    x = cut_points.example_images(network, input_size, 2)
    classes = _fit_classifier(network, x, num_classes, classifier, reset)
    _check_outputs(network, classes, task)
    new = find_classifiers(network, classifier) if reset else ()
    size, tail, watch = None, None, None
    by_latency = isinstance(exits, int) and spread == "latency"
    if stages is not None:
        cuts = _given_cuts(network, stages, x[:1])
    else:
        surveyed = cut_points.survey(network, input_size, by_latency, clock)
        if isinstance(exits, int):
            surveyed, chosen = choice.place_exits(surveyed, exits, spread, first)
        else:
            surveyed, chosen = choice.find_cuts(network, surveyed, exits)
        cuts, places = [surveyed.cuts[i] for i in chosen], [surveyed.places[i] for i in chosen]
        stages, tail = split_graph(surveyed.flat.graph, places, surveyed.changed), _tail(surveyed, places, new)
        shapes = None if surveyed.flat.fixed_size else other_shapes(network, surveyed.flat, x)
        cuts = [
            replace(cut, channels_last=channels_last(network, shapes, cut, place.kept[0]))
            for cut, place in zip(cuts, places, strict=True)
        ]
        size = (x.shape[2], x.shape[3]) if shapes is None or not fit(shapes, places, cuts) else None
        watch = Watch(surveyed.flat.opened)
    check_stages(network, stages, x)
    if watch is not None and any(call.asked for call in surveyed.flat.opened):
        watch.autocast = safe_in_autocast(network, stages, x)
    heads = [build_head(head, cut.head_shape, sum(levels_of(classes)), cut.channels_last).to(x) for cut in cuts]
    kind = AdditiveExits if additive else AttachedExits
    model = kind(network, stages, cuts, heads, classes, x.shape[1], size, new, tail, watch)
    if isinstance(model, AdditiveExits):
        model.shrink = shrink
    model.info.input_size, model.info.task = input_size, cast(Task, task)
    if by_latency:
        model.measured_arguments = {"exits": list(model.exits), "first": None}
        model.settled_arguments = dict(model.measured_arguments)
    return model


def _one_network(backbone: nn.Module | Sequence[nn.Module]) -> nn.Module:
    if isinstance(backbone, nn.Module) and not isinstance(backbone, nn.ModuleList):
        return backbone
    layers = list(backbone)
    if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers})) or "nothing"
        raise ValueError(f"backbone must be a network, its name or a list of modules; the list holds {kinds}")
    return nn.Sequential(*layers)


def _check_network(network: nn.Module) -> None:
    """Raises ValueError for what is no plain network with weights."""
    name = type(network).__name__
    if isinstance(network, AnytimeModel):
        raise ValueError(f"this {name} has steps already: attach exits to a plain network, such as the backbone of this model")
    if isinstance(network, torch.jit.ScriptModule):
        raise ValueError(f"the network is a {name}: attach exits to the Python module that it was made of")
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"the network is in {name}: attach exits to network.module, and wrap the model with exits")
    if any(weight.is_meta for weight in network.parameters()):
        raise ValueError(f"the weights of {name} are on the device meta, where they have no values: load them first")
    if hasattr(network, "_orig_mod") or network._compiled_call_impl is not None:
        raise ValueError("the network is compiled: attach exits to the network itself, and compile the model with exits")


def _check_outputs(network: nn.Module, classes: int | Sequence[int], task: str) -> None:
    levels = (classes,) if isinstance(classes, int) else classes
    if task == "classification" and 1 in levels and not weights_follow():
        raise ValueError(
            f"{type(network).__name__} gives one output, which as a class always has the probability 1: give "
            "task='regression' if it is a value, or a network with two outputs, one for each class"
        )


def _tail(surveyed: Survey, places: Sequence[Place], classifiers: Sequence[str]) -> tuple[Stage, Stage] | None:
    """The last stage in two: up to the input of the classifiers, and the rest; None if they cannot be separated."""
    for before, node in pairwise(surveyed.flat.chain):
        inside = node.op == "call_module" and all(f"{name}.".startswith(f"{node.target}.") for name in classifiers)
        if classifiers and inside:
            last = Place(before, (Kept(before, ()),))
            return tuple(split_graph(surveyed.flat.graph, [*places, last], surveyed.changed)[-2:])  # type: ignore[return-value]
    return None


def _num_logits(network: nn.Module, x: Tensor) -> int:
    """K of a network's logits `[B, K]`; raises ValueError if it fails on the images or returns something else."""
    try:
        with preserved(network):
            logits = logits_of(network(x[:1]))
    except (RuntimeError, AssertionError, TypeError) as error:
        text = one_line(error)
        raise ValueError(f"{type(network).__name__} fails on images of {tuple(x.shape[1:])}: {text}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        own = f"{type(logits).__name__}; put it into a module whose forward returns only the logits"
        shape = list(logits.shape) if isinstance(logits, Tensor) else own
        raise ValueError(f"{type(network).__name__} must return logits [B, K], got {shape}")
    return logits.shape[1]


def _fit_classifier(
    network: nn.Module, x: Tensor, wanted: int | Sequence[int] | None, name: str | None, reset: bool
) -> int | Sequence[int]:
    """The network's classes; with `reset` its classifier is replaced if others are wanted."""
    own = _num_logits(network, x)
    if wanted is None:
        return own
    classes = sum(levels_of(wanted))
    if own == classes:
        return wanted
    if not reset:
        raise ValueError(
            f"{type(network).__name__} gives {own} classes, but num_classes={wanted}; reset=True starts a new classifier and "
            "keeps the rest"
        )
    replace_classifier(network, classes, name)
    try:
        outcome = f"gives {_num_logits(network, x)} classes"
    except ValueError as error:
        outcome = str(error)
    if outcome != f"gives {classes} classes":
        raise ValueError(
            f"with its classifier replaced by one for num_classes={classes}, {type(network).__name__}: {outcome}; "
            "name the layer that makes its logits: classifier='...'"
        )
    return wanted


@register_model
def attach(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    backbone: str = "torchvision:resnet18",
    exits: int | tuple[str, ...] = 4,
    spread: Spread = "macs",
    first: float | None = None,
    head: str = "auto",
    pretrained: bool | str = False,
    reset: bool = False,
    input_size: int | tuple[int, int, int] | None = None,
    classifier: str | None = None,
    options: dict[str, Any] | None = None,
    additive: bool = False,
    shrink: float = 1.0,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    task: str = "classification",
) -> AttachedExits:
    """A torchvision, timm or Hugging Face classifier with exits: the trunk is cut into stages, each followed by a head.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images; other than 3 replaces the first convolution.
        backbone: "torchvision:NAME", "timm:NAME", "hf:NAME" (a model type or a repository of Hugging Face) or the import path
            of a subclass of torch.nn.Module.
        exits: Number of answers including the backbone's own; or the names of the layers after which heads sit.
        spread: A number of exits has even shares of "macs", or of "latency" measured on this machine.
        first: Share of the whole cost at the first exit, e.g. 0.15.
        head: "auto", "linear", "mixed", "conv", "token", "class_token" or the import path of a class.
        pretrained: A file with the backbone's weights; true: those that its library downloads.
        reset: Accept weights of another class count, with a new classifier, which then counts as a head.
        input_size: (channels, height, width) for counting and measuring, or the side of square colour images; default
            (in_channels, 224, 224).
        classifier: Name of the layer that makes the logits, if it must be replaced and is not found.
        options: Further arguments of the backbone, e.g. {"drop_path_rate": 0.1}.
        additive: Each answer adds to the previous one, which gets no gradient from it (BoostNet).
        shrink: Factor of the previous answer in the sum, in (0, 1]; only with additive.
        mean: Value per channel that is subtracted from images in [0, 1]; default: the one stored with the weights or known
            for this backbone, else in training the data's.
        std: Value per channel by which they are then divided.
        task: What the K outputs are: the logits of a "classification", or the values of a "regression".
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got mean={mean} and std={std}")
    size = (in_channels, 224, 224) if input_size is None else image_size(input_size)
    if size[0] != in_channels:
        raise ValueError(f"input_size must be (channels, height, width) with in_channels={in_channels}, got {size}")
    if "." in head:
        import_subclass(head, nn.Module, "head")  # needs consent, which is asked for before anything is built
    network, own_mean, own_std = build_backbone(
        backbone, sum(levels_of(num_classes)), size, pretrained, reset, classifier, options
    )
    check_saved(network, size, classifier)
    if pretrained is False:  # an untrained classifier can be replaced without loss
        _fit_classifier(network, cut_points.example_images(network, size, 1), num_classes, classifier, reset=True)
    added: Any = {"additive": additive, "shrink": shrink, "classifier": classifier, "reset": reset, "task": task}
    model = attach_exits(network, exits, num_classes, spread, first, head, size, **added)
    subtracted, divisor = (own_mean, own_std) if mean is None else (mean, std)
    if subtracted is not None and divisor is not None:
        model.set_normalization(subtracted, divisor)
        model.own_normalization = True
    model.settled_arguments = {"exits": model.exits, "first": None, "pretrained": False} | settled(network)
    return model
