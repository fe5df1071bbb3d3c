"""Numbers taken from shapes, and `self.training`, as a trace passes them through a network's own code."""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Protocol

from torch import Tensor

from anytime.models.surgery.attach.calls import map_leaves

DECIDING = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__")
PLAIN = (  # what makes something of a number that no graph can follow: a float, a text, the key of a table
    *("truediv", "rtruediv", "pow", "rpow", "float", "int", "round", "trunc", "floor", "ceil", "abs", "pos", "invert"),
    *("and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift", "rshift", "rrshift", "hash", "repr", "str", "format"),
)


class Recorder(Protocol):
    """What writes the arithmetic of numbers down."""

    paused: bool

    def arithmetic(self, function: Any, numbers: tuple[Any, ...]) -> Any:
        """The result of `function(*numbers)`."""

    def decided(self, decision: tuple[Any, ...]) -> None:
        """A number has decided something, or has become a plain one."""

    def divided(self, remainder: int) -> None:
        """A number has been divided, or has divided another one."""


class TrainingFlag(int):
    """Stands for `self.training` in a trace: an argument stays symbolic, a condition takes the flag's truth."""

    path = "training"


class Number(int):
    """A number taken from a shape, whose arithmetic is written down while a trace runs. Outside of a trace a plain int.

    Attributes:
        origin: The numbers that it is made of, if it does not grow with them: by a division that leaves a remainder, or a
            difference. What it decides may then be decided otherwise by others that are not larger.
    """

    recorder: ClassVar[Recorder | None] = None
    origin: tuple[int, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int.__add__(self, 0),)

    def __neg__(self) -> int:
        return 0 - self

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self


def _arithmetic(name: str, reflected: bool) -> Any:
    function = getattr(operator, name)
    plain = getattr(int, f"__{'r' if reflected else ''}{name}__")

    def method(self: Number, other: Any) -> Any:
        trace = Number.recorder
        if trace is None or trace.paused:
            return plain(self, other)
        if not isinstance(other, int):
            if not isinstance(other, Tensor):  # which takes it as a number
                trace.decided((name, int.__add__(self, 0)))
            return plain(self, other)
        given = (other, self) if reflected else (self, other)
        result = trace.arithmetic(function, given)
        one, two = (int.__add__(number, 0) for number in given)
        if name in ("mod", "floordiv"):
            trace.divided(one % two)
        if isinstance(result, Number):
            numbers = [number for number in given if isinstance(number, Number)]
            grows = name == "add" or name == "mul" or (name in ("mod", "floordiv") and one % two == 0)
            if not grows or one < 0 or two < 0 or any(number.origin for number in numbers):
                result.origin = tuple(i for number in numbers for i in number.origin or (int.__add__(number, 0),))
        return result

    return method


def _deciding(name: str) -> Any:
    plain = getattr(int, name, None) or getattr(object, name)

    def method(self: Number, *others: Any) -> Any:
        trace, result = Number.recorder, plain(int.__add__(self, 0), *others)
        if trace is not None and not trace.paused:
            sure = (result, _unsure(self, name, *others)) if name in DECIDING else (int.__add__(self, 0),)
            trace.decided((name, *sure))
        return result

    return method


def _unsure(number: Number, name: str, other: Any = 0) -> tuple[Any, ...] | None:
    """What is compared, if other numbers of the kind may decide otherwise; else None.

    A larger number does not change that it is larger than a plain one, nor that it is equal to one that comes from the same
    shape.
    """
    given = [one for one in (number, other) if isinstance(one, Number)]
    known = tuple(i for one in given for i in one.origin or (int.__add__(one, 0),))
    if len(given) == 2:
        return None if int.__eq__(number, other) else known
    if not isinstance(other, int | float):
        return None
    if number.origin is None and (other < 1 or (name not in ("__eq__", "__ne__") and other <= int.__add__(number, 0))):
        return None
    return known


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Number, f"__{_name}__", _arithmetic(_name, False))
    setattr(Number, f"__r{_name}__", _arithmetic(_name, True))
for _name in (*DECIDING, *(f"__{name}__" for name in PLAIN)):
    setattr(Number, _name, _deciding(_name))


def plain_arguments(given: Any) -> Any:
    """Arguments with plain numbers and flags."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, TrainingFlag):
            return bool(leaf)
        return int.__add__(leaf, 0) if isinstance(leaf, Number) else leaf

    return map_leaves(plain, given)
