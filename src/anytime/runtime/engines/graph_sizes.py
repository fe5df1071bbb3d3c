"""The size of every value of a graph for a batch of one, computed operator by operator without any claim of the file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anytime.runtime.engines.graph_operators import OPERATORS, Cost, check_attributes, cost_of

OLDEST = 18  # version of ONNX's operators that exports have
_RANK = 12
_MOST_NUMBER = 2**31
_FINEST = 2.0**-20  # of a scale
_GIVEN, _COMPUTED = 1_000, 64  # elements of a constant, or of a computed value, that can be sizes
_WORK = 100_000  # operations to compute such a value
_TYPES = frozenset(("FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"))
_SIZES: dict[str, tuple[int, ...]] = {  # inputs whose values the sizes of the outputs depend on, by their place
    **{"Reshape": (1,), "Expand": (1,), "Tile": (1,), "Pad": (1, 3), "ConstantOfShape": (0,), "Range": (0, 1, 2)},
    **{"Resize": (1, 2, 3), "OneHot": (1,), "TopK": (1,), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,)},
    **{"Slice": (1, 2, 3, 4), "Col2Im": (1, 2)},
    **{kind: (1,) for kind in OPERATORS if kind.startswith("Reduce")},
}
_CUT = {"Slice": (1, 2)}  # of these, the places where any number is as good as the size


class Sizes:
    """What is known of the values of a graph: sizes and types of all, contents of those that can be sizes.

    Args:
        model: What `check_graph` accepted.
        source: Its name, for errors.
        most: Values that one output may hold.

    Attributes:
        shapes: The shapes of the constants, the inputs and what was added.
    """

    def __init__(self, model: Any, source: str, most: int) -> None:
        import onnx

        self._source, self._most, self._version = source, most, model.opset_import[0].version
        names = onnx.TensorProto.DataType.items()
        self._types = {number: name for name, number in names if name in _TYPES}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._kinds: dict[str, int] = {}
        self._values: dict[str, np.ndarray[Any, Any]] = {}
        self._wanted = _wanted(model.graph.node)
        for tensor in model.graph.initializer:
            self._add(tensor.name, tensor.data_type, tuple(tensor.dims), "the file")
            if math.prod(tensor.dims) <= _GIVEN and tensor.name in self._wanted:
                self._values[tensor.name] = onnx.numpy_helper.to_array(tensor)
        for value in model.graph.input:
            kind = value.type.tensor_type
            sizes = [size.dim_value if size.HasField("dim_value") else 1 for size in kind.shape.dim]
            self._add(value.name, kind.elem_type, tuple(sizes), "the file")
            if math.prod(sizes) > most:
                raise ValueError(f"{source} takes {math.prod(sizes):,} values as {value.name!a}, more than {most:,}")

    def add(self, node: Any) -> Cost:
        """Notes the outputs of an operator, whose inputs are known, and returns what it takes.

        Raises:
            ValueError: An output has no size that is known beforehand, is no plain number, or holds too many values; or the
                operator does not fit its inputs.
        """
        kind = node.op_type
        for name in filter(None, node.input):
            if name not in self.shapes:
                raise self._unknown(kind, name)
        try:
            check_attributes(node)
            self._check_numbers(node)
        except ValueError as error:
            raise ValueError(f"{self._source} has {error} in the operator {kind!a}") from error
        for name, (number, sizes) in self._inferred(node).items():
            self._add(name, number, sizes, f"the operator {kind!a}")
        made = [*filter(None, node.output)]
        try:
            cost = cost_of(node, [self.shapes.get(name, ()) for name in node.input], [self.shapes[name] for name in made])
        except (LookupError, ValueError) as error:
            raise ValueError(f"{self._source} is damaged: inputs of the operator {kind!a} do not fit") from error
        if not self._wanted.isdisjoint(made):
            self._compute(node, made, cost.work)
        return cost

    def _add(self, name: str, number: int, sizes: tuple[int, ...], origin: str) -> None:
        if name in self.shapes:
            raise ValueError(f"{self._source} is damaged: it makes the value {name!a} twice")
        if number not in self._types:
            raise ValueError(f"{self._source} has the value {name!a}, which holds no numbers of a kind that exports have")
        if len(sizes) > _RANK or min(sizes, default=0) < 0 or max(sizes, default=0) > _MOST_NUMBER:
            raise ValueError(
                f"{self._source} has the value {name!a} of the sizes {list(sizes[: _RANK + 1])}, which no export has"
            )
        if origin != "the file" and math.prod(sizes) > self._most:
            made = f"makes {math.prod(sizes):,} values by {origin}"
            raise ValueError(f"{self._source} {made}, more than {self._most:,} for these images")
        self.shapes[name], self._kinds[name] = sizes, number

    def _unknown(self, kind: str, name: str) -> ValueError:
        return ValueError(f"{self._source} uses the operator {kind!a} with {name!a}, whose size is not known beforehand")

    def _inferred(self, node: Any) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Types and sizes of the outputs, from those of the inputs, by ONNX."""
        import onnx

        types = {name: onnx.helper.make_tensor_type_proto(self._kinds[name], self.shapes[name]) for name in node.input if name}
        places = [place for place in _SIZES.get(node.op_type, ()) if place < len(node.input)]
        values = {node.input[place]: self._values[node.input[place]] for place in places if node.input[place] in self._values}
        tensors = {name: onnx.numpy_helper.from_array(value, name) for name, value in values.items()}
        version = onnx.helper.make_opsetid("", self._version)
        try:
            schema = onnx.defs.get_schema(node.op_type, self._version, "")
            found = onnx.shape_inference.infer_node_outputs(schema, node, types, tensors, opset_imports=[version])
        except Exception as error:  # of ONNX's own kinds
            raise ValueError(
                f"{self._source} is damaged: ONNX cannot tell the sizes of what the operator {node.op_type!a} makes"
            ) from error
        result = {}
        for name in filter(None, node.output):
            kind = found[name].tensor_type if name in found else onnx.TypeProto.Tensor()
            if not kind.HasField("shape") or not all(size.HasField("dim_value") for size in kind.shape.dim):
                raise self._unknown(node.op_type, name)
            result[name] = kind.elem_type, tuple(size.dim_value for size in kind.shape.dim)
        return result

    def _check_numbers(self, node: Any) -> None:
        """Raises ValueError if known inputs would make ONNX or the engine overflow, or divide whole numbers by zero."""
        for place in _SIZES.get(node.op_type, ()):
            value = self._values.get(node.input[place]) if place < len(node.input) else None
            if value is None or value.size == 0 or place in _CUT.get(node.op_type, ()):
                continue
            if not np.all(np.abs(value.astype(np.float64)) <= _MOST_NUMBER):
                raise ValueError(f"a size beyond {_MOST_NUMBER:,}")
            if value.dtype.kind == "f" and np.any((value != 0) & (np.abs(value) < _FINEST)):
                raise ValueError("a scale near zero")
        if node.op_type == "Div" and self._types[self._kinds[node.input[0]]].removeprefix("U").startswith("INT"):
            divisor = self._values.get(node.input[1])
            if divisor is None or np.any(divisor <= 0):
                raise ValueError("a division of whole numbers by what is not known to be above zero")

    def _compute(self, node: Any, made: list[str], work: int) -> None:
        """Notes the contents of outputs that can be sizes: those of a shape, or what the engine computes from known values."""
        import onnx
        import onnxruntime

        if node.op_type == "Shape":
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            sizes = self.shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")]
            self._values[made[0]] = np.array(sizes, np.int64)
            return
        given = {name: self._values[name] for name in node.input if name in self._values}
        unknown = len(given) < len({*filter(None, node.input)})
        if unknown or work > _WORK or max(math.prod(self.shapes[name]) for name in made) > _COMPUTED:
            return
        inputs, outputs = (
            [onnx.helper.make_tensor_value_info(name, self._kinds[name], self.shapes[name]) for name in names]
            for names in (given, made)
        )
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "operator", inputs, outputs),
            opset_imports=[onnx.helper.make_opsetid("", self._version)],
            ir_version=8,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            self._values |= zip(made, session.run(made, given), strict=True)
        except Exception as error:  # of the engine's own kinds
            raise ValueError(f"{self._source} is damaged: the operator {node.op_type!a} cannot compute a size") from error


def _wanted(nodes: Any) -> set[str]:
    """Names of the values whose contents the size of a value may depend on."""
    wanted: set[str] = set()
    for node in reversed(nodes):
        wanted.update(node.input[place] for place in _SIZES.get(node.op_type, ()) if place < len(node.input))
        if node.op_type == "Div":
            wanted.update(node.input[1:2])
        if node.op_type not in ("Shape", "Size") and not wanted.isdisjoint(node.output):
            wanted.update(node.input)
    return wanted - {""}
