"""The trainings behind the tables and figures of Hu et al. (2017): the networks at each scale and their flags."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from anytime.analysis.curves import MILESTONES
from anytime.cost import step_macs
from anytime.model import AnytimeModel, create_model
from anytime.studies.executors.subprocess import retrain
from anytime.studies.runner import StoredTraces, Traces, TrainingRun, View, find_recipe

Which = Literal["milestones", "every", "last"]


class Base(NamedTuple):
    """A network of 3n units, n each of width c, 2c and 4c, with an exit after every s-th, counted from the last."""

    units: int
    width: int
    period: int = 1

    def __str__(self) -> str:
        return f"n={self.units} c={self.width}" + (f" s={self.period}" if self.period > 1 else "")

    @property
    def exits(self) -> list[int]:
        """The units with an exit, from 1."""
        depth = 3 * self.units
        return list(range((depth - 1) % self.period + 1, depth + 1, self.period))


class TrainedNet(NamedTuple):
    """A base network trained by one method; `exit` (from 1) is the exit that OPT trains."""

    method: str
    base: Base
    exit: int | None = None

    @property
    def name(self) -> str:
        """Name of its traces."""
        return f"{self.method}{'' if self.exit is None else f' {self.exit}'} {self.base}"


@dataclass(frozen=True)
class Setting:
    """The trainings at one scale."""

    recipes: Mapping[str, tuple[str, tuple[str, ...]]]  # recipe and flags over it, by data set
    chosen: Base  # the network on which weight schemes are compared (table 1, figure 2)
    chosen_flags: tuple[str, ...]  # flags of its trainings
    schemes: Mapping[str, tuple[str, ...]]  # methods compared on it, by data set
    optimal: Mapping[str, Which]  # exits of it for which OPT is trained, by data set
    models: tuple[Base, ...]  # networks of tables 2, 5 and 6
    shown: tuple[Base, ...]  # networks of table 3
    periods: Mapping[int, tuple[int, ...]]  # periods of table 4 and figure 3, by n
    members: tuple[Base, ...]  # members of EANN
    sampled: Base  # the network of figure 4
    warmup: Mapping[str, int]  # training steps before EXP3, RWM and AVGL learn, by data set


SCHEMES = ("constant", "sieve", "AdaLoss", "linear", "expb2", "half-end", "expb0.5", "AANN", "midfeat", "no-grad")
"""The schemes of table 1, AANN and AdaLoss, the most informative first."""
STRATEGIES = ("AANN", "milestone", "EXP3", "RWM", "AVGL")
PERIOD_WIDTH = 16  # c of the networks in table 4 and figure 3

WEIGHTS = {"half-end": "half_end", "expb2": "exponential:2", "expb0.5": "exponential:0.5", "no-grad": "constant"}
WEIGHTS |= {name: name for name in ("sieve", "constant", "linear")}
FLAGS: dict[str, tuple[str, ...]] = {
    **{name: ("--objective=Weighted", f"--objective.weights={weights}") for name, weights in WEIGHTS.items()},
    **{name: (f"--objective={name}",) for name in ("AANN", "EXP3", "RWM", "AVGL")},
    "milestone": ("--objective=Milestone",),
    "optimal": ("--objective=Optimal",),
    "AdaLoss": ("--objective=AdaLoss", "--objective.final_extra=1", "--objective.update_every=100"),  # the scripts for ResNets
}
FLAGS["no-grad"] += ("--model.regime=no_grad",)

_CIFAR100 = ("--data=CIFAR100", "--data.validation=0", "--data.batch_size=128")
_SVHN = ("--data=SVHN", "--data.validation=0", "--data.batch_size=64", "--data.extra=true", "--epochs=60")
_SVHN_STEPS = ("--schedule.milestones=[0.25,0.5,0.75]",)  # from the published code, as the 60 epochs; the paper does not say
_MODELS = (
    *(Base(7, 16), Base(7, 32), Base(9, 16), Base(9, 32), Base(9, 64), Base(9, 128), Base(13, 16), Base(13, 32)),
    *(Base(13, 64), Base(17, 16), Base(17, 32), Base(25, 16, 3), Base(25, 32, 3)),
)

_CPU = Setting(
    recipes={"cifar10": ("hu2017_cifar10_cpu.yaml", ()), "cifar100": ("hu2017_cifar10_cpu.yaml", _CIFAR100)},
    chosen=Base(3, 16),
    chosen_flags=(),
    schemes={"cifar10": SCHEMES, "cifar100": ("constant", "sieve")},
    optimal={"cifar10": "milestones", "cifar100": "last"},
    models=(Base(3, 16),),
    shown=(Base(3, 16),),
    periods={3: (1, 2, 3, 4)},
    members=(Base(1, 16), Base(3, 16)),
    sampled=Base(3, 16),
    warmup={"cifar10": 100, "cifar100": 100},  # the published code waits 1 epoch of 300
)
_FAST = ("--epochs=2", "--data.flip=alternating")

SCALES: dict[str, Setting] = {
    "cpu": _CPU,
    "fast": replace(_CPU, recipes={data: (recipe, (*flags, *_FAST)) for data, (recipe, flags) in _CPU.recipes.items()}),
    "full": Setting(
        recipes={
            "cifar10": ("hu2017_cifar10.yaml", ()),
            "cifar100": ("hu2017_cifar10.yaml", _CIFAR100),
            "svhn": ("hu2017_cifar10.yaml", _SVHN + _SVHN_STEPS),
        },
        chosen=Base(5, 16),
        chosen_flags=("--data.validation=5000",),
        schemes={"cifar10": SCHEMES, "cifar100": SCHEMES, "svhn": SCHEMES},
        optimal={"cifar10": "every", "cifar100": "every", "svhn": "every"},
        models=_MODELS,
        shown=tuple(base for base in _MODELS if base.units > 7 and base != Base(25, 16, 3)),
        periods={7: (1, 2, 3, 5), 9: (1, 2, 3, 5, 7), 13: (1, 2, 3, 4, 5, 8, 10)},
        members=(Base(1, 32), Base(3, 32), Base(7, 32), Base(13, 32), Base(25, 32, 3)),
        sampled=Base(7, 32),
        warmup={"cifar10": 391, "cifar100": 391, "svhn": 9443},  # one epoch: 50,000 / 128, 604,388 / 64
    ),
}


@functools.cache
def milestone_exits(base: Base) -> tuple[int, ...]:
    """The exits (from 1) at 1/4, 1/2, 3/4 and all of the cost: the last with cost <= that share of the total, 0 for none."""
    with torch.device("meta"):
        model = create_model("ann", 10, **base._asdict())
    macs = step_macs(model, (3, 32, 32))
    return tuple(sum(cost <= share * macs[-1] * (1 + 1e-12) for cost in macs) for share in MILESTONES)


def last_optimal(base: Base) -> TrainedNet:
    """OPT of the last exit."""
    return TrainedNet("optimal", base, len(base.exits))


def family(base: Base, which: Which = "milestones") -> list[TrainedNet]:
    """OPT: one network for each exit at a milestone of cost, for every exit, or for the last exit; the last exit first."""
    last = len(base.exits)
    exits = milestone_exits(base) if which == "milestones" else range(1 if which == "every" else last, last + 1)
    return [TrainedNet("optimal", base, exit) for exit in sorted({*exits} - {0}, reverse=True)]


def midfeat(model: AnytimeModel) -> AnytimeModel:
    """Retrains each head but the last on the frozen features of a trained network, by the recipe of that network.

    Source: Hu et al. 2017, section 4.2.
    """
    objective = {"class_path": "Weighted", "init_args": {"weights": "constant"}}
    frozen = retrain(model, {"regime": "midfeat"}, objective=objective)
    with torch.no_grad():
        retrained, trained = frozen.get_submodule("heads")[-1], model.get_submodule("heads")[-1]  # type: ignore[index]
        retrained.weight[-1] = trained.weight[-1]
        classes = trained.weight.shape[1]
        retrained.bias[-classes:] = trained.bias[-classes:]
    return frozen


def runs_of(networks: Sequence[TrainedNet], data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """One training per seed and different network; midfeat is a view of the training of OPT's last exit."""
    file, given = SCALES[scale].recipes[data]
    recipe = find_recipe(file)
    trained = [last_optimal(net.base) if net.method == "midfeat" else net for net in networks]
    runs = []
    for seed in seeds:
        for net in dict.fromkeys(trained):
            views: dict[str, View | None] = {net.name: None}
            if TrainedNet("midfeat", net.base) in networks and net == last_optimal(net.base):
                views[TrainedNet("midfeat", net.base).name] = midfeat
            slug = net.name.lower().replace(" ", "_").replace("=", "").replace("-", "").replace(".", "")
            flags = (*given, *_flags(net, data, SCALES[scale], seed))
            runs.append(TrainingRun(f"{data}_{scale}_{slug}_seed{seed}", recipe, flags, seed, views))
    return runs


def _flags(net: TrainedNet, data: str, scale: Setting, seed: int) -> tuple[str, ...]:
    base = tuple(f"--model.{key}={value}" for key, value in net.base._asdict().items())
    more: list[str] = list(scale.chosen_flags) if net.base == scale.chosen else []
    if net.exit is not None:
        more.append(f"--objective.exit={net.exit}")
    if net.method in STRATEGIES:
        more.append(f"--objective.seed={seed}")
    if net.method in ("EXP3", "RWM", "AVGL"):
        more.append(f"--objective.warmup={scale.warmup[data]}")
    if net.method != "optimal":  # the largest weight is 1, closest to the published code, whose scale differs by scheme
        more.append(f"--objective.normalize={'last' if net.method in ('sieve', *STRATEGIES) else 'none'}")
    return (*base, *FLAGS[net.method], *more)


def run_folders(traces: Traces, net: TrainedNet) -> dict[int, Path]:
    """The run directories of a network, by seed; none for traces that are not stored."""
    return traces.folders(net.name) if isinstance(traces, StoredTraces) else {}
