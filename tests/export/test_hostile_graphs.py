"""Graphs of unknown origin that would take gigabytes or hours: each is one sentence, in little memory and at once."""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from anytime.runtime.engines.graph_check import Allowance, checked_graph
from anytime.runtime.engines.graph_memory import GraphOperation, most_held
from anytime.runtime.engines.graph_operators import OPERATORS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, FLOAT, DOUBLE, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
node = helper.make_node
MACS, IMAGE = 1_000, (1, 3, 32, 32)
WHOLE = {"s": [1000], "n": [2**31 - 1], "million": [1000, 1000], "first": [0], "axes": [2, 3], "flat": [3072]}


def made(*nodes: Any, constants: Sequence[Any] = (), versions: Sequence[int] = (20,), **whole: Any) -> bytes:
    """A graph that adds the given operators to one that computes y from the image x."""
    tensors = [helper.make_tensor(name, INT64, [len(values)], values) for name, values in (WHOLE | whole).items()]
    graph = helper.make_graph(
        [*nodes, node("Relu", ["x"], ["y"])],
        "step",
        [helper.make_tensor_value_info("x", FLOAT, IMAGE)],
        [helper.make_tensor_value_info("y", FLOAT, IMAGE)],
        [*tensors, *constants],
    )
    opsets = [helper.make_opsetid(name, version) for name, version in zip(("", "ai.onnx"), versions, strict=False)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def number(name: str, *values: float, kind: int = FLOAT, dims: Sequence[int] = ()) -> Any:
    return helper.make_tensor(name, kind, dims, values)


def chain(kind: str, count: int, *others: str, **attributes: Any) -> list[Any]:
    """Operators from c0 to c1, from c1 to c2 and so on."""
    return [node(kind, [f"c{i}", *others], [f"c{i + 1}"], **attributes) for i in range(count)]


def fan(count: int) -> list[Any]:
    """Large values that could each be freed at once, in the order of the file, but not in another."""
    parts = [
        [
            node("Mul", ["wide", f"k{i}"], [f"w{i}"]),
            node("ReduceSum", [f"w{i}"], [f"r{i}"], keepdims=0),
            node("ReduceMax", [f"w{i}"], [f"m{i}"], keepdims=0),
        ]
        for i in range(count)
    ]
    ends = [node("Sum", [f"{letter}{i}" for i in range(count)], [letter * 2]) for letter in "rm"]
    return [node("Resize", ["x", "", "ten"], ["wide"], mode="nearest"), *itertools.chain(*parts), *ends]


HALF_A_MEGABYTE = onnx.TensorProto(name="w", data_type=onnx.TensorProto.INT8, dims=[500_000], raw_data=bytes(500_000))
COLUMN = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3072, 1], raw_data=bytes(4 * 3072))
TEN = number("ten", 1, 1, 10, 10, dims=[4])
LIES = {
    dims: onnx.TensorProto(name="w", data_type=kind, dims=dims, **values)
    for dims, kind, values in (
        ((2**40,), FLOAT, {"float_data": [1.0]}),
        ((1,), INT64, {"int64_data": [1, 2]}),
        ((3,), FLOAT, {"raw_data": bytes(13)}),
        ((-1,), FLOAT, {"raw_data": b""}),
        ((4,), onnx.TensorProto.INT4, {"raw_data": bytes(2)}),
        ((1,), onnx.TensorProto.STRING, {"string_data": [b"a"]}),
    )
}
CLAIM = "{} takes .* operations, most in {!r}, for one call, more than the MACs in the manifest explain"


def with_fields(kind: str) -> bytes:
    """Three million parts of two bytes each, which take 0.4 GB when they are read."""
    parts = {"nodes": b"\x0a\x00", "constants": b"\x2a\x00", "sizes": b"\x5a\x00"}[kind] * 3_000_000
    size = len(parts)
    return b"\x3a" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21]) + parts


