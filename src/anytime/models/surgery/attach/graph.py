"""A network's forward as one graph of whole layers, and the parts it can be cut into. No part holds weights of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy, TraceError

Stage = Callable[[nn.Module, Tensor], Tensor]  # (network, tensor at one cut) -> tensor at the next


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Modes, buffers and random numbers are afterwards as they were; inside, no gradients are kept."""
    modes = {part: part.training for part in module.modules()}
    buffers = [(part, name, b, b.clone()) for part in modes for name, b in part._buffers.items() if b is not None]
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            for part, name, buffer, saved in buffers:
                buffer.copy_(saved)
                part._buffers[name] = buffer


class _Mode:
    """Stands for a module's `training` while it is traced: an argument stays `self.training`, a question gets `value`."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return self.value


def _contexts() -> tuple[bool, ...]:
    """Whether gradients are kept, and autocast."""
    return (torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")))


class _UndecidedError(Exception):
    """The network asks for the truth of a traced value."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__("it decides by its input")
        self.node = node


class _Tracer(fx.Tracer):
    """Traces one forward; the modules it calls stay whole. Questions (`if height > 7`) get the answers given, in order."""

    proxy_buffer_attributes = True

    def __init__(self, answers: Sequence[bool]) -> None:
        super().__init__(autowrap_modules=(math,))
        self.answers = iter(answers)
        self.contexts = _contexts()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self.contexts:  # a graph holds calls, and not the contexts around them
            raise TraceError("it changes in forward whether gradients are kept, or autocast; a module of its own may do so")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]  # all other arguments: their defaults

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _Mode):
            return self.create_node("get_attr", "training", (), {})
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            stored = a in self.tensor_attrs or any(a is buffer for buffer in self.root.buffers())
            if not stored:  # torch.fx would write it into the network, where it stays on its device for ever
                raise TraceError("it makes a constant tensor in forward, which must be a buffer")
        return super().create_arg(a)

    def to_bool(self, obj: Proxy) -> bool:
        for answer in self.answers:
            return answer
        raise _UndecidedError(obj.node)


