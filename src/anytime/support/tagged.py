"""Frozen dataclasses that JSON can hold, each tagged with its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from anytime.support.names import nearest


class Tagged:
    """A frozen dataclass that JSON can hold: `Family.from_dict(member.to_dict()) == member`, exactly.

    A direct subclass is a family. Each member names its kind: `class Product(Combiner, kind="product")`.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, kind: str | None = None) -> None:
        if Tagged in cls.__bases__:
            cls.kinds = {}
        if kind is not None:
            cls.kind = kind
            cls.kinds[kind] = cls

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `kind` and the constructor's arguments; infinity becomes the string "inf"."""
        return {"kind": self.kind} | {field.name: _encode(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; builds members of this family and nothing else.

        Raises:
            ValueError: An unknown kind, an unknown or missing argument, or one out of range.
        """
        arguments = dict(values)
        kind = arguments.pop("kind", None)
        if kind not in cls.kinds:
            raise ValueError(f"unknown {cls.__name__.lower()} {kind!r}{nearest(str(kind), cls.kinds)}")
        member = cls.kinds[kind]
        names = [field.name for field in fields(member)]
        for name in arguments.keys() - names:
            raise ValueError(f"{kind!r} has no argument {name!r}{nearest(name, names)}")
        try:
            return member(**{name: cls._decode(value) for name, value in arguments.items()})
        except TypeError as error:
            raise ValueError(f"{kind!r} cannot be built from {arguments}: {error}") from None

    @classmethod
    def _decode(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        return tuple(map(cls._decode, value)) if isinstance(value, list) else value


def _encode(value: Any) -> Any:
    if isinstance(value, Tagged):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
