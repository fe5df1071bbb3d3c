"""A network's forward as one flat graph of whole layers, and the segments between cuts, which hold no weights."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy, TraceError

from anytime.model import eval_mode

Stage = Callable[[nn.Module, Tensor], Tensor]  # (network, tensor at one cut) -> tensor at the next


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes, buffers and random states are as they were."""
    buffers = [(m, name, b, b.clone()) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.is_cuda})
    with eval_mode(module), torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for owner, name, buffer, saved in buffers:
                owner._buffers[name] = buffer.copy_(saved)


class _TrainingFlag(int):
    """Stands for `self.training` in a trace: an argument stays symbolic, a condition takes the flag's truth."""


def _contexts() -> tuple[bool, ...]:
    """Whether gradients are recorded, and whether autocast is on."""
    return (torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")))


class _UndecidedError(Exception):
    """The forward branches on a traced value, the node that is the error's argument."""


class _LeafTracer(fx.Tracer):
    """Traces one forward with every module it calls as a leaf. Branches (`if height > 7`) take `answers` in order."""

    proxy_buffer_attributes = True

    def __init__(self, answers: Sequence[bool]) -> None:
        super().__init__(autowrap_modules=(math,))
        self.answers = iter(answers)
        self.contexts = _contexts()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self.contexts:  # a graph holds calls but not the contexts around them
            raise TraceError("it switches gradients or autocast on or off in forward, which only a submodule may do")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]  # other arguments keep their defaults

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _TrainingFlag):
            return self.create_node("get_attr", "training", (), {})
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            stored = a in self.tensor_attrs or any(a is buffer for buffer in self.root.buffers())
            if not stored:  # torch.fx would store it in the network, where it would never change its device
                raise TraceError("it makes a constant tensor in forward, which must be a buffer")
        return super().create_arg(a)

    def to_bool(self, obj: Proxy) -> bool:
        for answer in self.answers:
            return answer
        raise _UndecidedError(obj.node)


def _dependent(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the graph's input."""
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not dependent.isdisjoint(node.all_input_nodes):
            dependent.add(node)
    return dependent


def _shape_only(graph: fx.Graph, dependent: set[fx.Node]) -> set[fx.Node]:
    """The dependent nodes that depend on the input's shape only."""
    shapes: set[fx.Node] = set()
    for node in graph.nodes:
        asks = node.target in ("size", "dim", "numel") if node.op == "call_method" else node.target is getattr
        if node in dependent and node.op != "placeholder" and (asks or dependent.intersection(node.all_input_nodes) <= shapes):
            shapes.add(node)
    return shapes


_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.neg, int}


def _batch_source(node: fx.Node) -> fx.Node | None:
    """The tensor whose first dimension a node asks: x in `x.size(0)`, `x.size()[0]` and `x.shape[0]`; else None."""
    if node.op == "call_method" and node.target == "size":
        return node.args[0] if (*node.args[1:], *node.kwargs.values()) == (0,) else None  # type: ignore[return-value]
    if node.target is operator.getitem and node.args[1] == 0 and isinstance(node.args[0], fx.Node) and _is_shape(node.args[0]):
        return node.args[0].args[0]  # type: ignore[return-value]
    return None


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and str(node.args[1]) == "shape"


def _asked(graph: fx.Graph) -> set[fx.Node]:
    """The tensors whose first dimension the graph asks."""
    return {source for node in graph.nodes if (source := _batch_source(node)) is not None}


