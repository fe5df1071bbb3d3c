"""The trainings behind the figures of Iuzzolino et al. (2021)."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime.models.cascaded.conversion import convert
from anytime.models.cascaded.serial import serial_resnet18
from anytime.studies.runner import TrainingRun, View, find_recipe, one_per_seed, slug
from anytime.training.config import read_recipe

RECIPES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {  # recipe of CascadedTD, and flags over it
    "cpu": {
        "cifar10": ("iuzzolino2021_cifar10_cpu.yaml", ()),
        "cifar100": ("iuzzolino2021_cifar10_cpu.yaml", ("--data=CIFAR100",)),
    },
    "fast": {
        "cifar10": ("iuzzolino2021_cifar10_cpu.yaml", ("--epochs=4",)),
        "cifar100": ("iuzzolino2021_cifar10_cpu.yaml", ("--data=CIFAR100", "--epochs=4")),
    },
    "full": {
        "cifar10": ("iuzzolino2021_cifar10.yaml", ()),
        "cifar100": ("iuzzolino2021_cifar100.yaml", ()),
        "tinyimagenet": ("iuzzolino2021_tinyimagenet.yaml", ()),
        "terriers": ("iuzzolino2021_terriers.yaml", ()),
    },
}
LAMBDAS = (0.0, 0.25, 0.5, 0.83, 1.0)
CE = ("--model.kernel=instant", "--objective=Weighted", "--objective.weights=final_only")


def cascaded_td(lam: float) -> str:
    """The name of CascadedTD with this lambda; the paper's, lambda = 0, has no number in its name."""
    return f"CascadedTD({lam:g})" if lam else "CascadedTD"


def _serial(recipe: Path) -> dict[str, Any]:
    """The arguments of the serial network that matches the cascaded network of a recipe.

    With the published clock, the paper's form of the serial network would end before its last block has run, so the published
    form is used.
    """
    known = inspect.signature(serial_resnet18).parameters
    given = {key: value for key, value in read_recipe(recipe)["model"]["init_args"].items() if key in known}
    return given | {"form": "published" if given.get("clock") == "published" else "paper"}


def _ce_views(form: str, label: str = "") -> dict[str, View | None]:
    """The same weights with both dynamics and ordinary batch norm."""
    return {
        f"CascadedCE{label}": functools.partial(convert, name="cascaded_resnet18", kernel="osd", statistics="shared"),
        f"SerialCE{label}": functools.partial(convert, name="serial_resnet18", form=form),
    }


def pair(
    data: str,
    scale: str,
    seeds: Sequence[int],
    label: str = "",
    extra: Sequence[str] = (),
    views: Mapping[str, View] | None = None,
) -> list[TrainingRun]:
    """CascadedTD and the network behind CascadedCE and SerialCE; without extra flags those of figure 4.

    Args:
        data, scale, seeds: As of a study.
        label: Added to the names of the networks.
        extra: Flags over the recipe.
        views: More networks of each training by what is added to their names, such as " (smoothing)".
    """
    file, flags = RECIPES[scale][data]
    recipe, form = find_recipe(file), _serial(find_recipe(file))["form"]
    more = {kind: {f"Cascaded{kind}{name}{label}": view for name, view in (views or {}).items()} for kind in ("TD", "CE")}
    part = f"_{slug(label)}" if label else ""
    networks: dict[str, tuple[tuple[str, ...], Mapping[str, View | None]]] = {
        f"cascadedtd{part}": ((*flags, "--objective.lam=0", *extra), {f"CascadedTD{label}": None, **more["TD"]}),
        f"ce{part}": ((*flags, *CE, *extra), _ce_views(form, label) | more["CE"]),
    }
    return one_per_seed(f"{data}_{scale}", recipe, seeds, networks)


def _runs(data: str, scale: str, seeds: Sequence[int], networks: Mapping[str, tuple[str, ...]]) -> list[TrainingRun]:
    """One training per seed and network; `networks` holds the flags of each by name."""
    file, flags = RECIPES[scale][data]
    recipe = find_recipe(file)
    serial = _serial(recipe)
    views = _ce_views(serial["form"])
    given = [f"--model.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in serial.items()]
    trained = {}
    for name, more in networks.items():
        if name.startswith("Serial"):
            more = ("--model=serial_resnet18", *given, *more)
        part = name.lower().replace("(", "_").replace(")", "").replace("-", "_")
        trained[part] = ((*flags, *more), views if name == "CE" else {name: None})
    return one_per_seed(f"{data}_{scale}", recipe, seeds, trained)


def figure_3_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """CascadedTD over lambda."""
    return _runs(data, scale, seeds, {cascaded_td(lam): (f"--objective.lam={lam:g}",) for lam in LAMBDAS})


def figure_4_runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """The six networks of the paper, two of which share their weights, and SerialTD with the lambda of CascadedTD."""
    heads = "--model.heads=separate"
    networks = {
        "CascadedTD": ("--objective.lam=0",),
        "CascadedTD-MultiHead": ("--objective.lam=0", heads),
        "SerialTD": ("--objective.lam=1",),
        "SerialTD-MultiHead": ("--objective.lam=1", heads),
        "SerialTD(0)": ("--objective.lam=0",),
        "SerialTD(0)-MultiHead": ("--objective.lam=0", heads),
        "CE": CE,
    }
    return _runs(data, scale, seeds, networks)
