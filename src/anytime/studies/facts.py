"""The facts that a published number must carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anytime.analysis.statistics import BySeed, first_trace
from anytime.training.config import SECTIONS, flatten


def facts(by_seed: BySeed, **reference: Any) -> dict[str, Any]:
    """What a published number must carry: a reference to the paper, data set, recipe, seeds, epochs, hardware and date."""
    metas, recipe = [trace.meta for trace in by_seed.values()], _recipe(by_seed)
    return {
        **reference,
        "dataset": metas[0]["dataset"],
        "part": metas[0]["part"],
        "images": first_trace(by_seed).num_samples,
        "seeds": list(by_seed),
        "epochs": recipe["epochs"],
        "trained_on": sorted({meta["trained_on"] for meta in metas}),
        "measured_on": sorted({meta["hardware"] for meta in metas}),
        "date": max(meta["date"] for meta in metas)[:10],
        "recipe": recipe,
    }


def recipes(networks: Mapping[str, BySeed]) -> dict[str, dict[str, Any]]:
    """What the recipe of each network has otherwise than that of the first, which is in its `facts`, by flag."""
    flat = {}
    for name, by_seed in networks.items():
        recipe = _recipe(by_seed)
        flat[name] = flatten(recipe) | {section: recipe[section]["class_path"] for section in SECTIONS if section in recipe}
    first = next(iter(flat.values()))
    return {name: {key: value for key, value in one.items() if first.get(key) != value} for name, one in flat.items()}


def _recipe(by_seed: BySeed) -> dict[str, Any]:
    """The recipe of a network without what does not change its training or differs between seeds."""
    recipe = {key: value for key, value in first_trace(by_seed).meta["recipe"].items() if key not in ("seed", "progress")}
    arguments = {key: value for key, value in recipe["data"]["init_args"].items() if key not in ("root", "download")}
    return recipe | {"data": recipe["data"] | {"init_args": arguments}}


def figure_title(numbers: Mapping[str, Any]) -> str:
    """Title of a figure, from numbers that hold `facts`: the data set and the number of seeds."""
    return f"{numbers['dataset']}, n = {len(numbers['seeds'])}"