def _batch_numbers(graph: fx.Graph, sources: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the input's batch size only: what `sources` have in dimension 0, and numbers made of that."""
    dependent, numbers = _dependent(graph), set[fx.Node]()
    for node in graph.nodes:
        made_of = dependent.intersection(node.all_input_nodes)
        if _batch_source(node) in sources or (node.target in _ARITHMETIC and made_of and made_of <= numbers):
            numbers.add(node)
    return numbers | {node for node in graph.nodes if node.users and _is_shape(node) and numbers.issuperset(node.users)}


def bottlenecks(graph: fx.Graph, batch: Collection[fx.Node] | None = None) -> list[fx.Node]:
    """In order: the input, each node after which no other input-dependent value is needed, the result.

    Args:
        graph: The graph.
        batch: Numbers that depend on the batch size only: they can be computed again from any later tensor. None: those
            that any tensor's first dimension gives.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    batch = _batch_numbers(graph, _asked(graph)) if batch is None else batch
    dependent, last_use, places = _dependent(graph), -1, []  # last use of anything computed so far
    for node in graph.nodes:
        users = [user for user in node.users if user not in batch]
        if node in dependent and node not in batch and users:
            if last_use <= order[node]:
                places.append(node)
            last_use = max(last_use, *(order[user] for user in users))
    return places


def _trace_mode(module: nn.Module, training: bool, x: Tensor | None) -> tuple[fx.Graph, bool]:
    """The graph in train or eval mode, and whether any branch depended on the input."""
    answers: list[bool] = []
    fixed, mode = False, module.training
    while True:
        module.__dict__["training"] = _TrainingFlag(training)
        try:
            with torch.enable_grad():
                return _LeafTracer(answers).trace(module), fixed
        except _UndecidedError as error:
            if x is None:
                raise
            node: fx.Node = error.args[0]
        finally:
            module.training = mode
        fixed = fixed or node in _dependent(node.graph)
        node.graph.output(node)
        value = fx.Interpreter(module, graph=node.graph).run(x)
        if isinstance(value, Tensor):
            raise TraceError(f"it decides by the values of a tensor ({node.format_node()})")
        answers.append(bool(value))


def trace_graph(module: nn.Module, x: Tensor | None = None) -> tuple[fx.Graph, bool]:
    """The graph of a module's forward, each submodule call a single node; and whether the size of x decided a branch.

    The graph is valid in train and eval mode: `self.training` stays symbolic as an argument.

    Args:
        module: Any module whose forward takes one tensor (other arguments have defaults).
        x: An example that decides branches on shapes; None: such branches raise an error.

    Raises:
        TraceError: The forward cannot be written as a graph, or differs between the modes. Its own errors propagate.
    """
    (train, _), (evaluation, fixed) = (_trace_mode(module, training, x) for training in (True, False))
    if train.python_code("self").src != evaluation.python_code("self").src:
        raise TraceError("it does something else in train mode than in eval mode")
    result = evaluation.output_node().args[0]
    if not isinstance(result, fx.Node) or result.op == "placeholder":
        raise TraceError("it does not return one new tensor")
    return evaluation, fixed


class FlatGraph(NamedTuple):
    """A network's forward with its containers inlined.

    Attributes:
        graph: Calls of layers and functions, in order; targets are relative to the network.
        chain: The input, every place where only one tensor is alive, the result.
        names: The names of each place but the input, from the layer itself to the outermost container that ends there.
        fixed_size: Whether the example's size decided a branch, so that other sizes may take another one.
        batch: Numbers that depend on the batch size only; every segment computes them from its own input.
    """

    graph: fx.Graph
    chain: tuple[fx.Node, ...]
    names: dict[fx.Node, tuple[str, ...]]
    fixed_size: bool
    batch: frozenset[fx.Node] = frozenset()


def _has_weights(module: nn.Module) -> bool:
    """Whether a module multiplies by weights (scales and shifts of a norm do not count)."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


class _Inliner:
    """Inlines the containers of a network as long as that yields cuts between layers with weights.

    A block with a shortcut or branches stays whole, and so do all blocks of its class: exits belong between blocks.
    """

    def __init__(self) -> None:
        self.traced: dict[nn.Module, fx.Graph | None] = {}
        self.whole: set[type[nn.Module]] = set()

    def inline(self, module: nn.Module, graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, list[str]]]:
        """The flat graph, and the names of its nodes; the second call of a layer is named `name:2`."""
        count = -1
        while count != len(self.whole):  # again if a class turned out to stay whole
            count, self.uses = len(self.whole), Counter[str]()
            self.flat, self.names = fx.Graph(), dict[fx.Node, list[str]]()
            self.flat.output(self._copy(module, graph, "", self.flat.placeholder("x")))
        return self.flat, self.names

    def _copy(self, module: nn.Module, graph: fx.Graph, prefix: str, x: fx.Node) -> fx.Node:
        """Appends a module's graph to the flat one with its submodules inlined; returns the node of its result."""
        copies, chain = {node: x for node in graph.nodes if node.op == "placeholder"}, bottlenecks(graph)
        for node in graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            name, child = f"{prefix}{node.target}", self._inlined(module, node, chain)
            if child is not None and (inner := self._trace(child)) is not None:
                copies[node] = self._copy(child, inner, f"{name}.", copies[node.args[0]])
            else:
                copies[node] = self.flat.node_copy(node, copies.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    copies[node].target = name
            if node.op != "call_module":
                name = f"{prefix}{node.name}"
            self.uses[name] += 1
            unique = name if self.uses[name] == 1 else f"{name}:{self.uses[name]}"
            self.names.setdefault(copies[node], []).append(unique)
        return copies[graph.output_node().args[0]]

    def _inlined(self, parent: nn.Module, node: fx.Node, chain: Sequence[fx.Node]) -> nn.Module | None:
        """The module that a node calls, if it should be inlined."""
        if node.op != "call_module" or node.kwargs or len(node.args) != 1 or node not in chain or node.args[0] not in chain:
            return None
        module = parent.get_submodule(str(node.target))
        kind = type(module)
        built_in = kind.__module__.startswith("torch.nn.") and kind is not nn.Sequential
        if built_in or kind in self.whole or module._forward_hooks or module._forward_pre_hooks:
            return None
        return module if self._count_cuts(module) > 0 else None

    def _count_cuts(self, module: nn.Module) -> int:
        """Number of cuts inside a module that have weights before and after them."""
        graph = self._trace(module)
        if graph is not None:
            chain, dependent = bottlenecks(graph), _dependent(graph)
        if graph is None or any(n.users and n not in chain for n in dependent - _shape_only(graph, dependent)):
            self.whole.add(type(module))
            return 0
        heavy = [i for i, n in enumerate(chain) if n.op == "call_module" and _has_weights(module.get_submodule(str(n.target)))]
        own = heavy[-1] - heavy[0] if heavy else 0
        children = [self._inlined(module, node, chain) for node in chain]
        return own + sum(self._count_cuts(child) for child in children if child is not None)

    def _trace(self, module: nn.Module) -> fx.Graph | None:
        if module not in self.traced:
            try:
                self.traced[module] = trace_graph(module)[0]
            except Exception:  # a forward may raise anything on a proxy; the module then stays whole
                self.traced[module] = None
        return self.traced[module]


def flatten_network(backbone: nn.Module, x: Tensor) -> FlatGraph:
    """The flat graph of a network, which is left unchanged.

    Args:
        backbone: The network.
        x: Example images `[B, C, H, W]`, which decide branches on shapes.

    Raises:
        ValueError: Its forward cannot be written as a graph.
    """
    try:
        with preserved(backbone):
            graph, fixed = trace_graph(backbone, x)
    except Exception as error:
        raise ValueError(
            f"the forward of {type(backbone).__name__} cannot be traced: {' '.join(str(error).split()) or repr(error)}; give "
            "the network as a list of modules, or its parts as stages=[f1, f2, ...], each a function f(backbone, h) -> h"
        ) from error
    flat, names = _Inliner().inline(backbone, graph)
    batch = _batch_numbers(flat, _batch_first(backbone, flat, x))
    chain = bottlenecks(flat, batch)
    return FlatGraph(flat, tuple(chain), {node: tuple(names[node]) for node in chain[1:]}, fixed, frozenset(batch))


def _batch_first(backbone: nn.Module, graph: fx.Graph, x: Tensor) -> set[fx.Node]:
    """The tensors whose first dimension the network asks, if that is the batch size: tried with two batch sizes."""
    asked = _asked(graph)
    for images in (x, torch.cat([x, x[:1]])) if asked else ():
        with preserved(backbone):
            runner = fx.Interpreter(backbone, garbage_collect_values=False, graph=graph)
            runner.run(images)
        asked = {node for node in asked if len(runner.env[node]) == len(images)}
    return asked


class Segment:
    """The layers of a network between two cuts: `segment(network, h)` runs them with the network's own weights.

    It is the code that torch.fx generates for its graph, with the network as `self`. It is immutable and holds no weights.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        code = graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, f"<segment of a network {id(self)}>", "exec"), namespace)
        self.run: Stage = namespace["forward"]

    def __call__(self, network: nn.Module, h: Tensor) -> Tensor:
        return self.run(network, h)

    def __reduce__(self) -> tuple[type[Segment], tuple[fx.Graph]]:
        return Segment, (self.graph,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Segment:
        return self


def split_graph(flat: FlatGraph, cuts: Sequence[fx.Node]) -> list[Segment]:
    """The `len(cuts) + 1` segments before, between and after the cuts; run in order, they are the network.

    Values that do not depend on the input (weights, position tables) are read by every segment that needs them; the batch size
    is that of the segment's own input.
    """
    nodes, dependent, segments = list(flat.graph.nodes), _dependent(flat.graph), []
    for start, end in pairwise([flat.chain[0], *cuts, flat.chain[-1]]):
        graph = fx.Graph()
        copies = {start: graph.placeholder("h")}
        for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
            if node in dependent and node not in flat.batch:
                _copy_node(node, graph, copies, flat.batch, copies[start])
        graph.output(copies[end])
        segments.append(Segment(graph))
    return segments


def _copy_node(node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, fx.Node], batch: frozenset[fx.Node], h: fx.Node) -> None:
    """Copies a node after the nodes it reads that have no copy yet; the batch size is that of `h`."""
    if node in batch and _batch_source(node) is not None:
        copies[node] = graph.call_method("size", (h, 0))
        return
    for needed in node.all_input_nodes:
        if needed not in copies:
            _copy_node(needed, graph, copies, batch, h)
    copies[node] = graph.node_copy(node, copies.__getitem__)
