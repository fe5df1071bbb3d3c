"""What must stay as it was when exits were attached, because a network was cut with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytime.models.surgery.attach.attributes import HOOKS
from anytime.models.surgery.attach.calls import Call
from anytime.models.surgery.attach.frozen import ABSENT, Same, text

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
AGAIN = "attach the exits again"


class Watch:
    """Raises ValueError once something that was decided when exits were attached has been changed.

    Args:
        calls: Those that are written by what they do, so that the forward of their modules does not run any more.

    Attributes:
        autocast: Whether what was cut is the network also while autocast is on.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.reads = tuple({(id(read.thing), read.name): read for call in calls for read in call.reads}.values())
        opened = {call.path: call.module for call in calls}
        self.hooks = tuple((module, path, _hooks(module)) for path, module in opened.items())
        root = next(call.module for call in calls if not call.path)
        names: dict[nn.Module, list[str]] = {}
        for name, part in root.named_modules(remove_duplicate=False):
            names.setdefault(part, []).append(name)
        holders = _holders(root, calls, names)
        fixed = {*holders.values(), *(part for part in names if len(names[part]) > 1)}
        self.holders = tuple(
            (module, path, _kind(module), {name: part if part in fixed else None for name, part in module._modules.items()})
            for path, module in holders.items()
        )
        tensors = {name for call in calls for name in call.attributes}
        self.tensors = tuple(place for name in sorted(tensors) if (place := _find(root, name)) is not None)
        last = next(call.result.maker for call in calls if not call.path)
        self.classifier = (
            (root, last.path, last.module.out_features) if isinstance(getattr(last, "module", None), nn.Linear) else None
        )
        self.autocast = True
        self.dtypes = {dtype: call.path for call in calls for dtype in call.unproven}

    def check(self, x: Tensor) -> None:
        """Raises ValueError if an attribute has another value, a cut module is another one, or x is in another precision."""
        dtype = x.dtype
        if not self.autocast and torch.is_autocast_enabled(x.device.type):
            raise ValueError("this network asks for the precision of its tensors, so as it was cut it cannot run in autocast")
        if dtype in self.dtypes:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"this network does something else in {name} than as it was cut: convert it before, and {AGAIN}")
        if torch.compiler.is_compiling():
            self._check_plain()
            return
        for read in self.reads:
            if (now := read.changed()) is not None:
                place = _place(read.thing, read.path)
                raise ValueError(f"{place} was cut with {read.name} = {text(read.value)}, and has {now} now: {AGAIN}")
        for module, path, kind, parts in self.holders:
            if (now := _kind(module)) != kind:
                other = f"is a {now[0]}" if now[0] != kind[0] else "has other code"
                raise ValueError(f"{kind[0]} {path!r} was cut, and {other} now: {AGAIN}")
            if list(module._modules) != list(parts):
                raise ValueError(f"{_place(module, path)} has {_other(parts, module._modules)} since it was cut: {AGAIN}")
            for name, part in parts.items():
                if part is not None and module._modules[name] is not part:
                    raise ValueError(f"{_place(module, path)} was cut, and has another {name!r} now: {AGAIN}")
        for module, path, hooks in self.hooks:
            if _hooks(module) != hooks:
                raise ValueError(f"{_place(module, path)} has other hooks than when it was cut: {AGAIN}")
        for module, path, name, kept, shape in self.tensors:
            if (tensor := vars(module)[kept].get(name)) is None:
                raise ValueError(f"{_place(module, path)} was cut with {name!r} among its {kept[1:]}, which it left: {AGAIN}")
            if tensor.shape != shape:
                now = f"of shape {[*shape]}, and has one of {[*tensor.shape]} now"
                raise ValueError(f"{_place(module, path)} was cut with {name!r} {now}: {AGAIN}")
        if self.classifier is not None:
            root, path, width = self.classifier
            check_width(getattr(root.get_submodule(path), "out_features", width), width)

    def _check_plain(self) -> None:
        """What a compiler can follow: which objects modules hold, and numbers and texts of both, and other parts."""
        for thing, _, name, value in self.reads:
            if isinstance(value, Same) and getattr(thing, name, None) is not value.thing:
                raise ValueError(f"a module was cut with one {name}, and has another now: {AGAIN}")
            if (value is None or value is ABSENT) and getattr(thing, name, None) is not None:
                raise ValueError(f"a module was cut without {name}, and has one now: {AGAIN}")
            if isinstance(value, int | float | str) and getattr(thing, name) != value:
                raise ValueError(f"a module was cut with {name} = {value}, and has another now: {AGAIN}")
        for module, _, _, parts in self.holders:
            if len(module._modules) != len(parts):
                raise ValueError(f"a module was cut with {len(parts)} parts, and has {len(module._modules)} now: {AGAIN}")
            for name, part in parts.items():
                if part is not None and module._modules.get(name) is not part:
                    raise ValueError(f"a module was cut, and has another {name} now: {AGAIN}")


