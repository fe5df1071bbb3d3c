"""FLOPs (2 per multiply-add, 8 if complex) of operators that torch's counter treats as free; a check for other operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

Formula = Callable[..., int]  # (arguments of the operator..., out_val=its result) -> FLOPs


_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _stored(x: Tensor) -> int:
    """Numbers that a tensor stores: a sparse one is multiplied only by these."""
    if x.layout is torch.sparse_coo:
        return x._values().numel()
    return x.values().numel() if x.layout in _COMPRESSED else x.numel()


def _is_sparse(x: Tensor) -> bool:
    return x.layout is torch.sparse_coo or x.layout in _COMPRESSED


def _flops(x: Tensor) -> int:
    """FLOPs of one multiply-add: with complex numbers four real ones."""
    return 8 if x.is_complex() else 2


def _matrix_product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """a @ b for matrices or batches of them, a `[..., m, k]` and b `[..., k, n]` or a vector `[k]`; either may be sparse."""
    if not _is_sparse(b):
        return _flops(a) * _stored(a) * (b.shape[-1] if b.ndim > 1 else 1)
    if not _is_sparse(a):
        return _flops(a) * a.shape[-2] * _stored(b)
    left, right = (x.to_sparse_coo().coalesce().indices() for x in (a, b))
    columns, rows = (torch.bincount(index, minlength=a.shape[-1]) for index in (left[-1], right[-2]))
    return _flops(a) * int((columns * rows).sum())


def _matmul(a: Tensor, b: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """a @ b as one operator, as with nested tensors: the sum over their parts."""
    if not a.is_nested and not b.is_nested:
        return _flops(a) * out_val.numel() * a.shape[-1]
    parts = len((a if a.is_nested else b).unbind())
    left, right = (x.unbind() if x.is_nested else (x,) * parts for x in (a, b))
    return sum(map(_matrix_product, left, right))


def _added_product(_added: Any, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return _matrix_product(a, b)


def _sampled_product(mask: Tensor, a: Tensor, *_: Any, **__: Any) -> int:
    """(a @ b) only where `mask` stores numbers."""
    return _flops(a) * _stored(mask) * a.shape[-1]


def _dot(a: Tensor, *_: Any, **__: Any) -> int:
    return _flops(a) * a.numel()


def _outer(_added: Any, a: Tensor, b: Tensor, **_: Any) -> int:
    return _flops(a) * a.numel() * b.numel()


def _linear(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Each output number sums over the last dimension of x, whatever holds the weights."""
    return 2 * out_val.numel() * x.shape[-1]


