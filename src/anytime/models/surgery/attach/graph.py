"""A network's forward as one flat graph of whole layers: which modules stay whole, which are opened."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from anytime.models.surgery.attach.calls import Call, Operation, TraceError, Value, leaves_of, map_leaves, same_tensor
from anytime.models.surgery.attach.conditions import trace_network
from anytime.models.surgery.attach.questions import RANDOM
from anytime.models.surgery.attach.trace import is_layer


class FlatGraph(NamedTuple):
    """A network's forward with its containers inlined.

    Attributes:
        graph: Calls of layers and functions, in order; targets are relative to the network. A node's meta says whether it is
            `dependent` on the images, whether it is a `number`, whether it `changes` a tensor that the network keeps, and of a
            module whether it has its `own_code`.
        chain: The input, every place where only one tensor is needed later, the result.
        names: The names of each place, from the layer itself to the outermost container that ends there.
        fixed_size: Whether the example's size decided something, so that other sizes may need another graph.
        whole: The calls that could be opened further, by their nodes.
        macs: Multiply-adds of the whole network as the calls count them.
        opened: The calls that are written by what they do.
    """

    graph: fx.Graph
    chain: tuple[fx.Node, ...]
    names: dict[fx.Node, tuple[str, ...]]
    fixed_size: bool
    whole: dict[fx.Node, Call]
    macs: int = 0
    opened: tuple[Call, ...] = ()


# -- from calls to a graph -----------------------------------------------------------------------------------------------


class _GraphWriter:
    """Writes a call into a graph: calls in `opened` by what they do, the others as calls of the module."""

    def __init__(self, opened: Collection[Call], outside: bool = False) -> None:
        self.opened, self.outside = opened, outside
        self.graph, self.nodes = fx.Graph(), dict[Value, fx.Node]()
        self.groups: list[tuple[list[fx.Node], str]] = []  # nodes of one place, in order, with its name
        self.uses, self.whole = Counter[str](), dict[fx.Node, Call]()
        self.fixed = False
        self.inside: list[Call] = []

    def write(self, root: Call) -> fx.Graph:
        """The graph of one call, whose arguments are placeholders."""
        for value in leaves_of((root.args, root.kwargs)):
            if isinstance(value, Value) and value not in self.nodes:
                self._know(value, self.graph.placeholder("x"))
        self._inside(root)
        result = map_leaves(lambda leaf: self._node(leaf) if isinstance(leaf, Value) else None, root.result)
        self.graph.output(result)
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.meta.get("pure"):
                self.graph.erase_node(node)
        return self.graph

    def names(self) -> dict[fx.Node, list[str]]:
        """The names of each place, in the graph's order."""
        kept = {node: i for i, node in enumerate(self.graph.nodes)}
        found: dict[fx.Node, list[str]] = {}
        for nodes, name in self.groups:
            left = [node for node in nodes if node in kept]
            if left:
                found.setdefault(left[-1], []).append(name)
        return dict(sorted(found.items(), key=lambda item: kept[item[0]]))

    def _know(self, value: Value, node: fx.Node, pure: bool = False) -> fx.Node:
        node.meta |= {"dependent": value.dependent, "number": value.number, "pure": pure}
        self.nodes[value] = node
        return node

    def _node(self, leaf: Any) -> Any:
        if not isinstance(leaf, Value):
            return leaf
        if leaf not in self.nodes:
            if not self.outside:
                raise TraceError("a module uses a tensor that another one keeps to itself")
            self._know(leaf, self.graph.placeholder("outside"))
        return self.nodes[leaf]

    def _inside(self, call: Call) -> None:
        prefix, local = f"{call.path}." if call.path else "", Counter[str]()
        self.fixed |= call.fixed
        self.inside.append(call)
        for item in call.items:
            if isinstance(item, Call):
                nodes = self._call(item)
                self._name(nodes, item.path)
            elif item.target is same_tensor:
                self.nodes[item.result] = self._node(item.args[0])
            else:
                node = self._operation(item)
                if item.kind != "get_attr" and not item.result.number:
                    base = item.target if isinstance(item.target, str) else getattr(item.target, "__name__", "call")
                    name = base.strip("_") if local[base] == 0 else f"{base.strip('_')}_{local[base]}"
                    local[base] += 1
                    self._name([node], f"{prefix}{name}")

    def _name(self, nodes: list[fx.Node], name: str) -> None:
        self.uses[name] += 1
        self.groups.append((nodes, name if self.uses[name] == 1 else f"{name}:{self.uses[name]}"))

    def _operation(self, item: Operation) -> fx.Node:
        args, kwargs = map_leaves(self._node, item.args), map_leaves(self._node, item.kwargs)
        if item.result.number:  # as early as possible, so that nothing is kept only to be asked its size
            read = [node for node in leaves_of((args, kwargs)) if isinstance(node, fx.Node)]
            order = {node: i for i, node in enumerate(self.graph.nodes)}
            with self.graph.inserting_after(max(read, key=order.__getitem__)):
                node = self.graph.create_node(item.kind, item.target, args, kwargs)
        else:
            node = self.graph.create_node(item.kind, item.target, args, kwargs)
        node.meta["changes"] = item.changes
        taken = item.target is operator.getitem or item.kind == "get_attr"
        return self._know(item.result, node, pure=item.result.number or taken or item.target is getattr)

    def _call(self, call: Call) -> list[fx.Node]:
        if call in self.opened:
            before = len(self.graph.nodes)
            self._inside(call)
            result = call.result if isinstance(call.result, Value) else None
            return [self._node(result)] if result is not None else list(self.graph.nodes)[before:]
        args, kwargs = map_leaves(self._node, call.args), map_leaves(self._node, call.kwargs)
        node = self.graph.call_module(call.path, args, kwargs)
        node.meta |= {"dependent": True, "number": False, "pure": False, "macs": call.macs}
        node.meta["own_code"] = any(not type(part).__module__.startswith("torch.nn.") for part in call.module.modules())
        nodes = [node]
        if not call.problem and call.items:
            self.whole[node] = call
        for path, leaf in pytree.tree_flatten_with_path(call.result)[0]:
            if not isinstance(leaf, Value):
                if not isinstance(leaf, int | float | str | None):
                    raise TraceError(f"{call.path} returns an object of {type(leaf).__name__}")
                continue
            taken = node
            for key in path:
                step = getattr if isinstance(key, pytree.GetAttrKey) else operator.getitem
                at = key.name if isinstance(key, pytree.GetAttrKey) else getattr(key, "idx", getattr(key, "key", None))
                taken = self.graph.call_function(step, (taken, at))
                taken.meta |= {"dependent": True, "number": False, "pure": True}
                nodes.append(taken)
            self._know(leaf, taken, pure=bool(path))
        return nodes


