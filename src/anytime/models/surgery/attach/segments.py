"""The segments of a network between cuts, which hold no weights."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytime.models.surgery.attach.state import Kept, Place, asks_kind, is_carried
from anytime.support.text import quoted

_NAME = re.compile(r"[^\"\\\x00-\x1f]+")  # anything that stays inside double quotes, such as layer-1.0
Stage = Callable[[nn.Module, Any], Any]  # (network, what is alive at one cut) -> what is alive at the next


class Segment:
    """The layers of a network between two cuts: `segment(network, h)` runs them with the network's own weights.

    h is what is alive at a cut: a tensor, or a tuple of tensors and numbers whose first is the one that heads read. It is the
    code that torch.fx generates for its graph, with the network as `self`. It is immutable and holds no weights.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        _check_names(graph)
        code = graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, f"<segment of a network {id(self)}>", "exec"), namespace)
        self.run: Stage = namespace["forward"]

    def __call__(self, network: nn.Module, h: Any) -> Any:
        return self.run(network, h)

    def __reduce__(self) -> tuple[type[Segment], tuple[fx.Graph]]:
        return Segment, (self.graph,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Segment:
        return self


def _check_names(graph: fx.Graph) -> None:
    """Raises ValueError if a name in the graph would end the text that torch.fx writes it into, and become code."""
    for node in graph.nodes:
        names = [str(node.target)] if node.op in ("get_attr", "call_module", "call_method") else []
        wrong = [name for name in names if not _NAME.fullmatch(name) or any(map(iskeyword, name.split(".")))]
        wrong += [key for key in node.kwargs if not key.isidentifier() or iskeyword(key)]
        if wrong:
            raise ValueError(f"a network with a layer or an argument of the name {quoted(wrong[0])} cannot be cut into stages")


def split_graph(graph: fx.Graph, places: Sequence[Place], changed: Collection[fx.Node]) -> list[Segment]:
    """The `len(places) + 1` segments before, between and after the places; run in order, they are the network.

    Values that do not depend on the images (weights, position tables) are computed by every segment that needs them.
    """
    nodes = list(graph.nodes)
    start = next(node for node in nodes if node.op == "placeholder")
    result = nodes[-1].args[0]
    whole = [Place(start, (Kept(start, ()),)), *places, Place(result, (Kept(result, ()),))]
    return [_SegmentWriter(graph, changed).segment(before, after) for before, after in pairwise(whole)]


def _content(table: Any) -> Any:
    """What tells later whether something has been written into a tensor; nothing inside of a compiled graph."""
    if torch.compiler.is_compiling() or not isinstance(table, Tensor):
        return None
    return table.clone() if table.is_inference() else table._version


def _check_unwritten(table: Any, content: Any, part: str) -> None:
    """Raises ValueError if a part has written into a table that other segments make again."""
    if torch.compiler.is_compiling() or content is None:
        return
    same = torch.equal(table, content) if isinstance(content, Tensor) else table._version == content
    if not same:
        raise ValueError(
            f"{part!r} writes into a tensor that the network makes, as it did not when the exits were attached: put the lines "
            "that make this tensor and use it into one submodule"
        )


class _SegmentWriter:
    """Writes one segment."""

    def __init__(self, source: fx.Graph, changed: Collection[fx.Node]) -> None:
        self.source, self.carried = source, is_carried(source, changed)
        self.graph, self.copies = fx.Graph(), dict[fx.Node, fx.Node]()

    def segment(self, before: Place, after: Place) -> Segment:
        h = self.graph.placeholder("h")
        entries = [kept for kept in before.kept if not kept.implied]
        given = [h] if len(entries) == 1 else [self._call(operator.getitem, h, i) for i in range(len(entries))]
        self.main, self.batch = given[0], self.graph.call_method("size", (given[0], 0))
        for kept, value in zip(entries, given, strict=True):
            self.copies[kept.node] = self._unpack(kept, value)
        self.copies |= {kept.node: self.batch for kept in before.kept if kept.implied}
        nodes = list(self.source.nodes)
        self.inside = set(nodes[nodes.index(before.node) + 1 : nodes.index(after.node) + 1])
        for node in nodes:
            if node in self.inside and node in self.carried:
                self._copy(node)
        for kept in after.kept:
            self._copy(kept.node)
        packed = [self._pack(kept) for kept in after.kept if not kept.implied]
        self.graph.output(packed[0] if len(packed) == 1 else tuple(packed))
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op == "call_method" and node.target == "size":
                self.graph.erase_node(node)
        return Segment(self.graph)

    def _copy(self, node: fx.Node) -> None:
        """Copies an operation after the ones it reads that have no copy yet."""
        if node in self.copies:
            return
        if asks_kind(node):  # of the images, of whatever is alive now
            self.copies[node] = self._call(getattr, self.main, node.args[1])
            return
        assert node in self.inside or node not in self.carried, f"{node} is neither kept nor computed here"
        for needed in node.all_input_nodes:
            self._copy(needed)
        tables = [read for read in node.all_input_nodes if self._is_made_again(read)] if node.meta.get("own_code") else []
        noted = [self._call(_content, self.copies[table]) for table in tables]
        self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
        for table, content in zip(tables, noted, strict=True):
            self._call(_check_unwritten, self.copies[table], content, str(node.target))

    def _is_made_again(self, node: fx.Node) -> bool:
        """Whether each segment that needs a tensor makes it, so that nothing may be written into it."""
        return node.op in ("call_function", "call_method") and node not in self.carried and not node.meta["number"]

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    def _pack(self, kept: Kept) -> fx.Node:
        node = self.copies[kept.node]
        if kept.as_it_is or (kept.shape is None and not kept.times):
            return node
        if kept.shape is None:
            return self._call(operator.floordiv, node, self.batch)
        if kept.dim is None:
            sizes: list[Any] = [self.batch, *(-1 for _ in kept.shape)]
            return self.graph.call_method("expand", (self.graph.call_method("unsqueeze", (node, 0)), *sizes))
        if kept.dim:
            node = self.graph.call_method("movedim", (node, kept.dim, 0))
        return node if kept.times == 1 else self.graph.call_method("unflatten", (node, 0, (self.batch, -1)))

    def _unpack(self, kept: Kept, node: fx.Node) -> fx.Node:
        if kept.as_it_is or (kept.shape is None and not kept.times):
            return node
        if kept.shape is None:
            return self._call(operator.mul, node, self.batch)
        if kept.dim is None:
            return self.graph.call_method("select", (node, 0, 0))
        if kept.times != 1:
            node = self.graph.call_method("flatten", (node, 0, 1))
        return self.graph.call_method("movedim", (node, 0, kept.dim)) if kept.dim else node