def _kind(module: nn.Module) -> tuple[str, Any]:
    """The name of its class, and the class; for a GraphModule, whose copies have classes of their own, its code."""
    if not isinstance(module, fx.GraphModule):
        return type(module).__name__, type(module)
    functions = [node.target for node in module.graph.nodes if isinstance(node.target, FunctionType)]  # known by name there
    return "GraphModule", (module.code, functions)


def check_width(now: int, before: int) -> None:
    """Raises ValueError if a network gives another number of outputs than before."""
    if now != before:
        raise ValueError(f"the network gives {now} outputs now, and was cut with {before}: {AGAIN}")


def _find(root: nn.Module, name: str) -> tuple[nn.Module, str, str, str, torch.Size] | None:
    """The module that keeps a tensor, its name, the tensor's own, among what it keeps it, and the tensor's shape."""
    path, _, own = name.rpartition(".")
    module: Any = root.get_submodule(path) if path in dict(root.named_modules()) else None
    kept = [kind for kind in ("_parameters", "_buffers") if module is not None and own in vars(module)[kind]]
    tensor = vars(module)[kept[0]][own] if kept else None
    return None if tensor is None else (module, path, own, kept[0], tensor.shape)


def _hooks(module: nn.Module) -> tuple[int, ...]:
    """The numbers of its hooks, which torch gives each hook once; those of this library only look on."""
    own = f"{__name__.partition('.')[0]}."
    return tuple(
        number
        for kind in HOOKS
        for number, hook in vars(module)[kind].items()
        if not str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith(own)
    )


def _holders(root: nn.Module, calls: Sequence[Call], names: Mapping[nn.Module, Sequence[str]]) -> dict[str, nn.Module]:
    """The modules whose parts the calls have run, one by one, by name; lists of parts among them that have none.

    Args:
        root: The network.
        calls: Those that are written by what they do.
        names: All names of each module.
    """
    modules = {name: module for module, own in names.items() for name in own}
    found = {call.path: call.module for call in calls}
    whole = {name for call in calls for part in call.calls for name in names[part.module]} - set(found)
    for path in whole:
        above = path.rpartition(".")[0]
        while above not in found:
            found[above] = modules[above]
            above = above.rpartition(".")[0]
    for path in list(found):
        for name, part in found[path]._modules.items():
            inside = f"{path}.{name}".removeprefix(".")
            if isinstance(part, LISTS) and inside not in whole:
                found[inside] = part
    return found


def _other(before: Collection[str], now: Collection[str]) -> str:
    """What has become of a module's parts."""
    lost, new = [name for name in before if name not in now], [name for name in now if name not in before]
    if lost:
        return f"lost its part {lost[0]!r}"
    return f"got a part {new[0]!r}" if new else "its parts in another order"


def _place(module: nn.Module, path: str) -> str:
    return f"{type(module).__name__} {path!r}" if path else type(module).__name__