def _weighted(_x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """A linear layer as one operator, as with nested tensors."""
    return _flops(weight) * out_val.numel() * weight.shape[-1]


def _grouped(a: Tensor, b: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """A batch of products, one for each group; if both are matrices, the groups share out their inner dimension."""
    return 2 * a.shape[0] * b.shape[1] * a.shape[1] if a.ndim == b.ndim == 2 else 2 * out_val.numel() * a.shape[-1]


def _distances(a: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * a.shape[-1]


def _trilinear(*given: Any, **_: Any) -> int:
    """sum_k a b c over broadcast dimensions: one multiply-add for each combination of indices."""
    shapes = []
    for x, expanded in zip(given[:3], given[3:6], strict=True):
        shape = list(x.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * prod(max(sizes) for sizes in zip(*shapes, strict=True))


def _weights_everywhere(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Each matrix is applied once to every vector along the last dimension of x."""
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.ndim == 2)


def _mkldnn_rnn(x: Tensor, *weights: Any, **_: Any) -> int:
    return _weights_everywhere(x, weights[:2])


def _cudnn_rnn(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _weights_everywhere(x, weights)


def _quantized_rnn(gates: int) -> Formula:
    def formula(x: Tensor, *given: Any, **_: Any) -> int:
        kinds = [isinstance(value, list | tuple) and isinstance(value[0], torch.ScriptObject) for value in given]
        hidden, _params, _biases, layers, _dropout, _train, bidirectional = given[kinds.index(True) - 1 :][:7]
        size = (hidden[0] if isinstance(hidden, list | tuple) else hidden).shape[-1]
        sides = 2 if bidirectional else 1
        inputs = x.shape[-1] + (layers - 1) * sides * size
        return 2 * prod(x.shape[:-1]) * sides * gates * size * (inputs + layers * size)

    return formula


def _conv_tbc(_x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * weight.shape[0] * weight.shape[1]


def _deformable(_x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * prod(weight.shape[1:])


def _packed_conv(x: Tensor, *given: Any, out_val: Tensor, **_: Any) -> int:
    """A convolution with quantised weights, packed beside its other settings."""
    packed: Any = next(value for value in given if isinstance(value, torch.ScriptObject))
    weight = packed.unpack()[0]
    return 2 * (x if packed.transpose() else out_val).numel() * prod(weight.shape[1:])


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


_PACKED_LINEAR = ("linear", "linear_relu", "linear_tanh", "linear_leaky_relu", "linear_dynamic", "linear_relu_dynamic")
_FORMULAS: dict[Formula, tuple[str, ...]] = {  # operators as "namespace::name"; a version of torch may lack some
    _matrix_product: (
        *("aten::mm", "aten::mv", "aten::bmm", "aten::_int_mm", "aten::hspmm", "aten::_sparse_sparse_matmul"),
        "quantized::matmul",
    ),
    _matmul: ("aten::matmul",),
    _weighted: ("aten::linear",),
    _added_product: (
        *("aten::_sparse_addmm", "aten::sspaddmm"),
        *(f"aten::{name}{end}" for name in ("addmm", "addmv", "addbmm", "baddbmm") for end in ("", "_")),
    ),
    _sampled_product: ("aten::sparse_sampled_addmm",),
    _dot: ("aten::dot", "aten::vdot"),
    _outer: ("aten::addr", "aten::addr_"),
    _linear: (
        *(f"quantized::{name}" for name in (*_PACKED_LINEAR, "linear_dynamic_fp16", "linear_relu_dynamic_fp16")),
        *("onednn::qlinear_pointwise", "aten::_weight_int8pack_mm", "aten::mkldnn_linear", "mkldnn::_linear_pointwise"),
        *("aten::_weight_int4pack_mm", "aten::_weight_int4pack_mm_for_cpu", "aten::_dyn_quant_matmul_4bit"),
    ),
    _grouped: ("aten::_grouped_mm", "aten::_scaled_grouped_mm"),
    _distances: ("aten::_cdist_forward", "aten::_euclidean_dist", "aten::_pdist_forward"),
    _trilinear: ("aten::_trilinear",),
    _mkldnn_rnn: ("aten::mkldnn_rnn_layer",),
    _cudnn_rnn: ("aten::_cudnn_rnn", "aten::miopen_rnn"),
    _quantized_rnn(4): ("aten::quantized_lstm",),
    _quantized_rnn(3): ("aten::quantized_gru",),
    _conv_tbc: ("aten::conv_tbc",),
    _deformable: ("torchvision::deform_conv2d",),
    _packed_conv: tuple(
        f"quantized::{kind}{d}d{after}"
        for d in (1, 2, 3)
        for kind, ends in (("conv", ("", "_relu", "_dynamic")), ("conv_transpose", ("", "_dynamic")))
        for after in ends
    ),
    _attention: ("aten::_scaled_dot_product_flash_attention_for_cpu",),
}


def extra_formulas() -> dict[Any, Formula]:
    """The formulas by operator, for `FlopCounterMode(custom_mapping=...)`.

    A sparse matrix costs what it stores, not what it would store if it were dense.
    """
    found: dict[Any, Formula] = {}
    for formula, names in _FORMULAS.items():
        formula._get_raw = True  # type: ignore[attr-defined]  # torch then passes tensors, not only their shapes
        for name in names:
            namespace, _, operator = name.partition("::")
            packet = getattr(getattr(torch.ops, namespace), operator, None)
            if packet is not None:
                found[packet] = formula
    return found


def _outer_shape(out: Tensor, *_: Any, **__: Any) -> int:
    return out.numel()


def _einsum_shape(out: Tensor, *given: Any, **_: Any) -> int:
    sizes = [x.numel() for x in pytree.tree_leaves(given) if isinstance(x, Tensor)]
    return out.numel() if len(sizes) > 1 and out.numel() > max(sizes) else 0  # else it is elementwise, hence free


def _vecdot_shape(_out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return prod(torch.broadcast_shapes(a.shape, b.shape))


_MULTIPLICATIONS: dict[Any, Formula] = {  # functions that torch carries out as elementwise multiplications
    **dict.fromkeys((torch.outer, Tensor.outer, torch.ger, Tensor.ger, torch.kron, Tensor.kron), _outer_shape),
    torch.einsum: _einsum_shape,
    torch.functional.einsum: _einsum_shape,
    torch.linalg.vecdot: _vecdot_shape,
}


class OuterProducts(TorchFunctionMode):
    """Counts outer products and scalar products that torch carries out as elementwise multiplications, as matrix products.

    Args:
        counter: The counter that gets them.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops() if func in _MULTIPLICATIONS else 0
        out = func(*args, **(kwargs or {}))
        if func in _MULTIPLICATIONS and self.counter.get_total_flops() == before:
            pairs = _MULTIPLICATIONS[func](out, *args)
            torch.mm(*(torch.empty(n, 1, dtype=out.dtype, device="meta") for n in (pairs, 1)))  # costs nothing but its count
        return out


_KNOWN = {"aten", "prim", "prims", "quantized", "_quantized", "onednn", "mkldnn", "mkl", "sparse", "inductor", "torchvision"}
_MULTIPLIES = re.compile(  # words of an operator's name, between "_", digits and the ends
    r"(?<![a-z])([a-z]*mm|(add)?mv|matmul|q?conv(olution)?|q?linear|[bt]r?ilinear|attention|rnn|lstm|gru|v?dot|addr|ger|[cp]dist"
    r"|linalg|fft|cholesky|l?solve|lstsq|inverse|svd|q?qr|lu|(slog)?det|transformer)(?![a-z])"
)
_FREE = re.compile(
    r"upsample|reorder|(pre|un)pack|pack_(gemm|quantized)|flatten_weight|fused_(gru|lstm)_cell|slice_inverse|cache|shift|freq"
    r"|linalg_(vector_norm|norm|check_errors|diagonal|cross|vander)|_check_errors"
)


class UncountedProducts(TorchDispatchMode):
    """Collects the names of the operators that look like matrix products, transforms or solvers and have no formula.

    Operators of a foreign namespace (a user's own kernels) look like one if they read two tensors or more.

    Args:
        counted: The operators that have a formula.
    """

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.counted = counted
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "overloadpacket", func)
        if packet not in self.counted and self._multiplies(func, args, kwargs):
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))

    def _multiplies(self, func: Any, args: Any, kwargs: Any) -> bool:
        namespace = getattr(func, "namespace", "")
        name = getattr(func, "_opname", str(func))
        if namespace in _KNOWN:
            return bool(_MULTIPLIES.search(name)) and not _FREE.search(name)
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        return len(tensors) > 1
