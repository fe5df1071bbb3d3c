"""Any backbone with exits: a network cut once into stages, each followed by a head, its weights its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from anytime.model import create_model
from anytime.models.common.additive import check_shrink
from anytime.models.common.heads import Head, build_head
from anytime.models.surgery.attach.cut_points import Cut, Spread, Survey, choose_cuts, example, find_cuts, layouts, survey
from anytime.models.surgery.attach.graph import Stage, preserved, split
from anytime.models.surgery.attach.model import AdditiveExits, AttachedExits
from anytime.models.surgery.backbones import build_backbone, find_classifiers, replace_classifier
from anytime.registry import register_model

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # else 1e-2: how far the stages may differ from the network


def _check_same(backbone: nn.Module, stages: Sequence[Stage], x: Tensor) -> None:
    """The stages give what the backbone gives: in eval mode, for one image, in train mode with the same random numbers."""
    for training, batch in ((False, x), (False, x[:1]), (True, x)):
        answers = []
        for run in (lambda h: backbone(h), lambda h: _composed(backbone, stages, h)):
            with preserved(backbone):
                backbone.train(training)
                torch.manual_seed(0)
                answers.append(run(batch.clone()))
        expected, found = answers
        difference = ((expected - found).abs().max() / expected.abs().max().clamp(min=1)).item()
        if not difference <= TOLERANCE.get(x.dtype, 1e-2):
            mode = ("train" if training else "eval") + (" mode" if len(batch) > 1 else " mode, for one image,")
            raise ValueError(
                f"the stages do not give what {type(backbone).__name__} gives: in {mode} they differ by {difference:.1e}"
            )


def _composed(backbone: nn.Module, stages: Sequence[Stage], h: Tensor) -> Tensor:
    for stage in stages:
        h = stage(backbone, h)
    return h


def _given_cuts(backbone: nn.Module, stages: Sequence[Stage], x: Tensor) -> list[Cut]:
    """The places between stages that the user cut."""
    tensors = []
    with preserved(backbone), layouts() as watch:
        backbone.eval()
        for t, stage in enumerate(stages, 1):
            version, h = x._version, stage(backbone, x)
            if not isinstance(h, Tensor) or not 2 <= h.ndim <= 4 or len(h) != len(x):
                kind = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
                raise ValueError(f"stage {t} must return one tensor [B, ...] of 2 to 4 dimensions, got {kind}")
            if x._version != version:
                raise ValueError(f"stage {t} changes its input in place; let it work on a copy")
            watch.see(h)
            tensors.append(h)
            x = h
    return [Cut(f"stage {t}", 0, tuple(h.shape[1:]), watch.of(t - 1)) for t, h in enumerate(tensors[:-1], 1)]


def attach_exits(
    backbone: str | nn.Module | Sequence[nn.Module],
    exits: int | str | Sequence[str] = 4,
    num_classes: int | Sequence[int] | None = None,
    spread: Spread = "macs",
    first: float | None = None,
    head: Head = "auto",
    input_size: Sequence[int] = (3, 224, 224),
    stages: Sequence[Stage] | None = None,
    classifier: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    additive: bool = False,
    shrink: float = 1.0,
    reset: bool = False,
    pretrained: bool | str | Path = False,
    options: dict[str, Any] | None = None,
) -> AttachedExits:
    """Makes any classifier answer after each of several stages; the last answer is its own.

    The network is traced and cut here, once. It is then checked that the stages give what it gives, in eval and in train mode
    (on two random images, and on one; modes, running statistics and random numbers stay as they were). Images in
    [0, 1] are normalised by the buffers mean and std: identity (see `set_normalization`), for a name those of its own
    configuration.

    Args:
        backbone: A network from images `[B, C, H, W]` to logits `[B, K]`, which is kept, and changed only if its classifier
            must be; a list of modules that run one after the other; or a name, "timm:resnet50" or "torchvision:resnet18".
        exits: n answers, the network's own included, n - 1 of them from heads at even shares of the cost; or the names of the
            layers after which heads sit, to which the network's own answer is added. `anytime exits` lists the places. With
            `stages` it is not asked.
        num_classes: K, or the sizes of several label levels; default: the network's own. A name needs it.
        spread: Even shares of "macs", or of "latency" measured here on the network's device: the longest step bounds how late
            an interruption takes effect.
        first: Share of the whole cost at the first exit; the others are even between it and 1. Only with a number of exits.
        head: "auto", "linear", "mixed", "conv", "token", "class_token" (see `anytime.models.common.heads`), the import path
            of a class, or a function that is called with (shape, num_classes).
        input_size: (channels, height, width) of the images to count and measure with.
        stages: Instead of `exits`, for a network that cannot be traced: functions `f(backbone, h) -> h`, T of them, that one
            after the other are its forward.
        classifier: Name of the layer that makes the logits, if it is to be replaced and not found.
        clock: Returns seconds; replaced in tests.
        additive: Each answer adds to the one before (BoostNet).
        shrink: How much of the answer before stays, in (0, 1]. Only with `additive`.
        reset: Give the network a new classifier if it has another number of classes. It then belongs to the heads.
        pretrained: For a name: a file with the backbone's weights; True: those that its library downloads.
        options: For a name: further arguments of the backbone.

    Raises:
        ValueError: A network that cannot be traced, names that are no places to cut, doubled or out of order, more exits than
            places, another number of classes without `reset`, a classifier that is not found, heads that do not give K
            logits, stages that are not the network.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
        >>> model = attach_exits(layers, exits=["1"], input_size=(3, 8, 8))
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 2, 10])
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("a model is to be built outside of torch.inference_mode(), or its weights could never be trained")
    exits = (exits,) if isinstance(exits, str) else exits
    if isinstance(backbone, str):
        if stages is not None or not isinstance(head, str):
            raise ValueError(f"stages, and heads other than by name, need a network and not its name {backbone!r}")
        if num_classes is None:
            raise ValueError(f"{backbone!r} is a name, which needs num_classes")
        arguments: dict[str, Any] = {"spread": spread, "first": first, "head": head, "input_size": tuple(input_size)}
        arguments |= {"classifier": classifier, "additive": additive, "shrink": shrink}
        arguments |= {"reset": reset, "pretrained": pretrained, "options": options}
        exits = exits if isinstance(exits, int) else tuple(exits)
        classes: Any = num_classes
        model = create_model("attach", classes, in_channels=input_size[0], backbone=backbone, exits=exits, **arguments)
        assert isinstance(model, AttachedExits)
        return model
    if pretrained is not False or options:
        raise ValueError("pretrained and options are for a backbone that is given by its name; this one is a network already")
    network = _one_network(backbone)
    check_shrink(shrink)
    if shrink != 1 and not additive:
        raise ValueError(f"shrink={shrink} needs additive=True: other answers stand alone")
    if not isinstance(exits, int) and first is not None:
        raise ValueError(f"first={first} needs a number of exits, but exits={list(exits)} says where they are")
    if stages is not None and not isinstance(exits, int):
        raise ValueError(f"stages are cut already, so exits={list(exits)} cannot be asked for")
    x = example(network, input_size, 2)
    classes = _fit_classifier(network, x, num_classes, classifier, reset)
    new = find_classifiers(network, classifier) if reset else ()
    size, tail = None, None
    if stages is not None:
        cuts = _given_cuts(network, stages, x[:1])
    else:
        found = survey(network, input_size, isinstance(exits, int) and spread == "latency", clock)
        places = choose_cuts(found, exits, spread, first) if isinstance(exits, int) else find_cuts(network, found, exits)
        cuts, nodes = [found.cuts[place] for place in places], [found.nodes[place] for place in places]
        stages, tail = split(found.network, nodes), _tail(found, nodes, new)
        size = (x.shape[2], x.shape[3]) if found.network.fixed_size else None
    _check_same(network, stages, x)
    total = _count(classes)
    heads = [build_head(head, cut.read, total, cut.channels_last).to(x) for cut in cuts]
    kind = AdditiveExits if additive else AttachedExits
    model = kind(network, stages, cuts, heads, classes, x.shape[1], size, new, tail)
    if isinstance(model, AdditiveExits):
        model.shrink = shrink
    if isinstance(exits, int) and spread == "latency":
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


