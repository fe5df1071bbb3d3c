"""The operators that a graph of unknown origin may hold, and the most that each takes. Any other is an error.

They are those that PyTorch's exporter writes for networks. Of each, ONNX knows the sizes of the outputs from those of the
inputs and from known values, so its work and its memory are known as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Shape = Sequence[int]

_KINDS = {  # by how much work they are for each value that they read or make
    1: "Abs Add And BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape DepthToSpace Div Dropout Equal"
    " DequantizeLinear QuantizeLinear"
    " Expand Flatten Floor Gather GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf"
    " IsNaN LeakyRelu Less LessOrEqual Max Mean Min Mul Neg Not Or PRelu Pad Range Reciprocal Relu Reshape Round Shape Sign"
    " Size Slice SpaceToDepth Split Sqrt Squeeze Sub Sum ThresholdedRelu Tile Unsqueeze Where Xor",
    2: "BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot",
    5: "ReduceL1 ReduceL2 ReduceLogSum ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare ArgMax ArgMin"
    " InstanceNormalization LayerNormalization Transpose Trilu",
    10: "Celu Elu Selu Exp Erf Gelu Sigmoid Tanh Log Softplus Softsign Mish Softmax LogSoftmax",
    20: "Col2Im GatherElements GatherND ScatterElements ScatterND OneHot CumSum ReduceLogSumExp LpNormalization",
    50: "Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Pow GridSample TopK",
    1_000: "Mod",  # of two floats that differ by many powers of two
}
_WORK = {kind: work for work, kinds in _KINDS.items() for kind in kinds.split()}
_WINDOWS = frozenset(("MaxPool", "AveragePool"))
_PRODUCTS = frozenset(("MatMul", "Gemm"))
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
OPERATORS = {*_WORK, *_WINDOWS, *_PRODUCTS, *_RECURRENT, "Conv", "ConvTranspose", "Einsum", "Resize"}

_ONLY: dict[str, tuple[Any, ...]] = {  # attributes whose other values are none of an export's
    "auto_pad": (b"NOTSET",),
    "training_mode": (0,),
    "keep_aspect_ratio_policy": (b"stretch",),
    "coordinate_transformation_mode": (b"half_pixel", b"align_corners", b"asymmetric", b"pytorch_half_pixel"),
    "output_shape": (),
}
_MOST_NUMBERS = 64  # of an attribute
_MOST_NUMBER = 2**31
_LANES = 16  # to a multiple of which the engine pads rows and channels
_PER_CALL = 20  # operations to begin a product of two matrices
_SCRATCH = 2  # values that an operator holds at most for each that it reads or writes, if nothing else is said


class Cost(NamedTuple):
    """What an operator takes at most.

    Attributes:
        work: Products, or values that it reads and writes; slow functions count more often.
        scratch: Values that it holds while it computes, besides inputs and outputs.
        packed: Values of the copy of its weights that the engine keeps.
    """

    work: int
    scratch: int
    packed: int = 0


def check_attributes(node: Any) -> None:
    """Raises ValueError if an operator has attributes that no export has."""
    names = [attribute.name for attribute in node.attribute]
    if len({*names}) != len(names):
        raise ValueError("an attribute twice")
    for attribute in node.attribute:
        numbers = [attribute.i, *attribute.ints[: _MOST_NUMBERS + 1]]
        if attribute.ref_attr_name or max(len(attribute.ints), len(attribute.floats), len(attribute.strings)) > _MOST_NUMBERS:
            raise ValueError(f"the attribute {attribute.name!a} of more than {_MOST_NUMBERS} numbers")
        if max(map(abs, numbers)) > _MOST_NUMBER:
            raise ValueError(f"a number in the attribute {attribute.name!a} beyond {_MOST_NUMBER:,}")
        value = attribute.s if attribute.type == attribute.STRING else attribute.i
        if attribute.name in _ONLY and value not in _ONLY[attribute.name]:
            raise ValueError(f"a value of the attribute {attribute.name!a} that no export has")


def cost_of(node: Any, given: Sequence[Shape], made: Sequence[Shape]) -> Cost:
    """What an operator takes at most, from the sizes of its inputs and outputs.

    Raises:
        LookupError, ValueError: They do not fit the operator.
    """
    kind, attributes = node.op_type, {attribute.name: attribute for attribute in node.attribute}
    result, moved = math.prod(made[0]), sum(map(math.prod, (*given, *made)))
    scratch = _SCRATCH * moved
    if kind == "Conv":  # an image may be unfolded: a column of weights for each pixel of the output
        weights = math.prod(given[1][1:])
        inner = _padded(given[1][1]) if given[1][1] >= _LANES else given[1][1]
        packed = _padded(given[1][0]) * inner * math.prod(given[1][2:])
        return Cost(moved + result * weights, scratch + weights * math.prod(made[0][2:]), packed)
    if kind == "ConvTranspose":  # as above, for each pixel of the input
        weights = math.prod(given[1][1:])
        unfolded = weights * math.prod(given[0][2:])
        return Cost(moved + math.prod(given[0]) * weights, scratch + unfolded, math.prod(given[1]))
    if kind in _PRODUCTS:
        turned = [name in attributes and attributes[name].i for name in ("transA", "transB")]
        columns = given[1][0 if turned[1] else -1]
        packed = math.prod(given[1]) // max(columns, 1) * _padded(columns)
        calls = _PER_CALL * math.prod(made[0][:-2])  # a product of matrices at a time
        return Cost(moved + calls + result * given[0][0 if turned[0] else -1], scratch, packed)
    if kind in _RECURRENT:
        rows, places = math.prod(given[1][:2]), given[0][0] * given[0][1]
        packed = _padded(given[1][1]) * given[1][0] * (given[1][2] + given[2][2])
        work = places * (math.prod(given[1]) + math.prod(given[2]) + 10 * rows)
        return Cost(moved + work, scratch + 4 * places * (rows + given[0][2]), packed)
    if kind in _WINDOWS:
        return Cost(moved + result * math.prod(attributes["kernel_shape"].ints), scratch)
    if kind == "Einsum":  # factor by factor, from the first
        equation = attributes["equation"].s.decode()
        products = [math.prod(_labels(equation, given, count).values()) for count in range(1, len(given) + 1)]
        return Cost(10 * moved + sum(products), scratch + 2 * moved + sum(products[1:-1]))
    if kind == "Resize":  # axis by axis, by tables of the weights of each place
        between = math.prod(map(max, given[0], made[0]))
        tables = sum(after * (before + 8) for before, after in zip(given[0], made[0], strict=True))
        return Cost(50 * (moved + between), scratch + _SCRATCH * between + tables)
    return Cost(_WORK[kind] * (moved + result * len(given)), scratch)


def _padded(count: int) -> int:
    return -(-count // _LANES) * _LANES


def _labels(equation: str, given: Sequence[Shape], count: int) -> dict[str, int]:
    """The size of each letter of the first factors of an Einsum; those of an ellipsis count by their place from its end."""
    sizes: dict[str, int] = {}
    for term, shape in [*zip(equation.replace(" ", "").split("->")[0].split(","), given, strict=True)][:count]:
        before, dots, after = term.partition("...")
        hidden = [f".{place}" for place in range(len(shape) - len(before) - len(after), 0, -1)] if dots else []
        for label, size in zip([*before, *hidden, *after], shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return sizes
