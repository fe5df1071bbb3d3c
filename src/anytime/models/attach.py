"""Any backbone with exits: a network cut once into stages, each followed by a head, its weights its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.models.backbones import build_backbone, replace_classifier
from anytime.models.boosted import BoostedState, add_to, added_up, check_shrink
from anytime.models.cuts import Cut, Spread, choose_cuts, example, find_cuts, layouts, survey
from anytime.models.heads import Head, build_head
from anytime.models.tracing import Stage, preserved, split
from anytime.registry import create_model, register_model

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # else 1e-2: how far the stages may differ from the network


class AttachedState(NamedTuple):
    """`features` is the tensor at the last cut (before the first step: the normalised images, after the last: the logits)."""

    step: int
    features: Tensor


class AttachedExits(AnytimeModel):
    """h_t = stage_t(h_{t-1}), logits_t = head_t(h_t); the last stage ends with the backbone's own logits.

    The stages are the backbone's forward, cut once where one tensor is all that the rest needs; they hold no weights. All
    weights are `backbone`'s, under their own names in the state dict (`backbone.layer1.0...`), and those of the `heads`.
    `backbone` is the network as it was: it can be loaded, trained, frozen, put into eval mode and taken out again by itself.
    Built by `attach_exits` or `create_model("attach")`.

    Args:
        backbone: Normalised images `[B, C, H, W]` to logits `[B, K]`.
        stages: Functions `f(backbone, h) -> h`, T of them; one after the other they are the backbone.
        cuts: The places between the stages, T - 1 of them.
        heads: One for each cut.
        num_classes: K, or the sizes of several label levels.
        in_channels: C.
        size: The only (height, width) that the stages are valid for, if the backbone's forward asked for it.

    Attributes:
        exits: The names of the cuts.
        measured: Arguments that a clock has settled here, as they are to be given to build the model again.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[Stage],
        cuts: Sequence[Cut],
        heads: Sequence[nn.Module],
        num_classes: int | Sequence[int] = 10,
        in_channels: int = 3,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.num_steps = len(stages)
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.stages, self.cuts, self.size = tuple(stages), tuple(cuts), size
        self.exits = tuple(cut.name for cut in cuts)
        self.measured: dict[str, Any] = {}

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"this network was cut for images of {self.size[0]}x{self.size[1]} pixels, got {x.shape[2]}x{x.shape[3]}; "
                "build it with input_size=(channels, height, width)"
            )
        return AttachedState(0, self.normalize(x))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        if state.step >= self.num_steps:
            raise ValueError(f"all {self.num_steps} steps are done")
        h = self.stages[state.step](self.backbone, state.features)
        return self._answer(state.step, self._read(state.step, h)), AttachedState(state.step + 1, h)

    def _read(self, t: int, h: Tensor) -> Tensor:
        """What the head of step t reads: images with the channels in front."""
        return h.permute(0, 3, 1, 2) if t < len(self.cuts) and self.cuts[t].channels_last else h

    def _answer(self, t: int, h: Tensor) -> Tensor:
        return self.heads[t](h) if t < len(self.cuts) else h

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The stages up to `step`, without the heads before."""
        h = self.initial_state(x).features
        for stage in self.stages[:step]:
            h = stage(self.backbone, h)
        return self._answer(step - 1, self._read(step - 1, h))

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        """What the heads read, T - 1 tensors with the batch in front, and last the backbone's own logits; no head runs.

        With a frozen backbone in eval mode they are the same in every epoch: `head_answers` trains from them alone.
        """
        return self._features(self.initial_state(x).features)

    def _features(self, h: Tensor) -> list[Tensor]:
        features = []
        for t, stage in enumerate(self.stages):
            h = stage(self.backbone, h)
            features.append(self._read(t, h))
        return features

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        """All answers `[T, B, K]` from `trunk_features`."""
        return torch.stack([self._answer(t, h) for t, h in enumerate(features)])

    @property
    def config(self) -> dict[str, Any]:
        """What builds the model again: exits by name (a number was settled here, perhaps by a clock), weights from no file."""
        return self._config

    @config.setter
    def config(self, value: dict[str, Any]) -> None:
        if value:
            settled = {"exits": self.exits, "first": None, "pretrained": False}
            value = {**value, "arguments": {**value["arguments"], **settled}}
        self._config = value


class AdditiveExits(AttachedExits):
    """logits_t = head_t(h_t) + shrink logits_{t-1}: exits whose answers add up, see `anytime.models.boosted.Boosted`."""

    shrink = 1.0

    def initial_state(self, x: Tensor) -> BoostedState:
        return BoostedState(super().initial_state(x), None)

    def step(self, state: BoostedState) -> tuple[Tensor, BoostedState]:
        output, inner = super().step(state.inner)
        total = add_to(state.total, output, self.shrink, self.training)
        return total, BoostedState(inner, total)

    def answer(self, x: Tensor, step: int) -> Tensor:
        """The stages and heads up to `step`: an answer is a sum."""
        return AnytimeModel.answer(self, x, step)

    def trunk_features(self, x: Tensor) -> list[Tensor]:
        return self._features(super().initial_state(x).features)

    def head_answers(self, features: Sequence[Tensor]) -> Tensor:
        return added_up(super().head_answers(features), self.shrink, self.training)


def _check_same(backbone: nn.Module, stages: Sequence[Stage], x: Tensor) -> None:
    """The stages give what the backbone gives, in eval mode and, with the same random numbers, in train mode."""
    for training in (False, True):
        answers = []
        for run in (lambda: backbone(x.clone()), lambda: _composed(backbone, stages, x.clone())):
            with preserved(backbone):
                backbone.train(training)
                torch.manual_seed(0)
                answers.append(run())
        expected, found = answers
        difference = ((expected - found).abs().max() / expected.abs().max().clamp(min=1)).item()
        if not difference <= TOLERANCE.get(x.dtype, 1e-2):
            mode = "train" if training else "eval"
            raise ValueError(
                f"the stages do not give what {type(backbone).__name__} gives: in {mode} mode they differ by {difference:.1e}"
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
    exits: int | Sequence[str] = 4,
    num_classes: int | Sequence[int] = 10,
    spread: Spread = "macs",
    first: float | None = None,
    head: Head = "auto",
    input_size: Sequence[int] = (3, 224, 224),
    stages: Sequence[Stage] | None = None,
    classifier: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    additive: bool = False,
    shrink: float = 1.0,
) -> AttachedExits:
    """Makes any classifier answer after each of several stages; the last answer is its own.

    The network is traced and cut here, once. It is then checked that the stages give what it gives, in eval and in train mode
    (two runs each on two small random images; modes, running statistics and random numbers stay as they were). Images in
    [0, 1] are normalised by the buffers mean and std: identity (see `set_normalization`), for a name those of its own
    configuration.

    Args:
        backbone: A network from images `[B, C, H, W]` to logits `[B, K]`, which is kept, and changed only if its classifier
            must be; a list of modules that run one after the other; or a name, "timm:resnet50" or "torchvision:resnet18".
        exits: n answers, the network's own included, n - 1 of them from heads at even shares of the cost; or the names of the
            layers after which heads sit, to which the network's own answer is added. `anytime exits` lists the places.
        num_classes: K, or the sizes of several label levels. If the backbone has another number, its classifier is replaced.
        spread: Even shares of "macs", or of "latency" measured here on the network's device: the longest step bounds how late
            an interruption takes effect.
        first: Share of the whole cost at the first exit; the others are even between it and 1. Only with a number of exits.
        head: "auto", "linear", "mixed", "conv", "token", "class_token" (see `anytime.models.heads`), the import path of a
            class, or what is called with (shape, num_classes).
        input_size: (channels, height, width) of the images to count and measure with.
        stages: Instead of `exits`, for a network that cannot be traced: functions `f(backbone, h) -> h`, T of them, that one
            after the other are its forward.
        classifier: Name of the layer that makes the logits, if it is to be replaced and not found.
        clock: Returns seconds; replaced in tests.
        additive: Each answer adds to the one before (BoostNet).
        shrink: How much of the answer before stays, in (0, 1]. Only with `additive`.

    Raises:
        ValueError: A network that cannot be traced, names that are no places to cut, doubled or out of order, more exits than
            places, a classifier that is not found, stages that are not the network.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
        >>> model = attach_exits(layers, exits=["1"], input_size=(3, 8, 8))
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 2, 10])
    """
    if isinstance(backbone, str):
        if stages is not None or not isinstance(head, str):
            raise ValueError(f"stages, and heads other than by name, need a network and not its name {backbone!r}")
        arguments = {"spread": spread, "first": first, "head": head, "input_size": tuple(input_size), "classifier": classifier}
        arguments |= {"additive": additive, "shrink": shrink}
        exits = exits if isinstance(exits, int) else tuple(exits)
        classes: Any = num_classes
        model = create_model("attach", classes, in_channels=input_size[0], backbone=backbone, exits=exits, **arguments)
        assert isinstance(model, AttachedExits)
        return model
    network = backbone if isinstance(backbone, nn.Module) else nn.Sequential(*backbone)
    check_shrink(shrink)
    if shrink != 1 and not additive:
        raise ValueError(f"shrink={shrink} needs additive=True: other answers stand alone")
    if not isinstance(exits, int) and first is not None:
        raise ValueError(f"first={first} needs a number of exits, but exits={list(exits)} says where they are")
    total = _count(num_classes)
    x = example(network, input_size, 2)
    _fit_classifier(network, x, total, classifier)
    size = None
    if stages is not None:
        cuts = _given_cuts(network, stages, x[:1])
    else:
        found = survey(network, input_size, isinstance(exits, int) and spread == "latency", clock)
        places = choose_cuts(found, exits, spread, first) if isinstance(exits, int) else find_cuts(network, found, exits)
        cuts = [found.cuts[place] for place in places]
        stages = split(found.network, [found.nodes[place] for place in places])
        size = (x.shape[2], x.shape[3]) if found.network.fixed_size else None
    _check_same(network, stages, x)
    heads = [
        build_head(head, (cut.shape[2], *cut.shape[:2]) if cut.channels_last else cut.shape, total, cut.channels_last).to(x)
        for cut in cuts
    ]
    kind = AdditiveExits if additive else AttachedExits
    model = kind(network, stages, cuts, heads, num_classes, x.shape[1], size)
    if isinstance(model, AdditiveExits):
        model.shrink = shrink
    if isinstance(exits, int) and spread == "latency":
        model.measured = {"exits": list(model.exits), "first": None}
    return model


def _count(num_classes: int | Sequence[int]) -> int:
    levels = (num_classes,) if isinstance(num_classes, int) else tuple(num_classes)
    if not levels or min(levels) < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
    return sum(levels)


def _fit_classifier(network: nn.Module, x: Tensor, classes: int, name: str | None) -> None:
    def outputs() -> int:
        with preserved(network):
            logits = network.eval()(x[:1])
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{type(network).__name__} must return logits [B, K], got {shape}")
        return logits.shape[1]

    if outputs() == classes:
        return
    replace_classifier(network, classes, name)
    try:
        found = f"gives {outputs()} classes"
    except RuntimeError as error:
        found = f"fails ({str(error).splitlines()[0]})"
    if found != f"gives {classes} classes":
        raise ValueError(
            f"with its classifier replaced by one for num_classes={classes}, {type(network).__name__} {found}; "
            "name the layer that makes its logits: classifier='...'"
        )


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
        reset: Accept weights of another class count, with a new classifier.
        input_size: (channels, height, width) to count and measure with; default (in_channels, 224, 224).
        classifier: Name of the layer that makes the logits, if it is to be replaced and not found.
        options: Further arguments of the backbone, e.g. {"drop_path_rate": 0.1}.
        additive: Each answer adds to the one before it, which gets no gradient of it (BoostNet).
        shrink: How much of the answer before stays, in (0, 1]; only with additive.
    """
    size = (in_channels, 224, 224) if input_size is None else tuple(input_size)
    if len(size) != 3 or size[0] != in_channels:
        raise ValueError(f"input_size must be (channels, height, width) with in_channels={in_channels}, got {size}")
    network, mean, std = build_backbone(backbone, _count(num_classes), size, pretrained, reset, classifier, options)
    added: Any = {"additive": additive, "shrink": shrink}
    model = attach_exits(network, exits, num_classes, spread, first, head, size, classifier=classifier, **added)
    if mean is not None and std is not None:
        model.set_normalization(mean, std)
    return model