def _tail(found: Survey, cuts: Sequence[fx.Node], classifiers: Sequence[str]) -> tuple[Stage, Stage] | None:
    """What comes before a classifier since the last cut, and what it and the rest do; None if they cannot be parted."""
    network = found.network
    for before, node in pairwise(network.chain):
        inside = node.op == "call_module" and all(f"{name}.".startswith(f"{node.target}.") for name in classifiers)
        if classifiers and inside:
            return tuple(split(network, [*cuts, before])[-2:])  # type: ignore[return-value]
    return None


def _count(num_classes: int | Sequence[int]) -> int:
    levels = (num_classes,) if isinstance(num_classes, int) else tuple(num_classes)
    if not levels or min(levels) < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
    return sum(levels)


def _fit_classifier(
    network: nn.Module, x: Tensor, wanted: int | Sequence[int] | None, name: str | None, reset: bool
) -> int | Sequence[int]:
    """The classes of the network, which gets a new classifier if it must have others and may."""

    def outputs() -> int:
        try:
            with preserved(network):
                logits = network.eval()(x[:1])
        except (RuntimeError, AssertionError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{type(network).__name__} fails on images of {tuple(x.shape[1:])}: {text}") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{type(network).__name__} must return logits [B, K], got {shape}")
        return logits.shape[1]

    own = outputs()
    if wanted is None:
        return own
    classes = _count(wanted)
    if own == classes:
        return wanted
    if not reset:
        raise ValueError(
            f"{type(network).__name__} gives {own} classes, but num_classes={wanted}; reset=True starts a new classifier and "
            "keeps the rest"
        )
    replace_classifier(network, classes, name)
    try:
        found = f"gives {outputs()} classes"
    except ValueError as error:
        found = str(error)
    if found != f"gives {classes} classes":
        raise ValueError(
            f"with its classifier replaced by one for num_classes={classes}, {type(network).__name__}: {found}; "
            "name the layer that makes its logits: classifier='...'"
        )
    return wanted


