"""Functions of torch that ask a tensor something and make no new one."""

from __future__ import annotations

LAYOUT = {"is_contiguous", "stride", "storage_offset"}  # how a tensor lies in memory
PLAIN = {  # what a tensor is asked for besides its values and sizes
    *("dim", "ndimension", "is_floating_point", "is_complex", "element_size", *LAYOUT),
    *("get_device", "data_ptr", "_assert", "is_same_size", "__repr__", "__format__", "__hash__", "requires_grad_"),
    *("type", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "is_mps", "is_xpu", "is_cpu", "is_meta"),
    *("is_quantized", "is_sparse", "is_leaf", "grad", "grad_fn", "names", "itemsize", "nbytes", "is_nested", "_version"),
    *("is_tensor", "result_type", "promote_types", "finfo", "iinfo", "is_grad_enabled", "is_inference", "is_sparse_csr"),
}
VALUES = {  # functions that make Python's values of a tensor's
    *("__bool__", "item", "tolist", "__int__", "__float__", "__index__", "numpy", "__contains__", "__array__", "is_nonzero"),
    *("equal", "allclose", "__complex__"),
}
