"""What an ONNX file of unknown origin may hold, and how much work and memory it may take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from anytime.runtime.engines.graph_memory import GraphOperation, most_held
from anytime.runtime.engines.graph_operators import OPERATORS
from anytime.runtime.engines.graph_sizes import OLDEST, Sizes
from anytime.runtime.engines.graph_wire import bytes_of_structure
from anytime.support.limits import MOST_MACS

MOST_BYTES = 2**31 - 1  # of a file of this format
MOST_NODES = 5_000  # of one graph
MOST_NODES_TOGETHER = 50_000  # of all graphs of an export
MOST_LIVE = 2**30  # values in memory at a time
_STRUCTURE = 4_000_000  # bytes of a file apart from the values of its constants
_FIELDS = 100_000  # of a file, its graph and its constants; those of an operator count as one
_EDGES = 10  # inputs and outputs of an operator, on average
_SMALL = 10_000_000  # values or products that need no reason
_PER_IMAGE_VALUE = 1_000  # values in memory at a time for each value of the images
_GRAPHS = 16  # graphs that hold the most values, because each keeps its memory between calls
_PER_WEIGHT = 100  # products that only constants take part in, for each weight in the file
_COPIES = 16  # values made of constants, for each weight in the file
_PER_MAC = 10  # operations for each MAC in the manifest: activations, norms and copies are no MACs
_PLAIN = 10_000_000_000  # operations of a call that need no reason
_LOOSE = 10_000  # a value is small if that many are no more than an export may hold


class Allowance:
    """What the graphs of one export may take together, for the images of one call. Each that is checked takes its share.

    Args:
        macs: MACs of all steps that the manifest explains.
        values: Values of the images.

    Attributes:
        live: Values that one graph may hold at a time.
    """

    def __init__(self, macs: int, values: int) -> None:
        self.macs, self.values = macs, values
        self.live = min(_SMALL + _PER_IMAGE_VALUE * values, MOST_LIVE)
        self._most_work = min(_PLAIN + _PER_MAC * macs, 2 * max(macs, MOST_MACS))
        self._nodes = self._weights = self._made = self._held = 0
        self._folded, self._work = Counter[str](), Counter[str]()

    def take_nodes(self, count: int, source: str) -> None:
        """Raises ValueError if a graph, or it and those before it, have too many operators."""
        self._nodes += count
        if count > MOST_NODES:
            raise ValueError(f"{source} has {count:,} operators, more than {MOST_NODES:,}")
        if self._nodes > MOST_NODES_TOGETHER:
            raise ValueError(
                f"{source} and the steps before it have {self._nodes:,} operators, more than {MOST_NODES_TOGETHER:,}"
            )

    def take(self, weights: int, made: int, held: int, folded: Counter[str], work: Counter[str], source: str) -> None:
        """Raises ValueError if a graph, or it and those before it, take more than weights, images and MACs explain.

        Args:
            weights: Values of its constants.
            made: Values that the engine makes of them.
            held: Values in memory at a time.
            folded: Operations on constants, for each kind of operator.
            work: Operations of all its uses in one call.
            source: Its name.
        """
        self._weights += weights
        self._made += made
        self._held += held
        self._folded += folded
        self._work += work
        for counted, most, what in (
            (
                self._folded,
                _SMALL + _PER_WEIGHT * self._weights + 10 * self.values,
                "for constants, more than its weights explain",
            ),
            (self._work, self._most_work, "for one call, more than the MACs in the manifest explain"),
        ):
            if counted.total() > most:
                heaviest = counted.most_common(1)[0][0]
                before = "" if counted.total() in (folded.total(), work.total()) else " with the steps before it"
                total = f"{counted.total():,} operations{before}"
                raise ValueError(f"{source} takes {total}, most in {heaviest!a}, {what} ({most:,})")
        if self._made > (most := _SMALL + _COPIES * self._weights):
            raise ValueError(f"{source} makes {self._made:,} values of constants, more than its weights explain ({most:,})")
        if held > self.live:
            raise ValueError(f"{source} holds {held:,} values at a time, more than {self.live:,} for these images")
        if self._held > (most := min(_GRAPHS * self.live, 4 * MOST_LIVE)):
            raise ValueError(
                f"{source} and the steps before it hold {self._held:,} values, more than {most:,} for these images"
            )


def checked_graph(data: bytes, source: str, allowance: Allowance, uses: int = 1) -> bytes:
    """The graph of an ONNX file, written anew from what was checked, so that nothing else reaches the engine.

    Args:
        data: The file.
        source: Its name, for errors.
        allowance: What it may take.
        uses: Steps that compute it.

    Raises:
        ValueError: See `check_graph`; or the graph needs work or memory that weights, images and MACs do not explain.
    """
    import onnx

    given = check_graph(data, source)
    _check_work(given, source, allowance, uses)
    graph = onnx.GraphProto(name="step", initializer=given.graph.initializer)
    graph.input.extend(onnx.ValueInfoProto(name=value.name, type=value.type) for value in given.graph.input)
    graph.output.extend(onnx.ValueInfoProto(name=value.name, type=value.type) for value in given.graph.output)
    graph.node.extend(
        onnx.NodeProto(name=node.name, op_type=node.op_type, input=node.input, output=node.output, attribute=node.attribute)
        for node in given.graph.node
    )
    opset = onnx.helper.make_opsetid("", given.opset_import[0].version)
    made = onnx.ModelProto(ir_version=given.ir_version, opset_import=[opset], graph=graph)
    made.DiscardUnknownFields()
    return made.SerializeToString(deterministic=True)


def check_graph(data: bytes, source: str) -> Any:
    """The content of an ONNX file; ValueError if it is damaged or reaches beyond itself and the operators of exports."""
    import onnx

    if data[4:8] == b"ORTM":
        raise ValueError(f"{source} is a file in ONNX Runtime's own format; an export is in ONNX's")
    try:
        structure = bytes_of_structure(data, _FIELDS)
        model = None if structure is None or structure > _STRUCTURE else onnx.ModelProto.FromString(data)
    except Exception as error:  # of protobuf, whose kinds differ between its versions
        raise ValueError(f"{source} is damaged: it is no ONNX file") from error
    if model is None:
        raise ValueError(
            f"{source} has more than {_FIELDS:,} parts, or {_STRUCTURE:,} bytes besides its constants; no export has so many"
        )
    _check_kinds(model, source)
    if len({tensor.name for tensor in model.graph.initializer}) != len(model.graph.initializer):
        raise ValueError(f"{source} is damaged: two constants have one name")
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            raise ValueError(f"{source} keeps {tensor.name!a} in another file; an export holds all in its own")
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) != _values_in(tensor):
            raise ValueError(
                f"{source} is damaged: it lacks values of the constant {tensor.name!a} of {list(tensor.dims[:9])}"
            )
    return model


def _check_kinds(model: Any, source: str) -> None:
    """Raises ValueError if a graph has parts or operators that no export has."""
    own = ("", "ai.onnx")
    if model.functions:
        raise ValueError(f"{source} defines operators of its own, such as {model.functions[0].name!a}; no export has any")
    for node in model.graph.node:
        if node.domain not in own:
            raise ValueError(f"{source} uses the operator {f'{node.domain}.{node.op_type}'!a}, which is none of ONNX's own")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ValueError(f"{source} uses the operator {node.op_type!a}, which holds a graph of its own; no export has any")
        if any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in node.attribute):
            raise ValueError(f"{source} has a sparse constant in the operator {node.op_type!a}; no export has any")
        if node.op_type not in OPERATORS:
            raise ValueError(f"{source} uses the operator {node.op_type!a}, whose work or memory is not known beforehand")
    if model.graph.sparse_initializer:
        raise ValueError(
            f"{source} has the sparse constant {model.graph.sparse_initializer[0].values.name!a}; no export has any"
        )
    versions = [opset.version for opset in model.opset_import if opset.domain in own]
    if len(versions) != 1 or versions[0] < OLDEST:
        raise ValueError(f"{source} is of the versions {versions[:9]} of ONNX's operators, not of one from {OLDEST} on")


def _tensors(graph: Any) -> Iterator[Any]:
    """All constants of a graph without subgraphs and sparse constants."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors


