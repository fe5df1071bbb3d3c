"""What a trace writes down: operations, calls of modules, and the values that pass between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


class TraceError(Exception):
    """A forward that no graph can hold; the message completes "it cannot be traced: ..."."""


@dataclass(eq=False)
class Value:
    """What one operation gives: a tensor, or a number taken from a shape.

    Attributes:
        dependent: Whether it depends on the images, or at least on their shape.
        number: Whether it is a number.
        maker: The operation or call that made it; None for the images.
        content: Whether a tensor's values come from images, weights or chance, and not only from shapes.
        ragged: Whether its shape depends on such values.
    """

    dependent: bool
    number: bool = False
    maker: Any = None
    content: bool = True
    ragged: bool = False


@dataclass(eq=False)
class Operation:
    """One operation as torch.fx writes it; arguments hold `Value` in place of tensors and numbers.

    `changes` says whether it changes a tensor that the network keeps, in place.
    """

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    changes: bool = False


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        path: Its name in the network.
        args: Positional arguments, with `Value` for tensors and numbers.
        kwargs: The others.
        items: What it did, in order; empty if the module was not followed.
        result: What it returned, with `Value` likewise.
        problem: Why only a call of the whole module can stand in a graph; None if it can be opened.
        fixed: Whether a number that depends on the images' size decided something.
        macs: Multiply-adds counted before and after it.
        attributes: The values of weights and flags that it has asked for, by name.
        asked: The dtypes that it has asked of tensors of the images' dtype.
        reads: The plain attributes of modules that it has read.
        decisions: What it has decided by numbers that come from shapes, and those that became plain ones.
        remainders: What its divisions of such numbers have left.
        unproven: Precisions in which it does something else.
        asked_layout: Whether it has asked how a tensor lies in memory.
    """

    module: nn.Module
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    items: list[Operation | Call] = field(default_factory=list)
    result: Any = None
    problem: str | None = None
    fixed: bool = False
    macs: tuple[int, int] = (0, 0)
    attributes: dict[str, Value] = field(default_factory=dict)
    asked: set[torch.dtype] = field(default_factory=set)
    reads: list[Any] = field(default_factory=list)
    decisions: list[Any] = field(default_factory=list)
    remainders: list[int] = field(default_factory=list)
    unproven: set[torch.dtype] = field(default_factory=set)
    asked_layout: bool = False

    @property
    def calls(self) -> list[Call]:
        """The calls inside it, in order."""
        return [item for item in self.items if isinstance(item, Call)]

    @property
    def inside(self) -> list[Call]:
        """It and all calls in it."""
        return [self, *(call for inner in self.calls for call in inner.inside)]

    @property
    def asks_layout(self) -> bool:
        """Whether it, or a call inside it, has asked how a tensor lies in memory."""
        return self.asked_layout or any(call.asks_layout for call in self.calls)


def same_tensor(x: Any) -> Any:
    """The argument itself."""
    return x


def map_leaves(function: Callable[[Any], Any], given: Any) -> Any:
    """Nested arguments with `function` applied to all leaves, also those of slices; `torch.Size` becomes a tuple."""
    if isinstance(given, slice):
        return slice(*(map_leaves(function, part) for part in (given.start, given.stop, given.step)))
    if type(given) in (tuple, list, torch.Size):
        parts = [map_leaves(function, part) for part in given]
        return parts if type(given) is list else tuple(parts)
    if type(given) is dict:
        return {key: map_leaves(function, part) for key, part in given.items()}
    leaves, spec = pytree.tree_flatten(given)
    if len(leaves) == 1 and leaves[0] is given:
        return function(given)
    return pytree.tree_unflatten([map_leaves(function, leaf) for leaf in leaves], spec)


def leaves_of(given: Any) -> list[Any]:
    """All leaves of nested arguments, those of slices among them."""
    leaves: list[Any] = []
    map_leaves(leaves.append, given)
    return leaves