def needed_later(graph: fx.Graph) -> list[fx.Node]:
    """In order: the input, each node after which no other input-dependent tensor is needed, the result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    last_use, places = -1, []  # last use of any tensor computed so far
    for node in graph.nodes:
        if node.op != "output" and node.meta["dependent"] and not node.meta["number"] and node.users:
            if last_use <= order[node]:
                places.append(node)
            last_use = max(last_use, *(order[user] for user in node.users))
    return places


def _has_weights(module: nn.Module) -> bool:
    """Whether a module multiplies by weights (scales and shifts of a norm do not count)."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


class _Inside(NamedTuple):
    """One call by itself: the tensors in it after which nothing else is needed, and whether all of them are such."""

    places: frozenset[Value]
    cuts: int
    straight: bool


class Opener:
    """Finds the containers to inline: those that then have cuts between layers with weights.

    A block with a shortcut or branches stays whole, and so do all blocks of its class: exits belong between blocks.
    """

    def __init__(self) -> None:
        self.seen: dict[Call, _Inside] = {}
        self.whole: set[type[nn.Module]] = set()

    def containers(self, root: Call) -> set[Call]:
        """The root and the containers in it."""
        count = -1
        while count != len(self.whole):  # again if a class turned out to stay whole
            count, opened = len(self.whole), {root}
            for call in (found := [root]):
                inner = [child for child in call.calls if self._opens(call, child)]
                found += inner
                opened.update(inner)
        return opened

    def _opens(self, parent: Call, call: Call) -> bool:
        chain = self._look(parent).places
        given = (*call.args, *call.kwargs.values())
        if call.kwargs or len(given) != 1 or not isinstance(given[0], Value) or not isinstance(call.result, Value):
            return False
        if given[0] not in chain or call.result not in chain or not call.items:
            return False
        return type(call.module) not in self.whole and not is_layer(call.module) and self._count_cuts(call) > 0

    def _count_cuts(self, call: Call) -> int:
        """Number of cuts inside a module that have weights before and after them."""
        inside = None if call.problem else self._look(call)
        if inside is None or not inside.straight:
            self.whole.add(type(call.module))
            return 0
        return inside.cuts + sum(self._count_cuts(child) for child in call.calls if self._opens(call, child))

    def _look(self, call: Call) -> _Inside:
        if call not in self.seen:
            writer = _GraphWriter({call}, outside=True)
            graph = writer.write(call)
            chain = needed_later(graph)
            tensors = [n for n in graph.nodes if n.op != "output" and n.users and n.meta["dependent"] and not n.meta["number"]]
            straight = set(tensors) - made_of_numbers(graph) <= set(chain)
            heavy = [i for i, n in enumerate(chain) if n.op == "call_module" and _has_weights(_at(call, str(n.target)))]
            values = frozenset(value for value, node in writer.nodes.items() if node in set(chain))
            self.seen[call] = _Inside(values, heavy[-1] - heavy[0] if heavy else 0, straight)
        return self.seen[call]


def _at(call: Call, path: str) -> nn.Module:
    return next(child.module for child in call.calls if child.path == path)


def made_of_numbers(graph: fx.Graph) -> set[fx.Node]:
    """The tensors that are made of numbers only, and not at random: they can be made again."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        read = [i for i in node.all_input_nodes if i.meta["dependent"]]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        once = node.meta.get("changes") or node.meta.get("once")
        same = node.op in ("call_function", "call_method") and not name.startswith(RANDOM) and not once
        if same and not node.meta["number"] and all(i.meta["number"] or i in found for i in read):
            found.add(node)
    return found


def flatten(root: Call, opened: Collection[Call]) -> FlatGraph:
    """The flat graph of a traced network with the calls `opened`."""
    writer = _GraphWriter(opened)
    graph = writer.write(root)
    names = {node: tuple(found) for node, found in writer.names().items()}
    return FlatGraph(graph, tuple(needed_later(graph)), names, writer.fixed, writer.whole, root.macs[1], tuple(writer.inside))


def flatten_network(backbone: nn.Module, x: Tensor) -> FlatGraph:
    """The flat graph of a network, which is left unchanged, with only its containers opened.

    Args:
        backbone: The network.
        x: Example images `[B, C, H, W]`, which decide branches on shapes.

    Raises:
        ValueError: Its forward cannot be written as a graph.
    """
    root = trace_network(backbone, x)
    return flatten(root, Opener().containers(root))