BOMBS: dict[str, tuple[bytes, str]] = {
    "doubled": (
        made(node("Identity", ["s"], ["c0"]), *[node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(40)]),
        "makes 16,777,216 values by the operator 'Concat'",
    ),
    "filled": (made(node("ConstantOfShape", ["n"], ["b"]), node("Neg", ["b"], ["c"])), "makes 2,147,483,647 values by"),
    "expanded": (made(node("Expand", ["first", "n"], ["b"]), node("Add", ["b", "b"], ["c"])), "makes 2,147,483,647 values by"),
    "unfolded": (
        made(
            node("ConstantOfShape", ["sizes"], ["w"]),
            node("Slice", ["x", "first", "one", "one"], ["x1"]),
            node("ConvTranspose", ["x1", "w"], ["b"]),
            sizes=[1, 1, 1500, 1500], one=[1],
        ),
        r"holds 2,\d+,\d+,\d+ values at a time, more than 13,072,000",
    ),
    "pool": (
        made(node("MaxPool", ["x"], ["b"], kernel_shape=[2**20, 2**20], pads=[2**20 - 32] * 4, strides=[2**20] * 2)),
        "takes .* operations, most in 'MaxPool', for one call",
    ),
    "remainders": (
        made(
            node("Cast", ["x"], ["d"], to=DOUBLE),
            node("Expand", ["d", "sizes"], ["c0"]),
            *chain("Mod", 40, "p", fmod=1),
            constants=[number("p", 0.37, kind=DOUBLE)],
            sizes=[1000, 3, 32, 32],
        ),
        "takes .* operations, most in 'Mod', for one call",
    ),
    "summands": (
        made(node("Resize", ["x", "", "ten"], ["wide"]), *[node("Sum", ["wide", *["s"] * 1000], [f"b{i}"]) for i in range(40)],
            constants=[TEN], s=[1]),
        "is damaged: ONNX cannot tell",
    ),
    "packed": (
        made(
            node("Reshape", ["x", "sizes"], ["row"]),
            *[node("MatMul", ["row", "w"], [f"b{i}"]) for i in range(300)],
            constants=[COLUMN],
            sizes=[1, 3072],
        ),
        r"makes 14,\d+,\d+ values of constants, more than its weights explain",
    ),
    "kept constants": (
        made(
            node("Cast", ["w"], ["c0"], to=DOUBLE),
            *chain("Neg", 38),
            constants=[HALF_A_MEGABYTE],
        ),
        r"makes 1\d,\d+,\d+ values of constants, more than its weights explain",
    ),
    "another order": (
        made(*fan(60), constants=[TEN, *[number(f"k{i}", i) for i in range(60)]]),
        r"holds \d\d,\d+,\d+ values at a time, more than 13,072,000",
    ),
    "overflow": (made(node("Tile", ["s", "n"], ["b"]), n=[2**62 + 1]), "has a size beyond 2,147,483,648 in .* 'Tile'"),
    "scale": (
        made(node("Resize", ["x", "", "scale"], ["b"]), constants=[number("scale", 1, 1, 1e30, 1, dims=[4])]),
        "has a size beyond 2,147,483,648 in the operator 'Resize'",
    ),
    "fine range": (
        made(node("Range", ["a", "b", "c"], ["d"]), constants=[number("a", 0), number("b", 1), number("c", 1e-30)]),
        "has a scale near zero in the operator 'Range'",
    ),
    "padding": (made(node("Pad", ["x", "p"], ["b"]), p=[0, 0, 0, 0, 0, 0, 2**20, 2**20]), "values by the operator 'Pad'"),
    "classes": (
        made(node("OneHot", ["s", "n", "v"], ["b"]), v=[0, 1]),
        r"values by the operator 'OneHot'",
    ),
    "letters": (
        made(node("Reshape", ["x", "flat"], ["f"]), node("Einsum", ["f", "f", "f", "f"], ["b"], equation="a,b,c,d->")),
        "takes .* operations, most in 'Einsum', for one call",
    ),
    "dilation": (
        made(node("Conv", ["x", "w"], ["b"], dilations=[2**40, 1]), constants=[number("w", *[1.0] * 27, dims=[1, 3, 3, 3])]),
        "has a number in the attribute 'dilations' beyond 2,147,483,648 in the operator 'Conv'",
    ),
    "long attribute": (
        made(node("Transpose", ["x"], ["b"], perm=[0] * 10**5)),
        "has the attribute 'perm' of more than 64 numbers in the operator 'Transpose'",
    ),
    "rank": (made(node("Reshape", ["x", "r"], ["b"]), r=[1] * 999 + [3072]), "of the sizes .*, which no export has"),
    "own padding": (
        made(node("MaxPool", ["x"], ["b"], kernel_shape=[2, 2], auto_pad="SAME_UPPER")),
        "a value of the attribute 'auto_pad' that no export has",
    ),
    "whole numbers": (
        made(node("Cast", ["x"], ["i"], to=INT64), node("Div", ["i", "i"], ["b"])),
        "a division of whole numbers by what is not known to be above zero in the operator 'Div'",
    ),
    "minus one": (made(node("Div", ["s", "m"], ["b"]), m=[-1], s=[-(2**63)]), "a division of whole numbers by what"),
    "circle": (made(node("Neg", ["b"], ["a"]), node("Neg", ["a"], ["b"])), "'Neg' with 'b', whose size is not known"),
    "twice": (made(node("Neg", ["x"], ["a"]), node("Neg", ["x"], ["a"])), "makes the value 'a' twice"),
    "input again": (made(node("Neg", ["s"], ["x"])), "makes the value 'x' twice"),
    "one name": (made(constants=[number("a", 1), number("a", 1)]), "two constants have one name"),
    "two versions": (made(versions=(20, 9)), r"is of the versions \[20, 9\] of ONNX's operators"),
    "old version": (made(versions=(9,)), r"is of the versions \[9\] of ONNX's operators"),
    "operators": (made(*[node("Neg", ["x"], [f"b{i}"]) for i in range(5_000)]), "has 5,001 operators, more than 5,000"),
    "edges": (made(node("Concat", ["s"] * 60_000, ["b"], axis=0)), "more than 50,000 inputs and outputs"),
    **{kind: (with_fields(kind), "has more than 100,000 parts, or 4,000,000 b") for kind in ("nodes", "constants", "sizes")},
    **{f"lies: {dims}": (made(constants=[tensor]), "it lacks values of the constant 'w'") for dims, tensor in LIES.items()},
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_each_is_one_sentence(case: str) -> None:
    data, message = BOMBS[case]
    with pytest.raises(ValueError, match=message) as caught:
        checked_graph(data, "step_1.onnx", Allowance(MACS, 3072))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.skipif(sys.platform != "linux", reason="limits what a forked process may take")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_all_take_little_memory_and_time() -> None:
    """A third of a gigabyte and twenty seconds suffice to say no to all of them."""
    import resource

    if (child := os.fork()) == 0:
        refused = 0
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 340_000_000,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 20,) * 2)
            for data, message in BOMBS.values():
                try:
                    checked_graph(data, "step_1.onnx", Allowance(MACS, 3072))
                except ValueError as error:
                    refused += re.search(message, str(error)) is not None
        finally:
            os._exit(0 if refused == len(BOMBS) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "Loop",
            "If",
            "Scan",
            "SequenceMap",
            "SequenceConstruct",
            "SplitToSequence",
            "Optional",
            "NonZero",
            "Unique",
            "Compress",
        ),
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv", "LpPool", "LRN", "GroupNormalization"),
        *("Attention", "DFT", "STFT", "Det", "NonMaxSuppression", "RoiAlign", "RandomNormal", "Multinomial", "ImageDecoder"),
        *("StringConcat", "StringNormalizer", "RegexFullMatch", "TfIdfVectorizer", "FusedMatMul", "no such operator"),
    ],
)
def test_operators_that_no_export_has_are_named(kind: str) -> None:
    with pytest.raises(ValueError, match=f"f uses the operator '{kind}', whose work or memory is not known beforehand"):
        checked_graph(made(node(kind, ["x"], ["b"])), "f", Allowance(MACS, 3072))
    assert kind not in OPERATORS