def _values_in(tensor: Any) -> int:
    """How many values a constant holds; -1 if it is of a kind that exports do not have."""
    import onnx

    kinds = onnx.TensorProto
    width = {
        **{kinds.FLOAT: 4, kinds.DOUBLE: 8, kinds.FLOAT16: 2, kinds.INT64: 8, kinds.INT32: 4},
        **{kinds.INT8: 1, kinds.UINT8: 1, kinds.BOOL: 1},
    }.get(tensor.data_type)
    if width is None:
        return -1
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) // width if len(tensor.raw_data) % width == 0 else -1
    fields = {kinds.FLOAT: tensor.float_data, kinds.DOUBLE: tensor.double_data, kinds.INT64: tensor.int64_data}
    return len(fields.get(tensor.data_type, tensor.int32_data))


def _check_work(model: Any, source: str, allowance: Allowance, uses: int) -> None:
    """Raises ValueError if operators take more operations, or values more memory, than what is there explains."""
    graph = model.graph
    allowance.take_nodes(len(graph.node), source)
    if sum(len(node.input) + len(node.output) for node in graph.node) > _EDGES * MOST_NODES:
        raise ValueError(f"{source} has operators with more than {_EDGES * MOST_NODES:,} inputs and outputs")
    sizes = Sizes(model, source, allowance.live)
    constant = {tensor.name for tensor in graph.initializer}
    made, folded, work = 0, Counter[str](), Counter[str]()
    operations = []
    for node in graph.node:
        cost = sizes.add(node)
        results = {name: math.prod(sizes.shapes[name]) for name in node.output if name}
        work[node.op_type] += uses * cost.work
        if any(name in constant for name in node.input[1:]):
            made += cost.packed
        if node.op_type in ("Shape", "Size") or constant.issuperset(filter(None, node.input)):
            constant.update(results)
            folded[node.op_type] += cost.work
            made += sum(results.values())
            results = {}
        operations.append(GraphOperation([*filter(None, node.input)], results, cost.scratch))
    for value in graph.output:
        claimed = tuple(size.dim_value if size.HasField("dim_value") else 1 for size in value.type.tensor_type.shape.dim)
        if sizes.shapes.get(value.name) != claimed:
            raise ValueError(
                f"{source} says that {value.name!a} has the shape {list(claimed[:9])}, which is not what it computes"
            )
    held = most_held(operations, {value.name for value in graph.output}, allowance.live // _LOOSE)
    weights = sum(math.prod(tensor.dims) for tensor in _tensors(graph))
    allowance.take(weights, made, held, folded, work, source)
