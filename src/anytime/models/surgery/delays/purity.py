"""Networks whose operations all give new tensors: in-place operations are replaced, or rejected if that changes answers."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

SIZES = {"shape", "ndim", "dtype", "device", "size", "dim", "ndimension", "numel"}  # what a tensor is asked for besides values
IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
# Operations that may return their input itself: casts, and dropouts in evaluation.
MAY_RETURN_INPUT = {"float", "double", "half", "bfloat16", "type", "cuda", "stochastic_depth"}
DROPOUT_FUNCTIONS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
DROPOUT_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def mark_delay(x: Any) -> Any:
    """Marks a tensor that arrives late; it returns the tensor itself."""
    return x


def _recorder(target: Any) -> Any:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {}, IN_PLACE[target].__name__)

    return record


class InPlaceProxy(fx.Proxy):
    """A proxy of a traced tensor that, unlike fx.Proxy, tells x += y from x = x + y."""

    __iadd__, __isub__, __imul__, __itruediv__, __ipow__ = map(_recorder, IN_PLACE)


def remove_in_place(graph: fx.Graph, root: nn.Module) -> None:
    """Makes every operation give a new tensor, since the old one may be needed later.

    Operations that read a tensor after it was changed read the new one. Modules that work in place are left to the caller.

    Raises:
        ValueError: The changed tensor shares memory with another one that is read later, which would then not change.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    written: dict[fx.Node, fx.Node] = {}  # what each operation wrote into
    numbers: set[fx.Node] = set()  # sizes and results computed from them, which no operation changes in place
    for node in graph.nodes:
        changed = _first_argument(node)
        if asks_size(node) or (_is_arithmetic(node) and all(i in numbers for i in node.all_input_nodes)):
            numbers.add(node)
        if not _replace_in_place(node, root) or not isinstance(changed, fx.Node) or node in numbers:
            continue
        written[node] = changed
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)
        if _viewed_tensor(node, root) is not None:
            continue  # x.unsqueeze_(0) changes no value
        for other, reader in _later_readers(node, order, written, root):
            raise ValueError(
                f"{node.name} changes {changed.name} in place, and so {other.name}, which shares its memory and is read later "
                f"by {reader.name}: delays cannot follow this; let it give a new tensor, as x = f(x) does"
            )


def _first_argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def asks_size(node: fx.Node) -> bool:
    """Whether an operation reads only the size, type or device of a tensor."""
    return (node.args[1] if node.target is getattr else node.target if node.op == "call_method" else None) in SIZES


def _is_arithmetic(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")


def _replace_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether the operation works in place; all but modules are replaced by their out-of-place version."""
    if node.op == "call_module":
        return getattr(root.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        changed = str(node.target).endswith("_") and not str(node.target).endswith("__")
        node.target = str(node.target).removesuffix("_") if changed else node.target
        return changed
    if node.op != "call_function":
        return False
    name, module = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
    if node.target in IN_PLACE:
        node.target = IN_PLACE[node.target]
        return True
    if name.endswith("_") and module not in ("_operator", "operator"):  # torch.relu_
        node.target = getattr(torch, name[:-1], None) or getattr(F, name[:-1])
        return True
    if module != F.__name__ or "inplace" not in (names := list(inspect.signature(node.target).parameters)):  # type: ignore[arg-type]
        return False
    place = names.index("inplace")
    changed = bool(node.kwargs.get("inplace", node.args[place] if len(node.args) > place else False))
    node.args, node.kwargs = node.args[:place], {**node.kwargs, "inplace": False}
    return changed


# -- shared memory -----------------------------------------------------------------------------------------------------


@functools.cache
def _views() -> frozenset[str]:
    """Names of the operations that, by their schemas, may return a view of their first argument or the argument itself."""
    schemas = torch._C._jit_get_all_schemas()
    shares = [s.name for s in schemas if any(r.alias_info is not None and not r.alias_info.is_write for r in s.returns)]
    return frozenset(name.removeprefix("aten::") for name in shares if name.startswith("aten::"))


def _viewed_tensor(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The tensor of which an operation may give a view; None if it gives new values."""
    base = _first_argument(node)
    if not isinstance(base, fx.Node):
        return None
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        drops_nothing = isinstance(module, DROPOUT_MODULES) and not (module.training and module.p)
        views = drops_nothing or isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten)
    elif node.op == "call_method":
        views = str(node.target) in _views() | MAY_RETURN_INPUT
    elif node.target is getattr:
        views = node.args[1] not in SIZES
    elif node.target in (mark_delay, operator.getitem):
        views = True
    else:
        name, module_name = (getattr(node.target, key, "") for key in ("__name__", "__module__"))
        views = name in MAY_RETURN_INPUT or name in (DROPOUT_FUNCTIONS if module_name == F.__name__ else _views())
    return base if views else None


def _later_readers(
    node: fx.Node, order: dict[fx.Node, int], written: dict[fx.Node, fx.Node], root: nn.Module
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The tensors other than its own result that `node` changes, each with an operation that reads its values later."""

    def source(other: fx.Node) -> fx.Node | None:
        return written.get(other) or _viewed_tensor(other, root)

    def chain(other: fx.Node) -> list[fx.Node]:
        """From the tensor that owns the memory to this view of it."""
        path, base = [other], source(other)
        while base is not None:
            path.insert(0, base)
            base = source(base)
        return path

    own = chain(node)
    family = [own[0]]
    for member in family:
        family += [user for user in member.users if user not in family and source(user) is member]
    for other in family:
        path = chain(other)
        if node in path or _disjoint(own, path):
            continue
        for user in other.users:
            if order[user] > order[node] and source(user) is not other and not asks_size(user):
                yield other, user


def _disjoint(a: list[fx.Node], b: list[fx.Node]) -> bool:
    """Whether two views of a tensor cover different parts of it, as x[0] and x[1] do."""
    for one, other in zip(a, b, strict=False):
        if one is not other:
            parts = {view.args[1] for view in (one, other) if view.target is operator.getitem and type(view.args[1]) is int}
            return len(parts) == 2 and all(part >= 0 for part in parts)
    return False