def _varying(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the graph's input."""
    varying: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return varying


def _of_shapes(graph: fx.Graph, varying: set[fx.Node]) -> set[fx.Node]:
    """The nodes that know the input by shapes alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        asks = node.target in ("size", "dim", "numel") if node.op == "call_method" else node.target is getattr
        if node in varying and node.op != "placeholder":
            inputs = varying.intersection(node.all_input_nodes)
            if asks or inputs <= found:
                found.add(node)
    return found


def bottlenecks(graph: fx.Graph) -> list[fx.Node]:
    """The input, all nodes after which nothing else that depends on the input is needed any more, in order, the result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    varying, furthest, found = _varying(graph), -1, []  # furthest: the last use of anything computed so far
    for node in graph.nodes:
        if node in varying and node.users:
            if furthest <= order[node]:
                found.append(node)
            furthest = max(furthest, *(order[user] for user in node.users))
    return found


def _once(module: nn.Module, training: bool, answers: Sequence[bool]) -> fx.Graph:
    mode = module.training
    module.__dict__["training"] = _Mode(training)
    try:
        with torch.enable_grad():
            return _Tracer(answers).trace(module)
    finally:
        module.training = mode


def _answer(module: nn.Module, node: fx.Node, x: Tensor) -> bool:
    graph = node.graph
    graph.output(node)
    value = fx.Interpreter(module, graph=graph).run(x)
    if isinstance(value, Tensor):
        raise TraceError(f"it decides by the values of a tensor ({node.format_node()})")
    return bool(value)


def _decided(module: nn.Module, training: bool, x: Tensor | None) -> tuple[fx.Graph, bool]:
    """The graph in one mode, and whether any question hung on the input."""
    answers: list[bool] = []
    fixed = False
    while True:
        try:
            return _once(module, training, answers), fixed
        except _UndecidedError as question:
            if x is None:
                raise
            fixed = fixed or question.node in _varying(question.node.graph)
            answers.append(_answer(module, question.node, x))


def trace(module: nn.Module, x: Tensor | None = None) -> tuple[fx.Graph, bool]:
    """The graph of a module's forward, the modules it calls being single nodes; and whether the size of x decided anything.

    The graph holds in train and eval mode: `self.training` as an argument stays, a forward that differs otherwise is refused.

    Args:
        module: Any module whose forward takes one tensor (other arguments have defaults).
        x: An example that answers questions on shapes; None: such questions are refused.

    Raises:
        TraceError: The forward cannot be written as a graph. Anything else that it raises, too.
    """
    (train, _), (evaluation, fixed) = (_decided(module, training, x) for training in (True, False))
    if train.python_code("self").src != evaluation.python_code("self").src:
        raise TraceError("it does something else in train mode than in eval mode")
    result = evaluation.output_node().args[0]
    if not isinstance(result, fx.Node) or result.op == "placeholder":
        raise TraceError("it does not return one new tensor")
    return evaluation, fixed


class Network(NamedTuple):
    """A network's forward with its containers opened.

    Attributes:
        graph: Calls of layers and functions, in order; names are relative to the network.
        chain: The input, all places where one tensor alone is alive, the result.
        names: The names of each of these, from the layer itself to the outermost container that ends with it.
        fixed_size: Whether the forward was decided by the size of the example, so that other sizes may go another way.
    """

    graph: fx.Graph
    chain: tuple[fx.Node, ...]
    names: dict[fx.Node, tuple[str, ...]]
    fixed_size: bool


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _weighs(module: nn.Module) -> bool:
    """Whether a module multiplies by weights (scales and shifts of a norm do not count)."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


class _Opener:
    """Opens the containers of a network as far as that gives places to cut between layers with weights.

    A block with a shortcut or branches stays whole, and with it all blocks of its class: exits belong between blocks.
    """

    def __init__(self) -> None:
        self.traced: dict[nn.Module, fx.Graph | None] = {}
        self.whole: set[type[nn.Module]] = set()

    def _trace(self, module: nn.Module) -> fx.Graph | None:
        if module not in self.traced:
            try:
                self.traced[module] = trace(module)[0]
            except Exception:  # whatever a forward says to a proxy: it stays whole
                self.traced[module] = None
        return self.traced[module]

    def opened(self, parent: nn.Module, node: fx.Node, chain: Sequence[fx.Node]) -> nn.Module | None:
        """The module that a node calls, if it is to be opened."""
        if node.op != "call_module" or node.kwargs or len(node.args) != 1 or node not in chain or node.args[0] not in chain:
            return None
        module = parent.get_submodule(str(node.target))
        built_in = type(module).__module__.startswith("torch.nn.") and not _is_sequential(module)
        if built_in or type(module) in self.whole or module._forward_hooks or module._forward_pre_hooks:
            return None
        return module if self._places(module) > 0 else None

    def _places(self, module: nn.Module) -> int:
        """Places to cut inside, with weights before and after."""
        graph = self._trace(module)
        chain = [] if graph is None else bottlenecks(graph)
        varying = set() if graph is None else _varying(graph)
        if graph is None or any(n.users and n not in chain for n in varying - _of_shapes(graph, varying)):
            self.whole.add(type(module))
            return 0
        heavy = [i for i, n in enumerate(chain) if n.op == "call_module" and _weighs(module.get_submodule(str(n.target)))]
        inside = [self.opened(module, node, chain) for node in chain]
        own = heavy[-1] - heavy[0] if heavy else 0
        return own + sum(self._places(child) for child in inside if child is not None)

    def copy(
        self, module: nn.Module, graph: fx.Graph, prefix: str, into: fx.Graph, x: fx.Node, names: dict[fx.Node, list[str]]
    ) -> fx.Node:
        """Appends a module's graph to `into`, its modules opened; returns the node of its result."""
        copies, chain = {node: x for node in graph.nodes if node.op == "placeholder"}, bottlenecks(graph)
        for node in graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            child = self.opened(module, node, chain)
            inner = self._trace(child) if child is not None else None
            if child is not None and inner is not None:
                name = f"{prefix}{node.target}"
                copies[node] = self.copy(child, inner, f"{name}.", into, copies[node.args[0]], names)
                names[copies[node]].append(name)
                continue
            copied = copies[node] = into.node_copy(node, copies.__getitem__)
            if node.op in ("call_module", "get_attr"):
                copied.target = f"{prefix}{node.target}"
            names[copied] = [f"{prefix}{node.target if node.op == 'call_module' else node.name}"]
        return copies[graph.output_node().args[0]]


def read_network(backbone: nn.Module, x: Tensor) -> Network:
    """The graph of a network and the places where it can be cut.

    Args:
        backbone: The network; it is left as it is.
        x: Example images `[B, C, H, W]`; they answer what forward asks of shapes.

    Raises:
        ValueError: Its forward cannot be written as a graph.
    """
    try:
        with preserved(backbone):
            graph, fixed = trace(backbone.eval(), x)
    except Exception as error:
        raise ValueError(
            f"the forward of {type(backbone).__name__} cannot be traced: {' '.join(str(error).split()) or repr(error)}; give "
            "the network as a list of modules, or its parts as stages=[f1, f2, ...], each a function f(backbone, h) -> h"
        ) from error
    opener = _Opener()
    while True:
        whole = len(opener.whole)
        flat, names = fx.Graph(), dict[fx.Node, list[str]]()
        flat.output(opener.copy(backbone, graph, "", flat, flat.placeholder("x"), names))
        if len(opener.whole) == whole:
            break
    chain = bottlenecks(flat)
    unique = _unique(names)
    return Network(flat, tuple(chain), {node: unique[node] for node in chain[1:]}, fixed)


def _unique(names: dict[fx.Node, list[str]]) -> dict[fx.Node, tuple[str, ...]]:
    """A layer that is called again is known as `name:2`."""
    uses: dict[str, int] = {}
    unique = {}
    for node, candidates in names.items():
        for name in candidates:
            uses[name] = uses.get(name, 0) + 1
        unique[node] = tuple(name if uses[name] == 1 else f"{name}:{uses[name]}" for name in candidates)
    return unique


class Part:
    """The layers of a network between two cuts: `part(network, h)` runs them with the network's own weights.

    It is the code that torch.fx writes for its graph, with the network as `self`. It is never changed and holds no weights.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        code = graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, f"<part of a network {id(self)}>", "exec"), namespace)
        self.run: Stage = namespace["forward"]

    def __call__(self, network: nn.Module, h: Tensor) -> Tensor:
        return self.run(network, h)

    def __reduce__(self) -> tuple[type[Part], tuple[fx.Graph]]:
        return Part, (self.graph,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Part:
        return self


def split(network: Network, cuts: Sequence[fx.Node]) -> list[Part]:
    """The parts before, between and after the cuts, `len(cuts) + 1` of them: one after the other they are the network.

    What does not depend on the input (weights, position tables) is read by every part that needs it.
    """
    nodes, varying, parts = list(network.graph.nodes), _varying(network.graph), []
    for start, end in pairwise([network.chain[0], *cuts, network.chain[-1]]):
        graph = fx.Graph()
        copies = {start: graph.placeholder("h")}
        for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
            if node in varying:
                _copy(node, graph, copies)
        graph.output(copies[end])
        parts.append(Part(graph))
    return parts


def _copy(node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> None:
    for needed in node.all_input_nodes:
        if needed not in copies:
            _copy(needed, graph, copies)
    copies[node] = graph.node_copy(node, copies.__getitem__)