def test_steps_share_one_allowance() -> None:
    """A graph takes its share for each step that computes it; each keeps its memory between calls."""
    light, allowance = made(*[node("Sin", ["x"], [f"b{i}"]) for i in range(10)]), Allowance(MACS, 3072)
    checked_graph(light, "f", allowance, uses=1_500)
    with pytest.raises(ValueError, match=r"g takes 1\d,.* operations with the steps before it, most in 'Sin', for one call"):
        checked_graph(light, "g", allowance, uses=1_500)
    with pytest.raises(ValueError, match=r"f takes 1\d,[\d,]* operations, most in 'Sin', for one call"):
        checked_graph(light, "f", Allowance(MACS, 3072), uses=3_000)
    large, allowance = made(node("Resize", ["x", "", "ten"], ["wide"]), constants=[TEN]), Allowance(MACS, 3072)
    for _ in range(15):
        allowance.take(0, 0, allowance.live, Counter(), Counter(), "f")
    checked_graph(large, "f", allowance)
    allowance.take(0, 0, 13_072_000 // 2, Counter(), Counter(), "f")
    message = r"g and the steps before it hold 2[\d,]* values, more than 209,152,000 for these images"
    with pytest.raises(ValueError, match=message):
        [checked_graph(large, "g", allowance) for _ in range(10)]


def test_operators_of_all_steps_count_together() -> None:
    data, allowance = made(*[node("Neg", ["s"], [f"b{i}"]) for i in range(100)], s=[1]), Allowance(MACS, 3072)
    allowance.take_nodes(5_000, "f")
    for _ in range(8):
        allowance.take_nodes(5_000, "f")
    allowance.take_nodes(4_900, "f")
    with pytest.raises(ValueError, match="g and the steps before it have 50,001 operators, more than 50,000"):
        checked_graph(data, "g", allowance)


def all_orders(operations: Sequence[GraphOperation]) -> list[list[int]]:
    makers = {name: place for place, operation in enumerate(operations) for name in operation.makes}
    needs = [{makers[name] for name in operation.reads if name in makers} for operation in operations]
    orders: list[list[int]] = [[]]
    for _ in operations:
        orders = [[*o, i] for o in orders for i in range(len(operations)) if i not in o and needs[i] <= {*o}]
    return orders


def held_in(order: Sequence[int], operations: Sequence[GraphOperation], outputs: set[str]) -> int:
    live: dict[str, int] = {}
    most = 0
    for done, place in enumerate(order):
        live |= operations[place].makes
        most = max(most, sum(live.values()) + operations[place].scratch)
        needed = outputs.union(*(operations[later].reads for later in order[done + 1 :]))
        live = {name: size for name, size in live.items() if name in needed}
    return most


def test_no_order_of_computation_holds_more_than_is_said() -> None:
    source = random.Random(0)
    for _ in range(60):
        operations = []
        for i in range(6):
            reads = source.sample([f"v{j}" for j in range(i)], min(i, source.choice([0, 1, 1, 2])))
            operations.append(GraphOperation(reads, {f"v{i}": source.choice([1, 10, 100])}, source.choice([0, 0, 50])))
        outputs = {f"v{source.randrange(6)}"}
        true = max(held_in(order, operations, outputs) for order in all_orders(operations))
        said = most_held(operations, outputs, small=source.choice([0, 1, 10]))
        assert said >= true


def test_a_long_chain_holds_two_values_and_a_residual_block_three() -> None:
    names = [f"v{i}" for i in range(50)]
    line = [GraphOperation([a], {b: 100}, 7) for a, b in pairwise(names)]
    assert most_held(line, {"v49"}, 0) == 100 + 200 + 7 + 7
    blocks, last = [], "v0"
    for i in range(20):
        blocks += [GraphOperation([last], {f"a{i}": 100}, 0), GraphOperation([f"a{i}", last], {f"b{i}": 100}, 0)]
        last = f"b{i}"
    blocks.append(GraphOperation([last], {"end": 1}, 0))
    assert most_held(blocks, {"end"}, 0) == 1 + 300
