"""A network as a flat list of operations, some of them delays: tracing, and the search for skip connections."""

from __future__ import annotations

import inspect
import math
import operator
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from anytime.models.surgery.delays.purity import InPlaceProxy, asks_size, mark_delay, remove_in_place
from anytime.support.names import nearest

ROOT = "network"  # the attribute under which a DelayedNetwork, and the traced root, hold the network
ADDITIONS = {operator.add, torch.add, "add"}


@dataclass(frozen=True)
class Ref:
    """The output of operation `index`, used as an argument of another operation."""

    index: int


@dataclass(frozen=True)
class Op:
    """One operation of the network.

    Attributes:
        name: Name for messages.
        kind: As in torch.fx: placeholder (the images), get_attr, call_module, call_function, call_method.
        target: The module's or attribute's path, the function, or the method's name.
        args: Arguments, with `Ref` for the outputs of other operations.
        kwargs: Keyword arguments, likewise.
        inputs: The operations with values over time on which it depends, directly or through timeless ones.
        sources: Those inputs whose values matter, not only their sizes.
        timeless: It has no values over time (parameters, sizes, results made only of these); evaluated wherever it is needed.
        plain: None of its arguments is timeless.
        takes_row: It is a module that takes its time as `row`, as `StepBatchNorm2d` does.
    """

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    sources: tuple[int, ...]
    timeless: bool
    plain: bool
    takes_row: bool

    @property
    def is_delay(self) -> bool:
        """Whether it is a delay."""
        return self.target is mark_delay


@dataclass(frozen=True)
class OpGraph:
    """A traced network.

    Attributes:
        ops: All operations in order; the first is the images.
        output: Index of the operation that gives the answer.
        branches: Names of the delayed branches.
        constants: Tensors that the tracer met outside the network's modules, by the target that names them.
    """

    ops: tuple[Op, ...]
    output: int
    branches: tuple[str, ...]
    constants: dict[str, Tensor] = field(default_factory=dict)


def evaluate(
    ops: Sequence[Op], index: int, values: Mapping[int, Any], root: nn.Module, time: int = 0, hooks: bool = True
) -> Any:
    """The output of an operation from the `values` of its inputs, all at `time`; `hooks=False` skips the modules' hooks."""
    op = ops[index]

    def resolve(argument: Any) -> Any:
        if not isinstance(argument, Ref):
            return argument
        i = argument.index
        return values[i] if i in values else evaluate(ops, i, values, root, time, hooks)

    args, kwargs = map_aggregate(op.args, resolve), map_aggregate(op.kwargs, resolve)
    if op.kind == "get_attr":
        return operator.attrgetter(op.target)(root)
    if op.kind == "call_module":
        module = root.get_submodule(op.target)
        return (module if hooks else module.forward)(*args, **kwargs, **({"row": time} if op.takes_row else {}))
    return op.target(*args, **kwargs) if op.kind == "call_function" else getattr(args[0], op.target)(*args[1:], **kwargs)


# -- tracing -----------------------------------------------------------------------------------------------------------


class _DelayTracer(fx.Tracer):
    """Traces a network with a delay after each branch, and with modules that take a `row` as leaves."""

    def __init__(self, branches: dict[nn.Module, str], leaves: Collection[nn.Module]) -> None:
        super().__init__()
        self.branches, self.leaves = branches, leaves
        self.met: set[str] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.leaves or _takes_row(module) or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        out = super().call_module(module, forward, args, kwargs)
        if module not in self.branches:
            return out
        self.met.add(self.branches[module])
        first, *rest = out if isinstance(out, tuple) else (out,)
        late = self.create_proxy("call_function", mark_delay, (first,), {})
        return (late, *rest) if isinstance(out, tuple) else late