@register_model
def attach(
    num_classes: int | tuple[int, ...] = 10,
    in_channels: int = 3,
    backbone: str = "torchvision:resnet18",
    exits: int | tuple[str, ...] = 4,
    spread: Literal["macs", "latency"] = "macs",
    first: float | None = None,
    head: str = "auto",
    pretrained: bool | str = False,
    reset: bool = False,
    input_size: tuple[int, int, int] | None = None,
    classifier: str | None = None,
    options: dict[str, Any] | None = None,
    additive: bool = False,
    shrink: float = 1.0,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> AttachedExits:
    """Any torchvision or timm classifier with exits: the trunk is cut into stages, each followed by a small head.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images; other than 3 replaces the first convolution.
        backbone: "torchvision:NAME", "timm:NAME" or the import path of a subclass of torch.nn.Module.
        exits: Answers in all, the backbone's own included; or the names of the layers after which heads sit.
        spread: A number of exits has even shares of "macs", or of "latency" measured on this machine.
        first: Share of the whole cost at the first exit, e.g. 0.15.
        head: "auto", "linear", "mixed", "conv", "token", "class_token" or the import path of a class.
        pretrained: A file with the backbone's weights; true: those that its library downloads.
        reset: Accept weights of another class count, with a new classifier, which then belongs to the heads.
        input_size: (channels, height, width) to count and measure with; default (in_channels, 224, 224).
        classifier: Name of the layer that makes the logits, if it is to be replaced and not found.
        options: Further arguments of the backbone, e.g. {"drop_path_rate": 0.1}.
        additive: Each answer adds to the one before it, which gets no gradient of it (BoostNet).
        shrink: How much of the answer before stays, in (0, 1]; only with additive.
        mean: Of each channel, subtracted from images in [0, 1]; default: what is stored with the weights or known of this
            backbone, else the data's in training.
        std: What they are then divided by.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got mean={mean} and std={std}")
    size = (in_channels, 224, 224) if input_size is None else tuple(input_size)
    if len(size) != 3 or size[0] != in_channels:
        raise ValueError(f"input_size must be (channels, height, width) with in_channels={in_channels}, got {size}")
    found = build_backbone(backbone, _count(num_classes), size, pretrained, reset, classifier, options)
    if pretrained is False:  # nothing is lost with a classifier that was never trained
        _fit_classifier(found.network, example(found.network, size, 1), num_classes, classifier, reset=True)
    added: Any = {"additive": additive, "shrink": shrink, "classifier": classifier, "reset": reset}
    model = attach_exits(found.network, exits, num_classes, spread, first, head, size, **added)
    subtracted, divisor = (found.mean, found.std) if mean is None else (mean, std)
    if subtracted is not None and divisor is not None:
        model.set_normalization(subtracted, divisor)
        model.own_normalization = True
    model.settled_arguments = {"exits": model.exits, "first": None, "pretrained": False}
    return model
