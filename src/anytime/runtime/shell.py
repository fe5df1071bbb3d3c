"""A model once more, in eval mode whatever the caller's is: what everything in this room computes with."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from functools import partial
from itertools import chain
from operator import is_
from types import CellType, FunctionType, MethodType
from typing import Any, cast

from torch import nn
from torch.jit import ScriptModule

from anytime.model import AnytimeModel
from anytime.runtime.forks import renew_after_fork


class Shell:
    """`shell.model` computes what a model computes, but its train flags are its own and off.

    Every module has a counterpart of the same class with the same attributes, except `training` and the child modules, which
    are counterparts. So weights, buffers and hooks are shared: whatever loads, moves or trains them counts at once. Modules
    that were replaced and other attributes that were set since count after `update`. Modules are also found in lists, tuples
    and dicts, and as what a method or function is bound to, but not within other objects. An attribute that a step sets stays
    with the counterpart, and hooks are given the counterpart.

    Args:
        model: The model; it is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._counterparts: dict[nn.Module, nn.Module] = {}
        self._known: dict[nn.Module, dict[str, Any]] = {}  # the attributes of each module at the last update
        self._scripted: dict[int, tuple[ScriptModule, ScriptModule]] = {}  # by id: scripted modules, their counterparts
        self._places: list[dict[str, Any]] = []  # where attributes and child modules are
        self._values: list[Any] = []  # what was there at the last update
        self._lock = threading.Lock()
        renew_after_fork(self)
        self.update()

    @property
    def model(self) -> AnytimeModel:
        """The counterpart of the model; always the same object."""
        return cast(AnytimeModel, self._counterparts[self._model])

    def update(self) -> None:
        """Follows the model if a module was replaced or an attribute set, by any thread, since the last time."""
        if self._is_current():
            return
        with self._lock:
            modules = [module for module in self._model.modules() if not isinstance(module, ScriptModule)]
            new = {module: dict(module.__dict__) for module in modules}
            children = {module: dict(module._modules) for module in modules}
            counterparts = {module: self._counterparts.get(module) for module in modules}
            found = {module: object.__new__(type(module)) if c is None else c for module, c in counterparts.items()}
            memo: dict[int, Any] = {id(module): counterpart for module, counterpart in found.items()}
            for child in chain.from_iterable(map(dict.values, children.values())):
                if isinstance(child, ScriptModule):
                    if id(child) not in self._scripted:
                        self._scripted[id(child)] = child, _tied_copy(child)
                    memo[id(child)] = self._scripted[id(child)][1]
            for module, counterpart in found.items():
                _follow(counterpart, new[module], children[module], self._known.get(module, {}), memo)
                if type(counterpart) is not type(module):
                    counterpart.__class__ = type(module)
            self._counterparts, self._known = found, new
            self._places = [*(module.__dict__ for module in modules), *(module._modules for module in modules)]
            self._values = [*chain.from_iterable(map(dict.values, (*new.values(), *children.values())))]

    def _is_current(self) -> bool:
        known = self._known.get(self._model)
        if known is None or not all(map(is_, self._model.__dict__.values(), known.values())):
            return False
        try:  # comparing lists is twice as fast as comparing identities, and an equal number is as good
            return [*chain.from_iterable(map(dict.values, self._places))] == self._values
        except (RuntimeError, ValueError):  # a tensor or an array was replaced, or another thread sets an attribute now
            return False

    def renew(self) -> None:
        """In a forked process: the lock may have been held by a thread that does not exist here."""
        self._lock = threading.Lock()


def _tied_copy(module: ScriptModule) -> ScriptModule:
    """A scripted module, whose flags are not in Python, in eval mode and with the same weights and buffers."""
    made = copy.deepcopy(module).eval()
    for (_, part), (_, own) in zip(module.named_modules(), made.named_modules(), strict=True):
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            own._c.setattr(name, tensor)
    return made


def _follow(
    counterpart: nn.Module,
    attributes: Mapping[str, Any],
    children: Mapping[str, nn.Module | None],
    known: Mapping[str, Any],
    memo: dict[int, Any],
) -> None:
    """Gives a counterpart what changed in its module since `known`; other threads may compute with it meanwhile."""
    there = counterpart.__dict__
    there.setdefault("training", False)
    for name, value in attributes.items():
        new = _replaced(value, memo)
        changed = new is not value or name not in known or known[name] is not value
        if changed and name not in ("training", "_modules"):
            there[name] = new
    own = {name: memo.get(id(child), child) for name, child in children.items()}
    if [*there.get("_modules", {}).items()] != [*own.items()] or "_modules" not in there:
        there["_modules"] = own
    for name in known.keys() - attributes.keys():
        there.pop(name, None)


def _replaced(value: Any, memo: dict[int, Any]) -> Any:
    """The value with modules replaced by their counterparts, by id; the value itself if there are none in it."""
    kind = type(value)
    if id(value) in memo or kind not in (list, tuple, dict, MethodType, FunctionType, partial):
        return memo.get(id(value), value)
    memo[id(value)] = value  # if it holds itself
    parts: list[Any]
    if kind is dict:
        parts = [*value.values()]
    elif kind is MethodType:
        parts = [value.__self__]
    elif kind is partial:
        parts = [value.func, value.args, value.keywords]
    elif kind is FunctionType:
        parts = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
    else:
        parts = [*value]
    new = [_replaced(part, memo) for part in parts]
    if not all(map(is_, new, parts)):
        memo[id(value)] = _made(value, new)
    return memo[id(value)]


def _made(value: Any, parts: list[Any]) -> Any:
    """A container, method or function with other parts."""
    kind = type(value)
    if kind is dict:
        return dict(zip(value, parts, strict=True))
    if kind is MethodType:
        return MethodType(value.__func__, parts[0])
    if kind is partial:
        return partial(parts[0], *parts[1], **parts[2])
    if kind is not FunctionType:
        return kind(parts)
    left = iter(parts)
    pairs = [(cell, next(left) if _is_full(cell) else None) for cell in value.__closure__]
    cells = tuple(CellType(new) if _is_full(cell) and cell.cell_contents is not new else cell for cell, new in pairs)
    made = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    made.__kwdefaults__ = value.__kwdefaults__
    made.__dict__.update(value.__dict__)
    return made


def _is_full(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False