def build_graph(network: nn.Module, branches: Sequence[str] | None, leaves: Sequence[str], prefix: str = "") -> OpGraph:
    """The operations of a network in its current mode, with a delay after each branch.

    Args:
        network: A network from images to one tensor.
        branches: Names of modules whose output is delayed (the first of several outputs); None: the branches of `x + f(x)`.
        leaves: Names of modules that run as one operation each.
        prefix: Prefix for the names of constants.

    Raises:
        ValueError: A module is unknown or does not run, there is no skip connection, or the network cannot be traced.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    for what, names in (("branches", branches or ()), ("leaves", leaves)):
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise ValueError(f"{what} must be a list of names of modules, got {names!r}")
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"{what} must be a list of names of modules, as in named_modules(), but has {name!r}")
            if name not in modules:
                raise ValueError(f"{what} names {name!r}, but the network has no such module{nearest(name, modules)}")
    tracer = _DelayTracer({modules[name]: name for name in branches or ()}, {modules[name] for name in leaves})
    root = nn.Sequential(OrderedDict({ROOT: network}))
    try:
        graph = tracer.trace(root)
    except Exception as error:
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx: {type(error).__name__}: {error}. If a module's control "
            "flow depends on tensor sizes, name the module in `leaves`: it then runs as one operation"
        ) from error
    idle = [name for name in branches or () if name not in tracer.met]
    if idle:
        raise ValueError(f"branches names {idle[0]!r}, but this module does not run, or runs inside one that is not traced")
    remove_in_place(graph, root)
    _delay_first_outputs(graph)
    if branches is None:
        branches = _delay_residual_branches(graph, network)
    if not branches:
        raise ValueError(
            f"no skip connection of the form x + f(x) was found in {type(network).__name__}; name the modules whose output is "
            f"delayed: branches=[...], as network.named_modules() calls them, for instance {min(modules, default='')!r}"
        )
    return _flatten(graph, tuple(branches), root, prefix)


def _takes_row(module: nn.Module) -> bool:
    return "row" in inspect.signature(module.forward).parameters


def _delay_first_outputs(graph: fx.Graph) -> None:
    """If a branch has several outputs (attention: its result and weights), moves the delay to the first of them."""
    for node in list(graph.nodes):
        users = list(node.users)
        picked = [user for user in users if user.target is operator.getitem and isinstance(user.args[1], int)]
        if node.target is not mark_delay or not users or len(picked) < len(users):
            continue
        for user in picked:
            user.replace_input_with(node, node.args[0])
            if user.args[1] == 0:
                _insert_delay(graph, user, list(user.users))
        graph.erase_node(node)


def _insert_delay(graph: fx.Graph, node: fx.Node, users: Sequence[fx.Node]) -> None:
    with graph.inserting_after(node):
        late = graph.call_function(mark_delay, (node,))
    for user in users:
        user.replace_input_with(node, late)


Roots = dict[fx.Node, tuple[fx.Node, ...]]


def _dependencies(graph: fx.Graph) -> tuple[set[fx.Node], Roots, Roots]:
    """The timeless operations, and for each operation its roots: the operations with values over time that it depends on.

    The third result leaves out roots of which an operation uses only the size.
    """
    timeless: set[fx.Node] = set()
    roots: Roots = {}
    sources: Roots = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op != "placeholder" and (asks_size(node) or all(i in timeless for i in inputs)):
            timeless.add(node)
        roots[node] = tuple(dict.fromkeys(r for i in inputs for r in (roots[i] if i in timeless else (i,))))
        read = () if asks_size(node) else inputs
        sources[node] = tuple(dict.fromkeys(r for i in read for r in (sources[i] if i in timeless else (i,))))
    return timeless, roots, sources


# -- skip connections --------------------------------------------------------------------------------------------------


def _delay_residual_branches(graph: fx.Graph, network: nn.Module) -> list[str]:
    """Delays the branches of all blocks x + f(x) and returns their names."""
    timeless, _, roots = _dependencies(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    dominator: dict[fx.Node, fx.Node] = {}  # the nearest operation on all paths from the images to this one

    def common_dominator(nodes: Sequence[fx.Node]) -> fx.Node:
        common, *others = nodes
        for other in others:
            while common is not other:
                if order[common] > order[other]:
                    common = dominator[common]
                else:
                    other = dominator[other]
        return common

    names = []
    for node in list(graph.nodes):
        if node not in timeless and node.op not in ("placeholder", "output"):
            dominator[node] = common_dominator(roots[node])
        if not _adds(node) or (len(node.users) == 1 and _adds(next(iter(node.users)))):
            continue
        terms = [(term, user) for term, user in _terms(node) if term not in timeless]
        if len(terms) < 2:
            continue
        source = common_dominator([term for term, _ in terms])
        paths = [_paths(term, source, roots) for term, _ in terms]
        shortest = min(length for _, length in paths)
        if sum(length == shortest for _, length in paths) > 1:
            continue
        skip = next(region for region, length in paths if length == shortest)
        for (term, user), (region, _) in zip(terms, paths, strict=True):
            if region is not skip and not region & skip and any(_learns(step, network) for step in region):
                _insert_delay(graph, term, [user])
                names.append(str(term.target).removeprefix(f"{ROOT}.") if term.op == "call_module" else term.name)
    return names


def _adds(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in ADDITIONS


def _terms(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The terms of a sum, with x + f(x) + g(x) taken as one sum, each with the addition that uses it."""
    for part in node.args[:2]:
        if isinstance(part, fx.Node):
            if _adds(part) and len(part.users) == 1:
                yield from _terms(part)
            else:
                yield part, node


def _paths(node: fx.Node, source: fx.Node, roots: Roots) -> tuple[frozenset[fx.Node], float]:
    """All operations after `source` up to `node`, and the length of the shortest path."""
    seen: set[fx.Node] = set()
    front, length, shortest = {node}, 0, math.inf
    while front:
        shortest = min(shortest, length if source in front else math.inf)
        front -= {source}
        seen |= front
        front = {root for step in front for root in roots[step]} - seen
        length += 1
    return frozenset(seen), shortest


def _learns(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target).removeprefix(f"{ROOT}."))
        return next(module.parameters(), None) is not None
    return any(i.op == "get_attr" for i in node.all_input_nodes)


# -- the list of operations --------------------------------------------------------------------------------------------


def _flatten(graph: fx.Graph, branches: tuple[str, ...], root: nn.Module, prefix: str) -> OpGraph:
    timeless, roots, sources = _dependencies(graph)
    index = {node: i for i, node in enumerate(graph.nodes)}
    constants: dict[str, Tensor] = {}
    ops: list[Op] = []
    for node in graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ValueError(f"the network must give one tensor, but it gives {node.args[0]!r}")
            return OpGraph(tuple(ops), index[node.args[0]], branches, constants)
        target = node.target
        if node.op == "get_attr" and not str(target).startswith(f"{ROOT}."):
            target = f"{prefix}{target.lstrip('_')}"
            constants[target] = getattr(root, str(node.target))

        def as_ref(leaf: Any) -> Any:
            return Ref(index[leaf]) if isinstance(leaf, fx.Node) else leaf

        args, kwargs = map_aggregate((node.args, node.kwargs), as_ref)
        ops.append(
            Op(
                node.name,
                node.op,
                target,
                args,
                kwargs,
                inputs=tuple(sorted(index[i] for i in roots[node])),
                sources=tuple(sorted(index[i] for i in sources[node])),
                timeless=node in timeless,
                plain=not any(i in timeless for i in node.all_input_nodes),
                takes_row=node.op == "call_module" and _takes_row(root.get_submodule(str(target))),
            )
        )
    raise AssertionError("a traced graph ends with its output")
