"""Networks that another network consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anytime.model import AnytimeModel, create_model, levels_of


def build_member(
    place: int, member: Any, num_classes: int | tuple[int, ...], in_channels: int, otherwise: str = ""
) -> AnytimeModel:
    """The model of a configuration {"model": NAME, "arguments": {...}}, of the same classes and channels.

    Raises:
        ValueError: No such mapping (then with what to do `otherwise`), or other classes or channels.
    """
    if not isinstance(member, Mapping) or "model" not in member or member.keys() - {"model", "arguments"}:
        raise ValueError(f"members[{place}] must be {{'model': NAME, 'arguments': {{...}}}}, got {member!r}{otherwise}")
    ours: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    network = create_model(member["model"], **ours | dict(member.get("arguments") or {}))
    levels = levels_of(num_classes)
    for what, has, wanted in (("num_classes", network.levels, levels), ("in_channels", network.in_channels, in_channels)):
        if has != wanted:
            raise ValueError(f"members must agree in {what}: members[{place}] has {has}, the sequence {wanted}")
    return network
