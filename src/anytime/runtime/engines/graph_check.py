"""What an ONNX file of unknown origin may hold, and how much work and memory it may take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

MOST_NODES = 20_000
MOST_LIVE = 2**30  # values in memory at a time
_SMALL = 10_000_000  # values or products that need no reason
_PER_IMAGE_VALUE = 1_000  # values in memory at a time for each value of the images
_PER_WEIGHT = 100  # products that only constants take part in, for each weight in the file
_PER_MAC = 10  # operations for each MAC in the manifest: activations, norms and copies are no MACs
_PLAIN = 10_000_000_000  # operations of a step that need no reason
_PACKED = 4  # most values in a byte
_SHAPES = 1_000  # elements of a constant that can be a shape
_AXIS = "first axis"
_UNKNOWN_WORK = frozenset(
    ("Attention", "Det", "DFT", "STFT", "MelWeightMatrix", "MaxRoiPool", "RoiAlign", "NonMaxSuppression", "Multinomial")
) | {"ImageDecoder", "TfIdfVectorizer"}
_WINDOWS = frozenset(("MaxPool", "AveragePool", "LpPool"))
_WEIGHTS = {"Conv": 1, "ConvInteger": 1, "DeformConv": 1, "ConvTranspose": 1, "QLinearConv": 3}  # their place in the inputs
_PRODUCTS = frozenset(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"))
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))

Shapes = Mapping[str, Sequence[int]]


def checked_graph(data: bytes, source: str, macs: int, values: int) -> bytes:
    """The graph of an ONNX file, written anew from what was checked, so that nothing else reaches the engine.

    Args:
        data: The file.
        source: Its name, for errors.
        macs: MACs that the manifest explains, for the images of one call.
        values: Values of the images of one call.

    Raises:
        ValueError: See `check_graph`; or the graph needs work or memory that weights, images and MACs do not explain.
    """
    import onnx

    given = check_graph(data, source)
    del given.graph.value_info[:]  # shapes that the file only claims
    _check_work(given.graph, _shapes(given, source), source, macs, values)
    made = onnx.ModelProto(ir_version=given.ir_version, opset_import=given.opset_import, graph=given.graph)
    made.DiscardUnknownFields()
    return made.SerializeToString(deterministic=True)


def check_graph(data: bytes, source: str) -> Any:
    """The content of an ONNX file; ValueError if it is damaged or reaches beyond itself and ONNX's own operators."""
    import onnx

    if data[4:8] == b"ORTM":
        raise ValueError(f"{source} is a file in ONNX Runtime's own format; an export is in ONNX's")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # of protobuf, whose kinds differ between its versions
        raise ValueError(f"{source} is damaged: it is no ONNX file") from error
    if model.functions:
        raise ValueError(f"{source} defines operators of its own, such as {model.functions[0].name!a}; no export has any")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"{source} uses the operator {f'{node.domain}.{node.op_type}'!a}, which is none of ONNX's own")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ValueError(f"{source} uses the operator {node.op_type!a}, which holds a graph of its own; no export has any")
        if any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in node.attribute):
            raise ValueError(f"{source} has a sparse constant in the operator {node.op_type!a}; no export has any")
    if model.graph.sparse_initializer:
        raise ValueError(
            f"{source} has the sparse constant {model.graph.sparse_initializer[0].values.name!a}; no export has any"
        )
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            raise ValueError(f"{source} keeps {tensor.name!a} in another file; an export holds all in its own")
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > _PACKED * tensor.ByteSize():
            raise ValueError(f"{source} is damaged: it lacks values of the constant {tensor.name!a} of {list(tensor.dims)}")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """All constants of a graph without subgraphs and sparse constants."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors


def _shapes(model: Any, source: str) -> dict[str, tuple[int, ...]]:
    """The shape of every value for a batch of one, computed by ONNX from inputs and constants without any claim of the file.

    Raises:
        ValueError: A value has no shape that is known beforehand, is text, or has another shape than the file says.
    """
    import onnx

    if len(model.graph.node) > MOST_NODES:
        raise ValueError(f"{source} has {len(model.graph.node):,} operators, more than {MOST_NODES:,}")
    known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    scalars = [tensor for tensor in model.graph.initializer if not tensor.dims and tensor.data_type == onnx.TensorProto.INT64]
    try:
        ones = {tensor.name for tensor in scalars if onnx.numpy_helper.to_array(tensor) == 1}
    except ValueError as error:
        raise ValueError(f"{source} is damaged: a constant has too few bytes") from error
    nodes = [part for node in model.graph.node for part in (_spelled_out(node, ones) if node.op_type == "Range" else [node])]
    outline = onnx.GraphProto(name="outline", node=nodes, input=model.graph.input)
    outline.initializer.append(onnx.helper.make_tensor(_AXIS, onnx.TensorProto.INT64, [1], [0]))
    for value in outline.input:
        for size in value.type.tensor_type.shape.dim:
            if not size.HasField("dim_value"):
                size.dim_value = 1
    there = {value.name for value in outline.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SHAPES:
            outline.initializer.append(tensor)
        elif tensor.name not in there:
            outline.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    outline.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    try:
        whole = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=outline)
        found = onnx.shape_inference.infer_shapes(whole, data_prop=True).graph
    except Exception as error:  # of ONNX's own kinds
        raise ValueError(f"{source} is damaged: ONNX cannot tell the sizes of its values") from error
    for value in (*found.input, *found.value_info, *found.output):
        kind = value.type.tensor_type
        sizes = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
        if kind.HasField("shape") and kind.elem_type not in (0, onnx.TensorProto.STRING) and min(sizes, default=0) >= 0:
            known.setdefault(value.name, sizes)
    for node in model.graph.node:
        if unknown := [name for name in (*node.input, *node.output) if name and name not in known]:
            raise ValueError(
                f"{source} uses the operator {node.op_type!a} with {unknown[0]!a}, whose size is not known beforehand"
            )
    for value in model.graph.output:
        claimed = tuple(size.dim_value if size.HasField("dim_value") else 1 for size in value.type.tensor_type.shape.dim)
        if known.get(value.name) != claimed:
            raise ValueError(f"{source} says that {value.name!a} has the shape {list(claimed)}, which is not what it computes")
    return known


def _spelled_out(node: Any, ones: set[str]) -> list[Any]:
    """`Range(a, b, 1)` as operators of the same shape, which ONNX also knows if b is computed: zeros of the length b - a."""
    import onnx

    if len(node.input) != 3 or len(node.output) != 1 or node.input[2] not in ones:
        return [node]
    difference, length = token_hex(16), token_hex(16)  # no name of the file
    zero = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [0])
    return [
        onnx.helper.make_node("Sub", [node.input[1], node.input[0]], [difference]),
        onnx.helper.make_node("Unsqueeze", [difference, _AXIS], [length]),
        onnx.helper.make_node("ConstantOfShape", [length], [*node.output], value=zero),
    ]


def _check_work(graph: Any, shapes: Shapes, source: str, macs: int, values: int) -> None:
    """Raises ValueError if operators take more operations, or values more memory, than what is there explains."""
    weights = sum(math.prod(tensor.dims) for tensor in _tensors(graph))
    live = min(_SMALL + _PER_IMAGE_VALUE * values, MOST_LIVE)
    constant = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    folded, work = Counter[str](), Counter[str]()
    for node in graph.node:
        if node.op_type in _UNKNOWN_WORK:
            raise ValueError(f"{source} uses the operator {node.op_type!a}, whose work is not known beforehand")
        for name in filter(None, node.output):
            if math.prod(shapes[name]) > live:
                size = f"{math.prod(shapes[name]):,} values"
                raise ValueError(
                    f"{source} makes {size} by the operator {node.op_type!a}, more than {live:,} for these images"
                )
        try:
            work[node.op_type] += (cost := _work(node, shapes))
        except (LookupError, ValueError) as error:
            raise ValueError(f"{source} is damaged: inputs of the operator {node.op_type!a} do not fit") from error
        if node.op_type in ("Shape", "Size") or constant.issuperset(filter(None, node.input)):
            constant.update(node.output)
            folded[node.op_type] += cost
    for counted, most, what in (
        (folded, _SMALL + _PER_WEIGHT * weights + 10 * values, "for constants, more than its weights explain"),
        (work, _PLAIN + _PER_MAC * macs, "for one call, more than the MACs in the manifest explain"),
    ):
        if counted.total() > most:
            heaviest = counted.most_common(1)[0][0]
            raise ValueError(f"{source} takes {counted.total():,} operations, most in {heaviest!a}, {what} ({most:,})")
    if (peak := _peak(graph, shapes, constant)) > live:
        raise ValueError(f"{source} holds {peak:,} values at a time, more than {live:,} for these images")


def _peak(graph: Any, shapes: Shapes, constant: set[str]) -> int:
    """The most values in memory at a time, without those of constants, if each is freed after its last use."""
    last = {name: place for place, node in enumerate(graph.node) for name in (*node.output, *node.input)}
    last |= {value.name: len(graph.node) for value in graph.output}
    ends = Counter[int]()
    now = most = 0
    for place, node in enumerate(graph.node):
        for name in {*node.output} - {""} - constant:
            size = math.prod(shapes[name])
            now += size
            ends[last[name]] += size
        most = max(most, now)
        now -= ends[place]
    return most


def _work(node: Any, shapes: Shapes) -> int:
    """Products of an operator, or what it reads and writes if it only looks at each value."""
    given, made = ([shapes.get(name, ()) for name in names] for names in (node.input, node.output))
    attributes = {attribute.name: attribute for attribute in node.attribute}
    first, result = math.prod(given[0]) if given else 0, math.prod(made[0])
    moved = sum(map(math.prod, (*given, *made)))
    if node.op_type in _WEIGHTS:
        per_value = math.prod(given[_WEIGHTS[node.op_type]][1:])
        return moved + (first if node.op_type == "ConvTranspose" else result) * per_value
    if node.op_type in _PRODUCTS:
        turned = "transA" in attributes and attributes["transA"].i
        return moved + result * given[0][0 if turned else -1]
    if node.op_type in _RECURRENT:
        return moved + given[0][0] * given[0][1] * (math.prod(given[1]) + math.prod(given[2]))
    if node.op_type in _WINDOWS:
        return moved + result * min(math.prod(attributes["kernel_shape"].ints), math.prod(given[0][2:]))
    if node.op_type == "LRN":
        return moved + result * min(attributes["size"].i, given[0][1])
    if node.op_type == "Einsum":
        return moved + math.prod(_labels(attributes["equation"].s.decode(), given).values())
    return moved


def _labels(equation: str, given: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of each letter of an Einsum; those of an ellipsis count by their place from its end."""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), given, strict=True):
        before, dots, after = term.partition("...")
        hidden = [f".{place}" for place in range(len(shape) - len(before) - len(after), 0, -1)] if dots else []
        for label, size in zip([*before, *hidden, *after], shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return sizes
