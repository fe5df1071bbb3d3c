"""Numbers taken from shapes, and `self.training`, as a trace passes them through a network's own code."""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Protocol

from anytime.models.surgery.attach.calls import map_leaves

DECIDING = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__")


class Recorder(Protocol):
    """What writes the arithmetic of numbers down."""

    paused: bool

    def arithmetic(self, function: Any, numbers: tuple[Any, ...]) -> Any:
        """The result of `function(*numbers)`."""

    def decided(self, decision: tuple[Any, ...]) -> None:
        """A number has decided something, or has become a plain one."""


class TrainingFlag(int):
    """Stands for `self.training` in a trace: an argument stays symbolic, a condition takes the flag's truth."""

    path = "training"


class Number(int):
    """A number taken from a shape, whose arithmetic is written down while a trace runs. Outside of a trace a plain int.

    Attributes:
        dividend: What it is the remainder or the quotient of, if a larger dividend may give what this one does not show: the
            divisor does not divide it, or is larger.
    """

    recorder: ClassVar[Recorder | None] = None
    dividend: int | None = None

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int.__add__(self, 0),)


def _arithmetic(name: str, reflected: bool) -> Any:
    function = getattr(operator, name)
    plain = getattr(int, f"__{'r' if reflected else ''}{name}__")

    def method(self: Number, other: Any) -> Any:
        trace = Number.recorder
        if trace is None or trace.paused or not isinstance(other, int):
            return plain(self, other)
        result = trace.arithmetic(function, (other, self) if reflected else (self, other))
        if isinstance(result, Number) and not reflected and type(other) is int and other > 1:
            own = int.__add__(self, 0)
            if (name == "mod" and own % other) or (name == "floordiv" and own < other):
                result.dividend = own
        return result

    return method


def _deciding(name: str) -> Any:
    plain = getattr(int, name)

    def method(self: Number, *others: Any) -> Any:
        trace, result = Number.recorder, plain(self, *others)
        if trace is not None and not trace.paused:
            trace.decided((name, result, _unsure(self, name, *others)) if name in DECIDING else (name,))
        return result

    return method


def _unsure(number: Number, name: str, other: Any = 0) -> int | None:
    """The number, if it is compared with a plain one in a way that other numbers of its kind may decide otherwise; else None.

    A larger number does not change that it is larger; two numbers from shapes are compared as they are. For a remainder or a
    quotient it is the dividend.
    """
    if number.dividend is not None:
        return number.dividend
    if type(other) is not int or other < 1 or (name not in ("__eq__", "__ne__") and int.__le__(other, number)):
        return None
    return int.__add__(number, 0)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Number, f"__{_name}__", _arithmetic(_name, False))
    setattr(Number, f"__r{_name}__", _arithmetic(_name, True))
for _name in (
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "bool",
    "truediv",
    "rtruediv",
    "pow",
    "rpow",
    "float",
    "int",
    "round",
    "neg",
):
    setattr(Number, f"__{_name}__", _deciding(f"__{_name}__"))


def plain_arguments(given: Any) -> Any:
    """Arguments with plain numbers and flags."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, TrainingFlag):
            return bool(leaf)
        return int.__add__(leaf, 0) if isinstance(leaf, Number) else leaf

    return map_leaves(plain, given)
