"""What the configuration of a run from elsewhere may say when it is resumed: nothing that leaves its directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anytime.models.surgery.hugging_face import is_type
from anytime.support.text import quoted
from anytime.support.trust import UntrustedName
from anytime.training.config import Config, flatten

OFFLINE: dict[str, tuple[Any, ...]] = {"data.download": (False, None), "logger": ("auto", "csv", "tensorboard")}
HERE: dict[str, tuple[Any, ...]] = {
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "strategy": ("auto", "ddp", "ddp_find_unused_parameters_true"),
}


def check_foreign(config: Config, source: Path | str) -> None:
    """Raises UntrustedName if resuming this run could use the network, write outside its directory or start other engines.

    Args:
        config: Its configuration, in which every argument has its type (see `training.config.parse`).
        source: The file that holds it, for the message.
    """
    given = flatten(config)
    network = [key for key, allowed in OFFLINE.items() if key in given and given[key] not in allowed]
    if network:
        raise UntrustedName(f"{source} sets {network[0]}, which uses the network; if you trust this file, add --trust")
    check_offline(config["model"], source)
    for key, allowed in HERE.items():
        if key in given and given[key] not in allowed:
            raise UntrustedName(
                f"{source} sets {key} to {quoted(given[key])}, not one of {', '.join(allowed)}; if you trust this file, "
                "add --trust"
            )


def check_offline(model: Any, source: Path | str) -> None:
    """Raises UntrustedName if building a model from this configuration or these arguments would use the network."""
    for name in _remote(model):
        raise UntrustedName(f"{source} sets model ... {name}, which uses the network; if you trust this file, add --trust")


def _remote(value: Any, key: str = "") -> Iterator[str]:
    """What a model's arguments would download, at any depth: pretrained weights, repositories of Hugging Face."""
    if key == "pretrained" and value is True:
        yield "pretrained"
    elif isinstance(value, str) and value.startswith("hf:") and not is_type(value.removeprefix("hf:")):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _remote(inner, name)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _remote(inner)
