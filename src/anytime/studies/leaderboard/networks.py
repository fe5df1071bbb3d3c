"""The networks of the leaderboard: one line each, in `NETWORKS`. docs/leaderboard.md explains how to add one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anytime.studies.runner import TrainingRun, find_recipe, one_per_seed, slug

MOST_PARAMETERS = 2_000_000
MOST_SECONDS = 15 * 60  # of training at the fast scale, on 2 cores


@dataclass(frozen=True)
class Network:
    """A row of the leaderboard.

    Args:
        name: Its name in the table.
        model: The registered name of its model, or an import path.
        arguments: Arguments of the model; choose widths that keep it below `MOST_PARAMETERS` with 10 and with 100 classes.
        flags: What it needs over the common recipe: the loss of its method, and what it cannot train without.
        static: Whether it has a single answer; anytime networks are compared with these.
    """

    name: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    flags: str = ""
    static: bool = False

    @property
    def own_flags(self) -> tuple[str, ...]:
        """The flags of its training over the recipe."""
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.arguments.items()}
        return (f"--model={self.model}", *(f"--model.{key}={v}" for key, v in values.items()), *shlex.split(self.flags))


_RESNET = "anytime.models.surgery.small_networks.ResNet20"
_MOBILE = "anytime.models.surgery.small_networks.SmallMobileNet"
_ADAM_W = "--optimizer=AdamW --optimizer.lr=0.001 --optimizer.weight_decay=0.05 --schedule.start=0.01"
_FP32 = "--precision=32-true"  # bfloat16 doubles the time of depthwise convolutions on CPUs
_DISTILLED = "--objective=SelfDistillation --objective.alpha=0.5 --objective.normalize=sum"
_DENSE = {"kernel": "instant", "num_steps": 1, "layers": [6, 6, 6], "growth": 12}
_MEMBERS = [{"model": "ann", "arguments": {"units": units, "width": 16}} for units in (1, 3)]
_FAST = {"widths": [64, 224, 224]}

NETWORKS: tuple[Network, ...] = (
    Network("AnytimeNet", "anytimenet", flags="--objective.weights=inverse_square"),
    Network("cascaded TD", "cascaded_resnet18", {"width": 16, "pool": True}, "--objective=TDLambda --objective.lam=0"),
    Network("serial TD", "serial_resnet18", {"width": 16, "pool": True}, "--objective=TDLambda --objective.lam=1"),
    Network("ANN, sieve", "ann", {"units": 5, "width": 16}, "--objective.weights=sieve"),
    Network("AANN", "ann", {"units": 5, "width": 16}, "--objective=AANN"),
    Network("AdaLoss", "ann", {"units": 5, "width": 16}, "--objective=AdaLoss --objective.update_every=100"),
    Network("EANN", "eann", {"members": _MEMBERS}),
    Network("I-ResNeXt", "iresnext", {"blocks": [2, 2, 2], "width": 32, "steps": 4, "cardinality": 4}, "--compile=blocks"),
    Network("IS-ResNeXt", "isresnext", {"blocks": [2, 2, 2], "width": 48, "steps": 4, "cardinality": 8}, "--compile=blocks"),
    Network("MSDNet", "msdnet", {"exits": 4}),
    Network("SDN ResNet-56", "sdn_resnet56", flags="--objective=SDNRamp"),
    Network("B-AlexNet", "branchynet_alexnet", flags="--optimizer=Adam --optimizer.lr=0.001"),
    Network("looped ViT", "loop_vit", {"num_steps": 4}, f"{_DISTILLED} {_ADAM_W}"),
    Network("ResNet-20 with exits", "attach", {"backbone": _RESNET, "exits": 4}),
    Network("MobileNetV2 with exits", "attach", {"backbone": _MOBILE, "exits": 4, "options": {"width": 1.0}}, _FP32),
    Network("fast", "fast", _FAST),
    Network("ResNet-20 (8)", "attach", {"backbone": _RESNET, "exits": 1, "options": {"width": 8}}, static=True),
    Network("ResNet-20 (16)", "attach", {"backbone": _RESNET, "exits": 1}, static=True),
    Network("ResNet-20 (24)", "attach", {"backbone": _RESNET, "exits": 1, "options": {"width": 24}}, static=True),
    Network("BASELINE of AnytimeNet", "anytimenet_baseline", static=True),
    Network("ResNet-56", "sdn_resnet56", {"exits": []}, static=True),
    Network("DenseNet-BC-40", "cascaded_densenet", _DENSE, static=True),
    Network("MobileNetV2 (0.5)", "attach", {"backbone": _MOBILE, "exits": 1}, _FP32, static=True),
    Network("MobileNetV2 (1)", "attach", {"backbone": _MOBILE, "exits": 1, "options": {"width": 1.0}}, _FP32, static=True),
    Network("fast without exits", "fast", {**_FAST, "head_widths": []}, static=True),
)

_CIFAR100 = ("--data=CIFAR100", "--data.validation=0", "--data.batch_size=128")
DATA: dict[str, tuple[str, ...]] = {"cifar10": (), "cifar100": _CIFAR100}  # flags over the recipe
SCALES: dict[str, tuple[str, ...]] = {"fast": (), "full": ("--epochs=100",)}  # flags over the recipe


def runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """One training per seed and network, all by one recipe."""
    common = (*DATA[data], *SCALES[scale])
    networks = {slug(net.name): ((*common, *net.own_flags), {net.name: None}) for net in NETWORKS}
    return one_per_seed(f"{data}_{scale}", find_recipe("leaderboard_cifar10.yaml"), seeds, networks)
